//! Sealed objects that the server has not acknowledged under a durable commit: appended in order, read in order.
//!
//! Invariant: nothing here is ever deleted. A pack leaves only as an `AckedPack`, which `retire` alone makes, once
//! every object in it is acknowledged and a durable commit covers it. The appending lock covers memory and buffered
//! write(2), never an fsync. Called by `store/mod.rs`.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use sealdrive_pack::{Medium, MediumFile, is_no_space};
use sealdrive_proto::id::Sid;
use sealdrive_runtime::sync::{Mutex, MutexGuard};

use super::packfile::{self, Entry, NOTE_LEN, PackWriter};
use super::place::{Place, Position};
use super::{CACHE, OUTBOX, PackNumbers, StoreError};

/// A pack whose objects are all on the server and named by a commit: the only thing the cache can adopt and evict.
pub(super) struct AckedPack {
    /// Pack number.
    pub(super) number: u64,
    /// Its file.
    pub(super) file: Arc<dyn MediumFile>,
    /// Bytes of the file.
    pub(super) len: u64,
}

/// The open file of a pack.
type PackHandle = Arc<dyn MediumFile>;

struct OutPack {
    file: Arc<dyn MediumFile>,
    entries: Vec<Entry>,
    len: u64,
}

#[derive(Default)]
struct State {
    open: Option<PackWriter>,
    packs: BTreeMap<u64, OutPack>,
    /// Closed packs whose last bytes are not known to be durable.
    unsynced: Vec<Arc<dyn MediumFile>>,
    synced: Position,
    acknowledged: Position,
    pending_bytes: u64,
    pending_objects: u64,
    failed: bool,
}

/// One object on its way to the server.
pub struct Outgoing {
    /// Its id.
    pub sid: Sid,
    /// Acknowledging up to here covers it.
    pub end: Position,
    /// The sealed object.
    pub object: Bytes,
}

/// The outbox of one drive.
pub struct Outbox {
    dir: Arc<dyn Medium>,
    numbers: Arc<PackNumbers>,
    state: Mutex<State>,
    syncing: Mutex<()>,
}

impl Outbox {
    /// Opens every pack found, without their torn tails; `acknowledged` is where the upload had come to, and packs
    /// below `settled` are durable. Also returns the ids of damaged records.
    pub(super) fn open(
        dir: Arc<dyn Medium>,
        numbers: Arc<PackNumbers>,
        acknowledged: Position,
        settled: u64,
        found: &[u64],
    ) -> Result<(Self, Vec<Sid>), StoreError> {
        let mut damaged = Vec::new();
        let mut state = State {
            acknowledged,
            ..State::default()
        };
        for number in found {
            let broken = |e| StoreError::Io("recovering an outbox pack", e);
            if *number >= settled {
                packfile::settle(&*dir, *number).map_err(broken)?;
            }
            let scan = packfile::recover(&*dir, *number).map_err(broken)?;
            damaged.extend(scan.damaged.iter().map(|entry| entry.sid));
            for entry in &scan.entries {
                if (Position {
                    pack: *number,
                    offset: entry.end(),
                }) > acknowledged
                {
                    state.pending_bytes += u64::from(entry.len);
                    state.pending_objects += 1;
                }
            }
            state.synced = Position {
                pack: *number,
                offset: scan.len,
            };
            state.packs.insert(
                *number,
                OutPack {
                    file: scan.file,
                    entries: scan.entries,
                    len: scan.len,
                },
            );
        }
        let outbox = Self {
            dir,
            numbers,
            state: Mutex::new(state),
            syncing: Mutex::new(()),
        };
        Ok((outbox, damaged))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an object; durable only after `sync`. The caller has checked that it is not here yet.
    pub(super) fn append(
        &self,
        sid: Sid,
        note: &[u8; NOTE_LEN],
        object: &[u8],
    ) -> Result<Place, StoreError> {
        let mut state = self.state();
        if state.failed {
            return Err(StoreError::Failed);
        }
        let appended = state.append(&*self.dir, &self.numbers, sid, note, object);
        state.failed |= appended.is_err();
        appended.map_err(|e| StoreError::Io("appending to the outbox", e))
    }

    /// Makes everything appended before this call durable; returns how far that reaches.
    pub(super) fn sync(&self) -> Result<Position, StoreError> {
        // Serialises those who sync, not those who append: a second caller must not return before the files the
        // first one took away are durable.
        let _turn = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, end) = {
            let mut state = self.state();
            if state.failed {
                return Err(StoreError::Failed);
            }
            state
                .begin_sync()
                .map_err(|e| StoreError::Io("writing the outbox", e))?
        };
        let done = files.iter().try_for_each(|file| file.sync());
        let mut state = self.state();
        // A failed fsync is never retried: the kernel may have dropped the pages and would report success next time.
        state.failed |= done.is_err();
        done.map_err(|e| StoreError::Io("syncing the outbox", e))?;
        state.synced = state.synced.max(end);
        Ok(state.synced)
    }

