//! Record codecs: what is encoded decodes to itself, and no other bytes mean the same.

use bytes::Bytes;
use proptest::prelude::*;
use sealdrive_core::record::{
    Dentry, Extent, FileKind, Inode, TARGET_MAX, Time, XATTR_DIRECT_MAX, Xattr, check,
};
use sealdrive_core::record::{Key, MAX_FILE};
use sealdrive_core::reference::Reference;
use sealdrive_proto::id::{Cid, Epoch};

fn time() -> impl Strategy<Value = Time> {
    // Often the same, so that fields that are left out are met.
    prop_oneof![
        Just(Time { secs: 5, nanos: 6 }),
        (any::<i64>(), 0..1_000_000_000u32).prop_map(|(secs, nanos)| Time { secs, nanos })
    ]
}

fn inode() -> impl Strategy<Value = Inode> {
    let times = (time(), time(), time(), time());
    let ids = (
        1..8u8,
        0..=0o7777u32,
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
    );
    let sizes = (
        0..=MAX_FILE,
        prop::option::of(0..=MAX_FILE),
        prop_oneof![Just(0), any::<u64>()],
    );
    let rest = (
        prop::collection::vec(any::<u8>(), 0..TARGET_MAX),
        prop::option::of(any::<[u8; 32]>()),
    );
    (times, ids, sizes, rest).prop_map(|(times, ids, (size, allocated, rdev), (target, digest))| {
        let kind = FileKind::from_code(ids.0).unwrap();
        let target = if kind == FileKind::Symlink {
            Bytes::from(target)
        } else {
            Bytes::new()
        };
        Inode {
            kind,
            mode: ids.1,
            uid: ids.2,
            gid: ids.3,
            nlink: ids.4,
            generation: ids.5,
            size,
            allocated: allocated.unwrap_or(size),
            rdev,
            atime: times.0,
            mtime: times.1,
            ctime: times.2,
            btime: times.3,
            target,
            digest,
        }
    })
}

proptest! {
    #[test]
    fn inodes_round_trip(inode in inode()) {
        let bytes = inode.encode();
        prop_assert!(Inode::decode(&bytes) == Ok(inode));
        prop_assert!(check(Key::inode(3).as_bytes(), &bytes).is_ok());
    }

    /// Whatever a damaged inode still decodes to encodes to the damaged bytes: no state has two spellings.
    #[test]
    fn inodes_are_canonical(inode in inode(), at in any::<prop::sample::Index>(), to in any::<u8>(), cut in 0..3usize) {
        let mut bytes = inode.encode().to_vec();
        let at = at.index(bytes.len().min(60));
        bytes[at] = to;
        bytes.truncate(bytes.len() - cut);
        if let Ok(decoded) = Inode::decode(&bytes) {
            prop_assert_eq!(&decoded.encode()[..], &bytes[..]);
        }
    }

    #[test]
    fn random_records_are_canonical_or_refused(bytes in prop::collection::vec(0..9u8, 0..60)) {
        if let Ok(inode) = Inode::decode(&bytes) {
            prop_assert_eq!(&inode.encode()[..], &bytes[..]);
        }
        if let Ok(dentry) = Dentry::decode(&bytes) {
            prop_assert_eq!(&dentry.encode()[..], &bytes[..]);
        }
        if let Ok(extent) = Extent::decode(&bytes) {
            prop_assert_eq!(&extent.encode().unwrap()[..], &bytes[..]);
        }
        if let Ok(xattr) = Xattr::decode(&bytes) {
            prop_assert_eq!(&xattr.encode()[..], &bytes[..]);
        }
    }
}

#[test]
fn extents_and_attributes_keep_their_bounds() {
    let reference = Reference {
        epoch: Epoch(2),
        cid: Cid([7; 32]),
        plain_len: 5000,
        variant: 1,
    };
    let chunk = Extent::Chunk {
        reference,
        skip: 4000,
        len: 1000,
    };
    let bytes = chunk.encode().unwrap();
    assert_eq!((bytes.len(), Extent::decode(&bytes)), (50, Ok(chunk)));
    for (at, to) in [(46, 0xe9), (42, 0xa1), (45, 0xff), (0, 0), (0, 3), (0, 2)] {
        let mut bad = bytes.to_vec();
        bad[at] = to;
        // As an inline extent the bytes are content, whatever they are; all else reaches out of the chunk.
        assert_eq!(Extent::decode(&bad).is_ok(), to == 2, "byte {at}");
    }
    assert!(Extent::decode(&[&bytes[..], &[0]].concat()).is_err());
    assert!(
        Extent::decode(&[&bytes[..46], &[0; 4]].concat()).is_err(),
        "covers nothing"
    );
    assert!(Extent::decode(&[2]).is_err());
    assert!(Extent::Hole { len: 9 }.encode().is_none());
    for len in [0, 1, XATTR_DIRECT_MAX] {
        let direct = Xattr::Direct(Bytes::from(vec![1; len]));
        assert!(Xattr::decode(&direct.encode()) == Ok(direct));
    }
    assert!(Xattr::decode(&vec![1; XATTR_DIRECT_MAX + 2]).is_err());
    assert!(Xattr::decode(&Xattr::Chunk(reference).encode()).is_ok());
    let short = Reference {
        plain_len: XATTR_DIRECT_MAX as u32,
        ..reference
    };
    assert!(
        Xattr::decode(&Xattr::Chunk(short).encode()).is_err(),
        "that value belongs in the record"
    );
    assert!(Dentry::decode(&[1, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    assert!(Dentry::decode(&[8, 1, 0, 0, 0, 0, 0, 0, 0]).is_err());
}
