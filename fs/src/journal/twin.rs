//! A small sealed record kept in two files that say the same, so that one good copy survives any crash and any damage
//! to one of them: checkpoint, pins and the signed commit on its way.
//!
//! Invariant: `write` returns after both copies are durable, the first before the second is begun. An older copy must
//! not pass for the newest: the journal behind an older checkpoint is gone.
//! Layout: `magic4 ‖ ver ‖ 0×3 ‖ drive32 ‖ generation u64 ‖ salt32` (80 bytes, the associated data) ‖ the record under
//! both local locks. Called by the engine's open, checkpoint and commit.

use std::io;
use std::sync::Arc;

use sealdrive_core::local::LocalKeys;
use sealdrive_pack::{Medium, is_no_space};
use sealdrive_proto::id::DriveId;

use crate::clock;

const HEADER: usize = 80;
const VERSION: u8 = 1;

/// What a twin holds; the magic is authenticated, so that one kind of record never passes for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The newest tree root on this machine.
    Checkpoint,
    /// What this device has seen of the server's chain.
    Pins,
    /// A signed commit that the server may not have answered yet.
    Commit,
    /// What is known of a branch that was set aside.
    Conflict,
}

impl Purpose {
    fn magic(self) -> &'static [u8; 4] {
        match self {
            Self::Checkpoint => b"SDC1",
            Self::Pins => b"SDP1",
            Self::Commit => b"SDM1",
            Self::Conflict => b"SDX1",
        }
    }

    fn stem(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Pins => "pins",
            Self::Commit => "commit",
            Self::Conflict => "conflict",
        }
    }
}

/// Why a twin could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    /// The file system failed.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// Files are there and none opens under this drive's local keys.
    #[error("no copy of {0} opens")]
    Damaged(&'static str),
}

impl TwinError {
    /// Whether it was only space that was missing: writing it again is safe, whichever copy was written.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io(_, e) if is_no_space(e))
    }
}

/// Two copies of one record.
pub struct Twin {
    dir: Arc<dyn Medium>,
    drive: DriveId,
    purpose: Purpose,
    keys: Arc<LocalKeys>,
    generation: u64,
    healed: bool,
}

