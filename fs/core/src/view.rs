//! A view: the drive's map as it stands now, overlays over tree. And a transaction: a view with edits of its own on
//! top.
//!
//! Invariant: the newest layer that mentions a key decides, and a deletion hides everything below it. A transaction
//! changes nothing until its edits are taken, so an operation that fails half way has done nothing. Called by the
//! drive.

use std::ops::ControlFlow;

use crate::overlay::Overlay;
use crate::record::{BadRecord, Dentry, Edit, FileKind, Ino, Inode, Key, KeyRange, Value, Xattr};
use crate::reference::Reference;
use crate::tree::{self, Cursor, Nodes, Root, TreeError};

/// Why a read of records stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Fetch this node and call again; nothing was changed.
    #[error("a tree node is not at hand")]
    Missing(Reference),
    /// A node or record is not what the format allows: an I/O error to the reader, and an event.
    #[error("the drive's tree is damaged")]
    Damaged,
}

impl From<TreeError> for ReadError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Missing(reference) => Self::Missing(reference),
            TreeError::Damaged(_) => Self::Damaged,
        }
    }
}

impl From<BadRecord> for ReadError {
    fn from(_: BadRecord) -> Self {
        Self::Damaged
    }
}

/// Most overlays over one tree: a transaction's own, the active, the frozen.
const LAYERS: usize = 3;

/// The map as it stands: overlays, newest first, over a tree.
#[derive(Clone, Copy)]
pub struct View<'a> {
    layers: [Option<&'a Overlay>; LAYERS],
    root: Option<&'a Root>,
    nodes: &'a dyn Nodes,
}

impl<'a> View<'a> {
    /// The active overlay over the frozen one over the tree. No root is an empty tree.
    pub fn new(
        active: &'a Overlay,
        frozen: Option<&'a Overlay>,
        root: Option<&'a Root>,
        nodes: &'a dyn Nodes,
    ) -> Self {
        Self {
            layers: [None, Some(active), frozen],
            root,
            nodes,
        }
    }

    /// The tree alone: how a past state is read.
    pub fn of_tree(root: &'a Root, nodes: &'a dyn Nodes) -> Self {
        Self {
            layers: [None; LAYERS],
            root: Some(root),
            nodes,
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &Key) -> Result<Option<Value>, ReadError> {
        for layer in self.layers.iter().flatten() {
            if let Some(value) = layer.get(key.as_bytes()) {
                return Ok(value.map(Value::from));
            }
        }
        match self.root {
            Some(root) => Ok(tree::get(self.nodes, root, key)?),
            None => Ok(None),
        }
    }

    /// The inode record of `ino`.
    pub fn inode(&self, ino: Ino) -> Result<Option<Inode>, ReadError> {
        self.get(&Key::inode(ino))?
            .map(|value| Inode::decode(&value))
            .transpose()
            .map_err(Into::into)
    }

    /// What `name` in directory `parent` leads to.
    pub fn dentry(&self, parent: Ino, name: &[u8]) -> Result<Option<Dentry>, ReadError> {
        self.get(&Key::dentry(parent, name))?
            .map(|value| Dentry::decode(&value))
            .transpose()
            .map_err(Into::into)
    }

    /// An extended attribute.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Xattr>, ReadError> {
        self.get(&Key::xattr(ino, name))?
            .map(|value| Xattr::decode(&value))
            .transpose()
            .map_err(Into::into)
    }

    /// Whether the directory has no entry.
    pub fn is_empty_dir(&self, ino: Ino) -> Result<bool, ReadError> {
        let mut empty = true;
        self.range(&Key::dentries(ino), |_, _| {
            empty = false;
            ControlFlow::Break(())
        })?;
        Ok(empty)
    }

