//! Worlds beside each other: they know nothing of one another, and each keeps one processor busy.
//!
//! Invariant: all threads of a world run on one processor. Only one of them runs at a time, and waking the next one on
//! another processor is dear: the same 200 worlds, one after the other beside a compiler, took 86 s free to move and
//! 27 s held to one of two processors. Called by whatever runs many worlds.

use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Runs `lane` once for each processor that this process may use, each on its own, at once. Returns when all have.
pub fn side_by_side(lane: impl Fn() + Sync) {
    let allowed = sched_getaffinity(None).unwrap_or_default();
    let mut processors: Vec<Option<usize>> = (0..CpuSet::MAX_CPU)
        .filter(|n| allowed.is_set(*n))
        .map(Some)
        .collect();
    if processors.is_empty() {
        processors.push(None);
    }
    thread::scope(|scope| {
        for processor in processors {
            let lane = &lane;
            scope.spawn(move || {
                if let Some(processor) = processor {
                    stay_on(processor);
                }
                lane();
            });
        }
    });
}

/// The calling thread, and those that it starts.
fn stay_on(processor: usize) {
    let mut only = CpuSet::new();
    only.set(processor);
    // Refused, it is slower and no less right.
    let _ = sched_setaffinity(None, &only);
}
