//! Listing a pack from its records alone: after a crash, or when a footer is lost.
//!
//! The torn-tail rule: the first invalid record at or behind the durable watermark ends the pack, for nothing there
//! was ever acknowledged; anything invalid before it is corruption, which is reported and stepped over, never cut off.
//! The watermark is the larger of what the caller remembers and what the records themselves say (`durable`), so a lost
//! index cannot turn corruption into a torn tail. Called when a store opens its packs.

use crate::record::{ALIGN, Entry, HEADER_LEN, Location, PACK_HEADER_LEN, RecordHeader};
use crate::{PackError, Reader};

/// How much is read at once while looking for the next record behind damage, bytes.
const SEARCH_BLOCK: usize = 1 << 20;

/// A stretch of a pack that is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// Where it starts, bytes from the start of the pack.
    pub offset: u64,
    /// How long it is, bytes.
    pub len: u64,
    /// The record, if at least its header is whole.
    pub entry: Option<Entry>,
}

/// What a pack holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Good records, in order.
    pub entries: Vec<Entry>,
    /// Corruption below the watermark.
    pub damage: Vec<Damage>,
    /// Where good content ends; what follows is a torn tail.
    pub end: u64,
    /// Bytes of torn tail.
    pub torn: u64,
}

enum Step {
    Good(Entry),
    BadPayload(Entry),
    BadHeader,
    End,
}

impl Scan {
    /// Walks all records. Headers are always checked; payloads from offset `verify_from` on. `durable` is how far the
    /// caller knows the pack to have been durable; pass the pack's length for a sealed one whose footer is lost.
    pub fn read(reader: &Reader, verify_from: u64, durable: u64) -> Result<Self, PackError> {
        let len = reader.len()?;
        let mut scan = Self {
            entries: Vec::new(),
            damage: Vec::new(),
            end: PACK_HEADER_LEN as u64,
            torn: 0,
        };
        let mut watermark = durable;
        let mut at = scan.end;
        loop {
            match step(reader, at, len, verify_from)? {
                Step::End => break,
                Step::Good(entry) => {
                    watermark = watermark.max(entry.header.durable);
                    at = entry.location().end();
                    scan.end = at;
                    scan.entries.push(entry);
                }
                Step::BadPayload(entry) => {
                    watermark = watermark.max(entry.header.durable);
                    let next = entry.location().end();
                    scan.damage.push(Damage {
                        offset: at,
                        len: next - at,
                        entry: Some(entry),
                    });
                    at = next;
                }
                Step::BadHeader => {
                    let next = next_header(reader, at + ALIGN, len)?;
                    let until = next.unwrap_or(len);
                    scan.damage.push(Damage {
                        offset: at,
                        len: until - at,
                        entry: None,
                    });
                    at = until;
                }
            }
        }
        scan.judge(watermark, len);
        Ok(scan)
    }

    /// Everything from the first damage at or behind the watermark is a torn tail.
    fn judge(&mut self, watermark: u64, len: u64) {
        let torn_from = self
            .damage
            .iter()
            .map(|damage| damage.offset)
            .find(|offset| *offset >= watermark);
        if let Some(from) = torn_from {
            self.damage.retain(|damage| damage.offset < from);
            self.entries.retain(|entry| entry.offset < from);
            self.end = from;
        }
        // Damage that straddles the watermark, or lies right before the end, is kept in place.
        if let Some(last) = self.damage.last() {
            self.end = self.end.max(last.offset + last.len);
        }
        self.end = self.end.min(len);
        self.torn = len - self.end;
    }
}

fn step(reader: &Reader, at: u64, len: u64, verify_from: u64) -> Result<Step, PackError> {
    if at >= len {
        return Ok(Step::End);
    }
    let Some(header) = header_at(reader, at, len)? else {
        return Ok(Step::BadHeader);
    };
    let entry = Entry { offset: at, header };
    let location = entry.location();
    // The padding counts: a record without it was not written whole.
    if location.end() > len {
        return Ok(Step::BadHeader);
    }
    if at < verify_from {
        return Ok(Step::Good(entry));
    }
    Ok(match reader.read(location) {
        Ok(_) if padding_is_zero(reader, location)? => Step::Good(entry),
        Ok(_) | Err(PackError::Damaged { .. }) => Step::BadPayload(entry),
        Err(error) => return Err(error),
    })
}

fn padding_is_zero(reader: &Reader, location: Location) -> Result<bool, PackError> {
    let start = location.offset + HEADER_LEN as u64 + u64::from(location.len);
    let mut padding = [0; ALIGN as usize];
    let padding = &mut padding[..(location.end() - start) as usize];
    reader
        .file
        .read_at(padding, start)
        .map_err(PackError::io("read padding"))?;
    Ok(padding.iter().all(|byte| *byte == 0))
}

fn header_at(reader: &Reader, at: u64, len: u64) -> Result<Option<RecordHeader>, PackError> {
    if at + HEADER_LEN as u64 > len {
        return Ok(None);
    }
    let mut bytes = [0; HEADER_LEN];
    reader
        .file
        .read_at(&mut bytes, at)
        .map_err(PackError::io("read record header"))?;
    Ok(RecordHeader::parse(&bytes, &reader.header().store, at))
}

/// The next aligned offset, at or behind `from`, where a whole header stands.
fn next_header(reader: &Reader, from: u64, len: u64) -> Result<Option<u64>, PackError> {
    let mut block = vec![0; SEARCH_BLOCK + HEADER_LEN];
    let mut at = from;
    while at + HEADER_LEN as u64 <= len {
        let take = block.len().min((len - at) as usize);
        let bytes = &mut block[..take];
        reader
            .file
            .read_at(bytes, at)
            .map_err(PackError::io("search record"))?;
        let found = (0..SEARCH_BLOCK).step_by(ALIGN as usize).find(|offset| {
            let head = bytes
                .get(*offset..)
                .and_then(|rest| rest.first_chunk::<HEADER_LEN>());
            let place = at + *offset as u64;
            head.is_some_and(|head| {
                RecordHeader::parse(head, &reader.header().store, place).is_some()
            })
        });
        if let Some(offset) = found {
            return Ok(Some(at + offset as u64));
        }
        at += SEARCH_BLOCK as u64;
    }
    Ok(None)
}
