//! Starting and ending: every thread and task of a mounted drive, in an order that lets none wait for one already gone.
//!
//! Invariant: at the end every thread has been joined; what ends first is what makes new work. Called by `Engine`.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use sealdrive_core::record::Time;
use sealdrive_proto::id::Sid;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::EngineError;
use super::blobs::{BlobError, Blobs};
use super::casualties::{self, Casualties};
use super::chain::{Chain, root_of};
use super::commit::Committer;
use super::config::EngineConfig;
use super::events::{EventKind, Events};
use super::fetch::Fetcher;
use super::flush::Flusher;
use super::lease::{self, Lease};
use super::open::{self, Records, Start};
use super::pace::Pace;
use super::prefetch::Prefetch;
use super::progress::Progress;
use super::shared::Shared;
use super::space::Space;
use super::status::{Connection, Status};
use super::upload::{self, Uploading};
use super::warm;
use super::writeback::Workers;
use crate::clock;
use crate::drive::{Drive, DriveError};
use crate::journal::{Journal, Replay};
use crate::limits::{CACHE_QUEUE, PACE_INTERVAL};
use crate::remote::Remote;
use crate::store::Store;

/// Everything that runs for one mounted drive.
pub(super) struct Running {
    pub(super) shared: Arc<Shared>,
    pub(super) workers: Workers,
    pub(super) flusher: Flusher,
    pub(super) prefetch: Prefetch,
    lease: watch::Receiver<Lease>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    /// In the order in which they are to be joined.
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Those that may be waiting for the network: joined when it is gone.
    readers: Mutex<Vec<JoinHandle<()>>>,
    remote: Option<Arc<dyn Remote>>,
    runtime: Mutex<Option<Runtime>>,
    _lock: File,
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> EngineError {
    move |e| EngineError::Io(what, e)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, EngineError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(io("starting a thread"))
}

/// One process per drive and machine: two would append to the same journal.
fn lock_dir(dir: &Path) -> Result<File, EngineError> {
    let broken = io("creating the state directory");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(&broken)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))
        .map_err(&broken)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(EngineError::Busy),
        Err(e) => Err(broken(e.into())),
    }
}

