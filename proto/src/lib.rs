//! The agreement: everything both sides of a sealdrive must read the same way.
//!
//! Pure (no IO, no clock, no entropy). The bytes are specified in `FORMAT.md` beside this crate.
//! Callers: the pure core, the client shell and the server. The generated gRPC code stands behind feature `rpc`.

pub mod bucket;
pub mod commit;
pub mod connect;
pub mod fields;
pub mod header;
pub mod id;
pub mod limits;
pub mod link;
pub mod transcript;

pub use ed25519_dalek::{SigningKey, VerifyingKey};

/// Generated from `sealdrive/v1/sealdrive.proto`.
#[cfg(feature = "rpc")]
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("sealdrive.v1");
    /// Encoded `FileDescriptorSet`, for server reflection.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
}
