//! Extended attributes.
//!
//! Invariant: a value of at most `XATTR_DIRECT_MAX - 1` bytes is one record. A longer one fills its record and goes on
//! in continuation records, whose names begin with a byte that no attribute's name may begin with; "the record is full"
//! says that there are any. Called by the kernel's border.

use std::ops::ControlFlow;

use bytes::Bytes;
use sealdrive_core::record::{Edit, FileKind, Ino, Key, NAME_MAX, Time, XATTR_DIRECT_MAX, Xattr};

use super::acl::{self, Acl};
use super::directory::S_ISGID;
use super::errno::{Answer, Errno};
use super::gate::Need;
use super::setattr::CAPABILITY;
use super::state::State;
use super::{Drive, XattrRule};

/// Longest value, bytes: XATTR_SIZE_MAX of Linux.
const LONGEST_VALUE: usize = 64 << 10;
/// Longest list of names, bytes: XATTR_LIST_MAX of Linux.
const LONGEST_LIST: usize = 64 << 10;
/// First byte of the names of continuation records.
const CONTINUATION: u8 = 1;
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

impl Drive {
    /// Sets an attribute. `kill_sgid` (SETXATTR_ACL_KILL_SGID): the caller may not keep the set-group-id bit.
    pub fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        rule: XattrRule,
        kill_sgid: bool,
        now: Time,
    ) -> Answer<()> {
        let s = &mut *self.enter(Need::Space)?;
        check(name)?;
        if value.len() > LONGEST_VALUE {
            return Err(Errno::ERANGE.into());
        }
        let kind = s.load(ino)?.inode.kind;
        let user_ok = matches!(kind, FileKind::Regular | FileKind::Directory);
        if name.starts_with(b"user.") && !user_ok {
            return Err(Errno::EPERM.into());
        }
        let old = s.stored(ino, name)?;
        match rule {
            XattrRule::Create if old.is_some() => return Err(Errno::EEXIST.into()),
            XattrRule::Replace if old.is_none() => return Err(Errno::ENODATA.into()),
            _ => {}
        }
        let mut edits = s.removal(ino, name, old)?;
        if name == acl::ACCESS || name == acl::DEFAULT {
            s.set_acl(ino, name, value, kill_sgid, &mut edits)?;
        } else {
            put_value(ino, name, value, &mut edits);
        }
        if name == CAPABILITY {
            s.load(ino)?.capability = Some(true);
        }
        s.apply_of(ino, edits);
        s.change(ino).ctime = now;
        s.done();
        Ok(())
    }

    /// The value of an attribute; ENODATA if there is none.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Answer<Bytes> {
        let s = &mut *self.lock()?;
        check(name)?;
        s.load(ino)?;
        let Some(first) = s.stored(ino, name)? else {
            return Err(Errno::ENODATA.into());
        };
        if first.len() < XATTR_DIRECT_MAX {
            return Ok(first);
        }
        let mut value = first.to_vec();
        for index in 0.. {
            match s.stored(ino, &continuation(name, index))? {
                Some(part) => value.extend_from_slice(&part),
                None => break,
            }
        }
        Ok(value.into())
    }

    /// The names of all attributes, each followed by a zero byte.
    pub fn listxattr(&self, ino: Ino) -> Answer<Bytes> {
        let s = &mut *self.lock()?;
        s.load(ino)?;
        let mut names = Vec::new();
        s.view_of(ino).range(&Key::xattrs(ino), |key, _| {
            let name = &key[9..];
            if name.first() != Some(&CONTINUATION) {
                names.extend_from_slice(name);
                names.push(0);
            }
            ControlFlow::Continue(())
        })?;
        if names.len() > LONGEST_LIST {
            return Err(Errno::ERANGE.into());
        }
        Ok(names.into())
    }

    /// Removes an attribute; ENODATA if there is none.
    pub fn removexattr(&self, ino: Ino, name: &[u8], now: Time) -> Answer<()> {
        let s = &mut *self.enter(Need::Records)?;
        check(name)?;
        s.load(ino)?;
        let old = s.stored(ino, name)?;
        if old.is_none() {
            return Err(Errno::ENODATA.into());
        }
        let edits = s.removal(ino, name, old)?;
        let slot = s.load(ino)?;
        match name {
            acl::DEFAULT => slot.default_acl = Some(false),
            CAPABILITY => slot.capability = Some(false),
            _ => {}
        }
        s.apply_of(ino, edits);
        s.change(ino).ctime = now;
        s.done();
        Ok(())
    }
}

