//! The key box: a domain's secrets, sealed under the account root.
//!
//! Invariant: both locks, keys from both halves of the root; the clear header (account, domain, generations) goes
//! into the keys, so a box cannot be given to another account or pass for another one. Called by the account flows.
//! Layout: FORMAT.md.

use crate::keys::DomainSecrets;
use crate::seal::inner::{self, InnerData};
use crate::seal::outer::OuterKey;
use crate::secret::{Secret, derive_key, hkdf};
use crate::slot::AccountRoot;
use sealdrive_proto::header::{COMMIT_LEN, NONCE_LEN, SUITE, TAG_LEN};
use sealdrive_proto::id::{AccountId, DomainId};
use sealdrive_proto::limits::MAX_KEY_BOX;
use zeroize::Zeroizing;

const HEADER: usize = 112;
const VERSION: u8 = 1;
const MAGIC: [u8; 4] = *b"SDK1";
const INNER_LABEL: &str = "sealdrive/v1/key-box/inner";

/// What a box is: all of it clear, all of it authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoxHeader {
    /// Whose.
    pub account: AccountId,
    /// The domain inside.
    pub domain: DomainId,
    /// Generation of the account root it is sealed under.
    pub root_generation: u64,
    /// Raised with every new box of this domain.
    pub box_generation: u64,
}

/// Why a box does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BoxError {
    /// Not a box of the known format.
    #[error("key box is malformed")]
    Malformed,
    /// Of another account, or under another root.
    #[error("key box belongs to something else")]
    Foreign,
    /// Older than one this device has seen.
    #[error("key box is older than one seen before")]
    Stale,
    /// Wrong root, or damaged.
    #[error("key box does not open")]
    Refused,
}

impl BoxHeader {
    fn encode(&self, nonce: &[u8; NONCE_LEN]) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&[VERSION, SUITE]);
        out[8..40].copy_from_slice(self.account.as_bytes());
        out[40..72].copy_from_slice(self.domain.as_bytes());
        out[72..80].copy_from_slice(&self.root_generation.to_le_bytes());
        out[80..88].copy_from_slice(&self.box_generation.to_le_bytes());
        out[88..].copy_from_slice(nonce);
        out
    }

    /// Reads the clear header. Nothing of it is authentic before the box has been opened.
    pub fn parse(sealed: &[u8]) -> Result<Self, BoxError> {
        let head: &[u8; HEADER] = sealed.first_chunk().ok_or(BoxError::Malformed)?;
        let array = |at: usize| -> [u8; 32] { std::array::from_fn(|i| head[at + i]) };
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        if head[..4] != MAGIC || head[4..8] != [VERSION, SUITE, 0, 0] || sealed.len() > MAX_KEY_BOX
        {
            return Err(BoxError::Malformed);
        }
        Ok(Self {
            account: AccountId(array(8)),
            domain: DomainId(array(40)),
            root_generation: u64_at(72),
            box_generation: u64_at(80),
        })
    }
}

/// Seals a domain's secrets. `header.root_generation` must be the root's.
pub fn seal(
    root: &AccountRoot,
    header: &BoxHeader,
    nonce: &[u8; NONCE_LEN],
    secrets: &DomainSecrets,
) -> Vec<u8> {
    assert_eq!(
        header.root_generation,
        root.generation(),
        "a box says which root opens it"
    );
    let clear = header.encode(nonce);
    let keys = BoxKeys::derive(root, &clear);
    let payload = secrets.encode();
    let mut out = vec![0; HEADER + COMMIT_LEN + 2 * TAG_LEN + payload.len()];
    assert!(
        out.len() <= MAX_KEY_BOX,
        "MAX_EPOCHS keeps a box within its limit"
    );
    let (head, rest) = out.split_at_mut(HEADER + COMMIT_LEN);
    let (sealed, tag) = rest.split_at_mut(TAG_LEN + payload.len());
    head[..HEADER].copy_from_slice(&clear);
    head[HEADER..].copy_from_slice(keys.out.commitment());
    sealed[TAG_LEN..].copy_from_slice(&payload);
    inner::lock(
        &keys.siv,
        InnerData {
            label: INNER_LABEL,
            fields: &[&clear],
        },
        sealed,
    );
    tag.copy_from_slice(&keys.out.lock(nonce, head, sealed));
    out
}

