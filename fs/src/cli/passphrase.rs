//! Where a passphrase comes from: a file, a command, an open descriptor, a service credential, or the terminal.
//!
//! Invariant: never from an argument (argv is readable by every process) and never written anywhere.
//! Called by the commands that need one.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

use super::exit::{Exit, Failure};

/// Longest passphrase read, bytes: more is a file named by mistake.
const MAX_PASSPHRASE: u64 = 4096;
/// Shortest passphrase accepted for a new account, characters.
const MIN_NEW: usize = 8;
/// Name of the credential looked for in systemd's `$CREDENTIALS_DIRECTORY`.
const CREDENTIAL: &str = "sealdrive-passphrase";

/// A passphrase as typed; the core normalises it.
pub(super) type Passphrase = Zeroizing<String>;

/// Where to read from, decided once from the environment.
enum Source {
    File(PathBuf),
    Command(OsString),
    Descriptor(String),
    Terminal,
}

/// The passphrase of an existing account.
pub(super) fn existing() -> Result<Passphrase, Failure> {
    read(source(&|name| std::env::var_os(name)), "Passphrase: ")
}

/// A passphrase for a new account: typed twice at a terminal, and not trivially short.
pub(super) fn fresh() -> Result<Passphrase, Failure> {
    let source = source(&|name| std::env::var_os(name));
    let twice = matches!(source, Source::Terminal);
    let first = read(source, "New passphrase: ")?;
    if first.chars().count() < MIN_NEW {
        return Err(Failure::new(
            Exit::Usage,
            format!("the passphrase has fewer than {MIN_NEW} characters"),
            "choose a longer one; four or five unrelated words are good",
        ));
    }
    if twice && read(Source::Terminal, "Same passphrase again: ")? != first {
        return Err(Failure::new(
            Exit::Usage,
            "the two passphrases differ",
            "run the command again",
        ));
    }
    Ok(first)
}

fn source(env: &dyn Fn(&str) -> Option<OsString>) -> Source {
    let set = |name| env(name).filter(|value| !value.is_empty());
    if let Some(fd) = set("SEALDRIVE_PASSWORD_FD") {
        return Source::Descriptor(fd.to_string_lossy().into_owned());
    }
    if let Some(path) = set("SEALDRIVE_PASSWORD_FILE") {
        return Source::File(path.into());
    }
    if let Some(command) = set("SEALDRIVE_PASSWORD_COMMAND") {
        return Source::Command(command);
    }
    if let Some(dir) = set("CREDENTIALS_DIRECTORY") {
        let path = PathBuf::from(dir).join(CREDENTIAL);
        if path.exists() {
            return Source::File(path);
        }
    }
    Source::Terminal
}

fn read(source: Source, prompt: &str) -> Result<Passphrase, Failure> {
    let failed = |what: String| {
        Failure::new(
            Exit::Usage,
            what,
            "see `sealdrive help` for the ways to give a passphrase",
        )
    };
    match source {
        Source::File(path) => {
            let file = std::fs::File::open(&path)
                .map_err(|error| failed(format!("cannot read the passphrase file {}: {error}", path.display())))?;
            line(file).map_err(|error| failed(format!("passphrase file {}: {error}", path.display())))
        }
        Source::Descriptor(number) => {
            let fd: u32 =
                number.parse().map_err(|_| failed(format!("SEALDRIVE_PASSWORD_FD is not a number: {number}")))?;
            // Opened through the kernel's own directory: taking ownership of a raw descriptor would need unsafe code.
            let file = std::fs::File::open(format!("/dev/fd/{fd}"))
                .map_err(|error| failed(format!("cannot read descriptor {fd}: {error}")))?;
            line(file).map_err(|error| failed(format!("descriptor {fd}: {error}")))
        }
        Source::Command(command) => {
            let mut child = Command::new("/bin/sh")
                .arg("-c")
                .arg(&command)
                .stdin(Stdio::inherit())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|error| failed(format!("cannot run the passphrase command: {error}")))?;
            let out = child.stdout.take().expect("stdout was asked for as a pipe");
            let passphrase = line(out).map_err(|error| failed(format!("passphrase command: {error}")));
            let status = child.wait().map_err(|error| failed(format!("passphrase command: {error}")))?;
            if !status.success() {
                return Err(failed(format!("the passphrase command failed ({status})")));
            }
            passphrase
        }
        Source::Terminal => rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|_| {
            Failure::new(
                Exit::Usage,
                "a passphrase is needed and there is no terminal to ask at",
                "set SEALDRIVE_PASSWORD_FILE, SEALDRIVE_PASSWORD_COMMAND or SEALDRIVE_PASSWORD_FD",
            )
        }),
    }
}

/// The first line, without its end. Empty, over-long and non-UTF-8 input is refused rather than guessed at.
fn line(input: impl Read) -> std::io::Result<Passphrase> {
    let wrong = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut bytes = Zeroizing::new(Vec::with_capacity(256));
    input.take(MAX_PASSPHRASE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_PASSPHRASE {
        return Err(wrong("longer than 4096 bytes"));
    }
    let end = bytes
        .iter()
        .position(|&b| b == b'\n')
        .unwrap_or(bytes.len());
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| wrong("not UTF-8 text"))?;
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(wrong("empty"));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_only_and_refusals() {
        assert_eq!(
            line(&b"correct horse\r\nrest"[..])
                .expect("a line")
                .as_str(),
            "correct horse"
        );
        assert_eq!(
            line(&b"no newline"[..]).expect("a line").as_str(),
            "no newline"
        );
        assert!(line(&b"\nsecond"[..]).is_err());
        assert!(line(&b"\xff\xfe"[..]).is_err());
        assert!(line(&vec![b'x'; 5000][..]).is_err());
    }

    #[test]
    fn a_descriptor_wins_over_a_file_and_empty_settings_count_as_unset() {
        let env = |pairs: &'static [(&'static str, &'static str)]| {
            move |name: &str| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| OsString::from(value))
            }
        };
        let both = env(&[
            ("SEALDRIVE_PASSWORD_FILE", "/f"),
            ("SEALDRIVE_PASSWORD_FD", "7"),
        ]);
        assert!(matches!(source(&both), Source::Descriptor(fd) if fd == "7"));
        assert!(matches!(
            source(&env(&[("SEALDRIVE_PASSWORD_FILE", "")])),
            Source::Terminal
        ));
        let command = env(&[("SEALDRIVE_PASSWORD_COMMAND", "pass show x")]);
        assert!(matches!(source(&command), Source::Command(_)));
    }
}
