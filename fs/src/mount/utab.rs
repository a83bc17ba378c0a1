//! Our row in libmount's `/run/mount/utab`. Without it umount(8) takes its fast path and never looks for
//! `/sbin/umount.fuse.sealdrive`, and a plain `umount` would not wait for the server.
//!
//! Invariant: the file is replaced whole, under libmount's own lock, and rows of others are kept byte for byte.
//! Called by the mount wiring as root: after mounting and again at unmount.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::table;

/// Where libmount keeps what the kernel's table cannot hold.
const DIR: &str = "/run/mount";

/// The user-space mount table in one directory (`/run/mount`, elsewhere in tests).
pub struct Utab {
    dir: PathBuf,
}

impl Utab {
    /// The table that umount(8) reads.
    pub fn system() -> Self {
        Self {
            dir: PathBuf::from(DIR),
        }
    }

    /// Adds the row of a new mount, replacing one left behind at the same place.
    pub fn add(&self, row: &table::Row) -> io::Result<()> {
        let mut line = format!(
            "ID={} SRC={} TARGET=",
            row.id,
            row.source.replace([' ', '\n', '\t'], "_")
        )
        .into_bytes();
        line.extend_from_slice(&table::escape(&row.mountpoint));
        line.extend_from_slice(b" ROOT=/ OPTS=uhelper=fuse.sealdrive");
        self.replace(&row.mountpoint, Some(line))
    }

    /// Takes our row away. Nothing happens if there is none.
    pub fn remove(&self, mountpoint: &Path) -> io::Result<()> {
        if !self.dir.join("utab").exists() {
            return Ok(());
        }
        self.replace(mountpoint, None)
    }

    fn replace(&self, mountpoint: &Path, line: Option<Vec<u8>>) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.dir)?;
        // libmount's own lock file: held until `_lock` is closed.
        let _lock = self.lock()?;
        let path = self.dir.join("utab");
        let old = match fs::read(&path) {
            Ok(old) => old,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut new = Vec::with_capacity(old.len() + 128);
        for row in old
            .split(|&byte| byte == b'\n')
            .filter(|row| !row.is_empty())
        {
            if !is_row_of(row, mountpoint) {
                new.extend_from_slice(row);
                new.push(b'\n');
            }
        }
        if let Some(line) = line {
            new.extend_from_slice(&line);
            new.push(b'\n');
        }
        let temporary = self
            .dir
            .join(format!("utab.sealdrive.{}", std::process::id()));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(&new)?;
        drop(file);
        fs::rename(&temporary, &path)
    }

    fn lock(&self) -> io::Result<File> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(self.dir.join("utab.lock"))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }
}

// A row is ours if it is a Sealdrive row whose TARGET is this mount point; other helpers' rows are not judged.
fn is_row_of(row: &[u8], mountpoint: &Path) -> bool {
    let mut target = false;
    let mut ours = false;
    for field in row.split(|&byte| byte == b' ') {
        if let Some(path) = field.strip_prefix(b"TARGET=") {
            target = table::unescape(path).as_bytes() == mountpoint.as_os_str().as_bytes();
        }
        ours |= field
            .windows(22)
            .any(|part| part == b"uhelper=fuse.sealdrive");
    }
    target && ours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(path: &str) -> table::Row {
        table::Row {
            id: 77,
            device: "0:45".into(),
            mountpoint: path.into(),
            fs_type: table::FS_TYPE.into(),
            source: "sealdrive:my work".into(),
        }
    }

    #[test]
    fn rows_of_others_survive_and_ours_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let utab = Utab {
            dir: dir.path().join("mount"),
        };
        utab.remove(Path::new("/nothing")).unwrap();
        fs::create_dir(&utab.dir).unwrap();
        let other = "ID=5 SRC=a TARGET=/mnt/x\\040y ROOT=/ OPTS=uhelper=udisks2\n";
        fs::write(utab.dir.join("utab"), other).unwrap();

        utab.add(&row("/mnt/x y")).unwrap();
        utab.add(&row("/mnt/x y")).unwrap();
        let text = fs::read_to_string(utab.dir.join("utab")).unwrap();
        assert!(text.starts_with(other));
        assert_eq!(text.matches("uhelper=fuse.sealdrive").count(), 1, "{text}");
        assert!(
            text.contains("SRC=sealdrive:my_work TARGET=/mnt/x\\040y "),
            "{text}"
        );

        utab.remove(Path::new("/mnt/x y")).unwrap();
        assert_eq!(fs::read_to_string(utab.dir.join("utab")).unwrap(), other);
    }
}
