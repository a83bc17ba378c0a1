//! Keys of the map: `ino u64 ‖ tag u8 ‖ …`, integers big-endian so that the order of bytes is the order of numbers.
//!
//! Invariant: keys compare as byte strings, and everything of one inode stands together. A key from outside is only
//! trusted after [`KeyRef::parse`]. Called by everything that touches a record.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Range;

use super::{BadRecord, MAX_FILE};

/// Inode number. Never reused; 0 stands for the drive itself.
pub type Ino = u64;

/// Inode number of the root directory.
pub const ROOT: Ino = 1;
/// Longest file name or xattr name, bytes: what the kernel passes.
pub const NAME_MAX: usize = 255;
/// Longest key, bytes: a back-reference with the longest name.
pub const MAX_KEY: usize = 17 + NAME_MAX;

const TAG_INODE: u8 = 0;
const TAG_DENTRY: u8 = 1;
const TAG_XATTR: u8 = 2;
const TAG_EXTENT: u8 = 3;
const TAG_BACKREF: u8 = 4;

/// Tags of drive records (`ino` 0).
pub mod drive_tag {
    /// `0 ‖ writer u16 BE` → next inode number of that writer, u64 LE.
    pub const NEXT_INO: u8 = 0;
    /// `1` → feature bits a reader must understand, u64 LE.
    pub const FEATURES: u8 = 1;
}

/// A half-open range of keys. Its ends need not be keys of the map.
pub type KeyRange = Range<Key>;

/// A key, or a border between keys. Ordered as its bytes.
#[derive(Clone)]
pub struct Key(Repr);

/// Bytes kept in place: enough for names of 29 bytes in a dentry, 21 in a back-reference.
const IN_PLACE: usize = 38;

#[derive(Clone)]
enum Repr {
    InPlace { len: u8, bytes: [u8; IN_PLACE] },
    Boxed(Box<[u8]>),
}

impl Key {
    /// The inode record.
    pub fn inode(ino: Ino) -> Self {
        Self::of(ino, TAG_INODE, &[])
    }

    /// The entry `name` of directory `ino`. The name must be valid.
    pub fn dentry(ino: Ino, name: &[u8]) -> Self {
        debug_assert!(valid_name(name));
        Self::of(ino, TAG_DENTRY, &[name])
    }

    /// The extended attribute `name` (1–255 bytes without NUL) of `ino`.
    pub fn xattr(ino: Ino, name: &[u8]) -> Self {
        debug_assert!(valid_xattr_name(name));
        Self::of(ino, TAG_XATTR, &[name])
    }

    /// The extent of `ino` that begins at byte `offset` of the file.
    pub fn extent(ino: Ino, offset: u64) -> Self {
        Self::of(ino, TAG_EXTENT, &[&offset.to_be_bytes()])
    }

    /// Says that `parent` has an entry `name` which is `ino`.
    pub fn backref(ino: Ino, parent: Ino, name: &[u8]) -> Self {
        debug_assert!(valid_name(name));
        Self::of(ino, TAG_BACKREF, &[&parent.to_be_bytes(), name])
    }

    /// A record of the drive itself: `tag` from [`drive_tag`], `rest` at most 263 bytes.
    pub fn drive(tag: u8, rest: &[u8]) -> Self {
        debug_assert!(rest.len() <= MAX_KEY - 9);
        Self::of(0, tag, &[rest])
    }

