//! The pace thread: hands out writeback, decides when a checkpoint is due, watches the space.
//!
//! Invariant: writers wait only for what is under way here; a checkpoint that cannot be made leaves everything as it
//! was. One thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::checkpoint::{self, Candidate};
use super::flush::Flusher;
use super::shared::Shared;
use super::writeback::Workers;
use crate::clock;
use crate::drive::{Drive, Errno, Settle};
use crate::journal::Twin;
use crate::limits::{
    CHECKPOINT_RETRY, HELD_INTERVALS, JOURNAL_CHECKPOINT, OVERLAY_CHECKPOINT, PACE_IDLE,
    PACE_INTERVAL, WRITEBACK_ROUND, WRITEBACK_STEP,
};

/// What the thread owns.
pub(super) struct Pace {
    /// The engine's parts.
    pub(super) shared: Arc<Shared>,
    /// Where jobs go.
    pub(super) workers: Workers,
    /// Where trims go.
    pub(super) flusher: Flusher,
    /// The checkpoint record.
    pub(super) record: Twin,
    /// Time between commits.
    pub(super) commit_interval: Duration,
    /// Whether there is a server to commit to.
    pub(super) has_remote: bool,
    /// No checkpoint before this: the last attempt came to nothing.
    pub(super) not_before: Instant,
}

impl Pace {
    /// Until `closing`; then one last checkpoint.
    pub(super) fn run(mut self) {
        let mut last = clock::now();
        let mut pause = PACE_INTERVAL;
        let mut enough = WRITEBACK_ROUND / 2;
        loop {
            let now = self.shared.progress.now();
            if now.failed.is_some() {
                return;
            }
            if now.closing {
                if !now.quit {
                    self.finish();
                }
                return;
            }
            let waiting = self.shared.drive.wait_for_dirty(enough, pause);
            self.shared.watch_space();
            self.shared.note_waiting();
            if self.shared.space.is_short() {
                self.shared.give_back();
            }
            (enough, pause) = if self.shared.space.is_stuck() {
                // What waits would only be sealed anew and find no place.
                (u64::MAX, PACE_IDLE)
            } else if self.write_back() {
                (WRITEBACK_ROUND / 2, PACE_INTERVAL)
            } else {
                // What waits cannot go yet. Asking again looks at every dirty file while writers wait, so not before
                // there is a good deal more, or some time has passed.
                let more = waiting.saturating_add(WRITEBACK_STEP);
                (more.max(WRITEBACK_ROUND / 2), PACE_IDLE)
            };
            if self.is_due(last) {
                last = clock::now();
                self.checkpoint();
            }
        }
    }

    /// Whether there was anything to hand out.
    fn write_back(&self) -> bool {
        let jobs = |drive: &Drive| drive.writeback_jobs(Settle::Settled, WRITEBACK_ROUND);
        match self.shared.with_nodes(jobs) {
            Ok(jobs) => {
                let any = !jobs.is_empty();
                self.workers.dispatch(jobs);
                any
            }
            Err(e) => {
                tracing::debug!("no writeback now: {e}");
                false
            }
        }
    }

    fn is_due(&self, last: Instant) -> bool {
        let now = self.shared.progress.now();
        let drive = &self.shared.drive;
        if clock::now() < self.not_before {
            return false;
        }
        if now.wanted > now.checkpointed {
            return true;
        }
        if drive.overlay_bytes() > OVERLAY_CHECKPOINT || now.journal_bytes > JOURNAL_CHECKPOINT {
            return clock::now() >= last + PACE_INTERVAL * 10;
        }
        // While a commit is on its way the next one waits: offline this keeps checkpoints (and the nodes they seal)
        // few.
        // But one that is refused does not get through by waiting: another may, where there is a line.
        let held = now.commit_held.is_some() && self.shared.uploading.is_online();
        let free = (now.committed == now.checkpointed || held) && now.stopped.is_none();
        let interval = match held {
            true => self.commit_interval * HELD_INTERVALS,
            false => self.commit_interval,
        };
        self.has_remote && free && clock::now() >= last + interval && !self.shared.is_clean()
    }

    fn checkpoint(&mut self) {
        let made = checkpoint::make(&self.shared, &self.workers, &self.flusher, &mut self.record);
        let no_room = match &made {
            Ok(Some(_)) => false,
            Ok(None) => self.shared.space.is_stuck(),
            Err(e) => e.is_no_space(),
        };
        self.shared
            .drive
            .refuse_records(no_room.then_some(Errno::ENOSPC));
        match made {
            Ok(Some(candidate)) => self.offer(candidate),
            Ok(None) => self.not_before = clock::now() + CHECKPOINT_RETRY,
            Err(e) if e.is_fatal() => self.shared.fail_local(&e.to_string()),
            Err(e) => {
                tracing::info!("no checkpoint: {e}");
                self.not_before = clock::now() + CHECKPOINT_RETRY;
            }
        }
    }

    fn offer(&self, candidate: Candidate) {
        self.shared
            .progress
            .update(|m| m.candidate = Some(candidate));
    }

    fn finish(&mut self) {
        if !self.shared.is_clean() {
            self.checkpoint();
        }
    }
}
