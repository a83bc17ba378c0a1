//! The node decoder: takes what was encoded, refuses the rest, never panics.

use bytes::Bytes;
use sealdrive_core::node::{BadNode, Node};
use sealdrive_core::overlay::Overlay;
use sealdrive_core::record::{Dentry, Edit, Extent, FileKind, Inode, Key, Time, Value};
use sealdrive_proto::limits::MAX_NODE;

use crate::world::{Dice, Store};

#[test]
fn the_decoder_takes_exactly_what_was_encoded() {
    let store = Store::default();
    let mut edits = Overlay::new();
    let now = Time {
        secs: 1_700_000_000,
        nanos: 5,
    };
    for ino in 1..120 {
        let mut inode = Inode::new(FileKind::Regular, 0o644, 1000, 1000, now);
        inode.size = ino * 3;
        edits.put(Key::inode(ino), inode.encode());
        edits.put(
            Key::dentry(1, format!("file {ino}").as_bytes()),
            Dentry {
                ino,
                kind: FileKind::Regular,
            }
            .encode(),
        );
        edits.put(
            Key::backref(ino, 1, format!("file {ino}").as_bytes()),
            Value::from(&b""[..]),
        );
        edits.put(
            Key::extent(ino, 0),
            Extent::Inline(Bytes::from_static(b"content"))
                .encode()
                .unwrap(),
        );
    }
    let edits: Vec<Edit> = edits.into_edits().collect();
    store.apply(None, &edits);
    let dice = &mut Dice(77);
    let nodes: Vec<Bytes> = store
        .nodes
        .borrow()
        .values()
        .map(|node| node.bytes().clone())
        .collect();
    let (mut refused, mut tried) = (0, 0);
    for bytes in nodes {
        for _ in 0..400 {
            let mut bad = bytes.to_vec();
            match dice.below(4) {
                0 => bad.truncate(dice.below(bad.len() as u64) as usize),
                1 => bad.push(dice.roll() as u8),
                2 => {
                    let at = dice.below(bad.len() as u64) as usize;
                    bad.remove(at);
                }
                _ => {
                    let at = dice.below(bad.len() as u64) as usize;
                    bad[at] ^= (dice.below(255) + 1) as u8;
                }
            }
            tried += 1;
            match Node::decode(Bytes::from(bad.clone())) {
                Err(_) => refused += 1,
                // A changed byte may make another valid node, but then it reads as what is written.
                Ok(node) => {
                    let entries: usize = (0..node.len())
                        .map(|at| node.key(at).len() + node.value(at).len())
                        .sum();
                    assert_eq!(
                        entries + 4 + node.len() * if node.level() == 0 { 4 } else { 2 },
                        bad.len()
                    );
                }
            }
        }
    }
    assert!(refused > tried / 2, "{refused} of {tried}");
    for len in [0, 1, 3, 4, 5, 64, 4096, MAX_NODE, MAX_NODE + 1] {
        for _ in 0..200 {
            let mut random: Vec<u8> = (0..len).map(|_| dice.roll() as u8).collect();
            let _ = Node::decode(Bytes::from(random.clone()));
            if len > 4 {
                random[..4].copy_from_slice(&[2, dice.below(2) as u8, dice.below(9) as u8, 0]);
                random[4..]
                    .iter_mut()
                    .step_by(2)
                    .for_each(|byte| *byte &= 7);
                let _ = Node::decode(Bytes::from(random));
            }
        }
    }
}

#[test]
fn a_node_with_a_bad_record_is_refused() {
    let with = |key: &[u8], value: &[u8]| {
        let head = [
            (key.len() as u16).to_le_bytes(),
            (value.len() as u16).to_le_bytes(),
        ]
        .concat();
        Node::decode(Bytes::from([&[2, 0, 1, 0][..], &head, key, value].concat()))
    };
    let dentry = Dentry {
        ino: 2,
        kind: FileKind::Regular,
    }
    .encode();
    assert!(with(Key::dentry(1, b"ok").as_bytes(), &dentry).is_ok());
    let named = |name: &[u8]| [&1u64.to_be_bytes()[..], &[1], name].concat();
    for name in [&b".."[..], b".", b"", b"a/b", b"nul\0", &[b'x'; 256]] {
        assert!(with(&named(name), &dentry).is_err());
    }
    assert!(with(Key::dentry(1, b"ok").as_bytes(), &dentry[..8]).is_err());
    assert!(with(Key::backref(2, 1, b"ok").as_bytes(), b"x").is_err());
    assert!(
        with(
            Key::extent(2, i64::MAX as u64 - 1).as_bytes(),
            &[2, 1, 1, 1]
        )
        .is_err(),
        "reaches beyond the longest file"
    );
    assert!(
        with(Key::drive(200, b"later").as_bytes(), &[9; 2048]).is_ok(),
        "records of later versions are kept"
    );
    assert!(with(Key::drive(200, b"later").as_bytes(), &[9; 2049]).is_err());
    assert!(Node::decode(Bytes::from_static(&[2, 0, 0, 0])).is_ok_and(|node| node.is_empty()));
    assert!(
        Node::decode(Bytes::from_static(&[2, 1, 0, 0])).is_err(),
        "only a leaf may be empty"
    );
    assert!(Node::decode(Bytes::from_static(&[2, 33, 0, 0])).is_err());
    for version in [0, 1, 3, 255] {
        let other = Node::decode(Bytes::from(vec![version, 0, 0, 0]));
        let refusal = other.expect_err("another version is not read");
        assert_eq!(refusal, BadNode::Version(version));
        let said = refusal.to_string();
        assert!(said.contains(&format!("version {version},")) && said.contains("version 2"));
    }
}
