//! What the journal is given, what a checkpoint is given, and how a drive comes back from both.
//!
//! Invariant (prefix): one `take_log` holds everything up to its moment and ends with a barrier, and recovery takes it
//! whole or not at all. So what is recovered is the drive as it stood at the last barrier in the journal, which is a
//! prefix of what was asked of it; within such a step only the newest value of each record is logged. Called by the
//! engine.

use std::collections::HashSet;
use std::mem::{replace, take};

use sealdrive_core::journal::Entry;
use sealdrive_core::overlay::Overlay;
use sealdrive_core::record::{Edit, Ino, ino_of};
use sealdrive_core::tree::Root;

use super::Drive;
use super::errno::Answer;
use super::state::State;

/// Bytes of edits in one log entry: bounds the journal's buffers.
const ENTRY_BYTES: usize = 256 << 10;

/// Whether dirty bytes go into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogData {
    /// All that the journal does not hold yet: afterwards everything written so far is in the log.
    All,
    /// All but what a file still open for writing has on its way into chunks, or, once, will have next: that is durable
    /// in a moment without being written twice, and until then may read as a hole after a crash. For rounds that
    /// nobody waits for.
    Background,
    /// None: ranges not sealed by now are holes after a crash.
    None,
}

impl Drive {
    /// Everything the journal was not given yet, ending with a barrier; empty if there is nothing.
    pub fn take_log(&self, data: LogData) -> Answer<Vec<Entry>> {
        let s = &mut *self.lock()?;
        s.settle_inline(false)?;
        s.flush();
        Ok(s.take_log(data))
    }

    /// The logs taken so far are durable. One that failed never is: what it held stays dirty to whoever asks.
    pub fn log_durable(&self) {
        self.peek().in_log = HashSet::new();
    }

    /// Bytes that [`Self::take_log`] would return now, about: records, and dirty bytes not in the journal.
    pub fn unlogged_bytes(&self) -> (usize, u64) {
        let s = self.peek();
        let fresh = s
            .dirty
            .iter()
            .filter(|(ino, _)| !s.orphans.contains_key(ino));
        let data = fresh.map(|(_, map)| map.unsafe_bytes()).sum();
        (s.map.unlogged_bytes(), data)
    }

    /// Whether anything is not in the log yet.
    pub fn has_unlogged(&self) -> bool {
        let (records, data) = self.unlogged_bytes();
        records > 0 || data > 0 || self.peek().inodes.any_stale()
    }

    /// The drive as it was at the last barrier: checkpoint `root`, which holds operations up to `seq`, and the entries
    /// of the journal in order (those the checkpoint holds already are left out here).
    pub fn recover(root: Option<Root>, seq: u64, entries: impl IntoIterator<Item = Entry>) -> Self {
        let drive = Self::new(root, seq);
        {
            let s = &mut *drive.peek();
            let mut batch = Vec::new();
            for entry in entries {
                let barrier = matches!(&entry, Entry::Op { edits, .. } if edits.is_empty());
                batch.push(entry);
                if barrier {
                    for entry in batch.drain(..) {
                        s.replay(entry, seq);
                    }
                }
            }
            s.seq += 1;
        }
        drive
    }
}

impl State {
    fn take_log(&mut self, data: LogData) -> Vec<Entry> {
        let mut log = Vec::new();
        // What is frozen goes under the number of its checkpoint: once that is durable, none of it counts.
        let frozen = take(&mut self.map.unlogged_frozen);
        let discards = take(&mut self.discards[1]);
        self.log_records(self.frozen_seq, discards, frozen, &mut log);
        let (fresh, discards) = (take(&mut self.map.unlogged), take(&mut self.discards[0]));
        self.log_records(self.seq, discards, fresh, &mut log);
        if data != LogData::None {
            self.log_data(self.seq, data, &mut log);
        }
        if let Some(seq) = log.iter().map(Entry::seq).max() {
            log.push(Entry::Op {
                seq,
                edits: Vec::<Edit>::new(),
            });
            self.seq += 1;
        }
        log
    }

    fn log_records(
        &mut self,
        seq: u64,
        discards: Vec<(Ino, u64, u64)>,
        edits: Overlay,
        log: &mut Vec<Entry>,
    ) {
        let discards = discards.into_iter();
        log.extend(discards.map(|(ino, off, len)| Entry::Discard { seq, ino, off, len }));
        let (mut gathered, mut bytes) = (Vec::new(), 0);
        let mut last = 0;
        for edit in edits.into_edits() {
            // In key order, so those of one inode follow one another. 0 are the drive's own records.
            let ino = ino_of(edit.key().as_bytes());
            if ino != last {
                self.in_log.insert(ino);
                last = ino;
            }
            bytes += edit.key().as_bytes().len() + edit.value().map_or(0, |value| value.len());
            gathered.push(edit);
            if bytes >= ENTRY_BYTES {
                let edits = take(&mut gathered);
                log.push(Entry::Op { seq, edits });
                bytes = 0;
            }
        }
        if !gathered.is_empty() {
            let edits = gathered;
            log.push(Entry::Op { seq, edits });
        }
    }

    fn log_data(&mut self, seq: u64, data: LogData, log: &mut Vec<Entry>) {
        let mut files: Vec<Ino> = self.dirty.keys().copied().collect();
        files.retain(|ino| !self.orphans.contains_key(ino));
        files.sort_unstable();
        for ino in files {
            let open = self.inodes.holders(ino).writers > 0;
            let Some(map) = self.dirty.get_mut(&ino) else {
                continue;
            };
            let spare = open && data == LogData::Background;
            let next = if spare {
                map.next_to_seal()
            } else {
                Vec::new()
            };
            for (off, range) in map.iter_mut(0, u64::MAX) {
                let is_next = || next.iter().any(|run| (run.off..run.end()).contains(&off));
                let under_way = spare
                    && (range.job.is_some() || (!replace(&mut range.left_out, true) && is_next()));
                if !range.safe && !under_way {
                    range.safe = true;
                    let bytes = range.fix();
                    log.push(Entry::Data {
                        seq,
                        ino,
                        off,
                        bytes,
                    });
                    self.journaled[0].insert(ino);
                    self.in_log.insert(ino);
                }
            }
        }
    }

    fn replay(&mut self, entry: Entry, checkpoint: u64) {
        let (Entry::Op { seq, .. } | Entry::Data { seq, .. } | Entry::Discard { seq, .. }) = &entry;
        if *seq <= checkpoint {
            return;
        }
        self.seq = self.seq.max(*seq);
        match entry {
            Entry::Op { edits, .. } => {
                for edit in edits {
                    self.map.active.apply(edit);
                }
            }
            Entry::Data {
                ino, off, bytes, ..
            } => {
                let version = self.next_version();
                let map = self.dirty.entry(ino).or_default();
                let before = map.bytes();
                map.insert(off, bytes, version, true);
                self.dirty_bytes = self.dirty_bytes + map.bytes() - before;
                self.journaled[0].insert(ino);
            }
            Entry::Discard { ino, off, len, .. } => {
                if let Some(map) = self.dirty.get_mut(&ino) {
                    self.dirty_bytes -= map.remove(off, off.saturating_add(len));
                    if map.is_empty() {
                        self.dirty.remove(&ino);
                    }
                }
            }
        }
    }
}
