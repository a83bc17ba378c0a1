//! The store: durable records in packs, found through the index and an in-memory tail of what it does not have yet.
//!
//! Invariants: nothing is acknowledged before its pack was synced; what is acknowledged is found at once; an object's
//! id is written once; a failed sync or index commit stops the store for good, because nobody knows then what is on
//! disk; a full disk does not, it refuses what is new and waits with the index. One writer thread (writer.rs) owns the
//! open pack, one indexer thread (indexer.rs) the index's write side. Called by the services; opened by
//! `Server::start`.

mod control;
mod indexer;
mod open;
mod packs;
mod usage;
mod writer;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use sealdrive_pack::{Directory, Medium, PackError, Record, RecordKind, Reserve};
use sealdrive_proto::id::{DomainId, Sid};
use sealdrive_runtime::channel::send_blocking;
use sealdrive_runtime::sync::{Mutex, RwLock};
use sealdrive_runtime::task;
use sealdrive_runtime::thread::{self, JoinHandle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

pub use self::open::{OpenError, Rebuilt, rebuild, rebuild_on};
use self::packs::Packs;
use crate::index::{Index, IndexError, Row, RowKey};
use crate::limits::{INDEX_RESERVE, PACK_BYTES, QUEUE_BYTES, QUEUE_PUTS, RESERVE_BYTES};

/// Every step of the ordering law, in the order in which a record meets them.
pub const POINTS: &[&str] = &[
    "server.created",
    "server.appended",
    "server.synced",
    "server.before-ack",
    "server.acked",
    "server.before-index",
    "server.indexed",
    "server.sealed",
];

/// Called with the name of each step of the ordering law as it is reached. Nothing, outside tests.
pub type CrashHook = Arc<dyn Fn(&'static str) + Send + Sync>;

/// How a store behaves; the default is what a server runs with.
#[derive(Clone)]
pub struct StoreOptions {
    /// Length at which a pack is sealed, bytes.
    pub pack_bytes: u64,
    /// Space kept free, bytes.
    pub reserve_bytes: u64,
    /// Space held for the index alone, bytes.
    pub index_reserve: u64,
    /// Bytes that one owner's objects may take, as the packs hold them; `None`: no bound.
    pub quota: Option<u64>,
    /// Named crash points, for tests.
    pub crash: Option<CrashHook>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            pack_bytes: PACK_BYTES,
            reserve_bytes: RESERVE_BYTES,
            index_reserve: INDEX_RESERVE,
            quota: None,
            crash: None,
        }
    }
}

impl StoreOptions {
    fn reached(&self, point: &'static str) {
        debug_assert!(POINTS.contains(&point), "{point} is in the list");
        if let Some(hook) = &self.crash {
            hook(point);
        }
    }
}

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The disk is full, or nearly. Nothing was lost; later it may work again.
    #[error("no space left")]
    NoSpace,
    /// The owner may not store more: nothing of the put was.
    #[error("the account's quota is used up")]
    OverQuota,
    /// A write or sync failed, or the store is closed: nothing is taken any more.
    #[error("the store has stopped")]
    Stopped,
    /// A look-up or read failed.
    #[error("storage failed: {0}")]
    Failed(String),
}

