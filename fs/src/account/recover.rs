//! A fresh machine from kit and passphrase: fetch the slot, open it, check the chain, join it as a new device.
//!
//! Invariant: the server is authenticated by the identity key on the kit; every key that comes from it is checked
//! against the chain, and the chain against the account id on the kit. Called by `recover`.

use std::path::Path;

use sealdrive_core::key_box;
use sealdrive_core::keys::{DomainKeys, DomainSecrets};
use sealdrive_core::kit::Kit;
use sealdrive_core::secret::Secret;
use sealdrive_core::slot::{AccountRoot, Expected, SlotKind, slot_fetch_key};
use sealdrive_proto::connect::{ConnectString, is_loopback};
use sealdrive_proto::id::{AccountId, DeviceId, DriveId};
use sealdrive_proto::link::{AccountChain, DeviceKeys, Link, LinkBody, Signer};

use super::init::fresh;
use super::label::{Labels, Target};
use super::{AccountError, chain, kit_file, remove_keystore, write_keystore};
use crate::home::{Home, HomeError, Profile};
use crate::keystore::{DriveKeys, Keystore};
use crate::remote::RemoteError;
use crate::remote::grpc::{Account, Identity, Security, Server};
use crate::unlock::Where;

/// Attempts to join the chain when other machines append at the same moment.
const ATTEMPTS: usize = 3;

/// What is asked for.
pub struct Recovery<'a> {
    /// The kit file.
    pub kit: &'a Path,
    /// Where the server is now, if it moved or its certificate is to be pinned from the start.
    pub server: Option<&'a ConnectString>,
    /// What this machine is to be called; sealed before anyone sees it.
    pub label: &'a str,
    /// Whether this machine's keystore asks for the passphrase as well.
    pub ask_passphrase: bool,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The account.
    pub account: AccountId,
    /// This device.
    pub device: DeviceId,
    /// Drives, by name and id.
    pub drives: Vec<(String, DriveId)>,
    /// Devices of the account, this one included, and how many of them are active.
    pub devices: usize,
}

/// Enrols this machine. `ask` gives the passphrase, and is called after the server was found to be the right one.
pub async fn recover<E: From<AccountError>>(
    home: &Home,
    wanted: &Recovery<'_>,
    place: &Where,
    ask: impl FnOnce() -> Result<zeroize::Zeroizing<String>, E>,
) -> Result<Recovered, E> {
    let prepared = prepare(home, wanted).await?;
    let passphrase = ask()?;
    Ok(prepared.enrol(home, wanted, place, &passphrase).await?)
}

/// The kit, and the server it leads to.
struct Prepared {
    kit: Kit,
    line: Account,
    connect: ConnectString,
    _lock: crate::home::HomeLock,
}

async fn prepare(home: &Home, wanted: &Recovery<'_>) -> Result<Prepared, AccountError> {
    let kit = kit_file::read(wanted.kit)?;
    let lock = home.lock()?;
    if home.is_enrolled() {
        return Err(HomeError::Occupied(home.dir().to_path_buf()).into());
    }
    let server = match wanted.server {
        Some(connect) if connect.server_pk != kit.server_pk => {
            return Err(AccountError::OtherServer);
        }
        Some(connect) => Server::from(connect),
        None => Server {
            addr: kit.address.clone(),
            server_pk: kit.server_pk,
            security: Security::AnyCertificate,
        },
    };
    let (line, server, tls_fingerprint) = reach(&kit, server).await?;
    let connect = ConnectString {
        addr: server.addr,
        server_pk: kit.server_pk,
        tls_fingerprint,
        invite: None,
    };
    Ok(Prepared {
        kit,
        line,
        connect,
        _lock: lock,
    })
}

