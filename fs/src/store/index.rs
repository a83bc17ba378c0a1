//! Where each local object lies: sid → place, in redb behind rows kept in memory.
//!
//! Invariants: a row reaches redb only after the bytes it points to are durable, and the file is a cache of what the
//! packs say: it may lag behind a crash or be lost altogether, and is then rebuilt by scanning packs. Every call into
//! redb goes through `Index::with`: a full disk closes the database, and it is opened again by whoever asks next, with
//! the rows that were not durable; content that does not verify, also where redb answers with a panic, sets the file
//! aside; what a disk refuses to read is neither. No plaintext, no name and no cid stands here, only what the server
//! sees too. Called by `store/mod.rs`.

mod database;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use redb::{Database, ReadableDatabase, ReadableTable};
use sealdrive_pack::{Medium, is_no_space};
use sealdrive_proto::id::Sid;
use sealdrive_runtime::sync::{Mutex, MutexGuard, RwLock};

use self::database::{OBJECTS, Opened, drop_quietly, judged, marks_in, try_open, write};
use super::lost::Hole;
use super::place::{Place, Position, Row};
use crate::limits::{INDEX_BATCH, INDEX_CHECKED};

/// Name a file gets that cannot be opened: kept for a person to look at.
const ASIDE: &str = "state.broken";

/// Why the index did not answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// No space for it. Nothing is lost, and later it may work again.
    #[error("local index: no space left")]
    Full,
    /// Its content does not verify. It was set aside, and the next mount rebuilds it from the packs.
    #[error("local index: damaged, and set aside; it is rebuilt from the packs at the next mount")]
    Damaged,
    /// The disk or the database failed; nothing more is written.
    #[error("local index: {0}")]
    Failed(String),
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for IndexError {
            fn from(e: $error) -> Self {
                match redb::Error::from(e) {
                    redb::Error::Corrupted(_) => Self::Damaged,
                    e => Self::Failed(e.to_string()),
                }
            }
        })*
    };
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

impl From<io::Error> for IndexError {
    fn from(e: io::Error) -> Self {
        match is_no_space(&e) {
            true => Self::Full,
            false => Self::Failed(e.to_string()),
        }
    }
}

/// What the durable index knows about the packs, written together with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Marks {
    /// Packs numbered below this are wholly in the index; later ones are scanned at open.
    pub(super) indexed_below: u64,
    /// Every outbox byte before this place was acknowledged by the server.
    pub(super) acknowledged: Position,
    /// How far each outbox pack was durable: the witness for one that is gone or cut short.
    pub(super) durable: Vec<Position>,
    /// What is known not to be good of outbox packs.
    pub(super) holes: Vec<Hole>,
    /// Ends of records that the server refused: no acknowledgement of what stands behind them counts for them.
    pub(super) withheld: Vec<Position>,
}

impl Marks {
    /// Whether the server has acknowledged the record of `pack` that begins at `from` and ends at `to`.
    pub(super) fn is_acknowledged(&self, pack: u64, from: u64, to: u64) -> bool {
        let inside = |end: &Position| end.pack == pack && from < end.offset && end.offset <= to;
        Position::new(pack, to) <= self.acknowledged && !self.withheld.iter().any(inside)
    }
}

#[derive(Default)]
struct Pending {
    newest: HashMap<Sid, (Row, u64)>,
    order: VecDeque<(Sid, Row, u64)>,
    counter: u64,
    /// Rows that could not go to redb last time (their bytes are not durable yet) do not count again.
    left: usize,
    /// Rows that redb has taken since its last durable transaction.
    unsettled: Vec<(Sid, Row)>,
}

impl Pending {
    fn put(&mut self, sid: Sid, row: Row) {
        self.counter += 1;
        let number = self.counter;
        self.newest.insert(sid, (row, number));
        self.order.push_back((sid, row, number));
    }
}

/// The index of one drive's local objects.
pub(super) struct Index {
    dir: Arc<dyn Medium>,
    name: String,
    /// None after the disk was full, until it is opened again.
    opened: RwLock<Option<Opened>>,
    damaged: AtomicBool,
    pending: Mutex<Pending>,
    /// One transaction at a time: what is taken out of `pending` must not be overtaken.
    flushing: Mutex<()>,
}

impl Index {
    /// Opens the file, or starts an empty one if there is none or it is damaged (the packs then refill it). What the
    /// disk refuses is an error, and no damage.
    pub(super) fn open(dir: &Arc<dyn Medium>, name: &str) -> Result<Self, IndexError> {
        Self::open_checking(dir, name, INDEX_CHECKED)
    }

    /// Files up to the length `checked` are checked page by page.
    fn open_checking(dir: &Arc<dyn Medium>, name: &str, checked: u64) -> Result<Self, IndexError> {
        let found = match try_open(&**dir, name, checked) {
            Err(IndexError::Damaged) => {
                tracing::warn!("the local index is damaged and is rebuilt from the packs");
                dir.rename(name, ASIDE)?;
                try_open(&**dir, name, checked)
            }
            found => found,
        };
        Ok(Self {
            dir: Arc::clone(dir),
            name: name.to_owned(),
            opened: RwLock::new(Some(found?)),
            damaged: AtomicBool::new(false),
            pending: Mutex::default(),
            flushing: Mutex::default(),
        })
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        // Every change to the pending rows is complete before the guard goes: a panic elsewhere leaves them usable.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one way to the database.
    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        if self.damaged.load(Ordering::Acquire) {
            return Err(IndexError::Damaged);
        }
        self.open_again()?;
        let done = {
            let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
            let opened = opened.as_ref().ok_or(IndexError::Full)?;
            judged(&opened.disk, || work(&opened.database))
        };
        match done {
            Err(IndexError::Full) => self.close(),
            Err(IndexError::Damaged) => self.set_aside(),
            _ => {}
        }
        done
    }

