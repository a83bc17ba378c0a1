//! Requests about names and attributes: lookup, making, linking, renaming, removing, stat and its changes.
//!
//! Invariant: each is one operation of the drive, whole or not at all. Called by the door.

use std::sync::Arc;

use fuser::{FileHandle, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty};
use fuser::{ReplyEntry, ReplyOpen, ReplyStatfs};
use sealdrive_core::record::Ino;

use super::backing::Backing;
use super::calls::{Calls, LIFETIME, Waits, now};
use super::reply;
use crate::drive::{Answer, Attr, Cred, Drive, Errno, NewNode, SetAttr};

/// Longest name, bytes (NAME_MAX).
const LONGEST_NAME: u32 = 255;
/// Unit in which statfs counts, bytes.
const STATFS_UNIT: u32 = 4096;
/// Inodes shown as free: the drive has no table of them to fill up.
const FREE_INODES: u64 = 1 << 40;

fn entry(reply: ReplyEntry, attr: Attr) {
    let generation = Generation(u64::from(attr.generation));
    reply.entry(&LIFETIME, &reply::attr(&attr), generation);
}

fn attributes(reply: ReplyAttr, attr: Attr) {
    reply.attr(&LIFETIME, &reply::attr(&attr));
}

impl<B: Backing> Calls<B> {
    /// A request that changes something and is answered by "done".
    pub(super) fn change(
        self: &Arc<Self>,
        name: &'static str,
        reply: ReplyEmpty,
        attempt: impl FnMut(&Drive) -> Answer<()> + Send + 'static,
    ) {
        self.call(name, Waits::ForRecords, reply, attempt, |reply, ()| {
            reply.ok()
        });
    }

    /// A request that makes a name and is answered by what it names.
    pub(super) fn make(
        self: &Arc<Self>,
        name: &'static str,
        reply: ReplyEntry,
        attempt: impl FnMut(&Drive) -> Answer<Attr> + Send + 'static,
    ) {
        self.call(name, Waits::ForRecords, reply, attempt, entry);
    }

    pub(super) fn lookup(self: &Arc<Self>, parent: Ino, name: Vec<u8>, reply: ReplyEntry) {
        let attempt = move |drive: &Drive| match drive.lookup(parent, &name) {
            Ok(attr) => Ok(Some(attr)),
            Err(error) if error == Errno::ENOENT.into() => Ok(None),
            Err(error) => Err(error),
        };
        self.call(
            "lookup",
            Waits::Never,
            reply,
            attempt,
            |reply, found| match found {
                Some(attr) => entry(reply, attr),
                None => reply.entry(&LIFETIME, &reply::no_such_name(), Generation(0)),
            },
        );
    }

    pub(super) fn getattr(self: &Arc<Self>, ino: Ino, reply: ReplyAttr) {
        let attempt = move |drive: &Drive| drive.getattr(ino);
        self.call("getattr", Waits::Never, reply, attempt, attributes);
    }

    pub(super) fn setattr(self: &Arc<Self>, ino: Ino, set: SetAttr, reply: ReplyAttr) {
        let now = now();
        let attempt = move |drive: &Drive| drive.setattr(ino, set, now);
        self.call("setattr", Waits::ForRecords, reply, attempt, attributes);
    }

    pub(super) fn readlink(self: &Arc<Self>, ino: Ino, reply: ReplyData) {
        let attempt = move |drive: &Drive| drive.readlink(ino);
        self.call("readlink", Waits::Never, reply, attempt, |reply, target| {
            reply.data(&target)
        });
    }

    pub(super) fn create(
        self: &Arc<Self>,
        parent: Ino,
        name: Vec<u8>,
        new: NewNode,
        cred: Cred,
        reply: ReplyCreate,
    ) {
        let now = now();
        let attempt = move |drive: &Drive| drive.create(parent, &name, new, cred, now);
        self.call(
            "create",
            Waits::ForRecords,
            reply,
            attempt,
            |reply, (attr, handle)| {
                let generation = Generation(u64::from(attr.generation));
                let (attr, handle) = (reply::attr(&attr), FileHandle(handle));
                reply.created(&LIFETIME, &attr, generation, handle, reply::open_flags());
            },
        );
    }

    /// Opens a file; `empty` is the truncation that comes with it (ATOMIC_O_TRUNC).
    pub(super) fn open(
        self: &Arc<Self>,
        ino: Ino,
        write: bool,
        empty: Option<SetAttr>,
        reply: ReplyOpen,
    ) {
        let now = now();
        let waits = if empty.is_some() {
            Waits::ForRecords
        } else {
            Waits::Never
        };
        let attempt = move |drive: &Drive| {
            if let Some(set) = empty {
                drive.setattr(ino, set, now)?;
            }
            drive.open(ino, write)
        };
        self.call("open", waits, reply, attempt, |reply, handle| {
            reply.opened(FileHandle(handle), reply::open_flags());
        });
    }

    pub(super) fn release(&self, handle: u64, reply: ReplyEmpty) {
        self.guarded("release", || {
            self.runs().remove(&handle);
            self.backing.drive().release(handle);
            reply.ok();
        });
    }

    pub(super) fn statfs(self: &Arc<Self>, reply: ReplyStatfs) {
        let space = self.backing.space();
        self.call(
            "statfs",
            Waits::Never,
            reply,
            Drive::usage,
            move |reply, usage| {
                let unit = u64::from(STATFS_UNIT);
                let free = space.available / unit;
                let used = usage.bytes.div_ceil(unit);
                let blocks = (space.total / unit).max(used.saturating_add(free));
                let files = usage.files.saturating_add(FREE_INODES);
                let (size, name) = (STATFS_UNIT, LONGEST_NAME);
                reply.statfs(blocks, free, free, files, FREE_INODES, size, name, size);
            },
        );
    }
}
