//! A branch: what a machine had not committed when another took its drive over. Set aside, listed, read back, dropped.
//!
//! Invariant: a branch is never sent, trimmed, evicted or written to: journal, outbox, checkpoint and signed commit lie
//! as they were in a directory of their own, sealed as they were, until a person drops them. Called by the engine's
//! open and by `sealdrive conflicts`.

mod aside;
mod export;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealdrive_core::diff::diff_past;
use sealdrive_core::record::{Dentry, FileKind, Ino, KeyRef, ROOT, ino_of};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::{Nodes, Root, TreeError};
use sealdrive_core::view::ReadError;
use sealdrive_pack::{Directory, Medium, MediumFile};
use sealdrive_runtime::task::{self, Runtime};
use serde::{Deserialize, Serialize};

pub(super) use self::aside::{Diverged, finish, set_aside};
pub use self::export::{Exported, Missing};
use super::EngineError;
use super::blobs::{BlobError, Blobs};
use super::config::EngineConfig;
use super::events::{Event, EventKind, Events};
use super::fetch::Fetcher;
use super::local::{Local, Owner};
use super::open::Records;
use crate::clock;
use crate::drive::{Answer, Attr, Drive, DriveError};
use crate::journal::{Purpose, Twin};
use crate::limits::FETCH_DEADLINE;

/// Where branches lie, below a drive's state directory.
const DIR: &str = "conflicts";
/// Suffix of one that is being moved: the next open finishes that first.
const MOVING: &str = "moving";
/// Suffix of one that was dropped and is being deleted.
const DROPPED: &str = "dropped";

/// What is known of a branch without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Names it: when it was set aside, UTC.
    pub id: String,
    /// The same, milliseconds since 1970, this machine's clock.
    pub at_ms: u64,
    /// The device that wrote the drive instead, hex.
    pub by: String,
    /// What it is called.
    pub by_name: String,
    /// The restore point that this machine had made or seen last: the branch is what it did after it.
    pub base_seq: u64,
    /// The restore point the drive went on from.
    pub head_seq: u64,
    /// What changed; none if it could not be counted then.
    pub counts: Option<Counts>,
    /// The tree of `base_seq`, so that the branch knows what it changed; hex.
    base: Option<String>,
    /// Why it was set aside.
    #[serde(default)]
    pub cause: Cause,
}

/// Why a branch was set aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Another device has written the drive meanwhile.
    #[default]
    TakenOver,
    /// Part of its tree, which no server had yet, is damaged or gone.
    Damaged,
}

/// What a branch holds that its base does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Files (also links, devices …) that are new or changed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Directories that are new or whose own attributes or names changed.
    pub directories: u64,
    /// Files and directories that were removed.
    pub removed: u64,
}

/// One sentence about what was set aside.
impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.counts {
            Some(counts) => format!("{} changed files ({} bytes)", counts.files, counts.bytes),
            None => "what this machine had not sent".to_owned(),
        };
        if self.cause == Cause::Damaged {
            return write!(
                f,
                "part of what only this machine had is damaged, so the drive goes on from restore point {}: {what} \
                 were set aside as conflict {}, readable as far as they go; see `sealdrive conflicts`",
                self.base_seq, self.id
            );
        }
        write!(
            f,
            "machine {} has written this drive meanwhile: {what} were set aside as conflict {}; see \
             `sealdrive conflicts`",
            self.by_name, self.id
        )
    }
}

impl Conflict {
    fn base(&self) -> Option<Root> {
        let mut bytes = [0; Reference::LEN];
        let hex = self
            .base
            .as_ref()
            .filter(|hex| hex.len() == 2 * bytes.len())?;
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Reference::decode(&bytes).map(Root)
    }

    fn set_base(&mut self, base: Option<Root>) {
        let hex = |root: Root| {
            root.0
                .encode()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        };
        self.base = base.map(hex);
    }
}

fn broken(what: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |error| EngineError::Io(what, error)
}

