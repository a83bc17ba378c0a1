//! Opening a store: find the packs, replay into the index what it lacks, cut off the torn tail of the open pack.
//!
//! Invariant: afterwards every record that was ever acknowledged and is not damaged is in the index, and the open pack
//! ends with a whole, durable record. Damage is reported and left in place. Called by `Store::open` and by
//! `rebuild-index`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use sealdrive_pack::{
    Directory, Entry, Medium, PackError, Reader, Scan, Writer, file_name, parse_file_name,
};

use super::packs::Packs;
use crate::clock::entropy;
use crate::index::{Checkpoint, Index, IndexError};
use crate::limits::INDEX_BATCH;

/// Name of the index in the data directory.
pub(super) const INDEX: &str = "index.redb";
/// Directory of the packs in the data directory.
pub(super) const PACKS: &str = "packs";
/// Length of a pack without records, bytes.
const EMPTY_PACK: u64 = 64;

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A pack cannot be read.
    #[error("pack {id:016x}: {source}")]
    Pack {
        /// Its number.
        id: u64,
        /// Why.
        source: PackError,
    },
    /// The index cannot be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A pack belongs to another store.
    #[error("pack {0:016x} belongs to another store; it was put here by mistake")]
    Stranger(u64),
    /// The index knows a pack that is not there.
    #[error(
        "pack {0:016x} is missing; restore it from a backup, or run rebuild-index to go on without it"
    )]
    Missing(u64),
}

/// Where the writer goes on.
pub(super) struct Continuation {
    pub(super) writer: Option<Writer>,
    pub(super) next_pack: u64,
    pub(super) next_sequence: u64,
}

pub(super) struct Opened {
    pub(super) index: Index,
    pub(super) packs: Packs,
    pub(super) continuation: Continuation,
    pub(super) damage: usize,
}

/// `data` holds the index under the name `index`, `medium` the packs.
pub(super) fn open(
    medium: Arc<dyn Medium>,
    data: &dyn Medium,
    index: &str,
) -> Result<Opened, OpenError> {
    let index = Index::open(data, index)?;
    let ids = list(&*medium)?;
    let mut store = None;
    let mut replay = Replay::new(&index)?;
    if replay.start.pack != 0 && !ids.contains(&replay.start.pack) {
        return Err(OpenError::Missing(replay.start.pack));
    }
    let mut writer = None;
    for id in &ids {
        let last = ids.last() == Some(id);
        let Some(reader) = open_pack(&*medium, *id, last)? else {
            continue;
        };
        let known = *store.get_or_insert(reader.header().store);
        if reader.header().store != known || reader.header().id != *id {
            return Err(OpenError::Stranger(*id));
        }
        if *id >= replay.start.pack {
            writer = replay.pack(*id, reader, last)?;
        }
    }
    let damage = replay.damage;
    let next_sequence = replay.finish()?;
    let next_pack = ids.last().map_or(1, |last| last + 1);
    // The secret id of the store lives in its packs, so that they alone are enough; the first pack gets a new one.
    let store = store.map_or_else(entropy, Ok)?;
    let packs = Packs::new(medium, store);
    if let Some(writer) = &writer {
        packs.add(writer.id(), writer.reader());
    }
    let continuation = Continuation {
        writer,
        next_pack,
        next_sequence,
    };
    Ok(Opened {
        index,
        packs,
        continuation,
        damage,
    })
}

fn list(medium: &dyn Medium) -> Result<Vec<u64>, OpenError> {
    let mut ids: Vec<u64> = medium
        .list()?
        .iter()
        .filter_map(|name| parse_file_name(name))
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Opens a pack. The last one may be a file whose creation was cut short: it holds nothing and is removed.
fn open_pack(medium: &dyn Medium, id: u64, last: bool) -> Result<Option<Reader>, OpenError> {
    match Reader::open(medium, &file_name(id)) {
        Ok(reader) => Ok(Some(reader)),
        Err(PackError::Format) if last && medium.open(&file_name(id))?.len()? <= EMPTY_PACK => {
            medium.remove(&file_name(id))?;
            medium.sync_dir()?;
            Ok(None)
        }
        Err(source) => Err(OpenError::Pack { id, source }),
    }
}

/// Folds records that the index lacks into it, batch by batch.
struct Replay<'a> {
    index: &'a Index,
    start: Checkpoint,
    next: Checkpoint,
    batch: Vec<(u64, Entry)>,
    damage: usize,
}

