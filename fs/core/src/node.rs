//! A tree node: a run of entries of the ordered map, or of references to such runs.
//!
//! Layout: `2 ‖ level u8 ‖ count u16`, then the entries. Level 0: `klen u16 ‖ vlen u16 ‖ key ‖ value`. Above: `klen u16
//! ‖ key ‖ reference41`, the key being the last one below. Invariant: a `Node` decoded from bytes encodes to the same
//! bytes: keys rise strictly, all records known here are canonical, nothing is left over. Called by the tree and by
//! node caches.

use bytes::Bytes;
use sealdrive_proto::limits::{MAX_NODE, MAX_VALUE};

use crate::record::{self, KeyRef, MAX_KEY};
use crate::reference::Reference;

/// Highest level a node may have. Every inner node but the last of its level has two children or more, so a tree of
/// 2^32 leaves is lower than this.
pub const MAX_LEVEL: u8 = 32;
/// Leaf length aimed at, bytes. Records compress well: a shorter leaf packs to less than the smallest size bucket
/// ([`MIN_BUCKET`](sealdrive_proto::limits::MIN_BUCKET)), and what an edit sends of it is mostly padding. A longer one
/// is rewritten whole for one record.
pub const MEAN_LEAF: u64 = 10 << 10;
/// Length aimed at for nodes above the leaves, bytes. They are mostly hashes and do not compress, so they fill their
/// buckets at any length, and every edit rewrites one on each level: shorter than leaves.
pub const MEAN_INNER: u64 = 6 << 10;

const VERSION: u8 = 2;
const HEAD: usize = 4;

/// Bytes that are no canonical node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadNode {
    /// Not what any program of this format writes.
    #[error("damaged tree node: {0}")]
    Damaged(&'static str),
    /// Written by a program of another format, or the first byte is damaged.
    #[error("tree node of version {0}, and this program reads version {known} only", known = VERSION)]
    Version(u8),
}

/// A decoded node: its bytes and where each entry begins.
pub struct Node {
    bytes: Bytes,
    level: u8,
    /// Start of every entry, and the end of the last.
    starts: Box<[u16]>,
}

impl Node {
    /// Reads a node strictly.
    pub fn decode(bytes: Bytes) -> Result<Self, BadNode> {
        if bytes.len() > MAX_NODE {
            return Err(BadNode::Damaged("too long"));
        }
        let &[version, level, low, high, ..] = &bytes[..] else {
            return Err(BadNode::Damaged("short"));
        };
        if version != VERSION {
            return Err(BadNode::Version(version));
        }
        if level > MAX_LEVEL {
            return Err(BadNode::Damaged("level"));
        }
        let count = usize::from(u16::from_le_bytes([low, high]));
        if count > MAX_NODE / 4 || (count == 0 && level > 0) {
            return Err(BadNode::Damaged("count"));
        }
        let mut starts = Vec::with_capacity(count + 1);
        let mut at = HEAD;
        for _ in 0..count {
            starts.push(at as u16);
            at = entry_end(&bytes, level, at).ok_or(BadNode::Damaged("entry"))?;
        }
        starts.push(at as u16);
        if at != bytes.len() {
            return Err(BadNode::Damaged("left over"));
        }
        let node = Self {
            bytes,
            level,
            starts: starts.into_boxed_slice(),
        };
        node.check()?;
        Ok(node)
    }

    /// 0 for a leaf.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Only the leaf of an empty map has no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The encoded node.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Memory held, bytes: for the budget of a cache.
    pub fn cost(&self) -> usize {
        self.bytes.len() + 2 * self.starts.len() + size_of::<Self>()
    }

    /// Key of entry `index`. Panics if there is none, as slices do.
    pub fn key(&self, index: usize) -> &[u8] {
        self.split(index).0
    }

    /// Value of entry `index`: a record on level 0, 41 bytes of reference above.
    pub fn value(&self, index: usize) -> &[u8] {
        self.split(index).1
    }

    /// The last key, which is how the level above names this node.
    pub fn last_key(&self) -> Option<&[u8]> {
        self.len().checked_sub(1).map(|last| self.key(last))
    }

    /// Reference of child `index`; `None` in a leaf.
    pub fn child(&self, index: usize) -> Option<Reference> {
        if self.level == 0 {
            None
        } else {
            Reference::decode(self.value(index))
        }
    }

