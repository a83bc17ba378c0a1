//! What goes over this room's border: attributes, who asks, directory entries, read plans, numbers for statfs.
//!
//! Plain values, no rules. Called by the kernel's border and by the engine.

use bytes::Bytes;
use sealdrive_core::record::{FileKind, Ino, Inode, Time};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::Root;

/// Preferred size of a read or write, bytes: what the kernel sends at most.
pub const BLOCK_SIZE: u32 = 1 << 20;
/// Size and blocks shown for a directory: its entries are records of the tree, so any number would be a fiction.
const DIRECTORY_SIZE: u64 = 4096;

/// Who asks. Permission bits are the kernel's work (`default_permissions`); this is for ownership of what is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cred {
    /// User id of the caller.
    pub uid: u32,
    /// Group id of the caller.
    pub gid: u32,
    /// Process id of the caller.
    pub pid: u32,
}

/// Attributes of an inode, as stat(2) wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Generation of the number (numbers are never reused, so it does not change).
    pub generation: u32,
    /// Size, bytes.
    pub size: u64,
    /// Blocks of 512 bytes that hold data; holes count nothing.
    pub blocks: u64,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, 07777.
    pub mode: u32,
    /// Names, or for a directory 2 plus its directories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Last access as set by utimens; reads do not change it.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
    /// Preferred IO size, bytes.
    pub blksize: u32,
}

impl Attr {
    /// The attributes of `record`; `allocated` is its data in bytes, without holes.
    pub(crate) fn of(ino: Ino, record: &Inode, allocated: u64) -> Self {
        let (size, allocated) = match record.kind {
            FileKind::Directory => (DIRECTORY_SIZE, DIRECTORY_SIZE),
            FileKind::Symlink => (record.size, 0),
            _ => (
                record.size,
                allocated.min(record.size.next_multiple_of(4096)),
            ),
        };
        Self {
            ino,
            generation: record.generation,
            size,
            blocks: allocated.div_ceil(512),
            kind: record.kind,
            mode: record.mode,
            nlink: record.nlink,
            uid: record.uid,
            gid: record.gid,
            rdev: record.rdev,
            atime: record.atime,
            mtime: record.mtime,
            ctime: record.ctime,
            btime: record.btime,
            blksize: BLOCK_SIZE,
        }
    }
}

/// What setattr changes; `None` leaves a field as it is. "Now" is resolved by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits, 07777.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size, bytes: shrinks or grows by a hole.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change of content.
    pub mtime: Option<Time>,
    /// Last change of the inode, when the kernel keeps it (writeback cache).
    pub ctime: Option<Time>,
    /// FATTR_KILL_SUIDGID: the caller may not keep set-id bits through a truncate.
    pub kill_suidgid: bool,
}

/// What to create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNode {
    /// What it is: not a directory or symlink, which have their own calls.
    pub kind: FileKind,
    /// Permission bits before the umask.
    pub mode: u32,
    /// The caller's umask (the kernel leaves it to us: DONT_MASK), ignored where a default ACL stands.
    pub umask: u32,
    /// Device number for device nodes.
    pub rdev: u64,
}

/// rename(2): what to do when the new name exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RenameRule {
    /// Replace it.
    #[default]
    Replace,
    /// EEXIST.
    NoReplace,
    /// Exchange the two.
    Exchange,
}

/// setxattr(2): whether the attribute must or must not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XattrRule {
    /// Either.
    #[default]
    Any,
    /// EEXIST if it exists.
    Create,
    /// ENODATA if it does not.
    Replace,
}

/// fallocate(2), the modes that mean something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallocate {
    /// Mode 0: the file is at least this long.
    Extend,
    /// KEEP_SIZE alone: nothing to do, space is not reserved by range here.
    Reserve,
    /// PUNCH_HOLE | KEEP_SIZE.
    PunchHole,
    /// ZERO_RANGE, growing the file if need be.
    ZeroRange,
    /// ZERO_RANGE | KEEP_SIZE.
    ZeroRangeKeepSize,
}

impl Fallocate {
    /// Reads Linux's mode bits; `None` for those not supported (collapse, insert, unshare).
    pub const fn from_mode(mode: i32) -> Option<Self> {
        match mode {
            0 => Some(Self::Extend),
            1 => Some(Self::Reserve),
            3 => Some(Self::PunchHole),
            16 => Some(Self::ZeroRange),
            17 => Some(Self::ZeroRangeKeepSize),
            _ => None,
        }
    }
}

/// lseek(2) with SEEK_DATA or SEEK_HOLE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next data.
    Data,
    /// The next hole; the end of the file is one.
    Hole,
}

/// One run of bytes of a read, in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanPiece {
    /// Bytes in memory: dirty, or inline in the tree.
    Memory(Bytes),
    /// A hole of this many bytes.
    Zero(u64),
    /// Bytes `skip .. skip + len` of the chunk `reference`.
    Chunk {
        /// The chunk.
        reference: Reference,
        /// Bytes of it to leave out at the start.
        skip: u32,
        /// Bytes of it to take.
        len: u32,
    },
}

impl PlanPiece {
    /// Bytes of the answer it stands for.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Zero(len) => *len,
            Self::Chunk { len, .. } => u64::from(*len),
        }
    }

    /// Whether it stands for nothing; plans hold no such piece.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How to answer a read: the pieces follow one another. Shorter than asked at the end of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In file order.
    pub pieces: Vec<PlanPiece>,
}

impl Plan {
    /// Bytes of the answer.
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(PlanPiece::len).sum()
    }

    /// End of file.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// One name of a directory listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Cookie of what follows it.
    pub next: u64,
    /// The inode it names.
    pub ino: Ino,
    /// What that is.
    pub kind: FileKind,
    /// The name; "." and ".." come first.
    pub name: &'a [u8],
}

/// Numbers for statfs(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Inodes in the drive.
    pub files: u64,
    /// Bytes of data in files, without holes.
    pub bytes: u64,
}

/// How far what was last done to a file has come on its way to safety.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Something is in memory only, or on its way into the journal.
    Dirty,
    /// All of it is durable in the journal, and is not in a tree yet.
    Journaled,
    /// It belongs to the checkpoint under way.
    Checkpointing,
    /// It is in the tree the drive stands on.
    InTree,
    /// The tree of the newest commit on the server has it as it is.
    InCommit,
}

/// State of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    /// What it is.
    pub kind: FileKind,
    /// How far it has come.
    pub progress: Progress,
    /// The tree the drive stood on when this was looked at.
    pub root: Option<Root>,
    /// A handle that may write is open, so the kernel may hold newer bytes.
    pub open_for_write: bool,
    /// Bytes not yet cut and sealed.
    pub dirty_bytes: u64,
}
