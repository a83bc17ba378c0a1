//! A mounted drive as others see it: the engine behind the kernel's border and behind the control socket.
//!
//! Invariant: translates and decides nothing, except what a file's state is called: never `committed` while someone
//! may still write to it. Called by `sealdrive mount` (makes it), the kernel's border and the control socket.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealdrive_core::record::Ino;
use sealdrive_core::reference::Reference;

use crate::cli::exit::Exit;
use crate::clock;
use crate::control::{Control, DamagedFile, Progress, Refusal, Status};
use crate::drive::{Answer, Drive, Progress as Way};
use crate::engine::{BlobError, Connection, Engine, SyncError};
use crate::fuse::{Backing, BackingError, Space};

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
    /// State directory of the drive, for the free space under it.
    pub dir: PathBuf,
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

    /// Files of which something is lost, by the names they have now.
    fn damaged_files(&self, now: &crate::engine::Status) -> Vec<DamagedFile> {
        let file = |lost: &crate::engine::Casualty| {
            let path = self.engine.drive().path_of(lost.ino).ok().flatten();
            let path = path.map_or_else(
                || PathBuf::from(format!("inode {}", lost.ino)),
                |path| self.facts.mountpoint.join(OsStr::from_bytes(&path)),
            );
            DamagedFile {
                path,
                ino: lost.ino,
                offset: lost.offset,
                at_ms: lost.at_ms,
            }
        };
        now.casualties.iter().map(file).collect()
    }

    /// The weakest state of one file.
    fn file_state(&self, ino: Ino) -> Answer<&'static str> {
        let file = self.engine.drive().state_of(ino)?;
        let drive = self.engine.status();
        let state = match file.progress {
            Way::Dirty => "dirty",
            Way::Journaled | Way::Checkpointing => "journaled",
            // In the checkpoint's tree. The commit of that checkpoint is what counts.
            Way::InTree if drive.committed >= drive.checkpointed => "committed",
            Way::InTree if drive.pending_objects == 0 => "sent",
            Way::InTree => "journaled",
        };
        Ok(if file.open_for_write && state == "committed" {
            "sent"
        } else {
            state
        })
    }
}

/// Whether the server answers, even if it is another device that may write.
fn is_online(status: &crate::engine::Status) -> bool {
    matches!(
        status.connection,
        Connection::Online | Connection::Elsewhere | Connection::Refused
    )
}

/// What the events amount to, worst last seen: tampering, then loss. Nothing, if all is well or healed.
fn verdict(status: &crate::engine::Status) -> Option<Exit> {
    use crate::engine::EventKind as Kind;
    let any = |kinds: &[Kind]| {
        status
            .events
            .iter()
            .any(|event| kinds.contains(&event.kind))
    };
    if any(&[
        Kind::Rollback,
        Kind::Fork,
        Kind::ObjectTampered,
        Kind::PinsMissing,
    ]) {
        Some(Exit::Tampered)
    } else if !status.casualties.is_empty() || any(&[Kind::JournalDamage, Kind::OutboxDamage]) {
        Some(Exit::Lost)
    } else {
        None
    }
}

fn progress(status: &crate::engine::Status) -> Progress {
    Progress {
        pending_bytes: status.pending_bytes + status.dirty_bytes,
        pending_objects: status.pending_objects,
        sent_bytes: status.sent_bytes,
        online: is_online(status),
    }
}

impl Control for Live {
    fn status(&self, ino: Option<u64>) -> Status {
        let now = self.engine.status();
        let why = [&now.failed, &now.stopped, &now.remote_error];
        let mut notes: Vec<String> = why.into_iter().flatten().cloned().collect();
        if now.connection == Connection::Elsewhere {
            notes.push(
                "another device writes this drive; mount with --take-over to write here".to_owned(),
            );
        }
        let damaged = self.damaged_files(&now);
        notes.extend(damaged.iter().map(|file| {
            format!(
                "{} is damaged or lost: reading it fails",
                file.path.display()
            )
        }));
        notes.extend(now.events.iter().map(|event| event.detail.clone()));
        Status {
            drive: self.facts.name.clone(),
            drive_id: self.facts.drive_id.clone(),
            mountpoint: self.facts.mountpoint.clone(),
            mounted: !self.draining.load(Ordering::Acquire),
            pid: std::process::id(),
            server: self.facts.server.clone(),
            online: is_online(&now),
            writable: !self.facts.read_only && now.failed.is_none(),
            state: now.weakest().to_owned(),
            pending: progress(&now),
            dirty_bytes: now.dirty_bytes,
            journal_bytes: now.journal_bytes,
            outbox_bytes: now.outbox_bytes,
            cache_bytes: now.cache_bytes,
            commit_seq: now.commit_seq,
            commit_ms: now.commit_ms,
            lease_epoch: now.lease_epoch,
            file_state: ino
                .and_then(|ino| self.file_state(ino).ok())
                .map(str::to_owned),
            verdict: verdict(&now).map_or(0, Exit::code),
            damaged,
            notes,
        }
    }

    fn sync(
        &self,
        timeout: Option<Duration>,
        tell: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Progress, Refusal> {
        let deadline = clock::now() + timeout.unwrap_or(NO_DEADLINE);
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
                    Connection::Elsewhere => Exit::LeaseElsewhere,
                    Connection::Refused => Exit::WrongKey,
                    _ => Exit::Tampered,
                };
                refuse(
                    exit,
                    why,
                    "nothing more is sent; see `sealdrive status`, and keep a copy of what is new",
                )
            }
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

    fn chunk_local(&self, reference: &Reference) -> Result<Option<Bytes>, BackingError> {
        self.engine.chunk_local(reference).map_err(backing_error)
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
        self.engine
            .sync_local()
            .map_err(|error| BackingError::Disk(error.to_string()))
    }

    fn state(&self, ino: Ino) -> Answer<&'static str> {
        self.file_state(ino)
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
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, BackingError> {
        let left = |status: &crate::engine::Status| status.pending_bytes + status.dirty_bytes;
        self.draining.store(true, Ordering::Release);
        let sent = self.engine.sync_server(deadline, |status| {
            progress(left(status));
            !self.leaving.load(Ordering::Acquire)
        });
        let pending = left(&self.engine.status());
        // Everything that can be sent is: the rest is made durable here and all threads end.
        let ended = self.engine.shutdown(clock::now());
        match (sent, ended) {
            (Err(SyncError::Local(error)), _) | (_, Err(SyncError::Local(error))) => {
                Err(BackingError::Disk(error.to_string()))
            }
            (Ok(()), _) => Ok(0),
            // Never nought when something is left, even if only the commit itself is.
            (Err(_), _) => Ok(pending.max(1)),
        }
    }
}
