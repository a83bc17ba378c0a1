//! The journal's files: segments that are appended, synced, replayed at open and deleted once a checkpoint holds them.
//!
//! Invariants: a recovered segment is never appended to; a segment is deleted only when a durable checkpoint holds
//! every operation in it, oldest first; after a failed write or fsync nothing more is written. The grammar and its
//! seals are
//! `sealdrive_core::journal`. Called by the journal thread and by open.

mod twin;

use std::io::{self, IoSlice};
use std::sync::Arc;

use sealdrive_core::journal::{
    self as grammar, Entry, SegmentHeader, SegmentReader, SegmentWriter,
};
use sealdrive_core::local::LocalKeys;
use sealdrive_pack::{Medium, MediumFile};
use sealdrive_proto::id::DriveId;

pub use self::twin::{Purpose, Twin, TwinError};
use crate::clock;
use crate::limits::SEGMENT_SIZE;

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
    /// Why what follows the entries is not read, if it had been synced: set aside, and an event.
    pub damage: Option<grammar::JournalError>,
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
        let found = segments_in(&*dir).map_err(broken)?;
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
            damage: None,
        };
        let count = found.len();
        for (at, number) in found.into_iter().enumerate() {
            journal.next = number + 1;
            if replay.damage.is_some() {
                journal.set_aside(number).map_err(broken)?;
                continue;
            }
            if at + 1 == count {
                journal.settle(number).map_err(broken)?;
            }
            let bytes = journal.dir.read(&file_name(number)).map_err(broken)?;
            match journal.read(number, &bytes, &mut replay.entries) {
                Ok(()) => {}
                // It was being created when the machine stopped: nothing was promised. The next one takes its number,
                // because numbers follow each other without gaps.
                Err(grammar::JournalError::Unborn) if at + 1 == count => {
                    journal.dir.remove(&file_name(number)).map_err(broken)?;
                    journal.next = number;
                }
                Err(e @ (grammar::JournalError::Foreign | grammar::JournalError::OtherDrive)) => {
                    return Err(e.into());
                }
                Err(damage) => {
                    replay.damage = Some(damage);
                    journal.set_aside(number).map_err(broken)?;
                }
            }
        }
        Ok((journal, replay))
    }

    fn read(
        &mut self,
        number: u64,
        bytes: &[u8],
        entries: &mut Vec<Entry>,
    ) -> Result<(), grammar::JournalError> {
        let keys = Arc::clone(&self.keys);
        let mut reader = SegmentReader::open(bytes, self.drive, &*keys)?;
        if let Some(last) = self.segments.last() {
            reader.check_follows(last.number, self.tag)?;
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
        if let Some(damage) = damaged {
            return Err(damage);
        }
        let bytes = bytes.len() as u64;
        self.segments.push(Segment {
            number,
            newest,
            bytes,
        });
        Ok(())
    }

    /// Appends entries; durable after `sync`.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        if self.failed {
            return Err(JournalError::Failed);
        }
        let done = self.try_append(entries);
        self.failed |= done.is_err();
        done.map_err(|e| JournalError::Io("writing the journal", e))
    }

    fn try_append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let Some(first) = entries.iter().map(Entry::seq).min() else {
            return Ok(());
        };
        if self.open.is_none() {
            self.begin(first)?;
        }
        let (Some(open), Some(segment)) = (&mut self.open, self.segments.last_mut()) else {
            return Err(io::Error::other("no open segment"));
        };
        for piece in open.writer.append(&*self.keys, entries).chunks(2) {
            // Head and record of one piece: one write for both.
            let mut parts: Vec<IoSlice<'_>> = piece.iter().map(|part| IoSlice::new(part)).collect();
            open.file.append(segment.bytes, &mut parts)?;
            segment.bytes += piece.iter().map(|part| part.len() as u64).sum::<u64>();
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
            // Never retried: the kernel may have dropped the pages and would report success next time.
            self.failed = true;
            return Err(JournalError::Io("syncing the journal", e));
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
        while self
            .segments
            .first()
            .is_some_and(|segment| segment.newest <= seq)
        {
            if self.segments.len() == 1 {
                self.close();
            }
            let segment = self.segments.remove(0);
            self.dir
                .remove(&file_name(segment.number))
                .map_err(|e| JournalError::Io("trimming the journal", e))?;
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
        self.dir
            .rename(&file_name(number), &format!("{number:016x}.damaged"))
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
        file.append(0, &mut [IoSlice::new(&bytes)])?;
        file.sync()?;
        self.dir.sync_dir()?;
        self.next += 1;
        self.segments.push(Segment {
            number,
            newest: 0,
            bytes: bytes.len() as u64,
        });
        self.open = Some(Open { file, writer });
        Ok(())
    }
}

