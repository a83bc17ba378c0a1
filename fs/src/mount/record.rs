//! The run record: a small JSON file per live mount, by which `umount` finds the daemon and learns how its drain ends.
//!
//! Invariant: written by the daemon only, whole or not at all (rename), and removed by whoever has read its last
//! state; it holds no secret: process id, device number, mount point and byte counts, all visible to root anyway.
//! Called by the mount wiring (writes) and the umount helper (reads).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a mount's daemon is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Serving requests.
    Mounted,
    /// Unmounted; sending what the server does not have yet.
    Draining,
    /// Done: the server has everything.
    Drained,
    /// Done, but the server does not have everything; it is safe on this machine and goes out at the next mount.
    Pending,
    /// The daemon met an error while draining.
    Failed,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Names the record. Not the device number: that goes to the next mount while this one still drains.
    pub id: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Device number of the mount, `major:minor`.
    pub device: String,
    /// Where it is (or was) mounted.
    pub mountpoint: PathBuf,
    /// What the daemon is doing.
    pub phase: Phase,
    /// Bytes the server has not acknowledged yet, as last counted.
    pub pending_bytes: u64,
    /// How long a plain umount(8) is to wait, ms (mount option `umount_wait`).
    #[serde(default)]
    pub umount_wait_ms: Option<u64>,
}

/// Where the records of this user lie: `/run/sealdrive` for root, else `$XDG_RUNTIME_DIR/sealdrive`.
pub fn directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/run/sealdrive");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
        Some(dir) => PathBuf::from(dir).join("sealdrive"),
        None => {
            std::env::temp_dir().join(format!("sealdrive-{}", rustix::process::geteuid().as_raw()))
        }
    }
}

/// Removes records whose daemon is gone and whose last word nobody came for.
pub fn sweep(directory: &Path) {
    for (path, record) in records(directory) {
        if !is_alive(record.pid) {
            let _ = fs::remove_file(path);
        }
    }
}

fn records(directory: &Path) -> impl Iterator<Item = (PathBuf, Record)> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let named = path
                .extension()
                .is_some_and(|extension| extension == "json");
            let bytes = named.then(|| fs::read(&path).ok()).flatten()?;
            Some((path, serde_json::from_slice(&bytes).ok()?))
        })
}

fn path_of(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("mount-{id}.json"))
}

/// Whether a process still runs. One that was killed and that nobody has waited for yet (a container's first process
/// may never do so) runs no more.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    // "PID (NAME) STATE …": the name may hold anything, so from its last bracket on.
    stat.is_ok_and(|stat| {
        !stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .starts_with(['Z', 'X'])
    })
}

impl Record {
    fn path(&self, directory: &Path) -> PathBuf {
        path_of(directory, &self.id)
    }

    /// Writes the record, replacing the former one.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let path = self.path(directory);
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        drop(file);
        fs::rename(&temporary, &path)
    }

    /// The record of the live mount with this device number, if there is one.
    pub fn find(directory: &Path, device: &str) -> Option<Self> {
        records(directory).map(|(_, record)| record).find(|record| {
            record.device == device && record.phase == Phase::Mounted && is_alive(record.pid)
        })
    }

    /// The same record as last written; none once it was removed.
    pub fn again(&self, directory: &Path) -> Option<Self> {
        fs::read(self.path(directory))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
    }

    /// Removes the record.
    pub fn remove(&self, directory: &Path) {
        // Left behind it would merely be overwritten by the next mount with this device number.
        let _ = fs::remove_file(self.path(directory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, pid: u32, phase: Phase) -> Record {
        let (device, mountpoint) = ("0:45".into(), "/mnt".into());
        Record {
            id: id.into(),
            pid,
            device,
            mountpoint,
            phase,
            pending_bytes: 0,
            umount_wait_ms: None,
        }
    }

    #[test]
    fn records_of_the_dead_are_swept_up() {
        let dir = tempfile::tempdir().unwrap();
        let live = record("a", std::process::id(), Phase::Drained);
        let dead = record("b", u32::MAX, Phase::Drained);
        live.write(dir.path()).unwrap();
        dead.write(dir.path()).unwrap();
        sweep(dir.path());
        assert!(live.again(dir.path()).is_some());
        assert!(dead.again(dir.path()).is_none());
    }

    /// A mount was killed, its device number went to the next mount, and in a container nobody had waited for the
    /// killed process: umount took the dead record for the new mount's and said that data was left.
    #[test]
    fn a_killed_process_that_nobody_waited_for_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let killed = record("a", child.id(), Phase::Mounted);
        killed.write(dir.path()).unwrap();
        let end = crate::clock::now() + std::time::Duration::from_secs(10);
        while Record::find(dir.path(), "0:45").is_some() {
            assert!(crate::clock::now() < end, "a zombie counts as alive");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let live = record("b", std::process::id(), Phase::Mounted);
        live.write(dir.path()).unwrap();
        assert_eq!(Record::find(dir.path(), "0:45"), Some(live));
        child.wait().unwrap();
    }

    /// A device number is free for the next mount as soon as the last is gone, while its daemon still drains: umount
    /// of the first then waited for the second.
    #[test]
    fn a_draining_mount_and_a_new_one_may_share_a_device_number() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("run");
        assert_eq!(Record::find(&at, "0:45"), None);
        let mut first = record("a", std::process::id(), Phase::Mounted);
        first.write(&at).unwrap();
        assert_eq!(Record::find(&at, "0:45").as_ref(), Some(&first));
        first.phase = Phase::Draining;
        first.write(&at).unwrap();
        let second = record("b", std::process::id(), Phase::Mounted);
        second.write(&at).unwrap();
        assert_eq!(Record::find(&at, "0:45").as_ref(), Some(&second));
        assert_eq!(first.again(&at).as_ref(), Some(&first));
        assert_eq!(Record::find(&at, "0:46"), None);
        second.remove(&at);
        assert_eq!(Record::find(&at, "0:45"), None);
    }
}
