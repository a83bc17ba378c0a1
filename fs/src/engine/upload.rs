//! The upload: the outbox in order, over one stream, within a window; whatever was not acknowledged is sent again.
//!
//! Invariant: `Outbox::acknowledge` is called only with what the server says survives its power cut, and never past an
//! object whose id the server holds with other bytes until those were opened. An object that the server refuses is set
//! aside, and what is behind it goes on ([`super::refused`]). One task.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
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
use super::hole::TORN;
use super::lease::Lease;
use super::refused::{self, Flying, Offers};
use super::shared::Shared;
use crate::clock;
use crate::limits::{CALL_DEADLINE, UPLOAD_YIELD, UPLOAD_YIELD_LONGEST};
use crate::remote::{Ack, Remote, RemoteError, UploadStream};
use crate::store::{Outgoing, Position, StoreError};

/// What others see of the upload.
#[derive(Default)]
pub(super) struct Uploading {
    /// Rung after every append.
    pub(super) appended: Notify,
    /// Rung when the server is to be asked again now.
    pub(super) asked: Notify,
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

enum Stop {
    Remote(RemoteError),
    Local(StoreError),
    LeaseLost,
    /// The server refuses one of these, which were on their way.
    Refused(RemoteError, VecDeque<Flying>),
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
    let mut offers = Offers::new();
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
        let asked = shared.progress.asked();
        let held = (epoch, gc_generation);
        let ended = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            ended = session(&shared, &remote, &mut lease, &mut offers, held) => ended,
        };
        shared.uploading.online.store(false, Ordering::Relaxed);
        if shared.uploading.sent_bytes.load(Ordering::Relaxed) > before {
            backoff.reset();
        }
        match ended {
            Stop::Refused(e, flying) => {
                if offers.refused(&shared, &e, &flying) {
                    continue;
                }
            }
            Stop::Remote(RemoteError::Fenced | RemoteError::Stale) | Stop::LeaseLost => {
                offers.reconnect();
                shared.renew_lease()
            }
            Stop::Remote(e) if e.is_temporary() => {
                offers.reconnect();
                if e == RemoteError::Quota {
                    shared.progress.update(|m| m.over_quota = Some(asked));
                }
                shared.note_remote_error(&e);
            }
            Stop::Remote(e) => refused::hold(&shared, format!("upload: {e}"), asked),
            Stop::Local(StoreError::OutboxDamaged(sid, end)) => {
                heal(&shared, sid, end).await;
                backoff.reset();
            }
            Stop::Local(e) => shared.trouble(&e),
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = shared.uploading.asked.notified() => {}
            () = time::sleep(backoff.next()) => {}
        }
    }
}

/// One damaged object must not keep the others from the server: it is sealed again from memory, or set aside and told.
async fn heal(shared: &Arc<Shared>, sid: Sid, end: Position) {
    let here = Arc::clone(shared);
    let healed = task::spawn_blocking(move || {
        // Nobody commits between the moment when it leaves the queue and that when it is known what became of it.
        let _doubt = here.refused.doubt();
        let node = |reference: &Reference| here.drive.node_in_memory(reference);
        let healed = here.blobs.heal(sid, end, node)?;
        here.crash.reached("damage-aside");
        if healed {
            here.progress.must_reach(here.store.end());
        } else if !here.refused.lose([sid]) {
            here.stop_commits(EventKind::OutboxDamage, TORN);
        }
        Ok::<_, StoreError>(healed)
    });
    match healed.await {
        Ok(Ok(true)) => {
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
            casualties::search(shared, HashSet::from([sid]));
        }
        Ok(Err(e)) => shared.trouble(&e),
        Err(_) => shared.fail_local("healing the outbox broke off"),
    }
}

async fn session(
    shared: &Arc<Shared>,
    remote: &Arc<dyn Remote>,
    lease: &mut watch::Receiver<Lease>,
    offers: &mut Offers,
    held: (u64, u64),
) -> Stop {
    match transfer(shared, remote, lease, offers, held).await {
        Ok(never) => match never {},
        Err(stop) => stop,
    }
}

