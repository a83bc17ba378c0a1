//! Decoded inode records in memory, and who holds each inode: the kernel's lookups and open handles.
//!
//! Invariant: where a slot stands here, its record is the truth and the map's may be older; `stale` slots are exactly
//! those listed for the next flush. Slots that are stale or orphans are never dropped. Called by every operation.

use std::cell::Cell;
use std::collections::HashMap;

use sealdrive_core::record::{Ino, Inode};

/// Decoded inodes kept when nothing else holds them: about 10 MiB.
const SLOTS: usize = 32 << 10;

/// An inode in memory.
pub(super) struct Slot {
    /// Its record.
    pub(super) inode: Inode,
    /// The record differs from the one in the map.
    stale: bool,
    /// No name is left: the record is in no map, and lives until the last holder lets go.
    pub(super) orphan: bool,
    used: Cell<bool>,
    /// Version of the last change of its content, 0 if none since it was loaded.
    pub(super) written: u64,
    /// A directory it has a name in, when known: what is packed together comes from one directory.
    pub(super) parent: Option<Ino>,
    /// Whether it has a default ACL, when known: asked on every create.
    pub(super) default_acl: Option<bool>,
    /// Whether it has file capabilities, when known: asked on every write that drops privileges.
    pub(super) capability: Option<bool>,
}

/// Who holds an inode.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Holders {
    /// Lookups the kernel has not forgotten.
    pub(super) lookups: u64,
    /// Open handles.
    pub(super) opens: u32,
    /// Open handles that may write.
    pub(super) writers: u32,
}

/// All inodes in memory.
#[derive(Default)]
pub(super) struct Inodes {
    slots: HashMap<Ino, Slot>,
    stale: Vec<Ino>,
    holders: HashMap<Ino, Holders>,
    sweep_at: usize,
}

impl Inodes {
    pub(super) fn get(&self, ino: Ino) -> Option<&Slot> {
        let slot = self.slots.get(&ino)?;
        slot.used.set(true);
        Some(slot)
    }

    pub(super) fn get_mut(&mut self, ino: Ino) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(&ino)?;
        slot.used.set(true);
        Some(slot)
    }

    /// The slot, to change its record: it will be flushed.
    pub(super) fn change(&mut self, ino: Ino) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(&ino)?;
        slot.used.set(true);
        if !slot.stale && !slot.orphan {
            slot.stale = true;
            self.stale.push(ino);
        }
        Some(slot)
    }

    /// A record read from the map.
    pub(super) fn loaded(&mut self, ino: Ino, inode: Inode) {
        self.sweep();
        self.slots.insert(ino, Slot::of(inode));
    }

    /// A new inode, to be flushed.
    pub(super) fn created(&mut self, ino: Ino, inode: Inode, parent: Ino) {
        self.loaded(ino, inode);
        if let Some(slot) = self.change(ino) {
            slot.parent = Some(parent);
            slot.default_acl = Some(false);
            slot.capability = Some(false);
        }
    }

    pub(super) fn remove(&mut self, ino: Ino) {
        self.slots.remove(&ino);
    }

    /// Records to be written to the map; afterwards none is stale.
    pub(super) fn flush(&mut self, mut each: impl FnMut(Ino, &Inode)) {
        for ino in std::mem::take(&mut self.stale) {
            if let Some(slot) = self.slots.get_mut(&ino).filter(|slot| slot.stale) {
                slot.stale = false;
                if !slot.orphan {
                    each(ino, &slot.inode);
                }
            }
        }
    }

    pub(super) fn any_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    pub(super) fn is_stale(&self, ino: Ino) -> bool {
        self.slots.get(&ino).is_some_and(|slot| slot.stale)
    }

    /// Inodes with an open handle that may write.
    pub(super) fn open_for_write(&self) -> Vec<Ino> {
        let open = self.holders.iter().filter(|(_, held)| held.writers > 0);
        open.map(|(ino, _)| *ino).collect()
    }

    pub(super) fn holders(&self, ino: Ino) -> Holders {
        self.holders.get(&ino).copied().unwrap_or_default()
    }

    pub(super) fn hold(&mut self, ino: Ino) -> &mut Holders {
        self.holders.entry(ino).or_default()
    }

    /// Changes who holds `ino`; true when nobody does any more.
    pub(super) fn let_go(&mut self, ino: Ino, change: impl FnOnce(&mut Holders)) -> bool {
        let Some(holders) = self.holders.get_mut(&ino) else {
            return true;
        };
        change(holders);
        let free = holders.lookups == 0 && holders.opens == 0;
        if free {
            self.holders.remove(&ino);
        }
        free
    }

    /// Drops what was not used since the last sweep, when there is too much.
    fn sweep(&mut self) {
        if self.slots.len() < self.sweep_at.max(SLOTS) {
            return;
        }
        self.slots
            .retain(|_, slot| slot.stale || slot.orphan || slot.used.take());
        // Never sweep for less than a half of what stands: each sweep is paid for by that many loads.
        self.sweep_at = self.slots.len() + self.slots.len() / 2;
    }
}

impl Slot {
    fn of(inode: Inode) -> Self {
        Self {
            inode,
            stale: false,
            orphan: false,
            used: Cell::new(true),
            written: 0,
            parent: None,
            default_acl: None,
            capability: None,
        }
    }
}
