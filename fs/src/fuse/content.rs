//! Requests about the content of files: read, write, fsync, and finding data and holes.
//!
//! Invariant: bytes are copied once on their way in; a read is answered by its loop thread when everything it needs
//! is in memory, and waits for the disk and for the network in different pools. Called by the door.

use std::sync::Arc;

use bytes::Bytes;
use fuser::{
    Errno, INodeNo, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite, ReplyXattr, WriteFlags,
};
use sealdrive_core::record::{Ino, Time};

use super::backing::{Backing, BackingError, ChunkNow};
use super::calls::{Calls, DISK_LIMIT, FETCH_LIMIT, SERVER_LIMIT, Stop, Waits, now};
use super::read::{assemble, references};
use super::reply::Refuse;
use crate::clock;
use crate::drive::{Drive, Plan, Seek};
use crate::limits::WRITE_SHARED;

/// Why a read cannot be answered on its loop thread.
enum NotReady {
    /// The plan does not fit a chunk.
    Damaged(BackingError),
    /// The first chunk that is not in memory is on this machine, or not.
    Near,
    Far,
}

impl From<BackingError> for NotReady {
    fn from(error: BackingError) -> Self {
        Self::Damaged(error)
    }
}

impl<B: Backing> Calls<B> {
    pub(super) fn read(
        self: &Arc<Self>,
        ino: Ino,
        handle: u64,
        offset: u64,
        len: u64,
        reply: ReplyData,
    ) {
        self.guarded("read", || {
            let mut attempt = move |drive: &Drive| drive.read_plan(ino, offset, len);
            let plan = match self.try_now("read", &mut attempt) {
                Ok(plan) => plan,
                Err(Stop::Refused(errno)) => return reply.refuse(errno),
                Err(Stop::Missing) => {
                    return self.on_network("read", move |calls| {
                        match calls.bring("read", attempt) {
                            Ok(plan) => calls.read_far(ino, offset, &plan, reply),
                            Err(errno) => reply.refuse(errno),
                        }
                    });
                }
            };
            self.read_ahead(ino, handle, offset, &plan);
            let ready = assemble(&plan, |reference| match self.backing.chunk_now(reference) {
                ChunkNow::Ready(bytes) => Ok(bytes),
                ChunkNow::Near => Err(NotReady::Near),
                ChunkNow::Far => Err(NotReady::Far),
            });
            match ready {
                Ok(bytes) => {
                    self.backing.readable(ino, offset, bytes.len() as u64);
                    reply.data(&bytes);
                }
                Err(NotReady::Damaged(error)) => {
                    reply.refuse(self.unreadable(ino, offset, &error));
                }
                // Opening a chunk takes as long as a hundred small requests: they do not wait behind it.
                Err(NotReady::Near) if self.all_near(&plan) => self.on_disk("read", move |calls| {
                    calls.read_far(ino, offset, &plan, reply)
                }),
                Err(NotReady::Near | NotReady::Far) => self.on_network("read", move |calls| {
                    calls.read_far(ino, offset, &plan, reply)
                }),
            }
        });
    }

    /// Whether no chunk of the plan needs the network.
    fn all_near(&self, plan: &Plan) -> bool {
        references(plan)
            .iter()
            .all(|reference| self.backing.chunk_now(reference) != ChunkNow::Far)
    }

    fn read_far(&self, ino: Ino, offset: u64, plan: &Plan, reply: ReplyData) {
        let deadline = clock::now() + FETCH_LIMIT;
        let wanted = references(plan);
        if wanted.len() > 1 {
            // All at once, instead of one round trip after the other.
            self.backing.prefetch(&wanted);
        }
        match assemble(plan, |reference| self.backing.chunk(reference, deadline)) {
            Ok(bytes) => {
                self.backing.readable(ino, offset, bytes.len() as u64);
                reply.data(&bytes);
            }
            Err(error) => reply.refuse(self.unreadable(ino, offset, &error)),
        }
    }

    /// Carries the inode to where a person can be told the file's name.
    fn unreadable(&self, ino: Ino, offset: u64, error: &BackingError) -> Errno {
        if matches!(error, BackingError::Damaged) {
            self.backing.damaged(ino, offset);
        }
        self.failed("read", error)
    }

    // Costs a look into a small map; asks for chunks a few times per window at most.
    fn read_ahead(&self, ino: Ino, handle: u64, offset: u64, plan: &Plan) {
        let ahead = self
            .runs()
            .entry(handle)
            .or_default()
            .note(offset, plan.len());
        let Some((from, len)) = ahead else { return };
        // What is not known without the network is simply not read ahead.
        let mut attempt = move |drive: &Drive| drive.read_plan(ino, from, len);
        if let Ok(plan) = self.try_now("read", &mut attempt) {
            let wanted = references(&plan);
            if !wanted.is_empty() {
                self.backing.prefetch(&wanted);
            }
        }
    }

