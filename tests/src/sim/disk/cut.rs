//! What a power cut leaves: which pieces of unsynced writes, which lengths, which names.
//!
//! Invariant: what was synced is left as it was; the rest is decided by the numbers alone. Called by the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{BLOCK, Config, Disk, Inode, Numbers, State, seeded};

/// What of the unsynced survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survivors {
    /// Nothing.
    Nothing,
    /// Everything: as if it had been synced in time.
    Everything,
    /// What this seed says: pieces, in any combination the file systems permit.
    Some(u64),
}

/// One change of a file that is not durable.
#[derive(Clone)]
pub(super) enum Dirty {
    Write { at: u64, bytes: Arc<[u8]> },
    SetLen(u64),
}

impl Dirty {
    pub(super) fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => {
                let (at, end) = (*at as usize, *at as usize + bytes.len());
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[at..end].copy_from_slice(bytes);
            }
            Self::SetLen(len) => content.resize(*len as usize, 0),
        }
    }

    /// The pieces of a write that reach the disk; a length is whole or not at all.
    pub(super) fn survives(&self, unit: usize, numbers: &mut Numbers) -> Vec<Self> {
        let Self::Write { at, bytes } = self else {
            return if numbers().is_multiple_of(2) {
                vec![self.clone()]
            } else {
                Vec::new()
            };
        };
        let piece = |from: usize, to: usize| Self::Write {
            at: at + from as u64,
            bytes: bytes[from..to].into(),
        };
        // Borders of units are those of the disk, not of the write.
        let border = |near: u64| {
            let absolute = at + near % bytes.len() as u64;
            let rounded = absolute / unit as u64 * unit as u64;
            rounded.saturating_sub(*at) as usize
        };
        match numbers() % 6 {
            0 | 1 => vec![self.clone()],
            2 => Vec::new(),
            // Torn: the beginning, the end, or all but the middle.
            3 => vec![piece(0, border(numbers()))],
            4 => vec![piece(border(numbers()), bytes.len())],
            _ => {
                let (a, b) = (border(numbers()), border(numbers()));
                vec![piece(0, a.min(b)), piece(a.max(b), bytes.len())]
            }
        }
        .into_iter()
        .filter(|piece| !matches!(piece, Self::Write { bytes, .. } if bytes.is_empty()))
        .collect()
    }
}

/// One step of the log of names.
#[derive(Clone)]
pub(super) struct NameStep {
    change: Change,
    pub(super) durable: bool,
}

#[derive(Clone)]
enum Change {
    Link(String, usize),
    Unlink(String),
    Rename(String, String, usize),
    Directory(String),
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl NameStep {
    fn new(change: Change) -> Self {
        Self {
            change,
            durable: false,
        }
    }

    pub(super) fn link(path: String, inode: usize) -> Self {
        Self::new(Change::Link(path, inode))
    }

    pub(super) fn unlink(path: String) -> Self {
        Self::new(Change::Unlink(path))
    }

    pub(super) fn rename(from: String, to: String, inode: usize) -> Self {
        Self::new(Change::Rename(from, to, inode))
    }

    pub(super) fn directory(path: String) -> Self {
        Self::new(Change::Directory(path))
    }

    /// Whether a sync of that directory makes it durable.
    pub(super) fn touches(&self, dir: &str) -> bool {
        match &self.change {
            Change::Link(path, _) | Change::Unlink(path) | Change::Directory(path) => {
                parent(path) == dir
            }
            Change::Rename(from, to, _) => parent(from) == dir || parent(to) == dir,
        }
    }

    pub(super) fn apply(&self, names: &mut BTreeMap<String, usize>, dirs: &mut BTreeSet<String>) {
        match &self.change {
            Change::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Change::Unlink(path) => {
                names.remove(path);
            }
            Change::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Change::Directory(path) => {
                dirs.insert(path.clone());
            }
        }
    }
}

impl State {
    /// The disk of the machine that starts again.
    pub(super) fn power_cut(&mut self, survivors: Survivors) -> Disk {
        self.count("power cut");
        let mut numbers = match survivors {
            Survivors::Some(seed) => seeded(seed),
            _ => seeded(0),
        };
        let (names, dirs) = self.names_left(survivors, &mut numbers);
        let disk = Disk::new(Config { ..self.config }, seeded(numbers()));
        {
            let mut left = disk.lock();
            for (path, inode) in names {
                if !dirs.contains(parent(&path)) {
                    continue;
                }
                let content = self.content_left(inode, survivors, &mut numbers);
                let blocks: BTreeSet<u64> = (0..(content.len() as u64).div_ceil(BLOCK)).collect();
                left.used += blocks.len() as u64 * BLOCK;
                let number = left.inodes.len();
                left.inodes.push(Inode {
                    live: content.clone(),
                    platter: content,
                    blocks,
                    named: true,
                    ..Inode::default()
                });
                left.names.insert(path.clone(), number);
            }
            left.durable_names = left.names.clone();
            left.durable_dirs = dirs.clone();
            left.dirs = dirs;
        }
        disk
    }

