//! Invitations: one file each, so that the operator's command and the running server need no channel of their own.
//!
//! Invariant: an invitation is good for one account. The file's name is the hash of the code, so the directory gives no
//! code away. Taking it renames the file to the account's name, so that a registration that a crash cut short can be
//! repeated by that account and by no other. Called by `invite` (makes) and by registration (takes, then spends).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use sealdrive_proto::id::AccountId;

use crate::private_file;

const DIR: &str = "invites";
/// Most invitations open at once: a bound on the directory.
const MAX_OPEN: usize = 10_000;

fn path(data: &Path, code: &[u8; 16]) -> PathBuf {
    let mut hasher = blake3::Hasher::new_derive_key("sealdrive 2026 v1 invitation");
    hasher.update(code);
    data.join(DIR).join(hasher.finalize().to_hex().as_str())
}

fn taken(data: &Path, code: &[u8; 16], by: &AccountId) -> PathBuf {
    path(data, code).with_extension(by.to_hex())
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

/// Takes the invitation for an account. False if it is not open and that account has not taken it before: of two takers
/// one gets it.
pub fn take(data: &Path, code: &[u8; 16], account: &AccountId) -> io::Result<bool> {
    let taken = taken(data, code, account);
    match std::fs::rename(path(data, code), &taken) {
        Ok(()) => {
            File::open(data.join(DIR))?.sync_all()?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => taken.try_exists(),
        Err(error) => Err(error),
    }
}

/// Forgets an invitation whose account is durable.
pub fn spend(data: &Path, code: &[u8; 16], account: &AccountId) -> io::Result<()> {
    std::fs::remove_file(taken(data, code, account))?;
    File::open(data.join(DIR))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_for_one_account() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (AccountId([1; 32]), AccountId([2; 32]));
        assert!(!take(dir.path(), &[1; 16], &first).unwrap());
        open(dir.path(), &[1; 16]).unwrap();
        assert!(!take(dir.path(), &[2; 16], &first).unwrap(), "another code");
        assert!(take(dir.path(), &[1; 16], &first).unwrap());
        assert!(!take(dir.path(), &[1; 16], &second).unwrap(), "good twice");
        assert!(
            take(dir.path(), &[1; 16], &first).unwrap(),
            "a repetition after a crash"
        );
        spend(dir.path(), &[1; 16], &first).unwrap();
        assert!(!take(dir.path(), &[1; 16], &first).unwrap(), "spent");
    }
}
