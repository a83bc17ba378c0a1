//! Opening the index, or beginning one.
//!
//! Invariant: a damaged index never keeps the server from starting: it is put aside, and the packs hold all that it
//! did. What a disk refuses to read is an error and not damage, and so is what it has no space for. Called at start, by
//! `rebuild-index`, and again after the disk was full.

use std::io;
use std::sync::Arc;

use redb::{Database, ReadableTable as _, StorageBackend as _};
use sealdrive_pack::{Medium, MediumFile, Reserve};
use sealdrive_runtime::sync::RwLock;
use sealdrive_runtime::thread;

use super::backend::Backend;
use super::{
    ASIDE, CACHE_BYTES, CHECKED_BYTES, Checkpoint, Index, IndexError, META, Opened, PAGE, ROWS,
    STORE, SUSPECTS, State, USAGE, begin, set_checkpoint,
};

impl Index {
    /// Opens the index, making an empty one if there is none. A damaged one is put aside and begun anew: the packs hold
    /// all that it did.
    pub fn open(data: &dyn Medium, name: &str) -> Result<Self, IndexError> {
        Self::open_with(data, name, None)
    }

    /// The same; where the disk is full it may use `reserve`.
    pub fn open_with(
        data: &dyn Medium,
        name: &str,
        reserve: Option<&Arc<Reserve>>,
    ) -> Result<Self, IndexError> {
        let io = redb::StorageError::from;
        let file = match data.open(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Self::begin(data, name, reserve);
            }
            file => file.map_err(io)?,
        };
        let file = with_reserve(file, reserve);
        whole_pages(&*file).map_err(io)?;
        let backend = Backend::new(Arc::clone(&file));
        let disk = Arc::clone(&backend.disk);
        // redb answers some damage with a panic.
        let opened = thread::catching(|| Self::open_file(file, backend));
        let error = match opened {
            Some(Ok(index)) => return Ok(index),
            Some(Err(error)) => error,
            None => IndexError::Database("a page is damaged".to_owned()),
        };
        // What a disk refuses to read is not damaged by that: the next start may read it.
        if disk.has_failed() {
            return Err(error);
        }
        tracing::error!(%error, "the index is damaged and is made anew from the packs");
        data.rename(name, ASIDE).map_err(io)?;
        Self::begin(data, name, reserve)
    }

    /// Makes an empty index: it gets its name when it is whole and durable, because half a database is no database, and
    /// a server that was cut off at its first start must start again by itself.
    fn begin(
        data: &dyn Medium,
        name: &str,
        reserve: Option<&Arc<Reserve>>,
    ) -> Result<Self, IndexError> {
        let io = redb::StorageError::from;
        let unborn = format!("{name}.unborn");
        match data.remove(&unborn) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error).into()),
            _ => {}
        }
        let file = with_reserve(data.create(&unborn).map_err(io)?, reserve);
        let index = Self::open_file(Arc::clone(&file), Backend::new(file))?;
        data.rename(&unborn, name).map_err(io)?;
        data.sync_dir().map_err(io)?;
        Ok(index)
    }

    fn open_file(file: Arc<dyn MediumFile>, backend: Backend) -> Result<Self, IndexError> {
        // Asked through the backend, which remembers what the disk said.
        let len = backend.len().map_err(redb::StorageError::from)?;
        let disk = Arc::clone(&backend.disk);
        let mut db = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend)?;
        if len <= CHECKED_BYTES && !db.check_integrity()? {
            // Repaired: an earlier state, with its own checkpoint, from which the packs are replayed.
            tracing::warn!("the index was damaged and has gone back to an earlier state");
        }
        let txn = begin(&db)?;
        txn.open_table(ROWS)?;
        txn.open_table(USAGE)?;
        txn.open_table(SUSPECTS)?;
        txn.open_table(STORE)?;
        let fresh = txn.open_table(META)?.get(0)?.is_none();
        if fresh {
            set_checkpoint(&txn, &Checkpoint::default())?;
        }
        txn.commit()?;
        let index = Self {
            file,
            state: RwLock::new(State::Open(Opened { db, disk })),
        };
        index.checkpoint()?;
        Ok(index)
    }
}

/// The database in a file that was open before, as its last commit left it.
pub(super) fn open_again(file: &Arc<dyn MediumFile>) -> Result<Opened, IndexError> {
    whole_pages(&**file).map_err(redb::StorageError::from)?;
    let backend = Backend::new(Arc::clone(file));
    let disk = Arc::clone(&backend.disk);
    let opened = thread::catching(|| {
        Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend)
    });
    match opened {
        Some(Ok(db)) => Ok(Opened { db, disk }),
        _ if disk.was_full() => Err(IndexError::Full),
        Some(Err(error)) => Err(error.into()),
        None => Err(IndexError::Database("a page is damaged".to_owned())),
    }
}

fn with_reserve(file: Arc<dyn MediumFile>, reserve: Option<&Arc<Reserve>>) -> Arc<dyn MediumFile> {
    match reserve {
        Some(reserve) => reserve.lend(file),
        None => file,
    }
}

/// A power cut while the file grows may leave any length, and redb takes whole pages only. Nothing durable names what
/// lies beyond the last whole page.
fn whole_pages(file: &dyn MediumFile) -> io::Result<()> {
    let len = file.len()?;
    let whole = len.next_multiple_of(PAGE);
    if whole != len {
        file.truncate(whole)?;
    }
    Ok(())
}