    fn open_again(&self) -> Result<(), IndexError> {
        let is_open = || {
            let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
            opened.is_some()
        };
        if is_open() {
            return Ok(());
        }
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        if opened.is_some() {
            return Ok(());
        }
        match try_open(&*self.dir, &self.name, 0) {
            Ok(again) => *opened = Some(again),
            Err(IndexError::Damaged) => {
                self.set_aside();
                return Err(IndexError::Damaged);
            }
            Err(e) => return Err(e),
        }
        // The file stands where its last durable transaction left it.
        let mut pending = self.pending();
        for (sid, row) in std::mem::take(&mut pending.unsettled) {
            if !pending.newest.contains_key(&sid) {
                pending.put(sid, row);
            }
        }
        Ok(())
    }

    /// After an error of its file a database answers nothing any more.
    fn close(&self) {
        let closed = self
            .opened
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop_quietly(closed);
    }

    /// Never asked again; and the next mount does not find it.
    fn set_aside(&self) {
        if !self.damaged.swap(true, Ordering::AcqRel)
            && let Err(error) = self.dir.rename(&self.name, ASIDE)
        {
            tracing::error!(%error, "the damaged local index cannot be set aside; remove {}", self.name);
        }
    }

    /// What is known of an object.
    pub(super) fn get(&self, sid: &Sid) -> Result<Option<Row>, IndexError> {
        if let Some((row, _)) = self.pending().newest.get(sid) {
            return Ok(Some(*row));
        }
        let found = self.with(|database| {
            let txn = database.begin_read()?;
            let table = txn.open_table(OBJECTS)?;
            Ok(table
                .get(sid.as_bytes())?
                .and_then(|row| Row::decode(row.value())))
        })?;
        // Rows come back to those that wait when the database has to be opened again.
        let waiting = self.pending().newest.get(sid).map(|(row, _)| *row);
        Ok(waiting.or(found))
    }

    /// The ids whose rows, durable and waiting, lie in one of these packs.
    pub(super) fn sids_in(&self, packs: &[u64]) -> Result<Vec<(Sid, Place)>, IndexError> {
        self.with(|database| {
            let txn = database.begin_read()?;
            let table = txn.open_table(OBJECTS)?;
            let mut out = Vec::new();
            for item in table.iter()? {
                let (sid, row) = item?;
                if let Some(Row::Local(place)) = Row::decode(row.value())
                    && !place.cached
                    && packs.contains(&place.pack)
                {
                    out.push((Sid(sid.value()), place));
                }
            }
            Ok(out)
        })
    }

    /// Notes a row; visible at once, in redb at a later `flush`.
    pub(super) fn put(&self, sid: Sid, row: Row) {
        self.pending().put(sid, row);
    }

    /// Whether enough rows wait to be worth a transaction.
    pub(super) fn is_full(&self) -> bool {
        {
            let pending = self.pending();
            pending.order.len() >= pending.left + INDEX_BATCH
        }
    }

    /// Writes the waiting rows whose bytes lie before `durable_to`. With `marks` the transaction itself is durable.
    pub(super) fn flush(
        &self,
        durable_to: Position,
        marks: Option<Marks>,
    ) -> Result<(), IndexError> {
        let _turn = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.open_again()?;
        let batch = self.ripe(durable_to);
        if batch.is_empty() && marks.is_none() {
            return Ok(());
        }
        let durable = marks.is_some();
        let done = self.with(|database| write(database, &batch, marks));
        let mut pending = self.pending();
        if done.is_err() {
            // In front of what came since.
            let waiting = std::mem::take(&mut pending.order);
            pending.order = batch.into_iter().chain(waiting).collect();
            return done;
        }
        if durable {
            pending.unsettled.clear();
        }
        for (sid, row, number) in batch {
            // A newer row for the same object may have come while redb wrote: it stays in front.
            if pending.newest.get(&sid).is_some_and(|(_, n)| *n == number) {
                pending.newest.remove(&sid);
            }
            if !durable {
                pending.unsettled.push((sid, row));
            }
        }
        Ok(())
    }

    fn ripe(&self, durable_to: Position) -> Vec<(Sid, Row, u64)> {
        let mut pending = self.pending();
        let (ripe, wait): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut pending.order)
            .into_iter()
            .partition(|(_, row, _)| match row {
                Row::Local(place) => place.cached || place.end() <= durable_to,
                Row::Sent | Row::Gone => true,
            });
        pending.left = wait.len();
        pending.order = wait;
        ripe.into()
    }

    /// The marks of the last durable flush; none in a new or rebuilt file.
    pub(super) fn marks(&self) -> Result<Marks, IndexError> {
        self.with(marks_in)
    }

    /// Replaces rows of an evicted pack: the object is still known to be on the server, only not here any more.
    pub(super) fn forget_pack(
        &self,
        pack: u64,
        sids: impl Iterator<Item = Sid>,
    ) -> Result<(), IndexError> {
        for sid in sids {
            if let Some(Row::Local(Place { pack: p, .. })) = self.get(&sid)?
                && p == pack
            {
                self.put(sid, Row::Sent);
            }
        }
        Ok(())
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
