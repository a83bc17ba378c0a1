//! A branch as ordinary files: what is new or changed, under the names it had, with all attributes.
//!
//! Invariant: writes into a directory that was empty or not there, and nowhere else; no name of the branch leads out of
//! it. What the system refuses (another owner without root, a device node) is counted and said, what is lost is named,
//! and the rest goes on; a file with lost ranges never stands there under its own name.
//! Called by `sealdrive conflicts export`.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, chmod, chownat,
    lsetxattr, mknodat, renameat_with, utimensat,
};
use sealdrive_core::record::{FileKind, Ino, ROOT, Time, valid_name};
use sealdrive_proto::id::Kind;
use serde::Serialize;

use super::{BlobError, BranchError, Changes, Counts, Reader};
use crate::clock;
use crate::drive::{Attr, Errno, PlanPiece};
use crate::limits::FETCH_DEADLINE;

/// Bytes read at a time.
const PIECE: u64 = 4 << 20;
/// Access lists come as attributes, and setting them changes the mode: they go last but for the times.
const NO_DATA: Errno = Errno::ENODATA;

/// What was written out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// What the branch holds.
    pub counts: Counts,
    /// Names written, further names of a file included.
    pub names: u64,
    /// Attributes, owners and special files that the system did not let us make.
    pub refused: u64,
    /// What cannot be read any more.
    pub missing: Vec<Missing>,
    /// Something from the server did not open.
    pub tampered: bool,
}

/// A file or directory that could not be written out whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Its path in the drive, without a leading slash; `inode N` if its name is lost, too.
    pub path: String,
    /// Bytes of it that are lost, where some are left.
    pub bytes: Option<u64>,
    /// What is left of it, in the target directory.
    pub kept: Option<String>,
}

/// How the name ends under which what is left of a file is written.
const DAMAGED: &str = ".damaged";

struct Export<'a> {
    reader: &'a Reader,
    target: &'a Path,
    /// Directories made so far, and where: their attributes are set when nothing is written into them any more.
    directories: HashMap<Ino, PathBuf>,
    /// Names that are known from their directories, for files whose own records are lost.
    names: BTreeMap<Ino, (Ino, Vec<u8>)>,
    done: Exported,
}

/// Writes the changes of `reader` into `target`.
pub(super) fn write(reader: &Reader, target: &Path) -> Result<Exported, BranchError> {
    let at = |error| BranchError::Target(target.to_owned(), error);
    match DirBuilder::new().mode(0o700).create(target) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if std::fs::read_dir(target).map_err(at)?.next().is_some() {
                return Err(BranchError::Occupied(target.to_owned()));
            }
        }
        Err(error) => return Err(at(error)),
    }
    let Changes {
        there,
        counts,
        lost,
        names,
        holes,
    } = reader.changes()?;
    let mut export = Export {
        reader,
        target,
        directories: HashMap::from([(ROOT, target.to_owned())]),
        names,
        done: Exported {
            counts,
            ..Exported::default()
        },
    };
    for attr in &there {
        let written = export.all_names(attr);
        export.or_missing(attr.ino, written)?;
    }
    for ino in lost {
        export.miss(ino);
    }
    if holes > 0 {
        export.done.missing.push(Missing {
            path: format!("whatever {holes} lost nodes of the tree held besides"),
            ..Missing::default()
        });
    }
    export.finish_directories()?;
    File::open(target)
        .and_then(|dir| Ok(rustix::fs::syncfs(&dir)?))
        .map_err(at)?;
    Ok(export.done)
}

