//! Fetching objects: small wants of many readers are gathered for a moment and travel in one call.
//!
//! Invariant: at most `FETCH_STREAMS` calls are under way; every want is answered once, if only with an error. What
//! comes back is unverified. Called by `blobs.rs` (from threads that may block) and served by one task.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sealdrive_proto::id::Sid;
use sealdrive_runtime::channel::{self as blocking, send_blocking};
use sealdrive_runtime::task::{self, Handle};
use sealdrive_runtime::time::{timeout, timeout_at};
use tokio::sync::{Semaphore, mpsc};

use crate::clock;
use crate::limits::{FETCH_BATCH, FETCH_DEADLINE, FETCH_GATHER, FETCH_STREAMS};
use crate::remote::{Remote, RemoteError};

/// What the server answered for one object: `None` if it does not have it.
pub(super) type Answer = Result<Option<Bytes>, RemoteError>;

struct Want {
    sid: Sid,
    answer: blocking::SyncSender<Answer>,
}

/// The way to the fetch task. Cheap to clone.
#[derive(Clone)]
pub(super) struct Fetcher {
    wants: mpsc::Sender<Want>,
}

impl Fetcher {
    /// Starts the task on `runtime`; it ends when the last clone of the fetcher is gone.
    pub(super) fn start(runtime: &Handle, remote: Arc<dyn Remote>) -> Self {
        let (wants, queue) = mpsc::channel(FETCH_BATCH * FETCH_STREAMS);
        runtime.spawn(gather(queue, remote));
        Self { wants }
    }

    /// Waits for one object until `deadline`. Not for threads of the runtime.
    pub(super) fn fetch(&self, sid: Sid, deadline: Instant) -> Answer {
        let late = || RemoteError::Unreachable("no answer in time".into());
        let (answer, reply) = blocking::sync_channel(1);
        send_blocking(&self.wants, Want { sid, answer })
            .map_err(|_| RemoteError::Unreachable("shutting down".into()))?;
        let left = deadline.saturating_duration_since(clock::now());
        reply.recv_timeout(left).map_err(|_| late())?
    }

    /// Asks for many at once, answers in the order asked; for the background.
    pub(super) fn fetch_many(&self, sids: &[Sid], deadline: Instant) -> Vec<Answer> {
        let replies: Vec<_> = sids
            .iter()
            .map(|sid| {
                let (answer, reply) = blocking::sync_channel(1);
                send_blocking(&self.wants, Want { sid: *sid, answer })
                    .ok()
                    .map(|()| reply)
            })
            .collect();
        let late = || RemoteError::Unreachable("no answer in time".into());
        replies
            .into_iter()
            .map(|reply| {
                let left = deadline.saturating_duration_since(clock::now());
                reply
                    .ok_or_else(late)?
                    .recv_timeout(left)
                    .map_err(|_| late())?
            })
            .collect()
    }
}

async fn gather(mut queue: mpsc::Receiver<Want>, remote: Arc<dyn Remote>) {
    let streams = Arc::new(Semaphore::new(FETCH_STREAMS));
    while let Some(first) = queue.recv().await {
        let mut batch = vec![first];
        let closes = clock::now() + FETCH_GATHER;
        while batch.len() < FETCH_BATCH {
            match timeout_at(closes, queue.recv()).await {
                Ok(Some(want)) => batch.push(want),
                Ok(None) | Err(_) => break,
            }
        }
        let Ok(permit) = Arc::clone(&streams).acquire_owned().await else {
            return;
        };
        let remote = Arc::clone(&remote);
        task::spawn(async move {
            let mut waiting: Vec<Option<Want>> = batch.into_iter().map(Some).collect();
            let error = call(&remote, &mut waiting).await.err();
            let error =
                error.unwrap_or_else(|| RemoteError::Unreachable("the stream ended early".into()));
            for want in waiting.into_iter().flatten() {
                // A reader that gave up has dropped its end: nobody is left to tell.
                let _ = want.answer.send(Err(error.clone()));
            }
            drop(permit);
        });
    }
}

async fn call(remote: &Arc<dyn Remote>, waiting: &mut [Option<Want>]) -> Result<(), RemoteError> {
    let late = |_| RemoteError::Unreachable("no answer in time".into());
    let sids = waiting.iter().flatten().map(|want| want.sid).collect();
    let mut answers = timeout(FETCH_DEADLINE, remote.fetch(sids))
        .await
        .map_err(late)??;
    while let Some(answer) = timeout(FETCH_DEADLINE, answers.recv())
        .await
        .map_err(late)?
    {
        let answer = answer?;
        let slot = waiting
            .get_mut(answer.index as usize)
            .and_then(Option::take);
        let want =
            slot.ok_or_else(|| RemoteError::Tampered("an object nobody asked for".into()))?;
        let _ = want.answer.send(Ok(answer.object));
    }
    Ok(())
}