    fn names_left(
        &mut self,
        survivors: Survivors,
        numbers: &mut Numbers,
    ) -> (BTreeMap<String, usize>, BTreeSet<String>) {
        let (mut names, mut dirs) = (self.durable_names.clone(), self.durable_dirs.clone());
        let open = self.steps.len();
        let kept = match survivors {
            Survivors::Nothing => 0,
            Survivors::Everything => open,
            Survivors::Some(_) => (numbers() % (open as u64 + 1)) as usize,
        };
        let mut lost = 0;
        for (n, step) in self.steps.iter().enumerate() {
            if step.durable || n < kept {
                step.apply(&mut names, &mut dirs);
            } else {
                lost += 1;
            }
        }
        *self.counters.entry("name step lost").or_default() += lost;
        (names, dirs)
    }

    fn content_left(
        &mut self,
        inode: usize,
        survivors: Survivors,
        numbers: &mut Numbers,
    ) -> Vec<u8> {
        let file = &self.inodes[inode];
        let mut left = file.platter.clone();
        match survivors {
            Survivors::Nothing => return left,
            Survivors::Everything => {
                file.dirty.iter().for_each(|dirty| dirty.apply(&mut left));
                left.resize(file.live.len(), 0);
                return left;
            }
            Survivors::Some(_) => {}
        }
        let (mut torn, mut sure) = (0, left.len());
        // Set by a truncation that did not survive: nothing later lies beyond it.
        let mut limit = u64::MAX;
        for dirty in &file.dirty {
            let survives = dirty.survives(self.config.unit, numbers);
            let whole = matches!(survives.as_slice(), [one] if one.len() == dirty.len());
            torn += u64::from(!whole);
            match dirty {
                Dirty::SetLen(len) if whole && limit == u64::MAX => {
                    dirty.apply(&mut left);
                    sure = sure.min(left.len());
                }
                Dirty::SetLen(len) => limit = limit.min(*len),
                Dirty::Write { at, bytes } if at + bytes.len() as u64 > limit => {}
                Dirty::Write { .. } => survives.iter().for_each(|piece| piece.apply(&mut left)),
            }
        }
        // The size is metadata of its own.
        let newest = file.live.len();
        match numbers() % 3 {
            0 if left.len() > sure => {
                left.truncate(sure + (numbers() as usize) % (left.len() - sure + 1))
            }
            1 if limit == u64::MAX && newest > left.len() => left.resize(newest, 0),
            _ => {}
        }
        *self.counters.entry("write lost or torn").or_default() += torn;
        left
    }
}

impl Dirty {
    fn len(&self) -> usize {
        match self {
            Self::Write { bytes, .. } => bytes.len(),
            Self::SetLen(len) => *len as usize,
        }
    }
}