    /// How far the outbox is durable.
    pub(super) fn synced(&self) -> Position {
        self.state().synced
    }

    /// The end of what has been appended.
    pub(super) fn end(&self) -> Position {
        let state = self.state();
        state
            .packs
            .last_key_value()
            .map_or(Position::default(), |(n, p)| Position {
                pack: *n,
                offset: p.len,
            })
    }

    /// Reads one object; `Ok(None)` if the pack is not in the outbox.
    pub(super) fn read(&self, place: &Place) -> Result<Option<packfile::Read>, StoreError> {
        let file = {
            let mut state = self.state();
            state
                .make_readable(place)
                .map_err(|e| StoreError::Io("writing the outbox", e))?;
            let Some(pack) = state.packs.get(&place.pack) else {
                return Ok(None);
            };
            Arc::clone(&pack.file)
        };
        packfile::read(&*file, place.offset, place.len)
            .map(Some)
            .map_err(|e| StoreError::Io("reading the outbox", e))
    }

    /// The sealed note beside an object.
    pub(super) fn note(&self, place: &Place) -> Result<Option<[u8; NOTE_LEN]>, StoreError> {
        let broken = |e| StoreError::Io("reading the outbox", e);
        let file = {
            let mut state = self.state();
            state.make_readable(place).map_err(broken)?;
            let Some(pack) = state.packs.get(&place.pack) else {
                return Ok(None);
            };
            Arc::clone(&pack.file)
        };
        packfile::read_note(&*file, place.offset)
            .map(Some)
            .map_err(broken)
    }

    /// Whether that pack is in the outbox, and if so, whether the place lies within what was recovered of it.
    pub(super) fn holds(&self, place: &Place) -> Option<bool> {
        let state = self.state();
        state
            .packs
            .get(&place.pack)
            .map(|pack| place.end().offset <= pack.len)
    }

    /// The objects after `cursor`, in order, at most about `max_bytes`; empty if there are none.
    pub fn next_after(
        &self,
        cursor: Position,
        max_bytes: usize,
    ) -> Result<Vec<Outgoing>, StoreError> {
        let wanted = self
            .state()
            .after(cursor, max_bytes)
            .map_err(|e| StoreError::Io("writing the outbox", e))?;
        let mut out = Vec::with_capacity(wanted.len());
        for (pack, entry, file) in wanted {
            let end = Position {
                pack,
                offset: entry.end(),
            };
            match packfile::read(&*file, entry.offset, entry.len) {
                Ok(packfile::Read::Object(object)) => out.push(Outgoing {
                    sid: entry.sid,
                    end,
                    object,
                }),
                Ok(packfile::Read::Damaged) => {
                    return Err(StoreError::OutboxDamaged(entry.sid, end));
                }
                Err(e) => return Err(StoreError::Io("reading the outbox", e)),
            }
        }
        Ok(out)
    }

    /// The server has everything up to `to`.
    pub fn acknowledge(&self, to: Position) {
        let mut state = self.state();
        let from = state.acknowledged;
        if to <= from {
            return;
        }
        let (mut bytes, mut objects) = (0, 0);
        for (number, pack) in state.packs.range(from.pack..=to.pack) {
            for entry in &pack.entries {
                let end = Position {
                    pack: *number,
                    offset: entry.end(),
                };
                if end > from && end <= to {
                    bytes += u64::from(entry.len);
                    objects += 1;
                }
            }
        }
        state.pending_bytes -= bytes;
        state.pending_objects -= objects;
        state.acknowledged = to;
    }

    /// How far the server has acknowledged.
    pub fn acknowledged(&self) -> Position {
        self.state().acknowledged
    }

    /// Bytes and number of objects the server has not acknowledged.
    pub fn pending(&self) -> (u64, u64) {
        let state = self.state();
        (state.pending_bytes, state.pending_objects)
    }

    /// Bytes of all packs here.
    pub fn bytes(&self) -> u64 {
        self.state().packs.values().map(|p| p.len).sum()
    }

    /// Moves the packs that end before `committed`, which is how far a durable commit reaches, from here to the cache,
    /// both being directories of `state`.
    pub(super) fn retire(
        &self,
        committed: Position,
        state: &dyn Medium,
    ) -> Result<Vec<AckedPack>, StoreError> {
        let ready: Vec<u64> = {
            let state = self.state();
            let limit = committed.min(state.acknowledged);
            let open = state.open.as_ref().map(PackWriter::number);
            let covered = |(n, p): (&u64, &OutPack)| {
                let inside = Position {
                    pack: *n,
                    offset: p.len,
                } <= limit;
                (inside && Some(*n) != open).then_some(*n)
            };
            state.packs.iter().filter_map(covered).collect()
        };
        let mut out = Vec::with_capacity(ready.len());
        for number in ready {
            let name = packfile::file_name(number);
            state
                .rename(&format!("{OUTBOX}/{name}"), &format!("{CACHE}/{name}"))
                .map_err(|e| StoreError::Io("moving a pack to the cache", e))?;
            if let Some(pack) = self.state().packs.remove(&number) {
                out.push(AckedPack {
                    number,
                    file: pack.file,
                    len: pack.len,
                });
            }
        }
        Ok(out)
    }

