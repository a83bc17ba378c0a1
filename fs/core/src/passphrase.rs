//! Passphrase to key: NFC, then Argon2id within compiled bounds, in memory that is wiped.
//!
//! Invariant: no parameters below the floor or above the ceiling are ever run, whoever sends them.
//! Called by the slot room only. With the default it takes about a second and 256 MiB.

use crate::secret::Secret;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use unicode_normalization::UnicodeNormalization;
use zeroize::{Zeroize, Zeroizing};

/// Argon2 version 1.3, as it stands in slots.
pub(crate) const ARGON2_VERSION: u32 = 0x13;
/// Longest passphrase taken, bytes after normalisation: bounds the work of hashing it.
pub const MAX_PASSPHRASE: usize = 1024;

/// Cost of one guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Memory, KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes, each of which may be a thread.
    pub lanes: u32,
}

impl Argon2Cost {
    /// For new slots: 256 MiB, 3 passes, 4 lanes.
    pub const DEFAULT: Self = Self {
        memory_kib: 256 << 10,
        passes: 3,
        lanes: 4,
    };
    /// The least a slot may ask for (RFC 9106, second recommended choice): a server cannot make guessing cheap.
    pub const FLOOR: Self = Self {
        memory_kib: 64 << 10,
        passes: 3,
        lanes: 1,
    };
    /// The most a slot may ask for: a server cannot make unlocking impossible.
    pub const CEILING: Self = Self {
        memory_kib: 2 << 20,
        passes: 16,
        lanes: 16,
    };

    /// Whether every parameter lies between floor and ceiling.
    pub fn is_allowed(&self) -> bool {
        let (low, high) = (Self::FLOOR, Self::CEILING);
        (low.memory_kib..=high.memory_kib).contains(&self.memory_kib)
            && (low.passes..=high.passes).contains(&self.passes)
            && (low.lanes..=high.lanes).contains(&self.lanes)
    }
}

/// Why a passphrase was not stretched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PassphraseError {
    /// Outside floor and ceiling.
    #[error("refused passphrase parameters: too weak or too costly")]
    Cost,
    /// Longer than [`MAX_PASSPHRASE`].
    #[error("passphrase is too long")]
    TooLong,
    /// The memory is not to be had on this machine.
    #[error("not enough memory to check the passphrase")]
    Memory,
}

/// Argon2id of the NFC form: 64 bytes.
pub(crate) fn stretch(
    passphrase: &str,
    salt: &[u8; 16],
    cost: Argon2Cost,
) -> Result<Secret<64>, PassphraseError> {
    if !cost.is_allowed() {
        return Err(PassphraseError::Cost);
    }
    // The same passphrase typed on two systems arrives in two Unicode forms. Reserved whole, so that growing leaves
    // no copy (NFC can triple the length).
    let mut normal = Zeroizing::new(String::with_capacity(3 * passphrase.len()));
    normal.extend(passphrase.nfc());
    if normal.len() > MAX_PASSPHRASE {
        return Err(PassphraseError::TooLong);
    }
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(64))
        .map_err(|_| PassphraseError::Cost)?;
    let mut blocks = Memory::reserve(params.block_count())?;
    let mut out = Secret::zeroed();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(
            normal.as_bytes(),
            salt,
            out.expose_mut(),
            &mut blocks.0[..],
        )
        .map_err(|_| PassphraseError::Cost)?;
    Ok(out)
}

/// Argon2's working memory. Our own, because the library leaves its own unwiped.
struct Memory(Vec<Block>);

impl Memory {
    fn reserve(blocks: usize) -> Result<Self, PassphraseError> {
        let mut memory = Vec::new();
        memory
            .try_reserve_exact(blocks)
            .map_err(|_| PassphraseError::Memory)?;
        memory.resize(blocks, Block::new());
        Ok(Self(memory))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|block| block.as_mut().zeroize());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold() {
        assert!(
            Argon2Cost::DEFAULT.is_allowed()
                && Argon2Cost::FLOOR.is_allowed()
                && Argon2Cost::CEILING.is_allowed()
        );
        let d = Argon2Cost::DEFAULT;
        for bad in [
            Argon2Cost {
                memory_kib: (64 << 10) - 1,
                ..d
            },
            Argon2Cost {
                memory_kib: (2 << 20) + 1,
                ..d
            },
            Argon2Cost { passes: 2, ..d },
            Argon2Cost { passes: 17, ..d },
            Argon2Cost { lanes: 0, ..d },
            Argon2Cost { lanes: 17, ..d },
        ] {
            assert!(
                matches!(stretch("x", &[0; 16], bad), Err(PassphraseError::Cost)),
                "{bad:?}"
            );
        }
        let long = "x".repeat(MAX_PASSPHRASE + 1);
        assert!(matches!(
            stretch(&long, &[0; 16], d),
            Err(PassphraseError::TooLong)
        ));
    }

    #[test]
    fn unicode_forms_are_one_passphrase_and_case_is_not() {
        let key = |p| match stretch(p, &[1; 16], Argon2Cost::FLOOR) {
            Ok(key) => *key.expose(),
            Err(error) => panic!("the floor is allowed: {error}"),
        };
        let composed = key("h\u{e9}llo");
        assert_eq!(composed, key("he\u{301}llo"));
        assert_ne!(composed, key("hello"));
    }
}
