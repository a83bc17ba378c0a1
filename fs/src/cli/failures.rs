//! The one table of errors: every error that reaches a command, its exit code, and what to do about it.
//!
//! Invariant: whatever can go wrong ends here in one line that says what is wrong and what to do.
//! Called by every command through `?`.

use std::io::ErrorKind;

use sealdrive_core::commit_body::BadBody;
use sealdrive_core::passphrase::PassphraseError;
use sealdrive_core::slot::SlotError;

use super::exit::{Exit, Failure};
use crate::account::AccountError;
use crate::control::Refusal;
use crate::engine::{BlobError, BranchError, ChainError, EngineError};
use crate::home::HomeError;
use crate::journal::{JournalError, TwinError};
use crate::keystore::KeystoreError;
use crate::mount::MountError;
use crate::mount::attach::AttachError;
use crate::remote::RemoteError;
use crate::store::{IndexError, StoreError};
use crate::umount::UmountError;
use crate::unlock::UnlockError;

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::new(Exit::from_code(refusal.exit), refusal.what, refusal.advice)
    }
}

impl From<HomeError> for Failure {
    fn from(error: HomeError) -> Self {
        let (exit, advice) = match &error {
            HomeError::Nowhere => (Exit::Usage, "set SEALDRIVE_HOME"),
            HomeError::Empty(_) => (
                Exit::NoDrive,
                "make an account with `sealdrive init`, or bring one back with `sealdrive recover --kit FILE`",
            ),
            HomeError::Occupied(_) => (
                Exit::Usage,
                "nothing was changed; another account needs another directory (--home)",
            ),
            HomeError::Damaged { .. } => (
                Exit::Lost,
                "move it aside and enrol this machine again with `sealdrive recover --kit FILE`",
            ),
            HomeError::NotPrivate { .. } => (Exit::Error, "use a directory of your own (--home)"),
            HomeError::Busy(_) => (Exit::Error, "wait for it to end, then try again"),
            HomeError::Io { source, .. } if is_full(source) => {
                (Exit::Space, "free some space, then try again")
            }
            HomeError::Io { .. } => (Exit::Error, "check the path and its permissions"),
        };
        Self::new(exit, error.to_string(), advice)
    }
}

impl From<UmountError> for Failure {
    fn from(error: UmountError) -> Self {
        let (exit, advice) = match &error {
            UmountError::NotMounted(_) => (
                Exit::NotMounted,
                "see `sealdrive status` for what is mounted",
            ),
            UmountError::Busy(_) => (
                Exit::Error,
                "close the programs that use it (`fuser -vm DIR` lists them); nothing was changed",
            ),
            UmountError::Refused { error, .. } if error.kind() == ErrorKind::PermissionDenied => {
                (Exit::Role, "unmount as the user who mounted it")
            }
            UmountError::Refused { .. } => (Exit::Error, "look at /proc/self/mounts"),
            UmountError::Usage => (Exit::Usage, "see umount(8)"),
        };
        Self::new(exit, error.to_string(), advice)
    }
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        let (exit, advice) = match &error {
            RemoteError::Unreachable(_) => (
                Exit::Unreachable,
                "check the address and the network; nothing was lost",
            ),
            RemoteError::Refused(_) => (Exit::Role, "is the server of the same version?"),
            RemoteError::Fenced => (
                Exit::LeaseElsewhere,
                "unmount there first, or mount here with --take-over",
            ),
            RemoteError::Stale => (Exit::Error, "try again"),
            RemoteError::Full => (
                Exit::Space,
                "wait, or tell the server's owner; nothing was lost",
            ),
            RemoteError::Quota => (Exit::Space, "free space on the server, or ask for more"),
            RemoteError::NotFound => (Exit::NoDrive, "see `sealdrive status` for what there is"),
            RemoteError::Unauthenticated(_) => (
                Exit::WrongKey,
                "this device may have been revoked; `sealdrive recover` enrols it anew",
            ),
            RemoteError::Tampered(_) | RemoteError::WrongServer(_) => (
                Exit::Tampered,
                "someone may be between you and the server, or it is another server; get a new connect string in a \
                 way you trust",
            ),
        };
        Self::new(exit, error.to_string(), advice)
    }
}

