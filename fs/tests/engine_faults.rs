//! What goes wrong and must not matter: power cuts, cut streams, lost answers, other devices, full disks.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use engine_support::{ME, NOW, World, copy_dir, device, noise, soon};
use sealdrive::drive::{DriveError, Errno};
use sealdrive::engine::{
    BlobError, Branch, CrashPoints, EngineError, Event, EventKind, SyncError, drop_branch,
    list_conflicts,
};
use sealdrive_core::record::ROOT;

/// The steps of the ordering law; the crash suite of the workspace's tests takes every other point, too.
const STEPS: &[&str] = &[
    "log-taken",
    "outbox-durable",
    "journal-durable",
    "frozen",
    "nodes-durable",
    "checkpoint-durable",
    "journal-trimmed",
    "acknowledged",
    "commit-durable",
    "commit-accepted",
    "pinned",
    "retired",
];

/// Copies the state directory whenever the world reaches one of the steps.
fn snapshots(world: &World, machine: &str) -> (CrashPoints, Arc<Mutex<Vec<String>>>) {
    let (from, base) = (world.path(machine), world.dir.path().to_owned());
    let (taken, count) = (Arc::new(Mutex::new(Vec::new())), AtomicU64::new(0));
    let list = Arc::clone(&taken);
    let points = CrashPoints::new(move |point| {
        if !STEPS.contains(&point) {
            return;
        }
        let name = format!("{point}-{}", count.fetch_add(1, Ordering::SeqCst));
        copy_dir(&from, &base.join(&name));
        list.lock().unwrap().push(name);
    });
    (points, taken)
}

#[test]
fn what_was_synced_survives_a_crash_at_every_step() {
    let world = World::new();
    let (points, taken) = snapshots(&world, "one");
    let machine = world.mount_with_points("one", 1, points);
    machine.write("/before", &noise(1, 300_000));
    machine.engine.sync_local().unwrap();
    taken.lock().unwrap().clear();
    machine.write("/later", &noise(2, 2_000_000));
    machine.write("/small", b"small");
    machine.engine.sync_local().unwrap();
    machine.sync();
    drop(machine);
    let names = std::mem::take(&mut *taken.lock().unwrap());
    for step in STEPS {
        assert!(
            names.iter().any(|name| name.starts_with(step)),
            "{step} was reached: {names:?}"
        );
    }
    let mut synced = false;
    for name in names {
        synced |= name.starts_with("journal-durable");
        let machine = world.mount(&name, 1);
        assert_eq!(machine.read("/before"), noise(1, 300_000), "at {name}");
        if synced {
            assert_eq!(machine.read("/later"), noise(2, 2_000_000), "at {name}");
            assert_eq!(machine.read("/small"), b"small", "at {name}");
        }
        // The server went on after the copy was taken: a copy from before the commit was signed finds a stranger's,
        // sets aside what it has, and goes on from there.
        let expected = [EventKind::Fenced, EventKind::SetAside];
        let unexpected = |event: &Event| !expected.contains(&event.kind);
        assert!(
            !machine.engine.status().events.iter().any(unexpected),
            "at {name}"
        );
    }
}

#[test]
fn an_upload_that_is_cut_goes_on_where_it_was() {
    let world = World::new();
    world.server.faults.cut_after.store(3, Ordering::SeqCst);
    let machine = world.mount("one", 1);
    let content = noise(7, 6 << 20);
    machine.write("/large", &content);
    machine.sync();
    let (objects, puts) = {
        let disk = world.server.disk();
        (disk.objects.len() as u64, disk.puts)
    };
    assert!(objects > 10, "several streams were needed");
    assert!(
        puts <= objects * 3,
        "{puts} puts for {objects} objects: what was acknowledged is not sent again"
    );
    drop(machine);
    assert_eq!(world.mount("two", 2).read("/large"), content);
}

