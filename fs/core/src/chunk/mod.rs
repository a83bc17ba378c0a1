//! Content-defined chunking that tells nothing: FastCDC over a whitened stream.
//!
//! Invariant: where a stream is cut depends on its own last bytes and the domain's secret only, not on how it was handed in.
//! Called by the writeback workers (one [`CutStream`] per job) and the key room (derives [`CutKeys`]).

mod whiten;

pub use whiten::CutKeys;
