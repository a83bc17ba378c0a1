//! The inode record.
//!
//! Layout: `1 ‖ kind u8 ‖ flags u8 ‖ mode u16 ‖ uid u32 ‖ gid u32 ‖ nlink u32 ‖ size u64 ‖ generation u32 ‖ mtime`,
//! then, each only if its flag is set: atime, ctime, btime, `allocated u64`, `rdev u64`, digest (32), target (the
//! rest). A time is `secs i64 ‖ nanos u32`. Invariant: a flag is set exactly when the field differs from its default
//! (times: mtime; allocated: size; others: zero or empty).

use bytes::Bytes;
use sealdrive_proto::limits::MAX_VALUE;

use super::fields::Fields;
use super::{BadRecord, MAX_FILE, Value};

/// Longest symlink target that stands in the inode record, bytes. A longer one (the kernel allows 4,095) lives in
/// inline extents of the symlink's own inode: then `target` is empty and `size` is its length.
pub const TARGET_MAX: usize = MAX_VALUE - 160;

const VERSION: u8 = 1;
const ATIME: u8 = 1;
const CTIME: u8 = 1 << 1;
const BTIME: u8 = 1 << 2;
const ALLOCATED: u8 = 1 << 3;
const RDEV: u8 = 1 << 4;
const DIGEST: u8 = 1 << 5;
const TARGET: u8 = 1 << 6;

/// Type of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Named pipe.
    Fifo = 4,
    /// Unix socket.
    Socket = 5,
    /// Character device.
    CharDev = 6,
    /// Block device.
    BlockDev = 7,
}

impl FileKind {
    /// The byte in records.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The kind with this byte, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::Symlink,
            4 => Self::Fifo,
            5 => Self::Socket,
            6 => Self::CharDev,
            7 => Self::BlockDev,
            _ => return None,
        })
    }
}

/// A point in time: seconds since 1970 (may be negative) and nanoseconds below 10⁹.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Whole seconds since 1970-01-01 UTC.
    pub secs: i64,
    /// Nanoseconds after that, 0..10⁹.
    pub nanos: u32,
}

/// Everything about a file but its names, attributes and content.
#[derive(Clone, PartialEq, Eq)]
pub struct Inode {
    /// Type.
    pub kind: FileKind,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub nlink: u32,
    /// Length of the content, bytes; of a symlink, of its target. At most `MAX_FILE`.
    pub size: u64,
    /// Bytes that are not holes: what `st_blocks` counts.
    pub allocated: u64,
    /// Last access, as set explicitly: reads do not change it.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of content or attributes.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
    /// Device number of a device node, else 0.
    pub rdev: u64,
    /// Given out with the inode number, so that a stale handle is recognised.
    pub generation: u32,
    /// Target of a symlink of at most [`TARGET_MAX`] bytes; else empty.
    pub target: Bytes,
    /// Keyed digest of the whole content of a small file, to find it again unchanged.
    pub digest: Option<[u8; 32]>,
}

impl Inode {
    /// A fresh inode: one link, no content, all four times `now`.
    pub fn new(kind: FileKind, mode: u32, uid: u32, gid: u32, now: Time) -> Self {
        Self {
            kind,
            mode,
            uid,
            gid,
            nlink: 1,
            size: 0,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            rdev: 0,
            generation: 0,
            target: Bytes::new(),
            digest: None,
        }
    }