    /// Every object here and where: for the index, after a crash.
    pub(super) fn places(&self) -> Vec<(Sid, Place)> {
        let state = self.state();
        let place = |pack: u64, e: &Entry| {
            (
                e.sid,
                Place {
                    pack,
                    offset: e.offset,
                    len: e.len,
                    cached: false,
                },
            )
        };
        state
            .packs
            .iter()
            .flat_map(|(n, p)| p.entries.iter().map(move |e| place(*n, e)))
            .collect()
    }

    /// Number of the pack being written, if any.
    pub(super) fn open_number(&self) -> Option<u64> {
        self.state().open.as_ref().map(PackWriter::number)
    }
}

impl State {
    fn append(
        &mut self,
        dir: &dyn Medium,
        numbers: &PackNumbers,
        sid: Sid,
        note: &[u8; NOTE_LEN],
        object: &[u8],
    ) -> io::Result<Place> {
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.is_full() || numbers.lags(open.number()))
        {
            self.close()?;
        }
        if self.open.is_none() {
            let open = PackWriter::create(dir, numbers.take())?;
            let pack = OutPack {
                file: open.file(),
                entries: Vec::new(),
                len: open.len(),
            };
            self.packs.insert(open.number(), pack);
            self.open = Some(open);
        }
        let open = self
            .open
            .as_mut()
            .ok_or_else(|| io::Error::other("no open pack"))?;
        let entry = open.append(sid, note, object)?;
        let place = Place {
            pack: open.number(),
            offset: entry.offset,
            len: entry.len,
            cached: false,
        };
        if let Some(pack) = self.packs.get_mut(&place.pack) {
            pack.len = open.len();
            pack.entries.push(entry);
        }
        self.pending_bytes += u64::from(place.len);
        self.pending_objects += 1;
        Ok(place)
    }

    /// Hands what is buffered to the kernel. A write that fails for anything but space is final: what the file holds is
    /// in doubt, so nothing is appended, synced or counted as durable behind it.
    fn flush(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write failed"));
        }
        let done = self.open.as_mut().map_or(Ok(()), PackWriter::flush);
        if let Err(e) = &done {
            self.failed = !is_no_space(e);
        }
        done
    }

    fn close(&mut self) -> io::Result<()> {
        self.flush()?;
        if let Some(open) = self.open.take() {
            self.unsynced.push(open.file());
        }
        Ok(())
    }

    fn begin_sync(&mut self) -> io::Result<(Vec<Arc<dyn MediumFile>>, Position)> {
        // Before anything is taken: a sync that could not begin has synced nothing, and the next one begins anew.
        self.flush()?;
        let mut files = std::mem::take(&mut self.unsynced);
        if let Some(open) = &self.open {
            let end = Position {
                pack: open.number(),
                offset: open.len(),
            };
            if end > self.synced {
                files.push(open.file());
            }
        }
        let end = self
            .packs
            .last_key_value()
            .map_or(self.synced, |(n, p)| Position {
                pack: *n,
                offset: p.len,
            });
        Ok((files, end.max(self.synced)))
    }

    fn make_readable(&mut self, place: &Place) -> io::Result<()> {
        match &self.open {
            Some(open) if open.number() == place.pack && place.end().offset > open.written() => {
                self.flush()
            }
            _ => Ok(()),
        }
    }

    fn after(
        &mut self,
        cursor: Position,
        max_bytes: usize,
    ) -> io::Result<Vec<(u64, Entry, PackHandle)>> {
        let mut out = Vec::new();
        let mut bytes = 0;
        'packs: for (number, pack) in self.packs.range(cursor.pack..) {
            let from = if *number == cursor.pack {
                pack.entries
                    .partition_point(|entry| entry.end() <= cursor.offset)
            } else {
                0
            };
            for entry in pack.entries.iter().skip(from) {
                out.push((*number, *entry, Arc::clone(&pack.file)));
                bytes += entry.len as usize;
                if bytes >= max_bytes {
                    break 'packs;
                }
            }
        }
        if let Some((number, entry, _)) = out.last()
            && let Some(open) = &self.open
            && open.number() == *number
            && entry.end() > open.written()
        {
            self.flush()?;
        }
        Ok(out)
    }
}
