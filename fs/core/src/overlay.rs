//! The overlay: mutations that are not in the tree yet, as an ordered map over it.
//!
//! Packed into pages, because 79,000 new files are 316,000 records and a map of boxed keys and values holds them in
//! more than twice the memory. Invariant: `bytes` is what the overlay costs in memory, within some percent: the drive's
//! budget counts on it. Called by the drive (its active and its frozen overlay) and by a transaction for its own
//! pending edits.

mod page;

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::record::{Edit, Key, KeyRange, Value};
use page::Page;

/// What a page costs beside its entries: its place in a half-filled map node, two allocations.
const PAGE_COST: usize = (size_of::<Key>() + size_of::<Page>()) * 3 / 2 + 32;

/// An ordered map of pending records; `None` marks a key that is gone.
#[derive(Default, Clone)]
pub struct Overlay {
    /// Pages by their lower border. The first has the empty border, so that every key belongs to a page.
    pages: BTreeMap<Key, Page>,
    len: usize,
    bytes: usize,
}

impl Overlay {
    /// An empty overlay.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    pub fn put(&mut self, key: Key, value: Value) {
        self.set(key.as_bytes(), Some(&value));
    }

    /// Marks a key as gone, whatever the tree below holds.
    pub fn delete(&mut self, key: Key) {
        self.set(key.as_bytes(), None);
    }

    /// Applies one edit.
    pub fn apply(&mut self, edit: Edit) {
        self.set(edit.key().as_bytes(), edit.value().map(|value| &value[..]));
    }

    /// Takes all of a newer overlay over this one: what stands in both is the newer's.
    pub fn absorb(&mut self, newer: Self) {
        for page in newer.pages.into_values() {
            for index in 0..page.len() {
                let (key, value) = page.entry(index);
                self.set(key, value);
            }
        }
    }

    /// `None`: not mentioned here, ask below. `Some(None)`: gone.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        let (_, page) = self
            .pages
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()?;
        page.search(key).ok().map(|index| page.entry(index).1)
    }

    /// Entries in key order, deletions as `None`: what `merge::apply` takes.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], Option<&[u8]>)> {
        self.pages
            .values()
            .flat_map(|page| (0..page.len()).map(|index| page.entry(index)))
    }

    /// Entries of a range of keys, in key order.
    pub fn range(
        &self,
        range: &KeyRange,
    ) -> impl DoubleEndedIterator<Item = (&[u8], Option<&[u8]>)> + use<'_> {
        let to = range.end.clone();
        // An inverted range is empty here; the map would panic.
        let from = if range.start < to {
            range.start.clone()
        } else {
            to.clone()
        };
        let upto = (Bound::Unbounded, Bound::Included(from.as_bytes()));
        let first = self
            .pages
            .range::<[u8], _>(upto)
            .next_back()
            .map_or(&[][..], |(border, _)| border.as_bytes());
        let pages = self
            .pages
            .range::<[u8], _>((Bound::Included(first), Bound::Included(to.as_bytes())));
        pages.flat_map(move |(_, page)| {
            let place = |key: &Key| page.search(key.as_bytes()).unwrap_or_else(|place| place);
            (place(&from)..place(&to)).map(|index| page.entry(index))
        })
    }

    /// The entries as edits in key order; empties the overlay.
    pub fn into_edits(self) -> impl Iterator<Item = Edit> {
        self.pages.into_values().flat_map(|page| {
            (0..page.len()).map(move |index| {
                let (key, value) = page.entry(index);
                let key = Key::border(&[key]);
                value.map_or_else(
                    || Edit::Delete(key.clone()),
                    |value| Edit::Put(key.clone(), Value::from(value)),
                )
            })
        })
    }

    /// Keys mentioned.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mentioned.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory held, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        if self.pages.is_empty() {
            self.pages.insert(Key::border(&[]), Page::default());
            self.bytes += PAGE_COST;
        }
        // Each turn splits the page that has no room; a page of one entry that is split leaves an empty one.
        loop {
            let upto = (Bound::Unbounded, Bound::Included(key));
            let Some((_, page)) = self.pages.range_mut::<[u8], _>(upto).next_back() else {
                return;
            };
            let (before, place) = (page.heap(), page.search(key));
            let done = page.set(place, key, value);
            let split = (!done)
                .then(|| page.split_at(place))
                .map(|index| page.split_off(index));
            self.bytes = self.bytes + page.heap() - before;
            match split {
                None => {
                    self.len += usize::from(place.is_err());
                    return;
                }
                Some(right) => {
                    // Nothing right of the place: the key begins a page of its own.
                    let border = if right.len() > 0 {
                        Key::border(&[right.entry(0).0])
                    } else {
                        Key::border(&[key])
                    };
                    self.bytes += PAGE_COST + right.heap();
                    self.pages.insert(border, right);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(overlay: &Overlay) -> usize {
        overlay
            .pages
            .values()
            .map(|page| PAGE_COST + page.heap())
            .sum()
    }

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
        assert_eq!(overlay.get(b.as_bytes()), Some(Some(&b"two"[..])));
        assert_eq!(overlay.len(), 2);
    }

    /// Against a plain map, with values from none to the longest, in runs and scattered, forwards and backwards.
    #[test]
    fn pages_equal_a_plain_map() {
        let mut dice = 7u64;
        let mut roll = |bound: u64| {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % bound
        };
        for case in 0..60 {
            let (mut overlay, mut model) = (Overlay::new(), BTreeMap::new());
            let mut run = roll(1 << 40);
            for _ in 0..1500 {
                run = match case % 3 {
                    0 => run + roll(3),
                    1 => roll(500),
                    _ => run.saturating_sub(roll(3)),
                };
                let key = Key::drive(
                    7,
                    &[
                        &run.to_be_bytes()[..],
                        &vec![1; (roll(5) * roll(60)) as usize],
                    ]
                    .concat(),
                );
                let len = match case % 4 {
                    0 => roll(2049),
                    1 => 1300 + roll(749),
                    _ => roll(60),
                } as usize;
                let value = (roll(5) > 0).then(|| Value::from(vec![len as u8; len]));
                model.insert(key.clone(), value.clone());
                match value {
                    Some(value) => overlay.put(key, value),
                    None => overlay.delete(key),
                }
            }
            let all: Vec<_> = model
                .iter()
                .map(|(key, value)| (key.as_bytes(), value.as_deref()))
                .collect();
            assert_eq!(overlay.iter().collect::<Vec<_>>(), all);
            assert_eq!(
                (overlay.len(), overlay.bytes()),
                (model.len(), counted(&overlay))
            );
            assert!(overlay.iter().rev().eq(all.iter().rev().copied()));
            for _ in 0..50 {
                let (from, to) = (
                    roll(model.len() as u64) as usize,
                    roll(model.len() as u64) as usize,
                );
                let range = Key::border(&[all[from].0])..Key::border(&[all[to].0]);
                let expected = all.get(from..to).unwrap_or_default();
                assert!(overlay.range(&range).eq(expected.iter().copied()));
                assert!(
                    overlay
                        .range(&range)
                        .rev()
                        .eq(expected.iter().rev().copied())
                );
                assert_eq!(overlay.get(all[from].0), Some(all[from].1));
                assert_eq!(overlay.get(&[all[from].0, &[0]].concat()), None);
            }
            let edits: Vec<Edit> = overlay.clone().into_edits().collect();
            assert!(
                edits
                    .iter()
                    .map(|edit| (edit.key().as_bytes(), edit.value().map(|value| &value[..])))
                    .eq(overlay.iter())
            );
        }
    }

    /// The order in which a drive makes new files: entry in the directory, inode, back-reference, later the extent.
    #[test]
    fn new_files_are_held_densely() {
        let mut overlay = Overlay::new();
        let mut content = 0;
        let mut put = |key: Key, len: usize| {
            content += key.as_bytes().len() + len;
            overlay.put(key, Value::from(vec![3; len]));
        };
        for ino in 2..20_000u64 {
            let (dir, name) = (ino / 40 * 40 + 1, format!("some name {ino}"));
            put(Key::dentry(dir, name.as_bytes()), 9);
            put(Key::inode(ino), 73);
            put(Key::backref(ino, dir, name.as_bytes()), 0);
            if ino > 60 {
                put(Key::extent(ino - 50, 0), 50);
            }
        }
        assert!(
            overlay.bytes() < content * 8 / 5,
            "{} bytes for {content}",
            overlay.bytes()
        );
    }

    #[test]
    fn inverted_range_is_empty() {
        let mut overlay = Overlay::new();
        assert_eq!(overlay.range(&Key::everything()).count(), 0);
        overlay.put(Key::inode(5), Value::from(&b"x"[..]));
        assert_eq!(overlay.range(&(Key::inode(9)..Key::inode(1))).count(), 0);
        assert_eq!(overlay.range(&Key::everything()).count(), 1);
    }
}
