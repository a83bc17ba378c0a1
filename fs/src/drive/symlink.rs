//! Symbolic links.
//!
//! Invariant: a target of up to `TARGET_MAX` bytes stands in the inode record; a longer one in inline extents of the
//! symlink's own inode, and `size` is its length either way. Called by the kernel's border.

use bytes::Bytes;
use sealdrive_core::extent;
use sealdrive_core::record::{Extent, FileKind, INLINE_MAX, Ino, Inode, Key, TARGET_MAX, Time};

use super::directory::S_ISGID;
use super::errno::{Answer, Errno};
use super::gate::Need;
use super::{Attr, Cred, Drive};

/// Longest target, bytes: PATH_MAX without its NUL.
const LONGEST_TARGET: usize = 4095;

impl Drive {
    /// Makes a symbolic link.
    pub fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        cred: Cred,
        now: Time,
    ) -> Answer<Attr> {
        match target.len() {
            0 => return Err(Errno::ENOENT.into()),
            1..=LONGEST_TARGET if !target.contains(&0) => {}
            1..=LONGEST_TARGET => return Err(Errno::EINVAL.into()),
            _ => return Err(Errno::ENAMETOOLONG.into()),
        }
        let s = &mut *self.enter(Need::Space)?;
        s.vacant(parent, name)?;
        let directory = &s.load_dir(parent)?.inode;
        let gid = if directory.mode & S_ISGID != 0 {
            directory.gid
        } else {
            cred.gid
        };
        let mut inode = Inode::new(FileKind::Symlink, 0o777, cred.uid, gid, now);
        inode.size = target.len() as u64;
        inode.allocated = inode.size; // shortest spelling of the record; not counted as data
        let short = target.len() <= TARGET_MAX;
        if short {
            inode.target = Bytes::copy_from_slice(target);
        }
        let ino = s.enlist(parent, name, inode, now)?;
        for (index, part) in target.chunks(INLINE_MAX).enumerate().filter(|_| !short) {
            let part = Extent::Inline(Bytes::copy_from_slice(part));
            if let Some(value) = part.encode() {
                s.map
                    .put(Key::extent(ino, (index * INLINE_MAX) as u64), value);
            }
        }
        s.done();
        s.attr(ino)
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Answer<Bytes> {
        let s = &mut *self.lock()?;
        let inode = &s.load(ino)?.inode;
        if inode.kind != FileKind::Symlink {
            return Err(Errno::EINVAL.into());
        }
        let size = inode.size;
        if !inode.target.is_empty() {
            return Ok(inode.target.clone());
        }
        Ok(extent::read_inline(&s.view_of(ino), ino, size)?)
    }
}
