//! Records: the entries of a drive's ordered map, as typed keys and typed values.
//!
//! Invariant: every encoding is canonical. Whatever decodes, encodes to the same bytes; anything else is refused,
//! because a second spelling of one state would give it a second tree root. Called by the tree, the extents, the
//! journal and the drive.

pub mod dentry;
pub mod extent;
mod fields;
pub mod inode;
pub mod key;
pub mod xattr;

use std::sync::Arc;

pub use dentry::Dentry;
pub use extent::{Extent, INLINE_MAX};
pub use inode::{FileKind, Inode, TARGET_MAX, Time};
pub use key::{Ino, Key, KeyRange, KeyRef, MAX_KEY, NAME_MAX, ROOT, ino_of, valid_name};
pub use xattr::{XATTR_DIRECT_MAX, Xattr};

use sealdrive_proto::limits::MAX_VALUE;

/// The bytes of one record. Shared and two words wide: hundreds of thousands wait in an overlay, and each stands in the
/// log too.
pub type Value = Arc<[u8]>;

/// Longest file or file offset, bytes: what the kernel's signed 64-bit offset can name.
pub const MAX_FILE: u64 = i64::MAX as u64;

/// Bytes that are not a canonical record. Says which kind of record and nothing of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("damaged {0} record")]
pub struct BadRecord(pub &'static str);

/// Refuses a key or value that is not canonical. Record types this version does not know pass: they are kept as they
/// are.
pub fn check(key: &[u8], value: &[u8]) -> Result<(), BadRecord> {
    if value.len() > MAX_VALUE {
        return Err(BadRecord("oversized"));
    }
    match KeyRef::parse(key)? {
        KeyRef::Inode(_) => Inode::decode(value).map(drop),
        KeyRef::Dentry(..) => Dentry::decode(value).map(drop),
        KeyRef::Xattr(..) => Xattr::decode(value).map(drop),
        KeyRef::Extent(_, offset) => {
            let len = extent::recorded_len(value)?;
            if offset.checked_add(len).is_none_or(|end| end > MAX_FILE) {
                return Err(BadRecord("extent"));
            }
            Ok(())
        }
        KeyRef::Backref(..) if !value.is_empty() => Err(BadRecord("back-reference")),
        KeyRef::Backref(..) | KeyRef::Drive(..) | KeyRef::Unknown { .. } => Ok(()),
    }
}

/// One mutation of the map.
#[derive(Clone, PartialEq, Eq)]
pub enum Edit {
    /// The key now has this value.
    Put(Key, Value),
    /// The key is gone, whether or not it was there.
    Delete(Key),
}

impl Edit {
    /// The key that changes.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }

    /// The new value; `None` for a deletion.
    pub fn value(&self) -> Option<&Value> {
        match self {
            Self::Put(_, value) => Some(value),
            Self::Delete(_) => None,
        }
    }
}

/// Prints what kind of record changes, never a name or content.
impl std::fmt::Debug for Edit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Put(key, value) => write!(f, "Put({key:?}, {} B)", value.len()),
            Self::Delete(key) => write!(f, "Delete({key:?})"),
        }
    }
}
