//! The clear header of a stored object: 104 bytes, all of them authenticated by both seals.
//!
//! Invariant: a parsed header has the known magic, format, suite and zero flags, and `inner_len` fits a size bucket.
//! Called by the sealing room (writes and reads) and by the server (checks domain, id and length; it can do no more).
//! Layout: `"SDO1" ‖ format u8 ‖ suite u8 ‖ flags u8 = 0 ‖ 0 ‖ domain32 ‖ epoch u32 ‖ inner_len u32 ‖ sid32 ‖
//! nonce24`.

use crate::bucket::{bucket, is_bucket};
use crate::id::{DomainId, Epoch, Sid};

/// Length of the header, bytes.
pub const HEADER_LEN: usize = 104;
/// Length of the key commitment behind the header, bytes.
pub const COMMIT_LEN: usize = 32;
/// Length of an authentication tag, inner or outer, bytes.
pub const TAG_LEN: usize = 16;
/// Length of the frame header inside both seals, bytes.
pub const FRAME_LEN: usize = 12;
/// Length of the outer nonce, bytes.
pub const NONCE_LEN: usize = 24;
/// Bytes of the header that stand before the nonce, and go into it.
pub const BEFORE_NONCE: usize = HEADER_LEN - NONCE_LEN;
/// The one format.
pub const FORMAT: u8 = 1;
/// The one suite: AES-256-SIV inside, XChaCha20-Poly1305 outside, HKDF-SHA-512 and BLAKE3.
pub const SUITE: u8 = 1;

const MAGIC: [u8; 4] = *b"SDO1";

/// What the server may read of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectHeader {
    /// Domain whose keys sealed it.
    pub domain: DomainId,
    /// Key epoch it was sealed in.
    pub epoch: Epoch,
    /// Length of the inner ciphertext with its tag, bytes.
    pub inner_len: u32,
    /// The id it is stored under.
    pub sid: Sid,
    /// Nonce of the outer seal, derived from key and content.
    pub nonce: [u8; NONCE_LEN],
}

/// Why bytes are not an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than a header, or not as long as the header says.
    #[error("object length does not match its header")]
    Length,
    /// Magic, format, suite or flags are not the known ones.
    #[error("not an object of a known format")]
    Format,
    /// The padded payload is not of a bucket's size.
    #[error("object size is not a size bucket")]
    Bucket,
}

/// Length of the stored object whose frame payload is `comp_len` bytes before padding.
pub const fn stored_len(comp_len: usize) -> usize {
    HEADER_LEN + COMMIT_LEN + inner_len(comp_len) + TAG_LEN
}

/// Length of the inner ciphertext (tag, frame header, padded payload) for `comp_len` bytes of payload.
pub const fn inner_len(comp_len: usize) -> usize {
    TAG_LEN + FRAME_LEN + bucket(comp_len)
}

impl ObjectHeader {
    /// The 104 bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = FORMAT;
        out[5] = SUITE;
        out[8..40].copy_from_slice(self.domain.as_bytes());
        out[40..44].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[44..48].copy_from_slice(&self.inner_len.to_le_bytes());
        out[48..80].copy_from_slice(self.sid.as_bytes());
        out[80..].copy_from_slice(&self.nonce);
        out
    }

    /// Reads the header of a whole object and checks that the object has the length the header gives.
    pub fn parse(object: &[u8]) -> Result<Self, HeaderError> {
        let head: &[u8; HEADER_LEN] = object.first_chunk().ok_or(HeaderError::Length)?;
        if head[..8] != [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], FORMAT, SUITE, 0, 0] {
            return Err(HeaderError::Format);
        }
        let inner_len = u32::from_le_bytes([head[44], head[45], head[46], head[47]]);
        let want = (HEADER_LEN + COMMIT_LEN + TAG_LEN) as u64 + u64::from(inner_len);
        if object.len() as u64 != want {
            return Err(HeaderError::Length);
        }
        match (inner_len as usize).checked_sub(TAG_LEN + FRAME_LEN) {
            Some(payload) if is_bucket(payload) => {}
            _ => return Err(HeaderError::Bucket),
        }
        let array = |at: usize| -> [u8; 32] { std::array::from_fn(|i| head[at + i]) };
        Ok(Self {
            domain: DomainId(array(8)),
            epoch: Epoch(u32::from_le_bytes([head[40], head[41], head[42], head[43]])),
            inner_len,
            sid: Sid(array(48)),
            nonce: std::array::from_fn(|i| head[BEFORE_NONCE + i]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(comp_len: usize) -> (ObjectHeader, Vec<u8>) {
        let header = ObjectHeader {
            domain: DomainId([1; 32]),
            epoch: Epoch(7),
            inner_len: inner_len(comp_len) as u32,
            sid: Sid([2; 32]),
            nonce: [3; 24],
        };
        let mut bytes = header.encode().to_vec();
        bytes.resize(stored_len(comp_len), 0);
        (header, bytes)
    }

    proptest! {
        #[test]
        fn round_trip(domain: [u8; 32], sid: [u8; 32], nonce: [u8; 24], epoch: u32, len in 0usize..300_000) {
            let header = ObjectHeader {
                domain: DomainId(domain), epoch: Epoch(epoch), inner_len: inner_len(len) as u32, sid: Sid(sid), nonce,
            };
            let mut bytes = header.encode().to_vec();
            bytes.resize(stored_len(len), 0);
            prop_assert_eq!(ObjectHeader::parse(&bytes), Ok(header));
        }

        #[test]
        fn any_bytes_parse_or_refuse(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(header) = ObjectHeader::parse(&bytes) {
                prop_assert_eq!(&header.encode()[..], &bytes[..HEADER_LEN]);
            }
        }
    }

    #[test]
    fn refusals() {
        let (header, good) = object(100);
        assert_eq!(ObjectHeader::parse(&good), Ok(header));
        for i in 0..8 {
            let mut bad = good.clone();
            bad[i] ^= 1;
            assert_eq!(
                ObjectHeader::parse(&bad),
                Err(HeaderError::Format),
                "byte {i}"
            );
        }
        assert_eq!(
            ObjectHeader::parse(&good[..good.len() - 1]),
            Err(HeaderError::Length)
        );
        assert_eq!(ObjectHeader::parse(&good[..50]), Err(HeaderError::Length));
        let odd = ObjectHeader {
            inner_len: header.inner_len + 1,
            ..header
        };
        let mut bad = odd.encode().to_vec();
        bad.resize(good.len() + 1, 0);
        assert_eq!(ObjectHeader::parse(&bad), Err(HeaderError::Bucket));
    }
}
