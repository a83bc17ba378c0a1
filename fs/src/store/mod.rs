//! Sealed objects on this machine: the outbox (not on the server yet), the cache (copies), and the index over both.
//!
//! Invariants: an object is appended at most once while it is known; the evictor cannot name the outbox; a row becomes
//! durable only after its bytes. No plaintext passes through here. Called by the engine's workers, blobs, upload and
//! checkpoint.

mod cache;
mod index;
mod lost;
mod outbox;
mod packfile;
mod place;
mod walk;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use sealdrive_pack::{Medium, is_no_space};
use sealdrive_proto::id::Sid;

pub use self::cache::Cache;
use self::cache::Evicted;
pub use self::index::IndexError;
use self::index::{Index, Marks};
pub use self::lost::Lost;
use self::lost::{Damage, Hole};
pub use self::outbox::{Outbox, Outgoing};
pub use self::packfile::NOTE_LEN;
use self::packfile::Read;
pub use self::place::{Place, Position, Row};

/// Directory of the outbox in the drive's state directory.
const OUTBOX: &str = "outbox";
/// Directory of the cache in the drive's state directory.
pub const CACHE: &str = "cache";
/// The index in the drive's state directory.
const INDEX: &str = "state.redb";

/// Why the local store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system failed.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// An earlier write or fsync failed: nothing is written any more.
    #[error("the local store has failed and is read-only")]
    Failed,
    /// An object that the server does not have fails its checksum.
    #[error("an object not yet on the server is damaged")]
    OutboxDamaged(Sid, Position),
}

impl StoreError {
    /// Whether it was only space that was missing: nothing was lost, and the same may work later.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io(_, e) => is_no_space(e),
            Self::Index(e) => matches!(e, IndexError::Full),
            Self::Failed | Self::OutboxDamaged(..) => false,
        }
    }
}

/// Who hands out pack numbers, to outbox and cache alike, so that no number is ever used twice.
pub struct PackNumbers(AtomicU64);

impl PackNumbers {
    fn take(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    /// Whether an open pack is so far behind that it should be closed: everything since it is scanned after a crash.
    fn lags(&self, number: u64) -> bool {
        self.0.load(Ordering::SeqCst) > number + 16
    }
}

/// Where an object is known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Here, and not certainly on the server.
    Outbox,
    /// Here, and on the server.
    Cached,
    /// On the server only.
    Sent,
}

/// What a local read found.
pub enum Local {
    /// The object, and which store it came from.
    Object(Bytes, Known),
    /// Not here.
    Absent,
    /// Here in the outbox, and damaged: nobody else has it.
    Lost,
}

/// The local objects of one drive.
pub struct Store {
    medium: Arc<dyn Medium>,
    outbox: Outbox,
    cache: Cache,
    index: Index,
    numbers: Arc<PackNumbers>,
    damage: Damage,
    index_is_new: bool,
}

impl Store {
    /// Opens `outbox/`, `cache/` and `state.redb` in the drive's state directory; scans what the index may not know.
    pub fn open(medium: Arc<dyn Medium>, cache_budget: u64) -> Result<Self, StoreError> {
        match Self::try_open(Arc::clone(&medium), cache_budget) {
            // It was met on the way and set aside: now there is none.
            Err(StoreError::Index(IndexError::Damaged)) => Self::try_open(medium, cache_budget),
            done => done,
        }
    }

