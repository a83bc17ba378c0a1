//! What a power cut leaves: which pieces of unsynced writes, which lengths, which names.
//!
//! Invariant: what was synced is left as it was; the rest is decided by the numbers alone. Called by the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{BLOCK, Config, Content, Disk, Inode, Numbers, State, seeded, set_len};

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

/// Where everything stands.
#[derive(Clone)]
pub(super) struct Names {
    /// Path → inode.
    pub(super) files: BTreeMap<String, usize>,
    /// Path → which directory: it stays the same when it moves.
    pub(super) dirs: BTreeMap<String, usize>,
}

impl Names {
    /// An empty root, directory 0.
    pub(super) fn root() -> Self {
        Self {
            files: BTreeMap::new(),
            dirs: BTreeMap::from([(String::new(), 0)]),
        }
    }

    /// What has no way from the root is gone.
    fn reachable(mut self) -> Self {
        let mut dirs = BTreeMap::new();
        // Those above come first.
        for (path, id) in std::mem::take(&mut self.dirs) {
            if path.is_empty() || dirs.contains_key(parent(&path)) {
                dirs.insert(path, id);
            }
        }
        self.files.retain(|path, _| dirs.contains_key(parent(path)));
        Self { dirs, ..self }
    }
}

/// A change of names.
#[derive(Clone)]
pub(super) enum Change {
    Link(String, usize),
    Unlink(String),
    /// Of a file, or of a directory with all in it.
    Rename(String, String),
    Directory(String, usize),
    /// A directory is removed.
    Gone(String),
}

/// One step of the log of names.
#[derive(Clone)]
pub(super) struct NameStep {
    pub(super) change: Change,
    /// The directories it was made in.
    within: [usize; 2],
    /// A rename that moves a directory.
    of_directory: bool,
    pub(super) durable: bool,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Whether a path lies below a directory.
pub(super) fn inside(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// The path after a directory, or a file, got another name.
fn moved(path: &str, from: &str, to: &str) -> Option<String> {
    let rest = path.strip_prefix(from)?;
    (rest.is_empty() || rest.starts_with('/')).then(|| format!("{to}{rest}"))
}

fn move_all(map: &mut BTreeMap<String, usize>, from: &str, to: &str) {
    let moving = map.range(from.to_owned()..).map(|(path, _)| path);
    let moving: Vec<String> = moving
        .take_while(|path| path.starts_with(from))
        .cloned()
        .collect();
    for path in moving {
        if let Some(target) = moved(&path, from, to)
            && let Some(id) = map.remove(&path)
        {
            map.insert(target, id);
        }
    }
}

impl Change {
    pub(super) fn apply(&self, names: &mut Names) {
        match self {
            Self::Link(path, inode) => drop(names.files.insert(path.clone(), *inode)),
            Self::Unlink(path) => drop(names.files.remove(path)),
            Self::Rename(from, to) => {
                move_all(&mut names.files, from, to);
                move_all(&mut names.dirs, from, to);
            }
            Self::Directory(path, id) => drop(names.dirs.insert(path.clone(), *id)),
            Self::Gone(path) => drop(names.dirs.remove(path)),
        }
    }

    /// The same where a rename did not survive.
    fn without(&self, from: &str, to: &str) -> Self {
        let back = |path: &String| moved(path, to, from).unwrap_or_else(|| path.clone());
        match self {
            Self::Link(path, inode) => Self::Link(back(path), *inode),
            Self::Unlink(path) => Self::Unlink(back(path)),
            Self::Rename(from, to) => Self::Rename(back(from), back(to)),
            Self::Directory(path, id) => Self::Directory(back(path), *id),
            Self::Gone(path) => Self::Gone(back(path)),
        }
    }
}

impl NameStep {
    /// A change about to be made to `names`.
    pub(super) fn new(change: Change, names: &Names) -> Self {
        let id = |path: &str| names.dirs.get(parent(path)).copied().unwrap_or(usize::MAX);
        let within = match &change {
            Change::Link(path, _)
            | Change::Unlink(path)
            | Change::Directory(path, _)
            | Change::Gone(path) => [id(path); 2],
            Change::Rename(from, to) => [id(from), id(to)],
        };
        let of_directory =
            matches!(&change, Change::Rename(from, _) if names.dirs.contains_key(from));
        Self {
            change,
            within,
            of_directory,
            durable: false,
        }
    }

    /// Whether a sync of that directory makes it durable.
    pub(super) fn touches(&self, dir: usize) -> bool {
        self.within.contains(&dir)
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
        let names = self.names_left(survivors, &mut numbers);
        let disk = Disk::new(Config { ..self.config }, seeded(numbers()));
        {
            let mut left = disk.lock();
            for (path, inode) in names.files {
                let content = self.content_left(inode, survivors, &mut numbers);
                let blocks: BTreeSet<u64> = (0..(content.len() as u64).div_ceil(BLOCK)).collect();
                left.used += blocks.len() as u64 * BLOCK;
                let number = left.inodes.len();
                left.inodes.push(Inode {
                    live: Arc::clone(&content),
                    platter: content,
                    blocks,
                    named: true,
                    ..Inode::default()
                });
                left.names.files.insert(path, number);
            }
            left.names.dirs = names.dirs;
            left.durable = left.names.clone();
            left.next_dir = self.next_dir;
        }
        disk
    }

    fn names_left(&mut self, survivors: Survivors, numbers: &mut Numbers) -> Names {
        let mut names = self.durable.clone();
        let open = self.steps.len();
        let kept = match survivors {
            Survivors::Nothing => 0,
            Survivors::Everything => open,
            Survivors::Some(_) => (numbers() % (open as u64 + 1)) as usize,
        };
        let mut lost = 0;
        // Directories that keep their old names.
        let mut stayed: Vec<(&str, &str)> = Vec::new();
        for (n, step) in self.steps.iter().enumerate() {
            if step.durable || n < kept {
                let known = stayed.iter().rev();
                let change = known.fold(step.change.clone(), |c, (from, to)| c.without(from, to));
                change.apply(&mut names);
            } else {
                lost += 1;
                if let Change::Rename(from, to) = &step.change
                    && step.of_directory
                {
                    stayed.push((from, to));
                }
            }
        }
        *self.counters.entry("name step lost").or_default() += lost;
        names.reachable()
    }

    fn content_left(
        &mut self,
        inode: usize,
        survivors: Survivors,
        numbers: &mut Numbers,
    ) -> Content {
        let file = &self.inodes[inode];
        let mut left = Arc::clone(&file.platter);
        match survivors {
            Survivors::Nothing => return left,
            Survivors::Everything => {
                for dirty in &file.dirty {
                    dirty.apply(Arc::make_mut(&mut left));
                }
                set_len(&mut left, file.live.len());
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
                    dirty.apply(Arc::make_mut(&mut left));
                    sure = sure.min(left.len());
                }
                Dirty::SetLen(len) => limit = limit.min(*len),
                Dirty::Write { at, bytes } if at + bytes.len() as u64 > limit => {}
                Dirty::Write { .. } => {
                    for piece in &survives {
                        piece.apply(Arc::make_mut(&mut left));
                    }
                }
            }
        }
        // The size is metadata of its own.
        let newest = file.live.len();
        match numbers() % 3 {
            0 if left.len() > sure => {
                let len = sure + (numbers() as usize) % (left.len() - sure + 1);
                set_len(&mut left, len);
            }
            1 if limit == u64::MAX && newest > left.len() => set_len(&mut left, newest),
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
