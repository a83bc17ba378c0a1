//! How fast the tree is, by hand: `cargo run --release --example tree_speed [FILES]`. Prints records per second.
//!
//! The map is that of a source tree: directories of 16 files, four records each. Not a benchmark harness; BENCHMARKS.md
//! is made by the suite.
#![allow(clippy::expect_used, reason = "an example stops where it fails")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sealdrive_core::node::Node;
use sealdrive_core::overlay::Overlay;
use sealdrive_core::record::{Dentry, Extent, FileKind, Inode, Key, Time, Value};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::{Missing, Nodes, Root, TreeError};
use sealdrive_core::view::{Txn, View};
use sealdrive_core::{extent, merge, tree};
use sealdrive_proto::id::{Cid, Epoch};

#[derive(Default)]
struct Store {
    nodes: RefCell<HashMap<Reference, Arc<Node>>>,
}

impl Nodes for Store {
    fn get(&self, reference: &Reference) -> Result<Arc<Node>, Missing> {
        self.nodes
            .borrow()
            .get(reference)
            .cloned()
            .ok_or(Missing(*reference))
    }
}

impl Store {
    fn put(&self, bytes: &[u8]) -> Reference {
        let cid = Cid(*blake3::hash(bytes).as_bytes());
        let reference = Reference {
            epoch: Epoch(1),
            cid,
            plain_len: bytes.len() as u32,
            variant: 0,
        };
        let node = Node::decode(Bytes::copy_from_slice(bytes)).expect("canonical");
        self.nodes.borrow_mut().insert(reference, Arc::new(node));
        reference
    }

    fn apply(&self, root: Option<&Root>, overlay: &Overlay) -> Root {
        let put = &mut |bytes: &[u8]| Ok::<_, TreeError>(self.put(bytes));
        merge::apply(self, root, overlay.iter(), &[7; 32], put).expect("all nodes are here")
    }
}

fn told<T>(what: &str, records: usize, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{what:<44} {records:>9} in {seconds:>7.3} s = {:>10.0}/s",
        records as f64 / seconds
    );
    result
}

fn chunk(n: u64) -> Extent {
    let mut cid = [0; 32];
    cid[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let reference = Reference {
        epoch: Epoch(1),
        cid: Cid(cid),
        plain_len: 300_000,
        variant: 0,
    };
    Extent::Chunk {
        reference,
        skip: (n % 1000) as u32,
        len: 4000,
    }
}

fn source_tree(files: u64) -> Overlay {
    let mut overlay = Overlay::new();
    for ino in 2..files + 2 {
        let parent = 1 + (ino / 16) * 16;
        let name = format!("some_source_{:x}.c", ino * 7919);
        let mut inode = Inode::new(
            FileKind::Regular,
            0o644,
            1000,
            1000,
            Time {
                secs: 1_700_000_000,
                nanos: ino as u32,
            },
        );
        inode.size = 4000;
        inode.allocated = 4000;
        inode.digest = Some(*blake3::hash(&ino.to_le_bytes()).as_bytes());
        overlay.put(Key::inode(ino), inode.encode());
        overlay.put(
            Key::dentry(parent, name.as_bytes()),
            Dentry {
                ino,
                kind: FileKind::Regular,
            }
            .encode(),
        );
        overlay.put(
            Key::backref(ino, parent, name.as_bytes()),
            Value::from(&b""[..]),
        );
        overlay.put(
            Key::extent(ino, 0),
            chunk(ino).encode().expect("a chunk has a record"),
        );
    }
    overlay
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

fn main() {
    let files: u64 = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(79_000);
    let before = resident_kib();
    let overlay = told("records into the overlay", 4 * files as usize, || {
        source_tree(files)
    });
    let held = resident_kib() - before;
    println!(
        "overlay: counted {} KiB, resident {held} KiB, {} B a file",
        overlay.bytes() >> 10,
        (held << 10) / files
    );
    let store = Store::default();
    let root = told("bulk apply", overlay.len(), || store.apply(None, &overlay));
    let nodes = store.nodes.borrow().len();
    let bytes: usize = store
        .nodes
        .borrow()
        .values()
        .map(|node| node.bytes().len())
        .sum();
    println!(
        "tree: {nodes} nodes, {} KiB, {} B a node, {} B a file",
        bytes >> 10,
        bytes / nodes,
        bytes / files as usize
    );
    told("get from the tree, scattered", 4 * files as usize, || {
        for n in 0..4 * files {
            let key = Key::inode(2 + n.wrapping_mul(7919) % files);
            assert!(tree::get(&store, &root, &key).expect("here").is_some());
        }
    });
    let empty = Overlay::new();
    let count = |view: &View<'_>| {
        let mut seen = 0;
        let each = |_: &[u8], _: &[u8]| {
            seen += 1;
            ControlFlow::Continue(())
        };
        view.range(&Key::everything(), each).expect("here");
        assert_eq!(seen, overlay.len());
    };
    told("range over the tree alone", overlay.len(), || {
        count(&View::new(&empty, None, Some(&root), &store))
    });
    told(
        "range, everything also in the overlay",
        overlay.len(),
        || count(&View::new(&overlay, None, Some(&root), &store)),
    );
    let mut touched = Overlay::new();
    for (at, (key, value)) in overlay.iter().enumerate() {
        if at % 397 == 0
            && let Some(value) = value
        {
            touched.put(
                Key::from_bytes(key).expect("a key"),
                Value::from([&value[..value.len().min(1)], &value[value.len().min(1)..]].concat()),
            );
        }
    }
    told(
        "apply of scattered edits that change nothing",
        touched.len(),
        || store.apply(Some(&root), &touched),
    );
    let view = View::new(&empty, None, Some(&root), &store);
    let mut txn = Txn::new(view);
    told("extent put, appending in sequence", 100_000, || {
        for n in 0..100_000 {
            extent::put(&mut txn, 9, n * 4000, &chunk(n)).expect("here");
        }
    });
    told(
        "extent put, scattered over 100,000 extents",
        100_000,
        || {
            for n in 0..100_000u64 {
                extent::put(
                    &mut txn,
                    9,
                    n.wrapping_mul(0x9e37_79b9) % 400_000_000,
                    &chunk(n),
                )
                .expect("here");
            }
        },
    );
    let edits = txn.finish();
    let mut appended = Overlay::new();
    edits.into_iter().for_each(|edit| appended.apply(edit));
    told("apply of those extents", appended.len(), || {
        store.apply(Some(&root), &appended)
    });
}
