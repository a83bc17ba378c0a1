//! The storage server: keeps sealed objects, can read none of them.
pub mod identity;
pub mod invites;
pub mod listen;
pub mod book;
mod private_file;
pub mod tls;
