//! A new account with one drive: keys and kit first, durable here, then the server.
//!
//! Invariant: the invitation is used only when kit and keystore are on disk, and they are taken back only when the
//! server has definitely refused. In between lies a pending registration, which the next `init` finishes.
//! Called by `init` and `quickstart`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use sealdrive_core::key_box::{self, BoxHeader};
use sealdrive_core::keys::{DomainKeys, DomainSecrets};
use sealdrive_core::kit::Kit;
use sealdrive_core::passphrase::Argon2Cost;
use sealdrive_core::secret::Secret;
use sealdrive_core::slot::{AccountRoot, SlotHeader, SlotKind, seal_slot, slot_fetch_key};
use sealdrive_proto::SigningKey;
use sealdrive_proto::connect::{ConnectString, base32, unbase32};
use sealdrive_proto::id::{AccountId, DeviceId, DriveId};
use sealdrive_proto::limits::{AVG_CHUNK, MAX_CHUNK, MIN_CHUNK};
use sealdrive_proto::link::{
    AccountChain, Compression, DeviceKeys, DriveConfig, Genesis, Link, LinkBody, LinkFields, Signer,
};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::label::{Labels, Target, check_name};
use super::{AccountError, Opened, chain, kit_file, remove_keystore, write_keystore};
use crate::clock;
use crate::home::{Home, HomeError, HomeLock, Profile};
use crate::keystore::{DriveKeys, Keystore};
use crate::remote::RemoteError;
use crate::remote::grpc::{Account, Identity, Registration, Server};
use crate::unlock::Where;

/// Generation of a new account root, and of its first slot and box.
const FIRST: u64 = 1;
/// How new drives compress unless told otherwise: the fastest level, because a disk and a line wait for no compressor.
pub const DEFAULT_COMPRESSION: Compression = Compression::Zstd(1);
const PENDING: &str = "pending-registration";

/// What is asked for.
pub struct NewAccount<'a> {
    /// Server and invitation.
    pub connect: &'a ConnectString,
    /// Name of its first drive.
    pub drive: &'a str,
    /// How its content is compressed; fixed for the drive's life, [`DEFAULT_COMPRESSION`] unless asked for.
    pub compression: Compression,
    /// Opens the login slot together with the kit.
    pub passphrase: &'a str,
    /// Whether this machine's keystore asks for it as well.
    pub ask_passphrase: bool,
    /// Where the kit is written.
    pub kit: &'a Path,
    /// Cost of a guess; `Argon2Cost::DEFAULT` except in tests.
    pub cost: Argon2Cost,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founded {
    /// The account.
    pub account: AccountId,
    /// This device.
    pub device: DeviceId,
    /// The drive.
    pub drive: DriveId,
    /// Where the kit lies.
    pub kit: PathBuf,
}

/// All that is needed to finish a registration; nothing in it opens anything.
#[derive(Serialize, Deserialize)]
struct Pending {
    profile: Profile,
    invite: String,
    genesis: String,
    slot: String,
    key_box: String,
    create_drive: String,
    kit: PathBuf,
}

/// Makes an account with one drive.
pub async fn init(home: &Home, wanted: &NewAccount<'_>) -> Result<Founded, AccountError> {
    check_name(wanted.drive)?;
    let invite = wanted.connect.invite.ok_or(AccountError::NoInvite)?;
    let _lock = home.lock()?;
    if home.is_enrolled() {
        return Err(HomeError::Occupied(home.dir().to_path_buf()).into());
    }
    if home.dir().join(PENDING).exists() {
        return Err(AccountError::Unfinished(home.dir().to_path_buf()));
    }
    let mut made = Made::draw()?;
    // The server first: a wrong address or fingerprint leaves nothing behind.
    let server = Server::from(wanted.connect);
    Account::new(server, made.slot_fetch())
        .verify_server()
        .await?;

    let pending = made.seal(wanted, invite)?;
    kit_file::write(wanted.kit, &made.kit(wanted.connect))?;
    let passphrase = if wanted.ask_passphrase {
        wanted.passphrase
    } else {
        ""
    };
    let text = toml::to_string(&pending).expect("a flat record of strings always serialises");
    let written = write_keystore(home, &made.keystore, made.account(), passphrase)
        .and_then(|()| Ok(home.write_new(PENDING, text.as_bytes())?));
    if let Err(error) = written {
        take_back(home, wanted.kit);
        return Err(error);
    }
    finish(home, &pending, made.keystore.signing_key()).await
}

