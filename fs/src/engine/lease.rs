//! The writer lease: asked for at start, renewed in the background, and its loss made known at once.
//!
//! Invariant: `Lease::Held` is only ever what the server granted last; reads and local writes never wait for it. A
//! mount that has lost it does not ask again. One task; upload and commit watch its state.

use std::sync::Arc;
use std::time::Duration;

use sealdrive_proto::id::{DeviceId, Sid};
use sealdrive_runtime::task;
use sealdrive_runtime::time::{self, timeout};
use tokio::sync::watch;

use super::backoff::Backoff;
use super::events::EventKind;
use super::fence::LISTEN;
use super::shared::Shared;
use crate::limits::{BACKOFF_MAX, CALL_DEADLINE};
use crate::remote::{LeaseAnswer, Remote, RemoteError};

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

/// The first word with the server, before anything else is asked of it: under a lease its head does not move any more.
pub(super) async fn first(
    remote: &dyn Remote,
    take_over: bool,
    patience: Duration,
) -> Result<Lease, RemoteError> {
    let asked = async {
        let mut backoff = Backoff::default();
        loop {
            match remote.acquire_lease(take_over, 0).await {
                // Who takes over means it, and waits for it.
                Err(e) if e.is_temporary() && take_over => time::sleep(backoff.next()).await,
                answer => return answer,
            }
        }
    };
    let late = |_| RemoteError::Unreachable("no answer in time".into());
    Ok(of_answer(&timeout(patience, asked).await.map_err(late)??))
}

fn of_answer(answer: &LeaseAnswer) -> Lease {
    if answer.granted {
        Lease::Held {
            epoch: answer.lease_epoch,
            gc_generation: answer.gc_generation,
        }
    } else {
        Lease::Elsewhere(answer.holder)
    }
}

/// The task.
pub(super) struct Keeper {
    /// The server.
    pub(super) remote: Arc<dyn Remote>,
    /// The engine's parts.
    pub(super) shared: Arc<Shared>,
    /// What the others watch.
    pub(super) state: watch::Sender<Lease>,
    /// Rung by those who want an answer now.
    pub(super) retry: watch::Receiver<u64>,
    /// The end.
    pub(super) stop: watch::Receiver<bool>,
}

impl Keeper {
    /// Keeps the lease (or only listens, for a mount that does not write) until `stop`; then gives it back.
    pub(super) async fn run(mut self, writes: bool) {
        if writes {
            self.hold().await;
        }
        self.release().await;
        self.listen().await;
    }

    /// Until `stop`, or until another device has taken over.
    async fn hold(&mut self) {
        let mut backoff = Backoff::default();
        let mut impostor = false;
        while !self.shared.is_fenced() {
            let held = self.state.borrow().held().map_or(0, |(epoch, _)| epoch);
            let answer = timeout(CALL_DEADLINE, self.remote.acquire_lease(false, held)).await;
            let late = |_| Err(RemoteError::Unreachable("no answer in time".into()));
            let pause = match answer.unwrap_or_else(late) {
                Ok(lease) => {
                    impostor = false;
                    self.shared.heard();
                    set(&self.state, of_answer(&lease));
                    if !lease.granted {
                        // Whether it was taken from us or we come too late: another machine writes.
                        return self.shared.fence(lease.holder);
                    }
                    backoff.reset();
                    send_again(&self.shared, lease.suspects);
                    (lease.lifetime / 3).max(Duration::from_millis(50))
                }
                Err(RemoteError::Fenced) => {
                    // Our epoch is history: ask anew, without one.
                    set(&self.state, Lease::Unknown);
                    backoff.next()
                }
                Err(e @ RemoteError::WrongServer(_)) => {
                    // Once a visit, not once an attempt.
                    if !std::mem::replace(&mut impostor, true) {
                        self.shared
                            .events
                            .push(EventKind::WrongServer, e.to_string());
                    }
                    backoff.next()
                }
                Err(e) if e.is_temporary() => backoff.next(),
                Err(e) => {
                    if *self.state.borrow() != Lease::Refused {
                        let why = format!("writer lease: {e}");
                        self.shared.events.push(EventKind::Refused, why);
                    }
                    set(&self.state, Lease::Refused);
                    BACKOFF_MAX
                }
            };
            if self.pause(pause).await {
                return;
            }
        }
    }

    /// Only keeps the time of the server's last word, until `stop`.
    async fn listen(&mut self) {
        while !*self.stop.borrow() {
            if let Ok(Ok(_)) = timeout(CALL_DEADLINE, self.remote.get_head()).await {
                self.shared.heard();
            }
            if self.pause(LISTEN).await {
                return;
            }
        }
    }

    /// True: stop.
    async fn pause(&mut self, pause: Duration) -> bool {
        tokio::select! {
            biased;
            _ = self.stop.wait_for(|stop| *stop) => true,
            _ = self.retry.changed() => false,
            () = time::sleep(pause) => false,
        }
    }

    async fn release(&mut self) {
        let held = self.state.borrow().held();
        if let Some((epoch, _)) = held {
            // Only a courtesy to the next device: without it the lease runs out by itself.
            let _ = timeout(Duration::from_secs(2), self.remote.release_lease(epoch)).await;
            set(&self.state, Lease::Unknown);
        }
    }
}

/// The server has found objects damaged: those that are whole here go into the outbox again.
fn send_again(shared: &Arc<Shared>, suspects: Vec<Sid>) {
    if suspects.is_empty() {
        return;
    }
    let shared = Arc::clone(shared);
    task::spawn_blocking(move || {
        let mut sent = 0;
        for sid in suspects {
            match shared.store.send_again(sid) {
                Ok(here) => sent += u64::from(here),
                Err(e) => return shared.trouble(&e),
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
