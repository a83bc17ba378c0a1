//! The outer lock: XChaCha20-Poly1305 under a key made for this one message. The only file that may name
//! `chacha20poly1305`.
//!
//! Invariant: the key comes with a 32-byte commitment, checked in constant time before anything is decrypted,
//! because the cipher alone lets one ciphertext open under two keys. Called by the object seal and by the slot, key
//! box and local records.

use crate::secret::{Secret, keyed};
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use sealdrive_proto::header::{COMMIT_LEN, NONCE_LEN, TAG_LEN};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// The outer lock refused: key, associated data or bytes are not those that were sealed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OuterRefused;

/// Key of one message, and what it commits to.
pub(crate) struct OuterKey {
    key: Secret<32>,
    commit: [u8; COMMIT_LEN],
}

impl OuterKey {
    /// `K_obj32 ‖ commit32 = BLAKE3-keyed-XOF(root, header)`: the whole clear header goes in, so a changed header is
    /// another key.
    pub(crate) fn derive(root: &Secret<32>, header: &[u8]) -> Self {
        let both: Secret<64> = keyed(root.expose(), &[header]);
        let mut key = Secret::zeroed();
        key.expose_mut().copy_from_slice(&both.expose()[..32]);
        Self {
            key,
            commit: std::array::from_fn(|i| both.expose()[32 + i]),
        }
    }

    /// What is stored behind the header.
    pub(crate) fn commitment(&self) -> &[u8; COMMIT_LEN] {
        &self.commit
    }

    /// Whether `stored` is this key's commitment; constant time.
    pub(crate) fn is_committed_by(&self, stored: &[u8]) -> bool {
        self.commit[..].ct_eq(stored).into()
    }

    /// Encrypts `text` in place and returns the tag.
    pub(crate) fn lock(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &mut [u8],
    ) -> [u8; TAG_LEN] {
        lock(self.key.expose(), nonce, aad, text)
    }

    /// Decrypts in place. On refusal the buffer is wiped.
    pub(crate) fn unlock(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), OuterRefused> {
        unlock(self.key.expose(), nonce, aad, text, tag)
    }
}

/// XChaCha20-Poly1305 in place; returns the tag. For messages whose key is never anyone else's choice (local
/// records): everything that travels goes through [`OuterKey`].
pub(crate) fn lock(
    key: &[u8; 32],
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    text: &mut [u8],
) -> [u8; TAG_LEN] {
    let cipher = XChaCha20Poly1305::new(key.into());
    let tag = cipher.encrypt_inout_detached(nonce.into(), aad, text.into());
    tag.expect("a message is far below the cipher's limit of 256 GiB")
        .into()
}

/// Opposite of [`lock`]. On refusal the buffer is wiped.
pub(crate) fn unlock(
    key: &[u8; 32],
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    text: &mut [u8],
    tag: &[u8; TAG_LEN],
) -> Result<(), OuterRefused> {
    let cipher = XChaCha20Poly1305::new(key.into());
    cipher
        .decrypt_inout_detached(nonce.into(), aad, (&mut *text).into(), tag.into())
        .map_err(|_| {
            text.zeroize();
            OuterRefused
        })
}
