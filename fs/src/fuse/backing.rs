//! What the kernel's border needs from below: a drive, and the means to bring what is not in memory.
//!
//! Invariant: every call that may wait takes a deadline and keeps it; a `local` call never waits for the network.
//! Implemented by the engine, and in memory by the mount tests.

use std::time::Instant;

use bytes::Bytes;
use sealdrive_core::record::Ino;
use sealdrive_core::reference::Reference;

use crate::drive::{Answer, Drive};

/// Why something could not be brought or kept.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// The deadline passed.
    #[error("no answer in time")]
    TimedOut,
    /// It is not on this machine, and the server cannot be reached.
    #[error("not on this machine, and the server cannot be reached")]
    Unreachable,
    /// What came is not what was stored, or the server no longer has it. Never answered with other bytes.
    #[error("content is damaged or missing")]
    Damaged,
    /// The local disk, or the budget on it, is full.
    #[error("no space left")]
    NoSpace,
    /// The server's quota is used up.
    #[error("quota exceeded")]
    Quota,
    /// The drive takes no writes (another writer holds the lease, or it is shutting down).
    #[error("read only")]
    ReadOnly,
    /// Nothing more reaches the server until a person looks.
    #[error("nothing is sent to the server any more")]
    Stopped,
    /// The local disk said no; its words.
    #[error("local disk: {0}")]
    Disk(String),
}

/// Where a chunk's plaintext is, seen from the thread that would answer with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkNow {
    /// In memory: this is it.
    Ready(Bytes),
    /// On this machine, sealed: some hundred microseconds, perhaps a disk.
    Near,
    /// On the server only.
    Far,
}

/// Room as statfs(2) tells it, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All there is.
    pub total: u64,
    /// What may still be written.
    pub available: u64,
}

/// The parts below the kernel's border.
pub trait Backing: Send + Sync + 'static {
    /// The file system in memory.
    fn drive(&self) -> &Drive;

    /// Gives the drive a tree node it found missing, if that is on this machine. Returns whether it was.
    fn node_local(&self, reference: &Reference) -> Result<bool, BackingError>;

    /// Gives the drive a tree node it found missing, from the server if need be.
    fn node(&self, reference: &Reference, deadline: Instant) -> Result<(), BackingError>;

    /// Where a chunk is now. Opens nothing.
    fn chunk_now(&self, reference: &Reference) -> ChunkNow;

    /// The plaintext of a chunk, from the server if need be.
    fn chunk(&self, reference: &Reference, deadline: Instant) -> Result<Bytes, BackingError>;

    /// These chunks will be wanted soon. Returns at once and may do nothing.
    fn prefetch(&self, references: &[Reference]);

    /// Returns when all that the drive was told before this call survives a crash of this machine.
    fn sync_local(&self, deadline: Instant) -> Result<(), BackingError>;

    /// Whether fsync waits for the server too.
    fn fsync_waits_for_server(&self) -> bool {
        false
    }

    /// Returns when all that the drive was told before this call is in a commit on the server.
    fn sync_server(&self, deadline: Instant) -> Result<(), BackingError> {
        self.sync_local(deadline)
    }

    /// Once, when requests are served: `call_in` makes the kernel send all its dirty pages, and says whether it did. It
    /// waits for the loop threads.
    fn serving(&self, call_in: Box<dyn Fn() -> bool + Send + Sync>) {
        drop(call_in);
    }

    /// How far a file has come: `dirty`, `journaled`, `sent` or `committed`, the last never while a handle that may
    /// write is open.
    fn state(&self, ino: Ino) -> Answer<&'static str>;

    /// Room for statfs(2).
    fn space(&self) -> Space;

    /// Something the user must learn of: a request was answered with an error that is not the caller's fault.
    fn event(&self, operation: &'static str, text: &str);

    /// Content of this file, from `offset` on, was asked for and is damaged or gone.
    fn damaged(&self, _ino: Ino, _offset: u64) {}

    /// This range of this file was read.
    fn readable(&self, _ino: Ino, _offset: u64, _len: u64) {}

    /// Sends everything to the server and stops. Returns the bytes the server still lacks at the deadline; `progress`
    /// is told them in between and answers whether to go on. An error means that the local disk failed as well.
    fn shutdown(
        &self,
        deadline: Instant,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<u64, BackingError>;
}
