//! `sealdrive mount` without `--foreground`: start the same program again as a daemon and return when it serves, or
//! with its exit code when it does not.
//!
//! Invariant: the caller learns the outcome; a daemon that is up no longer holds the caller's terminal or pipes.
//! Called by the command line (parent) and by the mount verb in the child.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};

/// Set in the child: its standard output is a pipe to a parent that waits for [`READY`].
const ENVIRONMENT: &str = "SEALDRIVE_READY_ON_STDOUT";
/// The line that says the mount is up.
const READY: &str = "ready";

/// How a start ended.
#[derive(Debug)]
pub enum Started {
    /// The mount is up; the daemon's process id.
    Up(u32),
    /// The daemon ended before it was up.
    Ended(ExitStatus),
}

/// Starts this program again with `args` and waits until it is up or gone.
pub fn start(args: impl IntoIterator<Item = OsString>) -> io::Result<Started> {
    start_program(std::env::current_exe()?.into_os_string(), args)
}

fn start_program(
    program: OsString,
    args: impl IntoIterator<Item = OsString>,
) -> io::Result<Started> {
    let mut child = Command::new(program)
        .args(args)
        .env(ENVIRONMENT, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    let Some(stdout) = child.stdout.take() else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    for line in BufReader::new(stdout).lines() {
        if line? == READY {
            return Ok(Started::Up(pid));
        }
    }
    Ok(Started::Ended(child.wait()?))
}

/// In the child, first thing: leave the caller's session, so that its terminal's hangup does not reach us.
pub fn detach_from_terminal() {
    if std::env::var_os(ENVIRONMENT).is_some() {
        // Fails only for a process group leader, which a child just started is not.
        let _ = rustix::process::setsid();
        let _ = std::env::set_current_dir("/");
    }
}

/// In the child, when requests are served: tell the parent and let go of its output. Does nothing in the foreground.
pub fn announce_ready() {
    if std::env::var_os(ENVIRONMENT).is_none() {
        return;
    }
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_learns_of_success_and_of_failure() {
        let run = |script: &str| start_program("sh".into(), ["-c".into(), script.into()]).unwrap();
        assert!(matches!(
            run("echo noise; echo ready; sleep 0.1"),
            Started::Up(_)
        ));
        let Started::Ended(status) = run("echo noise; exit 12") else {
            panic!("it ended")
        };
        assert_eq!(status.code(), Some(12));
    }
}