/// How many branches lie below a drive's state directory.
pub fn count(dir: &Path) -> u64 {
    let base = opened(dir).and_then(|dir| base(dir.as_deref()));
    let names = base.and_then(|base| names(base.as_deref()));
    names.map_or(0, |names| names.len() as u64)
}

/// A drive's state directory; none if it is not there.
fn opened(dir: &Path) -> io::Result<Option<Arc<dyn Medium>>> {
    match Directory::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => Ok(Some(Arc::new(opened?))),
    }
}

/// Where branches lie; none if none was ever set aside.
fn base(state: Option<&dyn Medium>) -> io::Result<Option<Arc<dyn Medium>>> {
    match state {
        Some(state) if has(&state.list()?, DIR) => state.directory(DIR).map(Some),
        _ => Ok(None),
    }
}

fn base_of(config: &EngineConfig) -> io::Result<Option<Arc<dyn Medium>>> {
    match &config.medium {
        Some(medium) => base(Some(&**medium)),
        None => base(opened(&config.dir)?.as_deref()),
    }
}

fn has(names: &[String], name: &str) -> bool {
    names.iter().any(|one| one == name)
}

/// Those with a suffix are on their way in or out.
fn names(base: Option<&dyn Medium>) -> io::Result<Vec<String>> {
    let all = base.map_or(Ok(Vec::new()), Medium::list)?;
    let mut names: Vec<String> = all.into_iter().filter(|name| !name.contains('.')).collect();
    names.sort();
    Ok(names)
}

/// The branches of one drive, oldest first.
pub fn list(config: &EngineConfig) -> Result<Vec<Conflict>, EngineError> {
    let listing = broken("listing what was set aside");
    let Some(base) = base_of(config).map_err(&listing)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for name in names(Some(&*base)).map_err(&listing)? {
        found.push(read(config, base.directory(&name).map_err(&listing)?)?);
    }
    Ok(found)
}

/// Where branches lie, and the one of that id.
fn find(config: &EngineConfig, id: &str) -> io::Result<(Arc<dyn Medium>, Arc<dyn Medium>)> {
    let base = base_of(config)?.ok_or(io::ErrorKind::NotFound)?;
    if !has(&names(Some(&*base))?, id) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let branch = base.directory(id)?;
    Ok((base, branch))
}

fn read(config: &EngineConfig, branch: Arc<dyn Medium>) -> Result<Conflict, EngineError> {
    let local = Arc::clone(&config.local);
    let (_, record) = Twin::open(branch, config.drive, Purpose::Conflict, local)?;
    let damaged = crate::journal::TwinError::Damaged("conflict");
    let record = record.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(record.ok_or(damaged)?)
}

/// Deletes a branch for ever. The caller has asked whoever it belongs to.
pub fn drop_branch(config: &EngineConfig, id: &str) -> Result<(), EngineError> {
    let (base, branch) = find(config, id).map_err(broken("opening what was set aside"))?;
    let _lock = lock(&*branch)?;
    let gone = format!("{id}.{DROPPED}");
    let dropped = base.rename(id, &gone).and_then(|()| base.sync_dir());
    dropped.map_err(broken("dropping what was set aside"))?;
    config.crash.reached("branch-dropped");
    base.remove_directory(&gone)
        .map_err(broken("deleting what was set aside"))
}

fn lock(branch: &dyn Medium) -> Result<Arc<dyn MediumFile>, EngineError> {
    let file = branch.open_or_create("lock");
    let file = file.map_err(broken("opening what was set aside"))?;
    let locked = file.try_lock();
    if locked.map_err(broken("locking what was set aside"))? {
        Ok(file)
    } else {
        Err(EngineError::BranchBusy)
    }
}

/// The state of a drive that is only read: checkpoint and journal over packs, without threads.
pub(super) struct Reader {
    drive: Drive,
    blobs: Arc<Blobs>,
    root: Option<Root>,
    base: Option<Root>,
}

