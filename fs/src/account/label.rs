//! Names for people (devices, drives), sealed into the links that bring them: the server sees none of them.
//!
//! Invariant: a label opens only in the link it was made for. Called by the account flows.

use std::sync::Arc;

use sealdrive_core::keys::DomainKeys;
use sealdrive_core::seal::{Sealer, label_location};
use sealdrive_proto::id::{AccountId, DeviceId, Kind, LinkHash};

use super::AccountError;
use crate::keystore::MAX_NAME;

/// What a label names. The numbers are those of the link types.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// A device, by id.
    Device(DeviceId),
    /// A drive, by the nonce of its link: its id is the hash of the link that holds the label.
    Drive([u8; 16]),
}

impl Target {
    fn location(self, account: AccountId) -> [u8; 32] {
        let (kind, id) = match self {
            Self::Device(id) => (2, id.0),
            Self::Drive(nonce) => (4, nonce),
        };
        let mut target = [0; 32];
        target[..16].copy_from_slice(&id);
        label_location(&LinkHash(account.0), kind, &target, 1)
    }
}

/// Seals and opens labels of one account.
pub(super) struct Labels {
    account: AccountId,
    sealer: Sealer,
}

impl Labels {
    pub(super) fn new(account: AccountId, keys: DomainKeys) -> Self {
        Self {
            account,
            sealer: Sealer::new(Arc::new(keys)),
        }
    }

    pub(super) fn seal(&mut self, target: Target, name: &str) -> Vec<u8> {
        self.sealer
            .seal_located(Kind::Label, &target.location(self.account), name.as_bytes())
            .to_vec()
    }

    /// The name; empty for an empty label.
    pub(super) fn open(&mut self, target: Target, label: &[u8]) -> Result<String, AccountError> {
        if label.is_empty() {
            return Ok(String::new());
        }
        let name = self
            .sealer
            .open_located(Kind::Label, &target.location(self.account), label)?;
        let name = String::from_utf8(name.to_vec()).unwrap_or_default();
        Ok(if check_name(&name).is_ok() {
            name
        } else {
            String::new()
        })
    }
}

/// Names are short, and safe to print, to type and to put into fstab.
pub(super) fn check_name(name: &str) -> Result<(), AccountError> {
    let fine = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fine) || name.starts_with('-')
    {
        return Err(AccountError::Name(format!(
            "{:?} cannot be a name: letters, digits, '-', '_' and '.', at most {MAX_NAME} bytes",
            name.chars().take(80).collect::<String>()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealdrive_core::keys::DomainSecrets;

    #[test]
    fn a_label_opens_in_its_own_link_only() {
        let account = AccountId([1; 32]);
        let secrets = DomainSecrets::from_entropy(&[2; 128]);
        let mut labels = Labels::new(
            account,
            DomainKeys::derive(account.private_domain(), &secrets),
        );
        let sealed = labels.seal(Target::Drive([3; 16]), "laptop");
        assert!(sealed.len() <= sealdrive_proto::limits::MAX_LABEL);
        assert_eq!(
            labels.open(Target::Drive([3; 16]), &sealed).unwrap(),
            "laptop"
        );
        assert!(labels.open(Target::Drive([4; 16]), &sealed).is_err());
        assert!(
            labels
                .open(Target::Device(DeviceId([3; 16])), &sealed)
                .is_err()
        );
        assert_eq!(labels.open(Target::Drive([3; 16]), b"").unwrap(), "");
    }

    #[test]
    fn names_are_safe_to_print() {
        for good in ["laptop", "büro-2", "a.b_c"] {
            check_name(good).unwrap();
        }
        for bad in ["", "-rf", "a b", "a/b", "x\u{1b}[2J", &"n".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