impl From<UnlockError> for Failure {
    fn from(error: UnlockError) -> Self {
        let UnlockError::Slot(slot) = &error else {
            return Self::new(
                Exit::Error,
                error.to_string(),
                "try again with more free memory",
            );
        };
        let (exit, advice) = match slot {
            SlotError::Refused => (
                Exit::WrongKey,
                "try again; nothing was changed and attempts are not limited",
            ),
            SlotError::Malformed | SlotError::Foreign | SlotError::Stale => (
                Exit::Tampered,
                "what the server or this disk holds is not what was stored there",
            ),
            SlotError::Passphrase(PassphraseError::Memory) => {
                (Exit::Error, "free some memory: 256 MiB are needed")
            }
            SlotError::Passphrase(PassphraseError::Cost) => {
                (Exit::Tampered, "nothing was tried with it")
            }
            SlotError::Passphrase(PassphraseError::TooLong) | SlotError::TooLong => {
                (Exit::Usage, "use a shorter one")
            }
        };
        Self::new(exit, error.to_string(), advice)
    }
}

impl From<KeystoreError> for Failure {
    fn from(error: KeystoreError) -> Self {
        match error {
            KeystoreError::Unlock(error) => error.into(),
            KeystoreError::Damaged => Self::new(
                Exit::Lost,
                error.to_string(),
                "move it aside and enrol this machine again with `sealdrive recover --kit FILE`",
            ),
        }
    }
}

impl From<AccountError> for Failure {
    fn from(error: AccountError) -> Self {
        const NEW_INVITE: &str = "ask the server's owner for a new one; nothing was kept here";
        let (exit, advice) = match error {
            AccountError::Home(HomeError::Io { path, source })
                if source.kind() == ErrorKind::NotFound =>
            {
                let what = format!("there is no file {}", path.display());
                return Self::new(Exit::Usage, what, "check the path");
            }
            AccountError::Home(error) => return error.into(),
            AccountError::Keystore(error) => return error.into(),
            AccountError::Unlock(error) => return error.into(),
            AccountError::Remote(error) => return error.into(),
            AccountError::Connect(_) => (
                Exit::Usage,
                "copy the whole line that `sealdrive-server invite` printed",
            ),
            AccountError::NoInvite => (
                Exit::Usage,
                "get one from the server's owner (`sealdrive-server invite`)",
            ),
            AccountError::Invite => (Exit::Role, NEW_INVITE),
            AccountError::Kit(_) => (
                Exit::WrongKey,
                "compare it with the printed page; nothing was changed",
            ),
            AccountError::UnknownAccount(_) => (
                Exit::WrongKey,
                "is this the right kit, and the right server?",
            ),
            AccountError::OtherServer => (Exit::Usage, "leave --server out, or use the right kit"),
            AccountError::Tampered(_) => (
                Exit::Tampered,
                "nothing was kept here; do not use this server until this is explained",
            ),
            AccountError::Unfinished(_) => {
                (Exit::Partly, "run `sealdrive init` once more to finish it")
            }
            AccountError::Name(_) => (Exit::Usage, "choose another name"),
            AccountError::Entropy(_) => (Exit::Error, "no keys can be made on this machine"),
        };
        Self::new(exit, error.to_string(), advice)
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        const AGAIN: &str = "what the server has is safe: move the drive's directory in `drives` aside, mount again";
        let (exit, advice) = match error {
            EngineError::Busy => (
                Exit::MountFailed,
                "unmount it there first; see `sealdrive status`",
            ),
            EngineError::NoState(error) => {
                let mut failure = Self::from(error);
                failure.what = format!(
                    "this machine does not know the drive yet, and: {}",
                    failure.what
                );
                return failure;
            }
            EngineError::TakeOver(error) => {
                let mut failure = Self::from(error);
                failure.what = format!("cannot take the drive over: {}", failure.what);
                failure.advice =
                    "nothing was changed; mount without --take-over to work offline".to_owned();
                return failure;
            }
            EngineError::BranchBusy => (Exit::Error, "wait for it to end, then try again"),
            // The line broke while the chain was walked: that says nothing of the server.
            EngineError::Chain(ChainError::Remote(error)) => return error.into(),
            EngineError::Chain(ChainError::History(_)) => (
                Exit::Tampered,
                "the server may have been rolled back or changed; nothing was written to it",
            ),
            EngineError::Format(BadBody::TooOld(_)) => (
                Exit::MountFailed,
                "nothing was changed: copy the files out with the program that wrote it, into a new drive",
            ),
            EngineError::Format(_) => (
                Exit::MountFailed,
                "nothing was changed: mount with the newer `sealdrive` that wrote it",
            ),
            EngineError::Root(BlobError::Unreachable(_)) => {
                (Exit::Unreachable, "try again with the server in reach")
            }
            EngineError::Root(BlobError::Lost) => (
                Exit::Lost,
                "the server's copy needs repair; keep this machine as it is",
            ),
            EngineError::Record(TwinError::Damaged(_))
            | EngineError::Journal(JournalError::Grammar(_))
            | EngineError::Store(StoreError::OutboxDamaged(..)) => (Exit::Repairable, AGAIN),
            EngineError::Store(StoreError::Index(IndexError::Damaged)) => (
                Exit::Repairable,
                "mount again: it is made anew; nothing is lost",
            ),
            EngineError::Store(StoreError::Index(IndexError::Full)) => {
                (Exit::Space, "free some space; nothing is lost")
            }
            EngineError::Io(_, ref source)
            | EngineError::Record(TwinError::Io(_, ref source))
            | EngineError::Journal(JournalError::Io(_, ref source))
            | EngineError::Store(StoreError::Io(_, ref source))
                if is_full(source) =>
            {
                (Exit::Space, "free some space; nothing is lost")
            }
            _ => (Exit::MountFailed, "check the local disk; nothing was sent"),
        };
        Self::new(exit, error.to_string(), advice)
    }
}

