//! A mounted drive that does what the requests say, and the reading of everything on one.
//!
//! Invariant: a drive without a server has every node and chunk on its disk: what is not there is lost. Called by
//! `mod.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use sealdrive::drive::{Answer, DriveError, PlanPiece};
use sealdrive::drive::{Cred, Drive, Fallocate, Handle, NewNode, RenameRule, SetAttr, XattrRule};
use sealdrive::engine::Engine;
use sealdrive_core::record::{FileKind, Ino, ROOT, Time};

use super::model::{Found, Tree, What};
use super::request::{Request, XATTR};
use super::{A_WHILE, Household, thread, time};
use crate::sim::disk::Disk;

const NOW: Time = Time {
    secs: 1_800_000_000,
    nanos: 5,
};
const ME: Cred = Cred {
    uid: 1000,
    gid: 1000,
    pid: 1,
};
/// Longest wait for a node or chunk, which is here.
const SOON: Duration = Duration::from_secs(5);

pub(super) struct Mount {
    engine: Engine,
    open: Option<Handle>,
}

impl Mount {
    pub(super) fn open(household: &Household, disk: &Disk) -> Self {
        let engine = Engine::open(household.config(disk, 1));
        Self {
            engine: engine.unwrap_or_else(|error| panic!("does not mount: {error}")),
            open: None,
        }
    }

    /// Everything on a drive, and what the engine had to complain about.
    pub(super) fn look(household: &Household, disk: &Disk) -> (Tree, Vec<String>) {
        let mount = Self::open(household, disk);
        let mut inodes = BTreeMap::new();
        let mut tree = Tree::new();
        mount.walk(ROOT, "", &mut inodes, &mut tree);
        let events = mount.engine.status().events;
        (
            tree,
            events.iter().map(|event| format!("{event:?}")).collect(),
        )
    }

    /// Unmounts: a last checkpoint, and all threads end.
    pub(super) fn end(self) {
        let ended = self.engine.shutdown(time::now() + A_WHILE);
        assert_eq!(ended, Ok(()));
    }

    fn op<T>(&self, mut f: impl FnMut(&Drive) -> Answer<T>) -> T {
        loop {
            match f(self.engine.drive()) {
                Err(DriveError::Missing(node)) => {
                    let found = self.engine.node(&node, time::now() + SOON);
                    found.unwrap_or_else(|error| panic!("a node is lost: {error}"));
                }
                done => return done.unwrap_or_else(|error| panic!("refused: {error:?}")),
            }
        }
    }

    fn ino(&self, path: &str) -> Ino {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.fold(ROOT, |at, name| {
            self.op(|d| d.lookup(at, name.as_bytes())).ino
        })
    }

