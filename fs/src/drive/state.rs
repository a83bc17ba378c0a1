//! All that a drive is in memory, behind one lock, and the few steps every operation is made of.
//!
//! Invariant: an operation first reads (and may fail), then changes (and may not). A record is where the first of these
//! has it: decoded inode, active overlay, frozen overlay, tree. Called by the operations of this room only.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sealdrive_core::overlay::Overlay;
use sealdrive_core::record::{Edit, FileKind, Ino, Inode, Key, Time, Value};
use sealdrive_core::tree::Root;
use sealdrive_core::view::{Txn, View};

use super::Usage;
use super::counters::Counters;
use super::dedup::DigestTable;
use super::dirty::DirtyMap;
use super::errno::{Answer, Errno};
use super::gate::DIRTY_BUDGET;
use super::handles::Handles;
use super::inodes::{Inodes, Slot};
use super::jobs::Jobs;
use super::nodes::{NODE_BUDGET, NodeCache};

/// The ordered map: two overlays over a tree, and what of it the journal has not been given yet.
pub(super) struct Map {
    /// Changes since the last freeze.
    pub(super) active: Overlay,
    /// Changes a checkpoint is working on; immutable.
    pub(super) frozen: Option<Arc<Overlay>>,
    /// The last checkpoint; none on a drive that never had one.
    pub(super) root: Option<Root>,
    /// The newest commit on the server, if there is one.
    pub(super) committed: Option<Root>,
    pub(super) nodes: NodeCache,
    /// Changes since the journal last took them: newest value of each key, because it takes them as one.
    pub(super) unlogged: Overlay,
    /// The same of what is frozen: when that is durable as a tree, the journal need not have it.
    pub(super) unlogged_frozen: Overlay,
}

impl Map {
    pub(super) fn view(&self) -> View<'_> {
        View::new(
            &self.active,
            self.frozen.as_deref(),
            self.root.as_ref(),
            &self.nodes,
        )
    }

    pub(super) fn put(&mut self, key: Key, value: Value) {
        self.unlogged.put(key.clone(), value.clone());
        self.active.put(key, value);
    }

    pub(super) fn delete(&mut self, key: Key) {
        self.unlogged.delete(key.clone());
        self.active.delete(key);
    }

    pub(super) fn apply(&mut self, edits: Vec<Edit>) {
        for edit in edits {
            match edit {
                Edit::Put(key, value) => self.put(key, value),
                Edit::Delete(key) => self.delete(key),
            }
        }
    }

    /// Memory of the overlays, bytes.
    pub(super) fn bytes(&self) -> usize {
        let frozen = self.frozen.as_ref().map_or(0, |o| o.bytes());
        self.active.bytes() + frozen + self.unlogged_bytes()
    }

    /// Memory of what the journal has not been given, bytes.
    pub(super) fn unlogged_bytes(&self) -> usize {
        self.unlogged.bytes() + self.unlogged_frozen.bytes()
    }
}

/// What the lock protects.
pub(super) struct State {
    pub(super) map: Map,
    pub(super) inodes: Inodes,
    /// Attributes and extents of inodes without a name; their inode records stand in `inodes`.
    pub(super) orphans: HashMap<Ino, Overlay>,
    pub(super) dirty: HashMap<Ino, DirtyMap>,
    /// Sum over `dirty`.
    pub(super) dirty_bytes: u64,
    /// Version of the last write.
    pub(super) version: u64,
    /// Files with data in the journal that this and the former checkpoint period wrote: what replaces it is recorded.
    pub(super) journaled: [HashSet<Ino>; 2],
    /// Inodes of which a log was taken that is not known to be durable yet.
    pub(super) in_log: HashSet<Ino>,
    /// Ranges whose journaled data no longer counts, to be logged: since the last freeze, and before it.
    pub(super) discards: [Vec<(Ino, u64, u64)>; 2],
    /// Operations in what is frozen.
    pub(super) frozen_seq: u64,
    pub(super) handles: Handles,
    pub(super) counters: Option<Counters>,
    /// Operations done.
    pub(super) seq: u64,
    pub(super) jobs: Jobs,
    pub(super) digests: DigestTable,
    /// A freeze is near: changes wait.
    pub(super) stalled: bool,
    /// Beyond it writers wait for writeback, bytes.
    pub(super) dirty_limit: u64,
    /// Bytes that may be written until the engine has looked at the disk again.
    pub(super) granted: u64,
    /// Somebody waits to write.
    pub(super) asked: bool,
    /// No room for more data, and how that is said.
    pub(super) full: Option<Errno>,
    /// No room for a checkpoint, and how that is said.
    pub(super) no_checkpoint: Option<Errno>,
    /// Another machine writes the drive, or nobody here wants to: changes are refused.
    pub(super) read_only: bool,
    /// Shut down: changes are refused.
    pub(super) closed: bool,
    /// Dirty bytes that no job has at which the engine wants to be woken.
    pub(super) wake_at: u64,
    /// The engine is to look now.
    pub(super) nudged: bool,
    /// Index of this writer in the membership chain: top 16 bits of the inode numbers it gives out.
    pub(super) writer: u16,
}

impl State {
    pub(super) fn new(root: Option<Root>, seq: u64) -> Self {
        Self {
            map: Map {
                active: Overlay::new(),
                frozen: None,
                root,
                committed: None,
                nodes: NodeCache::new(NODE_BUDGET),
                unlogged: Overlay::new(),
                unlogged_frozen: Overlay::new(),
            },
            inodes: Inodes::default(),
            orphans: HashMap::new(),
            dirty: HashMap::new(),
            dirty_bytes: 0,
            dirty_limit: DIRTY_BUDGET,
            granted: u64::MAX,
            asked: false,
            version: 0,
            journaled: Default::default(),
            in_log: HashSet::new(),
            discards: Default::default(),
            frozen_seq: 0,
            handles: Handles::default(),
            counters: None,
            seq,
            jobs: Jobs::default(),
            digests: DigestTable::default(),
            stalled: false,
            full: None,
            no_checkpoint: None,
            read_only: false,
            closed: false,
            wake_at: u64::MAX,
            nudged: false,
            writer: 0,
        }
    }

