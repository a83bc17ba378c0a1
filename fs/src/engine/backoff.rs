//! Pauses between attempts to reach the server: doubling, bounded, and jittered so that clients of a server that comes
//! back do not arrive together.
//!
//! Invariant: a pause is between half and the whole of the present step. Called by upload, fetch, lease and commit.

use std::time::Duration;

use crate::clock;
use crate::limits::{BACKOFF_FIRST, BACKOFF_MAX};

/// The next pause.
pub(super) struct Backoff {
    step: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            step: BACKOFF_FIRST,
        }
    }
}

impl Backoff {
    /// After a success.
    pub(super) fn reset(&mut self) {
        self.step = BACKOFF_FIRST;
    }

    /// The pause to make now; the following one is longer.
    pub(super) fn next(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(BACKOFF_MAX);
        // Without randomness from the system the jitter is lost, nothing else.
        let [r] = clock::entropy::<1>().unwrap_or([255]);
        step.mul_f64(0.5 + f64::from(r) / 510.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_bound_and_never_waits_less_than_half() {
        let mut backoff = Backoff::default();
        let mut step = BACKOFF_FIRST;
        for _ in 0..20 {
            let pause = backoff.next();
            assert!(pause >= step / 2 && pause <= step);
            step = (step * 2).min(BACKOFF_MAX);
        }
        backoff.reset();
        assert!(backoff.next() <= BACKOFF_FIRST);
    }
}
