//! A backing in memory: the whole kernel surface over a real `Drive`, with a writeback and checkpoint thread that puts
//! chunks and tree nodes into maps instead of packs. It can be told to be far away, slow, or damaged.
//!
//! Invariant: content leaves the drive and comes back only through chunks and nodes, as with the engine. Used by the
//! mount tests and by the `memory_mount` example.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "tests; each user needs a part of it"
)]

#[path = "mounted.rs"]
pub mod mounted;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealdrive::drive::{Answer, Drive, DriveError, Job, JobDone, Placed, Progress, Settle};
use sealdrive::fuse::{Backing, BackingError, ChunkNow, Space};
use sealdrive_core::merge;
use sealdrive_core::node::Node;
use sealdrive_core::record::{Extent, Ino, Time};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::{Missing, Nodes, TreeError};
use sealdrive_proto::id::{Cid, Epoch};

/// Chunks of the double, bytes: small enough that files of the tests have several.
const CHUNK: usize = 200 << 10;
const NODE_KEY: [u8; 32] = [7; 32];

#[derive(Default)]
struct Store {
    chunks: Mutex<HashMap<Reference, Bytes>>,
    nodes: Mutex<HashMap<Reference, Arc<Node>>>,
}

impl Nodes for Store {
    fn get(&self, reference: &Reference) -> Result<Arc<Node>, Missing> {
        self.nodes
            .lock()
            .unwrap()
            .get(reference)
            .cloned()
            .ok_or(Missing(*reference))
    }
}

/// The double. Its flags may be changed while it is mounted.
pub struct Double {
    pub drive: Drive,
    store: Store,
    stop: AtomicBool,
    /// No chunk is "local": every one goes the long way.
    pub far: AtomicBool,
    /// No tree node that the drive lacks is "local".
    pub far_nodes: AtomicBool,
    /// How long the long way takes, milliseconds.
    pub delay_ms: AtomicU64,
    /// Longest time anyone was ready to wait for the long way, milliseconds.
    pub patience_ms: AtomicU64,
    /// Chunks come back damaged.
    pub damaged: AtomicBool,
    /// The state of every file panics: a defect for the tests.
    pub defective: AtomicBool,
    /// Chunks asked for ahead of time.
    pub prefetched: AtomicU64,
    /// What shutdown says is left, bytes.
    pub pending: AtomicU64,
    /// Calls of `sync_local`.
    pub syncs: AtomicU64,
    pub checkpoints: AtomicU64,
    pub events: Mutex<Vec<String>>,
}

/// Stops the worker when dropped.
pub struct Worker {
    double: Arc<Double>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.double.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                thread::panicking() || ended.is_ok(),
                "the worker of the double failed"
            );
        }
    }
}

impl Double {
    pub fn start() -> (Arc<Self>, Worker) {
        let drive = Drive::new(None, 0);
        drive
            .format_if_empty(
                0,
                0,
                Time {
                    secs: 1_700_000_000,
                    nanos: 0,
                },
            )
            .unwrap();
        let double = Arc::new(Self {
            drive,
            store: Store::default(),
            stop: AtomicBool::new(false),
            far: AtomicBool::new(false),
            far_nodes: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            patience_ms: AtomicU64::new(0),
            damaged: AtomicBool::new(false),
            defective: AtomicBool::new(false),
            prefetched: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            checkpoints: AtomicU64::new(0),
            events: Mutex::new(Vec::new()),
        });
        let worker = Arc::clone(&double);
        let thread = thread::Builder::new()
            .name("double".into())
            .spawn(move || worker.work())
            .unwrap();
        (
            Arc::clone(&double),
            Worker {
                double,
                thread: Some(thread),
            },
        )
    }

