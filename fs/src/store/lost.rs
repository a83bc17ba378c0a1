//! What the outbox has lost: objects that are damaged or gone and that the server may not have.
//!
//! Invariant: nothing that was durable once passes for a torn tail: the index remembers how far each pack was durable,
//! and which objects lay in it. Called when the store is opened.

use std::collections::HashSet;

use sealdrive_proto::id::Sid;

use super::StoreError;
use super::index::{Index, Marks};
use super::outbox::Outbox;
use super::packfile::{self, Entry};
use super::place::Position;

/// Objects of an outbox pack that are damaged or gone.
pub struct Lost {
    /// Number of the pack.
    pub pack: u64,
    /// Those whose id is known, and whether the server had acknowledged them.
    pub sids: Vec<(Sid, bool)>,
    /// Something that the server may not have cannot even be named.
    pub unknown: bool,
}

impl Lost {
    pub(super) fn of(
        number: u64,
        scan: &packfile::Scan,
        acknowledged: Position,
        durable: &[Position],
    ) -> Option<Self> {
        let witness = durable.iter().find(|end| end.pack == number);
        // What looks like a torn tail was durable once: then it is damage.
        let cut = witness.filter(|end| scan.len < end.offset);
        let mut damaged: Vec<&Entry> = scan.damaged.iter().collect();
        damaged.extend(scan.doubtful.iter().filter(|_| cut.is_some()));
        let is_acknowledged = |entry: &Entry| {
            acknowledged
                >= Position {
                    pack: number,
                    offset: entry.end(),
                }
        };
        let lost = Self {
            pack: number,
            unknown: scan.gaps > 0 && acknowledged.pack <= number
                || cut.is_some_and(|end| *end > acknowledged && scan.doubtful.is_empty()),
            sids: damaged
                .into_iter()
                .map(|entry| (entry.sid, is_acknowledged(entry)))
                .collect(),
        };
        (lost.unknown || !lost.sids.is_empty()).then_some(lost)
    }

    /// Whether the server may lack something of it.
    pub fn is_loss(&self) -> bool {
        self.unknown || self.sids.iter().any(|(_, acknowledged)| !acknowledged)
    }
}

/// Packs of the outbox that the index remembers and that are neither there nor in the cache.
pub(super) fn packs_gone(marks: &Marks, in_outbox: &[u64], in_cache: &[u64]) -> Vec<Lost> {
    let is_here = |pack: u64| {
        let mut all = in_outbox.iter().chain(in_cache);
        all.any(|number| *number == pack)
    };
    let gone = marks.durable.iter().filter(|end| !is_here(end.pack));
    gone.map(|end| Lost {
        pack: end.pack,
        sids: Vec::new(),
        unknown: true,
    })
    .collect()
}

/// The index knows the ids of what cannot be named any more from the packs alone.
pub(super) fn name_lost(
    lost: &mut [Lost],
    index: &Index,
    outbox: &Outbox,
    marks: &Marks,
) -> Result<(), StoreError> {
    let packs: Vec<u64> = lost
        .iter()
        .filter(|lost| lost.unknown)
        .map(|lost| lost.pack)
        .collect();
    if packs.is_empty() {
        return Ok(());
    }
    let here: HashSet<(Sid, u64)> = outbox
        .places()
        .into_iter()
        .map(|(sid, place)| (sid, place.pack))
        .collect();
    for (sid, place) in index.sids_in(&packs)? {
        let owner = lost.iter_mut().find(|lost| lost.pack == place.pack);
        if let Some(owner) = owner
            && !here.contains(&(sid, place.pack))
            && !owner.sids.iter().any(|(known, _)| *known == sid)
        {
            owner.sids.push((sid, place.end() <= marks.acknowledged));
        }
    }
    Ok(())
}
