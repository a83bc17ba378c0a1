//! Time: clocks, sleeping and deadlines of tasks.
//!
//! Invariant: `now` never goes back; in a world it stands still while anybody computes. Called by the two clock files
//! and by tasks.

use std::future::Future;
use std::time::{Duration, Instant, SystemTime};

#[cfg(not(feature = "simulation"))]
pub use tokio::time::{error::Elapsed, sleep, timeout};

#[cfg(feature = "simulation")]
pub use crate::simulation::timer::{Elapsed, sleep, timeout};

/// A clock that never goes back.
pub fn now() -> Instant {
    #[cfg(feature = "simulation")]
    if let Some(me) = crate::simulation::current() {
        return me.now();
    }
    Instant::now()
}

/// The wall clock.
pub fn wall() -> SystemTime {
    #[cfg(feature = "simulation")]
    if let Some(me) = crate::simulation::current() {
        return me.wall();
    }
    SystemTime::now()
}

/// Whether this thread lives in a simulated world. Always false without the feature.
pub fn is_simulated() -> bool {
    #[cfg(feature = "simulation")]
    return crate::simulation::current().is_some();
    #[cfg(not(feature = "simulation"))]
    false
}

/// The future's output, unless `deadline` comes first.
pub async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    timeout(deadline.saturating_duration_since(now()), future).await
}

/// Longest time a simulated world knows, so that a deadline never overflows.
pub const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
