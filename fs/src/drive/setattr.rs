//! chmod, chown, truncate, utimens; and what they and writes take away from an executable.
//!
//! Invariant: set-id bits and file capabilities do not survive a change of content or owner (the kernel leaves that to
//! us: HANDLE_KILLPRIV_V2). Called by the kernel's border and the file operations.

use sealdrive_core::extent;
use sealdrive_core::record::{Edit, FileKind, Ino, Key, MAX_FILE, Time};

use super::acl;
use super::directory::S_ISGID;
use super::errno::{Answer, Errno};
use super::gate::Need;
use super::state::State;
use super::{Attr, Drive, SetAttr};

const S_ISUID: u32 = 0o4000;
const S_IXGRP: u32 = 0o010;
/// File capabilities: what a set-id bit is to a user, this is to single powers.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

impl Drive {
    /// Changes attributes; who may do so is checked by the kernel.
    pub fn setattr(&self, ino: Ino, set: SetAttr, now: Time) -> Answer<Attr> {
        let mut guard = self.enter(Need::Records)?;
        let s = &mut *guard;
        let kind = s.load(ino)?.inode.kind;
        let chown = set.uid.is_some() || set.gid.is_some();
        let kill = kind == FileKind::Regular && (chown || set.kill_suidgid);
        if kill {
            s.know_capability(ino)?;
        }
        let acl = match set.mode {
            Some(mode) => s.plan_chmod(ino, mode)?,
            None => None,
        };
        if let Some(size) = set.size {
            s.truncate(ino, size, now)?; // the last step that may fail
        }
        if kill {
            s.kill_privileges(ino);
        }
        if let Some(edit) = acl {
            s.apply_of(ino, vec![edit]);
        }
        let inode = s.change(ino);
        inode.mode = set.mode.map_or(inode.mode, |mode| mode & 0o7777);
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        inode.atime = set.atime.unwrap_or(inode.atime);
        inode.mtime = set.mtime.unwrap_or(inode.mtime);
        inode.ctime = set.ctime.unwrap_or(now);
        s.done();
        let attr = s.attr(ino);
        drop(guard);
        self.room.notify_all();
        attr
    }
}

impl State {
    /// Shrinks a file, or grows it by a hole.
    fn truncate(&mut self, ino: Ino, size: u64, now: Time) -> Answer<()> {
        if size > MAX_FILE {
            return Err(Errno::EFBIG.into());
        }
        let (old, allocated) = {
            let inode = &self.load_file(ino)?.inode;
            (inode.size, inode.allocated)
        };
        if size < old {
            let (freed, edits) = self.plan(ino, |txn| Ok(extent::truncate(txn, ino, size)?))?;
            self.apply_of(ino, edits);
            self.set_allocated(ino, allocated.saturating_sub(freed));
            self.drop_dirty(ino, size, MAX_FILE);
        }
        self.change(ino).size = size;
        let version = self.next_version();
        self.wrote(ino, size, version, Some(now));
        Ok(())
    }

    /// Finds out whether the file has capabilities, so that [`Self::kill_privileges`] need not read.
    pub(super) fn know_capability(&mut self, ino: Ino) -> Answer<()> {
        if self.load(ino)?.capability.is_none() {
            let has = self
                .view_of(ino)
                .get(&Key::xattr(ino, CAPABILITY))?
                .is_some();
            self.load(ino)?.capability = Some(has);
        }
        Ok(())
    }

    /// Clears set-user-id, set-group-id where the group may execute, and capabilities.
    pub(super) fn kill_privileges(&mut self, ino: Ino) {
        let Some(slot) = self.inodes.get_mut(ino) else {
            return;
        };
        let mode = slot.inode.mode;
        let kept = mode & !S_ISUID & if mode & S_IXGRP != 0 { !S_ISGID } else { !0 };
        let capable = slot.capability.replace(false) == Some(true);
        if kept != mode {
            self.change(ino).mode = kept;
        }
        if capable {
            self.apply_of(ino, vec![Edit::Delete(Key::xattr(ino, CAPABILITY))]);
        }
    }

    /// The access ACL after a chmod, if the file has one.
    fn plan_chmod(&mut self, ino: Ino, mode: u32) -> Answer<Option<Edit>> {
        let Some(acl) = self.acl_of(ino, acl::ACCESS)? else {
            return Ok(None);
        };
        let acl = acl.with_mode(mode);
        Ok(Some(Edit::Put(Key::xattr(ino, acl::ACCESS), acl.record())))
    }
}
