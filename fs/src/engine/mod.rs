//! The engine under a mounted drive: makes it durable here, seals it, sends it, commits it, and brings content back.
//!
//! Invariants: `sync_local` returns only when everything done before it survives a power cut of this machine;
//! `sync_server` only when it survives the loss of this machine. With local state a drive opens without any server.
//! Called by the mount's wiring and the kernel's border; everything below it is reached only through [`Engine`].

mod backoff;
mod below;
mod blobs;
mod branch;
mod casualties;
mod chain;
mod checkpoint;
mod commit;
mod config;
mod conflict;
mod crash;
mod decoded;
mod events;
mod fence;
mod fetch;
mod flights;
mod flush;
mod heal;
mod hole;
mod lease;
mod local;
mod open;
mod pace;
mod prefetch;
mod progress;
mod refused;
mod shared;
mod space;
mod status;
mod threads;
mod upload;
mod verify;
mod warm;
mod whole;
mod writeback;

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealdrive_core::commit_body::BadBody;
use sealdrive_core::record::Ino;
use sealdrive_core::reference::Reference;
use sealdrive_proto::id::Kind;
use sealdrive_runtime::sync::Mutex;
use sealdrive_runtime::thread;

pub use self::below::Below;
pub use self::blobs::BlobError;
pub use self::branch::{
    Branch, BranchError, Cause, Conflict, Counts, Exported, Missing, count as count_conflicts,
    drop_branch, list as list_conflicts,
};
pub use self::casualties::Casualty;
pub use self::chain::ChainError;
pub use self::config::EngineConfig;
pub use self::crash::{ASIDE, CrashPoints, DAMAGE, POINTS};
pub use self::events::{Event, EventKind};
pub use self::fence::{CallIn, Fence};
pub use self::flush::NotDurable;
pub use self::refused::Refusal;
pub use self::status::{Connection, FileSafety, Safety, Status};
use self::threads::Running;
use crate::clock;
use crate::drive::{Answer, Drive, Settle};
use crate::journal::{JournalError, TwinError};
use crate::limits::{FSYNC_GAIN, FSYNC_JOURNAL, NODE_WAIT, PACE_INTERVAL};
use crate::remote::RemoteError;
use crate::store::StoreError;

