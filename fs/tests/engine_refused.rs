//! What the server refuses for good: it is set aside and told, the rest goes on, and it clears by itself.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine_support::{ME, Machine, NOW, World, noise, soon};
use sealdrive::drive::{DriveError, Errno, NewNode};
use sealdrive::engine::{EventKind, Status, SyncError};
use sealdrive_core::record::{FileKind, ROOT};
use sealdrive_proto::header::ObjectHeader;
use sealdrive_proto::id::Sid;

/// Longest wait for what should take a moment.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until the status of `machine` is as wanted.
#[track_caller]
fn wait_for(machine: &Machine, what: &str, mut ready: impl FnMut(&Status) -> bool) -> Status {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = machine.engine.status();
        if ready(&status) {
            return status;
        }
        assert!(Instant::now() < end, "{what}: {status:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn is_refused(machine: &Machine) -> String {
    match machine.engine.sync_server(soon(90), |_| true) {
        Err(SyncError::Refused(why)) => why,
        other => panic!("{other:?}: {:#?}", machine.engine.status()),
    }
}

/// The first `count` objects with a length in `range` are refused, whenever they come.
fn refuse_first(world: &World, count: usize, range: std::ops::Range<usize>) {
    let mut refused: HashSet<Sid> = HashSet::new();
    let refuse = move |object: &Bytes| {
        let sid = ObjectHeader::parse(object).unwrap().sid;
        if refused.len() < count && range.contains(&object.len()) {
            refused.insert(sid);
        }
        refused.contains(&sid)
    };
    *world.server.faults.refuse.lock().unwrap() = Some(Box::new(refuse));
}

fn refuse_nothing(world: &World) {
    *world.server.faults.refuse.lock().unwrap() = None;
}

fn commits(world: &World) -> usize {
    world.server.disk().commits.len()
}

/// Larger than any tree node.
const CHUNK: std::ops::Range<usize> = 100_000..usize::MAX;
/// Smaller than any chunk of these tests.
const NODE: std::ops::Range<usize> = 0..50_000;

/// One object that the server did not like (its header, its size, another version's rules) stopped everything that came
/// behind it in the outbox, and was sent again for ever; `sync` hung without a word.
#[test]
fn what_the_server_refuses_is_set_aside_and_only_what_needs_it_waits() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.write("/first", b"first");
    one.sync();
    let before = commits(&world);
    refuse_first(&world, 1, CHUNK);
    let big = noise(1, 300_000);
    one.write("/big", &big);
    let why = is_refused(&one);
    assert!(why.contains("refuses object"), "{why}");
    one.told(EventKind::ObjectRefused);
    let ino = one.ino("/big").unwrap();
    let named = wait_for(&one, "the file is named", |status| {
        status.refused.len() == 1 && status.refused[0].files.contains(&ino)
    });
    assert!(named.refused[0].why.contains("taste"), "{named:?}");

    // What is behind it goes on, but not into a restore point that could not be restored.
    let other = noise(2, 300_000);
    one.write("/other", &other);
    is_refused(&one);
    let status = wait_for(&one, "the rest is sent", |status| {
        status.pending_objects == 1
    });
    assert!(
        !status.is_committed() && status.held.is_some(),
        "{status:#?}"
    );
    assert_eq!(commits(&world), before, "no commit needs what is not there");

    // A tree that does without it is committed, and the object stays.
    one.unlink("/big");
    one.sync();
    let status = one.engine.status();
    assert_eq!((status.pending_objects, status.refused.len()), (1, 1));
    assert_eq!(status.held, None);
    let two = world.mount("two", 2);
    assert_eq!(two.read("/other"), other);
    assert!(two.ino("/big").is_err());
    drop(two);

    // The same content again: known here, and still not on the server.
    one.write("/again", &big);
    is_refused(&one);
    let committed = commits(&world);
    drop(one);

    // A new mount knows it as well.
    let one = world.mount("one", 1);
    is_refused(&one);
    let status = one.engine.status();
    assert_eq!((status.pending_objects, status.refused.len()), (1, 1));
    assert_eq!(commits(&world), committed);

    // The server takes it: everything clears.
    refuse_nothing(&world);
    one.sync();
    let status = one.engine.status();
    assert_eq!((status.pending_objects, status.refused.len()), (0, 0));
    assert_eq!(one.read("/again"), big);
    one.unmount();
    let two = world.mount("two", 2);
    assert_eq!(two.read("/again"), big);
}