impl Reader {
    fn new(local: &mut Local, base: Option<Root>) -> Self {
        let checkpoint = local.records.found_checkpoint;
        let (root, seq) = checkpoint.map_or((None, 0), |found| (found.root, found.seq));
        let entries = local.replay.take_steps();
        Self {
            drive: Drive::recover(root, seq, entries),
            blobs: Arc::clone(&local.blobs),
            root,
            base,
        }
    }

    fn op<T>(&self, mut step: impl FnMut(&Drive) -> Answer<T>) -> Result<T, BranchError> {
        loop {
            match step(&self.drive) {
                Err(DriveError::Missing(reference)) => {
                    let node = self.blobs.node(&reference, clock::now() + FETCH_DEADLINE)?;
                    self.drive.add_node(&reference, node);
                }
                Err(DriveError::Errno(errno)) => return Err(BranchError::Errno(errno)),
                Ok(done) => return Ok(done),
            }
        }
    }

    /// Every inode with a record that the base has not, or has otherwise; what is gone is among them. Of what is lost
    /// with a tree node only that is known which other nodes tell.
    fn touched(&self) -> Result<Touched, BranchError> {
        let mut touched = Touched {
            inodes: self.drive.touched().into_iter().collect(),
            ..Touched::default()
        };
        let Some(root) = &self.root else {
            return Ok(touched);
        };
        let nodes: &dyn Nodes = &*self.blobs;
        let mut holes = 0;
        let walked = diff_past(
            nodes,
            self.base.as_ref(),
            root,
            |difference| {
                touched.note(difference.key, difference.new);
                ControlFlow::Continue(())
            },
            |error| {
                let (TreeError::Missing(node) | TreeError::Damaged(node)) = error;
                let again = self.blobs.node(node, clock::now() + FETCH_DEADLINE);
                // A server that is not reached may have it.
                match again {
                    Err(BlobError::Unreachable(_) | BlobError::Local(_)) => ControlFlow::Break(()),
                    Err(BlobError::Lost) | Ok(_) => {
                        holes += 1;
                        ControlFlow::Continue(())
                    }
                }
            },
        );
        walked.map_err(|error| BranchError::from(ReadError::from(error)))?;
        touched.holes = holes;
        touched.inodes.remove(&0);
        Ok(touched)
    }

