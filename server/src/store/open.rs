//! Opening a store: find the packs, replay into the index what it lacks, cut off the torn tail of the open pack.
//!
//! Invariant: afterwards every record that was ever acknowledged and is not damaged is in the index, and the open pack
//! ends with a whole, durable record. Damage is reported and left in place. Called by `Store::open` and by
//! `rebuild-index`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use sealdrive_pack::{
    Directory, Entry, Medium, PackError, Reader, RecordKind, Reserve, Scan, Writer, file_name,
    parse_file_name,
};

use super::packs::Packs;
use crate::clock::entropy;
use crate::index::{Checkpoint, Index, IndexError, RowKey};
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
    /// The index knows packs, and there is none.
    #[error(
        "there are no packs, though pack {0:016x} was here; is the disk mounted? If they are lost, run \
         rebuild-index to begin anew"
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

/// Directory of the index's reserve in the data directory.
pub(super) const SPACE: &str = "space";

/// `data` holds the index under the name `index`, `medium` the packs; the index may use `reserve`.
pub(super) fn open(
    medium: Arc<dyn Medium>,
    data: &dyn Medium,
    index: &str,
    reserve: Option<&Arc<Reserve>>,
) -> Result<Opened, OpenError> {
    let index = Index::open_with(data, index, reserve)?;
    let ids = list(&*medium)?;
    let mut replay = Replay::new(&index)?;
    // The secret id of the store lives in its packs, so that they alone are enough, and in the index for a pack whose
    // header is damaged; the first pack gets a new one.
    let known = index.store()?;
    let store = match known.or_else(|| any_header(&*medium, &ids)) {
        Some(store) => store,
        None => entropy()?,
    };
    if known.is_none() {
        index.set_store(&store)?;
    }
    replay.look_for_start(&ids)?;
    let mut writer = None;
    for id in &ids {
        let last = ids.last() == Some(id);
        let Some(reader) = open_pack(&*medium, *id, last, store)? else {
            continue;
        };
        if reader.header().store != store || reader.header().id != *id {
            return Err(OpenError::Stranger(*id));
        }
        if *id >= replay.start.pack {
            writer = replay.pack(*id, reader, last)?;
        }
    }
    // A number that the index remembers is not given out again, or old rows would lead into a new pack.
    let next_pack = ids.last().copied().unwrap_or(0).max(replay.start.pack) + 1;
    let (damage, next_sequence) = replay.finish()?;
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

/// The store's id from the first pack that still tells it.
fn any_header(medium: &dyn Medium, ids: &[u64]) -> Option<[u8; 32]> {
    let mut open = ids.iter().map(|id| Reader::open(medium, &file_name(*id)));
    open.find_map(|reader| Some(reader.ok()?.header().store))
}

/// Opens a pack. The last one may be a file whose creation was cut short: it holds nothing and is removed.
fn open_pack(
    medium: &dyn Medium,
    id: u64,
    last: bool,
    store: [u8; 32],
) -> Result<Option<Reader>, OpenError> {
    let failed = |source| OpenError::Pack { id, source };
    match Reader::open(medium, &file_name(id)) {
        Ok(reader) => Ok(Some(reader)),
        Err(PackError::Format) if last && medium.open(&file_name(id))?.len()? <= EMPTY_PACK => {
            medium.remove(&file_name(id))?;
            medium.sync_dir()?;
            Ok(None)
        }
        Err(PackError::Format) => {
            tracing::error!(
                pack = id,
                "the header of a pack is damaged; its records are read without"
            );
            Reader::open_as(medium, id, store).map(Some).map_err(failed)
        }
        Err(source) => Err(failed(source)),
    }
}

/// Folds records that the index lacks into it, batch by batch.
struct Replay<'a> {
    index: &'a Index,
    start: Checkpoint,
    next: Checkpoint,
    batch: Vec<(u64, Entry)>,
    damage: usize,
    /// Objects that were found damaged and are not in the index.
    suspects: Vec<RowKey>,
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
            suspects: Vec::new(),
        })
    }

    /// Where the replay starts must still be there. If nothing at all is, the disk is most likely not mounted.
    fn look_for_start(&mut self, ids: &[u64]) -> Result<(), OpenError> {
        let pack = self.start.pack;
        if pack == 0 || ids.contains(&pack) {
            return Ok(());
        }
        if ids.is_empty() {
            return Err(OpenError::Missing(pack));
        }
        tracing::error!(
            pack,
            "a pack is missing; restore it from a backup. What it held counts as lost"
        );
        self.damage += 1;
        Ok(())
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
        let is_cut = scan.end < from;
        if is_cut {
            tracing::error!(pack = id, from, end = scan.end, "the end of a pack is gone");
            self.damage += 1;
        }
        for damage in &scan.damage {
            let key = damage.entry.as_ref().map(RowKey::of);
            self.suspects
                .extend(key.filter(|key| key.kind == RecordKind::Object));
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
        // Into a pack that was cut below what the index has of it nothing is written: a replay would step over it.
        if last && !is_cut {
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

    /// Yields the damaged stretches found, and the number of the store's next record.
    fn finish(mut self) -> Result<(usize, u64), OpenError> {
        if self.next != self.start {
            self.flush()?;
        }
        if !self.suspects.is_empty() {
            self.index.suspect(&self.suspects)?;
        }
        Ok((self.damage, self.next.next_sequence))
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
    let opened = open(data.directory(PACKS)?, data, FRESH, None)?;
    let rows = opened.index.totals()?.0;
    opened.index.close()?;
    data.rename(FRESH, INDEX)?;
    data.sync_dir()?;
    Ok(Rebuilt {
        rows,
        damage: opened.damage,
    })
}
