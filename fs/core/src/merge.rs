//! The merge: sorted edits into a tree, level by level, touching only the nodes on the edited paths and the neighbours
//! whose borders move.
//!
//! Invariant: *incremental ≡ rebuild*. Where a level is cut into nodes depends on its entries alone, never on the order
//! in which they came, so the same map always has the same root. Called by the checkpoint.
//!
//! The rule, per level and left to right: a node ends after an entry that [`ends_node`] picks (above the leaves: if it
//! has two entries by then, so that every level is at most half as long as the one below), or before an entry that
//! would take it over `MAX_NODE`. The first level with a single node is the root. To edit a level we start at a border
//! that the edit cannot move, feed old entries and edits through the rule, and stop at the first old border that is a
//! border again.

use std::iter::Peekable;
use std::sync::Arc;

use bytes::Bytes;

use crate::node::{Node, NodeBuilder, entry_len, mean_len};
use crate::record::{Key, MAX_KEY};
use crate::reference::Reference;
use crate::tree::{self, Cursor, Nodes, Root, TreeError};

/// Nodes just read that a new node is compared with, so that an unchanged one is not stored again.
const COMPARED: usize = 3;

/// Applies edits, which must rise strictly by key (`None` deletes), and returns the new root.
///
/// `root` is `None` for the empty map. `put` stores a node's plaintext and names it; nodes that did not change are not
/// put again, and in rare cases (a tree that becomes lower) a node is put that nothing refers to. Works in memory
/// proportional to the height of the tree and the number of new nodes. On `Missing` the caller fetches the node and
/// calls again with the same edits; [`wanted`] tells beforehand what most of them need. `E` is whatever error `put`
/// has.
pub fn apply<E, K, V>(
    nodes: &dyn Nodes,
    root: Option<&Root>,
    edits: impl IntoIterator<Item = (K, Option<V>)>,
    node_key: &[u8; 32],
    put: &mut dyn FnMut(&[u8]) -> Result<Reference, E>,
) -> Result<Root, E>
where
    E: From<TreeError>,
    K: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    let mut merge = Merge {
        nodes,
        node_key,
        put,
        newest: Vec::new(),
    };
    let Some(root) = root else {
        let entries = merge.build(
            0,
            edits
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?))),
        )?;
        return merge.finish(1, entries);
    };
    let top = tree::load_root(nodes, root).map_err(E::from)?;
    let mut changes = merge.rewrite(0, root, edits.into_iter().peekable())?;
    for level in 1..top.level() {
        changes = merge.rewrite(level, root, changes.into_iter().peekable())?;
    }
    if changes.is_empty() {
        return Ok(*root);
    }
    let old = match top.level() {
        0 => Vec::from_iter(
            top.last_key()
                .map(|key| (Key::border(&[key]), Child::from(root.0))),
        ),
        _ => (0..top.len())
            .filter_map(|at| Some((Key::border(&[top.key(at)]), Child::from(top.child(at)?))))
            .collect(),
    };
    merge.finish(top.level().max(1), overlay_of(old, changes))
}

/// Whether the rule ends a node after this entry: true for one byte in [`mean_len`] on average, whatever stands around
/// it.
pub fn ends_node(node_key: &[u8; 32], level: u8, key: &[u8], entry_len: usize) -> bool {
    let mut input = [0; 1 + MAX_KEY];
    input[0] = level;
    input[1..=key.len()].copy_from_slice(key);
    let hash = blake3::keyed_hash(node_key, &input[..=key.len()]);
    let (head, _) = hash
        .as_bytes()
        .split_first_chunk::<8>()
        .unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*head) < (entry_len as u64).saturating_mul(u64::MAX / mean_len(level))
}

/// Nodes not in memory on the paths to `keys` (rising), at most `limit`: fetch them together instead of one per
/// `Missing`. One call finds one level of what is missing, so it is called until the answer is empty.
pub fn wanted<K: AsRef<[u8]>>(
    nodes: &dyn Nodes,
    root: &Root,
    keys: impl IntoIterator<Item = K>,
    limit: usize,
) -> Result<Vec<Reference>, TreeError> {
    let mut found: Vec<Reference> = Vec::new();
    let mut missing_to: Option<Key> = None;
    let mut keys = keys.into_iter().peekable();
    while let Some(key) = keys.next_if(|_| found.len() < limit) {
        if missing_to
            .as_ref()
            .is_some_and(|to| key.as_ref() <= to.as_bytes())
        {
            continue;
        }
        match Cursor::seek(nodes, root, key.as_ref(), 0) {
            // The keys of a leaf that is there are passed over without walking the path again.
            Ok(cursor) => missing_to = cursor.node().last_key().map(|last| Key::border(&[last])),
            Err(TreeError::Missing(reference)) => {
                if found.last() != Some(&reference) {
                    found.push(reference);
                }
            }
            Err(damaged) => return Err(damaged),
        }
    }
    Ok(found)
}

/// A node as an entry of the level above: its last key and its reference.
type Entry = (Key, Child);
/// A change to the entries of a level.
type Change = (Key, Option<Child>);

