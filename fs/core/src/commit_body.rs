//! The body of a commit: which tree it names, and what the next writer must know. Sealed as kind 3, never under an
//! id.
//!
//! Invariant: one body has one encoding; what decodes encodes back to the same bytes. The newest commit seen of
//! every device stands in it, so that one commit both sides can see exposes a forked history. Called by the engine
//! (commits, mounts) and by the history room. Layout: FORMAT.md, "Commit body".

use crate::reference::Reference;
use sealdrive_proto::id::{CommitHash, DeviceId, LinkHash};

/// The only version written and read.
const VERSION: u8 = 1;
/// Format of drive records a reader must understand; raised when older programs would misread a drive. 2: tree nodes of
/// version 2, cut to other lengths.
pub const MIN_FORMAT: u8 = 2;
/// Oldest format this program reads. Drives of format 1 were written by no released program.
const OLDEST_FORMAT: u8 = 2;
/// Most devices a body names: far above what one account enrols, and a body stays within a few size buckets.
pub const MAX_HEADS: usize = 1024;
const FIXED: usize = 1 + 1 + Reference::LEN + 8 + 8 + 32 + 8 + 4 + 8 + 8 + 2;
const HEAD: usize = 16 + 8 + 32;
const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// The newest commit of one device that the author had seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The device.
    pub device: DeviceId,
    /// Sequence number of its newest commit.
    pub seq: u64,
    /// Hash of that commit.
    pub hash: CommitHash,
}

/// What a commit says, besides what is signed in the clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitBody {
    /// Least format a reader must understand.
    pub min_format: u8,
    /// Root node of the tree.
    pub root: Reference,
    /// Number of the last operation contained.
    pub op_seq: u64,
    /// The next inode number to give out.
    pub next_ino: u64,
    /// Head of the membership chain under which it was written.
    pub membership: LinkHash,
    /// The author's clock, seconds since 1970 (not trusted: retention goes by the server's).
    pub time_s: i64,
    /// Nanoseconds of it, below 10^9.
    pub time_ns: u32,
    /// Inodes in the tree.
    pub files: u64,
    /// Sum of file sizes, bytes.
    pub bytes: u64,
    /// Last seen commit of every device, by device id rising.
    pub heads: Vec<Head>,
}

/// Bytes are not a commit body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// Not the canonical encoding of anything.
    #[error("commit body is malformed")]
    Malformed,
    /// Written for a newer program.
    #[error("this drive was written in format {0} and this program reads format {known} only: a newer one is needed",
        known = MIN_FORMAT)]
    TooNew(u8),
    /// Written by a program from before the first release.
    #[error("this drive was written in format {0}, which no program reads since; the oldest read is {oldest}",
        oldest = OLDEST_FORMAT)]
    TooOld(u8),
}

impl CommitBody {
    /// The bytes to seal. `heads` must rise by device id and be at most [`MAX_HEADS`].
    pub fn encode(&self) -> Vec<u8> {
        assert!(
            self.is_valid(),
            "a body that would be refused is not written"
        );
        let mut out = Vec::with_capacity(FIXED + HEAD * self.heads.len());
        out.extend_from_slice(&[VERSION, self.min_format]);
        out.extend_from_slice(&self.root.encode());
        out.extend_from_slice(&self.op_seq.to_le_bytes());
        out.extend_from_slice(&self.next_ino.to_le_bytes());
        out.extend_from_slice(self.membership.as_bytes());
        out.extend_from_slice(&self.time_s.to_le_bytes());
        out.extend_from_slice(&self.time_ns.to_le_bytes());
        out.extend_from_slice(&self.files.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&(self.heads.len() as u16).to_le_bytes());
        for head in &self.heads {
            out.extend_from_slice(head.device.as_bytes());
            out.extend_from_slice(&head.seq.to_le_bytes());
            out.extend_from_slice(head.hash.as_bytes());
        }
        out
    }

