//! Replaying an account chain: which link may follow which, and who may sign it.
//!
//! Invariant: a value of `AccountChain` stands for a chain in which every link continued its predecessor and was
//! signed by someone allowed to at that point. A refused link changes nothing.
//! Called by the client before it believes anything the server says, and by the server before it stores a link.

use std::collections::BTreeMap;

use ed25519_dalek::VerifyingKey;

use super::{DeviceKeys, DriveConfig, DriveHead, Genesis, Link, LinkBody, NOTHING, Signer};
use crate::id::{AccountId, DeviceId, DomainId, DriveId, LinkHash};
use crate::limits::{MAX_DEVICES, MAX_DRIVES};

/// Why a link does not continue a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No links at all, or the first is no genesis, or a later one is.
    #[error("an account chain starts with one genesis")]
    Genesis,
    /// Made for another account.
    #[error("link belongs to another account")]
    Account,
    /// Not the next number, or not the hash of the head.
    #[error("link does not continue the head")]
    Stale,
    /// The signer is unknown, revoked, or may not do this.
    #[error("signer may not sign this link")]
    Signer,
    /// The signature does not hold.
    #[error("link signature does not hold")]
    Signature,
    /// The device was in the chain before: ids never come back.
    #[error("device is already in the chain")]
    DeviceExists,
    /// The device to revoke is unknown or already out.
    #[error("no such active device")]
    NoDevice,
    /// A revocation does not name every drive exactly once.
    #[error("a revocation names the head of every drive")]
    Heads,
    /// More devices or drives than an account may have.
    #[error("account has too many devices or drives")]
    TooMany,
}

/// A device as the chain knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its keys.
    pub keys: DeviceKeys,
    /// Its name: a sealed label, or empty.
    pub label: Vec<u8>,
    /// Link that added it.
    pub added_seq: u64,
    /// Link that revoked it, with the heads that still count; `None` while active.
    pub revoked: Option<(u64, Vec<DriveHead>)>,
}

impl Device {
    /// Whether it may log in and sign.
    pub fn is_active(&self) -> bool {
        self.revoked.is_none()
    }
}

/// A drive as the chain knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Its configuration.
    pub config: DriveConfig,
    /// Its name: a sealed label, or empty.
    pub label: Vec<u8>,
    /// Link that created it.
    pub created_seq: u64,
}

/// The state an account chain amounts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountChain {
    account: AccountId,
    genesis: Genesis,
    head_seq: u64,
    head: LinkHash,
    /// Every link's hash, by number: the last is `head`.
    hashes: Vec<LinkHash>,
    devices: BTreeMap<DeviceId, Device>,
    drives: BTreeMap<DriveId, Drive>,
}