async fn transfer(
    shared: &Arc<Shared>,
    remote: &Arc<dyn Remote>,
    lease: &mut watch::Receiver<Lease>,
    offers: &mut Offers,
    (epoch, gc_generation): (u64, u64),
) -> Result<Infallible, Stop> {
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
    // The server takes no more: what it has to say is still to come.
    let mut closed = false;
    loop {
        if ready.is_empty() && in_flight < UPLOAD_WINDOW {
            ready = read_ahead(shared, cursor).await?.into();
            cursor = ready.back().map_or(cursor, |last| last.end);
            shared.crash.reached("upload-read");
        }
        if ready.is_empty() && flying.is_empty() {
            has_room(shared);
        }
        offers.turn(shared);
        if flying.is_empty() {
            insert_offer(shared, offers, &mut ready).await?;
        }
        let alone = |end| offers.is_alone(end);
        let waits = offers.next().is_some()
            || flying.front().is_some_and(|one| alone(one.end))
            || ready.front().is_some_and(|next| alone(next.end));
        let window = in_flight < UPLOAD_WINDOW && !closed && (flying.is_empty() || !waits);
        let yields = courtesy.yields(shared.writers_first(), clock::now());
        let may_send = !ready.is_empty() && window && !yields;
        let next_round = offers.pause(shared);
        // In this order: a lost lease stops at once, acknowledgements make room, and only then more is sent.
        tokio::select! {
            biased;
            () = lost(lease, (epoch, gc_generation)) => return Err(Stop::LeaseLost),
            ack = acks.recv() => {
                let gone = || RemoteError::Unreachable("the upload stream closed".into());
                match ack.ok_or_else(gone)? {
                    Ok(ack) => in_flight -= land(shared, remote, &mut flying, offers, sequence, ack).await?,
                    Err(e) if refused::is_verdict(&e) && !flying.is_empty() => {
                        return Err(Stop::Refused(e, flying));
                    }
                    Err(e) => return Err(e.into()),
                }
            }
            permit = objects.reserve(), if may_send => {
                let Ok(permit) = permit else {
                    closed = true;
                    continue;
                };
                if let Some(next) = ready.pop_front() {
                    sequence += 1;
                    in_flight += next.object.len();
                    flying.push_back(Flying { sequence, sid: next.sid, end: next.end, len: next.object.len() });
                    permit.send((sequence, next.object));
                    shared.crash.reached("upload-sent");
                }
            }
            () = time::sleep(UPLOAD_YIELD), if yields => {}
            () = time::sleep(CALL_DEADLINE), if closed => {
                return Err(RemoteError::Unreachable("the upload stream closed".into()).into());
            }
            () = shared.uploading.appended.notified(), if ready.is_empty() && in_flight < UPLOAD_WINDOW => {}
            () = shared.uploading.asked.notified() => {}
            () = time::sleep(next_round.unwrap_or_default()), if next_round.is_some() => {}
        }
    }
}

/// The server has taken something, or nothing is left that it could refuse.
fn has_room(shared: &Shared) {
    let now = shared.progress.now();
    if now.over_quota.is_some() || now.upload_held.is_some() {
        shared.progress.update(|m| {
            m.over_quota = None;
            m.upload_held = None;
        });
    }
}

/// Puts a refused object in front that is to be offered again.
async fn insert_offer(
    shared: &Arc<Shared>,
    offers: &mut Offers,
    ready: &mut VecDeque<Outgoing>,
) -> Result<(), StoreError> {
    while let Some(end) = offers.next() {
        if ready.front().is_some_and(|first| first.end == end) {
            break;
        }
        let here = Arc::clone(shared);
        let read = task::spawn_blocking(move || here.store.outbox().outgoing_at(end)).await;
        match read.map_err(|_| StoreError::Failed)?? {
            Some(object) => {
                ready.push_front(object);
                break;
            }
            None => offers.done(end),
        }
    }
    offers.turn(shared);
    Ok(())
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
    offers: &mut Offers,
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
    let outbox = shared.store.outbox();
    let mut bytes = 0;
    let mut reached = false;
    while flying
        .front()
        .is_some_and(|first| first.sequence <= ack.durable_sequence)
    {
        if let Some(landed) = flying.pop_front() {
            bytes += landed.len;
            reached = true;
            // One that was refused before is on the server now, and says nothing of what lies before it.
            if outbox.accept(landed.end) {
                offers.done(landed.end);
                refused::taken(shared, landed.sid);
            } else {
                outbox.acknowledge(landed.end);
            }
        }
    }
    if reached {
        shared.crash.reached("upload-acknowledged");
        shared
            .uploading
            .sent_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        has_room(shared);
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
