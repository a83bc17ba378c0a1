//! Damage: bytes flipped on the server's disk and in local state. What is read is right, or an error; never wrong.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sealdrive_tests::made::{Noise, prose};
use sealdrive_tests::world::World;

/// Files written; each is checked after the damage.
const FILES: u64 = 60;

fn content(number: u64) -> Vec<u8> {
    match number % 3 {
        0 => prose(number, 900),
        1 => prose(number, 40_000 + number as usize),
        _ => Noise::new(number).bytes(700_000 + number as usize),
    }
}

fn write_all(root: &Path) {
    for number in 0..FILES {
        fs::write(root.join(format!("{number}")), content(number)).unwrap();
    }
}

/// Reads everything back: how many files were right and how many were refused. Wrong bytes end the test.
fn read_all(root: &Path) -> (u64, u64) {
    let (mut right, mut refused) = (0, 0);
    for number in 0..FILES {
        match fs::read(root.join(format!("{number}"))) {
            Ok(bytes) => {
                assert!(
                    bytes == content(number),
                    "file {number} was read with other bytes"
                );
                right += 1;
            }
            Err(_) => refused += 1,
        }
    }
    (right, refused)
}

/// Every file below `root` whose path says `word`.
fn files(root: &Path, word: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().contains(word) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Flips one bit about every `every` bytes of a file, leaving its first bytes alone.
fn damage(path: &Path, every: u64, seed: u64) -> u64 {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut noise = Noise::new(seed);
    let length = file.metadata().unwrap().len();
    let (mut at, mut flips) = (200 + noise.below(every), 0);
    while at < length {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << noise.below(8)], at)
            .unwrap();
        flips += 1;
        at += 1 + noise.below(2 * every);
    }
    flips
}

/// Flips one bit in the first half of a file, after its first bytes: the end could pass for a torn tail.
fn damage_once(path: &Path, seed: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut noise = Noise::new(seed);
    let length = file.metadata().unwrap().len();
    let at = 200 + noise.below(length.saturating_sub(200) / 2);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << noise.below(8)], at)
        .unwrap();
}

#[test]
fn damage_on_the_servers_disk_is_an_error_and_never_wrong_bytes() {
    let world = World::new();
    let (mut server, machine, mounted) = world.mounted();
    write_all(mounted.path());
    machine.umount(mounted);
    server.stop();
    // About every fourth large object is hit; the tree usually stands.
    let packs = files(server.data(), "pack");
    let flips: u64 = packs.iter().map(|pack| damage(pack, 2_500_000, 7)).sum();
    assert!(flips > 0, "nothing was damaged: {packs:?}");
    server.restart();
    let fresh = world.machine("fresh");
    fresh.recover(&machine.kit());
    let mounted = fresh.mount();
    let (right, refused) = read_all(mounted.path());
    assert_eq!(right + refused, FILES);
    assert!(
        refused > 0,
        "{flips} flips and nothing was refused: was anything checked?"
    );
}

#[test]
fn damage_in_the_local_cache_is_healed_from_the_server() {
    let world = World::new();
    let (_server, machine, mounted) = world.mounted();
    write_all(mounted.path());
    machine.umount(mounted);
    let packs = files(&machine.home(), ".pack");
    let flips: u64 = packs.iter().map(|pack| damage(pack, 300_000, 9)).sum();
    assert!(flips > 5, "only {flips} flips in {packs:?}");
    let mounted = machine.mount();
    assert_eq!(read_all(mounted.path()), (FILES, 0));
}

#[test]
fn damage_in_the_journal_ends_it_there_and_is_told() {
    for seed in 0..3 {
        let world = World::new();
        let (mut server, machine, mounted) = world.mounted();
        // Without a server nothing is committed; each fsync is a record of its own behind the one before.
        server.kill();
        for number in 0..FILES {
            let mut file = File::create(mounted.path().join(format!("{number}"))).unwrap();
            file.write_all(&content(number)).unwrap();
            file.sync_all().unwrap();
        }
        mounted.kill();
        let journals = files(&machine.home(), ".sdj");
        assert!(!journals.is_empty(), "there is no journal to damage");
        for journal in &journals {
            damage_once(journal, seed);
        }
        let mounted = machine.mount();
        let present = |number| mounted.path().join(format!("{number}")).exists();
        let kept = (0..FILES).take_while(|number| present(*number)).count() as u64;
        let (right, refused) = read_all(mounted.path());
        // A prefix: nothing after the first that is missing.
        assert_eq!(
            (right, refused),
            (kept, FILES - kept),
            "seed {seed}: files after a gap"
        );
        if kept < FILES {
            let notes = machine.status()["notes"].to_string();
            assert!(
                notes.contains("journal"),
                "seed {seed}: {kept} of {FILES} files are left, and status says {notes}"
            );
        }
        println!("seed {seed}: {kept} of {FILES} files kept");
    }
}