    /// The record. Panics on a field out of range: the drive checks its arguments first.
    pub fn encode(&self) -> Value {
        assert!(self.in_range(), "inode field out of range");
        let mut flags = 0;
        for (bit, differs) in [
            (ATIME, self.atime != self.mtime),
            (CTIME, self.ctime != self.mtime),
            (BTIME, self.btime != self.mtime),
            (ALLOCATED, self.allocated != self.size),
            (RDEV, self.rdev != 0),
            (DIGEST, self.digest.is_some()),
            (TARGET, !self.target.is_empty()),
        ] {
            flags |= if differs { bit } else { 0 };
        }
        let mut out = Vec::with_capacity(128 + self.target.len());
        out.extend_from_slice(&[VERSION, self.kind.code(), flags]);
        out.extend_from_slice(&(self.mode as u16).to_le_bytes());
        out.extend_from_slice(&self.uid.to_le_bytes());
        out.extend_from_slice(&self.gid.to_le_bytes());
        out.extend_from_slice(&self.nlink.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        put_time(&mut out, self.mtime);
        for (bit, time) in [
            (ATIME, self.atime),
            (CTIME, self.ctime),
            (BTIME, self.btime),
        ] {
            if flags & bit != 0 {
                put_time(&mut out, time);
            }
        }
        if flags & ALLOCATED != 0 {
            out.extend_from_slice(&self.allocated.to_le_bytes());
        }
        if flags & RDEV != 0 {
            out.extend_from_slice(&self.rdev.to_le_bytes());
        }
        if let Some(digest) = &self.digest {
            out.extend_from_slice(digest);
        }
        out.extend_from_slice(&self.target);
        Value::from(out)
    }

    /// Reads a record strictly.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadRecord> {
        let mut fields = Fields::new(bytes, "inode");
        if fields.u8()? != VERSION {
            return Err(fields.bad());
        }
        let kind = FileKind::from_code(fields.u8()?).ok_or(fields.bad())?;
        let flags = fields.u8()?;
        let (mode, uid, gid) = (u32::from(fields.u16()?), fields.u32()?, fields.u32()?);
        let (nlink, size, generation) = (fields.u32()?, fields.u64()?, fields.u32()?);
        let mtime = take_time(&mut fields)?;
        let mut other_time = |bit| match flags & bit {
            0 => Ok(mtime),
            _ => take_time(&mut fields).and_then(|time| {
                if time == mtime {
                    Err(fields.bad())
                } else {
                    Ok(time)
                }
            }),
        };
        let (atime, ctime, btime) = (other_time(ATIME)?, other_time(CTIME)?, other_time(BTIME)?);
        let allocated = if flags & ALLOCATED != 0 {
            fields.u64()?
        } else {
            size
        };
        let rdev = if flags & RDEV != 0 { fields.u64()? } else { 0 };
        let digest = if flags & DIGEST != 0 {
            Some(fields.array()?)
        } else {
            None
        };
        let target = if flags & TARGET != 0 {
            Bytes::copy_from_slice(fields.rest())
        } else {
            Bytes::new()
        };
        let spelled_twice = (flags & ALLOCATED != 0 && allocated == size)
            || (flags & RDEV != 0 && rdev == 0)
            || (flags & TARGET != 0 && target.is_empty())
            || flags >> 7 != 0;
        let bad = fields.bad();
        fields.end()?;
        let inode = Self {
            kind,
            mode,
            uid,
            gid,
            nlink,
            size,
            allocated,
            atime,
            mtime,
            ctime,
            btime,
            rdev,
            generation,
            target,
            digest,
        };
        if spelled_twice || !inode.in_range() {
            Err(bad)
        } else {
            Ok(inode)
        }
    }

    fn in_range(&self) -> bool {
        self.mode <= 0o7777
            && self.size <= MAX_FILE
            && self.allocated <= MAX_FILE
            && self.target.len() <= TARGET_MAX
            && (self.target.is_empty() || self.kind == FileKind::Symlink)
            && [self.atime, self.mtime, self.ctime, self.btime]
                .iter()
                .all(|time| time.nanos < 1_000_000_000)
    }
}

/// Shape only: a target is a name, and a digest identifies content.
impl std::fmt::Debug for Inode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inode")
            .field("kind", &self.kind)
            .field("mode", &format_args!("{:o}", self.mode))
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .field("nlink", &self.nlink)
            .field("size", &self.size)
            .field("allocated", &self.allocated)
            .field("mtime", &self.mtime)
            .finish_non_exhaustive()
    }
}

fn put_time(out: &mut Vec<u8>, time: Time) {
    out.extend_from_slice(&time.secs.to_le_bytes());
    out.extend_from_slice(&time.nanos.to_le_bytes());
}

fn take_time(fields: &mut Fields<'_>) -> Result<Time, BadRecord> {
    Ok(Time {
        secs: i64::from_le_bytes(fields.array()?),
        nanos: fields.u32()?,
    })
}
