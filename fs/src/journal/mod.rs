//! The journal's files: segments that are appended, synced, replayed at open and deleted once a checkpoint holds them.
//!
//! Invariants: a recovered segment is never appended to; a segment is deleted only when a durable checkpoint holds
//! every operation in it, oldest first; after a failed write or fsync nothing more is written, but for a write that
//! found no space: what it left is cut off again, and the journal goes on. The grammar and its seals are
//! `sealdrive_core::journal`. Called by the journal thread and by open.

mod span;
mod twin;

use std::io::{self, IoSlice};
use std::sync::Arc;

use sealdrive_core::journal::{
    self as grammar, Entry, SegmentHeader, SegmentReader, SegmentWriter,
};
use sealdrive_core::local::LocalKeys;
use sealdrive_pack::{Medium, MediumFile, is_no_space};
use sealdrive_proto::id::DriveId;

use self::span::Span;
pub use self::twin::{Purpose, Twin, TwinError};
use crate::clock;
use crate::limits::{SEAL_AT_ONCE, SEGMENT_SIZE};

/// How the name of a segment ends.
const SEGMENT: &str = ".sdj";
/// How the name of one ends that is kept for a person to look at.
const DAMAGED: &str = ".damaged";

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system failed.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// The file is not this drive's journal, or of another version.
    #[error(transparent)]
    Grammar(#[from] grammar::JournalError),
    /// An earlier write or fsync failed.
    #[error("the journal has failed and is read-only")]
    Failed,
}

impl JournalError {
    /// Whether it was only space that was missing: the journal is as it was, and the same may work later.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io(_, e) if is_no_space(e))
    }
}

struct Segment {
    number: u64,
    /// Newest operation in it.
    newest: u64,
    bytes: u64,
}

struct Open {
    file: Arc<dyn MediumFile>,
    writer: SegmentWriter,
}

/// What a journal held when it was opened.
pub struct Replay {
    /// Entries in order, those that a checkpoint already holds included.
    pub entries: Vec<Entry>,
    /// How many entries there were at the end of each segment.
    ends: Vec<usize>,
    /// Why what follows the entries is not read, if it had been synced: set aside, and an event.
    pub damage: Option<grammar::JournalError>,
    /// Files set aside, now or at an earlier mount, for a person to look at.
    pub aside: Vec<String>,
}

impl Replay {
    /// The entries of whole steps. A step never reaches into the next segment, so one without its barrier at the end of
    /// a segment was cut there: it was never promised, and taken together with a later step it would tear it.
    pub fn take_steps(&mut self) -> Vec<Entry> {
        let mut entries = std::mem::take(&mut self.entries).into_iter();
        let (mut out, mut from) = (Vec::new(), 0);
        for end in std::mem::take(&mut self.ends) {
            let segment: Vec<Entry> = entries.by_ref().take(end - from).collect();
            let is_barrier =
                |entry: &Entry| matches!(entry, Entry::Op { edits, .. } if edits.is_empty());
            let whole = segment.iter().rposition(is_barrier).map_or(0, |at| at + 1);
            out.extend(segment.into_iter().take(whole));
            from = end;
        }
        out
    }
}

/// The journal of one drive.
pub struct Journal {
    dir: Arc<dyn Medium>,
    drive: DriveId,
    keys: Arc<LocalKeys>,
    /// In order; the last may be open.
    segments: Vec<Segment>,
    open: Option<Open>,
    next: u64,
    tag: [u8; 16],
    failed: bool,
}

impl Journal {
    /// Reads every segment in `dir`.
    pub fn open(
        dir: Arc<dyn Medium>,
        drive: DriveId,
        keys: Arc<LocalKeys>,
    ) -> Result<(Self, Replay), JournalError> {
        let broken = |e| JournalError::Io("opening the journal", e);
        let mut found = files_in(&*dir, SEGMENT).map_err(broken)?;
        let mut journal = Self {
            dir,
            drive,
            keys,
            segments: Vec::new(),
            open: None,
            next: 1,
            tag: [0; 16],
            failed: false,
        };
        let mut replay = Replay {
            entries: Vec::new(),
            ends: Vec::new(),
            damage: None,
            aside: Vec::new(),
        };
        let span = Span::read(&*journal.dir);
        if let Some(span) = span {
            // Trimmed: only the deletion did not survive the crash.
            for number in found.extract_if(.., |number| *number < span.first) {
                journal.dir.remove(&file_name(number)).map_err(broken)?;
            }
            journal.next = span.first;
        }
        let count = found.len();
        for (at, number) in found.into_iter().enumerate() {
            if replay.damage.is_some() {
                journal.set_aside(number).map_err(broken)?;
                continue;
            }
            journal.next = number + 1;
            if at + 1 == count {
                journal.settle(number).map_err(broken)?;
            }
            let bytes = journal.dir.read(&file_name(number)).map_err(broken)?;
            let gone = journal.segments.is_empty() && span.is_some_and(|span| number > span.first);
            let read = if gone {
                Err((grammar::JournalError::Broken, None))
            } else {
                journal.read(number, &bytes, &mut replay.entries)
            };
            replay.ends.push(replay.entries.len());
            match read {
                Ok(()) => {}
                // It was being created when the machine stopped: nothing was promised. The next one takes its number,
                // because numbers follow each other without gaps.
                Err((grammar::JournalError::Unborn, _)) if at + 1 == count => {
                    journal.dir.remove(&file_name(number)).map_err(broken)?;
                    journal.next = number;
                }
                Err((damage, good)) => {
                    replay.damage = Some(damage);
                    journal.cut(number, &bytes, good).map_err(broken)?;
                }
            }
        }
        let reached = journal.segments.last().map_or(0, |last| last.number);
        if replay.damage.is_none()
            && span.is_some_and(|span| !span.is_empty() && reached < span.last)
        {
            replay.damage = Some(grammar::JournalError::Broken);
        }
        // Also if there is none: an older one that comes back must not speak of other segments with these numbers.
        if replay.damage.is_some() || span.is_none() {
            let span = journal.span();
            span.write(&*journal.dir).map_err(broken)?;
        }
        let aside = files_in(&*journal.dir, DAMAGED).map_err(broken)?;
        replay.aside = aside.into_iter().map(aside_name).collect();
        Ok((journal, replay))
    }

