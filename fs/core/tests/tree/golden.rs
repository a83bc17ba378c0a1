//! Bytes that must never change: a node, a record of each kind, a root, a journal segment. Made by format 2.

use bytes::Bytes;
use sealdrive_core::journal::{Entry, SegmentHeader, SegmentWriter};
use sealdrive_core::local::LocalKeys;
use sealdrive_core::overlay::Overlay;
use sealdrive_core::record::{Dentry, Edit, Extent, FileKind, Inode, Key, Time, Value, Xattr};
use sealdrive_core::reference::Reference;
use sealdrive_proto::id::{Cid, DriveId, Epoch};

use crate::world::{Model, Store, apply_to_model, rebuild};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn reference() -> Reference {
    Reference {
        epoch: Epoch(3),
        cid: Cid([0xc1; 32]),
        plain_len: 300_000,
        variant: 0,
    }
}

fn edits() -> Vec<Edit> {
    let mut overlay = Overlay::new();
    let at = |secs| Time {
        secs,
        nanos: 999_999_999,
    };
    for ino in 1..=300u64 {
        let mut inode = Inode::new(FileKind::Regular, 0o640, 1000, 100, at(ino as i64 - 150));
        inode.size = ino * 1000;
        inode.atime = at(7);
        overlay.put(Key::inode(ino), inode.encode());
        let name = format!("name {ino}");
        overlay.put(
            Key::dentry(1, name.as_bytes()),
            Dentry {
                ino,
                kind: FileKind::Regular,
            }
            .encode(),
        );
        overlay.put(Key::backref(ino, 1, name.as_bytes()), Value::from(&b""[..]));
        let extent = Extent::Chunk {
            reference: reference(),
            skip: ino as u32,
            len: 1000,
        };
        overlay.put(Key::extent(ino, 0), extent.encode().unwrap());
        overlay.put(
            Key::xattr(ino, b"user.a"),
            Xattr::Direct(Bytes::from(vec![1; ino as usize])).encode(),
        );
    }
    overlay.into_edits().collect()
}

#[test]
fn records_nodes_roots_and_journals_keep_their_bytes() {
    let store = Store::default();
    let small = &edits()[..1];
    let node = store.apply(None, small);
    let bytes = store.nodes.borrow()[&node.0].bytes().clone();
    // version, level, count | key and value length | key | version, kind, flags, mode, uid, gid, nlink | size,
    // generation | mtime, atime | allocated
    let expected = "02000100 09003d00 000000000000000100 010109 a001 e8030000 64000000 01000000 \
                    e803000000000000 00000000 6bffffffffffffffffc99a3b 0700000000000000ffc99a3b \
                    0000000000000000";
    assert_eq!(hex(&bytes), expected.replace(' ', ""));
    let root = store.apply(None, &edits());
    // The root under BLAKE3 without a key in place of the cid.
    let expected =
        "01000000 782c48c5c7fe23da7ef03a9df04d0d70d9f64c1e9517f18548cf6908374889ba 3b030000 00";
    assert_eq!(hex(&root.0.encode()), expected.replace(' ', ""));
    let mut model = Model::new();
    apply_to_model(&mut model, &edits());
    assert_eq!(root.0, rebuild(&model), "by the letter of FORMAT.md");
    let keys = LocalKeys::derive(&[1; 32], &[2; 32]);
    let header = SegmentHeader {
        drive: DriveId([5; 32]),
        segment: 2,
        first_op: 9,
        prev_tag: [6; 16],
        salt: [7; 32],
    };
    let (mut writer, mut segment) = SegmentWriter::begin(&header, &keys);
    writer.synced();
    let entries = [
        Entry::Op {
            seq: 9,
            edits: edits(),
        },
        Entry::Data {
            seq: 10,
            ino: 5,
            off: 77,
            bytes: Bytes::from_static(b"content"),
        },
        Entry::Discard {
            seq: 11,
            ino: 5,
            off: 0,
            len: 84,
        },
    ];
    segment.extend(writer.append(&keys, &entries).concat());
    let expected = "a26a17b0284584cf2919abcd7f30eb57adcd4c7bad791c383f24d75f66e66b8f";
    assert_eq!(blake3::hash(&segment).to_hex().as_str(), expected);
}