    /// All children, left to right; none for a leaf. What a background prefetch walks.
    pub fn children(&self) -> impl Iterator<Item = Reference> + '_ {
        (0..self.len()).map_while(|index| self.child(index))
    }

    /// Index of the first entry whose key is not below `key`; `len` if all are.
    pub fn search(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    fn split(&self, index: usize) -> (&[u8], &[u8]) {
        let entry =
            &self.bytes[usize::from(self.starts[index])..usize::from(self.starts[index + 1])];
        let key_len = usize::from(u16::from_le_bytes([entry[0], entry[1]]));
        entry[entry_head(self.level)..].split_at(key_len)
    }

    fn check(&self) -> Result<(), BadNode> {
        for index in 0..self.len() {
            let (key, value) = self.split(index);
            if index > 0 && self.key(index - 1) >= key {
                return Err(BadNode::Damaged("order of keys"));
            }
            let sound = match self.level {
                0 => record::check(key, value).is_ok(),
                _ => {
                    KeyRef::parse(key).is_ok()
                        && Reference::decode(value)
                            .is_some_and(|r| r.plain_len as usize <= MAX_NODE)
                }
            };
            if !sound {
                return Err(BadNode::Damaged("record"));
            }
        }
        Ok(())
    }
}

/// Level and size only: the bytes are names.
impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Node(level {}, {} entries, {} B)",
            self.level,
            self.len(),
            self.bytes.len()
        )
    }
}

/// A node that is being filled, left to right.
pub(crate) struct NodeBuilder {
    level: u8,
    count: u16,
    bytes: Vec<u8>,
    /// Where the last entry begins.
    last: usize,
}

impl NodeBuilder {
    pub(crate) fn new(level: u8) -> Self {
        Self {
            level,
            count: 0,
            bytes: Vec::from([VERSION, level, 0, 0]),
            last: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether an entry of this size no longer fits.
    pub(crate) fn overflows(&self, key: &[u8], value: &[u8]) -> bool {
        self.bytes.len() + entry_len(self.level, key, value) > MAX_NODE
    }

    /// Appends an entry. Panics if keys do not rise, a part is too long or the node overflows: nothing wrong may be
    /// written.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) {
        assert!(
            key.len() <= MAX_KEY && value.len() <= MAX_VALUE && !self.overflows(key, value),
            "entry does not fit"
        );
        assert!(
            self.last_key().is_none_or(|last| last < key),
            "keys must rise"
        );
        self.last = self.bytes.len();
        self.bytes
            .extend_from_slice(&(key.len() as u16).to_le_bytes());
        if self.level == 0 {
            self.bytes
                .extend_from_slice(&(value.len() as u16).to_le_bytes());
        } else {
            assert_eq!(value.len(), Reference::LEN, "an inner entry is a reference");
        }
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.count += 1;
    }

    pub(crate) fn last_key(&self) -> Option<&[u8]> {
        let entry = self.bytes.get(self.last..).filter(|_| self.count > 0)?;
        let key_len = usize::from(u16::from_le_bytes([entry[0], entry[1]]));
        Some(&entry[entry_head(self.level)..][..key_len])
    }

    /// The node's bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes[2..HEAD].copy_from_slice(&self.count.to_le_bytes());
        self.bytes
    }
}

/// Node length aimed at on this level, bytes.
pub fn mean_len(level: u8) -> u64 {
    if level == 0 { MEAN_LEAF } else { MEAN_INNER }
}

/// Encoded length of an entry.
pub(crate) fn entry_len(level: u8, key: &[u8], value: &[u8]) -> usize {
    entry_head(level) + key.len() + value.len()
}

fn entry_head(level: u8) -> usize {
    if level == 0 { 4 } else { 2 }
}

/// Where the entry that begins at `at` ends, if it lies within the bytes.
fn entry_end(bytes: &[u8], level: u8, at: usize) -> Option<usize> {
    let number = |at: usize| {
        Some(usize::from(u16::from_le_bytes(
            bytes.get(at..at + 2)?.try_into().ok()?,
        )))
    };
    let key_len = number(at)?;
    let value_len = if level == 0 {
        number(at + 2)?
    } else {
        Reference::LEN
    };
    let end = at + entry_head(level) + key_len + value_len;
    (end <= bytes.len()).then_some(end)
}
