//! How far what was last done to a file has come: dirty, in the journal, in a checkpoint, in a commit.
//!
//! Invariant: never says more than is durable. A log that was taken counts only once it is known to be on disk, and a
//! file is in a commit only if every one of its records (inode, names, attributes, extents; of a directory, its
//! entries) is the same in the commit's tree. Called by the engine for `status` and for the state attribute.

use sealdrive_core::diff::differs_in;
use sealdrive_core::overlay::Overlay;
use sealdrive_core::record::{FileKind, Ino, Key, KeyRef, NAME_MAX, ino_of};
use sealdrive_core::tree::{Root, TreeError};

use super::errno::{Answer, DriveError, Errno};
use super::state::State;
use super::{Drive, FileState, Progress};

/// One name of a directory, for a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The name.
    pub name: Vec<u8>,
    /// The inode it leads to.
    pub ino: Ino,
    /// What that is.
    pub kind: FileKind,
}

impl Drive {
    /// The newest commit on the server has this tree.
    pub fn set_committed(&self, root: Option<Root>) {
        self.peek().map.committed = root;
    }

    /// How far a file has come.
    pub fn state_of(&self, ino: Ino) -> Answer<FileState> {
        let s = &mut *self.lock()?;
        let kind = s.load(ino)?.inode.kind;
        let progress = s.progress_of(ino)?;
        s.map.nodes.settle();
        Ok(FileState {
            kind,
            progress,
            root: s.map.root,
            open_for_write: s.inodes.holders(ino).writers > 0,
            dirty_bytes: s.dirty_of(ino),
        })
    }

    /// Whether a handle or mapping that may write to the file is open: then the kernel may hold newer bytes than this.
    pub fn is_open_for_write(&self, ino: Ino) -> bool {
        self.peek().inodes.holders(ino).writers > 0
    }

    /// All files of which that is so.
    pub fn open_for_write(&self) -> Vec<Ino> {
        self.peek().inodes.open_for_write()
    }

    /// Inodes with a change that is in no checkpoint; some may be gone.
    pub fn touched(&self) -> Vec<Ino> {
        let s = self.peek();
        let records = s.map.active.iter().map(|(key, _)| ino_of(key));
        let mut touched: Vec<Ino> = records.chain(s.dirty.keys().copied()).collect();
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// The names an inode has: in which directory, and which.
    pub fn links(&self, ino: Ino) -> Answer<Vec<(Ino, Vec<u8>)>> {
        let s = &mut *self.lock()?;
        s.load(ino)?;
        let found = s.map.view().collect(&Key::backrefs(ino), usize::MAX)?;
        s.map.nodes.settle();
        let links = found.iter().filter_map(|(key, _)| match key.parse() {
            Ok(KeyRef::Backref(_, parent, name)) => Some((parent, name.to_vec())),
            _ => None,
        });
        Ok(links.collect())
    }

    /// At most `limit` names of a directory, those after `after`.
    pub fn names(&self, ino: Ino, after: Option<&[u8]>, limit: usize) -> Answer<Vec<Name>> {
        let s = &mut *self.lock()?;
        s.load_dir(ino)?;
        debug_assert!(after.is_none_or(|name| name.len() <= NAME_MAX));
        let range = match after {
            Some(name) => Key::dentries_after(ino, name),
            None => Key::dentries(ino),
        };
        let found = s.map.view().collect(&range, limit)?;
        s.map.nodes.settle();
        found
            .into_iter()
            .map(|(key, value)| {
                let entry = sealdrive_core::record::Dentry::decode(&value)?;
                Ok(Name {
                    name: key.as_bytes()[9..].to_vec(),
                    ino: entry.ino,
                    kind: entry.kind,
                })
            })
            .collect()
    }
}

impl State {
    fn progress_of(&self, ino: Ino) -> Answer<Progress> {
        let records = Key::all_of(ino);
        let unsafe_bytes = || {
            let map = self.dirty.get(&ino);
            map.is_some_and(|map| map.iter().any(|(_, range)| !range.safe))
        };
        // Nothing of a file without a name is ever kept.
        let nameless = self.orphans.contains_key(&ino);
        let unlogged = |overlay: &Overlay| overlay.range(&records).next().is_some();
        if nameless
            || unsafe_bytes()
            || self.inodes.is_stale(ino)
            || self.in_log.contains(&ino)
            || unlogged(&self.map.unlogged)
            || unlogged(&self.map.unlogged_frozen)
        {
            return Ok(Progress::Dirty);
        }
        if self.dirty_of(ino) > 0 || self.map.active.range(&records).next().is_some() {
            return Ok(Progress::Journaled);
        }
        let frozen = self.map.frozen.as_ref();
        if frozen.is_some_and(|frozen| frozen.range(&records).next().is_some()) {
            return Ok(Progress::Checkpointing);
        }
        let (Some(committed), Some(root)) = (&self.map.committed, &self.map.root) else {
            return Ok(Progress::InTree);
        };
        match differs_in(&self.map.nodes, committed, root, &records) {
            Ok(false) => Ok(Progress::InCommit),
            Ok(true) => Ok(Progress::InTree),
            Err(TreeError::Missing(reference)) => Err(DriveError::Missing(reference)),
            Err(TreeError::Damaged(_)) => Err(Errno::EIO.into()),
        }
    }
}
