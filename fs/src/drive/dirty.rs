//! Bytes written to one file and not yet placed in chunks.
//!
//! Invariant: ranges do not overlap, none is empty, `bytes` is their sum. Every write has a version of its own, larger
//! than all before it; a range never changes under its version once it was handed out (to a job, the journal or
//! another file), so "same version" means "same bytes". Called by the file operations, writeback and the log.

use std::collections::BTreeMap;

use bytes::Bytes;
use sealdrive_proto::limits::MAX_CHUNK;

/// Names one writeback job.
pub type JobId = u64;

/// Longest buffer that small sequential writes are gathered into, bytes: one chunk at most, so that handing it out
/// and overwriting a part of it stay cheap.
const GATHER: usize = 1 << 20;

/// The bytes of a range.
#[derive(Debug)]
enum Buffer {
    /// Only this map knows it: appends go here.
    Growing(Vec<u8>),
    /// Shared with a job, the journal or a reader.
    Fixed(Bytes),
}

impl Buffer {
    fn len(&self) -> usize {
        match self {
            Self::Growing(vec) => vec.len(),
            Self::Fixed(bytes) => bytes.len(),
        }
    }

    fn fix(&mut self) -> &Bytes {
        if let Self::Growing(vec) = self {
            *self = Self::Fixed(Bytes::from(std::mem::take(vec)));
        }
        match self {
            Self::Fixed(bytes) => bytes,
            Self::Growing(_) => unreachable!("fixed just above"),
        }
    }
}

/// A run of bytes written together.
#[derive(Debug)]
pub(super) struct Range {
    buffer: Buffer,
    /// The write that made it, or the last that was gathered into it.
    pub(super) version: u64,
    /// A journal record that was handed out holds these bytes, or the tree's extents below do.
    pub(super) safe: bool,
    /// The job it is in flight with.
    pub(super) job: Option<JobId>,
    /// A log that nobody waited for left it out, because it was about to be sealed. Once is enough.
    pub(super) left_out: bool,
}

impl Range {
    /// Length, bytes.
    pub(super) fn len(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// The bytes, which no later append will change.
    pub(super) fn fix(&mut self) -> Bytes {
        self.buffer.fix().clone()
    }

    fn slice(&self, from: u64, to: u64) -> Bytes {
        let (from, to) = (from as usize, to as usize);
        match &self.buffer {
            Buffer::Growing(vec) => Bytes::copy_from_slice(&vec[from..to]),
            Buffer::Fixed(bytes) => bytes.slice(from..to),
        }
    }

    fn part(&mut self, from: u64, to: u64) -> Self {
        Self {
            buffer: Buffer::Fixed(self.buffer.fix().slice(from as usize..to as usize)),
            version: self.version,
            safe: self.safe,
            job: self.job,
            left_out: self.left_out,
        }
    }
}

/// A contiguous run of ranges that share one condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First byte.
    pub(super) off: u64,
    /// Length, bytes.
    pub(super) len: u64,
}

impl Run {
    /// One past its last byte.
    pub(super) fn end(&self) -> u64 {
        self.off + self.len
    }
}

/// The dirty bytes of one file.
#[derive(Debug, Default)]
pub(super) struct DirtyMap {
    ranges: BTreeMap<u64, Range>,
    bytes: u64,
}

