//! Damage to what only this machine has: told, kept as far as it can be read, and never in the way of what is whole.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use engine_support::packs::{objects_in, outbox_of, rot};
use engine_support::{Machine, World, copy_dir, device, noise, soon};
use sealdrive::engine::{Branch, Cause, CrashPoints, Event, EventKind, SyncError, list_conflicts};

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
    let sent = outbox_of(&world, "one");
    world.server.faults.offline.store(true, Ordering::SeqCst);
    one.write("/dir/new", &noise(2, 300_000));
    // A checkpoint: content and tree are in the outbox, and the journal is trimmed.
    assert!(one.engine.sync_server(soon(2), |_| true).is_err());
    drop(one);
    world.server.faults.offline.store(false, Ordering::SeqCst);
    let mut objects = outbox_of(&world, "one");
    objects.retain(|object| !sent.contains(object));
    let (mut nodes, mut chunks) = (0, 0);
    for (number, object) in objects.iter().enumerate() {
        let name = format!("case-{number}");
        copy_dir(&world.path("one"), &world.path(&name));
        rot(&world, &name, object);
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
        machine.tells(EventKind::OutboxDamage);
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

/// Exporting what had been set aside because of a damaged tree node stopped at that node: whatever else was good stayed
/// in a directory that nobody can read.
#[test]
fn an_export_brings_all_that_is_good_and_names_the_rest() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.mkdir("/many");
    one.sync();
    world.server.faults.offline.store(true, Ordering::SeqCst);
    let file = |n: u64| (format!("many/f{n:03}"), noise(n, 2500));
    for n in 0..120 {
        let (name, content) = file(n);
        one.write(&format!("/{name}"), &content);
    }
    let big = noise(500, 3_000_000);
    one.write("/big", &big);
    assert!(one.engine.sync_server(soon(3), |_| true).is_err());
    drop(one);
    world.server.faults.offline.store(false, Ordering::SeqCst);
    let objects = outbox_of(&world, "one");
    let chunk = objects.iter().max_by_key(|(_, at)| at.len()).unwrap();
    let (mut branches, mut back, mut named, mut parts) = (0, 0, 0, 0);
    for (number, object) in objects.iter().enumerate().filter(|(_, o)| *o != chunk) {
        let name = format!("case-{number}");
        copy_dir(&world.path("one"), &world.path(&name));
        rot(&world, &name, object);
        rot(&world, &name, chunk);
        let mut config = world.config(&name, 1);
        config.remote = Some(world.server.snapshot().connect(device(1)));
        drop(world.try_mount(config).unwrap());
        let config = world.config(&name, 1);
        let Some(aside) = list_conflicts(&config).unwrap().pop() else {
            continue;
        };
        branches += 1;
        let target = world.path(&format!("export-{number}"));
        let branch = Branch::open(&config, &aside.id).unwrap();
        let exported = branch.export(&target).unwrap();
        assert!(!exported.missing.is_empty() && !exported.tampered);
        let names_rest = exported
            .missing
            .iter()
            .any(|m| m.path.starts_with("whatever"));
        for (name, content) in (0..120).map(file).chain([("big".to_owned(), big.clone())]) {
            match std::fs::read(target.join(&name)) {
                Ok(found) => {
                    assert!(found == content, "object {number}: {name} has other bytes");
                    back += 1;
                }
                Err(_) => {
                    let missing = exported.missing.iter().find(|missing| missing.path == name);
                    assert!(missing.is_some() || names_rest, "object {number}: {name}");
                    named += usize::from(missing.is_some());
                }
            }
        }
        assert!(!target.join("big").exists(), "its chunk is damaged");
        if let Some(big_of) = exported
            .missing
            .iter()
            .find(|missing| missing.path == "big")
            && let Some(lost) = big_of.bytes
        {
            let kept = std::fs::read(target.join(big_of.kept.as_ref().unwrap())).unwrap();
            let wrong = kept.iter().zip(&big).filter(|(is, was)| is != was).count() as u64;
            assert!(
                wrong <= lost && lost < big.len() as u64,
                "{wrong} of {lost}"
            );
            parts += 1;
        }
    }
    println!("{branches} branches, {back} files back, {named} named, {parts} parts");
    assert!(
        branches > 3 && back > 120 && named > 20 && parts > 0,
        "{branches} {back} {named}"
    );
}

