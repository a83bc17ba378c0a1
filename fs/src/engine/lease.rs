//! The writer lease: asked for at start, renewed in the background, and its loss made known at once.
//!
//! Invariant: `Lease::Held` is only ever what the server granted last; reads and local writes never wait for it. One
//! task; upload and commit watch its state.

use std::sync::Arc;
use std::time::Duration;

use sealdrive_proto::id::{DeviceId, Sid};
use tokio::sync::watch;
use tokio::time::timeout;

use super::backoff::Backoff;
use super::events::EventKind;
use super::shared::Shared;
use crate::limits::{BACKOFF_MAX, CALL_DEADLINE};
use crate::remote::{Remote, RemoteError};

/// What this device may do on the server now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lease {
    /// The server has not been reached yet, or not for a while.
    Unknown,
    /// Ours.
    Held {
        /// Epoch granted.
        epoch: u64,
        /// Collection generation to name.
        gc_generation: u64,
    },
    /// Another device's.
    Elsewhere(DeviceId),
    /// The server will not have us (revoked, wrong key): waits for a person.
    Refused,
}

impl Lease {
    /// Epoch and generation, if held.
    pub(super) fn held(self) -> Option<(u64, u64)> {
        match self {
            Self::Held {
                epoch,
                gc_generation,
            } => Some((epoch, gc_generation)),
            _ => None,
        }
    }
}

/// Keeps the lease until `stop`; then gives it back.
pub(super) async fn keep(
    remote: Arc<dyn Remote>,
    state: watch::Sender<Lease>,
    mut retry: watch::Receiver<u64>,
    mut stop: watch::Receiver<bool>,
    shared: Arc<Shared>,
    take_over: bool,
) {
    let mut backoff = Backoff::default();
    let mut take_over = take_over;
    loop {
        let held = state.borrow().held().map_or(0, |(epoch, _)| epoch);
        let answer = timeout(CALL_DEADLINE, remote.acquire_lease(take_over, held)).await;
        let answer =
            answer.unwrap_or_else(|_| Err(RemoteError::Unreachable("no answer in time".into())));
        let pause = match answer {
            Ok(lease) if lease.granted => {
                backoff.reset();
                take_over = false;
                send_again(&shared, lease.suspects);
                set(
                    &state,
                    Lease::Held {
                        epoch: lease.lease_epoch,
                        gc_generation: lease.gc_generation,
                    },
                );
                (lease.lifetime / 3).max(Duration::from_millis(50))
            }
            Ok(lease) => {
                if held != 0 {
                    shared.events.push(
                        EventKind::Fenced,
                        "another device has taken over this drive",
                    );
                }
                set(&state, Lease::Elsewhere(lease.holder));
                backoff.next()
            }
            Err(RemoteError::Fenced) => {
                // Our epoch is history: ask anew, without one.
                set(&state, Lease::Unknown);
                backoff.next()
            }
            Err(e) if e.is_temporary() => backoff.next(),
            Err(e) => {
                if *state.borrow() != Lease::Refused {
                    shared
                        .events
                        .push(EventKind::Refused, format!("writer lease: {e}"));
                }
                set(&state, Lease::Refused);
                BACKOFF_MAX
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = retry.changed() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    let held = state.borrow().held();
    if let Some((epoch, _)) = held {
        // Only a courtesy to the next device: without it the lease runs out by itself.
        let _ = timeout(Duration::from_secs(2), remote.release_lease(epoch)).await;
    }
    set(&state, Lease::Unknown);
}

/// The server has found objects damaged: those that are whole here go into the outbox again.
fn send_again(shared: &Arc<Shared>, suspects: Vec<Sid>) {
    if suspects.is_empty() {
        return;
    }
    let shared = Arc::clone(shared);
    tokio::task::spawn_blocking(move || {
        let mut sent = 0;
        for sid in suspects {
            match shared.store.send_again(sid) {
                Ok(here) => sent += u64::from(here),
                Err(e) => return shared.fail_local(&e.to_string()),
            }
        }
        if sent > 0 {
            shared.uploading.appended.notify_one();
            let what =
                format!("{sent} objects damaged on the server are sent again from this machine");
            shared.events.push(EventKind::Healed, what);
        }
    });
}

fn set(state: &watch::Sender<Lease>, lease: Lease) {
    state.send_if_modified(|now| std::mem::replace(now, lease) != lease);
}
