//! The upload: the outbox in order, over one stream, within a window; whatever was not acknowledged is sent again.
//!
//! Invariant: `Outbox::acknowledge` is called only with what the server says survives its power cut, and never past an
//! object whose id the server holds with other bytes until those were opened. One task.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use sealdrive_core::reference::Reference;
use sealdrive_proto::id::Sid;
use sealdrive_proto::limits::{UPLOAD_BATCH, UPLOAD_WINDOW};
use sealdrive_runtime::task;
use sealdrive_runtime::time::{self, timeout};
use tokio::sync::{Notify, watch};

use super::backoff::Backoff;
use super::casualties;
use super::conflict;
use super::events::EventKind;
use super::hole::{self, TORN};
use super::lease::Lease;
use super::shared::Shared;
use crate::clock;
use crate::limits::{CALL_DEADLINE, NODE_WAIT, UPLOAD_YIELD, UPLOAD_YIELD_LONGEST};
use crate::remote::{Ack, Remote, RemoteError, UploadStream};
use crate::store::{Outgoing, Position, StoreError};

/// What others see of the upload.
#[derive(Default)]
pub(super) struct Uploading {
    /// Rung after every append.
    pub(super) appended: Notify,
    /// Bytes acknowledged since the mount.
    pub(super) sent_bytes: AtomicU64,
    /// The stream is open.
    pub(super) online: AtomicBool,
}

impl Uploading {
    /// Whether the stream is open.
    pub(super) fn is_online(&self) -> bool {
        self.online.load(Ordering::Relaxed)
    }

    /// Bytes acknowledged since the mount.
    pub(super) fn sent(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }
}

struct Flying {
    sequence: u64,
    sid: Sid,
    end: Position,
    len: usize,
}

enum Stop {
    Remote(RemoteError),
    Local(StoreError),
    LeaseLost,
}

impl From<RemoteError> for Stop {
    fn from(e: RemoteError) -> Self {
        Self::Remote(e)
    }
}

impl From<StoreError> for Stop {
    fn from(e: StoreError) -> Self {
        Self::Local(e)
    }
}

/// Uploads until `stop`.
pub(super) async fn run(
    shared: Arc<Shared>,
    remote: Arc<dyn Remote>,
    mut lease: watch::Receiver<Lease>,
    mut stop: watch::Receiver<bool>,
) {
    let mut backoff = Backoff::default();
    loop {
        let held = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            held = lease.wait_for(|lease| lease.held().is_some()) => held.ok().and_then(|l| l.held()),
        };
        let Some((epoch, gc_generation)) = held else {
            return;
        };
        let before = shared.uploading.sent_bytes.load(Ordering::Relaxed);
        let ended = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            ended = session(&shared, &remote, &mut lease, epoch, gc_generation) => ended,
        };
        shared.uploading.online.store(false, Ordering::Relaxed);
        if shared.uploading.sent_bytes.load(Ordering::Relaxed) > before {
            backoff.reset();
        }
        match ended {
            Stop::Remote(RemoteError::Fenced | RemoteError::Stale) | Stop::LeaseLost => {
                shared.renew_lease()
            }
            Stop::Remote(e) if e.is_temporary() => {
                if e == RemoteError::Quota {
                    shared.progress.update(|m| m.over_quota = true);
                }
                shared.note_remote_error(&e);
            }
            Stop::Remote(e) => shared
                .events
                .push(EventKind::Refused, format!("upload: {e}")),
            Stop::Local(StoreError::OutboxDamaged(sid, end)) => {
                heal(&shared, sid, end).await;
                backoff.reset();
            }
            Stop::Local(e) => shared.trouble(&e),
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = time::sleep(backoff.next()) => {}
        }
    }
}

/// One damaged object must not keep the others from the server: it is sealed again from memory, or set aside and told.
async fn heal(shared: &Arc<Shared>, sid: Sid, end: Position) {
    let here = Arc::clone(shared);
    let healed = task::spawn_blocking(move || {
        let node = |reference: &Reference| here.drive.node_in_memory(reference);
        here.blobs.heal(sid, end, node)
    });
    match healed.await {
        Ok(Ok(true)) => {
            shared.progress.must_reach(shared.store.end());
            let what = format!(
                "object {} of the outbox was damaged and is sealed again",
                sid.to_hex()
            );
            shared.events.push(EventKind::Healed, what);
        }
        Ok(Ok(false)) => {
            let what = format!(
                "object {} was damaged before it was on the server",
                sid.to_hex()
            );
            shared.events.push(EventKind::OutboxDamage, what);
            let lost = HashSet::from([sid]);
            keep_commits_whole(shared, lost.clone()).await;
            casualties::search(shared, lost);
        }
        Ok(Err(e)) => shared.trouble(&e),
        Err(_) => shared.fail_local("healing the outbox broke off"),
    }
}

/// Lets no commit name a tree that one of these is a node of: it would be a restore point that cannot be restored.
async fn keep_commits_whole(shared: &Arc<Shared>, lost: HashSet<Sid>) {
    let Some(candidate) = shared.progress.now().candidate else {
        return;
    };
    let here = Arc::clone(shared);
    let look = task::spawn_blocking(move || {
        let deadline = clock::now() + NODE_WAIT;
        hole::find(&here.blobs, &here.store, candidate.root, &lost, deadline)
    });
    if let Ok(Ok(Some(_))) = look.await {
        shared.stop_commits(EventKind::OutboxDamage, TORN);
    }
}

