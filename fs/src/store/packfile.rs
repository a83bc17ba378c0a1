//! One local pack: append, read, recover after a crash.
//!
//! Invariant: records follow one another without gaps, `len u32 ‖ crc32c u32 ‖ sid32 ‖ note98 ‖ object` (the
//! checksum covers all from the sid on), after an 8-byte file header. The note says, sealed under the local keys, what
//! the object is (zeros in copies from the server). What follows the last good record is a torn tail and is ignored; a
//! recovered pack is never appended to. Called by outbox and cache.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use sealdrive_core::local::RECORD_OVERHEAD;
use sealdrive_core::reference::Reference;
use sealdrive_pack::{Medium, MediumFile};
use sealdrive_proto::id::Sid;
use sealdrive_proto::limits::MAX_OBJECT;

use crate::limits::{APPEND_BUFFER, APPEND_DIRECT, PACK_SIZE, WRITE_BEHIND};

const MAGIC: &[u8; 8] = b"SDLP\x01\0\0\0";
/// Where the first record begins.
pub(super) const FIRST_RECORD: u64 = MAGIC.len() as u64;
/// Length of a note: kind and reference under both local locks.
pub const NOTE_LEN: usize = 1 + Reference::LEN + RECORD_OVERHEAD;
/// The first bytes of every sealed object.
const OBJECT_START: [u8; 4] = *b"SDO1";
const NOTE_AT: u64 = 8 + Sid::LEN as u64;
const RECORD_HEADER: u64 = NOTE_AT + NOTE_LEN as u64;

/// One record of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) sid: Sid,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Entry {
    /// Offset just after the record.
    pub(super) fn end(&self) -> u64 {
        end_of(self.offset, self.len)
    }
}

/// Offset just after a record that begins at `offset` and holds an object of `len` bytes.
pub(super) fn end_of(offset: u64, len: u32) -> u64 {
    offset + RECORD_HEADER + u64::from(len)
}

/// What a read found.
pub(super) enum Read {
    Object(Bytes),
    Damaged,
}

/// `NNN.pack`, sixteen hex digits so that names sort as numbers.
pub(super) fn file_name(number: u64) -> String {
    format!("{number:016x}.pack")
}

/// The pack being written.
pub(super) struct PackWriter {
    file: Arc<dyn MediumFile>,
    number: u64,
    written: u64,
    /// The disk was told to begin with what lies before.
    begun: u64,
    buffer: Vec<u8>,
}

impl PackWriter {
    /// Creates the file; file and directory entry are durable on return, so that a later fdatasync is enough.
    pub(super) fn create(dir: &dyn Medium, number: u64) -> io::Result<Self> {
        let file = dir.create(&file_name(number))?;
        if let Err(e) = file.append(0, &mut [IoSlice::new(MAGIC)]) {
            // Nothing is in it. If it stays it is a pack without records.
            let _ = dir.remove(&file_name(number));
            return Err(e);
        }
        // Whatever a failed sync says is no matter of space.
        file.sync().map_err(io::Error::other)?;
        dir.sync_dir().map_err(io::Error::other)?;
        Ok(Self {
            file,
            number,
            written: MAGIC.len() as u64,
            begun: 0,
            buffer: Vec::new(),
        })
    }

    /// Appends a record, whole or not at all: after an error the writer stands where it stood before, and what reached
    /// the file of the record is written over by the next one.
    pub(super) fn append(
        &mut self,
        sid: Sid,
        note: &[u8; NOTE_LEN],
        object: &[u8],
    ) -> io::Result<Entry> {
        let len = u32::try_from(object.len()).map_err(io::Error::other)?;
        assert!(
            object.len() <= MAX_OBJECT,
            "the sealer makes no longer objects"
        );
        let entry = Entry {
            sid,
            offset: self.len(),
            len,
        };
        let before = self.buffer.len();
        self.buffer.extend_from_slice(&len.to_le_bytes());
        self.buffer
            .extend_from_slice(&checksum(&sid, note, object).to_le_bytes());
        self.buffer.extend_from_slice(sid.as_bytes());
        self.buffer.extend_from_slice(note);
        let written = if object.len() >= APPEND_DIRECT {
            // Large enough for a call of its own: it is not copied first.
            self.hand_over(object)
        } else {
            self.buffer.extend_from_slice(object);
            if self.buffer.len() >= APPEND_BUFFER {
                self.flush()
            } else {
                Ok(())
            }
        };
        if written.is_err() {
            self.buffer.truncate(before);
        }
        written.map(|()| entry)
    }

