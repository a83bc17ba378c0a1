//! A damaged object of the outbox: sealed again while its content is in memory, else out of the queue, and told.
//!
//! Invariant: nobody commits between the moment when it leaves the queue and that when it is known what became of it.
//! Called by the upload, and by who reads what the mount left unread ([`super::verify`]).

use std::collections::HashSet;
use std::sync::Arc;

use sealdrive_core::reference::Reference;
use sealdrive_proto::id::Sid;

use super::casualties;
use super::events::EventKind;
use super::hole::TORN;
use super::shared::Shared;
use crate::store::{Position, StoreError};

/// The record of the outbox that ends at `end` is not what was written. Waits for the disk.
pub(super) fn damaged(shared: &Arc<Shared>, sid: Sid, end: Position) {
    let sid_hex = sid.to_hex();
    match replace(shared, sid, end) {
        Ok(true) => {
            let what = format!("object {sid_hex} of the outbox was damaged and is sealed again");
            shared.events.push(EventKind::Healed, what);
        }
        Ok(false) => {
            let what = format!("object {sid_hex} was damaged before it was on the server");
            shared.events.push(EventKind::OutboxDamage, what);
            casualties::search(shared, HashSet::from([sid]));
        }
        Err(e) => shared.trouble(&e),
    }
}

/// Whether a good one stands in the queue in its place.
fn replace(shared: &Shared, sid: Sid, end: Position) -> Result<bool, StoreError> {
    let _doubt = shared.refused.doubt();
    let node = |reference: &Reference| shared.drive.node_in_memory(reference);
    let healed = shared.blobs.heal(sid, end, node)?;
    shared.crash.reached("damage-aside");
    if healed {
        shared.progress.must_reach(shared.store.end());
    } else if !shared.refused.lose([sid]) {
        shared.stop_commits(EventKind::OutboxDamage, TORN);
    }
    Ok(healed)
}
