//! Requests about extended attributes, ours among them: `user.sealdrive.state` says how far a file has come.
//!
//! Invariant: names under `user.sealdrive.` are never stored, so a copy made with attributes does not carry the state
//! of the original; they are not listed, and cannot be set or removed. Called by the door.

use std::sync::Arc;

use fuser::{Errno, ReplyEmpty, ReplyXattr};
use sealdrive_core::record::Ino;

use super::backing::Backing;
use super::calls::{Calls, Waits, now};
use super::content::value;
use super::reply::Refuse;
use crate::drive::{Cred, XattrRule};

/// The synthetic attribute: `dirty`, `journaled`, `sent` or `committed`.
const STATE: &[u8] = b"user.sealdrive.state";
/// Names of this kind are ours.
const OURS: &[u8] = b"user.sealdrive.";
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const S_ISGID: u32 = 0o2000;

/// setxattr(2)'s flags.
const XATTR_CREATE: i32 = 1;
const XATTR_REPLACE: i32 = 2;

impl<B: Backing> Calls<B> {
    pub(super) fn getxattr(self: &Arc<Self>, ino: Ino, name: &[u8], size: u32, reply: ReplyXattr) {
        if name == STATE {
            return self.state(ino, size, reply);
        }
        let name = name.to_vec();
        self.call(
            "getxattr",
            Waits::Never,
            reply,
            move |drive| drive.getxattr(ino, &name),
            move |reply, found| value(reply, &found, size),
        );
    }

    pub(super) fn listxattr(self: &Arc<Self>, ino: Ino, size: u32, reply: ReplyXattr) {
        self.call(
            "listxattr",
            Waits::Never,
            reply,
            move |drive| drive.listxattr(ino),
            move |reply, names| value(reply, &names, size),
        );
    }

    pub(super) fn setxattr(
        self: &Arc<Self>,
        ino: Ino,
        (name, content): (&[u8], &[u8]),
        flags: i32,
        cred: Cred,
        reply: ReplyEmpty,
    ) {
        let rule = match flags {
            0 => XattrRule::Any,
            XATTR_CREATE => XattrRule::Create,
            XATTR_REPLACE => XattrRule::Replace,
            _ => return reply.refuse(Errno::EINVAL),
        };
        if name.starts_with(OURS) {
            return reply.refuse(Errno::EPERM);
        }
        let (name, content, now) = (name.to_vec(), content.to_vec(), now());
        let acl = name == ACCESS_ACL;
        self.call(
            "setxattr",
            Waits::ForRecords,
            reply,
            move |drive| {
                let kill = acl && {
                    let attr = drive.getattr(ino)?;
                    attr.mode & S_ISGID != 0 && !may_keep_sgid(cred, attr.gid)
                };
                drive.setxattr(ino, &name, &content, rule, kill, now)
            },
            |reply, ()| reply.ok(),
        );
    }

    pub(super) fn removexattr(self: &Arc<Self>, ino: Ino, name: &[u8], reply: ReplyEmpty) {
        if name.starts_with(OURS) {
            return reply.refuse(Errno::EPERM);
        }
        let (name, now) = (name.to_vec(), now());
        self.call(
            "removexattr",
            Waits::ForRecords,
            reply,
            move |drive| drive.removexattr(ino, &name, now),
            |reply, ()| reply.ok(),
        );
    }
}

/// Whether the caller may keep a set-group-id bit through a change of the access list: root, or a member of the
/// group (acl(5), chmod(2)). The kernel's own verdict does not reach us: fuser 0.18 lacks FUSE_SETXATTR_EXT.
fn may_keep_sgid(cred: Cred, group: u32) -> bool {
    cred.uid == 0 || cred.gid == group || supplementary_groups(cred.pid).contains(&group)
}

fn supplementary_groups(pid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .unwrap_or_default();
    line.split_whitespace()
        .filter_map(|group| group.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_group_id_bit_is_kept_by_root_and_members_only() {
        let stranger = Cred {
            uid: 1000,
            gid: 1000,
            pid: 0,
        };
        assert!(!may_keep_sgid(stranger, 7));
        assert!(may_keep_sgid(stranger, 1000));
        assert!(may_keep_sgid(Cred { uid: 0, ..stranger }, 7));
    }
}
