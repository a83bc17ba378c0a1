//! What the service manager is told (sd_notify(3)): up, going away, and that the server is still alive.
//!
//! Invariant: `WATCHDOG=1` follows an answer of the storage's writer and index to a question asked just before, from
//! the runtime that serves the calls; a server that hangs in any of them is not called alive. Without a service
//! manager nothing is sent. Called by the command.

use sd_notify::NotifyState;

use crate::running::Running;

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

/// The server serves.
pub fn ready(running: &Running) {
    let status = format!("listening on {}", running.address());
    say(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The server is about to stop.
pub fn stopping() {
    say(&[
        NotifyState::Stopping,
        NotifyState::Status("finishing what is under way"),
    ]);
}

/// Feeds the manager's watchdog, if there is one, three times in its interval. Never returns.
pub async fn feed(running: &Running) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(interval / 3).await;
        // A failed storage stops the server by itself (`Running::failed`).
        if running.pulse().await.is_ok() {
            say(&[NotifyState::Watchdog]);
        }
    }
}
