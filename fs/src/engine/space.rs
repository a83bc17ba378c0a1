//! When writes are refused: too much waits for the server, the disk has only its reserve left, or the account's quota
//! is used up. Copies of what the server has go first.
//!
//! Invariant: the drive is told before the disk is full, so that what was accepted can still be sealed, journaled and
//! sent: free space and reserve together are never less than twice the reserve without writes being refused, and what
//! is accepted between two looks fits into the rest, in the outbox and in the journal. Nothing is remembered of how
//! little there once was: when space returns, so do writes. Called by the pace thread and by a checkpoint between its
//! rounds.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use sealdrive_pack::{Medium, Reserve};
use sealdrive_runtime::sync::Mutex;

use super::events::EventKind;
use super::shared::Shared;
use crate::clock;
use crate::drive::{DIRTY_BUDGET, Errno};
use crate::limits::{DIRTY_LEAST, PACK_SIZE, SPACE_OPEN_PART, SPACE_RESERVE_PART, SPACE_RETRY};

/// The limits, and what the drive was told last.
pub(super) struct Space {
    dir: Arc<dyn Medium>,
    reserve: Arc<Reserve>,
    /// Bytes of the reserve on a disk that is large enough.
    most: u64,
    outbox_budget: u64,
    /// The errno the drive was told to refuse data with; 0: none.
    told: AtomicI32,
    told_small: AtomicBool,
    /// Bytes that the reserve should have, at the last look.
    target: AtomicU64,
    short: AtomicBool,
    stuck: Mutex<Stuck>,
}

/// Writes that found no space.
#[derive(Default)]
struct Stuck {
    seen: u64,
    until: Option<Instant>,
}

/// The disk at one moment, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    /// Free for anybody.
    left: u64,
    /// In the reserve.
    held: u64,
    /// What should be.
    target: u64,
}

impl Look {
    /// `own`: what of us is there besides and can go, sooner or later.
    fn new(left: u64, held: u64, own: u64, most: u64) -> Self {
        let whole = left.saturating_add(held).saturating_add(own);
        // In steps, so that it does not change with every byte that somebody else writes.
        let mut target = most;
        while target > whole / SPACE_RESERVE_PART {
            target /= 2;
        }
        Self { left, held, target }
    }

    fn sum(&self) -> u64 {
        self.left.saturating_add(self.held)
    }

    /// Bytes to be freed so that copies need not go.
    fn wanting(&self) -> u64 {
        (3 * self.target).saturating_sub(self.sum())
    }

    fn refuses(&self) -> bool {
        self.spare() < self.target / 8
    }

    fn must_release(&self) -> bool {
        self.held > 0 && self.left < self.target / 4
    }

    fn may_hold(&self) -> bool {
        let more = self.target.saturating_sub(self.held);
        more > 0 && self.left >= more + self.target / 2
    }

    /// What is there to be filled.
    fn spare(&self) -> u64 {
        self.sum().saturating_sub(2 * self.target)
    }

    /// What may be dirty at once, and what may be dirty or be written until the next look: each byte goes to the
    /// outbox, and perhaps to the journal before.
    fn room(&self) -> (u64, u64) {
        let dirty = (self.spare() / 4).clamp(DIRTY_LEAST, DIRTY_BUDGET);
        (dirty, self.spare() / 2)
    }
}

impl Space {
    /// At most `outbox_budget` bytes wait for the server, but never more than four fifths of what `dir` could hold.
    /// `most` bytes of reserve are held, less on a small disk.
    pub(super) fn new(
        dir: Arc<dyn Medium>,
        reserve: Arc<Reserve>,
        most: u64,
        outbox_budget: u64,
    ) -> Self {
        Self {
            dir,
            reserve,
            most,
            outbox_budget,
            told: AtomicI32::new(0),
            told_small: AtomicBool::new(false),
            target: AtomicU64::new(most),
            short: AtomicBool::new(false),
            stuck: Mutex::default(),
        }
    }

    /// Whether the drive refuses writes because the account has no room.
    pub(super) fn is_over_quota(&self) -> bool {
        self.told.load(Ordering::Relaxed) == Errno::EDQUOT.0
    }

    /// Whether there is so little space that packs should go as soon as they can.
    pub(super) fn is_short(&self) -> bool {
        self.short.load(Ordering::Acquire)
    }

    /// Bytes from which on the outbox pack is closed for a commit: what is committed and cannot go, because its pack
    /// is still being written, is little beside the reserve.
    pub(super) fn worth_closing(&self) -> u64 {
        self.target.load(Ordering::Relaxed) / SPACE_OPEN_PART
    }

    /// Whether a write has just found no space: another attempt would only cost.
    pub(super) fn is_stuck(&self) -> bool {
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = self.reserve.refused();
        if refused != stuck.seen {
            stuck.seen = refused;
            stuck.until = Some(clock::now() + SPACE_RETRY);
        }
        stuck.until.is_some_and(|until| clock::now() < until)
    }

