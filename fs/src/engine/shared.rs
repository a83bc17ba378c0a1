//! What the threads and tasks of one mounted drive share.
//!
//! Invariant: after `fail_local` nothing more is written on this machine and every change is refused; what was promised
//! before stays readable. Called by the engine's own files only.

use std::collections::BTreeMap;
use std::sync::Arc;

use sealdrive_core::record::{FileKind, Ino};
use sealdrive_core::tree::Root;
use sealdrive_proto::id::DeviceId;
use tokio::sync::watch;

use super::blobs::Blobs;
use super::casualties::Casualties;
use super::checkpoint::Candidate;
use super::crash::CrashPoints;
use super::events::{EventKind, Events};
use super::fence::Kernel;
use super::progress::{Milestones, Progress};
use super::refused::Refused;
use super::space::Space;
use super::status::{FileSafety, Safety};
use super::upload::Uploading;
use crate::clock;
use crate::drive::{Answer, DIRTY_BUDGET, Drive, DriveError, Progress as Way};
use crate::limits::{GIVE_BACK_LEAST, NODE_WAIT, SPACE_RETRY, UPLOAD_YIELDS_BELOW};
use crate::remote::RemoteError;
use crate::store::{Store, StoreError};

/// The parts every thread needs.
pub(super) struct Shared {
    /// The file system in memory.
    pub(super) drive: Arc<Drive>,
    /// Local packs.
    pub(super) store: Arc<Store>,
    /// Objects by reference.
    pub(super) blobs: Arc<Blobs>,
    /// The upload's bell and counters.
    pub(super) uploading: Uploading,
    /// When writes are refused.
    pub(super) space: Space,
    /// Milestones.
    pub(super) progress: Progress,
    /// Files of which something is lost.
    pub(super) casualties: Casualties,
    /// What no commit may need.
    pub(super) refused: Refused,
    /// What went wrong.
    pub(super) events: Arc<Events>,
    /// Named points for tests.
    pub(super) crash: CrashPoints,
    /// What devices are called.
    pub(super) names: BTreeMap<DeviceId, String>,
    /// The way to the kernel's dirty pages.
    pub(super) kernel: Kernel,
    /// Tells the lease keeper to ask again now.
    pub(super) lease_retry: watch::Sender<u64>,
}

impl Shared {
    /// Runs a step of the drive, loading the tree nodes it finds missing.
    pub(super) fn with_nodes<T>(&self, mut step: impl FnMut(&Drive) -> Answer<T>) -> Answer<T> {
        let deadline = clock::now() + NODE_WAIT;
        loop {
            match step(&self.drive) {
                Err(DriveError::Missing(reference)) => {
                    match self.blobs.node(&reference, deadline) {
                        Ok(node) => self.drive.add_node(&reference, node),
                        Err(_) => return Err(DriveError::Missing(reference)),
                    }
                }
                done => return done,
            }
        }
    }

    /// Whether the upload should leave the processors to writers: they fill memory as fast as it is emptied, and what
    /// waits for the server is little.
    pub(super) fn writers_first(&self) -> bool {
        self.drive.dirty_bytes() > DIRTY_BUDGET / 4
            && self.store.outbox().pending().0 < UPLOAD_YIELDS_BELOW
    }

    /// Refuses or allows writes by what waits for the server and by what the disk has left.
    pub(super) fn watch_space(&self) {
        self.space.watch(self);
    }

    /// What the server has and a commit covers need not stay here while space is short: the pack being written neither.
    pub(super) fn give_back(&self) {
        let end = self.store.end();
        // In this order: what is put after the look at `end` is not concerned.
        if self.store.outbox().bytes() < GIVE_BACK_LEAST || !self.is_covered() {
            return;
        }
        if let Err(e) = self.store.settle(end) {
            self.trouble(&e);
        }
    }

    /// The local store said no: for want of space, which is a matter of time, or for good.
    pub(super) fn trouble(&self, e: &StoreError) {
        if e.is_no_space() {
            tracing::debug!("the disk is full: {e}");
        } else {
            self.fail_local(&e.to_string());
        }
    }

