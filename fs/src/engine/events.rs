//! What went wrong and must not go unnoticed: damage, tampering, loss of the lease. Kept for `status`, and logged.
//!
//! Invariant: an event names ids the server sees too (sids, sequence numbers), never a file name, key or content.
//! Called by the whole engine.

use std::collections::VecDeque;
use std::sync::PoisonError;

use sealdrive_runtime::sync::Mutex;
use serde::Serialize;

use crate::clock;
use crate::limits::EVENTS_KEPT;

/// What kind of thing happened. Fields of JSON: names are only ever added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// An object in the local cache failed its checks; it is fetched anew.
    CacheDamage,
    /// An object not yet on the server failed its checks: data is lost.
    OutboxDamage,
    /// The server sent an object that does not open.
    ObjectTampered,
    /// The server holds other bytes under an id of ours, and they do not open.
    Poisoned,
    /// The server lacks an object that it acknowledged.
    ObjectMissing,
    /// The server's head is older than what this device has seen.
    Rollback,
    /// The server's head does not continue what this device has seen, or its signature is wrong.
    Fork,
    /// This device has local state but its memory of the head is gone or damaged.
    PinsMissing,
    /// Another server answers at the address of ours.
    WrongServer,
    /// Another device writes this drive now.
    Fenced,
    /// What this device had not committed was set aside, because another has written the drive meanwhile.
    SetAside,
    /// A write or fsync of local state failed: nothing more is written.
    LocalIo,
    /// The journal ended in a damaged record that is not a torn tail.
    JournalDamage,
    /// Something was damaged and is whole again: nothing was lost.
    Healed,
    /// Something that waits for a person (quota, authentication).
    Refused,
    /// The server refuses an object; no commit that needs it is made, and everything else goes on.
    ObjectRefused,
    /// The disk of the local state is small or nearly full.
    LittleSpace,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Milliseconds since 1970, this machine's clock.
    pub at_ms: u64,
    /// What kind.
    pub kind: EventKind,
    /// For people.
    pub detail: String,
}

/// The newest events.
#[derive(Default)]
pub(super) struct Events(Mutex<VecDeque<Event>>);

impl Events {
    /// Notes and logs an event.
    pub(super) fn push(&self, kind: EventKind, detail: impl Into<String>) {
        let event = Event {
            at_ms: clock::wall_ms(),
            kind,
            detail: detail.into(),
        };
        if kind == EventKind::Fenced {
            // On stderr whatever the log level: programs are being refused from here on.
            tracing::error!("{}", event.detail);
        } else {
            tracing::warn!(kind = ?event.kind, "{}", event.detail);
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == EVENTS_KEPT {
            kept.pop_front();
        }
        kept.push_back(event);
    }

    /// Oldest first.
    pub(super) fn list(&self) -> Vec<Event> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }
}
