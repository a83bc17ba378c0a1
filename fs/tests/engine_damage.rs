//! Damage to what only this machine has: told, kept as far as it can be read, and never in the way of what is whole.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::sync::atomic::Ordering;

use engine_support::{Machine, World, copy_dir, device, noise, soon};
use sealdrive::engine::{Cause, EventKind, list_conflicts};

fn told(machine: &Machine, kind: EventKind) {
    let events = machine.engine.status().events;
    assert!(
        events.iter().any(|event| event.kind == kind),
        "{kind:?} in {events:#?}"
    );
}

/// Length of what stands before an object in a local pack: length, checksum, id, note.
const RECORD_HEAD: usize = 4 + 4 + 32 + 98;

/// Where the objects of a pack lie.
fn objects_in(pack: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut out, mut at) = (Vec::new(), 8);
    while let Some(len) = pack.get(at..at + 4) {
        let from = at + RECORD_HEAD;
        at = from + u32::from_le_bytes(len.try_into().unwrap()) as usize;
        out.push(from..at);
    }
    out
}

/// A damaged tree node that no server had took everything below it, though the server had a commit: a flipped bit in
/// the outbox made a whole drive EIO.
#[test]
fn a_lost_tree_node_gives_way_to_the_last_commit_and_nothing_is_thrown_away() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.mkdir("/dir");
    one.write("/dir/old", &noise(1, 300_000));
    one.sync();
    one.unmount();
    let one = world.mount("one", 1);
    one.sync();
    world.server.faults.offline.store(true, Ordering::SeqCst);
    one.write("/dir/new", &noise(2, 300_000));
    // A checkpoint: content and tree are in the outbox, and the journal is trimmed.
    assert!(one.engine.sync_server(soon(2), |_| true).is_err());
    drop(one);
    world.server.faults.offline.store(false, Ordering::SeqCst);
    let pack = std::fs::read_dir(world.path("one").join("outbox")).unwrap();
    let pack = pack.max_by_key(|entry| entry.as_ref().unwrap().path());
    let pack = pack.unwrap().unwrap().file_name();
    let good = std::fs::read(world.path("one").join("outbox").join(&pack)).unwrap();
    let objects = objects_in(&good);
    let (mut nodes, mut chunks) = (0, 0);
    for (number, object) in objects.iter().enumerate() {
        let name = format!("case-{number}");
        copy_dir(&world.path("one"), &world.path(&name));
        let mut bad = good.clone();
        bad[object.start + object.len() / 2] ^= 1;
        std::fs::write(world.path(&name).join("outbox").join(&pack), bad).unwrap();
        let mut config = world.config(&name, 1);
        // Each case with a server as it was.
        let server = world.server.snapshot();
        config.remote = Some(server.connect(device(1)));
        let machine = world.try_mount(config).unwrap();
        assert_eq!(
            machine.read("/dir/old"),
            noise(1, 300_000),
            "object {number}"
        );
        told(&machine, EventKind::OutboxDamage);
        let aside = list_conflicts(&world.config(&name, 1)).unwrap();
        if aside.is_empty() {
            // A chunk: its file is damaged, and nothing else.
            chunks += 1;
            machine.ino("/dir/new").unwrap();
        } else {
            nodes += 1;
            assert_eq!(aside[0].cause, Cause::Damaged, "object {number}");
            assert!(machine.ino("/dir/new").is_err());
            machine.write("/dir/later", b"later");
        }
        machine.sync();
        machine.unmount();
        let mut config = world.config(&format!("other-{number}"), 2);
        config.remote = Some(server.connect(device(2)));
        let other = world.try_mount(config).unwrap();
        assert_eq!(other.read("/dir/old"), noise(1, 300_000), "object {number}");
        assert_eq!(other.ino("/dir/later").is_ok(), !aside.is_empty());
    }
    assert!(nodes > 0 && chunks > 0, "{nodes} nodes, {chunks} chunks");
}
