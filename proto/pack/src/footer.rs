//! The footer of a sealed pack: all record headers, sorted by owner and id, so that a pack is listed with one read.
//!
//! `count × (record fields 136 ‖ offset u64) ‖ trailer`, trailer = `"SDPF" ‖ 0×4 ‖ count u64 ‖ start u64 ‖ check32 ‖
//! 0×8`, check = BLAKE3-keyed(store, "footer" ‖ count ‖ start ‖ entries). Invariant: a footer that parses was written
//! whole by this store (a torn pack that happens to end in a client's bytes has none), and its entries lie inside the
//! record area. Called by the writer (finish) and by the reader (open).

use sealdrive_proto::fields::Fields;

use crate::record::{CHECKED_LEN, Entry, PACK_HEADER_LEN, RecordHeader};

const MAGIC: [u8; 4] = *b"SDPF";
/// Length of the trailer, bytes: the last thing in a sealed pack.
pub(crate) const TRAILER_LEN: usize = 64;
/// Length of one entry, bytes.
const ENTRY_LEN: usize = CHECKED_LEN + 8;

/// What the trailer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) count: u64,
    /// Where records end and the footer starts, bytes from the start of the pack.
    pub(crate) start: u64,
    check: [u8; 32],
}

impl Trailer {
    /// `None` if this is no trailer, or not one of a pack of this length.
    pub(crate) fn parse(bytes: &[u8; TRAILER_LEN], pack_len: u64) -> Option<Self> {
        let good = bytes[..4] == MAGIC && bytes[4..8] == [0; 4] && bytes[56..] == [0; 8];
        if !good {
            return None;
        }
        let mut fields = Fields::new(&bytes[8..56]);
        let trailer = Self {
            count: fields.u64().ok()?,
            start: fields.u64().ok()?,
            check: fields.array().ok()?,
        };
        let entries = trailer.count.checked_mul(ENTRY_LEN as u64)?;
        let end = trailer
            .start
            .checked_add(entries)?
            .checked_add(TRAILER_LEN as u64)?;
        (end == pack_len && trailer.start >= PACK_HEADER_LEN as u64).then_some(trailer)
    }

    /// Length of the entries, bytes.
    pub(crate) fn entries_len(&self) -> u64 {
        self.count * ENTRY_LEN as u64
    }
}

/// The whole footer for records that end at `start`.
pub(crate) fn encode(entries: &[Entry], start: u64, store: &[u8; 32]) -> Vec<u8> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_unstable_by_key(|entry| (entry.header.owner, entry.header.id, entry.offset));
    let mut out = Vec::with_capacity(sorted.len() * ENTRY_LEN + TRAILER_LEN);
    for entry in sorted {
        out.extend_from_slice(&entry.header.encode_fields());
        out.extend_from_slice(&entry.offset.to_le_bytes());
    }
    let mut trailer = [0; TRAILER_LEN];
    trailer[..4].copy_from_slice(&MAGIC);
    trailer[8..16].copy_from_slice(&(entries.len() as u64).to_le_bytes());
    trailer[16..24].copy_from_slice(&start.to_le_bytes());
    trailer[24..56].copy_from_slice(&check(store, entries.len() as u64, start, &out));
    out.extend_from_slice(&trailer);
    out
}

/// The entries, as sorted in the file; `None` if anything does not fit.
pub(crate) fn decode(trailer: &Trailer, bytes: &[u8], store: &[u8; 32]) -> Option<Vec<Entry>> {
    if check(store, trailer.count, trailer.start, bytes) != trailer.check {
        return None;
    }
    let mut entries = Vec::with_capacity(bytes.len() / ENTRY_LEN);
    let mut fields = Fields::new(bytes);
    for _ in 0..trailer.count {
        let entry = Entry {
            header: RecordHeader::parse_fields(&fields.array().ok()?)?,
            offset: fields.u64().ok()?,
        };
        let inside =
            entry.offset >= PACK_HEADER_LEN as u64 && entry.location().end() <= trailer.start;
        if !inside {
            return None;
        }
        entries.push(entry);
    }
    fields.finish().ok()?;
    Some(entries)
}

fn check(store: &[u8; 32], count: u64, start: u64, entries: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(store);
    hasher
        .update(b"footer")
        .update(&count.to_le_bytes())
        .update(&start.to_le_bytes())
        .update(entries);
    *hasher.finalize().as_bytes()
}
