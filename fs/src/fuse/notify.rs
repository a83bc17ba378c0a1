//! Telling the kernel to forget what it cached, when something changed other than through this mount.
//!
//! Invariant: notices go out from one thread of their own, with no lock held: the kernel may wait, inside the call,
//! for a request we have yet to answer (others hang in production for want of this). Inodes with open handles get
//! attribute notices only. Called by whoever applies changes from elsewhere.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread;

use fuser::{INodeNo, Notifier};
use sealdrive_core::record::Ino;

/// Notices waiting to go out. More are dropped: what the kernel caches then is stale until its lifetime ends.
const QUEUE: usize = 4096;

/// One thing for the kernel to forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A name in a directory.
    Entry {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
    },
    /// Attributes only.
    Attributes(Ino),
    /// Attributes and cached pages. Only for inodes without open handles.
    Content(Ino),
}

/// The way to the notifying thread. Dropped, it ends the thread.
pub struct Notices {
    queue: SyncSender<Notice>,
}

impl Notices {
    pub(super) fn start(kernel: Notifier) -> io::Result<Self> {
        let (queue, notices) = mpsc::sync_channel(QUEUE);
        thread::Builder::new()
            .name("fuse-notify".to_owned())
            .spawn(move || {
                for notice in notices {
                    send(&kernel, notice);
                }
            })?;
        Ok(Self { queue })
    }

    /// Takes a notice. Returns false when it had to be dropped.
    pub fn push(&self, notice: Notice) -> bool {
        match self.queue.try_send(notice) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

fn send(kernel: &Notifier, notice: Notice) {
    let result = match notice {
        Notice::Entry { parent, name } => {
            kernel.inval_entry(INodeNo(parent), &OsString::from_vec(name))
        }
        // A negative offset leaves the pages alone (fuse_reverse_inval_inode).
        Notice::Attributes(ino) => kernel.inval_inode(INodeNo(ino), -1, 0),
        Notice::Content(ino) => kernel.inval_inode(INodeNo(ino), 0, 0),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "the kernel did not take a notice");
    }
}
