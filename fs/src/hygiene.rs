//! What this process does about itself before it touches a secret: no core dump, no debugger, private files, and bounds
//! for the allocator.
//!
//! Invariant: runs first in `main`, before any thread or key exists. Called by `main` only.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask,
};

/// Settings of the allocator (jemalloc, see `main.rs`) under which a mount keeps its memory budget: few arenas, because
/// every buffer of this program is large and each arena keeps its own, and what is free goes back to the system within
/// a second instead of ten.
const ALLOCATOR: [(&str, &str); 1] = [(
    "_RJEM_MALLOC_CONF",
    "narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0,background_thread:true",
)];

/// Starts this program anew under `ALLOCATOR` if it was not started so: the allocator reads its settings once, before
/// `main`. The process stays the same. Where that is refused it goes on as it is.
pub fn bound_memory() {
    if ALLOCATOR
        .iter()
        .any(|(name, _)| std::env::var_os(name).is_some())
    {
        return; // ours, or somebody else's decision
    }
    let mut args = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), args.next()) else {
        return;
    };
    let error = Command::new(program)
        .arg0(name)
        .args(args)
        .envs(ALLOCATOR)
        .exec();
    tracing::debug!(%error, "the allocator keeps its defaults");
}

/// Forbids core dumps and attaching by other processes of the same user, and makes every new file private.
///
/// A core file or `ptrace` would hand out the keys of an unlocked drive; neither refusal can fail in a way that a
/// program should stop for, so failures are left to the log.
pub fn harden() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps could not be forbidden");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "attaching to this process could not be forbidden");
    }
    umask(Mode::from_raw_mode(0o077));
}
