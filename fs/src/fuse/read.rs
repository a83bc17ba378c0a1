//! Reads: the pieces of a plan put together into one answer, and the eye for sequential readers.
//!
//! Invariant: an answer holds exactly the bytes its plan names, or the read fails; a chunk shorter than the plan
//! says is damage, never zeros. Called by the door.

use bytes::Bytes;
use sealdrive_core::reference::Reference;

use super::backing::BackingError;
use crate::drive::{Plan, PlanPiece};

/// How far ahead of a sequential reader chunks are asked for, bytes: about 25 chunks, a fraction of the decoded cache.
pub(super) const AHEAD: u64 = 8 << 20;
/// Reads of one handle may arrive out of order by this much and still be one run, bytes: two requests of read-ahead.
const DISORDER: u64 = 2 << 20;
/// Reads in a row before it counts as a run: a header looked at is not a file being read.
const RUN: u32 = 2;

/// Puts an answer together. `chunk` gives the plaintext of a chunk; it is asked once per piece.
pub(super) fn assemble<E: From<BackingError>>(
    plan: &Plan,
    mut chunk: impl FnMut(&Reference) -> Result<Bytes, E>,
) -> Result<Bytes, E> {
    if let [only] = plan.pieces.as_slice() {
        return piece(only, &mut chunk);
    }
    // A plan is never longer than the read asked for, which fits.
    let mut answer = Vec::with_capacity(usize::try_from(plan.len()).unwrap_or_default());
    for part in &plan.pieces {
        match part {
            PlanPiece::Zero(len) => {
                answer.resize(answer.len() + usize::try_from(*len).unwrap_or_default(), 0)
            }
            other => answer.extend_from_slice(&piece(other, &mut chunk)?),
        }
    }
    Ok(answer.into())
}

fn piece<E: From<BackingError>>(
    piece: &PlanPiece,
    chunk: &mut impl FnMut(&Reference) -> Result<Bytes, E>,
) -> Result<Bytes, E> {
    match piece {
        PlanPiece::Memory(bytes) => Ok(bytes.clone()),
        PlanPiece::Zero(len) => Ok(vec![0; usize::try_from(*len).unwrap_or_default()].into()),
        PlanPiece::Chunk {
            reference,
            skip,
            len,
        } => {
            let bytes = chunk(reference)?;
            let start = *skip as usize;
            let end = start
                .checked_add(*len as usize)
                .filter(|&end| end <= bytes.len());
            end.map(|end| bytes.slice(start..end))
                .ok_or_else(|| BackingError::Damaged.into())
        }
    }
}

/// The chunks of a plan, in order, without repeats in a row.
pub(super) fn references(plan: &Plan) -> Vec<Reference> {
    let mut references: Vec<Reference> = plan
        .pieces
        .iter()
        .filter_map(|piece| match piece {
            PlanPiece::Chunk { reference, .. } => Some(*reference),
            PlanPiece::Memory(_) | PlanPiece::Zero(_) => None,
        })
        .collect();
    references.dedup();
    references
}

/// What one handle has read lately.
#[derive(Debug, Default)]
pub(super) struct Run {
    end: u64,
    asked: u64,
    length: u32,
}

impl Run {
    /// Notes a read. Returns the range (offset, length) to ask for ahead of time, when the reader is in a run.
    pub(super) fn note(&mut self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let end = offset.saturating_add(len);
        if offset.abs_diff(self.end) <= DISORDER {
            self.length = self.length.saturating_add(1);
            self.end = self.end.max(end);
        } else {
            *self = Self {
                end,
                asked: end,
                length: 1,
            };
        }
        // Half a window of slack: one request ahead per several reads, not one per read.
        if self.length < RUN || self.asked >= self.end.saturating_add(AHEAD / 2) {
            return None;
        }
        let from = self.asked.max(self.end);
        self.asked = self.end.saturating_add(AHEAD);
        Some((from, self.asked - from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: &'static [u8]) -> PlanPiece {
        PlanPiece::Memory(Bytes::from_static(bytes))
    }

    #[test]
    fn pieces_follow_one_another() {
        let plan = Plan {
            pieces: vec![memory(b"ab"), PlanPiece::Zero(2), memory(b"c")],
        };
        let answer = assemble(&plan, |_| Err::<Bytes, _>(BackingError::Damaged)).unwrap();
        assert_eq!(&answer[..], b"ab\0\0c");
        let none = assemble(&Plan::default(), |_| Err::<Bytes, _>(BackingError::Damaged)).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn a_sequential_reader_is_seen_and_a_random_one_is_not() {
        let mut run = Run::default();
        let step = 128 << 10;
        let mut asked = 0;
        for read in 0..400 {
            if let Some((from, len)) = run.note(read * step, step) {
                assert!(
                    from >= (read + 1) * step && len > 0,
                    "never behind the reader"
                );
                asked += len;
            }
        }
        assert!(
            (400 * step..=400 * step + AHEAD).contains(&asked),
            "each byte once: {asked}"
        );

        let mut run = Run::default();
        let random = (0..100u64)
            .filter_map(|read| run.note((read * 7919 % 100) * (64 << 20) + (1 << 40), step));
        assert_eq!(random.count(), 0);
    }

    #[test]
    fn two_requests_out_of_order_are_still_one_run() {
        let mut run = Run::default();
        assert_eq!(run.note(1 << 20, 1 << 20), None);
        assert!(run.note(0, 1 << 20).is_some());
        assert_eq!(run.note(2 << 20, 1 << 20), None, "already asked for");
    }
}