/// Why a drive does not open.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The state directory cannot be used.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// Another process has this drive open.
    #[error("this drive is mounted already on this machine")]
    Busy,
    /// Another command works with the branch.
    #[error("another command works with this conflict")]
    BranchBusy,
    /// The writer lease cannot be taken over.
    #[error("cannot take the drive over: {0}")]
    TakeOver(#[source] RemoteError),
    /// Local packs or index.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Checkpoint, pins or pending commit.
    #[error(transparent)]
    Record(#[from] TwinError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// This machine has no state of the drive, and the server could not give it.
    #[error("this machine does not know the drive yet, and: {0}")]
    NoState(#[source] RemoteError),
    /// What the server shows does not verify.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The drive was written in a format that this program does not read.
    #[error(transparent)]
    Format(BadBody),
    /// The drive's root cannot be read.
    #[error("the drive's root directory cannot be read: {0}")]
    Root(#[source] BlobError),
}

/// Why not everything is on the server. Nothing is lost: it is durable here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// The deadline passed.
    #[error("not everything is on the server yet")]
    Pending,
    /// No commit is written any more, and why.
    #[error("commits have stopped: {0}")]
    Stopped(String),
    /// The server was asked, and refuses what is needed; it is asked again from time to time.
    #[error("{0}")]
    Refused(String),
    /// Local state failed.
    #[error(transparent)]
    Local(#[from] NotDurable),
    /// This mount has no server.
    #[error("this mount has no server")]
    NoServer,
}

/// One mounted drive's engine. Dropping it stops its threads without a last commit; see [`Engine::shutdown`].
pub struct Engine {
    running: Running,
    stopped: Mutex<bool>,
}

impl Engine {
    /// Loads the checkpoint, replays the journal, and starts the threads. On a machine without state of this drive
    /// waits for the server, at most `config.join_patience`.
    pub fn open(config: EngineConfig) -> Result<Self, EngineError> {
        Ok(Self {
            running: Running::start(config)?,
            stopped: Mutex::new(false),
        })
    }

    /// The file system in memory.
    pub fn drive(&self) -> &Arc<Drive> {
        &self.running.shared.drive
    }

    /// Returns when everything done before the call is durable on this machine. Waits for the disk, never the network.
    pub fn sync_local(&self) -> Result<(), NotDurable> {
        self.seal_first();
        self.running.flusher.sync()
    }

    /// Large files go to the disk once, sealed; only what no chunk takes yet goes through the journal. So what is being
    /// sealed is waited for, and then what could not be handed out while that was being cut; until little is left, or
    /// others write as fast as it goes.
    fn seal_first(&self) {
        let Running {
            shared, workers, ..
        } = &self.running;
        let unlogged = || shared.drive.unlogged_bytes().1;
        let mut left = unlogged();
        while left > FSYNC_JOURNAL {
            let jobs = |drive: &Drive| drive.writeback_jobs(Settle::Settled, u64::MAX);
            let Ok(jobs) = shared.with_nodes(jobs) else {
                return;
            };
            workers.dispatch(jobs);
            workers.wait_for_those_out();
            let now = unlogged();
            if now + FSYNC_GAIN > left {
                return;
            }
            left = now;
        }
    }

    /// Returns when everything done before the call is in a commit on the server. Asks the server again what it has
    /// refused before. `progress` is called about twice a second and answers whether to go on.
    pub fn sync_server(
        &self,
        deadline: Instant,
        mut progress: impl FnMut(&Status) -> bool,
    ) -> Result<(), SyncError> {
        let shared = &self.running.shared;
        while let Err(e) = self.sync_local() {
            // What was accepted waits for space as it would wait for the server.
            let over = e != NotDurable::NoSpace || clock::now() >= deadline;
            if over || !progress(&self.status()) {
                return Err(e.into());
            }
            let pause = deadline.min(clock::now() + Duration::from_millis(500));
            shared.progress.wait(pause, |m| m.failed.is_some());
        }
        if !self.running.has_remote() {
            return Err(SyncError::NoServer);
        }
        let ask = shared.ask_again();
        let clean = shared.is_clean();
        let mut target = 0;
        shared.progress.update(|m| {
            target = if clean {
                m.checkpointed
            } else {
                shared.drive.seq()
            };
            m.wanted = m.wanted.max(target);
        });
        shared.drive.nudge();
        loop {
            let pause = deadline.min(clock::now() + Duration::from_millis(500));
            let over = |m: &progress::Milestones| {
                let refused = m.refused_since(ask, target).is_some();
                m.committed >= target || m.stopped.is_some() || m.failed.is_some() || refused
            };
            shared.progress.wait(pause, over);
            let now = shared.progress.now();
            if now.committed >= target {
                return Ok(());
            }
            if now.failed.is_some() {
                return Err(NotDurable::Failed.into());
            }
            if let Some(why) = now.stopped {
                return Err(SyncError::Stopped(why));
            }
            if let Some(why) = now.refused_since(ask, target) {
                return Err(SyncError::Refused(why.to_owned()));
            }
            if !progress(&self.status()) || clock::now() >= deadline {
                return Err(SyncError::Pending);
            }
        }
    }

    /// A chunk's plaintext if it is in memory.
    pub fn chunk_ready(&self, reference: &Reference) -> Option<Bytes> {
        self.running.shared.blobs.ready(reference)
    }

    /// Whether a chunk can be had without the network. May read the disk.
    pub fn chunk_is_here(&self, reference: &Reference) -> bool {
        self.running.shared.blobs.is_here(Kind::Data, reference)
    }

    /// A chunk's plaintext before `deadline`. Readers of the same chunk share one fetch. Blocks.
    pub fn chunk(&self, reference: &Reference, deadline: Instant) -> Result<Bytes, BlobError> {
        self.running
            .shared
            .blobs
            .get(Kind::Data, reference, deadline)
    }

    /// Loads a tree node that the drive found missing, and gives it to the drive. Blocks.
    pub fn node(&self, reference: &Reference, deadline: Instant) -> Result<(), BlobError> {
        let node = self.running.shared.blobs.node(reference, deadline)?;
        self.drive().add_node(reference, node);
        Ok(())
    }

    /// The same, from this machine only: whether it was here. May read the disk.
    pub fn node_local(&self, reference: &Reference) -> Result<bool, BlobError> {
        if !self.running.shared.blobs.is_here(Kind::Tree, reference) {
            return Ok(false);
        }
        self.node(reference, clock::now() + NODE_WAIT)
            .map(|()| true)
    }

    /// A path of the inode from the drive's root; none if it has no name. Loads what it takes until `deadline`. Blocks.
    pub fn path_of(&self, ino: Ino, deadline: Instant) -> Answer<Option<Vec<u8>>> {
        let shared = &self.running.shared;
        below::bring(shared, deadline, || shared.drive.path_of(ino))
    }

    /// Something of this file was asked for and is lost.
    pub fn note_casualty(&self, ino: Ino, offset: u64) {
        self.running.shared.casualties.note(ino, offset);
    }

    /// This range of this file was read.
    pub fn note_readable(&self, ino: Ino, offset: u64, len: u64) {
        self.running.shared.casualties.readable(ino, offset, len);
    }

    /// Reads these chunks ahead, in the background, as far as there is room in the queue.
    pub fn prefetch(&self, references: impl IntoIterator<Item = Reference>) {
        self.running.prefetch.ask(references);
    }

    /// How the drive stands.
    pub fn status(&self) -> Status {
        self.running.status()
    }

    /// Once, when requests are served: the way to the kernel's dirty pages.
    pub fn set_kernel(&self, call_in: CallIn) {
        // There is one session in the life of a mount.
        let _ = self.running.shared.kernel.set(call_in);
    }

    /// Makes the kernel send all its dirty pages; false if they did not come in time. Not from a loop thread.
    pub fn call_in(&self) -> bool {
        self.running.shared.call_in()
    }

    /// Whether changes are refused with EROFS.
    pub fn is_read_only(&self) -> bool {
        self.drive().is_read_only()
    }

    /// How one file stands. One operation of the drive: after `Missing`, load the node and ask again.
    pub fn file_safety(&self, ino: Ino) -> Answer<FileSafety> {
        self.running.shared.file_safety(ino)
    }

    /// The same, loading what it takes until `deadline`. Blocks.
    pub fn file_safety_by(&self, ino: Ino, deadline: Instant) -> Answer<FileSafety> {
        let shared = &self.running.shared;
        below::bring(shared, deadline, || shared.file_safety(ino))
    }

    /// How everything below a directory stands, itself included: at most `most` entries, and until `deadline`. Blocks.
    pub fn safety_below(&self, ino: Ino, most: u64, deadline: Instant) -> Answer<Below> {
        below::walk(&self.running.shared, ino, most, deadline)
    }

    /// Has the server say something now, unless it did within `age`; waits at most until `deadline`.
    pub fn hear(&self, age: Duration, deadline: Instant) {
        let shared = &self.running.shared;
        let fresh = |m: &progress::Milestones| m.heard.is_some_and(|at| at.elapsed() <= age);
        if self.running.has_remote() && !fresh(&shared.progress.now()) {
            shared.renew_lease();
            shared.progress.wait(deadline, fresh);
        }
        if shared.progress.now().over_quota.is_some() {
            self.ask_for_room(deadline);
        }
    }

    /// Has the server say whether the account has room by now; waits until writes follow that.
    fn ask_for_room(&self, deadline: Instant) {
        let shared = &self.running.shared;
        let ask = shared.ask_again();
        shared.progress.wait(deadline, |m| {
            m.quit || m.over_quota.is_none_or(|asked| asked >= ask)
        });
        while shared.progress.now().over_quota.is_none()
            && shared.space.is_over_quota()
            && clock::now() < deadline
        {
            shared.drive.nudge();
            thread::sleep(PACE_INTERVAL);
        }
    }

    /// Stops writers, makes everything durable here and, until `deadline`, on the server; then ends all threads.
    /// Everything is durable here also if it answers `Pending`.
    pub fn shutdown(&self, deadline: Instant) -> Result<(), SyncError> {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if *stopped {
            return Ok(());
        }
        *stopped = true;
        let done = match self.sync_server(deadline, |_| true) {
            Err(SyncError::NoServer) => Ok(()),
            done => done,
        };
        self.drive().close();
        self.running.close();
        done
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.running.abandon();
    }
}
