//! What rots, or is gone, of packs that opening does not read whole or cannot read any more: told, and told again until
//! no restore point can need it.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine_support::packs::{RECORD_HEAD, outbox_of, rot};
use engine_support::{Machine, World, copy_dir, device, noise, soon};
use sealdrive::engine::{Event, EventKind, list_conflicts};

/// Without a server: everything is in the tree, and nothing in the journal.
fn all_in_the_tree(machine: &Machine) {
    let patience = soon(60);
    loop {
        let _ = machine.engine.sync_server(soon(1), |_| true);
        let status = machine.engine.status();
        if status.dirty_bytes == 0 && status.checkpointed + 1 >= status.operations {
            return;
        }
        assert!(Instant::now() < patience, "{status:#?}");
    }
}

/// Opening leaves unread what the index vouches for: somebody has to look, also while no server is reached.
#[test]
fn a_chunk_that_rots_unread_is_told_with_its_file_though_no_server_is_reached() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.sync();
    one.unmount();
    world.server.faults.offline.store(true, Ordering::SeqCst);
    for (round, name) in ["/good", "/rotten", "/last"].into_iter().enumerate() {
        let one = world.mount("one", 1);
        one.write(name, &noise(round as u64, 300_000));
        all_in_the_tree(&one);
    }
    let objects = outbox_of(&world, "one");
    let mut chunks = objects.iter().filter(|(_, at)| at.len() > 200_000);
    let second = chunks.nth(1).unwrap();
    rot(&world, "one", second);
    let one = world.mount("one", 1);
    let rotten = one.ino("/rotten").unwrap();
    one.tells(EventKind::OutboxDamage);
    let patience = soon(60);
    let found = || one.engine.status().casualties;
    while found().is_empty() {
        assert!(Instant::now() < patience, "{:#?}", one.engine.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    let found: Vec<_> = found().iter().map(|lost| lost.ino).collect();
    assert_eq!(found, [rotten]);
    assert_eq!(one.read("/good"), noise(0, 300_000));
    assert_eq!(one.read("/last"), noise(2, 300_000));
}

/// What was gone was missed at the first mount only: where that one had no server, the next made a restore point of a
/// tree with a hole.
#[test]
fn what_was_missed_without_a_server_is_still_missed_with_one() {
    const NEW: u64 = 100;
    let world = World::new();
    let one = world.mount("one", 1);
    one.mkdir("/dir");
    one.write("/dir/old", &noise(1, 300_000));
    one.sync();
    one.unmount();
    let sent = outbox_of(&world, "one");
    world.server.faults.offline.store(true, Ordering::SeqCst);
    let one = world.mount("one", 1);
    let new = |n: u64| format!("/dir/{:0>90}", n);
    for n in 0..NEW {
        one.write(&new(n), &noise(n + 2, 3000));
    }
    // Nothing in the journal: the next commit needs no look at what is lost.
    all_in_the_tree(&one);
    drop(one);
    // A later pack, and a root in it.
    let one = world.mount("one", 1);
    one.write("/other", b"other");
    all_in_the_tree(&one);
    drop(one);
    let mut objects = outbox_of(&world, "one");
    objects.retain(|object| !sent.contains(object));
    let (mut torn, mut whole, mut behind) = (0, 0, 0);
    for (number, (pack, at)) in objects.iter().rev().enumerate() {
        let name = format!("case-{number}");
        copy_dir(&world.path("one"), &world.path(&name));
        // The whole pack is gone, or all from this object on, or the object's id is not what it was.
        let path = world.path(&name).join(pack);
        let mut bytes = std::fs::read(&path).unwrap();
        match number % 4 {
            0 => bytes.clear(),
            1 | 2 => bytes.truncate(at.start),
            _ => bytes[at.start - RECORD_HEAD + 20] ^= 1,
        }
        match bytes.is_empty() {
            true => std::fs::remove_file(path).unwrap(),
            false => std::fs::write(path, bytes).unwrap(),
        }
        let server = world.server.snapshot();
        server.faults.offline.store(true, Ordering::SeqCst);
        let mount = |machine: &str, n| {
            let mut config = world.config(machine, n);
            config.remote = Some(server.connect(device(n)));
            world.try_mount(config).unwrap()
        };
        let machine = mount(&name, 1);
        machine.told(EventKind::OutboxDamage);
        drop(machine);
        // The second does not know any more what it was; its server comes back while it is mounted.
        let machine = mount(&name, 1);
        machine.told(EventKind::OutboxDamage);
        server.faults.offline.store(false, Ordering::SeqCst);
        // What is appended and sent behind the hole does not cover it.
        if machine.ino("/other").is_ok() {
            machine.write("/second", &noise(9, 300_000));
            behind += 1;
        }
        let said = machine.engine.sync_server(soon(3), |_| true);
        let patience = soon(60);
        while machine.engine.status().sent_bytes == 0 || machine.engine.status().pending_objects > 0
        {
            assert!(Instant::now() < patience, "{:#?}", machine.engine.status());
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(machine);
        let names_are_there = |other: &Machine| {
            let is_there = |n| other.ino(&new(n)).is_ok();
            let found = (0..NEW).filter(|n| is_there(*n)).count() as u64;
            assert!(found == 0 || found == NEW, "{name}: {found} of {NEW}");
            found > 0
        };
        let there = names_are_there(&mount(&format!("{name}-other"), 2));
        assert_eq!(there, said.is_ok(), "{name}");
        let machine = mount(&name, 1);
        let aside = list_conflicts(&world.config(&name, 1)).unwrap();
        assert_eq!(aside.is_empty(), there, "{name}: {aside:?}");
        machine.write("/dir/later", b"later");
        machine.sync();
        machine.unmount();
        let other = mount(&format!("{name}-last"), 3);
        assert_eq!(other.read("/dir/later"), b"later", "{name}");
        assert_eq!(other.read("/dir/old"), noise(1, 300_000), "{name}");
        assert_eq!(names_are_there(&other), there, "{name}");
        drop(other);
        // A restore point has left it behind: nothing is missed any more.
        let machine = mount(&name, 1);
        let events = machine.engine.status().events;
        let is_damage = |event: &Event| event.kind == EventKind::OutboxDamage;
        assert!(!events.iter().any(is_damage), "{name}: {events:#?}");
        drop(machine);
        *if there { &mut whole } else { &mut torn } += 1;
    }
    let counts = [torn, whole, behind];
    assert!(torn > 2 && whole > 0 && behind > 2, "{counts:?}");
}