/// A reference together with the bytes it has in a node.
struct Child {
    reference: Reference,
    bytes: [u8; Reference::LEN],
}

impl From<Reference> for Child {
    fn from(reference: Reference) -> Self {
        Self {
            reference,
            bytes: reference.encode(),
        }
    }
}

impl AsRef<[u8]> for Child {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

struct Merge<'m, E> {
    nodes: &'m dyn Nodes,
    node_key: &'m [u8; 32],
    put: &'m mut dyn FnMut(&[u8]) -> Result<Reference, E>,
    /// The newest node put, per level: a level's only node is looked at again when the tree becomes lower.
    newest: Vec<Option<(Reference, Bytes)>>,
}

impl<E: From<TreeError>> Merge<'_, E> {
    /// Cuts a level from nothing.
    fn build<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        level: u8,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Vec<Entry>, E> {
        let mut run = Run::new(level);
        for (key, value) in entries {
            run.feed(self, key.as_ref(), value.as_ref())?;
        }
        run.flush(self)?;
        Ok(run.made)
    }

    /// Builds upwards from the entries of `level` until one node is left, then steps down while that node has one
    /// child.
    fn finish(&mut self, mut level: u8, mut entries: Vec<Entry>) -> Result<Root, E> {
        while entries.len() > 1 {
            entries = self.build(level, entries)?;
            level += 1;
        }
        let Some((
            _,
            Child {
                reference: mut only,
                ..
            },
        )) = entries.pop()
        else {
            return Ok(Root((self.put)(&NodeBuilder::new(0).finish())?));
        };
        loop {
            let node = self.look(&only)?;
            match node.child(0) {
                Some(child) if node.len() == 1 => only = child,
                _ => return Ok(Root(only)),
            }
        }
    }

    /// A node put just now or one of the old tree.
    fn look(&self, reference: &Reference) -> Result<Arc<Node>, E> {
        match self
            .newest
            .iter()
            .flatten()
            .find(|(newest, _)| newest == reference)
        {
            Some((_, bytes)) => match Node::decode(bytes.clone()) {
                Ok(node) => Ok(Arc::new(node)),
                Err(_) => Err(TreeError::Damaged(*reference).into()),
            },
            None => self
                .nodes
                .get(reference)
                .map_err(|missing| TreeError::from(missing).into()),
        }
    }

    /// Edits one level of the old tree and returns what changes in the level above.
    fn rewrite<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        level: u8,
        root: &Root,
        mut edits: Peekable<impl Iterator<Item = (K, Option<V>)>>,
    ) -> Result<Vec<Change>, E> {
        let mut changes = Vec::new();
        let mut done: Option<Key> = None;
        while let Some((key, _)) = edits.peek() {
            let mut cursor =
                Cursor::seek(self.nodes, root, key.as_ref(), level).map_err(E::from)?;
            self.step_back(&mut cursor, key.as_ref(), done.as_ref())
                .map_err(E::from)?;
            let mut run = Run::new(level);
            run.cover(self, &mut cursor, &mut edits)?;
            done = run.gone.last().map(|(key, _)| key.clone()).or(done);
            changes.extend(run.into_changes());
        }
        Ok(changes)
    }

    /// The first entry of a node decides whether the node before it was full. If it may change, the run begins one node
    /// earlier, unless that one ends by its content or was dealt with by the run before.
    fn step_back(
        &self,
        cursor: &mut Cursor<'_>,
        key: &[u8],
        done: Option<&Key>,
    ) -> Result<(), TreeError> {
        let node = Arc::clone(cursor.node());
        if node.is_empty() || key > node.key(0) || !cursor.prev_node()? {
            return Ok(());
        }
        let before = cursor.node();
        let dealt_with = done.is_some_and(|done| {
            before
                .last_key()
                .is_some_and(|last| last <= done.as_bytes())
        });
        if dealt_with || self.ends_by_content(before) {
            cursor.next_node()?;
        }
        Ok(())
    }

    fn ends_by_content(&self, node: &Node) -> bool {
        let Some(last) = node.len().checked_sub(1) else {
            return false;
        };
        let (key, level) = (node.key(last), node.level());
        (level == 0 || last > 0)
            && ends_node(
                self.node_key,
                level,
                key,
                entry_len(level, key, node.value(last)),
            )
    }
}

/// A stretch of one level that is being cut anew.
struct Run {
    level: u8,
    builder: NodeBuilder,
    /// The old nodes covered.
    gone: Vec<Entry>,
    /// The new nodes.
    made: Vec<Entry>,
    /// The old nodes covered last.
    compared: Vec<(Arc<Node>, Reference)>,
}

impl Run {
    fn new(level: u8) -> Self {
        Self {
            level,
            builder: NodeBuilder::new(level),
            gone: Vec::new(),
            made: Vec::new(),
            compared: Vec::new(),
        }
    }