impl DirtyMap {
    /// Dirty bytes in all.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that neither the journal nor the tree holds.
    pub(super) fn unsafe_bytes(&self) -> u64 {
        self.iter()
            .filter(|(_, range)| !range.safe)
            .map(|(_, range)| range.len())
            .sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Copies `data` in at `off`, over whatever is there.
    pub(super) fn write(&mut self, off: u64, data: &[u8], version: u64) {
        self.remove(off, off + data.len() as u64);
        self.bytes += data.len() as u64;
        if let Some((start, range)) = self.ranges.range_mut(..off).next_back()
            && start + range.len() == off
            && range.job.is_none()
            && let Buffer::Growing(vec) = &mut range.buffer
            && vec.len() + data.len() <= GATHER
        {
            let need = vec.len() + data.len();
            if need > vec.capacity() {
                vec.reserve_exact((2 * vec.capacity()).clamp(need, GATHER) - vec.len());
            }
            vec.extend_from_slice(data);
            range.version = version;
            return;
        }
        self.place(off, Buffer::Growing(data.to_vec()), version, false);
    }

    /// Puts shared bytes at `off`, over whatever is there.
    pub(super) fn insert(&mut self, off: u64, data: Bytes, version: u64, safe: bool) {
        if data.is_empty() {
            return;
        }
        self.remove(off, off + data.len() as u64);
        self.bytes += data.len() as u64;
        self.place(off, Buffer::Fixed(data), version, safe);
    }

    fn place(&mut self, off: u64, buffer: Buffer, version: u64, safe: bool) {
        self.ranges.insert(
            off,
            Range {
                buffer,
                version,
                safe,
                job: None,
                left_out: false,
            },
        );
    }

    /// Forgets `off..end`; returns the bytes forgotten.
    pub(super) fn remove(&mut self, off: u64, end: u64) -> u64 {
        let mut removed = 0;
        let mut at = self.first_touching(off);
        while at < end
            && let Some((&start, _)) = self.ranges.range(at..end).next()
        {
            let Some(mut range) = self.ranges.remove(&start) else {
                break;
            };
            let stop = start + range.len();
            at = stop;
            if stop <= off {
                self.ranges.insert(start, range);
                continue;
            }
            let (from, to) = (start.max(off), stop.min(end));
            removed += to - from;
            if stop > to {
                let tail = range.part(to - start, stop - start);
                self.ranges.insert(to, tail);
            }
            if from > start {
                let head = range.part(0, from - start);
                self.ranges.insert(start, head);
            }
        }
        self.bytes -= removed;
        removed
    }

    /// Where to start looking for ranges that reach beyond `off`.
    fn first_touching(&self, off: u64) -> u64 {
        match self.ranges.range(..=off).next_back() {
            Some((&start, range)) if start + range.len() > off => start,
            _ => off,
        }
    }

    /// The dirty bytes in `off..end`, in order, cut to it.
    pub(super) fn slices(&self, off: u64, end: u64) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        let first = self.first_touching(off);
        self.ranges
            .range(first..end.max(first))
            .filter(move |_| off < end)
            .map(move |(&start, range)| {
                let (from, to) = (start.max(off), (start + range.len()).min(end));
                (from, range.slice(from - start, to - start))
            })
    }

    /// The stretches of `off..end` that are dirty and of `version`.
    pub(super) fn standing(&self, off: u64, end: u64, version: u64) -> Vec<Run> {
        let first = self.first_touching(off);
        self.ranges
            .range(first..end.max(first))
            .filter(|(_, range)| range.version == version)
            .map(|(&start, range)| {
                let (from, to) = (start.max(off), (start + range.len()).min(end));
                Run {
                    off: from,
                    len: to - from,
                }
            })
            .collect()
    }

    /// All ranges with their offsets.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Range)> {
        self.ranges.iter().map(|(&off, range)| (off, range))
    }

    /// All ranges that begin in `off..end`, to mark or hand out.
    pub(super) fn iter_mut(
        &mut self,
        off: u64,
        end: u64,
    ) -> impl Iterator<Item = (u64, &mut Range)> {
        self.ranges
            .range_mut(off..end)
            .map(|(&off, range)| (off, range))
    }

    /// Makes `at` a border between ranges.
    pub(super) fn split_at(&mut self, at: u64) {
        if let Some((&start, range)) = self.ranges.range_mut(..at).next_back()
            && start + range.len() > at
        {
            let tail = range.part(at - start, range.len());
            *range = range.part(0, at - start);
            self.ranges.insert(at, tail);
        }
    }

    /// Makes one range of a run whose ranges follow one another and have no job.
    pub(super) fn join(&mut self, run: Run, version: u64) {
        if self.ranges.range(run.off..run.end()).nth(1).is_none() {
            return;
        }
        let safe = self
            .ranges
            .range(run.off..run.end())
            .all(|(_, range)| range.safe);
        let mut bytes = Vec::with_capacity(run.len as usize);
        for (_, part) in self.slices(run.off, run.end()) {
            bytes.extend_from_slice(&part);
        }
        self.insert(run.off, bytes.into(), version, safe);
    }

    /// Runs that no job has and that are long enough to be sealed while the file is still being written.
    pub(super) fn next_to_seal(&self) -> Vec<Run> {
        let mut runs = self.runs(|range| range.job.is_none());
        runs.retain(|run| run.len >= MAX_CHUNK as u64);
        runs
    }

    /// Contiguous runs, in order; `which` chooses the ranges that count.
    pub(super) fn runs(&self, which: impl Fn(&Range) -> bool) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (off, range) in self.iter().filter(|(_, range)| which(range)) {
            match runs.last_mut() {
                Some(run) if run.end() == off => run.len += range.len(),
                _ => runs.push(Run {
                    off,
                    len: range.len(),
                }),
            }
        }
        runs
    }
}
