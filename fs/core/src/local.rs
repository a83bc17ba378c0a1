//! The seal of local records: journal, checkpoint, outbox index, pins. Both locks, keys that never leave this
//! machine.
//!
//! Invariant: a record opens only under the header and index it was sealed with; no plaintext reaches the disk.
//! Called by the engine room with the header of a segment or file, see FORMAT.md, "Local records".

use crate::seal::inner::{self, InnerData};
use crate::seal::outer::{self, OuterRefused};
use crate::secret::{Secret, derive_key, hkdf, keyed};
use sealdrive_proto::header::{NONCE_LEN, TAG_LEN};
use zeroize::{Zeroize, Zeroizing};

/// Bytes a sealed record is longer than its plaintext: nonce, inner tag, outer tag.
pub const RECORD_OVERHEAD: usize = NONCE_LEN + 2 * TAG_LEN;

const INNER_LABEL: &str = "sealdrive/v1/local/inner";

/// Keys of one drive on one machine.
pub struct LocalKeys {
    siv: Secret<64>,
    out: Secret<32>,
    nonce: Secret<32>,
}

/// The record is damaged, foreign, or not in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("local record does not open")]
pub struct BadRecord;

impl LocalKeys {
    /// Derives the keys from two independent random roots.
    pub fn derive(root_in: &[u8; 32], root_out: &[u8; 32]) -> Self {
        Self {
            siv: hkdf(&[], root_in, &[b"sealdrive/v1/local/inner"]),
            out: derive_key("sealdrive 2026 v1 local outer", &[root_out]),
            nonce: derive_key("sealdrive 2026 v1 local nonce", &[root_out]),
        }
    }

    /// `nonce24 ‖ XChaCha20-Poly1305(AES-256-SIV(plain))`. Deterministic: equal record, equal bytes.
    pub fn seal_record(&self, header: &[u8], index: u64, plain: &[u8]) -> Vec<u8> {
        let mut record = Vec::with_capacity(RECORD_OVERHEAD + plain.len());
        record.resize(NONCE_LEN + TAG_LEN, 0);
        record.extend_from_slice(plain);
        record.resize(RECORD_OVERHEAD + plain.len(), 0);
        let (nonce, rest) = record.split_at_mut(NONCE_LEN);
        let (sealed, tag) = rest.split_at_mut(TAG_LEN + plain.len());
        let place = place(header, index, plain.len());
        inner::lock(
            &self.siv,
            InnerData {
                label: INNER_LABEL,
                fields: &[&place],
            },
            sealed,
        );
        let made: Secret<NONCE_LEN> = keyed(self.nonce.expose(), &[&place, sealed]);
        nonce.copy_from_slice(made.expose());
        tag.copy_from_slice(&outer::lock(
            self.out.expose(),
            made.expose(),
            &place,
            sealed,
        ));
        record
    }

    /// The plaintext of a record that stands at `index` under `header`.
    pub fn open_record(
        &self,
        header: &[u8],
        index: u64,
        record: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, BadRecord> {
        let (nonce, rest) = record.split_first_chunk::<NONCE_LEN>().ok_or(BadRecord)?;
        let (body, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(BadRecord)?;
        let plain_len = body.len().checked_sub(TAG_LEN).ok_or(BadRecord)?;
        let place = place(header, index, plain_len);
        let mut sealed = Zeroizing::new(body.to_vec());
        outer::unlock(self.out.expose(), nonce, &place, &mut sealed, tag)
            .map_err(|OuterRefused| BadRecord)?;
        inner::unlock(
            &self.siv,
            InnerData {
                label: INNER_LABEL,
                fields: &[&place],
            },
            &mut sealed,
        )
        .map_err(|_| BadRecord)?;
        // Shifted down within its own buffer: no second copy of the plaintext.
        sealed.copy_within(TAG_LEN.., 0);
        sealed[plain_len..].zeroize();
        sealed.truncate(plain_len);
        Ok(sealed)
    }
}

/// Where a record stands, as one string: `header length u64 ‖ header ‖ index u64 ‖ plain length u64`.
fn place(header: &[u8], index: u64, plain_len: usize) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header,
        &index.to_le_bytes(),
        &(plain_len as u64).to_le_bytes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> LocalKeys {
        LocalKeys::derive(&[1; 32], &[2; 32])
    }

    #[test]
    fn a_record_opens_only_in_its_place() {
        let record = keys().seal_record(b"segment one", 7, b"plaintext");
        assert_eq!(record.len(), RECORD_OVERHEAD + 9);
        assert_eq!(record, keys().seal_record(b"segment one", 7, b"plaintext"));
        assert_eq!(
            keys()
                .open_record(b"segment one", 7, &record)
                .as_deref()
                .map(|p| &p[..]),
            Ok(&b"plaintext"[..])
        );
        assert!(keys().open_record(b"segment one", 8, &record).is_err());
        assert!(keys().open_record(b"segment two", 7, &record).is_err());
        assert!(
            LocalKeys::derive(&[1; 32], &[3; 32])
                .open_record(b"segment one", 7, &record)
                .is_err()
        );
        assert!(
            LocalKeys::derive(&[3; 32], &[2; 32])
                .open_record(b"segment one", 7, &record)
                .is_err(),
            "inner alone"
        );
        for i in 0..record.len() {
            let mut bad = record.clone();
            bad[i] ^= 0x40;
            assert!(
                keys().open_record(b"segment one", 7, &bad).is_err(),
                "byte {i}"
            );
            assert!(
                keys().open_record(b"segment one", 7, &record[..i]).is_err(),
                "cut to {i}"
            );
        }
    }

    /// A header may not swallow the index behind it.
    #[test]
    fn fields_do_not_run_into_each_other() {
        assert_ne!(place(b"ab", 0, 0), place(b"ab\0", 0, 0));
        let record = keys().seal_record(b"", 0x6162, b"x");
        assert!(
            keys()
                .open_record(&0x6162u64.to_le_bytes(), 0, &record)
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn round_trip(plain in proptest::collection::vec(any::<u8>(), 0..3000), header: [u8; 9], index: u64) {
            let record = keys().seal_record(&header, index, &plain);
            prop_assert_eq!(keys().open_record(&header, index, &record).map(|p| p.to_vec()), Ok(plain));
        }
    }
}
