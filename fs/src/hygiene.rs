//! What this process does about itself before it touches a secret: no core dump, no debugger, private files.
//!
//! Invariant: runs first in `main`, before any thread or key exists. Called by `main` only.

use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask,
};

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
