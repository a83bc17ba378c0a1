//! Starting and ending: every thread and task of a mounted drive, in an order that lets none wait for one already gone.
//!
//! Invariant: at the end every thread has been joined; what ends first is what makes new work. Called by `Engine`.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sealdrive_core::commit_body::CommitBody;
use sealdrive_core::record::Time;
use sealdrive_pack::{Directory, Medium, MediumFile, Reserve, Reserved};
use sealdrive_proto::id::Sid;
use sealdrive_runtime::channel::{Receiver, RecvTimeoutError};
use sealdrive_runtime::sync::Mutex;
use sealdrive_runtime::task::{self, Runtime};
use sealdrive_runtime::thread::{self, JoinHandle};
use sealdrive_runtime::time::timeout;
use tokio::sync::watch;

use super::EngineError;
use super::blobs::BlobError;
use super::branch;
use super::casualties::{self, Casualties};
use super::chain::{Chain, root_of};
use super::commit::Committer;
use super::config::EngineConfig;
use super::events::{EventKind, Events};
use super::fence::{Kernel, name_of};
use super::fetch::Fetcher;
use super::flush::Flusher;
use super::hole::{self, TORN};
use super::lease::{self, Keeper, Lease};
use super::local::{Local, Owner};
use super::open::{self, Opening, Start};
use super::pace::Pace;
use super::prefetch::Prefetch;
use super::progress::Progress;
use super::refused::{self, Refused};
use super::shared::Shared;
use super::space::Space;
use super::upload::{self, Uploading};
use super::verify;
use super::warm;
use super::writeback::Workers;
use crate::clock;
use crate::drive::{Drive, DriveError};
use crate::limits::{LEASE_PATIENCE, PACE_INTERVAL};
use crate::priority;
use crate::remote::Remote;
use crate::store::CACHE;