/// A line to the server the kit names, once that has proven its identity. From then on the certificate it showed is
/// the one that counts.
async fn reach(
    kit: &Kit,
    mut server: Server,
) -> Result<(Account, Server, Option<[u8; 32]>), AccountError> {
    loop {
        let identity = Identity::slot_fetch(kit.account, slot_fetch_key(&kit.ask));
        let line = Account::new(server.clone(), identity);
        match line.verify_server().await {
            Ok(fingerprint) => return Ok((line, server, fingerprint)),
            // A server for trials on this machine may have no TLS at all; the kit does not say so.
            Err(RemoteError::Unreachable(_))
                if server.security == Security::AnyCertificate && is_loopback(&server.addr) =>
            {
                server.security = Security::Plaintext;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl Prepared {
    async fn enrol(
        &self,
        home: &Home,
        wanted: &Recovery<'_>,
        place: &Where,
        passphrase: &str,
    ) -> Result<Recovered, AccountError> {
        let account = self.kit.account;
        let found = self.line.slot().await.map_err(|error| match error {
            RemoteError::NotFound | RemoteError::Unauthenticated(_) => {
                AccountError::UnknownAccount(self.connect.addr.clone())
            }
            other => other.into(),
        })?;
        let expected = Expected {
            kind: SlotKind::Login,
            account,
            slot_generation: 0,
        };
        let (header, payload) = place.open(passphrase, &self.kit.ask, &expected, &found.slot)?;
        let payload: &[u8; 64] = payload
            .as_slice()
            .try_into()
            .map_err(|_| AccountError::Tampered("the slot carries no account root".to_owned()))?;
        let root = AccountRoot::from_bytes(payload, header.root_generation);

        let (mut known, mut links) = self.chain().await?;
        let secrets = open_box(&known, &root, &found.key_box)?;
        let keystore = Keystore {
            ask: Secret::copy_of(self.kit.ask.expose()),
            drives: drives(&links, &known, &secrets)?,
            root,
            device_seed: fresh()?,
            secrets,
        };
        let device = DeviceId::of(&keystore.signing_key().verifying_key());
        let sealed_with = if wanted.ask_passphrase {
            passphrase
        } else {
            ""
        };
        write_keystore(home, &keystore, account, sealed_with)?;
        for attempt in 1.. {
            match self.join(&known, &keystore, wanted.label).await {
                Ok(link) => {
                    known.append(&link)?;
                    links.push(link);
                    break;
                }
                Err(AccountError::Remote(RemoteError::Refused(_))) if attempt < ATTEMPTS => {
                    (known, links) = self.chain().await?;
                }
                Err(error) => {
                    remove_keystore(home);
                    return Err(error);
                }
            }
        }
        chain::store(home, &links)?;
        home.write_profile(&Profile {
            version: Profile::VERSION,
            account: account.to_hex(),
            device: device.to_hex(),
            server: self.connect.to_string(),
            ask_passphrase: wanted.ask_passphrase,
        })?;
        Ok(Recovered {
            account,
            device,
            drives: keystore
                .drives
                .iter()
                .map(|d| (d.name.clone(), d.drive))
                .collect(),
            devices: known
                .devices()
                .values()
                .filter(|device| device.is_active())
                .count(),
        })
    }

    /// The chain, verified to be this account's.
    async fn chain(&self) -> Result<(AccountChain, Vec<Link>), AccountError> {
        let bytes = self.line.chain().await?;
        let links = bytes
            .iter()
            .map(|link| Link::parse(link))
            .collect::<Result<Vec<_>, _>>()?;
        let chain = AccountChain::replay(&links)?;
        if chain.account() != self.kit.account {
            return Err(AccountError::Tampered(
                "the chain of another account".to_owned(),
            ));
        }
        Ok((chain, links))
    }

    async fn join(
        &self,
        chain: &AccountChain,
        keystore: &Keystore,
        label: &str,
    ) -> Result<Link, AccountError> {
        let keys = DomainKeys::derive(chain.private_domain(), &keystore.secrets);
        let sign = keystore.signing_key().verifying_key();
        let device = DeviceKeys {
            sign,
            box_pk: Vec::new(),
        };
        let label = Labels::new(chain.account(), keys).seal(Target::Device(device.id()), label);
        let link = chain
            .next_link(Signer::Enrol, LinkBody::AddDevice { device, label })
            .sign(&keystore.root.enrol_key())?;
        self.line.append(link.bytes()).await?;
        Ok(link)
    }
}

/// The domain secrets, if they are the ones the account was founded with.
fn open_box(
    chain: &AccountChain,
    root: &AccountRoot,
    sealed: &[u8],
) -> Result<DomainSecrets, AccountError> {
    let wrong = |what: &str| AccountError::Tampered(what.to_owned());
    if chain.genesis().enrol != root.enrol_key().verifying_key() {
        return Err(wrong("the slot belongs to another account root"));
    }
    let (header, secrets) = key_box::open(root, &chain.account(), 0, sealed)?;
    if header.domain != chain.private_domain() {
        return Err(wrong("the key box is of another domain"));
    }
    if secrets.commitment() != chain.genesis().domain_commitment {
        return Err(wrong("the key box does not match the chain's commitment"));
    }
    Ok(secrets)
}

/// All drives of the account, with names where they open, and fresh local keys.
fn drives(
    links: &[Link],
    chain: &AccountChain,
    secrets: &DomainSecrets,
) -> Result<Vec<DriveKeys>, AccountError> {
    let keys = DomainKeys::derive(chain.private_domain(), secrets);
    let mut labels = Labels::new(chain.account(), keys);
    let mut found: Vec<DriveKeys> = Vec::new();
    for link in links {
        let LinkBody::CreateDrive { nonce, label, .. } = &link.fields().body else {
            continue;
        };
        let drive = DriveId::of(link);
        let mut name = labels.open(Target::Drive(*nonce), label)?;
        if name.is_empty() || found.iter().any(|other| other.name == name) {
            // Never two drives of one name: the id says which is which.
            name = format!("drive-{}", &drive.to_hex()[..8]);
        }
        found.push(DriveKeys {
            drive,
            name,
            local: fresh()?,
        });
    }
    Ok(found)
}
