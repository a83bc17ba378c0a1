//! Whether the tree of this machine's checkpoint is still whole: asked when objects of the outbox are damaged or gone.
//!
//! Invariant: only nodes that the server may not have are looked at, which are few; a server that is not reached makes
//! no hole. Called by the engine's start, which then goes back to the last commit; what is lost later is held against
//! each tree before it is committed ([`super::whole`]).

use std::collections::HashSet;
use std::time::Instant;

use sealdrive_core::reference::Reference;
use sealdrive_core::tree::Root;
use sealdrive_proto::id::{Kind, Sid};

use super::EngineError;
use super::blobs::{BlobError, Blobs};
use super::branch::{Cause, Diverged};
use super::chain::root_of;
use super::config::EngineConfig;
use super::local::Local;
use super::open::Records;
use crate::clock;
use crate::limits::CALL_DEADLINE;
use crate::store::{Known, Lost, Store, StoreError};

/// Why no commit is written then.
pub(super) const TORN: &str = "part of the tree was damaged before it was on the server: unmount, and mount again when \
     the server is reached; the drive then goes on from its last restore point, and what came after is set aside";

/// Whether the tree of the checkpoint cannot be read any more. It takes everything below the hole with it: then the
/// last commit that this machine has seen is worth more, and the rest is set aside like a branch.
pub(super) fn in_checkpoint(local: &Local, config: &EngineConfig) -> Result<bool, EngineError> {
    let root = local.records.found_checkpoint.and_then(|found| found.root);
    let store = &local.store;
    let is_whole = !store.lost().iter().any(Lost::is_loss)
        && store.doubtful().is_empty()
        && !store.is_index_new();
    let Some(root) = root.filter(|_| !is_whole) else {
        return Ok(false);
    };
    let deadline = clock::now() + config.join_patience.min(CALL_DEADLINE);
    let mut lost = lost_ids(store);
    // A node of a checkpoint was synced before: that one is not torn but rotten.
    lost.extend(store.doubtful());
    Ok(find(&local.blobs, &local.store, root, &lost, deadline)?.is_some())
}

/// What to go back to, if there is something.
pub(super) fn last_commit(records: &Records) -> Option<Diverged> {
    let (by, pins) = records.found_pins.as_ref()?;
    root_of(pins).map(|_| Diverged {
        by: *by,
        seq: pins.seq(),
        cause: Cause::Damaged,
    })
}

/// Objects that were damaged or gone when the store was opened, and that the server may not have.
pub(super) fn lost_ids(store: &Store) -> HashSet<Sid> {
    let lost = store.lost().iter().flat_map(|lost| &lost.sids);
    let lost = lost.filter(|(_, acknowledged)| !acknowledged);
    lost.map(|(sid, _)| *sid).collect()
}

/// A tree node under `root` that is one of `lost` or that nobody has, if there is one; its id. Blocks, until `deadline`
/// at most for the server.
pub(super) fn find(
    blobs: &Blobs,
    store: &Store,
    root: Root,
    lost: &HashSet<Sid>,
    deadline: Instant,
) -> Result<Option<Sid>, StoreError> {
    let mut wanted = vec![root.0];
    let mut server_is_away = false;
    while let Some(node) = wanted.pop() {
        let sid = blobs.keys().sid(Kind::Tree, &node);
        let place = place(blobs, store, &node)?;
        match place {
            // Its children were acknowledged before it.
            Some(Known::Sent | Known::Cached) => continue,
            None if lost.contains(&sid) => return Ok(Some(sid)),
            None if server_is_away => continue,
            Some(Known::Outbox) | None => {}
        }
        match blobs.node(&node, deadline) {
            Ok(found) if place.is_some() => wanted.extend(found.children()),
            Ok(_) => {}
            Err(BlobError::Lost) => return Ok(Some(sid)),
            Err(_) => server_is_away = true,
        }
    }
    Ok(None)
}

/// Where the node is, under whichever id.
fn place(blobs: &Blobs, store: &Store, node: &Reference) -> Result<Option<Known>, StoreError> {
    for (_, sid) in blobs.keys().sids(Kind::Tree, node) {
        if let Some(known) = store.known(&sid)? {
            return Ok(Some(known));
        }
    }
    Ok(None)
}
