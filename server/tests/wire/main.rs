//! The server over the wire: a real client over real TLS against a server in this process.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod drives;
mod first_start;
mod line;
mod objects;
mod rig;
mod sessions;