#[test]
fn a_commit_whose_answer_is_lost_is_not_written_twice() {
    let world = World::new();
    let machine = world.mount("one", 1);
    world
        .server
        .faults
        .lose_commit_answers
        .store(2, Ordering::SeqCst);
    machine.write("/a", b"first");
    machine.sync();
    machine.write("/a", b"second");
    machine.sync();
    let status = machine.engine.status();
    assert_eq!(status.events, []);
    assert_eq!(world.server.disk().commits.len() as u64, status.commit_seq);
    machine.unmount();
    let again = world.mount("one", 1);
    again.write("/a", b"third");
    again.sync();
    assert_eq!(world.mount("two", 2).read("/a"), b"third");
}

#[test]
fn the_same_object_from_another_machine_is_no_conflict() {
    let world = World::new();
    let content = noise(11, 400_000);
    let machine = world.mount("one", 1);
    machine.write("/file", &content);
    machine.unmount();
    let other = world.mount("two", 2);
    other.write("/copy", &content);
    other.sync();
    assert_eq!(other.engine.status().events, []);
    assert_eq!(other.read("/copy"), content);
}

#[test]
fn two_machines_take_turns_and_the_second_writer_is_told() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.write("/from-one", b"1");
    one.sync();
    let two = world.mount("two", 2);
    assert!(two.engine.is_read_only(), "the lease is held elsewhere");
    assert_eq!(two.read("/from-one"), b"1");
    let refused = two.drive().mkdir(ROOT, b"d", 0o755, 0, ME, NOW);
    assert_eq!(refused, Err(DriveError::Errno(Errno::EROFS)));
    two.unmount();
    one.unmount();
    let two = world.mount("two", 2);
    two.write("/from-two", b"2");
    two.sync();
    two.unmount();
    let one = world.mount("one", 1);
    assert_eq!(
        one.read("/from-two"),
        b"2",
        "with nothing of its own it goes on from there"
    );
    one.write("/again", b"3");
    one.sync();
    assert_eq!(one.engine.status().events, []);
}

#[test]
fn a_fenced_writer_stops_and_keeps_everything() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.write("/a", b"1");
    one.sync();
    let mut config = world.config("two", 2);
    config.take_over = true;
    let two = world.try_mount(config).unwrap();
    two.write("/b", b"2");
    two.sync();
    drop(two);
    world.server.disk().lease = None;
    one.write("/c", b"3");
    let stopped = one.engine.sync_server(soon(10), |_| true);
    assert!(matches!(stopped, Err(SyncError::Stopped(_))), "{stopped:?}");
    one.told(EventKind::Fenced);
    assert_eq!(one.read("/c"), b"3");
    let read_only = || one.engine.is_read_only().then_some(());
    let deadline = soon(10);
    while read_only().is_none() {
        assert!(
            std::time::Instant::now() < deadline,
            "it still takes changes"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(one);

    // Opened again it goes on from the server's state, and the branch lies beside it, whole.
    let one = world.mount("one", 1);
    assert_eq!(one.read("/b"), b"2");
    assert!(one.ino("/c").is_err());
    one.told(EventKind::SetAside);
    one.write("/d", b"4");
    one.sync();
    one.unmount();
    let config = world.config("one", 1);
    let conflicts = list_conflicts(&config).unwrap();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(conflicts[0].by, device(2).to_hex());
    let counts = conflicts[0].counts.unwrap();
    assert_eq!((counts.files, counts.bytes, counts.removed), (1, 1, 0));
    let out = world.dir.path().join("out");
    let branch = Branch::open(&config, &conflicts[0].id).unwrap();
    assert_eq!(branch.export(&out).unwrap().names, 1);
    assert_eq!(std::fs::read(out.join("c")).unwrap(), b"3");
    assert!(
        !out.join("a").exists(),
        "what the server has needs no bringing back"
    );
    assert!(branch.export(&out).is_err(), "nothing is written over");
    drop(branch);
    drop_branch(&config, &conflicts[0].id).unwrap();
    assert_eq!(list_conflicts(&config).unwrap(), []);
}

#[test]
fn content_of_a_branch_is_sent_again_when_it_is_written_again() {
    // A branch's objects were known to the index as "here"; once they had moved away it took them for sent, and the
    // same content written again was committed without ever reaching the server.
    let world = World::new();
    let one = world.mount("one", 1);
    one.sync();
    world.server.faults.offline.store(true, Ordering::SeqCst);
    let content = noise(7, 3 << 20);
    one.write("/lost", &content);
    // A checkpoint, so that its objects and nodes are in the outbox.
    assert!(one.engine.sync_server(soon(2), |_| true).is_err());
    drop(one);
    world.server.faults.offline.store(false, Ordering::SeqCst);
    let mut config = world.config("two", 2);
    config.take_over = true;
    let two = world.try_mount(config).unwrap();
    two.write("/b", b"2");
    two.sync();
    two.unmount();

    let one = world.mount("one", 1);
    assert!(one.ino("/lost").is_err());
    one.write("/again", &content);
    one.sync();
    one.unmount();
    assert_eq!(world.mount("three", 3).read("/again"), content);
}

#[test]
fn nothing_is_taken_over_without_the_server() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.write("/a", b"1");
    one.unmount();
    world.server.faults.offline.store(true, Ordering::SeqCst);
    let mut config = world.config("one", 1);
    config.take_over = true;
    config.join_patience = Duration::from_secs(1);
    let refused = world.try_mount(config).err();
    assert!(
        matches!(refused, Some(EngineError::TakeOver(_))),
        "{refused:?}"
    );
    assert_eq!(world.mount("one", 1).read("/a"), b"1");
}

