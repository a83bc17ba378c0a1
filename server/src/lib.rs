//! The storage server: keeps sealed objects, can read none of them (it links no crate that could).
//!
//! Invariant: everything acknowledged is durable in a pack; everything else here is memory or a lagging index. Used by
//! the `sealdrive-server` command, by the client's embedded mode and by the tests.

pub mod book;
pub mod calls;
pub mod clock;
pub mod core;
pub mod identity;
pub mod index;
pub mod invites;
mod key_files;
pub mod limits;
pub mod notify;
mod private_file;
mod running;
pub mod service;
pub mod sessions;
pub mod store;
pub mod tls;

pub use service::listen;

pub use running::{
    Config, Counts, Running, Server, StartError, invite, open_core, open_core_on, rebuild_index,
    status,
};