    /// Keeps the damaged file for a person to look at. What is good of it stays in force: it is on this disk nowhere
    /// else, and the machine may stop again before a checkpoint holds it.
    fn cut(&mut self, number: u64, bytes: &[u8], good: Option<Segment>) -> io::Result<()> {
        let Some(good) = good else {
            // Nothing of it counts. The next segment follows the one before.
            self.next = self.segments.last().map_or(number, |last| last.number + 1);
            return self.set_aside(number);
        };
        self.dir.replace(&aside_name(number), bytes)?;
        let file = self.dir.open(&file_name(number))?;
        file.truncate(good.bytes)?;
        file.sync()?;
        self.segments.push(good);
        Ok(())
    }

    /// Reads one segment. An error comes with what is good of the segment, if its beginning is.
    fn read(
        &mut self,
        number: u64,
        bytes: &[u8],
        entries: &mut Vec<Entry>,
    ) -> Result<(), (grammar::JournalError, Option<Segment>)> {
        let keys = Arc::clone(&self.keys);
        let mut reader = SegmentReader::open(bytes, self.drive, &*keys).map_err(|e| (e, None))?;
        if let Some(last) = self.segments.last() {
            let follows = reader.check_follows(last.number, self.tag);
            follows.map_err(|e| (e, None))?;
        }
        let mut newest = 0;
        let damaged = loop {
            match reader.next_batch() {
                Ok(Some(batch)) => {
                    newest = batch.iter().map(Entry::seq).max().unwrap_or(0).max(newest);
                    entries.extend(batch);
                }
                Ok(None) => break None,
                Err(e) => break Some(e),
            }
        };
        self.tag = reader.tag();
        let mut segment = Segment {
            number,
            newest,
            bytes: bytes.len() as u64,
        };
        if let Some(damage) = damaged {
            segment.bytes = reader.good_len() as u64;
            return Err((damage, Some(segment)));
        }
        self.segments.push(segment);
        Ok(())
    }