/// Opens a box of `account` that is no older than `box_generation`.
pub fn open(
    root: &AccountRoot,
    account: &AccountId,
    box_generation: u64,
    sealed_box: &[u8],
) -> Result<(BoxHeader, DomainSecrets), BoxError> {
    let header = BoxHeader::parse(sealed_box)?;
    if header.account != *account || header.root_generation != root.generation() {
        return Err(BoxError::Foreign);
    }
    if header.box_generation < box_generation {
        return Err(BoxError::Stale);
    }
    let (clear, rest) = sealed_box
        .split_first_chunk::<HEADER>()
        .ok_or(BoxError::Malformed)?;
    let (commit, rest) = rest
        .split_first_chunk::<COMMIT_LEN>()
        .ok_or(BoxError::Malformed)?;
    let (body, tag) = rest
        .split_last_chunk::<TAG_LEN>()
        .ok_or(BoxError::Malformed)?;
    let keys = BoxKeys::derive(root, clear);
    if !keys.out.is_committed_by(commit) {
        return Err(BoxError::Refused);
    }
    let nonce = clear.last_chunk().expect("a header ends in its nonce");
    let mut sealed = Zeroizing::new(body.to_vec());
    let aad = &sealed_box[..HEADER + COMMIT_LEN];
    keys.out
        .unlock(nonce, aad, &mut sealed, tag)
        .map_err(|_| BoxError::Refused)?;
    let data = InnerData {
        label: INNER_LABEL,
        fields: &[clear],
    };
    let payload = inner::unlock(&keys.siv, data, &mut sealed).map_err(|_| BoxError::Refused)?;
    let secrets = DomainSecrets::decode(payload).map_err(|_| BoxError::Malformed)?;
    Ok((header, secrets))
}

struct BoxKeys {
    siv: Secret<64>,
    out: OuterKey,
}

impl BoxKeys {
    fn derive(root: &AccountRoot, clear: &[u8; HEADER]) -> Self {
        let outer = derive_key("sealdrive 2026 v1 key box outer", &[root.a_out.expose()]);
        Self {
            siv: hkdf(clear, root.a_in.expose(), &[b"sealdrive/v1/key-box/inner"]),
            out: OuterKey::derive(&outer, clear),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::MAX_EPOCHS;

    fn root() -> AccountRoot {
        AccountRoot::from_bytes(&std::array::from_fn(|i| i as u8), 3)
    }

    fn header() -> BoxHeader {
        BoxHeader {
            account: AccountId([1; 32]),
            domain: DomainId([2; 32]),
            root_generation: 3,
            box_generation: 7,
        }
    }

    fn sealed() -> Vec<u8> {
        seal(
            &root(),
            &header(),
            &[5; 24],
            &DomainSecrets::from_entropy(&[6; 128]),
        )
    }

    fn open_as(
        root: &AccountRoot,
        account: u8,
        generation: u64,
        bytes: &[u8],
    ) -> Result<Vec<u8>, BoxError> {
        open(root, &AccountId([account; 32]), generation, bytes)
            .map(|(_, secrets)| secrets.encode().to_vec())
    }

    #[test]
    fn round_trip_and_refusals() {
        let good = sealed();
        assert_eq!(
            open_as(&root(), 1, 7, &good),
            Ok(DomainSecrets::from_entropy(&[6; 128]).encode().to_vec())
        );
        assert_eq!(open_as(&root(), 2, 7, &good), Err(BoxError::Foreign));
        assert_eq!(open_as(&root(), 1, 8, &good), Err(BoxError::Stale));
        assert_eq!(
            open_as(&AccountRoot::from_bytes(&[0; 64], 4), 1, 7, &good),
            Err(BoxError::Foreign)
        );
        assert_eq!(
            open_as(&AccountRoot::from_bytes(&[0; 64], 3), 1, 7, &good),
            Err(BoxError::Refused)
        );
    }

    #[test]
    fn every_byte_is_authenticated() {
        let good = sealed();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(open_as(&root(), 1, 7, &bad).is_err(), "byte {at}");
        }
        for len in 0..good.len() {
            assert!(
                open_as(&root(), 1, 7, &good[..len]).is_err(),
                "cut to {len}"
            );
        }
    }

    /// Both ciphers would open; only the commitment is another one.
    #[test]
    fn the_commitment_decides() {
        let mut sealed = sealed();
        let clear: [u8; HEADER] = *sealed.first_chunk().expect("header");
        let keys = BoxKeys::derive(&root(), &clear);
        let (head, rest) = sealed.split_at_mut(HEADER + COMMIT_LEN);
        let (body, tag) = rest.split_last_chunk_mut::<TAG_LEN>().expect("tag");
        keys.out.unlock(&[5; 24], head, body, tag).expect("own key");
        head[HEADER] ^= 1;
        *tag = keys.out.lock(&[5; 24], head, body);
        assert_eq!(open_as(&root(), 1, 7, &sealed), Err(BoxError::Refused));
    }

    #[test]
    fn the_fullest_box_fits() {
        let mut secrets = DomainSecrets::from_entropy(&[6; 128]);
        while secrets.rotate(&[7; 64]).is_ok() {}
        assert_eq!(secrets.current().0 as usize, MAX_EPOCHS);
        let full = seal(&root(), &header(), &[5; 24], &secrets);
        assert!(open_as(&root(), 1, 7, &full).is_ok());
    }
}
