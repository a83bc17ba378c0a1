//! Key bytes that wipe themselves, and the four ways keys are derived.
//!
//! Invariant: a [`Secret`] has no `Debug`, `Clone` or serialisation, lives on the heap at one address and is wiped
//! on drop; derivation states are wiped too. Called by the key, sealing, chunking and slot rooms only.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha512};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// `N` secret bytes. Boxed so that moving one leaves no copy behind.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Zeros, to be filled.
    pub(crate) fn zeroed() -> Self {
        Self(Box::new([0; N]))
    }

    /// A copy of `bytes`. The caller wipes its own.
    pub fn copy_of(bytes: &[u8; N]) -> Self {
        let mut out = Self::zeroed();
        out.0.copy_from_slice(bytes);
        out
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    pub(crate) fn expose_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

/// HKDF-SHA-512 (RFC 5869); an empty `salt` is the RFC's default salt.
pub(crate) fn hkdf<const N: usize>(salt: &[u8], ikm: &[u8], info: &[&[u8]]) -> Secret<N> {
    let mut out = Secret::zeroed();
    Hkdf::<Sha512>::new(Some(salt), ikm)
        .expand_multi_info(info, out.expose_mut())
        .expect("64 bytes are within HKDF-SHA-512's limit of 16,320");
    out
}

/// BLAKE3 `derive_key`: `context` must be a constant of this program.
pub(crate) fn derive_key(context: &'static str, material: &[&[u8]]) -> Secret<32> {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    finish(&mut hasher, material)
}

/// BLAKE3 keyed, `N` bytes of its extendable output.
pub(crate) fn keyed<const N: usize>(key: &[u8; 32], input: &[&[u8]]) -> Secret<N> {
    let mut hasher = blake3::Hasher::new_keyed(key);
    finish(&mut hasher, input)
}

fn finish<const N: usize>(hasher: &mut blake3::Hasher, input: &[&[u8]]) -> Secret<N> {
    for part in input {
        hasher.update(part);
    }
    let mut out = Secret::zeroed();
    let mut reader = hasher.finalize_xof();
    reader.fill(out.expose_mut());
    reader.zeroize();
    hasher.zeroize();
    out
}

/// BLAKE3 keyed, 32 bytes that are not secret (ids, digests).
pub(crate) fn keyed_hash(key: &[u8; 32], input: &[&[u8]]) -> [u8; 32] {
    *keyed::<32>(key, input).expose()
}

/// BLAKE3 without a key, over constants and public fields.
pub(crate) fn hash(input: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in input {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// HMAC-SHA-256.
pub(crate) fn hmac_sha256(key: &[u8; 32], input: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in input {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}