impl<'a> Replay<'a> {
    fn new(index: &'a Index) -> Result<Self, OpenError> {
        let start = index.checkpoint()?;
        let next = Checkpoint {
            next_sequence: start.next_sequence.max(1),
            ..start
        };
        Ok(Self {
            index,
            start,
            next,
            batch: Vec::new(),
            damage: 0,
        })
    }

    /// Replays one pack; yields its writer if it is the last and not sealed.
    fn pack(&mut self, id: u64, reader: Reader, last: bool) -> Result<Option<Writer>, OpenError> {
        let failed = |source| OpenError::Pack { id, source };
        let from = if id == self.start.pack {
            self.start.offset
        } else {
            0
        };
        if let Some(entries) = reader.sealed_entries().map_err(failed)? {
            self.entries(id, from, &entries)?;
            return Ok(None);
        }
        // What was written before a crash may still be only in memory, and pages whose write failed look clean.
        reader.settle().map_err(failed)?;
        let scan = Scan::read(&reader, from, from).map_err(failed)?;
        self.damage += scan.damage.len();
        for damage in &scan.damage {
            let (offset, len) = (damage.offset, damage.len);
            tracing::error!(
                pack = id,
                offset,
                len,
                "damaged record; what it held counts as missing"
            );
        }
        self.entries(id, from, &scan.entries)?;
        if scan.torn > 0 {
            tracing::warn!(
                pack = id,
                bytes = scan.torn,
                "cut off a torn tail: nothing of it was acknowledged"
            );
        }
        let writer = Writer::resume(reader, &scan).map_err(failed)?;
        if last {
            return Ok(Some(writer));
        }
        writer.finish().map_err(failed)?;
        Ok(None)
    }

    fn entries(&mut self, id: u64, from: u64, entries: &[Entry]) -> Result<(), OpenError> {
        for entry in entries.iter().filter(|entry| entry.offset >= from) {
            let next_sequence = self.next.next_sequence.max(entry.header.sequence + 1);
            self.batch.push((id, *entry));
            self.next = Checkpoint {
                pack: id,
                offset: entry.location().end(),
                next_sequence,
            };
            if self.batch.len() >= INDEX_BATCH {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), OpenError> {
        self.index.apply(&self.batch, &self.next)?;
        self.batch.clear();
        Ok(())
    }

    /// Yields the number of the store's next record.
    fn finish(mut self) -> Result<u64, OpenError> {
        if self.next != self.start {
            self.flush()?;
        }
        Ok(self.next.next_sequence)
    }
}

/// What a rebuild found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// Rows of the new index.
    pub rows: u64,
    /// Damaged stretches of packs.
    pub damage: usize,
}

/// Makes the index of a data directory anew from the packs alone, and puts it in the place of the old one.
pub fn rebuild(data: &Path) -> Result<Rebuilt, OpenError> {
    rebuild_on(&Directory::open(data)?)
}

/// The same on any medium.
pub fn rebuild_on(data: &dyn Medium) -> Result<Rebuilt, OpenError> {
    const FRESH: &str = "index.new";
    match data.remove(FRESH) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    // An open pack is settled by the way, exactly as at start.
    let opened = open(data.directory(PACKS)?, data, FRESH)?;
    let rows = opened.index.totals()?.0;
    opened.index.close()?;
    data.rename(FRESH, INDEX)?;
    data.sync_dir()?;
    Ok(Rebuilt {
        rows,
        damage: opened.damage,
    })
}
