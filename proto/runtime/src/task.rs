//! Asynchronous tasks and what drives them.
//!
//! Invariant: a task belongs to the runtime that spawned it and ends with it. Called by the engine's network tasks and
//! by the server's calls.

#[cfg(not(feature = "simulation"))]
mod real {
    use std::io;

    pub use tokio::runtime::{Handle, Runtime};
    pub use tokio::spawn;
    pub use tokio::task::{JoinError, JoinHandle, spawn_blocking};

    /// A runtime with `workers` threads.
    pub fn runtime(workers: usize, name: &str) -> io::Result<Runtime> {
        runtime_with(workers, name, || ())
    }

    /// A runtime with `workers` threads, each of which begins with `start`.
    pub fn runtime_with(
        workers: usize,
        name: &str,
        start: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Runtime> {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name(name)
            .on_thread_start(start)
            .enable_all()
            .build()
    }
}

#[cfg(not(feature = "simulation"))]
pub use self::real::{
    Handle, JoinError, JoinHandle, Runtime, runtime, runtime_with, spawn, spawn_blocking,
};

#[cfg(feature = "simulation")]
pub use crate::simulation::executor::block_on;
#[cfg(feature = "simulation")]
pub use crate::simulation::runtime::{
    Handle, JoinError, JoinHandle, Runtime, runtime, runtime_with, spawn, spawn_blocking,
};
