//! Objects by reference: sealed on the way in (each once), opened and verified on the way out, wherever they lie.
//!
//! Invariant: plaintext is handed out only after its cid was checked; a local copy that fails is replaced from the
//! server, an object that only this machine had and that fails is an error and an event, never zeros. Called by the
//! workers, the checkpoint, the readers and the prefetch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use sealdrive_core::keys::DomainKeys;
use sealdrive_core::local::LocalKeys;
use sealdrive_core::node::Node;
use sealdrive_core::reference::Reference;
use sealdrive_core::seal::{Compress, SealedObject, Sealer};
use sealdrive_core::tree::{Missing, Nodes};
use sealdrive_proto::id::{Cid, Kind, Sid};
use sealdrive_runtime::channel::SyncSender;
use sealdrive_runtime::sync::{Mutex, MutexGuard};
use sealdrive_runtime::thread;

use super::backoff::Backoff;
use super::crash::CrashPoints;
use super::decoded::Decoded;
use super::events::{EventKind, Events};
use super::fetch::Fetcher;
use super::flights::Flights;
use super::local::Owner;
use crate::clock;
use crate::limits::{CALL_DEADLINE, DECODED_BUDGET};
use crate::remote::RemoteError;
use crate::store::{Known, Local, NOTE_LEN, Position, Store, StoreError};

/// Variants tried beyond the reference's own. Like its epoch, a reference's variant is a lower bound: when the server
/// holds something that does not open under an id, the writer seals the content again under the next one.
const MORE_VARIANTS: u8 = 2;

/// Why content cannot be had. One variant per errno or retry of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// Not here, and the server was not reached before the deadline.
    #[error("not on this machine, and {0}")]
    Unreachable(String),
    /// Neither this machine nor the server has it, or what they have does not open: EIO, and an event tells which.
    #[error("an object is lost or damaged")]
    Lost,
    /// The local store failed: EIO.
    #[error("local store: {0}")]
    Local(String),
}

impl From<StoreError> for BlobError {
    fn from(e: StoreError) -> Self {
        Self::Local(e.to_string())
    }
}

/// Everything that reads or writes objects by reference.
pub(super) struct Blobs {
    crash: CrashPoints,
    store: Arc<Store>,
    keys: Arc<DomainKeys>,
    local: Arc<LocalKeys>,
    sealers: Mutex<Vec<Sealer>>,
    /// How the drive wants its content compressed.
    content: Compress,
    decoded: Decoded,
    flights: Flights<(Kind, Cid, u8), Result<Bytes, BlobError>>,
    fetcher: Option<Fetcher>,
    copies: SyncSender<(Sid, Bytes)>,
    events: Arc<Events>,
    /// No more attempts to reach the server.
    closing: AtomicBool,
    /// Content whose id is taken by something that does not open: sealed under the next variant from then on.
    variants: Mutex<HashMap<Cid, u8>>,
}

impl Blobs {
    /// `copies` leads to the thread that writes verified objects into the cache.
    pub(super) fn new(
        store: Arc<Store>,
        owner: &Owner,
        fetcher: Option<Fetcher>,
        copies: SyncSender<(Sid, Bytes)>,
        events: Arc<Events>,
    ) -> Self {
        Self {
            crash: owner.crash.clone(),
            store,
            keys: Arc::clone(&owner.keys),
            sealers: Mutex::default(),
            content: owner.compress,
            decoded: Decoded::new(DECODED_BUDGET),
            flights: Flights::default(),
            fetcher,
            copies,
            events,
            local: Arc::clone(&owner.local),
            closing: AtomicBool::new(false),
            variants: Mutex::default(),
        }
    }

    /// The keys objects are sealed with.
    pub(super) fn keys(&self) -> &Arc<DomainKeys> {
        &self.keys
    }

    /// Runs `f` with a sealer of the pool, which keeps its buffers.
    pub(super) fn with_sealer<T>(&self, f: impl FnOnce(&mut Sealer) -> T) -> T {
        let taken = lock(&self.sealers).pop();
        let mut sealer = taken.unwrap_or_else(|| Sealer::new(Arc::clone(&self.keys)));
        let out = f(&mut sealer);
        lock(&self.sealers).push(sealer);
        out
    }