    fn work(&self) {
        let mut last = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            self.drive
                .wait_for_dirty(4 << 20, Duration::from_millis(50));
            self.write_back(Settle::Settled);
            if last.elapsed() > Duration::from_millis(150) {
                self.checkpoint();
                last = Instant::now();
            }
        }
    }

    fn write_back(&self, which: Settle) {
        for job in self.must(|| self.drive.writeback_jobs(which, 16 << 20)) {
            let done = self.put(&job);
            self.must(|| self.drive.install(&done));
        }
    }

    /// Everything leaves memory: dirty bytes to chunks, records to the tree.
    pub fn checkpoint(&self) {
        self.drive
            .take_log(sealdrive::drive::LogData::None)
            .unwrap();
        self.drive.log_durable();
        self.drive.stall();
        let frozen = loop {
            self.write_back(Settle::All);
            if let Some(frozen) = self.must(|| self.drive.freeze()) {
                break frozen;
            }
        };
        self.drive.unstall();
        let edits = frozen
            .overlay
            .iter()
            .map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec)));
        let mut put = |plain: &[u8]| {
            let reference = name(plain);
            let node = Node::decode(Bytes::copy_from_slice(plain)).unwrap();
            self.store
                .nodes
                .lock()
                .unwrap()
                .insert(reference, Arc::new(node));
            Ok::<_, TreeError>(reference)
        };
        let root = merge::apply(
            &self.store,
            frozen.root.as_ref(),
            edits,
            &NODE_KEY,
            &mut put,
        )
        .unwrap();
        self.drive.thaw(root);
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
    }

    fn put(&self, job: &Job) -> JobDone {
        let stream: Vec<u8> = job
            .pieces
            .iter()
            .flat_map(|piece| piece.data.iter().copied())
            .collect();
        let mut cuts = Vec::new();
        for (index, chunk) in stream.chunks(CHUNK).enumerate() {
            let reference = name(chunk);
            self.store
                .chunks
                .lock()
                .unwrap()
                .insert(reference, Bytes::copy_from_slice(chunk));
            cuts.push((index * CHUNK, chunk.len(), reference));
        }
        let mut done = JobDone {
            id: job.id,
            ..JobDone::default()
        };
        let mut at = 0;
        for piece in &job.pieces {
            let (start, end) = (at, at + piece.data.len());
            for &(chunk, len, reference) in &cuts {
                let (from, to) = (start.max(chunk), end.min(chunk + len));
                if from < to {
                    let extent = Extent::Chunk {
                        reference,
                        skip: u32::try_from(from - chunk).unwrap(),
                        len: u32::try_from(to - from).unwrap(),
                    };
                    let off = piece.off + (from - start) as u64;
                    done.placed.push(Placed {
                        ino: piece.ino,
                        off,
                        version: piece.version,
                        extent,
                    });
                }
            }
            at = end;
        }
        done
    }

    fn must<T>(&self, mut attempt: impl FnMut() -> Answer<T>) -> T {
        loop {
            match attempt() {
                Ok(value) => return value,
                Err(DriveError::Missing(reference)) => {
                    self.drive
                        .add_node(&reference, self.store.get(&reference).unwrap());
                }
                Err(DriveError::Errno(errno)) => panic!("writeback: {errno}"),
            }
        }
    }

    // A way longer than the deadline is not waited out: what counts is that there was one, and which.
    fn travel(&self, deadline: Instant) -> Result<(), BackingError> {
        let delay = Duration::from_millis(self.delay_ms.load(Ordering::Relaxed));
        let left = deadline.saturating_duration_since(Instant::now());
        self.patience_ms
            .fetch_max(u64::try_from(left.as_millis()).unwrap(), Ordering::Relaxed);
        if delay >= left {
            return Err(BackingError::TimedOut);
        }
        thread::sleep(delay);
        Ok(())
    }
}

fn name(plain: &[u8]) -> Reference {
    Reference {
        epoch: Epoch(0),
        cid: Cid::try_from(&blake3::hash(plain).as_bytes()[..]).unwrap(),
        plain_len: u32::try_from(plain.len()).unwrap(),
        variant: 0,
    }
}

impl Backing for Double {
    fn drive(&self) -> &Drive {
        &self.drive
    }

    fn node_local(&self, reference: &Reference) -> Result<bool, BackingError> {
        if self.far_nodes.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.node(reference, Instant::now() + Duration::from_secs(60))
            .map(|()| true)
    }

    fn node(&self, reference: &Reference, deadline: Instant) -> Result<(), BackingError> {
        if self.far_nodes.load(Ordering::Relaxed) {
            self.travel(deadline)?;
        }
        let node = self
            .store
            .get(reference)
            .map_err(|_| BackingError::Damaged)?;
        self.drive.add_node(reference, node);
        Ok(())
    }

    fn chunk_now(&self, reference: &Reference) -> ChunkNow {
        if self.far.load(Ordering::Relaxed) {
            return ChunkNow::Far;
        }
        match self.chunk(reference, Instant::now()) {
            Ok(plain) => ChunkNow::Ready(plain),
            Err(_) => ChunkNow::Near,
        }
    }

    fn chunk(&self, reference: &Reference, deadline: Instant) -> Result<Bytes, BackingError> {
        if self.far.load(Ordering::Relaxed) {
            self.travel(deadline)?;
        }
        if self.damaged.load(Ordering::Relaxed) {
            return Err(BackingError::Damaged);
        }
        self.store
            .chunks
            .lock()
            .unwrap()
            .get(reference)
            .cloned()
            .ok_or(BackingError::Damaged)
    }

    fn prefetch(&self, references: &[Reference]) {
        self.prefetched
            .fetch_add(references.len() as u64, Ordering::Relaxed);
    }

    fn sync_local(&self, _deadline: Instant) -> Result<(), BackingError> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn state(&self, ino: Ino) -> Answer<&'static str> {
        assert!(
            !self.defective.load(Ordering::Relaxed),
            "a defect on purpose"
        );
        Ok(match self.drive.state_of(ino)?.progress {
            Progress::Dirty => "dirty",
            Progress::Journaled => "journaled",
            Progress::Checkpointing => "sent",
            Progress::InTree | Progress::InCommit => "committed",
        })
    }

    fn space(&self) -> Space {
        Space {
            total: 1 << 40,
            available: 1 << 39,
        }
    }

    fn event(&self, operation: &'static str, text: &str) {
        self.events
            .lock()
            .unwrap()
            .push(format!("{operation}: {text}"));
    }

    fn shutdown(
        &self,
        _deadline: Instant,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<u64, BackingError> {
        progress(self.drive.dirty_bytes());
        self.checkpoint();
        Ok(self.pending.load(Ordering::Relaxed))
    }
}
