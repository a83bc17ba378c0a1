//! The database's file on the medium.
//!
//! Invariant: tells an error of the disk from damage, of which only the latter makes an index anew, and a full disk
//! from a broken one. Called by redb, and by the index that opens it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::{fmt, io};

use redb::StorageBackend;
use sealdrive_pack::{MediumFile, is_no_space};

/// What the disk under a database has said against it so far: the worst.
#[derive(Default)]
pub(super) struct Disk(AtomicU8);

const FULL: u8 = 1;
const BROKEN: u8 = 2;

impl Disk {
    /// The disk itself said no.
    pub(super) fn has_failed(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    /// It only had no space.
    pub(super) fn was_full(&self) -> bool {
        self.0.load(Ordering::Acquire) == FULL
    }
}

/// redb's file on the medium.
pub(super) struct Backend {
    file: Arc<dyn MediumFile>,
    pub(super) disk: Arc<Disk>,
}

impl Backend {
    pub(super) fn new(file: Arc<dyn MediumFile>) -> Self {
        let disk = Arc::default();
        Self { file, disk }
    }

    fn noted<T>(&self, done: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &done
            && error.kind() != io::ErrorKind::UnexpectedEof
        {
            let said = if is_no_space(error) { FULL } else { BROKEN };
            self.disk.0.fetch_max(said, Ordering::AcqRel);
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
        // A failed sync is final, whatever it says: pages may be gone.
        self.noted(self.file.sync().map_err(io::Error::other))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.noted(self.file.write_at(data, offset))
    }
}
