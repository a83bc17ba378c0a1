//! Invitations: one file each, so that the operator's command and the running server need no channel of their own.
//!
//! Invariant: an invitation is good once. The file's name is the hash of the code, so the directory gives no code away.
//! Called by `invite` (makes) and by registration (takes).

use std::io;
use std::path::{Path, PathBuf};

use crate::private_file;

const DIR: &str = "invites";
/// Most invitations open at once: a bound on the directory.
const MAX_OPEN: usize = 10_000;

fn path(data: &Path, code: &[u8; 16]) -> PathBuf {
    let mut hasher = blake3::Hasher::new_derive_key("sealdrive 2026 v1 invitation");
    hasher.update(code);
    data.join(DIR).join(hasher.finalize().to_hex().as_str())
}

/// Opens an invitation with a fresh random code.
pub fn open(data: &Path, code: &[u8; 16]) -> io::Result<()> {
    std::fs::create_dir_all(data.join(DIR))?;
    if std::fs::read_dir(data.join(DIR))?.count() >= MAX_OPEN {
        return Err(io::Error::other(format!(
            "{MAX_OPEN} invitations are open; remove some of {DIR}/"
        )));
    }
    private_file::write(&path(data, code), b"")
}

/// Whether the invitation is open; does not use it up.
pub fn is_open(data: &Path, code: &[u8; 16]) -> io::Result<bool> {
    path(data, code).try_exists()
}

/// Uses the invitation up. False if it was not open: of two takers one gets it.
pub fn take(data: &Path, code: &[u8; 16]) -> io::Result<bool> {
    match std::fs::remove_file(path(data, code)) {
        Ok(()) => {
            std::fs::File::open(data.join(DIR))?.sync_all()?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!take(dir.path(), &[1; 16]).unwrap());
        open(dir.path(), &[1; 16]).unwrap();
        assert!(is_open(dir.path(), &[1; 16]).unwrap());
        assert!(!take(dir.path(), &[2; 16]).unwrap());
        assert!(take(dir.path(), &[1; 16]).unwrap());
        assert!(!take(dir.path(), &[1; 16]).unwrap(), "good twice");
    }
}
