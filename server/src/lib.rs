//! The storage server: keeps sealed objects, can read none of them.
pub mod book;
pub mod identity;
pub mod invites;
pub mod listen;
mod private_file;
pub mod tls;
