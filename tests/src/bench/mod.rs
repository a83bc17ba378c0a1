//! Measures this product beside its peers in one run: same machine, same minute, same bytes.
//!
//! Invariant: subjects take turns within each round, so that a noisy machine is noisy for all of them; what is reported
//! is the median of the rounds. Never a test: nothing here fails for being slow. Called by `scripts/bench`.

pub mod files;
pub mod stream;
pub mod subject;
pub mod table;
pub mod trees;

use std::path::PathBuf;
use std::time::Instant;

use subject::Subject;
use table::Samples;

/// What to measure and how much of it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rounds; each measures every subject once.
    pub rounds: usize,
    /// Length of the sequential file, MiB.
    pub stream_mib: usize,
    /// Small files made, listed and removed.
    pub small_files: usize,
    /// Random operations of 4 KiB.
    pub random_ops: usize,
    /// Length of the file of which one byte is changed, MiB.
    pub large_mib: usize,
    /// The source tree to copy.
    pub tree: Option<PathBuf>,
}

/// Runs every group of measurements over every subject, in turns.
pub fn measure(plan: &Plan, subjects: &mut [Subject], samples: &mut Samples) {
    for round in 0..plan.rounds {
        for subject in subjects.iter_mut() {
            eprintln!("round {} of {}: {}", round + 1, plan.rounds, subject.name());
            stream::sequential(plan, round, subject, samples);
            stream::random(plan, round, subject, samples);
            files::small(plan, round, subject, samples);
            subject.clear();
        }
    }
    // The long ones once: their own length evens them out.
    for subject in subjects.iter_mut() {
        eprintln!("source tree: {}", subject.name());
        trees::copy(plan, subject, samples);
        subject.clear();
        stream::one_byte(plan, subject, samples);
        subject.clear();
        subject.memory(samples);
    }
}

/// Seconds that `work` took.
pub fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}
