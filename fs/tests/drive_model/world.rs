//! What is around a drive: a store of nodes and chunks that seals nothing, a journal that is a vector, checkpoints.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use sealdrive::drive::{
    Answer, Drive, DriveError, Errno, Frozen, Job, JobDone, JobPiece, LogData, Placed, PlanPiece,
    Settle,
};
use sealdrive_core::journal::Entry;
use sealdrive_core::merge;
use sealdrive_core::node::Node;
use sealdrive_core::record::{Extent, Ino, Time};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::{Missing, Nodes, Root, TreeError};
use sealdrive_proto::id::{Cid, Epoch};

use crate::model::Model;

const NODE_KEY: [u8; 32] = [7; 32];

/// A stream of numbers; the same seed is the same world.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n.max(1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

#[derive(Default)]
pub(crate) struct Store {
    nodes: HashMap<Cid, Arc<Node>>,
    chunks: HashMap<Cid, Bytes>,
}

impl Nodes for Store {
    fn get(&self, reference: &Reference) -> Result<Arc<Node>, Missing> {
        self.nodes
            .get(&reference.cid)
            .cloned()
            .ok_or(Missing(*reference))
    }
}

fn reference(plain: &[u8]) -> Reference {
    Reference {
        epoch: Epoch(0),
        cid: Cid(*blake3::hash(plain).as_bytes()),
        plain_len: plain.len() as u32,
        variant: 0,
    }
}

