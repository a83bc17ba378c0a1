//! The control socket of a mounted drive: one JSON object per line, so that `socat` can speak it too.
//!
//! Invariant: the socket lies in a directory only its owner may enter; a request can ask for state or for waiting,
//! never for keys or content. Each asker has a thread of its own: what it asks for may wait for the loop threads
//! (calling in the kernel's dirty pages), which wait for nobody here.
//! The mount's wiring serves it; `status`, `sync` and `umount` ask.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::{Below, Fence};

/// Longest line either side reads, bytes.
const MAX_LINE: u64 = 256 << 10;
/// Askers served at once; more are refused rather than queued.
const MAX_ASKERS: usize = 32;
/// How long the daemon waits for a request after a connection, and a client for the connection itself.
const REQUEST_WAIT: Duration = Duration::from_secs(10);

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How the drive stands; with an inode number also how that file, or all below that directory, stands.
    Status {
        /// Inode number inside the drive, as stat(2) shows it.
        #[serde(default)]
        ino: Option<u64>,
        /// Ask the server first, if it has not answered for this long.
        #[serde(default)]
        heard_within_ms: Option<u64>,
        /// Have the kernel hand over its dirty pages first, so that the answer covers what was written before it.
        #[serde(default)]
        flush: bool,
    },
    /// Wait until everything written so far is on the server.
    Sync {
        /// Give up after this long.
        #[serde(default)]
        timeout_ms: Option<u64>,
    },
    /// If the drive is unmounted and only still being sent: stop, so that it can be mounted again. Nothing is lost.
    Leave,
}

/// What is answered: any number of `progress`, then exactly one of the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Still at work.
    Progress(Progress),
    /// The state asked for.
    Status(Box<Status>),
    /// Everything written before the request is on the server.
    Done(Progress),
    /// It was not done.
    Failed(Refusal),
}

/// What is left to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Bytes not yet acknowledged by the server: dirty in memory, and sealed in the outbox.
    pub pending_bytes: u64,
    /// Sealed objects not yet acknowledged.
    pub pending_objects: u64,
    /// Object bytes sent and acknowledged since the mount.
    pub sent_bytes: u64,
    /// Whether the server is connected now.
    pub online: bool,
}

/// Why it was not done, in the terms of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Exit code of `cli::exit`.
    pub exit: u8,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: String,
}

/// How a drive stands. Fields are only ever added.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Name of the drive on this account.
    pub drive: String,
    /// Drive id, hex.
    pub drive_id: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Whether it is still mounted; if not, what is left is being sent in the background.
    pub mounted: bool,
    /// Process id of the mount.
    pub pid: u32,
    /// Address of the server.
    pub server: String,
    /// Whether the server is connected now.
    pub online: bool,
    /// Whether this mount may write; if not, `notes` says why.
    pub writable: bool,
    /// The weakest state of anything in the drive: `dirty`, `journaled`, `sent` or `committed`.
    pub state: String,
    /// What is left to send.
    pub pending: Progress,
    /// Dirty bytes in memory.
    pub dirty_bytes: u64,
    /// Bytes of the local journal.
    pub journal_bytes: u64,
    /// Bytes of sealed objects waiting for the server.
    pub outbox_bytes: u64,
    /// Bytes of the local cache.
    pub cache_bytes: u64,
    /// Number of the newest restore point on the server.
    pub commit_seq: u64,
    /// When the server accepted it (our clock, ms since 1970); none if there is none yet.
    pub commit_ms: Option<u64>,
    /// Writer lease epoch, 0 when none is held.
    pub lease_epoch: u64,
    /// The file asked about, or the weakest of all below the directory asked about: `dirty`, `journaled`, `sent` or
    /// `committed`; `unknown` if it could not be told, and `notes` says why.
    pub file_state: Option<String>,
    /// Files that cannot be read whole any more, as far as known.
    pub damaged: Vec<DamagedFile>,
    /// Objects that the server refuses, and the files that need them. They are offered again from time to time.
    pub refused: Vec<RefusedObject>,
    /// The account may store no more on the server, and writes are refused.
    pub over_quota: bool,
    /// Exit code that what happened amounts to: 0, 21 (data lost) or 22 (rollback or tampering).
    pub verdict: u8,
    /// The path asked about, as it was given.
    pub path: Option<PathBuf>,
    /// Files open for writing: of the whole drive, or of what was asked about. They are never called committed.
    pub open_for_write: u64,
    /// How many are in which state below the directory asked about.
    pub below: Option<Below>,
    /// Age of the oldest change that is in no restore point, ms; none if all are in one.
    pub waiting_ms: Option<u64>,
    /// Time since the server last answered, ms.
    pub heard_ms: u64,
    /// The machine that has taken the drive over while it was mounted here, if one has.
    pub fenced: Option<Fence>,
    /// Branches of this drive that were set aside on this machine (`sealdrive conflicts`).
    pub conflicts: u64,
    /// What fsync waits for: `local` or `server`.
    pub fsync: String,
    /// What a person should know: last error of the connection, security events, space.
    pub notes: Vec<String>,
}

