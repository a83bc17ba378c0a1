//! The workers: a job's bytes are cut into chunks, sealed into the outbox, and its ranges placed in them.
//!
//! Invariant (ordering law): an object is in the outbox before the extent that names it is installed. Each byte passes
//! once. Whoever hands out a job cuts it (one pass over the bytes, in order); the workers seal its chunks side by side,
//! and the one that seals a job's last chunk installs it. Called by the pace thread, the checkpoint and fsync.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::{Bytes, BytesMut};
use sealdrive_core::chunk::{ChunkSizes, CutStream};
use sealdrive_core::record::{Extent, Ino};
use sealdrive_core::reference::Reference;
use sealdrive_core::seal::SEAL_TOGETHER;
use sealdrive_proto::id::Kind;
use sealdrive_proto::limits::MAX_CHUNK;
use sealdrive_runtime::channel::{Receiver, SyncSender, sync_channel};
use sealdrive_runtime::sync::{Condvar, Mutex, MutexGuard};
use sealdrive_runtime::thread::{self, JoinHandle};

use super::shared::Shared;
use crate::clock;
use crate::drive::{Digest, DriveError, Job, JobDone, JobPiece, Placed};
use crate::limits::{NODE_WAIT, SEAL_IN_FLIGHT};
use crate::priority;

/// One chunk to seal.
struct Task {
    job: Arc<Flying>,
    index: usize,
    plain: Bytes,
}

/// A job whose chunks are being sealed.
struct Flying {
    job: Job,
    /// Where each chunk begins in the job's stream; one more for the end of the last.
    borders: Vec<usize>,
    references: Mutex<Vec<Option<Reference>>>,
    left: AtomicUsize,
    /// Goes with the job, after whatever its installation did.
    _ticket: Ticket,
    digests: Vec<(Ino, u64, Digest)>,
}

/// Jobs that are out, by the order in which they were handed out.
#[derive(Default)]
struct Outstanding {
    jobs: Mutex<Out>,
    ended: Condvar,
}

#[derive(Default)]
struct Out {
    last: u64,
    tickets: BTreeSet<u64>,
}

/// One job that is out; it is not any more when this goes, whatever became of it.
struct Ticket {
    number: u64,
    outstanding: Arc<Outstanding>,
}

/// Jobs handed out together.
pub(super) struct Batch {
    tickets: Vec<u64>,
    outstanding: Arc<Outstanding>,
}

impl Batch {
    /// Waits until each is installed or has failed.
    pub(super) fn wait(self) {
        let out = |out: &Out| self.tickets.iter().any(|n| out.tickets.contains(n));
        self.outstanding.wait_while(out);
    }
}

/// The way to the workers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Workers {
    /// Empty after `stop`.
    tasks: Arc<Mutex<Option<SyncSender<Task>>>>,
    /// Tasks that no worker has taken.
    waiting: Arc<AtomicUsize>,
    outstanding: Arc<Outstanding>,
    shared: Arc<Shared>,
    sizes: ChunkSizes,
}