    /// Names `plain`, and seals it into the outbox unless this device knows the object already.
    pub(super) fn put(
        &self,
        sealer: &mut Sealer,
        kind: Kind,
        plain: &[u8],
    ) -> Result<Reference, StoreError> {
        let reference = self.name(kind, plain);
        let sid = self.keys.sid(kind, &reference);
        if self.store.known(&sid)?.is_none() {
            let sealed = self.seal(sealer, kind, &reference, plain);
            self.store
                .put(sid, &self.note(&sid, kind, &reference), &sealed.bytes)?;
        }
        Ok(reference)
    }

    /// The same for several chunks of content, which are sealed side by side.
    pub(super) fn put_together(
        &self,
        sealer: &mut Sealer,
        plains: &[&[u8]],
    ) -> Vec<Result<Reference, StoreError>> {
        let kind = Kind::Data;
        let named = plains.iter().map(|plain| self.name(kind, plain));
        let named: Vec<Reference> = named.collect();
        let known = named
            .iter()
            .map(|reference| self.store.known(&self.keys.sid(kind, reference)));
        let mut known: Vec<_> = known.collect();
        let new = |at: &usize| matches!(known[*at], Ok(None));
        let new: Vec<usize> = (0..plains.len()).filter(new).collect();
        let wanted: Vec<(Reference, &[u8])> =
            new.iter().map(|at| (named[*at], plains[*at])).collect();
        let sealed = sealer.seal_together(kind, &wanted, self.content);
        for (at, sealed) in new.into_iter().zip(sealed) {
            self.crash.reached("object-sealed");
            let note = self.note(&sealed.sid, kind, &named[at]);
            let put = self.store.put(sealed.sid, &note, &sealed.bytes);
            known[at] = put.map(|()| None);
        }
        let done = named.into_iter().zip(known);
        done.map(|(reference, known)| known.map(|_| reference))
            .collect()
    }

    fn name(&self, kind: Kind, plain: &[u8]) -> Reference {
        let mut reference = self.keys.reference(kind, plain);
        reference.variant = lock(&self.variants)
            .get(&reference.cid)
            .copied()
            .unwrap_or(0);
        reference
    }

    fn seal(
        &self,
        sealer: &mut Sealer,
        kind: Kind,
        reference: &Reference,
        plain: &[u8],
    ) -> SealedObject {
        // The switch is for content: what a tree node compresses to tells nothing of that.
        let compress = match kind {
            Kind::Data => self.content,
            _ => Compress::DEFAULT,
        };
        let sealed = sealer.seal(kind, reference, plain, compress);
        assert_eq!(
            sealed.sid,
            self.keys.sid(kind, reference),
            "an object is stored under the id of its reference"
        );
        self.crash.reached("object-sealed");
        sealed
    }

    /// The plaintext of a chunk, if it is in memory.
    pub(super) fn ready(&self, r: &Reference) -> Option<Bytes> {
        self.decoded.get(&r.cid)
    }

    /// The plaintext, if it is in memory or in a local pack. May read the disk; never waits for the network.
    fn local(&self, kind: Kind, r: &Reference) -> Result<Option<Bytes>, BlobError> {
        if let Some(chunk) = self.decoded.get(&r.cid) {
            return Ok(Some(chunk));
        }
        let found = self.read_local(kind, r)?;
        if let Some(plain) = &found
            && kind == Kind::Data
        {
            self.decoded.put(r.cid, plain.clone());
        }
        Ok(found)
    }

    /// Whether reading it would not wait for the network.
    pub(super) fn is_here(&self, kind: Kind, r: &Reference) -> bool {
        let here = |sid| {
            matches!(
                self.store.known(&sid),
                Ok(Some(Known::Outbox | Known::Cached))
            )
        };
        self.decoded.contains(&r.cid) || self.keys.sids(kind, r).any(|(_, sid)| here(sid))
    }

    /// The plaintext, from memory, disk or server, before `deadline`. Blocks: not for threads of the runtime.
    pub(super) fn get(
        &self,
        kind: Kind,
        r: &Reference,
        deadline: Instant,
    ) -> Result<Bytes, BlobError> {
        if let Some(chunk) = self.decoded.get(&r.cid) {
            return Ok(chunk);
        }
        let late = || BlobError::Unreachable("another reader still waits for the server".into());
        let load = || {
            if let Some(plain) = self.local(kind, r)? {
                return Ok(plain);
            }
            let plain = self.fetch(kind, r, deadline)?;
            if kind == Kind::Data {
                self.decoded.put(r.cid, plain.clone());
            }
            Ok(plain)
        };
        self.flights
            .run(&(kind, r.cid, r.variant), deadline, load)
            .ok_or_else(late)?
    }

