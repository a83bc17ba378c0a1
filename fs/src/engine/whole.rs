//! Whether a tree may be committed: nothing that it names is refused by the server, and none of its nodes is lost.
//!
//! Invariant: what the last commit names is on the server, so only what differs from it is looked at, and nothing at
//! all while nothing is refused or lost; every node of it is read then. What cannot be found out counts as not whole.
//! Called before a commit is signed.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use sealdrive_core::diff::diff_past;
use sealdrive_core::node::Node;
use sealdrive_core::record::{Extent, KeyRef};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::{Missing, Nodes, Root};
use sealdrive_proto::id::{Kind, Sid};

use super::blobs::{BlobError, Blobs};
use super::shared::Shared;
use crate::clock;
use crate::limits::CALL_DEADLINE;
use crate::store::Store;

/// What no commit may need, at one moment.
pub(super) struct Absent {
    refused: HashSet<Sid>,
    lost: HashSet<Sid>,
    /// Something is lost of which nobody knows what it was.
    unknown: bool,
}

/// What stands in the way of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Whole,
    /// The server refuses this object, which the tree needs.
    Refused(Sid),
    /// A node of the tree is lost.
    Torn,
    /// It could not be found out now.
    Unknown(String),
}

impl Absent {
    /// As it is now.
    pub(super) fn of(shared: &Shared) -> Self {
        let withheld = shared.store.outbox().withheld();
        Self {
            refused: withheld.into_iter().map(|(_, sid)| sid).collect(),
            lost: shared.refused.lost(),
            unknown: shared.store.lost().iter().any(|lost| lost.unknown),
        }
    }

    /// Looks at everything in which `root` differs from `last`, the tree of the last commit. Blocks.
    pub(super) fn judge(&self, shared: &Shared, last: Option<Root>, root: Root) -> Verdict {
        if self.refused.is_empty() && self.lost.is_empty() && !self.unknown {
            return Verdict::Whole;
        }
        match self.walk(shared, last, root) {
            // The last commit's own tree cannot be read any more: then nothing is taken from it.
            Verdict::Unknown(why) if why.is_empty() => match self.walk(shared, None, root) {
                Verdict::Unknown(why) if why.is_empty() => Verdict::Torn,
                verdict => verdict,
            },
            verdict => verdict,
        }
    }

    fn walk(&self, shared: &Shared, last: Option<Root>, root: Root) -> Verdict {
        let (blobs, store) = (&*shared.blobs, &*shared.store);
        let watched = Watched {
            absent: self,
            blobs,
            store,
            met: RefCell::new(None),
            away: Cell::new(false),
        };
        let walked = diff_past(
            &watched,
            last.as_ref(),
            &root,
            |difference| {
                if let (Ok(KeyRef::Extent(..)), Some(value)) =
                    (KeyRef::parse(difference.key), difference.new)
                    && let Ok(Extent::Chunk { reference, .. }) = Extent::decode(value)
                {
                    watched.chunk(&reference);
                }
                match watched.has_met() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            },
            |_| ControlFlow::Break(()),
        );
        match (watched.met.take(), walked) {
            (Some(met), _) => met,
            (None, Ok(())) => Verdict::Whole,
            (None, Err(_)) if watched.away.get() => {
                Verdict::Unknown("a tree node is not on this machine".to_owned())
            }
            (None, Err(_)) => Verdict::Unknown(String::new()),
        }
    }
}

/// Nodes as they are read, with a look at each.
struct Watched<'a> {
    absent: &'a Absent,
    blobs: &'a Blobs,
    store: &'a Store,
    met: RefCell<Option<Verdict>>,
    /// Something could not be had because the server was not reached.
    away: Cell<bool>,
}

impl Watched<'_> {
    fn has_met(&self) -> bool {
        self.met.borrow().is_some()
    }

    fn refused(&self, kind: Kind, reference: &Reference) -> bool {
        let mut sids = self.blobs.keys().sids(kind, reference);
        let found = sids.find(|(_, sid)| self.absent.refused.contains(sid));
        if let Some((_, sid)) = found {
            self.met.replace(Some(Verdict::Refused(sid)));
        }
        found.is_some()
    }

    /// A chunk that is lost is lost to its file; the rest of the tree is worth a restore point.
    fn chunk(&self, reference: &Reference) {
        self.refused(Kind::Data, reference);
    }

    fn is_lost(&self, reference: &Reference) -> bool {
        let mut sids = self.blobs.keys().sids(Kind::Tree, reference);
        // What was sealed again since is somewhere.
        sids.any(|(_, sid)| {
            self.absent.lost.contains(&sid) && !matches!(self.store.is_nowhere(&sid), Ok(false))
        })
    }
}

impl Nodes for Watched<'_> {
    fn get(&self, reference: &Reference) -> Result<Arc<Node>, Missing> {
        if self.refused(Kind::Tree, reference) {
            return Err(Missing(*reference));
        }
        if self.is_lost(reference) {
            self.met.replace(Some(Verdict::Torn));
            return Err(Missing(*reference));
        }
        self.blobs
            .node(reference, clock::now() + CALL_DEADLINE)
            .map_err(|error| {
                self.away.set(matches!(
                    error,
                    BlobError::Unreachable(_) | BlobError::Local(_)
                ));
                Missing(*reference)
            })
    }
}
