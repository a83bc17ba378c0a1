//! Measures this product beside its peers in one run: same machine, same minute, same bytes.
//!
//! Invariant: subjects take turns within each round, so that a noisy machine is noisy for all of them; what is reported
//! is the median of the rounds. Never a test: nothing here fails for being slow. Called by `scripts/bench`.

pub mod durable;
pub mod files;
pub mod recovery;
pub mod stream;
pub mod subject;
pub mod table;
pub mod trees;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use subject::Subject;
use table::Samples;

/// Measurements that belong together and can be asked for alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// A large file, sequential and random.
    Stream,
    /// Many small files.
    Small,
    /// Small writes with fsync, and SQLite.
    Durable,
    /// A source tree in and out.
    Trees,
    /// One byte changed in a large file.
    Large,
    /// kill -9, and how long until the next mount answers. Ours alone.
    Recovery,
}

/// One measurement of a subject in a round.
type Measurement = fn(&Plan, usize, &mut Subject, &mut Samples);

/// What every round measures.
const EACH_ROUND: &[(Group, Measurement)] = &[
    (Group::Stream, stream::sequential),
    (Group::Stream, stream::random),
    (Group::Small, files::small),
    (Group::Durable, durable::fsyncs),
    (Group::Durable, durable::transactions),
];

/// What to measure and how much of it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The groups asked for; all if none was named.
    pub only: Vec<Group>,
    /// Rounds; each measures every subject once.
    pub rounds: usize,
    /// Length of the sequential file, MiB.
    pub stream_mib: usize,
    /// Small files made, listed and removed.
    pub small_files: usize,
    /// Random operations of 4 KiB.
    pub random_ops: usize,
    /// Writes of 4 KiB, each with fsync.
    pub fsyncs: usize,
    /// Transactions of SQLite in each journal mode.
    pub transactions: usize,
    /// Length of the file of which one byte is changed, MiB.
    pub large_mib: usize,
    /// The source tree to copy.
    pub tree: Option<PathBuf>,
    /// Empty files there are when the mount is killed.
    pub recovery_files: usize,
    /// What is fsynced without a server before the mount is killed, MiB.
    pub recovery_mib: usize,
    /// Most small changes after that, each with fsync, to fill the journal.
    pub recovery_changes: usize,
}

impl Plan {
    fn has(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }
}

/// Runs the groups that are asked for over every subject, in turns.
pub fn measure(plan: &Plan, subjects: &mut [Subject], samples: &mut Samples) {
    let each_round: Vec<_> = EACH_ROUND
        .iter()
        .filter(|(group, _)| plan.has(*group))
        .collect();
    let rounds = if each_round.is_empty() {
        0
    } else {
        plan.rounds
    };
    for round in 0..rounds {
        for subject in subjects.iter_mut() {
            eprintln!("round {} of {}: {}", round + 1, plan.rounds, subject.name());
            for (_, measurement) in &each_round {
                measurement(plan, round, subject, samples);
            }
            subject.clear();
        }
    }
    // The long ones once: their own length evens them out.
    for subject in subjects.iter_mut() {
        if plan.has(Group::Trees) {
            eprintln!("source tree: {}", subject.name());
            trees::copy(plan, subject, samples);
            subject.clear();
        }
        if plan.has(Group::Large) {
            eprintln!("one byte in a large file: {}", subject.name());
            stream::one_byte(plan, subject, samples);
            subject.clear();
        }
        // Of an idle mount it would say nothing.
        if plan.only != [Group::Recovery] {
            subject.memory(samples);
        }
    }
}

/// Kills and recovers our own product, below `place`, if that is asked for. The subjects are better gone by then.
pub fn recover(plan: &Plan, place: &Path, samples: &mut Samples) {
    if plan.has(Group::Recovery) {
        recovery::kills(plan, place, samples);
    }
}

/// Seconds that `work` took.
pub fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}
