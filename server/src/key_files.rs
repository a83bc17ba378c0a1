//! The files that clients pin (identity, certificate, its key), and one copy of all three.
//!
//! Invariant: after `settle` each file is what it was when it was made, though any one of the four is damaged or gone;
//! a data directory that holds packs is never given new keys, which no client would know. Called before the keys are
//! opened, by `Server::start`, `invite` and `status`.

use std::io;
use std::path::Path;

use zeroize::Zeroizing;

use crate::identity;
use crate::private_file;
use crate::tls;

const COPY: &str = "keys.copy";
const FILES: [&str; 3] = [identity::FILE, tls::CERTIFICATE, tls::KEY];
/// Length of the check in front of the copy, bytes.
const CHECK: usize = 32;

/// Restores what is damaged or gone from the copy. To change a key on purpose, remove `keys.copy` as well.
pub(crate) fn settle(data: &Path) -> io::Result<()> {
    let Some(good) = read_copy(data) else {
        // Packs without an identity: made keys would lock every client out, and say nothing.
        let lost = FILES.iter().find(|name| !data.join(name).exists());
        if let Some(name) = lost.filter(|_| holds_packs(data)) {
            let path = data.join(name);
            let message = format!(
                "{} is missing, and so is {COPY}; restore one of them from a backup (clients pin it)",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        return Ok(());
    };
    for (name, bytes) in FILES.iter().zip(&good) {
        let path = data.join(name);
        if !std::fs::read(&path).is_ok_and(|found| found == **bytes) {
            tracing::error!(file = name, "damaged or gone; restored from {COPY}");
            private_file::write(&path, bytes)?;
        }
    }
    Ok(())
}

/// Makes the copy if there is none, or none that passes its check. After the keys were opened.
pub(crate) fn keep(data: &Path) -> io::Result<()> {
    if read_copy(data).is_some() {
        return Ok(());
    }
    let mut body = Zeroizing::new(Vec::new());
    for name in FILES {
        let bytes = Zeroizing::new(std::fs::read(data.join(name))?);
        body.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        body.extend_from_slice(&bytes);
    }
    let mut copy = Zeroizing::new(check(&body).to_vec());
    copy.extend_from_slice(&body);
    private_file::write(&data.join(COPY), &copy)
}

fn check(body: &[u8]) -> [u8; CHECK] {
    blake3::derive_key("sealdrive 2026 v1 copy of the server's keys", body)
}

fn read_copy(data: &Path) -> Option<[Zeroizing<Vec<u8>>; 3]> {
    let bytes = Zeroizing::new(std::fs::read(data.join(COPY)).ok()?);
    let (found, mut rest) = bytes.split_first_chunk::<CHECK>()?;
    if *found != check(rest) {
        return None;
    }
    let mut next = || {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let (file, tail) = tail.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        rest = tail;
        Some(Zeroizing::new(file.to_vec()))
    };
    Some([next()?, next()?, next()?])
}

fn holds_packs(data: &Path) -> bool {
    std::fs::read_dir(data.join("packs")).is_ok_and(|mut packs| packs.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::tls::Certificate;

    fn open(data: &Path) -> ([u8; 32], [u8; 32]) {
        settle(data).unwrap();
        let identity = Identity::open(data, &Zeroizing::new([7; 32])).unwrap();
        let certificate = Certificate::open(data).unwrap();
        keep(data).unwrap();
        (identity.public(), certificate.fingerprint())
    }

    /// A flipped bit in the identity made another server of it, and every client called it an impostor.
    #[test]
    fn any_one_file_may_be_damaged_or_gone() {
        let dir = tempfile::tempdir().unwrap();
        let pinned = open(dir.path());
        for name in FILES.into_iter().chain([COPY]) {
            let path = dir.path().join(name);
            let good = std::fs::read(&path).unwrap();
            for at in (0..good.len()).step_by(if good.len() > 200 { 37 } else { 1 }) {
                let mut bad = good.clone();
                bad[at] ^= 1;
                std::fs::write(&path, bad).unwrap();
                assert_eq!(open(dir.path()), pinned, "{name}, byte {at}");
                assert_eq!(std::fs::read(&path).unwrap(), good, "{name}, byte {at}");
            }
            std::fs::write(&path, &good[..good.len() / 2]).unwrap();
            assert_eq!(open(dir.path()), pinned, "{name} cut");
            std::fs::remove_file(&path).unwrap();
            assert_eq!(open(dir.path()), pinned, "{name} gone");
            assert_eq!(std::fs::read(&path).unwrap(), good);
        }
    }

    #[test]
    fn a_store_never_gets_new_keys() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        std::fs::create_dir(dir.path().join("packs")).unwrap();
        std::fs::write(dir.path().join("packs/x"), b"x").unwrap();
        for name in [identity::FILE, COPY] {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        let error = settle(dir.path()).unwrap_err().to_string();
        assert!(error.contains(identity::FILE), "{error}");
    }
}
