//! Worlds by their seeds: client and server on simulated disks, under lossy networks and power cuts, held to what was
//! promised.
//!
//! `SEALDRIVE_SIM_SEEDS=FROM..TO` runs others than the usual ones; `scripts/sim` runs many.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sealdrive::drive::{Cred, Drive, DriveError, Errno, NewNode};
use sealdrive_core::record::{FileKind, ROOT, Time};
use sealdrive_runtime::simulation::World;
use sealdrive_runtime::{thread, time};
use sealdrive_tests::sim::bounded::{Ground, Workload, try_all};
use sealdrive_tests::sim::lanes::side_by_side;
use sealdrive_tests::sim::turns::ask_while_a_checkpoint_is_made;
use sealdrive_tests::sim::world::{Report, reproduce, run};

/// Worlds of an ordinary test run.
const USUAL: std::ops::Range<u64> = 0..2000;
/// Worlds that are run twice.
const TWICE: std::ops::Range<u64> = 1000..1010;

/// Orders that are tried where two threads meet.
const MEETINGS: u64 = 24;

/// Every so many-th of the longer workloads is tried in an ordinary run; `scripts/sim --enumerate` tries them all.
const SAMPLE: usize = 211;

/// Longer workloads that are always tried: two batches of the journal that must be replayed in their order.
const ALWAYS: &[&str] = &["append-a,fsync,shorten-a", "overwrite-a,fsync,zero-a"];

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("SEALDRIVE_SIM_SEEDS") else {
        return USUAL;
    };
    let (from, to) = text.split_once("..").expect("SEALDRIVE_SIM_SEEDS=FROM..TO");
    from.parse().unwrap()..to.parse().unwrap()
}

fn world(seed: u64) -> Report {
    match run(seed).result {
        Ok(report) => report,
        Err(trouble) => panic!("seed {seed}: {trouble}\nagain: {}", reproduce(seed)),
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    let mut digests = BTreeSet::new();
    for seed in TWICE {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first.result, second.result, "seed {seed}");
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first.elapsed, second.elapsed, "seed {seed}");
        digests.insert(first.digest);
    }
    assert_eq!(digests.len() as u64, TWICE.end - TWICE.start);
}

#[test]
fn after_a_short_workload_any_power_cut_leaves_what_was_fsynced() {
    let all = Workload::all(3);
    let short = all.iter().filter(|workload| workload.steps() == 1);
    let longer = all.iter().filter(|workload| workload.steps() > 1);
    let mut sample: Vec<_> = short.chain(longer.step_by(SAMPLE)).cloned().collect();
    sample.extend(ALWAYS.iter().map(|name| Workload::parse(name).unwrap()));
    let ground = Ground::lay().unwrap();
    let (tried, failed) = try_all(&ground, &sample, |_, _| {});
    println!("{} workloads of {}: {tried:#?}", sample.len(), all.len());
    for (workload, trouble) in &failed {
        println!("{trouble}\nagain: {}", workload.reproduce());
    }
    assert!(failed.is_empty(), "{} failed", failed.len());
    // Each was cut before the fsync returned and after, and left different disks.
    assert!(tried.after > 0 && tried.cuts > tried.after);
    assert!(tried.images > tried.worlds * 5, "{tried:?}");
}

#[test]
fn what_was_promised_is_found_again() {
    let seeds = seeds();
    let worlds = seeds.end - seeds.start;
    let (next, sum) = (AtomicU64::new(seeds.start), Mutex::new(Report::default()));
    side_by_side(|| {
        loop {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if !seeds.contains(&seed) {
                return;
            }
            let report = world(seed);
            sum.lock().unwrap().add(&report);
        }
    });
    let sum = sum.into_inner().unwrap();
    println!("{worlds} worlds: {sum:#?}");
    // Nothing may be left out: a fault that never happens is a fault that is not tested.
    let network = sum.network;
    let disks = |kind: &str| sum.disks.get(kind).copied().unwrap_or(0);
    for (what, count) in [
        ("client power cuts", sum.client_crashes),
        ("server power cuts", sum.server_crashes),
        ("idle power cuts", sum.idle_cuts),
        ("failed servers", sum.server_restarts),
        ("refusals", sum.refusals),
        ("refusals for want of room on the server", sum.over_quota),
        ("lost names", disks("name step lost")),
        ("lost or torn writes", disks("write lost or torn")),
        ("failed writes", disks("write: EIO")),
        ("failed syncs", disks("sync: EIO")),
        ("full disks", disks("write: ENOSPC")),
        ("promises checked", sum.promises),
        ("lives of a machine that lost the drive", sum.fenced),
        ("branches found whole", sum.branches),
        ("lost requests", network.lost_requests),
        ("lost replies", network.lost_replies),
        ("repeats", network.repeats),
        ("cuts", network.cuts),
        ("stalls", network.stalls),
        ("refused calls", network.refused),
        ("calls whose server died", network.orphaned),
    ] {
        assert!(worlds < 50 || count > 0, "no {what} in {worlds} worlds");
    }
}

/// Who finds nothing left to be checkpointed takes the number of the last checkpoint for that of what he wrote: so it
/// must be told before the drive stands on it.
#[test]
fn what_a_checkpoint_holds_is_never_called_safe_before_it_is_on_the_server() {
    for seed in 0..MEETINGS {
        let done = ask_while_a_checkpoint_is_made(seed).result;
        assert_eq!(done, Ok(()), "seed {seed}");
    }
}

/// However often it is woken, and whatever for. (A wait that counted its looks ended early, or, where others kept the
/// count at nothing, never.)
#[test]
fn a_change_that_nothing_lets_through_fails_after_two_minutes() {
    let outcome = World::run(1, |_| {
        let drive = Arc::new(Drive::new(None, 0));
        assert_eq!(drive.format_if_empty(0, 0, Time::default()), Ok(true));
        drive.stall();
        let began = time::now();
        let wakers = [10, 700, 1300].map(|millis| {
            let drive = Arc::clone(&drive);
            let wake = move || {
                while !drive.is_read_only() && time::now() < began + Duration::from_secs(600) {
                    drive.refuse_data(None);
                    thread::sleep(Duration::from_millis(millis));
                }
                drive.set_read_only();
            };
            thread::spawn("waker", wake).unwrap()
        });
        let me = Cred {
            uid: 0,
            gid: 0,
            pid: 1,
        };
        let new = NewNode {
            kind: FileKind::Regular,
            mode: 0o644,
            umask: 0,
            rdev: 0,
        };
        let made = drive.create(ROOT, b"name", new, me, Time::default());
        let waited = time::now().saturating_duration_since(began);
        drive.set_read_only();
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
        (made.map(drop), waited)
    });
    let (made, waited) = outcome.result.unwrap();
    assert_eq!(made, Err(DriveError::Errno(Errno::EIO)));
    let limit = Duration::from_secs(120)..Duration::from_secs(122);
    assert!(limit.contains(&waited), "{waited:?}");
}
