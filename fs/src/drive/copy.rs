//! copy_file_range(2): extents are copied, not bytes.
//!
//! Invariant: what is copied is what a read at that moment would give. Set-id bits are the kernel's business here and
//! in fallocate: it sends a setattr of its own. Called by the kernel's border.

use sealdrive_core::extent;
use sealdrive_core::record::{Ino, MAX_FILE, Time};

use super::Drive;
use super::errno::{Answer, Errno};
use super::file::Content;
use super::gate::Need;

/// Most bytes one call copies: keeps a call within milliseconds; the caller comes back for the rest.
const COPY_AT_ONCE: u64 = 1 << 30;
/// Most bytes not yet sealed that one call copies: they count against the dirty budget a second time.
const COPY_DIRTY: u64 = 16 << 20;

impl Drive {
    /// Copies up to `len` bytes; returns how many. Fewer is no error, 0 is the end of the source.
    pub fn copy_range(
        &self,
        from: Ino,
        from_off: u64,
        to: Ino,
        to_off: u64,
        len: u64,
        now: Time,
    ) -> Answer<u64> {
        let s = &mut *self.enter(Need::Data)?;
        let source_size = s.load_file(from)?.inode.size;
        s.load_file(to)?;
        let len = len
            .min(COPY_AT_ONCE)
            .min(source_size.saturating_sub(from_off));
        if to_off.checked_add(len).is_none_or(|end| end > MAX_FILE) {
            return Err(Errno::EFBIG.into());
        }
        if from == to && from_off < to_off + len && to_off < from_off + len {
            return Err(Errno::EINVAL.into());
        }
        if len == 0 {
            return Ok(0);
        }
        let mut content = s.content(from, from_off, from_off + len)?;
        let mut dirty = 0;
        let keep = content.iter().position(|(_, piece)| {
            if let Content::Dirty(bytes) = piece {
                dirty += bytes.len() as u64;
            }
            dirty > COPY_DIRTY
        });
        let len = match keep {
            Some(first) if first > 0 => {
                let end = content[first].0;
                content.truncate(first);
                end - from_off
            }
            _ => len,
        };
        let to_end = to_off + len;
        let (allocated, edits) = {
            let allocated = s.load(to)?.inode.allocated;
            s.plan(to, |txn| {
                let mut allocated = allocated - extent::punch(txn, to, to_off, len)?.min(allocated);
                for (off, piece) in &content {
                    if let Content::Placed(placed) = piece {
                        let change = extent::put(txn, to, off - from_off + to_off, placed)?;
                        allocated = change.applied_to(allocated);
                    }
                }
                Ok(allocated)
            })?
        };
        s.apply_of(to, edits);
        s.set_allocated(to, allocated);
        s.drop_dirty(to, to_off, to_end);
        for (off, piece) in content {
            if let Content::Dirty(bytes) = piece {
                let version = s.next_version();
                s.dirty_bytes += bytes.len() as u64;
                s.granted = s.granted.saturating_sub(bytes.len() as u64);
                s.dirty.entry(to).or_default().insert(
                    off - from_off + to_off,
                    bytes,
                    version,
                    false,
                );
            }
        }
        let version = s.next_version();
        s.wrote(to, to_end, version, Some(now));
        s.done();
        self.announce(s);
        Ok(len)
    }
}
