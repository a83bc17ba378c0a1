//! Sealed objects that the server has not acknowledged under a durable commit: appended in order, read in order.
//!
//! Invariant: nothing here is ever deleted. A pack leaves only as an `AckedPack`, which `retire` alone makes, once
//! every object in it is acknowledged and a durable commit covers it. The appending lock covers memory and buffered
//! write(2), never an fsync. Called by `store/mod.rs`.

mod state;
mod withheld;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use sealdrive_pack::{Medium, MediumFile, is_no_space};
use sealdrive_proto::id::Sid;
use sealdrive_runtime::sync::{Mutex, MutexGuard};

use super::index::{Index, Marks};
use super::lost::{Damage, Hole};
use super::packfile::{self, Entry, NOTE_LEN, PackWriter};
use super::place::{Place, Position, Row};
use super::walk::{READ_WHOLE, walk};
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
    /// Its chunks were not read when the outbox was opened: the index vouches for where they are.
    unread: bool,
}

#[derive(Default)]
struct State {
    open: Option<PackWriter>,
    packs: BTreeMap<u64, OutPack>,
    /// Closed packs whose last bytes are not known to be durable.
    unsynced: Vec<Arc<dyn MediumFile>>,
    synced: Position,
    /// The server has everything before it that is neither withheld nor a hole.
    acknowledged: Position,
    /// Ends of the records that the server refuses, and whose they are.
    withheld: BTreeMap<Position, Sid>,
    /// What is not good of the packs, and is stepped over.
    holes: Vec<Hole>,
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
    /// Opens every pack found, without their torn tails; `index` and its `marks` are what was known of them, `cached`
    /// the packs that have left. Also returns what is not good any more.
    pub(super) fn open(
        dir: Arc<dyn Medium>,
        numbers: Arc<PackNumbers>,
        index: &Index,
        marks: &Marks,
        found: &[u64],
        cached: &[u64],
    ) -> Result<(Self, Damage), StoreError> {
        let mut damage = Damage::default();
        let acknowledged = marks.acknowledged;
        let mut state = State {
            acknowledged,
            ..State::default()
        };
        for number in found {
            let broken = |e| StoreError::Io("recovering an outbox pack", e);
            if *number >= marks.indexed_below {
                packfile::settle(&*dir, *number).map_err(broken)?;
            }
            let walked = walk(&*dir, *number, index)?;
            let unread = walked.is_some();
            let scan = match walked {
                Some(scan) => scan,
                None => packfile::recover(&*dir, *number).map_err(broken)?,
            };
            damage.judge(*number, &scan, marks, |sid| Ok(index.get(sid)?.is_some()))?;
            for entry in &scan.entries {
                let end = Position::new(*number, entry.end());
                if marks.withheld.contains(&end) {
                    state.withheld.insert(end, entry.sid);
                }
                if state.is_waiting(end) {
                    state.pending_bytes += u64::from(entry.len);
                    state.pending_objects += 1;
                }
            }
            state.synced = Position::new(*number, scan.len);
            state.packs.insert(
                *number,
                OutPack {
                    file: scan.file,
                    entries: scan.entries,
                    len: scan.len,
                    unread,
                },
            );
        }
        damage.miss_packs(marks, found, cached);
        state.holes.clone_from(&damage.holes);
        let outbox = Self {
            dir,
            numbers,
            state: Mutex::new(state),
            syncing: Mutex::new(()),
        };
        Ok((outbox, damage))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an object; durable only after `sync`. The caller has checked that it is not here yet. `placed` hears
    /// where it is before anyone can find it in the queue: the upload asks for it by its id, and may be faster than
    /// the caller. Without space nothing is appended, and later it may work.
    pub(super) fn append(
        &self,
        sid: Sid,
        note: &[u8; NOTE_LEN],
        object: &[u8],
        placed: impl FnOnce(Place),
    ) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.failed {
            return Err(StoreError::Failed);
        }
        let appended = state.append(&*self.dir, &self.numbers, sid, note, object);
        state.failed |= appended.as_ref().is_err_and(|e| !is_no_space(e));
        placed(appended.map_err(|e| StoreError::Io("appending to the outbox", e))?);
        Ok(())
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
        done.map_err(|e| StoreError::Io("syncing the outbox", io::Error::other(e)))?;
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
            .map_or(Position::default(), |(n, p)| Position::new(*n, p.len))
    }

