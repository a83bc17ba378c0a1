//! Decoded chunks kept in memory: least recently used goes first, under a hard budget in bytes.
//!
//! Invariant: the sum of lengths never exceeds the budget. Plaintext lives here in memory only. Called by `blobs.rs`.

use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;

use bytes::Bytes;
use sealdrive_proto::id::Cid;
use sealdrive_runtime::sync::{Mutex, MutexGuard};

#[derive(Default)]
struct Held {
    chunks: HashMap<Cid, (Bytes, u64)>,
    by_use: BTreeMap<u64, Cid>,
    bytes: usize,
    tick: u64,
}

/// A bounded map from content to plaintext.
pub(super) struct Decoded {
    held: Mutex<Held>,
    budget: usize,
}

impl Decoded {
    /// An empty one that holds at most `budget` bytes.
    pub(super) fn new(budget: usize) -> Self {
        Self {
            held: Mutex::default(),
            budget,
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chunk, if held; makes it the most recently used.
    pub(super) fn get(&self, cid: &Cid) -> Option<Bytes> {
        let mut held = self.held();
        held.tick += 1;
        let tick = held.tick;
        let (chunk, used) = held.chunks.get_mut(cid)?;
        let (chunk, before) = (chunk.clone(), std::mem::replace(used, tick));
        held.by_use.remove(&before);
        held.by_use.insert(tick, *cid);
        Some(chunk)
    }

    /// Whether it is held, without counting as a use.
    pub(super) fn contains(&self, cid: &Cid) -> bool {
        self.held().chunks.contains_key(cid)
    }

    /// Keeps a chunk; drops the least recently used ones until the budget holds.
    pub(super) fn put(&self, cid: Cid, chunk: Bytes) {
        if chunk.len() > self.budget {
            return;
        }
        let mut held = self.held();
        held.tick += 1;
        let tick = held.tick;
        held.bytes += chunk.len();
        if let Some((old, used)) = held.chunks.insert(cid, (chunk, tick)) {
            held.bytes -= old.len();
            held.by_use.remove(&used);
        }
        held.by_use.insert(tick, cid);
        while held.bytes > self.budget {
            let Some((_, oldest)) = held.by_use.pop_first() else {
                break;
            };
            if let Some((chunk, _)) = held.chunks.remove(&oldest) {
                held.bytes -= chunk.len();
            }
        }
    }

    /// Bytes held now.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.held().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_holds_and_the_least_used_goes() {
        let cache = Decoded::new(100);
        let cid = |n: u8| Cid([n; 32]);
        cache.put(cid(1), Bytes::from(vec![1; 40]));
        cache.put(cid(2), Bytes::from(vec![2; 40]));
        assert!(cache.get(&cid(1)).is_some());
        cache.put(cid(3), Bytes::from(vec![3; 40]));
        assert!(cache.get(&cid(2)).is_none(), "2 was used least recently");
        assert!(cache.get(&cid(1)).is_some() && cache.get(&cid(3)).is_some());
        cache.put(cid(3), Bytes::from(vec![3; 10]));
        assert_eq!(cache.bytes(), 50);
        cache.put(cid(4), Bytes::from(vec![4; 101]));
        assert!(!cache.contains(&cid(4)));
    }
}
