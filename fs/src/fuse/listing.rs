//! Requests that list directories, plain and with attributes.
//!
//! Invariant: an entry counts as looked up exactly when it found room in the answer; the drive does the counting, and
//! an answer that was begun is sent. Called by the door.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::backing::Backing;
use super::calls::{Calls, LIFETIME, Stop};
use super::reply::{self, Refuse};
use crate::drive::{Answer, Drive};

/// A reply that is filled entry by entry.
trait Fill: Refuse {
    /// Adds the entries after `cookie` as far as there is room.
    fn fill(&mut self, drive: &Drive, handle: u64, cookie: u64) -> Answer<()>;
    /// Sends what was added.
    fn send(self);
}

impl Fill for ReplyDirectory {
    fn fill(&mut self, drive: &Drive, handle: u64, cookie: u64) -> Answer<()> {
        drive.readdir(handle, cookie, |entry| {
            let kind = reply::file_type(entry.kind);
            !self.add(
                INodeNo(entry.ino),
                entry.next,
                kind,
                OsStr::from_bytes(entry.name),
            )
        })
    }

    fn send(self) {
        self.ok();
    }
}

impl Fill for ReplyDirectoryPlus {
    fn fill(&mut self, drive: &Drive, handle: u64, cookie: u64) -> Answer<()> {
        drive.readdirplus(handle, cookie, |entry, attr| {
            let name = OsStr::from_bytes(entry.name);
            let generation = Generation(u64::from(attr.generation));
            !self.add(
                INodeNo(attr.ino),
                entry.next,
                name,
                &LIFETIME,
                &reply::attr(attr),
                generation,
            )
        })
    }

    fn send(self) {
        self.ok();
    }
}

impl<B: Backing> Calls<B> {
    pub(super) fn readdir(self: &Arc<Self>, handle: u64, cookie: u64, reply: ReplyDirectory) {
        self.list("readdir", handle, cookie, reply);
    }

    pub(super) fn readdirplus(
        self: &Arc<Self>,
        handle: u64,
        cookie: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.list("readdirplus", handle, cookie, reply);
    }

    fn list<R: Fill>(self: &Arc<Self>, name: &'static str, handle: u64, cookie: u64, mut reply: R) {
        self.guarded(name, || {
            let result = self.try_now(name, &mut |drive| reply.fill(drive, handle, cookie));
            match result {
                Ok(()) => reply.send(),
                Err(Stop::Refused(errno)) => reply.refuse(errno),
                // Nothing was added: the drive says what is missing only before the first entry.
                Err(Stop::Missing) => self.on_network(name, move |calls| {
                    match calls.bring(name, |drive| reply.fill(drive, handle, cookie)) {
                        Ok(()) => reply.send(),
                        Err(errno) => reply.refuse(errno),
                    }
                }),
            }
        });
    }
}
