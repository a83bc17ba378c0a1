//! Why an operation of the drive was refused: a POSIX error number, or a tree node that must be loaded first.
//!
//! Invariant: an operation that returns either has changed nothing. Called by every file of this room; the kernel's
//! border turns [`Errno`] into its own type.

use sealdrive_core::record::BadRecord;
use sealdrive_core::reference::Reference;
use sealdrive_core::view::ReadError;

/// A POSIX error number with Linux's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// The symbol, for messages.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    _ => "E?",
                }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1,
    /// No such file or directory.
    ENOENT = 2,
    /// Content that cannot be read back, or a record that does not decode.
    EIO = 5,
    /// No such device or address: SEEK_DATA or SEEK_HOLE beyond the end.
    ENXIO = 6,
    /// Bad file handle.
    EBADF = 9,
    /// Permission denied.
    EACCES = 13,
    /// A name exists.
    EEXIST = 17,
    /// Not a directory.
    ENOTDIR = 20,
    /// Is a directory.
    EISDIR = 21,
    /// Invalid argument.
    EINVAL = 22,
    /// File too large.
    EFBIG = 27,
    /// No space left.
    ENOSPC = 28,
    /// Read-only: another machine writes the drive.
    EROFS = 30,
    /// Too many links.
    EMLINK = 31,
    /// A buffer too small for the answer.
    ERANGE = 34,
    /// Name too long.
    ENAMETOOLONG = 36,
    /// Directory not empty.
    ENOTEMPTY = 39,
    /// No such extended attribute.
    ENODATA = 61,
    /// Not supported on this drive.
    EOPNOTSUPP = 95,
    /// The inode is gone.
    ESTALE = 116,
    /// The account's quota on the server is used up.
    EDQUOT = 122,
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Why an operation did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DriveError {
    /// The answer for the caller.
    #[error("{0}")]
    Errno(Errno),
    /// A tree node that is not in memory: load it, [`super::Drive::add_node`], and ask again.
    #[error("a tree node must be loaded first")]
    Missing(Reference),
}

impl From<Errno> for DriveError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<ReadError> for DriveError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Missing(reference) => Self::Missing(reference),
            ReadError::Damaged => Self::Errno(Errno::EIO),
        }
    }
}

impl From<BadRecord> for DriveError {
    fn from(_: BadRecord) -> Self {
        Self::Errno(Errno::EIO)
    }
}

/// What operations return.
pub type Answer<T> = Result<T, DriveError>;
