//! Content is compressed as the drive was made to, by every machine that writes it; the tree is compressed in any case.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use engine_support::{Machine, World, noise};
use sealdrive_proto::link::Compression;

/// Text of words in no order, different for every seed: it packs to less than half, and high levels find more of it.
fn words(seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 16);
    for dice in noise(seed, len).chunks_exact(2) {
        let word = u16::from_le_bytes([dice[0], dice[1]]) % 3000;
        out.extend_from_slice(format!("{:x} ", u32::from(word) * 7919).as_bytes());
        if out.len() >= len {
            break;
        }
    }
    out.truncate(len);
    out
}

fn stored(world: &World) -> usize {
    let disk = world.server.disk();
    disk.objects.values().map(|object| object.len()).sum()
}

/// Bytes that the server has more after `content` was written and sent.
fn sent(world: &World, machine: &Machine, path: &str, content: &[u8]) -> usize {
    let before = stored(world);
    machine.write(path, content);
    machine.sync();
    stored(world) - before
}

#[test]
fn a_drive_without_compression_stores_what_it_is_given_on_every_machine() {
    let world = World::compressing(Compression::Off);
    let (one, other) = (words(1, 3 << 20), words(2, 3 << 20));
    let first = world.mount("first", 1);
    let size = sent(&world, &first, "/one", &one);
    assert!(size >= one.len(), "{size}");
    first.unmount();
    let second = world.mount("second", 2);
    assert_eq!(second.read("/one"), one);
    let size = sent(&world, &second, "/other", &other);
    assert!(size >= other.len(), "{size}");
    second.unmount();
    let first = world.mount("first", 1);
    assert_eq!(first.read("/other"), other);
    first.unmount();
}

#[test]
fn the_level_is_that_of_the_drive() {
    let text = words(3, 3 << 20);
    let size = |level| {
        let world = World::compressing(Compression::Zstd(level));
        let machine = world.mount("first", 1);
        let size = sent(&world, &machine, "/text", &text);
        machine.unmount();
        let other = world.mount("second", 2);
        assert_eq!(other.read("/text"), text);
        other.unmount();
        size
    };
    let (low, high) = (size(1), size(19));
    assert!(
        high < low && low < text.len() / 2,
        "of {}: {low} at level 1, {high} at level 19",
        text.len()
    );
}

#[test]
fn the_tree_is_compressed_in_any_case() {
    let world = World::compressing(Compression::Off);
    let machine = world.mount("first", 1);
    let mut names = 0;
    for n in 0..400 {
        let path = format!("/{n:03}-{}", "long name ".repeat(20));
        names += path.len();
        machine.write(&path, b"");
    }
    machine.sync();
    let size = stored(&world);
    // Each name stands there twice.
    assert!(size < 2 * names, "{size} for {names} bytes of names");
    machine.unmount();
}
