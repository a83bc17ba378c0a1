//! The server over the wire: a real client over real TLS against a server in this process.

mod drives;
mod line;
mod objects;
mod rig;
mod sessions;
