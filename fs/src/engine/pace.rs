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
use crate::drive::Settle;
use crate::journal::Twin;
use crate::limits::{JOURNAL_CHECKPOINT, OVERLAY_CHECKPOINT, PACE_INTERVAL, WRITEBACK_ROUND};

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
    /// Outbox bytes at which writes are refused.
    pub(super) outbox_budget: u64,
    /// Whether there is a server to commit to.
    pub(super) has_remote: bool,
    /// What the drive was told last.
    pub(super) full: bool,
}

impl Pace {
    /// Until `closing`; then one last checkpoint.
    pub(super) fn run(mut self) {
        let mut last = clock::now();
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
            self.shared
                .drive
                .wait_for_dirty(WRITEBACK_ROUND / 2, PACE_INTERVAL);
            self.watch_space();
            self.write_back();
            if self.is_due(last) {
                last = clock::now();
                self.checkpoint();
            }
        }
    }

    fn write_back(&self) {
        match self
            .shared
            .with_nodes(|drive| drive.writeback_jobs(Settle::Settled, WRITEBACK_ROUND))
        {
            Ok(jobs) => self.workers.dispatch(jobs),
            Err(e) => tracing::debug!("no writeback now: {e}"),
        }
    }

    fn is_due(&self, last: Instant) -> bool {
        let now = self.shared.progress.now();
        let drive = &self.shared.drive;
        if now.wanted > now.checkpointed {
            return true;
        }
        if drive.overlay_bytes() > OVERLAY_CHECKPOINT || now.journal_bytes > JOURNAL_CHECKPOINT {
            return clock::now() >= last + PACE_INTERVAL * 10;
        }
        // While a commit is on its way the next one waits: offline this keeps checkpoints (and the nodes they seal)
        // few.
        let free = now.committed == now.checkpointed && now.stopped.is_none();
        self.has_remote
            && free
            && clock::now() >= last + self.commit_interval
            && !self.shared.is_clean()
    }

    fn checkpoint(&mut self) {
        match checkpoint::make(&self.shared, &self.workers, &self.flusher, &mut self.record) {
            Ok(Some(candidate)) => self.offer(candidate),
            Ok(None) => {}
            Err(e) if e.is_fatal() => self.shared.fail_local(&e.to_string()),
            Err(e) => tracing::info!("no checkpoint: {e}"),
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

    fn watch_space(&mut self) {
        let full = self.shared.store.outbox().bytes() > self.outbox_budget;
        if full != self.full {
            self.full = full;
            self.shared.drive.set_full(full);
        }
    }
}
