//! An extended attribute (and with it an ACL): its bytes, or the chunk that holds them when they are long.
//!
//! Layout: `1 ‖ bytes` up to `XATTR_DIRECT_MAX`, or `2 ‖ reference41`.

use bytes::Bytes;
use sealdrive_proto::limits::MAX_VALUE;

use super::{BadRecord, Value};
use crate::reference::Reference;

/// Longest attribute value that stands in the record itself, bytes.
pub const XATTR_DIRECT_MAX: usize = MAX_VALUE - 1;

const DIRECT: u8 = 1;
const CHUNK: u8 = 2;

/// Value of an extended attribute.
#[derive(Clone, PartialEq, Eq)]
pub enum Xattr {
    /// At most [`XATTR_DIRECT_MAX`] bytes, possibly none.
    Direct(Bytes),
    /// A longer value: the whole of this chunk.
    Chunk(Reference),
}

impl Xattr {
    /// The record. Panics if a direct value is too long: the caller decides which form it takes.
    pub fn encode(&self) -> Value {
        match self {
            Self::Direct(bytes) => {
                assert!(
                    bytes.len() <= XATTR_DIRECT_MAX,
                    "a direct attribute of {} bytes",
                    bytes.len()
                );
                Value::from([&[DIRECT], &bytes[..]].concat())
            }
            Self::Chunk(reference) => Value::from([&[CHUNK], &reference.encode()[..]].concat()),
        }
    }

    /// Reads a record strictly.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadRecord> {
        const BAD: BadRecord = BadRecord("xattr");
        match bytes.split_first() {
            Some((&DIRECT, value)) if value.len() <= XATTR_DIRECT_MAX => {
                Ok(Self::Direct(Bytes::copy_from_slice(value)))
            }
            Some((&CHUNK, value)) => {
                let reference = Reference::decode(value).ok_or(BAD)?;
                if (reference.plain_len as usize) <= XATTR_DIRECT_MAX {
                    return Err(BAD); // two spellings of one state otherwise
                }
                Ok(Self::Chunk(reference))
            }
            _ => Err(BAD),
        }
    }
}
