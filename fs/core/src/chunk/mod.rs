//! Content-defined chunking that tells nothing: FastCDC over a whitened stream.
//!
//! Invariant: where a stream is cut depends on its own bytes and the domain's secret only, not on how it was handed
//! in, and tells nothing about content to who does not hold that secret (FORMAT.md, "Chunking", has the argument).
//! Called by the writeback workers (one [`CutStream`] per job) and the key room (derives [`CutKeys`]).

mod cut;
mod whiten;

pub use cut::{ChunkSizes, CutStream};
pub use whiten::CutKeys;
