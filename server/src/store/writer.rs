//! The one thread that writes: gathers what waits, appends, syncs once, lets everyone see it, answers.
//!
//! Invariant (ordering law): append, sync, then visible and acknowledged; the index follows later, with the checkpoint
//! up to which it has followed. A failed sync is never tried again: the thread says so and ends. Started by `open`.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use sealdrive_pack::{Entry, PackError, PackHeader, Record, RecordKind, Writer};

use super::{Job, Put, Shared, StoreError};
use crate::clock;
use crate::index::{Checkpoint, Row, RowKey};

/// A pack is sealed when it is this long, bytes: few files, and each still quick to scan.
const PACK_BYTES: u64 = 256 << 20;
/// Most payload bytes under one sync: keeps the wait of the first of them short.
const GROUP_BYTES: usize = 8 << 20;
/// How long the first of a group waits for company.
const GROUP_WAIT: Duration = Duration::from_millis(2);
/// The index follows when this many rows wait, or when it is quiet for `INDEX_IDLE`.
const INDEX_ROWS: usize = 16_384;
/// Quiet time after which the index follows.
const INDEX_IDLE: Duration = Duration::from_millis(250);

pub(super) struct Pen {
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Writer,
    /// Number of the last record.
    pub(super) sequence: u64,
    pub(super) store: [u8; 32],
    /// Rows the index lacks are also in `shared.tail`; this says up to where.
    pub(super) dirty: bool,
}

impl Pen {
    /// Runs until the queue closes or the disk fails.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let outcome = self.serve(jobs).and_then(|()| self.follow());
        if let Err(error) = outcome {
            tracing::error!(%error, "storage failed; stopping");
            self.shared.failed.send_replace(Some(error.to_string()));
        }
    }

    fn serve(&mut self, jobs: &Receiver<Job>) -> Result<(), StoreError> {
        loop {
            let first = match jobs.recv_timeout(INDEX_IDLE) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    self.follow()?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let group = gather(first, jobs);
            match self.write(group) {
                Ok(()) | Err(StoreError::NoSpace) => {}
                Err(error) => return Err(error),
            }
            if self.tail_len() >= INDEX_ROWS {
                self.follow()?;
            }
            if self.writer.len() >= PACK_BYTES {
                self.turn()?;
            }
        }
    }

    fn tail_len(&self) -> usize {
        self.shared
            .tail
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Writes a group under one sync and answers it.
    fn write(&mut self, group: Vec<Job>) -> Result<(), StoreError> {
        let now = clock::unix_ms();
        let mut fresh: Vec<Record> = Vec::new();
        let mut known: HashMap<RowKey, [u8; 32]> = HashMap::new();
        let mut answers = Vec::with_capacity(group.len());
        for job in group {
            let mut puts = Vec::with_capacity(job.records.len());
            for mut record in job.records {
                let key = RowKey::new(record.kind, &record.owner, &record.id);
                if record.kind == RecordKind::Object {
                    let standing = match known.get(&key) {
                        Some(hash) => Some(*hash),
                        None => self.shared.row(&key)?.map(|row| row.hash),
                    };
                    if let Some(hash) = standing {
                        puts.push(Put::Exists { hash });
                        continue;
                    }
                    known.insert(key, *record.hash());
                }
                self.sequence += 1;
                record.sequence = self.sequence;
                record.received_ms = now;
                fresh.push(record);
                puts.push(Put::Stored);
            }
            answers.push((job.reply, puts, job._room));
        }
        let outcome = self.append(&fresh);
        for (reply, puts, _room) in answers {
            // A caller that is gone needs no answer; its records are durable all the same.
            let _ = reply.send(outcome.clone().map(|()| puts));
        }
        outcome
    }

    fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let entries = self.writer.append(records)?;
        self.writer.sync()?;
        let pack = self.writer.id();
        let mut tail = self
            .shared
            .tail
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        tail.extend(entries.iter().map(|entry: &Entry| Row::of(pack, entry)));
        self.dirty = true;
        Ok(())
    }

    /// Brings the index up to the packs.
    fn follow(&mut self) -> Result<(), StoreError> {
        if !self.dirty {
            return Ok(());
        }
        let rows: Vec<(RowKey, Row)> = {
            let tail = self
                .shared
                .tail
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            let mut rows: Vec<_> = tail.iter().map(|(key, row)| (*key, *row)).collect();
            rows.sort_unstable_by_key(|(key, _)| *key);
            rows
        };
        let checkpoint = Checkpoint {
            pack: self.writer.id(),
            offset: self.writer.durable(),
            sequence: self.sequence,
        };
        self.shared
            .index
            .write(rows.iter().map(|(key, row)| (key, row)), &checkpoint)?;
        // Only this thread adds to the tail, so nothing came in between.
        self.shared
            .tail
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.dirty = false;
        Ok(())
    }

    /// Seals the pack and begins the next. Out of space is no failure: the pack just grows on.
    fn turn(&mut self) -> Result<(), StoreError> {
        let header = PackHeader {
            id: self.writer.id() + 1,
            created_ms: clock::unix_ms(),
            store: self.store,
        };
        let next = match Writer::create(&self.shared.medium, header) {
            Ok(next) => next,
            Err(PackError::NoSpace) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let full = std::mem::replace(&mut self.writer, next);
        match full.finish() {
            // Without its footer a full pack is found by scan.
            Ok(_) | Err(PackError::NoSpace) => {}
            Err(error) => return Err(error.into()),
        }
        self.dirty = true;
        self.follow()
    }
}

/// The first job and what comes within `GROUP_WAIT`, up to `GROUP_BYTES`.
fn gather(first: Job, jobs: &Receiver<Job>) -> Vec<Job> {
    let size = |job: &Job| {
        job.records
            .iter()
            .map(|record| record.payload().len())
            .sum::<usize>()
    };
    let deadline = Instant::now() + GROUP_WAIT;
    let mut bytes = size(&first);
    let mut group = vec![first];
    while bytes < GROUP_BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        match jobs.recv_timeout(left) {
            Ok(job) => {
                bytes += size(&job);
                group.push(job);
            }
            Err(_) => break,
        }
    }
    group
}
