//! Decoded tree nodes kept in memory, and nothing else: what is not here is [`Missing`], never fetched from here.
//!
//! Invariant: `bytes` is the sum of what is kept. The budget is exceeded only by nodes that were added since an
//! operation last succeeded: an operation that needs many nodes must find those it asked for. Called by the drive's
//! state.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use sealdrive_core::node::Node;
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::{Missing, Nodes};
use sealdrive_proto::id::Cid;

/// Decoded nodes kept, bytes: about 5,000 nodes, the records of some 400,000 small files.
pub(super) const NODE_BUDGET: usize = 32 << 20;
/// Nodes one operation may bring in beyond the budget, bytes, before the oldest of its own are dropped.
const NODE_EXCESS: usize = 64 << 20;

struct Kept {
    node: Arc<Node>,
    /// Set by a read, cleared when eviction passes by: one that was read since gets a second round.
    used: Cell<bool>,
}

/// Nodes by content id, evicted in second-chance order.
pub(super) struct NodeCache {
    nodes: HashMap<Cid, Kept>,
    order: VecDeque<Cid>,
    bytes: usize,
    budget: usize,
}

impl NodeCache {
    pub(super) fn new(budget: usize) -> Self {
        Self {
            nodes: HashMap::new(),
            order: VecDeque::new(),
            bytes: 0,
            budget,
        }
    }

    /// Keeps a node; drops none of the budget's before [`Self::settle`] unless far beyond it.
    pub(super) fn add(&mut self, reference: &Reference, node: Arc<Node>) {
        let cost = node.cost();
        let kept = Kept {
            node,
            used: Cell::new(true),
        };
        if let Some(old) = self.nodes.insert(reference.cid, kept) {
            self.bytes -= old.node.cost();
        } else {
            self.order.push_back(reference.cid);
        }
        self.bytes += cost;
        if self.bytes > self.budget + NODE_EXCESS {
            self.shrink(self.budget + NODE_EXCESS);
        }
    }

    /// An operation has found all it needed: back to the budget.
    pub(super) fn settle(&mut self) {
        if self.bytes > self.budget {
            self.shrink(self.budget);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn shrink(&mut self, to: usize) {
        while self.bytes > to
            && let Some(cid) = self.order.pop_front()
        {
            match self.nodes.get(&cid) {
                Some(kept) if kept.used.take() => self.order.push_back(cid),
                Some(_) => {
                    if let Some(kept) = self.nodes.remove(&cid) {
                        self.bytes -= kept.node.cost();
                    }
                }
                None => {}
            }
        }
    }
}

impl Nodes for NodeCache {
    fn get(&self, reference: &Reference) -> Result<Arc<Node>, Missing> {
        match self.nodes.get(&reference.cid) {
            Some(kept) => {
                kept.used.set(true);
                Ok(Arc::clone(&kept.node))
            }
            None => Err(Missing(*reference)),
        }
    }
}
