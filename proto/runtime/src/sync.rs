//! Locks and condition variables, with the interface of std.
//!
//! Invariant: a lock of a world is taken and awaited only by threads of that world. Called everywhere state is shared.

#[cfg(not(feature = "simulation"))]
pub use std::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, WaitTimeoutResult,
};

#[cfg(feature = "simulation")]
pub use crate::simulation::condvar::{Condvar, WaitTimeoutResult};
#[cfg(feature = "simulation")]
pub use crate::simulation::lock::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