    /// A tree node, decoded.
    pub(super) fn node(&self, r: &Reference, deadline: Instant) -> Result<Arc<Node>, BlobError> {
        let plain = self.get(Kind::Tree, r, deadline)?;
        match Node::decode(plain) {
            Ok(node) => Ok(Arc::new(node)),
            Err(e) => {
                let sid = self.keys.sid(Kind::Tree, r).to_hex();
                self.events
                    .push(EventKind::ObjectTampered, format!("tree node {sid}: {e}"));
                Err(BlobError::Lost)
            }
        }
    }

    /// Opens a fetched object; keeps a copy of it, off the reader's path, if it is good.
    pub(super) fn accept(
        &self,
        kind: Kind,
        r: &Reference,
        sid: Sid,
        object: Bytes,
    ) -> Option<Bytes> {
        let plain = self.open_fetched(kind, r, sid, &object)?;
        // A full queue means that the disk is slower than the network: then the copy is not worth the wait.
        let _ = self.copies.try_send((sid, object));
        Some(plain)
    }

    /// Opens a fetched object; a copy of it is in the cache on return if it is good.
    pub(super) fn accept_kept(
        &self,
        kind: Kind,
        r: &Reference,
        sid: Sid,
        object: Bytes,
    ) -> Option<Bytes> {
        let plain = self.open_fetched(kind, r, sid, &object)?;
        if let Err(e) = self.store.put_copy(sid, &object) {
            tracing::warn!("no copy kept: {e}");
        }
        Some(plain)
    }

    fn open_fetched(&self, kind: Kind, r: &Reference, sid: Sid, object: &[u8]) -> Option<Bytes> {
        match self.with_sealer(|sealer| sealer.open(kind, r, object)) {
            Ok(plain) => Some(plain),
            Err(e) => {
                self.events.push(
                    EventKind::ObjectTampered,
                    format!("object {} from the server: {e}", sid.to_hex()),
                );
                None
            }
        }
    }

    /// What an object of the outbox is; `None` if it is not there or its note does not open.
    pub(super) fn origin(&self, sid: &Sid) -> Result<Option<(Kind, Reference)>, StoreError> {
        let Some(note) = self.store.note(sid)? else {
            return Ok(None);
        };
        let Ok(plain) = self.local.open_record(sid.as_bytes(), 0, &note) else {
            return Ok(None);
        };
        let kind = match plain.first() {
            Some(1) => Kind::Data,
            Some(2) => Kind::Tree,
            _ => return Ok(None),
        };
        Ok(Reference::decode(&plain[1..]).map(|reference| (kind, reference)))
    }

    fn note(&self, sid: &Sid, kind: Kind, reference: &Reference) -> [u8; NOTE_LEN] {
        let mut plain = [kind as u8; 1 + Reference::LEN];
        plain[1..].copy_from_slice(&reference.encode());
        let mut out = [0; NOTE_LEN];
        out.copy_from_slice(&self.local.seal_record(sid.as_bytes(), 0, &plain));
        out
    }

    /// The server holds something else under the id of `reference`: seals the content under the next variant, now and
    /// from now on. False if it cannot be read here any more. Where there is no space, the next attempt does the same.
    pub(super) fn reseal(&self, kind: Kind, reference: &Reference) -> Result<bool, StoreError> {
        let Ok(Some(plain)) = self.read_local(kind, reference) else {
            return Ok(false);
        };
        let Some(variant) = reference.variant.checked_add(1) else {
            return Ok(false);
        };
        lock(&self.variants).insert(reference.cid, variant);
        self.with_sealer(|sealer| self.put(sealer, kind, &plain))?;
        Ok(true)
    }