    /// Feeds the node at the cursor and those after it, with the edits that fall into them, until borders coincide.
    fn cover<E: From<TreeError>, K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        merge: &mut Merge<'_, E>,
        cursor: &mut Cursor<'_>,
        edits: &mut Peekable<impl Iterator<Item = (K, Option<V>)>>,
    ) -> Result<(), E> {
        loop {
            let node = Arc::clone(cursor.node());
            let last = cursor.at_last_node();
            let mine = |key: &[u8]| last || node.last_key().is_some_and(|last| key <= last);
            if self.meets_border(merge, &node, edits.peek().map(|(key, _)| key.as_ref()))?
                && !edits.peek().is_some_and(|(key, _)| mine(key.as_ref()))
            {
                return Ok(());
            }
            self.note(&node, cursor.reference());
            let mut index = 0;
            loop {
                let old = (index < node.len()).then(|| node.key(index));
                match edits.next_if(|(key, _)| {
                    mine(key.as_ref()) && old.is_none_or(|old| key.as_ref() <= old)
                }) {
                    Some((key, value)) => {
                        index += usize::from(old == Some(key.as_ref()));
                        if let Some(value) = value {
                            self.feed(merge, key.as_ref(), value.as_ref())?;
                        }
                    }
                    None => match old {
                        Some(key) => {
                            self.feed(merge, key, node.value(index))?;
                            index += 1;
                        }
                        None => break,
                    },
                }
            }
            if last {
                return self.flush(merge);
            }
            // Empty means cut by content, which what follows cannot change.
            if self.builder.is_empty() {
                return Ok(());
            }
            cursor.next_node().map_err(E::from)?;
        }
    }

    /// Whether the beginning of an old node, after the first of the run, is a border again: its first entry stays and
    /// does not fit into what is being built.
    fn meets_border<E: From<TreeError>>(
        &mut self,
        merge: &mut Merge<'_, E>,
        node: &Node,
        edit: Option<&[u8]>,
    ) -> Result<bool, E> {
        if self.builder.is_empty() || node.is_empty() || edit.is_some_and(|key| key <= node.key(0))
        {
            return Ok(false);
        }
        let full = self.builder.overflows(node.key(0), node.value(0));
        if full {
            self.flush(merge)?;
        }
        Ok(full)
    }

    fn feed<E: From<TreeError>>(
        &mut self,
        merge: &mut Merge<'_, E>,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), E> {
        if self.builder.overflows(key, value) {
            self.flush(merge)?;
        }
        self.builder.push(key, value);
        let full_enough = self.level == 0 || self.builder.len() > 1;
        if full_enough
            && ends_node(
                merge.node_key,
                self.level,
                key,
                entry_len(self.level, key, value),
            )
        {
            self.flush(merge)?;
        }
        Ok(())
    }

    /// Ends the node being built, if it has any entry.
    fn flush<E: From<TreeError>>(&mut self, merge: &mut Merge<'_, E>) -> Result<(), E> {
        let builder = std::mem::replace(&mut self.builder, NodeBuilder::new(self.level));
        let Some(last) = builder.last_key().map(|key| Key::border(&[key])) else {
            return Ok(());
        };
        let bytes = builder.finish();
        let unchanged = self
            .compared
            .iter()
            .find(|(node, _)| node.bytes()[..] == bytes[..]);
        let reference = match unchanged {
            Some((_, reference)) => *reference,
            None => {
                let reference = (merge.put)(&bytes)?;
                assert_eq!(
                    reference.plain_len as usize,
                    bytes.len(),
                    "a node was named by something else"
                );
                let level = usize::from(self.level);
                merge.newest.resize(merge.newest.len().max(level + 1), None);
                merge.newest[level] = Some((reference, Bytes::from(bytes)));
                reference
            }
        };
        self.made.push((last, reference.into()));
        Ok(())
    }

    fn note(&mut self, node: &Arc<Node>, reference: Reference) {
        self.gone.extend(
            node.last_key()
                .map(|key| (Key::border(&[key]), reference.into())),
        );
        if self.compared.len() == COMPARED {
            self.compared.remove(0);
        }
        self.compared.push((Arc::clone(node), reference));
    }

    /// The old nodes go, the new ones come; a new one under an old key replaces it, and one that is the same is no
    /// change.
    fn into_changes(self) -> Vec<Change> {
        let mut gone = self.gone.into_iter().peekable();
        let mut changes = Vec::with_capacity(gone.len() + self.made.len());
        for (key, child) in self.made {
            while let Some((old, _)) = gone.next_if(|(old, _)| *old < key) {
                changes.push((old, None));
            }
            match gone.next_if(|(old, _)| *old == key) {
                Some((_, old)) if old.reference == child.reference => {}
                _ => changes.push((key, Some(child))),
            }
        }
        changes.extend(gone.map(|(old, _)| (old, None)));
        changes
    }
}

/// Entries with changes applied; both rise by key.
fn overlay_of(old: Vec<Entry>, changes: Vec<Change>) -> Vec<Entry> {
    let mut old = old.into_iter().peekable();
    let mut new = Vec::with_capacity(old.len() + changes.len());
    for (key, change) in changes {
        while let Some(entry) = old.next_if(|(old, _)| *old < key) {
            new.push(entry);
        }
        old.next_if(|(old, _)| *old == key);
        new.extend(change.map(|child| (key, child)));
    }
    new.extend(old);
    new
}
