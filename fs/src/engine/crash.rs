//! Named crash points: at each step of the ordering law a test may stop the world, copy the directory or count.
//!
//! Invariant: without a hook a point costs one branch. Called at each step that orders two durable writes.

use std::fmt;
use std::sync::Arc;

type Hook = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Every point, in the order in which one write meets them.
pub const POINTS: &[&str] = &[
    // open, where the drive starts on the server's state or on nothing
    "adopted-tree",
    "adopted",
    // fsync
    "log-taken",
    "outbox-durable",
    "journal-written",
    "journal-durable",
    // writeback
    "chunked",
    "object-sealed",
    "outbox-written",
    "sealed",
    "installed",
    // upload
    "upload-read",
    "upload-sent",
    "upload-acknowledged",
    // checkpoint
    "frozen",
    "merged",
    "nodes-durable",
    "index-durable",
    "checkpoint-durable",
    "journal-trimmed",
    // commit
    "acknowledged",
    "commit-durable",
    "commit-accepted",
    "pins-durable",
    "pinned",
    "pack-retired",
    "retired",
];

/// Every point of setting a branch aside and of dropping it, in that order; in between come those of the adoption.
/// `aside-moving` comes once for each file that moves.
pub const ASIDE: &[&str] = &[
    "aside-marked",
    "aside-moving",
    "aside-moved",
    "aside-done",
    "branch-dropped",
];

/// A damaged object has left the outbox's queue, and what becomes of it is not yet known to those who commit.
pub const DAMAGE: &[&str] = &["damage-aside"];

/// What to do at a named point; nothing, outside tests.
#[derive(Clone, Default)]
pub struct CrashPoints(Option<Hook>);

impl CrashPoints {
    /// Calls `hook` with the name of each point reached.
    pub fn new(hook: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    /// The world has reached `name`.
    pub(super) fn reached(&self, name: &'static str) {
        let mut all = [POINTS, ASIDE, DAMAGE].into_iter().flatten();
        debug_assert!(all.any(|known| *known == name), "{name} is in a list");
        if let Some(hook) = &self.0 {
            hook(name);
        }
    }
}

impl fmt::Debug for CrashPoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CrashPoints({})",
            if self.0.is_some() { "set" } else { "none" }
        )
    }
}