    pub(super) fn write(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        reply: ReplyWrite,
    ) {
        let kill = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let cached = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let when = (!cached).then(now);
        // What remains if the operation breaks off by a defect.
        let mut stop = Stop::Refused(Errno::EIO);
        if !self.must_wait(Waits::ForData) {
            let mut attempt = |drive: &Drive| drive.write(ino, offset, data, kill, when);
            let mut reply = Some(reply);
            self.guarded("write", || match self.try_now("write", &mut attempt) {
                Ok(len) => reply
                    .take()
                    .into_iter()
                    .for_each(|reply| reply.written(len)),
                Err(other) => stop = other,
            });
            match (reply, stop) {
                (Some(reply), Stop::Refused(errno)) => reply.refuse(errno),
                (Some(reply), Stop::Missing) => {
                    self.write_later(ino, offset, data, (kill, when), reply)
                }
                (None, _) => {}
            }
            return;
        }
        self.write_later(ino, offset, data, (kill, when), reply);
    }

    fn write_later(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        data: &[u8],
        (kill, when): (bool, Option<Time>),
        reply: ReplyWrite,
    ) {
        let data = Bytes::copy_from_slice(data);
        self.later("write", Waits::ForData, move |calls| {
            let attempt = |drive: &Drive| match data.len() {
                // It was copied for the wait: once is enough.
                WRITE_SHARED.. => drive.write_shared(ino, offset, data.clone(), kill, when),
                _ => drive.write(ino, offset, &data, kill, when),
            };
            calls.finish(
                "write",
                Waits::ForData,
                reply,
                attempt,
                |reply: ReplyWrite, len| reply.written(len),
            );
        });
    }

    /// fsync of anything: the journal is one for the drive, and what came before goes with it. Where the mount's policy
    /// is `fsync=server` it waits for the commit too, in a pool of its own: it may take as long as a dead network.
    pub(super) fn sync(self: &Arc<Self>, name: &'static str, reply: ReplyEmpty) {
        let answer =
            move |calls: &Self, done: Result<(), BackingError>, reply: ReplyEmpty| match done {
                Ok(()) => reply.ok(),
                Err(error) => reply.refuse(calls.failed(name, &error)),
            };
        if self.backing.fsync_waits_for_server() {
            // From the arrival: a queue of waiting ones must not add up.
            let deadline = clock::now() + SERVER_LIMIT;
            return self.on_server(name, move |calls| {
                answer(calls, calls.backing.sync_server(deadline), reply);
            });
        }
        self.on_disk(name, move |calls| {
            answer(
                calls,
                calls.backing.sync_local(clock::now() + DISK_LIMIT),
                reply,
            );
        });
    }

    /// SEEK_DATA and SEEK_HOLE. The kernel asks without sending its dirty pages first, so they are called for here;
    /// otherwise a copy made of a file that is being written would have holes where the data is.
    pub(super) fn seek(self: &Arc<Self>, ino: Ino, offset: u64, seek: Seek, reply: ReplyLseek) {
        let attempt = move |drive: &Drive| drive.lseek(ino, offset, seek);
        let answer =
            |reply: ReplyLseek, found| reply.offset(i64::try_from(found).unwrap_or(i64::MAX));
        if self.held_by_kernel(ino) {
            self.on_disk("lseek", move |calls| {
                calls.call_in(ino);
                calls.finish("lseek", Waits::Never, reply, attempt, answer);
            });
        } else {
            self.call("lseek", Waits::Never, reply, attempt, answer);
        }
    }

    /// The state of a file, as the value of a synthetic attribute.
    pub(super) fn state(self: &Arc<Self>, ino: Ino, size: u32, reply: ReplyXattr) {
        self.on_disk("getxattr", move |calls| {
            if calls.held_by_kernel(ino) && !calls.call_in(ino) {
                return value(reply, b"dirty", size);
            }
            match calls.bring("getxattr", |_| calls.backing.state(ino)) {
                // Its next page may be on the way.
                Ok("committed") if calls.held_by_kernel(ino) => value(reply, b"sent", size),
                Ok(state) => value(reply, state.as_bytes(), size),
                Err(errno) => reply.refuse(errno),
            }
        });
    }

    /// Whether the kernel may hold newer bytes of this file than we do: it sends them all when the last handle or
    /// mapping that may write is closed, before it says so.
    fn held_by_kernel(&self, ino: Ino) -> bool {
        self.backing.drive().is_open_for_write(ino)
    }

    /// Makes the kernel send its dirty pages of one inode: it launders what it is told to forget. Pool threads only,
    /// because the pages arrive as WRITE requests on the loops. Size and times of the file stay the kernel's. False if
    /// it kept some.
    fn call_in(&self, ino: Ino) -> bool {
        let Some(kernel) = self.kernel.get() else {
            return true;
        };
        match kernel.inval_inode(INodeNo(ino), 0, 0) {
            Ok(()) => true,
            // It has forgotten the inode, and so has no pages of it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            Err(error) => {
                tracing::debug!(%error, "the kernel kept its pages");
                false
            }
        }
    }

    /// The same for every file that the kernel may hold newer bytes of. syncfs(2) does not do: on FUSE it returns when
    /// the pages are on their way, not when they are here. Never from a loop thread.
    pub(super) fn call_in_all(&self) -> bool {
        let mut all = true;
        for ino in self.backing.drive().open_for_write() {
            // Each, also when one before it kept some.
            all &= self.call_in(ino);
        }
        all
    }
}

/// Answers getxattr and listxattr by the rule of their size argument: 0 asks for the length.
pub(super) fn value(reply: ReplyXattr, value: &[u8], size: u32) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply.size(len);
    } else if len <= size {
        reply.data(value);
    } else {
        reply.error(Errno::ERANGE);
    }
}
