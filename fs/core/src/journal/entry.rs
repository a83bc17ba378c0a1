//! Entries of a journal record, and the record's plaintext.
//!
//! Layout: `1 ‖ synced u64`, then entries. Operation: `1 ‖ seq u64 ‖ count u32`, then per edit `klen u16 ‖ vlen u16 ‖
//! key ‖ value`, `vlen` 0xffff meaning a deletion. Data: `2 ‖ seq u64 ‖ ino u64 ‖ off u64 ‖ len u32 ‖ bytes`. Discard:
//! `3 ‖ seq ‖ ino ‖ off ‖ len`, u64 each.

use bytes::Bytes;
use zeroize::Zeroizing;

use super::MAX_RECORD;
use crate::record::{self, Edit, Ino, Key, MAX_FILE, Value};

const VERSION: u8 = 1;
const OP: u8 = 1;
const DATA: u8 = 2;
const DISCARD: u8 = 3;
/// Stands for the length of a value that is not there; above `MAX_VALUE`.
const DELETED: u16 = u16::MAX;
/// Version and `synced`.
const PLAIN_HEAD: usize = 9;

/// One thing that happened, in the order in which it happened.
#[derive(Clone, PartialEq, Eq)]
pub enum Entry {
    /// An operation of the drive: all its edits or none.
    Op {
        /// Number of the operation.
        seq: u64,
        /// What it changed, at most one edit per key.
        edits: Vec<Edit>,
    },
    /// Content written but not yet sealed into a chunk.
    Data {
        /// Number of the operation that wrote it.
        seq: u64,
        /// The file.
        ino: Ino,
        /// Where in the file.
        off: u64,
        /// At least one byte.
        bytes: Bytes,
    },
    /// Earlier `Data` of this range no longer counts: an extent took its place, or it was cut off.
    Discard {
        /// Number of the operation.
        seq: u64,
        /// The file.
        ino: Ino,
        /// Where in the file.
        off: u64,
        /// Bytes; may reach beyond the end of the file.
        len: u64,
    },
}

impl Entry {
    /// Number of the operation it belongs to.
    pub fn seq(&self) -> u64 {
        match self {
            Self::Op { seq, .. } | Self::Data { seq, .. } | Self::Discard { seq, .. } => *seq,
        }
    }

    /// Length in a record, bytes.
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Op { edits, .. } => {
                let edit = |edit: &Edit| {
                    4 + edit.key().as_bytes().len() + edit.value().map_or(0, |value| value.len())
                };
                13 + edits.iter().map(edit).sum::<usize>()
            }
            Self::Data { bytes, .. } => 29 + bytes.len(),
            Self::Discard { .. } => 33,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Op { seq, edits } => {
                out.push(OP);
                out.extend_from_slice(&seq.to_le_bytes());
                out.extend_from_slice(&(edits.len() as u32).to_le_bytes());
                for edit in edits {
                    let key = edit.key().as_bytes();
                    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
                    out.extend_from_slice(
                        &edit
                            .value()
                            .map_or(DELETED, |value| value.len() as u16)
                            .to_le_bytes(),
                    );
                    out.extend_from_slice(key);
                    out.extend_from_slice(edit.value().map_or(&[], |value| &value[..]));
                }
            }
            Self::Data {
                seq,
                ino,
                off,
                bytes,
            } => {
                assert!(!bytes.is_empty(), "an entry without data");
                out.push(DATA);
                for number in [seq, ino, off] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Self::Discard { seq, ino, off, len } => {
                out.push(DISCARD);
                for number in [seq, ino, off, len] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
        }
    }

    /// Reads the entry at the front of `left`. Data is a slice of the record, not a copy.
    fn decode(left: &mut Bytes) -> Option<Self> {
        let kind = number::<1>(left)?[0];
        let seq = u64_of(left)?;
        match kind {
            OP => {
                let count = u32::from_le_bytes(number(left)?) as usize;
                // Every edit takes 4 bytes at least, so the count cannot make us reserve more than the record is long.
                let mut edits = Vec::with_capacity(count.min(left.len() / 4));
                for _ in 0..count {
                    edits.push(decode_edit(left)?);
                }
                Some(Self::Op { seq, edits })
            }
            DATA => {
                let (ino, off) = (u64_of(left)?, u64_of(left)?);
                let len = u32::from_le_bytes(number(left)?);
                let end = off.checked_add(u64::from(len))?;
                if len == 0 || end > MAX_FILE || len as usize > left.len() {
                    return None;
                }
                Some(Self::Data {
                    seq,
                    ino,
                    off,
                    bytes: left.split_to(len as usize),
                })
            }
            DISCARD => Some(Self::Discard {
                seq,
                ino: u64_of(left)?,
                off: u64_of(left)?,
                len: u64_of(left)?,
            }),
            _ => None,
        }
    }
}

/// Kind, place and size only.
impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Op { seq, edits } => write!(f, "Op({seq}, {} edits)", edits.len()),
            Self::Data {
                seq,
                ino,
                off,
                bytes,
            } => write!(f, "Data({seq}, {ino}@{off}+{})", bytes.len()),
            Self::Discard { seq, ino, off, len } => write!(f, "Discard({seq}, {ino}@{off}+{len})"),
        }
    }
}

/// The plaintext of a record. `synced` is how many records of the segment were durable when this one was made.
pub(super) fn encode_record(synced: u64, entries: &[Entry]) -> Zeroizing<Vec<u8>> {
    let len = PLAIN_HEAD + entries.iter().map(Entry::encoded_len).sum::<usize>();
    assert!(len <= MAX_RECORD, "a journal record of {len} bytes");
    let mut plain = Zeroizing::new(Vec::with_capacity(len));
    plain.push(VERSION);
    plain.extend_from_slice(&synced.to_le_bytes());
    entries.iter().for_each(|entry| entry.encode(&mut plain));
    assert_eq!(plain.len(), len, "lengths were counted wrongly");
    plain
}

/// Reads a record strictly: `synced` and the entries, nothing left over.
pub(super) fn decode_record(mut plain: Bytes) -> Option<(u64, Vec<Entry>)> {
    if number::<1>(&mut plain)?[0] != VERSION {
        return None;
    }
    let synced = u64_of(&mut plain)?;
    let mut entries = Vec::new();
    while !plain.is_empty() {
        entries.push(Entry::decode(&mut plain)?);
    }
    Some((synced, entries))
}

fn decode_edit(left: &mut Bytes) -> Option<Edit> {
    let (key_len, value_len) = (
        u16::from_le_bytes(number(left)?),
        u16::from_le_bytes(number(left)?),
    );
    let key_bytes = take(left, usize::from(key_len))?;
    let key = Key::from_bytes(&key_bytes).ok()?;
    if value_len == DELETED {
        return Some(Edit::Delete(key));
    }
    let value = take(left, usize::from(value_len))?;
    record::check(&key_bytes, &value).ok()?;
    Some(Edit::Put(key, Value::from(&value[..])))
}

fn take(left: &mut Bytes, len: usize) -> Option<Bytes> {
    (len <= left.len()).then(|| left.split_to(len))
}

fn number<const N: usize>(left: &mut Bytes) -> Option<[u8; N]> {
    let number = *left.first_chunk::<N>()?;
    let _ = left.split_to(N);
    Some(number)
}

fn u64_of(left: &mut Bytes) -> Option<u64> {
    number(left).map(u64::from_le_bytes)
}