/// Finishes what an interrupted `init` began; `None` if there is nothing to finish. `ask` gives the passphrase, and is
/// called only if the keystore wants one.
pub async fn finish_init<E: From<AccountError>>(
    home: &Home,
    place: &Where,
    ask: impl FnOnce() -> Result<Zeroizing<String>, E>,
) -> Result<Option<Founded>, E> {
    if home.is_enrolled() || !home.dir().join(PENDING).exists() {
        return Ok(None);
    }
    let (_lock, pending) = begin_again(home)?;
    let passphrase = if pending.profile.ask_passphrase {
        ask()?
    } else {
        Zeroizing::default()
    };
    let profile = pending.profile.clone();
    let opened = Opened::read_keys(home).and_then(|(secret, sealed)| {
        Opened::unlock(profile, &secret, &sealed, &passphrase, place)
    })?;
    Ok(Some(finish(home, &pending, opened.signing_key()).await?))
}

fn begin_again(home: &Home) -> Result<(HomeLock, Pending), AccountError> {
    let lock = home.lock()?;
    let text = home.read(PENDING)?;
    let damaged = |why: String| HomeError::Damaged {
        path: home.dir().join(PENDING),
        why,
    };
    let text = std::str::from_utf8(&text).map_err(|error| damaged(error.to_string()))?;
    let pending = toml::from_str(text).map_err(|error| damaged(error.message().to_owned()))?;
    Ok((lock, pending))
}

/// The server's part. Repeating any of it does no harm: registering the same genesis and appending the same link are
/// accepted again.
async fn finish(home: &Home, pending: &Pending, key: SigningKey) -> Result<Founded, AccountError> {
    let field = |text: &str| {
        let path = home.dir().join(PENDING);
        let why = "a field is not base32".to_owned();
        unbase32(text)
            .map(Bytes::from)
            .ok_or(HomeError::Damaged { path, why })
    };
    let invite = field(&pending.invite)?
        .as_ref()
        .try_into()
        .map_err(|_| AccountError::NoInvite)?;
    let (genesis, create) = (field(&pending.genesis)?, field(&pending.create_drive)?);
    let registration = Registration {
        invite,
        genesis: genesis.clone(),
        slot: field(&pending.slot)?,
        key_box: field(&pending.key_box)?,
    };
    let account = AccountId::of(&Link::parse(&genesis)?);
    let device = DeviceId::of(&key.verifying_key());
    let server = Server::from(&pending.profile.server.parse::<ConnectString>()?);
    let line = Account::new(server, Identity::device(account, key));
    if let Err(error) = line.register(&registration).await {
        if let RemoteError::Unreachable(_) | RemoteError::Quota | RemoteError::Full = error {
            // It may have arrived, or may be taken later: the next `init` finishes it.
            return Err(error.into());
        }
        take_back(home, &pending.kit);
        return Err(match error {
            RemoteError::Refused(_) | RemoteError::NotFound | RemoteError::Unauthenticated(_) => {
                AccountError::Invite
            }
            other => other.into(),
        });
    }
    line.append(&create).await?;
    let links = [Link::parse(&genesis)?, Link::parse(&create)?];
    chain::store(home, &links)?;
    home.write_profile(&pending.profile)?;
    home.remove(PENDING)?;
    let drive = DriveId::of(&links[1]);
    Ok(Founded {
        account,
        device,
        drive,
        kit: pending.kit.clone(),
    })
}

/// Removes what a registration that came to nothing has written.
fn take_back(home: &Home, kit: &Path) {
    remove_keystore(home);
    // Best effort: leftovers open nothing, and the failure being reported matters more.
    drop(home.remove(PENDING));
    drop(std::fs::remove_file(kit));
}

/// A new account in memory: every key, and the chain as far as it goes.
struct Made {
    keystore: Keystore,
    genesis: Link,
    chain: AccountChain,
}

