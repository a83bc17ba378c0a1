//! The index: where each record stands in the packs. The only file of the server that knows redb.
//!
//! Invariant: the index is a fold over the records of all packs in order, and the checkpoint says how far that fold
//! has come; rows and checkpoint change in one transaction, so a crash leaves an index that is behind, never one that
//! is wrong. A failed commit is final, unless only space was missing. Called by the store (applies, looks up) and at
//! start (replays, lists).

mod backend;
mod open;

use std::sync::{Arc, PoisonError};

use redb::{
    Database, Durability, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
};
use redb::{ReadOnlyTable, TableDefinition, WriteTransaction};

use sealdrive_pack::{Entry, Location, MediumFile, RecordKind};
use sealdrive_proto::fields::{Fields, Misshapen};
use sealdrive_runtime::sync::RwLock;

use self::backend::Disk;

/// Memory for pages of the database, bytes. redb's default of 1 GiB is more than a small server has.
const CACHE_BYTES: usize = 128 << 20;
const KEY_LEN: usize = 65;
const ROW_LEN: usize = 68;
const META_LEN: usize = 28;
const ROWS: TableDefinition<'static, &[u8; KEY_LEN], &[u8; ROW_LEN]> = TableDefinition::new("rows");
/// Stored bytes of objects, by domain.
const USAGE: TableDefinition<'static, &[u8; 32], u64> = TableDefinition::new("usage");
/// One row, the checkpoint: `format u32 ‖ pack u64 ‖ offset u64 ‖ next sequence u64`.
const META: TableDefinition<'static, u8, &[u8; META_LEN]> = TableDefinition::new("meta");
/// Objects found damaged and not replaced yet: domain and sid.
const SUSPECTS: TableDefinition<'static, &[u8; SUSPECT_LEN], ()> = TableDefinition::new("suspects");
const SUSPECT_LEN: usize = 64;
/// One row: the store's secret id, for packs whose own header is damaged.
const STORE: TableDefinition<'static, u8, &[u8; 32]> = TableDefinition::new("store");
const FORMAT: u32 = 1;
/// Name a damaged index gets: kept for a person to look at.
const ASIDE: &str = "index.damaged";
/// Longest index that is checked page by page at start, bytes: seconds of work; beyond it a start would take minutes.
const CHECKED_BYTES: u64 = 1 << 30;
/// Bytes of a page of redb.
const PAGE: u64 = 4096;

/// Why the index did not answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The database failed; after a failed commit it must be opened again.
    #[error("index: {0}")]
    Database(String),
    /// The file is no index of this format: `rebuild-index` makes a new one from the packs.
    #[error("index is damaged or of another format; run rebuild-index")]
    Format,
    /// No space for it. Nothing of it is lost, and the same may work later.
    #[error("no space left for the index")]
    Full,
    /// It was closed: the store is stopping.
    #[error("index is closed")]
    Closed,
}

impl<E: Into<redb::Error>> From<E> for IndexError {
    fn from(error: E) -> Self {
        Self::Database(error.into().to_string())
    }
}

/// Name of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// What it is.
    pub kind: RecordKind,
    /// Domain, account or drive.
    pub owner: [u8; 32],
    /// Sid or number.
    pub id: [u8; 32],
}

/// Where a record stands, and what is known of it without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Pack.
    pub pack: u64,
    /// Place in the pack.
    pub location: Location,
    /// Number in the store.
    pub sequence: u64,
    /// When it was received, milliseconds since 1970.
    pub received_ms: u64,
    /// BLAKE3 of the payload.
    pub hash: [u8; 32],
}

/// How far the fold has come: everything before this place is in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Checkpoint {
    /// Pack.
    pub pack: u64,
    /// Offset in it.
    pub offset: u64,
    /// Number the next record of the store gets.
    pub next_sequence: u64,
}

impl RowKey {
    fn encode(&self) -> [u8; KEY_LEN] {
        let mut out = [0; KEY_LEN];
        out[0] = self.kind as u8;
        out[1..33].copy_from_slice(&self.owner);
        out[33..].copy_from_slice(&self.id);
        out
    }

    fn suspect(&self) -> [u8; SUSPECT_LEN] {
        let mut out = [0; SUSPECT_LEN];
        out[..32].copy_from_slice(&self.owner);
        out[32..].copy_from_slice(&self.id);
        out
    }

