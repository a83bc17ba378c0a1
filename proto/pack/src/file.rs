//! `Medium` on a directory of the operating system.
//!
//! Invariant: every system call that makes something durable, on either side, is here. Called through the trait.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::medium::{Medium, MediumFile, fill};

/// Most parts of one `pwritev`: `UIO_MAXIOV` of Linux.
const MAX_PARTS: usize = 1024;

/// A directory that exists.
pub struct Directory {
    path: PathBuf,
    handle: File,
}

impl Directory {
    /// Opens a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let handle = File::open(path)?;
        if !handle.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self {
            path: path.to_owned(),
            handle,
        })
    }

    /// Opens a directory, making it (and those above it) for its owner alone if it is not there.
    pub fn create(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Self::open(path)
    }
}

impl Medium for Directory {
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        let path = self.path.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path.join(name))?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        Ok(Arc::new(Self::create(&self.path.join(name))?))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn remove_directory(&self, name: &str) -> io::Result<()> {
        std::fs::remove_dir_all(self.path.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.handle)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

struct DiskFile(File);

impl MediumFile for DiskFile {
    fn append(&self, mut end: u64, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let some = &parts[..parts.len().min(MAX_PARTS)];
            match rustix::io::pwritev(&self.0, some, end) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    end += written as u64;
                    IoSlice::advance_slices(&mut parts, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        if len == 0 {
            return Ok(());
        }
        match fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => fill(self, len),
            Err(error) => Err(error.into()),
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.0.metadata().map(|meta| meta.len())
    }

    fn try_lock(&self) -> io::Result<bool> {
        use rustix::fs::{FlockOperation, flock};
        match flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn write_behind(&self, from: u64, len: u64) {
        // Linux begins to write what is dirty in the range, and forgets only what was clean.
        let len = std::num::NonZeroU64::new(len);
        let _ = rustix::fs::fadvise(&self.0, from, len, rustix::fs::Advice::DontNeed);
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(
            &self.0,
            0,
            None,
            rustix::fs::Advice::DontNeed,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_more_parts_than_one_call_takes() {
        let dir = tempfile::tempdir().unwrap();
        let medium = Directory::open(dir.path()).unwrap();
        let file = medium.create("x").unwrap();
        let bytes: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
        let mut parts: Vec<IoSlice<'_>> = bytes.chunks(2).map(IoSlice::new).collect();
        file.append(0, &mut parts).unwrap();
        file.append(5000, &mut [IoSlice::new(b""), IoSlice::new(b"end")])
            .unwrap();
        let mut back = vec![0; 5003];
        file.read_at(&mut back, 0).unwrap();
        assert_eq!((&back[..5000], &back[5000..]), (&bytes[..], &b"end"[..]));
        assert!(file.read_at(&mut back, 1).is_err());
    }

    #[test]
    fn creation_is_exclusive() {
        let dir = tempfile::tempdir().unwrap();
        let medium = Directory::open(dir.path()).unwrap();
        medium.create("x").unwrap();
        assert!(medium.create("x").is_err());
        assert!(medium.open("y").is_err());
        assert!(medium.free().unwrap() > 0);
    }

    #[test]
    fn files_move_between_directories_and_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let medium = Directory::create(&dir.path().join("a/b")).unwrap();
        let (one, two) = (
            medium.directory("one").unwrap(),
            medium.directory("two").unwrap(),
        );
        one.replace("x", b"old").unwrap();
        one.create("x.new").unwrap();
        one.replace("x", b"newer").unwrap();
        assert_eq!(
            (one.read("x").unwrap(), one.list().unwrap()),
            (b"newer".to_vec(), vec!["x".to_owned()])
        );
        medium.rename("one/x", "two/y").unwrap();
        assert!(one.list().unwrap().is_empty());
        let file = two.open_or_create("y").unwrap();
        file.write_at(b"!", 6).unwrap();
        assert_eq!(two.read("y").unwrap(), b"newer\0!");
        assert!(two.open_or_create("z").unwrap().is_empty().unwrap());
    }

    #[test]
    fn directories_move_with_all_in_them_and_go_whole() {
        let dir = tempfile::tempdir().unwrap();
        let medium = Directory::open(dir.path()).unwrap();
        let (one, two) = (
            medium.directory("one").unwrap(),
            medium.directory("two").unwrap(),
        );
        one.directory("in")
            .unwrap()
            .replace("x", b"content")
            .unwrap();
        medium.rename("one", "two/moved").unwrap();
        assert_eq!(medium.list().unwrap(), ["two"]);
        let inside = two.directory("moved").unwrap().directory("in").unwrap();
        assert_eq!(inside.read("x").unwrap(), b"content");
        assert!(medium.directory("three").unwrap().create("y").is_ok());
        assert!(
            medium.rename("two", "three").is_err(),
            "a name that is in use"
        );
        medium.remove_directory("two").unwrap();
        assert_eq!(medium.list().unwrap(), ["three"]);
        assert!(medium.remove_directory("two").is_err());
    }

    #[test]
    fn a_lock_excludes_other_handles_until_its_own_goes() {
        let dir = tempfile::tempdir().unwrap();
        let medium = Directory::open(dir.path()).unwrap();
        let (one, two) = (
            medium.open_or_create("lock").unwrap(),
            medium.open_or_create("lock").unwrap(),
        );
        assert!(one.try_lock().unwrap() && one.try_lock().unwrap());
        assert!(!two.try_lock().unwrap());
        drop(one);
        assert!(two.try_lock().unwrap());
    }
}
