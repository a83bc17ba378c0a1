//! The state of a file at every step of its way, asked at the very moment: never better than what is durable.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use engine_support::{Machine, World, noise, soon};
use sealdrive::engine::{CrashPoints, Safety};

/// Asks for the state of one file whenever the world reaches a point; keeps the answers by point, in order.
type Seen = Arc<Mutex<BTreeMap<&'static str, Vec<Safety>>>>;

fn asking(path: &'static str) -> (CrashPoints, Seen, Arc<OnceLock<Weak<Machine>>>) {
    let seen = Seen::default();
    let machine = Arc::<OnceLock<Weak<Machine>>>::default();
    let (keep, ask) = (Arc::clone(&seen), Arc::clone(&machine));
    let points = CrashPoints::new(move |point| {
        if let Some(machine) = ask.get().and_then(Weak::upgrade)
            && let Ok(ino) = machine.ino(path)
        {
            let state = machine.engine.file_safety_by(ino, soon(5)).unwrap();
            keep.lock()
                .unwrap()
                .entry(point)
                .or_default()
                .push(state.safety);
        }
    });
    (points, seen, machine)
}

#[test]
fn no_step_is_claimed_before_it_is_durable() {
    let world = World::new();
    let (points, seen, asker) = asking("/f");
    let machine = Arc::new(world.mount_with_points("one", 1, points));
    machine.sync();
    asker.set(Arc::downgrade(&machine)).unwrap();
    machine.write("/f", &noise(1, 3 << 20));
    machine.sync();
    let ino = machine.ino("/f").unwrap();
    let now = || machine.engine.file_safety_by(ino, soon(5)).unwrap();
    assert_eq!(now().safety, Safety::Committed);

    let seen = seen.lock().unwrap();
    let at = |point: &str| seen[point].iter().copied();
    // Before the journal's fsync it is dirty, though the drive has given it away.
    for point in [
        "log-taken",
        "outbox-durable",
        "journal-written",
        "journal-durable",
    ] {
        assert_eq!(at(point).next(), Some(Safety::Dirty), "{point}: {seen:#?}");
    }
    for point in ["frozen", "merged", "nodes-durable", "checkpoint-durable"] {
        assert!(
            at(point).all(|state| state <= Safety::Journaled),
            "{point}: {seen:#?}"
        );
    }
    for point in ["acknowledged", "commit-durable", "commit-accepted"] {
        assert_eq!(at(point).next(), Some(Safety::Sent), "{point}: {seen:#?}");
    }
}

#[test]
fn a_committed_file_stays_so_whatever_others_do_and_over_restarts() {
    let world = World::new();
    let machine = world.mount("one", 1);
    machine.write("/old", &noise(2, 1 << 20));
    machine.mkdir("/d");
    machine.write("/d/a", b"a");
    machine.sync();
    let state = |machine: &Machine, path: &str| {
        let ino = machine.ino(path).unwrap();
        machine.engine.file_safety_by(ino, soon(5)).unwrap().safety
    };
    world.server.faults.offline.store(true, Ordering::SeqCst);
    machine.write("/new", &noise(3, 1 << 20));
    machine.write("/d/a", b"b");
    // Into a checkpoint and no further.
    assert!(machine.engine.sync_server(soon(1), |_| true).is_err());
    let all = ["/old", "/d", "/new", "/d/a", "/"];
    let wanted = [
        Safety::Committed,
        Safety::Committed,
        Safety::Journaled,
        Safety::Journaled,
        Safety::Journaled,
    ];
    assert_eq!(all.map(|path| state(&machine, path)), wanted);
    let below = machine.engine.safety_below(1, 100, soon(5)).unwrap();
    assert_eq!(
        (below.committed, below.journaled, below.complete),
        (2, 3, true)
    );
    let cut = machine.engine.safety_below(1, 2, soon(5)).unwrap();
    assert!(!cut.complete && cut.seen() == 2, "{cut:?}");
    drop(machine);
    let machine = world.mount("one", 1);
    assert_eq!(
        all.map(|path| state(&machine, path)),
        wanted,
        "after a restart"
    );
    world.server.faults.offline.store(false, Ordering::SeqCst);
    machine.sync();
    assert_eq!(
        all.map(|path| state(&machine, path)),
        [Safety::Committed; 5]
    );
    let waiting = machine.engine.status().waiting_ms;
    assert_eq!(waiting, None);
}