    /// The name a record is filed under.
    pub fn of(entry: &Entry) -> Self {
        Self {
            kind: entry.header.kind,
            owner: entry.header.owner,
            id: entry.header.id,
        }
    }

    /// The name whose row a record changes, and the row it then has: a tombstone changes the object it names.
    pub fn changed_by(pack: u64, entry: &Entry) -> (Self, Option<Row>) {
        let key = Self::of(entry);
        match key.kind {
            RecordKind::Tombstone => (
                Self {
                    kind: RecordKind::Object,
                    ..key
                },
                None,
            ),
            _ => (key, Some(Row::of(pack, entry))),
        }
    }
}

impl Row {
    /// The row of a record in a pack.
    pub fn of(pack: u64, entry: &Entry) -> Self {
        Self {
            pack,
            location: entry.location(),
            sequence: entry.header.sequence,
            received_ms: entry.header.received_ms,
            hash: entry.header.hash,
        }
    }

    fn encode(&self) -> [u8; ROW_LEN] {
        let mut out = [0; ROW_LEN];
        out[..8].copy_from_slice(&self.pack.to_le_bytes());
        out[8..16].copy_from_slice(&self.location.offset.to_le_bytes());
        out[16..20].copy_from_slice(&self.location.len.to_le_bytes());
        out[20..28].copy_from_slice(&self.sequence.to_le_bytes());
        out[28..36].copy_from_slice(&self.received_ms.to_le_bytes());
        out[36..].copy_from_slice(&self.hash);
        out
    }

    fn decode(bytes: &[u8; ROW_LEN]) -> Result<Self, IndexError> {
        let read = || -> Result<Self, Misshapen> {
            let mut fields = Fields::new(bytes);
            Ok(Self {
                pack: fields.u64()?,
                location: Location {
                    offset: fields.u64()?,
                    len: fields.u32()?,
                },
                sequence: fields.u64()?,
                received_ms: fields.u64()?,
                hash: fields.array()?,
            })
        };
        read().map_err(|_| IndexError::Format)
    }
}

/// The database and what its disk has said.
struct Opened {
    db: Database,
    disk: Arc<Disk>,
}

enum State {
    Open(Opened),
    /// The disk was full: after an error of its file a database answers nothing any more. Whoever asks next opens it
    /// again.
    Down,
    Closed,
}

/// The open index. It can be closed while others still hold it: they then get `Closed`.
pub struct Index {
    file: Arc<dyn MediumFile>,
    state: RwLock<State>,
}