/// The server says only that it refuses, and not which of all that is on its way: the wrong one would have been taken.
#[test]
fn refused_objects_are_found_among_many_and_taken_after_a_reconnect_without_being_asked() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.sync();
    refuse_first(&world, 3, CHUNK);
    let content = noise(3, 8 << 20);
    one.write("/large", &content);
    is_refused(&one);
    let status = wait_for(&one, "all but three are sent", |status| {
        status.pending_objects == 3
    });
    assert_eq!(status.refused.len(), 3);
    let kinds = status.events.iter().map(|event| event.kind);
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        [EventKind::ObjectRefused; 3],
        "nothing was set aside that the server takes"
    );
    assert!(world.server.disk().objects.len() > 15);
    refuse_nothing(&world);
    world.server.faults.offline.store(true, Ordering::SeqCst);
    // Something to send, so that the line is known to be away.
    one.write("/more", &noise(4, 300_000));
    wait_for(&one, "the line is away", |status| {
        status.remote_error.is_some()
    });
    world.server.faults.offline.store(false, Ordering::SeqCst);
    wait_for(&one, "everything is committed", |status| {
        status.is_committed() && status.refused.is_empty() && status.pending_objects == 0
    });
    drop(one);
    assert_eq!(world.mount("two", 2).read("/large"), content);
}

/// A tree node is refused like anything else, and the next tree may do without it.
#[test]
fn a_refused_tree_node_is_in_no_restore_point() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.write("/a", b"a");
    one.sync();
    let before = commits(&world);
    refuse_first(&world, 1, NODE);
    one.write("/b", b"b");
    is_refused(&one);
    assert_eq!(commits(&world), before);
    let ino = one.ino("/b").unwrap();
    wait_for(&one, "its files are named", |status| {
        status.refused.len() == 1 && status.refused[0].files.contains(&ino)
    });
    one.write("/c", b"c");
    one.sync();
    assert_eq!(one.engine.status().refused.len(), 1);
    let names = |machine: &Machine| machine.tree().into_keys().collect::<Vec<_>>();
    assert_eq!(names(&world.mount("two", 2)), ["/a", "/b", "/c"]);
}

/// A server that takes nothing at all has no quarrel with single objects: then sending stops, and says so.
#[test]
fn more_than_a_few_refusals_stop_the_upload_with_a_clear_line() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.sync();
    refuse_first(&world, usize::MAX, CHUNK);
    let content = noise(5, 40 << 20);
    one.write("/large", &content);
    let why = is_refused(&one);
    assert!(why.contains("more than 64"), "{why}");
    let status = one.engine.status();
    assert_eq!(status.refused.len(), 64);
    assert!(status.pending_objects > 64);
    refuse_nothing(&world);
    one.sync();
    let status = one.engine.status();
    assert_eq!((status.pending_objects, status.refused.len()), (0, 0));
    drop(one);
    assert_eq!(world.mount("two", 2).read("/large"), content);
}

