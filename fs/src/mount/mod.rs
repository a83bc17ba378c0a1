//! A mount from beginning to end: attach, serve, and after the unmount drain to the server before the process ends.
//!
//! Invariant: however the mount goes away (umount, fusermount, a signal, an abort), the drain runs, the run record
//! says how it ended, and nothing of ours stays in the mount table. Called by `sealdrive mount`.

pub mod attach;
pub mod daemon;
pub mod options;
pub mod place;
pub mod record;
mod service;
pub mod table;
pub mod utab;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use self::attach::{AttachError, Detach};
use self::options::MountOptions;
use self::place::Pulse;
use self::record::{Phase, Record};
use self::utab::Utab;
use crate::clock;
use crate::fuse::{Backing, Session};

/// After a signal: how long the kernel's dirty pages may take to reach us before the mount is taken away.
const FLUSH_LIMIT: Duration = Duration::from_secs(30);
/// After a signal: how long programs with open files may finish before the connection is cut.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);
/// Pause between attempts to unmount while files are open.
const RETRY: Duration = Duration::from_millis(100);
/// How long a new mount may take until it answers for the first time.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// After the connection was cut: how long the loop threads may take to notice.
const CUT_LIMIT: Duration = Duration::from_secs(10);

/// What to mount where.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Name of the drive, shown as `sealdrive:NAME` in the mount table.
    pub label: String,
    /// The directory to cover.
    pub mountpoint: PathBuf,
    /// Kernel options.
    pub options: MountOptions,
    /// How long the drain after unmount may take before the process ends with data still to send.
    pub drain_limit: Duration,
    /// How long a plain umount(8) waits for the server; none: as long as the server takes something.
    pub umount_wait: Option<Duration>,
}

/// How a mount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The server has everything.
    Drained,
    /// The server lacks this many bytes, which are safe on this machine and go out at the next mount.
    Pending {
        /// Bytes not yet acknowledged.
        bytes: u64,
    },
}

/// Why a mount did not come up or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Nothing was mounted.
    #[error("{path}: {error}")]
    Attach {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        error: AttachError,
    },
    /// The kernel and we did not agree on a protocol, or threads could not be started.
    #[error("starting the session: {0}")]
    Session(#[source] io::Error),
    /// It was mounted, and then no request was answered.
    #[error("{0}: mounted, but it does not answer")]
    Silent(PathBuf),
    /// The last flush to the local disk failed: what was not fsynced may be lost.
    #[error("closing the drive: {0}")]
    Close(String),
}

/// Mounts, calls `ready` once requests are served, and returns after unmount and drain.
pub fn serve<B: Backing>(
    backing: Arc<B>,
    spec: &Spec,
    ready: impl FnOnce(),
) -> Result<Ended, MountError> {
    let mount = Mounted::attach(&backing, spec)?;
    if place::pulse(&mount.mountpoint, ANSWER_LIMIT) != Pulse::Alive {
        return Err(MountError::Silent(mount.mountpoint.clone()));
    }
    service::ready(&mount.mountpoint);
    let watchdog = service::Watchdog::start(&mount.mountpoint, &mount.device);
    ready();
    mount.wait();
    drop(watchdog);
    mount.drain(&*backing, spec.drain_limit)
}

/// A live mount. Dropped, it takes itself away lazily: a failure after attaching leaves nothing behind that was not
/// there before.
struct Mounted {
    mountpoint: PathBuf,
    umount_wait: Option<Duration>,
    /// Of the run record: unique among the mounts of this machine's uptime.
    id: String,
    device: String,
    session: Option<Session>,
    directory: PathBuf,
    /// It stands where a dead mount stood. Should it fail early, it stays as a dead one: whoever looks must not find
    /// the empty directory beneath.
    replaced: bool,
}

impl Mounted {
    fn attach<B: Backing>(backing: &Arc<B>, spec: &Spec) -> Result<Self, MountError> {
        let failed = |error| MountError::Attach {
            path: spec.mountpoint.clone(),
            error,
        };
        let place = place::look(&spec.mountpoint).map_err(failed)?;
        let source = format!(
            "sealdrive:{}",
            spec.label
                .replace(|c: char| c.is_control() || c.is_whitespace(), "_")
        );
        let device = attach::attach(&source, &place, &spec.options).map_err(failed)?;
        let (secs, nanos) = clock::wall_ns();
        let mut mount = Self {
            mountpoint: place.path,
            umount_wait: spec.umount_wait,
            id: format!("{}-{secs}-{nanos}", std::process::id()),
            device: String::new(),
            session: None,
            directory: record::directory(),
            replaced: place.is_dead,
        };
        mount.session =
            Some(Session::start(device, Arc::clone(backing)).map_err(MountError::Session)?);
        mount.announce();
        Ok(mount)
    }