impl Index {
    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            match &*state {
                State::Open(opened) => return work(&opened.db),
                State::Closed => return Err(IndexError::Closed),
                State::Down => {}
            }
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let State::Down = *state {
            *state = State::Open(open::open_again(&self.file)?);
        }
        match &*state {
            State::Open(opened) => work(&opened.db),
            State::Down | State::Closed => Err(IndexError::Closed),
        }
    }

    /// A transaction failed. If it was only for want of space, nothing of it came about.
    fn judge(&self, error: IndexError) -> IndexError {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Open(opened) if opened.disk.was_full() => {
                *state = State::Down;
                IndexError::Full
            }
            _ => error,
        }
    }

    fn rows(
        &self,
    ) -> Result<ReadOnlyTable<&'static [u8; KEY_LEN], &'static [u8; ROW_LEN]>, IndexError> {
        self.with(|db| Ok(db.begin_read()?.open_table(ROWS)?))
    }

    /// How far the fold has come.
    pub fn checkpoint(&self) -> Result<Checkpoint, IndexError> {
        let table = self.with(|db| Ok(db.begin_read()?.open_table(META)?))?;
        let value = table.get(0)?.ok_or(IndexError::Format)?;
        let read = || -> Result<(u32, Checkpoint), Misshapen> {
            let mut fields = Fields::new(value.value());
            let format = fields.u32()?;
            let (pack, offset, next_sequence) = (fields.u64()?, fields.u64()?, fields.u64()?);
            Ok((
                format,
                Checkpoint {
                    pack,
                    offset,
                    next_sequence,
                },
            ))
        };
        match read() {
            Ok((FORMAT, checkpoint)) => Ok(checkpoint),
            _ => Err(IndexError::Format),
        }
    }

    /// Folds records in, in order, and moves the checkpoint: one durable transaction.
    pub fn apply(
        &self,
        records: &[(u64, Entry)],
        checkpoint: &Checkpoint,
    ) -> Result<(), IndexError> {
        let done = self.fold_in(records, checkpoint);
        done.map_err(|error| self.judge(error))
    }

    fn fold_in(&self, records: &[(u64, Entry)], checkpoint: &Checkpoint) -> Result<(), IndexError> {
        let txn = self.with(begin)?;
        {
            let mut rows = txn.open_table(ROWS)?;
            let mut usage = txn.open_table(USAGE)?;
            let mut suspects = txn.open_table(SUSPECTS)?;
            for (pack, entry) in records {
                fold(&mut rows, &mut usage, *pack, entry)?;
                let key = RowKey::of(entry).suspect();
                match entry.header.kind {
                    RecordKind::Object => drop(suspects.remove(&key)?),
                    RecordKind::Tombstone => drop(suspects.insert(&key, ())?),
                    _ => {}
                }
            }
        }
        set_checkpoint(&txn, checkpoint)?;
        Ok(txn.commit()?)
    }

    /// The rows of many records, in one snapshot, in the order asked.
    pub fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, IndexError> {
        let table = self.rows()?;
        let mut out = Vec::with_capacity(keys.len());
        for key in keys {
            out.push(match table.get(&key.encode())? {
                Some(value) => Some(Row::decode(value.value())?),
                None => None,
            });
        }
        Ok(out)
    }

    /// All rows of a kind, in the order of their keys.
    pub fn list(&self, kind: RecordKind) -> Result<Vec<(RowKey, Row)>, IndexError> {
        let table = self.rows()?;
        let first = RowKey {
            kind,
            owner: [0; 32],
            id: [0; 32],
        }
        .encode();
        let last = RowKey {
            kind,
            owner: [255; 32],
            id: [255; 32],
        }
        .encode();
        let mut out = Vec::new();
        for item in table.range::<&[u8; KEY_LEN]>(&first..=&last)? {
            let (key, value) = item?;
            let mut parts = Fields::new(&key.value()[1..]);
            let owner = parts.array().map_err(|_| IndexError::Format)?;
            let id = parts.array().map_err(|_| IndexError::Format)?;
            out.push((RowKey { kind, owner, id }, Row::decode(value.value())?));
        }
        Ok(out)
    }

    /// Objects of a domain that were found damaged and not replaced yet, at most `limit`.
    pub fn suspects(&self, domain: &[u8; 32], limit: usize) -> Result<Vec<[u8; 32]>, IndexError> {
        let table = self.with(|db| Ok(db.begin_read()?.open_table(SUSPECTS)?))?;
        let border = |byte| {
            let mut key = [byte; SUSPECT_LEN];
            key[..32].copy_from_slice(domain);
            key
        };
        let mut out = Vec::new();
        for item in table.range::<&[u8; SUSPECT_LEN]>(&border(0)..=&border(255))? {
            if out.len() == limit {
                break;
            }
            let sid = Fields::new(&item?.0.value()[32..]).array();
            out.push(sid.map_err(|_| IndexError::Format)?);
        }
        Ok(out)
    }

    /// Notes objects that a scan found damaged.
    pub fn suspect(&self, objects: &[RowKey]) -> Result<(), IndexError> {
        let txn = self.with(begin)?;
        {
            let rows = txn.open_table(ROWS)?;
            let mut suspects = txn.open_table(SUSPECTS)?;
            for key in objects {
                if standing(&rows, key)?.is_none() {
                    suspects.insert(&key.suspect(), ())?;
                }
            }
        }
        Ok(txn.commit()?)
    }

    /// The store's secret id, if it was noted.
    pub fn store(&self) -> Result<Option<[u8; 32]>, IndexError> {
        let table = self.with(|db| Ok(db.begin_read()?.open_table(STORE)?))?;
        Ok(table.get(0)?.map(|value| *value.value()))
    }

    /// Notes the store's secret id.
    pub fn set_store(&self, store: &[u8; 32]) -> Result<(), IndexError> {
        let txn = self.with(begin)?;
        txn.open_table(STORE)?.insert(0, store)?;
        Ok(txn.commit()?)
    }

    /// Stored bytes of a domain's objects.
    pub fn usage(&self, domain: &[u8; 32]) -> Result<u64, IndexError> {
        let table = self.with(|db| Ok(db.begin_read()?.open_table(USAGE)?))?;
        Ok(table.get(domain)?.map_or(0, |value| value.value()))
    }

    /// Rows in all, and stored bytes of all domains.
    pub fn totals(&self) -> Result<(u64, u64), IndexError> {
        let txn = self.with(|db| Ok(db.begin_read()?))?;
        let rows = txn.open_table(ROWS)?.len()?;
        let mut bytes = 0u64;
        for item in txn.open_table(USAGE)?.iter()? {
            bytes = bytes.saturating_add(item?.1.value());
        }
        Ok((rows, bytes))
    }

    /// Closes, telling what a drop would hide. Closing twice is closing once.
    pub fn close(&self) -> Result<(), IndexError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Closed) {
            State::Open(opened) => Ok(opened.db.close()?),
            State::Down | State::Closed => Ok(()),
        }
    }
}