    /// Hands the buffer to the kernel.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.hand_over(&[])
    }

    fn hand_over(&mut self, behind: &[u8]) -> io::Result<()> {
        let mut parts = [IoSlice::new(&self.buffer), IoSlice::new(behind)];
        self.file.append(self.written, &mut parts)?;
        self.written += (self.buffer.len() + behind.len()) as u64;
        self.buffer.clear();
        if self.written - self.begun >= WRITE_BEHIND {
            self.file
                .write_behind(self.begun, self.written - self.begun);
            self.begun = self.written;
        }
        Ok(())
    }

    pub(super) fn file(&self) -> Arc<dyn MediumFile> {
        Arc::clone(&self.file)
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Offset of the next record.
    pub(super) fn len(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Bytes the kernel has.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= PACK_SIZE
    }

    /// An object that the kernel does not have yet.
    pub(super) fn buffered(&self, offset: u64, len: u32) -> Option<Bytes> {
        let at = usize::try_from(offset.checked_sub(self.written)?).ok()? + RECORD_HEADER as usize;
        let object = self.buffer.get(at..)?.get(..len as usize)?;
        Some(Bytes::copy_from_slice(object))
    }
}

fn checksum(sid: &Sid, note: &[u8; NOTE_LEN], object: &[u8]) -> u32 {
    let head = crc32c::crc32c_append(crc32c::crc32c(sid.as_bytes()), note);
    crc32c::crc32c_append(head, object)
}

/// The note of a record whose checksum was good before.
pub(super) fn read_note(file: &dyn MediumFile, offset: u64) -> io::Result<[u8; NOTE_LEN]> {
    let mut note = [0; NOTE_LEN];
    file.read_at(&mut note, offset + NOTE_AT)?;
    Ok(note)
}

/// Reads one object and checks its checksum.
pub(super) fn read(file: &dyn MediumFile, offset: u64, len: u32) -> io::Result<Read> {
    // In two steps: one allocation of zeros would be fresh pages from the system each time, dearer than the reading.
    let mut record = Vec::with_capacity(RECORD_HEADER as usize + len as usize);
    record.resize(RECORD_HEADER as usize, 0);
    record.resize(RECORD_HEADER as usize + len as usize, 0);
    match file.read_at(&mut record, offset) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Read::Damaged),
        Err(e) => return Err(e),
    }
    let mut record = Bytes::from(record);
    let header = record.split_to(RECORD_HEADER as usize);
    let sum = crc32c::crc32c_append(crc32c::crc32c(&header[8..]), &record);
    let good = header[..4] == len.to_le_bytes() && header[4..8] == sum.to_le_bytes();
    Ok(if good {
        Read::Object(record)
    } else {
        Read::Damaged
    })
}

/// Makes durable what a process that was killed may have left in memory only, and forgets what memory holds: pages
/// whose write failed look clean. What is read afterwards survives a power cut.
pub(super) fn settle(dir: &dyn Medium, number: u64) -> io::Result<()> {
    let file = dir.open(&file_name(number))?;
    file.sync()?;
    file.drop_cache()
}

/// A stretch of a pack that is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) from: u64,
    pub(super) to: u64,
    /// Of the one record it is, if its length and so, most likely, its id can be believed.
    pub(super) sid: Option<Sid>,
}

/// What recovery found in a pack.
pub(super) struct Scan {
    pub(super) file: Arc<dyn MediumFile>,
    pub(super) entries: Vec<Entry>,
    /// Stretches with good records after them: rot, or writes that a power cut reordered.
    pub(super) bad: Vec<Bad>,
    /// A record that fails its checksum, with nothing good after it: a torn tail, unless someone knows better.
    pub(super) tail: Option<Bad>,
    /// Where the last good record ends.
    pub(super) len: u64,
}

/// Reads all records in order and checks them. What follows the last good one is a torn tail; nothing is cut off,
/// because a recovered pack is never appended to. A damaged length must not hide what follows it: the next record is
/// then looked for.
pub(super) fn recover(dir: &dyn Medium, number: u64) -> io::Result<Scan> {
    let file = dir.open(&file_name(number))?;
    let size = file.len()?;
    let mut scan = Scan {
        file,
        entries: Vec::new(),
        bad: Vec::new(),
        tail: None,
        len: size.min(FIRST_RECORD),
    };
    let mut at = FIRST_RECORD;
    loop {
        let step = match record_header(&*scan.file, at, size)? {
            Some((len, sid)) => {
                let entry = Entry {
                    sid,
                    offset: at,
                    len,
                };
                match read(&*scan.file, at, len)? {
                    Read::Object(_) => {
                        scan.entries.push(entry);
                        scan.len = entry.end();
                        at = entry.end();
                        continue;
                    }
                    Read::Damaged => Some(entry),
                }
            }
            None => None,
        };
        let after = match &step {
            Some(entry) if is_good(&*scan.file, entry.end(), size)? => Some(entry.end()),
            _ => None,
        };
        let found = next_record(&*scan.file, at + 1, size)?;
        let Some(next) = after.into_iter().chain(found).min() else {
            scan.tail = step.map(|entry| Bad {
                from: at,
                to: entry.end(),
                sid: Some(entry.sid),
            });
            return Ok(scan);
        };
        // A length that leads to a good record is right, and so, most likely, is the id beside it.
        let record = step.filter(|entry| entry.end() == next);
        scan.bad.push(Bad {
            from: at,
            to: next,
            sid: record.map(|entry| entry.sid),
        });
        at = next;
    }
}

