//! The signed commit: one link of a drive's chain, naming a sealed body. FORMAT.md, "Commit chain".
//!
//! Invariant: the bytes that were signed are the bytes that are kept, sent and hashed; nothing is ever re-encoded.
//! A `SignedCommit` has the right shape; whether its signature holds is only known after `verify`.
//! Called by the client (makes and verifies the chain) and by the server (compares and swaps, never rewrites).

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use crate::fields::{Fields, Misshapen};
use crate::id::{CommitHash, DeviceId, DriveId, Epoch};

const LABEL: &[u8; 20] = b"sealdrive/v1/commit\0";
const HASH_LABEL: &[u8] = b"sealdrive/v1/commit-hash";
const VERSION: u8 = 1;
/// Length of the signed part, bytes.
pub const SIGNED_LEN: usize = 20 + 1 + 32 + 8 + 32 + 32 + 16 + 8 + 8 + 4 + 32;
/// Length of a commit, bytes: the signed part and its Ed25519 signature.
pub const COMMIT_RECORD_LEN: usize = SIGNED_LEN + 64;

/// Why bytes are not an acceptable commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Wrong length.
    #[error("commit is misshapen: {0}")]
    Misshapen(#[from] Misshapen),
    /// Another label or format version.
    #[error("not a commit of this format")]
    Format,
    /// `seq` is 0, or `prev`/`skip` are named where there is no predecessor (or not named where there is one).
    #[error("commit names impossible predecessors")]
    Predecessor,
    /// The signature does not hold under the key given.
    #[error("commit signature does not hold")]
    Signature,
}

/// What a commit says, in the clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitFields {
    /// The drive.
    pub drive: DriveId,
    /// Position in the chain: 1, 2, 3 …
    pub seq: u64,
    /// Hash of commit `seq - 1` (`CommitHash::NONE` for the first).
    pub prev: CommitHash,
    /// Hash of commit `skip_seq(seq)` (`CommitHash::NONE` where that is 0).
    pub skip: CommitHash,
    /// The device that signs.
    pub device: DeviceId,
    /// Counts the commits this device signed for this drive, accepted or not.
    pub device_seq: u64,
    /// Writer lease under which it was made.
    pub lease_epoch: u64,
    /// Key epoch of the body.
    pub key_epoch: Epoch,
    /// BLAKE3 of the sealed body object.
    pub body_hash: [u8; 32],
}

/// The commit that `seq` names with its skip hash: `seq` with its lowest set bit cleared. 0 means none.
/// A new machine reaches any commit from the head in O(log n) steps.
pub const fn skip_seq(seq: u64) -> u64 {
    seq & seq.wrapping_sub(1)
}

/// BLAKE3 of a sealed commit body, as `CommitFields::body_hash` wants it.
pub fn body_hash(body: &[u8]) -> [u8; 32] {
    *blake3::hash(body).as_bytes()
}

impl CommitFields {
    /// Encodes and signs. The result is what is made durable, sent and hashed from now on.
    pub fn sign(&self, key: &SigningKey) -> SignedCommit {
        let mut bytes = [0u8; COMMIT_RECORD_LEN];
        let (signed, signature) = bytes.split_at_mut(SIGNED_LEN);
        signed.copy_from_slice(&self.encode());
        signature.copy_from_slice(&key.sign(signed).to_bytes());
        SignedCommit {
            fields: self.clone(),
            bytes,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SIGNED_LEN);
        out.extend_from_slice(LABEL);
        out.push(VERSION);
        out.extend_from_slice(self.drive.as_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(self.prev.as_bytes());
        out.extend_from_slice(self.skip.as_bytes());
        out.extend_from_slice(self.device.as_bytes());
        out.extend_from_slice(&self.device_seq.to_le_bytes());
        out.extend_from_slice(&self.lease_epoch.to_le_bytes());
        out.extend_from_slice(&self.key_epoch.0.to_le_bytes());
        out.extend_from_slice(&self.body_hash);
        assert_eq!(out.len(), SIGNED_LEN, "commit layout");
        out
    }

    fn check_predecessors(&self) -> Result<(), CommitError> {
        let first = self.seq == 1;
        let no_skip = skip_seq(self.seq) == 0;
        let named_right =
            (self.prev == CommitHash::NONE) == first && (self.skip == CommitHash::NONE) == no_skip;
        if self.seq == 0 || !named_right {
            Err(CommitError::Predecessor)
        } else {
            Ok(())
        }
    }
}

/// A commit as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCommit {
    fields: CommitFields,
    bytes: [u8; COMMIT_RECORD_LEN],
}

