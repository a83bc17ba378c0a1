//! The one door to clock and entropy of the server.
//!
//! Invariant: nothing else in this crate asks for time or randomness; the wall clock never goes back while the process
//! runs, whoever sets it; what runs out (leases, logins) is measured by a clock that nobody sets. Called everywhere
//! they are needed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, UNIX_EPOCH};

use sealdrive_runtime::{entropy, time};

static LATEST: AtomicU64 = AtomicU64::new(0);

/// Milliseconds since 1970, never less than before. A clock before 1970 reads as 0.
pub fn unix_ms() -> u64 {
    let since = time::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    if time::is_simulated() {
        // Many worlds share this process, and each begins at the same moment.
        return now;
    }
    LATEST.fetch_max(now, Ordering::Relaxed).max(now)
}

/// Milliseconds that pass at their own pace, beginning with the wall clock at the first call. For deadlines: a wall
/// clock that is set ahead by a year and back again would stand still for that year, and no lease would ever run out.
pub fn steady_ms() -> u64 {
    if time::is_simulated() {
        return unix_ms();
    }
    static START: OnceLock<(u64, Instant)> = OnceLock::new();
    let (start, at) = *START.get_or_init(|| (unix_ms(), instant()));
    start.saturating_add(
        u64::try_from(instant().saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX),
    )
}

/// A point in time for measuring waits inside the process.
pub(crate) fn instant() -> Instant {
    time::now()
}

/// Fresh randomness from the operating system.
pub fn entropy<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut out = [0; N];
    entropy::fill(&mut out)
        .map_err(|_| std::io::Error::other("the operating system gave no randomness"))?;
    Ok(out)
}
