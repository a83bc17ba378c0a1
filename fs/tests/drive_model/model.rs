//! The reference: files as byte vectors, directories as maps. Slow and plain, so that it is right by reading.

use std::collections::BTreeMap;

use sealdrive::drive::Errno;
use sealdrive_core::record::FileKind;

pub(crate) type Id = u64;
pub(crate) type Outcome<T> = Result<T, Errno>;

pub(crate) const ROOT: Id = 1;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) kind: FileKind,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) content: Vec<u8>,
    pub(crate) entries: BTreeMap<Vec<u8>, Id>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) mtime: i64,
    pub(crate) ctime: i64,
}

/// The whole drive. Nodes without a name stay as long as the test holds them open.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) nodes: BTreeMap<Id, Node>,
}

impl Model {
    pub(crate) fn new(now: i64) -> Self {
        let mut model = Self {
            nodes: BTreeMap::new(),
        };
        model
            .nodes
            .insert(ROOT, Self::node(FileKind::Directory, 0o755, now));
        model
    }

    fn node(kind: FileKind, mode: u32, now: i64) -> Node {
        Node {
            kind,
            mode,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            content: Vec::new(),
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            mtime: now,
            ctime: now,
        }
    }

    pub(crate) fn at(&mut self, id: Id) -> &mut Node {
        self.nodes
            .get_mut(&id)
            .expect("the test only names nodes it holds")
    }

    fn dir(&mut self, id: Id) -> Outcome<&mut Node> {
        let node = self.at(id);
        if node.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        if node.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        Ok(node)
    }