impl SignedCommit {
    /// Parses the shape. Say `verify` before believing any of it.
    pub fn parse(bytes: &[u8]) -> Result<Self, CommitError> {
        let mut reader = Fields::new(bytes);
        let whole: [u8; COMMIT_RECORD_LEN] = reader.array()?;
        reader.finish()?;
        let mut reader = Fields::new(&whole);
        if reader.array()? != *LABEL || reader.u8()? != VERSION {
            return Err(CommitError::Format);
        }
        let fields = CommitFields {
            drive: DriveId(reader.array()?),
            seq: reader.u64()?,
            prev: CommitHash(reader.array()?),
            skip: CommitHash(reader.array()?),
            device: DeviceId(reader.array()?),
            device_seq: reader.u64()?,
            lease_epoch: reader.u64()?,
            key_epoch: Epoch(reader.u32()?),
            body_hash: reader.array()?,
        };
        fields.check_predecessors()?;
        Ok(Self {
            fields,
            bytes: whole,
        })
    }

    /// What it says.
    pub fn fields(&self) -> &CommitFields {
        &self.fields
    }

    /// The bytes that were signed, with the signature: what is sent and stored.
    pub fn bytes(&self) -> &[u8; COMMIT_RECORD_LEN] {
        &self.bytes
    }

    /// Checks the signature (Ed25519, `verify_strict`: no small-order keys, no malleable signatures).
    pub fn verify(&self, key: &VerifyingKey) -> Result<(), CommitError> {
        let (signed, signature) = self.bytes.split_at(SIGNED_LEN);
        let signature = Signature::from_slice(signature).map_err(|_| CommitError::Signature)?;
        key.verify_strict(signed, &signature)
            .map_err(|_| CommitError::Signature)
    }

    /// The commit's name in the chain. The signature is left out, so one content has one name.
    pub fn hash(&self) -> CommitHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(HASH_LABEL).update(&self.bytes[..SIGNED_LEN]);
        CommitHash(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn fields(seq: u64) -> CommitFields {
        let hash = |at: u64, n| {
            if at == 0 {
                CommitHash::NONE
            } else {
                CommitHash([n; 32])
            }
        };
        CommitFields {
            drive: DriveId([1; 32]),
            seq,
            prev: hash(seq - 1, 2),
            skip: hash(skip_seq(seq), 3),
            device: DeviceId([4; 16]),
            device_seq: 9,
            lease_epoch: 7,
            key_epoch: Epoch(1),
            body_hash: [5; 32],
        }
    }

    #[test]
    fn round_trip_and_every_flipped_bit_is_refused() {
        let commit = fields(6).sign(&key(1));
        let again = SignedCommit::parse(commit.bytes()).unwrap();
        assert_eq!(again, commit);
        again.verify(&key(1).verifying_key()).unwrap();
        assert_eq!(
            again.verify(&key(2).verifying_key()),
            Err(CommitError::Signature)
        );
        for bit in 0..COMMIT_RECORD_LEN * 8 {
            let mut bytes = *commit.bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let refused = SignedCommit::parse(&bytes)
                .and_then(|c| c.verify(&key(1).verifying_key()))
                .is_err();
            assert!(refused, "bit {bit}");
        }
    }

    #[test]
    fn lengths_and_predecessors() {
        let bytes = *fields(5).sign(&key(1)).bytes();
        for len in 0..bytes.len() {
            assert!(SignedCommit::parse(&bytes[..len]).is_err());
        }
        let mut long = bytes.to_vec();
        long.push(0);
        assert!(SignedCommit::parse(&long).is_err());

        let refuse = |f: CommitFields| {
            assert_eq!(
                SignedCommit::parse(f.sign(&key(1)).bytes()),
                Err(CommitError::Predecessor)
            );
        };
        refuse(CommitFields {
            prev: CommitHash([1; 32]),
            ..fields(1)
        });
        refuse(CommitFields {
            prev: CommitHash::NONE,
            ..fields(2)
        });
        refuse(CommitFields {
            skip: CommitHash([1; 32]),
            ..fields(4)
        });
        refuse(CommitFields {
            skip: CommitHash::NONE,
            ..fields(6)
        });
        refuse(CommitFields {
            seq: 0,
            prev: CommitHash::NONE,
            skip: CommitHash::NONE,
            ..fields(1)
        });
    }

    #[test]
    fn the_hash_names_the_content_not_the_signature() {
        assert_eq!(
            fields(3).sign(&key(1)).hash(),
            fields(3).sign(&key(2)).hash()
        );
        assert_ne!(
            fields(3).sign(&key(1)).hash(),
            fields(5).sign(&key(1)).hash()
        );
    }

    #[test]
    fn skips_reach_the_first_commit_in_few_steps() {
        let mut seq = u64::MAX;
        for _ in 0..64 {
            seq = skip_seq(seq);
        }
        assert_eq!((seq, skip_seq(0), skip_seq(6), skip_seq(8)), (0, 0, 4, 0));
    }

    #[test]
    fn golden() {
        let hash = fields(6).sign(&key(1)).hash();
        assert_eq!(
            hash.to_hex(),
            "ed59400b3d6742d81885e77d6b72cf96a4cf9853aedd34d3f1d69a971130f627"
        );
    }
}