    fn try_open(medium: Arc<dyn Medium>, cache_budget: u64) -> Result<Self, StoreError> {
        let directory = |name| {
            let made = medium.directory(name);
            made.map_err(|e| StoreError::Io("creating a pack directory", e))
        };
        let (outbox_dir, cache_dir) = (directory(OUTBOX)?, directory(CACHE)?);
        medium
            .sync_dir()
            .map_err(|e| StoreError::Io("syncing the state directory", e))?;
        let index = Index::open(&medium, INDEX)?;
        let marks = index.marks()?;
        let in_outbox = packs_in(&*outbox_dir)?;
        let in_cache = packs_in(&*cache_dir)?;
        let newest = in_outbox.last().max(in_cache.last());
        let last = newest.copied().unwrap_or(0);
        let next = (last + 1)
            .max(marks.indexed_below)
            .max(marks.acknowledged.pack + 1)
            .max(
                marks
                    .durable
                    .iter()
                    .map(|end| end.pack + 1)
                    .max()
                    .unwrap_or(0),
            );
        let numbers = Arc::new(PackNumbers(AtomicU64::new(next)));
        let cached = cache::open_packs(&*cache_dir, &in_cache, &index, marks.indexed_below)?;
        let cache = Cache::open(cache_dir, Arc::clone(&numbers), cache_budget, cached);
        let (outbox, mut damage) = Outbox::open(
            outbox_dir,
            Arc::clone(&numbers),
            &index,
            &marks,
            &in_outbox,
            &in_cache,
        )?;
        damage.name(&index, &outbox, &marks)?;
        for (sid, acknowledged) in damage.lost.iter().flat_map(|lost| &lost.sids) {
            index.put(*sid, if *acknowledged { Row::Sent } else { Row::Gone });
        }
        for (sid, place) in outbox.places_read() {
            // It may have been put again since, into a pack that was not read.
            let newer = index
                .get(&sid)?
                .is_some_and(|row| outbox.is_newer(row, &place));
            if !newer {
                index.put(sid, Row::Local(place));
            }
        }
        let store = Self {
            medium,
            outbox,
            cache,
            index,
            numbers,
            damage,
            index_is_new: marks == Marks::default(),
        };
        store.save_index()?;
        Ok(store)
    }

    /// What was found to be damaged or gone when the store was opened.
    pub fn lost(&self) -> &[Lost] {
        &self.damage.lost
    }

    /// Records of the outbox that were not good when the store was opened, and that nobody is known to have promised: a
    /// power cut tears what was not synced.
    pub fn doubtful(&self) -> &[Sid] {
        &self.damage.doubtful
    }

    /// Whether the index was made anew: then it is no witness of anything.
    pub fn is_index_new(&self) -> bool {
        self.index_is_new
    }

    /// Where the object is known to be, if anywhere.
    pub fn known(&self, sid: &Sid) -> Result<Option<Known>, StoreError> {
        Ok(match self.index.get(sid)? {
            Some(Row::Local(place)) => match self.outbox.holds(&place) {
                Some(true) => Some(Known::Outbox),
                // The medium lost what it had reported durable: sealing it again heals it.
                Some(false) => None,
                None if self.cache.holds(place.pack) => Some(Known::Cached),
                // Evicted, or a copy that a power cut took: the server had it before it could be in the cache.
                None if place.cached || self.outbox.is_acknowledged(&place) => Some(Known::Sent),
                // Its pack is gone from the outbox: nobody has it.
                None => None,
            },
            Some(Row::Sent) => Some(Known::Sent),
            Some(Row::Gone) | None => None,
        })
    }

    fn append(&self, sid: Sid, note: &[u8; NOTE_LEN], object: &[u8]) -> Result<(), StoreError> {
        let placed = |place| self.index.put(sid, Row::Local(place));
        self.outbox.append(sid, note, object, placed)
    }

    /// Appends a sealed object to the outbox, unless it is known already; `note` says what it is. Durable
    /// after `sync`.
    pub fn put(&self, sid: Sid, note: &[u8; NOTE_LEN], object: &[u8]) -> Result<(), StoreError> {
        if self.known(&sid)?.is_some() {
            return Ok(());
        }
        self.append(sid, note, object)?;
        self.spill_index()
    }

    /// Keeps a copy of an object that was fetched, opened and verified.
    pub fn put_copy(&self, sid: Sid, object: &[u8]) -> Result<(), StoreError> {
        if matches!(self.known(&sid)?, Some(Known::Outbox | Known::Cached)) {
            return Ok(());
        }
        let (place, evicted) = self.cache.append(sid, object)?;
        self.index.put(sid, Row::Local(place));
        self.forget(evicted)?;
        self.spill_index()
    }

