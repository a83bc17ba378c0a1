//! A simulated disk with a directory tree on it: a live image that programs see, and a durable one that a power cut
//! leaves. `sealdrive_pack::Medium` stands on it, and so the whole durable state of client and server.
//!
//! Modelled, after what ext4 (`data=ordered`, with and without `dioread_nolock`) and XFS permit:
//! - Content written since the last `sync` of its file: each write may survive whole, not at all, or in pieces of
//!   `Config::unit` bytes (1: torn at any byte; 512: at sectors), independently of earlier and later ones.
//! - What does not survive of an overwrite is the old content; of a write past the end, zeros. Never bytes of another
//!   file: both file systems commit a size only over blocks of the file itself.
//! - The length of a file that grew may be any between the durable and the newest, also over bytes that did not survive
//!   (zeros at the end). A cut (`truncate`) that does not survive takes later writes beyond it along: their blocks were
//!   new ones. Truncations survive in order.
//! - Names: creations, renames and removals are one ordered log, as both journals are; a power cut keeps a prefix of
//!   it. A rename is one step, also between directories, and also of a directory with all in it. What is durable in a
//!   directory whose own new name is not stands under its old one; without a durable name it is gone.
//! - `sync_dir` makes durable what was done in that directory, and nothing else; `sync` of a file no name at all. Both
//!   file systems commit their whole log then: this is stricter, so that nothing here relies on it.
//! - A failed `sync` says so once: some pieces reached the disk, the others are clean and lost although reads still
//!   show them, until `drop_cache` or a restart. The next `sync` succeeds and does not bring them back.
//! - Space is counted in blocks of 4 KiB that were written to: a length alone takes none, writing into a hole does. A
//!   write that finds no space is cut short at a block. A file that is removed while open gives its space back at the
//!   last close.
//!
//! Not modelled: the order of writes that a queue without barriers would lose after `sync` (devices are believed),
//! rot, files without a name that come back in lost+found, hard links, sizes of directories, time.
//!
//! Invariant: everything is decided by the numbers handed in; every operation goes into the digest. Called by the crash
//! suites. One lock over all: what runs under it (`frozen`) sees a moment of the whole disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sealdrive_pack::Medium;

mod cut;
mod medium;

pub use self::cut::Survivors;
use self::cut::{Change, Dirty, NameStep, Names};
use self::medium::Dir;

/// Bytes of a block: the unit of space.
const BLOCK: u64 = 4096;

/// The source of every decision.
pub type Numbers = Box<dyn FnMut() -> u64 + Send>;

/// SplitMix64: numbers of a seed.
pub fn seeded(seed: u64) -> Numbers {
    let mut state = seed;
    Box::new(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// What a disk is like.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Bytes that survive or go together: 1 or 512.
    pub unit: usize,
    /// Bytes that fit.
    pub capacity: u64,
    /// How often an operation fails by itself, of a million: reads (EIO), writes, syncs.
    pub rates: Rates,
}

/// Failures of a million operations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// Reads, with EIO.
    pub read: u32,
    /// Writes, with EIO.
    pub write: u32,
    /// Syncs of a file, with EIO.
    pub sync: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            unit: 1,
            capacity: 1 << 40,
            rates: Rates::default(),
        }
    }
}

/// Kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// `create`.
    Create,
    /// `open`.
    Open,
    /// `append` and `write_at`.
    Write,
    /// `read_at`.
    Read,
    /// `sync`.
    Sync,
    /// `truncate`.
    Truncate,
    /// `rename`.
    Rename,
    /// `remove`.
    Remove,
    /// `sync_dir`.
    SyncDir,
}

/// What an operation fails with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// EIO.
    Broken,
    /// ENOSPC.
    Full,
}

impl Trouble {
    fn error(self) -> io::Error {
        match self {
            Self::Broken => io::Error::other("EIO"),
            Self::Full => ErrorKind::StorageFull.into(),
        }
    }
}

