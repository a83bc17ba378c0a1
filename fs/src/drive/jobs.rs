//! Which dirty bytes are out with a job, and when those behind them may follow.
//!
//! Invariant: `bytes` is the sum of all runs out; a range is out with one job at most. A run that goes on where a job's
//! range ends waits until it is known what that job leaves over. Called by writeback.

use std::collections::{HashMap, HashSet};

use sealdrive_core::record::Ino;
use sealdrive_proto::limits::MIN_CHUNK;

use super::Drive;
use super::dirty::{JobId, Run};
use super::state::State;
use super::writeback::{Draft, Job, JobPiece};

/// Jobs that are out: the runs of each.
#[derive(Default)]
pub(super) struct Jobs {
    out: HashMap<JobId, Vec<(Ino, Run)>>,
    /// Sum of their lengths.
    bytes: u64,
    /// Those of which it is known what they will place.
    cut: HashSet<JobId>,
    /// Some run waits for a job to be cut.
    held: bool,
    last: JobId,
}

impl Jobs {
    /// How many are out.
    pub(super) fn count(&self) -> usize {
        self.out.len()
    }
}

impl Drive {
    /// The stream of a job has been cut: `tail` (file, from, to), which no chunk takes, is free for the next job, which
    /// need not wait until this one is sealed.
    pub fn job_cut(&self, id: JobId, tail: &[(Ino, u64, u64)]) {
        let mut guard = self.peek();
        let s = &mut *guard;
        for (ino, from, to) in tail {
            s.release(id, *ino, *from, *to);
        }
        s.jobs.cut.insert(id);
        let held = s.unhold();
        drop(guard);
        if held {
            self.work.notify_all();
        }
    }
}

impl State {
    /// Dirty bytes that no job has, about: what was overwritten while a job had it counts only once.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.dirty_bytes.saturating_sub(self.jobs.bytes)
    }

    /// Runs that no job has. One that goes on where the range of a job ends waits until that job is cut: it may leave
    /// its tail.
    pub(super) fn free_runs(&mut self, ino: Ino) -> Vec<Run> {
        let Some(map) = self.dirty.get(&ino) else {
            return Vec::new();
        };
        let uncut = |id: JobId| !self.jobs.cut.contains(&id);
        let busy = map.runs(|range| range.job.is_some_and(uncut));
        let mut free = map.runs(|range| range.job.is_none());
        if !busy.is_empty() {
            let all = free.len();
            free.retain(|run| busy.binary_search_by_key(&run.off, Run::end).is_err());
            self.jobs.held |= free.len() < all;
        }
        free
    }

    pub(super) fn hand_out(&mut self, draft: Draft) -> Job {
        self.jobs.last += 1;
        let id = self.jobs.last;
        let mut pieces = Vec::new();
        for (ino, run) in &draft.runs {
            let size = self.inodes.get(*ino).map_or(0, |slot| slot.inode.size);
            let closed = self.inodes.holders(*ino).writers == 0;
            let version = self.next_version();
            let Some(map) = self.dirty.get_mut(ino) else {
                continue;
            };
            map.split_at(run.end());
            let whole = closed && run.off == 0 && run.len == size && size <= MIN_CHUNK as u64;
            if whole {
                map.join(*run, version);
            }
            for (off, range) in map.iter_mut(run.off, run.end()) {
                range.job = Some(id);
                if whole && let Some(slot) = self.inodes.get_mut(*ino) {
                    slot.written = range.version;
                }
                pieces.push(JobPiece {
                    ino: *ino,
                    off,
                    data: range.fix(),
                    version: range.version,
                    whole,
                });
            }
        }
        self.jobs.bytes += draft.runs.iter().map(|(_, run)| run.len).sum::<u64>();
        self.jobs.out.insert(id, draft.runs);
        Job {
            id,
            pieces,
            open_ended: draft.open_ended,
        }
    }

    /// What waited behind a job can go: the engine is to look, if anything did.
    pub(super) fn unhold(&mut self) -> bool {
        let held = std::mem::take(&mut self.jobs.held);
        self.nudged |= held;
        held
    }

    /// Takes a part at the end of a run of a job away from it.
    fn release(&mut self, id: JobId, ino: Ino, from: u64, to: u64) {
        let Some(runs) = self.jobs.out.get_mut(&id) else {
            return;
        };
        let mut released = 0;
        for (_, run) in runs.iter_mut().filter(|(of, run)| {
            *of == ino && (run.off..run.end()).contains(&from) && to == run.end()
        }) {
            released += to - from;
            run.len = from - run.off;
        }
        self.jobs.bytes -= released;
        let map = self.dirty.get_mut(&ino).filter(|_| released > 0);
        if let Some(map) = map {
            map.split_at(from);
            for (_, range) in map.iter_mut(from, to) {
                if range.job == Some(id) {
                    range.job = None;
                }
            }
        }
    }

    pub(super) fn end_job(&mut self, id: JobId) {
        self.jobs.cut.remove(&id);
        for (ino, run) in self.jobs.out.remove(&id).unwrap_or_default() {
            self.jobs.bytes -= run.len;
            if let Some(map) = self.dirty.get_mut(&ino) {
                for (_, range) in map.iter_mut(run.off, run.end()) {
                    if range.job == Some(id) {
                        range.job = None;
                    }
                }
            }
        }
    }
}