/// A commit that the server refused stopped commits until the next mount, and there the same bytes went first again.
#[test]
fn a_refused_commit_is_told_and_does_not_stop_the_next() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.write("/a", b"a");
    one.sync();
    let before = commits(&world);
    world
        .server
        .faults
        .refuse_commits
        .store(true, Ordering::SeqCst);
    one.write("/b", &noise(6, 300_000));
    let why = is_refused(&one);
    assert!(why.contains("refuses the restore point"), "{why}");
    one.told(EventKind::Refused);
    let status = one.engine.status();
    assert_eq!((status.stopped.clone(), status.held), (None, Some(why)));
    let told = |status: &Status| {
        let kinds = status.events.iter().map(|event| event.kind);
        kinds.filter(|kind| *kind == EventKind::Refused).count()
    };
    is_refused(&one);
    let status = wait_for(&one, "uploads go on", |status| status.pending_objects == 0);
    assert_eq!(told(&status), 1, "said once: {status:#?}");
    assert_eq!(commits(&world), before);
    world
        .server
        .faults
        .refuse_commits
        .store(false, Ordering::SeqCst);
    // By itself, after a while.
    let status = wait_for(&one, "it is committed", Status::is_committed);
    assert_eq!(status.held, None);

    // One that is refused for ever: the next change makes another.
    *world.server.faults.refuse_commit.lock().unwrap() = Some(Bytes::new());
    one.write("/c", b"c");
    is_refused(&one);
    one.write("/d", b"d");
    one.sync();
    one.unmount();
    let names = world.mount("two", 2).tree().into_keys();
    assert_eq!(names.collect::<Vec<_>>(), ["/a", "/b", "/c", "/d"]);
}

/// Writes a new file; what a program would be told.
fn try_write(one: &Machine, name: &str, content: &[u8]) -> Result<(), Errno> {
    let new = NewNode {
        kind: FileKind::Regular,
        mode: 0o644,
        umask: 0,
        rdev: 0,
    };
    let errno = |error| match error {
        DriveError::Errno(errno) => errno,
        DriveError::Missing(_) => panic!("the root is here"),
    };
    let made = one.op(|d| d.create(ROOT, name.as_bytes(), new, ME, NOW));
    let (attr, handle) = made.map_err(errno)?;
    let written = one.op(|d| d.write(attr.ino, 0, content, false, NOW));
    one.drive().release(handle);
    written.map(|_| ()).map_err(errno)
}

/// After a quota was raised writes got EDQUOT until the next attempt to send happened to come, and `sync` repeated what
/// the server had said long before.
#[test]
fn a_raised_quota_is_noticed_and_everything_drains() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.sync();
    world.server.faults.quota.store(3_000_000, Ordering::SeqCst);
    let end = Instant::now() + PATIENCE;
    for n in 0.. {
        match try_write(&one, &format!("file-{n}"), &noise(n, 500_000)) {
            Ok(()) => {}
            Err(errno) => {
                assert_eq!(errno, Errno::EDQUOT);
                break;
            }
        }
        assert!(Instant::now() < end, "{:#?}", one.engine.status());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(one.engine.status().over_quota);
    // Asking does not help while there is none.
    one.engine.hear(Duration::from_secs(3600), soon(90));
    assert!(one.engine.status().over_quota);

    world.server.faults.quota.store(0, Ordering::SeqCst);
    // Who asks hears of it, and from then on writes are taken, whatever was sent by then.
    one.engine.hear(Duration::from_secs(3600), soon(90));
    assert!(!one.engine.status().over_quota);
    try_write(&one, "after", &noise(1000, 500_000)).unwrap();
    wait_for(&one, "it drains by itself", Status::is_committed);
    let files = one.tree();
    assert!(files.contains_key("/after"));
    drop(one);
    assert_eq!(world.mount("two", 2).tree(), files);
}

/// Nothing was left to send, so nothing was ever acknowledged, so the account counted as full for ever.
#[test]
fn an_account_with_nothing_left_to_send_is_not_over_its_quota() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.sync();
    world.server.faults.quota.store(1, Ordering::SeqCst);
    one.write("/file", &noise(7, 300_000));
    wait_for(&one, "over quota", |status| status.over_quota);
    // The object that had no room is refused from now on, and all the others with it: nothing is left to send.
    refuse_first(&world, usize::MAX, 0..usize::MAX);
    let status = wait_for(&one, "all is set aside", |status| {
        status.refused.len() as u64 == status.pending_objects
    });
    assert!(!status.refused.is_empty());
    wait_for(&one, "no quota in the way", |status| !status.over_quota);
}