    /// An object of the outbox is damaged: seals its content again, behind everything else, if it is still in memory,
    /// and takes the damaged one out of the queue. `node` finds a tree node in memory. True if it is whole again. Where
    /// there is no space it stays in the queue, so that nothing is committed without it.
    pub(super) fn heal(
        &self,
        sid: Sid,
        end: Position,
        node: impl Fn(&Reference) -> Option<Bytes>,
    ) -> Result<bool, StoreError> {
        let origin = self.origin(&sid)?;
        let found = origin.and_then(|(kind, reference)| {
            let plain = match kind {
                Kind::Tree => node(&reference),
                _ => self.decoded.get(&reference.cid),
            };
            let again = |plain: &Bytes| self.name(kind, plain);
            let plain = plain.filter(|plain| again(plain).cid == reference.cid)?;
            Some((kind, again(&plain), plain))
        });
        if let Some((kind, reference, plain)) = &found {
            let sid = self.keys.sid(*kind, reference);
            let sealed = self.with_sealer(|sealer| self.seal(sealer, *kind, reference, plain));
            let note = self.note(&sid, *kind, reference);
            self.store.put_again(sid, &note, &sealed.bytes)?;
        }
        self.store.set_aside(sid, end)?;
        Ok(found.is_some())
    }

    /// Readers that wait for the server give up at their next attempt.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// The way to the server.
    pub(super) fn fetcher(&self) -> Option<&Fetcher> {
        self.fetcher.as_ref()
    }

    fn read_local(&self, kind: Kind, r: &Reference) -> Result<Option<Bytes>, BlobError> {
        for (_, sid) in self.keys.sids(kind, r) {
            let (object, known) = match self.store.read(&sid)? {
                Local::Object(object, known) => (object, known),
                Local::Absent => continue,
                Local::Lost => return Err(self.lost(&sid, "checksum")),
            };
            match self.with_sealer(|sealer| sealer.open(kind, r, &object)) {
                Ok(plain) => return Ok(Some(plain)),
                Err(e) if known == Known::Outbox => return Err(self.lost(&sid, &e.to_string())),
                Err(e) => {
                    self.events.push(
                        EventKind::CacheDamage,
                        format!("object {}: {e}", sid.to_hex()),
                    );
                    self.store.drop_copy(sid);
                }
            }
        }
        Ok(None)
    }

    fn lost(&self, sid: &Sid, why: &str) -> BlobError {
        self.events.push(
            EventKind::OutboxDamage,
            format!("object {}: {why}", sid.to_hex()),
        );
        BlobError::Lost
    }

    fn fetch(&self, kind: Kind, r: &Reference, deadline: Instant) -> Result<Bytes, BlobError> {
        let Some(fetcher) = &self.fetcher else {
            return Err(BlobError::Unreachable("this mount has no server".into()));
        };
        let mut backoff = Backoff::default();
        loop {
            match self.fetch_once(fetcher, kind, r, deadline) {
                Ok(found) => return found,
                Err(RemoteError::Tampered(why)) => {
                    self.events.push(EventKind::ObjectTampered, why);
                    return Err(BlobError::Lost);
                }
                Err(e) => {
                    if self.closing.load(Ordering::Relaxed) {
                        return Err(BlobError::Unreachable("shutting down".into()));
                    }
                    let pause = backoff.next();
                    if clock::now() + pause >= deadline {
                        return Err(BlobError::Unreachable(e.to_string()));
                    }
                    thread::sleep(pause);
                }
            }
        }
    }

    /// Outer error: worth another attempt. Inner: final.
    fn fetch_once(
        &self,
        fetcher: &Fetcher,
        kind: Kind,
        r: &Reference,
        deadline: Instant,
    ) -> Result<Result<Bytes, BlobError>, RemoteError> {
        let mut seen = false;
        for step in 0..=MORE_VARIANTS {
            let Some(variant) = r.variant.checked_add(step) else {
                break;
            };
            let r = Reference { variant, ..*r };
            for (_, sid) in self.keys.sids(kind, &r) {
                let Some(object) = fetcher.fetch(sid, deadline)? else {
                    continue;
                };
                seen = true;
                if let Some(plain) = self.accept(kind, &r, sid, object) {
                    return Ok(Ok(plain));
                }
            }
            if !seen {
                // Nothing under the first id: then nobody had a reason to seal it under the next.
                break;
            }
        }
        if !seen {
            let sid = self.keys.sid(kind, r);
            self.events.push(
                EventKind::ObjectMissing,
                format!("the server lacks object {}", sid.to_hex()),
            );
            self.store.drop_knowledge(sid);
        }
        Ok(Err(BlobError::Lost))
    }
}

/// For a merge: nodes come from wherever they are, and the merge is put off if the server is needed and away.
impl Nodes for Blobs {
    fn get(&self, r: &Reference) -> Result<Arc<Node>, Missing> {
        self.node(r, clock::now() + CALL_DEADLINE)
            .map_err(|_| Missing(*r))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs while these are held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
