//! The bytes of a pack header and of a record header. FORMAT.md, "Packs".
//!
//! Invariant: a header that parses was written by this store at this very offset, has a known kind and a possible
//! length; what it says about the payload is checked when the payload is read. The check is keyed with the store's
//! secret id and covers the offset, because payloads come from strangers: a client that hides the bytes of a record in
//! an object must not have them found by a scan. Called by writer, reader, scan and footer.

use bytes::Bytes;
use sealdrive_proto::fields::Fields;

use crate::PackError;

const PACK_MAGIC: [u8; 4] = *b"SDP1";
const RECORD_MAGIC: [u8; 4] = *b"SDR1";
/// Length of the header of a pack, bytes.
pub(crate) const PACK_HEADER_LEN: usize = 64;
/// Length of the header of a record, bytes.
pub const HEADER_LEN: usize = CHECKED_LEN + CHECK_LEN;
/// Length of the fields of a record header, bytes.
pub(crate) const CHECKED_LEN: usize = 136;
/// Length of the check behind them, bytes.
const CHECK_LEN: usize = 8;
/// Longest payload of a record, bytes: well above any object, so that a damaged length is noticed.
pub const MAX_PAYLOAD: usize = 4 << 20;
/// Records start at multiples of this, bytes: where a scan looks for the next one behind damage.
pub(crate) const ALIGN: u64 = 8;

/// What a pack says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackHeader {
    /// Number of the pack; also its file name.
    pub id: u64,
    /// When it was created, milliseconds since 1970.
    pub created_ms: u64,
    /// The store it belongs to, random and never told to anyone: keys the check of every record header, and a pack
    /// that strayed in from elsewhere is refused by its owner.
    pub store: [u8; 32],
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A sealed object: owner domain, id sid.
    Object = 1,
    /// A signed commit and its sealed body: owner drive, id commit hash.
    Commit = 2,
    /// A signed link: owner account, id link hash.
    Link = 3,
    /// Login slot and key box: owner account.
    Slot = 4,
    /// A lease epoch: owner drive.
    Lease = 5,
    /// The object of this owner and id is gone or damaged.
    Tombstone = 6,
}

impl RecordKind {
    fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Object,
            2 => Self::Commit,
            3 => Self::Link,
            4 => Self::Slot,
            5 => Self::Lease,
            6 => Self::Tombstone,
            _ => return None,
        })
    }
}

/// What is to be appended. The payload's hash is computed by `new`, so that it can be done by many threads.
#[derive(Debug, Clone)]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// Domain, account or drive.
    pub owner: [u8; 32],
    /// Sid, hash or number within the owner.
    pub id: [u8; 32],
    /// Key under which the payload is encrypted at rest by the store; 0: none.
    pub key_id: u32,
    /// Rises by one with every record of a store.
    pub sequence: u64,
    /// When it was received, milliseconds since 1970 on the clock of the store.
    pub received_ms: u64,
    payload: Bytes,
    hash: [u8; 32],
}

impl Record {
    /// A record without number and time, which the owner of the pack sets.
    pub fn new(kind: RecordKind, owner: [u8; 32], id: [u8; 32], payload: Bytes) -> Self {
        let hash = *blake3::hash(&payload).as_bytes();
        Self {
            kind,
            owner,
            id,
            key_id: 0,
            sequence: 0,
            received_ms: 0,
            payload,
            hash,
        }
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// BLAKE3 of the payload.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    pub(crate) fn header(&self, durable: u64) -> RecordHeader {
        RecordHeader {
            kind: self.kind,
            // `Writer::append` refuses longer payloads before it asks.
            payload_len: u32::try_from(self.payload.len()).unwrap_or(u32::MAX),
            key_id: self.key_id,
            sequence: self.sequence,
            received_ms: self.received_ms,
            durable,
            owner: self.owner,
            id: self.id,
            hash: self.hash,
        }
    }
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it is.
    pub kind: RecordKind,
    /// Length of the payload, bytes.
    pub payload_len: u32,
    /// At-rest key; 0: none.
    pub key_id: u32,
    /// Number in the store.
    pub sequence: u64,
    /// When it was received, milliseconds since 1970.
    pub received_ms: u64,
    /// Everything in this pack before this offset was durable when the record was appended. Damage below it is
    /// corruption, never a torn tail, even when nobody else remembers how far the pack was durable.
    pub durable: u64,
    /// Domain, account or drive.
    pub owner: [u8; 32],
    /// Sid, hash or number.
    pub id: [u8; 32],
    /// BLAKE3 of the payload.
    pub hash: [u8; 32],
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Start of its header, bytes from the start of the pack.
    pub offset: u64,
    /// Length of its payload, bytes.
    pub len: u32,
}

impl Location {
    /// Where the next record starts.
    pub fn end(&self) -> u64 {
        (self.offset + HEADER_LEN as u64 + u64::from(self.len)).next_multiple_of(ALIGN)
    }
}

/// A record of which only the header is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Start of the header, bytes from the start of the pack.
    pub offset: u64,
    /// The header.
    pub header: RecordHeader,
}

impl Entry {
    /// Where it is.
    pub fn location(&self) -> Location {
        Location {
            offset: self.offset,
            len: self.header.payload_len,
        }
    }
}

impl PackHeader {
    pub(crate) fn encode(&self) -> [u8; PACK_HEADER_LEN] {
        let mut out = [0; PACK_HEADER_LEN];
        out[..4].copy_from_slice(&PACK_MAGIC);
        out[8..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..24].copy_from_slice(&self.created_ms.to_le_bytes());
        out[24..56].copy_from_slice(&self.store);
        seal_crc(&mut out);
        out
    }

