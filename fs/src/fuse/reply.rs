//! Conversions between the drive's values and the kernel's: attributes, times, modes, device numbers.
//!
//! Invariant: total functions without rules; a time survives the round trip to the nanosecond, before 1970 as well.
//! Called by the door.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileType, FopenFlags, INodeNo, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory,
};
use fuser::{
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr,
};
use sealdrive_core::record::{FileKind, Ino, Time};

use crate::drive::Attr;

/// A reply that can refuse: what every kind of reply has in common.
pub(super) trait Refuse: Send + 'static {
    /// Answers with an error number.
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => { $(impl Refuse for $reply {
        fn refuse(self, errno: Errno) {
            self.error(errno);
        }
    })* };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek
);
refuse!(ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr);

/// The kernel's form of a kind.
pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDev => FileType::CharDevice,
        FileKind::BlockDev => FileType::BlockDevice,
    }
}

/// The kind in the upper bits of a mode (inode(7)); mknod(2) with none of them means a regular file.
pub(super) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & 0o170_000 {
        0 | 0o100_000 => Some(FileKind::Regular),
        0o010_000 => Some(FileKind::Fifo),
        0o140_000 => Some(FileKind::Socket),
        0o020_000 => Some(FileKind::CharDev),
        0o060_000 => Some(FileKind::BlockDev),
        _ => None,
    }
}

/// The kernel's form of attributes.
pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // The protocol carries 32 bits, as the kernel's own new_encode_dev does; mknod gave us no more.
        rdev: attr.rdev as u32,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// "There is no such name, and you may remember that": a lookup answered with inode 0.
pub(super) fn no_such_name() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// Seconds and nanoseconds as a `SystemTime`; what it cannot hold is clamped.
fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs >= 0 {
        UNIX_EPOCH.checked_add(whole)
    } else {
        UNIX_EPOCH.checked_sub(whole)
    };
    base.and_then(|base| base.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

/// A time of a request. Before 1970, fuser 0.18 gives `epoch − (seconds + nanoseconds)` for the kernel's
/// `−seconds + nanoseconds`; both parts are intact and are put back in their places here.
pub(super) fn time_of_request(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time {
            secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let secs = i64::try_from(before.as_secs()).map_or(i64::MIN, |secs| -secs);
            Time {
                secs,
                nanos: before.subsec_nanos(),
            }
        }
    }
}

/// How files are opened: pages stay, because whatever else changes them says so; writers of direct IO do not queue up.
pub(super) fn open_flags() -> FopenFlags {
    FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
}

/// Inode numbers go through unchanged; the root is 1 on both sides.
pub(super) fn ino(number: INodeNo) -> Ino {
    number.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = Time {
            secs: -3,
            nanos: 250_000_000,
        };
        // What the kernel is told: 2.75 s before the epoch.
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::from_millis(2750));
        // What fuser makes of the kernel's (-3, 250000000).
        let received = UNIX_EPOCH - Duration::new(3, 250_000_000);
        assert_eq!(time_of_request(received), time);
        let whole = Time { secs: -7, nanos: 0 };
        assert_eq!(time_of_request(UNIX_EPOCH - Duration::from_secs(7)), whole);
        let late = Time {
            secs: 4_294_967_299,
            nanos: 1,
        };
        assert_eq!(time_of_request(system_time(late)), late);
    }

    #[test]
    fn every_kind_a_mode_can_name() {
        assert_eq!(kind_of_mode(0o644), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(0o010_600), Some(FileKind::Fifo));
        assert_eq!(kind_of_mode(0o060_600), Some(FileKind::BlockDev));
        assert_eq!(
            kind_of_mode(0o040_700),
            None,
            "directories have their own request"
        );
    }
}
