//! A checkpoint among those who write and read: it comes about however fast they are, keeps them for a moment only, and
//! is not made for nobody.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use engine_support::{Machine, NOW, World, noise, soon};
use sealdrive::drive::Drive;
use sealdrive::engine::{Connection, CrashPoints, SyncError};
use sealdrive_core::record::Ino;

/// Bytes of one write: no inline file, and no chunk by itself.
const PIECE: usize = 50_000;

/// The drive and the file that a hook writes to, once there are any.
type Target = Arc<OnceLock<(Weak<Drive>, Ino)>>;

/// The `n`th piece, where it belongs; false if it was refused.
fn write_piece(drive: &Drive, ino: Ino, n: u64) -> bool {
    let off = n * PIECE as u64;
    let written = drive.write(ino, off, &noise(n, PIECE), false, NOW);
    written.is_ok()
}

fn pieces(count: u64) -> Vec<u8> {
    (0..count).flat_map(|n| noise(n, PIECE)).collect()
}

fn aim(target: &Target, machine: &Machine) {
    let ino = machine.ino("/busy").unwrap();
    let drive = Arc::downgrade(machine.engine.drive());
    target.set((drive, ino)).unwrap();
}

/// Whatever is handed out to be sealed, there is more by then: unless writers are stopped there is no moment without
/// dirty bytes, and no checkpoint.
#[test]
fn a_checkpoint_comes_about_however_fast_somebody_writes() {
    const MOST: u64 = 300;
    let world = World::new();
    let (writes, waits) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let target = Target::default();
    let points = {
        let (target, writes, waits) = (target.clone(), writes.clone(), waits.clone());
        CrashPoints::new(move |point| {
            let Some((drive, ino)) = target.get().filter(|_| point == "chunked") else {
                return;
            };
            let Some(drive) = drive.upgrade() else { return };
            let n = writes.load(Ordering::SeqCst);
            // By the thread that makes the checkpoint: it cannot begin or end a stall meanwhile.
            if drive.would_wait(true) {
                waits.fetch_add(1, Ordering::SeqCst);
            } else if n < MOST && write_piece(&drive, *ino, n) {
                writes.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let one = world.mount_with_points("one", 1, points);
    one.write("/busy", b"");
    aim(&target, &one);
    one.write("/first", &noise(1000, PIECE));
    one.sync();
    let (writes, waits) = (writes.load(Ordering::SeqCst), waits.load(Ordering::SeqCst));
    assert!(writes < MOST, "only when nobody wrote any more");
    assert!(waits > 0, "nothing was sealed while writers were stopped");
    one.sync();
    drop(one);
    let two = world.mount("two", 2);
    assert_eq!(two.read("/first"), noise(1000, PIECE));
    assert!(two.read("/busy") == pieces(writes));
}

/// The tree is merged, sealed and made durable, which takes as long as the disk takes: at each of these steps the disk
/// waits here until a write and a read have returned.
#[test]
fn writers_and_readers_go_on_while_a_checkpoint_is_made() {
    const STEPS: [&str; 5] = [
        "frozen",
        "merged",
        "nodes-durable",
        "index-durable",
        "checkpoint-durable",
    ];
    let world = World::new();
    let went = Arc::<Mutex<Vec<(&str, bool)>>>::default();
    let target = Target::default();
    let points = {
        let (target, went) = (target.clone(), went.clone());
        CrashPoints::new(move |point| {
            let Some((drive, ino)) = target.get().filter(|_| STEPS.contains(&point)) else {
                return;
            };
            let Some(drive) = drive.upgrade() else { return };
            let mut went = went.lock().unwrap();
            // One that would wait would wait for the end of this very step.
            let goes = !drive.would_wait(true)
                && !drive.would_wait(false)
                && write_piece(&drive, *ino, went.len() as u64)
                && drive.read_plan(*ino, 0, u64::MAX).is_ok();
            went.push((point, goes));
        })
    };
    let one = world.mount_with_points("one", 1, points);
    one.write("/busy", b"");
    one.write("/first", &noise(1000, PIECE));
    aim(&target, &one);
    one.sync();
    let first: Vec<_> = went.lock().unwrap()[..STEPS.len()].to_vec();
    assert_eq!(first, STEPS.map(|step| (step, true)));
    assert!(one.read("/busy").starts_with(&pieces(STEPS.len() as u64)));
    one.engine.sync_local().unwrap();
    drop(one);
    let again = world.mount("one", 1);
    assert!(again.read("/busy").starts_with(&pieces(STEPS.len() as u64)));
    assert_eq!(again.read("/first"), noise(1000, PIECE));
}

/// While a commit is refused another checkpoint may be worth one; without a line it gets nowhere, and each only seals
/// nodes that nobody will need.
#[test]
fn no_checkpoint_is_made_for_a_refused_commit_while_there_is_no_line() {
    let world = World::new();
    let (made, rounds) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let points = {
        let (made, rounds) = (made.clone(), rounds.clone());
        CrashPoints::new(move |point| match point {
            "checkpoint-durable" => drop(made.fetch_add(1, Ordering::SeqCst)),
            "log-taken" => drop(rounds.fetch_add(1, Ordering::SeqCst)),
            _ => {}
        })
    };
    let one = world.mount_with_points("one", 1, points);
    one.sync();
    let faults = &world.server.faults;
    faults.refuse_commits.store(true, Ordering::SeqCst);
    one.write("/refused", &noise(1, PIECE));
    let refused = one.engine.sync_server(soon(90), |_| true);
    assert!(matches!(refused, Err(SyncError::Refused(_))), "{refused:?}");
    faults.offline.store(true, Ordering::SeqCst);
    // More than a chunk, so that it is sent, and the line is found to be gone.
    one.write("/sent", &noise(2, 4 << 20));
    let wait = |what: &str, ready: &dyn Fn() -> bool| {
        let end = soon(90);
        while !ready() {
            assert!(soon(0) < end, "{what}: {:#?}", one.engine.status());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait("no line", &|| {
        one.engine.status().connection == Connection::Offline
    });
    // A checkpoint that had begun ends with a round of the journal; then two more go by.
    let go_by = |count| {
        let now = rounds.load(Ordering::SeqCst);
        wait("time goes by", &|| {
            rounds.load(Ordering::SeqCst) >= now + count
        });
    };
    go_by(1);
    let before = made.load(Ordering::SeqCst);
    one.write("/later", &noise(3, PIECE));
    go_by(2);
    assert!(!one.engine.status().is_clean);
    assert_eq!(made.load(Ordering::SeqCst), before);
    faults.refuse_commits.store(false, Ordering::SeqCst);
    faults.offline.store(false, Ordering::SeqCst);
    one.sync();
    drop(one);
    assert_eq!(world.mount("two", 2).read("/later"), noise(3, PIECE));
}