impl Workers {
    /// Starts `count` threads; content is cut by `sizes`.
    pub(super) fn start(
        shared: &Arc<Shared>,
        count: usize,
        sizes: ChunkSizes,
    ) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (tasks, queue) = sync_channel(
            (SEAL_IN_FLIGHT / MAX_CHUNK)
                .saturating_sub(count * SEAL_TOGETHER)
                .max(1),
        );
        let queue = Arc::new(Mutex::new(queue));
        let waiting = Arc::<AtomicUsize>::default();
        let threads = (0..count).map(|n| {
            let shared = Arc::clone(shared);
            let queue = Queue {
                tasks: Arc::clone(&queue),
                waiting: Arc::clone(&waiting),
                workers: count,
            };
            thread::spawn(&format!("seal-{n}"), move || {
                priority::step_back(priority::SEALING);
                work(&shared, &queue)
            })
        });
        let threads = threads.collect::<Result<_, _>>()?;
        let tasks = Arc::new(Mutex::new(Some(tasks)));
        Ok((
            Self {
                tasks,
                waiting,
                outstanding: Arc::default(),
                shared: Arc::clone(shared),
                sizes,
            },
            threads,
        ))
    }

    /// Cuts the jobs and hands their chunks to the workers; waits only while the workers are behind.
    pub(super) fn dispatch(&self, jobs: Vec<Job>) -> Batch {
        let mut tickets = Vec::with_capacity(jobs.len());
        for job in jobs {
            let ticket = Outstanding::add(&self.outstanding);
            tickets.push(ticket.number);
            self.cut(job, ticket);
        }
        Batch {
            tickets,
            outstanding: Arc::clone(&self.outstanding),
        }
    }

    /// Waits until every job that is out now, whoever handed it out, is installed or has failed.
    pub(super) fn wait_for_those_out(&self) {
        let last = self.outstanding.lock().last;
        let older = |out: &Out| out.tickets.first().is_some_and(|first| *first <= last);
        self.outstanding.wait_while(older);
    }

    /// Waits until no job is out. Under constant writing only for one who has stopped the writers.
    pub(super) fn wait_idle(&self) {
        self.outstanding.wait_while(|out| !out.tickets.is_empty());
    }

    fn cut(&self, mut job: Job, ticket: Ticket) {
        let digests = self.share(&mut job);
        let mut stream = CutStream::with_sizes(self.shared.blobs.keys().cutter(), self.sizes);
        let mut borders = vec![0];
        for piece in &job.pieces {
            stream.push(&piece.data, &mut borders);
        }
        if !job.open_ended {
            stream.finish(&mut borders);
        }
        self.shared.crash.reached("chunked");
        self.shared
            .drive
            .job_cut(job.id, &tail_of(&job, borders[borders.len() - 1]));
        let chunks = borders.len() - 1;
        let flying = Arc::new(Flying {
            job,
            references: Mutex::new(vec![None; chunks]),
            left: AtomicUsize::new(chunks),
            borders,
            _ticket: ticket,
            digests,
        });
        if chunks == 0 {
            // Nothing long enough to cut: the bytes stay dirty and come again with what follows them.
            flying.install(&self.shared);
            return;
        }
        for index in 0..chunks {
            let plain = flying.chunk(index);
            let task = Task {
                job: Arc::clone(&flying),
                index,
                plain,
            };
            let tasks = self
                .tasks
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            self.waiting.fetch_add(1, Ordering::AcqRel);
            if tasks.is_none_or(|tasks| tasks.send(task).is_err()) {
                return;
            }
        }
    }

    /// Ends the threads; jobs handed out later are dropped.
    pub(super) fn stop(&self) {
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// What of a job's stream lies behind its last cut, by file.
fn tail_of(job: &Job, cut: usize) -> Vec<(Ino, u64, u64)> {
    let (mut tail, mut at) = (Vec::new(), 0);
    for piece in &job.pieces {
        let end = at + piece.data.len();
        if end > cut {
            let from = piece.off + cut.max(at) as u64 - at as u64;
            let to = piece.off + piece.data.len() as u64;
            match tail.last_mut() {
                Some((ino, _, last)) if (*ino, *last) == (piece.ino, from) => *last = to,
                _ => tail.push((piece.ino, from, to)),
            }
        }
        at = end;
    }
    tail
}

impl Workers {
    /// Takes out the small files whose content another file holds already; returns the digests of the others.
    fn share(&self, job: &mut Job) -> Vec<(Ino, u64, Digest)> {
        let mut digests = Vec::new();
        job.pieces.retain(|piece| {
            if !piece.whole {
                return true;
            }
            let digest = self.shared.blobs.keys().small_digest(&piece.data);
            if self.is_shared(piece, &digest) {
                return false;
            }
            digests.push((piece.ino, piece.version, digest));
            true
        });
        digests
    }

    /// Whether the piece needs no chunk. The other file's records are looked for on this machine only: what is saved is
    /// not worth a wait for the network.
    fn is_shared(&self, piece: &JobPiece, digest: &Digest) -> bool {
        let Shared { drive, blobs, .. } = &*self.shared;
        loop {
            match drive.dedup(piece, digest) {
                Err(DriveError::Missing(node)) if blobs.is_here(Kind::Tree, &node) => {
                    match blobs.node(&node, clock::now() + NODE_WAIT) {
                        Ok(found) => drive.add_node(&node, found),
                        Err(_) => return false,
                    }
                }
                answer => return answer.unwrap_or(false),
            }
        }
    }
}

impl Outstanding {
    fn add(this: &Arc<Self>) -> Ticket {
        let mut out = this.lock();
        out.last += 1;
        let number = out.last;
        out.tickets.insert(number);
        Ticket {
            number,
            outstanding: Arc::clone(this),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, condition: impl Fn(&Out) -> bool) {
        drop(self.ended.wait_while(self.lock(), |out| condition(out)));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.outstanding.lock().tickets.remove(&self.number);
        self.outstanding.ended.notify_all();
    }
}

/// The workers' end.
struct Queue {
    tasks: Arc<Mutex<Receiver<Task>>>,
    waiting: Arc<AtomicUsize>,
    workers: usize,
}

impl Queue {
    /// Waits for a task; takes a worker's share of what waits then, as far as it is worth sealing together. None at the
    /// end.
    fn take(&self) -> Option<Vec<Task>> {
        // Held while waiting for a task: the other idle workers wait for the lock instead of the channel.
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = vec![tasks.recv().ok()?];
        let share = self.waiting.load(Ordering::Acquire).div_ceil(self.workers);
        while taken.len() < share.min(SEAL_TOGETHER)
            && let Ok(task) = tasks.try_recv()
        {
            taken.push(task);
        }
        self.waiting.fetch_sub(taken.len(), Ordering::AcqRel);
        Some(taken)
    }
}

fn work(shared: &Shared, queue: &Queue) {
    while let Some(tasks) = queue.take() {
        let turns = tasks.iter().map(|task| Turn {
            shared,
            job: &task.job,
        });
        let turns: Vec<Turn<'_>> = turns.collect();
        let put = shared.blobs.with_sealer(|sealer| match &tasks[..] {
            [task] => vec![shared.blobs.put(sealer, Kind::Data, &task.plain)],
            tasks => {
                let plains: Vec<&[u8]> = tasks.iter().map(|task| &task.plain[..]).collect();
                shared.blobs.put_together(sealer, &plains)
            }
        });
        for ((task, put), turn) in tasks.iter().zip(put).zip(turns) {
            match put {
                Ok(reference) => {
                    let references = task.job.references.lock();
                    references.unwrap_or_else(PoisonError::into_inner)[task.index] =
                        Some(reference);
                    shared.crash.reached("outbox-written");
                    shared.uploading.appended.notify_one();
                }
                Err(e) => shared.trouble(&e),
            }
            drop(turn);
        }
    }
}

/// One chunk's turn: the last of a job installs it, also if sealing broke off, so that nobody waits for ever.
struct Turn<'a> {
    shared: &'a Shared,
    job: &'a Flying,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.fail_local("a sealing thread broke off");
        }
        if self.job.left.fetch_sub(1, Ordering::AcqRel) == 1 && !thread::panicking() {
            self.job.install(self.shared);
        }
    }
}