impl From<IndexError> for StoreError {
    fn from(error: IndexError) -> Self {
        Self::Failed(error.to_string())
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

/// A store just opened.
pub struct Opened {
    /// The store.
    pub store: Store,
    /// Control records to apply to the book, in order, with the time each was received.
    pub control: Vec<(crate::book::Record, u64)>,
    /// Stretches of packs found damaged on the way.
    pub damage: usize,
}

/// One put on its way to the writer.
struct Job {
    records: Vec<Record>,
    reply: oneshot::Sender<Result<Vec<Put>, StoreError>>,
    /// Given back when the job is done: this is the back-pressure.
    _room: OwnedSemaphorePermit,
}

enum Order {
    Put(Job),
    /// Finish what is queued, then stop.
    Close,
}

/// What the tail knows of a name: its row, or that it is gone; and by which record.
#[derive(Debug, Clone, Copy)]
struct Latest {
    sequence: u64,
    row: Option<Row>,
}

/// State that threads and services share.
struct Shared {
    index: Index,
    packs: Packs,
    /// Durable records that the index may not have yet.
    tail: RwLock<HashMap<RowKey, Latest>>,
    failed: watch::Sender<Option<String>>,
    /// Set by `abandon`: threads drop what they have, as a power cut would.
    abandoned: AtomicBool,
    /// Set by `close`: nobody waits for space any more.
    closing: AtomicBool,
    /// What the index may use when the disk is full.
    reserve: Arc<Reserve>,
    options: StoreOptions,
}

impl Shared {
    fn fail(&self, why: impl std::fmt::Display) {
        let why = why.to_string();
        tracing::error!(%why, "the store has stopped");
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert(why);
            first
        });
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// Tail first: what leaves the tail is in the index before.
    fn lookup(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, IndexError> {
        let known: Vec<Option<Latest>> = {
            let tail = self.tail.read().unwrap_or_else(PoisonError::into_inner);
            keys.iter().map(|key| tail.get(key).copied()).collect()
        };
        let asked = keys.iter().zip(&known).filter(|(_, known)| known.is_none());
        let asked: Vec<RowKey> = asked.map(|(key, _)| *key).collect();
        let mut indexed = if asked.is_empty() {
            Vec::new()
        } else {
            self.index.get_many(&asked)?
        }
        .into_iter();
        let row = |known: Option<Latest>| match known {
            Some(latest) => latest.row,
            None => indexed.next().flatten(),
        };
        Ok(known.into_iter().map(row).collect())
    }

    /// Reads the record of a row and checks that it is the one that was asked for. `None`: damaged.
    fn read(&self, key: &RowKey, row: &Row) -> Result<Option<Bytes>, StoreError> {
        let error = match self.packs.read(row.pack, row.location) {
            Ok(found) => {
                let same = (
                    found.header.kind,
                    found.header.owner,
                    found.header.id,
                    found.header.hash,
                ) == (key.kind, key.owner, key.id, row.hash);
                if same {
                    return Ok(Some(found.payload));
                }
                "another record stands there".to_owned()
            }
            Err(error @ (PackError::Damaged { .. } | PackError::Format)) => error.to_string(),
            Err(PackError::Io { what, source })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                format!("{what}: {source}")
            }
            Err(error) => return Err(StoreError::Failed(error.to_string())),
        };
        tracing::error!(pack = row.pack, offset = row.location.offset, %error, "a stored record is damaged");
        Ok(None)
    }
}

struct Inner {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
    room: Arc<Semaphore>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The store; clones share it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

impl Store {
    /// Opens the store of a data directory.
    pub fn open(data: &Path) -> Result<Opened, OpenError> {
        Self::open_with(data, StoreOptions::default())
    }

    /// Opens the store of a data directory, behaving as told.
    pub fn open_with(data: &Path, options: StoreOptions) -> Result<Opened, OpenError> {
        Self::open_on(&Directory::open(data)?, options)
    }

    /// The same on any medium.
    pub fn open_on(data: &dyn Medium, options: StoreOptions) -> Result<Opened, OpenError> {
        let packs = data.directory(open::PACKS)?;
        // The packs' directory itself must survive, or nothing in it does.
        data.sync_dir()?;
        Self::open_split(packs, data, options)
    }

    /// Opens a store whose packs are on `packs` and whose index is on `data`: replays what the index lacks and starts
    /// the threads.
    pub fn open_split(
        packs: Arc<dyn Medium>,
        data: &dyn Medium,
        options: StoreOptions,
    ) -> Result<Opened, OpenError> {
        let reserve = Reserve::open(data.directory(open::SPACE)?)?;
        let found = open::open(packs, data, open::INDEX, Some(&reserve))?;
        let damage = found.damage;
        let control = control::read(&found.index, &found.packs)?;
        let shared = Arc::new(Shared {
            index: found.index,
            packs: found.packs,
            tail: RwLock::default(),
            failed: watch::Sender::new(None),
            abandoned: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            reserve,
            options,
        });
        shared.keep_reserve();
        let (orders, queue) = mpsc::channel(QUEUE_PUTS);
        let (batches, indexer) = indexer::start(Arc::clone(&shared))?;
        let writer = writer::start(Arc::clone(&shared), found.continuation, queue, batches)?;
        let threads = Mutex::new(vec![writer, indexer]);
        let inner = Inner {
            shared,
            orders,
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            threads,
        };
        Ok(Opened {
            store: Self(Arc::new(inner)),
            control,
            damage,
        })
    }

    /// Stores records, all or none; returns when they are durable, and from then on everyone finds them. Objects that
    /// exist are left as they are. Waits while more than `QUEUE_BYTES` are on their way: that slows a fast sender down.
    pub async fn put(&self, records: Vec<Record>) -> Result<Vec<Put>, StoreError> {
        let bytes: usize = records.iter().map(|record| record.payload().len()).sum();
        let permits = u32::try_from(bytes.clamp(1, QUEUE_BYTES)).unwrap_or(1);
        let room = Arc::clone(&self.0.room).acquire_many_owned(permits).await;
        let room = room.map_err(|_| StoreError::Stopped)?;
        let (reply, answer) = oneshot::channel();
        let job = Job {
            records,
            reply,
            _room: room,
        };
        self.0
            .orders
            .send(Order::Put(job))
            .await
            .map_err(|_| StoreError::Stopped)?;
        answer.await.unwrap_or(Err(StoreError::Stopped))
    }

    /// Where a record is, if it is there. Blocks on the database.
    pub fn find(
        &self,
        kind: RecordKind,
        owner: &[u8; 32],
        id: &[u8; 32],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.find_many(&[RowKey {
            kind,
            owner: *owner,
            id: *id,
        }])?[0])
    }

