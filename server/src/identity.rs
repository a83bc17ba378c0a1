//! The server's identity: an Ed25519 key made on first start, pinned by every connect string and recovery kit.
//!
//! Invariant: the key never changes once it exists, and its file is readable by its owner alone. Called by
//! `Server::start` (signs each hello) and by `invite`.

use std::io;
use std::path::Path;

use ed25519_dalek::SigningKey;
use zeroize::Zeroizing;

use crate::private_file;

/// Name of the file.
pub(crate) const FILE: &str = "identity.key";

/// The key.
pub struct Identity(SigningKey);

impl Identity {
    /// Reads the identity of a data directory, making it on first start with `entropy`.
    pub fn open(dir: &Path, entropy: &Zeroizing<[u8; 32]>) -> io::Result<Self> {
        let path = dir.join(FILE);
        if !path.try_exists()? {
            private_file::write(&path, entropy.as_slice())?;
        }
        let bytes = Zeroizing::new(std::fs::read(&path)?);
        let seed: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| {
            let message = format!(
                "{} is not 32 bytes; restore it from a backup (clients pin it)",
                path.display()
            );
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?;
        Ok(Self(SigningKey::from_bytes(seed)))
    }

    /// The identity with this key, wherever it is kept.
    pub fn of(key: SigningKey) -> Self {
        Self(key)
    }

    /// Signs hellos.
    pub fn signing_key(&self) -> &SigningKey {
        &self.0
    }

    /// What clients pin.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path(), &Zeroizing::new([1; 32])).unwrap();
        let again = Identity::open(dir.path(), &Zeroizing::new([2; 32])).unwrap();
        assert_eq!(first.public(), again.public());
        std::fs::write(dir.path().join(FILE), [0; 31]).unwrap();
        assert!(Identity::open(dir.path(), &Zeroizing::new([3; 32])).is_err());
    }
}