/// Bytes of a file. Disks that a power cut left share what they have in common: hundreds of them wait to be judged.
type Content = Arc<Vec<u8>>;

/// Cuts it off, or adds zeros; one that is so long already stays shared.
fn set_len(content: &mut Content, len: usize) {
    if content.len() != len {
        Arc::make_mut(content).resize(len, 0);
    }
}

#[derive(Default, Clone)]
struct Inode {
    /// What reads show.
    live: Content,
    /// What is on the disk for sure.
    platter: Content,
    /// Since the last sync, in order.
    dirty: Vec<Dirty>,
    /// Where the next append may begin besides the end: the last one was cut short.
    ragged: Option<u64>,
    /// Which blocks take space.
    blocks: BTreeSet<u64>,
    named: bool,
    handles: usize,
    owner: Option<u64>,
}

struct State {
    config: Config,
    numbers: Numbers,
    inodes: Vec<Inode>,
    /// As programs see it.
    names: Names,
    /// The same as far as it is durable, but for `steps`.
    durable: Names,
    next_dir: usize,
    steps: Vec<NameStep>,
    used: u64,
    next_handle: u64,
    /// Operations done so far, by kind.
    done: BTreeMap<Op, u64>,
    /// Operations that will fail: kind, number counted from the first, with what.
    failing: Vec<(Op, u64, Trouble)>,
    halted: bool,
    watcher: Option<Watcher>,
    counters: BTreeMap<&'static str, u64>,
    digest: blake3::Hasher,
}

/// Called before each operation that changes something, with what takes a power cut of that moment; whether the machine
/// loses its power now. It runs under the disk's lock.
pub type Watcher = Box<dyn FnMut(&mut dyn FnMut(Survivors) -> Disk) -> bool + Send>;

