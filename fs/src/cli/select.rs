//! Which mounted drive is meant: by name, by mount point, or by any path inside it.
//!
//! Invariant: asks only daemons of this home. Called by `status`, `sync` and `umount`.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use std::time::Duration;

use super::Session;
use super::exit::{Exit, Failure};
use crate::control::{self, Status};

/// How long a question about the state waits for the kernel to send what it holds.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// A drive that is mounted now.
pub(super) struct Mounted {
    /// Its control socket.
    pub(super) socket: PathBuf,
    /// How it stood when asked.
    pub(super) status: Status,
}

/// All mounted drives of this home; none is a failure with code 16.
pub(super) fn all(session: &Session) -> Result<Vec<Mounted>, Failure> {
    let dir = session.home.socket_dir()?;
    let found = control::mounted(&dir)
        .map_err(|error| Failure::new(Exit::Error, format!("{}: {error}", dir.display()), ""))?;
    if found.is_empty() {
        return Err(Failure::new(
            Exit::NotMounted,
            "no drive is mounted",
            "mount one with `sealdrive mount DIR`",
        ));
    }
    Ok(found
        .into_iter()
        .map(|(socket, status)| Mounted { socket, status })
        .collect())
}

/// The one drive that a name, a mount point or a path inside means, with the inode number if it is a path.
pub(super) fn one(session: &Session, wanted: &Path) -> Result<(Mounted, Option<u64>), Failure> {
    let mut drives = all(session)?;
    if let Some(name) = wanted.to_str()
        && let Some(at) = drives
            .iter()
            .position(|mounted| mounted.status.drive == name)
        && !wanted.exists()
    {
        return Ok((drives.swap_remove(at), None));
    }
    let missing = |what: String| {
        Failure::new(
            Exit::NotMounted,
            what,
            "see `sealdrive status` for what is mounted",
        )
    };
    // Not followed: the state asked about is the symbolic link's own.
    let meta = std::fs::symlink_metadata(wanted)
        .map_err(|error| missing(format!("{}: {error}", wanted.display())))?;
    let at = drives.iter().position(|mounted| {
        // One that is only still sending covers nothing any more.
        mounted.status.mounted
            && std::fs::metadata(&mounted.status.mountpoint)
                .is_ok_and(|root| root.dev() == meta.dev())
    });
    match at {
        Some(at) => Ok((drives.swap_remove(at), Some(meta.ino()))),
        None => Err(missing(format!(
            "{} is not inside a mounted drive of this account",
            wanted.display()
        ))),
    }
}

/// Sends the kernel's dirty pages on their way, without waiting for a mount that may hang: the daemon waits for them,
/// and says so if they do not come. Returns what the kernel says: it tells of pages that were refused once, to whoever
/// asks first.
pub(super) fn start_flush(mountpoint: &Path) -> Option<Failure> {
    let mountpoint = mountpoint.to_owned();
    let (done, flushed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = done.send(flush_kernel(&mountpoint));
    });
    flushed.recv_timeout(FLUSH_PATIENCE).ok()?.err()
}

/// Makes the kernel hand over what programs wrote through it. Done here and not in the daemon, which would wait for
/// itself.
pub(super) fn flush_kernel(mountpoint: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let full = [ErrorKind::QuotaExceeded, ErrorKind::StorageFull];
        let (exit, advice) = match full.contains(&error.kind()) {
            true => (
                Exit::Space,
                "what was written while there was no room is gone, which only fsync and close told; write it again",
            ),
            false => (Exit::Error, "look at `sealdrive status`"),
        };
        Failure::new(
            exit,
            format!(
                "{}: the kernel could not write its pages: {error}",
                mountpoint.display()
            ),
            advice,
        )
    };
    let dir = std::fs::File::open(mountpoint).map_err(failed)?;
    rustix::fs::syncfs(&dir).map_err(|errno| failed(errno.into()))
}
