//! What the server does not have and will not have for now: objects it refuses, and those that are lost here.
//!
//! Invariant: an object is in one of the two lists before anything behind it can count as acknowledged, and leaves only
//! when the server has it or it is sealed anew; no commit is signed over a tree that needs one ([`super::whole`]).
//! Everything else goes on. The outbox itself remembers which objects are refused; here is what is told of them. Called
//! by the upload, the commit thread and `status`.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use sealdrive_core::record::{Ino, ROOT, ino_of};
use sealdrive_core::reference::Reference;
use sealdrive_proto::id::{Kind, Sid};
use sealdrive_runtime::sync::{Mutex, MutexGuard};
use serde::Serialize;

use super::casualties;
use super::events::EventKind;
use super::progress::Held;
use super::shared::Shared;
use crate::clock;
use crate::limits::{LOST_MOST, NODE_WAIT, REFUSED_FILES, REFUSED_MOST, REFUSED_OFFER};
use crate::remote::RemoteError;
use crate::store::Position;

/// One object that the server refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Its id, hex.
    pub sid: String,
    /// What the server said last.
    pub why: String,
    /// When it said so first in this mount, milliseconds since 1970, this machine's clock.
    pub at_ms: u64,
    /// Files that need it, as far as they have been found; at most [`REFUSED_FILES`].
    #[serde(skip)]
    pub files: Vec<Ino>,
}

/// The two lists.
#[derive(Default)]
pub(super) struct Refused {
    told: Mutex<BTreeMap<Sid, Refusal>>,
    lost: Mutex<HashSet<Sid>>,
    doubt: Mutex<()>,
}

/// Whether the server has judged an object, and will say the same again: not a matter of the line, of room, or of who
/// may write.
pub(super) fn is_verdict(error: &RemoteError) -> bool {
    matches!(error, RemoteError::Refused(_) | RemoteError::NotFound)
}

impl Refused {
    /// While this is held, what is lost is in the list or waits in the outbox: taken by who finds damage, until it is
    /// sealed anew or given up, and for a look by who is about to commit.
    pub(super) fn doubt(&self) -> MutexGuard<'_, ()> {
        lock(&self.doubt)
    }

    /// These are lost. False if they are more than can be remembered: then no tree can be called whole any more.
    pub(super) fn lose(&self, sids: impl IntoIterator<Item = Sid>) -> bool {
        let mut lost = lock(&self.lost);
        for sid in sids {
            if lost.len() >= LOST_MOST {
                return false;
            }
            lost.insert(sid);
        }
        true
    }

    /// What is lost.
    pub(super) fn lost(&self) -> HashSet<Sid> {
        lock(&self.lost).clone()
    }

    /// For `status`: what was told of these.
    pub(super) fn list(&self, withheld: &[(Position, Sid)]) -> Vec<Refusal> {
        let told = lock(&self.told);
        let sids: BTreeSet<&Sid> = withheld.iter().map(|(_, sid)| sid).collect();
        sids.into_iter()
            .filter_map(|sid| told.get(sid).cloned())
            .collect()
    }

    fn note_file(&self, sid: &Sid, ino: Ino) {
        if let Some(told) = lock(&self.told).get_mut(sid)
            && told.files.len() < REFUSED_FILES
            && !told.files.contains(&ino)
        {
            told.files.push(ino);
        }
    }
}

/// Tells of an object that the server refuses, and looks for the files that need it.
pub(super) fn tell(shared: &Arc<Shared>, sid: Sid, why: &str) {
    let mut first = false;
    {
        let mut told = lock(&shared.refused.told);
        let told = told.entry(sid).or_insert_with(|| {
            first = true;
            Refusal {
                sid: sid.to_hex(),
                why: String::new(),
                at_ms: clock::wall_ms(),
                files: Vec::new(),
            }
        });
        why.clone_into(&mut told.why);
    }
    if first {
        let what = format!(
            "the server refuses object {}: {why}; it is kept and offered again, and no restore point that needs it is \
             made",
            sid.to_hex()
        );
        shared.events.push(EventKind::ObjectRefused, what);
        casualties::in_background(shared, move |shared| files_of(shared, sid));
    }
}

/// What an earlier mount has set aside: refused until it is offered again.
pub(super) fn remember(shared: &Arc<Shared>) {
    for (_, sid) in shared.store.outbox().withheld() {
        tell(shared, sid, "as it did before this mount");
    }
}

fn files_of(shared: &Shared, sid: Sid) {
    match shared.blobs.origin(&sid) {
        Ok(Some((Kind::Tree, node))) => below(shared, &sid, node),
        _ => casualties::walk(shared, &HashSet::from([sid]), |ino, _| {
            shared.refused.note_file(&sid, ino)
        }),
    }
}

/// The files that have records below a node.
fn below(shared: &Shared, sid: &Sid, node: Reference) {
    let (mut open, mut seen) = (vec![node], BTreeSet::new());
    while let Some(node) = open.pop()
        && seen.len() < REFUSED_FILES
        && !shared.progress.now().quit
    {
        let Ok(node) = shared.blobs.node(&node, clock::now() + NODE_WAIT) else {
            continue;
        };
        if node.level() > 0 {
            open.extend(node.children());
            continue;
        }
        for index in 0..node.len() {
            let ino = ino_of(node.key(index));
            if ino > ROOT && seen.insert(ino) {
                shared.refused.note_file(sid, ino);
            }
        }
    }
}