    /// Notes that the server has this object, verified by opening it, without keeping a copy.
    pub fn note_sent(&self, sid: Sid) -> Result<(), StoreError> {
        if self.known(&sid)?.is_none() {
            self.index.put(sid, Row::Sent);
        }
        Ok(())
    }

    /// Reads an object from this machine. A damaged copy of what the server has counts as absent.
    pub fn read(&self, sid: &Sid) -> Result<Local, StoreError> {
        // A pack may move from outbox to cache between the two looks: look twice before believing that it is gone.
        for _ in 0..2 {
            let Some(Row::Local(place)) = self.index.get(sid)? else {
                return Ok(Local::Absent);
            };
            match self.outbox.read(&place)? {
                Some(Read::Object(object)) => return Ok(Local::Object(object, Known::Outbox)),
                Some(Read::Damaged) if self.outbox.is_acknowledged(&place) => {
                    self.drop_copy(*sid);
                    return Ok(Local::Absent);
                }
                Some(Read::Damaged) => return Ok(Local::Lost),
                None => {}
            }
            match self.cache.read(&place)? {
                Some(Read::Object(object)) => return Ok(Local::Object(object, Known::Cached)),
                Some(Read::Damaged) => {
                    self.drop_copy(*sid);
                    return Ok(Local::Absent);
                }
                None => {}
            }
        }
        Ok(Local::Absent)
    }

    /// The sealed note of an object in the outbox.
    pub fn note(&self, sid: &Sid) -> Result<Option<[u8; NOTE_LEN]>, StoreError> {
        match self.index.get(sid)? {
            Some(Row::Local(place)) => self.outbox.note(&place),
            _ => Ok(None),
        }
    }

    /// Forgets a copy that did not open: the server's is asked for next.
    pub fn drop_copy(&self, sid: Sid) {
        self.index.put(sid, Row::Sent);
    }

    /// Forgets that the server has an object: it answered that it does not.
    pub fn drop_knowledge(&self, sid: Sid) {
        self.index.put(sid, Row::Gone);
    }

    /// An object of the outbox is damaged: it is not waited for any more.
    pub fn set_aside(&self, sid: Sid, end: Position) -> Result<(), StoreError> {
        self.outbox.set_aside(sid, end);
        let end_of =
            |place: &Place| Position::new(place.pack, packfile::end_of(place.offset, place.len));
        match self.index.get(&sid)? {
            // It was put again.
            Some(Row::Local(place)) if end_of(&place) != end => {}
            _ => self.index.put(sid, Row::Gone),
        }
        Ok(())
    }

    /// Appends an object that is here already, and damaged.
    pub fn put_again(
        &self,
        sid: Sid,
        note: &[u8; NOTE_LEN],
        object: &[u8],
    ) -> Result<(), StoreError> {
        self.append(sid, note, object)?;
        self.spill_index()
    }

    /// The object is nowhere that is known of.
    pub fn is_nowhere(&self, sid: &Sid) -> Result<bool, StoreError> {
        Ok(self.known(sid)?.is_none())
    }

    /// The server has lost an object: sends it again if a good copy is here. False if there is none.
    pub fn send_again(&self, sid: Sid) -> Result<bool, StoreError> {
        let Local::Object(object, known) = self.read(&sid)? else {
            self.drop_knowledge(sid);
            return Ok(false);
        };
        let waits = match self.index.get(&sid)? {
            Some(Row::Local(place)) => !self.outbox.is_acknowledged(&place),
            _ => false,
        };
        if known == Known::Outbox && waits {
            return Ok(true); // on its way already
        }
        let note = self.note(&sid)?.unwrap_or([0; NOTE_LEN]);
        self.append(sid, &note, &object)?;
        self.spill_index()?;
        Ok(true)
    }

    /// Makes everything in the outbox up to now durable.
    pub fn sync(&self) -> Result<Position, StoreError> {
        self.outbox.sync()
    }

    /// Makes the index durable as far as the packs are. Goes with a checkpoint.
    pub fn save_index(&self) -> Result<(), StoreError> {
        self.save_index_with(self.outbox.durable(), self.outbox.holes())
    }

