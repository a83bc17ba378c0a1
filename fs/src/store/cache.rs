//! Local copies of what the server has: packs that may go at any time, oldest use first, under a hard budget.
//!
//! Invariant: only an `AckedPack` or what was fetched from the server can be here, and the evictor knows no other
//! directory; after every call the bytes here are within the budget, but for the one pack being written. Called by
//! `store/mod.rs`.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError};

use sealdrive_pack::{Medium, MediumFile};
use sealdrive_proto::id::Sid;
use sealdrive_runtime::sync::{Mutex, MutexGuard};

use super::index::Index;
use super::outbox::AckedPack;
use super::packfile::{self, Entry, NOTE_LEN, PackWriter};
use super::place::{Place, Row};
use super::{PackNumbers, StoreError};
use crate::limits::PACK_SIZE;

struct CachePack {
    file: Arc<dyn MediumFile>,
    len: u64,
    used: u64,
}

#[derive(Default)]
struct State {
    open: Option<PackWriter>,
    packs: BTreeMap<u64, CachePack>,
    total: u64,
    tick: u64,
}

/// A pack taken out of the cache; its ids are to be forgotten.
pub(super) struct Evicted {
    pub(super) number: u64,
    pub(super) file: Arc<dyn MediumFile>,
    pub(super) len: u64,
}

/// The cache of one drive.
pub struct Cache {
    dir: Arc<dyn Medium>,
    numbers: Arc<PackNumbers>,
    budget: u64,
    state: Mutex<State>,
}

