//! Where an object lies in the local packs, and what the index says of one.
//!
//! Invariant: pack numbers rise for the life of the local directory and are never used twice, so `Position`s of the
//! outbox order everything ever appended to it. Called by the store and the upload.

/// A place in the outbox's order of appending: everything before it is one prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Position {
    /// Pack number.
    pub pack: u64,
    /// Byte offset in that pack.
    pub offset: u64,
}

impl Position {
    /// Encoded length, bytes.
    pub const LEN: usize = 16;

    /// That place.
    pub fn new(pack: u64, offset: u64) -> Self {
        Self { pack, offset }
    }

    /// `pack u64 ‖ offset u64`, little-endian.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.pack.to_le_bytes());
        out[8..].copy_from_slice(&self.offset.to_le_bytes());
        out
    }

    /// Reads exactly 16 bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (pack, offset) = bytes.split_first_chunk::<8>()?;
        Some(Self {
            pack: u64::from_le_bytes(*pack),
            offset: u64::from_le_bytes(offset.try_into().ok()?),
        })
    }
}

/// Where one object's record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Pack number.
    pub pack: u64,
    /// Byte offset of the record.
    pub offset: u64,
    /// Length of the object, bytes.
    pub len: u32,
    /// Written as a copy of what the server has: its loss costs a fetch, nothing more.
    pub cached: bool,
}

impl Place {
    /// A position no later than the end of its record, and later than its start.
    pub fn end(&self) -> Position {
        Position {
            pack: self.pack,
            offset: self.offset + u64::from(self.len),
        }
    }
}

/// What the index says of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// In a local pack. Whether the server has it too is told by which directory the pack is in.
    Local(Place),
    /// Acknowledged by the server (or opened and verified once), not here any more.
    Sent,
    /// Known to be nowhere (damaged here): the row is to be removed.
    Gone,
}

impl Row {
    /// `state u8 ‖ pack u64 ‖ offset u64 ‖ len u32`.
    pub fn encode(&self) -> [u8; 21] {
        let mut out = [0; 21];
        if let Self::Local(place) = self {
            out[0] = if place.cached { 2 } else { 1 };
            out[1..9].copy_from_slice(&place.pack.to_le_bytes());
            out[9..17].copy_from_slice(&place.offset.to_le_bytes());
            out[17..].copy_from_slice(&place.len.to_le_bytes());
        } else {
            out[0] = 3;
        }
        out
    }

    /// `None` for anything `encode` does not write.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 21] = bytes.try_into().ok()?;
        match bytes[0] {
            state @ (1 | 2) => Some(Self::Local(Place {
                pack: u64::from_le_bytes(bytes[1..9].try_into().ok()?),
                offset: u64::from_le_bytes(bytes[9..17].try_into().ok()?),
                len: u32::from_le_bytes(bytes[17..].try_into().ok()?),
                cached: state == 2,
            })),
            3 => Some(Self::Sent),
            _ => None,
        }
    }
}