/// An fsync of a large file seals it into the outbox and names it in the journal. Rot that came before the next
/// checkpoint, after which the index would have missed it, was told only when somebody read the file.
#[test]
fn what_only_the_journal_names_is_missed_too() {
    let world = World::new();
    let config = |name: &str| {
        let mut config = world.config(name, 1);
        config.remote = None;
        config.commit_interval = std::time::Duration::from_secs(3600);
        config
    };
    let one = world.try_mount(config("one")).unwrap();
    one.write("/good", &noise(1, 20_000_000));
    one.write("/bad", &noise(2, 20_000_000));
    one.engine.sync_local().unwrap();
    drop(one);
    let packs = std::fs::read_dir(world.path("one").join("outbox")).unwrap();
    let pack = packs.map(|entry| entry.unwrap().path()).min().unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let objects = objects_in(&bytes);
    let hit = &objects[objects.len() / 2];
    bytes[hit.start + hit.len() / 2] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let one = world.try_mount(config("one")).unwrap();
    one.told(EventKind::OutboxDamage);
    let casualties = one.engine.status().casualties;
    assert_eq!(casualties.len(), 1, "{casualties:?}");
    let named = [one.ino("/good").unwrap(), one.ino("/bad").unwrap()];
    assert!(named.contains(&casualties[0].ino));
}

/// A damaged node leaves the queue before it is noted as lost. Whoever commits at that moment finds that nothing waits
/// and that nothing is lost.
#[test]
fn nothing_is_committed_while_it_is_found_out_what_is_lost() {
    let world = World::new();
    let machine: Arc<OnceLock<Weak<Machine>>> = Arc::default();
    let (slot, server) = (Arc::clone(&machine), Arc::clone(&world.server));
    let found = Arc::<AtomicBool>::default();
    let is_found = Arc::clone(&found);
    let points = CrashPoints::new(move |point| {
        let Some(one) = slot.get().filter(|_| point == "damage-aside") else {
            return;
        };
        // Each answer of the server wakes those who wait to commit.
        let asked = || server.faults.lease_asked.load(Ordering::SeqCst);
        let enough = asked() + 30;
        while asked() < enough {
            let Some(one) = one.upgrade() else { return };
            one.engine.hear(Duration::ZERO, soon(0));
            std::thread::sleep(Duration::from_millis(20));
        }
        is_found.store(true, Ordering::SeqCst);
    });
    let one = Arc::new(world.mount_with_points("one", 1, points));
    machine.set(Arc::downgrade(&one)).unwrap();
    one.sync();
    world.server.faults.offline.store(true, Ordering::SeqCst);
    // In the tree itself: its only node is all that waits.
    one.write("/file", b"file");
    assert!(one.engine.sync_server(soon(2), |_| true).is_err());
    assert_eq!(one.engine.status().pending_objects, 1);
    let before = world.server.disk().commits.len();
    rot(&world, "one", outbox_of(&world, "one").last().unwrap());
    world.server.faults.offline.store(false, Ordering::SeqCst);
    let done = one.engine.sync_server(soon(90), |_| true);
    assert!(matches!(done, Err(SyncError::Stopped(_))), "{done:?}");
    assert!(found.load(Ordering::SeqCst));
    one.told(EventKind::OutboxDamage);
    assert_eq!(world.server.disk().commits.len(), before);
}

/// What is sealed again stands behind everything that the tree was made of, and is waited for all the same.
#[test]
fn what_is_sealed_again_is_on_the_server_before_it_is_committed() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.sync();
    world.server.faults.offline.store(true, Ordering::SeqCst);
    let content = noise(1, 300_000);
    one.write("/file", &content);
    assert!(one.engine.sync_server(soon(2), |_| true).is_err());
    // Read from its chunk, which stays in memory.
    assert_eq!(one.read("/file"), content);
    let objects = outbox_of(&world, "one");
    let chunk = objects.iter().max_by_key(|(_, at)| at.len()).unwrap();
    rot(&world, "one", chunk);
    // The node alone, and then nothing for a moment.
    world.server.faults.cut_after.store(1, Ordering::SeqCst);
    world.server.faults.offline.store(false, Ordering::SeqCst);
    one.sync();
    // At once: what the server has at this moment is all that another machine would find.
    let server = world.server.snapshot();
    one.told(EventKind::Healed);
    drop(one);
    let mut config = world.config("two", 2);
    config.remote = Some(server.connect(device(2)));
    assert_eq!(world.try_mount(config).unwrap().read("/file"), content);
}

/// Files whose names and attributes take a dozen leaves.
const MANY: u64 = 300;

