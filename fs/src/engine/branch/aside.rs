//! Setting a branch aside: everything this machine has that the server's chain does not lead to moves out of the way.
//!
//! Invariant: the directory that is marked as moving is durable, with its record, before the first file moves, and an
//! open that finds one finishes it before it looks at anything else. At every moment each file of the branch is in one
//! of the two places. Called by the engine's open.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use sealdrive_pack::Directory;
use sealdrive_proto::id::DeviceId;

use super::{Cause, Conflict, DIR, DROPPED, MOVING, Reader, broken, signed};
use crate::clock;
use crate::engine::EngineError;
use crate::engine::chain::{Chain, root_of};
use crate::engine::config::EngineConfig;
use crate::engine::fence::name_of;
use crate::engine::local::Local;
use crate::engine::open::pins_bytes;
use crate::journal::{Purpose, Twin};

/// What moves. The pins stay: they are this machine's memory of the server. So does the cache: copies only.
const MOVED: [&str; 6] = [
    "journal",
    "outbox",
    "checkpoint.0",
    "checkpoint.1",
    "commit.0",
    "commit.1",
];
/// The index moves too when it may still know the moved packs; both places then rebuild theirs.
const INDEX: &str = "state.redb";

/// The server's chain does not lead on from what this machine has, or only the chain can still be read.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Diverged {
    /// Who wrote its head.
    pub(in crate::engine) by: DeviceId,
    /// Number of the head.
    pub(in crate::engine) seq: u64,
    /// Why it does not.
    pub(in crate::engine) cause: Cause,
}

/// Sets aside what `local` holds. It is closed afterwards: open it anew.
pub(in crate::engine) fn set_aside(
    mut local: Local,
    config: &EngineConfig,
    chain: &mut Chain,
    diverged: Diverged,
) -> Result<Conflict, EngineError> {
    if let Some(fields) = signed(&local.records) {
        chain.signed(&fields);
    }
    let author = local.records.found_pins.as_ref().map(|(author, _)| *author);
    let author = author.unwrap_or(config.device);
    let pins = pins_bytes(&author, chain.pins());
    local.records.pins.write(&pins)?;

    let reader = Reader::new(&mut local, root_of(chain.pins()));
    let counts = match reader.changes() {
        Ok(changes) => Some(changes.counts),
        Err(error) => {
            tracing::warn!("what is set aside could not be counted: {error}");
            None
        }
    };
    let at_ms = clock::wall_ms();
    let mut conflict = Conflict {
        id: String::new(),
        at_ms,
        by: diverged.by.to_hex(),
        by_name: name_of(&config.device_names, &diverged.by),
        base_seq: chain.pins().seq(),
        head_seq: diverged.seq,
        counts,
        base: None,
        cause: diverged.cause,
    };
    conflict.set_base(root_of(chain.pins()));
    let base = config.dir.join(DIR);
    mark(&base, config, &mut conflict).map_err(|error| match error {
        Mark::Io(error) => broken("setting a branch aside")(error),
        Mark::Record(error) => error.into(),
    })?;
    local.store.disown_outbox()?;
    // Nothing may hold the files when they move.
    drop((reader, local));
    carry(&config.dir, &conflict.id, false).map_err(broken("setting a branch aside"))?;
    Ok(conflict)
}

enum Mark {
    Io(io::Error),
    Record(crate::journal::TwinError),
}

impl From<io::Error> for Mark {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Makes the directory, with its record, durable under its moving name.
fn mark(base: &Path, config: &EngineConfig, conflict: &mut Conflict) -> Result<(), Mark> {
    DirBuilder::new().recursive(true).mode(0o700).create(base)?;
    let mut secs = conflict.at_ms / 1000;
    while base.join(id_of(secs)).exists() {
        secs += 1;
    }
    conflict.id = id_of(secs);
    let making = base.join(format!("{}.making", conflict.id));
    match std::fs::remove_dir_all(&making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&making)?;
    let keys = Arc::clone(&config.local);
    let within = Arc::new(Directory::open(&making)?);
    let mut record = Twin::fresh(within, config.drive, Purpose::Conflict, keys);
    let text = serde_json::to_vec(&*conflict).map_err(io::Error::other)?;
    record.write(&text).map_err(Mark::Record)?;
    std::fs::rename(&making, base.join(format!("{}.{MOVING}", conflict.id)))?;
    File::open(base)?.sync_all()?;
    Ok(File::open(&config.dir)?.sync_all()?)
}

/// `20261124T221405Z`: sorts by time, and is easily typed.
fn id_of(secs: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(secs);
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.chars().filter(|c| !"-:".contains(*c)).collect()
}

/// Moves the files and takes the mark off.
fn carry(dir: &Path, id: &str, with_index: bool) -> io::Result<()> {
    let base = dir.join(DIR);
    let target = base.join(format!("{id}.{MOVING}"));
    for name in MOVED.into_iter().chain(with_index.then_some(INDEX)) {
        // Not over what a former attempt has moved.
        if dir.join(name).exists() && !target.join(name).exists() {
            std::fs::rename(dir.join(name), target.join(name))?;
        }
    }
    File::open(&target)?.sync_all()?;
    File::open(dir)?.sync_all()?;
    std::fs::rename(&target, base.join(id))?;
    File::open(&base)?.sync_all()
}

/// Finishes what was interrupted: a branch on its way out of the drive's directory, or a dropped one being deleted.
pub(in crate::engine) fn finish(dir: &Path) -> Result<(), EngineError> {
    let failed = broken("setting a branch aside");
    let entries = match std::fs::read_dir(dir.join(DIR)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(&failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(&failed)?;
        let name = entry.file_name().into_string().unwrap_or_default();
        match name.rsplit_once('.') {
            Some((id, MOVING)) => carry(dir, id, true).map_err(&failed)?,
            Some((_, DROPPED | "making")) => {
                std::fs::remove_dir_all(entry.path()).map_err(&failed)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_have_no_suffix() {
        assert_eq!(id_of(1_795_558_445), "20261124T221405Z");
        assert!(id_of(1_795_558_445) < id_of(1_795_558_446) && !id_of(0).contains('.'));
    }

    #[test]
    fn a_move_that_broke_off_is_finished_and_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let moving = dir.path().join("conflicts/20261124T221405Z.moving");
        std::fs::create_dir_all(moving.join("journal")).unwrap();
        std::fs::write(moving.join("journal/a"), "moved before").unwrap();
        std::fs::create_dir(dir.path().join("outbox")).unwrap();
        std::fs::write(dir.path().join("outbox/b"), "not yet moved").unwrap();
        std::fs::write(dir.path().join("state.redb"), "index").unwrap();
        std::fs::write(dir.path().join("pins.0"), "pins").unwrap();
        let making = dir.path().join("conflicts/20261124T221406Z.making");
        std::fs::create_dir_all(&making).unwrap();
        finish(dir.path()).unwrap();
        let there = dir.path().join("conflicts/20261124T221405Z");
        for (name, content) in [
            ("journal/a", "moved before"),
            ("outbox/b", "not yet moved"),
            ("state.redb", "index"),
        ] {
            assert_eq!(std::fs::read_to_string(there.join(name)).unwrap(), content);
        }
        assert!(dir.path().join("pins.0").exists() && !making.exists() && !moving.exists());
        assert_eq!(super::super::count(dir.path()), 1);
    }
}
