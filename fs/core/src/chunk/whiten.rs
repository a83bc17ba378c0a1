//! Whitening: turns plaintext into pseudorandom bytes, one per position, each a function of the 64 bytes up to it.
//!
//! Invariant: byte `i` is `AES-128_k(LE64(d0) ‖ LE64(d1))[0]`, where `d0`, `d1` are Toeplitz digests of bytes `i-63
//! ..= i`. Position independent, so eight stretches are computed side by side: the digest is one long dependency
//! chain, and the processor works on several at once. Called by the cutter.

use crate::secret::{Secret, keyed};
use aes::Aes128;
use aes::cipher::{Block, BlockCipherEncrypt, KeyInit};
use zeroize::Zeroize;

/// Length of the window a whitened byte depends on, bytes.
pub(super) const WINDOW: usize = 64;
/// Stretches computed side by side.
const LANES: usize = 8;
/// Positions each lane advances between two calls of the block cipher.
const STEP: usize = 8;
/// Blocks enciphered at once: the widest batch the `aes` crate has.
const BATCH: usize = LANES * STEP;

/// Both digests.
type Digest = [u64; 2];

/// Secrets of the chunker: two tables of the rolling digest and a block cipher key.
pub struct CutKeys {
    /// Per byte value: its term in both digests when it enters the window, and when it leaves it.
    enter: Box<[Digest; 256]>,
    leave: Box<[Digest; 256]>,
    aes: Aes128,
}

/// Multiplication by x in GF(2)\[x\]/(x^64 + x^4 + x^3 + x + 1).
#[inline(always)]
const fn times_x(v: u64) -> u64 {
    (v << 1) ^ (0x1b & (v >> 63).wrapping_neg())
}

impl CutKeys {
    /// `BLAKE3-keyed-XOF(K_cdc, "sealdrive/v1/cdc")` gives `T0[256] ‖ T1[256]` (u64, little-endian) and the AES key.
    pub(crate) fn derive(k_cdc: &[u8; 32]) -> Self {
        let stream: Secret<{ 2 * 256 * 8 + 16 }> = keyed(k_cdc, &[b"sealdrive/v1/cdc"]);
        let word =
            |i: usize| u64::from_le_bytes(std::array::from_fn(|b| stream.expose()[8 * i + b]));
        let mut k = Secret::<16>::zeroed();
        k.expose_mut().copy_from_slice(&stream.expose()[4096..]);
        let mut keys = Self {
            enter: Box::new([[0; 2]; 256]),
            leave: Box::new([[0; 2]; 256]),
            aes: Aes128::new(k.expose().into()),
        };
        for byte in 0..256 {
            keys.enter[byte] = [word(byte), word(256 + byte)];
            keys.leave[byte] = keys.enter[byte].map(|t| (0..WINDOW).fold(t, |v, _| times_x(v)));
        }
        keys
    }

    /// Whitens `text[WINDOW..]` into `out`; the first `WINDOW` bytes are what stands before it.
    pub(super) fn whiten(&self, text: &[u8], out: &mut [u8]) {
        assert_eq!(
            text.len(),
            out.len() + WINDOW,
            "one whitened byte for each byte behind the window"
        );
        let lane = out.len() / BATCH * STEP;
        let (fast, rest) = out.split_at_mut(LANES * lane);
        if lane > 0 {
            self.whiten_lanes(&text[..fast.len() + WINDOW], lane, fast);
        }
        self.whiten_rest(&text[fast.len()..], rest);
    }

    fn whiten_lanes(&self, text: &[u8], lane: usize, out: &mut [u8]) {
        let mut digests: [Digest; LANES] = [[0; 2]; LANES];
        for at in 0..WINDOW {
            for (l, d) in digests.iter_mut().enumerate() {
                *d = self.first(*d, text[l * lane + at]);
            }
        }
        let mut blocks = [Block::<Aes128>::default(); BATCH];
        for at in (0..lane).step_by(STEP) {
            let leaving: [&[u8; STEP]; LANES] = std::array::from_fn(|l| piece(text, l * lane + at));
            let entering: [&[u8; STEP]; LANES] =
                std::array::from_fn(|l| piece(text, l * lane + at + WINDOW));
            for i in 0..STEP {
                for l in 0..LANES {
                    digests[l] = self.roll(digests[l], entering[l][i], leaving[l][i]);
                    blocks[STEP * l + i] = block(digests[l]);
                }
            }
            self.aes.encrypt_blocks(&mut blocks);
            for (l, done) in blocks.chunks_exact(STEP).enumerate() {
                let at = l * lane + at;
                for (byte, block) in out[at..at + STEP].iter_mut().zip(done) {
                    *byte = block[0];
                }
            }
        }
    }