    /// Lists the directory in the order of its names' bytes. Errors leave a part in `each`: collect anew after
    /// `Missing`.
    pub fn list(
        &self,
        ino: Ino,
        mut each: impl FnMut(&[u8], Ino, FileKind),
    ) -> Result<(), ReadError> {
        let mut bad = None;
        self.range(&Key::dentries(ino), |key, value| {
            match Dentry::decode(value) {
                Ok(dentry) => {
                    each(&key[9..], dentry.ino, dentry.kind);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    bad = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        bad.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Shows the live entries of a range in key order until `each` breaks. On an error some have been shown already.
    pub fn range(
        &self,
        range: &KeyRange,
        mut each: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let mut layers = self
            .layers
            .map(|layer| layer.map(|layer| layer.range(range).peekable()));
        let mut cursor = self
            .root
            .map(|root| Cursor::seek(self.nodes, root, range.start.as_bytes(), 0))
            .transpose()?;
        let end = range.end.as_bytes();
        loop {
            let below = cursor
                .as_ref()
                .and_then(Cursor::entry)
                .filter(|(key, _)| *key < end);
            let newest = layers
                .iter_mut()
                .flatten()
                .filter_map(|layer| layer.peek().map(|(key, _)| *key))
                .min();
            let (first, from_tree) = match (newest, below) {
                (None, None) => return Ok(()),
                (Some(key), Some((tree_key, _))) => (key.min(tree_key), tree_key <= key),
                (Some(key), None) => (key, false),
                (None, Some((tree_key, _))) => (tree_key, true),
            };
            let mut decided: Option<Option<&[u8]>> = None;
            for layer in layers.iter_mut().flatten() {
                if let Some((_, value)) = layer.next_if(|(key, _)| *key == first) {
                    decided.get_or_insert(value);
                }
            }
            let value = decided.unwrap_or(below.filter(|_| from_tree).map(|(_, value)| value));
            if let Some(value) = value
                && each(first, value).is_break()
            {
                return Ok(());
            }
            if from_tree && let Some(cursor) = &mut cursor {
                cursor.advance()?;
            }
        }
    }

    /// The live entries of a range, at most `limit`.
    pub fn collect(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Key, Value)>, ReadError> {
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        self.range(range, |key, value| {
            found.push((Key::border(&[key]), Value::from(value)));
            if found.len() < limit {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(found)
    }

    /// The last live entry of a range. Steps over deletions one by one, so the range should be narrow.
    pub fn last(&self, range: &KeyRange) -> Result<Option<(Key, Value)>, ReadError> {
        let mut range = range.clone();
        loop {
            let mut best: Option<(&[u8], Option<&[u8]>)> = None;
            for layer in self.layers.iter().flatten() {
                if let Some((key, value)) = layer.range(&range).next_back()
                    && best.is_none_or(|(best, _)| best < key)
                {
                    best = Some((key, value));
                }
            }
            let below = self.last_in_tree(&range)?;
            match (best, below) {
                (Some((key, value)), below)
                    if below
                        .as_ref()
                        .is_none_or(|(tree_key, _)| tree_key.as_bytes() <= key) =>
                {
                    match value {
                        Some(value) => return Ok(Some((Key::border(&[key]), Value::from(value)))),
                        None => range.end = Key::border(&[key]),
                    }
                }
                (_, below) => return Ok(below),
            }
        }
    }

    fn last_in_tree(&self, range: &KeyRange) -> Result<Option<(Key, Value)>, ReadError> {
        let Some(root) = self.root else {
            return Ok(None);
        };
        let mut cursor = Cursor::seek(self.nodes, root, range.end.as_bytes(), 0)?;
        if !cursor.retreat()? {
            return Ok(None);
        }
        let inside = cursor
            .entry()
            .filter(|(key, _)| *key >= range.start.as_bytes());
        Ok(inside.map(|(key, value)| (Key::border(&[key]), Value::from(value))))
    }
}

/// A view with edits of its own on top: reads see them at once, the drive only when they are taken.
pub struct Txn<'a> {
    base: View<'a>,
    pending: Overlay,
}

impl<'a> Txn<'a> {
    /// Begins with no edits.
    pub fn new(base: View<'a>) -> Self {
        debug_assert!(base.layers[0].is_none(), "a transaction over a transaction");
        Self {
            base,
            pending: Overlay::new(),
        }
    }

    /// The map as this transaction sees it.
    pub fn view(&self) -> View<'_> {
        let [_, active, frozen] = self.base.layers;
        View {
            layers: [Some(&self.pending), active, frozen],
            ..self.base
        }
    }

    /// Sets a key.
    pub fn put(&mut self, key: Key, value: Value) {
        self.pending.put(key, value);
    }

    /// Removes a key.
    pub fn delete(&mut self, key: Key) {
        self.pending.delete(key);
    }

    /// Sets the inode record.
    pub fn put_inode(&mut self, ino: Ino, inode: &Inode) {
        self.put(Key::inode(ino), inode.encode());
    }

    /// Edits so far.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The edits, in key order, one per key.
    pub fn finish(self) -> Vec<Edit> {
        self.pending.into_edits().collect()
    }
}
