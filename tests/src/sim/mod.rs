//! Simulated worlds: what a machine stands on, with every misfortune of it on demand and decided by a seed; and, with
//! the feature `simulation`, the real engine and the real calls of the server under one seeded scheduler.
//!
//! Invariant: the same seed and the same requests give the same world. Called by the crash suites,
//! `tests/simulation.rs` and `scripts/sim`.

pub mod disk;

#[cfg(feature = "simulation")]
mod account;
#[cfg(feature = "simulation")]
pub mod bounded;
#[cfg(feature = "simulation")]
mod drive;
#[cfg(feature = "simulation")]
pub mod lanes;
#[cfg(feature = "simulation")]
mod ledger;
#[cfg(feature = "simulation")]
mod line;
#[cfg(feature = "simulation")]
pub mod network;
#[cfg(feature = "simulation")]
mod rack;
#[cfg(feature = "simulation")]
mod rivals;
#[cfg(feature = "simulation")]
pub mod turns;
#[cfg(feature = "simulation")]
pub mod world;
