//! Names: lookup and forget, and everything that makes a new inode under a name.
//!
//! Invariant: a dentry, the back-reference of its inode and the parent's counts change together. A directory's `size`
//! is its number of entries (so that "empty" needs no search); stat shows another. Called by the kernel's border.

use sealdrive_core::record::{
    Dentry, FileKind, Ino, Inode, Key, KeyRef, NAME_MAX, ROOT, Time, Value, valid_name,
};

use super::acl::Inherited;
use super::errno::{Answer, Errno};
use super::gate::Need;
use super::handles::{Handle, Opened};
use super::state::State;
use super::{Attr, Cred, Drive, NewNode};

/// Set-group-id bit: on a directory, what is created in it gets its group.
pub(super) const S_ISGID: u32 = 0o2000;

impl Drive {
    /// The inode `name` leads to; the kernel holds it until [`Drive::forget`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Answer<Attr> {
        let s = &mut *self.lock()?;
        let ino = match name {
            b"." => parent,
            b".." => s.parent_of(parent)?,
            _ => s.find(parent, name)?.ok_or(Errno::ENOENT)?.ino,
        };
        let attr = s.attr(ino)?;
        if let Some(slot) = s.inodes.get_mut(ino)
            && ino != parent
            && name != b".."
        {
            slot.parent = Some(parent);
        }
        s.inodes.hold(ino).lookups += 1;
        s.map.nodes.settle();
        Ok(attr)
    }

    /// The kernel has dropped `count` lookups of `ino`.
    pub fn forget(&self, ino: Ino, count: u64) {
        let s = &mut *self.peek();
        s.let_go(ino, |holders| {
            holders.lookups = holders.lookups.saturating_sub(count);
        });
    }

    /// Makes a file, fifo, socket or device node.
    pub fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        new: NewNode,
        cred: Cred,
        now: Time,
    ) -> Answer<Attr> {
        if matches!(new.kind, FileKind::Directory | FileKind::Symlink) {
            return Err(Errno::EINVAL.into());
        }
        let s = &mut *self.enter(Need::Space)?;
        s.make(parent, name, new, cred, now)
    }

    /// Makes a directory.
    pub fn mkdir(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        cred: Cred,
        now: Time,
    ) -> Answer<Attr> {
        let s = &mut *self.enter(Need::Space)?;
        let new = NewNode {
            kind: FileKind::Directory,
            mode,
            umask,
            rdev: 0,
        };
        s.make(parent, name, new, cred, now)
    }

    /// Makes a file and opens it for reading and writing. EEXIST if the name is taken.
    pub fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: NewNode,
        cred: Cred,
        now: Time,
    ) -> Answer<(Attr, Handle)> {
        let s = &mut *self.enter(Need::Space)?;
        let new = NewNode {
            kind: FileKind::Regular,
            ..new
        };
        let attr = s.make(parent, name, new, cred, now)?;
        let holders = s.inodes.hold(attr.ino);
        holders.opens += 1;
        holders.writers += 1;
        let handle = s.handles.add(Opened::File {
            ino: attr.ino,
            write: true,
        });
        Ok((attr, handle))
    }
}

