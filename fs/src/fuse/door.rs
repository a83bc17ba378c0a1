//! The FUSE protocol's requests, one method each: arguments converted, then handed on.
//!
//! Invariant: a method decides nothing but the conversion; names and data are borrowed from the kernel's buffer and
//! copied before they may outlive the call. Called by fuser's loop threads.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use sealdrive_core::record::FileKind;

use super::backing::Backing;
use super::calls::{Calls, Waits, now};
use super::reply::{self, Refuse, ino};
use crate::drive::{Cred, Drive, Fallocate, NewNode, RenameRule, Seek, SetAttr};

/// lseek(2).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
/// open(2).
const O_TRUNC: i32 = 0o1000;

/// Our side of one kernel connection.
pub(super) struct Door<B> {
    calls: Arc<Calls<B>>,
}

impl<B: Backing> Door<B> {
    pub(super) fn new(calls: Arc<Calls<B>>) -> Self {
        Self { calls }
    }

    /// What serves a request; the first thing every request asks for.
    fn calls(&self, request: &Request) -> &Arc<Calls<B>> {
        self.calls.burst.note(request.pid());
        &self.calls
    }
}

fn cred(request: &Request) -> Cred {
    Cred {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
    }
}

fn bytes(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

// Without CAP_FSETID set-id bits do not survive a truncate. The kernel's own verdict (FATTR_KILL_SUIDGID) is not
// handed on by fuser 0.18; who is not root does not have the capability.
fn loses_set_id(request: &Request) -> bool {
    request.uid() != 0
}

impl<B: Backing> Filesystem for Door<B> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        super::session::negotiate(config);
        Ok(())
    }

    fn lookup(&self, request: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.calls(request).lookup(ino(dir), bytes(name), reply);
    }

    fn forget(&self, request: &Request, file: INodeNo, count: u64) {
        let drive = self.calls(request).backing.drive();
        self.calls
            .guarded("forget", || drive.forget(ino(file), count));
    }

    fn getattr(&self, request: &Request, file: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.calls(request).getattr(ino(file), reply);
    }

    fn setattr(
        &self,
        request: &Request,
        file: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let now = now();
        let time = |time| match time {
            TimeOrNow::SpecificTime(time) => reply::time_of_request(time),
            TimeOrNow::Now => now,
        };
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(time),
            mtime: mtime.map(time),
            ctime: ctime.map(reply::time_of_request),
            kill_suidgid: size.is_some() && loses_set_id(request),
        };
        self.calls(request).setattr(ino(file), set, reply);
    }

    fn readlink(&self, request: &Request, link: INodeNo, reply: ReplyData) {
        self.calls(request).readlink(ino(link), reply);
    }

    fn mknod(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = reply::kind_of_mode(mode) else {
            return reply.refuse(Errno::EINVAL);
        };
        let (mode, rdev) = (mode & 0o7777, u64::from(rdev));
        let new = NewNode {
            kind,
            mode,
            umask,
            rdev,
        };
        let (dir, name, cred, now) = (ino(dir), bytes(name), cred(request), now());
        let attempt = move |drive: &Drive| drive.mknod(dir, &name, new, cred, now);
        self.calls(request).make("mknod", reply, attempt);
    }

    fn mkdir(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let (dir, name, mode) = (ino(dir), bytes(name), mode & 0o7777);
        let (cred, now) = (cred(request), now());
        let attempt = move |drive: &Drive| drive.mkdir(dir, &name, mode, umask, cred, now);
        self.calls(request).make("mkdir", reply, attempt);
    }

    fn symlink(&self, req: &Request, dir: INodeNo, name: &OsStr, to: &Path, reply: ReplyEntry) {
        let (dir, name, to) = (ino(dir), bytes(name), bytes(to.as_os_str()));
        let (cred, now) = (cred(req), now());
        let attempt = move |drive: &Drive| drive.symlink(dir, &name, &to, cred, now);
        self.calls(req).make("symlink", reply, attempt);
    }

    fn link(
        &self,
        request: &Request,
        file: INodeNo,
        dir: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    ) {
        let (file, dir, name, now) = (ino(file), ino(dir), bytes(name), now());
        let attempt = move |drive: &Drive| drive.link(file, dir, &name, now);
        self.calls(request).make("link", reply, attempt);
    }

    fn unlink(&self, request: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (dir, name, now) = (ino(dir), bytes(name), now());
        self.calls(request)
            .change("unlink", reply, move |drive| drive.unlink(dir, &name, now));
    }

    fn rmdir(&self, request: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (dir, name, now) = (ino(dir), bytes(name), now());
        self.calls(request)
            .change("rmdir", reply, move |drive| drive.rmdir(dir, &name, now));
    }

    fn rename(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        to: INodeNo,
        as_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rule = match flags {
            flags if flags.is_empty() => RenameRule::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameRule::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameRule::Exchange,
            // Whiteouts are for layers below an overlay mount.
            _ => return reply.refuse(Errno::EINVAL),
        };
        let (dir, name, to, as_name, now) = (ino(dir), bytes(name), ino(to), bytes(as_name), now());
        let attempt = move |drive: &Drive| drive.rename(dir, &name, to, &as_name, rule, now);
        self.calls(request).change("rename", reply, attempt);
    }

    fn open(&self, request: &Request, file: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let empty = (flags.0 & O_TRUNC != 0).then(|| SetAttr {
            size: Some(0),
            kill_suidgid: loses_set_id(request),
            ..SetAttr::default()
        });
        let write = flags.acc_mode() != OpenAccMode::O_RDONLY;
        self.calls(request).open(ino(file), write, empty, reply);
    }

    fn create(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let (kind, mode) = (FileKind::Regular, mode & 0o7777);
        let new = NewNode {
            kind,
            mode,
            umask,
            rdev: 0,
        };
        self.calls(request)
            .create(ino(dir), bytes(name), new, cred(request), reply);
    }

    fn release(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.calls(request).release(handle.0, reply);
    }

    // Pages are written back by the kernel at close all the same; this saves a request per file. The kernel remembers.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        request: &Request,
        file: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.calls(request)
            .read(ino(file), handle.0, offset, u64::from(size), reply);
    }

    fn write(
        &self,
        request: &Request,
        file: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.calls(request)
            .write(ino(file), offset, data, flags, reply);
    }

    fn fsync(&self, request: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.calls(request).sync("fsync", reply);
    }

    fn fsyncdir(&self, request: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.calls(request).sync("fsyncdir", reply);
    }

    fn fallocate(
        &self,
        request: &Request,
        file: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(how) = Fallocate::from_mode(mode) else {
            return reply.refuse(Errno::EOPNOTSUPP);
        };
        let (file, now) = (ino(file), now());
        let attempt = move |drive: &Drive| drive.fallocate(file, offset, len, how, now);
        self.calls(request).change("fallocate", reply, attempt);
    }

    fn lseek(
        &self,
        request: &Request,
        file: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = match whence {
            SEEK_DATA => Seek::Data,
            SEEK_HOLE => Seek::Hole,
            _ => return reply.refuse(Errno::EINVAL),
        };
        match u64::try_from(offset) {
            Ok(offset) => self.calls(request).seek(ino(file), offset, seek, reply),
            Err(_) => reply.refuse(Errno::ENXIO),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to, now) = (ino(from), ino(to), now());
        // The answer has 32 bits; the caller comes back for the rest.
        let len = len.min(u64::from(u32::MAX) & !0xfff);
        let attempt =
            move |drive: &Drive| drive.copy_range(from, from_offset, to, to_offset, len, now);
        self.calls(request).call(
            "copy_file_range",
            Waits::ForData,
            reply,
            attempt,
            |reply, copied| {
                reply.written(u32::try_from(copied).unwrap_or(u32::MAX));
            },
        );
    }

    fn opendir(&self, request: &Request, dir: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let dir = ino(dir);
        let attempt = move |drive: &Drive| drive.opendir(dir);
        self.calls(request)
            .call("opendir", Waits::Never, reply, attempt, |reply, handle| {
                reply.opened(FileHandle(handle), FopenFlags::empty());
            });
    }

    fn readdir(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        cookie: u64,
        reply: ReplyDirectory,
    ) {
        self.calls(request).readdir(handle.0, cookie, reply);
    }

    fn readdirplus(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        cookie: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.calls(request).readdirplus(handle.0, cookie, reply);
    }

    fn releasedir(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.calls(request).guarded("releasedir", || {
            self.calls.backing.drive().releasedir(handle.0);
            reply.ok();
        });
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.calls(request).statfs(reply);
    }

    fn setxattr(
        &self,
        request: &Request,
        file: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let pair = (name.as_bytes(), value);
        self.calls(request)
            .setxattr(ino(file), pair, flags, cred(request), reply);
    }

    fn getxattr(
        &self,
        request: &Request,
        file: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.calls(request)
            .getxattr(ino(file), name.as_bytes(), size, reply);
    }

    fn listxattr(&self, request: &Request, file: INodeNo, size: u32, reply: ReplyXattr) {
        self.calls(request).listxattr(ino(file), size, reply);
    }

    fn removexattr(&self, request: &Request, file: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.calls(request)
            .removexattr(ino(file), name.as_bytes(), reply);
    }

    // Not ours: refused in the words programs expect, and without the default methods' log lines.

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
