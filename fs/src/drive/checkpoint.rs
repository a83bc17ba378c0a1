//! Freeze and thaw: how a checkpoint gets a state that does not move while operations go on.
//!
//! Invariant: what is frozen is immutable and complete (no bytes of a named file are outside it), and every read sees
//! it until the tree that contains it takes its place. Called by the engine: stall, writeback of everything, freeze,
//! unstall, merge, seal, make durable, thaw.

use std::sync::Arc;

use sealdrive_core::overlay::Overlay;
use sealdrive_core::tree::Root;

use super::Drive;
use super::errno::Answer;

/// What a checkpoint works on.
pub struct Frozen {
    /// Operations up to here are in it; log entries of later ones have higher numbers.
    pub seq: u64,
    /// What to apply to the tree.
    pub overlay: Arc<Overlay>,
    /// The tree to apply it to.
    pub root: Option<Root>,
}

impl Drive {
    /// Takes the active overlay aside for a checkpoint. `None` while bytes of named files are not placed yet (writeback
    /// with [`super::Settle::All`] first) or the last checkpoint has not been thawed. Call it under [`Drive::stall`].
    pub fn freeze(&self) -> Answer<Option<Frozen>> {
        let s = &mut *self.lock()?;
        s.settle_inline(true)?;
        s.forget_the_dead()?;
        if s.map.frozen.is_some() || s.unplaced() > 0 {
            return Ok(None);
        }
        s.flush();
        let seq = s.seq;
        s.seq += 1; // what is done from now on is after the checkpoint
        s.frozen_seq = seq;
        s.map.unlogged_frozen = std::mem::take(&mut s.map.unlogged);
        s.discards[1] = std::mem::take(&mut s.discards[0]);
        let overlay = Arc::new(std::mem::take(&mut s.map.active));
        s.map.frozen = Some(Arc::clone(&overlay));
        let former = std::mem::take(&mut s.journaled[0]);
        s.journaled[1].extend(former);
        Ok(Some(Frozen {
            seq,
            overlay,
            root: s.map.root,
        }))
    }

    /// The checkpoint is durable: the drive stands on `root` from now on.
    pub fn thaw(&self, root: Root) {
        let s = &mut *self.peek();
        s.map.root = Some(root);
        s.map.frozen = None;
        // It is durable in the tree: in the journal it would only be read again.
        s.map.unlogged_frozen = Overlay::new();
        s.discards[1].clear();
        s.journaled[1].clear();
        self.room.notify_all();
    }

    /// The checkpoint did not come about: what was frozen is active again.
    pub fn refreeze_later(&self) {
        let s = &mut *self.peek();
        if let Some(frozen) = s.map.frozen.take() {
            let newer = std::mem::take(&mut s.map.active);
            s.map.active = Arc::unwrap_or_clone(frozen);
            s.map.active.absorb(newer);
        }
        let newer = std::mem::take(&mut s.map.unlogged);
        s.map.unlogged = std::mem::take(&mut s.map.unlogged_frozen);
        s.map.unlogged.absorb(newer);
        let newer = std::mem::take(&mut s.discards[0]);
        s.discards[0] = std::mem::take(&mut s.discards[1]);
        s.discards[0].extend(newer);
        let former = std::mem::take(&mut s.journaled[1]);
        s.journaled[0].extend(former);
    }
}