impl Cache {
    /// Opens the packs found; older numbers count as used longer ago.
    pub(super) fn open(
        dir: Arc<dyn Medium>,
        numbers: Arc<PackNumbers>,
        budget: u64,
        found: Vec<CachedPack>,
    ) -> Self {
        let mut state = State::default();
        for (number, file, len) in found {
            state.tick += 1;
            state.total += len;
            state.packs.insert(
                number,
                CachePack {
                    file,
                    len,
                    used: state.tick,
                },
            );
        }
        Self {
            dir,
            numbers,
            budget,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes here.
    pub fn bytes(&self) -> u64 {
        self.state().total
    }

    /// The budget.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Number of the pack being written, if any.
    pub(super) fn open_number(&self) -> Option<u64> {
        self.state().open.as_ref().map(PackWriter::number)
    }

    /// Writes a copy of an object the server has. Never synced: its loss costs a fetch.
    pub(super) fn append(
        &self,
        sid: Sid,
        object: &[u8],
    ) -> Result<(Place, Vec<Evicted>), StoreError> {
        let mut state = self.state();
        let entry = self
            .append_open(&mut state, sid, object)
            .map_err(|e| StoreError::Io("appending to the cache", e))?;
        let number = state.open.as_ref().map_or(0, PackWriter::number);
        let evicted = state.evict(&*self.dir, self.budget);
        Ok((
            Place {
                pack: number,
                offset: entry.offset,
                len: entry.len,
                cached: true,
            },
            evicted,
        ))
    }

    fn append_open(&self, state: &mut State, sid: Sid, object: &[u8]) -> io::Result<Entry> {
        let size = PACK_SIZE.min(self.budget / 8);
        if state
            .open
            .as_ref()
            .is_some_and(|open| open.len() >= size || self.numbers.lags(open.number()))
            && let Some(mut open) = state.open.take()
        {
            open.flush()?;
        }
        if state.open.is_none() {
            let open = PackWriter::create(&*self.dir, self.numbers.take())?;
            let pack = CachePack {
                file: open.file(),
                len: open.len(),
                used: 0,
            };
            state.total += pack.len;
            state.packs.insert(open.number(), pack);
            state.open = Some(open);
        }
        let open = state
            .open
            .as_mut()
            .ok_or_else(|| io::Error::other("no open pack"))?;
        let before = open.len();
        let entry = open.append(sid, &[0; NOTE_LEN], object)?;
        let (number, after) = (open.number(), open.len());
        state.total += after - before;
        state.tick += 1;
        let tick = state.tick;
        if let Some(pack) = state.packs.get_mut(&number) {
            pack.len = after;
            pack.used = tick;
        }
        Ok(entry)
    }

    /// Takes over a pack from the outbox.
    pub(super) fn adopt(&self, pack: AckedPack) -> Vec<Evicted> {
        let mut state = self.state();
        state.tick += 1;
        state.total += pack.len;
        let used = state.tick;
        state.packs.insert(
            pack.number,
            CachePack {
                file: pack.file,
                len: pack.len,
                used,
            },
        );
        state.evict(&*self.dir, self.budget)
    }

    /// Reads one object; `Ok(None)` if the pack is not here (any more).
    pub(super) fn read(&self, place: &Place) -> Result<Option<packfile::Read>, StoreError> {
        let file = {
            let mut state = self.state();
            state.tick += 1;
            let tick = state.tick;
            if let Some(open) = &mut state.open
                && open.number() == place.pack
                && place.end().offset > open.written()
            {
                // A full disk: the copy is only in memory yet, and the server has the object.
                if open.flush().is_err() {
                    return Ok(None);
                }
            }
            let Some(pack) = state.packs.get_mut(&place.pack) else {
                return Ok(None);
            };
            pack.used = tick;
            if place.end().offset > pack.len {
                // The row outlived bytes that a power cut took: not damage, only not here.
                return Ok(None);
            }
            Arc::clone(&pack.file)
        };
        packfile::read(&*file, place.offset, place.len)
            .map(Some)
            .map_err(|e| StoreError::Io("reading the cache", e))
    }

    /// Gives up the copies used longest ago until `bytes` are free, or nothing is left.
    pub(super) fn shrink(&self, bytes: u64) -> Vec<Evicted> {
        let mut state = self.state();
        state.close();
        let budget = state.total.saturating_sub(bytes);
        state.evict(&*self.dir, budget)
    }

    /// Whether that pack is here.
    pub(super) fn holds(&self, pack: u64) -> bool {
        self.state().packs.contains_key(&pack)
    }
}

impl State {
    /// What cannot be handed to the kernel are copies, too: they are not found any more.
    fn close(&mut self) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        let (number, flushed) = (open.number(), open.flush());
        if let (Err(_), Some(pack)) = (flushed, self.packs.get_mut(&number)) {
            self.total -= pack.len - open.written();
            pack.len = open.written();
        }
    }

    fn evict(&mut self, dir: &dyn Medium, budget: u64) -> Vec<Evicted> {
        let mut out = Vec::new();
        let open = self.open.as_ref().map(PackWriter::number);
        while self.total > budget {
            let oldest = self
                .packs
                .iter()
                .filter(|(n, _)| Some(**n) != open)
                .min_by_key(|(_, p)| p.used);
            let Some(number) = oldest.map(|(n, _)| *n) else {
                break;
            };
            let Some(pack) = self.packs.remove(&number) else {
                break;
            };
            self.total -= pack.len;
            if let Err(e) = dir.remove(&packfile::file_name(number)) {
                tracing::warn!("cannot remove a cache pack: {e}");
            }
            out.push(Evicted {
                number,
                file: pack.file,
                len: pack.len,
            });
        }
        out
    }
}

/// Number, file and length of a pack of copies.
pub(super) type CachedPack = (u64, Arc<dyn MediumFile>, u64);

/// Opens the packs of copies; the index learns what it may not know.
pub(super) fn open_packs(
    dir: &dyn Medium,
    found: &[u64],
    index: &Index,
    indexed_below: u64,
) -> Result<Vec<CachedPack>, StoreError> {
    let broken = |e| StoreError::Io("opening a cache pack", e);
    let mut out = Vec::with_capacity(found.len());
    for number in found {
        if *number >= indexed_below {
            let scan = packfile::recover(dir, *number).map_err(broken)?;
            for entry in &scan.entries {
                let place = Place {
                    pack: *number,
                    offset: entry.offset,
                    len: entry.len,
                    cached: true,
                };
                index.put(entry.sid, Row::Local(place));
            }
            out.push((*number, scan.file, scan.len));
        } else {
            let file = dir.open(&packfile::file_name(*number)).map_err(broken)?;
            let len = file.len().map_err(broken)?;
            out.push((*number, file, len));
        }
    }
    Ok(out)
}
