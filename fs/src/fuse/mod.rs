//! The kernel's door: the only place that knows FUSE. Requests come in, operations of the drive go out, and what the
//! operations lack is brought by a [`Backing`].
//!
//! Invariant: no rule of POSIX is decided here (that is the drive) and nothing is mounted here (that is the mount);
//! every request is answered, in time. Called by the mount wiring.

mod backing;
mod burst;
mod calls;
mod content;
mod door;
mod errno;
mod listing;
mod names;
mod notify;
mod offload;
mod read;
mod reply;
mod session;
mod xattr;

pub use backing::{Backing, BackingError, ChunkNow, Space};
pub use notify::{Notice, Notices};
pub use session::Session;
