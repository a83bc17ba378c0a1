//! The directory in which this machine keeps its part of an account: profile, keystore, and one directory per drive.
//!
//! Invariant: directories are 0700, files 0600, and every file appears whole or not at all (written aside, fsynced,
//! renamed, directory fsynced). Nothing here is plaintext of a drive; the keystore is sealed (see `keystore.rs`).
//! Called by the account flows, the command line and the mount wiring.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use sealdrive_proto::id::{AccountId, DeviceId, DriveId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Longest file read whole from the home directory, bytes.
const MAX_FILE: u64 = 1 << 20;
/// Longest path of a unix socket, bytes (`sun_path` holds 108 with its end mark).
const MAX_SOCKET_PATH: usize = 107;
const PROFILE: &str = "profile.toml";
/// Directory of the second copies: each file's bytes, then their check.
const COPIES: &str = "copies";
/// Length of the check behind a second copy, bytes.
const CHECK: usize = 32;

/// What can be wrong with the home directory.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Neither an option nor the environment says where it is.
    #[error("no home directory: SEALDRIVE_HOME, XDG_STATE_HOME and HOME are all unset")]
    Nowhere,
    /// No account lives here.
    #[error("no account on this machine yet (nothing in {})", .0.display())]
    Empty(PathBuf),
    /// An account lives here already.
    #[error("there is an account in {} already", .0.display())]
    Occupied(PathBuf),
    /// A file does not parse.
    #[error("{} is damaged: {why}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Someone else could read or change the directory.
    #[error("{} belongs to user {owner} and is not private", .path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Another command is at work here.
    #[error("another sealdrive command is changing {}", .0.display())]
    Busy(PathBuf),
    /// The operating system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// What an enrolled machine knows in clear: who it is and where its server is. No names, no keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Version of this file.
    pub version: u32,
    /// The account, hex.
    pub account: String,
    /// This machine's device id, hex.
    pub device: String,
    /// Connect string of the server, without an invitation.
    pub server: String,
    /// Whether opening the keystore also takes the passphrase.
    pub ask_passphrase: bool,
}

impl Profile {
    /// Version written by this program.
    pub const VERSION: u32 = 1;

    /// The account id.
    pub fn account_id(&self) -> Result<AccountId, String> {
        AccountId::from_hex(&self.account).map_err(|error| error.to_string())
    }

    /// The device id.
    pub fn device_id(&self) -> Result<DeviceId, String> {
        DeviceId::from_hex(&self.device).map_err(|error| error.to_string())
    }
}

/// A home directory; it need not exist yet.
#[derive(Debug, Clone)]
pub struct Home {
    dir: PathBuf,
}

