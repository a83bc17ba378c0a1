//! Which file holds this content: digests of small files seen lately.
//!
//! Invariant: only a hint. What it names is verified against the inode record before use, so that losing or overwriting
//! an entry costs a saving and never a byte. Called by writeback.

use sealdrive_core::record::Ino;

/// Keyed digest of the whole content of a small file.
pub type Digest = [u8; 32];

/// Slots at first and at most: 16 MiB when full, good for a million small files.
const FIRST: usize = 1 << 12;
const MOST: usize = 1 << 20;

/// Slots an entry may stand in, from its own on: at most half full, almost none finds all of them taken.
const PROBES: usize = 32;

/// A lossy table of bounded size: where all slots of an entry are taken, the newest wins.
pub(super) struct DigestTable {
    slots: Vec<(u64, Ino)>,
    used: usize,
}

impl Default for DigestTable {
    fn default() -> Self {
        Self {
            slots: vec![(0, 0); FIRST],
            used: 0,
        }
    }
}

impl DigestTable {
    /// Remembers that `ino` holds content of this digest.
    pub(super) fn insert(&mut self, digest: &Digest, ino: Ino) {
        if self.used > self.slots.len() / 2 && self.slots.len() < MOST {
            let old = std::mem::take(&mut self.slots);
            self.slots = vec![(0, 0); old.len() * 4];
            self.used = 0;
            for (print, ino) in old {
                if ino != 0 {
                    self.set(print, ino);
                }
            }
        }
        self.set(print_of(digest), ino);
    }

    /// The file that may hold it.
    pub(super) fn get(&self, digest: &Digest) -> Option<Ino> {
        let print = print_of(digest);
        self.places(print)
            .map(|index| self.slots[index])
            .find(|(found, ino)| *found == print && *ino != 0)
            .map(|(_, ino)| ino)
    }

    fn set(&mut self, print: u64, ino: Ino) {
        let free = |index: &usize| self.slots[*index].1 == 0 || self.slots[*index].0 == print;
        let own = print as usize & (self.slots.len() - 1);
        let index = self.places(print).find(free).unwrap_or(own);
        self.used += usize::from(self.slots[index].1 == 0);
        self.slots[index] = (print, ino);
    }

    fn places(&self, print: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.slots.len() - 1;
        (0..PROBES).map(move |step| (print as usize).wrapping_add(step) & mask)
    }
}

fn print_of(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u64) -> Digest {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    /// A table with one slot per entry forgot every sixth of 5,700 files, and their content was sent again.
    #[test]
    fn nearly_all_of_what_it_has_room_for_is_found_again() {
        let mut table = DigestTable::default();
        let count = MOST as u64 / 2;
        for number in 1..=count {
            table.insert(&digest(number), number);
            if number == 5700 {
                assert!((1..=5700).all(|n| table.get(&digest(n)) == Some(n)));
            }
        }
        let found = (1..=count).filter(|n| table.get(&digest(*n)) == Some(*n));
        assert!(found.count() as u64 > count / 1000 * 999);
        assert_eq!(table.slots.len(), MOST);
    }
}
