//! What the objects of each owner take: the writer's own count, exact at every put.
//!
//! Invariant: an owner's count is taken from the index before a record of that owner is on its way to it, so both
//! never count the same record; from then on the writer, who alone changes what is stored, keeps it. Used by the writer
//! thread only, and only where a quota is set.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::index::{Index, IndexError};

/// Bytes by owner: of those who have stored something since the start, so never more entries than there are accounts.
#[derive(Default)]
pub(super) struct Usage(HashMap<[u8; 32], u64>);

impl Usage {
    /// Bytes of an owner's objects.
    pub(super) fn of(&mut self, index: &Index, owner: &[u8; 32]) -> Result<&mut u64, IndexError> {
        Ok(match self.0.entry(*owner) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(index.usage(owner)?),
        })
    }
}