    fn place<'p>(&self, path: &'p str) -> (Ino, &'p [u8]) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.ino(parent), name.as_bytes())
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.engine.drive().release(open);
        }
    }

    /// Does it; what the model allows, the drive does.
    pub(super) fn request(&mut self, request: &Request) {
        match *request {
            Request::Create(path) => {
                self.close();
                let (parent, name) = self.place(path);
                let new = NewNode {
                    kind: FileKind::Regular,
                    mode: 0o644,
                    umask: 0o022,
                    rdev: 0,
                };
                let (_, handle) = self.op(|d| d.create(parent, name, new, ME, NOW));
                self.open = Some(handle);
            }
            Request::Open(path) => {
                self.close();
                let ino = self.ino(path);
                self.open = Some(self.op(|d| d.open(ino, true)));
            }
            Request::Close => self.close(),
            Request::Write { path, at, content } => {
                let (ino, bytes) = (self.ino(path), content.bytes());
                self.op(|d| d.write(ino, at as u64, &bytes, false, NOW));
            }
            Request::Fsync => assert_eq!(self.engine.sync_local(), Ok(())),
            Request::Pause => thread::sleep(A_WHILE / 3),
            Request::SetSize(..)
            | Request::Zero { .. }
            | Request::Allocate(..)
            | Request::SetXattr(..) => self.change(request),
            _ => self.name(request),
        }
    }

    /// Requests about one file.
    fn change(&self, request: &Request) {
        match *request {
            Request::SetSize(path, size) => {
                let set = SetAttr {
                    size: Some(size as u64),
                    ..SetAttr::default()
                };
                let ino = self.ino(path);
                self.op(|d| d.setattr(ino, set, NOW));
            }
            Request::Zero {
                path,
                at,
                len,
                grow,
            } => {
                let how = if grow {
                    Fallocate::ZeroRange
                } else {
                    Fallocate::PunchHole
                };
                let ino = self.ino(path);
                self.op(|d| d.fallocate(ino, at as u64, len as u64, how, NOW));
            }
            Request::Allocate(path, end) => {
                let ino = self.ino(path);
                self.op(|d| d.fallocate(ino, 0, end as u64, Fallocate::Extend, NOW));
            }
            Request::SetXattr(path, value) => {
                let (ino, value) = (self.ino(path), value.as_bytes());
                self.op(|d| d.setxattr(ino, XATTR, value, XattrRule::Any, false, NOW));
            }
            _ => unreachable!("{request:?} is about names"),
        }
    }

    /// Requests about names.
    fn name(&self, request: &Request) {
        match *request {
            Request::Rename(from, to) => {
                let ((from_dir, old), (to_dir, new)) = (self.place(from), self.place(to));
                self.op(|d| d.rename(from_dir, old, to_dir, new, RenameRule::Replace, NOW));
            }
            Request::Link(from, to) => {
                let (ino, (parent, name)) = (self.ino(from), self.place(to));
                self.op(|d| d.link(ino, parent, name, NOW));
            }
            Request::Unlink(path) => {
                let (parent, name) = self.place(path);
                self.op(|d| d.unlink(parent, name, NOW));
            }
            Request::Mkdir(path) => {
                let (parent, name) = self.place(path);
                self.op(|d| d.mkdir(parent, name, 0o755, 0o022, ME, NOW));
            }
            Request::Rmdir(path) => {
                let (parent, name) = self.place(path);
                self.op(|d| d.rmdir(parent, name, NOW));
            }
            Request::Symlink(path, target) => {
                let (parent, name) = self.place(path);
                self.op(|d| d.symlink(parent, name, target.as_bytes(), ME, NOW));
            }
            _ => unreachable!("{request:?} is about no name"),
        }
    }

    fn walk(&self, dir: Ino, path: &str, inodes: &mut BTreeMap<Ino, String>, tree: &mut Tree) {
        let handle = self.op(|d| d.opendir(dir));
        let mut names = Vec::new();
        self.op(|d| {
            names.clear();
            d.readdir(handle, 0, |entry| {
                names.push(String::from_utf8_lossy(entry.name).into_owned());
                true
            })
        });
        self.engine.drive().releasedir(handle);
        names.retain(|name| name != "." && name != "..");
        // In the order of paths, so that the first of several names of an inode is met first.
        names.sort();
        for name in names {
            let attr = self.op(|d| d.lookup(dir, name.as_bytes()));
            let path = if path.is_empty() {
                name
            } else {
                format!("{path}/{name}")
            };
            let what = match attr.kind {
                FileKind::Directory => What::Directory,
                FileKind::Symlink => What::Symlink(self.op(|d| d.readlink(attr.ino)).to_vec()),
                _ => What::File(self.read(attr.ino)),
            };
            let found = Found {
                what,
                xattrs: self.xattrs(attr.ino),
                twin: inodes
                    .entry(attr.ino)
                    .or_insert_with(|| path.clone())
                    .clone(),
                links: attr.nlink,
            };
            let is_dir = found.what == What::Directory;
            tree.insert(path.clone(), found);
            if is_dir {
                self.walk(attr.ino, &path, inodes, tree);
            }
        }
    }

    fn xattrs(&self, ino: Ino) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let names = self.op(|d| d.listxattr(ino));
        let names = names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty());
        names
            .map(|name| (name.to_vec(), self.op(|d| d.getxattr(ino, name)).to_vec()))
            .collect()
    }

    fn read(&self, ino: Ino) -> Vec<u8> {
        let plan = self.op(|d| d.read_plan(ino, 0, u64::MAX));
        let mut out = Vec::new();
        for piece in plan.pieces {
            match piece {
                PlanPiece::Memory(bytes) => out.extend_from_slice(&bytes),
                PlanPiece::Zero(len) => out.resize(out.len() + len as usize, 0),
                PlanPiece::Chunk {
                    reference,
                    skip,
                    len,
                } => {
                    let chunk = self.engine.chunk(&reference, time::now() + SOON);
                    let chunk = chunk.unwrap_or_else(|error| panic!("a chunk is lost: {error}"));
                    out.extend_from_slice(&chunk[skip as usize..][..len as usize]);
                }
            }
        }
        out
    }
}
