//! `umount` that waits: takes the mount away, then waits until its daemon has sent everything to the server.
//! Called by `sealdrive umount` and, through `/sbin/umount.fuse.sealdrive`, by the plain umount(8).
//!
//! Invariant: the busy check comes first and changes nothing; after it the mount is gone whatever happens, and the
//! only open question is how much the server still lacks, which the result answers. Every wait ends.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::limits::UMOUNT_STALL;
use crate::mount::attach::{Detach, detach};
use crate::mount::place::{self, Pulse};
use crate::mount::record::{Phase, Record};
use crate::mount::{record, table, utab::Utab};

/// How often progress is looked at while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest wait for a mount to say whether its daemon is alive.
const PULSE_LIMIT: Duration = Duration::from_secs(2);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The mount point.
    pub mountpoint: PathBuf,
    /// Detach at once even if busy (`umount -l`); then there is nothing to wait for yet.
    pub lazy: bool,
    /// How long to wait for the server, `Some(0)`: not at all. `None`: what the mount was told (`umount_wait`), else
    /// as long as the server takes something.
    pub wait: Option<Duration>,
    /// Say nothing on success.
    pub quiet: bool,
}

/// How it went, once the mount is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server has everything.
    Drained,
    /// The mount is gone, the server still lacks this many bytes; they are safe on this machine.
    Pending {
        /// Bytes not yet acknowledged.
        bytes: u64,
    },
    /// The mount is gone. Its daemon had died before: what the server lacks is in the journal, and nobody can be asked
    /// how much that is.
    Crashed,
    /// The name is gone. There is nothing to wait for: the drive is still in use elsewhere (lazy, or bound to a second
    /// place), or its daemon is another user's.
    Unknown,
}

impl Outcome {
    /// Exit code of the command: 0 done, 23 data not yet on the server.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Drained | Self::Unknown => 0,
            Self::Pending { .. } | Self::Crashed => 23,
        }
    }
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum UmountError {
    /// No Sealdrive mount at that place.
    #[error("{0}: not a mounted drive")]
    NotMounted(PathBuf),
    /// Files below it are open.
    #[error("{0}: target is busy")]
    Busy(PathBuf),
    /// The kernel, or the mount table, said something else.
    #[error("{path}: {error}")]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// What it said.
        #[source]
        error: io::Error,
    },
    /// The helper's arguments were not understood.
    #[error("usage: umount.fuse.sealdrive MOUNTPOINT [-flnrv]")]
    Usage,
}

impl UmountError {
    /// Exit code of the command (16: not mounted, 2: usage, 1: anything else).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotMounted(_) => 16,
            Self::Usage => 2,
            Self::Busy(_) | Self::Refused { .. } => 1,
        }
    }
}

impl Request {
    /// Parses what umount(8) passes to its helper: `MOUNTPOINT [-flnrv] [-t TYPE] [-N NS]`.
    pub fn from_helper(args: impl IntoIterator<Item = OsString>) -> Result<Self, UmountError> {
        let mut request = Self {
            mountpoint: PathBuf::new(),
            lazy: false,
            wait: None,
            quiet: false,
        };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.to_str() {
                Some("-t" | "-N") => drop(args.next().ok_or(UmountError::Usage)?),
                Some(flags) if flags.len() > 1 && flags.starts_with('-') => {
                    for flag in flags.chars().skip(1) {
                        match flag {
                            'l' => request.lazy = true,
                            'f' | 'n' | 'r' | 'v' => {}
                            _ => return Err(UmountError::Usage),
                        }
                    }
                }
                _ if request.mountpoint.as_os_str().is_empty() => request.mountpoint = arg.into(),
                _ => return Err(UmountError::Usage),
            }
        }
        if request.mountpoint.as_os_str().is_empty() {
            Err(UmountError::Usage)
        } else {
            Ok(request)
        }
    }
}

