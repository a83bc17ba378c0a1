//! Reads a segment back, record by record, up to where the machine stopped writing.
//!
//! Invariant: a segment ends cleanly, or with a torn tail that was never synced, or the reader says that it is damaged.
//! A bad record is a torn tail unless a later record opens that was made when the bad one was already durable, or a
//! later segment names another end. (Only the very last flush has no witness: losing it looks like a torn tail.) Called
//! by recovery.

use super::entry::{Entry, decode_record, encode_record};
use super::{HEADER_LEN, JournalError, MAX_RECORD, RECORD_HEAD, SealRecord, SegmentHeader, tag_of};
use sealdrive_proto::id::DriveId;

/// Marks behind a bad record that are tried as beginnings of records. Noise holds none; more than this was put there.
const MAX_MARKS: usize = 64;

/// How a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With its last record.
    Clean,
    /// With bytes of records that were being written; the good part is this long.
    Torn {
        /// Length of the good part, bytes.
        good: usize,
    },
}

/// A segment being read. The whole file is given as one slice; segments are kept short by the engine.
pub struct SegmentReader<'a> {
    bytes: &'a [u8],
    keys: &'a dyn SealRecord,
    header: SegmentHeader,
    at: usize,
    next: u64,
    ending: Option<Ending>,
}

impl<'a> SegmentReader<'a> {
    /// Begins to read and checks that the header is genuine.
    pub fn open(
        bytes: &'a [u8],
        drive: DriveId,
        keys: &'a dyn SealRecord,
    ) -> Result<Self, JournalError> {
        let unborn = bytes.len() <= opening_len(keys);
        let header = SegmentHeader::parse(bytes)
            .map_err(|error| if unborn { JournalError::Unborn } else { error })?;
        let mut reader = Self {
            bytes,
            keys,
            header,
            at: HEADER_LEN,
            next: 0,
            ending: None,
        };
        match reader.record_at(HEADER_LEN, 0) {
            Some(_) if header.drive != drive => Err(JournalError::OtherDrive),
            Some((_, end)) => {
                (reader.at, reader.next) = (end, 1);
                Ok(reader)
            }
            None if unborn => Err(JournalError::Unborn),
            None => Err(JournalError::Damaged { index: 0 }),
        }
    }

    /// The header.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Checks that this segment continues one that ended with `tag` and has the number before.
    pub fn check_follows(&self, segment: u64, tag: [u8; 16]) -> Result<(), JournalError> {
        let follows =
            segment.checked_add(1) == Some(self.header.segment) && self.header.prev_tag == tag;
        if follows {
            Ok(())
        } else {
            Err(JournalError::Broken)
        }
    }

    /// The entries of the next record; `None` at the end, however it is.
    pub fn next_batch(&mut self) -> Result<Option<Vec<Entry>>, JournalError> {
        if self.ending.is_some() {
            return Ok(None);
        }
        if self.at == self.bytes.len() {
            self.ending = Some(Ending::Clean);
            return Ok(None);
        }
        let index = self.next;
        match self.record_at(self.at, index) {
            Some((plain, end)) => {
                let (_, entries) =
                    decode_record(plain).ok_or(JournalError::Unreadable { index })?;
                (self.at, self.next) = (end, index + 1);
                Ok(Some(entries))
            }
            None if self.was_durable(index) => Err(JournalError::Damaged { index }),
            None => {
                self.ending = Some(Ending::Torn { good: self.at });
                Ok(None)
            }
        }
    }

    /// How the segment ends; `None` until `next_batch` has said `None`.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// The last 16 bytes of the part read so far: what a segment behind this one must name.
    pub fn tag(&self) -> [u8; 16] {
        tag_of(&self.bytes[..self.at])
    }

    /// Length of the part read so far, bytes.
    pub fn good_len(&self) -> usize {
        self.at
    }

    /// The plaintext of record `index` at `at`, and where it ends.
    fn record_at(&self, at: usize, index: u64) -> Option<(bytes::Bytes, usize)> {
        let head = self.bytes.get(at..at + RECORD_HEAD)?;
        let (found, len) = parse_head(head, &self.header.mark())?;
        let end = at + RECORD_HEAD + len;
        let sealed = self.bytes.get(at + RECORD_HEAD..end)?;
        (found == index)
            .then(|| self.keys.open(&self.header.encode(), index, sealed))
            .flatten()
            .map(|plain| (plain, end))
    }

    /// Whether some later record proves that record `index` was durable.
    fn was_durable(&self, index: u64) -> bool {
        let mark = self.header.mark();
        let mut from = self.at;
        for _ in 0..MAX_MARKS {
            let Some(found) = self
                .bytes
                .get(from..)
                .and_then(|left| left.windows(8).position(|window| window == mark))
            else {
                return false;
            };
            let at = from + found;
            let later = self
                .bytes
                .get(at..at + RECORD_HEAD)
                .and_then(|head| parse_head(head, &mark));
            if let Some((number, _)) = later
                && number > index
                && let Some((plain, _)) = self.record_at(at, number)
                && decode_record(plain).is_some_and(|(synced, _)| synced > index)
            {
                return true;
            }
            from = at + 1;
        }
        true
    }
}

/// Length of what `SegmentWriter::begin` returns.
fn opening_len(keys: &dyn SealRecord) -> usize {
    HEADER_LEN + RECORD_HEAD + keys.seal(&[0; HEADER_LEN], 0, &encode_record(0, &[])).len()
}

fn parse_head(head: &[u8], mark: &[u8; 8]) -> Option<(u64, usize)> {
    let (found, rest) = head.split_first_chunk::<8>()?;
    let (index, rest) = rest.split_first_chunk::<8>()?;
    let len = u32::from_le_bytes(*rest.first_chunk::<4>()?) as usize;
    (found == mark && len <= MAX_RECORD).then_some((u64::from_le_bytes(*index), len))
}