    /// `durable` are the outbox packs that are to be missed from now on if they are gone, `holes` what already is.
    fn save_index_with(&self, durable: Vec<Position>, holes: Vec<Hole>) -> Result<(), StoreError> {
        let synced = self.outbox.synced();
        let next = self.numbers.0.load(Ordering::SeqCst);
        // A pack that is open, or whose last rows still wait for an fsync, is scanned again after a crash.
        let indexed_below = [
            self.outbox.open_number(),
            self.cache.open_number(),
            Some(synced.pack),
        ]
        .into_iter()
        .flatten()
        .filter(|n| *n != 0)
        .min()
        .unwrap_or(next);
        let (acknowledged, withheld) = self.outbox.acknowledged_but();
        self.index.flush(
            synced,
            Some(Marks {
                indexed_below,
                acknowledged: acknowledged.min(synced),
                durable,
                holes,
                withheld,
            }),
        )?;
        Ok(())
    }

    /// The outbox is about to be set aside, whole: its objects are not known here any more. Without this a later write
    /// of the same content would be taken for one that the server has.
    pub fn disown_outbox(&self) -> Result<(), StoreError> {
        for (sid, _) in self.outbox.places() {
            self.index.put(sid, Row::Gone);
        }
        self.save_index_with(Vec::new(), Vec::new())
    }

    /// Moves what is acknowledged and covered by a durable commit up to `committed` into the cache.
    pub fn retire(&self, committed: Position) -> Result<(), StoreError> {
        // What may be evicted from now on must not be missed as an outbox pack after a crash.
        self.save_index()?;
        for pack in self.outbox.retire(committed, &*self.medium)? {
            let evicted = self.cache.adopt(pack);
            self.forget(evicted)?;
        }
        Ok(())
    }

    /// Begins a new outbox pack with the next object: on a small or nearly full disk a pack must not wait to be large
    /// before it can go.
    pub fn close_pack(&self) -> Result<(), StoreError> {
        self.outbox.close_pack()
    }

    /// Everything in the outbox before `end` is on the server, and a durable commit names it or nothing does: also the
    /// pack being written becomes a copy, which may go.
    pub fn settle(&self, end: Position) -> Result<(), StoreError> {
        if self.outbox.end() <= end && self.outbox.pending().1 == 0 {
            self.outbox.close_pack()?;
            self.outbox.sync()?;
        }
        self.retire(end)
    }

    /// What awaits the server.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The copies.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The end of what has been appended to the outbox.
    pub fn end(&self) -> Position {
        self.outbox.end()
    }

    /// The disk is short of `bytes`: copies go first. Whether any went.
    pub fn shrink_cache(&self, bytes: u64) -> Result<bool, StoreError> {
        let evicted = self.cache.shrink(bytes);
        let any = !evicted.is_empty();
        self.forget(evicted)?;
        Ok(any)
    }

    fn forget(&self, evicted: Vec<Evicted>) -> Result<(), StoreError> {
        for pack in evicted {
            let sids = packfile::sids(&*pack.file, pack.len)
                .map_err(|e| StoreError::Io("reading an evicted pack", e))?;
            self.index.forget_pack(pack.number, sids.into_iter())?;
        }
        Ok(())
    }

    fn spill_index(&self) -> Result<(), StoreError> {
        if !self.index.is_full() {
            return Ok(());
        }
        match self.index.flush(self.outbox.synced(), None) {
            // The rows wait in memory for a better moment.
            Err(IndexError::Full) => Ok(()),
            done => Ok(done?),
        }
    }
}

/// Numbers of the packs in a directory, in order.
fn packs_in(dir: &dyn Medium) -> Result<Vec<u64>, StoreError> {
    let names = dir.list().map_err(|e| StoreError::Io("listing packs", e))?;
    let number = |name: &String| {
        let number = u64::from_str_radix(name.strip_suffix(".pack")?, 16).ok()?;
        (packfile::file_name(number) == *name).then_some(number)
    };
    let mut out: Vec<u64> = names.iter().filter_map(number).collect();
    out.sort_unstable();
    Ok(out)
}
