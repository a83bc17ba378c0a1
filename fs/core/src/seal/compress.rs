//! Compression of single chunks: no dictionary, no state from one chunk to the next, bounded on the way back.
//!
//! Invariant: a compressed payload is only used if it lands in a smaller size bucket; a decompressed one has exactly the
//! length its frame promised. Called by the object seal only.

use sealdrive_proto::bucket::bucket_below;
use sealdrive_proto::limits::MAX_CHUNK;
use zeroize::Zeroize;
use zstd::bulk::{Compressor, Decompressor};

/// Whether a chunk may be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compress {
    /// Stored as it is: for drives that hide compressibility too.
    Off,
    /// zstd, unless the content looks incompressible or would save no bucket.
    Zstd,
}

/// zstd level; measured on source code and binaries, see FORMAT.md.
const LEVEL: i32 = 1;

/// Compression contexts and their buffer, reused from chunk to chunk.
pub(crate) struct Coder {
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
    buffer: Vec<u8>,
}

impl Coder {
    pub(crate) fn new() -> Self {
        let compressor = Compressor::new(LEVEL).expect("zstd allocates its context");
        let decompressor = Decompressor::new().expect("zstd allocates its context");
        Self {
            compressor,
            decompressor,
            buffer: Vec::with_capacity(MAX_CHUNK),
        }
    }

    /// The compressed bytes, or `None` if the plaintext should be stored as it is.
    pub(crate) fn compress(&mut self, plaintext: &[u8]) -> Option<&[u8]> {
        let limit = bucket_below(plaintext.len())?;
        if self.buffer.len() < limit {
            self.buffer.resize(limit, 0);
        }
        // A result that does not fit fails early; that is the answer "not worth it", as is any other failure.
        let len = self
            .compressor
            .compress_to_buffer(plaintext, &mut self.buffer[..limit])
            .ok()?;
        Some(&self.buffer[..len])
    }

    /// Exactly `plain_len` bytes, or `None`.
    pub(crate) fn decompress(&mut self, payload: &[u8], plain_len: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; plain_len];
        match self
            .decompressor
            .decompress_to_buffer(payload, &mut out[..])
        {
            Ok(len) if len == plain_len => Some(out),
            _ => {
                out.zeroize();
                None
            }
        }
    }
}

impl Drop for Coder {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}
