//! Simulated worlds: what a machine stands on, with every misfortune of it on demand and decided by a seed.
//!
//! Invariant: the same seed and the same requests give the same world. Called by the crash suites.

pub mod disk;