    /// Reads one object; `Ok(None)` if the pack is not in the outbox.
    pub(super) fn read(&self, place: &Place) -> Result<Option<packfile::Read>, StoreError> {
        let file = {
            let mut state = self.state();
            if let Err(e) = state.make_readable(place) {
                let open = state.open.as_ref().filter(|_| is_no_space(&e));
                let open = open.filter(|open| open.number() == place.pack);
                let object = open.and_then(|open| open.buffered(place.offset, place.len));
                return match object {
                    Some(object) => Ok(Some(packfile::Read::Object(object))),
                    None => Err(StoreError::Io("writing the outbox", e)),
                };
            }
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
            out.push(outgoing(pack, &entry, &*file)?);
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
                let end = Position::new(*number, entry.end());
                if end > from && end <= to && !state.withheld.contains_key(&end) {
                    bytes += u64::from(entry.len);
                    objects += 1;
                }
            }
        }
        state.pending_bytes -= bytes;
        state.pending_objects -= objects;
        state.acknowledged = to;
    }

    /// Takes a damaged object out of the queue, so that what stands behind it can be sent.
    pub(super) fn set_aside(&self, sid: Sid, end: Position) {
        let mut state = self.state();
        let Some(pack) = state.packs.get_mut(&end.pack) else {
            return;
        };
        let is_it = |entry: &Entry| entry.sid == sid && entry.end() == end.offset;
        let Some(at) = pack.entries.iter().position(is_it) else {
            return;
        };
        let entry = pack.entries.remove(at);
        state.holes.push(Hole {
            pack: end.pack,
            from: entry.offset,
            to: end.offset,
            lost: true,
        });
        if state.is_waiting(end) {
            state.pending_bytes -= u64::from(entry.len);
            state.pending_objects -= 1;
        }
        state.withheld.remove(&end);
    }

    /// What is known not to be good of the packs that are or should be here.
    pub(super) fn holes(&self) -> Vec<Hole> {
        self.state().holes.clone()
    }

    /// How far each pack that is not wholly acknowledged is durable.
    pub(super) fn durable(&self) -> Vec<Position> {
        let state = self.state();
        let ends = state
            .packs
            .iter()
            .filter(|(_, pack)| !pack.entries.is_empty())
            .map(|(number, pack)| Position::new(*number, pack.len));
        let durable = |end: Position| match end.pack == state.synced.pack {
            true => end.min(state.synced),
            false => end,
        };
        ends.filter(|end| *end > state.acknowledged || state.withholds_in(end.pack))
            .map(durable)
            .filter(|end| *end <= state.synced)
            .collect()
    }

    /// Whether the server has what lies there.
    pub(super) fn is_acknowledged(&self, place: &Place) -> bool {
        let state = self.state();
        let end = packfile::end_of(place.offset, place.len);
        let withheld = &state.withheld;
        place.end() <= state.acknowledged && !withheld.contains_key(&Position::new(place.pack, end))
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
                let inside = Position::new(*n, p.len) <= limit && !state.withholds_in(*n);
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
        // What was gone or bad of packs that a commit has left behind is no matter any more.
        let mut state = self.state();
        let limit = committed.min(state.acknowledged);
        let State { holes, packs, .. } = &mut *state;
        holes.retain(|h| packs.contains_key(&h.pack) || Position::new(h.pack, h.to) > limit);
        Ok(out)
    }

    /// Reads the next chunk after `cursor` that nobody has looked at since the outbox was opened and that the server
    /// does not have; returns where it ends, or none if there are no more.
    pub fn check_after(&self, cursor: Position) -> Result<Option<Position>, StoreError> {
        let next = {
            let state = self.state();
            let unread = state.packs.range(cursor.pack..).filter(|(_, p)| p.unread);
            let entries = unread.flat_map(|(n, p)| p.entries.iter().map(move |e| (*n, *e, p)));
            let mut chunks = entries.filter(|(_, e, _)| e.len > READ_WHOLE);
            let next = chunks.find(|(n, e, _)| {
                let end = Position::new(*n, e.end());
                end > cursor && state.is_waiting(end)
            });
            next.map(|(number, entry, pack)| (number, entry, Arc::clone(&pack.file)))
        };
        let read = next.map(|(number, entry, file)| outgoing(number, &entry, &*file));
        Ok(read.transpose()?.map(|object| object.end))
    }

    /// Every object here and where.
    pub(super) fn places(&self) -> Vec<(Sid, Place)> {
        self.places_in(|_| true)
    }

    /// The same of packs that were read whole: for the index, which may not know them.
    pub(super) fn places_read(&self) -> Vec<(Sid, Place)> {
        self.places_in(|pack| !pack.unread)
    }

    /// Whether a row of the index names a record behind `place`, in a pack that it vouches for.
    pub(super) fn is_newer(&self, row: Row, place: &Place) -> bool {
        let Row::Local(now) = row else { return false };
        let vouched = self.state().packs.get(&now.pack).is_some_and(|p| p.unread);
        vouched && now.pack > place.pack
    }

    fn places_in(&self, wanted: impl Fn(&OutPack) -> bool) -> Vec<(Sid, Place)> {
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
            .filter(|(_, pack)| wanted(pack))
            .flat_map(|(n, p)| p.entries.iter().map(move |e| place(*n, e)))
            .collect()
    }

    /// Begins a new pack with the next object, so that what is here can go when the server has it.
    pub(super) fn close_pack(&self) -> Result<(), StoreError> {
        let closed = self.state().close();
        closed.map_err(|e| StoreError::Io("writing the outbox", e))
    }

    /// Bytes of the pack being written.
    pub fn open_bytes(&self) -> u64 {
        self.state().open.as_ref().map_or(0, PackWriter::len)
    }

    /// Number of the pack being written, if any.
    pub(super) fn open_number(&self) -> Option<u64> {
        self.state().open.as_ref().map(PackWriter::number)
    }
}

/// Reads one object for the upload.
fn outgoing(pack: u64, entry: &Entry, file: &dyn MediumFile) -> Result<Outgoing, StoreError> {
    let end = Position::new(pack, entry.end());
    match packfile::read(file, entry.offset, entry.len) {
        Ok(packfile::Read::Object(object)) => Ok(Outgoing {
            sid: entry.sid,
            end,
            object,
        }),
        Ok(packfile::Read::Damaged) => Err(StoreError::OutboxDamaged(entry.sid, end)),
        Err(e) => Err(StoreError::Io("reading the outbox", e)),
    }
}