impl From<BranchError> for Failure {
    fn from(error: BranchError) -> Self {
        let (exit, advice) = match error {
            BranchError::Open(error) => return error.into(),
            BranchError::Blob(BlobError::Unreachable(_)) => (
                Exit::Unreachable,
                "it shares this with the server: try again with that in reach; the conflict is as it was",
            ),
            BranchError::Blob(_) | BranchError::Errno(_) => (
                Exit::Lost,
                "keep the conflict, and what was written out so far",
            ),
            BranchError::Target(_, ref source) if is_full(source) => (
                Exit::Space,
                "free some space and export again into another directory",
            ),
            BranchError::Target(..) => (Exit::Error, "export again into another directory"),
            BranchError::Occupied(_) => (
                Exit::Usage,
                "name a directory that is empty or not there yet",
            ),
        };
        Self::new(exit, error.to_string(), advice)
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        match error {
            MountError::Attach { path, error } => Self::mount_point(&path, &error),
            MountError::Session(_) => Self::new(
                Exit::MountFailed,
                error.to_string(),
                "is the kernel's fuse module of this decade?",
            ),
            MountError::Silent(_) => Self::new(
                Exit::MountFailed,
                error.to_string(),
                "try again with SEALDRIVE_LOG=info; nothing was lost",
            ),
            MountError::Close(_) => Self::new(
                Exit::Lost,
                error.to_string(),
                "what was fsynced is in the journal; check the local disk, then mount again",
            ),
        }
    }
}

impl Failure {
    /// A mount point that cannot be used.
    pub(super) fn mount_point(path: &std::path::Path, error: &AttachError) -> Self {
        let advice = match error {
            AttachError::NoDevice(_) => "load the fuse module, or install fuse3",
            AttachError::MountPoint(error) if error.kind() == ErrorKind::NotFound => {
                "make the directory first"
            }
            AttachError::MountPoint(_) => "choose a directory of your own",
            AttachError::Busy => "unmount it first with `sealdrive umount`",
            AttachError::Refused(_) | AttachError::Fusermount(_) => {
                "check /etc/fuse.conf and the options"
            }
        };
        Self::new(
            Exit::MountFailed,
            format!("{}: {error}", path.display()),
            advice,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealdrive_core::history::HistoryError;

    #[test]
    fn a_line_that_breaks_while_the_chain_is_walked_is_no_tampering() {
        let broke = ChainError::Remote(RemoteError::Unreachable("no answer in time".into()));
        let failure = Failure::from(EngineError::Chain(broke));
        assert_eq!(failure.exit, Exit::Unreachable);
        let forked = ChainError::History(HistoryError::Rollback);
        assert_eq!(
            Failure::from(EngineError::Chain(forked)).exit,
            Exit::Tampered
        );
    }

    #[test]
    fn a_drive_of_another_format_is_refused_with_what_to_do() {
        for (body, number, advice) in [
            (BadBody::TooOld(1), "format 1", "copy the files out"),
            (BadBody::TooNew(9), "format 9", "newer"),
        ] {
            let failure = Failure::from(EngineError::Format(body));
            assert_eq!(failure.exit, Exit::MountFailed);
            assert!(failure.what.contains(number), "{}", failure.what);
            assert!(failure.advice.contains(advice), "{}", failure.advice);
        }
    }
}