fn file_name(number: u64) -> String {
    format!("{number:016x}.sdj")
}

/// Numbers of the segments, in order.
fn segments_in(dir: &dyn Medium) -> io::Result<Vec<u64>> {
    let number = |name: &String| {
        let number = u64::from_str_radix(name.strip_suffix(".sdj")?, 16).ok()?;
        (file_name(number) == *name).then_some(number)
    };
    let mut out: Vec<u64> = dir.list()?.iter().filter_map(number).collect();
    out.sort_unstable();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use sealdrive_pack::Directory;
    use std::path::{Path, PathBuf};

    fn open(dir: &Path) -> (Journal, Replay) {
        let keys = Arc::new(LocalKeys::derive(&[1; 32], &[2; 32]));
        let dir = Arc::new(Directory::open(dir).unwrap());
        Journal::open(dir, DriveId([3; 32]), keys).unwrap()
    }

    fn segments(dir: &Path) -> Vec<PathBuf> {
        let numbers = segments_in(&Directory::open(dir).unwrap()).unwrap();
        numbers
            .into_iter()
            .map(|n| dir.join(file_name(n)))
            .collect()
    }

    /// The machine stopped, or its disk failed, while segment 2 was being created. The next mount removed it and called
    /// its own segment 3; the mount after that found that 3 does not follow 1, set it aside as damaged, and everything
    /// fsynced in between was gone.
    #[test]
    fn a_segment_after_an_unborn_one_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(dir.path()).0;
        journal.append(&[data(1)]).unwrap();
        journal.sync().unwrap();
        drop(journal);
        std::fs::write(dir.path().join(file_name(2)), [0; 40]).unwrap();
        let (mut journal, replay) = open(dir.path());
        assert_eq!((replay.entries.len(), replay.damage), (1, None));
        journal.append(&[data(2)]).unwrap();
        journal.sync().unwrap();
        drop(journal);
        let (_, replay) = open(dir.path());
        assert_eq!(replay.damage, None);
        assert_eq!(replay.entries, [data(1), data(2)]);
    }

    fn data(seq: u64) -> Entry {
        Entry::Data {
            seq,
            ino: 2,
            off: seq,
            bytes: Bytes::from_static(b"content"),
        }
    }

    fn seqs(replay: &Replay) -> Vec<u64> {
        replay.entries.iter().map(Entry::seq).collect()
    }

    #[test]
    fn what_was_synced_comes_back_over_several_mounts_and_nothing_is_in_clear() {
        let dir = tempfile::tempdir().unwrap();
        for mount in 0..3 {
            let (mut journal, replay) = open(dir.path());
            assert_eq!(seqs(&replay), (0..mount * 2).collect::<Vec<_>>());
            journal.append(&[data(mount * 2)]).unwrap();
            journal.sync().unwrap();
            journal.append(&[data(mount * 2 + 1)]).unwrap();
            journal.sync().unwrap();
        }
        for path in segments(dir.path()) {
            let bytes = std::fs::read(path).unwrap();
            assert!(!bytes.windows(7).any(|w| w == b"content"));
        }
    }

    #[test]
    fn trim_deletes_only_what_the_checkpoint_holds() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        journal.append(&[data(1), data(2)]).unwrap();
        journal.sync().unwrap();
        journal.trim(1).unwrap();
        assert_eq!(
            seqs(&open(dir.path()).1),
            [1, 2],
            "operation 2 is not in the checkpoint"
        );
        journal.trim(2).unwrap();
        assert!(journal.bytes() == 0 && open(dir.path()).1.entries.is_empty());
        journal.append(&[data(3)]).unwrap();
        journal.sync().unwrap();
        assert_eq!(seqs(&open(dir.path()).1), [3]);
    }

    #[test]
    fn damage_in_what_was_synced_is_reported_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        for seq in 0..4 {
            journal.append(&[data(seq)]).unwrap();
            journal.sync().unwrap();
        }
        let path = segments(dir.path()).remove(0);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (_, replay) = open(dir.path());
        assert!(replay.damage.is_some() && replay.entries.len() < 4);
        assert!(
            open(dir.path()).1.damage.is_none(),
            "it does not stand in the way of the next mount"
        );
    }
}
