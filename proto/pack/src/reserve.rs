//! Space that is held so that it can be given up: a file that takes real space, and a medium whose writes may use it.
//!
//! Invariant: a write that finds no space is tried once more after the reserve was let go, and only if that fails too
//! is it an error; what the reserve holds is worth nothing, so losing it loses nothing. A failed sync is never tried
//! again. Called by the client's space watch and by the server's index.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::medium::{Medium, MediumFile, is_no_space};

/// Name of the file.
const NAME: &str = "reserve";

/// The reserve of one directory.
pub struct Reserve {
    dir: Arc<dyn Medium>,
    /// Bytes held; the lock is held over the system calls that change it.
    held: Mutex<u64>,
    /// Whether the bytes were seen to take space by this process.
    sure: AtomicBool,
    /// How often it was given up.
    releases: AtomicU64,
    /// Writes that found no space even without the reserve.
    refused: AtomicU64,
}

impl Reserve {
    /// The reserve in `dir` as it was left; none if there is no such file.
    pub fn open(dir: Arc<dyn Medium>) -> io::Result<Arc<Self>> {
        let held = match dir.open(NAME) {
            Ok(file) => file.len()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Arc::new(Self {
            dir,
            held: Mutex::new(held),
            sure: AtomicBool::new(false),
            releases: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    // A lock of std, which a simulated world does not see: nobody who holds it waits for another thread.
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes held.
    pub fn held(&self) -> u64 {
        *self.lock()
    }

    /// How many writes found no space so far, with nothing left to give up.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Acquire)
    }

    /// Holds `bytes`, no more and no less. On an error what was held before may be gone.
    pub fn hold(&self, bytes: u64) -> io::Result<()> {
        let mut held = self.lock();
        if *held == bytes && self.sure.load(Ordering::Acquire) {
            return Ok(());
        }
        let file = self.dir.open_or_create(NAME)?;
        let cut = if *held > bytes {
            file.truncate(bytes)
        } else {
            Ok(())
        };
        let done = cut.and_then(|()| file.allocate(bytes));
        if done.is_err() {
            // Half a reserve is not known to be any: somebody may need what it took.
            *held = 0;
            file.truncate(0)?;
        } else {
            *held = bytes;
            self.sure.store(true, Ordering::Release);
        }
        done
    }

    /// Gives all of it up; how much that was, bytes.
    pub fn release(&self) -> u64 {
        let mut held = self.lock();
        if *held == 0 {
            return 0;
        }
        let cut = self.dir.open(NAME).and_then(|file| file.truncate(0));
        // If it cannot be cut it is of no use; and whoever needs space must not ask for it for ever.
        let given = if cut.is_ok() { *held } else { 0 };
        *held = 0;
        self.releases.fetch_add(1, Ordering::AcqRel);
        given
    }

    /// A file whose writes may use it.
    pub fn lend(self: &Arc<Self>, inner: Arc<dyn MediumFile>) -> Arc<dyn MediumFile> {
        Arc::new(ReservedFile {
            inner,
            reserve: Arc::clone(self),
        })
    }

    /// Does `attempt`; if it finds no space, lets the reserve go and does it again.
    fn attempt<T>(&self, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let full = |done: &io::Result<T>| done.as_ref().is_err_and(is_no_space);
        let before = self.releases.load(Ordering::Acquire);
        let mut done = attempt();
        if full(&done) {
            self.release();
            // Also if somebody else has just given it up.
            if self.releases.load(Ordering::Acquire) != before {
                done = attempt();
            }
        }
        if full(&done) {
            self.refused.fetch_add(1, Ordering::AcqRel);
        }
        done
    }
}

/// A directory whose writes may use a reserve.
pub struct Reserved {
    inner: Arc<dyn Medium>,
    reserve: Arc<Reserve>,
    /// Directories in it whose writes may not.
    apart: &'static [&'static str],
}

impl Reserved {
    /// `inner`, whose writes may use `reserve`, but for those in the directories `apart`.
    pub fn new(
        inner: Arc<dyn Medium>,
        reserve: &Arc<Reserve>,
        apart: &'static [&'static str],
    ) -> Self {
        Self {
            inner,
            reserve: Arc::clone(reserve),
            apart,
        }
    }

    fn file(&self, inner: Arc<dyn MediumFile>) -> Arc<dyn MediumFile> {
        self.reserve.lend(inner)
    }
}

impl Medium for Reserved {
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        let made = self.reserve.attempt(|| self.inner.create(name));
        made.map(|file| self.file(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.inner.open(name).map(|file| self.file(file))
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        let inner = self.reserve.attempt(|| self.inner.directory(name))?;
        if self.apart.contains(&name) {
            return Ok(inner);
        }
        Ok(Arc::new(Self {
            inner,
            reserve: Arc::clone(&self.reserve),
            apart: &[],
        }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.reserve.attempt(|| self.inner.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn remove_directory(&self, name: &str) -> io::Result<()> {
        self.inner.remove_directory(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }

    fn free(&self) -> io::Result<u64> {
        self.inner.free()
    }
}

struct ReservedFile {
    inner: Arc<dyn MediumFile>,
    reserve: Arc<Reserve>,
}

impl MediumFile for ReservedFile {
    fn append(&self, end: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        // The slices are used up by an attempt.
        self.reserve
            .attempt(|| self.inner.append(end, &mut parts.to_vec()))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.reserve.attempt(|| self.inner.write_at(bytes, offset))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.reserve.attempt(|| self.inner.truncate(len))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.reserve.attempt(|| self.inner.allocate(len))
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.inner.try_lock()
    }

    fn write_behind(&self, from: u64, len: u64) {
        self.inner.write_behind(from, len)
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.inner.drop_cache()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Directory;

    #[test]
    fn what_is_held_takes_space_and_comes_back_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let medium = || Arc::new(Directory::open(dir.path()).unwrap()) as Arc<dyn Medium>;
        let reserve = Reserve::open(medium()).unwrap();
        assert_eq!((reserve.held(), reserve.release()), (0, 0));
        reserve.hold(3 << 20).unwrap();
        let taken = || {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(dir.path().join(NAME)).unwrap().blocks() * 512
        };
        assert!(taken() >= 3 << 20, "{} bytes", taken());
        reserve.hold(1 << 20).unwrap();
        assert!(taken() < 2 << 20, "{} bytes", taken());
        drop(reserve);
        let reserve = Reserve::open(medium()).unwrap();
        assert_eq!(reserve.held(), 1 << 20);
        reserve.hold(1 << 20).unwrap();
        assert_eq!(reserve.release(), 1 << 20);
        assert_eq!((reserve.held(), taken()), (0, 0));
    }
}