pub(crate) struct World {
    pub(crate) drive: Drive,
    pub(crate) store: Store,
    /// What is on disk: entries, and the model as it was at each barrier (by number of entries).
    pub(crate) journal: Vec<Entry>,
    pub(crate) barriers: Vec<(usize, Model)>,
    /// Last durable checkpoint and what it holds.
    pub(crate) checkpoint: (Option<Root>, u64, Model),
    /// A checkpoint under way.
    pub(crate) frozen: Option<(Frozen, Model)>,
    /// Jobs that are out.
    pub(crate) jobs: Vec<Job>,
    pub(crate) missing: u64,
    pub(crate) shared: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let drive = Drive::new(None, 0);
        assert_eq!(drive.format_if_empty(0, 0, time(0)), Ok(true));
        let mut world = Self {
            drive,
            store: Store::default(),
            journal: Vec::new(),
            barriers: Vec::new(),
            checkpoint: (None, 0, Model::new(0)),
            frozen: None,
            jobs: Vec::new(),
            missing: 0,
            shared: 0,
        };
        world.log(&Model::new(0));
        world
    }

    /// Runs an operation, bringing the nodes it misses.
    pub(crate) fn run<T>(&mut self, mut op: impl FnMut(&Drive) -> Answer<T>) -> Result<T, Errno> {
        for _ in 0..10_000 {
            match op(&self.drive) {
                Ok(value) => return Ok(value),
                Err(DriveError::Errno(errno)) => return Err(errno),
                Err(DriveError::Missing(reference)) => {
                    self.missing += 1;
                    let node = self
                        .store
                        .nodes
                        .get(&reference.cid)
                        .expect("every node was stored");
                    self.drive.add_node(&reference, Arc::clone(node));
                }
            }
        }
        panic!("an operation that never finds its nodes");
    }

    pub(crate) fn log(&mut self, model: &Model) {
        let entries = self.run(|drive| drive.take_log(LogData::All)).expect("log");
        self.journal.extend(entries);
        self.barriers.push((self.journal.len(), model.named()));
        assert!(
            !self.drive.has_unlogged(),
            "something is not in the log after it was taken"
        );
    }

    pub(crate) fn take_jobs(&mut self, which: Settle, bytes: u64) {
        let jobs = self
            .run(|drive| drive.writeback_jobs(which, bytes))
            .expect("jobs");
        self.jobs.extend(jobs);
    }

    /// Cuts and stores one job that is out, in pieces of arbitrary lengths.
    pub(crate) fn finish_job(&mut self, dice: &mut Dice, may_fail: bool) -> bool {
        if self.jobs.is_empty() {
            return false;
        }
        let at = dice.below(self.jobs.len() as u64) as usize;
        let job = self.jobs.swap_remove(at);
        let mut done = JobDone {
            id: job.id,
            ..JobDone::default()
        };
        if !(may_fail && dice.one_in(10)) {
            self.seal(&job, dice, &mut done);
        }
        self.run(|drive| drive.install(&done)).expect("install");
        true
    }

    fn seal(&mut self, job: &Job, dice: &mut Dice, done: &mut JobDone) {
        let mut stream = Vec::new();
        let mut spans = Vec::new();
        for piece in &job.pieces {
            if piece.whole {
                let digest = *blake3::hash(&piece.data).as_bytes();
                if self.drive.dedup(piece, &digest).unwrap_or(false) {
                    self.shared += 1;
                    continue;
                }
                done.digests.push((piece.ino, piece.version, digest));
            }
            spans.push((stream.len(), piece));
            stream.extend_from_slice(&piece.data);
        }
        let mut start = 0;
        while start < stream.len() {
            let longest = if dice.one_in(4) { 9_000 } else { 1 << 20 };
            let end = (start + 1 + dice.below(longest) as usize).min(stream.len());
            if end == stream.len() && job.open_ended && dice.one_in(2) {
                self.leave_tail(job, &spans, start, dice);
                break;
            }
            let chunk = Bytes::copy_from_slice(&stream[start..end]);
            let reference = reference(&chunk);
            self.store.chunks.insert(reference.cid, chunk);
            for (at, piece) in &spans {
                let (from, to) = (start.max(*at), end.min(at + piece.data.len()));
                if from < to {
                    done.placed.push(Placed {
                        ino: piece.ino,
                        off: piece.off + (from - at) as u64,
                        version: piece.version,
                        extent: Extent::Chunk {
                            reference,
                            skip: (from - start) as u32,
                            len: (to - from) as u32,
                        },
                    });
                }
            }
            start = end;
        }
    }

    /// Sometimes says early what no chunk takes, as the engine does: other jobs may then have it before this one ends.
    fn leave_tail(&self, job: &Job, spans: &[(usize, &JobPiece)], cut: usize, dice: &mut Dice) {
        if dice.one_in(3) {
            return;
        }
        let behind = spans
            .iter()
            .filter(|(at, piece)| at + piece.data.len() > cut);
        let part = |(at, piece): &(usize, &JobPiece)| {
            let from = piece.off + cut.saturating_sub(*at) as u64;
            (piece.ino, from, piece.off + piece.data.len() as u64)
        };
        let tail: Vec<_> = behind.map(part).collect();
        self.drive.job_cut(job.id, &tail);
    }

    /// Stall, write everything back, freeze. The merge comes later.
    pub(crate) fn freeze(&mut self, dice: &mut Dice, model: &Model) {
        if self.frozen.is_some() {
            return;
        }
        self.drive.stall();
        let frozen = loop {
            while self.finish_job(dice, false) {}
            if let Some(frozen) = self.run(|drive| drive.freeze()).expect("freeze") {
                break frozen;
            }
            self.take_jobs(Settle::All, u64::MAX);
            assert!(
                !self.jobs.is_empty(),
                "not ready to freeze, and nothing to write back: {} bytes, {} out",
                self.drive.unplaced_bytes(),
                self.drive.jobs_out()
            );
        };
        assert_eq!(self.drive.unplaced_bytes(), 0);
        self.drive.unstall();
        self.frozen = Some((frozen, model.named()));
    }

    pub(crate) fn merge(&mut self) {
        let Some((frozen, model)) = self.frozen.take() else {
            return;
        };
        let root = self.apply(&frozen);
        self.checkpoint = (Some(root), frozen.seq, model);
        self.drive.thaw(root);
    }

    pub(crate) fn apply(&mut self, frozen: &Frozen) -> Root {
        let mut fresh = Vec::new();
        let mut put = |plain: &[u8]| -> Result<Reference, TreeError> {
            fresh.push(Bytes::copy_from_slice(plain));
            Ok(reference(plain))
        };
        let edits = frozen.overlay.iter();
        let root = merge::apply(
            &self.store,
            frozen.root.as_ref(),
            edits,
            &NODE_KEY,
            &mut put,
        )
        .expect("merge");
        for plain in fresh {
            let node = Node::decode(plain.clone()).expect("node");
            self.store
                .nodes
                .insert(reference(&plain).cid, Arc::new(node));
        }
        root
    }

    /// The power fails: of the journal, `kept` entries are on disk. Returns what must be there afterwards.
    pub(crate) fn crash(&mut self, kept: usize) -> Model {
        // The first barrier is the empty drive, which is made durable when a drive is created.
        let kept = kept.max(self.barriers[0].0.min(self.journal.len()));
        self.journal.truncate(kept);
        self.barriers.retain(|(at, _)| *at <= kept);
        self.jobs.clear();
        self.frozen = None;
        let (root, seq, at_checkpoint) = self.checkpoint.clone();
        let last_seq = self
            .barriers
            .last()
            .map(|(at, _)| self.journal[at - 1].seq());
        let model = match self.barriers.last() {
            Some((_, model)) if last_seq.is_some_and(|last| last > seq) => model.clone(),
            _ => at_checkpoint,
        };
        self.drive = Drive::recover(root, seq, self.journal.iter().cloned());
        // The next checkpoint period begins after what was recovered; a torn batch is never appended to.
        let end = self.barriers.last().map_or(0, |(at, _)| *at);
        self.journal.truncate(end);
        model
    }

    pub(crate) fn read(&mut self, ino: Ino, off: u64, len: u64) -> Vec<u8> {
        let plan = self
            .run(|drive| drive.read_plan(ino, off, len))
            .expect("read");
        let mut out = Vec::new();
        for piece in plan.pieces {
            assert!(!piece.is_empty());
            match piece {
                PlanPiece::Memory(bytes) => out.extend_from_slice(&bytes),
                PlanPiece::Zero(len) => out.resize(out.len() + len as usize, 0),
                PlanPiece::Chunk {
                    reference,
                    skip,
                    len,
                } => {
                    let chunk = &self.store.chunks[&reference.cid];
                    out.extend_from_slice(&chunk[skip as usize..(skip + len) as usize]);
                }
            }
        }
        out
    }

    /// Every record in the tree of the last checkpoint.
    pub(crate) fn records(&self, root: &Root) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let everything = sealdrive_core::record::Key::everything();
        sealdrive_core::tree::range(&self.store, root, &everything, |key, _| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        })
        .expect("tree");
        keys
    }
}

pub(crate) fn time(secs: i64) -> Time {
    Time { secs, nanos: 0 }
}
