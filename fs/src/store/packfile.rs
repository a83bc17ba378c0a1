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

use crate::limits::{APPEND_BUFFER, APPEND_DIRECT, PACK_SIZE};

const MAGIC: &[u8; 8] = b"SDLP\x01\0\0\0";
/// Length of a note: kind and reference under both local locks.
pub const NOTE_LEN: usize = 1 + Reference::LEN + RECORD_OVERHEAD;
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
        self.offset + RECORD_HEADER + u64::from(self.len)
    }
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
    buffer: Vec<u8>,
}

impl PackWriter {
    /// Creates the file; file and directory entry are durable on return, so that a later fdatasync is enough.
    pub(super) fn create(dir: &dyn Medium, number: u64) -> io::Result<Self> {
        let file = dir.create(&file_name(number))?;
        file.append(0, &mut [IoSlice::new(MAGIC)])?;
        file.sync()?;
        dir.sync_dir()?;
        Ok(Self {
            file,
            number,
            written: MAGIC.len() as u64,
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
    let mut record = vec![0; RECORD_HEADER as usize + len as usize];
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

/// What recovery found in a pack.
pub(super) struct Scan {
    pub(super) file: Arc<dyn MediumFile>,
    pub(super) entries: Vec<Entry>,
    /// Records that fail their checksum and have good ones after them: rot, or writes that a power cut reordered.
    pub(super) damaged: Vec<Entry>,
    pub(super) len: u64,
}

/// Reads all records in order and checks them. What follows the last good one is a torn tail; nothing is cut off,
/// because a recovered pack is never appended to.
pub(super) fn recover(dir: &dyn Medium, number: u64) -> io::Result<Scan> {
    let file = dir.open(&file_name(number))?;
    let size = file.len()?;
    let mut scan = Scan {
        file,
        entries: Vec::new(),
        damaged: Vec::new(),
        len: 0,
    };
    let mut magic = [0; MAGIC.len()];
    if size < MAGIC.len() as u64 || scan.file.read_at(&mut magic, 0).is_err() || magic != *MAGIC {
        return Ok(scan);
    }
    scan.len = MAGIC.len() as u64;
    let mut at = scan.len;
    let mut doubtful = Vec::new();
    while let Some((len, sid)) = record_header(&*scan.file, at, size)? {
        let entry = Entry {
            sid,
            offset: at,
            len,
        };
        at = entry.end();
        match read(&*scan.file, entry.offset, len)? {
            Read::Object(_) => {
                scan.damaged.append(&mut doubtful);
                scan.entries.push(entry);
                scan.len = at;
            }
            Read::Damaged => doubtful.push(entry),
        }
    }
    Ok(scan)
}

/// Ids in a pack, from the record headers alone: for forgetting an evicted pack.
pub(super) fn sids(file: &dyn MediumFile, len: u64) -> io::Result<Vec<Sid>> {
    let mut out = Vec::new();
    let mut at = MAGIC.len() as u64;
    while at + RECORD_HEADER < len {
        let Some((object_len, sid)) = record_header(file, at, len)? else {
            break;
        };
        out.push(sid);
        at += RECORD_HEADER + u64::from(object_len);
    }
    Ok(out)
}

fn record_header(file: &dyn MediumFile, at: u64, size: u64) -> io::Result<Option<(u32, Sid)>> {
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
