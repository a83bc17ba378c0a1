//! An extent record: where the bytes of a file from some offset on are found.
//!
//! Layout: `1 ‖ reference41 ‖ skip u32 ‖ len u32` (bytes `skip..skip+len` of a chunk), or `2 ‖ bytes`. The file offset
//! is in the key. Invariant: extents of a file never overlap, none is longer than `MAX_CHUNK`, and a hole has no
//! record: so one state has one spelling, and what covers an offset is found by looking back at most `MAX_CHUNK` bytes.

use bytes::Bytes;
use sealdrive_proto::limits::{MAX_CHUNK, MAX_VALUE};

use super::fields::Fields;
use super::{BadRecord, Value};
use crate::reference::Reference;

/// Most bytes of a file that one inline extent holds.
pub const INLINE_MAX: usize = MAX_VALUE - 1;

const CHUNK: u8 = 1;
const INLINE: u8 = 2;

/// What a range of a file is made of.
#[derive(Clone, PartialEq, Eq)]
pub enum Extent {
    /// Bytes `skip..skip+len` of a chunk's plaintext.
    Chunk {
        /// The chunk.
        reference: Reference,
        /// Bytes of the chunk before the first one used.
        skip: u32,
        /// Bytes used; at least 1.
        len: u32,
    },
    /// The bytes themselves, 1 to [`INLINE_MAX`].
    Inline(Bytes),
    /// Zeros that were never written. Has no record: recording it means to remove what stood there.
    Hole {
        /// Bytes; at least 1.
        len: u64,
    },
}

impl Extent {
    /// Bytes of the file covered.
    pub fn len(&self) -> u64 {
        match self {
            Self::Chunk { len, .. } => u64::from(*len),
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Hole { len } => *len,
        }
    }

    /// Covers nothing; such an extent is never recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes `from..to` of this extent. Panics unless `from < to <= len`.
    pub fn slice(&self, from: u64, to: u64) -> Self {
        assert!(
            from < to && to <= self.len(),
            "slice {from}..{to} of {}",
            self.len()
        );
        match self {
            Self::Chunk {
                reference, skip, ..
            } => Self::Chunk {
                reference: *reference,
                skip: skip + from as u32,
                len: (to - from) as u32,
            },
            Self::Inline(bytes) => Self::Inline(bytes.slice(from as usize..to as usize)),
            Self::Hole { .. } => Self::Hole { len: to - from },
        }
    }

    /// The record; `None` for a hole. Panics on an extent that no record may hold.
    pub fn encode(&self) -> Option<Value> {
        match self {
            Self::Chunk {
                reference,
                skip,
                len,
            } => {
                assert!(
                    fits(reference, *skip, *len),
                    "extent {skip}+{len} outside its chunk"
                );
                let mut out = [0; 50];
                out[0] = CHUNK;
                out[1..42].copy_from_slice(&reference.encode());
                out[42..46].copy_from_slice(&skip.to_le_bytes());
                out[46..].copy_from_slice(&len.to_le_bytes());
                Some(Value::from(&out[..]))
            }
            Self::Inline(bytes) => {
                assert!(
                    (1..=INLINE_MAX).contains(&bytes.len()),
                    "inline extent of {} bytes",
                    bytes.len()
                );
                Some(Value::from([&[INLINE], &bytes[..]].concat()))
            }
            Self::Hole { .. } => None,
        }
    }

    /// Reads a record strictly. Never returns a hole.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadRecord> {
        let mut fields = Fields::new(bytes, "extent");
        match fields.u8()? {
            CHUNK => {
                let reference =
                    Reference::decode(fields.take(Reference::LEN)?).ok_or(fields.bad())?;
                let (skip, len) = (fields.u32()?, fields.u32()?);
                if !fits(&reference, skip, len) {
                    return Err(fields.bad());
                }
                fields.end()?;
                Ok(Self::Chunk {
                    reference,
                    skip,
                    len,
                })
            }
            INLINE if (2..=MAX_VALUE).contains(&bytes.len()) => {
                Ok(Self::Inline(Bytes::copy_from_slice(fields.rest())))
            }
            _ => Err(fields.bad()),
        }
    }
}

/// Shape only: an inline extent's bytes are file content.
impl std::fmt::Debug for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chunk {
                reference,
                skip,
                len,
            } => write!(f, "Chunk({:?}, {skip}+{len})", reference.cid),
            Self::Inline(bytes) => write!(f, "Inline({} B)", bytes.len()),
            Self::Hole { len } => write!(f, "Hole({len})"),
        }
    }
}

/// Length of the file range that a record covers, without copying its bytes.
pub(crate) fn recorded_len(bytes: &[u8]) -> Result<u64, BadRecord> {
    match bytes.first() {
        Some(&INLINE) if (2..=MAX_VALUE).contains(&bytes.len()) => Ok(bytes.len() as u64 - 1),
        Some(&CHUNK) => Extent::decode(bytes).map(|extent| extent.len()),
        _ => Err(BadRecord("extent")),
    }
}

fn fits(reference: &Reference, skip: u32, len: u32) -> bool {
    const { assert!(MAX_CHUNK < u32::MAX as usize / 2) };
    len > 0
        && skip
            .checked_add(len)
            .is_some_and(|end| end <= reference.plain_len)
}
