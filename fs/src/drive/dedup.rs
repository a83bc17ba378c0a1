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

/// A lossy table: one slot per index, the newest wins.
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
        let (found, ino) = self.slots[self.index(print)];
        (found == print && ino != 0).then_some(ino)
    }

    fn set(&mut self, print: u64, ino: Ino) {
        let index = self.index(print);
        self.used += usize::from(self.slots[index].1 == 0);
        self.slots[index] = (print, ino);
    }

    fn index(&self, print: u64) -> usize {
        print as usize & (self.slots.len() - 1)
    }
}

fn print_of(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
