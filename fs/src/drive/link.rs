//! link, unlink and rmdir.
//!
//! Invariant: a file's `nlink` is its number of names; a directory's is 2 plus the directories in it. Called by the
//! kernel's border.

use sealdrive_core::record::{Dentry, FileKind, Ino, Time};

use super::directory::check_name;
use super::errno::{Answer, Errno};
use super::gate::Need;
use super::{Attr, Drive};

/// Most names of one file: as ext4, so that programs meet no new bound, and a list of them stays readable.
const MAX_LINKS: u32 = 65_000;

impl Drive {
    /// Another name for a file; the kernel holds the inode once more.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8], now: Time) -> Answer<Attr> {
        let s = &mut *self.enter(Need::Space)?;
        s.vacant(parent, name)?;
        let slot = s.load(ino)?;
        if slot.inode.kind == FileKind::Directory {
            return Err(Errno::EPERM.into());
        }
        if slot.orphan {
            return Err(Errno::ENOENT.into());
        }
        if slot.inode.nlink >= MAX_LINKS {
            return Err(Errno::EMLINK.into());
        }
        let kind = slot.inode.kind;
        s.add_name(parent, name, ino, kind, now);
        let inode = s.change(ino);
        inode.nlink += 1;
        inode.ctime = now;
        s.inodes.hold(ino).lookups += 1;
        s.done();
        s.attr(ino)
    }

    /// Removes a name of what is not a directory.
    pub fn unlink(&self, parent: Ino, name: &[u8], now: Time) -> Answer<()> {
        let mut guard = self.enter(Need::Records)?;
        let s = &mut *guard;
        s.load_dir(parent)?;
        let Dentry { ino, kind } = s.find(parent, name)?.ok_or(Errno::ENOENT)?;
        if kind == FileKind::Directory {
            return Err(Errno::EISDIR.into());
        }
        let last = s.load(ino)?.inode.nlink <= 1;
        let remains = s.remains(ino, last)?;
        s.load_dir(parent)?;
        s.remove_name(parent, name, ino, kind, now);
        s.drop_link(ino, last, remains, now);
        s.done();
        drop(guard);
        self.room.notify_all();
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8], now: Time) -> Answer<()> {
        let s = &mut *self.enter(Need::Records)?;
        match name {
            b"." => return Err(Errno::EINVAL.into()),
            b".." => return Err(Errno::ENOTEMPTY.into()),
            _ => check_name(name)?,
        }
        s.load_dir(parent)?;
        let Dentry { ino, kind } = s.find(parent, name)?.ok_or(Errno::ENOENT)?;
        if kind != FileKind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        if s.load(ino)?.inode.size != 0 {
            return Err(Errno::ENOTEMPTY.into());
        }
        let remains = s.remains(ino, true)?;
        s.load_dir(parent)?;
        s.remove_name(parent, name, ino, kind, now);
        s.drop_link(ino, true, remains, now);
        s.done();
        Ok(())
    }
}
