//! Starting and stopping: opens the data directory, applies its records, serves, and winds down within a bound.
//!
//! Invariant: nothing is served before everything durable is known; plaintext is served on loopback only. Called by the
//! command, the client's embedded mode and the tests.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealdrive_pack::Medium;
use sealdrive_proto::connect::ConnectString;
use tokio::net::TcpListener;
use zeroize::Zeroizing;

use crate::book::{Book, BookError, RecordKind};
use crate::core::Core;
use crate::identity::Identity;
use crate::service::{self, ServeError};
use crate::store::{OpenError, Opened, Store, StoreError, StoreOptions};
use crate::tls::{Certificate, TlsError};
use crate::{clock, invites, key_files, private_file};

/// Where to keep things and where to listen.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data directory; made if absent.
    pub data: PathBuf,
    /// Address; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Serve without TLS. Refused off loopback.
    pub plaintext_loopback: bool,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Files of the data directory.
    #[error("data directory {dir}: {source}")]
    Data {
        /// Which.
        dir: String,
        /// What the system said.
        source: io::Error,
    },
    /// The store does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Which.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Plaintext off loopback.
    #[error(
        "plaintext is served on loopback addresses only, not on {0}; leave out --plaintext-loopback"
    )]
    Plaintext(SocketAddr),
    /// Another server works on the data.
    #[error("another server is running on this data directory")]
    Busy,
    /// The services.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The storage failed while the server ran: see its log, and start it again.
    #[error("storage failed: {0}")]
    Failed(String),
}

/// The server.
pub struct Server;

/// A server that serves. Dropping it is pulling the plug: nothing is finished, and nothing acknowledged is lost.
pub struct Running {
    address: SocketAddr,
    connect: ConnectString,
    core: Arc<Core>,
    served: tokio::task::JoinHandle<()>,
    _lock: std::fs::File,
}

/// What a data directory holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Records in the index.
    pub records: u64,
    /// Accounts.
    pub accounts: usize,
    /// Drives.
    pub drives: usize,
    /// Bytes of objects.
    pub object_bytes: u64,
    /// Bytes of packs.
    pub pack_bytes: u64,
    /// Damaged stretches found.
    pub damaged: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            records,
            accounts,
            drives,
            object_bytes,
            pack_bytes,
            damaged,
        } = self;
        write!(
            f,
            "{accounts} accounts, {drives} drives, {records} records, {object_bytes} bytes of objects, "
        )?;
        write!(
            f,
            "{pack_bytes} bytes in packs, {damaged} damaged stretches"
        )
    }
}

/// Opens the directory for one process alone.
fn open_data(data: &Path) -> Result<std::fs::File, StartError> {
    let fail = |source| StartError::Data {
        dir: data.display().to_string(),
        source,
    };
    std::fs::create_dir_all(data).map_err(fail)?;
    let lock = std::fs::File::create(data.join("lock")).map_err(fail)?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::Busy),
        Err(error) => Err(fail(error.into())),
    }
}

/// Identity and certificate, which clients pin: made on first use by one process alone; damage to one file is healed
/// on the way.
fn open_keys(data: &Path) -> Result<(Identity, Certificate), StartError> {
    let fail = |source| StartError::Data {
        dir: data.display().to_string(),
        source,
    };
    let _alone = private_file::alone(data).map_err(fail)?;
    key_files::settle(data).map_err(fail)?;
    let identity = open_identity(data)?;
    let certificate = Certificate::open(data)?;
    key_files::keep(data).map_err(fail)?;
    Ok((identity, certificate))
}

fn open_identity(data: &Path) -> Result<Identity, StartError> {
    let fail = |source| StartError::Data {
        dir: data.display().to_string(),
        source,
    };
    let entropy = Zeroizing::new(clock::entropy().map_err(fail)?);
    Identity::open(data, &entropy).map_err(fail)
}

fn open_book(opened: Opened, server_pk: [u8; 32]) -> (Book, Store, usize) {
    let Opened {
        store,
        control,
        damage,
    } = opened;
    let book = Book::new(server_pk);
    for (record, received_ms) in &control {
        match book.apply(record, *received_ms) {
            Ok(()) => {}
            // A crash between a new account's slot and its genesis: the account was never acknowledged.
            Err(BookError::NotFound) if record.kind == RecordKind::Slot => {}
            // One broken account must not keep the others from theirs.
            Err(error) => log_broken(record.owner, &error),
        }
    }
    book.restart_leases(clock::steady_ms());
    (book, store, damage)
}

/// Identity, store and book of a data directory: everything a server is but for its network. The caller sees to it that
/// no other works on the directory.
pub fn open_core(data: &Path, options: StoreOptions) -> Result<Core, StartError> {
    let identity = open_identity(data)?;
    let opened = Store::open_with(data, options)?;
    Ok(core_of(opened, identity, data.to_owned()))
}

/// The same with the store on any medium. Without a directory it has no invitations.
pub fn open_core_on(
    medium: &dyn Medium,
    identity: Identity,
    options: StoreOptions,
) -> Result<Core, StartError> {
    let opened = Store::open_on(medium, options)?;
    Ok(core_of(opened, identity, PathBuf::new()))
}

