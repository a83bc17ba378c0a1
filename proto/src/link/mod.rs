//! The account chain: signed links that say which devices and drives an account has. FORMAT.md, "Account chain".
//!
//! Invariant: the bytes that were signed are kept, sent and hashed. Parsing gives the shape; only `AccountChain`
//! (chain.rs) says whether a link continues a chain and whether its signer may sign it, by one rule for both sides.
//! Called by the client (makes and verifies chains) and by the server (accepts links, derives who may log in).

mod body;
mod chain;

pub use body::{
    Compression, DeviceKeys, DriveConfig, DriveHead, Genesis, LinkBody, MAX_ZSTD_LEVEL,
};
pub use chain::{AccountChain, ChainError, Device, Drive};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use crate::fields::{Fields, Misshapen};
use crate::id::{AccountId, DeviceId, DomainId, DriveId, LinkHash};
use crate::limits::MAX_LINK;

const LABEL: &[u8; 18] = b"sealdrive/v1/link\0";
const HASH_LABEL: &[u8] = b"sealdrive/v1/link-hash";
const PRIVATE_DOMAIN_LABEL: &[u8] = b"sealdrive/v1/private-domain";
const VERSION: u8 = 1;
const SIGNATURE_LEN: usize = 64;
/// What a genesis link names as account and predecessor.
const NOTHING: [u8; 32] = [0; 32];

/// Why bytes are not a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Wrong length somewhere.
    #[error("link is misshapen: {0}")]
    Misshapen(#[from] Misshapen),
    /// Longer than `limits::MAX_LINK`.
    #[error("link is too long")]
    TooLong,
    /// Another label, version, link type or signer role: made by a newer version, or no link at all.
    #[error("not a link of a known format")]
    Format,
    /// A field holds a value the format does not allow.
    #[error("link holds an impossible {0}")]
    Value(&'static str),
}

/// Who signed a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// A device that is active at this point of the chain.
    Device(DeviceId),
    /// The enrol key named in the genesis: may add a device, nothing else.
    Enrol,
}

/// What a link says, before it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFields {
    /// The account; zeros in a genesis, which cannot know its own hash.
    pub account: AccountId,
    /// Position in the chain: 0 for the genesis.
    pub seq: u64,
    /// Hash of the link before; zeros in a genesis.
    pub prev: LinkHash,
    /// Who signs.
    pub signer: Signer,
    /// What happens.
    pub body: LinkBody,
}

/// One signed link, as stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    fields: LinkFields,
    bytes: Vec<u8>,
}

impl LinkFields {
    /// The fields of a genesis, signed by the device it names.
    pub fn genesis(genesis: Genesis) -> Self {
        Self {
            account: AccountId(NOTHING),
            seq: 0,
            prev: LinkHash(NOTHING),
            signer: Signer::Device(genesis.device.id()),
            body: LinkBody::Genesis(genesis),
        }
    }

    /// Encodes and signs. Refuses what `Link::parse` would refuse, so that no invalid link ever gets a signature.
    pub fn sign(&self, key: &SigningKey) -> Result<Link, LinkError> {
        let mut bytes = self.encode();
        let signature = key.sign(&bytes).to_bytes();
        bytes.extend_from_slice(&signature);
        Link::parse(&bytes)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(LABEL);
        out.push(VERSION);
        out.extend_from_slice(self.account.as_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(self.prev.as_bytes());
        let (role, device) = match self.signer {
            Signer::Device(device) => (1, device),
            Signer::Enrol => (2, DeviceId([0; 16])),
        };
        out.push(role);
        out.extend_from_slice(device.as_bytes());
        self.body.encode(&mut out);
        out
    }
}

impl Link {
    /// Parses the shape; nothing is verified yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, LinkError> {
        if bytes.len() > MAX_LINK {
            return Err(LinkError::TooLong);
        }
        let signed_len = bytes
            .len()
            .checked_sub(SIGNATURE_LEN)
            .ok_or(Misshapen::Truncated)?;
        let mut reader = Fields::new(&bytes[..signed_len]);
        if reader.array()? != *LABEL || reader.u8()? != VERSION {
            return Err(LinkError::Format);
        }
        let account = AccountId(reader.array()?);
        let seq = reader.u64()?;
        let prev = LinkHash(reader.array()?);
        let signer = match (reader.u8()?, reader.array()?) {
            (1, device) => Signer::Device(DeviceId(device)),
            (2, device) if device == [0; 16] => Signer::Enrol,
            _ => return Err(LinkError::Format),
        };
        let body = LinkBody::parse(&mut reader)?;
        reader.finish()?;
        let fields = LinkFields {
            account,
            seq,
            prev,
            signer,
            body,
        };
        Ok(Self {
            fields,
            bytes: bytes.to_vec(),
        })
    }

    /// What it says.
    pub fn fields(&self) -> &LinkFields {
        &self.fields
    }

    /// The signed bytes with the signature: what is sent and stored.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Name of the link. The signature is left out, so one content has one name.
    pub fn hash(&self) -> LinkHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(HASH_LABEL).update(self.signed());
        LinkHash(*hasher.finalize().as_bytes())
    }

    fn signed(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() - SIGNATURE_LEN]
    }

    fn verify(&self, key: &VerifyingKey) -> bool {
        let signature = &self.bytes[self.bytes.len() - SIGNATURE_LEN..];
        Signature::from_slice(signature).is_ok_and(|s| key.verify_strict(self.signed(), &s).is_ok())
    }
}

impl AccountId {
    /// The account a genesis founds: the hash of that link.
    pub fn of(genesis: &Link) -> Self {
        Self(genesis.hash().0)
    }

    /// The domain of the account's private drives.
    pub fn private_domain(&self) -> DomainId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(PRIVATE_DOMAIN_LABEL).update(self.as_bytes());
        DomainId(*hasher.finalize().as_bytes())
    }
}

impl DriveId {
    /// The drive a create-drive link founds: the hash of that link.
    pub fn of(create: &Link) -> Self {
        Self(create.hash().0)
    }
}

impl DeviceId {
    /// The device that owns a signing key: first 16 bytes of BLAKE3 of the public key.
    pub fn of(signing_pk: &VerifyingKey) -> Self {
        let hash = blake3::hash(signing_pk.as_bytes());
        Self(std::array::from_fn(|i| hash.as_bytes()[i]))
    }
}
