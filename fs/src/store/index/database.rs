//! The database under the index: opening it, its tables, and what its disk says. With the index, all that names redb.
//!
//! Invariant: an error of the disk is told from content that does not verify, of which only the latter makes an index
//! anew. Called by `store/index.rs` alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::{fmt, io};

use redb::{Database, Durability, ReadableDatabase, StorageBackend, TableDefinition};
use sealdrive_pack::{Medium, MediumFile, is_no_space};
use sealdrive_proto::id::Sid;
use sealdrive_runtime::thread;

use super::{IndexError, Marks};
use crate::limits::INDEX_CACHE;
use crate::store::lost::Hole;
use crate::store::place::{Position, Row};

pub(super) const OBJECTS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("objects");
const MARKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("marks");

/// The database and what its disk said.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) disk: Arc<Disk>,
}

/// A database that has met damage may panic once more when it goes.
pub(super) fn drop_quietly(opened: Option<Opened>) {
    if thread::catching(|| drop(opened)).is_none() {
        tracing::warn!("the local index did not close well");
    }
}

/// Does something with a database. What went wrong is told by its disk; redb meets some damaged pages with a panic.
pub(super) fn judged<T>(
    disk: &Disk,
    work: impl FnOnce() -> Result<T, IndexError>,
) -> Result<T, IndexError> {
    let done = thread::catching(work).unwrap_or(Err(IndexError::Damaged));
    done.map_err(|e| match disk.said() {
        Said::Full => IndexError::Full,
        Said::Broken => IndexError::Failed(match e {
            IndexError::Failed(what) => what,
            _ => "the disk failed".to_owned(),
        }),
        Said::Nothing => e,
    })
}

pub(super) fn try_open(dir: &dyn Medium, name: &str, checked: u64) -> Result<Opened, IndexError> {
    let file = dir.open_or_create(name)?;
    // After a failed sync the kernel may show pages that the disk does not have: rows built on them would be sound
    // until a power cut, and then say anything.
    file.sync().map_err(|e| IndexError::Failed(e.to_string()))?;
    file.drop_cache()?;
    let len = file.len()?;
    let disk = Arc::<Disk>::default();
    let backend = Backend {
        file,
        disk: Arc::clone(&disk),
    };
    let database = judged(&disk, || {
        let begun = Database::builder()
            .set_cache_size(INDEX_CACHE)
            .create_with_backend(backend);
        let mut database = begun.map_err(content)?;
        if len <= checked && !database.check_integrity().map_err(content)? {
            // Repaired, which is going back to an earlier state: then its marks are earlier, too.
            tracing::warn!("the local index was damaged and has gone back to an earlier state");
        }
        if marks_in(&database).is_err() {
            let txn = database.begin_write().map_err(content)?;
            txn.open_table(OBJECTS).map_err(content)?;
            txn.open_table(MARKS).map_err(content)?;
            txn.commit().map_err(content)?;
        }
        Ok(database)
    })?;
    Ok(Opened { database, disk })
}

/// While opening, whatever is not the disk's fault is the file's.
fn content(_: impl fmt::Display) -> IndexError {
    IndexError::Damaged
}

pub(super) fn write(
    database: &Database,
    batch: &[(Sid, Row, u64)],
    marks: Option<Marks>,
) -> Result<(), IndexError> {
    let mut txn = database.begin_write()?;
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

pub(super) fn marks_in(database: &Database) -> Result<Marks, IndexError> {
    let txn = database.begin_read()?;
    txn.open_table(OBJECTS)?;
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

/// What the disk under a database has said against it so far: the worst.
#[derive(Default)]
pub(super) struct Disk(AtomicU8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Said {
    Nothing = 0,
    Full = 1,
    Broken = 2,
}

impl Disk {
    fn said(&self) -> Said {
        match self.0.load(Ordering::Acquire) {
            0 => Said::Nothing,
            1 => Said::Full,
            _ => Said::Broken,
        }
    }

    /// A file that ends too early is no fault of the disk.
    fn note<T>(&self, done: io::Result<T>, final_if_full: bool) -> io::Result<T> {
        if let Err(e) = &done
            && e.kind() != io::ErrorKind::UnexpectedEof
        {
            let full = is_no_space(e) && !final_if_full;
            let said = if full { Said::Full } else { Said::Broken };
            self.0.fetch_max(said as u8, Ordering::AcqRel);
        }
        done
    }
}

/// redb's file on the medium.
struct Backend {
    file: Arc<dyn MediumFile>,
    disk: Arc<Disk>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.disk.note(self.file.len(), false)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.note(self.file.read_at(out, offset), false)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.note(self.file.truncate(len), false)
    }

    fn sync_data(&self) -> io::Result<()> {
        // A failed sync is final, whatever it says: pages may be gone.
        self.disk.note(self.file.sync(), true)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.note(self.file.write_at(data, offset), false)
    }
}
