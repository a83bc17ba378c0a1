//! A page of an overlay: some entries packed in key order, a few kilobytes.
//!
//! Layout in memory: `klen u16 ‖ vlen u16 ‖ key ‖ value` per entry, `vlen` 0xffff for a deletion. Invariant: keys rise
//! strictly and `starts` holds where each begins. Called by the overlay only.

use crate::record::MAX_KEY;
use sealdrive_proto::limits::MAX_VALUE;

/// Longest page, bytes: moving half of it for an insertion costs less than finding the page.
pub(super) const PAGE_MAX: usize = 4096;

const HEAD: usize = 4;
const DELETED: u16 = u16::MAX;

const _: () = assert!(HEAD + MAX_KEY + MAX_VALUE <= PAGE_MAX && MAX_VALUE < DELETED as usize);

/// Some entries in key order.
#[derive(Clone, Default)]
pub(super) struct Page {
    bytes: Vec<u8>,
    starts: Vec<u16>,
    /// Where the last entry was inserted: tells a run from scattered keys.
    latest: u16,
}

impl Page {
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Memory held, bytes, but for the page's place in the overlay.
    pub(super) fn heap(&self) -> usize {
        self.bytes.capacity() + 2 * self.starts.capacity()
    }

    pub(super) fn entry(&self, index: usize) -> (&[u8], Option<&[u8]>) {
        let (key_len, value_len) = self.lens(index);
        let from = usize::from(self.starts[index]) + HEAD;
        let key = &self.bytes[from..from + key_len];
        (
            key,
            value_len.map(|len| &self.bytes[from + key_len..from + key_len + len]),
        )
    }

    /// Where the key is, or where it belongs.
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.entry(middle).0.cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Sets the entry at `place`, which is what `search` said of its key. False, and nothing done, if the page would be
    /// too long.
    pub(super) fn set(
        &mut self,
        place: Result<usize, usize>,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> bool {
        let new = HEAD + key.len() + value.map_or(0, <[u8]>::len);
        let (index, old) = match place {
            Ok(index) => (index, self.end(index) - usize::from(self.starts[index])),
            Err(index) => (index, 0),
        };
        let len = self.bytes.len();
        if len - old + new > PAGE_MAX {
            return false;
        }
        let at = self
            .starts
            .get(index)
            .map_or(len, |start| usize::from(*start));
        if new > old {
            self.bytes.resize(len + new - old, 0);
        }
        self.bytes.copy_within(at + old..len, at + new);
        self.bytes.truncate(len - old + new);
        if place.is_err() {
            self.starts.insert(index, at as u16);
            self.latest = index as u16;
        }
        for start in &mut self.starts[index + 1..] {
            *start = (usize::from(*start) - old + new) as u16;
        }
        let head = [
            key.len() as u16,
            value.map_or(DELETED, |value| value.len() as u16),
        ];
        self.bytes[at..at + 2].copy_from_slice(&head[0].to_le_bytes());
        self.bytes[at + 2..at + HEAD].copy_from_slice(&head[1].to_le_bytes());
        self.bytes[at + HEAD..at + HEAD + key.len()].copy_from_slice(key);
        self.bytes[at + HEAD + key.len()..at + new].copy_from_slice(value.unwrap_or_default());
        true
    }

    /// Where to split so that there is room at `place`: at the place itself if insertions run there, else in the
    /// middle. The place of a new key never falls into the part before and behind at once: only a split there leaves a
    /// part empty.
    pub(super) fn split_at(&self, place: Result<usize, usize>) -> usize {
        let run = usize::from(self.latest)..=usize::from(self.latest) + 2;
        match place {
            Err(index) if self.len() < 2 || run.contains(&index) => index,
            _ => {
                let half = (self.bytes.len() / 2) as u16;
                self.starts
                    .partition_point(|start| *start < half)
                    .clamp(1, self.len() - 1)
            }
        }
    }

    /// Takes the entries from `index` on.
    pub(super) fn split_off(&mut self, index: usize) -> Self {
        let at = self
            .starts
            .get(index)
            .map_or(self.bytes.len(), |start| usize::from(*start));
        let bytes = self.bytes[at..].to_vec();
        self.bytes.truncate(at);
        let starts = self
            .starts
            .drain(index..)
            .map(|start| start - at as u16)
            .collect();
        if at < PAGE_MAX * 3 / 4 {
            self.bytes.shrink_to_fit();
            self.starts.shrink_to_fit();
        }
        Self {
            bytes,
            starts,
            latest: 0,
        }
    }

    fn lens(&self, index: usize) -> (usize, Option<usize>) {
        let at = usize::from(self.starts[index]);
        let number = |at: usize| u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]);
        let value_len = number(at + 2);
        (
            usize::from(number(at)),
            (value_len != DELETED).then_some(usize::from(value_len)),
        )
    }

    fn end(&self, index: usize) -> usize {
        self.starts
            .get(index + 1)
            .map_or(self.bytes.len(), |start| usize::from(*start))
    }
}