impl Export<'_> {
    fn all_names(&mut self, attr: &Attr) -> Result<(), BranchError> {
        if attr.kind == FileKind::Directory {
            return self.directory(attr.ino).map(drop);
        }
        let mut first: Option<PathBuf> = None;
        let links = match self.reader.op(|drive| drive.links(attr.ino)) {
            // Its directory knows one of its names.
            Err(error) if error.is_loss() => {
                vec![self.names.get(&attr.ino).cloned().ok_or(error)?]
            }
            links => links?,
        };
        for (parent, name) in links {
            let path = self.place(parent, &name)?;
            match &first {
                None => {
                    self.file(attr, &path)?;
                    first = Some(path);
                }
                Some(first) => {
                    let linked = std::fs::hard_link(first, &path);
                    if linked.is_err() && !first.exists() {
                        // The first could not be made, and was counted.
                        continue;
                    }
                    linked.map_err(|error| BranchError::Target(path, error))?;
                }
            }
            self.done.names += 1;
        }
        Ok(())
    }

    /// Where `name` of directory `parent` goes; makes the directory.
    fn place(&mut self, parent: Ino, name: &[u8]) -> Result<PathBuf, BranchError> {
        if !valid_name(name) {
            return Err(BranchError::Errno(Errno::EIO));
        }
        Ok(self.directory(parent)?.join(OsStr::from_bytes(name)))
    }

    fn directory(&mut self, ino: Ino) -> Result<PathBuf, BranchError> {
        // From the directory up to one that is made already, then down again: no recursion, however deep.
        let mut missing = Vec::new();
        let mut at = ino;
        let mut path = loop {
            if let Some(path) = self.directories.get(&at) {
                break path.clone();
            }
            let links = self.reader.op(|drive| drive.links(at))?;
            let Some((parent, name)) = links.into_iter().next() else {
                return Err(BranchError::Errno(Errno::ENOENT));
            };
            let circular = missing.iter().any(|(seen, _)| *seen == at);
            if !valid_name(&name) || circular {
                return Err(BranchError::Errno(Errno::EIO));
            }
            missing.push((at, name));
            at = parent;
        };
        while let Some((ino, name)) = missing.pop() {
            path.push(OsStr::from_bytes(&name));
            let made = DirBuilder::new().mode(0o700).create(&path);
            made.map_err(|error| BranchError::Target(path.clone(), error))?;
            self.directories.insert(ino, path.clone());
        }
        Ok(path)
    }

    fn file(&mut self, attr: &Attr, path: &Path) -> Result<(), BranchError> {
        let failed = |error: io::Error| BranchError::Target(path.to_owned(), error);
        let special = |kind| {
            mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), attr.rdev).map_err(io::Error::from)
        };
        let made = match attr.kind {
            FileKind::Regular => {
                let kept = self.content(attr, path)?;
                return self.dress(attr, kept.as_deref().unwrap_or(path));
            }
            FileKind::Symlink => {
                let to = self.reader.op(|drive| drive.readlink(attr.ino))?;
                std::os::unix::fs::symlink(OsStr::from_bytes(&to), path).map_err(failed)?;
                Ok(())
            }
            FileKind::Fifo => special(FileType::Fifo),
            FileKind::Socket => special(FileType::Socket),
            FileKind::CharDev => special(FileType::CharacterDevice),
            FileKind::BlockDev => special(FileType::BlockDevice),
            FileKind::Directory => Ok(()),
        };
        match made {
            Ok(()) => self.dress(attr, path),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.done.refused += 1;
                Ok(())
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes what can be read. What is left of a damaged file gets another name, which is returned: lost ranges are
    /// holes in it, and nobody is to take it for the file.
    fn content(&mut self, attr: &Attr, path: &Path) -> Result<Option<PathBuf>, BranchError> {
        let failed = |error: io::Error| BranchError::Target(path.to_owned(), error);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        // Holes stay holes.
        file.set_len(attr.size).map_err(failed)?;
        let (mut at, mut lost) = (0, 0);
        while at < attr.size {
            let plan = match self.reader.op(|drive| drive.read_plan(attr.ino, at, PIECE)) {
                Ok(plan) if !plan.is_empty() => plan,
                Err(error) if !error.is_loss() => return Err(error),
                Ok(_) | Err(_) => {
                    let len = PIECE.min(attr.size - at);
                    lost += len;
                    at += len;
                    continue;
                }
            };
            for piece in plan.pieces {
                let len = piece.len();
                match piece {
                    PlanPiece::Memory(bytes) => file.write_all_at(&bytes, at).map_err(failed)?,
                    PlanPiece::Zero(_) => {}
                    PlanPiece::Chunk {
                        reference,
                        skip,
                        len,
                    } => {
                        let deadline = clock::now() + FETCH_DEADLINE;
                        let chunk = match self.reader.blobs.get(Kind::Data, &reference, deadline) {
                            Err(BlobError::Lost) => None,
                            chunk => Some(chunk?),
                        };
                        let (from, to) = (skip as usize, skip as usize + len as usize);
                        match chunk.as_ref().and_then(|chunk| chunk.get(from..to)) {
                            Some(part) => file.write_all_at(part, at).map_err(failed)?,
                            None => lost += u64::from(len),
                        }
                    }
                }
                at += len;
            }
        }
        if lost == 0 {
            return Ok(None);
        }
        if lost >= attr.size {
            std::fs::remove_file(path).map_err(failed)?;
            return Err(BranchError::Errno(Errno::EIO));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(DAMAGED);
        let kept = path.with_file_name(name);
        let moved = renameat_with(CWD, path, CWD, &kept, RenameFlags::NOREPLACE);
        moved.map_err(|error| BranchError::Target(kept.clone(), error.into()))?;
        self.done.missing.push(Missing {
            path: self.shown(path),
            bytes: Some(lost),
            kept: Some(self.shown(&kept)),
        });
        Ok(Some(kept))
    }

    /// A path of the target as it was in the drive.
    fn shown(&self, path: &Path) -> String {
        let inside = path.strip_prefix(self.target).unwrap_or(path);
        inside.display().to_string()
    }

    /// Notes what is lost and goes on; any other failure is one.
    fn or_missing(&mut self, ino: Ino, done: Result<(), BranchError>) -> Result<(), BranchError> {
        match done {
            Err(error) if error.is_loss() => {
                self.miss(ino);
                Ok(())
            }
            done => done,
        }
    }

    fn miss(&mut self, ino: Ino) {
        let links = self.reader.op(|drive| drive.links(ino)).unwrap_or_default();
        let known = links.into_iter().next();
        let known = known.or_else(|| self.names.get(&ino).cloned());
        let made = self.directories.get(&ino).cloned();
        let path = made.or_else(|| known.and_then(|(dir, name)| self.place(dir, &name).ok()));
        let path = path.map_or_else(|| format!("inode {ino}"), |path| self.shown(&path));
        self.done.missing.push(Missing {
            path,
            ..Missing::default()
        });
    }

    /// Owner, attributes, mode and times, in the order in which none undoes another.
    fn dress(&mut self, attr: &Attr, path: &Path) -> Result<(), BranchError> {
        let failed = |error: io::Error| BranchError::Target(path.to_owned(), error);
        let link = attr.kind == FileKind::Symlink;
        let owner = (
            rustix::fs::Uid::from_raw(attr.uid),
            rustix::fs::Gid::from_raw(attr.gid),
        );
        let owned = chownat(
            CWD,
            path,
            Some(owner.0),
            Some(owner.1),
            AtFlags::SYMLINK_NOFOLLOW,
        );
        self.done.refused += u64::from(owned.is_err());
        if !link {
            chmod(path, Mode::from_raw_mode(attr.mode & 0o7777)).map_err(|e| failed(e.into()))?;
        }
        for (name, value) in self.attributes(attr.ino)? {
            let set = lsetxattr(path, OsStr::from_bytes(&name), &value, XattrFlags::empty());
            self.done.refused += u64::from(set.is_err());
        }
        let stamp = |time: Time| Timespec {
            tv_sec: time.secs,
            tv_nsec: i64::from(time.nanos),
        };
        let times = Timestamps {
            last_access: stamp(attr.atime),
            last_modification: stamp(attr.mtime),
        };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed(e.into()))
    }

    fn attributes(&self, ino: Ino) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, BranchError> {
        let names = self.reader.op(|drive| drive.listxattr(ino))?;
        let mut found = BTreeMap::new();
        for name in names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            match self.reader.op(|drive| drive.getxattr(ino, name)) {
                Ok(value) => drop(found.insert(name.to_vec(), value.to_vec())),
                Err(BranchError::Errno(errno)) if errno == NO_DATA => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Deepest first: dressing one changes the times of the one it is in.
    fn finish_directories(&mut self) -> Result<(), BranchError> {
        let mut directories: Vec<(Ino, PathBuf)> = self.directories.drain().collect();
        directories.sort_by_key(|(_, path)| std::cmp::Reverse(path.components().count()));
        for (ino, path) in directories {
            // The target itself is the user's.
            if path != self.target {
                let attr = self.reader.op(|drive| drive.getattr(ino));
                let dressed = attr.and_then(|attr| self.dress(&attr, &path));
                if let Err(error) = dressed {
                    if !error.is_loss() {
                        return Err(error);
                    }
                    self.done.missing.push(Missing {
                        path: format!("attributes of {}", self.shown(&path)),
                        ..Missing::default()
                    });
                }
            }
        }
        Ok(())
    }
}