impl State {
    /// What `name` in `parent` leads to.
    pub(super) fn find(&mut self, parent: Ino, name: &[u8]) -> Answer<Option<Dentry>> {
        if self.load(parent)?.inode.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG.into());
        }
        if !valid_name(name) {
            return Ok(None);
        }
        Ok(self.map.view().dentry(parent, name)?)
    }

    /// A directory in which `name` may be made, and is not there yet.
    pub(super) fn vacant(&mut self, parent: Ino, name: &[u8]) -> Answer<()> {
        check_name(name)?;
        self.load_dir(parent)?;
        match self.map.view().dentry(parent, name)? {
            Some(_) => Err(Errno::EEXIST.into()),
            None => Ok(()),
        }
    }

    fn make(
        &mut self,
        parent: Ino,
        name: &[u8],
        new: NewNode,
        cred: Cred,
        now: Time,
    ) -> Answer<Attr> {
        self.vacant(parent, name)?;
        let acl = self.inherit(parent, new.kind, new.mode & 0o7777, new.umask)?;
        let directory = &self.load_dir(parent)?.inode;
        let inherits_group = directory.mode & S_ISGID != 0;
        let gid = if inherits_group {
            directory.gid
        } else {
            cred.gid
        };
        let mut mode = acl.mode;
        if inherits_group && new.kind == FileKind::Directory {
            mode |= S_ISGID;
        }
        let mut inode = Inode::new(new.kind, mode, cred.uid, gid, now);
        inode.rdev = match new.kind {
            FileKind::CharDev | FileKind::BlockDev => new.rdev,
            _ => 0,
        };
        if new.kind == FileKind::Directory {
            inode.nlink = 2;
        }
        let ino = self.enlist(parent, name, inode, now)?;
        self.give_acls(ino, &acl);
        self.done();
        self.attr(ino)
    }

    /// Gives a new inode its number and its first name; the kernel holds it.
    pub(super) fn enlist(
        &mut self,
        parent: Ino,
        name: &[u8],
        inode: Inode,
        now: Time,
    ) -> Answer<Ino> {
        let kind = inode.kind;
        let counters = self.counters()?;
        let ino = counters.take_ino();
        counters.add_files(1, 0); // nothing new has data
        self.inodes.created(ino, inode, parent);
        self.inodes.hold(ino).lookups += 1;
        self.add_name(parent, name, ino, kind, now);
        Ok(ino)
    }

    /// Enters a name. The parent is loaded and the name free.
    pub(super) fn add_name(
        &mut self,
        parent: Ino,
        name: &[u8],
        ino: Ino,
        kind: FileKind,
        now: Time,
    ) {
        let dentry = Dentry { ino, kind };
        self.map.put(Key::dentry(parent, name), dentry.encode());
        self.map
            .put(Key::backref(ino, parent, name), Value::from(&[][..]));
        let directory = self.change(parent);
        directory.size += 1;
        directory.allocated = directory.size;
        directory.nlink += u32::from(kind == FileKind::Directory);
        self.stamp(parent, now);
        if let Some(slot) = self.inodes.get_mut(ino) {
            slot.parent = Some(parent);
        }
    }

    /// Takes a name away. The parent is loaded and the name leads to `ino`.
    pub(super) fn remove_name(
        &mut self,
        parent: Ino,
        name: &[u8],
        ino: Ino,
        kind: FileKind,
        now: Time,
    ) {
        self.map.delete(Key::dentry(parent, name));
        self.map.delete(Key::backref(ino, parent, name));
        let directory = self.change(parent);
        directory.size = directory.size.saturating_sub(1);
        directory.allocated = directory.size;
        directory.nlink -= u32::from(kind == FileKind::Directory && directory.nlink > 0);
        self.stamp(parent, now);
    }

    /// A directory that `ino` has a name in; for the root and for what has no name, the root.
    pub(super) fn parent_of(&mut self, ino: Ino) -> Answer<Ino> {
        let slot = self.load(ino)?;
        if ino == ROOT || slot.orphan {
            return Ok(ROOT);
        }
        // A remembered parent of a file may be out of date (it may have other names); a directory's is kept right.
        if slot.inode.kind == FileKind::Directory
            && let Some(parent) = slot.parent
        {
            return Ok(parent);
        }
        let first = self.map.view().collect(&Key::backrefs(ino), 1)?;
        let parent = match first.first().map(|(key, _)| key.parse()) {
            Some(Ok(KeyRef::Backref(_, parent, _))) => parent,
            _ => return Err(Errno::EIO.into()),
        };
        if let Some(slot) = self.inodes.get_mut(ino) {
            slot.parent = Some(parent);
        }
        Ok(parent)
    }

    /// Stores the ACLs a new inode begins with.
    fn give_acls(&mut self, ino: Ino, acl: &Inherited) {
        for (name, value) in acl.attributes() {
            self.map.put(Key::xattr(ino, name), value);
        }
        if let Some(slot) = self.inodes.get_mut(ino) {
            slot.default_acl = Some(acl.default.is_some());
        }
    }
}

/// A name that may be made.
pub(super) fn check_name(name: &[u8]) -> Answer<()> {
    if name.len() > NAME_MAX {
        Err(Errno::ENAMETOOLONG.into())
    } else if name == b"." || name == b".." {
        Err(Errno::EEXIST.into())
    } else if !valid_name(name) {
        Err(Errno::EINVAL.into())
    } else {
        Ok(())
    }
}