/// Objects on their way into the cache, off the readers' path.
fn keep_copies(shared: &Shared, queue: &Receiver<(Sid, Bytes)>) {
    loop {
        match queue.recv_timeout(PACE_INTERVAL * 5) {
            Ok((sid, object)) => {
                if let Err(e) = shared.store.put_copy(sid, &object) {
                    tracing::warn!("no copy kept: {e}");
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if shared.progress.now().quit {
            return;
        }
    }
}

impl Running {
    /// Brings the drive back and starts everything.
    pub(super) fn start(config: EngineConfig) -> Result<Self, EngineError> {
        let lock = lock_dir(&config.dir)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("net")
            .enable_all()
            .build()
            .map_err(io("starting the network threads"))?;
        let events = Arc::<Events>::default();
        let mut records = Records::open(&config.dir, config.drive, &config.local)?;
        let store = Arc::new(Store::open(&config.dir, config.cache_budget)?);
        let (copies, copy_queue) = sync_channel(CACHE_QUEUE);
        let remote = config.remote.clone();
        let fetcher = remote
            .as_ref()
            .map(|remote| Fetcher::start(runtime.handle(), Arc::clone(remote)));
        let (keys, local) = (Arc::clone(&config.keys), Arc::clone(&config.local));
        let blobs = Arc::new(Blobs::new(
            Arc::clone(&store),
            keys,
            local,
            fetcher,
            copies,
            Arc::clone(&events),
        ));
        let mut chain = remote.as_ref().map(|remote| {
            let pins = records.pins();
            let handle = runtime.handle().clone();
            Chain::new(
                config.drive,
                config.account.clone(),
                Arc::clone(remote),
                handle,
                pins,
            )
        });
        let (journal, replay) = Journal::open(
            &config.dir.join("journal"),
            config.drive,
            Arc::clone(&config.local),
        )?;
        tell_damage(&events, &records, &store, &replay);
        let unsaved = !replay.entries.is_empty();
        let start = open::start(&mut records, chain.as_mut(), &blobs, &config, unsaved)?;
        let drive = Arc::new(Drive::recover(
            start.checkpoint.root,
            start.checkpoint.seq,
            replay.into_steps(),
        ));
        let (lease_retry, retry) = watch::channel(0);
        let shared = Arc::new(Shared {
            drive,
            store,
            blobs,
            uploading: Uploading::default(),
            space: Space::new(&config.dir, config.outbox_budget),
            progress: Progress::default(),
            casualties: Casualties::default(),
            events,
            crash: config.crash.clone(),
            lease_retry,
        });
        greet(&shared, &start, &config)?;
        let lost = shared.store.lost().iter().flat_map(|lost| &lost.sids);
        let lost = lost.filter(|(_, acknowledged)| !acknowledged);
        casualties::search(&shared, lost.map(|(sid, _)| *sid).collect());
        let (workers, mut threads) =
            Workers::start(&shared, worker_count(&config)).map_err(io("starting a thread"))?;
        let (prefetch, mut readers) = Prefetch::start(&shared).map_err(io("starting a thread"))?;
        let (flusher, flushing) = Flusher::pair();
        let (stop, stopped) = watch::channel(false);
        let (lease_state, lease) = watch::channel(Lease::Unknown);

        let pace = Pace {
            shared: Arc::clone(&shared),
            workers: workers.clone(),
            flusher: flusher.clone(),
            record: records.checkpoint,
            commit_interval: config.commit_interval,
            has_remote: remote.is_some(),
            not_before: clock::now(),
        };
        threads.insert(0, spawn("pace", move || pace.run())?);
        let mut tasks = Vec::new();
        if let (Some(remote), Some(chain)) = (&remote, chain) {
            let committer = Committer {
                shared: Arc::clone(&shared),
                drive: config.drive,
                device: config.device,
                signing: Arc::clone(&config.signing),
                chain,
                pins_record: records.pins,
                commit_record: records.commit,
                pending: records.found_commit.into_iter().collect(),
                author: start.author,
                lease: lease.clone(),
            };
            threads.insert(1, spawn("commit", move || committer.run())?);
            if let Some(root) = start.checkpoint.root {
                let shared = Arc::clone(&shared);
                readers.push(spawn("warm", move || warm::run(&shared, root))?);
            }
            let (for_upload, shared) = (Arc::clone(&shared), Arc::clone(&shared));
            let uploading = upload::run(
                for_upload,
                Arc::clone(remote),
                lease.clone(),
                stopped.clone(),
            );
            tasks.push(runtime.spawn(uploading));
            let keeping = lease::keep(
                Arc::clone(remote),
                lease_state,
                retry,
                stopped,
                shared,
                config.take_over,
            );
            tasks.push(runtime.spawn(keeping));
        }
        let for_copies = Arc::clone(&shared);
        threads.push(spawn("copies", move || {
            keep_copies(&for_copies, &copy_queue)
        })?);
        let for_flush = Arc::clone(&shared);
        threads.push(spawn("flush", move || flushing.run(&for_flush, journal))?);
        Ok(Self {
            shared,
            workers,
            flusher,
            prefetch,
            lease,
            stop,
            tasks: Mutex::new(tasks),
            threads: Mutex::new(threads),
            readers: Mutex::new(readers),
            remote,
            runtime: Mutex::new(Some(runtime)),
            _lock: lock,
        })
    }

    pub(super) fn has_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// After everything is as safe as it will get: ends all, with one last checkpoint.
    pub(super) fn close(&self) {
        self.end(true);
    }

    /// Ends all as soon as possible, as a crash would, but for threads left behind.
    pub(super) fn abandon(&self) {
        self.end(false);
    }

    fn end(&self, last_checkpoint: bool) {
        let mut threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner))
                .into_iter();
        let Some(pace) = threads.next() else { return };
        self.shared.progress.update(|m| {
            m.closing = true;
            m.quit |= !last_checkpoint;
        });
        let _ = pace.join();
        self.shared.progress.update(|m| m.quit = true);
        self.shared.blobs.close();
        self.prefetch.stop();
        self.workers.stop();
        self.flusher.stop();
        let _ = self.stop.send(true);
        for thread in threads {
            let _ = thread.join();
        }
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(runtime) = self
            .runtime
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            runtime.block_on(async {
                for task in tasks {
                    let _ = tokio::time::timeout(Duration::from_secs(3), task).await;
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
        let readers =
            std::mem::take(&mut *self.readers.lock().unwrap_or_else(PoisonError::into_inner));
        for reader in readers {
            let _ = reader.join();
        }
    }

    pub(super) fn status(&self) -> Status {
        let now = self.shared.progress.now();
        let lease = *self.lease.borrow();
        let (pending_bytes, pending_objects) = self.shared.store.outbox().pending();
        let online = self.shared.uploading.is_online();
        let connection = if self.has_remote() {
            Connection::of(lease, online)
        } else {
            Connection::None
        };
        Status {
            dirty_bytes: self.shared.drive.dirty_bytes(),
            journal_bytes: now.journal_bytes,
            pending_bytes,
            pending_objects,
            outbox_bytes: self.shared.store.outbox().bytes(),
            cache_bytes: self.shared.store.cache().bytes(),
            cache_budget: self.shared.store.cache().budget(),
            sent_bytes: self.shared.uploading.sent(),
            is_clean: self.shared.is_clean(),
            unlogged: self.shared.drive.has_unlogged(),
            operations: self.shared.drive.seq(),
            journaled: now.journaled,
            checkpointed: now.checkpointed,
            committed: now.committed,
            commit_seq: now.commit_seq,
            commit_ms: now.commit_ms,
            lease_epoch: lease.held().map_or(0, |(epoch, _)| epoch),
            connection,
            remote_error: now.remote_error,
            stopped: now.stopped,
            failed: now.failed,
            casualties: self.shared.casualties.list(),
            events: self.shared.events.list(),
        }
    }
}

/// What was found damaged on the way, healed or not.
fn tell_damage(events: &Events, records: &Records, store: &Store, replay: &Replay) {
    if let Some(damage) = &replay.damage {
        let what = format!(
            "the journal is damaged, and what was written last on this machine may be lost: {damage}"
        );
        events.push(EventKind::JournalDamage, what);
    }
    for path in &replay.aside {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let what = format!(
            "a damaged part of the journal is kept: {name}; remove it when it is of no more use"
        );
        events.push(EventKind::JournalDamage, what);
    }
    let twins = [&records.checkpoint, &records.pins, &records.commit];
    for what in twins.into_iter().filter_map(|twin| twin.healed()) {
        events.push(
            EventKind::Healed,
            format!("one copy of {what} was damaged; it was restored from the other"),
        );
    }
    for lost in store.lost() {
        let count = lost.sids.len().max(1);
        if lost.is_loss() {
            let what = format!(
                "{count} objects that were not yet on the server are damaged or gone (outbox pack {:016x})",
                lost.pack
            );
            events.push(EventKind::OutboxDamage, what);
        } else {
            events.push(
                EventKind::Healed,
                format!("{count} damaged objects of the outbox are on the server already"),
            );
        }
    }
}

fn worker_count(config: &EngineConfig) -> usize {
    match config.workers {
        0 => std::thread::available_parallelism().map_or(2, usize::from),
        n => n,
    }
}

/// First steps of a drive that is back: what is known of it, and a root directory if it never had one.
fn greet(shared: &Shared, start: &Start, config: &EngineConfig) -> Result<(), EngineError> {
    let committed =
        start.checkpoint.root.is_some() && root_of(&start.pins) == start.checkpoint.root;
    shared.progress.update(|m| {
        m.journaled = start.checkpoint.seq;
        m.checkpointed = start.checkpoint.seq;
        m.committed = if committed { start.checkpoint.seq } else { 0 };
        m.commit_seq = start.pins.seq();
        // A checkpoint that was not committed before the machine stopped is committed by the first one of this mount.
        m.wanted = if committed || start.checkpoint.root.is_none() {
            0
        } else {
            start.checkpoint.seq + 1
        };
    });
    if let Some(why) = &start.distrust {
        shared.stop_commits(EventKind::PinsMissing, why);
    }
    if start.checkpoint.root.is_none() {
        let (secs, nanos) = clock::wall_ns();
        let (uid, gid) = config.owner;
        let made = shared.with_nodes(|drive| drive.format_if_empty(uid, gid, Time { secs, nanos }));
        made.map_err(|e| match e {
            DriveError::Missing(_) => {
                EngineError::Root(BlobError::Unreachable("the server is not reached".into()))
            }
            DriveError::Errno(_) => EngineError::Root(BlobError::Lost),
        })?;
    }
    Ok(())
}
