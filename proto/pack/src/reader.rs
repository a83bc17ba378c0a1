//! Reading a pack: whole records by location, and the list of a sealed one from its footer.
//!
//! Invariant: bytes that come back are the bytes that were appended: header checksum, location and BLAKE3 of the
//! payload were checked on this very read. Called by the store (fetch, replay) and by the scan.

use std::sync::Arc;

use bytes::Bytes;

use crate::footer::{self, TRAILER_LEN, Trailer};
use crate::record::{Entry, HEADER_LEN, Location, PACK_HEADER_LEN, PackHeader, RecordHeader};
use crate::{Medium, MediumFile, PackError};

/// A record as read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its header: compare owner and id with what you looked for.
    pub header: RecordHeader,
    /// Its payload.
    pub payload: Bytes,
}

/// An open pack.
#[derive(Clone)]
pub struct Reader {
    pub(crate) file: Arc<dyn MediumFile>,
    header: PackHeader,
}

impl Reader {
    /// Opens a pack, sealed or not, and checks its header.
    pub fn open(medium: &dyn Medium, name: &str) -> Result<Self, PackError> {
        let file = medium.open(name).map_err(PackError::io("open pack"))?;
        let mut bytes = [0; PACK_HEADER_LEN];
        match file.read_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(PackError::Format);
            }
            Err(error) => return Err(PackError::io("read pack header")(error)),
        }
        Ok(Self {
            header: PackHeader::parse(&bytes)?,
            file,
        })
    }

    /// Opens a pack whose own header is damaged, by what is known of it from elsewhere. Every record is still checked
    /// with the store's key, so that a file of another store yields none.
    pub fn open_as(medium: &dyn Medium, id: u64, store: [u8; 32]) -> Result<Self, PackError> {
        let name = crate::file_name(id);
        let file = medium.open(&name).map_err(PackError::io("open pack"))?;
        let created_ms = 0;
        let header = PackHeader {
            id,
            created_ms,
            store,
        };
        Ok(Self { file, header })
    }

    pub(crate) fn over(file: Arc<dyn MediumFile>, header: PackHeader) -> Self {
        Self { file, header }
    }

    /// What the pack says of itself.
    pub fn header(&self) -> &PackHeader {
        &self.header
    }

    /// Writes back what is only in memory, then forgets what memory holds, so that a scan sees the disk itself.
    pub fn settle(&self) -> Result<(), PackError> {
        self.file.sync().map_err(PackError::io("sync pack"))?;
        self.file
            .drop_cache()
            .map_err(PackError::io("drop cached pages"))
    }

    /// Length of the file, bytes.
    pub fn len(&self) -> Result<u64, PackError> {
        self.file.len().map_err(PackError::io("length of pack"))
    }

    /// Whether there is no record in the pack.
    pub fn is_empty(&self) -> Result<bool, PackError> {
        self.len().map(|len| len <= PACK_HEADER_LEN as u64)
    }

    /// The records of a sealed pack in the order they were appended; `None` if it is not sealed (or its footer is
    /// damaged: scan it, then).
    pub fn sealed_entries(&self) -> Result<Option<Vec<Entry>>, PackError> {
        let Some(trailer) = self.trailer()? else {
            return Ok(None);
        };
        let mut bytes = vec![0; trailer.entries_len() as usize];
        self.file
            .read_at(&mut bytes, trailer.start)
            .map_err(PackError::io("read pack footer"))?;
        let mut entries = footer::decode(&trailer, &bytes, &self.header.store);
        if let Some(entries) = &mut entries {
            entries.sort_unstable_by_key(|entry| entry.offset);
        }
        Ok(entries)
    }

    pub(crate) fn trailer(&self) -> Result<Option<Trailer>, PackError> {
        let len = self.len()?;
        if len < (PACK_HEADER_LEN + TRAILER_LEN) as u64 {
            return Ok(None);
        }
        let mut bytes = [0; TRAILER_LEN];
        self.file
            .read_at(&mut bytes, len - TRAILER_LEN as u64)
            .map_err(PackError::io("read pack trailer"))?;
        Ok(Trailer::parse(&bytes, len))
    }

    /// Reads the record at `location` and checks all of it.
    pub fn read(&self, location: Location) -> Result<Found, PackError> {
        let damaged = |what| PackError::Damaged {
            offset: location.offset,
            what,
        };
        let mut bytes = vec![0; HEADER_LEN + location.len as usize];
        match self.file.read_at(&mut bytes, location.offset) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(damaged("pack is too short"));
            }
            Err(error) => return Err(PackError::io("read record")(error)),
        }
        let bytes = Bytes::from(bytes);
        let head = bytes
            .first_chunk::<HEADER_LEN>()
            .ok_or_else(|| damaged("header"))?;
        let header = RecordHeader::parse(head, &self.header.store, location.offset)
            .ok_or_else(|| damaged("header"))?;
        if header.payload_len != location.len {
            return Err(damaged("length"));
        }
        let payload = bytes.slice(HEADER_LEN..);
        if *blake3::hash(&payload).as_bytes() != header.hash {
            return Err(damaged("payload"));
        }
        Ok(Found { header, payload })
    }
}