    /// Appends entries, all or none; durable after `sync`.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        if self.failed {
            return Err(JournalError::Failed);
        }
        let Some(first) = entries.iter().map(Entry::seq).min() else {
            return Ok(());
        };
        let begun = match self.open {
            Some(_) => Ok(()),
            None => self.begin(first),
        };
        let done = begun.and_then(|()| {
            let before = self.mark();
            let done = self.try_append(entries);
            if let (Err(e), Some(before)) = (&done, before)
                && is_no_space(e)
            {
                self.cut_back(before)?;
            }
            done
        });
        self.failed |= done.as_ref().is_err_and(|e| !is_no_space(e));
        done.map_err(|e| JournalError::Io("writing the journal", e))
    }

    /// Where the open segment stands.
    fn mark(&self) -> Option<(SegmentWriter, u64)> {
        let bytes = self.segments.last()?.bytes;
        Some((self.open.as_ref()?.writer.clone(), bytes))
    }

    /// Takes back what an append left that found no space. What was before it is durable or was never promised.
    fn cut_back(&mut self, (writer, bytes): (SegmentWriter, u64)) -> io::Result<()> {
        if let (Some(open), Some(segment)) = (&mut self.open, self.segments.last_mut()) {
            open.file.truncate(bytes).map_err(io::Error::other)?;
            open.writer = writer;
            segment.bytes = bytes;
        }
        Ok(())
    }

    fn try_append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let (Some(open), Some(segment)) = (&mut self.open, self.segments.last_mut()) else {
            return Err(io::Error::other("no open segment"));
        };
        let mut rest = entries;
        while !rest.is_empty() {
            // A flush may hold all dirty bytes there may be: sealed as a whole, they would be in memory three times.
            let mut size = 0;
            let fits = |entry: &&Entry| {
                size += entry.encoded_len();
                size <= SEAL_AT_ONCE
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            rest = later;
            for piece in open.writer.append(&*self.keys, now).chunks(2) {
                // Head and record of one piece: one write for both.
                let mut parts: Vec<IoSlice<'_>> =
                    piece.iter().map(|part| IoSlice::new(part)).collect();
                open.file.append(segment.bytes, &mut parts)?;
                segment.bytes += piece.iter().map(|part| part.len() as u64).sum::<u64>();
            }
        }
        segment.newest = entries
            .iter()
            .map(Entry::seq)
            .max()
            .unwrap_or(0)
            .max(segment.newest);
        Ok(())
    }

    /// Makes what was appended durable.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        if self.failed {
            return Err(JournalError::Failed);
        }
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        if let Err(e) = open.file.sync() {
            // Never retried, whatever it says: the kernel may have dropped the pages, and would report success next
            // time.
            self.failed = true;
            return Err(JournalError::Io("syncing the journal", io::Error::other(e)));
        }
        open.writer.synced();
        if self
            .segments
            .last()
            .is_some_and(|segment| segment.bytes >= SEGMENT_SIZE)
        {
            self.close();
        }
        Ok(())
    }

    /// A durable checkpoint holds the operations up to `seq`: deletes the segments with nothing newer.
    pub fn trim(&mut self, seq: u64) -> Result<(), JournalError> {
        let broken = |e| JournalError::Io("trimming the journal", e);
        let done = |segment: &&Segment| segment.newest <= seq;
        let count = self.segments.iter().take_while(done).count();
        if count == 0 {
            return Ok(());
        }
        if self.segments.len() == count {
            self.close();
        }
        // First the note that they may be gone, then they go.
        self.span_behind(count).settle(&*self.dir).map_err(broken)?;
        for segment in self.segments.drain(..count) {
            self.dir
                .remove(&file_name(segment.number))
                .map_err(broken)?;
        }
        Ok(())
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Makes durable what a process that was killed may have left in memory only: the next segment names the last
    /// record
    /// of this one, and must not outlive it. Pages whose write failed look clean, so they are read from the disk.
    fn settle(&self, number: u64) -> io::Result<()> {
        let file = self.dir.open(&file_name(number))?;
        file.sync()?;
        file.drop_cache()
    }

    /// Kept for a person to look at, and never read again.
    fn set_aside(&self, number: u64) -> io::Result<()> {
        self.dir.rename(&file_name(number), &aside_name(number))
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.tag = open.writer.tag();
        }
    }

    fn begin(&mut self, first_op: u64) -> io::Result<()> {
        let number = self.next;
        let salt = clock::entropy::<32>().map_err(io::Error::other)?;
        let header = SegmentHeader {
            drive: self.drive,
            segment: number,
            first_op,
            prev_tag: self.tag,
            salt,
        };
        let (writer, bytes) = SegmentWriter::begin(&header, &*self.keys);
        let file = self.dir.create(&file_name(number))?;
        if let Err(e) = file.append(0, &mut [IoSlice::new(&bytes)]) {
            // The next attempt takes the same name.
            self.dir
                .remove(&file_name(number))
                .map_err(io::Error::other)?;
            return Err(e);
        }
        let synced = file.sync().and_then(|()| self.dir.sync_dir());
        synced.map_err(io::Error::other)?;
        self.next += 1;
        self.segments.push(Segment {
            number,
            newest: 0,
            bytes: bytes.len() as u64,
        });
        self.open = Some(Open { file, writer });
        if let Err(error) = self.span().note(&*self.dir) {
            tracing::warn!(%error, "the newest journal segment would not be missed");
        }
        Ok(())
    }

    /// Which segments there are, so that one that is lost is missed.
    fn span(&self) -> Span {
        self.span_behind(0)
    }

    /// The same, without the first `count`.
    fn span_behind(&self, count: usize) -> Span {
        let left = &self.segments[count..];
        Span {
            first: left.first().map_or(self.next, |first| first.number),
            last: left.last().map_or(0, |last| last.number),
        }
    }
}

fn file_name(number: u64) -> String {
    format!("{number:016x}{SEGMENT}")
}

fn aside_name(number: u64) -> String {
    format!("{number:016x}{DAMAGED}")
}

/// Numbers of the segments, or of those set aside, in order.
fn files_in(dir: &dyn Medium, ending: &str) -> io::Result<Vec<u64>> {
    let number = |name: &String| {
        let number = u64::from_str_radix(name.strip_suffix(ending)?, 16).ok()?;
        (format!("{number:016x}{ending}") == *name).then_some(number)
    };
    let mut out: Vec<u64> = dir.list()?.iter().filter_map(number).collect();
    out.sort_unstable();
    Ok(out)
}

#[cfg(test)]
mod tests;