    /// The inode, read from the map if need be. ENOENT when there is none.
    pub(super) fn load(&mut self, ino: Ino) -> Answer<&mut Slot> {
        if self.inodes.get(ino).is_none() {
            let inode = self.map.view().inode(ino)?.ok_or(Errno::ENOENT)?;
            self.inodes.loaded(ino, inode);
        }
        self.inodes.get_mut(ino).ok_or_else(|| Errno::EIO.into())
    }

    /// A directory that still has a name.
    pub(super) fn load_dir(&mut self, ino: Ino) -> Answer<&mut Slot> {
        let slot = self.load(ino)?;
        if slot.inode.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        if slot.orphan {
            return Err(Errno::ENOENT.into());
        }
        Ok(slot)
    }

    /// A regular file.
    pub(super) fn load_file(&mut self, ino: Ino) -> Answer<&mut Slot> {
        let slot = self.load(ino)?;
        match slot.inode.kind {
            FileKind::Regular => Ok(slot),
            FileKind::Directory => Err(Errno::EISDIR.into()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    /// The record of a loaded inode, to be changed. Panics if it was not loaded: an operation reads before it changes.
    pub(super) fn change(&mut self, ino: Ino) -> &mut Inode {
        match self.inodes.change(ino) {
            Some(slot) => &mut slot.inode,
            None => unreachable!("inode changed before it was loaded"),
        }
    }

    /// The map that holds the attributes and extents of `ino`.
    pub(super) fn view_of(&self, ino: Ino) -> View<'_> {
        match self.orphans.get(&ino) {
            Some(own) => View::new(own, None, None, &self.map.nodes),
            None => self.map.view(),
        }
    }

    /// Edits of the attributes and extents of `ino`, made by `edit` on what stands now. Nothing is changed yet.
    pub(super) fn plan<T>(
        &self,
        ino: Ino,
        edit: impl FnOnce(&mut Txn<'_>) -> Answer<T>,
    ) -> Answer<(T, Vec<Edit>)> {
        let mut txn = Txn::new(self.view_of(ino));
        let made = edit(&mut txn)?;
        Ok((made, txn.finish()))
    }

    /// Applies what [`Self::plan`] made.
    pub(super) fn apply_of(&mut self, ino: Ino, edits: Vec<Edit>) {
        match self.orphans.get_mut(&ino) {
            Some(own) => edits.into_iter().for_each(|edit| own.apply(edit)),
            None => self.map.apply(edits),
        }
    }

    /// Changes how many bytes of `ino` are data; keeps the drive's sum.
    pub(super) fn set_allocated(&mut self, ino: Ino, allocated: u64) {
        let orphan = self.orphans.contains_key(&ino);
        let inode = self.change(ino);
        let before = std::mem::replace(&mut inode.allocated, allocated);
        if let Some(counters) = self.counters.as_mut().filter(|_| !orphan) {
            counters.add_bytes(before, allocated);
        }
    }

    /// The end of an operation that changed something.
    pub(super) fn done(&mut self) {
        self.seq += 1;
        self.map.nodes.settle();
    }

    pub(super) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Forgets dirty bytes `off..end` of `ino`, which something else now stands for.
    pub(super) fn drop_dirty(&mut self, ino: Ino, off: u64, end: u64) {
        if let Some(map) = self.dirty.get_mut(&ino) {
            self.dirty_bytes -= map.remove(off, end);
            if map.is_empty() {
                self.dirty.remove(&ino);
            }
        }
        self.discard(ino, off, end);
    }

    /// Notes that journaled data of `off..end` no longer counts.
    pub(super) fn discard(&mut self, ino: Ino, off: u64, end: u64) {
        let in_journal = self.journaled.iter().any(|set| set.contains(&ino));
        if in_journal && off < end {
            self.discards[0].push((ino, off, end - off));
        }
    }

    /// Dirty bytes of `ino`.
    pub(super) fn dirty_of(&self, ino: Ino) -> u64 {
        self.dirty.get(&ino).map_or(0, DirtyMap::bytes)
    }

    /// Writes changed inode records and counters into the map.
    pub(super) fn flush(&mut self) {
        let Self {
            inodes,
            map,
            counters,
            ..
        } = self;
        inodes.flush(|ino, inode| map.put(Key::inode(ino), inode.encode()));
        if let Some(counters) = counters {
            counters.flush(self.writer, |key, value| map.put(key, value));
        }
    }

    /// The counters, read from the map if need be.
    pub(super) fn counters(&mut self) -> Answer<&mut Counters> {
        if self.counters.is_none() {
            self.counters = Some(Counters::read(&self.map.view(), self.writer)?);
        }
        self.counters.as_mut().ok_or_else(|| Errno::EIO.into())
    }

    pub(super) fn usage(&mut self) -> Answer<Usage> {
        let dirty = self.dirty_bytes;
        let counters = self.counters()?;
        Ok(Usage {
            files: counters.files,
            bytes: counters.bytes + dirty,
        })
    }

    /// Sets content and change time.
    pub(super) fn stamp(&mut self, ino: Ino, now: Time) {
        let inode = self.change(ino);
        inode.mtime = now;
        inode.ctime = now;
    }
}
