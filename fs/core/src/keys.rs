//! The keys of a domain: two random roots per epoch, two permanent secrets, and everything derived from them.
//!
//! Invariant: what the inner lock uses comes from `R_in` by HKDF-SHA-512, what the outer lock uses comes from
//! `R_out` by BLAKE3; ids come from `K_id`, which no epoch changes. One key, one use. Layouts: FORMAT.md, "Keys".
//! Called by the sealing room, the tree (node key) and the account flows (making and boxing secrets).

use crate::chunk::CutKeys;
use crate::reference::Reference;
use crate::secret::{Secret, derive_key, hkdf, hmac_sha256, keyed_hash};
use sealdrive_proto::id::{Cid, DomainId, Epoch, Kind, Sid};
use sealdrive_proto::limits::MAX_CHUNK;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The epoch of a new domain. Not zero, so that a field left out is noticed.
pub const FIRST_EPOCH: Epoch = Epoch(1);
/// Most epochs a key box carries: what fits in 16 KiB with room for its seals. Rotate-with-rekey starts a new domain.
pub const MAX_EPOCHS: usize = 200;

const SECRETS_VERSION: u8 = 1;
const SECRETS_HEAD: usize = 1 + 32 + 32 + 4;
const EPOCH_LEN: usize = 4 + 32 + 32;

/// The two roots of one epoch.
pub struct EpochRoots {
    epoch: Epoch,
    r_in: Secret<32>,
    r_out: Secret<32>,
}

/// All that a domain's keys are derived from; what the key box carries.
pub struct DomainSecrets {
    k_id: Secret<32>,
    k_cdc: Secret<32>,
    epochs: Vec<EpochRoots>,
}

/// Bytes are not a domain's secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("domain secrets are malformed")]
pub struct BadSecrets;

impl DomainSecrets {
    /// A new domain from 128 random bytes: `K_id ‖ K_cdc ‖ R_in ‖ R_out`.
    pub fn from_entropy(entropy: &[u8; 128]) -> Self {
        let part = |i: usize| -> Secret<32> {
            let mut out = Secret::zeroed();
            out.expose_mut()
                .copy_from_slice(&entropy[32 * i..32 * (i + 1)]);
            out
        };
        let first = EpochRoots {
            epoch: FIRST_EPOCH,
            r_in: part(2),
            r_out: part(3),
        };
        Self {
            k_id: part(0),
            k_cdc: part(1),
            epochs: vec![first],
        }
    }

    /// Starts the next epoch from 64 random bytes: `R_in ‖ R_out`.
    pub fn rotate(&mut self, entropy: &[u8; 64]) -> Result<Epoch, BadSecrets> {
        let next = self
            .current()
            .0
            .checked_add(1)
            .filter(|_| self.epochs.len() < MAX_EPOCHS)
            .ok_or(BadSecrets)?;
        let (mut r_in, mut r_out) = (Secret::zeroed(), Secret::zeroed());
        r_in.expose_mut().copy_from_slice(&entropy[..32]);
        r_out.expose_mut().copy_from_slice(&entropy[32..]);
        self.epochs.push(EpochRoots {
            epoch: Epoch(next),
            r_in,
            r_out,
        });
        Ok(Epoch(next))
    }

    /// The newest epoch.
    pub fn current(&self) -> Epoch {
        self.epochs
            .last()
            .expect("a domain has an epoch from its birth")
            .epoch
    }

    /// What a genesis or rotate link publishes of the newest roots, so that every member can check that all got the
    /// same:
    /// `derive_key("… domain commitment", R_in ‖ R_out ‖ K_id ‖ K_cdc ‖ epoch u32)`. It hides them (they are random)
    /// and binds them. Without the domain id, which hashes the link that carries this.
    pub fn commitment(&self) -> [u8; 32] {
        let roots = self
            .epochs
            .last()
            .expect("a domain has an epoch from its birth");
        let epoch = roots.epoch.0.to_le_bytes();
        let material = [
            roots.r_in.expose(),
            roots.r_out.expose(),
            self.k_id.expose(),
            self.k_cdc.expose(),
            &epoch[..],
        ];
        *derive_key("sealdrive 2026 v1 domain commitment", &material).expose()
    }