/// Every commit is durable and can be recovered without walking the file.
fn begin(db: &Database) -> Result<WriteTransaction, IndexError> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    txn.set_quick_repair(true);
    Ok(txn)
}

fn set_checkpoint(txn: &WriteTransaction, checkpoint: &Checkpoint) -> Result<(), IndexError> {
    let mut value = [0; META_LEN];
    value[..4].copy_from_slice(&FORMAT.to_le_bytes());
    value[4..12].copy_from_slice(&checkpoint.pack.to_le_bytes());
    value[12..20].copy_from_slice(&checkpoint.offset.to_le_bytes());
    value[20..].copy_from_slice(&checkpoint.next_sequence.to_le_bytes());
    txn.open_table(META)?.insert(0, &value)?;
    Ok(())
}

type Rows<'txn> = redb::Table<'txn, &'static [u8; KEY_LEN], &'static [u8; ROW_LEN]>;
type Usage<'txn> = redb::Table<'txn, &'static [u8; 32], u64>;

/// What one record does to the index. Objects are immutable: the first under an id stands until a tombstone removes
/// it. Of slots and leases, which have no number in their id, the newest counts. Folding a record twice is folding it
/// once.
fn fold(
    rows: &mut Rows<'_>,
    usage: &mut Usage<'_>,
    pack: u64,
    entry: &Entry,
) -> Result<(), IndexError> {
    let (key, row) = (RowKey::of(entry), Row::of(pack, entry));
    match entry.header.kind {
        RecordKind::Object => {
            if standing(rows, &key)?.is_none() {
                rows.insert(&key.encode(), &row.encode())?;
                let len = u64::from(row.location.len);
                count(usage, &key.owner, |bytes| bytes.saturating_add(len))?;
            }
        }
        RecordKind::Tombstone => {
            let object = RowKey {
                kind: RecordKind::Object,
                ..key
            };
            if let Some(old) = standing(rows, &object)?.filter(|old| old.sequence < row.sequence) {
                rows.remove(&object.encode())?;
                let len = u64::from(old.location.len);
                count(usage, &key.owner, |bytes| bytes.saturating_sub(len))?;
            }
        }
        RecordKind::Slot | RecordKind::Lease => {
            if standing(rows, &key)?.is_none_or(|old| old.sequence < row.sequence) {
                rows.insert(&key.encode(), &row.encode())?;
            }
        }
        RecordKind::Commit | RecordKind::Link => {
            if standing(rows, &key)?.is_none() {
                rows.insert(&key.encode(), &row.encode())?;
            }
        }
    }
    Ok(())
}

fn standing(rows: &Rows<'_>, key: &RowKey) -> Result<Option<Row>, IndexError> {
    let found = rows.get(&key.encode())?;
    found.map(|value| Row::decode(value.value())).transpose()
}

fn count(
    usage: &mut Usage<'_>,
    domain: &[u8; 32],
    change: impl Fn(u64) -> u64,
) -> Result<(), IndexError> {
    let old = usage.get(domain)?.map_or(0, |value| value.value());
    usage.insert(domain, change(old))?;
    Ok(())
}
