//! When writes are refused: too much waits for the server, or the disk has only its reserve left.
//!
//! Invariant: the drive is told before the disk is full, so that what was accepted can still be sealed, journaled and
//! sent. Called by the pace thread and by a checkpoint between its rounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sealdrive_pack::Medium;

use crate::drive::Drive;
use crate::limits::{PACK_SIZE, RESERVED_FREE};
use crate::store::Store;

/// The two limits, and what the drive was told last.
pub(super) struct Space {
    dir: Arc<dyn Medium>,
    outbox_budget: u64,
    full: AtomicBool,
}

impl Space {
    /// At most `outbox_budget` bytes wait for the server, but never more than four fifths of what `dir` had free.
    pub(super) fn new(dir: Arc<dyn Medium>, outbox_budget: u64) -> Self {
        let most = free(&*dir).map_or(u64::MAX, |free| free / 5 * 4);
        Self {
            dir,
            outbox_budget: outbox_budget.min(most),
            full: AtomicBool::new(false),
        }
    }

    /// Looks, and tells the drive if something has changed.
    pub(super) fn watch(&self, store: &Store, drive: &Drive) {
        // What is acknowledged leaves pack by pack, so up to two packs more are no sign of a server that is behind.
        let behind = store.outbox().pending().0 > self.outbox_budget
            || store.outbox().bytes() > self.outbox_budget.saturating_add(2 * PACK_SIZE);
        let full = behind || free(&*self.dir).is_some_and(|free| free < RESERVED_FREE);
        if self.full.swap(full, Ordering::Relaxed) != full {
            drive.set_full(full);
        }
    }
}

/// Bytes an ordinary user may still write there; `None` if the system does not tell.
fn free(dir: &dyn Medium) -> Option<u64> {
    dir.free().ok()
}
