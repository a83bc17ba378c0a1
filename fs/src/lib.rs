//! The client: a mounted drive, its local store and journal, and the command line.

pub mod account;
pub mod cli;
pub mod clock;
pub mod control;
pub mod drive;
pub mod embedded;
pub mod engine;
pub mod fuse;
pub mod home;
pub mod hygiene;
pub mod journal;
pub mod keystore;
pub mod limits;
pub mod live;
pub mod mount;
pub mod priority;
pub mod remote;
pub mod store;
pub mod umount;
pub mod unlock;

/// A disk of which little is left, for units; the suites have the same.
#[cfg(test)]
#[allow(dead_code, unreachable_pub)]
#[path = "../tests/engine_support/short.rs"]
mod short;
