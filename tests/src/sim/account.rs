//! One account with its drive and devices, the same in every world.
//!
//! Invariant: everything comes from fixed keys. Called by `world.rs`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use sealdrive::engine::EngineConfig;
use sealdrive_core::keys::{DomainKeys, DomainSecrets};
use sealdrive_core::local::LocalKeys;
use sealdrive_proto::id::{AccountId, DeviceId, DriveId};
use sealdrive_proto::link::{
    AccountChain, Compression, DeviceKeys, DriveConfig, Genesis, LinkBody, LinkFields, Signer,
};
use sealdrive_proto::transcript::Role;
use sealdrive_server::core::{ChangeError, Core};

use super::disk::Disk;

/// Held in reserve on a client's disk, bytes: less than what a disk that fills up may have left, so that it is used up.
const RESERVE: u64 = 64 << 10;
/// Devices of the account; the first founds it.
const DEVICES: u8 = 3;

/// Account, drive, and the links that say so.
#[derive(Clone)]
pub(super) struct Household {
    pub(super) chain: AccountChain,
    pub(super) drive: DriveId,
    links: Vec<Bytes>,
}

/// The key of device `n`.
pub(super) fn signing(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn keys_of(n: u8) -> DeviceKeys {
    DeviceKeys {
        sign: signing(n).verifying_key(),
        box_pk: Vec::new(),
    }
}

/// The id of device `n`.
pub(super) fn device(n: u8) -> DeviceId {
    keys_of(n).id()
}

impl Household {
    pub(super) fn found() -> Self {
        let genesis = Genesis {
            salt: [9; 32],
            device: keys_of(1),
            slot_fetch: signing(107).verifying_key(),
            enrol: signing(108).verifying_key(),
            domain_commitment: [0; 32],
        };
        let first = LinkFields::genesis(genesis).sign(&signing(1)).unwrap();
        let mut chain = AccountChain::found(&first).unwrap();
        let mut links = vec![Bytes::copy_from_slice(first.bytes())];
        let mut append = |body| {
            let link = chain
                .next_link(Signer::Device(device(1)), body)
                .sign(&signing(1))
                .unwrap();
            chain.append(&link).unwrap();
            links.push(Bytes::copy_from_slice(link.bytes()));
        };
        for n in 2..=DEVICES {
            append(LinkBody::AddDevice {
                device: keys_of(n),
                label: Vec::new(),
            });
        }
        append(LinkBody::CreateDrive {
            nonce: [1; 16],
            config: DriveConfig {
                min_chunk: 128 << 10,
                avg_chunk: 320 << 10,
                max_chunk: 1 << 20,
                compression: Compression::Zstd(1),
            },
            label: Vec::new(),
        });
        let drive = *chain.drives().keys().next().unwrap();
        Self {
            chain,
            drive,
            links,
        }
    }

    pub(super) fn account(&self) -> AccountId {
        self.chain.account()
    }

    /// Makes the account known to a server that may know it already.
    pub(super) async fn register(&self, core: &Core) -> Result<(), ChangeError> {
        let (genesis, rest) = self.links.split_first().unwrap();
        let proposed = core.book.propose_account(genesis, b"slot", b"key box");
        if let Some(records) = proposed.unwrap() {
            core.change(&records).await?;
        }
        for link in rest {
            let proposed = core.book.propose_link(&self.account(), Role::Device, link);
            if let Some(record) = proposed.unwrap() {
                core.change(&[record]).await?;
            }
        }
        Ok(())
    }

    /// What device `n` mounts the drive with, its state on `disk`.
    pub(super) fn config(&self, disk: &Disk, n: u8) -> EngineConfig {
        let secrets = DomainSecrets::from_entropy(&[0x44; 128]);
        let domain = self.account().private_domain();
        let mut config = EngineConfig::new(
            "nowhere",
            self.drive,
            device(n),
            Arc::new(DomainKeys::derive(domain, &secrets)),
            Arc::new(LocalKeys::derive(&[n; 32], &[n + 1; 32])),
            Arc::new(signing(n)),
            self.chain.clone(),
        );
        config.medium = Some(disk.root());
        config.commit_interval = Duration::from_secs(2);
        config.join_patience = Duration::from_secs(600);
        config.workers = 2;
        config.reserve = RESERVE;
        config
    }
}
