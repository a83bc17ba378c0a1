//! Who may go on and who waits: a short stop before a freeze, and back-pressure by dirty bytes and overlay size.
//!
//! Invariant: reads, releases and the engine's calls never wait here. A change waits only while the engine has stalled
//! it or memory is over budget, and not for ever; it is refused once the drive is closed, new data also while it is
//! full, and where no checkpoint finds room every change that memory has no room for. Called by every operation.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sealdrive_core::node::Node;
use sealdrive_core::record::{FileKind, Ino, Inode, ROOT, Time};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::Root;
use sealdrive_runtime::sync::{Condvar, Mutex, MutexGuard};

use super::errno::{Answer, Errno};
use super::state::State;
use super::{Attr, Drive, Usage};
use crate::clock;

/// Bytes written and not yet sealed, in all: beyond it writers wait for writeback. Less where the disk is nearly full.
pub const DIRTY_BUDGET: u64 = 64 << 20;
/// Memory of overlays, bytes: beyond it changes wait for a checkpoint. The engine starts one far below.
pub const OVERLAY_LIMIT: usize = 128 << 20;
/// How often a waiting change looks again even if nobody woke it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest time it waits: what the kernel waits for must end, or its caller cannot even be killed.
const WAIT_LIMIT: Duration = Duration::from_secs(120);

/// What a change needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// A record or two.
    Records,
    /// Records of something new: refused when full.
    Space,
    /// Room for file data: refused when full, waits for writeback.
    Data,
}

impl Drive {
    /// A drive that stands on `root` (none: it never had a checkpoint) with the operations up to `seq` in it.
    pub fn new(root: Option<Root>, seq: u64) -> Self {
        Self {
            state: Mutex::new(State::new(root, seq)),
            room: Condvar::new(),
            work: Condvar::new(),
        }
    }

    /// Makes the root directory if there is none. True if it was made.
    pub fn format_if_empty(&self, uid: u32, gid: u32, now: Time) -> Answer<bool> {
        let s = &mut *self.lock()?;
        if s.map.view().inode(ROOT)?.is_some() || s.inodes.get(ROOT).is_some() {
            return Ok(false);
        }
        s.counters()?.add_files(0, 0);
        let mut inode = Inode::new(FileKind::Directory, 0o755, uid, gid, now);
        inode.nlink = 2;
        s.inodes.created(ROOT, inode, ROOT);
        s.done();
        Ok(true)
    }

    /// Keeps a tree node that an operation found missing.
    pub fn add_node(&self, reference: &Reference, node: Arc<Node>) {
        self.peek().map.nodes.add(reference, node);
    }

    /// No more room for data: writes get this error instead of waiting. `None`: there is room again.
    pub fn refuse_data(&self, refusal: Option<Errno>) {
        self.peek().full = refusal;
        self.room.notify_all();
    }

    /// No checkpoint finds room: changes beyond [`OVERLAY_LIMIT`] get this error instead of waiting. `None`: they wait.
    pub fn refuse_records(&self, refusal: Option<Errno>) {
        self.peek().no_checkpoint = refusal;
        self.room.notify_all();
    }

    /// What was accepted must fit on the disk: until the next call writers wait when more than `limit` bytes are dirty,
    /// and when so much more was written that it and what is dirty are `room` bytes.
    pub fn grant(&self, limit: u64, room: u64) {
        let mut s = self.peek();
        let (limit, granted) = (limit.min(DIRTY_BUDGET), room.saturating_sub(s.dirty_bytes));
        let more = limit > s.dirty_limit || (granted > 0 && s.granted == 0);
        (s.dirty_limit, s.granted, s.asked) = (limit, granted, false);
        if more {
            self.room.notify_all();
        }
    }

    /// Refuses every change from now on (EROFS), also those that wait: another machine writes this drive, or nobody
    /// here wants to. There is no way back: what was refused would be missing from what comes after.
    pub fn set_read_only(&self) {
        self.peek().read_only = true;
        self.room.notify_all();
    }

    /// Whether changes are refused with EROFS.
    pub fn is_read_only(&self) -> bool {
        self.peek().read_only
    }

    /// Refuses every change from now on (EIO), also those that wait.
    pub fn close(&self) {
        self.peek().closed = true;
        self.room.notify_all();
        self.work.notify_all();
    }

    /// Stops changes before a freeze; those that come wait.
    pub fn stall(&self) {
        self.peek().stalled = true;
    }

    /// Lets changes go on.
    pub fn unstall(&self) {
        self.peek().stalled = false;
        self.room.notify_all();
    }

    /// Whether a change, or with `data` a write, would have to wait now: the caller then moves it off its loop thread.
    pub fn would_wait(&self, data: bool) -> bool {
        let s = self.peek();
        s.must_wait(if data { Need::Data } else { Need::Records })
    }