    /// Reads exactly one body.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadBody> {
        let (fixed, rest) = bytes
            .split_first_chunk::<FIXED>()
            .ok_or(BadBody::Malformed)?;
        if fixed[0] != VERSION {
            return Err(BadBody::TooNew(fixed[0]));
        }
        match fixed[1] {
            0 => return Err(BadBody::Malformed),
            old if old < OLDEST_FORMAT => return Err(BadBody::TooOld(old)),
            new if new > MIN_FORMAT => return Err(BadBody::TooNew(new)),
            _ => {}
        }
        let mut fields = Fields(&fixed[2..]);
        let root = Reference::decode(fields.bytes(Reference::LEN)).ok_or(BadBody::Malformed)?;
        let mut body = Self {
            min_format: fixed[1],
            root,
            op_seq: u64::from_le_bytes(fields.take()),
            next_ino: u64::from_le_bytes(fields.take()),
            membership: LinkHash(fields.take()),
            time_s: i64::from_le_bytes(fields.take()),
            time_ns: u32::from_le_bytes(fields.take()),
            files: u64::from_le_bytes(fields.take()),
            bytes: u64::from_le_bytes(fields.take()),
            heads: Vec::new(),
        };
        let count = usize::from(u16::from_le_bytes(fields.take()));
        if count > MAX_HEADS || rest.len() != count * HEAD {
            return Err(BadBody::Malformed);
        }
        body.heads = rest.chunks_exact(HEAD).map(decode_head).collect();
        if body.is_valid() {
            Ok(body)
        } else {
            Err(BadBody::Malformed)
        }
    }

    /// The newest commit of `device` that the author had seen.
    pub fn head_of(&self, device: &DeviceId) -> Option<&Head> {
        let at = self
            .heads
            .binary_search_by_key(device, |head| head.device)
            .ok()?;
        self.heads.get(at)
    }

    fn is_valid(&self) -> bool {
        (OLDEST_FORMAT..=MIN_FORMAT).contains(&self.min_format)
            && self.time_ns < NANOS_PER_SECOND
            && self.heads.len() <= MAX_HEADS
            && self.heads.is_sorted_by(|a, b| a.device < b.device)
    }
}

/// Fixed-width fields read from the front; their total is checked before.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(len);
        self.0 = rest;
        now
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let bytes = self.bytes(N);
        std::array::from_fn(|i| bytes[i])
    }
}

fn decode_head(bytes: &[u8]) -> Head {
    let mut fields = Fields(bytes);
    Head {
        device: DeviceId(fields.take()),
        seq: u64::from_le_bytes(fields.take()),
        hash: CommitHash(fields.take()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sealdrive_proto::id::{Cid, Epoch};

    fn body(devices: &[u8]) -> CommitBody {
        let head = |d: &u8| Head {
            device: DeviceId([*d; 16]),
            seq: u64::from(*d),
            hash: CommitHash([*d; 32]),
        };
        CommitBody {
            min_format: MIN_FORMAT,
            root: Reference {
                epoch: Epoch(1),
                cid: Cid([7; 32]),
                plain_len: 5000,
                variant: 0,
            },
            op_seq: 1 << 40,
            next_ino: 99,
            membership: LinkHash([3; 32]),
            time_s: -5,
            time_ns: 999_999_999,
            files: 12,
            bytes: 1 << 50,
            heads: devices.iter().map(head).collect(),
        }
    }

    #[test]
    fn round_trip_and_refusals() {
        let good = body(&[1, 2, 9]);
        let bytes = good.encode();
        assert_eq!(bytes.len(), FIXED + 3 * HEAD);
        assert_eq!(CommitBody::decode(&bytes), Ok(good.clone()));
        assert_eq!(good.head_of(&DeviceId([2; 16])).map(|h| h.seq), Some(2));
        assert_eq!(good.head_of(&DeviceId([3; 16])), None);
        for len in 0..bytes.len() {
            assert_eq!(
                CommitBody::decode(&bytes[..len]),
                Err(BadBody::Malformed),
                "cut to {len}"
            );
        }
        let with = |at: usize, byte: u8| {
            let mut bad = bytes.clone();
            bad[at] = byte;
            CommitBody::decode(&bad)
        };
        assert_eq!(with(0, 2), Err(BadBody::TooNew(2)));
        assert_eq!(with(1, 9), Err(BadBody::TooNew(9)));
        assert_eq!(with(1, 1), Err(BadBody::TooOld(1)));
        assert_eq!(with(1, 0), Err(BadBody::Malformed));
        assert_eq!(
            with(40, 0xff),
            Err(BadBody::Malformed),
            "root longer than a chunk"
        );
        assert_eq!(
            with(FIXED, 200),
            Err(BadBody::Malformed),
            "devices out of order"
        );
        assert_eq!(with(FIXED - 2, 2), Err(BadBody::Malformed), "wrong count");
    }

    #[test]
    #[should_panic(expected = "would be refused")]
    fn an_unreadable_body_is_not_written() {
        let _ = body(&[2, 1]).encode();
    }

    proptest! {
        #[test]
        fn decodes_canonically_or_not_at_all(at in 0usize..200, byte: u8) {
            let mut bytes = body(&[1, 2]).encode();
            let len = bytes.len();
            bytes[at % len] = byte;
            if let Ok(read) = CommitBody::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes);
            }
        }
    }
}