    /// A key from outside. Refused unless [`KeyRef::parse`] takes it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadRecord> {
        KeyRef::parse(bytes)?;
        Ok(Self::border(&[bytes]))
    }

    /// Every record of `ino`.
    pub fn all_of(ino: Ino) -> KeyRange {
        Self::border(&[&ino.to_be_bytes()])..Self::border(&[&ino.saturating_add(1).to_be_bytes()])
    }

    /// The whole map.
    pub fn everything() -> KeyRange {
        Self::border(&[])..Self::border(&[&u64::MAX.to_be_bytes()])
    }

    /// All entries of directory `ino`.
    pub fn dentries(ino: Ino) -> KeyRange {
        Self::tagged(ino, TAG_DENTRY)
    }

    /// The entries of directory `ino` after `name`.
    pub fn dentries_after(ino: Ino, name: &[u8]) -> KeyRange {
        Self::of(ino, TAG_DENTRY, &[name, &[0]])..Self::of(ino, TAG_DENTRY + 1, &[])
    }

    /// All extended attributes of `ino`.
    pub fn xattrs(ino: Ino) -> KeyRange {
        Self::tagged(ino, TAG_XATTR)
    }

    /// All extents of `ino`.
    pub fn extents(ino: Ino) -> KeyRange {
        Self::tagged(ino, TAG_EXTENT)
    }

    /// The extents of `ino` that begin in `[from, to)`.
    pub fn extents_between(ino: Ino, from: u64, to: u64) -> KeyRange {
        Self::extent(ino, from)..Self::extent(ino, to)
    }

    /// All back-references of `ino`: one per hard link.
    pub fn backrefs(ino: Ino) -> KeyRange {
        Self::tagged(ino, TAG_BACKREF)
    }

    /// All records of the drive itself.
    pub fn drive_records() -> KeyRange {
        Self::all_of(0)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::InPlace { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Boxed(bytes) => bytes,
        }
    }

    /// What the key names.
    pub fn parse(&self) -> Result<KeyRef<'_>, BadRecord> {
        KeyRef::parse(self.as_bytes())
    }

    /// Any byte string as a border between keys.
    pub fn border(parts: &[&[u8]]) -> Self {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > IN_PLACE {
            return Self(Repr::Boxed(parts.concat().into_boxed_slice()));
        }
        let mut bytes = [0; IN_PLACE];
        let mut at = 0;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Self(Repr::InPlace {
            len: len as u8,
            bytes,
        })
    }

    fn of(ino: Ino, tag: u8, rest: &[&[u8]]) -> Self {
        let mut head = [0; 9];
        head[..8].copy_from_slice(&ino.to_be_bytes());
        head[8] = tag;
        match rest {
            [] => Self::border(&[&head]),
            [one] => Self::border(&[&head, one]),
            [one, two] => Self::border(&[&head, one, two]),
            more => Self::border(&[&head, &more.concat()]),
        }
    }

    fn tagged(ino: Ino, tag: u8) -> KeyRange {
        Self::of(ino, tag, &[])..Self::of(ino, tag + 1, &[])
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// Prints inode and record type, never a name.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parse() {
            Ok(KeyRef::Inode(ino)) => write!(f, "{ino}/inode"),
            Ok(KeyRef::Dentry(ino, _)) => write!(f, "{ino}/dentry"),
            Ok(KeyRef::Xattr(ino, _)) => write!(f, "{ino}/xattr"),
            Ok(KeyRef::Extent(ino, offset)) => write!(f, "{ino}/extent@{offset}"),
            Ok(KeyRef::Backref(ino, parent, _)) => write!(f, "{ino}/backref<{parent}"),
            Ok(KeyRef::Drive(tag, _)) => write!(f, "drive/{tag}"),
            Ok(KeyRef::Unknown { ino, tag }) => write!(f, "{ino}/tag {tag}"),
            Err(_) => write!(f, "border of {} bytes", self.as_bytes().len()),
        }
    }
}

/// What a key names, borrowed from its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRef<'a> {
    /// Inode record.
    Inode(Ino),
    /// Directory and name.
    Dentry(Ino, &'a [u8]),
    /// Inode and attribute name.
    Xattr(Ino, &'a [u8]),
    /// Inode and file offset.
    Extent(Ino, u64),
    /// Inode, parent directory, name there.
    Backref(Ino, Ino, &'a [u8]),
    /// Drive record: tag and the rest of the key.
    Drive(u8, &'a [u8]),
    /// A record of a later version: kept, not read.
    Unknown {
        /// Whose record.
        ino: Ino,
        /// The tag that is not known here.
        tag: u8,
    },
}

impl<'a> KeyRef<'a> {
    /// Reads a key strictly: names valid, offsets in range, nothing left over.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadRecord> {
        const BAD: BadRecord = BadRecord("key");
        let (ino, rest) = bytes.split_first_chunk::<8>().ok_or(BAD)?;
        let (&tag, rest) = rest.split_first().ok_or(BAD)?;
        let ino = Ino::from_be_bytes(*ino);
        if ino == Ino::MAX || bytes.len() > MAX_KEY {
            return Err(BAD);
        }
        let key = match tag {
            _ if ino == 0 => Some(Self::Drive(tag, rest)),
            TAG_INODE => rest.is_empty().then_some(Self::Inode(ino)),
            TAG_DENTRY => valid_name(rest).then_some(Self::Dentry(ino, rest)),
            TAG_XATTR => valid_xattr_name(rest).then_some(Self::Xattr(ino, rest)),
            TAG_EXTENT => rest
                .try_into()
                .ok()
                .map(u64::from_be_bytes)
                .filter(|&offset| offset < MAX_FILE)
                .map(|offset| Self::Extent(ino, offset)),
            TAG_BACKREF => rest.split_first_chunk::<8>().and_then(|(parent, name)| {
                let parent = Ino::from_be_bytes(*parent);
                (parent != 0 && valid_name(name)).then_some(Self::Backref(ino, parent, name))
            }),
            _ => Some(Self::Unknown { ino, tag }),
        };
        key.ok_or(BAD)
    }
}

/// The inode a key belongs to, without judging the rest; 0 for the drive's own records.
pub fn ino_of(key: &[u8]) -> Ino {
    key.first_chunk().map_or(0, |ino| Ino::from_be_bytes(*ino))
}

/// A name a directory may hold: 1–255 bytes, no `/`, no NUL, neither `.` nor `..`. Otherwise any bytes.
pub fn valid_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|&byte| byte == 0 || byte == b'/')
}

