//! Harness of the suites: what starts real processes, compares trees, and judges the repository itself.
//!
//! Invariant: the product never imports this crate. What the harness starts it also stops, even when a test panics.

pub mod canary;
pub mod compare;
pub mod made;
pub mod proxy;
pub mod tidy;
