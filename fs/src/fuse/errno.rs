//! The one table from our errors to the kernel's error numbers.
//!
//! Invariant: every error of every room reaches a program through this file, so its meaning is decided once.

use fuser::Errno;

use super::backing::BackingError;
use crate::drive;

/// The drive's numbers are Linux's already.
pub(super) fn of_drive(errno: drive::Errno) -> Errno {
    Errno::from_i32(errno.0)
}

/// What a program is told when content or safety could not be had.
pub(super) fn of_backing(error: &BackingError) -> Errno {
    match error {
        // The bytes exist, only not here and not now: distinguishable from damage, and worth another try.
        BackingError::TimedOut => Errno::ETIMEDOUT,
        BackingError::Unreachable => Errno::EHOSTUNREACH,
        BackingError::Damaged | BackingError::Disk(_) | BackingError::Stopped => Errno::EIO,
        BackingError::NoSpace => Errno::ENOSPC,
        BackingError::Quota => Errno::EDQUOT,
        BackingError::ReadOnly => Errno::EROFS,
    }
}

/// Whether the user should find it in the events, beyond the program that met it.
pub(super) fn is_event(error: &BackingError) -> bool {
    !matches!(
        error,
        BackingError::NoSpace | BackingError::Quota | BackingError::ReadOnly
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_and_absence_are_told_apart() {
        assert_eq!(of_backing(&BackingError::Damaged), Errno::EIO);
        assert_eq!(of_backing(&BackingError::TimedOut), Errno::ETIMEDOUT);
        assert_eq!(of_backing(&BackingError::NoSpace).code(), 28);
        assert_eq!(of_drive(drive::Errno::ENOTEMPTY), Errno::ENOTEMPTY);
    }
}
