//! When writes are refused: too much waits for the server, the disk has only its reserve left, or the account's quota
//! is used up. Copies of what the server has go first.
//!
//! Invariant: the drive is told before the disk is full, so that what was accepted can still be sealed, journaled and
//! sent. Called by the pace thread and by a checkpoint between its rounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use sealdrive_pack::Medium;

use crate::drive::{Drive, Errno};
use crate::limits::{CACHE_YIELDS, PACK_SIZE, RESERVED_FREE};
use crate::store::Store;

/// The two limits, and what the drive was told last.
pub(super) struct Space {
    dir: Arc<dyn Medium>,
    outbox_budget: u64,
    /// The errno the drive was told to refuse data with; 0: none.
    told: AtomicI32,
}

impl Space {
    /// At most `outbox_budget` bytes wait for the server, but never more than four fifths of what `dir` had free.
    pub(super) fn new(dir: Arc<dyn Medium>, outbox_budget: u64) -> Self {
        let most = free(&*dir).map_or(u64::MAX, |free| free / 5 * 4);
        Self {
            dir,
            outbox_budget: outbox_budget.min(most),
            told: AtomicI32::new(0),
        }
    }

    /// Whether the drive refuses writes because the account has no room.
    pub(super) fn is_over_quota(&self) -> bool {
        self.told.load(Ordering::Relaxed) == Errno::EDQUOT.0
    }

    /// Looks, and tells the drive if something has changed.
    pub(super) fn watch(&self, store: &Store, drive: &Drive, over_quota: bool) {
        // What is acknowledged leaves pack by pack, so up to two packs more are no sign of a server that is behind.
        let behind = store.outbox().pending().0 > self.outbox_budget
            || store.outbox().bytes() > self.outbox_budget.saturating_add(2 * PACK_SIZE);
        let mut left = free(&*self.dir);
        if let Some(short) = left
            .and_then(|left| CACHE_YIELDS.checked_sub(left))
            .filter(|short| *short > 0)
            && store.shrink_cache(short).unwrap_or(false)
        {
            left = free(&*self.dir);
        }
        let refusal = if over_quota {
            Some(Errno::EDQUOT)
        } else if behind || left.is_some_and(|left| left < RESERVED_FREE) {
            Some(Errno::ENOSPC)
        } else {
            None
        };
        let told = refusal.map_or(0, |errno| errno.0);
        if self.told.swap(told, Ordering::Relaxed) != told {
            drive.refuse_data(refusal);
        }
    }
}

/// Bytes an ordinary user may still write there; `None` if the system does not tell.
fn free(dir: &dyn Medium) -> Option<u64> {
    dir.free().ok()
}
