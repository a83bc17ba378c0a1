//! The database's file on the medium.
//!
//! Invariant: tells an error of the disk from damage, of which only the latter makes an index anew. Called by redb, and
//! by the index that opens it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, io};

use redb::StorageBackend;
use sealdrive_pack::MediumFile;

/// redb's file on the medium.
pub(super) struct Backend {
    pub(super) file: Arc<dyn MediumFile>,
    /// The disk itself said no.
    pub(super) failed: Arc<AtomicBool>,
}

impl Backend {
    pub(super) fn new(file: Arc<dyn MediumFile>) -> Self {
        let failed = Arc::default();
        Self { file, failed }
    }

    fn noted<T>(&self, done: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &done
            && error.kind() != io::ErrorKind::UnexpectedEof
        {
            self.failed.store(true, Ordering::Release);
        }
        done
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.noted(self.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.noted(self.file.read_at(out, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.noted(self.file.truncate(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.noted(self.file.sync())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.noted(self.file.write_at(data, offset))
    }
}
