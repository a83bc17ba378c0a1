//! Opening the index, or beginning one.
//!
//! Invariant: a damaged index never keeps the server from starting: it is put aside, and the packs hold all that it
//! did. What a disk refuses to read is an error and not damage. Called at start and by `rebuild-index`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{Database, ReadableTable as _};
use sealdrive_pack::Medium;
use sealdrive_runtime::sync::RwLock;
use sealdrive_runtime::thread;

use super::backend::Backend;
use super::{
    ASIDE, CACHE_BYTES, CHECKED_BYTES, Checkpoint, Index, IndexError, META, PAGE, ROWS, STORE,
    SUSPECTS, USAGE, begin, set_checkpoint,
};

impl Index {
    /// Opens the index, making an empty one if there is none. A damaged one is put aside and begun anew: the packs hold
    /// all that it did.
    pub fn open(data: &dyn Medium, name: &str) -> Result<Self, IndexError> {
        let io = redb::StorageError::from;
        let file = match data.open(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Self::begin(data, name);
            }
            file => file.map_err(io)?,
        };
        // A power cut while the file grows may leave any length, and redb takes whole pages only. Nothing durable names
        // what lies beyond the last whole page.
        let len = file.len().map_err(io)?;
        let whole = len.next_multiple_of(PAGE);
        if whole != len {
            file.truncate(whole).map_err(io)?;
        }
        let backend = Backend::new(file);
        let disk_failed = Arc::clone(&backend.failed);
        // redb answers some damage with a panic.
        let opened = thread::catching(|| Self::open_file(backend));
        let error = match opened {
            Some(Ok(index)) => return Ok(index),
            Some(Err(error)) => error,
            None => IndexError::Database("a page is damaged".to_owned()),
        };
        // What a disk refuses to read is not damaged by that: the next start may read it.
        if disk_failed.load(Ordering::Acquire) {
            return Err(error);
        }
        tracing::error!(%error, "the index is damaged and is made anew from the packs");
        data.rename(name, ASIDE).map_err(io)?;
        Self::begin(data, name)
    }

    /// Makes an empty index: it gets its name when it is whole and durable, because half a database is no database, and
    /// a server that was cut off at its first start must start again by itself.
    fn begin(data: &dyn Medium, name: &str) -> Result<Self, IndexError> {
        let io = redb::StorageError::from;
        let unborn = format!("{name}.unborn");
        match data.remove(&unborn) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error).into()),
            _ => {}
        }
        let index = Self::open_file(Backend::new(data.create(&unborn).map_err(io)?))?;
        data.rename(&unborn, name).map_err(io)?;
        data.sync_dir().map_err(io)?;
        Ok(index)
    }

    fn open_file(backend: Backend) -> Result<Self, IndexError> {
        let len = backend.file.len().map_err(redb::StorageError::from)?;
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
        let index = Self(RwLock::new(Some(db)));
        index.checkpoint()?;
        Ok(index)
    }
}
