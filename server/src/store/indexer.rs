//! The indexer thread: lets the index follow the packs, many groups to a transaction.
//!
//! Invariant: batches are applied in the order they were written, so the checkpoint always stands for a prefix; a row
//! leaves the tail only after the transaction that holds it is durable. A failed commit stops the store. Called by
//! `Store`.

use std::io;
use std::sync::{Arc, PoisonError};

use sealdrive_pack::Entry;
use sealdrive_runtime::channel::{Receiver, SyncSender, sync_channel};
use sealdrive_runtime::thread::{self, JoinHandle};

use super::Shared;
use crate::clock::instant;
use crate::index::{Checkpoint, RowKey};
use crate::limits::{INDEX_BATCH, INDEX_DELAY, INDEX_QUEUE};

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

fn run(shared: &Shared, batches: &Receiver<Batch>) {
    while let Some(batch) = gather(batches) {
        if shared.is_abandoned() {
            return;
        }
        shared.options.reached("server.before-index");
        if let Err(error) = shared.index.apply(&batch.records, &batch.checkpoint) {
            shared.fail(error);
            return;
        }
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
