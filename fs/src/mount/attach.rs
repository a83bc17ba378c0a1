//! Attaching and detaching: mount(2) as root, `fusermount3` otherwise, umount2(2), and the read-ahead of the mount.
//!
//! Invariant: the returned descriptor is a connected `/dev/fuse` whose INIT has not been answered yet; nobody but
//! this file mounts or unmounts. Called by the mount wiring and the umount helper.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};

use super::options::MountOptions;
use super::place::{self, Place};

/// Read-ahead of the mount, KiB: the longest read request our max_write admits (measured: 1 MiB requests instead of
/// 128 KiB ones). Only root may set it.
const READ_AHEAD_KIB: u32 = 1024;

/// Why a mount could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel has no FUSE.
    #[error("/dev/fuse: {0} (is the fuse module loaded?)")]
    NoDevice(#[source] io::Error),
    /// The mount point is missing, not a directory or not ours to cover.
    #[error("mount point: {0}")]
    MountPoint(#[source] io::Error),
    /// A Sealdrive mount is there already.
    #[error("already mounted there")]
    Busy,
    /// mount(2) refused.
    #[error("mount: {0}")]
    Refused(#[source] io::Error),
    /// `fusermount3` is missing or said no; its own words.
    #[error("fusermount3: {0}")]
    Fusermount(String),
}

/// Attaches a new mount, in the place of a dead one if there is one: `source` is what the first column of the mount
/// table will show.
pub fn attach(source: &str, place: &Place, options: &MountOptions) -> Result<OwnedFd, AttachError> {
    match (rustix::process::geteuid().is_root(), place.is_dead) {
        (true, false) => attach_as_root(source, &place.path, options),
        (true, true) => replace_as_root(source, &place.path, options),
        (false, false) => attach_by_fusermount(source, &place.path, options),
        (false, true) => replace_by_fusermount(source, &place.path, options),
    }
}

/// A dead mount stays until the new one stands: beneath it, or on an older kernel on top of it.
fn replace_as_root(
    source: &str,
    path: &Path,
    options: &MountOptions,
) -> Result<OwnedFd, AttachError> {
    let device = open_device()?;
    match place::exchange(source, path, options, &device) {
        Ok(()) => Ok(device.into()),
        Err(error) => {
            tracing::info!(%error, "mounting on top of the dead mount instead of in its place");
            attach_as_root(source, path, options)
        }
    }
}

/// `fusermount3` mounts on top of a dead mount only while the kernel remembers that mount's attributes. Otherwise the
/// dead one must go first, and for the moment until the next call the directory beneath shows (SEMANTICS.md).
fn replace_by_fusermount(
    source: &str,
    path: &Path,
    options: &MountOptions,
) -> Result<OwnedFd, AttachError> {
    attach_by_fusermount(source, path, options).or_else(|_| {
        detach(path, Detach::Lazily).map_err(AttachError::MountPoint)?;
        attach_by_fusermount(source, path, options)
    })
}

/// mount(2) itself.
fn attach_as_root(
    source: &str,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<OwnedFd, AttachError> {
    let device = open_device()?;
    // The root is a directory; what is to be covered cannot always be asked, it may be a dead mount.
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    // umount(8) looks for a helper by subtype.
    data.push_str(",subtype=sealdrive");
    let data =
        CString::new(data).map_err(|_| AttachError::Refused(io::ErrorKind::InvalidInput.into()))?;
    rustix::mount::mount(
        source,
        mountpoint,
        "fuse",
        flags_of(options),
        data.as_c_str(),
    )
    .map_err(|errno| AttachError::Refused(errno.into()))?;
    Ok(device.into())
}

fn open_device() -> Result<File, AttachError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(AttachError::NoDevice)
}

/// The set-uid helper mounts for us and hands the descriptor over a socket (fusermount3(1), `_FUSE_COMMFD`).
fn attach_by_fusermount(
    source: &str,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<OwnedFd, AttachError> {
    let failed = |error: io::Error| AttachError::Fusermount(error.to_string());
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| failed(errno.into()))?;
    // The child must inherit its end; ours stays close-on-exec.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(|errno| failed(errno.into()))?;
    let mut words: Vec<String> = options.words().into_iter().map(str::to_owned).collect();
    words.push("default_permissions".into());
    words.push("subtype=sealdrive".into());
    words.push(format!(
        "fsname={}",
        source.replace('\\', "\\\\").replace(',', "\\,")
    ));
    let output = Command::new("fusermount3")
        .arg("-o")
        .arg(words.join(","))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(failed)?;
    drop(theirs);
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.trim().trim_start_matches("fusermount3: ");
        return Err(AttachError::Fusermount(words.to_owned()));
    }
    receive_descriptor(ours.as_fd()).map_err(failed)
}

fn receive_descriptor(socket: rustix::fd::BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("no descriptor came back"))
}

