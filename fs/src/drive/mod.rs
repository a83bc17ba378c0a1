//! The file system in memory: every POSIX rule, over an ordered map (overlays over a tree) and the bytes not yet
//! sealed.
//!
//! Invariants: an operation that returns an error changed nothing; what is read is what was last written, whatever
//! writeback, freeze and thaw do meanwhile; no kernel, no IO, no clock, no waiting but for [`Gate`]'s reasons. Called
//! by the kernel's border (operations) and the engine (log, writeback, checkpoint). Everything sits behind one lock,
//! because every step takes microseconds and none waits for anything while it holds it.

mod acl;
mod attr;
mod checkpoint;
mod copy;
mod counters;
mod dedup;
mod directory;
mod dirty;
mod errno;
mod file;
mod gate;
mod handles;
mod inodes;
mod jobs;
mod link;
mod log;
mod nodes;
mod orphan;
mod readdir;
mod rename;
mod safety;
mod setattr;
mod state;
mod symlink;
mod trace;
mod writeback;
mod xattr;

use sealdrive_runtime::sync::{Condvar, Mutex};

pub use attr::{
    Attr, BLOCK_SIZE, Cred, DirEntry, Fallocate, FileState, NewNode, Plan, PlanPiece, Progress,
    RenameRule, Seek, SetAttr, Usage, XattrRule,
};
pub use checkpoint::Frozen;
pub use dirty::JobId;
pub use errno::{Answer, DriveError, Errno};
pub use gate::{DIRTY_BUDGET, OVERLAY_LIMIT};
pub use handles::Handle;
pub use log::LogData;
pub use safety::Name;
pub use writeback::{Digest, INLINE_FILE, Job, JobDone, JobPiece, Placed, Settle};

/// One mounted drive.
pub struct Drive {
    state: Mutex<state::State>,
    /// Something that a change may wait for has happened.
    room: Condvar,
    /// There is more for the engine to do.
    work: Condvar,
}