impl Made {
    fn draw() -> Result<Self, AccountError> {
        let mut root: [u8; 64] = clock::entropy()?;
        let mut domain: [u8; 128] = clock::entropy()?;
        let keystore = Keystore {
            ask: fresh()?,
            root: AccountRoot::from_bytes(&root, FIRST),
            device_seed: fresh()?,
            secrets: DomainSecrets::from_entropy(&domain),
            drives: Vec::new(),
        };
        root.zeroize();
        domain.zeroize();
        let key = keystore.signing_key();
        let genesis = LinkFields::genesis(Genesis {
            salt: clock::entropy()?,
            device: DeviceKeys {
                sign: key.verifying_key(),
                box_pk: Vec::new(),
            },
            slot_fetch: slot_fetch_key(&keystore.ask).verifying_key(),
            enrol: keystore.root.enrol_key().verifying_key(),
            domain_commitment: keystore.secrets.commitment(),
        })
        .sign(&key)?;
        let chain = AccountChain::found(&genesis)?;
        Ok(Self {
            keystore,
            genesis,
            chain,
        })
    }

    fn account(&self) -> AccountId {
        self.chain.account()
    }

    fn slot_fetch(&self) -> Identity {
        Identity::slot_fetch(self.account(), slot_fetch_key(&self.keystore.ask))
    }

    fn kit(&self, connect: &ConnectString) -> Kit {
        Kit {
            account: self.account(),
            server_pk: connect.server_pk,
            ask: Secret::copy_of(self.keystore.ask.expose()),
            address: connect.addr.clone(),
        }
    }

    /// Seals slot and key box, signs the drive's link, and adds the drive to the keystore.
    fn seal(&mut self, wanted: &NewAccount<'_>, invite: [u8; 16]) -> Result<Pending, AccountError> {
        let (account, domain) = (self.account(), self.chain.private_domain());
        let header = SlotHeader {
            kind: SlotKind::Login,
            cost: wanted.cost,
            account,
            root_generation: FIRST,
            slot_generation: FIRST,
        };
        let root = self.keystore.root.to_bytes();
        let slot = seal_slot(
            wanted.passphrase,
            &self.keystore.ask,
            &header,
            &clock::entropy()?,
            root.expose(),
        )?;
        let header = BoxHeader {
            account,
            domain,
            root_generation: FIRST,
            box_generation: FIRST,
        };
        let key_box = key_box::seal(
            &self.keystore.root,
            &header,
            &clock::entropy()?,
            &self.keystore.secrets,
        );
        let create = self.create_drive(wanted)?;
        let local = fresh()?;
        let drive = DriveId::of(&create);
        self.keystore.drives.push(DriveKeys {
            drive,
            name: wanted.drive.to_owned(),
            local,
        });
        Ok(Pending {
            profile: Profile {
                version: Profile::VERSION,
                account: account.to_hex(),
                device: DeviceId::of(&self.keystore.signing_key().verifying_key()).to_hex(),
                server: wanted.connect.without_invite().to_string(),
                ask_passphrase: wanted.ask_passphrase,
            },
            invite: base32(&invite),
            genesis: base32(self.genesis.bytes()),
            slot: base32(&slot),
            key_box: base32(&key_box),
            create_drive: base32(create.bytes()),
            kit: std::path::absolute(wanted.kit).unwrap_or_else(|_| wanted.kit.to_path_buf()),
        })
    }

    fn create_drive(&self, wanted: &NewAccount<'_>) -> Result<Link, AccountError> {
        let account = self.account();
        let keys = DomainKeys::derive(self.chain.private_domain(), &self.keystore.secrets);
        let nonce = clock::entropy()?;
        let label = Labels::new(account, keys).seal(Target::Drive(nonce), wanted.drive);
        let config = DriveConfig {
            min_chunk: MIN_CHUNK as u32,
            avg_chunk: AVG_CHUNK as u32,
            max_chunk: MAX_CHUNK as u32,
            compression: wanted.compression,
        };
        let key = self.keystore.signing_key();
        let signer = Signer::Device(DeviceId::of(&key.verifying_key()));
        let body = LinkBody::CreateDrive {
            nonce,
            config,
            label,
        };
        Ok(self.chain.next_link(signer, body).sign(&key)?)
    }
}

/// Fresh secret bytes.
pub(super) fn fresh<const N: usize>() -> Result<Secret<N>, AccountError> {
    let mut bytes = clock::entropy()?;
    let secret = Secret::copy_of(&bytes);
    bytes.zeroize();
    Ok(secret)
}
