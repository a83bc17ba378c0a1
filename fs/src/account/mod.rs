//! Accounts on this machine: making one, bringing one back, opening the one that is here.
//!
//! Invariant: nothing the server says is believed before it verifies: the chain must be the account's own, the key box
//! must match the commitment in it; keys are durable here before the server hears of them. Called by the command line.

mod chain;
mod init;
mod kit_file;
mod label;
mod numbers;
mod recover;

use sealdrive_core::key_box::BoxError;
use sealdrive_core::keys::DomainKeys;
use sealdrive_core::kit::BadKit;
use sealdrive_core::seal::OpenError;
use sealdrive_core::secret::Secret;
use sealdrive_core::slot::SlotError;
use sealdrive_proto::SigningKey;
use sealdrive_proto::connect::{ConnectError, ConnectString};
use sealdrive_proto::id::{AccountId, DeviceId, DomainId, DriveId};
use sealdrive_proto::link::{AccountChain, ChainError, LinkError};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use zeroize::{Zeroize, Zeroizing};

use crate::clock::NoEntropy;
use crate::home::{Home, HomeError, Profile};
use crate::keystore::{self, Keystore, KeystoreError};
use crate::remote::grpc::{CallNumbers, Grpc, Identity, Server};
use crate::remote::{Remote, RemoteError};
use crate::unlock::{UnlockError, Where};

pub use init::{DEFAULT_COMPRESSION, Founded, NewAccount, finish_init, init};
pub use numbers::Numbers;
pub use recover::{Recovered, Recovery, recover};

/// Why an account was not made, brought back or opened.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The home directory.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The keystore of this machine.
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    /// The login slot.
    #[error(transparent)]
    Unlock(#[from] UnlockError),
    /// The server, or the way there.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The connect string.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A connect string without an invitation where one is needed.
    #[error("the connect string carries no invitation")]
    NoInvite,
    /// The server does not take the invitation.
    #[error("the server does not accept this invitation: used already, expired, or not its own")]
    Invite,
    /// The kit.
    #[error(transparent)]
    Kit(#[from] BadKit),
    /// The server does not know this account or this device.
    #[error("the server at {0} knows nothing of this account")]
    UnknownAccount(String),
    /// Kit and connect string disagree.
    #[error("kit and connect string belong to different servers")]
    OtherServer,
    /// What the server showed contradicts what was signed.
    #[error("the server shows something that was not signed by this account: {0}")]
    Tampered(String),
    /// A registration that was begun and not finished.
    #[error("an account was being made in {} and is not finished", .0.display())]
    Unfinished(PathBuf),
    /// Not possible with these words.
    #[error("{0}")]
    Name(String),
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] NoEntropy),
}

impl From<SlotError> for AccountError {
    fn from(error: SlotError) -> Self {
        Self::Unlock(error.into())
    }
}

impl From<LinkError> for AccountError {
    fn from(error: LinkError) -> Self {
        Self::Tampered(error.to_string())
    }
}

impl From<ChainError> for AccountError {
    fn from(error: ChainError) -> Self {
        Self::Tampered(error.to_string())
    }
}

impl From<BoxError> for AccountError {
    fn from(error: BoxError) -> Self {
        Self::Tampered(error.to_string())
    }
}

impl From<OpenError> for AccountError {
    fn from(_: OpenError) -> Self {
        Self::Tampered("a label does not open".to_owned())
    }
}

/// The account of this machine, opened.
pub struct Opened {
    /// What is known in clear.
    pub profile: Profile,
    /// The keys.
    pub keystore: Keystore,
    /// The account.
    pub account: AccountId,
    /// Its server.
    pub server: Server,
}

impl Opened {
    /// Opens the keystore of `home`. `ask` gives the passphrase, and is called only if the keystore wants one.
    pub fn open<E: From<AccountError>>(
        home: &Home,
        place: &Where,
        ask: impl FnOnce() -> Result<Zeroizing<String>, E>,
    ) -> Result<Self, E> {
        let profile = home.profile().map_err(AccountError::from)?;
        let (machine_secret, sealed) = Self::read_keys(home)?;
        let passphrase = if profile.ask_passphrase {
            ask()?
        } else {
            Zeroizing::default()
        };
        Self::unlock(profile, &machine_secret, &sealed, &passphrase, place).map_err(E::from)
    }

