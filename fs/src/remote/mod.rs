//! The server as the engine sees it: one drive on one server, as one device. No tonic type appears here.
//!
//! Invariant: everything an implementation returns is still *unverified*: commits, links and objects are bytes; who
//! signed them and whether they open is decided by the engine. An implementation connects lazily, reconnects and renews
//! its login by itself, and never waits without a deadline of its own. Called by the engine; implemented over gRPC in
//! `grpc.rs` and by the in-memory server of the tests.

pub mod grpc;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use sealdrive_proto::id::{DeviceId, Sid};
use tokio::sync::mpsc;

/// A boxed future, so that `dyn Remote` works.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why the server did not do what was asked. One variant per decision of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// Not reached, connection lost or timed out: retry with back-off.
    #[error("server unreachable: {0}")]
    Unreachable(String),
    /// The server answered that this call will not do (gRPC INVALID_ARGUMENT, PERMISSION_DENIED …): do not retry.
    #[error("server refused: {0}")]
    Refused(String),
    /// The lease epoch is not ours any more: another device writes this drive. Stop writing.
    #[error("another device holds the writer lease")]
    Fenced,
    /// The garbage collection generation of the session is old: acquire the lease again to learn the new one.
    #[error("the session's collection generation is old")]
    Stale,
    /// The account's quota is used up: keep everything, take nothing new, retry later.
    #[error("server has no space for this account")]
    Quota,
    /// The server's disk is full: keep everything, retry later.
    #[error("the server has no space left")]
    Full,
    /// No such drive, or none that this device may see (the server answers both alike).
    #[error("no such drive")]
    NotFound,
    /// Device or server failed to prove its identity.
    #[error("authentication failed: {0}")]
    Unauthenticated(String),
    /// Another server answers at the address (a network that wants a login first, a changed route). Nothing is sent to
    /// it, and the right one may be back at any time: retry with back-off, and say so.
    #[error("another server answers: {0}")]
    WrongServer(String),
    /// The answer contradicts what was signed or asked: never retried silently, always an event.
    #[error("server answer does not verify: {0}")]
    Tampered(String),
}

impl RemoteError {
    /// Whether trying the same call again later may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::WrongServer(_) | Self::Quota | Self::Full | Self::Stale
        )
    }
}

/// An open upload. Dropping either end closes the stream; what was not acknowledged is sent again on the next one.
#[derive(Debug)]
pub struct UploadStream {
    /// Sealed objects with rising numbers 1, 2, 3 … of this stream. Bounded: waiting here is the back-pressure.
    pub objects: mpsc::Sender<(u64, Bytes)>,
    /// Acknowledgements; an error is the last item.
    pub acks: mpsc::Receiver<Result<Ack, RemoteError>>,
}

/// Everything up to `durable_sequence` survives a power cut of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ack {
    /// Cumulative number within this stream.
    pub durable_sequence: u64,
    /// Objects whose id the server already held.
    pub conflicts: Vec<Conflict>,
}

/// The server already had an object under this id and kept its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// Which object of this stream.
    pub sequence: u64,
    /// BLAKE3 of the object the server holds.
    pub stored_hash: [u8; 32],
}

/// One answer of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Index into the ids asked for.
    pub index: u32,
    /// The object; `None` if the server lacks it or its copy is damaged.
    pub object: Option<Bytes>,
}

/// The newest commit of the drive as the server tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadAnswer {
    /// Signed commit (`SignedCommit::parse`).
    pub commit: Bytes,
    /// Sealed body.
    pub body: Bytes,
    /// When the server received it, milliseconds since 1970 on its clock.
    pub received_ms: u64,
}

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitAnswer {
    /// In the chain now (also if it already was).
    pub accepted: bool,
    /// The server's head when not accepted; `None` if it has none.
    pub head: Option<Bytes>,
    /// The lease epoch in force.
    pub lease_epoch: u64,
}

/// What became of a request for the writer lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// Ours now.
    pub granted: bool,
    /// Epoch in force.
    pub lease_epoch: u64,
    /// Life without renewal.
    pub lifetime: Duration,
    /// Collection generation that uploads and commits must name.
    pub gc_generation: u64,
    /// Who holds it: ourselves when granted.
    pub holder: DeviceId,
    /// Objects that the server found damaged and would take again; not all at once.
    pub suspects: Vec<Sid>,
}

/// Links of the account chain, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainAnswer {
    /// Signed links.
    pub links: Vec<Bytes>,
    /// Sequence number of the newest link the server has.
    pub head_seq: u64,
}

/// One drive on one server, as one device.
pub trait Remote: Send + Sync + 'static {
    /// Opens an upload stream under a lease.
    fn open_upload(
        &self,
        lease_epoch: u64,
        gc_generation: u64,
    ) -> BoxFuture<'_, Result<UploadStream, RemoteError>>;

    /// Asks for at most `MAX_FETCH` objects; answers come in the order asked, an error is the last item.
    fn fetch(
        &self,
        sids: Vec<Sid>,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<Result<Fetched, RemoteError>>, RemoteError>>;

    /// Indices of the ids (at most `MAX_FIND`) the server lacks. A hint, never a proof.
    fn find_missing(&self, sids: Vec<Sid>) -> BoxFuture<'_, Result<Vec<u32>, RemoteError>>;

    /// Asks for the writer lease, or renews `held_epoch` (0: none held). `take_over` fences the present holder.
    fn acquire_lease(
        &self,
        take_over: bool,
        held_epoch: u64,
    ) -> BoxFuture<'_, Result<LeaseAnswer, RemoteError>>;

    /// Gives the lease back so that another device may have it at once.
    fn release_lease(&self, lease_epoch: u64) -> BoxFuture<'_, Result<(), RemoteError>>;

    /// The newest commit; `None` for a drive that has none.
    fn get_head(&self) -> BoxFuture<'_, Result<Option<HeadAnswer>, RemoteError>>;

    /// Signed commits by sequence number, at most `MAX_COMMITS`, in the order asked.
    fn get_commits(&self, seqs: Vec<u64>) -> BoxFuture<'_, Result<Vec<Bytes>, RemoteError>>;

    /// Compare-and-swap of the head.
    fn commit(
        &self,
        commit: Bytes,
        body: Bytes,
        gc_generation: u64,
    ) -> BoxFuture<'_, Result<CommitAnswer, RemoteError>>;

    /// The account chain from `from_seq` on.
    fn get_chain(&self, from_seq: u64) -> BoxFuture<'_, Result<ChainAnswer, RemoteError>>;
}
