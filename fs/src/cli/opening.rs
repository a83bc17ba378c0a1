//! From an opened account to an opened engine: for `mount`, and for commands that look at a drive's local state.
//!
//! Invariant: a drive's directory has one process at a time; one that only still sends is asked to leave first. Called
//! by `mount` and `conflicts`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::exit::Failure;
use crate::account::{Numbers, Opened};
use crate::clock;
use crate::control::{self, Answer, Request};
use crate::engine::{Engine, EngineConfig};
use crate::home::Home;
use crate::keystore::DriveKeys;

/// How long a mount waits for news of the account before it goes on without: mounting works offline.
const CHAIN_PATIENCE: Duration = Duration::from_secs(3);
/// How long a machine that does not know the drive yet tries to reach the server before the command says so.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for a process that was asked to stop sending and leave the drive to this one.
const LEAVE_WAIT: Duration = Duration::from_secs(20);
/// How often that is looked at.
const LEAVE_LOOK: Duration = Duration::from_millis(50);

/// What the engine needs of this machine and account for one drive. `cache_dir`: where its state is, if elsewhere.
pub(super) fn engine_config(
    home: &Home,
    opened: &Opened,
    drive: &DriveKeys,
    cache_dir: Option<&Path>,
) -> Result<EngineConfig, Failure> {
    let remote = Arc::new(opened.remote(drive.drive, Arc::new(Numbers::new(home.clone()))));
    let chain = super::runtime()?.block_on(opened.chain(home, remote.as_ref(), CHAIN_PATIENCE))?;
    let dir = match cache_dir {
        Some(dir) => Home::locate(Some(dir.to_owned()))?.drive_dir(&drive.drive)?,
        None => home.drive_dir(&drive.drive)?,
    };
    let signing = opened.signing_key();
    let device = sealdrive_proto::id::DeviceId::of(&signing.verifying_key());
    let mut config = EngineConfig::new(
        dir,
        drive.drive,
        device,
        Arc::new(opened.domain_keys()),
        Arc::new(drive.local_keys()),
        Arc::new(signing),
        chain,
    );
    // A connection of its own: the one above lived on the little runtime that asked for the chain.
    config.remote = Some(Arc::new(
        opened.remote(drive.drive, Arc::new(Numbers::new(home.clone()))),
    ));
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    config.owner = (uid.as_raw(), gid.as_raw());
    config.device_names = opened.device_names(&config.account);
    config.join_patience = JOIN_PATIENCE;
    Ok(config)
}

/// Opens the engine. A process that was unmounted and only still sends is asked to leave: what it has not sent yet
/// is in the local state that this one opens.
pub(super) fn open_engine(config: EngineConfig, socket: &Path) -> Result<Engine, Failure> {
    let asked = control::ask(socket, &Request::Leave, &mut |_| ());
    let handed_over = matches!(asked, Ok(Answer::Done(_)));
    let deadline = clock::now() + LEAVE_WAIT;
    // It answers before it is gone; the lock on the drive's directory says when.
    while handed_over && is_locked(&config.dir) && clock::now() < deadline {
        std::thread::sleep(LEAVE_LOOK);
    }
    Ok(Engine::open(config)?)
}

/// Whether another process has the drive's directory open (the engine's own lock).
fn is_locked(dir: &Path) -> bool {
    let Ok(file) = std::fs::File::open(dir.join("lock")) else {
        return false;
    };
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
}
