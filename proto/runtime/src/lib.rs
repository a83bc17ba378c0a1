//! Threads, locks, channels, tasks, time and entropy of both sides, under one roof.
//!
//! Invariant: without the feature `simulation` everything here *is* std or tokio: re-exports and one-line wrappers.
//! With it, a thread that belongs to a simulated world runs only when that world's seeded scheduler says so, sees
//! virtual time and seeded entropy, and can be stopped for ever at any point where it might wait; a thread outside a
//! world behaves as without the feature. Called by the engine and drive of the client and by the store and core of the
//! server.
//!
//! What must hold for a world to be deterministic, and is the duty of the callers: no lock of std is held across a call
//! into this crate; `tokio::select!` is `biased`; no order of a `HashMap` reaches what happens; blocking forms of
//! tokio's channels are those of [`channel`].

pub mod channel;
pub mod entropy;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod sync;
pub mod task;
pub mod thread;
pub mod time;