async fn session(
    shared: &Arc<Shared>,
    remote: &Arc<dyn Remote>,
    lease: &mut watch::Receiver<Lease>,
    epoch: u64,
    gc_generation: u64,
) -> Stop {
    match transfer(shared, remote, lease, epoch, gc_generation).await {
        Ok(never) => match never {},
        Err(stop) => stop,
    }
}

async fn transfer(
    shared: &Arc<Shared>,
    remote: &Arc<dyn Remote>,
    lease: &mut watch::Receiver<Lease>,
    epoch: u64,
    gc_generation: u64,
) -> Result<std::convert::Infallible, Stop> {
    let late = |_| RemoteError::Unreachable("no answer in time".into());
    let UploadStream { objects, mut acks } =
        timeout(CALL_DEADLINE, remote.open_upload(epoch, gc_generation))
            .await
            .map_err(late)??;
    shared.uploading.online.store(true, Ordering::Relaxed);
    let mut cursor = shared.store.outbox().acknowledged();
    let mut ready: VecDeque<Outgoing> = VecDeque::new();
    let mut flying: VecDeque<Flying> = VecDeque::new();
    let mut in_flight = 0;
    let mut sequence = 0;
    let mut courtesy = Courtesy::default();
    loop {
        if ready.is_empty() && in_flight < UPLOAD_WINDOW {
            ready = read_ahead(shared, cursor).await?.into();
            cursor = ready.back().map_or(cursor, |last| last.end);
            shared.crash.reached("upload-read");
        }
        let yields = courtesy.yields(shared.writers_first(), clock::now());
        let may_send = !ready.is_empty() && in_flight < UPLOAD_WINDOW && !yields;
        // In this order: a lost lease stops at once, acknowledgements make room, and only then more is sent.
        tokio::select! {
            biased;
            () = lost(lease, (epoch, gc_generation)) => return Err(Stop::LeaseLost),
            ack = acks.recv() => {
                let gone = || RemoteError::Unreachable("the upload stream closed".into());
                in_flight -= land(shared, remote, &mut flying, sequence, ack.ok_or_else(gone)??).await?;
            }
            permit = objects.reserve(), if may_send => {
                let gone = |_| RemoteError::Unreachable("the upload stream closed".into());
                let permit = permit.map_err(gone)?;
                if let Some(next) = ready.pop_front() {
                    sequence += 1;
                    in_flight += next.object.len();
                    flying.push_back(Flying { sequence, sid: next.sid, end: next.end, len: next.object.len() });
                    permit.send((sequence, next.object));
                    shared.crash.reached("upload-sent");
                }
            }
            () = time::sleep(UPLOAD_YIELD), if yields => {}
            () = shared.uploading.appended.notified(), if ready.is_empty() && in_flight < UPLOAD_WINDOW => {}
        }
    }
}

/// How long the upload has let writers go first.
#[derive(Default)]
struct Courtesy {
    since: Option<Instant>,
}

impl Courtesy {
    /// Whether to let them go first now. Not for ever: what fills memory may be waiting for the upload.
    fn yields(&mut self, pressed: bool, now: Instant) -> bool {
        if !pressed {
            self.since = None;
            return false;
        }
        now < *self.since.get_or_insert(now) + UPLOAD_YIELD_LONGEST
    }
}

async fn lost(lease: &mut watch::Receiver<Lease>, held: (u64, u64)) {
    // An error means that the keeper is gone: then the lease is, too.
    let _ = lease.wait_for(|now| now.held() != Some(held)).await;
}

async fn read_ahead(shared: &Arc<Shared>, cursor: Position) -> Result<Vec<Outgoing>, StoreError> {
    let shared = Arc::clone(shared);
    let read = task::spawn_blocking(move || shared.store.outbox().next_after(cursor, UPLOAD_BATCH));
    read.await.map_err(|_| StoreError::Failed)?
}

/// Takes what was acknowledged out of the window; returns its bytes.
async fn land(
    shared: &Arc<Shared>,
    remote: &Arc<dyn Remote>,
    flying: &mut VecDeque<Flying>,
    sent: u64,
    ack: Ack,
) -> Result<usize, Stop> {
    if ack.durable_sequence > sent {
        return Err(RemoteError::Tampered("an acknowledgement of what was not sent".into()).into());
    }
    for conflict in &ack.conflicts {
        let Some(ours) = flying.iter().find(|f| f.sequence == conflict.sequence) else {
            continue;
        };
        conflict::settle(shared, remote, ours.sid, conflict.stored_hash).await?;
    }
    let mut bytes = 0;
    let mut reached = None;
    while flying
        .front()
        .is_some_and(|first| first.sequence <= ack.durable_sequence)
    {
        if let Some(landed) = flying.pop_front() {
            bytes += landed.len;
            reached = Some(landed.end);
        }
    }
    if let Some(end) = reached {
        shared.store.outbox().acknowledge(end);
        shared.crash.reached("upload-acknowledged");
        shared
            .uploading
            .sent_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        if shared.progress.now().over_quota {
            shared.progress.update(|m| m.over_quota = false);
        }
        shared.heard();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upload_lets_writers_go_first_but_not_for_ever() {
        let mut courtesy = Courtesy::default();
        let start = clock::now();
        assert!(!courtesy.yields(false, start));
        assert!(courtesy.yields(true, start));
        let end = start + UPLOAD_YIELD_LONGEST;
        assert!(courtesy.yields(true, end - UPLOAD_YIELD));
        assert!(!courtesy.yields(true, end));
        assert!(!courtesy.yields(true, end + UPLOAD_YIELD_LONGEST));
        // Writers have paused: the next burst is a new one.
        assert!(!courtesy.yields(false, end));
        assert!(courtesy.yields(true, end));
    }
}