impl Twin {
    /// Reads the newest good copy. `Ok((_, None))` only if there is no copy at all.
    pub fn open(
        dir: Arc<dyn Medium>,
        drive: DriveId,
        purpose: Purpose,
        keys: Arc<LocalKeys>,
    ) -> Result<(Self, Option<Vec<u8>>), TwinError> {
        let mut twin = Self {
            dir,
            drive,
            purpose,
            keys,
            generation: 0,
            healed: false,
        };
        let mut newest: Option<(Vec<u8>, Vec<u8>)> = None;
        let mut found = false;
        let mut behind = [true; 2];
        for slot in 0..2 {
            let bytes = match twin.dir.read(&twin.name(slot)) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(TwinError::Io(purpose.stem(), e)),
            };
            found = true;
            let Some((generation, plain)) = twin.parse(&bytes) else {
                twin.healed = true;
                continue;
            };
            if generation > twin.generation {
                twin.generation = generation;
                behind = [true; 2];
                newest = Some((plain, bytes));
            }
            behind[slot as usize] = generation < twin.generation;
        }
        let Some((plain, bytes)) = newest else {
            return if found {
                Err(TwinError::Damaged(purpose.stem()))
            } else {
                Ok((twin, None))
            };
        };
        for slot in (0..2).filter(|slot| behind[*slot as usize]) {
            // A full disk must not keep the drive from being mounted: the next `write` makes two of it again.
            if let Err(error) = twin.write_slot(slot, &bytes) {
                tracing::warn!(%error, "no second copy of {}", purpose.stem());
            }
        }
        Ok((twin, Some(plain)))
    }

    /// A record whose copies, if any, are not to be believed: the next `write` outlives them.
    pub fn fresh(
        dir: Arc<dyn Medium>,
        drive: DriveId,
        purpose: Purpose,
        keys: Arc<LocalKeys>,
    ) -> Self {
        Self {
            dir,
            drive,
            purpose,
            keys,
            generation: 0,
            healed: false,
        }
    }

    /// Which record had a damaged copy, restored from the other, if one had.
    pub fn healed(&self) -> Option<&'static str> {
        self.healed.then(|| self.purpose.stem())
    }

    /// Makes `plain` the newest record, durably.
    pub fn write(&mut self, plain: &[u8]) -> Result<(), TwinError> {
        self.write_file(plain)
            .map_err(|e| TwinError::Io(self.purpose.stem(), e))
    }

    fn write_file(&mut self, plain: &[u8]) -> io::Result<()> {
        let generation = self.generation + 1;
        let salt = clock::entropy::<32>().map_err(io::Error::other)?;
        let mut file = self.header(generation, &salt).to_vec();
        file.extend_from_slice(&self.keys.seal_record(&file[..], 0, plain));
        for slot in 0..2 {
            self.write_slot(slot, &file)?;
        }
        self.generation = generation;
        Ok(())
    }

    fn write_slot(&self, slot: u64, file: &[u8]) -> io::Result<()> {
        self.dir.replace(&self.name(slot), file)
    }

    fn name(&self, slot: u64) -> String {
        format!("{}.{slot}", self.purpose.stem())
    }

    fn header(&self, generation: u64, salt: &[u8; 32]) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(self.purpose.magic());
        out[4] = VERSION;
        out[8..40].copy_from_slice(self.drive.as_bytes());
        out[40..48].copy_from_slice(&generation.to_le_bytes());
        out[48..].copy_from_slice(salt);
        out
    }

    fn parse(&self, bytes: &[u8]) -> Option<(u64, Vec<u8>)> {
        let (header, sealed) = bytes.split_first_chunk::<HEADER>()?;
        let generation = u64::from_le_bytes(header[40..48].try_into().ok()?);
        let salt: [u8; 32] = header[48..].try_into().ok()?;
        if *header != self.header(generation, &salt) {
            return None;
        }
        let plain = self.keys.open_record(header, 0, sealed).ok()?;
        Some((generation, plain.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealdrive_pack::Directory;
    use std::path::Path;

    fn open(dir: &Path) -> (Twin, Option<Vec<u8>>) {
        let dir = Arc::new(Directory::open(dir).unwrap());
        let keys = Arc::new(LocalKeys::derive(&[1; 32], &[2; 32]));
        Twin::open(dir, DriveId([3; 32]), Purpose::Checkpoint, keys).unwrap()
    }

    /// Two alternating generations: a flipped bit in the newer checkpoint brought the older one back, whose journal had
    /// been trimmed, and what was fsynced between the two was gone without a word.
    #[test]
    fn damage_to_one_copy_never_brings_back_an_older_record() {
        let dir = tempfile::tempdir().unwrap();
        let (mut twin, none) = open(dir.path());
        assert_eq!(none, None);
        twin.write(b"first").unwrap();
        twin.write(b"second").unwrap();
        for slot in 0..2 {
            let path = dir.path().join(twin.name(slot));
            let good = std::fs::read(&path).unwrap();
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                std::fs::write(&path, bad).unwrap();
                let (healed, found) = open(dir.path());
                assert_eq!(found.as_deref(), Some(&b"second"[..]), "byte {at}");
                assert_eq!(healed.healed(), Some("checkpoint"));
                assert_eq!(std::fs::read(&path).unwrap(), good, "byte {at}");
            }
            std::fs::remove_file(&path).unwrap();
            assert_eq!(open(dir.path()).1.as_deref(), Some(&b"second"[..]));
            assert!(path.exists(), "there are two again");
        }
    }

    #[test]
    fn a_crash_between_the_two_copies_leaves_the_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let (mut twin, _) = open(dir.path());
        twin.write(b"old").unwrap();
        let old = std::fs::read(dir.path().join(twin.name(1))).unwrap();
        twin.write(b"new").unwrap();
        std::fs::write(dir.path().join(twin.name(1)), old).unwrap();
        let (twin, found) = open(dir.path());
        assert_eq!(found.as_deref(), Some(&b"new"[..]));
        assert_eq!(twin.healed(), None, "that is no damage");
    }
}
