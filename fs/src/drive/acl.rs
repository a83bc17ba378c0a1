//! POSIX access control lists: what a new inode inherits, and keeping the list and the permission bits in step.
//!
//! Invariant: a stored list is valid (POSIX.1e draft 17 §23.1) and its owner, mask (or group) and other entries say the
//! same as the permission bits. A list that says no more than the bits is not stored. Called by setattr, xattr and
//! everything that makes an inode.

use bytes::Bytes;
use sealdrive_core::record::{FileKind, Ino, Value, Xattr};

use super::errno::{Answer, Errno};
use super::state::State;

/// Attribute of the list that counts.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Attribute of the list that what is made in a directory inherits.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Version in the kernel's encoding: `version u32`, then `tag u16 ‖ perm u16 ‖ id u32` each, little-endian.
const VERSION: u32 = 2;
const ENTRY: usize = 8;
/// Most entries of a list: it stands in one record.
const MOST: usize = 250;
const UNDEFINED_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// Reads the kernel's encoding. `None` for an empty list, which means "remove it".
    pub(super) fn parse(value: &[u8]) -> Answer<Option<Self>> {
        let (version, entries) = value.split_first_chunk::<4>().ok_or(Errno::EINVAL)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::EOPNOTSUPP.into());
        }
        if entries.len() % ENTRY != 0 {
            return Err(Errno::EINVAL.into());
        }
        if entries.is_empty() {
            return Ok(None);
        }
        if entries.len() > MOST * ENTRY {
            return Err(Errno::ENOSPC.into());
        }
        let entries = entries.chunks_exact(ENTRY).map(|entry| Entry {
            tag: u16::from_le_bytes([entry[0], entry[1]]),
            perm: u16::from_le_bytes([entry[2], entry[3]]),
            id: u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]),
        });
        let acl = Self(entries.collect());
        if acl.is_valid() {
            Ok(Some(acl))
        } else {
            Err(Errno::EINVAL.into())
        }
    }

    /// Owner first, then named users, owning group, named groups, mask, others; ids rise; a mask if anyone is named.
    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let rising = self.0.windows(2).all(|pair| {
            pair[0].tag < pair[1].tag || (pair[0].tag == pair[1].tag && pair[0].id < pair[1].id)
        });
        count(USER_OBJ) == 1
            && count(GROUP_OBJ) == 1
            && count(OTHER) == 1
            && (count(MASK) == 1 || (named == 0 && count(MASK) == 0))
            && rising
            && self.0.iter().all(|entry| {
                let known = [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(&entry.tag);
                let has_id = entry.tag == USER || entry.tag == GROUP;
                known && entry.perm <= 7 && (!has_id || entry.id != UNDEFINED_ID)
            })
    }

    /// The kernel's encoding.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            out.extend_from_slice(&entry.tag.to_le_bytes());
            out.extend_from_slice(&entry.perm.to_le_bytes());
            out.extend_from_slice(&entry.id.to_le_bytes());
        }
        out
    }

    /// The attribute's record.
    pub(super) fn record(&self) -> Value {
        Xattr::Direct(Bytes::from(self.encode())).encode()
    }

    /// Whether the permission bits say as much.
    pub(super) fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    fn perm(&self, tag: u16) -> Option<u32> {
        self.0
            .iter()
            .find(|entry| entry.tag == tag)
            .map(|entry| u32::from(entry.perm))
    }

    /// The nine permission bits it stands for.
    pub(super) fn mode(&self) -> u32 {
        let group = self.perm(MASK).or_else(|| self.perm(GROUP_OBJ));
        self.perm(USER_OBJ).unwrap_or(0) << 6
            | group.unwrap_or(0) << 3
            | self.perm(OTHER).unwrap_or(0)
    }

    /// As chmod changes it: the group bits go to the mask, if there is one.
    pub(super) fn with_mode(mut self, mode: u32) -> Self {
        let masked = self.perm(MASK).is_some();
        for entry in &mut self.0 {
            let shift = match entry.tag {
                USER_OBJ => 6,
                MASK => 3,
                GROUP_OBJ if !masked => 3,
                OTHER => 0,
                _ => continue,
            };
            entry.perm = (mode >> shift) as u16 & 7;
        }
        self
    }

    /// As a new inode inherits it: the owner, mask (or group) and other entries lose what `mode` does not grant.
    fn created_with(mut self, mode: u32) -> Self {
        let masked = self.perm(MASK).is_some();
        for entry in &mut self.0 {
            let shift = match entry.tag {
                USER_OBJ => 6,
                MASK => 3,
                GROUP_OBJ if !masked => 3,
                OTHER => 0,
                _ => continue,
            };
            entry.perm &= (mode >> shift) as u16 & 7;
        }
        self
    }
}

/// What a new inode begins with.
pub(super) struct Inherited {
    /// Permission bits, 07777.
    pub(super) mode: u32,
    /// Its own list, if it says more than the bits.
    pub(super) access: Option<Acl>,
    /// What it passes on: directories only.
    pub(super) default: Option<Acl>,
}

impl Inherited {
    /// The attributes to store.
    pub(super) fn attributes(&self) -> impl Iterator<Item = (&'static [u8], Value)> {
        let access = self.access.as_ref().map(|acl| (ACCESS, acl.record()));
        let default = self.default.as_ref().map(|acl| (DEFAULT, acl.record()));
        access.into_iter().chain(default)
    }
}

impl State {
    /// Permission bits and lists of what is made in `parent`: a default list replaces the umask (POSIX.1e §23.1.6).
    pub(super) fn inherit(
        &mut self,
        parent: Ino,
        kind: FileKind,
        mode: u32,
        umask: u32,
    ) -> Answer<Inherited> {
        let known = self.load(parent)?.default_acl;
        let default = match known {
            Some(false) => None,
            _ => self.acl_of(parent, DEFAULT)?,
        };
        self.load(parent)?.default_acl = Some(default.is_some());
        let Some(default) = default else {
            return Ok(Inherited {
                mode: mode & !(umask & 0o777),
                access: None,
                default: None,
            });
        };
        let access = default.clone().created_with(mode);
        Ok(Inherited {
            mode: (mode & !0o777) | access.mode(),
            access: Some(access).filter(|acl| !acl.is_minimal()),
            default: Some(default).filter(|_| kind == FileKind::Directory),
        })
    }

    /// A stored list.
    pub(super) fn acl_of(&self, ino: Ino, name: &[u8]) -> Answer<Option<Acl>> {
        match self.view_of(ino).xattr(ino, name)? {
            Some(Xattr::Direct(value)) => Acl::parse(&value),
            Some(Xattr::Chunk(_)) => Err(Errno::EIO.into()),
            None => Ok(None),
        }
    }
}
