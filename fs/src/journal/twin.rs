//! A small sealed record kept in two alternating files, so that one good copy survives any crash: checkpoint, pins and
//! the signed commit on its way.
//!
//! Invariant: `write` touches only the copy that does not hold the newest generation, and returns after file and
//! directory are durable. Layout: `magic4 ‖ ver ‖ 0×3 ‖ drive32 ‖ generation u64 ‖ salt32` (80 bytes, the associated
//! data) ‖ the record under both local locks. Called by the engine's open, checkpoint and commit.

use std::io;
use std::sync::Arc;

use sealdrive_core::local::LocalKeys;
use sealdrive_pack::Medium;
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

/// Two alternating copies of one record.
pub struct Twin {
    dir: Arc<dyn Medium>,
    drive: DriveId,
    purpose: Purpose,
    keys: Arc<LocalKeys>,
    generation: u64,
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
        };
        let mut newest = None;
        let mut found = false;
        for slot in 0..2 {
            let bytes = match twin.dir.read(&twin.name(slot)) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(TwinError::Io(purpose.stem(), e)),
            };
            found = true;
            if let Some((generation, plain)) = twin.parse(&bytes)
                && generation > twin.generation
            {
                twin.generation = generation;
                newest = Some(plain);
            }
        }
        if found && newest.is_none() {
            return Err(TwinError::Damaged(purpose.stem()));
        }
        Ok((twin, newest))
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
        }
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
        self.dir.replace(&self.name(generation % 2), &file)?;
        self.generation = generation;
        Ok(())
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
