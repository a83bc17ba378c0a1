//! The inner lock: AES-256-SIV (RFC 5297). The only file that may name `aes_siv`.
//!
//! Invariant: there is always associated data and its first item is a constant label, because an empty S2V vector compiles
//! and would make what is sealed for one purpose open for another. Deterministic: equal input, equal bytes.
//! Called by the object seal and by the slot, key box and local records.

use crate::secret::Secret;
use aes_siv::KeyInit;
use aes_siv::siv::Aes256Siv;
use sealdrive_proto::header::TAG_LEN;
use zeroize::Zeroize;

/// The inner lock refused: key, associated data or bytes are not those that were sealed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InnerRefused;

/// Associated data as an S2V vector (RFC 5297 §2.4): components are never concatenated, so no two can be confused.
#[derive(Clone, Copy)]
pub(crate) struct InnerData<'a> {
    /// Constant that says what is sealed.
    pub(crate) label: &'static str,
    /// Identity and position of it.
    pub(crate) fields: &'a [&'a [u8]],
}

impl InnerData<'_> {
    fn vector(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.label.as_bytes()).chain(self.fields.iter().copied())
    }
}

/// Seals in place. `room` is `TAG_LEN` spare bytes, then the plaintext; afterwards `V ‖ C` (RFC 5297 §2.6).
pub(crate) fn lock(key: &Secret<64>, data: InnerData<'_>, room: &mut [u8]) {
    let (tag, text) = room.split_at_mut(TAG_LEN);
    let mut siv = Aes256Siv::new(key.expose().into());
    let v = siv
        .encrypt_inout_detached(data.vector(), text.into())
        .expect("fewer than 127 components");
    tag.copy_from_slice(&v);
}

/// Opens in place and returns the plaintext within `sealed`. On refusal the buffer is wiped (RFC 5297 §2.7).
pub(crate) fn unlock<'b>(
    key: &Secret<64>,
    data: InnerData<'_>,
    sealed: &'b mut [u8],
) -> Result<&'b mut [u8], InnerRefused> {
    let Some((tag, text)) = sealed.split_first_chunk_mut::<TAG_LEN>() else {
        return Err(InnerRefused);
    };
    let mut siv = Aes256Siv::new(key.expose().into());
    match siv.decrypt_inout_detached(data.vector(), (&mut *text).into(), &(*tag).into()) {
        Ok(()) => Ok(text),
        Err(_) => {
            text.zeroize();
            Err(InnerRefused)
        }
    }
}