    pub(crate) fn find(&mut self, parent: Id, name: &[u8]) -> Outcome<Id> {
        let node = self.at(parent);
        if node.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        node.entries.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn attach(&mut self, parent: Id, name: &[u8], id: Id, now: i64) {
        let is_dir = self.at(id).kind == FileKind::Directory;
        let dir = self.at(parent);
        dir.entries.insert(name.to_vec(), id);
        dir.nlink += u32::from(is_dir);
        (dir.mtime, dir.ctime) = (now, now);
    }

    fn detach(&mut self, parent: Id, name: &[u8], now: i64) -> Id {
        let id = self.at(parent).entries.remove(name).expect("name exists");
        let is_dir = self.at(id).kind == FileKind::Directory;
        let dir = self.at(parent);
        dir.nlink -= u32::from(is_dir);
        (dir.mtime, dir.ctime) = (now, now);
        id
    }

    /// Makes an inode under the number the drive gave it.
    pub(crate) fn may_make(&mut self, parent: Id, name: &[u8]) -> Outcome<()> {
        let dir = self.dir(parent)?;
        if dir.entries.contains_key(name) {
            Err(Errno::EEXIST)
        } else {
            Ok(())
        }
    }

    #[allow(clippy::too_many_arguments)] // what mknod(2) takes, and the model needs no less
    pub(crate) fn make(
        &mut self,
        parent: Id,
        name: &[u8],
        id: Id,
        kind: FileKind,
        mode: u32,
        content: &[u8],
        now: i64,
    ) {
        let mut node = Self::node(kind, mode, now);
        node.content = content.to_vec();
        assert!(
            self.nodes.insert(id, node).is_none(),
            "inode number {id} given out twice"
        );
        self.attach(parent, name, id, now);
    }

    pub(crate) fn link(&mut self, id: Id, parent: Id, name: &[u8], now: i64) -> Outcome<()> {
        self.may_make(parent, name)?;
        let node = self.at(id);
        if node.kind == FileKind::Directory {
            return Err(Errno::EPERM);
        }
        if node.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        node.nlink += 1;
        node.ctime = now;
        self.attach(parent, name, id, now);
        Ok(())
    }

    pub(crate) fn unlink(&mut self, parent: Id, name: &[u8], now: i64) -> Outcome<Id> {
        self.dir(parent)?;
        let id = self.find(parent, name)?;
        if self.at(id).kind == FileKind::Directory {
            return Err(Errno::EISDIR);
        }
        self.detach(parent, name, now);
        let node = self.at(id);
        node.nlink -= 1;
        node.ctime = now;
        Ok(id)
    }

    pub(crate) fn rmdir(&mut self, parent: Id, name: &[u8], now: i64) -> Outcome<Id> {
        self.dir(parent)?;
        let id = self.find(parent, name)?;
        let node = self.at(id);
        if node.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        if !node.entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.detach(parent, name, now);
        let node = self.at(id);
        node.nlink = 0;
        node.ctime = now;
        Ok(id)
    }

    fn is_below(&self, at: Id, ancestor: Id) -> bool {
        at == ancestor
            || self.nodes[&ancestor].entries.values().any(|child| {
                self.nodes[child].kind == FileKind::Directory && self.is_below(at, *child)
            })
    }

    /// Returns what lost its last name, if anything did.
    pub(crate) fn rename(
        &mut self,
        from: (Id, &[u8]),
        to: (Id, &[u8]),
        no_replace: bool,
        exchange: bool,
        now: i64,
    ) -> Outcome<Option<Id>> {
        self.dir(from.0)?;
        self.dir(to.0)?;
        let old = self.find(from.0, from.1)?;
        let there = self.find(to.0, to.1).ok();
        if no_replace && there.is_some() {
            return Err(Errno::EEXIST);
        }
        if exchange && there.is_none() {
            return Err(Errno::ENOENT);
        }
        if there == Some(old) {
            return Ok(None);
        }
        let is_dir = |model: &Self, id: Id| model.nodes[&id].kind == FileKind::Directory;
        if from.0 != to.0 && is_dir(self, old) && self.is_below(to.0, old) {
            return Err(Errno::EINVAL);
        }
        if exchange {
            let there = there.expect("checked");
            if from.0 != to.0 && is_dir(self, there) && self.is_below(from.0, there) {
                return Err(Errno::EINVAL);
            }
            self.detach(from.0, from.1, now);
            self.detach(to.0, to.1, now);
            self.attach(to.0, to.1, old, now);
            self.attach(from.0, from.1, there, now);
            self.at(old).ctime = now;
            self.at(there).ctime = now;
            return Ok(None);
        }
        let mut gone = None;
        if let Some(there) = there {
            match (is_dir(self, old), is_dir(self, there)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.at(there).entries.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
            self.detach(to.0, to.1, now);
            let node = self.at(there);
            node.nlink = if node.kind == FileKind::Directory {
                0
            } else {
                node.nlink - 1
            };
            node.ctime = now;
            gone = Some(there).filter(|_| self.nodes[&there].nlink == 0);
        }
        self.detach(from.0, from.1, now);
        self.attach(to.0, to.1, old, now);
        self.at(old).ctime = now;
        Ok(gone)
    }

    pub(crate) fn write(&mut self, id: Id, off: usize, data: &[u8], now: i64) {
        let node = self.at(id);
        if node.content.len() < off + data.len() {
            node.content.resize(off + data.len(), 0);
        }
        node.content[off..off + data.len()].copy_from_slice(data);
        (node.mtime, node.ctime) = (now, now);
    }

    pub(crate) fn resize(&mut self, id: Id, size: usize, now: i64) {
        let node = self.at(id);
        node.content.resize(size, 0);
        (node.mtime, node.ctime) = (now, now);
    }

    pub(crate) fn zero(&mut self, id: Id, off: usize, end: usize, now: i64) {
        let node = self.at(id);
        let end = end.min(node.content.len());
        if off < end {
            node.content[off..end].fill(0);
        }
        (node.mtime, node.ctime) = (now, now);
    }

    /// What survives a crash: nodes that have a name.
    pub(crate) fn named(&self) -> Self {
        Self {
            nodes: self
                .nodes
                .iter()
                .filter(|(_, node)| node.nlink > 0)
                .map(|(id, node)| (*id, node.clone()))
                .collect(),
        }
    }
}