/// Held while an account is being made or changed, so that two commands cannot do it at once.
#[derive(Debug)]
pub struct HomeLock(#[allow(dead_code, reason = "the lock lives as long as the open file")] File);

impl Home {
    /// The home given, or the one the environment names: `SEALDRIVE_HOME`, then the XDG state directory.
    pub fn locate(explicit: Option<PathBuf>) -> Result<Self, HomeError> {
        let env = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let dir = explicit
            .or_else(|| env("SEALDRIVE_HOME"))
            .or_else(|| env("XDG_STATE_HOME").map(|state| state.join("sealdrive")))
            // Without HOME, as under mount(8) at boot, the system's list of users says where it is.
            .or_else(|| {
                std::env::home_dir()
                    .filter(|home| !home.as_os_str().is_empty())
                    .map(|home| home.join(".local/state/sealdrive"))
            })
            .ok_or(HomeError::Nowhere)?;
        let dir =
            std::path::absolute(&dir).map_err(|source| HomeError::Io { path: dir, source })?;
        Ok(Self { dir })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory if needed, refuses one that others own or may enter, and takes the lock.
    pub fn lock(&self) -> Result<HomeLock, HomeError> {
        self.private_dir(&self.dir)?;
        let path = self.dir.join("lock");
        let file = open_private(
            &path,
            OpenOptions::new().create(true).truncate(false).write(true),
        )?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            rustix::io::Errno::WOULDBLOCK => HomeError::Busy(self.dir.clone()),
            errno => HomeError::Io {
                path,
                source: errno.into(),
            },
        })?;
        Ok(HomeLock(file))
    }

    /// Waits for and takes the lock of the call numbers, which several mounts of one device share.
    pub fn lock_numbers(&self) -> Result<HomeLock, HomeError> {
        self.private_dir(&self.dir)?;
        let path = self.dir.join("call-numbers.lock");
        let file = open_private(
            &path,
            OpenOptions::new().create(true).truncate(false).write(true),
        )?;
        flock(&file, FlockOperation::LockExclusive).map_err(|errno| HomeError::Io {
            path,
            source: errno.into(),
        })?;
        Ok(HomeLock(file))
    }

    /// The profile of the account that lives here.
    pub fn profile(&self) -> Result<Profile, HomeError> {
        let path = self.dir.join(PROFILE);
        let text = match self.read(PROFILE) {
            Err(HomeError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(HomeError::Empty(self.dir.clone()));
            }
            other => other?,
        };
        let damaged = |why: String| HomeError::Damaged {
            path: path.clone(),
            why,
        };
        let text = std::str::from_utf8(&text).map_err(|error| damaged(error.to_string()))?;
        let profile: Profile =
            toml::from_str(text).map_err(|error| damaged(error.message().to_owned()))?;
        if profile.version != Profile::VERSION {
            return Err(damaged(format!(
                "version {} is not known to this program",
                profile.version
            )));
        }
        profile
            .account_id()
            .and(profile.device_id().map(drop))
            .map_err(damaged)?;
        Ok(profile)
    }

    /// Whether an account lives here.
    pub fn is_enrolled(&self) -> bool {
        self.dir.join(PROFILE).exists() || self.read_copy(PROFILE).is_some()
    }

    /// Writes the profile: the last step that makes this machine enrolled, so everything else is durable before it.
    pub fn write_profile(&self, profile: &Profile) -> Result<(), HomeError> {
        let text = toml::to_string(profile).expect("a flat record of strings always serialises");
        self.write_new(PROFILE, text.as_bytes())
    }

    /// Reads a file of the home directory. Without the keystore nothing that is only on this machine opens any more, so
    /// every file stands here twice: a copy that passes its check restores a file that differs or is gone, and a copy
    /// that does not is made anew.
    pub fn read(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, HomeError> {
        let (file, copy) = (self.read_file(&self.dir.join(name)), self.read_copy(name));
        match (file, copy) {
            (Ok(file), Some(copy)) if file == copy => Ok(file),
            (_, Some(copy)) => {
                tracing::warn!(file = name, "restored from its second copy");
                if let Err(error) = write_whole(&self.dir.join(name), &copy, RenameFlags::empty()) {
                    tracing::warn!(%error, "it could not be written back");
                }
                Ok(copy)
            }
            (Ok(file), None) => {
                if let Err(error) = self.write_copy(name, &file) {
                    tracing::warn!(%error, "no second copy");
                }
                Ok(file)
            }
            (Err(error), None) => Err(error),
        }
    }

    fn read_copy(&self, name: &str) -> Option<Zeroizing<Vec<u8>>> {
        let mut bytes = self.read_file(&self.dir.join(COPIES).join(name)).ok()?;
        let len = bytes.len().checked_sub(CHECK)?;
        let good = bytes[len..] == check(name, &bytes[..len]);
        bytes.truncate(len);
        good.then_some(bytes)
    }

    fn write_copy(&self, name: &str, bytes: &[u8]) -> Result<(), HomeError> {
        let dir = self.dir.join(COPIES);
        self.private_dir(&dir)?;
        let mut copy = Zeroizing::new(Vec::with_capacity(bytes.len() + CHECK));
        copy.extend_from_slice(bytes);
        copy.extend_from_slice(&check(name, bytes));
        write_whole(&dir.join(name), &copy, RenameFlags::empty())
    }

    fn read_file(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, HomeError> {
        let path = path.to_path_buf();
        let io = |source| HomeError::Io {
            path: path.clone(),
            source,
        };
        let mut bytes = Zeroizing::new(Vec::new());
        File::open(&path)
            .map_err(io)?
            .take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(HomeError::Damaged {
                path: path.clone(),
                why: "longer than any file of ours".to_owned(),
            });
        }
        Ok(bytes)
    }

    /// Creates a file durably; refuses to replace one.
    pub fn write_new(&self, name: &str, bytes: &[u8]) -> Result<(), HomeError> {
        self.private_dir(&self.dir)?;
        if self.dir.join(name).exists() {
            return Err(HomeError::Occupied(self.dir.join(name)));
        }
        self.write_both(name, bytes, RenameFlags::NOREPLACE)
    }

    /// Creates or replaces a file durably.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), HomeError> {
        self.private_dir(&self.dir)?;
        self.write_both(name, bytes, RenameFlags::empty())
    }

    /// The copy first: it is what a reader believes, so a crash in between leaves the new bytes, never the old. What
    /// fails must not come into force later, so the copy goes again; the next reader makes it anew.
    fn write_both(&self, name: &str, bytes: &[u8], flags: RenameFlags) -> Result<(), HomeError> {
        let written = self
            .write_copy(name, bytes)
            .and_then(|()| write_whole(&self.dir.join(name), bytes, flags));
        if written.is_err()
            && let Err(error) = self.remove_copy(name)
        {
            tracing::warn!(%error, "the second copy of what could not be written stays");
        }
        written
    }

    /// Removes a file if it is there, its copy first, which would bring it back.
    pub fn remove(&self, name: &str) -> Result<(), HomeError> {
        self.remove_copy(name)?;
        self.remove_file(self.dir.join(name))
    }

    fn remove_copy(&self, name: &str) -> Result<(), HomeError> {
        let copies = self.dir.join(COPIES);
        self.remove_file(copies.join(name))?;
        // The last one takes the directory with it; with others in it this is refused.
        let _ = std::fs::remove_dir(copies);
        Ok(())
    }

    fn remove_file(&self, path: PathBuf) -> Result<(), HomeError> {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(HomeError::Io {
                path,
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// The local state directory of a drive, made if needed.
    pub fn drive_dir(&self, drive: &DriveId) -> Result<PathBuf, HomeError> {
        let drives = self.dir.join("drives");
        self.private_dir(&drives)?;
        let dir = drives.join(&drive.to_hex()[..32]);
        self.private_dir(&dir)?;
        Ok(dir)
    }

    /// The directory of control sockets of mounted drives, made if needed. Lies elsewhere if the home's path is too
    /// long for a socket address.
    pub fn socket_dir(&self) -> Result<PathBuf, HomeError> {
        let inside = self.dir.join("run");
        let dir = if inside.as_os_str().len() + "/0123456789abcdef.sock".len() <= MAX_SOCKET_PATH {
            inside
        } else {
            let tag = blake3::hash(self.dir.as_os_str().as_encoded_bytes()).to_hex();
            let uid = rustix::process::getuid().as_raw();
            PathBuf::from(format!("/tmp/sealdrive-{uid}-{}", &tag[..16]))
        };
        self.private_dir(&dir)?;
        Ok(dir)
    }

    /// The control socket of a mounted drive.
    pub fn socket(&self, drive: &DriveId) -> Result<PathBuf, HomeError> {
        Ok(self
            .socket_dir()?
            .join(format!("{}.sock", &drive.to_hex()[..16])))
    }

    /// Makes a directory that only we may enter, or checks that it is one.
    fn private_dir(&self, dir: &Path) -> Result<(), HomeError> {
        let io = |source| HomeError::Io {
            path: dir.to_path_buf(),
            source,
        };
        if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(dir)
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(io(error));
        }
        let meta = std::fs::symlink_metadata(dir).map_err(io)?;
        let uid = rustix::process::geteuid().as_raw();
        // A symbolic link is followed only where it is our own home that was linked, never inside it.
        let meta = if dir == self.dir {
            std::fs::metadata(dir).map_err(io)?
        } else {
            meta
        };
        if meta.uid() != uid && uid != 0 || !meta.is_dir() {
            return Err(HomeError::NotPrivate {
                path: dir.to_path_buf(),
                owner: meta.uid(),
            });
        }
        if meta.mode() & 0o077 != 0 {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(io)?;
        }
        Ok(())
    }
}

/// Check of a second copy; the name goes in, so that no file's copy passes for another's.
fn check(name: &str, bytes: &[u8]) -> [u8; CHECK] {
    let mut hasher = blake3::Hasher::new_derive_key("sealdrive 2026 v1 second copy");
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}

/// Writes a file that only we may read, whole or not at all, and makes it durable. Refuses to replace one.
pub fn write_private_new(path: &Path, bytes: &[u8]) -> Result<(), HomeError> {
    write_whole(path, bytes, RenameFlags::NOREPLACE)
}

fn open_private(path: &Path, options: &mut OpenOptions) -> Result<File, HomeError> {
    options
        .mode(0o600)
        .open(path)
        .map_err(|source| HomeError::Io {
            path: path.to_path_buf(),
            source,
        })
}

/// Write aside, fsync, rename, fsync the directory: after a power cut there is the old file or the new, never a part.
fn write_whole(path: &Path, bytes: &[u8], flags: RenameFlags) -> Result<(), HomeError> {
    let io = |source| HomeError::Io {
        path: path.to_path_buf(),
        source,
    };
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".new-{}", std::process::id()));
    let aside = PathBuf::from(aside);
    let written = (|| {
        let mut file = open_private(
            &aside,
            OpenOptions::new().create(true).truncate(true).write(true),
        )?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(io)?;
        rename(&aside, path, flags).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => HomeError::Occupied(path.to_path_buf()),
            _ => io(error),
        })?;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(parent)
            .and_then(|dir| dir.sync_all())
            .map_err(io)
    })();
    if written.is_err() {
        // Best effort: the error that matters is the one being reported.
        drop(std::fs::remove_file(&aside));
    }
    written
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> std::io::Result<()> {
    match renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags) {
        // File systems without RENAME_NOREPLACE (some FUSE and network ones): a hard link refuses in the same way.
        Err(rustix::io::Errno::INVAL) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        other => other.map_err(Into::into),
    }
}

#[cfg(test)]
mod tests;