impl Flying {
    /// The plaintext of a chunk: a slice if it lies in one piece, else gathered.
    fn chunk(&self, index: usize) -> Bytes {
        let (from, to) = (self.borders[index], self.borders[index + 1]);
        let mut gathered = BytesMut::new();
        let mut at = 0;
        for piece in &self.job.pieces {
            let (start, end) = (at, at + piece.data.len());
            at = end;
            if end <= from {
                continue;
            }
            if start >= to {
                break;
            }
            let part = piece
                .data
                .slice(from.max(start) - start..to.min(end) - start);
            if part.len() == to - from {
                return part;
            }
            if gathered.is_empty() {
                gathered.reserve(to - from);
            }
            gathered.extend_from_slice(&part);
        }
        gathered.freeze()
    }

    /// Tells the drive where its ranges are now. A job with a failed chunk places nothing: its bytes stay dirty.
    fn install(&self, shared: &Shared) {
        let references = self
            .references
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let placed = if references.iter().all(Option::is_some) {
            self.place(&references)
        } else {
            Vec::new()
        };
        shared.crash.reached("sealed");
        let digests = if placed.is_empty() {
            Vec::new()
        } else {
            self.digests.clone()
        };
        let done = JobDone {
            id: self.job.id,
            placed,
            digests,
        };
        if shared.with_nodes(|drive| drive.install(&done)).is_err() {
            // A node is not to be had now: the job ends without a result, and its bytes come again.
            let none = JobDone {
                id: self.job.id,
                ..JobDone::default()
            };
            if shared.drive.install(&none).is_err() {
                tracing::warn!("a writeback job could not be ended");
            }
        }
        shared.crash.reached("installed");
    }

    fn place(&self, references: &[Option<Reference>]) -> Vec<Placed> {
        let mut out = Vec::new();
        let mut at = 0;
        let mut index = 0;
        for piece in &self.job.pieces {
            let end = at + piece.data.len();
            let mut from = at;
            while from < end && index < references.len() {
                let (chunk_from, chunk_to) = (self.borders[index], self.borders[index + 1]);
                let to = end.min(chunk_to);
                if let Some(reference) = references[index] {
                    let extent = Extent::Chunk {
                        reference,
                        skip: (from - chunk_from) as u32,
                        len: (to - from) as u32,
                    };
                    out.push(Placed {
                        ino: piece.ino,
                        off: piece.off + (from - at) as u64,
                        version: piece.version,
                        extent,
                    });
                }
                from = to;
                if to == chunk_to {
                    index += 1;
                }
            }
            at = end;
        }
        out
    }
}