    /// Looks, and tells the drive if something has changed.
    pub(super) fn watch(&self, shared: &Shared) {
        let (store, drive) = (&shared.store, &shared.drive);
        let now = shared.progress.now();
        let mut look = self.look(shared, now.journal_bytes);
        if let Some(before) = look
            && before.wanting() > 0
            && store.shrink_cache(before.wanting()).unwrap_or(false)
        {
            look = self.look(shared, now.journal_bytes);
        }
        if let Some(look) = &mut look {
            self.keep_reserve(shared, look);
        }
        self.short
            .store(look.is_some_and(|l| l.wanting() > 0), Ordering::Release);
        let (limit, room) = look.map_or((DIRTY_BUDGET, u64::MAX), |look| look.room());
        drive.grant(limit, room);
        // What is acknowledged leaves pack by pack, so up to two packs more are no sign of a server that is behind.
        let outbox = store.outbox();
        let room = look.map_or(u64::MAX, |look| look.sum().saturating_add(outbox.bytes()));
        let budget = self.outbox_budget.min(room / 5 * 4);
        let behind = outbox.pending().0 > budget
            || outbox.bytes() > self.outbox_budget.saturating_add(2 * PACK_SIZE);
        let why = if now.over_quota.is_some() {
            Some((Errno::EDQUOT, "the account's quota is used up"))
        } else if look.is_some_and(|look| look.refuses()) || self.is_stuck() {
            Some((Errno::ENOSPC, "the disk of the local state is nearly full"))
        } else if behind {
            Some((Errno::ENOSPC, "too much waits for the server"))
        } else {
            None
        };
        let refusal = why.map(|(errno, _)| errno);
        let told = refusal.map_or(0, |errno| errno.0);
        if self.told.swap(told, Ordering::Relaxed) != told {
            match why {
                Some((_, why)) => tracing::warn!("new data is refused: {why}"),
                None => tracing::info!("new data is taken again"),
            }
            drive.refuse_data(refusal);
            // What could not be read for sending while the disk was full may be read now.
            shared.uploading.appended.notify_one();
        }
    }

    /// `None` if the system does not tell.
    fn look(&self, shared: &Shared, journal: u64) -> Option<Look> {
        let left = self.dir.free().ok()?;
        let store = &shared.store;
        let own = store.outbox().bytes() + store.cache().bytes() + journal;
        let look = Look::new(left, self.reserve.held(), own, self.most);
        self.target.store(look.target, Ordering::Relaxed);
        Some(look)
    }

    fn keep_reserve(&self, shared: &Shared, look: &mut Look) {
        if look.must_release() {
            let given = self.reserve.release();
            tracing::info!(
                given,
                "the disk is nearly full: the reserve is given up for what was accepted"
            );
        } else if look.may_hold() {
            if let Err(error) = self.reserve.hold(look.target) {
                tracing::warn!(%error, "no space is held in reserve");
            } else if look.target < self.most && !self.told_small.swap(true, Ordering::Relaxed) {
                let what = format!(
                    "the disk of this drive's local state is small or nearly full: {} KiB are held in reserve instead \
                     of {}",
                    look.target >> 10,
                    self.most >> 10
                );
                shared.events.push(EventKind::LittleSpace, what);
            }
        } else {
            return;
        }
        if let Ok(left) = self.dir.free() {
            *look = Look {
                left,
                held: self.reserve.held(),
                ..*look
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn look(left: u64, held: u64) -> Look {
        Look::new(left * MIB, held * MIB, 1 << 40, 64 * MIB)
    }

    #[test]
    fn the_reserve_goes_before_the_disk_is_full_and_comes_back_with_room_to_spare() {
        assert!(look(1000, 0).may_hold());
        assert!(!look(1000, 64).may_hold() && !look(1000, 64).must_release());
        assert!(look(15, 64).must_release() && !look(16, 64).must_release());
        // What was given up is not taken again at once.
        assert!(!look(15 + 64, 0).may_hold());
        assert!(look(96, 0).may_hold());
    }

    #[test]
    fn writes_are_refused_while_less_is_left_than_draining_may_take() {
        assert!(look(71, 64).refuses() && look(135, 0).refuses());
        assert!(!look(72, 64).refuses() && !look(136, 0).refuses());
        assert!(look(127, 64).wanting() > 0 && look(128, 64).wanting() == 0);
        // Twice what is accepted still leaves the reserve, and as much besides.
        for left in 72..600 {
            let (dirty, room) = look(left, 64).room();
            assert!(dirty <= room && room > 0 && 2 * room <= (left - 64) * MIB);
        }
        assert_eq!(look(10_000, 64).room().0, DIRTY_BUDGET);
    }

    #[test]
    fn a_small_disk_gets_a_small_reserve() {
        let target = |whole: u64| Look::new(whole, 0, 0, 64 * MIB).target;
        assert_eq!(target(512 * MIB), 64 * MIB);
        assert_eq!(target(511 * MIB), 32 * MIB);
        assert_eq!(target(64 * MIB), 8 * MIB);
        assert_eq!(target(0), 0);
    }
}
