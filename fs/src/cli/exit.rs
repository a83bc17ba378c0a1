//! Exit codes and the one table that turns every error of the program into a code and a line for people.
//!
//! Invariant: the numbers are a stable interface (scripts test them); codes are only ever added.
//! Called by every command through `?`, and by `cli::run` which prints the line.

use std::fmt;
use std::io::ErrorKind;

use serde::Serialize;

use sealdrive_core::passphrase::PassphraseError;
use sealdrive_core::slot::SlotError;

use crate::account::AccountError;
use crate::control::Refusal;
use crate::home::HomeError;
use crate::keystore::KeystoreError;
use crate::remote::RemoteError;
use crate::umount::UmountError;
use crate::unlock::UnlockError;

/// What a finished command says to the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something failed that has no code of its own.
    Error = 1,
    /// The command line was wrong.
    Usage = 2,
    /// Part of it was done; the output says which part was not.
    Partly = 3,
    /// No such drive.
    NoDrive = 10,
    /// Another device holds the right to write.
    LeaseElsewhere = 11,
    /// Wrong passphrase or key.
    WrongKey = 12,
    /// The role of this device does not allow it.
    Role = 13,
    /// Quota reached or disk full.
    Space = 14,
    /// The server cannot be reached.
    Unreachable = 15,
    /// Not mounted.
    NotMounted = 16,
    /// Damage that can be repaired.
    Repairable = 20,
    /// Damage by which data was lost.
    Lost = 21,
    /// The server shows an older or a changed state.
    Tampered = 22,
    /// Data is not yet on the server.
    Pending = 23,
    /// The newest restore point is older than `--max-age`.
    TooOld = 24,
    /// The file system could not be mounted.
    MountFailed = 30,
    /// Interrupted by the user.
    Interrupted = 130,
}

impl Exit {
    /// The number the shell sees.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The code with this number, for answers that came over the control socket.
    pub fn from_code(code: u8) -> Self {
        Self::ALL
            .into_iter()
            .find(|exit| exit.code() == code)
            .unwrap_or(Self::Error)
    }

    const ALL: [Self; 18] = [
        Self::Ok,
        Self::Error,
        Self::Usage,
        Self::Partly,
        Self::NoDrive,
        Self::LeaseElsewhere,
        Self::WrongKey,
        Self::Role,
        Self::Space,
        Self::Unreachable,
        Self::NotMounted,
        Self::Repairable,
        Self::Lost,
        Self::Tampered,
        Self::Pending,
        Self::TooOld,
        Self::MountFailed,
        Self::Interrupted,
    ];
}

/// A command that did not do what was asked: one line for people, one code for scripts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub advice: String,
}

impl Failure {
    /// A failure: what is wrong, and what to do.
    pub fn new(exit: Exit, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            advice: advice.into(),
        }
    }

    /// The same as one JSON object.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            error: &'a str,
            advice: &'a str,
            exit: u8,
        }
        let line = Line {
            error: &self.what,
            advice: &self.advice,
            exit: self.exit.code(),
        };
        serde_json::to_string(&line).expect("two strings and a number always serialise")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line whatever the parts hold: a path may contain a line break.
        let clean = |text: &str| text.replace(['\n', '\r'], " ");
        write!(f, "{}", clean(&self.what))?;
        if !self.advice.is_empty() {
            write!(f, "; {}", clean(&self.advice))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

// The table: every error that reaches a command, its code, and what to do about it.

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
            RemoteError::Quota => (Exit::Space, "free space on the server, or ask for more"),
            RemoteError::NotFound => (Exit::NoDrive, "see `sealdrive status` for what there is"),
            RemoteError::Unauthenticated(_) => (
                Exit::WrongKey,
                "this device may have been revoked; `sealdrive recover` enrols it anew",
            ),
            RemoteError::Tampered(_) => (
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        assert_eq!(
            codes,
            [
                0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23, 24, 30, 130
            ]
        );
        for exit in Exit::ALL {
            assert_eq!(Exit::from_code(exit.code()), exit);
        }
        assert_eq!(Exit::from_code(99), Exit::Error);
    }

    #[test]
    fn a_failure_is_one_line_even_for_a_hostile_path() {
        let failure = Failure::new(Exit::Usage, "no directory a\nb", "make it");
        assert_eq!(failure.to_string(), "no directory a b; make it");
        assert_eq!(
            failure.to_json(),
            r#"{"error":"no directory a\nb","advice":"make it","exit":2}"#
        );
    }
}