    // None of this is needed to serve: what fails is said and costs comfort only.
    fn announce(&mut self) {
        let row = match table::at(&self.mountpoint) {
            Ok(Some(row)) => row,
            _ => {
                return tracing::warn!(
                    "the mount is not in the mount table; umount will not wait for the server"
                );
            }
        };
        self.device.clone_from(&row.device);
        record::sweep(&self.directory);
        if rustix::process::geteuid().is_root() {
            if let Err(error) = attach::set_read_ahead(&row.device) {
                tracing::debug!(%error, "read-ahead stays as it is");
            }
            if let Err(error) = Utab::system().add(&row) {
                tracing::warn!(%error, "no utab entry; a plain umount will not wait for the server");
            }
        }
        self.record(Phase::Mounted, 0);
    }

    fn record(&self, phase: Phase, pending_bytes: u64) {
        if self.device.is_empty() {
            return;
        }
        let record = Record {
            id: self.id.clone(),
            pid: std::process::id(),
            device: self.device.clone(),
            mountpoint: self.mountpoint.clone(),
            phase,
            pending_bytes,
            umount_wait_ms: self
                .umount_wait
                .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        };
        if let Err(error) = record.write(&self.directory) {
            tracing::warn!(%error, "no run record; umount will not wait for the server");
        }
    }

    /// Returns when no request can come any more.
    fn wait(&self) {
        let Some(session) = &self.session else { return };
        let (ended, mut end) = oneshot::channel();
        session.on_end(move || {
            let _ = ended.send(());
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(async {
                tokio::select! {
                    _ = &mut end => {}
                    () = asked_to_stop() => self.stop(&mut end).await,
                }
            }),
            // Without a runtime signals end the process the hard way; the journal is made for that.
            Err(error) => {
                tracing::warn!(%error, "signals are not handled");
                let _ = end.blocking_recv();
            }
        }
    }

    async fn stop(&self, end: &mut oneshot::Receiver<()>) {
        tracing::info!("asked to stop: unmounting");
        service::stopping("unmounting");
        let mountpoint = self.mountpoint.clone();
        let flush = tokio::task::spawn_blocking(move || flush_kernel(&mountpoint));
        if tokio::time::timeout(FLUSH_LIMIT, flush).await.is_err() {
            tracing::warn!("the kernel's pages did not arrive in time");
        }
        // First politely, again and again: programs may be about to leave.
        let leave = async {
            while attach::detach(&self.mountpoint, Detach::Now).is_err() {
                tokio::time::sleep(RETRY).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = &mut *end => return place::clear_dead(&self.mountpoint),
            () = leave => {}
            () = tokio::time::sleep(LEAVE_LIMIT) => {}
            () = asked_to_stop() => {}
        }
        tracing::warn!("files are still open; cutting the connection");
        if let Err(error) = attach::cut(&self.mountpoint, &self.device) {
            tracing::warn!(%error, "could not cut the connection");
        }
        let _ = tokio::time::timeout(CUT_LIMIT, end).await;
    }

    fn drain<B: Backing>(mut self, backing: &B, limit: Duration) -> Result<Ended, MountError> {
        self.record(Phase::Draining, 0);
        self.clear_tables();
        let session = self.session.take();
        service::stopping("unmounted; sending what is left");
        let mut draining = service::Draining::start();
        let result = backing.shutdown(clock::now() + limit, &mut |pending| {
            self.record(Phase::Draining, pending);
            draining.step(pending)
        });
        // Loop threads that still sit in a cut connection are left to the end of the process.
        drop(session);
        match result {
            Ok(0) => {
                self.record(Phase::Drained, 0);
                Ok(Ended::Drained)
            }
            Ok(bytes) => {
                self.record(Phase::Pending, bytes);
                Ok(Ended::Pending { bytes })
            }
            Err(error) => {
                self.record(Phase::Failed, 0);
                Err(MountError::Close(error.to_string()))
            }
        }
    }

    fn clear_tables(&self) {
        // A new mount may stand at the same place already; its row is not ours to take.
        let other = table::at(&self.mountpoint).ok().flatten();
        let replaced =
            other.is_some_and(|row| row.fs_type == table::FS_TYPE && row.device != self.device);
        if rustix::process::geteuid().is_root()
            && !replaced
            && let Err(error) = Utab::system().remove(&self.mountpoint)
        {
            tracing::debug!(%error, "utab row stays");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.replaced && (self.session.is_some() || self.device.is_empty()) {
            let ours = |row: &table::Row| {
                row.fs_type == table::FS_TYPE
                    && (self.device.is_empty() || row.device == self.device)
            };
            if table::at(&self.mountpoint)
                .ok()
                .flatten()
                .as_ref()
                .is_some_and(ours)
            {
                let _ = attach::detach(&self.mountpoint, Detach::Lazily);
                self.clear_tables();
            }
        }
    }
}

/// Makes the kernel send what it holds of this mount. Never from a loop thread: the answer needs the loops.
pub fn flush_kernel(mountpoint: &Path) -> io::Result<()> {
    let directory = std::fs::File::open(mountpoint)?;
    Ok(rustix::fs::syncfs(&directory)?)
}

async fn asked_to_stop() {
    let mut signals: Vec<Signal> = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ]
    .into_iter()
    .filter_map(|kind| signal(kind).ok())
    .collect();
    if signals.is_empty() {
        std::future::pending::<()>().await;
    }
    std::future::poll_fn(|context| {
        if signals
            .iter_mut()
            .any(|signal| signal.poll_recv(context).is_ready())
        {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}
