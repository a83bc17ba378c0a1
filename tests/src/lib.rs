//! Harness of the suites: what starts real processes, compares trees, and judges the repository itself.
//!
//! Invariant: the product never imports this crate. What the harness starts it also stops, even when a test panics.

// A harness that cannot go on says where it stands, which is what `unwrap` does.
#![allow(clippy::unwrap_used)]

pub mod bench;
pub mod canary;
pub mod compare;
pub mod conformance;
pub mod made;
pub mod powercut;
pub mod proxy;
pub mod sim;
pub mod tidy;
pub mod twins;
pub mod world;
