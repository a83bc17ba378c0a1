//! The checkpoint: what was changed is merged into the tree and recorded by root on this machine, so that the journal
//! stays short and there is something to commit.
//!
//! Invariant (ordering law): writeback of everything up to the freeze, then the sealed nodes, then the fsync of the
//! outbox, then what the index says of it, then the checkpoint record, then the thaw and the trimming of the journal.
//! Writers stop only while the last dirty bytes are sealed. Called by the pace thread.

use std::time::Instant;

use sealdrive_core::merge;
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::{Root, TreeError};
use sealdrive_proto::id::Kind;

use super::flush::{Flusher, NotDurable};
use super::shared::Shared;
use super::writeback::Workers;
use crate::clock;
use crate::drive::{DriveError, Frozen, Settle};
use crate::journal::{Twin, TwinError};
use crate::limits::{STALL_DIRTY, STALL_ROUNDS, WRITEBACK_ROUND};
use crate::store::{Position, StoreError};

/// Why there is no checkpoint now.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckpointError {
    /// A tree node is needed that is neither here nor reachable: later.
    #[error("a tree node is not on this machine and the server is not reached")]
    Missing,
    /// A tree node is damaged.
    #[error("a tree node is damaged")]
    Damaged,
    /// The drive is closed.
    #[error("the drive is closed")]
    Closed,
    /// Local state failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The checkpoint record could not be written.
    #[error(transparent)]
    Record(#[from] TwinError),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] NotDurable),
}

impl CheckpointError {
    /// Whether local state can be trusted no more.
    pub(super) fn is_fatal(&self) -> bool {
        match self {
            Self::Missing | Self::Damaged | Self::Closed => false,
            // A full disk: all is as it was, and the next attempt may find room.
            Self::Store(_) | Self::Record(_) | Self::Journal(_) => !self.is_no_space(),
        }
    }

    /// Whether it is only the disk that is full.
    pub(super) fn is_no_space(&self) -> bool {
        match self {
            Self::Missing | Self::Damaged | Self::Closed => false,
            Self::Store(e) => e.is_no_space(),
            Self::Record(e) => e.is_no_space(),
            Self::Journal(e) => *e == NotDurable::NoSpace,
        }
    }
}

impl From<TreeError> for CheckpointError {
    fn from(e: TreeError) -> Self {
        match e {
            TreeError::Missing(_) => Self::Missing,
            TreeError::Damaged(_) => Self::Damaged,
        }
    }
}

impl From<DriveError> for CheckpointError {
    fn from(e: DriveError) -> Self {
        match e {
            DriveError::Missing(_) => Self::Missing,
            DriveError::Errno(_) => Self::Closed,
        }
    }
}

/// The newest tree root on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// The tree; none for a drive in which nothing was ever done.
    pub(super) root: Option<Root>,
    /// Operations in it.
    pub(super) seq: u64,
}

impl Checkpoint {
    const VERSION: u8 = 1;
    /// With the pins that it was adopted under behind it.
    const ADOPTED: u8 = 2;

    /// `1 ‖ seq u64 ‖ reference41` (zeros: none).
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![Self::VERSION];
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(
            &self
                .root
                .map_or([0; Reference::LEN], |root| root.0.encode()),
        );
        out
    }

    /// The same as `2 …`, and behind it the pins of the commit whose tree it is: adopting another machine's state is
    /// one record, so that no power cut leaves this machine's old tree beside the other's place in the chain.
    pub(super) fn encode_adopted(&self, pins: &[u8]) -> Vec<u8> {
        let mut out = self.encode();
        out[0] = Self::ADOPTED;
        out.extend_from_slice(pins);
        out
    }

    /// Strict. Also the pins it was adopted under, if it was.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, Option<&[u8]>)> {
        let (version, rest) = bytes.split_first()?;
        let (seq, rest) = rest.split_first_chunk::<8>()?;
        let (root, rest) = rest.split_first_chunk::<{ Reference::LEN }>()?;
        let pins = match *version {
            Self::VERSION if rest.is_empty() => None,
            Self::ADOPTED => Some(rest),
            _ => return None,
        };
        let root = match root {
            none if *none == [0; Reference::LEN] => None,
            some => Some(Root(Reference::decode(some)?)),
        };
        let seq = u64::from_le_bytes(*seq);
        Some((Self { root, seq }, pins))
    }
}

