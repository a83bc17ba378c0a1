//! The inner lock: AES-256-SIV (RFC 5297). The only file of the library that may name `aes_siv`.
//!
//! Invariant: there is always associated data and its first item is a constant label, because an empty S2V vector
//! compiles and would make what is sealed for one purpose open for another. Deterministic: equal input, equal bytes.
//! Called by the object seal and by the slot, key box and local records.

use super::lanes::{self, Message};
use crate::secret::Secret;
use aes::Aes256;
use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherEncrypt, BlockSizeUser, KeyInit, KeySizeUser};
use aes_siv::siv::{Aes256Siv, Siv};
use cmac::digest::FixedOutputReset;
use cmac::{Cmac, Mac};
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
    siv_encrypt(
        &mut Aes256Siv::new(key.expose().into()),
        data.vector(),
        room,
    );
}

/// Seals each in place, several side by side; the same bytes as [`lock`] makes. None may be shorter than a block.
pub(crate) fn lock_together<'a>(
    key: &Secret<64>,
    rooms: impl Iterator<Item = (InnerData<'a>, &'a mut [u8])>,
) {
    let message = |(data, room): (InnerData<'a>, &'a mut [u8])| {
        let vector = std::iter::once(data.label.as_bytes()).chain(data.fields.iter().copied());
        Message {
            vector: vector.collect(),
            room,
        }
    };
    let mut messages: Vec<Message<'_>> = rooms.map(message).collect();
    lanes::encrypt::<Aes256, Cmac<Aes256>>(key.expose(), &mut messages);
}

/// Opens in place and returns the plaintext within `sealed`. On refusal the buffer is wiped (RFC 5297 §2.7).
pub(crate) fn unlock<'b>(
    key: &Secret<64>,
    data: InnerData<'_>,
    sealed: &'b mut [u8],
) -> Result<&'b mut [u8], InnerRefused> {
    siv_decrypt(
        &mut Aes256Siv::new(key.expose().into()),
        data.vector(),
        sealed,
    )
}

// Generic over the cipher only so that the RFC's own vectors, which are for AES-128, run through the code that is
// used.

pub(super) fn siv_encrypt<'a, C, M>(
    siv: &mut Siv<C, M>,
    vector: impl Iterator<Item = &'a [u8]>,
    room: &mut [u8],
) where
    C: BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + KeyInit + KeySizeUser,
    M: Mac<OutputSize = U16> + FixedOutputReset + KeyInit,
{
    let (tag, text) = room.split_at_mut(TAG_LEN);
    let v = siv
        .encrypt_inout_detached(vector, text.into())
        .expect("fewer than 127 components");
    tag.copy_from_slice(&v);
}

pub(super) fn siv_decrypt<'a, 'b, C, M>(
    siv: &mut Siv<C, M>,
    vector: impl Iterator<Item = &'a [u8]>,
    sealed: &'b mut [u8],
) -> Result<&'b mut [u8], InnerRefused>
where
    C: BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + KeyInit + KeySizeUser,
    M: Mac<OutputSize = U16> + FixedOutputReset + KeyInit,
{
    let (tag, text) = sealed
        .split_first_chunk_mut::<TAG_LEN>()
        .ok_or(InnerRefused)?;
    match siv.decrypt_inout_detached(vector, (&mut *text).into(), &(*tag).into()) {
        Ok(()) => Ok(text),
        Err(_) => {
            text.zeroize();
            Err(InnerRefused)
        }
    }
}
