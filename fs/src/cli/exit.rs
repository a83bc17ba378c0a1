//! Exit codes, and what a command says that did not do what was asked.
//!
//! Invariant: the numbers are a stable interface (scripts test them); codes are only ever added.
//! Called by every command through `?`, and by `cli::run` which prints the line.

use std::fmt;

use serde::Serialize;

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