impl State {
    fn stored(&self, ino: Ino, name: &[u8]) -> Answer<Option<Bytes>> {
        match self.view_of(ino).xattr(ino, name)? {
            Some(Xattr::Direct(value)) => Ok(Some(value)),
            Some(Xattr::Chunk(_)) => Err(Errno::EOPNOTSUPP.into()), // a form this version does not write
            None => Ok(None),
        }
    }

    /// Edits that remove the attribute whose first record holds `old`.
    fn removal(&self, ino: Ino, name: &[u8], old: Option<Bytes>) -> Answer<Vec<Edit>> {
        let mut edits = Vec::new();
        if let Some(old) = old {
            edits.push(Edit::Delete(Key::xattr(ino, name)));
            if old.len() == XATTR_DIRECT_MAX {
                for index in 0.. {
                    let part = continuation(name, index);
                    if self.stored(ino, &part)?.is_none() {
                        break;
                    }
                    edits.push(Edit::Delete(Key::xattr(ino, &part)));
                }
            }
        }
        Ok(edits)
    }

    /// Stores a list and brings the permission bits in step with it. The inode is loaded.
    fn set_acl(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        kill_sgid: bool,
        edits: &mut Vec<Edit>,
    ) -> Answer<()> {
        let acl = Acl::parse(value)?;
        let kind = self.load(ino)?.inode.kind;
        if kind == FileKind::Symlink {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let mut keep = acl.is_some();
        if name == acl::DEFAULT {
            if kind != FileKind::Directory {
                return Err(Errno::EACCES.into());
            }
            self.load(ino)?.default_acl = Some(acl.is_some());
        } else if let Some(acl) = &acl {
            keep = !acl.is_minimal();
            let inode = self.change(ino);
            inode.mode = (inode.mode & !0o777) | acl.mode();
            if kill_sgid {
                inode.mode &= !S_ISGID;
            }
        }
        if let Some(acl) = acl.filter(|_| keep) {
            edits.push(Edit::Put(Key::xattr(ino, name), acl.record()));
        }
        Ok(())
    }
}

fn put_value(ino: Ino, name: &[u8], value: &[u8], edits: &mut Vec<Edit>) {
    let (first, rest) = value.split_at(value.len().min(XATTR_DIRECT_MAX));
    let direct = |part: &[u8]| Xattr::Direct(Bytes::copy_from_slice(part)).encode();
    edits.push(Edit::Put(Key::xattr(ino, name), direct(first)));
    for (index, part) in rest.chunks(XATTR_DIRECT_MAX).enumerate() {
        let key = Key::xattr(ino, &continuation(name, index as u8));
        edits.push(Edit::Put(key, direct(part)));
    }
}

/// Name of a continuation record: the whole attribute name may not fit beside the number, so its hash stands for it.
fn continuation(name: &[u8], index: u8) -> Vec<u8> {
    let hash = blake3::hash(name);
    let mut out = vec![CONTINUATION];
    out.extend(hash.as_bytes()[..16].iter().map(|byte| byte.max(&1))); // a name has no zero byte
    out.push(index + 1);
    out
}

fn check(name: &[u8]) -> Answer<()> {
    let known = NAMESPACES
        .iter()
        .any(|space| name.starts_with(space) && name.len() > space.len());
    if name.len() > NAME_MAX {
        Err(Errno::ERANGE.into())
    } else if name.contains(&0) {
        Err(Errno::EINVAL.into())
    } else if known || name == acl::ACCESS || name == acl::DEFAULT {
        Ok(())
    } else {
        Err(Errno::EOPNOTSUPP.into())
    }
}
