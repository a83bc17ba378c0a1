//! A mounted drive as others see it: the engine behind the kernel's border and behind the control socket.
//!
//! Invariant: translates and decides nothing, except what a file's state is called: never `committed` while someone
//! may still write to it. Called by `sealdrive mount` (makes it), the kernel's border and the control socket.

mod told;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealdrive_core::record::Ino;
use sealdrive_core::reference::Reference;

use self::told::progress;
use crate::cli::exit::Exit;
use crate::clock;
use crate::control::{Ask, Control, Progress, Refusal, Status};
use crate::drive::{Answer, Drive, DriveError, Errno};
use crate::engine::{BlobError, Connection, Engine, NotDurable, Safety, SyncError};
use crate::fuse::{Backing, BackingError, ChunkNow, Space};
use crate::limits::{BELOW_LONGEST, BELOW_MOST, HEAR_LONGEST};

/// A wait that no deadline ends: years, because clocks overflow.
const NO_DEADLINE: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What does not change while the drive is mounted.
pub struct Facts {
    /// Name of the drive on this account.
    pub name: String,
    /// Drive id, hex.
    pub drive_id: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Address of the server.
    pub server: String,
    /// Mounted read-only by its user.
    pub read_only: bool,
    /// What fsync waits for.
    pub fsync: Fsync,
    /// State directory of the drive, for the free space under it.
    pub dir: PathBuf,
}

/// What fsync(2) waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fsync {
    /// This machine's disk.
    #[default]
    Local,
    /// A commit on the server as well.
    Server,
}

impl Fsync {
    /// The word of `-o fsync=`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Server => "server",
        }
    }

    /// From the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Local, Self::Server]
            .into_iter()
            .find(|policy| policy.word() == word)
    }
}

/// The drive and its facts.
pub struct Live {
    engine: Engine,
    facts: Facts,
    /// Unmounted, and being sent.
    draining: AtomicBool,
    /// Told to stop sending.
    leaving: AtomicBool,
}

impl Live {
    /// Takes an opened engine.
    pub fn new(engine: Engine, facts: Facts) -> Self {
        let (draining, leaving) = (AtomicBool::new(false), AtomicBool::new(false));
        Self {
            engine,
            facts,
            draining,
            leaving,
        }
    }

    /// Whether another machine has taken over.
    pub fn is_fenced(&self) -> bool {
        self.engine.status().fenced.is_some()
    }

    /// Fills in how one file, or all below one directory, stands.
    fn add_file(&self, status: &mut Status, ino: Ino) {
        let deadline = clock::now() + BELOW_LONGEST;
        let drive_weakest = self.engine.status().weakest();
        let told = self.engine.file_safety_by(ino, deadline).and_then(|file| {
            let below = file
                .is_dir
                .then(|| self.engine.safety_below(ino, BELOW_MOST, deadline));
            Ok((file, below.transpose()?))
        });
        match told {
            Ok((file, None)) => {
                status.file_state = Some(file.safety.word().to_owned());
                status.open_for_write = u64::from(file.open_for_write);
            }
            Ok((_, Some(below))) => {
                let weakest = match below.complete {
                    true => below.weakest(),
                    false => below.weakest().min(drive_weakest),
                };
                status.file_state = Some(weakest.word().to_owned());
                status.open_for_write = below.open_for_write;
                status.below = Some(below);
            }
            Err(error) => {
                let why = match error {
                    DriveError::Missing(_) => {
                        "its records are not on this machine, and the server is not reached"
                    }
                    DriveError::Errno(errno) if errno == Errno::ENOENT => {
                        "it is not there any more"
                    }
                    DriveError::Errno(_) => "its records cannot be read",
                };
                status.file_state = Some("unknown".to_owned());
                status
                    .notes
                    .insert(0, format!("the state of that file is not known: {why}"));
            }
        }
    }
}

/// The drive as the control socket sees it.
pub struct Handle(pub Arc<Live>);

impl std::ops::Deref for Handle {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.0
    }
}