    /// What does not fill a batch: fewer than [`BATCH`] bytes.
    fn whiten_rest(&self, text: &[u8], out: &mut [u8]) {
        let (before, entering) = text.split_at(WINDOW);
        let mut digest = before.iter().fold([0; 2], |d, byte| self.first(d, *byte));
        let mut blocks = [Block::<Aes128>::default(); BATCH];
        for ((target, entering), leaving) in blocks.iter_mut().zip(entering).zip(text) {
            digest = self.roll(digest, *entering, *leaving);
            *target = block(digest);
        }
        self.aes.encrypt_blocks(&mut blocks[..out.len()]);
        for (byte, block) in out.iter_mut().zip(&blocks) {
            *byte = block[0];
        }
    }

    #[inline(always)]
    fn first(&self, d: Digest, entering: u8) -> Digest {
        let enter = self.enter[usize::from(entering)];
        [times_x(d[0]) ^ enter[0], times_x(d[1]) ^ enter[1]]
    }

    #[inline(always)]
    fn roll(&self, d: Digest, entering: u8, leaving: u8) -> Digest {
        let enter = self.enter[usize::from(entering)];
        let leave = self.leave[usize::from(leaving)];
        [
            times_x(d[0]) ^ enter[0] ^ leave[0],
            times_x(d[1]) ^ enter[1] ^ leave[1],
        ]
    }
}

#[inline(always)]
fn piece(text: &[u8], at: usize) -> &[u8; STEP] {
    text[at..]
        .first_chunk()
        .expect("a lane is a whole number of steps")
}

#[inline(always)]
fn block(digest: Digest) -> Block<Aes128> {
    let mut out = Block::<Aes128>::default();
    out[..8].copy_from_slice(&digest[0].to_le_bytes());
    out[8..].copy_from_slice(&digest[1].to_le_bytes());
    out
}

impl Drop for CutKeys {
    fn drop(&mut self) {
        self.enter
            .iter_mut()
            .chain(self.leave.iter_mut())
            .for_each(Zeroize::zeroize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification, byte by byte.
    fn by_definition(k_cdc: &[u8; 32], window: &[u8]) -> u8 {
        let mut stream = vec![0; 4112];
        blake3::Hasher::new_keyed(k_cdc)
            .update(b"sealdrive/v1/cdc")
            .finalize_xof()
            .fill(&mut stream);
        let table = |t: usize, b: u8| {
            let at = 8 * (256 * t + usize::from(b));
            u64::from_le_bytes(stream[at..at + 8].try_into().expect("8 bytes"))
        };
        let mut input = [0; 16];
        for t in 0..2 {
            let d = window.iter().fold(0, |d, b| times_x(d) ^ table(t, *b));
            input[8 * t..8 * t + 8].copy_from_slice(&d.to_le_bytes());
        }
        let key: [u8; 16] = stream[4096..].try_into().expect("16 bytes");
        let mut block = Block::<Aes128>::from(input);
        Aes128::new(&key.into()).encrypt_block(&mut block);
        block[0]
    }

    #[test]
    fn equals_the_definition_for_every_length() {
        let keys = CutKeys::derive(&[7; 32]);
        let mut text = vec![0; 1000];
        blake3::Hasher::new().finalize_xof().fill(&mut text);
        for len in (0..200).chain([512, 700, 936]) {
            let mut out = vec![0; len];
            keys.whiten(&text[..WINDOW + len], &mut out);
            for (i, byte) in out.iter().enumerate() {
                assert_eq!(
                    *byte,
                    by_definition(&[7; 32], &text[i + 1..i + 1 + WINDOW]),
                    "position {i} of {len}"
                );
            }
        }
    }

    #[test]
    fn times_x_is_the_field_s() {
        assert_eq!(times_x(1), 2);
        assert_eq!(times_x(1 << 63), 0x1b);
        // x has order 2^64 - 1 divided by something only if the polynomial is reducible; squaring 64 times is the
        // identity.
        let square = |v: u64| {
            (0..64)
                .filter(|i| v >> i & 1 == 1)
                .fold(0, |acc, i| acc ^ (0..2 * i).fold(1, |p, _| times_x(p)))
        };
        let mut x = 2;
        for _ in 0..64 {
            x = square(x);
        }
        assert_eq!(x, 2);
    }
}
