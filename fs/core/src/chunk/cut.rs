//! Where a stream is cut: the `fastcdc` crate, 2020 variant, over the whitened stream. The only file that may name
//! `fastcdc`.
//!
//! Invariant: cuts are those of `FastCDC` run over the whole whitened stream at once, however the stream is handed
//! in. A chunk's end depends on that chunk's own bytes alone (no window reaches before its byte `min - 63`), so
//! cutting resumes exactly at any cut with nothing remembered: start a new [`CutStream`] there.
//! Called by the writeback workers.

use super::whiten::{CutKeys, WINDOW};
use fastcdc::v2020::{Normalization, cut, select_masks};
use sealdrive_proto::limits::{AVG_CHUNK, MAX_CHUNK, MIN_CHUNK};
use std::sync::Arc;
use zeroize::Zeroize;

/// Positions whitened and tested at a time. Larger wastes work behind the cut, smaller wastes the start of eight
/// lanes.
const BLOCK: usize = 16 << 10;
/// Whitened bytes a tested position depends on: the highest bit of any mask is bit 47, and a byte leaves bit `k` of
/// the gear hash after `k + 1` shifts.
const MEMORY: usize = 64;

/// Chunk sizes a drive cuts by. All devices of a drive must use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSizes {
    min: usize,
    avg: usize,
    max: usize,
}

impl ChunkSizes {
    /// What a new drive uses.
    pub const DEFAULT: Self = match Self::new(MIN_CHUNK, AVG_CHUNK, MAX_CHUNK) {
        Some(sizes) => sizes,
        None => panic!("the default sizes are acceptable"),
    };

    /// Even (fastcdc tests positions in pairs and only debug-asserts it), rising, `max` at most [`MAX_CHUNK`], and
    /// `min` long enough that what is read beyond a cut lies in the part of the next chunk that is skipped; else
    /// `None`.
    pub const fn new(min: usize, avg: usize, max: usize) -> Option<Self> {
        let even = min.is_multiple_of(2) && avg.is_multiple_of(2) && max.is_multiple_of(2);
        // More than two windows: none reaches into the chunk before, which is why cutting resumes with nothing
        // remembered.
        let apart = min >= BLOCK + WINDOW;
        if even && apart && min < avg && avg < max && max <= MAX_CHUNK {
            Some(Self { min, avg, max })
        } else {
            None
        }
    }
}

/// Cuts one stream as its bytes arrive.
pub struct CutStream {
    keys: Arc<CutKeys>,
    sizes: ChunkSizes,
    masks: [u64; 2],
    /// Offset in the stream where the current chunk begins.
    start: usize,
    /// Bytes of the current chunk seen.
    len: usize,
    /// The last of them, from `WINDOW` before the first one not whitened yet.
    text: Vec<u8>,
    /// Whitened bytes of the current chunk, from `min` on. Reserved whole, so that growing leaves no copy.
    white: Vec<u8>,
}

impl CutStream {
    /// A stream that begins at a cut (or at the beginning of a file).
    pub fn new(keys: Arc<CutKeys>) -> Self {
        Self::with_sizes(keys, ChunkSizes::DEFAULT)
    }

    /// The same with the sizes of the drive's configuration.
    pub fn with_sizes(keys: Arc<CutKeys>, sizes: ChunkSizes) -> Self {
        let (strict, relaxed) = select_masks(sizes.avg, Normalization::Level1);
        Self {
            keys,
            sizes,
            masks: [strict, relaxed],
            start: 0,
            len: 0,
            text: Vec::with_capacity(WINDOW + BLOCK),
            white: Vec::with_capacity(sizes.max - sizes.min),
        }
    }

    /// Takes more of the stream; appends the cuts that are now certain, as end offsets from the beginning of the
    /// stream.
    pub fn push(&mut self, mut data: &[u8], cuts: &mut Vec<usize>) {
        while !data.is_empty() {
            let skipped = self.sizes.min - WINDOW;
            if self.len < skipped {
                let (_, rest) = data.split_at(data.len().min(skipped - self.len));
                self.len += data.len() - rest.len();
                data = rest;
                continue;
            }
            let target = self.tested().saturating_add(BLOCK).min(self.sizes.max);
            let (taken, rest) = data.split_at(data.len().min(target - self.len));
            self.text.extend_from_slice(taken);
            self.len += taken.len();
            data = rest;
            if self.len == target {
                self.test_block(cuts);
            }
        }
    }

    /// Ends the stream: the last chunk ends with it. A stream that goes on is dropped instead: what lies behind its
    /// last cut is pushed again, into a new one, when there is more.
    pub fn finish(mut self, cuts: &mut Vec<usize>) {
        if self.len > self.sizes.min {
            self.test_block(cuts);
        }
        if self.len > 0 {
            cuts.push(self.start + self.len);
        }
    }

    /// Offset in the chunk up to which positions are tested.
    fn tested(&self) -> usize {
        self.sizes.min + self.white.len()
    }

    /// Whitens what has arrived since the last test and asks for a cut in it.
    fn test_block(&mut self, cuts: &mut Vec<usize>) {
        let from = self.white.len();
        self.white.resize(self.len - self.sizes.min, 0);
        self.keys.whiten(&self.text, &mut self.white[from..]);
        let found = match self.find(from) {
            Some(at) => self.sizes.min + at,
            None if self.len == self.sizes.max => self.sizes.max,
            None => {
                // The last WINDOW bytes go to the front: the next block's digests begin with them.
                let tail = self.text.len() - WINDOW;
                self.text.copy_within(tail.., 0);
                self.text.truncate(WINDOW);
                return;
            }
        };
        cuts.push(self.start + found);
        self.start += found;
        self.len -= found;
        self.text.clear();
        self.white.clear();
    }

    /// The first cut at or behind `from` in the whitened part of the chunk.
    fn find(&self, from: usize) -> Option<usize> {
        // The hash of a position behind `from` is the same whether the scan begins at `min` or MEMORY before `from`.
        // Positions in between have been tested; a hit among them is an artefact of the short scan, then all is
        // scanned.
        let begin = from.saturating_sub(MEMORY);
        match self.scan(begin) {
            Some(at) if at < from => self.scan(0).filter(|at| *at >= from),
            found => found,
        }
    }

    /// `fastcdc`'s own scan over `white[begin..]`, as if the chunk's skipped part ended there.
    fn scan(&self, begin: usize) -> Option<usize> {
        let part = &self.white[begin..];
        let centre = (self.sizes.avg - self.sizes.min).saturating_sub(begin);
        let [strict, relaxed] = self.masks;
        let (_, at) = cut(
            part,
            0,
            centre,
            self.sizes.max,
            strict,
            relaxed,
            strict << 1,
            relaxed << 1,
        );
        (at < part.len()).then_some(begin + at)
    }
}

impl Drop for CutStream {
    fn drop(&mut self) {
        self.text.zeroize();
        self.white.zeroize();
    }
}

#[cfg(test)]
#[path = "cut_tests.rs"]
mod tests;
