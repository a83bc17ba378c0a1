//! The disk as packs see it: one directory of flat names.
//!
//! Invariant asked of an implementation: what was synced survives a power cut; everything else may be lost, in any
//! order, in units as small as a byte. Names need `sync_dir`. Called by this crate and by whoever owns a directory of
//! packs; implemented by `Directory` (file.rs) and by the simulated disks of the tests.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;

/// One directory.
pub trait Medium: Send + Sync + 'static {
    /// Creates a file that must not exist yet.
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>>;
    /// Opens a file that exists.
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>>;
    /// Names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Gives a file another name; an existing file of that name is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that can still be written here.
    fn free(&self) -> io::Result<u64>;
}

/// One open file.
pub trait MediumFile: Send + Sync {
    /// Writes all parts one after another at the end of the file, which is at `end`.
    fn append(&self, end: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Fills the buffer from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Makes content and length durable. A failure is final: the pages may be clean and lost.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Length, bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
    /// Makes later reads come from the disk itself, as far as that can be had: pages whose write failed look clean.
    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether an error says "full" rather than "broken".
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}
