//! Writes a segment: entries in, bytes to append out.
//!
//! Invariant: every record says how many before it were durable when it was made. That is what tells a torn tail (the
//! machine stopped before fdatasync returned; nothing promised) from damage (a promise broken). Called by the engine's
//! flush.

use super::entry::{Entry, encode_record};
use super::{HEADER_LEN, RECORD_HEAD, RECORD_TARGET, SealRecord, SegmentHeader, tag_of};

/// A segment being written. After an error of the disk it must not be used again: what is durable is then unknown. But
/// where the file could be cut back to what it was, a copy from that moment goes on: a record's nonce comes from its
/// content, so that another one may stand in the place of one that did not come about.
#[derive(Clone)]
pub struct SegmentWriter {
    header: [u8; HEADER_LEN],
    mark: [u8; 8],
    next: u64,
    synced: u64,
    tag: [u8; 16],
}

impl SegmentWriter {
    /// Begins a segment: returns it and its first bytes, header and an empty record that vouches for it.
    ///
    /// The engine syncs the segment before, writes these bytes, syncs file and directory, and only then appends: so a
    /// file that is longer than these bytes, but does not begin with them, is damaged.
    pub fn begin(header: &SegmentHeader, keys: &dyn SealRecord) -> (Self, Vec<u8>) {
        let mut writer = Self {
            header: header.encode(),
            mark: header.mark(),
            next: 0,
            synced: 0,
            tag: [0; 16],
        };
        let [head, sealed] = writer.record(keys, &[]);
        let bytes = [&writer.header[..], &head, &sealed].concat();
        (writer, bytes)
    }

    /// Bytes to append for these entries, in pieces for one vectored write. Each payload is copied once, into the
    /// record.
    pub fn append(&mut self, keys: &dyn SealRecord, entries: &[Entry]) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        let (mut from, mut len) = (0, 0);
        for (at, entry) in entries.iter().enumerate() {
            if at > from && len + entry.encoded_len() > RECORD_TARGET {
                pieces.extend(self.record(keys, &entries[from..at]));
                (from, len) = (at, 0);
            }
            len += entry.encoded_len();
        }
        if from < entries.len() {
            pieces.extend(self.record(keys, &entries[from..]));
        }
        pieces
    }

    /// All bytes handed out so far are durable.
    pub fn synced(&mut self) {
        self.synced = self.next;
    }

    /// What the next segment names as its predecessor.
    pub fn tag(&self) -> [u8; 16] {
        self.tag
    }

    /// Records so far, the opening one included.
    pub fn records(&self) -> u64 {
        self.next
    }

    fn record(&mut self, keys: &dyn SealRecord, entries: &[Entry]) -> [Vec<u8>; 2] {
        let plain = encode_record(self.synced, entries);
        let sealed = keys.seal(&self.header, self.next, &plain);
        let mut head = Vec::with_capacity(RECORD_HEAD);
        head.extend_from_slice(&self.mark);
        head.extend_from_slice(&self.next.to_le_bytes());
        head.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
        self.next += 1;
        self.tag = tag_of(&sealed);
        [head, sealed]
    }
}
