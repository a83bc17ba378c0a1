//! The drive's own records: the next inode number, and how much there is.
//!
//! Invariant: a number is given out once, ever. The record runs ahead of what was given out, so that after a crash that
//! lost the last operations no number the kernel has seen is given out again. Called by the drive's state.

use sealdrive_core::record::key::drive_tag;
use sealdrive_core::record::{Ino, Key, ROOT, Value};
use sealdrive_core::view::View;

use super::errno::{Answer, DriveError, Errno};

/// Numbers reserved ahead in the record.
const RESERVE: u64 = 4096;
/// `2` → inodes u64, bytes of data u64, LE.
const USAGE_TAG: u8 = 2;
/// Numbers of one writer: the top 16 bits name it.
const WRITER_SHIFT: u32 = 48;

/// Counters of the drive.
pub(super) struct Counters {
    next: Ino,
    reserved: Ino,
    /// Inodes with a name, the root included.
    pub(super) files: u64,
    /// Bytes of data of these.
    pub(super) bytes: u64,
    stale_usage: bool,
    stale_next: bool,
}

impl Counters {
    /// Reads them; a drive without them has an empty root.
    pub(super) fn read(view: &View<'_>, writer: u16) -> Answer<Self> {
        let first = (u64::from(writer) << WRITER_SHIFT) + ROOT + 1;
        let next = match view.get(&next_key(writer))? {
            Some(value) => u64_at(&value, 0)?,
            None => first,
        };
        if next < first || next >> WRITER_SHIFT != u64::from(writer) {
            return Err(Errno::EIO.into());
        }
        let (files, bytes) = match view.get(&usage_key())? {
            Some(value) => (u64_at(&value, 0)?, u64_at(&value, 8)?),
            None => (1, 0),
        };
        Ok(Self {
            next,
            reserved: next,
            files,
            bytes,
            stale_usage: false,
            stale_next: false,
        })
    }

    /// A number never given out before.
    pub(super) fn take_ino(&mut self) -> Ino {
        let ino = self.next;
        self.next += 1;
        if self.next + RESERVE / 2 > self.reserved {
            self.reserved = self.next + RESERVE;
            self.stale_next = true;
        }
        ino
    }

    /// An inode got its first name, or lost its last.
    pub(super) fn add_files(&mut self, more: i64, bytes: i64) {
        self.files = self.files.saturating_add_signed(more);
        self.bytes = self.bytes.saturating_add_signed(bytes);
        self.stale_usage = true;
    }

    /// A file's data was `before` bytes and is `after`.
    pub(super) fn add_bytes(&mut self, before: u64, after: u64) {
        if before != after {
            self.bytes = (self.bytes + after).saturating_sub(before);
            self.stale_usage = true;
        }
    }

    /// Hands out the records that changed.
    pub(super) fn flush(&mut self, writer: u16, mut put: impl FnMut(Key, Value)) {
        if std::mem::take(&mut self.stale_next) {
            put(
                next_key(writer),
                Value::from(&self.reserved.to_le_bytes()[..]),
            );
        }
        if std::mem::take(&mut self.stale_usage) {
            let both = [self.files.to_le_bytes(), self.bytes.to_le_bytes()].concat();
            put(usage_key(), Value::from(both));
        }
    }
}

fn next_key(writer: u16) -> Key {
    Key::drive(drive_tag::NEXT_INO, &writer.to_be_bytes())
}

fn usage_key() -> Key {
    Key::drive(USAGE_TAG, &[])
}

fn u64_at(value: &[u8], at: usize) -> Result<u64, DriveError> {
    let bytes = value.get(at..at + 8).and_then(|b| b.try_into().ok());
    bytes
        .map(u64::from_le_bytes)
        .ok_or_else(|| Errno::EIO.into())
}
