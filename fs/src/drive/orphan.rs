//! Inodes without a name: they live in memory until nobody holds them.
//!
//! Invariant: no record of an orphan is in the map, so none reaches a checkpoint or a commit. An orphan works like any
//! other inode for those who hold it. Called when the last name goes, and when a holder lets go.

use sealdrive_core::overlay::Overlay;
use sealdrive_core::record::{FileKind, Ino, Key, KeyRef, MAX_FILE, Time, Value};

use super::errno::Answer;
use super::inodes::Holders;
use super::state::State;

/// The records of an inode that lose their place with its last name.
pub(super) struct Remains(Vec<(Key, Value)>);

impl State {
    /// Reads what removing the last name of `ino` will move; nothing if it has others.
    pub(super) fn remains(&self, ino: Ino, last_name: bool) -> Answer<Remains> {
        if !last_name {
            return Ok(Remains(Vec::new()));
        }
        Ok(Remains(
            self.map.view().collect(&Key::all_of(ino), usize::MAX)?,
        ))
    }

    /// One name less (already removed). With the last one, the records leave the map.
    pub(super) fn drop_link(&mut self, ino: Ino, last_name: bool, remains: Remains, now: Time) {
        let inode = self.change(ino);
        inode.ctime = now;
        if !last_name {
            inode.nlink -= 1;
            return;
        }
        inode.nlink = 0;
        let allocated = inode.allocated;
        let counted = if inode.kind == FileKind::Regular {
            allocated
        } else {
            0
        };
        if let Some(counters) = &mut self.counters {
            counters.add_files(-1, -(counted as i64));
        }
        let mut own = Overlay::new();
        self.map.delete(Key::inode(ino));
        for (key, value) in remains.0 {
            self.map.delete(key.clone());
            if matches!(key.parse(), Ok(KeyRef::Xattr(..) | KeyRef::Extent(..))) {
                own.put(key, value);
            }
        }
        self.discard(ino, 0, MAX_FILE);
        for set in &mut self.journaled {
            set.remove(&ino);
        }
        let holders = self.inodes.holders(ino);
        if let Some(slot) = self.inodes.get_mut(ino) {
            slot.orphan = true;
        }
        self.orphans.insert(ino, own);
        if holders.lookups == 0 && holders.opens == 0 {
            self.bury(ino);
        }
    }

    /// A holder lets go; an orphan that nobody holds is gone.
    pub(super) fn let_go(&mut self, ino: Ino, change: impl FnOnce(&mut Holders)) {
        if self.inodes.let_go(ino, change) && self.orphans.contains_key(&ino) {
            self.bury(ino);
        }
    }

    fn bury(&mut self, ino: Ino) {
        self.orphans.remove(&ino);
        self.inodes.remove(ino);
        if let Some(map) = self.dirty.remove(&ino) {
            self.dirty_bytes -= map.bytes();
        }
    }
}