    /// `1 ‖ K_id32 ‖ K_cdc32 ‖ count u32 ‖ count × (epoch u32 ‖ R_in32 ‖ R_out32)`, epochs rising.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Reserved whole: a growing vector would leave unwiped copies.
        let mut out = Zeroizing::new(Vec::with_capacity(
            SECRETS_HEAD + EPOCH_LEN * self.epochs.len(),
        ));
        out.push(SECRETS_VERSION);
        out.extend_from_slice(self.k_id.expose());
        out.extend_from_slice(self.k_cdc.expose());
        out.extend_from_slice(&(self.epochs.len() as u32).to_le_bytes());
        for roots in &self.epochs {
            out.extend_from_slice(&roots.epoch.0.to_le_bytes());
            out.extend_from_slice(roots.r_in.expose());
            out.extend_from_slice(roots.r_out.expose());
        }
        out
    }

    /// Reads what [`Self::encode`] wrote; refuses anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadSecrets> {
        let (head, rest) = bytes
            .split_first_chunk::<SECRETS_HEAD>()
            .ok_or(BadSecrets)?;
        let count = u32_at(head, 65) as usize;
        if head[0] != SECRETS_VERSION
            || !(1..=MAX_EPOCHS).contains(&count)
            || rest.len() != count * EPOCH_LEN
        {
            return Err(BadSecrets);
        }
        let mut epochs: Vec<EpochRoots> = Vec::with_capacity(count);
        for part in rest.chunks_exact(EPOCH_LEN) {
            let epoch = Epoch(u32_at(part, 0));
            if epochs.last().is_some_and(|last| last.epoch >= epoch) {
                return Err(BadSecrets);
            }
            epochs.push(EpochRoots {
                epoch,
                r_in: secret_at(part, 4),
                r_out: secret_at(part, 36),
            });
        }
        Ok(Self {
            k_id: secret_at(head, 1),
            k_cdc: secret_at(head, 33),
            epochs,
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn secret_at(bytes: &[u8], at: usize) -> Secret<32> {
    let mut out = Secret::zeroed();
    out.expose_mut().copy_from_slice(&bytes[at..at + 32]);
    out
}

/// Keys of one epoch and one kind.
pub(crate) struct KindKeys {
    /// `K_siv`: the inner lock.
    pub(crate) siv: Secret<64>,
    /// `K_out`: per-object keys of the outer lock, and key commitments.
    pub(crate) out: Secret<32>,
}

/// Keys of one epoch.
pub(crate) struct EpochKeys {
    pub(crate) epoch: Epoch,
    pub(crate) nonce: Secret<32>,
    sid: Secret<32>,
    kinds: [KindKeys; KINDS.len()],
}

impl EpochKeys {
    pub(crate) fn kind(&self, kind: Kind) -> &KindKeys {
        &self.kinds[index(kind)]
    }

    /// `HMAC-SHA-256(K_sid, "sid1" ‖ kind ‖ variant ‖ name)`; `name` is the cid, or the location of what has none.
    pub(crate) fn sid(&self, kind: Kind, variant: u8, name: &[u8; 32]) -> Sid {
        Sid(hmac_sha256(
            self.sid.expose(),
            &[b"sid1", &[kind as u8, variant], name],
        ))
    }
}

/// Every derived key of one domain, of all epochs. Shared as `Arc`.
pub struct DomainKeys {
    domain: DomainId,
    cid: [Secret<32>; KINDS.len()],
    node: Secret<32>,
    small: Secret<32>,
    cut: Arc<CutKeys>,
    epochs: Vec<EpochKeys>,
}

const KINDS: [Kind; 5] = [
    Kind::Data,
    Kind::Tree,
    Kind::Commit,
    Kind::Label,
    Kind::Local,
];

const fn index(kind: Kind) -> usize {
    match kind {
        Kind::Data => 0,
        Kind::Tree => 1,
        Kind::Commit => 2,
        Kind::Label => 3,
        Kind::Local => 4,
    }
}

/// BLAKE3 contexts must be constants, so one per kind.
const CID_CONTEXT: [&str; KINDS.len()] = [
    "sealdrive 2026 v1 cid data",
    "sealdrive 2026 v1 cid tree",
    "sealdrive 2026 v1 cid commit",
    "sealdrive 2026 v1 cid label",
    "sealdrive 2026 v1 cid local",
];
const OUT_CONTEXT: [&str; KINDS.len()] = [
    "sealdrive 2026 v1 outer data",
    "sealdrive 2026 v1 outer tree",
    "sealdrive 2026 v1 outer commit",
    "sealdrive 2026 v1 outer label",
    "sealdrive 2026 v1 outer local",
];

impl DomainKeys {
    /// Derives everything once, at unlock.
    pub fn derive(domain: DomainId, secrets: &DomainSecrets) -> Self {
        let id = domain.as_bytes();
        let permanent = |context| derive_key(context, &[secrets.k_id.expose(), id]);
        Self {
            domain,
            cid: CID_CONTEXT.map(permanent),
            node: permanent("sealdrive 2026 v1 node cut"),
            small: permanent("sealdrive 2026 v1 small"),
            cut: Arc::new(CutKeys::derive(secrets.k_cdc.expose())),
            epochs: secrets
                .epochs
                .iter()
                .map(|roots| derive_epoch(id, roots))
                .collect(),
        }
    }

    /// The domain.
    pub fn domain(&self) -> DomainId {
        self.domain
    }

    /// The newest epoch: what is sealed now is sealed under it.
    pub fn epoch(&self) -> Epoch {
        self.current().epoch
    }

    /// Names `plaintext` by its keyed hash, in the current epoch, variant 0.
    pub fn reference(&self, kind: Kind, plaintext: &[u8]) -> Reference {
        assert!(
            (1..=MAX_CHUNK).contains(&plaintext.len()),
            "a chunk has 1 to MAX_CHUNK bytes"
        );
        let plain_len = plaintext.len() as u32;
        Reference {
            epoch: self.epoch(),
            cid: self.cid(kind, plaintext),
            plain_len,
            variant: 0,
        }
    }

    /// Keyed hash of a plaintext.
    pub fn cid(&self, kind: Kind, plaintext: &[u8]) -> Cid {
        Cid(keyed_hash(self.cid[index(kind)].expose(), &[plaintext]))
    }

    /// The id the server knows the object by, in the reference's own epoch (which may be older than ours).
    /// An epoch this device has no key for gives an id that no object has.
    pub fn sid(&self, kind: Kind, r: &Reference) -> Sid {
        match self.of_epoch(r.epoch) {
            Some(keys) => keys.sid(kind, r.variant, r.cid.as_bytes()),
            None => Sid([0; 32]),
        }
    }

    /// The ids to try for a reference, oldest epoch first: re-encrypted objects stand under later epochs.
    pub fn sids(&self, kind: Kind, r: &Reference) -> impl Iterator<Item = (Epoch, Sid)> {
        let (variant, cid) = (r.variant, r.cid);
        let from = r.epoch;
        let known = self.epochs.iter().filter(move |keys| keys.epoch >= from);
        known.map(move |keys| (keys.epoch, keys.sid(kind, variant, cid.as_bytes())))
    }

    /// Digest that recognises an unchanged small file without a chunk of its own.
    pub fn small_digest(&self, content: &[u8]) -> [u8; 32] {
        keyed_hash(self.small.expose(), &[content])
    }

    /// Key of the tree's content-defined node borders.
    pub fn node_key(&self) -> &[u8; 32] {
        self.node.expose()
    }

    /// Keys of the chunker.
    pub fn cutter(&self) -> Arc<CutKeys> {
        Arc::clone(&self.cut)
    }

    pub(crate) fn current(&self) -> &EpochKeys {
        self.epochs
            .last()
            .expect("a domain has an epoch from its birth")
    }

    pub(crate) fn of_epoch(&self, epoch: Epoch) -> Option<&EpochKeys> {
        self.epochs.iter().find(|keys| keys.epoch == epoch)
    }
}

fn derive_epoch(domain: &[u8; 32], roots: &EpochRoots) -> EpochKeys {
    let e = roots.epoch.0.to_le_bytes();
    let (r_in, r_out) = (roots.r_in.expose(), roots.r_out.expose());
    EpochKeys {
        epoch: roots.epoch,
        nonce: derive_key("sealdrive 2026 v1 nonce", &[r_out, domain, &e]),
        sid: hkdf(&[], r_in, &[b"sealdrive/v1/sid", domain, &e]),
        kinds: KINDS.map(|kind| KindKeys {
            siv: hkdf(
                &[],
                r_in,
                &[b"sealdrive/v1/inner/", &[kind as u8], domain, &e],
            ),
            out: derive_key(OUT_CONTEXT[index(kind)], &[r_out, domain, &e]),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> DomainSecrets {
        DomainSecrets::from_entropy(&std::array::from_fn(|i| i as u8))
    }

    #[test]
    fn secrets_round_trip_and_refusals() {
        let mut one = secrets();
        one.rotate(&[9; 64]).expect("second epoch");
        let bytes = one.encode();
        assert_eq!(bytes.len(), SECRETS_HEAD + 2 * EPOCH_LEN);
        let Ok(two) = DomainSecrets::decode(&bytes) else {
            panic!("decodes")
        };
        assert_eq!(*two.encode(), *bytes);
        assert!(DomainSecrets::decode(&bytes[..bytes.len() - 1]).is_err());
        let mut falling = bytes.to_vec();
        falling[SECRETS_HEAD + EPOCH_LEN] = 1;
        assert!(DomainSecrets::decode(&falling).is_err(), "epochs must rise");
        let mut version = bytes.to_vec();
        version[0] = 2;
        assert!(DomainSecrets::decode(&version).is_err());
    }

    #[test]
    fn ids_survive_rotation_and_sids_do_not() {
        let (before, mut later) = (DomainKeys::derive(DomainId([1; 32]), &secrets()), secrets());
        later.rotate(&[9; 64]).expect("second epoch");
        let after = DomainKeys::derive(DomainId([1; 32]), &later);
        let old = before.reference(Kind::Data, b"same");
        let new = after.reference(Kind::Data, b"same");
        assert_eq!(old.cid, new.cid);
        assert_eq!(after.sid(Kind::Data, &old), before.sid(Kind::Data, &old));
        assert_ne!(after.sid(Kind::Data, &new), before.sid(Kind::Data, &old));
        let tried: Vec<_> = after.sids(Kind::Data, &old).collect();
        assert_eq!(
            tried,
            [
                (Epoch(1), before.sid(Kind::Data, &old)),
                (Epoch(2), after.sid(Kind::Data, &new))
            ]
        );
        assert_eq!(
            before.sid(Kind::Data, &new),
            Sid([0; 32]),
            "no key for that epoch"
        );
    }

    #[test]
    fn everything_depends_on_kind_domain_and_variant() {
        let (a, b) = (
            DomainKeys::derive(DomainId([1; 32]), &secrets()),
            DomainKeys::derive(DomainId([2; 32]), &secrets()),
        );
        let r = a.reference(Kind::Data, b"x");
        assert_ne!(a.cid(Kind::Data, b"x"), a.cid(Kind::Tree, b"x"));
        assert_ne!(a.cid(Kind::Data, b"x"), b.cid(Kind::Data, b"x"));
        assert_ne!(a.sid(Kind::Data, &r), b.sid(Kind::Data, &r));
        assert_ne!(a.sid(Kind::Data, &r), a.sid(Kind::Tree, &r));
        assert_ne!(
            a.sid(Kind::Data, &r),
            a.sid(Kind::Data, &Reference { variant: 1, ..r })
        );
        assert_ne!(a.small_digest(b"x"), *a.cid(Kind::Data, b"x").as_bytes());
    }

    #[test]
    fn the_commitment_binds_every_secret_and_the_epoch() {
        let base = secrets().commitment();
        for i in [0, 32, 64, 96] {
            let mut entropy: [u8; 128] = std::array::from_fn(|i| i as u8);
            entropy[i] ^= 1;
            assert_ne!(
                DomainSecrets::from_entropy(&entropy).commitment(),
                base,
                "byte {i}"
            );
        }
        let mut rotated = secrets();
        rotated
            .rotate(&std::array::from_fn(|i| 64 + i as u8))
            .expect("second epoch");
        assert_ne!(
            rotated.commitment(),
            base,
            "the same roots in another epoch"
        );
    }
}