/// Story: a node of the tree rotted in the outbox while the checkpoint that took it over was being made. The upload
/// found it, looked at the newest finished checkpoint, which did not exist yet, and stepped over it; then the new one
/// was committed: a restore point that names a node which nobody has.
#[test]
fn a_node_that_rots_while_a_checkpoint_is_made_is_in_no_restore_point() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.mkdir("/many");
    for n in 0..MANY {
        one.write(&format!("/many/f{n:03}"), &noise(n, 1500));
    }
    one.sync();
    one.unmount();
    let one = world.mount("one", 1);
    one.sync();
    world.server.faults.offline.store(true, Ordering::SeqCst);
    // Nodes all over the tree change, and wait in the outbox.
    for n in (0..MANY).step_by(3) {
        one.write(&format!("/many/f{n:03}"), &noise(1000 + n, 1500));
    }
    assert!(one.engine.sync_server(soon(3), |_| true).is_err());
    drop(one);
    world.server.disk().lease = None;
    let packs = std::fs::read_dir(world.path("one").join("outbox")).unwrap();
    let pack = packs.max_by_key(|entry| entry.as_ref().unwrap().path());
    let pack = pack.unwrap().unwrap().file_name();
    let good = std::fs::read(world.path("one").join("outbox").join(&pack)).unwrap();
    let nodes = objects_in(&good).len();
    let (mut stopped, mut committed) = (0, 0);
    for number in 0..nodes {
        let ended = rots_under_a_checkpoint(&world, number, &pack, &good);
        stopped += u32::from(!ended);
        committed += u32::from(ended);
    }
    println!("{nodes} objects: {stopped} stopped, {committed} committed");
    assert!(stopped > 2, "{nodes} objects: {committed} committed");
}

/// One object of the outbox rots between the merge and the end of the checkpoint; whether there was a commit after it.
fn rots_under_a_checkpoint(
    world: &World,
    number: usize,
    pack: &std::ffi::OsStr,
    good: &[u8],
) -> bool {
    let name = format!("case-{number}");
    copy_dir(&world.path("one"), &world.path(&name));
    let server = world.server.snapshot();
    server.faults.offline.store(true, Ordering::SeqCst);
    let machine: Arc<OnceLock<Weak<Machine>>> = Arc::default();
    let (slot, path) = (
        Arc::clone(&machine),
        world.path(&name).join("outbox").join(pack),
    );
    let object = objects_in(good)[number].clone();
    let (online, bytes) = (Arc::clone(&server), good.to_vec());
    let mut config = world.config(&name, 1);
    config.remote = Some(server.connect(device(1)));
    config.crash = CrashPoints::new(move |point| {
        // Once: the first checkpoint after the mount.
        if point != "merged" || !online.faults.offline.load(Ordering::SeqCst) {
            return;
        }
        let mut bad = bytes.clone();
        bad[object.start + object.len() / 2] ^= 1;
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bad, 0).unwrap();
        online.faults.offline.store(false, Ordering::SeqCst);
        // Until the upload has been there, while this checkpoint is not made yet.
        let end = soon(90);
        while soon(0) < end {
            let Some(machine) = slot.get().and_then(Weak::upgrade) else {
                std::thread::sleep(std::time::Duration::from_millis(5));
                continue;
            };
            let status = machine.engine.status();
            let found = |event: &Event| {
                event.detail.contains("sealed again") || event.detail.contains("before it was on")
            };
            if status.events.iter().any(found) || status.pending_objects == 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    let before = server.disk().commits.len();
    let one = Arc::new(world.try_mount(config).unwrap());
    machine.set(Arc::downgrade(&one)).unwrap();
    one.write("/new", b"new");
    let done = one.engine.sync_server(soon(90), |_| true);
    let stopped = matches!(done, Err(SyncError::Stopped(_)));
    assert!(done.is_ok() || stopped, "object {number}: {done:?}");
    drop(one);
    server.disk().lease = None;
    // Whatever was committed is whole: another machine can read the tree to its end.
    let mut config = world.config(&format!("other-{number}"), 2);
    config.remote = Some(server.connect(device(2)));
    let other = world.try_mount(config).unwrap();
    let handle = other.ino("/many").unwrap();
    let names = other.op(|d| d.opendir(handle)).unwrap();
    other
        .op(|d| d.readdir(names, 0, |_| true))
        .unwrap_or_else(|e| panic!("object {number} of {name}: {e:?}"));
    for n in 0..MANY {
        let attr = other.op(|d| d.lookup(handle, format!("f{n:03}").as_bytes()));
        let attr = attr.unwrap_or_else(|e| panic!("object {number}, file {n}: {e:?}"));
        other.op(|d| d.read_plan(attr.ino, 0, u64::MAX)).unwrap();
    }
    let committed = server.disk().commits.len() > before;
    assert_eq!(committed, !stopped, "object {number}");
    committed
}