/// Unmounts and waits. `progress` is told the bytes still to go, a few times a second.
pub fn umount(request: &Request, progress: &mut dyn FnMut(u64)) -> Result<Outcome, UmountError> {
    let refused = |error| UmountError::Refused {
        path: request.mountpoint.clone(),
        error,
    };
    let path = table::absolute(&request.mountpoint).map_err(refused)?;
    let row = table::at(&path)
        .map_err(refused)?
        .filter(|row| row.fs_type == table::FS_TYPE)
        .ok_or_else(|| UmountError::NotMounted(path.clone()))?;
    let directory = record::directory();
    let daemon = Record::find(&directory, &row.device).and_then(Daemon::hold);
    let crashed = daemon.is_none() && place::pulse(&path, PULSE_LIMIT) == Pulse::Dead;

    let how = if request.lazy {
        Detach::Lazily
    } else {
        Detach::Now
    };
    detach(&path, how).map_err(|error| match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::BUSY.raw_os_error() => {
            UmountError::Busy(path.clone())
        }
        _ => refused(error),
    })?;
    place::clear_dead(&path);
    if rustix::process::geteuid().is_root() {
        // The daemon removes the row as well; a dead one cannot. A row too many only makes umount(8) slower.
        let _ = Utab::system().remove(&path);
    }
    match daemon {
        // Another mount of the same drive (a bind mount, a lazy detach with open files) keeps the daemon serving.
        Some(daemon) if !request.lazy && !still_mounted(&row.device) => {
            Ok(daemon.wait(&directory, (request.wait, UMOUNT_STALL), progress))
        }
        None if crashed && !request.lazy => Ok(Outcome::Crashed),
        Some(_) | None => Ok(Outcome::Unknown),
    }
}

fn still_mounted(device: &str) -> bool {
    table::rows().is_ok_and(|rows| rows.iter().any(|row| row.device == device))
}

/// A live daemon, held by descriptor so that its process id cannot come to mean another process.
struct Daemon {
    record: Record,
    process: rustix::fd::OwnedFd,
}

impl Daemon {
    fn hold(record: Record) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(record.pid).ok()?)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Self { record, process })
    }

    /// Until it has drained or gone, or the limit is over; without one, until the server has taken nothing for as long
    /// as `stall`.
    fn wait(
        mut self,
        directory: &Path,
        (limit, stall): (Option<Duration>, Duration),
        progress: &mut dyn FnMut(u64),
    ) -> Outcome {
        let limit = limit.or(self.record.umount_wait_ms.map(Duration::from_millis));
        let end = limit.map(|limit| crate::clock::now() + limit);
        let mut moved = (u64::MAX, crate::clock::now());
        loop {
            // Read before asking whether it has gone: its last word is written before it goes.
            let gone = self.gone_within(LOOK_EVERY.min(left(end)));
            if let Some(record) = self.record.again(directory) {
                self.record = record;
            }
            if gone
                || matches!(
                    self.record.phase,
                    Phase::Drained | Phase::Pending | Phase::Failed
                )
            {
                return self.last_word(directory);
            }
            progress(self.record.pending_bytes);
            if moved.0 != self.record.pending_bytes {
                moved = (self.record.pending_bytes, crate::clock::now());
            }
            let stalled = limit.is_none() && moved.1.elapsed() >= stall;
            if stalled || left(end).is_zero() {
                return Outcome::Pending {
                    bytes: self.record.pending_bytes,
                };
            }
        }
    }

    fn last_word(&self, directory: &Path) -> Outcome {
        self.record.remove(directory);
        match self.record.phase {
            Phase::Drained => Outcome::Drained,
            // Died without a last word: what it had is in its journal, how much the server lacks is not known.
            Phase::Mounted | Phase::Draining | Phase::Pending | Phase::Failed => Outcome::Pending {
                bytes: self.record.pending_bytes,
            },
        }
    }

    fn gone_within(&self, time: Duration) -> bool {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&self.process, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&timeout)), Ok(1..))
    }
}

