//! Read-ahead: chunks that will probably be wanted are fetched and opened before they are.
//!
//! Invariant: asking never waits; what does not fit the queue is dropped, because a guess is not worth a wait. Called
//! by the read path.

use std::sync::{Arc, PoisonError};

use sealdrive_core::reference::Reference;
use sealdrive_proto::id::Kind;
use sealdrive_runtime::channel::{Receiver, SyncSender, sync_channel};
use sealdrive_runtime::sync::Mutex;
use sealdrive_runtime::thread::{self, JoinHandle};

use super::shared::Shared;
use crate::clock;
use crate::limits::{FETCH_DEADLINE, PREFETCH_QUEUE, PREFETCH_THREADS};

/// The way to the prefetching threads.
pub(super) struct Prefetch {
    wants: Mutex<Option<SyncSender<Reference>>>,
}

impl Prefetch {
    /// Starts the threads.
    pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (wants, queue) = sync_channel(PREFETCH_QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..PREFETCH_THREADS).map(|n| {
            let (shared, queue) = (Arc::clone(shared), Arc::clone(&queue));
            thread::spawn(&format!("ahead-{n}"), move || work(&shared, &queue))
        });
        let threads = threads.collect::<Result<_, _>>()?;
        Ok((
            Self {
                wants: Mutex::new(Some(wants)),
            },
            threads,
        ))
    }

    /// Wants these soon.
    pub(super) fn ask(&self, references: impl IntoIterator<Item = Reference>) {
        let wants = self.wants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wants) = &*wants {
            for reference in references {
                if wants.try_send(reference).is_err() {
                    return;
                }
            }
        }
    }

    /// Ends the threads.
    pub(super) fn stop(&self) {
        self.wants
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

fn work(shared: &Shared, queue: &Mutex<Receiver<Reference>>) {
    loop {
        let want = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(reference) = want else { return };
        if shared.progress.now().quit {
            return;
        }
        // Only a guess: if it fails the reader will meet the same error and report it.
        let _ = shared
            .blobs
            .get(Kind::Data, &reference, clock::now() + FETCH_DEADLINE);
    }
}
