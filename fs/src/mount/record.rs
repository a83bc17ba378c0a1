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
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let record = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        if record.is_some_and(|record| !Path::new("/proc").join(record.pid.to_string()).exists()) {
            let _ = fs::remove_file(path);
        }
    }
}

impl Record {
    fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("mount-{}.json", self.device.replace(':', "-")))
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

    /// Reads the record of the mount with this device number, if there is one.
    pub fn read(directory: &Path, device: &str) -> io::Result<Option<Self>> {
        let path = directory.join(format!("mount-{}.json", device.replace(':', "-")));
        match fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
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

    #[test]
    fn records_of_the_dead_are_swept_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record {
            pid: std::process::id(),
            device: "0:1".into(),
            mountpoint: "/mnt".into(),
            phase: Phase::Drained,
            pending_bytes: 0,
        };
        record.write(dir.path()).unwrap();
        record.device = "0:2".into();
        record.pid = u32::MAX;
        record.write(dir.path()).unwrap();
        sweep(dir.path());
        assert!(Record::read(dir.path(), "0:1").unwrap().is_some());
        assert!(Record::read(dir.path(), "0:2").unwrap().is_none());
    }

    #[test]
    fn a_record_is_found_by_its_device_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("run");
        assert_eq!(Record::read(&at, "0:45").unwrap(), None);
        let mut record = Record {
            pid: 7,
            device: "0:45".into(),
            mountpoint: "/mnt".into(),
            phase: Phase::Mounted,
            pending_bytes: 0,
        };
        record.write(&at).unwrap();
        record.phase = Phase::Pending;
        record.pending_bytes = 9;
        record.write(&at).unwrap();
        assert_eq!(Record::read(&at, "0:45").unwrap(), Some(record.clone()));
        assert_eq!(Record::read(&at, "0:46").unwrap(), None);
        record.remove(&at);
        assert_eq!(Record::read(&at, "0:45").unwrap(), None);
    }
}