impl AccountChain {
    /// Replays a whole chain, oldest link first.
    pub fn replay<'a>(links: impl IntoIterator<Item = &'a Link>) -> Result<Self, ChainError> {
        let mut links = links.into_iter();
        let mut chain = Self::found(links.next().ok_or(ChainError::Genesis)?)?;
        for link in links {
            chain.append(link)?;
        }
        Ok(chain)
    }

    /// A chain of one link.
    pub fn found(link: &Link) -> Result<Self, ChainError> {
        let fields = link.fields();
        let LinkBody::Genesis(genesis) = &fields.body else {
            return Err(ChainError::Genesis);
        };
        let first = fields.account.0 == NOTHING && fields.seq == 0 && fields.prev.0 == NOTHING;
        if !first {
            return Err(ChainError::Genesis);
        }
        if fields.signer != Signer::Device(genesis.device.id()) {
            return Err(ChainError::Signer);
        }
        if !link.verify(&genesis.device.sign) {
            return Err(ChainError::Signature);
        }
        let device = Device {
            keys: genesis.device.clone(),
            label: Vec::new(),
            added_seq: 0,
            revoked: None,
        };
        Ok(Self {
            account: AccountId::of(link),
            genesis: genesis.clone(),
            head_seq: 0,
            head: link.hash(),
            hashes: vec![link.hash()],
            devices: BTreeMap::from([(device.keys.id(), device)]),
            drives: BTreeMap::new(),
        })
    }

    /// Adds the next link, or changes nothing.
    pub fn append(&mut self, link: &Link) -> Result<(), ChainError> {
        let fields = link.fields();
        if matches!(fields.body, LinkBody::Genesis(_)) {
            return Err(ChainError::Genesis);
        }
        if fields.account != self.account {
            return Err(ChainError::Account);
        }
        if Some(fields.seq) != self.head_seq.checked_add(1) || fields.prev != self.head {
            return Err(ChainError::Stale);
        }
        if !link.verify(&self.signer_key(fields.signer, &fields.body)?) {
            return Err(ChainError::Signature);
        }
        self.check(&fields.body)?;
        self.apply(link);
        Ok(())
    }

    /// The one place that says who may sign what.
    fn signer_key(&self, signer: Signer, body: &LinkBody) -> Result<VerifyingKey, ChainError> {
        match (signer, body) {
            (Signer::Device(id), _) => self
                .active_device(&id)
                .map(|device| device.keys.sign)
                .ok_or(ChainError::Signer),
            (Signer::Enrol, LinkBody::AddDevice { .. }) => Ok(self.genesis.enrol),
            (Signer::Enrol, _) => Err(ChainError::Signer),
        }
    }

    fn check(&self, body: &LinkBody) -> Result<(), ChainError> {
        match body {
            LinkBody::Genesis(_) => Err(ChainError::Genesis),
            LinkBody::AddDevice { device, .. } if self.devices.contains_key(&device.id()) => {
                Err(ChainError::DeviceExists)
            }
            LinkBody::AddDevice { .. } if self.devices.len() >= MAX_DEVICES => {
                Err(ChainError::TooMany)
            }
            LinkBody::CreateDrive { .. } if self.drives.len() >= MAX_DRIVES => {
                Err(ChainError::TooMany)
            }
            LinkBody::RevokeDevice { device, heads } => {
                self.active_device(device).ok_or(ChainError::NoDevice)?;
                // Both are in rising order of drive id.
                let named = heads.iter().map(|head| &head.drive);
                if named.eq(self.drives.keys()) {
                    Ok(())
                } else {
                    Err(ChainError::Heads)
                }
            }
            LinkBody::AddDevice { .. } | LinkBody::CreateDrive { .. } => Ok(()),
        }
    }

    fn apply(&mut self, link: &Link) {
        let fields = link.fields();
        let seq = fields.seq;
        match fields.body.clone() {
            LinkBody::Genesis(_) => unreachable!("checked before"),
            LinkBody::AddDevice { device, label } => {
                let entry = Device {
                    keys: device,
                    label,
                    added_seq: seq,
                    revoked: None,
                };
                self.devices.insert(entry.keys.id(), entry);
            }
            LinkBody::RevokeDevice { device, heads } => {
                if let Some(entry) = self.devices.get_mut(&device) {
                    entry.revoked = Some((seq, heads));
                }
            }
            LinkBody::CreateDrive { config, label, .. } => {
                self.drives.insert(
                    DriveId::of(link),
                    Drive {
                        config,
                        label,
                        created_seq: seq,
                    },
                );
            }
        }
        self.head_seq = seq;
        self.head = link.hash();
        self.hashes.push(self.head);
    }

    /// The account.
    pub fn account(&self) -> AccountId {
        self.account
    }

    /// What the account was founded with.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The domain of its private drives.
    pub fn private_domain(&self) -> DomainId {
        self.account.private_domain()
    }

    /// Number of the newest link.
    pub fn head_seq(&self) -> u64 {
        self.head_seq
    }

    /// Hash of the newest link: the membership head.
    pub fn head(&self) -> LinkHash {
        self.head
    }

    /// Number of the link with this hash, if it is one of this chain.
    pub fn position(&self, hash: &LinkHash) -> Option<u64> {
        self.hashes
            .iter()
            .rposition(|at| at == hash)
            .map(|at| at as u64)
    }

    /// All devices that ever were, by id.
    pub fn devices(&self) -> &BTreeMap<DeviceId, Device> {
        &self.devices
    }

    /// A device that may log in and sign now.
    pub fn active_device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id).filter(|device| device.is_active())
    }

    /// All drives, by id.
    pub fn drives(&self) -> &BTreeMap<DriveId, Drive> {
        &self.drives
    }

    /// The fields of a link that would continue this chain.
    pub fn next_link(&self, signer: Signer, body: LinkBody) -> super::LinkFields {
        super::LinkFields {
            account: self.account,
            seq: self.head_seq + 1,
            prev: self.head,
            signer,
            body,
        }
    }
}

#[cfg(test)]
mod tests;
