//! The one door to wall clock and entropy of the server.
//!
//! Invariant: nothing else in this crate asks the system for time or randomness. Called everywhere they are needed.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970. A clock before 1970 reads as 0.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Fresh randomness from the operating system.
pub fn entropy<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut out = [0; N];
    getrandom::fill(&mut out).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(out)
}
