//! Reading the tree: lookups, ranges and cursors over nodes that may not be in memory.
//!
//! Invariant: nothing is believed that a parent does not confirm: level, last key and the border to the left are
//! checked at every step down, so a node in the wrong place is damage and never another file's record. All functions
//! are pure: on `Missing` the caller fetches the node and calls again. Called by views, the merge, history and
//! prefetch.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::node::Node;
use crate::record::{Key, KeyRange, Value};
use crate::reference::Reference;

/// The root of a tree. It *is* the state of a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root(pub Reference);

/// A node that is not in memory: fetch it and call again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing(pub Reference);

/// Where decoded nodes are found: a cache that answers at once, or a loader that waits.
pub trait Nodes {
    /// The node with this reference.
    fn get(&self, reference: &Reference) -> Result<Arc<Node>, Missing>;
}

/// Why a walk stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Fetch this node and call again; nothing was changed.
    #[error("a tree node is not at hand")]
    Missing(Reference),
    /// This node (or a record in it) contradicts its parent or the format. Retrying does not help.
    #[error("a tree node is damaged")]
    Damaged(Reference),
}

impl From<Missing> for TreeError {
    fn from(Missing(reference): Missing) -> Self {
        Self::Missing(reference)
    }
}

/// The value of a key.
pub fn get(nodes: &dyn Nodes, root: &Root, key: &Key) -> Result<Option<Value>, TreeError> {
    let cursor = Cursor::seek(nodes, root, key.as_bytes(), 0)?;
    Ok(cursor
        .entry()
        .filter(|(found, _)| *found == key.as_bytes())
        .map(|(_, value)| Value::from(value)))
}

/// Shows the entries of a range in key order until `each` breaks. On `Missing` some entries have been shown already.
pub fn range(
    nodes: &dyn Nodes,
    root: &Root,
    range: &KeyRange,
    mut each: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<(), TreeError> {
    let mut cursor = Cursor::seek(nodes, root, range.start.as_bytes(), 0)?;
    while let Some((key, value)) = cursor.entry() {
        if key >= range.end.as_bytes() || each(key, value).is_break() {
            break;
        }
        cursor.advance()?;
    }
    Ok(())
}

/// Loads a root and checks what no parent can: a root above the leaves has two children or more.
pub fn load_root(nodes: &dyn Nodes, root: &Root) -> Result<Arc<Node>, TreeError> {
    let node = nodes.get(&root.0)?;
    if node.level() > 0 && node.len() < 2 {
        return Err(TreeError::Damaged(root.0));
    }
    Ok(node)
}

/// A place in one level of a tree: a path of nodes from the root down.
///
/// After `seek` it stands on the first entry not below the key. When there is none it stands behind the last entry of
/// the last node, and `entry` is `None`.
pub(crate) struct Cursor<'n> {
    nodes: &'n dyn Nodes,
    root: Reference,
    /// From the root to a node of the level asked for, each with the index taken.
    path: Vec<(Arc<Node>, usize)>,
}

impl<'n> Cursor<'n> {
    /// Stands on the first entry of `level` whose key is not below `key`. The tree must be at least that high.
    pub(crate) fn seek(
        nodes: &'n dyn Nodes,
        root: &Root,
        key: &[u8],
        level: u8,
    ) -> Result<Self, TreeError> {
        let top = load_root(nodes, root)?;
        debug_assert!(level <= top.level());
        let mut cursor = Self {
            nodes,
            root: root.0,
            path: Vec::with_capacity(usize::from(top.level() - level) + 1),
        };
        let index = top.search(key);
        cursor.path.push((top, index));
        while cursor.node().level() > level {
            cursor.clamp();
            cursor.descend(|node| node.search(key))?;
        }
        Ok(cursor)
    }

    /// Stands on the first entry of the root, whatever its level: the beginning of a walk by `enter` and `pass`.
    pub(crate) fn at_top(nodes: &'n dyn Nodes, root: &Root) -> Result<Self, TreeError> {
        let top = load_root(nodes, root)?;
        Ok(Self {
            nodes,
            root: root.0,
            path: vec![(top, 0)],
        })
    }

    /// From an entry above the leaves to the first entry of the node it names.
    pub(crate) fn enter(&mut self) -> Result<(), TreeError> {
        self.descend(|_| 0)
    }

