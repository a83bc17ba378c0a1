//! The disk as everything durable sees it: a directory of files, and directories in it.
//!
//! Invariant asked of an implementation: what was synced survives a power cut; everything else may be lost, in any
//! order, in units as small as a byte. Names need `sync_dir`. Called by this crate, by the client's store and journal
//! and by the server's; implemented by `Directory` (file.rs) and by the simulated disks of the tests.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;

/// Zeros written at a time to take space, bytes.
const ALLOCATE_AT_ONCE: usize = 1 << 20;

/// One directory.
pub trait Medium: Send + Sync + 'static {
    /// Creates a file that must not exist yet.
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>>;
    /// Opens a file that exists.
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>>;
    /// A directory in this one, private to its owner; made if it is not there. Its name needs `sync_dir` of this one.
    fn directory(&self, name: &str) -> io::Result<Arc<dyn Medium>>;
    /// Names of all files and directories, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Gives a file another name; an existing file of that name is replaced. Either name may be `directory/name`: the
    /// file moves in one step, and is never in both or in neither. A directory moves with all in it, to a name that is
    /// not in use.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Removes a directory and all in it; a power cut on the way may leave any part.
    fn remove_directory(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that can still be written here.
    fn free(&self) -> io::Result<u64>;

    /// The whole content of a file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.open(name)?;
        let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut content = vec![0; len];
        file.read_at(&mut content, 0)?;
        Ok(content)
    }

    /// Opens a file, making an empty one if there is none.
    fn open_or_create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        loop {
            match self.open(name) {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                done => return done,
            }
            match self.create(name) {
                // Somebody else was quicker.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                done => return done,
            }
        }
    }

    /// Gives a file this content, durably and whole: a power cut on the way leaves the old content, or no file if there
    /// was none. Uses the name with `.new` behind it.
    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let fresh = format!("{name}.new");
        match self.remove(&fresh) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = self.create(&fresh)?;
        file.append(0, &mut [IoSlice::new(content)])?;
        file.sync()?;
        self.rename(&fresh, name)?;
        self.sync_dir()
    }
}

/// One open file.
pub trait MediumFile: Send + Sync {
    /// Writes all parts one after another at the end of the file, which is at `end`. After a failure the file may be
    /// longer: another attempt at the same `end` writes over what is there.
    fn append(&self, end: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Writes over what is at `offset`, or past the end; a gap reads as zeros.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Fills the buffer from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Makes content and length durable. A failure is final: the pages may be clean and lost.
    fn sync(&self) -> io::Result<()>;
    /// Gives the file this length: cuts it, or adds zeros.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes the file this long and every byte of it take space, so that giving it up gives back as much. What it held
    /// may be lost.
    fn allocate(&self, len: u64) -> io::Result<()> {
        fill(self, len)
    }
    /// Length, bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
    /// Takes the file for this handle alone, until the handle goes: false if another has it, in this process or
    /// another.
    fn try_lock(&self) -> io::Result<bool>;
    /// The bytes `from .. from + len` will be asked to be durable soon: the disk may begin with them. A hint, nothing
    /// waits.
    fn write_behind(&self, from: u64, len: u64);
    /// Makes later reads come from the disk itself, as far as that can be had: pages whose write failed look clean.
    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes space by writing zeros.
pub(crate) fn fill(file: &(impl MediumFile + ?Sized), len: u64) -> io::Result<()> {
    let zeros = vec![0; ALLOCATE_AT_ONCE];
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(ALLOCATE_AT_ONCE as u64);
        file.write_at(&zeros[..piece as usize], at)?;
        at += piece;
    }
    Ok(())
}

/// Whether an error says "full" rather than "broken".
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}