    /// Where records are, in the order asked, in one look at the database. Blocks on it.
    pub fn find_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, StoreError> {
        Ok(self.0.shared.lookup(keys)?)
    }

    /// A record's payload, checked. `None` if there is none, or if it is damaged.
    pub async fn read(
        &self,
        kind: RecordKind,
        owner: &[u8; 32],
        id: &[u8; 32],
    ) -> Result<Option<Bytes>, StoreError> {
        let key = RowKey {
            kind,
            owner: *owner,
            id: *id,
        };
        let found = self
            .off_thread(move |shared| shared.lookup(&[key]).map_err(StoreError::from))
            .await?;
        let Some(row) = found[0] else { return Ok(None) };
        Ok(self.read_rows(vec![(key, row)]).await?.remove(0))
    }

    /// Payloads of records found before, checked, in the order asked. `None` where the copy is damaged; a damaged
    /// object is buried, so that it counts as missing from then on and its id takes a new copy.
    pub async fn read_rows(
        &self,
        rows: Vec<(RowKey, Row)>,
    ) -> Result<Vec<Option<Bytes>>, StoreError> {
        let keys: Vec<RowKey> = rows.iter().map(|(key, _)| *key).collect();
        let read = move |shared: &Shared| {
            rows.iter()
                .map(|(key, row)| shared.read(key, row))
                .collect::<Result<Vec<_>, _>>()
        };
        let payloads = self.off_thread(read).await?;
        for (key, payload) in keys.iter().zip(&payloads) {
            if payload.is_none()
                && key.kind == RecordKind::Object
                && let Err(error) = self.bury(key).await
            {
                // The reader gets what is whole; the damage is met again by the next one.
                tracing::warn!(%error, "a damaged object is not yet noted as missing");
            }
        }
        Ok(payloads)
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.0.shared);
        let done = task::spawn_blocking(move || work(&shared)).await;
        done.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    async fn bury(&self, key: &RowKey) -> Result<(), StoreError> {
        let why = Bytes::from_static(b"damaged");
        self.put(vec![Record::new(
            RecordKind::Tombstone,
            key.owner,
            key.id,
            why,
        )])
        .await
        .map(drop)
    }

    /// Objects of a domain that were found damaged and are wanted again, at most `limit`. Blocks on the database.
    pub fn suspects(&self, domain: &DomainId, limit: usize) -> Result<Vec<Sid>, StoreError> {
        let found = self.0.shared.index.suspects(domain.as_bytes(), limit)?;
        Ok(found.into_iter().map(Sid).collect())
    }

    /// Rows in the index, without the tail, and bytes of objects.
    pub fn totals(&self) -> Result<(u64, u64), StoreError> {
        Ok(self.0.shared.index.totals()?)
    }

    /// Returns once writer and index have answered: that they are alive, and nothing else.
    pub async fn pulse(&self) -> Result<(), StoreError> {
        self.put(Vec::new()).await?;
        self.read(RecordKind::Object, &[0; 32], &[0; 32])
            .await
            .map(drop)
    }

    /// Resolves when the store has stopped by itself, with the reason.
    pub async fn failed(&self) -> String {
        let mut failed = self.0.shared.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(said) => said.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Why the store has stopped by itself, if it has.
    pub fn failure(&self) -> Option<String> {
        self.0.shared.failed.borrow().clone()
    }

    /// Writes, syncs and indexes what is queued, then stops. Blocks until then.
    pub fn close(&self) {
        self.0.shared.closing.store(true, Ordering::SeqCst);
        let orders = self.0.orders.clone();
        // From a thread of its own, because a thread that drives async tasks may not wait on the queue.
        let order = thread::spawn("close", move || send_blocking(&orders, Order::Close));
        match order {
            Ok(order) => drop(order.join()),
            Err(error) => tracing::error!(%error, "no thread to close the store with"),
        }
        self.0.join();
    }

    /// Stops where it stands, as a power cut would: nothing queued is written, nothing is sealed or indexed. Blocks.
    pub fn abandon(&self) {
        self.0.abandon();
    }
}

impl Inner {
    fn abandon(&self) {
        self.shared.abandoned.store(true, Ordering::SeqCst);
        // A full queue needs no order: the writer looks at the flag before each group.
        let _ = self.orders.try_send(Order::Close);
        self.join();
    }

    fn join(&self) {
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                self.shared.fail("a store thread panicked");
            }
        }
        // Others may still hold the store; the file must be free for whoever opens it next.
        if let Err(error) = self.shared.index.close() {
            tracing::error!(%error, "closing the index");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// Name of an object's record.
pub fn object_key(domain: &DomainId, sid: &Sid) -> RowKey {
    RowKey {
        kind: RecordKind::Object,
        owner: domain.0,
        id: sid.0,
    }
}