    fn read_keys(home: &Home) -> Result<(Secret<32>, Zeroizing<Vec<u8>>), AccountError> {
        let secret = home.read(keystore::MACHINE_SECRET)?;
        let mut bytes: [u8; 32] = secret
            .as_slice()
            .try_into()
            .map_err(|_| HomeError::Damaged {
                path: home.dir().join(keystore::MACHINE_SECRET),
                why: "not 32 bytes".to_owned(),
            })?;
        let machine_secret = Secret::copy_of(&bytes);
        bytes.zeroize();
        Ok((machine_secret, home.read(keystore::FILE)?))
    }

    fn unlock(
        profile: Profile,
        machine_secret: &Secret<32>,
        sealed: &[u8],
        passphrase: &str,
        place: &Where,
    ) -> Result<Self, AccountError> {
        let account = AccountId::from_hex(&profile.account)
            .map_err(|error| AccountError::Tampered(error.to_string()))?;
        let keystore = Keystore::open(sealed, account, machine_secret, passphrase, place)?;
        let server = Server::from(&profile.server.parse::<ConnectString>()?);
        Ok(Self {
            profile,
            keystore,
            account,
            server,
        })
    }

    /// The domain of the account's private drives.
    pub fn domain(&self) -> DomainId {
        self.account.private_domain()
    }

    /// All keys of that domain.
    pub fn domain_keys(&self) -> DomainKeys {
        DomainKeys::derive(self.domain(), &self.keystore.secrets)
    }

    /// This device's signing key.
    pub fn signing_key(&self) -> SigningKey {
        self.keystore.signing_key()
    }

    /// The account chain: as kept here, extended from the server if that is reached within `patience`.
    pub async fn chain(
        &self,
        home: &Home,
        remote: &dyn Remote,
        patience: Duration,
    ) -> Result<AccountChain, AccountError> {
        chain::refresh(home, self.account, remote, patience).await
    }

    /// What the account's devices are called; those without a name, or whose name does not open, are left out.
    pub fn device_names(&self, chain: &AccountChain) -> BTreeMap<DeviceId, String> {
        let mut labels = label::Labels::new(self.account, self.domain_keys());
        let mut names = BTreeMap::new();
        for (id, device) in chain.devices() {
            let name = labels.open(label::Target::Device(*id), &device.label);
            if let Some(name) = name.ok().filter(|name| !name.is_empty()) {
                names.insert(*id, name);
            }
        }
        names
    }

    /// The server as the engine sees it, for one drive. Nothing is connected yet.
    pub fn remote(&self, drive: DriveId, numbers: Arc<dyn CallNumbers>) -> Grpc {
        let identity = Identity::device(self.account, self.signing_key());
        Grpc::new(self.server.clone(), identity, drive, self.domain(), numbers)
    }
}

/// Writes machine secret and keystore; the profile that makes them count comes last, from the caller.
fn write_keystore(
    home: &Home,
    keystore: &Keystore,
    account: AccountId,
    passphrase: &str,
) -> Result<(), AccountError> {
    let mut secret: [u8; 32] = crate::clock::entropy()?;
    let machine_secret = Secret::copy_of(&secret);
    let entropy = keystore::SealEntropy {
        roots: crate::clock::entropy()?,
        slot: crate::clock::entropy()?,
    };
    let sealed = keystore.seal(account, &machine_secret, passphrase, &entropy)?;
    // A keystore without a profile is what an interrupted attempt left: worthless, since nobody was told its keys.
    let written = home
        .replace(keystore::MACHINE_SECRET, &secret)
        .and_then(|()| home.replace(keystore::FILE, &sealed));
    secret.zeroize();
    Ok(written?)
}

/// Takes back what `write_keystore` wrote.
fn remove_keystore(home: &Home) {
    // Best effort: the failure being reported matters more, and leftovers are replaced by the next attempt.
    drop(home.remove(keystore::FILE));
    drop(home.remove(keystore::MACHINE_SECRET));
}
