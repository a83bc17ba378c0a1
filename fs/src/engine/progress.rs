//! How far the drive has come: milestones that some wait for and others reach.
//!
//! Invariant: milestones of one mount only rise. Called by every thread of the engine; nobody holds it over IO.

use std::sync::PoisonError;
use std::time::Instant;

use sealdrive_runtime::sync::{Condvar, Mutex, MutexGuard};

use super::checkpoint::Candidate;
use super::fence::Fence;
use crate::clock;
use crate::store::Position;

/// What has been reached, counted in operations of the drive unless said otherwise.
#[derive(Debug, Clone, Default)]
pub(super) struct Milestones {
    /// Durable in the journal (or a checkpoint).
    pub(super) journaled: u64,
    /// Bytes of the journal.
    pub(super) journal_bytes: u64,
    /// Merged into the tree of the last checkpoint.
    pub(super) checkpointed: u64,
    /// Covered by the newest commit on the server.
    pub(super) committed: u64,
    /// Somebody waits for a commit that covers this.
    pub(super) wanted: u64,
    /// Number of the newest commit.
    pub(super) commit_seq: u64,
    /// When the server accepted it, this machine's clock.
    pub(super) commit_ms: Option<u64>,
    /// Since when a change waits that no commit covers: at least as long ago as the oldest was made. Monotonic, so that
    /// a clock set by a year alarms nobody.
    pub(super) waiting: Option<Instant>,
    /// When the server last answered; the mount's beginning before that.
    pub(super) heard: Option<Instant>,
    /// It has.
    pub(super) answered: bool,
    /// The newest checkpoint that is not committed yet.
    pub(super) candidate: Option<Candidate>,
    /// No commit before the upload has come here.
    pub(super) must_reach: Position,
    /// Who has taken the drive over, if somebody has.
    pub(super) fenced: Option<Fence>,
    /// Why no commit is written any more, if so.
    pub(super) stopped: Option<String>,
    /// Why nothing is written on this machine any more, if so.
    pub(super) failed: Option<String>,
    /// The server takes no more of this account: how often it had been asked for anew when it said so last. Cleared by
    /// the next acknowledgement, and by a stream on which nothing is left to send.
    pub(super) over_quota: Option<u64>,
    /// How often somebody wanted the server asked again now, whatever it refused before.
    pub(super) asked: u64,
    /// What the server refuses was offered again after so many of these.
    pub(super) offered: u64,
    /// Rises whenever something is refused, or taken after all.
    pub(super) refusals: u64,
    /// Why nothing more is sent for now, if so: the server refuses it.
    pub(super) upload_held: Option<Held>,
    /// Why no commit is made for now, if so.
    pub(super) commit_held: Option<Held>,
    /// The last thing the server or the network said against us; cleared by success.
    pub(super) remote_error: Option<String>,
    /// Shutting down: one more checkpoint and commit.
    pub(super) closing: bool,
    /// Shutting down: every thread ends now.
    pub(super) quit: bool,
}

/// The server refuses something, and trying again at once is no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// For people.
    pub(super) why: String,
    /// How often it had been asked for anew by then.
    pub(super) asked: u64,
    /// Operations that do not get there for it.
    pub(super) seq: u64,
}

impl Milestones {
    /// Why the server does not have everything up to operation `seq`, if it has refused something of it after it was
    /// asked for the `ask`th time.
    pub(super) fn refused_since(&self, ask: u64, seq: u64) -> Option<&str> {
        let held = [&self.upload_held, &self.commit_held].into_iter().flatten();
        let mut since = held.filter(|held| held.asked >= ask && held.seq >= seq);
        since.next().map(|held| held.why.as_str())
    }
}

/// Milestones behind a lock and a bell.
#[derive(Default)]
pub(super) struct Progress {
    now: Mutex<Milestones>,
    changed: Condvar,
}

impl Progress {
    /// A copy of the milestones.
    pub(super) fn now(&self) -> Milestones {
        self.lock().clone()
    }

    /// Changes them and rings the bell.
    pub(super) fn update(&self, change: impl FnOnce(&mut Milestones)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// How often somebody wanted the server asked again.
    pub(super) fn asked(&self) -> u64 {
        self.lock().asked
    }

    /// No commit before the upload has come to `position`.
    pub(super) fn must_reach(&self, position: Position) {
        self.update(|m| m.must_reach = m.must_reach.max(position));
    }

    /// Waits until `reached` or the deadline; returns the last value of `reached`.
    pub(super) fn wait(
        &self,
        deadline: Instant,
        mut reached: impl FnMut(&Milestones) -> bool,
    ) -> bool {
        let left = deadline.saturating_duration_since(clock::now());
        let (now, _) = self
            .changed
            .wait_timeout_while(self.lock(), left, |m| !reached(m))
            .unwrap_or_else(PoisonError::into_inner);
        reached(&now)
    }

    fn lock(&self) -> MutexGuard<'_, Milestones> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
