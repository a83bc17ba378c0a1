//! What stands at a mount point before we mount: nothing of ours, a drive that answers, or the dead mount of a daemon
//! that crashed, and how a new mount takes the place of a dead one.
//!
//! Invariant: from the crash until the new mount is there every program that looks gets "Transport endpoint is not
//! connected" or the drive, never the empty directory beneath: a backup of it would be empty, and a write into it
//! would be lost. So the dead mount stays until the new one can take its place. Called by the mount wiring and umount.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::attach::{AttachError, Detach, detach};
use super::options::MountOptions;
use super::table;

/// Longest wait for a mount to say whether it is alive: a dead one says so at once, a busy one is alive.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// Dead mounts taken off one place at a time: each crash on a kernel without `MOVE_MOUNT_BENEATH` may leave one.
const MOST_LAYERS: usize = 64;

/// A place where a drive may be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The directory, absolute and without symbolic links.
    pub path: PathBuf,
    /// A dead mount covers it.
    pub is_dead: bool,
}

/// How a mount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// It answers.
    Alive,
    /// Its daemon is gone: every request fails at once.
    Dead,
    /// It has not answered in time.
    Silent,
}

/// Asks the file system at `path` for its size, which no cache of the kernel answers.
pub fn pulse(path: &Path, limit: Duration) -> Pulse {
    let path = path.to_owned();
    let (tell, told) = mpsc::channel();
    // A thread of its own: a daemon that hangs would take the asker with it.
    let asked = thread::Builder::new()
        .name("pulse".to_owned())
        .spawn(move || {
            let _ = tell.send(rustix::fs::statfs(&path).err());
        });
    if asked.is_err() {
        return Pulse::Silent;
    }
    match told.recv_timeout(limit) {
        Ok(Some(Errno::NOTCONN | Errno::CONNABORTED)) => Pulse::Dead,
        Ok(_) => Pulse::Alive,
        Err(_) => Pulse::Silent,
    }
}

/// Looks at a mount point and changes nothing. A drive that answers, or hangs, is in the way.
pub fn look(mountpoint: &Path) -> Result<Place, AttachError> {
    let path = table::absolute(mountpoint).map_err(AttachError::MountPoint)?;
    if is_dead_drive(&path)? {
        return Ok(Place {
            path,
            is_dead: true,
        });
    }
    // Now that nothing dead is there: it may still be a symbolic link, perhaps to a drive.
    let path = path.canonicalize().map_err(AttachError::MountPoint)?;
    let is_dead = is_dead_drive(&path)?;
    if !is_dead && !path.is_dir() {
        return Err(AttachError::MountPoint(io::ErrorKind::NotADirectory.into()));
    }
    Ok(Place { path, is_dead })
}

/// Whether a dead drive is mounted at exactly this path; a living one is an error.
fn is_dead_drive(path: &Path) -> Result<bool, AttachError> {
    let row = table::at(path).map_err(AttachError::MountPoint)?;
    if row.is_none_or(|row| row.fs_type != table::FS_TYPE) {
        return Ok(false);
    }
    match pulse(path, LOOK_LIMIT) {
        Pulse::Dead => Ok(true),
        Pulse::Alive | Pulse::Silent => Err(AttachError::Busy),
    }
}

/// Takes away dead drives that an unmount has uncovered. Whatever else is there stays.
pub fn clear_dead(path: &Path) {
    for _ in 0..MOST_LAYERS {
        if !matches!(is_dead_drive(path), Ok(true)) || detach(path, Detach::Lazily).is_err() {
            return;
        }
    }
}

/// As root, in one step for everyone who looks: the new mount slides in beneath the dead one (move_mount(2),
/// `MOVE_MOUNT_BENEATH`, since Linux 6.5), which is then taken off. `InvalidInput` or `Unsupported`, and nothing
/// changed, where the kernel cannot.
pub(super) fn exchange(
    source: &str,
    path: &Path,
    options: &MountOptions,
    device: &File,
) -> io::Result<()> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = &context;
    fsconfig_set_string(context, "source", source)?;
    fsconfig_set_string(context, "subtype", "sealdrive")?;
    fsconfig_set_string(context, "fd", device.as_raw_fd().to_string())?;
    fsconfig_set_string(context, "rootmode", "40000")?;
    for (key, id) in [
        ("user_id", rustix::process::geteuid().as_raw()),
        ("group_id", rustix::process::getegid().as_raw()),
    ] {
        fsconfig_set_string(context, key, id.to_string())?;
    }
    fsconfig_set_flag(context, "default_permissions")?;
    for (on, flag) in [
        (options.allow_other, "allow_other"),
        (options.read_only, "ro"),
        (options.dirsync, "dirsync"),
        (options.sync, "sync"),
    ] {
        if on {
            fsconfig_set_flag(context, flag)?;
        }
    }
    fsconfig_create(context)?;
    let mount = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(options))?;
    move_mount(
        &mount,
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH,
    )?;
    detach(path, Detach::Lazily)
}

fn attributes(options: &MountOptions) -> MountAttrFlags {
    [
        (options.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (!options.suid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (!options.dev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (options.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (options.noatime, MountAttrFlags::MOUNT_ATTR_NOATIME),
    ]
    .into_iter()
    .filter(|(on, _)| *on)
    .fold(MountAttrFlags::empty(), |flags, (_, flag)| flags | flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_directory_is_refused() {
        let place = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            look(place.path()),
            Err(AttachError::MountPoint(_))
        ));
        assert!(matches!(
            look(Path::new("/nowhere/at/all")),
            Err(AttachError::MountPoint(_))
        ));
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let found = look(&link).unwrap();
        assert_eq!(
            (found.path, found.is_dead),
            (dir.path().canonicalize().unwrap(), false)
        );
    }

    #[test]
    fn what_is_not_ours_is_alive_and_stays() {
        assert_eq!(pulse(Path::new("/proc"), LOOK_LIMIT), Pulse::Alive);
        clear_dead(Path::new("/proc"));
        assert!(Path::new("/proc/self").exists());
    }
}