    /// What changed and is there, and how much is gone. A directory counts if more of it changed than what is in it.
    fn changes(&self) -> Result<Changes, BranchError> {
        let Touched {
            inodes,
            names,
            holes,
        } = self.touched()?;
        let (mut there, mut lost, mut counts) = (Vec::new(), Vec::new(), Counts::default());
        let only_named = names.keys().filter(|_| holes > 0);
        let only_named: Vec<Ino> = only_named
            .filter(|ino| !inodes.contains(ino))
            .copied()
            .collect();
        for ino in only_named {
            match self.op(|drive| drive.getattr(ino)) {
                Err(error) if error.is_loss() => lost.push(ino),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        for ino in inodes {
            match self.op(|drive| drive.getattr(ino)) {
                Ok(attr) => {
                    if attr.kind == FileKind::Directory {
                        counts.directories += u64::from(ino != ROOT);
                    } else {
                        counts.files += 1;
                        counts.bytes += attr.size;
                    }
                    there.push(attr);
                }
                Err(BranchError::Errno(errno)) if errno == crate::drive::Errno::ENOENT => {
                    counts.removed += 1;
                }
                Err(error) if error.is_loss() => lost.push(ino),
                Err(error) => return Err(error),
            }
        }
        Ok(Changes {
            there,
            counts,
            lost,
            names,
            holes,
        })
    }
}

/// What a branch says of its changes.
#[derive(Default)]
struct Touched {
    inodes: BTreeSet<Ino>,
    /// Names that changed records give inodes: parent and name.
    names: BTreeMap<Ino, (Ino, Vec<u8>)>,
    /// Tree nodes that are lost, with all below them.
    holes: u64,
}

impl Touched {
    fn note(&mut self, key: &[u8], new: Option<&[u8]>) {
        self.inodes.insert(ino_of(key));
        if let Ok(KeyRef::Dentry(parent, name)) = KeyRef::parse(key)
            && let Some(Ok(dentry)) = new.map(Dentry::decode)
        {
            self.names.insert(dentry.ino, (parent, name.to_vec()));
        }
    }
}

/// The changes of a branch.
struct Changes {
    there: Vec<Attr>,
    counts: Counts,
    /// Inodes that cannot be read any more.
    lost: Vec<Ino>,
    names: BTreeMap<Ino, (Ino, Vec<u8>)>,
    holes: u64,
}

/// Why a branch cannot be read, or not be written out.
#[derive(Debug, thiserror::Error)]
pub enum BranchError {
    /// It does not open.
    #[error(transparent)]
    Open(#[from] EngineError),
    /// Something of it cannot be had.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A record of it cannot be read.
    #[error("a record cannot be read ({})", .0.name())]
    Errno(crate::drive::Errno),
    /// The place to write it to.
    #[error("{0}: {1}")]
    Target(PathBuf, #[source] io::Error),
    /// The target is in use.
    #[error("{0} is there already and not empty")]
    Occupied(PathBuf),
}

impl BranchError {
    /// Whether something is damaged or gone for good, and the rest may go on.
    fn is_loss(&self) -> bool {
        let eio = crate::drive::Errno::EIO;
        matches!(self, Self::Blob(BlobError::Lost)) || matches!(self, Self::Errno(e) if *e == eio)
    }
}

impl From<ReadError> for BranchError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Missing(_) => Self::Blob(BlobError::Unreachable(
                "the server is not reached".to_owned(),
            )),
            ReadError::Damaged => Self::Errno(crate::drive::Errno::EIO),
        }
    }
}

/// A branch, opened to be read.
pub struct Branch {
    reader: Reader,
    conflict: Conflict,
    events: Arc<Events>,
    // Held as long as it is read.
    _local: Local,
    _lock: Arc<dyn MediumFile>,
    _runtime: Runtime,
}

impl Branch {
    /// Opens one by its id. What it shares with the drive's history is fetched from the server when it is needed.
    pub fn open(config: &EngineConfig, id: &str) -> Result<Self, EngineError> {
        let (_, branch) = find(config, id).map_err(broken("opening what was set aside"))?;
        let lock = lock(&*branch)?;
        let conflict = read(config, Arc::clone(&branch))?;
        let runtime = task::runtime(1, "branch").map_err(broken("starting the network thread"))?;
        let remote = config.remote.as_ref();
        let fetcher = remote.map(|remote| Fetcher::start(runtime.handle(), Arc::clone(remote)));
        let events = Arc::<Events>::default();
        let mut local = Local::open(&branch, &Owner::of(config), fetcher, &events)?;
        Ok(Self {
            reader: Reader::new(&mut local, conflict.base()),
            conflict,
            events,
            _local: local,
            _lock: lock,
            _runtime: runtime,
        })
    }

    /// What was known of it when it was set aside.
    pub fn conflict(&self) -> &Conflict {
        &self.conflict
    }

    /// Writes what is new or changed into `target`, an empty directory or none yet, under the names it had, with all
    /// attributes. What cannot be read any more is named, and the rest goes on.
    pub fn export(&self, target: &Path) -> Result<Exported, BranchError> {
        let mut exported = export::write(&self.reader, target)?;
        let events = self.events.list();
        let foul = |event: &Event| event.kind == EventKind::ObjectTampered;
        exported.tampered = events.iter().any(foul);
        Ok(exported)
    }
}

impl Owner {
    pub(super) fn of(config: &EngineConfig) -> Self {
        Self {
            drive: config.drive,
            keys: Arc::clone(&config.keys),
            local: Arc::clone(&config.local),
            cache_budget: config.cache_budget,
            compress: config.compress(),
            crash: config.crash.clone(),
        }
    }
}

/// Numbers this device has signed with, of a commit that goes with the branch: never used again.
pub(super) fn signed(records: &Records) -> Option<sealdrive_proto::commit::CommitFields> {
    let pending = records.found_commit.as_ref()?;
    Some(pending.commit.fields().clone())
}
