//! A reference: how a tree record or a node names a sealed object. Stands only inside sealed objects.
//!
//! Invariant: `plain_len` is between 1 and `MAX_CHUNK`. Layout, little-endian, 41 bytes:
//! `epoch u32 ‖ cid32 ‖ plain_len u32 ‖ variant u8`. Called by the tree, the extents and the sealing room.

use sealdrive_proto::id::{Cid, Epoch};
use sealdrive_proto::limits::MAX_CHUNK;

/// Names one object by the keyed hash of its plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// Key epoch the object was sealed in, or an earlier one.
    pub epoch: Epoch,
    /// Keyed hash of the plaintext.
    pub cid: Cid,
    /// Length of the plaintext, bytes.
    pub plain_len: u32,
    /// Raised by one when the server held a poisoned object under the former id.
    pub variant: u8,
}

impl Reference {
    /// Encoded length, bytes.
    pub const LEN: usize = 41;

    /// The 41 bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..4].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[4..36].copy_from_slice(self.cid.as_bytes());
        out[36..40].copy_from_slice(&self.plain_len.to_le_bytes());
        out[40] = self.variant;
        out
    }

    /// Reads exactly 41 bytes; `None` for another length or a `plain_len` out of range.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let plain_len = u32::from_le_bytes(bytes[36..40].try_into().ok()?);
        if plain_len == 0 || plain_len as usize > MAX_CHUNK {
            return None;
        }
        Some(Self {
            epoch: Epoch(u32::from_le_bytes(bytes[..4].try_into().ok()?)),
            cid: Cid::try_from(&bytes[4..36]).ok()?,
            plain_len,
            variant: bytes[40],
        })
    }
}