fn left(end: Option<Instant>) -> Duration {
    end.map_or(LOOK_EVERY, |end| {
        end.saturating_duration_since(crate::clock::now())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_arguments_are_those_of_umount() {
        let parse = |words: &[&str]| Request::from_helper(words.iter().map(OsString::from));
        let request = parse(&["/mnt/a", "-l", "-v"]).unwrap();
        assert!(request.lazy);
        assert_eq!(request.mountpoint, Path::new("/mnt/a"));
        assert!(!parse(&["/mnt/a", "-t", "fuse.sealdrive"]).unwrap().lazy);
        assert!(matches!(parse(&[]), Err(UmountError::Usage)));
        assert!(matches!(parse(&["/a", "/b"]), Err(UmountError::Usage)));
        assert!(matches!(parse(&["/a", "-q"]), Err(UmountError::Usage)));
    }

    #[test]
    fn what_is_not_ours_is_refused_untouched() {
        let request = Request {
            mountpoint: "/proc".into(),
            lazy: true,
            wait: None,
            quiet: true,
        };
        let error = umount(&request, &mut |_| {}).unwrap_err();
        assert!(matches!(error, UmountError::NotMounted(_)), "{error}");
        assert_eq!(error.exit_code(), 16);
        assert!(Path::new("/proc/self").exists());
    }

    /// A daemon that dies while draining leaves data on this machine only: that must be said, not swallowed.
    #[test]
    fn a_daemon_that_dies_without_a_last_word_counts_as_pending() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("0.3")
            .spawn()
            .unwrap();
        let record = Record {
            id: "test".into(),
            pid: child.id(),
            device: "0:9999".into(),
            mountpoint: "/x".into(),
            phase: Phase::Draining,
            pending_bytes: 5,
            umount_wait_ms: None,
        };
        record.write(dir.path()).unwrap();
        let daemon = Daemon::hold(record).unwrap();
        let mut seen = 0;
        let outcome = daemon.wait(dir.path(), (None, UMOUNT_STALL), &mut |bytes| seen = bytes);
        child.wait().unwrap();
        assert_eq!((outcome, seen), (Outcome::Pending { bytes: 5 }, 5));
        assert_eq!(outcome.exit_code(), 23);
    }

    #[test]
    fn waiting_ends_at_its_limit_and_at_the_last_word() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record {
            id: "test".into(),
            pid: std::process::id(),
            device: "0:9998".into(),
            mountpoint: "/x".into(),
            phase: Phase::Draining,
            pending_bytes: 3,
            umount_wait_ms: None,
        };
        record.write(dir.path()).unwrap();
        let daemon = Daemon::hold(record.clone()).unwrap();
        assert_eq!(
            daemon.wait(
                dir.path(),
                (Some(Duration::ZERO), UMOUNT_STALL),
                &mut |_| {}
            ),
            Outcome::Pending { bytes: 3 }
        );
        record.umount_wait_ms = Some(0);
        let daemon = Daemon::hold(record.clone()).unwrap();
        assert_eq!(
            daemon.wait(dir.path(), (None, UMOUNT_STALL), &mut |_| {}),
            Outcome::Pending { bytes: 3 },
            "the mount's own limit counts where the caller names none"
        );
        record.umount_wait_ms = None;
        record.write(dir.path()).unwrap();
        let daemon = Daemon::hold(record.clone()).unwrap();
        assert_eq!(
            daemon.wait(dir.path(), (None, LOOK_EVERY * 2), &mut |_| {}),
            Outcome::Pending { bytes: 3 },
            "without any limit it ends when the server takes nothing any more"
        );
        record.phase = Phase::Drained;
        record.write(dir.path()).unwrap();
        let daemon = Daemon::hold(record.clone()).unwrap();
        let outcome = daemon.wait(dir.path(), (None, UMOUNT_STALL), &mut |_| {});
        assert_eq!(outcome, Outcome::Drained);
        assert_eq!(record.again(dir.path()), None);
    }
}
