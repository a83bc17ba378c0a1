//! What the service manager is told about a mount (sd_notify(3)): up, going away, how far, and that it is still alive.
//!
//! Invariant: `READY=1` only after the mount has answered, `WATCHDOG=1` only after it has answered again: the question
//! goes through the kernel and comes back from the request loops, so a daemon that hangs is not called alive. While
//! the drive drains, longer time is asked for only as long as the server still takes something. Without a service
//! manager nothing is sent. Called by the mount wiring.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::table;
use crate::clock;

/// Longest pause between two signs of life while draining, and between two lines of status.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// Time asked for at each sign of progress while draining; several times the pause between them.
const EXTENSION: Duration = Duration::from_secs(30);
/// Under a service manager a drain ends when the server took nothing for this long: the machine may be going down,
/// and what is left is safe here. Room for one object over a very slow line.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// Says one thing. Nothing depends on whether it is heard.
fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

/// The mount answers.
pub(super) fn ready(mountpoint: &Path) {
    let status = format!("mounted at {}", mountpoint.display());
    say(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The mount is about to go, or gone.
pub(super) fn stopping(status: &str) {
    say(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Feeds the manager's watchdog until dropped, if it has one.
pub(super) struct Watchdog {
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Asks the mount three times in the manager's interval.
    pub(super) fn start(mountpoint: &Path, device: &str) -> Self {
        let (end, ended) = mpsc::channel::<()>();
        let asker = sd_notify::watchdog_enabled().map(|interval| {
            let (path, device) = (mountpoint.to_owned(), device.to_owned());
            thread::Builder::new()
                .name("watchdog".to_owned())
                .spawn(move || {
                    while ended.recv_timeout(interval / 3) == Err(mpsc::RecvTimeoutError::Timeout) {
                        if answers(&path, &device) {
                            say(&[NotifyState::Watchdog]);
                        }
                    }
                })
        });
        let thread = asker.and_then(|spawned| {
            spawned
                .inspect_err(|error| tracing::error!(%error, "the watchdog is not fed"))
                .ok()
        });
        Self {
            end: Some(end),
            thread,
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // The thread may sit in a question to a mount that hangs: it is not waited for.
        drop((self.end.take(), self.thread.take()));
    }
}

/// Whether our mount answers; waits as long as it takes, so that silence is silence.
fn answers(path: &PathBuf, device: &str) -> bool {
    let ours = table::at(path)
        .ok()
        .flatten()
        .is_some_and(|row| row.device == device);
    // Covered by another mount, or just taken away: it cannot be asked by name, and that is no fault of ours.
    !ours || rustix::fs::statfs(path).is_ok()
}

/// How a drain goes on, told to the manager.
pub(super) struct Draining {
    /// Whether somebody listens: then a drain that stands still ends.
    managed: bool,
    watched: bool,
    said: Option<Instant>,
    least: u64,
    moved: Instant,
}

impl Draining {
    /// The mount is gone and sending goes on.
    pub(super) fn start() -> Self {
        Self {
            managed: std::env::var_os("NOTIFY_SOCKET").is_some(),
            watched: sd_notify::watchdog_enabled().is_some(),
            said: None,
            least: u64::MAX,
            moved: clock::now(),
        }
    }

    /// So much is still to send. Answers whether to go on.
    pub(super) fn step(&mut self, pending: u64) -> bool {
        if !self.managed {
            return true;
        }
        let now = clock::now();
        let moved = pending < self.least;
        if moved {
            (self.least, self.moved) = (pending, now);
        }
        if moved
            || self
                .said
                .is_none_or(|at| now.duration_since(at) >= STATUS_EVERY)
        {
            self.said = Some(now);
            let status = format!("unmounted; {pending} bytes to send");
            let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
            let mut states = vec![NotifyState::Status(&status)];
            if moved {
                states.push(NotifyState::ExtendTimeoutUsec(extension));
            }
            if self.watched {
                // Whoever calls this is the loop that drains: it is alive.
                states.push(NotifyState::Watchdog);
            }
            say(&states);
        }
        now.duration_since(self.moved) < STALL_LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_that_stands_still_ends_only_under_a_manager() {
        let mut draining = Draining::start();
        draining.managed = true;
        assert!(draining.step(10) && draining.step(10));
        let Some(long_ago) = clock::now().checked_sub(STALL_LIMIT) else {
            return;
        };
        draining.moved = long_ago;
        assert!(!draining.step(10), "nothing moved for too long");
        assert!(draining.step(9), "something moved");
        draining.moved = long_ago;
        draining.managed = false;
        assert!(draining.step(9), "nobody waits for us");
    }

    #[test]
    fn what_covers_the_mount_is_not_asked() {
        assert!(answers(&"/proc".into(), "0:0"));
        let row = table::at(Path::new("/proc")).unwrap().unwrap();
        assert!(answers(&"/proc".into(), &row.device));
    }
}
