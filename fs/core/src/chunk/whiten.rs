//! Whitening: turns plaintext into pseudorandom bytes, one per position, each a function of the 64 bytes up to it.
//!
//! Invariant: byte `i` is `AES-128_k(d0 ‖ d1)[0]`, where `d0`, `d1` are Toeplitz digests of bytes `i-63 ..= i` (fewer at the
//! start of a stream). Called by the cutter.

use crate::secret::{Secret, keyed};
use zeroize::Zeroize;

/// Length of the window a whitened byte depends on, bytes.
pub(super) const WINDOW: usize = 64;

/// Secrets of the chunker: two tables of the rolling digest and a block cipher key.
pub struct CutKeys {
    /// Per byte value: its term in both digests when it enters the window, and when it leaves it.
    enter: Box<[[u64; 2]; 256]>,
    leave: Box<[[u64; 2]; 256]>,
    aes: Secret<16>,
}

/// Multiplication by x in GF(2)[x]/(x^64 + x^4 + x^3 + x + 1).
const fn times_x(v: u64) -> u64 {
    (v << 1) ^ (0x1b & (v >> 63).wrapping_neg())
}

impl CutKeys {
    /// `BLAKE3-keyed-XOF(K_cdc, "sealdrive/v1/cdc")` gives `T0[256] ‖ T1[256]` (u64, little-endian) and the AES key.
    pub(crate) fn derive(k_cdc: &[u8; 32]) -> Self {
        let stream: Secret<{ 2 * 256 * 8 + 16 }> = keyed(k_cdc, &[b"sealdrive/v1/cdc"]);
        let word =
            |i: usize| u64::from_le_bytes(std::array::from_fn(|b| stream.expose()[8 * i + b]));
        let mut keys = Self {
            enter: Box::new([[0; 2]; 256]),
            leave: Box::new([[0; 2]; 256]),
            aes: Secret::zeroed(),
        };
        for byte in 0..256 {
            keys.enter[byte] = [word(byte), word(256 + byte)];
            keys.leave[byte] = keys.enter[byte].map(|t| (0..WINDOW).fold(t, |v, _| times_x(v)));
        }
        keys.aes
            .expose_mut()
            .copy_from_slice(&stream.expose()[4096..]);
        keys
    }
}

impl Drop for CutKeys {
    fn drop(&mut self) {
        self.enter
            .iter_mut()
            .chain(self.leave.iter_mut())
            .for_each(Zeroize::zeroize);
    }
}