/// The disk; clones share it.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    /// An empty disk.
    pub fn new(config: Config, numbers: Numbers) -> Self {
        Self(Arc::new(Mutex::new(State {
            config,
            numbers,
            inodes: Vec::new(),
            names: Names::root(),
            durable: Names::root(),
            next_dir: 1,
            steps: Vec::new(),
            used: 0,
            next_handle: 0,
            done: BTreeMap::new(),
            failing: Vec::new(),
            halted: false,
            watcher: None,
            counters: BTreeMap::new(),
            digest: blake3::Hasher::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its root directory.
    pub fn root(&self) -> Arc<dyn Medium> {
        Arc::new(Dir::root(self))
    }

    /// What a machine finds that loses its power now and is started again. This disk goes on as if nothing had been.
    pub fn power_cut(&self, survivors: Survivors) -> Self {
        self.lock().power_cut(survivors)
    }

    /// The same, and what `look` sees while nothing moves on this disk: it is given the paths of all files.
    pub fn power_cut_with<T>(
        &self,
        survivors: Survivors,
        look: impl FnOnce(&[String]) -> T,
    ) -> (Self, T) {
        let mut state = self.lock();
        let paths: Vec<String> = state.names.files.keys().cloned().collect();
        (state.power_cut(survivors), look(&paths))
    }

    /// From now on `watcher` sees every operation that changes something before it is done.
    pub fn watch(&self, watcher: Option<Watcher>) {
        self.lock().watcher = watcher;
    }

    /// From now on every operation fails: the machine that had this disk is gone.
    pub fn halt(&self) {
        self.lock().halted = true;
    }

    /// Lets the `n`-th operation of a kind from now (the first is 1) fail.
    pub fn fail(&self, op: Op, n: u64, trouble: Trouble) {
        let mut state = self.lock();
        let done = state.done.get(&op).copied().unwrap_or(0);
        state.failing.push((op, done + n, trouble));
    }

    /// Nothing fails any more, but by its rate.
    pub fn heal(&self) {
        self.lock().failing.clear();
    }

    /// Operations of a kind so far.
    pub fn done(&self, op: Op) -> u64 {
        self.lock().done.get(&op).copied().unwrap_or(0)
    }

    /// How much fits from now on, bytes.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().config.capacity = bytes;
    }

    /// Space taken, bytes.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Faults that happened, by kind.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.lock().counters.clone()
    }

    /// BLAKE3 of every operation so far.
    pub fn digest(&self) -> [u8; 32] {
        *self.lock().digest.finalize().as_bytes()
    }

    /// BLAKE3 of everything on it, as programs see it.
    pub fn content(&self) -> [u8; 32] {
        let state = self.lock();
        let mut hasher = blake3::Hasher::new();
        for dir in state.names.dirs.keys() {
            hasher.update(dir.as_bytes()).update(&[0]);
        }
        for (path, inode) in &state.names.files {
            let content = &state.inodes[*inode].live;
            hasher.update(path.as_bytes()).update(&[1]);
            hasher.update(&(content.len() as u64).to_le_bytes());
            hasher.update(content.as_slice());
        }
        *hasher.finalize().as_bytes()
    }

    /// Paths of all files, as programs see them.
    pub fn paths(&self) -> Vec<String> {
        self.lock().names.files.keys().cloned().collect()
    }
}

impl State {
    fn count(&mut self, what: &'static str) {
        *self.counters.entry(what).or_default() += 1;
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.numbers)() % bound.max(1)
    }

    /// Every operation begins here: into the digest, and perhaps into failure.
    fn begin(&mut self, op: Op, what: &str, numbers: &[u64], bytes: &[u8]) -> io::Result<()> {
        self.digest.update(&[op as u8, what.len() as u8]);
        self.digest.update(what.as_bytes());
        for n in numbers {
            self.digest.update(&n.to_le_bytes());
        }
        self.digest.update(bytes);
        if !self.halted
            && !matches!(op, Op::Open | Op::Read)
            && let Some(mut watcher) = self.watcher.take()
        {
            self.halted = watcher(&mut |survivors| self.power_cut(survivors));
            self.watcher = Some(watcher);
        }
        if self.halted {
            return Err(io::Error::other("the machine has no power"));
        }
        let done = self.done.entry(op).or_default();
        *done += 1;
        let now = *done;
        if let Some((_, _, trouble)) = self.failing.iter().find(|f| (f.0, f.1) == (op, now)) {
            let trouble = *trouble;
            self.count(name_of(op, trouble));
            return Err(trouble.error());
        }
        let rate = match op {
            Op::Read => self.config.rates.read,
            Op::Write => self.config.rates.write,
            Op::Sync => self.config.rates.sync,
            _ => 0,
        };
        if rate > 0 && self.below(1_000_000) < u64::from(rate) {
            self.count(name_of(op, Trouble::Broken));
            return Err(Trouble::Broken.error());
        }
        Ok(())
    }

    fn find(&self, path: &str) -> io::Result<usize> {
        let found = self.names.files.get(path).copied();
        found.ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// A change of names: seen at once, durable later.
    fn step(&mut self, change: Change) {
        let step = NameStep::new(change, &self.names);
        step.change.apply(&mut self.names);
        self.steps.push(step);
    }

    /// A name is gone: without handles the space is free again.
    fn unname(&mut self, inode: usize) {
        self.inodes[inode].named = false;
        self.reclaim(inode);
    }

    fn reclaim(&mut self, inode: usize) {
        let file = &mut self.inodes[inode];
        if !file.named && file.handles == 0 {
            self.used -= file.blocks.len() as u64 * BLOCK;
            file.blocks.clear();
        }
    }

    fn write(&mut self, inode: usize, at: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut fits, mut full) = (bytes.len(), false);
        for block in at / BLOCK..(at + bytes.len() as u64).div_ceil(BLOCK) {
            if self.inodes[inode].blocks.contains(&block) {
                continue;
            }
            if self.used + BLOCK > self.config.capacity {
                fits = (block * BLOCK).saturating_sub(at) as usize;
                full = true;
                break;
            }
            self.used += BLOCK;
            self.inodes[inode].blocks.insert(block);
        }
        let file = &mut self.inodes[inode];
        if fits > 0 {
            let write = Dirty::Write {
                at,
                bytes: bytes[..fits].into(),
            };
            write.apply(Arc::make_mut(&mut file.live));
            file.dirty.push(write);
        }
        if full {
            self.count("write: ENOSPC");
            return Err(Trouble::Full.error());
        }
        Ok(())
    }

    /// Blocks without content, as fallocate(2) gives them: all or none.
    fn allocate(&mut self, inode: usize, len: u64) -> io::Result<()> {
        let wanted: Vec<u64> = (0..len.div_ceil(BLOCK))
            .filter(|block| !self.inodes[inode].blocks.contains(block))
            .collect();
        let bytes = wanted.len() as u64 * BLOCK;
        if self.used + bytes > self.config.capacity {
            self.count("allocate: ENOSPC");
            return Err(Trouble::Full.error());
        }
        self.used += bytes;
        self.inodes[inode].blocks.extend(wanted);
        if (self.inodes[inode].live.len() as u64) < len {
            self.set_len(inode, len);
        }
        Ok(())
    }

    fn sync(&mut self, inode: usize) {
        let file = &mut self.inodes[inode];
        for dirty in std::mem::take(&mut file.dirty) {
            dirty.apply(Arc::make_mut(&mut file.platter));
        }
        // Also over what a failed sync has lost: the size is metadata, and was not.
        set_len(&mut file.platter, file.live.len());
    }

    /// Some of it reaches the disk; the rest is gone, and nobody will say so again.
    fn lose(&mut self, inode: usize) {
        let (dirty, unit) = (
            std::mem::take(&mut self.inodes[inode].dirty),
            self.config.unit,
        );
        let len = self.inodes[inode].platter.len();
        for write in dirty {
            let survives = write.survives(unit, &mut self.numbers);
            for piece in survives {
                piece.apply(Arc::make_mut(&mut self.inodes[inode].platter));
            }
        }
        let platter = &mut self.inodes[inode].platter;
        let len = len.min(platter.len());
        set_len(platter, len);
    }

    fn set_len(&mut self, inode: usize, len: u64) {
        let file = &mut self.inodes[inode];
        let set = Dirty::SetLen(len);
        set.apply(Arc::make_mut(&mut file.live));
        file.dirty.push(set);
        let beyond: Vec<u64> = file.blocks.range(len.div_ceil(BLOCK)..).copied().collect();
        for block in &beyond {
            file.blocks.remove(block);
        }
        self.used -= beyond.len() as u64 * BLOCK;
    }

    fn sync_dir(&mut self, path: &str) {
        // One that was moved or removed meanwhile is not there under this path.
        let Some(dir) = self.names.dirs.get(path).copied() else {
            return;
        };
        for step in self.steps.iter_mut().filter(|step| step.touches(dir)) {
            step.durable = true;
        }
        // Steps before which nothing is open any more are facts.
        while self.steps.first().is_some_and(|step| step.durable) {
            let step = self.steps.remove(0);
            step.change.apply(&mut self.durable);
        }
    }
}

fn name_of(op: Op, trouble: Trouble) -> &'static str {
    match (op, trouble) {
        (Op::Create, Trouble::Full) => "create: ENOSPC",
        (Op::Write, Trouble::Full) => "write: ENOSPC",
        (_, Trouble::Full) => "other: ENOSPC",
        (Op::Read, Trouble::Broken) => "read: EIO",
        (Op::Write, Trouble::Broken) => "write: EIO",
        (Op::Sync, Trouble::Broken) => "sync: EIO",
        (Op::SyncDir, Trouble::Broken) => "sync_dir: EIO",
        (_, Trouble::Broken) => "other: EIO",
    }
}

#[cfg(test)]
mod tests;