impl Control for Handle {
    fn status(&self, ask: &Ask) -> Status {
        let kept_pages = ask.flush && !self.engine.call_in();
        if let Some(age) = ask.heard_within {
            self.engine.hear(age, clock::now() + HEAR_LONGEST);
        }
        let mut status = self.0.describe();
        if let Some(ino) = ask.ino {
            self.0.add_file(&mut status, ino);
        }
        if kept_pages {
            let dirty = || Safety::Dirty.word().to_owned();
            status.state = dirty();
            status.file_state = status.file_state.map(|_| dirty());
            status.notes.insert(
                0,
                "the kernel has not handed over its dirty pages in time".to_owned(),
            );
        }
        status
    }

    fn sync(
        &self,
        timeout: Option<Duration>,
        tell: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Progress, Refusal> {
        let deadline = clock::now() + timeout.unwrap_or(NO_DEADLINE);
        // syncfs(2) by the asker sends the pages on their way; this waits until they are here.
        let pages_in = self.engine.call_in();
        let done = self
            .engine
            .sync_server(deadline, |status| tell(progress(status)));
        let refuse = |exit: Exit, what: String, advice: &str| {
            Err(Refusal {
                exit: exit.code(),
                what,
                advice: advice.to_owned(),
            })
        };
        let status = self.engine.status();
        match done {
            Ok(()) if !pages_in => refuse(
                Exit::Pending,
                format!(
                    "{}: the kernel has not handed over its dirty pages in time",
                    self.facts.name
                ),
                "try again",
            ),
            Ok(()) => Ok(progress(&status)),
            Err(SyncError::Pending) => {
                let why = status
                    .remote_error
                    .map(|why| format!(" ({why})"))
                    .unwrap_or_default();
                let what = format!(
                    "{}: not everything is on the server yet{why}",
                    self.facts.name
                );
                refuse(
                    Exit::Pending,
                    what,
                    "it is safe on this machine and goes on in the background",
                )
            }
            Err(SyncError::Stopped(why)) => {
                let exit = match status.connection {
                    _ if status.read_only || status.fenced.is_some() => Exit::LeaseElsewhere,
                    Connection::Refused => Exit::WrongKey,
                    _ => Exit::Tampered,
                };
                let advice = match exit {
                    Exit::LeaseElsewhere => "what is not on the server is safe on this machine",
                    _ => {
                        "nothing more is sent; see `sealdrive status`, and keep a copy of what is new"
                    }
                };
                refuse(exit, why, advice)
            }
            Err(SyncError::Refused(why)) => refuse(
                match status.connection {
                    Connection::Refused => Exit::WrongKey,
                    _ => Exit::Pending,
                },
                format!("{}: {why}", self.facts.name),
                "it is safe on this machine and tried again from time to time; see `sealdrive status`",
            ),
            Err(error @ SyncError::Local(NotDurable::NoSpace)) => refuse(
                Exit::Space,
                error.to_string(),
                "free some space on this machine, and keep the drive mounted until then",
            ),
            Err(error @ SyncError::Local(_)) => refuse(
                Exit::Lost,
                error.to_string(),
                "check the local disk, then mount again",
            ),
            Err(error @ SyncError::NoServer) => refuse(Exit::Unreachable, error.to_string(), ""),
        }
    }

    fn leave(&self) -> bool {
        let draining = self.draining.load(Ordering::Acquire);
        self.leaving.fetch_or(draining, Ordering::AcqRel);
        draining
    }
}

fn backing_error(error: BlobError) -> BackingError {
    match error {
        BlobError::Unreachable(_) => BackingError::Unreachable,
        BlobError::Lost => BackingError::Damaged,
        BlobError::Local(what) => BackingError::Disk(what),
    }
}

fn sync_error(error: SyncError, fenced: bool) -> BackingError {
    match error {
        // It is as safe as after a local fsync, and still goes out.
        SyncError::Pending | SyncError::Refused(_) => BackingError::TimedOut,
        SyncError::Stopped(_) if fenced => BackingError::ReadOnly,
        SyncError::Stopped(_) => BackingError::Stopped,
        SyncError::NoServer => BackingError::Unreachable,
        SyncError::Local(error) => local_error(error),
    }
}

fn local_error(error: NotDurable) -> BackingError {
    match error {
        NotDurable::NoSpace => BackingError::NoSpace,
        NotDurable::Failed => BackingError::Disk(error.to_string()),
    }
}

impl Backing for Live {
    fn drive(&self) -> &Drive {
        self.engine.drive()
    }

