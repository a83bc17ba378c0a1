//! What a directory on this machine holds of a drive: the small records, the packs and the journal, opened together.
//!
//! Invariant: opening changes nothing but torn tails and what is damaged, which is healed or set aside, and told.
//! Used for the drive itself, and for a branch that was set aside.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use sealdrive_core::keys::DomainKeys;
use sealdrive_core::local::LocalKeys;
use sealdrive_core::seal::Compress;
use sealdrive_pack::Medium;
use sealdrive_proto::id::{DriveId, Sid};
use sealdrive_runtime::channel::{Receiver, sync_channel};
use sealdrive_runtime::thread;

use super::EngineError;
use super::blobs::Blobs;
use super::crash::CrashPoints;
use super::events::{EventKind, Events};
use super::fetch::Fetcher;
use super::open::Records;
use crate::journal::{Journal, Replay};
use crate::limits::CACHE_QUEUE;
use crate::store::Store;

/// Whose directory it is.
#[derive(Clone)]
pub(super) struct Owner {
    pub(super) drive: DriveId,
    pub(super) keys: Arc<DomainKeys>,
    pub(super) local: Arc<LocalKeys>,
    pub(super) cache_budget: u64,
    /// How content is compressed.
    pub(super) compress: Compress,
    pub(super) crash: CrashPoints,
}

/// What a directory holds.
pub(super) struct Local {
    pub(super) records: Records,
    pub(super) store: Arc<Store>,
    pub(super) blobs: Arc<Blobs>,
    /// Copies on their way into the cache.
    pub(super) copies: Receiver<(Sid, Bytes)>,
    pub(super) journal: Journal,
    pub(super) replay: Replay,
}

impl Local {
    pub(super) fn open(
        dir: &Arc<dyn Medium>,
        owner: &Owner,
        fetcher: Option<Fetcher>,
        events: &Arc<Events>,
    ) -> Result<Self, EngineError> {
        let records = Records::open(dir, owner.drive, &owner.local)?;
        let broken = |e| EngineError::Io("opening the journal", e);
        let journal = dir.directory("journal").map_err(broken)?;
        let (drive, local) = (owner.drive, Arc::clone(&owner.local));
        // Side by side with the store: after a crash both have much to read, and neither needs the other.
        let opening = thread::spawn("open-journal", move || Journal::open(journal, drive, local))
            .map_err(broken)?;
        let store = Store::open(Arc::clone(dir), owner.cache_budget);
        let opened = opening.join();
        let store = Arc::new(store?);
        let (journal, replay) =
            opened.map_err(|_| broken(io::Error::other("reading it broke off")))??;
        let (sender, copies) = sync_channel(CACHE_QUEUE);
        let events = Arc::clone(events);
        tell_damage(&events, &records, &store, &replay);
        Ok(Self {
            records,
            blobs: Arc::new(Blobs::new(
                Arc::clone(&store),
                owner,
                fetcher,
                sender,
                events,
            )),
            store,
            copies,
            journal,
            replay,
        })
    }
}

/// What was found damaged on the way, healed or not.
fn tell_damage(events: &Events, records: &Records, store: &Store, replay: &Replay) {
    if let Some(damage) = &replay.damage {
        let what = format!(
            "the journal is damaged, and what was written last on this machine may be lost: {damage}"
        );
        events.push(EventKind::JournalDamage, what);
    }
    for name in &replay.aside {
        let what = format!(
            "a damaged part of the journal is kept: {name}; remove it when it is of no more use"
        );
        events.push(EventKind::JournalDamage, what);
    }
    let twins = [&records.checkpoint, &records.pins, &records.commit];
    for what in twins.into_iter().filter_map(|twin| twin.healed()) {
        events.push(
            EventKind::Healed,
            format!("one copy of {what} was damaged; it was restored from the other"),
        );
    }
    for lost in store.lost() {
        let count = lost.sids.len().max(1);
        if lost.is_loss() {
            let what = format!(
                "{count} objects that were not yet on the server are damaged or gone (outbox pack {:016x})",
                lost.pack
            );
            events.push(EventKind::OutboxDamage, what);
        } else {
            events.push(
                EventKind::Healed,
                format!("{count} damaged objects of the outbox are on the server already"),
            );
        }
    }
}
