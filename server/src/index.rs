//! The index: which pack holds a record. The one file of this crate that names redb.
//!
//! Invariant: it only ever lags behind the packs, never leads: rows and the checkpoint up to which the packs were
//! indexed are written in one transaction, after the packs were synced. Losing it loses nothing (`rebuild-index`).
//! Called by the store's writer thread (writes) and by anyone who looks something up (reads).
//!
//! Row: key `kind u8 ‖ owner32 ‖ id32`, value `pack u64 ‖ offset u64 ‖ len u32 ‖ received_ms u64 ‖ hash32`, integers
//! little-endian.

use std::path::Path;

use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _, TableDefinition};
use sealdrive_pack::{Entry, Location, RecordKind};

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
const CHECKPOINT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("checkpoint");
const NOW: &str = "now";
/// Pages kept in memory, bytes: the hot part of a few million rows. redb's own default of 1 GiB would be the largest
/// thing in this process.
const CACHE: usize = 128 << 20;

/// The index failed; it is made anew from the packs.
#[derive(Debug, thiserror::Error)]
#[error("index: {0}")]
pub struct IndexError(String);

impl<E: Into<redb::Error>> From<E> for IndexError {
    fn from(error: E) -> Self {
        Self(error.into().to_string())
    }
}

/// Key of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey(pub [u8; 65]);

impl RowKey {
    /// Of this kind, owner and id.
    pub fn new(kind: RecordKind, owner: &[u8; 32], id: &[u8; 32]) -> Self {
        let mut key = [0; 65];
        key[0] = kind as u8;
        key[1..33].copy_from_slice(owner);
        key[33..].copy_from_slice(id);
        Self(key)
    }

    /// Owner and id.
    pub fn names(&self) -> ([u8; 32], [u8; 32]) {
        let (mut owner, mut id) = ([0; 32], [0; 32]);
        owner.copy_from_slice(&self.0[1..33]);
        id.copy_from_slice(&self.0[33..]);
        (owner, id)
    }
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Number of the pack.
    pub pack: u64,
    /// Place in it.
    pub location: Location,
    /// Server clock, milliseconds.
    pub received_ms: u64,
    /// BLAKE3 of the payload.
    pub hash: [u8; 32],
}

impl Row {
    const LEN: usize = 60;

    /// The row of a pack's entry.
    pub fn of(pack: u64, entry: &Entry) -> (RowKey, Self) {
        let header = &entry.header;
        let row = Self {
            pack,
            location: entry.location(),
            received_ms: header.received_ms,
            hash: header.hash,
        };
        (RowKey::new(header.kind, &header.owner, &header.id), row)
    }

    fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.pack.to_le_bytes());
        out[8..16].copy_from_slice(&self.location.offset.to_le_bytes());
        out[16..20].copy_from_slice(&self.location.len.to_le_bytes());
        out[20..28].copy_from_slice(&self.received_ms.to_le_bytes());
        out[28..].copy_from_slice(&self.hash);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let bytes: &[u8; Self::LEN] = bytes
            .try_into()
            .map_err(|_| IndexError("row of a wrong length".into()))?;
        let u64_at = |at: usize| {
            let mut out = [0; 8];
            out.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(out)
        };
        let (mut len, mut hash) = ([0; 4], [0; 32]);
        len.copy_from_slice(&bytes[16..20]);
        hash.copy_from_slice(&bytes[28..]);
        let location = Location {
            offset: u64_at(8),
            len: u32::from_le_bytes(len),
        };
        Ok(Self {
            pack: u64_at(0),
            location,
            received_ms: u64_at(20),
            hash,
        })
    }
}

/// How far the packs are indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// Pack to go on with.
    pub pack: u64,
    /// Everything before this offset of it is indexed, and was durable.
    pub offset: u64,
    /// Number of the last record.
    pub sequence: u64,
}

impl Checkpoint {
    fn encode(&self) -> [u8; 24] {
        let mut out = [0; 24];
        for (part, value) in out
            .chunks_exact_mut(8)
            .zip([self.pack, self.offset, self.sequence])
        {
            part.copy_from_slice(&value.to_le_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let bytes: &[u8; 24] = bytes
            .try_into()
            .map_err(|_| IndexError("checkpoint of a wrong length".into()))?;
        let mut values = [0u64; 3];
        for (value, part) in values.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut le = [0; 8];
            le.copy_from_slice(part);
            *value = u64::from_le_bytes(le);
        }
        Ok(Self {
            pack: values[0],
            offset: values[1],
            sequence: values[2],
        })
    }
}

/// The database.
pub struct Index(Database);

impl Index {
    /// Opens or makes it.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let database = Database::builder().set_cache_size(CACHE).create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(ROWS)?;
        transaction.open_table(CHECKPOINT)?;
        transaction.commit()?;
        Ok(Self(database))
    }

    /// One record's place.
    pub fn get(&self, key: &RowKey) -> Result<Option<Row>, IndexError> {
        let rows = self.0.begin_read()?.open_table(ROWS)?;
        rows.get(&key.0[..])?
            .map(|value| Row::decode(value.value()))
            .transpose()
    }

    /// All rows of a kind, by owner and id.
    pub fn each(
        &self,
        kind: RecordKind,
        mut see: impl FnMut(RowKey, Row),
    ) -> Result<(), IndexError> {
        let rows = self.0.begin_read()?.open_table(ROWS)?;
        let (first, last) = ([kind as u8], [kind as u8 + 1]);
        for row in rows.range(&first[..]..&last[..])? {
            let (key, value) = row?;
            let key = key
                .value()
                .try_into()
                .map_err(|_| IndexError("key of a wrong length".into()))?;
            see(RowKey(key), Row::decode(value.value())?);
        }
        Ok(())
    }

    /// Rows in all.
    pub fn len(&self) -> Result<u64, IndexError> {
        Ok(self.0.begin_read()?.open_table(ROWS)?.len()?)
    }

    /// How far the packs are indexed.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, IndexError> {
        let table = self.0.begin_read()?.open_table(CHECKPOINT)?;
        table
            .get(NOW)?
            .map(|value| Checkpoint::decode(value.value()))
            .transpose()
    }

    /// Writes rows and checkpoint, durably and as one.
    pub fn write<'a>(
        &self,
        rows: impl IntoIterator<Item = (&'a RowKey, &'a Row)>,
        checkpoint: &Checkpoint,
    ) -> Result<(), IndexError> {
        let mut transaction = self.0.begin_write()?;
        // Reopening after a crash is then instant, whatever the size.
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(ROWS)?;
            for (key, row) in rows {
                table.insert(&key.0[..], &row.encode()[..])?;
            }
            transaction
                .open_table(CHECKPOINT)?
                .insert(NOW, &checkpoint.encode()[..])?;
        }
        transaction.commit()?;
        Ok(())
    }
}
