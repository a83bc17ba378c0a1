//! Opening a store: the index as it stands, and behind its checkpoint whatever the packs still hold.
//!
//! Invariant: after `open` index and tail together know every good record of the packs. A torn tail is cut off (nobody
//! was told of it); corruption is reported and stepped over, never cut off. Called by `Server::start` and
//! `rebuild-index`.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use sealdrive_pack::{
    Directory, PackHeader, Reader, RecordKind, Scan, Writer, file_name, parse_file_name,
};
use tokio::sync::Semaphore;

use super::writer::Pen;
use super::{QUEUE_BYTES, Shared, Store, StoreError};
use crate::book::{Record, RecordKind as ControlKind, split_commit};
use crate::core::pack_kind;
use crate::index::{Checkpoint, Index, Row, RowKey};
use crate::{clock, private_file};

const PACKS: &str = "packs";
const INDEX: &str = "index.redb";
const STORE: &str = "store.id";

/// A store just opened.
pub struct Opened {
    /// The store.
    pub store: Store,
    /// Control records to apply to the book, in order, with the time each was received.
    pub control: Vec<(Record, u64)>,
    /// Stretches of packs that are damaged.
    pub damage: usize,
}

fn failed(what: &str, error: &io::Error) -> StoreError {
    StoreError::Failed(format!("{what}: {error}"))
}

fn store_id(data: &Path) -> Result<[u8; 32], StoreError> {
    let path = data.join(STORE);
    if !path.try_exists().map_err(|error| failed(STORE, &error))? {
        let id: [u8; 32] = clock::entropy().map_err(|error| failed("entropy", &error))?;
        private_file::write(&path, &id).map_err(|error| failed(STORE, &error))?;
    }
    let bytes = std::fs::read(&path).map_err(|error| failed(STORE, &error))?;
    bytes
        .try_into()
        .map_err(|_| StoreError::Failed(format!("{STORE} is damaged")))
}

/// What the packs hold behind a checkpoint.
struct Replay {
    rows: HashMap<RowKey, Row>,
    writer: Option<Writer>,
    sequence: u64,
    damage: usize,
}