/// The next offset, at or behind `from`, where a good record stands: found by the beginning of its object.
fn next_record(file: &dyn MediumFile, from: u64, size: u64) -> io::Result<Option<u64>> {
    let mut block = vec![0; APPEND_BUFFER];
    let mut at = from + RECORD_HEADER;
    while at + OBJECT_START.len() as u64 <= size {
        let take = block.len().min((size - at) as usize);
        file.read_at(&mut block[..take], at)?;
        let places = block[..take].windows(OBJECT_START.len()).enumerate();
        for (place, _) in places.filter(|(_, bytes)| *bytes == OBJECT_START) {
            let start = at + place as u64 - RECORD_HEADER;
            if is_good(file, start, size)? {
                return Ok(Some(start));
            }
        }
        if take < block.len() {
            break;
        }
        at += (take - OBJECT_START.len() + 1) as u64;
    }
    Ok(None)
}

fn is_good(file: &dyn MediumFile, at: u64, size: u64) -> io::Result<bool> {
    let Some((len, _)) = record_header(file, at, size)? else {
        return Ok(false);
    };
    Ok(matches!(read(file, at, len)?, Read::Object(_)))
}

/// Ids in a pack, from the record headers alone: for forgetting an evicted pack.
pub(super) fn sids(file: &dyn MediumFile, len: u64) -> io::Result<Vec<Sid>> {
    let mut out = Vec::new();
    let mut at = FIRST_RECORD;
    while at + RECORD_HEADER < len {
        let Some((object_len, sid)) = record_header(file, at, len)? else {
            break;
        };
        out.push(sid);
        at += RECORD_HEADER + u64::from(object_len);
    }
    Ok(out)
}

/// Length and id of the object whose record begins at `at`, if the file could hold it.
pub(super) fn record_header(
    file: &dyn MediumFile,
    at: u64,
    size: u64,
) -> io::Result<Option<(u32, Sid)>> {
    let mut head = [0; RECORD_HEADER as usize];
    if at + RECORD_HEADER > size {
        return Ok(None);
    }
    file.read_at(&mut head, at)?;
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    if len as usize > MAX_OBJECT || at + RECORD_HEADER + u64::from(len) > size {
        return Ok(None);
    }
    Ok(Sid::try_from(&head[8..NOTE_AT as usize])
        .ok()
        .map(|sid| (len, sid)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealdrive_pack::Directory;
    use std::path::{Path, PathBuf};

    fn object(n: u8) -> Vec<u8> {
        let mut object = vec![n; 300 + usize::from(n)];
        object[..4].copy_from_slice(&OBJECT_START);
        object
    }

    fn pack(dir: &Path) -> (Vec<Entry>, PathBuf) {
        let mut writer = PackWriter::create(&Directory::open(dir).unwrap(), 1).unwrap();
        let entries = (0..4)
            .map(|n| {
                writer
                    .append(Sid([n; 32]), &[n; NOTE_LEN], &object(n))
                    .unwrap()
            })
            .collect();
        writer.flush().unwrap();
        (entries, dir.join(file_name(1)))
    }

    fn recovered(dir: &Path) -> Scan {
        recover(&Directory::open(dir).unwrap(), 1).unwrap()
    }

    /// A flipped bit in a length hid all records behind it: they were never sent, and the commit that named them was.
    #[test]
    fn one_damaged_byte_costs_at_most_one_record_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (entries, path) = pack(dir.path());
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            let scan = recovered(dir.path());
            let hit = entries
                .iter()
                .position(|e| (e.offset..e.end()).contains(&(at as u64)));
            let left = entries.iter().enumerate().filter(|(n, _)| Some(*n) != hit);
            let left: Vec<Entry> = left.map(|(_, entry)| *entry).collect();
            assert_eq!(scan.entries, left, "byte {at}");
            let told = scan.bad.len() + usize::from(scan.tail.is_some());
            // The last record's own length says that it reaches beyond the file: a torn tail to all appearance.
            let last = hit == Some(entries.len() - 1);
            assert!(last || told == usize::from(hit.is_some()), "byte {at}");
        }
    }

    #[test]
    fn a_torn_tail_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (entries, path) = pack(dir.path());
        let good = std::fs::read(&path).unwrap();
        for len in 0..good.len() {
            std::fs::write(&path, &good[..len]).unwrap();
            let scan = recovered(dir.path());
            let whole = entries.iter().filter(|e| e.end() <= len as u64).count();
            assert_eq!(scan.entries, entries[..whole], "{len} bytes");
            assert!(scan.bad.is_empty(), "{len} bytes");
        }
    }
}