    /// Behind the entry stood on and everything below it; up again where a node ends.
    pub(crate) fn pass(&mut self) {
        while let Some((node, index)) = self.path.last_mut() {
            *index += 1;
            if *index < node.len() || self.path.len() == 1 {
                return;
            }
            self.path.pop();
        }
    }

    /// The node of the level asked for.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.path[self.path.len() - 1].0
    }

    /// Its reference.
    pub(crate) fn reference(&self) -> Reference {
        match self
            .path
            .len()
            .checked_sub(2)
            .map(|parent| &self.path[parent])
        {
            Some((parent, index)) => parent.child(*index).unwrap_or(self.root),
            None => self.root,
        }
    }

    /// The entry stood on.
    pub(crate) fn entry(&self) -> Option<(&[u8], &[u8])> {
        let (node, index) = &self.path[self.path.len() - 1];
        (*index < node.len()).then(|| (node.key(*index), node.value(*index)))
    }

    /// To the next entry, in the next node if need be.
    pub(crate) fn advance(&mut self) -> Result<(), TreeError> {
        let last = self.path.len() - 1;
        let (node, index) = &mut self.path[last];
        if *index + 1 < node.len() {
            *index += 1;
            return Ok(());
        }
        if !self.next_node()? {
            let (node, index) = &mut self.path[last];
            *index = node.len();
        }
        Ok(())
    }

    /// To the first entry of the next node; false, and nowhere, if this is the last.
    pub(crate) fn next_node(&mut self) -> Result<bool, TreeError> {
        self.step(
            |node, index| (index + 1 < node.len()).then_some(index + 1),
            |_| 0,
        )
    }

    /// To the last entry of the node before; false, and nowhere, if this is the first.
    pub(crate) fn prev_node(&mut self) -> Result<bool, TreeError> {
        self.step(
            |_, index| index.checked_sub(1),
            |node| node.len().saturating_sub(1),
        )
    }

    /// To the entry before the one stood on (or before the end); false, and nowhere, at the very first.
    pub(crate) fn retreat(&mut self) -> Result<bool, TreeError> {
        let last = self.path.len() - 1;
        if self.path[last].1 > 0 {
            self.path[last].1 -= 1;
            return Ok(true);
        }
        self.prev_node()
    }

    /// Whether this is the last node of its level.
    pub(crate) fn at_last_node(&self) -> bool {
        self.path[..self.path.len() - 1]
            .iter()
            .all(|(node, index)| index + 1 >= node.len())
    }

    fn step(
        &mut self,
        turn: impl Fn(&Node, usize) -> Option<usize>,
        land: impl Fn(&Node) -> usize,
    ) -> Result<bool, TreeError> {
        let depth = self.path.len();
        let Some((at, index)) = (0..depth - 1)
            .rev()
            .find_map(|at| turn(&self.path[at].0, self.path[at].1).map(|index| (at, index)))
        else {
            return Ok(false);
        };
        // The old path is kept until the new one stands, so that an error leaves the cursor where it was.
        let below = self.path.split_off(at + 1);
        let before = std::mem::replace(&mut self.path[at].1, index);
        while self.path.len() < depth {
            if let Err(error) = self.descend(&land) {
                self.path.truncate(at + 1);
                self.path[at].1 = before;
                self.path.extend(below);
                return Err(error);
            }
        }
        Ok(true)
    }

    /// A key beyond the end leads to the last child.
    fn clamp(&mut self) {
        let last = self.path.len() - 1;
        let (node, index) = &mut self.path[last];
        *index = (*index).min(node.len() - 1);
    }

    /// Loads the child stood on and checks it against the path.
    fn descend(&mut self, place: impl Fn(&Node) -> usize) -> Result<(), TreeError> {
        let (parent, index) = &self.path[self.path.len() - 1];
        let reference = parent.child(*index).ok_or(TreeError::Damaged(self.root))?;
        let child = self.nodes.get(&reference)?;
        let left = self
            .path
            .iter()
            .rev()
            .find(|(_, index)| *index > 0)
            .map(|(node, index)| node.key(index - 1));
        let confirmed = child.level() + 1 == parent.level()
            && child.last_key() == Some(parent.key(*index))
            && left.is_none_or(|left| left < child.key(0));
        if !confirmed {
            return Err(TreeError::Damaged(reference));
        }
        let index = place(&child);
        self.path.push((child, index));
        Ok(())
    }
}
