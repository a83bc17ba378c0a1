//! Child processes that cannot outlive their guard, and commands that cannot hang.
//!
//! Invariant: a `Daemon` is killed when dropped. What it printed is kept, for messages and for the canary search.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    /// What was run, for messages.
    pub command: String,
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// Panics with everything it said unless it ended with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(
            self.code == 0,
            "{} ended with {}:\n{}{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Panics unless it ended with `code`.
    #[track_caller]
    pub fn code_is(self, code: i32) -> Self {
        assert!(
            self.code == code,
            "{} ended with {} instead of {code}:\n{}{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }
}

/// Runs a command to its end; panics if it takes longer than `patience`.
#[track_caller]
pub fn run(command: &mut Command, patience: Duration) -> Finished {
    let text = format!("{command:?}");
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    let readers = (drain(child.stdout.take()), drain(child.stderr.take()));
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > patience {
            drop(child.kill());
            panic!("{text}: not done after {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let took = started.elapsed();
    let (stdout, stderr) = (readers.0.join().unwrap(), readers.1.join().unwrap());
    Finished {
        command: text,
        code: code_of(status),
        stdout,
        stderr,
        took,
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            drop(pipe.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn code_of(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A process that runs until it is told to end.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it with both outputs in `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            child,
            log: log.to_owned(),
        }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Has it ended by itself?
    pub fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().map(code_of)
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        let _ = kill_process(Pid::from_raw(id).unwrap(), signal);
    }

    /// SIGTERM, and waits for the end; its exit code.
    #[track_caller]
    pub fn stop(&mut self, patience: Duration) -> i32 {
        self.signal(Signal::TERM);
        let end = Instant::now() + patience;
        loop {
            if let Some(code) = self.ended() {
                return code;
            }
            assert!(
                Instant::now() < end,
                "did not end after SIGTERM:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Largest resident memory so far, bytes (VmHWM).
    pub fn peak_memory(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
            << 10
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_dies_with_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(Command::new("sleep").arg("1000"), &dir.path().join("log"));
        let place = format!("/proc/{}", daemon.id());
        assert!(Path::new(&place).exists());
        drop(daemon);
        assert!(!Path::new(&place).exists());
    }

    #[test]
    #[should_panic(expected = "not done after")]
    fn a_hanging_command_is_a_failure() {
        run(
            Command::new("sleep").arg("1000"),
            Duration::from_millis(100),
        );
    }
}
