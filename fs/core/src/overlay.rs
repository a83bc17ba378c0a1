//! The overlay: mutations that are not in the tree yet, as an ordered map over it.
//!
//! Invariant: `bytes` is what the overlay costs in memory, within a few percent, because the drive's budget counts on it.
//! Called by the drive (its active and its frozen overlay) and by a transaction for its own pending edits.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::record::{Edit, Key, KeyRange, Value};

/// Mean cost of one entry beside the bytes on the heap: key, value and their share of half-filled map nodes.
const ENTRY_COST: usize = (size_of::<Key>() + size_of::<Option<Value>>()) * 3 / 2;
/// Cost of one heap allocation: the allocator's header and rounding, and the counters of a shared value.
const HEAP_COST: usize = 32;

/// An ordered map of pending records; `None` marks a key that is gone.
#[derive(Default, Clone)]
pub struct Overlay {
    map: BTreeMap<Key, Option<Value>>,
    bytes: usize,
}

impl Overlay {
    /// An empty overlay.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    pub fn put(&mut self, key: Key, value: Value) {
        self.set(key, Some(value));
    }

    /// Marks a key as gone, whatever the tree below holds.
    pub fn delete(&mut self, key: Key) {
        self.set(key, None);
    }

    /// Applies one edit.
    pub fn apply(&mut self, edit: Edit) {
        match edit {
            Edit::Put(key, value) => self.put(key, value),
            Edit::Delete(key) => self.delete(key),
        }
    }

    /// Takes all of a newer overlay over this one: what stands in both is the newer's.
    pub fn absorb(&mut self, newer: Self) {
        for (key, value) in newer.map {
            self.set(key, value);
        }
    }

    /// `None`: not mentioned here, ask below. `Some(None)`: gone.
    pub fn get(&self, key: &[u8]) -> Option<Option<&Value>> {
        self.map.get(key).map(Option::as_ref)
    }

    /// Entries in key order, deletions as `None`: what `merge::apply` takes.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Key, Option<&Value>)> {
        self.map.iter().map(|(key, value)| (key, value.as_ref()))
    }

    /// Entries of a range of keys, in key order.
    pub fn range(
        &self,
        range: &KeyRange,
    ) -> impl DoubleEndedIterator<Item = (&Key, Option<&Value>)> + use<'_> {
        let (from, to) = (range.start.as_bytes(), range.end.as_bytes());
        // An inverted range is empty here; the map would panic.
        let from = from.min(to);
        self.map
            .range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)))
            .map(|(key, value)| (key, value.as_ref()))
    }

    /// The entries as edits in key order; empties the overlay.
    pub fn into_edits(self) -> impl Iterator<Item = Edit> {
        self.map.into_iter().map(|(key, value)| match value {
            Some(value) => Edit::Put(key, value),
            None => Edit::Delete(key),
        })
    }

    /// Keys mentioned.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether nothing is mentioned.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Memory held, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn set(&mut self, key: Key, value: Option<Value>) {
        let (key_cost, new) = (
            ENTRY_COST + heap(key.heap_bytes()),
            value_cost(value.as_ref()),
        );
        match self.map.insert(key, value) {
            Some(old) => self.bytes = self.bytes + new - value_cost(old.as_ref()),
            None => self.bytes += key_cost + new,
        }
    }
}

fn heap(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { bytes + HEAP_COST }
}

fn value_cost(value: Option<&Value>) -> usize {
    value.map_or(0, |value| value.len() + HEAP_COST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_wins_and_deletions_stay_visible() {
        let (a, b) = (Key::inode(1), Key::inode(2));
        let mut overlay = Overlay::new();
        overlay.put(a.clone(), Value::from(&b"one"[..]));
        overlay.delete(b.clone());
        assert_eq!(overlay.get(b.as_bytes()), Some(None));
        assert_eq!(overlay.get(Key::inode(3).as_bytes()), None);
        let mut newer = Overlay::new();
        newer.put(b.clone(), Value::from(&b"two"[..]));
        newer.delete(a.clone());
        overlay.absorb(newer);
        assert_eq!(overlay.get(a.as_bytes()), Some(None));
        assert_eq!(
            overlay.get(b.as_bytes()).flatten().map(|value| &value[..]),
            Some(&b"two"[..])
        );
        assert_eq!(overlay.len(), 2);
    }

    #[test]
    fn cost_does_not_drift() {
        let mut overlay = Overlay::new();
        for round in 0..50u64 {
            for ino in 1..20 {
                let len = ((ino * 31 + round * 17) % 90) as usize;
                overlay.put(Key::inode(ino), Value::from(vec![1; len]));
                if (ino + round) % 3 == 0 {
                    overlay.delete(Key::inode(ino));
                }
            }
        }
        let counted: usize = overlay
            .iter()
            .map(|(key, value)| ENTRY_COST + heap(key.heap_bytes()) + value_cost(value))
            .sum();
        assert_eq!(overlay.bytes(), counted);
    }

    #[test]
    fn inverted_range_is_empty() {
        let mut overlay = Overlay::new();
        overlay.put(Key::inode(5), Value::from(&b"x"[..]));
        assert_eq!(overlay.range(&(Key::inode(9)..Key::inode(1))).count(), 0);
        assert_eq!(overlay.range(&Key::everything()).count(), 1);
    }
}