    pub(crate) fn parse(bytes: &[u8; PACK_HEADER_LEN]) -> Result<Self, PackError> {
        let good = bytes[..4] == PACK_MAGIC && bytes[4..8] == [0; 4] && bytes[56..60] == [0; 4];
        if !good || !crc_holds(bytes) {
            return Err(PackError::Format);
        }
        let mut fields = Fields::new(&bytes[8..]);
        let mut read = || Some((fields.u64().ok()?, fields.u64().ok()?, fields.array().ok()?));
        let (id, created_ms, store) = read().ok_or(PackError::Format)?;
        Ok(Self {
            id,
            created_ms,
            store,
        })
    }
}

impl RecordHeader {
    /// Header with its check, for this place of this store.
    pub(crate) fn encode(&self, store: &[u8; 32], offset: u64) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let fields = self.encode_fields();
        out[..CHECKED_LEN].copy_from_slice(&fields);
        out[CHECKED_LEN..].copy_from_slice(&header_check(store, offset, &fields));
        out
    }

    /// `None` for anything that is not a whole, undamaged header written at this place of this store.
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN], store: &[u8; 32], offset: u64) -> Option<Self> {
        let (checked, check) = bytes.split_first_chunk::<CHECKED_LEN>()?;
        // Cheap refusal first: a search tries every eighth byte.
        if checked[..4] != RECORD_MAGIC || *check != header_check(store, offset, checked) {
            return None;
        }
        Self::parse_fields(checked)
    }

    /// The fields without check, as the footer holds them under a check of its own.
    pub(crate) fn encode_fields(&self) -> [u8; CHECKED_LEN] {
        let mut out = [0; CHECKED_LEN];
        out[..4].copy_from_slice(&RECORD_MAGIC);
        out[4] = self.kind as u8;
        out[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.key_id.to_le_bytes());
        out[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        out[24..32].copy_from_slice(&self.received_ms.to_le_bytes());
        out[32..40].copy_from_slice(&self.durable.to_le_bytes());
        out[40..72].copy_from_slice(&self.owner);
        out[72..104].copy_from_slice(&self.id);
        out[104..136].copy_from_slice(&self.hash);
        out
    }

    pub(crate) fn parse_fields(bytes: &[u8; CHECKED_LEN]) -> Option<Self> {
        if bytes[..4] != RECORD_MAGIC || bytes[5..8] != [0; 3] {
            return None;
        }
        let mut fields = Fields::new(&bytes[4..]);
        let kind = RecordKind::parse(fields.u8().ok()?)?;
        fields.bytes(3).ok()?;
        let header = Self {
            kind,
            payload_len: fields.u32().ok()?,
            key_id: fields.u32().ok()?,
            sequence: fields.u64().ok()?,
            received_ms: fields.u64().ok()?,
            durable: fields.u64().ok()?,
            owner: fields.array().ok()?,
            id: fields.array().ok()?,
            hash: fields.array().ok()?,
        };
        fields.finish().ok()?;
        (header.payload_len as usize <= MAX_PAYLOAD).then_some(header)
    }
}

/// First 8 bytes of BLAKE3-keyed(store, "record" ‖ offset ‖ fields).
fn header_check(store: &[u8; 32], offset: u64, fields: &[u8]) -> [u8; CHECK_LEN] {
    let mut out = [0; CHECK_LEN];
    let mut hasher = blake3::Hasher::new_keyed(store);
    hasher
        .update(b"record")
        .update(&offset.to_le_bytes())
        .update(fields);
    hasher.finalize_xof().fill(&mut out);
    out
}

/// Puts the CRC32C of all bytes before it into the last four.
pub(crate) fn seal_crc(bytes: &mut [u8]) {
    let at = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..at]).to_le_bytes();
    bytes[at..].copy_from_slice(&crc);
}

/// Whether the last four bytes are the CRC32C of those before.
pub(crate) fn crc_holds(bytes: &[u8]) -> bool {
    let at = bytes.len() - 4;
    bytes[at..] == crc32c::crc32c(&bytes[..at]).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_every_flipped_bit_is_noticed() {
        let mut record = Record::new(
            RecordKind::Lease,
            [1; 32],
            [2; 32],
            Bytes::from_static(b"payload"),
        );
        (record.key_id, record.sequence, record.received_ms) = (3, 4, 5);
        let header = record.header(6);
        let (store, offset) = ([7; 32], 64);
        let bytes = header.encode(&store, offset);
        assert_eq!(RecordHeader::parse(&bytes, &store, offset), Some(header));
        assert_eq!(
            RecordHeader::parse(&bytes, &[8; 32], offset),
            None,
            "another store"
        );
        assert_eq!(
            RecordHeader::parse(&bytes, &store, offset + 8),
            None,
            "another place"
        );
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::parse(&bad, &store, offset), None, "bit {bit}");
        }
        let pack = PackHeader {
            id: 7,
            created_ms: 8,
            store: [9; 32],
        };
        assert_eq!(PackHeader::parse(&pack.encode()).unwrap(), pack);
        for bit in 0..PACK_HEADER_LEN * 8 {
            let mut bytes = pack.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(PackHeader::parse(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_impossible_length_is_no_header() {
        let mut header = Record::new(RecordKind::Object, [0; 32], [0; 32], Bytes::new()).header(0);
        header.payload_len = MAX_PAYLOAD as u32 + 1;
        assert_eq!(
            RecordHeader::parse(&header.encode(&[0; 32], 0), &[0; 32], 0),
            None
        );
    }
}
