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
            .or_else(|| env("HOME").map(|home| home.join(".local/state/sealdrive")))
            // mount(8) at boot runs as root with an empty environment.
            .or_else(|| {
                rustix::process::getuid()
                    .is_root()
                    .then(|| PathBuf::from("/root/.local/state/sealdrive"))
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
        self.dir.join(PROFILE).exists()
    }

    /// Writes the profile: the last step that makes this machine enrolled, so everything else is durable before it.
    pub fn write_profile(&self, profile: &Profile) -> Result<(), HomeError> {
        let text = toml::to_string(profile).expect("a flat record of strings always serialises");
        self.write_new(PROFILE, text.as_bytes())
    }

    /// Reads a file of the home directory.
    pub fn read(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, HomeError> {
        let path = self.dir.join(name);
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
        write_whole(&self.dir.join(name), bytes, RenameFlags::NOREPLACE)
    }

    /// Creates or replaces a file durably.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), HomeError> {
        self.private_dir(&self.dir)?;
        write_whole(&self.dir.join(name), bytes, RenameFlags::empty())
    }

    /// Removes a file if it is there.
    pub fn remove(&self, name: &str) -> Result<(), HomeError> {
        let path = self.dir.join(name);
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
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = Home::locate(Some(dir.path().join("h"))).expect("a path was given");
        (dir, home)
    }

    fn profile() -> Profile {
        Profile {
            version: 1,
            account: "ab".repeat(32),
            device: "cd".repeat(16),
            server: "sealdrive://localhost:1/#x".to_owned(),
            ask_passphrase: false,
        }
    }

    #[test]
    fn files_are_private_whole_and_never_replaced_by_accident() {
        let (_dir, home) = home();
        home.write_new("keystore", b"one").expect("the first write");
        assert!(matches!(
            home.write_new("keystore", b"two"),
            Err(HomeError::Occupied(_))
        ));
        assert_eq!(
            home.read("keystore").expect("still there").as_slice(),
            b"one"
        );
        home.replace("keystore", b"two")
            .expect("a wanted replacement");
        assert_eq!(home.read("keystore").expect("replaced").as_slice(), b"two");
        let mode = |path: &Path| std::fs::metadata(path).expect("exists").mode() & 0o777;
        assert_eq!(mode(&home.dir().join("keystore")), 0o600);
        assert_eq!(mode(home.dir()), 0o700);
        let names: Vec<_> = std::fs::read_dir(home.dir())
            .expect("lists")
            .map(|e| e.expect("entry").file_name())
            .collect();
        assert_eq!(names, ["keystore"], "nothing is left aside");
    }

    #[test]
    fn a_home_open_to_others_is_closed_and_a_foreign_version_refused() {
        let (_dir, home) = home();
        assert!(matches!(home.profile(), Err(HomeError::Empty(_))));
        std::fs::create_dir(home.dir()).expect("makes it");
        std::fs::set_permissions(home.dir(), std::fs::Permissions::from_mode(0o755))
            .expect("opens it");
        home.write_profile(&profile()).expect("writes");
        assert_eq!(
            std::fs::metadata(home.dir()).expect("exists").mode() & 0o777,
            0o700
        );
        assert_eq!(home.profile().expect("reads back"), profile());
        home.replace(
            PROFILE,
            &toml::to_string(&Profile {
                version: 9,
                ..profile()
            })
            .expect("text")
            .into_bytes(),
        )
        .expect("replaces");
        assert!(matches!(home.profile(), Err(HomeError::Damaged { .. })));
    }

    #[test]
    fn one_command_at_a_time() {
        let (_dir, home) = home();
        let held = home.lock().expect("free");
        assert!(matches!(home.lock(), Err(HomeError::Busy(_))));
        drop(held);
        home.lock().expect("free again");
    }

    #[test]
    fn a_deep_home_still_gets_a_socket_address_that_fits() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let deep = Home::locate(Some(dir.path().join("d".repeat(120)))).expect("a path was given");
        let socket = deep.socket(&DriveId([7; 32])).expect("a path");
        assert!(socket.as_os_str().len() <= MAX_SOCKET_PATH);
        std::fs::remove_dir(socket.parent().expect("has one")).expect("removes what it made");
    }
}