    fn node_local(&self, reference: &Reference) -> Result<bool, BackingError> {
        self.engine.node_local(reference).map_err(backing_error)
    }

    fn node(&self, reference: &Reference, deadline: Instant) -> Result<(), BackingError> {
        self.engine.node(reference, deadline).map_err(backing_error)
    }

    fn chunk_now(&self, reference: &Reference) -> ChunkNow {
        match self.engine.chunk_ready(reference) {
            Some(plain) => ChunkNow::Ready(plain),
            None if self.engine.chunk_is_here(reference) => ChunkNow::Near,
            None => ChunkNow::Far,
        }
    }

    fn chunk(&self, reference: &Reference, deadline: Instant) -> Result<Bytes, BackingError> {
        self.engine
            .chunk(reference, deadline)
            .map_err(backing_error)
    }

    fn prefetch(&self, references: &[Reference]) {
        self.engine.prefetch(references.iter().copied());
    }

    fn sync_local(&self, _deadline: Instant) -> Result<(), BackingError> {
        self.engine.sync_local().map_err(local_error)
    }

    fn fsync_waits_for_server(&self) -> bool {
        self.facts.fsync == Fsync::Server
    }

    fn sync_server(&self, deadline: Instant) -> Result<(), BackingError> {
        let done = self.engine.sync_server(deadline, |_| true);
        done.map_err(|error| {
            sync_error(
                error,
                self.engine.status().connection == Connection::Elsewhere,
            )
        })
    }

    fn serving(&self, call_in: Box<dyn Fn() -> bool + Send + Sync>) {
        self.engine.set_kernel(call_in);
    }

    fn state(&self, ino: Ino) -> Answer<&'static str> {
        self.engine.file_safety(ino).map(|file| file.safety.word())
    }

    fn space(&self) -> Space {
        // The drive itself has no size: what bounds it is the disk that holds journal, outbox and cache.
        let room = rustix::fs::statvfs(&self.facts.dir).ok();
        let of = |blocks: fn(&rustix::fs::StatVfs) -> u64| {
            room.as_ref()
                .map_or(0, |room| blocks(room).saturating_mul(room.f_frsize))
        };
        Space {
            total: of(|room| room.f_blocks),
            available: of(|room| room.f_bavail),
        }
    }

    fn event(&self, operation: &'static str, text: &str) {
        tracing::warn!(operation, text, "a request failed");
    }

    fn damaged(&self, ino: Ino, offset: u64) {
        self.engine.note_casualty(ino, offset);
    }

    fn readable(&self, ino: Ino, offset: u64, len: u64) {
        self.engine.note_readable(ino, offset, len);
    }

    fn shutdown(
        &self,
        deadline: Instant,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<u64, BackingError> {
        let left = |status: &crate::engine::Status| status.pending_bytes + status.dirty_bytes;
        self.draining.store(true, Ordering::Release);
        let sent = self.engine.sync_server(deadline, |status| {
            progress(left(status)) && !self.leaving.load(Ordering::Acquire)
        });
        let pending = left(&self.engine.status());
        // Everything that can be sent is: the rest is made durable here and all threads end.
        let ended = self.engine.shutdown(clock::now());
        match (sent, ended) {
            (Err(SyncError::Local(error)), _) | (_, Err(SyncError::Local(error))) => {
                Err(local_error(error))
            }
            (Ok(()), _) => Ok(0),
            // Never nought when something is left, even if only the commit itself is.
            (Err(_), _) => Ok(pending.max(1)),
        }
    }
}
