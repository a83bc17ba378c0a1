//! Objects of the outbox that the server refuses: what stands behind them goes on, and they stay.
//!
//! Invariant: what is withheld counts as waiting whatever is acknowledged behind it, its pack never leaves, and both
//! survive a new mount. Called by the upload, and by the commit thread, which signs no tree that needs one.

use std::sync::Arc;

use sealdrive_proto::id::Sid;

use super::{Outbox, Outgoing, State, outgoing};
use crate::store::StoreError;
use crate::store::packfile::Entry;
use crate::store::place::Position;

impl State {
    /// Whether the server does not have what ends there.
    pub(super) fn is_waiting(&self, end: Position) -> bool {
        end > self.acknowledged || self.withheld.contains_key(&end)
    }

    /// Whether something of this pack is withheld.
    pub(super) fn withholds_in(&self, pack: u64) -> bool {
        let all = Position::new(pack, 0)..=Position::new(pack, u64::MAX);
        self.withheld.range(all).next().is_some()
    }

    fn entry(&self, end: Position) -> Option<Entry> {
        let pack = self.packs.get(&end.pack)?;
        let found = pack.entries.binary_search_by_key(&end.offset, Entry::end);
        found.ok().map(|at| pack.entries[at])
    }
}

impl Outbox {
    /// The server refuses the object that ends there, and has acknowledged everything before it: what is behind it goes
    /// on. False if there is none.
    pub fn withhold(&self, end: Position) -> bool {
        {
            let mut state = self.state();
            let Some(entry) = state.entry(end) else {
                return false;
            };
            // First: from the moment it is stepped over it must be known not to be there.
            state.withheld.insert(end, entry.sid);
        }
        self.acknowledge(end);
        true
    }

    /// The server has taken the object after all; false if that one is not withheld.
    pub fn accept(&self, end: Position) -> bool {
        let mut state = self.state();
        if state.withheld.remove(&end).is_none() {
            return false;
        }
        if let Some(entry) = state.entry(end) {
            state.pending_bytes -= u64::from(entry.len);
            state.pending_objects -= 1;
        }
        true
    }

    /// Whether the object that ends there is withheld.
    pub fn is_withheld(&self, end: Position) -> bool {
        self.state().withheld.contains_key(&end)
    }

    /// What is withheld, in order.
    pub fn withheld(&self) -> Vec<(Position, Sid)> {
        let state = self.state();
        state
            .withheld
            .iter()
            .map(|(end, sid)| (*end, *sid))
            .collect()
    }

    /// How many are withheld.
    pub fn withheld_count(&self) -> usize {
        self.state().withheld.len()
    }

    /// The object that ends there, to be offered again; none if it is gone.
    pub fn outgoing_at(&self, end: Position) -> Result<Option<Outgoing>, StoreError> {
        let found = {
            let state = self.state();
            let file = state
                .packs
                .get(&end.pack)
                .map(|pack| Arc::clone(&pack.file));
            state.entry(end).zip(file)
        };
        // It was read to be sent before it was refused: nothing of it waits in a buffer.
        found
            .map(|(entry, file)| outgoing(end.pack, &entry, &*file))
            .transpose()
    }

    /// How far the server has acknowledged, and what it has not of that.
    pub(in crate::store) fn acknowledged_but(&self) -> (Position, Vec<Position>) {
        let state = self.state();
        (state.acknowledged, state.withheld.keys().copied().collect())
    }
}