    /// Writes something again and again until there is space for it, or the mount ends.
    pub(super) fn patiently<E>(
        &self,
        is_no_space: impl Fn(&E) -> bool,
        mut attempt: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let done = attempt();
            let over = |m: &Milestones| m.quit || m.failed.is_some();
            match &done {
                Err(e) if is_no_space(e) && !over(&self.progress.now()) => {
                    self.progress.wait(clock::now() + SPACE_RETRY, over);
                }
                _ => return done,
            }
        }
    }

    /// Whether everything done is in the last checkpoint.
    pub(super) fn is_clean(&self) -> bool {
        self.drive.overlay_bytes() == 0
            && self.drive.unplaced_bytes() == 0
            && !self.drive.has_unlogged()
    }

    /// Whether a commit covers everything done.
    pub(super) fn is_covered(&self) -> bool {
        let now = self.progress.now();
        self.is_clean() && now.committed >= now.checkpointed
    }

    /// Keeps the time since which something waits for a commit.
    pub(super) fn note_waiting(&self) {
        let covered = self.is_covered();
        if covered == self.progress.now().waiting.is_some() {
            let since = (!covered).then(clock::now);
            self.progress.update(|m| m.waiting = since);
        }
    }

    /// The server has answered. Rings the bell, also for those who wait for the upload to come further: the change
    /// under the lock orders it with one who has just looked at the outbox.
    pub(super) fn heard(&self) {
        self.progress.update(|m| {
            m.heard = Some(clock::now());
            m.answered = true;
        });
    }

    /// Whether the server has acknowledged everything that the checkpoint `root` names.
    fn is_sent(&self, root: Option<Root>) -> bool {
        let outbox = self.store.outbox();
        let now = self.progress.now();
        let arrived = |candidate: Candidate| {
            Some(candidate.root) == root
                && outbox.acknowledged() >= candidate.reach.max(now.must_reach)
        };
        // The nodes of a checkpoint are in the outbox before the drive stands on it. Whose something is that the server
        // refuses is not looked for here.
        let refused = outbox.withheld_count() > 0;
        !refused && now.candidate.is_some_and(arrived) || outbox.pending().1 == 0
    }

    /// How one file stands. One operation of the drive: after `Missing`, load the node and ask again.
    pub(super) fn file_safety(&self, ino: Ino) -> Answer<FileSafety> {
        let file = self.drive.state_of(ino)?;
        let safety = match file.progress {
            Way::Dirty => Safety::Dirty,
            Way::Journaled | Way::Checkpointing => Safety::Journaled,
            Way::InTree if self.is_sent(file.root) => Safety::Sent,
            Way::InTree => Safety::Journaled,
            Way::InCommit if file.open_for_write => Safety::Sent,
            Way::InCommit => Safety::Committed,
        };
        Ok(FileSafety {
            safety,
            open_for_write: file.open_for_write,
            is_dir: file.kind == FileKind::Directory,
        })
    }

    /// A write or fsync of local state failed: stop, and say so. Never retried: the kernel may have dropped the pages.
    pub(super) fn fail_local(&self, why: &str) {
        let mut first = false;
        self.progress.update(|m| {
            first = m.failed.is_none();
            m.failed.get_or_insert_with(|| why.to_owned());
        });
        if first {
            self.events.push(EventKind::LocalIo, why);
            self.drive.close();
        }
    }

    /// No commit is written any more until a person looks; everything stays here.
    pub(super) fn stop_commits(&self, kind: EventKind, why: &str) {
        // The event first: whoever sees that commits have stopped finds the reason.
        if self.progress.now().stopped.is_none() {
            self.events.push(kind, why);
        }
        self.progress.update(|m| {
            m.stopped.get_or_insert_with(|| why.to_owned());
        });
    }

    /// The last thing the network said, for `status`.
    pub(super) fn note_remote_error(&self, e: &RemoteError) {
        self.progress
            .update(|m| m.remote_error = Some(e.to_string()));
    }

    /// Has the server asked again now, whatever it refused before. Answers how often that was wanted by now.
    pub(super) fn ask_again(&self) -> u64 {
        let mut ask = 0;
        self.progress.update(|m| {
            m.asked += 1;
            ask = m.asked;
        });
        self.uploading.asked.notify_one();
        ask
    }

    /// Asks for the writer lease now, not at the next renewal.
    pub(super) fn renew_lease(&self) {
        self.lease_retry.send_modify(|n| *n += 1);
    }
}
