//! Brings all tree nodes to this machine in the background, so that `ls` and `stat` work offline; on the way notes the
//! digests of small files, so that a file copied again is known again.
//!
//! Invariant: one batch under way, and nothing of it in memory for longer than it takes to find the children; a server
//! that is away is asked again later. One thread, ends when the whole tree has been walked.

use std::sync::Arc;
use std::time::Duration;

use sealdrive_core::node::Node;
use sealdrive_core::record::{Ino, Inode, KeyRef};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::Root;
use sealdrive_proto::id::Kind;

use super::blobs::BlobError;
use super::shared::Shared;
use crate::clock;
use crate::drive::Digest;
use crate::limits::{FETCH_BATCH, FETCH_DEADLINE};

/// Pause after the server could not be reached.
const LATER: Duration = Duration::from_secs(20);

/// Walks the tree under `root`.
pub(super) fn run(shared: &Arc<Shared>, root: Root) {
    let mut wanted = vec![root.0];
    let mut fetched = 0u64;
    while !wanted.is_empty() {
        // From the end: depth first, so that what waits stays a few nodes' children long.
        let batch = wanted.split_off(wanted.len().saturating_sub(FETCH_BATCH));
        match walk(shared, &batch, &mut wanted) {
            Ok(count) => fetched += count,
            Err(BlobError::Unreachable(_)) => {
                wanted.extend(batch);
                shared.progress.wait(clock::now() + LATER, |m| m.quit);
            }
            // Reported where it was found; the rest of the tree is still worth having.
            Err(_) => {}
        }
        if shared.progress.now().quit {
            return;
        }
    }
    if fetched > 0 {
        tracing::info!("all tree nodes are on this machine now ({fetched} fetched)");
    }
}

fn walk(
    shared: &Shared,
    batch: &[Reference],
    wanted: &mut Vec<Reference>,
) -> Result<u64, BlobError> {
    let blobs = &shared.blobs;
    let deadline = clock::now() + FETCH_DEADLINE;
    let (here, away): (Vec<&Reference>, Vec<_>) =
        batch.iter().partition(|r| blobs.is_here(Kind::Tree, r));
    let mut children = Vec::new();
    for reference in here {
        let node = blobs.node(reference, deadline)?;
        shared.drive.know_digests(digests(&node));
        children.extend(node.children());
    }
    if let (false, Some(fetcher)) = (away.is_empty(), blobs.fetcher()) {
        let sids: Vec<_> = away
            .iter()
            .map(|r| blobs.keys().sid(Kind::Tree, r))
            .collect();
        for ((reference, sid), answer) in away
            .iter()
            .zip(&sids)
            .zip(fetcher.fetch_many(&sids, deadline))
        {
            let object = answer.map_err(|e| BlobError::Unreachable(e.to_string()))?;
            let plain = match object
                .and_then(|object| blobs.accept_kept(Kind::Tree, reference, *sid, object))
            {
                Some(plain) => plain,
                // A later epoch or variant, or damage: the long way tells which.
                None => blobs.get(Kind::Tree, reference, deadline)?,
            };
            let node = Node::decode(plain).map_err(|_| BlobError::Lost)?;
            shared.drive.know_digests(digests(&node));
            children.extend(node.children());
        }
    }
    let count = away.len() as u64;
    wanted.extend(children);
    Ok(count)
}

/// Digests of the small files whose inode records stand in a leaf.
fn digests(node: &Node) -> Vec<(Digest, Ino)> {
    let entries = if node.level() == 0 { node.len() } else { 0 };
    (0..entries)
        .filter_map(|index| match KeyRef::parse(node.key(index)) {
            Ok(KeyRef::Inode(ino)) => {
                let inode = Inode::decode(node.value(index)).ok()?;
                Some((inode.digest?, ino))
            }
            _ => None,
        })
        .collect()
}
