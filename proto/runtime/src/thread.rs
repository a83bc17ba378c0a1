//! Threads.
//!
//! Invariant: a thread spawned by a thread of a world belongs to the same machine of that world. Called wherever a
//! thread is needed.

pub use std::thread::{available_parallelism, panicking};

#[cfg(not(feature = "simulation"))]
mod real {
    use std::io;

    pub use std::thread::{JoinHandle, sleep};

    /// Starts a thread with a name.
    pub fn spawn<T: Send + 'static>(
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        std::thread::Builder::new().name(name.into()).spawn(body)
    }

    /// Does work that may panic; `None` if it did.
    pub fn catching<T>(work: impl FnOnce() -> T) -> Option<T> {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
    }

    /// A point where a simulated world may run somebody else; nothing here.
    pub fn yield_point() {}
}

#[cfg(not(feature = "simulation"))]
pub use self::real::{JoinHandle, catching, sleep, spawn, yield_point};

#[cfg(feature = "simulation")]
pub use crate::simulation::thread::{JoinHandle, catching, sleep, spawn, yield_point};
