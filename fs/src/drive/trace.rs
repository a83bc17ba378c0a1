//! From content back to names: the path of an inode, and every extent of the drive.
//!
//! Invariant: reads only, a bounded piece under each lock. Called when something is lost, to tell a person which file.

use std::ops::ControlFlow;

use bytes::Bytes;
use sealdrive_core::record::{Extent, Ino, Key, KeyRange, KeyRef, ROOT};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::Nodes as _;

use super::Drive;
use super::errno::Answer;

/// Records looked at under one lock.
const PIECE: usize = 1000;
/// Directories above a file before its path is given up: a loop cannot be, but damage can claim one.
const DEPTH: usize = 4096;

impl Drive {
    /// A path of the inode from the drive's root, without a leading slash. None if it has no name any more.
    pub fn path_of(&self, ino: Ino) -> Answer<Option<Vec<u8>>> {
        let s = self.lock()?;
        let view = s.map.view();
        let (mut at, mut parts) = (ino, Vec::new());
        while at != ROOT {
            let found = view.collect(&Key::backrefs(at), 1)?;
            let Some((key, _)) = found.first() else {
                return Ok(None);
            };
            let Ok(KeyRef::Backref(_, parent, name)) = key.parse() else {
                return Ok(None);
            };
            parts.push(name.to_vec());
            at = parent;
            if parts.len() > DEPTH {
                return Ok(None);
            }
        }
        parts.reverse();
        Ok(Some(parts.join(&b'/')))
    }

    /// Shows the chunks that extents name, from the key `after` on (empty: from the first). Answers where to go on, or
    /// `None` at the end.
    pub(crate) fn each_extent(
        &self,
        after: &[u8],
        mut each: impl FnMut(Ino, u64, &Reference),
    ) -> Answer<Option<Vec<u8>>> {
        let s = self.lock()?;
        let range = KeyRange {
            start: Key::border(&[after]),
            end: Key::border(&[&[0xff; 9]]),
        };
        let (mut seen, mut next) = (0, None);
        s.map.view().range(&range, |key, value| {
            if seen == PIECE {
                next = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            seen += 1;
            if let Ok(KeyRef::Extent(ino, offset)) = KeyRef::parse(key)
                && let Ok(Extent::Chunk { reference, .. }) = Extent::decode(value)
            {
                each(ino, offset, &reference);
            }
            ControlFlow::Continue(())
        })?;
        Ok(next)
    }

    /// Shows the chunks that extents name which are in no checkpoint yet.
    pub(crate) fn each_unsaved_extent(&self, mut each: impl FnMut(Ino, u64, &Reference)) {
        for (key, value) in self.peek().map.active.iter() {
            if let (Ok(KeyRef::Extent(ino, offset)), Some(value)) = (KeyRef::parse(key), value)
                && let Ok(Extent::Chunk { reference, .. }) = Extent::decode(value)
            {
                each(ino, offset, &reference);
            }
        }
    }

    /// The plaintext of a tree node, if it is in memory.
    pub(crate) fn node_in_memory(&self, reference: &Reference) -> Option<Bytes> {
        let node = self.peek().map.nodes.get(reference).ok()?;
        Some(node.bytes().clone())
    }
}