fn valid_xattr_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_parse_to_what_they_were_made_from() {
        let long = [b'n'; NAME_MAX];
        for name in [&b"a"[..], b"a name with spaces and \xff", &long] {
            assert_eq!(Key::dentry(7, name).parse(), Ok(KeyRef::Dentry(7, name)));
            assert_eq!(Key::xattr(7, name).parse(), Ok(KeyRef::Xattr(7, name)));
            assert_eq!(
                Key::backref(7, 9, name).parse(),
                Ok(KeyRef::Backref(7, 9, name))
            );
        }
        assert_eq!(Key::inode(1).parse(), Ok(KeyRef::Inode(1)));
        assert_eq!(Key::extent(1, 4096).parse(), Ok(KeyRef::Extent(1, 4096)));
        assert_eq!(
            Key::drive(drive_tag::NEXT_INO, &[0, 0]).parse(),
            Ok(KeyRef::Drive(0, &[0, 0]))
        );
        assert_eq!(
            Key::from_bytes(&[0, 0, 0, 0, 0, 0, 0, 9, 77, 1])
                .unwrap()
                .parse(),
            Ok(KeyRef::Unknown { ino: 9, tag: 77 })
        );
    }

    #[test]
    fn bad_keys_are_refused() {
        let mut bad: Vec<Vec<u8>> = vec![vec![], vec![0; 8], vec![0xff; 9]];
        for name in [&b"."[..], b"..", b"", b"a/b", b"a\0b", &[b'x'; 256]] {
            bad.push([&9u64.to_be_bytes()[..], &[TAG_DENTRY], name].concat());
            bad.push(
                [
                    &9u64.to_be_bytes()[..],
                    &[TAG_BACKREF],
                    &1u64.to_be_bytes(),
                    name,
                ]
                .concat(),
            );
        }
        bad.push([&9u64.to_be_bytes()[..], &[TAG_INODE, 0]].concat());
        bad.push([&9u64.to_be_bytes()[..], &[TAG_EXTENT, 0, 0]].concat());
        bad.push(
            [
                &9u64.to_be_bytes()[..],
                &[TAG_EXTENT],
                &u64::MAX.to_be_bytes(),
            ]
            .concat(),
        );
        bad.push(
            [
                &9u64.to_be_bytes()[..],
                &[TAG_BACKREF],
                &0u64.to_be_bytes(),
                b"a",
            ]
            .concat(),
        );
        bad.push([&9u64.to_be_bytes()[..], &[TAG_XATTR], b"a\0"].concat());
        bad.push([&9u64.to_be_bytes()[..], &[99], &[0; MAX_KEY]].concat());
        for bytes in bad {
            assert!(Key::from_bytes(&bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn order_is_that_of_numbers_and_ranges_hold_their_own() {
        assert!(Key::extent(1, 255) < Key::extent(1, 256));
        assert!(Key::inode(255) < Key::inode(256));
        let inside = |range: KeyRange, key: Key| range.contains(&key);
        assert!(inside(Key::dentries(3), Key::dentry(3, &[0xff; NAME_MAX])));
        assert!(!inside(Key::dentries(3), Key::xattr(3, b"a")));
        assert!(inside(Key::all_of(3), Key::backref(3, 1, b"z")));
        assert!(!inside(Key::all_of(3), Key::inode(4)));
        assert!(inside(Key::everything(), Key::inode(u64::MAX - 1)));
        assert!(inside(Key::extents_between(3, 0, 10), Key::extent(3, 9)));
        assert!(!inside(Key::dentries_after(3, b"a"), Key::dentry(3, b"a")));
        assert!(inside(
            Key::dentries_after(3, b"a"),
            Key::dentry(3, b"a\x01")
        ));
    }

    #[test]
    fn small_enough_for_a_large_overlay() {
        assert_eq!(size_of::<Key>(), 40);
        assert_eq!(size_of::<Option<super::super::Value>>(), 16);
    }

    #[test]
    fn debug_shows_no_name() {
        assert!(!format!("{:?}", Key::dentry(3, b"secret")).contains("secret"));
    }
}
