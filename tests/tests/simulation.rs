//! Worlds by their seeds: client and server on simulated disks, under lossy networks and power cuts, held to what was
//! promised.
//!
//! `SEALDRIVE_SIM_SEEDS=FROM..TO` runs others than the usual ones; `scripts/sim` runs many.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sealdrive_tests::sim::bounded::{Ground, Workload, try_all};
use sealdrive_tests::sim::lanes::side_by_side;
use sealdrive_tests::sim::world::{Report, reproduce, run};

/// Worlds of an ordinary test run.
const USUAL: std::ops::Range<u64> = 0..2000;
/// Worlds that are run twice.
const TWICE: std::ops::Range<u64> = 1000..1010;
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
