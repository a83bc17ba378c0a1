//! The state of a mounted drive for people and programs.
//!
//! Invariant: fields are only ever added; nothing in it names a file or a key. Called by the control socket and tests.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::casualties::Casualty;
use super::events::Event;
use super::fence::{Fence, LISTEN};
use super::lease::Lease;
use super::refused::Refusal;
use super::threads::Running;

/// Whether the server is reached and may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connection {
    /// This mount has no server.
    None,
    /// Not reached.
    Offline,
    /// Reached, lease held.
    Online,
    /// Another device writes this drive.
    Elsewhere,
    /// The server refuses this device.
    Refused,
}

impl Connection {
    /// From what the lease keeper knows and whether the upload stream is open.
    pub(super) fn of(lease: Lease, online: bool) -> Self {
        match lease {
            Lease::Held { .. } if online => Self::Online,
            Lease::Held { .. } | Lease::Unknown => Self::Offline,
            Lease::Elsewhere(_) => Self::Elsewhere,
            Lease::Refused => Self::Refused,
        }
    }
}

/// How far something has come on its way to safety, from the weakest. The words are a stable interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Safety {
    /// Something of it is in memory only.
    Dirty,
    /// It survives a crash of this machine.
    Journaled,
    /// The server has acknowledged all of it, and no commit names it yet.
    Sent,
    /// It is part of a restore point on the server, and nothing newer is or may be on its way.
    Committed,
}

impl Safety {
    /// All of them, from the weakest.
    pub const ALL: [Self; 4] = [Self::Dirty, Self::Journaled, Self::Sent, Self::Committed];

    /// The word that people and programs read.
    pub fn word(self) -> &'static str {
        match self {
            Self::Dirty => "dirty",
            Self::Journaled => "journaled",
            Self::Sent => "sent",
            Self::Committed => "committed",
        }
    }
}

/// How one file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSafety {
    /// How far it has come.
    pub safety: Safety,
    /// A handle or mapping that may write to it is open: then it is never called committed.
    pub open_for_write: bool,
    /// It is a directory; what is below it is another question.
    pub is_dir: bool,
}

/// One look at a mounted drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Bytes written and neither sealed nor placed.
    pub dirty_bytes: u64,
    /// Bytes of the local journal.
    pub journal_bytes: u64,
    /// Bytes of sealed objects the server has not acknowledged.
    pub pending_bytes: u64,
    /// Number of them.
    pub pending_objects: u64,
    /// Bytes of all outbox packs.
    pub outbox_bytes: u64,
    /// Bytes of the local cache.
    pub cache_bytes: u64,
    /// Its budget.
    pub cache_budget: u64,
    /// Object bytes acknowledged since the mount.
    pub sent_bytes: u64,
    /// Everything done is in the last checkpoint.
    pub is_clean: bool,
    /// Something is in memory only.
    pub unlogged: bool,
    /// Operations done; the engine's own steps count too, so it may be above the milestones with nothing left to do.
    pub operations: u64,
    /// Operations durable on this machine.
    pub journaled: u64,
    /// Operations in the last checkpoint.
    pub checkpointed: u64,
    /// Operations the newest commit on the server covers.
    pub committed: u64,
    /// Number of that commit.
    pub commit_seq: u64,
    /// When the server accepted it, milliseconds since 1970 on this machine's clock.
    pub commit_ms: Option<u64>,
    /// Age of the oldest change that no commit covers, milliseconds; none if all are covered.
    pub waiting_ms: Option<u64>,
    /// Time since the server last answered this mount, milliseconds; since the mount if it never has.
    pub heard_ms: u64,
    /// Files with an open handle or mapping that may write to them.
    pub open_for_write: u64,
    /// Lease epoch, 0 if none is held.
    pub lease_epoch: u64,
    /// Whether the server is reached.
    pub connection: Connection,
    /// The last thing the network or the server said against us.
    pub remote_error: Option<String>,
    /// Who has taken the drive over, if somebody has while it was mounted here.
    pub fenced: Option<Fence>,
    /// Changes are refused.
    pub read_only: bool,
    /// Why no commit is written any more.
    pub stopped: Option<String>,
    /// Why nothing is written any more.
    pub failed: Option<String>,
    /// Why no commit is made for now: the server refuses something. It is tried again.
    pub held: Option<String>,
    /// The account may store no more, and writes are refused.
    pub over_quota: bool,
    /// Objects that the server refuses.
    pub refused: Vec<Refusal>,
    /// Files of which something is lost.
    #[serde(skip)]
    pub casualties: Vec<Casualty>,
    /// Newest events, oldest first.
    pub events: Vec<Event>,
}

impl Status {
    /// Whether everything done is on the server.
    pub fn is_committed(&self) -> bool {
        self.is_clean && self.committed >= self.checkpointed
    }

    /// The weakest state of anything the drive was given. Files that are only open for writing do not count here: a
    /// database that rests would otherwise keep a drive from ever being committed.
    pub fn weakest(&self) -> Safety {
        if self.is_committed() {
            Safety::Committed
        } else if self.unlogged {
            Safety::Dirty
        } else if !self.is_clean || self.pending_objects > 0 {
            Safety::Journaled
        } else {
            Safety::Sent
        }
    }
}

impl Running {
    /// How the drive stands.
    pub(super) fn status(&self) -> Status {
        let now = self.shared.progress.now();
        let lease = *self.lease.borrow();
        let (pending_bytes, pending_objects) = self.shared.store.outbox().pending();
        let online = self.shared.uploading.is_online();
        let heard = now.heard.map_or(Duration::ZERO, |at| at.elapsed());
        let listens = self.shared.drive.is_read_only() || now.fenced.is_some();
        let connection = match (self.has_remote(), listens) {
            (false, _) => Connection::None,
            // It only listens, and has no stream.
            (true, true) if now.answered && heard < LISTEN * 3 => Connection::Elsewhere,
            (true, true) => Connection::Offline,
            (true, false) => Connection::of(lease, online),
        };
        Status {
            dirty_bytes: self.shared.drive.dirty_bytes(),
            journal_bytes: now.journal_bytes,
            pending_bytes,
            pending_objects,
            outbox_bytes: self.shared.store.outbox().bytes(),
            cache_bytes: self.shared.store.cache().bytes(),
            cache_budget: self.shared.store.cache().budget(),
            sent_bytes: self.shared.uploading.sent(),
            is_clean: self.shared.is_clean(),
            unlogged: self.shared.drive.has_unlogged(),
            operations: self.shared.drive.seq(),
            journaled: now.journaled,
            checkpointed: now.checkpointed,
            committed: now.committed,
            commit_seq: now.commit_seq,
            commit_ms: now.commit_ms,
            waiting_ms: (!self.shared.is_covered())
                .then(|| now.waiting.map_or(0, |since| ms(since.elapsed()))),
            heard_ms: ms(heard),
            open_for_write: self.shared.drive.open_for_write().len() as u64,
            lease_epoch: lease.held().map_or(0, |(epoch, _)| epoch),
            connection,
            remote_error: now.remote_error,
            fenced: now.fenced,
            read_only: self.shared.drive.is_read_only(),
            stopped: now.stopped,
            failed: now.failed,
            held: now.upload_held.or(now.commit_held).map(|held| held.why),
            over_quota: now.over_quota.is_some() || self.shared.space.is_over_quota(),
            refused: self
                .shared
                .refused
                .list(&self.shared.store.outbox().withheld()),
            casualties: self.shared.casualties.list(),
            events: self.shared.events.list(),
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
