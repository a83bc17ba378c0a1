//! The indexer thread: lets the index follow the packs, many groups to a transaction.
//!
//! Invariant: batches are applied in the order they were written, so the checkpoint always stands for a prefix; a row
//! leaves the tail only after the transaction that holds it is durable. A failed commit stops the store, but for one
//! that found no space: it is tried until it does. Called by `Store`.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use sealdrive_pack::Entry;
use sealdrive_runtime::channel::{Receiver, SyncSender, sync_channel};
use sealdrive_runtime::thread::{self, JoinHandle};

use super::Shared;
use crate::clock::instant;
use crate::index::{Checkpoint, IndexError, RowKey};
use crate::limits::{INDEX_BATCH, INDEX_DELAY, INDEX_QUEUE, INDEX_RESERVE_PART, INDEX_RETRY};

/// One durable group.
pub(super) struct Batch {
    pub(super) records: Vec<(u64, Entry)>,
    pub(super) checkpoint: Checkpoint,
}

pub(super) fn start(shared: Arc<Shared>) -> io::Result<(SyncSender<Batch>, JoinHandle<()>)> {
    let (send, receive) = sync_channel(INDEX_QUEUE);
    let thread = thread::spawn("indexer", move || run(&shared, &receive))?;
    Ok((send, thread))
}

impl Shared {
    /// Holds the index's reserve if there is room to spare, less of it on a small disk.
    pub(super) fn keep_reserve(&self) {
        let (held, most) = (self.reserve.held(), self.options.index_reserve);
        let Ok(free) = self.packs.medium().free() else {
            return;
        };
        let target = most.min(free.saturating_add(held) / INDEX_RESERVE_PART);
        // What was just given up is needed: not again before there is as much besides.
        if held < target && free.saturating_sub(target) > self.options.reserve_bytes.min(target) {
            if let Err(error) = self.reserve.hold(target) {
                tracing::warn!(%error, "no space is held for the index");
            } else if target < most {
                tracing::warn!(
                    bytes = target,
                    "a small disk: less than usual is held for the index"
                );
            }
        }
    }
}

fn run(shared: &Shared, batches: &Receiver<Batch>) {
    while let Some(batch) = gather(batches) {
        if shared.is_abandoned() {
            return;
        }
        shared.options.reached("server.before-index");
        match apply(shared, &batch) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return shared.fail(error),
        }
        shared.keep_reserve();
        shared.options.reached("server.indexed");
        let mut tail = shared.tail.write().unwrap_or_else(PoisonError::into_inner);
        for (pack, entry) in &batch.records {
            let (key, _) = RowKey::changed_by(*pack, entry);
            // A later record of the same name stays until its own batch.
            if tail
                .get(&key)
                .is_some_and(|latest| latest.sequence == entry.header.sequence)
            {
                tail.remove(&key);
            }
        }
    }
}

/// Waits for space as long as it takes; false if the store ends before: what the index lacks is replayed from the
/// packs.
fn apply(shared: &Shared, batch: &Batch) -> Result<bool, IndexError> {
    let mut told = false;
    loop {
        match shared.index.apply(&batch.records, &batch.checkpoint) {
            Err(IndexError::Full) => {}
            done => return done.map(|()| true),
        }
        if shared.is_abandoned() || shared.closing.load(Ordering::SeqCst) {
            return Ok(false);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!("no space left for the index: it waits; nothing is lost");
        }
        thread::sleep(INDEX_RETRY);
    }
}

/// Waits for a batch, then for more of them, up to the size of a transaction or `INDEX_DELAY`.
/// `None`: the writer has stopped.
fn gather(batches: &Receiver<Batch>) -> Option<Batch> {
    let mut all = batches.recv().ok()?;
    let start = instant();
    while all.records.len() < INDEX_BATCH {
        let left = INDEX_DELAY.saturating_sub(instant().saturating_duration_since(start));
        // Time is up, or the writer has stopped: either way this is the batch.
        let Ok(more) = batches.recv_timeout(left) else {
            break;
        };
        all.records.extend(more.records);
        all.checkpoint = more.checkpoint;
    }
    Some(all)
}
