//! The grammar of the journal: what makes fsync true, as bytes. Files, fdatasync and recovery order belong to the
//! engine.
//!
//! A journal is a row of segments, a segment is a header and a row of sealed records, a record is a batch of entries.
//! Invariant: reading yields a prefix of what was appended, holding all that was synced; if it cannot, it says so.
//! Called by the engine with a sealer; this module holds no key.

mod entry;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use sealdrive_proto::id::DriveId;

pub use entry::Entry;
pub use reader::{Ending, SegmentReader};
pub use writer::SegmentWriter;

use crate::local::LocalKeys;

/// Length of a segment header, bytes.
pub const HEADER_LEN: usize = 104;
/// Entries share a record up to this many bytes: small enough to seal and to read back at once. A longer entry has its
/// own.
pub const RECORD_TARGET: usize = 1 << 20;
/// Longest record, bytes. One operation is one entry and is never split; the longest known is the truncation of a file
/// of a million extents. A length field above it is noise, not a record.
pub const MAX_RECORD: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"SDJ1\x01\0\0\0";
/// `mark8 ‖ index u64 ‖ length u32` before the sealed bytes of a record.
const RECORD_HEAD: usize = 20;

/// Seals and opens records; the header and the index say where a record stands and are authenticated with it.
pub trait SealRecord {
    /// The sealed bytes of `plain`.
    fn seal(&self, header: &[u8], index: u64, plain: &[u8]) -> Vec<u8>;
    /// The plaintext, if `sealed` is what `seal` made for this very place.
    fn open(&self, header: &[u8], index: u64, sealed: &[u8]) -> Option<Bytes>;
}

impl SealRecord for LocalKeys {
    fn seal(&self, header: &[u8], index: u64, plain: &[u8]) -> Vec<u8> {
        self.seal_record(header, index, plain)
    }

    fn open(&self, header: &[u8], index: u64, sealed: &[u8]) -> Option<Bytes> {
        // Wiped when the last slice of it goes.
        self.open_record(header, index, sealed)
            .ok()
            .map(Bytes::from_owner)
    }
}

/// Why a segment cannot be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The file ends before its header was complete: it was being created when the machine stopped, and holds nothing.
    #[error("a journal segment that was never begun")]
    Unborn,
    /// Not a segment, or of another version.
    #[error("not a journal segment of this version")]
    Foreign,
    /// A segment of another drive.
    #[error("a journal segment of another drive")]
    OtherDrive,
    /// What was synced is not there any more: `index` does not open, and later records prove that it once did.
    #[error("journal record {index} is damaged")]
    Damaged {
        /// The record.
        index: u64,
    },
    /// The segment does not continue the one before: that one, or a whole segment between, was lost or replaced.
    #[error("journal segments do not join")]
    Broken,
    /// A record opens but is not of this grammar.
    #[error("journal record {index} is of another grammar")]
    Unreadable {
        /// The record.
        index: u64,
    },
}

/// First bytes of a segment: `"SDJ1" ‖ 1 ‖ 0×3 ‖ drive32 ‖ segment u64 ‖ first_op u64 ‖ prev_tag16 ‖ salt32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose journal.
    pub drive: DriveId,
    /// Number of the segment, rising by one.
    pub segment: u64,
    /// No entry in here is of an earlier operation.
    pub first_op: u64,
    /// The last 16 bytes of the good part of the segment before; zeros in the very first.
    pub prev_tag: [u8; 16],
    /// Random: no two segments seal alike, and its first 8 bytes mark the beginning of records.
    pub salt: [u8; 32],
}

impl SegmentHeader {
    /// The 104 bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..40].copy_from_slice(self.drive.as_bytes());
        out[40..48].copy_from_slice(&self.segment.to_le_bytes());
        out[48..56].copy_from_slice(&self.first_op.to_le_bytes());
        out[56..72].copy_from_slice(&self.prev_tag);
        out[72..].copy_from_slice(&self.salt);
        out
    }

    /// Reads a header. It is believed only when the record behind it opens.
    pub fn parse(bytes: &[u8]) -> Result<Self, JournalError> {
        let head = bytes
            .first_chunk::<HEADER_LEN>()
            .ok_or(JournalError::Unborn)?;
        if head[..8] != MAGIC {
            return Err(JournalError::Foreign);
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
        Ok(Self {
            drive: DriveId(std::array::from_fn(|byte| head[8 + byte])),
            segment: number(40),
            first_op: number(48),
            prev_tag: std::array::from_fn(|byte| head[56 + byte]),
            salt: std::array::from_fn(|byte| head[72 + byte]),
        })
    }

    /// What stands at the beginning of each record: finds records again behind damage.
    fn mark(&self) -> [u8; 8] {
        std::array::from_fn(|byte| self.salt[byte])
    }
}

/// The last 16 bytes of a stretch of a segment: what the next segment names as its predecessor.
fn tag_of(good: &[u8]) -> [u8; 16] {
    good.last_chunk::<16>().copied().unwrap_or_default()
}