/// A file of which something is damaged or gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DamagedFile {
    /// Where it is now; `inode N` if that cannot be told.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Inode number.
    pub ino: u64,
    /// The first byte known to be lost.
    pub offset: u64,
    /// When it was noticed, milliseconds since 1970.
    pub at_ms: u64,
}

/// An object that the server refuses: it is kept here, and no restore point that needs it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusedObject {
    /// Its id, hex.
    pub object: String,
    /// What the server said last.
    pub why: String,
    /// When it said so first, milliseconds since 1970.
    pub at_ms: u64,
    /// Files that need it, as far as they were found.
    pub files: Vec<String>,
}

/// A name that is not text must not keep the whole answer back.
fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// What a status is to tell besides the drive's own; see [`Request::Status`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ask {
    /// Also of this inode.
    pub ino: Option<u64>,
    /// Ask the server first, if it has not answered for this long.
    pub heard_within: Option<Duration>,
    /// Have the kernel hand over its dirty pages first.
    pub flush: bool,
}

impl From<Ask> for Request {
    fn from(ask: Ask) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self::Status {
            ino: ask.ino,
            heard_within_ms: ask.heard_within.map(ms),
            flush: ask.flush,
        }
    }
}

/// What the daemon can do for an asker. Implemented by the mount's wiring over the engine.
pub trait Control: Send + Sync + 'static {
    /// The state of the drive, and of what else was asked about.
    fn status(&self, ask: &Ask) -> Status;
    /// Waits until everything written so far is on the server, telling how far it is about twice a second.
    /// `tell` answers false when the asker is gone.
    fn sync(
        &self,
        timeout: Option<Duration>,
        tell: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Progress, Refusal>;
    /// Ends the sending after an unmount. False, and nothing done, while the drive is mounted.
    fn leave(&self) -> bool;
}

/// A served socket; removed when dropped.
#[derive(Debug)]
pub struct Served {
    path: PathBuf,
    ended: Arc<AtomicBool>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the accepting thread, which then ends. Both are best effort: the process is about to end as well.
        drop(UnixStream::connect(&self.path));
        drop(std::fs::remove_file(&self.path));
    }
}

/// Serves `control` at `path` from a thread of its own until the result is dropped. A stale socket is replaced; one
/// that answers is an error of kind `AddrInUse` (the drive is mounted already).
pub fn serve(path: &Path, control: Arc<dyn Control>) -> std::io::Result<Served> {
    if UnixStream::connect(path).is_ok() {
        return Err(ErrorKind::AddrInUse.into());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let askers = Arc::new(AtomicUsize::new(0));
    let ended = Arc::new(AtomicBool::new(false));
    let served = Served {
        path: path.to_path_buf(),
        ended: Arc::clone(&ended),
    };
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                let Ok(stream) = stream else {
                    // Out of descriptors, most likely: those in use come back.
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                };
                let (control, askers) = (Arc::clone(&control), Arc::clone(&askers));
                if askers.fetch_add(1, Ordering::AcqRel) >= MAX_ASKERS {
                    askers.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                let asker = Arc::clone(&askers);
                let spawned = std::thread::Builder::new()
                    .name("control-asker".to_owned())
                    .spawn(move || {
                        if let Err(error) = answer(stream, control.as_ref()) {
                            tracing::debug!(%error, "a control connection ended early");
                        }
                        asker.fetch_sub(1, Ordering::AcqRel);
                    });
                if spawned.is_err() {
                    askers.fetch_sub(1, Ordering::AcqRel);
                }
            }
        })?;
    Ok(served)
}

fn answer(stream: UnixStream, control: &dyn Control) -> std::io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_WAIT))?;
    let mut line = String::new();
    BufReader::new(&stream)
        .take(MAX_LINE)
        .read_line(&mut line)?;
    let mut out = &stream;
    let mut say = |answer: &Answer| -> std::io::Result<()> {
        let mut text = serde_json::to_string(answer)?;
        text.push('\n');
        out.write_all(text.as_bytes())
    };
    let last = match serde_json::from_str(&line) {
        Ok(Request::Status {
            ino,
            heard_within_ms,
            flush,
        }) => Answer::Status(Box::new(control.status(&Ask {
            ino,
            heard_within: heard_within_ms.map(Duration::from_millis),
            flush,
        }))),
        Ok(Request::Sync { timeout_ms }) => {
            let mut tell = |progress: Progress| say(&Answer::Progress(progress)).is_ok();
            match control.sync(timeout_ms.map(Duration::from_millis), &mut tell) {
                Ok(progress) => Answer::Done(progress),
                Err(refusal) => Answer::Failed(refusal),
            }
        }
        Ok(Request::Leave) if control.leave() => Answer::Done(Progress::default()),
        Ok(Request::Leave) => Answer::Failed(Refusal {
            exit: 30,
            what: "the drive is mounted".to_owned(),
            advice: "unmount it first; see `sealdrive status`".to_owned(),
        }),
        Err(error) => Answer::Failed(Refusal {
            exit: 2,
            what: format!("not a request of this protocol: {error}"),
            advice: "use a sealdrive command of the same version as the mount".to_owned(),
        }),
    };
    say(&last)
}

