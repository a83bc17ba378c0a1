//! One kernel connection: what is agreed at INIT, the loop threads, and the end.
//!
//! Invariant: the mount itself is not this file's business (the descriptor comes in attached and is detached by
//! others), so nothing here can unmount a stranger. Called by the mount wiring.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use fuser::{Config, InitFlags, KernelConfig, SessionACL};

use super::backing::Backing;
use super::calls::Calls;
use super::door::Door;
use super::notify::Notices;

/// Longest WRITE, and with it the longest READ the read-ahead may ask for: 1 MiB keeps a request below a chunk.
const MAX_WRITE: u32 = 1 << 20;
/// Requests the kernel may have under way in the background (read-ahead, writeback, direct IO).
const MAX_BACKGROUND: u16 = 64;
/// Loop threads. One, because behind them is one drive with one lock, because what takes long is done in pools, and
/// because the kernel wakes the loop that has slept longest, on another processor than the program that waits: with
/// four loops on two processors two trees of small files were copied at once in 3.6 s, with one in 2.2.
const LOOPS: usize = 1;

/// What must be agreed with the kernel; fuse.md says what each is worth.
const WANTED: &[InitFlags] = &[
    InitFlags::FUSE_WRITEBACK_CACHE,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
];

/// Answers INIT. An old kernel that lacks a flag gets a slower or plainer mount, not none.
pub(super) fn negotiate(config: &mut KernelConfig) {
    for &flag in WANTED {
        if config.add_capabilities(flag).is_err() {
            tracing::warn!(?flag, "the kernel does not offer this");
        }
    }
    // Values in range by construction; the calls return the former value, or the nearest legal one.
    let _ = config.set_max_write(MAX_WRITE);
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config.set_time_granularity(Duration::from_nanos(1));
}

type OnEnd = Box<dyn FnOnce() + Send>;

enum End {
    Serving(Vec<OnEnd>),
    Ended,
}

/// A running session.
pub struct Session {
    end: Arc<Mutex<End>>,
    notices: Notices,
}

impl Session {
    /// Answers INIT on the attached descriptor and starts the loop threads.
    pub fn start<B: Backing>(device: OwnedFd, backing: Arc<B>) -> io::Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(LOOPS);
        config.clone_fd = true;
        // Who may enter is the kernel's check (allow_other). fuser's own check by user id would refuse what the
        // kernel's flusher sends in the name of root, and lose times of files written by anyone else.
        let calls = Calls::new(backing)?;
        let session = fuser::Session::from_fd(
            Door::new(Arc::clone(&calls)),
            device,
            SessionACL::All,
            config,
        )?;
        let notices = Notices::start(session.notifier())?;
        // Set once, before the first request is served.
        let _ = calls.kernel.set(session.notifier());
        let running = session.spawn()?;
        let weak = Arc::downgrade(&calls);
        // Once the session has ended the kernel holds nothing any more.
        let call_in = move || weak.upgrade().is_none_or(|calls| calls.call_in_all());
        calls.backing.serving(Box::new(call_in));
        let end = Arc::new(Mutex::new(End::Serving(Vec::new())));
        let watched = Arc::clone(&end);
        thread::Builder::new()
            .name("fuse-end".to_owned())
            .spawn(move || {
                if let Err(error) = running.join() {
                    tracing::error!(%error, "a request loop ended early");
                }
                let before = std::mem::replace(
                    &mut *watched.lock().unwrap_or_else(PoisonError::into_inner),
                    End::Ended,
                );
                if let End::Serving(calls) = before {
                    calls.into_iter().for_each(|call| call());
                }
            })?;
        Ok(Self { end, notices })
    }

    /// Calls `then` once no request can come any more; at once if that is so already.
    pub fn on_end(&self, then: impl FnOnce() + Send + 'static) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *end {
            End::Serving(calls) => calls.push(Box::new(then)),
            End::Ended => {
                drop(end);
                then();
            }
        }
    }

    /// Waits until the session has ended, at most `limit`. Returns whether it has.
    pub fn wait_end(&self, limit: Duration) -> bool {
        let (ended, end) = mpsc::channel();
        self.on_end(move || {
            let _ = ended.send(());
        });
        end.recv_timeout(limit).is_ok()
    }

    /// Where to say that something changed other than through this mount.
    pub fn notices(&self) -> &Notices {
        &self.notices
    }
}