#[test]
fn a_server_that_goes_back_is_not_believed() {
    // What it still has of two commits.
    for left in [1, 0] {
        let world = World::new();
        let one = world.mount("one", 1);
        one.write("/a", b"1");
        one.sync();
        one.write("/a", b"22");
        one.sync();
        one.unmount();
        world.server.disk().commits.truncate(left);
        let one = world.mount("one", 1);
        assert_eq!(one.read("/a"), b"22");
        one.write("/a", b"333");
        let stopped = one.engine.sync_server(soon(10), |_| true);
        assert!(matches!(stopped, Err(SyncError::Stopped(_))), "{stopped:?}");
        one.told(EventKind::Rollback);
    }
}

#[test]
fn lost_pins_stop_commits_but_not_reading() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.write("/a", b"1");
    one.unmount();
    for slot in 0..2 {
        let _ = std::fs::remove_file(world.path("one").join(format!("pins.{slot}")));
    }
    let one = world.mount("one", 1);
    assert_eq!(one.read("/a"), b"1");
    one.write("/b", b"2");
    assert!(matches!(
        one.engine.sync_server(soon(5), |_| true),
        Err(SyncError::Stopped(_))
    ));
    assert_eq!(one.engine.status().events[0].kind, EventKind::PinsMissing);
}

#[test]
fn damage_in_the_cache_is_fetched_anew_and_on_the_server_it_is_an_error() {
    let world = World::new();
    let one = world.mount("one", 1);
    let content = noise(3, 3_000_000);
    one.write("/file", &content);
    one.unmount();
    let two = world.mount("two", 2);
    assert_eq!(two.read("/file"), content);
    drop(two);
    for entry in std::fs::read_dir(world.path("two").join("cache")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        for at in (5000..bytes.len()).step_by(50_000) {
            bytes[at] ^= 1;
        }
        std::fs::write(path, bytes).unwrap();
    }
    let two = world.mount("two", 2);
    assert_eq!(two.read("/file"), content);
    drop(two);
    for object in world.server.disk().objects.values_mut() {
        let mut bytes = object.to_vec();
        if bytes.len() > 100_000 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        *object = Bytes::from(bytes);
    }
    let three = world.mount("three", 3);
    let ino = three.ino("/file").unwrap();
    let plan = three.op(|d| d.read_plan(ino, 0, 1)).unwrap();
    let sealdrive::drive::PlanPiece::Chunk { reference, .. } = plan.pieces[0] else {
        panic!("a chunk")
    };
    assert_eq!(
        three.engine.chunk(&reference, soon(5)),
        Err(BlobError::Lost)
    );
    three.told(EventKind::ObjectTampered);
}