/// Everything that runs for one mounted drive.
pub(super) struct Running {
    pub(super) shared: Arc<Shared>,
    pub(super) workers: Workers,
    pub(super) flusher: Flusher,
    pub(super) prefetch: Prefetch,
    pub(super) lease: watch::Receiver<Lease>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<task::JoinHandle<()>>>,
    /// In the order in which they are to be joined.
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Those that may be waiting for the network: joined when it is gone.
    readers: Mutex<Vec<JoinHandle<()>>>,
    remote: Option<Arc<dyn Remote>>,
    runtimes: Mutex<Vec<Runtime>>,
    _lock: Arc<dyn MediumFile>,
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> EngineError {
    move |e| EngineError::Io(what, e)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, EngineError> {
    thread::spawn(name, body).map_err(io("starting a thread"))
}

/// Threads for network tasks, `nice` by so much.
fn network(name: &str, threads: usize, nice: i32) -> std::io::Result<Runtime> {
    task::runtime_with(threads, name, move || priority::step_back(nice))
}

/// The drive's state directory.
fn state_dir(config: &EngineConfig) -> Result<Arc<dyn Medium>, EngineError> {
    if let Some(medium) = &config.medium {
        return Ok(Arc::clone(medium));
    }
    let made = Directory::create(&config.dir).map_err(io("creating the state directory"))?;
    Ok(Arc::new(made))
}

/// One process per drive and machine: two would append to the same journal.
fn lock_dir(dir: &dyn Medium) -> Result<Arc<dyn MediumFile>, EngineError> {
    let broken = io("locking the state directory");
    let file = dir.open_or_create("lock").map_err(&broken)?;
    if file.try_lock().map_err(&broken)? {
        Ok(file)
    } else {
        Err(EngineError::Busy)
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
        let disk = state_dir(&config)?;
        let reserve = Reserve::open(Arc::clone(&disk)).map_err(io("looking at the reserve"))?;
        // Copies may not use what is there for draining.
        let dir: Arc<dyn Medium> = Arc::new(Reserved::new(Arc::clone(&disk), &reserve, &[CACHE]));
        let lock = lock_dir(&*dir)?;
        branch::finish(&*dir, &config.crash)?;
        let starting = io("starting the network threads");
        let runtime = network("net", 2, 0).map_err(&starting)?;
        // What is sent waits for what is asked for, and for everything else on this machine.
        let bulk = network("upload", 1, priority::BACKGROUND).map_err(&starting)?;
        let events = Arc::<Events>::default();
        let remote = config.remote.clone();
        let fetcher = remote
            .as_ref()
            .map(|remote| Fetcher::start(runtime.handle(), Arc::clone(remote)));
        let (first, reached) = first_word(&config, &runtime)?;
        let open = || Local::open(&dir, &Owner::of(&config), fetcher.clone(), &events);
        let mut local = open()?;
        let mut chain = remote.as_ref().map(|remote| {
            let pins = local.records.pins();
            let handle = runtime.handle().clone();
            Chain::new(
                config.drive,
                config.account.clone(),
                Arc::clone(remote),
                handle,
                pins,
            )
        });
        let (start, torn) = loop {
            let torn = hole::in_checkpoint(&local, &config)?;
            if torn
                && reached
                && let (Some(chain), Some(diverged)) =
                    (&mut chain, hole::last_commit(&local.records))
            {
                let aside = branch::set_aside(local, &*dir, &config, chain, diverged)?;
                events.push(EventKind::OutboxDamage, aside.to_string());
                local = open()?;
                continue;
            }
            let unsaved = !local.replay.entries.is_empty();
            let known = (unsaved, reached);
            let (records, blobs) = (&mut local.records, &local.blobs);
            match open::start(records, chain.as_mut(), blobs, &config, known)? {
                Opening::Start(start) => break (*start, torn),
                Opening::Diverged(diverged) => {
                    let Some(chain) = &mut chain else { continue };
                    let aside = branch::set_aside(local, &*dir, &config, chain, diverged)?;
                    events.push(EventKind::SetAside, aside.to_string());
                    local = open()?;
                }
            }
        };
        let Local {
            records,
            store,
            blobs,
            copies: copy_queue,
            journal,
            mut replay,
        } = local;
        let drive = Arc::new(Drive::recover(
            start.checkpoint.root,
            start.checkpoint.seq,
            replay.take_steps(),
        ));
        let (lease_retry, retry) = watch::channel(0);
        let shared = Arc::new(Shared {
            drive,
            store,
            blobs,
            uploading: Uploading::default(),
            space: Space::new(disk, reserve, config.reserve, config.outbox_budget),
            progress: Progress::default(),
            casualties: Casualties::default(),
            refused: Refused::default(),
            events,
            crash: config.crash.clone(),
            names: config.device_names.clone(),
            kernel: Kernel::new(),
            lease_retry,
        });
        greet(&shared, &start, &config, reached && !config.read_only)?;
        let why_not = why_read_only(&config, first);
        if let Some(why) = &why_not {
            shared.read_only(why);
        }
        if torn {
            shared.stop_commits(EventKind::OutboxDamage, TORN);
        }
        casualties::named_by_journal(&shared);
        let lost = hole::lost_ids(&shared.store);
        let doubtful = shared.store.doubtful().iter().copied();
        if !shared.refused.lose(lost.iter().copied().chain(doubtful)) {
            shared.stop_commits(EventKind::OutboxDamage, TORN);
        }
        casualties::search(&shared, lost);
        refused::remember(&shared);
        let (workers, mut threads) =
            Workers::start(&shared, worker_count(&config), config.chunk_sizes())
                .map_err(io("starting a thread"))?;
        let (prefetch, mut readers) = Prefetch::start(&shared).map_err(io("starting a thread"))?;
        let (flusher, flushing) = Flusher::pair();
        let (stop, stopped) = watch::channel(false);
        let (lease_state, lease) = watch::channel(first);

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
                let warming = move || {
                    priority::step_back(priority::BACKGROUND);
                    warm::run(&shared, root)
                };
                readers.push(spawn("warm", warming)?);
            }
            let for_lease = Arc::clone(&shared);
            let shared = Arc::clone(&shared);
            let uploading = upload::run(shared, Arc::clone(remote), lease.clone(), stopped.clone());
            tasks.push(bulk.spawn(uploading));
            let keeper = Keeper {
                remote: Arc::clone(remote),
                shared: for_lease,
                state: lease_state,
                retry,
                stop: stopped,
            };
            let keeping = keeper.run(why_not.is_none());
            tasks.push(runtime.spawn(keeping));
        }
        let for_verify = Arc::clone(&shared);
        readers.push(spawn("verify", move || {
            priority::step_back(priority::BACKGROUND);
            verify::run(&for_verify)
        })?);
        let for_copies = Arc::clone(&shared);
        threads.push(spawn("copies", move || {
            priority::step_back(priority::BACKGROUND);
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
            runtimes: Mutex::new(vec![bulk, runtime]),
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
        self.shared.drive.nudge();
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
        let mut runtimes =
            std::mem::take(&mut *self.runtimes.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(runtime) = runtimes.last() {
            runtime.block_on(async {
                for task in tasks {
                    let _ = timeout(Duration::from_secs(3), task).await;
                }
            });
        }
        for runtime in runtimes.drain(..) {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
        let readers =
            std::mem::take(&mut *self.readers.lock().unwrap_or_else(PoisonError::into_inner));
        for reader in readers {
            let _ = reader.join();
        }
        self.shared.casualties.join();
    }
}

/// Asks for the lease before anything else, as long as mounting may take; `-o ro` asks for none. Also whether the
/// server answered. Who wants to take over cannot do it without the server.
fn first_word(config: &EngineConfig, runtime: &Runtime) -> Result<(Lease, bool), EngineError> {
    let Some(remote) = &config.remote else {
        return Ok((Lease::Unknown, false));
    };
    if config.read_only {
        return Ok((Lease::Unknown, true));
    }
    let patience = match config.take_over {
        true => config.join_patience,
        false => LEASE_PATIENCE,
    };
    let asked = lease::first(remote.as_ref(), config.take_over, patience);
    match runtime.block_on(asked) {
        Ok(lease) => Ok((lease, true)),
        Err(error) if config.take_over => Err(EngineError::TakeOver(error)),
        // Refusals come again in the background, where they are reported.
        Err(error) => Ok((Lease::Unknown, !error.is_temporary())),
    }
}

fn why_read_only(config: &EngineConfig, first: Lease) -> Option<String> {
    if config.read_only {
        return Some("mounted read-only: nothing is sent".to_owned());
    }
    let Lease::Elsewhere(holder) = first else {
        return None;
    };
    let name = name_of(&config.device_names, &holder);
    Some(format!(
        "machine {name} writes this drive, so it is mounted read-only here; to write here, unmount it there (a machine \
         that is gone loses it after a minute) and mount again, or mount with --take-over"
    ))
}

fn worker_count(config: &EngineConfig) -> usize {
    match config.workers {
        0 => thread::available_parallelism().map_or(2, usize::from),
        n => n,
    }
}

fn wall_ms_of(body: &CommitBody) -> u64 {
    let secs = u64::try_from(body.time_s).unwrap_or(0);
    secs.saturating_mul(1000) + u64::from(body.time_ns) / 1_000_000
}

/// First steps of a drive that is back: what is known of it, and a root directory if it never had one.
fn greet(
    shared: &Shared,
    start: &Start,
    config: &EngineConfig,
    reached: bool,
) -> Result<(), EngineError> {
    let committed =
        start.checkpoint.root.is_some() && root_of(&start.pins) == start.checkpoint.root;
    shared.drive.set_committed(root_of(&start.pins));
    // Of a commit made before this mount only its author's clock tells the age.
    let commit_ms = start.pins.body().map(wall_ms_of);
    let age = commit_ms.map_or(0, |at| clock::wall_ms().saturating_sub(at));
    shared.progress.update(|m| {
        let now = clock::now();
        m.heard = Some(now);
        m.answered = reached;
        m.commit_ms = commit_ms;
        // What an earlier mount left waits since its last commit at the latest.
        let left = !committed || shared.drive.seq() > start.checkpoint.seq + 1;
        m.waiting = left.then(|| now.checked_sub(Duration::from_millis(age)).unwrap_or(now));
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