fn replay(medium: &Directory, store: &[u8; 32], from: &Checkpoint) -> Result<Replay, StoreError> {
    use sealdrive_pack::Medium as _;
    let names = medium.list().map_err(|error| failed(PACKS, &error))?;
    let mut ids: Vec<u64> = names
        .iter()
        .filter_map(|name| parse_file_name(name))
        .collect();
    ids.sort_unstable();
    let mut replay = Replay {
        rows: HashMap::new(),
        writer: None,
        sequence: from.sequence,
        damage: 0,
    };
    let newest = ids.last().copied();
    for id in ids.into_iter().filter(|id| *id >= from.pack) {
        let known = if id == from.pack { from.offset } else { 0 };
        let reader = match Reader::open(medium, &file_name(id)) {
            Ok(reader) if reader.header().store == *store => reader,
            Ok(_) => {
                tracing::error!(pack = id, "this pack belongs to another store; left alone");
                replay.damage += 1;
                continue;
            }
            Err(sealdrive_pack::PackError::Format) => {
                tracing::error!(pack = id, "not a pack of a known format; left alone");
                replay.damage += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let sealed = reader.sealed_entries()?;
        let is_sealed = sealed.is_some();
        let (entries, scan) = match sealed {
            Some(entries) => (entries, None),
            None => {
                // Of packs before the newest everything was durable before the next was begun.
                let durable = if Some(id) == newest {
                    known
                } else {
                    reader.len()?
                };
                let scan = Scan::read(&reader, known, durable)?;
                for damage in &scan.damage {
                    tracing::error!(
                        pack = id,
                        offset = damage.offset,
                        len = damage.len,
                        "pack is damaged here"
                    );
                }
                replay.damage += scan.damage.len();
                (scan.entries.clone(), Some(scan))
            }
        };
        for entry in entries.iter().filter(|entry| entry.offset >= known) {
            replay.sequence = replay.sequence.max(entry.header.sequence);
            let (key, row) = Row::of(id, entry);
            if entry.header.kind == RecordKind::Object {
                replay.rows.entry(key).or_insert(row);
            } else {
                replay.rows.insert(key, row);
            }
        }
        if let (Some(scan), false, true) = (scan, is_sealed, Some(id) == newest) {
            replay.writer = Some(Writer::resume(reader, &scan)?);
        }
    }
    if replay.writer.is_none() {
        let id = newest.map_or(1, |id| id + 1);
        let header = PackHeader {
            id,
            created_ms: clock::unix_ms(),
            store: *store,
        };
        replay.writer = Some(Writer::create(medium, header)?);
    }
    Ok(replay)
}

impl Store {
    /// Opens the store of a data directory and starts its writer.
    pub fn open(data: &Path) -> Result<Opened, StoreError> {
        let packs: PathBuf = data.join(PACKS);
        std::fs::create_dir_all(&packs).map_err(|error| failed(PACKS, &error))?;
        let medium = Directory::open(&packs).map_err(|error| failed(PACKS, &error))?;
        let store = store_id(data)?;
        let index = Index::open(&data.join(INDEX))?;
        let checkpoint = index.checkpoint()?.unwrap_or_default();
        let Replay {
            rows,
            writer,
            sequence,
            damage,
        } = replay(&medium, &store, &checkpoint)?;
        let Some(writer) = writer else {
            return Err(StoreError::Failed("no pack to write".into()));
        };
        let dirty = !rows.is_empty() || checkpoint == Checkpoint::default();
        let shared = Arc::new(Shared {
            medium,
            index,
            tail: RwLock::new(rows),
            readers: Mutex::default(),
            failed: tokio::sync::watch::channel(None).0,
        });
        let control = control(&shared)?;
        let (jobs, queue) = std::sync::mpsc::channel();
        let pen = Pen {
            shared: Arc::clone(&shared),
            writer,
            sequence,
            store,
            dirty,
        };
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || pen.run(&queue));
        let thread = thread.map_err(|error| failed("writer thread", &error))?;
        let store = Self {
            shared,
            jobs: Arc::new(Mutex::new(Some(jobs))),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            writer: Arc::new(Mutex::new(Some(thread))),
        };
        Ok(Opened {
            store,
            control,
            damage,
        })
    }
}

/// All control records that count, in an order in which they apply: links, slots, leases, then the newest commit of
/// each drive.
fn control(shared: &Shared) -> Result<Vec<(Record, u64)>, StoreError> {
    let mut found = Vec::new();
    for kind in [
        ControlKind::Link,
        ControlKind::Slot,
        ControlKind::Lease,
        ControlKind::Commit,
    ] {
        let mut rows = std::collections::BTreeMap::new();
        shared.index.each(pack_kind(kind), |key, row| {
            rows.insert(key, row);
        })?;
        let tail = shared
            .tail
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let wanted = |key: &RowKey| key.0[0] == pack_kind(kind) as u8;
        rows.extend(
            tail.iter()
                .filter(|(key, _)| wanted(key))
                .map(|(key, row)| (*key, *row)),
        );
        drop(tail);
        let mut rows: Vec<(RowKey, Row)> = rows.into_iter().collect();
        if kind == ControlKind::Commit {
            // Keys rise by owner and number, so the last of each owner is its newest.
            let keep: Vec<bool> = (0..rows.len())
                .map(|at| {
                    rows.get(at + 1)
                        .is_none_or(|next| next.0.names().0 != rows[at].0.names().0)
                })
                .collect();
            let mut keep = keep.into_iter();
            rows.retain(|_| keep.next().unwrap_or(true));
        }
        for (key, row) in rows {
            let (owner, id) = key.names();
            match shared
                .reader(row.pack)
                .and_then(|reader| reader.read(row.location))
            {
                Ok(record) => {
                    if kind == ControlKind::Commit && split_commit(&record.payload).is_err() {
                        return Err(StoreError::Failed("a commit record is cut off".into()));
                    }
                    found.push((
                        Record {
                            kind,
                            owner,
                            id,
                            payload: record.payload,
                        },
                        row.received_ms,
                    ));
                }
                Err(error) => {
                    tracing::error!(%error, pack = row.pack, "a control record is damaged");
                }
            }
        }
    }
    Ok(found)
}

/// Makes the index anew from the packs alone. Returns rows and damaged stretches.
pub fn rebuild(data: &Path) -> Result<(u64, usize), StoreError> {
    let path = data.join(INDEX);
    let aside = data.join("index.redb.old");
    match std::fs::rename(&path, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(INDEX, &error)),
    }
    let opened = Store::open(data)?;
    opened.store.close();
    let rows = opened.store.indexed()?;
    match std::fs::remove_file(&aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(INDEX, &error)),
    }
    Ok((rows, opened.damage))
}