/// A checkpoint that may be committed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// Its tree.
    pub(super) root: Root,
    /// Operations in it.
    pub(super) seq: u64,
    /// Everything before this place of the outbox is named by this tree or an earlier one, or by none at all.
    pub(super) covered: Position,
    /// The server must have everything before this place.
    pub(super) reach: Position,
    /// When it was frozen: what it does not hold was done later.
    pub(super) frozen_at: Instant,
}

/// Makes a checkpoint of everything done before the call. `None` if the drive was not ready to freeze.
pub(super) fn make(
    shared: &Shared,
    workers: &Workers,
    flusher: &Flusher,
    record: &mut Twin,
) -> Result<Option<Candidate>, CheckpointError> {
    drain(shared, workers);
    shared.drive.stall();
    let frozen_at = clock::now();
    let frozen = seal_rest(shared, workers);
    shared.drive.unstall();
    let Some(frozen) = frozen? else {
        return Ok(None);
    };
    let made = merge_frozen(shared, flusher, record, &frozen, frozen_at);
    if made.is_err() {
        shared.drive.refreeze_later();
    }
    made.map(Some)
}

/// Seals what is dirty while writers go on, until little is left.
fn drain(shared: &Shared, workers: &Workers) {
    for _ in 0..STALL_ROUNDS {
        if shared.drive.dirty_bytes() <= STALL_DIRTY {
            break;
        }
        match shared.with_nodes(|drive| drive.writeback_jobs(Settle::All, WRITEBACK_ROUND)) {
            Ok(jobs) => workers.dispatch(jobs).wait(),
            Err(_) => return,
        }
        shared.watch_space();
    }
}

/// Under stall: seals the rest and freezes.
fn seal_rest(shared: &Shared, workers: &Workers) -> Result<Option<Frozen>, CheckpointError> {
    loop {
        workers.wait_idle();
        if let Some(frozen) = shared.with_nodes(|drive| drive.freeze())? {
            return Ok(Some(frozen));
        }
        if shared.progress.now().failed.is_some() || shared.space.is_stuck() {
            return Ok(None);
        }
        // Once taken they must be handed out: their bytes are in no other job until these have ended.
        let jobs = shared.with_nodes(|drive| drive.writeback_jobs(Settle::All, u64::MAX))?;
        if jobs.is_empty() {
            return Ok(None);
        }
        workers.dispatch(jobs);
    }
}

fn merge_frozen(
    shared: &Shared,
    flusher: &Flusher,
    record: &mut Twin,
    frozen: &Frozen,
    frozen_at: Instant,
) -> Result<Candidate, CheckpointError> {
    let open = shared.store.outbox().open_bytes();
    if shared.space.is_short() || open >= shared.space.worth_closing() {
        // So that it can go with the commit, and not only when it is full.
        shared.store.close_pack()?;
    }
    let covered = shared.store.end();
    shared.crash.reached("frozen");
    let node_key = *shared.blobs.keys().node_key();
    let edits = frozen.overlay.iter();
    let root = shared.blobs.with_sealer(|sealer| {
        let mut put = |node: &[u8]| -> Result<Reference, CheckpointError> {
            Ok(shared.blobs.put(sealer, Kind::Tree, node)?)
        };
        merge::apply(
            &*shared.blobs,
            frozen.root.as_ref(),
            edits,
            &node_key,
            &mut put,
        )
    })?;
    shared.crash.reached("merged");
    let reach = shared.store.sync()?;
    shared.crash.reached("nodes-durable");
    // The index is the witness of what the outbox holds: a checkpoint never names what would not be missed.
    shared.store.save_index()?;
    shared.crash.reached("index-durable");
    record.write(
        &Checkpoint {
            root: Some(root),
            seq: frozen.seq,
        }
        .encode(),
    )?;
    shared.crash.reached("checkpoint-durable");
    // Told before it is thawed: who finds nothing left to be checkpointed takes the number for that of what he wrote.
    shared.progress.update(|m| {
        m.checkpointed = frozen.seq;
        m.journaled = m.journaled.max(frozen.seq);
    });
    shared.drive.thaw(root);
    shared.uploading.appended.notify_one();
    match flusher.trim(frozen.seq) {
        // It stands, and what is superfluous of the journal goes with the next one.
        Err(NotDurable::NoSpace) => {}
        trimmed => trimmed?,
    }
    shared.crash.reached("journal-trimmed");
    Ok(Candidate {
        root,
        seq: frozen.seq,
        covered,
        reach,
        frozen_at,
    })
}
