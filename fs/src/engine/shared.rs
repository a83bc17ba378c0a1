//! What the threads and tasks of one mounted drive share.
//!
//! Invariant: after `fail_local` nothing more is written on this machine and every change is refused; what was promised
//! before stays readable. Called by the engine's own files only.

use std::sync::Arc;

use tokio::sync::watch;

use super::blobs::Blobs;
use super::casualties::Casualties;
use super::crash::CrashPoints;
use super::events::{EventKind, Events};
use super::progress::Progress;
use super::space::Space;
use super::upload::Uploading;
use crate::clock;
use crate::drive::{Answer, Drive, DriveError};
use crate::limits::NODE_WAIT;
use crate::remote::RemoteError;
use crate::store::Store;

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
    /// What went wrong.
    pub(super) events: Arc<Events>,
    /// Named points for tests.
    pub(super) crash: CrashPoints,
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

    /// Refuses or allows writes by what waits for the server and by what the disk has left.
    pub(super) fn watch_space(&self) {
        let over_quota = self.progress.now().over_quota;
        self.space.watch(&self.store, &self.drive, over_quota);
    }

    /// Whether everything done is in the last checkpoint.
    pub(super) fn is_clean(&self) -> bool {
        self.drive.overlay_bytes() == 0
            && self.drive.unplaced_bytes() == 0
            && !self.drive.has_unlogged()
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

    /// Asks for the writer lease now, not at the next renewal.
    pub(super) fn renew_lease(&self) {
        self.lease_retry.send_modify(|n| *n += 1);
    }
}