/// An object on its way to the server.
pub(super) struct Flying {
    /// Its number in the stream.
    pub(super) sequence: u64,
    /// Its id.
    pub(super) sid: Sid,
    /// Its end in the outbox.
    pub(super) end: Position,
    /// Its bytes.
    pub(super) len: usize,
}

/// What the upload offers one at a time, from one stream to the next: what lies where something was refused, until it
/// is known which object that was, and what is refused, from time to time.
pub(super) struct Offers {
    /// Objects before this go one at a time.
    alone: Position,
    /// Refused objects still to be offered in this round.
    again: VecDeque<Position>,
    /// How often it had been asked for when this round began.
    round: u64,
    running: bool,
    reconnected: bool,
    due: Instant,
}

impl Offers {
    /// At the beginning of a mount: everything refused is offered.
    pub(super) fn new() -> Self {
        Self {
            alone: Position::default(),
            again: VecDeque::new(),
            round: 0,
            running: false,
            reconnected: true,
            due: clock::now(),
        }
    }

    /// Begins a round if it is time for one; ends it when nothing of it is left.
    pub(super) fn turn(&mut self, shared: &Shared) {
        let asked = shared.progress.asked();
        let due = self.reconnected || asked > self.round || clock::now() >= self.due;
        if !self.running && due {
            self.round = asked;
            self.running = true;
            self.reconnected = false;
            self.due = clock::now() + REFUSED_OFFER;
            let withheld = shared.store.outbox().withheld();
            self.again = withheld.into_iter().map(|(end, _)| end).collect();
        }
        if self.running && self.again.is_empty() {
            self.running = false;
            let round = self.round;
            shared.progress.update(|m| m.offered = m.offered.max(round));
        }
    }

    /// The refused object to be offered now.
    pub(super) fn next(&self) -> Option<Position> {
        self.again.front().copied()
    }

    /// It is not there any more, or it was taken.
    pub(super) fn done(&mut self, end: Position) {
        self.again.retain(|at| *at != end);
    }

    /// How long until the next round is due; none if there is nothing to offer, or a round is under way.
    pub(super) fn pause(&self, shared: &Shared) -> Option<Duration> {
        let rests = !self.running && shared.store.outbox().withheld_count() > 0;
        rests.then(|| self.due.saturating_duration_since(clock::now()))
    }

    /// Whether the object that ends there goes with no other beside it.
    pub(super) fn is_alone(&self, end: Position) -> bool {
        end <= self.alone || self.again.contains(&end)
    }

    /// The line was away: the server may be another one.
    pub(super) fn reconnect(&mut self) {
        self.reconnected = true;
    }

    /// The server has refused one of these, which were on their way. True if the next stream gets further than this.
    pub(super) fn refused(
        &mut self,
        shared: &Arc<Shared>,
        error: &RemoteError,
        flying: &VecDeque<Flying>,
    ) -> bool {
        let outbox = shared.store.outbox();
        let one = match (flying.front(), flying.len()) {
            (Some(one), 1) => one,
            (Some(_), _) => {
                // Which of them is found by offering them one at a time.
                self.alone = flying.back().map_or(self.alone, |last| last.end);
                return true;
            }
            (None, _) => return false,
        };
        if outbox.is_withheld(one.end) {
            self.done(one.end);
            tell(shared, one.sid, &error.to_string());
            return true;
        }
        if outbox.withheld_count() >= REFUSED_MOST {
            let why = format!(
                "the server refuses more than {REFUSED_MOST} objects, so nothing more is sent for now: {error}"
            );
            hold(shared, why, self.round);
            return false;
        }
        // Told first: whoever misses it finds the reason.
        tell(shared, one.sid, &error.to_string());
        outbox.withhold(one.end);
        shared.progress.update(|m| m.refusals += 1);
        true
    }
}

/// Nothing is sent for now; said once.
pub(super) fn hold(shared: &Shared, why: String, asked: u64) {
    let now = shared.progress.now();
    // The event first: whoever is refused finds the reason.
    if now.upload_held.is_none_or(|held| held.why != why) {
        shared.events.push(EventKind::Refused, why.clone());
    }
    let seq = u64::MAX;
    let held = Held { why, asked, seq };
    shared.progress.update(|m| m.upload_held = Some(held));
}

/// The server has taken an object that it refused before.
pub(super) fn taken(shared: &Shared, sid: Sid) {
    // It may stand in the outbox once more.
    let withheld = shared.store.outbox().withheld();
    if !withheld.iter().any(|(_, other)| *other == sid) {
        lock(&shared.refused.told).remove(&sid);
    }
    shared.progress.update(|m| m.refusals += 1);
    let what = format!("the server has taken object {} after all", sid.to_hex());
    shared.events.push(EventKind::Healed, what);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is complete before the guard goes.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
