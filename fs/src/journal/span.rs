//! Which segments there should be.
//!
//! Invariant: written after a segment is durable, and durable itself before one is deleted, so that it never names one
//! that is rightly not there. It may lag: a power cut may take what was noted of the newest segment, or the note as a
//! whole. Called by the journal.

use std::io;

use sealdrive_pack::Medium;

/// Numbers of the segments that stand in the directory: the witness for a lost file. Without it, or if it is damaged,
/// the segments are believed as they are. File: `first u64 ‖ last u64 ‖ BLAKE3 of both`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Span {
    const FILE: &str = "span";

    pub(super) fn is_empty(&self) -> bool {
        self.last < self.first
    }

    fn encode(&self) -> [u8; 48] {
        let mut out = [0; 48];
        out[..8].copy_from_slice(&self.first.to_le_bytes());
        out[8..16].copy_from_slice(&self.last.to_le_bytes());
        let check = blake3::hash(&out[..16]);
        out[16..].copy_from_slice(check.as_bytes());
        out
    }

    pub(super) fn read(dir: &dyn Medium) -> Option<Self> {
        let bytes = dir.read(Self::FILE).ok()?;
        let (first, rest) = bytes.split_first_chunk::<8>()?;
        let (last, _) = rest.split_first_chunk::<8>()?;
        let span = Self {
            first: u64::from_le_bytes(*first),
            last: u64::from_le_bytes(*last),
        };
        (bytes == span.encode()).then_some(span)
    }

    /// Durable on return, and whole.
    pub(super) fn write(&self, dir: &dyn Medium) -> io::Result<()> {
        dir.replace(Self::FILE, &self.encode())
    }

    /// Over what `write` has made; durable some time, because an fsync waits for it.
    pub(super) fn note(&self, dir: &dyn Medium) -> io::Result<()> {
        dir.open(Self::FILE)?.write_at(&self.encode(), 0)
    }

    /// The same, durable on return. A power cut on the way may leave none.
    pub(super) fn settle(&self, dir: &dyn Medium) -> io::Result<()> {
        let file = dir.open(Self::FILE)?;
        file.write_at(&self.encode(), 0)?;
        file.sync()
    }
}