/// Asks the daemon behind `path`; `each` sees the progress lines. The result is the final answer.
/// An error of kind `NotFound` or `ConnectionRefused` means that nothing is mounted there.
pub fn ask(
    path: &Path,
    request: &Request,
    each: &mut dyn FnMut(&Progress),
) -> std::io::Result<Answer> {
    let stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(REQUEST_WAIT))?;
    let mut text = serde_json::to_string(request)?;
    text.push('\n');
    (&stream).write_all(text.as_bytes())?;
    let mut lines = BufReader::new(&stream);
    loop {
        let mut line = String::new();
        if lines.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        match serde_json::from_str(&line)? {
            Answer::Progress(progress) => each(&progress),
            last => return Ok(last),
        }
    }
}

/// The sockets of a directory that answer, with the state of their drives. Dead ones are left for their next mount.
pub fn mounted(dir: &Path) -> std::io::Result<Vec<(PathBuf, Status)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "sock")
            && let Ok(Answer::Status(status)) = ask(&path, &Ask::default().into(), &mut |_| ())
        {
            found.push((path, *status));
        }
    }
    found.sort_by(|a, b| a.1.mountpoint.cmp(&b.1.mountpoint));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Control for Fixed {
        fn status(&self, ask: &Ask) -> Status {
            Status {
                drive: "d".to_owned(),
                file_state: ask.ino.map(|_| "sent".to_owned()),
                waiting_ms: ask
                    .heard_within
                    .map(|time| time.as_secs() + u64::from(ask.flush)),
                ..Status::default()
            }
        }

        fn sync(
            &self,
            timeout: Option<Duration>,
            tell: &mut dyn FnMut(Progress) -> bool,
        ) -> Result<Progress, Refusal> {
            for pending_bytes in [20, 10] {
                assert!(tell(Progress {
                    pending_bytes,
                    ..Progress::default()
                }));
            }
            match timeout {
                None => Ok(Progress::default()),
                Some(_) => Err(Refusal {
                    exit: 23,
                    what: "w".to_owned(),
                    advice: "a".to_owned(),
                }),
            }
        }

        fn leave(&self) -> bool {
            false
        }
    }

    #[test]
    fn progress_then_one_last_answer() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("x.sock");
        let served = serve(&path, Arc::new(Fixed)).expect("binds");
        let mut seen = Vec::new();
        let last = ask(&path, &Request::Sync { timeout_ms: None }, &mut |p| {
            seen.push(p.pending_bytes)
        });
        assert_eq!(last.expect("answers"), Answer::Done(Progress::default()));
        assert_eq!(seen, [20, 10]);
        let last = ask(
            &path,
            &Request::Sync {
                timeout_ms: Some(5),
            },
            &mut |_| (),
        )
        .expect("answers");
        assert!(matches!(last, Answer::Failed(Refusal { exit: 23, .. })));
        let all = Ask {
            ino: Some(3),
            heard_within: Some(Duration::from_secs(8)),
            flush: true,
        };
        let Answer::Status(status) = ask(&path, &all.into(), &mut |_| ()).expect("answers") else {
            panic!("a status was asked for");
        };
        assert_eq!(status.file_state.as_deref(), Some("sent"));
        assert_eq!(status.waiting_ms, Some(9));
        assert_eq!(mounted(dir.path()).expect("lists").len(), 1);

        let again = serve(&path, Arc::new(Fixed)).expect_err("served already");
        assert_eq!(again.kind(), ErrorKind::AddrInUse);
        drop(served);
        assert_eq!(mounted(dir.path()).expect("lists").len(), 0);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nonsense_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("x.sock");
        drop(UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "a killed daemon leaves its socket");
        let _served = serve(&path, Arc::new(Fixed)).expect("replaces it");
        let mut stream = UnixStream::connect(&path).expect("connects");
        stream.write_all(b"{\"op\":\"keys\"}\n").expect("writes");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("reads");
        assert!(
            text.contains("\"answer\":\"failed\"") && text.contains("\"exit\":2"),
            "{text}"
        );
    }
}
