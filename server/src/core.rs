//! What the three services share, and the one way a control record becomes true: durable first, then applied.
//!
//! Invariant: changes of one account are proposed, stored and applied one after another. Called by the services.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use sealdrive_pack::RecordKind as PackKind;
use sealdrive_proto::id::{AccountId, DriveId};
use sealdrive_runtime::sync::Mutex;
use tokio::sync::{OwnedMutexGuard, watch};

use crate::book::{Book, BookError, Record, RecordKind};
use crate::identity::Identity;
use crate::sessions::Sessions;
use crate::store::{Store, StoreError};

/// Locks that accounts share: enough that two accounts seldom meet.
const LOCKS: usize = 64;

/// What a pack calls a control record.
pub fn pack_kind(kind: RecordKind) -> PackKind {
    match kind {
        RecordKind::Link => PackKind::Link,
        RecordKind::Slot => PackKind::Slot,
        RecordKind::Lease => PackKind::Lease,
        RecordKind::Commit => PackKind::Commit,
    }
}

/// Why a change did not become true.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It may not be.
    #[error(transparent)]
    Book(#[from] BookError),
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Everything the services work on.
pub struct Core {
    /// Accounts, leases, heads.
    pub book: Book,
    /// Packs and index.
    pub store: Store,
    /// Logins.
    pub sessions: Sessions,
    /// The server's key.
    pub identity: Identity,
    /// Data directory, for invitations.
    pub data: PathBuf,
    locks: [Arc<tokio::sync::Mutex<()>>; LOCKS],
    heads: Mutex<HashMap<DriveId, watch::Sender<u64>>>,
    stop: watch::Sender<bool>,
}

impl Core {
    /// Around a store whose control records were applied to `book`.
    pub fn new(book: Book, store: Store, identity: Identity, data: PathBuf) -> Self {
        Self {
            book,
            store,
            sessions: Sessions::default(),
            identity,
            data,
            locks: std::array::from_fn(|_| Arc::default()),
            heads: Mutex::default(),
            stop: watch::Sender::new(false),
        }
    }

    /// Held from proposing to applying a change of this account.
    pub async fn lock(&self, account: &AccountId) -> OwnedMutexGuard<()> {
        let lock = &self.locks[usize::from(account.0[0]) % LOCKS];
        Arc::clone(lock).lock_owned().await
    }

    /// Asks everything that serves to come to an end.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Resolves when `stop` was called.
    pub async fn stopping(&self) {
        // The sender lives as long as this does, so waiting cannot fail.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Makes records durable, then true. Written last to first and applied first to last: what a record needs stands
    /// before it in the pack, so that a torn tail cannot leave an account without its slot. Not to be dropped half-way.
    pub async fn change(&self, records: &[Record]) -> Result<(), ChangeError> {
        let packed = records.iter().rev().map(|record| {
            let kind = pack_kind(record.kind);
            sealdrive_pack::Record::new(kind, record.owner, record.id, record.payload.clone())
        });
        self.store.put(packed.collect()).await?;
        for record in records {
            self.book.apply(record, crate::clock::unix_ms())?;
            if record.kind == RecordKind::Commit || record.kind == RecordKind::Lease {
                self.announce(&DriveId(record.owner));
            }
        }
        Ok(())
    }

    fn announce(&self, drive: &DriveId) {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = heads.get(drive) {
            sender.send_modify(|changes| *changes += 1);
            if sender.is_closed() {
                heads.remove(drive);
            }
        }
    }

    /// Wakes whenever head or lease of a drive changes.
    pub fn watch(&self, drive: &DriveId) -> watch::Receiver<u64> {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads
            .entry(*drive)
            .or_insert_with(|| watch::channel(0).0)
            .subscribe()
    }
}
