//! A directory on a disk of which little is left: the real one, and a count of the blocks that were written.
//!
//! Invariant: a write that would take more blocks than there are is cut short at a block and fails with ENOSPC, as file
//! systems do; a length alone takes none. Blocks of a removed file are free at once.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use sealdrive_pack::{Directory, Medium, MediumFile};

const BLOCK: u64 = 4096;

#[derive(Default)]
struct State {
    capacity: u64,
    used: u64,
    files: HashMap<String, Arc<Mutex<BTreeSet<u64>>>>,
    refused: u64,
}

/// The disk; clones share it.
#[derive(Clone)]
pub struct ShortDisk(Arc<Mutex<State>>);

impl ShortDisk {
    /// Room for so many bytes.
    pub fn new(capacity: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            capacity,
            ..State::default()
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Room for so many bytes from now on; less than there are is a disk that somebody else has filled.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// Bytes taken.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Writes that found no space so far.
    pub fn refused(&self) -> u64 {
        self.lock().refused
    }

    /// The directory on it.
    pub fn directory(&self, path: &Path) -> Arc<dyn Medium> {
        Arc::new(ShortDir {
            inner: Arc::new(Directory::create(path).unwrap()),
            path: String::new(),
            disk: self.clone(),
        })
    }

    /// Takes the blocks of `len` bytes from `at` on; answers how many of the bytes fit.
    fn take(&self, blocks: &Mutex<BTreeSet<u64>>, at: u64, len: u64) -> u64 {
        let (mut state, mut blocks) = (self.lock(), blocks.lock().unwrap());
        for block in at / BLOCK..(at + len).div_ceil(BLOCK) {
            if blocks.contains(&block) {
                continue;
            }
            if state.used + BLOCK > state.capacity {
                state.refused += 1;
                return (block * BLOCK).saturating_sub(at);
            }
            state.used += BLOCK;
            blocks.insert(block);
        }
        len
    }

    fn cut(&self, blocks: &Mutex<BTreeSet<u64>>, len: u64) {
        let (mut state, mut blocks) = (self.lock(), blocks.lock().unwrap());
        let gone = blocks.split_off(&len.div_ceil(BLOCK));
        state.used -= gone.len() as u64 * BLOCK;
    }
}

struct ShortDir {
    inner: Arc<dyn Medium>,
    path: String,
    disk: ShortDisk,
}

impl ShortDir {
    fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    fn file(&self, name: &str, inner: Arc<dyn MediumFile>) -> Arc<dyn MediumFile> {
        let mut state = self.disk.lock();
        let blocks = Arc::clone(state.files.entry(self.at(name)).or_default());
        Arc::new(ShortFile {
            inner,
            blocks,
            disk: self.disk.clone(),
        })
    }

    fn forget(&self, name: &str) {
        let gone = self.disk.lock().files.remove(&self.at(name));
        if let Some(blocks) = gone {
            self.disk.cut(&blocks, 0);
        }
    }
}

impl Medium for ShortDir {
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        if self.disk.take(&Mutex::default(), 0, 1) == 0 {
            return Err(ErrorKind::StorageFull.into());
        }
        self.disk.lock().used -= BLOCK;
        Ok(self.file(name, self.inner.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        Ok(self.file(name, self.inner.open(name)?))
    }
    fn directory(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        Ok(Arc::new(Self {
            inner: self.inner.directory(name)?,
            path: self.at(name),
            disk: self.disk.clone(),
        }))
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)?;
        self.forget(to);
        let (from, to) = (self.at(from), self.at(to));
        let mut state = self.disk.lock();
        if let Some(blocks) = state.files.remove(&from) {
            state.files.insert(to, blocks);
        }
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)?;
        self.forget(name);
        Ok(())
    }
    fn remove_directory(&self, name: &str) -> io::Result<()> {
        self.inner.remove_directory(name)?;
        let below = format!("{}/", self.at(name));
        let gone: Vec<_> = {
            let files = &mut self.disk.lock().files;
            files
                .extract_if(|path, _| path.starts_with(&below))
                .collect()
        };
        for (_, blocks) in gone {
            self.disk.cut(&blocks, 0);
        }
        Ok(())
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }
    fn free(&self) -> io::Result<u64> {
        let state = self.disk.lock();
        Ok(state.capacity.saturating_sub(state.used))
    }
}

struct ShortFile {
    inner: Arc<dyn MediumFile>,
    blocks: Arc<Mutex<BTreeSet<u64>>>,
    disk: ShortDisk,
}

impl MediumFile for ShortFile {
    fn append(&self, end: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.write_at(&bytes, end)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let fits = self.disk.take(&self.blocks, offset, bytes.len() as u64) as usize;
        self.inner
            .write_at(&bytes[..fits.min(bytes.len())], offset)?;
        match fits < bytes.len() {
            true => Err(ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buffer, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.inner.truncate(len)?;
        self.disk.cut(&self.blocks, len);
        Ok(())
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
