//! The book: accounts, slots, leases and heads, as the server's memory holds them.
//!
//! Invariant: the state changes in one way only, by `apply` of a record that was made durable first; at start the same
//! records are applied again. A `propose_…` function decides whether a change may be and writes its record; it changes
//! nothing. Between proposing and applying, the caller holds that account's lock. Called by the services and at start.

mod accounts;
mod drives;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;

use bytes::Bytes;
use sealdrive_proto::commit::{CommitError, SignedCommit};
use sealdrive_proto::fields::Misshapen;
use sealdrive_proto::id::{AccountId, CommitHash, DeviceId, DriveId};
use sealdrive_proto::link::{AccountChain, ChainError, Link, LinkError};
use sealdrive_runtime::sync::{Mutex, MutexGuard};

pub use drives::{GC_GENERATION, Head, Lease, LeaseDecision, split_commit};

/// What a control record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// One link of an account chain; owner: the account.
    Link,
    /// Slot and key box; owner: the account.
    Slot,
    /// Lease epoch, holder, last call number; owner: the drive.
    Lease,
    /// Signed commit and sealed body; owner: the drive.
    Commit,
}

/// A control record: what stands in a pack beside the objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// Account or drive.
    pub owner: [u8; 32],
    /// Number of a link or commit (big-endian in the last 8 bytes), so that ids of one owner rise; zeros for a slot or
    /// lease, whose newest record counts.
    pub id: [u8; 32],
    /// The bytes.
    pub payload: Bytes,
}

/// Id of a numbered record.
pub fn numbered(seq: u64) -> [u8; 32] {
    let mut id = [0; 32];
    id[24..].copy_from_slice(&seq.to_be_bytes());
    id
}

/// Why a change may not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// No such account, drive or device, or not the caller's: both are told alike.
    #[error("not found")]
    NotFound,
    /// A signature or proof does not hold, or its number did not rise.
    #[error("proof does not hold")]
    Proof,
    /// Malformed: can never succeed.
    #[error("{0}")]
    Malformed(&'static str),
    /// It does not follow what stands: stale head, generation, chain.
    #[error("{0}")]
    Stale(&'static str),
    /// The lease epoch is not the one in force.
    #[error("another device holds the writer lease")]
    Fenced,
    /// A stored record does not say what it must.
    #[error("stored record is damaged: {0}")]
    Damaged(&'static str),
}

impl From<Misshapen> for BookError {
    fn from(_: Misshapen) -> Self {
        Self::Malformed("record has the wrong length")
    }
}

impl From<LinkError> for BookError {
    fn from(_: LinkError) -> Self {
        Self::Malformed("not a chain link of a known format")
    }
}

impl From<CommitError> for BookError {
    fn from(_: CommitError) -> Self {
        Self::Malformed("not a commit of a known format")
    }
}

impl From<ChainError> for BookError {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Stale => {
                Self::Stale("the account chain has moved on; fetch it and sign again")
            }
            ChainError::Signature | ChainError::Signer => Self::Proof,
            _ => Self::Malformed("this link may not stand in this chain"),
        }
    }
}

/// One account.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) chain: AccountChain,
    links: Vec<Bytes>,
    slot: Bytes,
    key_box: Bytes,
    slot_generation: u64,
    /// Highest number of a signed call, by device.
    calls: HashMap<DeviceId, u64>,
}

/// One drive.
#[derive(Debug)]
pub(crate) struct Drive {
    account: AccountId,
    lease: Lease,
    head: Option<SignedCommit>,
    /// Hashes of commits that a later one may skip to: `seq & (seq - 1)` along the chain's ones, at most 64.
    skips: BTreeMap<u64, CommitHash>,
    /// Last number of each device that committed here.
    device_seqs: HashMap<DeviceId, u64>,
    received_ms: u64,
}

#[derive(Default)]
struct State {
    accounts: HashMap<AccountId, Account>,
    drives: HashMap<DriveId, Drive>,
}

/// Everything but objects.
pub struct Book {
    /// Identity of this server: proofs for another do not hold here.
    server_pk: [u8; 32],
    /// A blocking mutex: nothing waits or does IO inside.
    state: Mutex<State>,
}

impl Book {
    /// An empty book.
    pub fn new(server_pk: [u8; 32]) -> Self {
        Self {
            server_pk,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic inside leaves no half change: every change is one insert after all checks.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a record that is durable. `received_ms`: when the pack took it, server clock.
    pub fn apply(&self, record: &Record, received_ms: u64) -> Result<(), BookError> {
        let mut state = self.lock();
        match record.kind {
            RecordKind::Link => state.apply_link(record),
            RecordKind::Slot => state.apply_slot(record),
            RecordKind::Lease => state.apply_lease(record),
            RecordKind::Commit => state.apply_commit(record, received_ms),
        }
    }

    /// Accounts and drives.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.accounts.len(), state.drives.len())
    }
}

fn link_of(bytes: &[u8]) -> Result<Link, BookError> {
    Ok(Link::parse(bytes)?)
}
