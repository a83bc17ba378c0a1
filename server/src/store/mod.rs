//! The store: packs are the truth and the log, the index lags behind them, a tail in memory bridges the gap.
//!
//! Invariant: `put` returns after the records are durable, and from then on everyone sees them. One thread writes.
//! Called by the services; opened by `Server::start`.

mod open;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use sealdrive_pack::{Directory, PackError, Reader, Record, RecordKind, file_name};
use tokio::sync::{Semaphore, oneshot};

use crate::index::{Index, IndexError, Row, RowKey};

pub use open::{Opened, rebuild};

/// Payload bytes that may wait for the writer: with more, callers wait, and so do their clients.
const QUEUE_BYTES: usize = 64 << 20;
/// Packs kept open for reading.
const OPEN_PACKS: usize = 256;

/// Why the store could not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk is full. Nothing was lost; try again later.
    #[error("no space left")]
    NoSpace,
    /// A write or sync failed: nobody knows what is on disk until it is opened again.
    #[error("storage failed: {0}")]
    Failed(String),
}

impl From<IndexError> for StoreError {
    fn from(error: IndexError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<PackError> for StoreError {
    fn from(error: PackError) -> Self {
        match error {
            PackError::NoSpace => Self::NoSpace,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// Written.
    Stored,
    /// An object of this id stood there already; it stays.
    Exists {
        /// BLAKE3 of what stands there.
        hash: [u8; 32],
    },
}

/// Records on their way to the writer.
struct Job {
    records: Vec<Record>,
    reply: oneshot::Sender<Result<Vec<Put>, StoreError>>,
    /// Room in the queue, given back when the job is dropped.
    _room: tokio::sync::OwnedSemaphorePermit,
}

/// What readers and the writer share.
struct Shared {
    medium: Directory,
    index: Index,
    /// Durable records that the index does not have yet.
    tail: RwLock<HashMap<RowKey, Row>>,
    readers: Mutex<HashMap<u64, Reader>>,
    /// Set once, when the writer has failed.
    failed: tokio::sync::watch::Sender<Option<String>>,
}

/// The store; clones share it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    jobs: Arc<Mutex<Option<std::sync::mpsc::Sender<Job>>>>,
    room: Arc<Semaphore>,
    writer: Arc<Mutex<Option<std::thread::JoinHandle<()>>>>,
}

impl Shared {
    fn row(&self, key: &RowKey) -> Result<Option<Row>, StoreError> {
        let tail = self
            .tail
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .copied();
        match tail {
            Some(row) => Ok(Some(row)),
            None => Ok(self.index.get(key)?),
        }
    }

    fn reader(&self, pack: u64) -> Result<Reader, PackError> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = readers.get(&pack) {
            return Ok(reader.clone());
        }
        let reader = Reader::open(&self.medium, &file_name(pack))?;
        if readers.len() >= OPEN_PACKS {
            readers.clear();
        }
        readers.insert(pack, reader.clone());
        Ok(reader)
    }
}

impl Store {
    /// Stores records. Objects that exist are left as they are; of other kinds the newest counts.
    pub async fn put(&self, records: Vec<Record>) -> Result<Vec<Put>, StoreError> {
        let bytes: usize = records.iter().map(|record| record.payload().len()).sum();
        let room = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let stopped = || StoreError::Failed("the server is stopping".into());
        let room = Arc::clone(&self.room)
            .acquire_many_owned(room)
            .await
            .map_err(|_| stopped())?;
        let (reply, answer) = oneshot::channel();
        {
            let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            let jobs = jobs.as_ref().ok_or_else(stopped)?;
            jobs.send(Job {
                records,
                reply,
                _room: room,
            })
            .map_err(|_| self.failure())?;
        }
        answer.await.map_err(|_| self.failure())?
    }

    fn failure(&self) -> StoreError {
        let said = self.shared.failed.borrow().clone();
        StoreError::Failed(said.unwrap_or_else(|| "the writer has stopped".into()))
    }

    /// Whether a record is there, and what its payload hashes to.
    pub fn find(
        &self,
        kind: RecordKind,
        owner: &[u8; 32],
        id: &[u8; 32],
    ) -> Result<Option<Row>, StoreError> {
        self.shared.row(&RowKey::new(kind, owner, id))
    }

    /// A record's payload, checked. `None` if there is none or if it is damaged, which is logged.
    pub async fn read(
        &self,
        kind: RecordKind,
        owner: &[u8; 32],
        id: &[u8; 32],
    ) -> Result<Option<Bytes>, StoreError> {
        let key = RowKey::new(kind, owner, id);
        let shared = Arc::clone(&self.shared);
        let reading = tokio::task::spawn_blocking(move || read(&shared, &key));
        reading
            .await
            .map_err(|error| StoreError::Failed(error.to_string()))?
    }

    /// Rows in the index, without the tail.
    pub fn indexed(&self) -> Result<u64, StoreError> {
        Ok(self.shared.index.len()?)
    }

    /// Resolves when the writer has failed, with the reason.
    pub async fn failed(&self) -> String {
        let mut failed = self.shared.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(said) => said.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Writes what is queued, brings the index up to date, and stops.
    pub fn close(&self) {
        self.jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the store's writer panicked");
        }
    }
}

fn read(shared: &Shared, key: &RowKey) -> Result<Option<Bytes>, StoreError> {
    let Some(row) = shared.row(key)? else {
        return Ok(None);
    };
    let damaged = |what: &dyn std::fmt::Display| {
        let (owner, id) = key.names();
        let (owner, id) = (hex(&owner), hex(&id));
        tracing::error!(
            pack = row.pack,
            offset = row.location.offset,
            owner,
            id,
            "record damaged: {what}"
        );
    };
    match shared
        .reader(row.pack)
        .and_then(|reader| reader.read(row.location))
    {
        Ok(found)
            if RowKey::new(found.header.kind, &found.header.owner, &found.header.id) == *key =>
        {
            Ok(Some(found.payload))
        }
        Ok(_) => {
            damaged(&"another record stands there");
            Ok(None)
        }
        Err(error @ (PackError::Damaged { .. } | PackError::Format)) => {
            damaged(&error);
            Ok(None)
        }
        Err(PackError::Io { what, source }) if source.kind() == std::io::ErrorKind::NotFound => {
            damaged(&format_args!("{what}: {source}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    sealdrive_proto::id::Sid(*bytes).to_hex()
}