    /// Waits until a change, or with `data` a write, need not wait; false if that took longer than `at_most`. Refusals
    /// (full, closed) are room: the operation itself tells the reason.
    pub fn wait_for_room(&self, data: bool, at_most: Duration) -> bool {
        let need = if data { Need::Data } else { Need::Records };
        let mut guard = self.peek();
        if guard.must_wait(need) {
            guard.asked = true;
            self.work.notify_all();
        }
        let waits = |s: &mut State| {
            let refused = s.closed || s.read_only || s.refusal(need).is_some();
            s.must_wait(need) && !refused
        };
        let (_guard, result) = self
            .room
            .wait_timeout_while(guard, at_most, waits)
            .unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }

    /// Waits until there are `bytes` dirty bytes that no job has, until [`Self::nudge`], until a writer wants to be
    /// granted more, or until the time is up; returns how many there are.
    pub fn wait_for_dirty(&self, bytes: u64, at_most: Duration) -> u64 {
        let mut guard = self.peek();
        guard.wake_at = bytes;
        let idle = |s: &mut State| {
            let asked = s.asked && s.granted == 0;
            s.waiting_bytes() < bytes && !s.closed && !s.nudged && !asked
        };
        let (mut guard, _) = self
            .work
            .wait_timeout_while(guard, at_most, idle)
            .unwrap_or_else(PoisonError::into_inner);
        (guard.nudged, guard.asked) = (false, false);
        guard.waiting_bytes()
    }

    /// Ends the present, or else the next, `wait_for_dirty`: the engine has another reason to look.
    pub fn nudge(&self) {
        self.peek().nudged = true;
        self.work.notify_all();
    }

    /// Bytes written and not yet placed in chunks.
    pub fn dirty_bytes(&self) -> u64 {
        self.peek().dirty_bytes
    }

    /// Memory of the overlays, bytes.
    pub fn overlay_bytes(&self) -> usize {
        self.peek().map.bytes()
    }

    /// Memory of tree nodes, bytes.
    pub fn node_bytes(&self) -> usize {
        self.peek().map.nodes.bytes()
    }

    /// Operations done so far.
    pub fn seq(&self) -> u64 {
        self.peek().seq
    }

    /// The checkpoint the drive stands on.
    pub fn root(&self) -> Option<Root> {
        self.peek().map.root
    }

    /// Inodes and bytes of data, for statfs.
    pub fn usage(&self) -> Answer<Usage> {
        self.lock()?.usage()
    }

    /// Attributes of an inode.
    pub fn getattr(&self, ino: Ino) -> Answer<Attr> {
        self.lock()?.attr(ino)
    }

    /// The state, for what does not wait. EIO once an operation broke off half way: nothing it says could be trusted.
    pub(super) fn lock(&self) -> Answer<MutexGuard<'_, State>> {
        self.state.lock().map_err(|_| Errno::EIO.into())
    }

    /// The state, for numbers and flags, which are sound whatever happened.
    pub(super) fn peek(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, to change it: waits its turn.
    pub(super) fn enter(&self, need: Need) -> Answer<MutexGuard<'_, State>> {
        let mut guard = self.lock()?;
        let mut until = None;
        loop {
            if guard.closed {
                return Err(Errno::EIO.into());
            }
            if guard.read_only {
                return Err(Errno::EROFS.into());
            }
            if let Some(refusal) = guard.refusal(need) {
                return Err(refusal.into());
            }
            if !guard.must_wait(need) {
                break;
            }
            // Not counted in looks: each may be cut short by somebody who wakes all.
            let now = clock::now();
            if now >= *until.get_or_insert(now + WAIT_LIMIT) {
                return Err(Errno::EIO.into());
            }
            guard.asked = true;
            self.work.notify_all();
            let (next, _) = self
                .room
                .wait_timeout(guard, LOOK_AGAIN)
                .map_err(|_| Errno::EIO)?;
            guard = next;
        }
        guard.counters()?;
        Ok(guard)
    }

    /// Wakes the engine if as much waits to be handed out as it waits for.
    pub(super) fn announce(&self, s: &State) {
        if s.waiting_bytes() >= s.wake_at {
            self.work.notify_all();
        }
    }
}

impl State {
    /// Why a change is not even to wait.
    fn refusal(&self, need: Need) -> Option<Errno> {
        let full = self.full.filter(|_| need != Need::Records);
        full.or_else(|| self.no_checkpoint.filter(|_| self.is_over()))
    }

    fn is_over(&self) -> bool {
        self.map.bytes() > OVERLAY_LIMIT
    }

    fn must_wait(&self, need: Need) -> bool {
        self.stalled
            || self.is_over()
            || (need == Need::Data && (self.dirty_bytes > self.dirty_limit || self.granted == 0))
    }

    /// Attributes as the caller sees them: dirty bytes count as data.
    pub(super) fn attr(&mut self, ino: Ino) -> Answer<Attr> {
        let dirty = self.dirty_of(ino);
        let slot = self.load(ino)?;
        let allocated = slot.inode.allocated + dirty;
        Ok(Attr::of(ino, &slot.inode, allocated))
    }
}
