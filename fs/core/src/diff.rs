//! The difference of two trees, at the cost of what differs.
//!
//! Invariant: equal subtrees are never entered, because equal references are equal records. Called by history (what
//! changed between two commits, and in which files) and by the drive (is this file as the last commit has it?).

use std::cmp::Ordering;
use std::ops::ControlFlow;

use crate::record::KeyRange;
use crate::tree::{Cursor, Nodes, Root, TreeError};

/// One record that differs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Difference<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value in the first tree, if it is there.
    pub old: Option<&'a [u8]>,
    /// Its value in the second tree, if it is there.
    pub new: Option<&'a [u8]>,
}

/// Shows what differs between two trees in key order until `each` breaks. On `Missing` some has been shown already:
/// history reads with nodes that wait for what they fetch.
pub fn diff(
    nodes: &dyn Nodes,
    old: &Root,
    new: &Root,
    each: impl FnMut(Difference<'_>) -> ControlFlow<()>,
) -> Result<(), TreeError> {
    diff_past(nodes, Some(old), new, each, |_| ControlFlow::Break(()))
}

/// The same where nodes of the second tree may be lost: asks `hole` about each that does not come, and goes on behind
/// it unless it breaks. Nothing is said of the keys below such a node, in neither tree. Without a first tree everything
/// differs.
pub fn diff_past(
    nodes: &dyn Nodes,
    old: Option<&Root>,
    new: &Root,
    mut each: impl FnMut(Difference<'_>) -> ControlFlow<()>,
    mut hole: impl FnMut(&TreeError) -> ControlFlow<()>,
) -> Result<(), TreeError> {
    if old == Some(new) {
        return Ok(());
    }
    let mut left = Side(old.map(|old| Cursor::at_top(nodes, old)).transpose()?);
    let mut right = match Cursor::at_top(nodes, new) {
        Err(error) if hole(&error).is_continue() => return Ok(()),
        top => top?,
    };
    loop {
        // A side that has come to its end is below all levels, so that the other is entered down to its entries.
        let right_level = right.entry().map(|_| right.node().level());
        let left_level = left.level();
        if left_level.is_none() && right_level.is_none() {
            return Ok(());
        }
        let highest = left_level.max(right_level);
        if highest > Some(0) {
            if left_level == right_level && left.entry() == right.entry() {
                left.pass();
                right.pass();
                continue;
            }
            if left_level == highest {
                left.enter()?;
            }
            if right_level == highest
                && let Err(error) = right.enter()
            {
                if hole(&error).is_break() {
                    return Err(error);
                }
                let last = right.entry().map(|(key, _)| key.to_vec());
                right.pass();
                left.pass_to(&last.unwrap_or_default())?;
            }
            continue;
        }
        let (old, new) = (left.entry(), right.entry());
        let order = match (old, new) {
            (Some((old, _)), Some((new, _))) => old.cmp(new),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let old = old.filter(|_| order.is_le());
        let new = new.filter(|_| order.is_ge());
        if let Some((key, _)) = old.or(new)
            && old != new
        {
            let shown = Difference {
                key,
                old: old.map(|(_, value)| value),
                new: new.map(|(_, value)| value),
            };
            if each(shown).is_break() {
                return Ok(());
            }
        }
        if order.is_le() {
            left.pass();
        }
        if order.is_ge() {
            right.pass();
        }
    }
}

/// One side of a difference; without a tree it has come to its end.
struct Side<'n>(Option<Cursor<'n>>);

impl Side<'_> {
    fn entry(&self) -> Option<(&[u8], &[u8])> {
        self.0.as_ref()?.entry()
    }

    fn level(&self) -> Option<u8> {
        let cursor = self.0.as_ref()?;
        cursor.entry().map(|_| cursor.node().level())
    }

    fn enter(&mut self) -> Result<(), TreeError> {
        self.0.as_mut().map_or(Ok(()), Cursor::enter)
    }

    fn pass(&mut self) {
        if let Some(cursor) = &mut self.0 {
            cursor.pass();
        }
    }

    /// Behind every entry up to this key.
    fn pass_to(&mut self, last: &[u8]) -> Result<(), TreeError> {
        while let Some((key, _)) = self.entry() {
            if key <= last {
                // Above the leaves it is the last key of all below.
                self.pass();
            } else if self.level() > Some(0) {
                self.enter()?;
            } else {
                break;
            }
        }
        Ok(())
    }
}

/// Whether any record of `range` differs between two trees, at the cost of the two paths to it and of what is equal in
/// nodes that are not. After `Missing`, bring the node and ask again.
pub fn differs_in(
    nodes: &dyn Nodes,
    old: &Root,
    new: &Root,
    range: &KeyRange,
) -> Result<bool, TreeError> {
    if old == new {
        return Ok(false);
    }
    let (start, end) = (range.start.as_bytes(), range.end.as_bytes());
    let (mut left, mut right) = (Cursor::at_top(nodes, old)?, Cursor::at_top(nodes, new)?);
    loop {
        // An entry above the leaves has its subtree's last key: what ends before the range is passed whole.
        for side in [&mut left, &mut right] {
            while side.entry().is_some_and(|(key, _)| key < start) {
                side.pass();
            }
        }
        let level = |side: &Cursor<'_>| side.entry().map(|_| side.node().level());
        let (left_level, right_level) = (level(&left), level(&right));
        let highest = left_level.max(right_level);
        if highest > Some(0) {
            if left_level == right_level && left.entry() == right.entry() {
                if left.entry().is_some_and(|(key, _)| key >= end) {
                    return Ok(false);
                }
                left.pass();
                right.pass();
                continue;
            }
            if left_level == highest {
                left.enter()?;
            }
            if right_level == highest {
                right.enter()?;
            }
            continue;
        }
        let inside = |side: &Cursor<'_>| side.entry().is_some_and(|(key, _)| key < end);
        match (inside(&left), inside(&right)) {
            (false, false) => return Ok(false),
            (true, true) if left.entry() == right.entry() => {}
            _ => return Ok(true),
        }
        left.pass();
        right.pass();
    }
}