/// How to take a mount away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detach {
    /// Refuse with EBUSY while anything is open below it, and then change nothing.
    Now,
    /// Take the name away at once; the file system ends when its last user leaves.
    Lazily,
}

/// Takes the mount at `mountpoint` away.
pub fn detach(mountpoint: &Path, how: Detach) -> io::Result<()> {
    let flags = match how {
        Detach::Now => UnmountFlags::NOFOLLOW,
        Detach::Lazily => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => {
            detach_by_fusermount(mountpoint, how)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Cuts the connection of a mount that will not go: pending and later requests fail, and the name is taken away.
pub fn cut(mountpoint: &Path, device: &str) -> io::Result<()> {
    let force = UnmountFlags::NOFOLLOW | UnmountFlags::FORCE | UnmountFlags::DETACH;
    match rustix::mount::unmount(mountpoint, force) {
        Ok(()) => return Ok(()),
        // Gone already (lazily, with files open), or not root: the connection has a file of its own (fuse(4)).
        Err(Errno::INVAL | Errno::PERM | Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let minor = device.rsplit(':').next().unwrap_or_default();
    std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1")?;
    detach(mountpoint, Detach::Lazily)
}

/// Changes the flags of a mount in place (`mount -o remount,ro`).
pub fn remount(mountpoint: &Path, options: &MountOptions) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(
        mountpoint,
        flags_of(options),
        c"",
    )?)
}

fn flags_of(options: &MountOptions) -> MountFlags {
    [
        (options.read_only, MountFlags::RDONLY),
        (!options.suid, MountFlags::NOSUID),
        (!options.dev, MountFlags::NODEV),
        (options.noexec, MountFlags::NOEXEC),
        (options.noatime, MountFlags::NOATIME),
        (options.dirsync, MountFlags::DIRSYNC),
        (options.sync, MountFlags::SYNCHRONOUS),
    ]
    .into_iter()
    .filter(|(on, _)| *on)
    .fold(MountFlags::empty(), |flags, (_, flag)| flags | flag)
}

fn detach_by_fusermount(mountpoint: &Path, how: Detach) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if how == Detach::Lazily {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(mountpoint)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if words.contains("busy") {
        Err(Errno::BUSY.into())
    } else {
        Err(io::Error::other(words))
    }
}

/// Sets the mount's read-ahead. Best effort: without it reads are merely shorter.
pub fn set_read_ahead(device: &str) -> io::Result<()> {
    std::fs::write(
        format!("/sys/class/bdi/{device}/read_ahead_kb"),
        READ_AHEAD_KIB.to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::table;

    /// The way taken without root. Root can take it too, so that it is tested wherever mounting is possible at all.
    #[test]
    fn fusermount_mounts_and_hands_the_descriptor_over() {
        if open_device().is_err() || Command::new("fusermount3").arg("-V").output().is_err() {
            println!("SKIPPED: /dev/fuse or fusermount3 is missing, nothing was tested");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let path = place.path().canonicalize().unwrap();
        let options = MountOptions {
            noexec: true,
            ..MountOptions::default()
        };
        let device = attach_by_fusermount("sealdrive:a,b", &path, &options).unwrap();
        let row = table::at(&path).unwrap();
        // Nobody answers INIT; closing the descriptor ends the connection, and the name goes before the test judges.
        drop(device);
        detach_by_fusermount(&path, Detach::Lazily).unwrap();
        let row = row.expect("it was in the mount table");
        assert_eq!(
            (row.fs_type.as_str(), row.source.as_str()),
            (table::FS_TYPE, "sealdrive:a,b")
        );
        assert!(table::at(&path).unwrap().is_none());
    }
}