fn core_of(opened: Opened, identity: Identity, data: PathBuf) -> Core {
    let (book, store, _) = open_book(opened, identity.public());
    Core::new(book, store, identity, data)
}

fn log_broken(owner: [u8; 32], error: &BookError) {
    tracing::error!(owner = %sealdrive_proto::id::AccountId(owner).to_hex(), %error, "control record refused");
}

impl Server {
    /// Opens everything and serves until told to stop.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        Self::start_with(config, StoreOptions::default()).await
    }

    /// As `start`, with options.
    pub async fn start_with(config: Config, options: StoreOptions) -> Result<Running, StartError> {
        if config.plaintext_loopback && !config.listen.ip().is_loopback() {
            return Err(StartError::Plaintext(config.listen));
        }
        let lock = open_data(&config.data)?;
        // Before anyone can connect: who sees the port open may ask for an invitation at once.
        let (_, certificate) = open_keys(&config.data)?;
        let fail = |source| StartError::Listen {
            addr: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let core = Arc::new(open_core(&config.data, options)?);
        let tls = if config.plaintext_loopback {
            None
        } else {
            Some(certificate.config()?)
        };
        let connect = ConnectString {
            addr: address.to_string(),
            server_pk: core.identity.public(),
            tls_fingerprint: tls.is_some().then(|| certificate.fingerprint()),
            invite: None,
        };
        let served = service::serve(Arc::clone(&core), listener, tls).await?;
        Ok(Running {
            address,
            connect,
            core,
            served,
            _lock: lock,
        })
    }
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How to reach it, without an invitation.
    pub fn connect_string(&self) -> &ConnectString {
        &self.connect
    }

    /// How to reach it, with a fresh one-time invitation.
    pub fn invite(&self) -> io::Result<ConnectString> {
        let code = clock::entropy()?;
        invites::open(&self.core.data, &code)?;
        Ok(ConnectString {
            invite: Some(code),
            ..self.connect.clone()
        })
    }

    /// Resolves when the storage has failed: the server can then only be stopped and started again.
    pub async fn failed(&self) -> String {
        self.core.store.failed().await
    }

    /// Returns once the storage has answered; waits as long as that takes.
    pub async fn pulse(&self) -> Result<(), StoreError> {
        self.core.store.pulse().await
    }

    /// Stops accepting, lets calls end within `limits::SHUTDOWN`, writes the index, closes.
    pub async fn shutdown(mut self) -> Result<(), StartError> {
        self.core.stop();
        let _ = (&mut self.served).await;
        let store = self.core.store.clone();
        let closed = tokio::task::spawn_blocking(move || store.close()).await;
        closed.map_err(|error| StartError::Failed(error.to_string()))?;
        match self.core.store.failure() {
            Some(why) => Err(StartError::Failed(why)),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.served.abort();
        self.core.stop();
        self.core.store.abandon();
    }
}

/// Opens an invitation in a data directory, whether or not a server runs on it.
pub fn invite(
    data: &Path,
    address: &str,
    plaintext_loopback: bool,
) -> Result<ConnectString, StartError> {
    let fail = |source| StartError::Data {
        dir: data.display().to_string(),
        source,
    };
    std::fs::create_dir_all(data).map_err(fail)?;
    let (identity, certificate) = open_keys(data)?;
    let server_pk = identity.public();
    let code = clock::entropy().map_err(fail)?;
    invites::open(data, &code).map_err(fail)?;
    let tls_fingerprint = (!plaintext_loopback).then(|| certificate.fingerprint());
    Ok(ConnectString {
        addr: address.to_owned(),
        server_pk,
        tls_fingerprint,
        invite: Some(code),
    })
}

fn pack_bytes(data: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for file in std::fs::read_dir(data.join("packs"))? {
        bytes += file?.metadata()?.len();
    }
    Ok(bytes)
}

/// Counts what a data directory holds. No server may run on it.
pub fn status(data: &Path) -> Result<Counts, StartError> {
    let fail = |source| StartError::Data {
        dir: data.display().to_string(),
        source,
    };
    let pack_bytes = pack_bytes(data).map_err(fail)?;
    let _lock = open_data(data)?;
    let server_pk = open_keys(data)?.0.public();
    let (book, store, damaged) = open_book(Store::open(data)?, server_pk);
    let (records, object_bytes) = store.totals()?;
    store.close();
    let (accounts, drives) = book.counts();
    Ok(Counts {
        records,
        accounts,
        drives,
        object_bytes,
        pack_bytes,
        damaged,
    })
}

/// Makes the index anew from the packs alone. No server may run on the directory.
pub fn rebuild_index(data: &Path) -> Result<Counts, StartError> {
    let fail = |source| StartError::Data {
        dir: data.display().to_string(),
        source,
    };
    pack_bytes(data).map_err(fail)?;
    let damaged = {
        let _lock = open_data(data)?;
        crate::store::rebuild(data)?.damage
    };
    Ok(Counts {
        damaged,
        ..status(data)?
    })
}