#[test]
fn the_cache_budget_holds_while_everything_is_read() {
    let world = World::new();
    let one = world.mount("one", 1);
    for n in 0..24 {
        one.write(&format!("/file-{n}"), &noise(n, 1 << 20));
    }
    one.unmount();
    let mut config = world.config("two", 2);
    config.cache_budget = 6 << 20;
    let two = world.try_mount(config).unwrap();
    for n in 0..24 {
        assert_eq!(two.read(&format!("/file-{n}")), noise(n, 1 << 20));
        assert!(two.engine.status().cache_bytes <= 6 << 20);
    }
}

#[test]
fn a_full_outbox_refuses_writes_and_drains_when_the_server_is_back() {
    let world = World::new();
    world.server.faults.offline.store(true, Ordering::SeqCst);
    let mut config = world.config("one", 1);
    config.remote = None;
    drop(world.try_mount(config).unwrap()); // A drive that began without a server has local state.
    let mut config = world.config("one", 1);
    config.outbox_budget = 8 << 20;
    let one = world.try_mount(config).unwrap();
    let mut refused = false;
    for n in 0..200 {
        let name = format!("file-{n}");
        let new = sealdrive::drive::NewNode {
            kind: sealdrive_core::record::FileKind::Regular,
            mode: 0o644,
            umask: 0,
            rdev: 0,
        };
        let Ok((attr, handle)) =
            one.op(|d| d.create(ROOT, name.as_bytes(), new, engine_support::ME, NOW))
        else {
            refused = true;
            break;
        };
        let written = one.op(|d| d.write(attr.ino, 0, &noise(n, 1 << 20), false, NOW));
        one.drive().release(handle);
        if written.is_err() {
            refused = true;
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(refused, "ENOSPC at write, not later");
    assert!(one.engine.status().outbox_bytes < 120 << 20);
    world.server.faults.offline.store(false, Ordering::SeqCst);
    one.sync();
    let files = one.tree();
    drop(one);
    assert_eq!(world.mount("two", 2).tree(), files);
}

/// Story (a simulated world, seed 46): the power failed between the creation of an outbox pack and its first object.
/// The next mount had nothing new to seal, waited for an acknowledgement up to the end of that empty pack, and `sync`
/// never came back until something was written.
#[test]
fn a_pack_that_a_crash_left_empty_does_not_stop_commits() {
    let world = World::new();
    world.mount("one", 1).unmount();
    world.server.faults.offline.store(true, Ordering::SeqCst);
    let machine = world.mount("one", 1);
    machine.write("/file", &noise(1, 300_000));
    machine.engine.sync_local().unwrap();
    let deadline = soon(20);
    while !machine.engine.status().is_clean && soon(0) < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(machine.engine.status().is_clean, "a checkpoint was made");
    assert!(machine.engine.status().pending_objects > 0);
    drop(machine);
    let packs = world.path("one").join("outbox");
    let newest = std::fs::read_dir(&packs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "pack"))
        .max()
        .unwrap();
    let number = u64::from_str_radix(newest.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    let magic = &std::fs::read(&newest).unwrap()[..8];
    std::fs::write(packs.join(format!("{:016x}.pack", number + 1)), magic).unwrap();
    world.server.faults.offline.store(false, Ordering::SeqCst);
    let machine = world.mount("one", 1);
    machine.sync();
    assert_eq!(machine.read("/file"), noise(1, 300_000));
    machine.unmount();
}
