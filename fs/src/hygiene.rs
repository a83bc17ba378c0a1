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

/// Settings of glibc's allocator under which a mount keeps its memory budget: few arenas, and large blocks given back
/// to the system when they are freed. Without them a mount that writes one large file held 410 MiB, and kept 270 of
/// them; every buffer of this program is large, and each thread's arena keeps its own.
const ALLOCATOR: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "2"),
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
    ("MALLOC_TRIM_THRESHOLD_", "4194304"),
];

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
