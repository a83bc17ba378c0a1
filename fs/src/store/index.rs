//! Where each local object lies: sid → place, in redb behind rows kept in memory. The only file that names redb.
//!
//! Invariant: a row reaches redb only after the bytes it points to are durable, and the file is a cache of what the
//! packs say: it may lag behind a crash or be lost altogether, and is then rebuilt by scanning packs. No plaintext, no
//! name and no cid stands here, only what the server sees too. Called by `store/mod.rs`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::{fmt, io};

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
};
use sealdrive_pack::{Medium, MediumFile};
use sealdrive_proto::id::Sid;
use sealdrive_runtime::sync::{Mutex, MutexGuard};
use sealdrive_runtime::thread;

use super::lost::Hole;
use super::place::{Place, Position, Row};
use crate::limits::{INDEX_BATCH, INDEX_CACHE, INDEX_CHECKED};

const OBJECTS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("objects");
/// Name a file gets that cannot be opened: kept for a person to look at.
const ASIDE: &str = "state.broken";
const MARKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("marks");

/// redb failed. After a failed commit the database must be opened anew, so the caller stops writing.
#[derive(Debug, thiserror::Error)]
#[error("local index: {0}")]
pub struct IndexError(String);

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for IndexError {
            fn from(e: $error) -> Self {
                Self(e.to_string())
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
    redb::SetDurabilityError,
    io::Error
);

/// redb meets some damaged pages with a panic; to us that is an error like others.
fn guarded<T>(work: impl FnOnce() -> Result<T, IndexError>) -> Result<T, IndexError> {
    thread::catching(work)
        .unwrap_or_else(|| Err(IndexError("a page of the database is damaged".to_owned())))
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
}

/// The index of one drive's local objects.
pub(super) struct Index {
    database: Database,
    pending: Mutex<Pending>,
}

impl Index {
    /// Opens the file, or starts an empty one if there is none or it is damaged (the packs then refill it).
    pub(super) fn open(dir: &dyn Medium, name: &str) -> Result<Self, IndexError> {
        match Self::try_open(dir, name) {
            Ok(index) => Ok(index),
            Err(broken) => {
                tracing::warn!("local index is rebuilt from the packs: {broken}");
                dir.rename(name, ASIDE)?;
                Self::try_open(dir, name)
            }
        }
    }

    fn try_open(dir: &dyn Medium, name: &str) -> Result<Self, IndexError> {
        let file = dir.open_or_create(name)?;
        // After a failed sync the kernel may show pages that the disk does not have: rows built on them would be sound
        // until a power cut, and then say anything.
        file.sync()?;
        file.drop_cache()?;
        let len = file.len()?;
        // redb answers some damage with a panic.
        let opened = guarded(|| {
            let mut database = Database::builder()
                .set_cache_size(INDEX_CACHE)
                .create_with_backend(Backend(file))?;
            if len <= INDEX_CHECKED && !database.check_integrity()? {
                // Repaired, which is going back to an earlier state: then its marks are earlier, too.
                tracing::warn!("the local index was damaged and has gone back to an earlier state");
            }
            Ok(database)
        });
        let database = opened?;
        let txn = database.begin_write()?;
        txn.open_table(OBJECTS)?;
        txn.open_table(MARKS)?;
        txn.commit()?;
        Ok(Self {
            database,
            pending: Mutex::default(),
        })
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        // Every change to the pending rows is complete before the guard goes: a panic elsewhere leaves them usable.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of an object.
    pub(super) fn get(&self, sid: &Sid) -> Result<Option<Row>, IndexError> {
        if let Some((row, _)) = self.pending().newest.get(sid) {
            return Ok(Some(*row));
        }
        guarded(|| {
            let txn = self.database.begin_read()?;
            let table = txn.open_table(OBJECTS)?;
            Ok(table
                .get(sid.as_bytes())?
                .and_then(|row| Row::decode(row.value())))
        })
    }

    /// The ids whose rows, durable and waiting, lie in one of these packs.
    pub(super) fn sids_in(&self, packs: &[u64]) -> Result<Vec<(Sid, Place)>, IndexError> {
        guarded(|| {
            let txn = self.database.begin_read()?;
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
        let mut pending = self.pending();
        pending.counter += 1;
        let number = pending.counter;
        pending.newest.insert(sid, (row, number));
        pending.order.push_back((sid, row, number));
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
        let batch = self.ripe(durable_to);
        if batch.is_empty() && marks.is_none() {
            return Ok(());
        }
        guarded(|| self.write(&batch, marks))?;
        let mut pending = self.pending();
        for (sid, _, number) in batch {
            // A newer row for the same object may have come while redb wrote: it stays in front.
            if pending.newest.get(&sid).is_some_and(|(_, n)| *n == number) {
                pending.newest.remove(&sid);
            }
        }
        Ok(())
    }

    fn write(&self, batch: &[(Sid, Row, u64)], marks: Option<Marks>) -> Result<(), IndexError> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(if marks.is_some() {
            Durability::Immediate
        } else {
            Durability::None
        })?;
        // Saves the allocator's state, so that opening after a crash does not walk the whole file.
        txn.set_quick_repair(marks.is_some());
        {
            let mut table = txn.open_table(OBJECTS)?;
            for (sid, row, _) in batch {
                match row {
                    Row::Gone => table.remove(sid.as_bytes())?,
                    _ => table.insert(sid.as_bytes(), row.encode().as_slice())?,
                };
            }
            if let Some(marks) = marks {
                let mut table = txn.open_table(MARKS)?;
                table.insert(
                    "indexed_below",
                    marks.indexed_below.to_le_bytes().as_slice(),
                )?;
                table.insert("acknowledged", marks.acknowledged.encode().as_slice())?;
                let durable: Vec<u8> = marks.durable.iter().flat_map(Position::encode).collect();
                table.insert("durable", durable.as_slice())?;
                let holes: Vec<u8> = marks.holes.iter().flat_map(Hole::encode).collect();
                table.insert("holes", holes.as_slice())?;
                let withheld: Vec<u8> = marks.withheld.iter().flat_map(Position::encode).collect();
                table.insert("withheld", withheld.as_slice())?;
            }
        }
        Ok(txn.commit()?)
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
        let txn = self.database.begin_read()?;
        let table = txn.open_table(MARKS)?;
        let indexed = table
            .get("indexed_below")?
            .and_then(|v| v.value().try_into().ok().map(u64::from_le_bytes));
        let acknowledged = table
            .get("acknowledged")?
            .and_then(|v| Position::decode(v.value()));
        let ends = |name| -> Result<Vec<Position>, IndexError> {
            let found = table.get(name)?;
            let ends = found.iter().flat_map(|v| v.value().chunks(Position::LEN));
            Ok(ends.filter_map(Position::decode).collect())
        };
        let holes = table.get("holes")?.map(|v| {
            let holes = v.value().chunks(Hole::LEN);
            holes.filter_map(Hole::decode).collect()
        });
        Ok(Marks {
            indexed_below: indexed.unwrap_or(0),
            acknowledged: acknowledged.unwrap_or_default(),
            durable: ends("durable")?,
            holes: holes.unwrap_or_default(),
            withheld: ends("withheld")?,
        })
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

/// redb's file on the medium.
struct Backend(Arc<dyn MediumFile>);

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealdrive_pack::Directory;
    use std::path::Path;

    fn open(dir: &Path) -> Index {
        Index::open(&Directory::open(dir).unwrap(), "state.redb").unwrap()
    }

    fn sid(n: u8) -> Sid {
        Sid([n; 32])
    }

    fn local(pack: u64, offset: u64) -> Row {
        Row::Local(Place {
            pack,
            offset,
            len: 10,
            cached: false,
        })
    }

    #[test]
    fn rows_wait_until_their_bytes_are_durable_and_marks_survive() {
        let dir = tempfile::tempdir().unwrap();
        {
            let index = open(dir.path());
            index.put(sid(1), local(1, 0));
            index.put(sid(2), local(1, 100));
            let marks = Marks {
                indexed_below: 1,
                acknowledged: Position { pack: 1, offset: 7 },
                ..Marks::default()
            };
            index
                .flush(
                    Position {
                        pack: 1,
                        offset: 10,
                    },
                    Some(marks),
                )
                .unwrap();
            assert_eq!(
                index.get(&sid(2)).unwrap(),
                Some(local(1, 100)),
                "a waiting row is visible"
            );
        }
        let index = open(dir.path());
        assert_eq!(index.get(&sid(1)).unwrap(), Some(local(1, 0)));
        assert_eq!(
            index.get(&sid(2)).unwrap(),
            None,
            "its bytes were not durable, so neither is the row"
        );
        assert_eq!(index.marks().unwrap().acknowledged.offset, 7);
    }

    #[test]
    fn eviction_keeps_the_knowledge_that_the_server_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let index = open(dir.path());
        index.put(sid(1), local(1, 0));
        index.put(sid(2), local(2, 0));
        index
            .forget_pack(1, [sid(1), sid(2), sid(3)].into_iter())
            .unwrap();
        assert_eq!(index.get(&sid(1)).unwrap(), Some(Row::Sent));
        assert_eq!(
            index.get(&sid(2)).unwrap(),
            Some(local(2, 0)),
            "a row of another pack is left alone"
        );
        assert_eq!(index.get(&sid(3)).unwrap(), None);
    }

    #[test]
    fn a_broken_file_is_set_aside_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("state.redb"), vec![7; 10_000]).unwrap();
        let index = open(dir.path());
        assert_eq!(index.marks().unwrap(), Marks::default());
    }
}
