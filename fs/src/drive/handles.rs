//! Open files and directories by handle.
//!
//! Invariant: a handle number is given out once. Called by open, release and the listing operations.

use std::collections::HashMap;

use sealdrive_core::record::Ino;

use super::readdir::Listing;

/// Names an open file or directory.
pub type Handle = u64;

/// What a handle stands for.
pub(super) enum Opened {
    /// A file; whether it may be written through.
    File { ino: Ino, write: bool },
    /// A directory and the names it had when it was last rewound.
    Directory { ino: Ino, listing: Listing },
}

/// All that is open.
#[derive(Default)]
pub(super) struct Handles {
    open: HashMap<Handle, Opened>,
    last: Handle,
}

impl Handles {
    pub(super) fn add(&mut self, opened: Opened) -> Handle {
        self.last += 1;
        self.open.insert(self.last, opened);
        self.last
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Opened> {
        self.open.get_mut(&handle)
    }

    pub(super) fn remove(&mut self, handle: Handle) -> Option<Opened> {
        self.open.remove(&handle)
    }
}
