//! EIO and ENOSPC at the n-th operation of a kind, for every n of a short workload.
//!
//! Invariant: whatever fails, no byte that is read is wrong, no success is reported that did not happen, and the
//! machine that starts again on the same disk has everything that was promised.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sealdrive_tests::sim::disk::{Config, Disk, Op, Survivors, Trouble, seeded};

use crate::engine_support::soon;
use crate::rig::{Ledger, Rig, locked, mount, outline, read_tree, which};

/// What a power cut right after a promise leaves.
type Promised = Vec<(Disk, Ledger)>;

/// Goes on as a program would: what is refused is not done, and what comes after is tried. Each promise that is given
/// after the failure (`met`) is put to the test by itself: a later checkpoint may make good what it lacked.
fn short(rig: &mut Rig, met: impl Fn() -> bool) -> Promised {
    let mut promised = Promised::new();
    if rig.open(false, None).is_err() {
        return promised;
    }
    let sync = |promised: &mut Promised| {
        if rig.sync() && met() {
            let left = rig.disk.power_cut(Survivors::Nothing);
            promised.push((left, locked(&rig.ledger).clone()));
        }
    };
    let _ = rig.mkdir("/d");
    let _ = rig.put("/d/a", 1, 250_000);
    rig.settle();
    sync(&mut promised);
    let _ = rig.put("/small", 2, 500);
    sync(&mut promised);
    let _ = rig.rename("/small", "/d/b");
    let _ = rig.put("/c", 3, 300_000);
    sync(&mut promised);
    // The last words of the mount, checkpoint and all.
    let _ = rig.machine().engine.shutdown(soon(5));
    promised
}

fn run(op: Op, n: u64, trouble: Trouble) -> bool {
    let at = format!("{trouble:?} at {op:?} {n}");
    let disk = Disk::new(Config::default(), seeded(n));
    let mut rig = Rig::new(disk.clone());
    disk.fail(op, n, trouble);
    let promised = short(&mut rig, || disk.done(op) >= n);
    let met = disk.done(op) >= n;
    disk.heal();
    if let Some(machine) = &rig.machine
        && let Ok(tree) = read_tree(machine)
    {
        let ledger = locked(&rig.ledger);
        let last = ledger.states.len() - 1;
        assert!(
            which(&ledger, last, &tree).is_some(),
            "{at}: before the cut {:?}",
            outline(&tree)
        );
    }
    rig.machine = None;
    // One is enough, and the first is the one closest to the failure.
    for (left, ledger) in promised.iter().take(1) {
        holds(
            &rig,
            left,
            ledger,
            &format!("{at}, right after the promise"),
        );
    }
    after_power_cuts(&rig, n, &at);
    // Or a process that starts again on the same kernel, which still shows what it has lost, and promises more.
    rig.open(false, None)
        .unwrap_or_else(|e| panic!("{at}, started again: {e}"));
    rig.revived(&at);
    rig.put("/again", 4, 250_000).unwrap();
    rig.settle();
    assert!(rig.sync(), "{at}: the disk is well again");
    rig.machine = None;
    after_power_cuts(&rig, n, &format!("{at}, started again"));
    met
}

fn after_power_cuts(rig: &Rig, n: u64, at: &str) {
    for left in [Survivors::Nothing, Survivors::Some(n)] {
        let disk = rig.disk.power_cut(left);
        holds(rig, &disk, &locked(&rig.ledger), &format!("{at}, {left:?}"));
    }
}

/// A machine that starts on this disk has everything promised.
fn holds(rig: &Rig, disk: &Disk, ledger: &Ledger, at: &str) {
    let machine = mount(&rig.world, disk, None, 1, None);
    let machine = machine.unwrap_or_else(|e| panic!("{at}: {e}"));
    let tree = read_tree(&machine).unwrap_or_else(|e| panic!("{at}: {e}"));
    assert!(
        which(ledger, ledger.synced, &tree).is_some(),
        "{at}: {:?}, promised {:?}",
        outline(&tree),
        outline(&ledger.states[ledger.synced].files)
    );
}

/// Every n until the workload ends before it.
fn each(op: Op, trouble: Trouble) {
    let next = std::sync::atomic::AtomicU64::new(1);
    let failures = std::sync::Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    if !run(op, n, trouble) {
                        return;
                    }
                    *locked(&failures) += 1;
                }
            });
        }
    });
    let failures = *locked(&failures);
    println!("{trouble:?} at {op:?}: {failures} runs");
    assert!(failures >= 3, "{op:?} is hardly ever done");
}

/// A commit was waiting for the server's acknowledgements when the disk failed. The failure ended the wait, the wait
/// was taken for done, and the commit named objects that had never been sent.
#[test]
fn a_failed_disk_acknowledges_nothing() {
    let disk = Disk::new(Config::default(), seeded(1));
    let mut rig = Rig::new(disk.clone());
    let server = Arc::clone(&rig.world.server);
    server.faults.ack_delay_ms.store(600_000, Ordering::SeqCst);
    rig.open(true, None).unwrap();
    rig.put("/a", 1, 3 << 20).unwrap();
    rig.put("/b", 2, 3 << 20).unwrap();
    let machine = rig.machine();
    // A checkpoint that is waiting for the server, most of it not even sent.
    let waits = |n: usize| n < 500 && machine.engine.status().checkpointed < 4;
    for _ in (0..).take_while(|n| waits(*n)) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = machine.engine.status();
    assert!(
        status.checkpointed >= 4 && status.pending_objects > 5,
        "{status:#?}"
    );
    disk.fail(Op::Write, 1, Trouble::Broken);
    // Refused if a write that nobody waits for met the failure first.
    let _ = rig.put("/c", 3, 100);
    assert!(!rig.sync());
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(10));
        assert!(
            server.disk().commits.is_empty(),
            "committed without what it names"
        );
    }
    let ended = machine.engine.shutdown(soon(1));
    assert!(ended.is_err() && server.disk().commits.is_empty());
}

#[test]
fn a_failed_write_is_never_a_success() {
    each(Op::Write, Trouble::Broken);
}

#[test]
fn a_failed_sync_is_never_a_success() {
    each(Op::Sync, Trouble::Broken);
}

#[test]
fn a_failed_sync_of_a_directory_is_never_a_success() {
    each(Op::SyncDir, Trouble::Broken);
}

#[test]
fn a_full_disk_at_any_write_loses_nothing_promised() {
    each(Op::Write, Trouble::Full);
}

#[test]
fn a_full_disk_at_any_creation_loses_nothing_promised() {
    each(Op::Create, Trouble::Full);
}
