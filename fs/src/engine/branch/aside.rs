//! Setting a branch aside: everything this machine has that the server's chain does not lead to moves out of the way.
//!
//! Invariant: the directory that is marked as moving is durable, with its record, before the first file moves, and an
//! open that finds one finishes it before it looks at anything else. At every moment each file of the branch is in one
//! of the two places. Called by the engine's open.

use std::io;
use std::sync::Arc;

use sealdrive_pack::Medium;
use sealdrive_proto::id::DeviceId;

use super::{Cause, Conflict, DIR, DROPPED, MOVING, Reader, base, broken, has, signed};
use crate::clock;
use crate::engine::EngineError;
use crate::engine::chain::{Chain, root_of};
use crate::engine::config::EngineConfig;
use crate::engine::crash::CrashPoints;
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

/// Suffix of one whose record is not durable yet: nothing has moved there.
const MAKING: &str = "making";

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

/// Sets aside what `local` holds, out of `dir`. It is closed afterwards: open it anew.
pub(in crate::engine) fn set_aside(
    mut local: Local,
    dir: &dyn Medium,
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
    mark(dir, config, &mut conflict).map_err(|error| match error {
        Mark::Io(error) => broken("setting a branch aside")(error),
        Mark::Record(error) => error.into(),
    })?;
    config.crash.reached("aside-marked");
    local.store.disown_outbox()?;
    // Nothing may hold the files when they move.
    drop((reader, local));
    carry(dir, &conflict.id, false, &config.crash).map_err(broken("setting a branch aside"))?;
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
fn mark(dir: &dyn Medium, config: &EngineConfig, conflict: &mut Conflict) -> Result<(), Mark> {
    let base = dir.directory(DIR)?;
    let there = base.list()?;
    let mut secs = conflict.at_ms / 1000;
    while has(&there, &id_of(secs)) {
        secs += 1;
    }
    conflict.id = id_of(secs);
    let making = format!("{}.{MAKING}", conflict.id);
    if has(&there, &making) {
        base.remove_directory(&making)?;
    }
    let (keys, within) = (Arc::clone(&config.local), base.directory(&making)?);
    let mut record = Twin::fresh(within, config.drive, Purpose::Conflict, keys);
    let text = serde_json::to_vec(&*conflict).map_err(io::Error::other)?;
    record.write(&text).map_err(Mark::Record)?;
    base.rename(&making, &format!("{}.{MOVING}", conflict.id))?;
    base.sync_dir()?;
    Ok(dir.sync_dir()?)
}

/// `20261124T221405Z`: sorts by time, and is easily typed.
fn id_of(secs: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(secs);
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.chars().filter(|c| !"-:".contains(*c)).collect()
}

/// Moves the files and takes the mark off.
fn carry(dir: &dyn Medium, id: &str, with_index: bool, crash: &CrashPoints) -> io::Result<()> {
    let (base, moving) = (dir.directory(DIR)?, format!("{id}.{MOVING}"));
    let target = base.directory(&moving)?;
    let (here, there) = (dir.list()?, target.list()?);
    for name in MOVED.into_iter().chain(with_index.then_some(INDEX)) {
        // Not over what a former attempt has moved.
        if has(&here, name) && !has(&there, name) {
            dir.rename(name, &format!("{DIR}/{moving}/{name}"))?;
            crash.reached("aside-moving");
        }
    }
    target.sync_dir()?;
    dir.sync_dir()?;
    crash.reached("aside-moved");
    base.rename(&moving, id)?;
    base.sync_dir()?;
    crash.reached("aside-done");
    Ok(())
}

/// Finishes what was interrupted: a branch on its way out of the drive's directory, or a dropped one being deleted.
pub(in crate::engine) fn finish(dir: &dyn Medium, crash: &CrashPoints) -> Result<(), EngineError> {
    let failed = broken("setting a branch aside");
    let Some(base) = base(Some(dir)).map_err(&failed)? else {
        return Ok(());
    };
    for name in base.list().map_err(&failed)? {
        let finished = match name.rsplit_once('.') {
            Some((id, MOVING)) => carry(dir, id, true, crash),
            Some((_, DROPPED | MAKING)) => base.remove_directory(&name),
            _ => Ok(()),
        };
        finished.map_err(&failed)?;
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
        let medium = sealdrive_pack::Directory::open(dir.path()).unwrap();
        finish(&medium, &CrashPoints::default()).unwrap();
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
