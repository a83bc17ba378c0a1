//! The only file of this crate that asks for the time or for randomness; everyone else gets them as arguments.
//!
//! Invariant: randomness comes from the operating system. Called by the engine and the command line.

use std::time::{Instant, UNIX_EPOCH};

use sealdrive_runtime::time;

/// Wall clock: milliseconds since 1970, 0 if the clock stands before it.
pub fn wall_ms() -> u64 {
    time::wall()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Wall clock as seconds and nanoseconds since 1970, for file times.
pub fn wall_ns() -> (i64, u32) {
    match time::wall().duration_since(UNIX_EPOCH) {
        Ok(d) => (
            i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
            d.subsec_nanos(),
        ),
        Err(_) => (0, 0),
    }
}

/// A clock that never goes back, for deadlines and intervals.
pub fn now() -> Instant {
    time::now()
}

/// The operating system gave no randomness: nothing that needs keys or nonces can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no randomness")]
pub struct NoEntropy;

/// Fresh random bytes.
pub fn entropy<const N: usize>() -> Result<[u8; N], NoEntropy> {
    let mut out = [0; N];
    sealdrive_runtime::entropy::fill(&mut out).map_err(|_| NoEntropy)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_differs_and_the_clock_stands_after_2025() {
        assert_ne!(entropy::<32>().unwrap(), entropy::<32>().unwrap());
        assert!(wall_ms() > 1_735_689_600_000);
        let (s, ns) = wall_ns();
        assert!(s > 1_735_689_600 && ns < 1_000_000_000);
    }
}
