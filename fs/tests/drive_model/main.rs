//! Random operations on a drive against a plain model, with writeback, checkpoints and crashes between them.
//!
//! What must hold: every answer is the model's answer; after a crash the drive is the model as it stood at the last
//! barrier on disk (or at the last checkpoint); a tree holds no record of an inode without a name.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod model;
mod steps;
mod world;

use std::collections::BTreeMap;

use sealdrive::drive::{Errno, Seek, Settle};
use sealdrive_core::record::{FileKind, Ino, KeyRef};

use model::{Model, ROOT};
use world::{Dice, World};

/// A run: the drive, the model, and what the test holds of the drive.
struct Run {
    world: World,
    model: Model,
    dice: Dice,
    now: i64,
    /// Open handles: inode, handle.
    open: Vec<(Ino, u64)>,
    lookups: BTreeMap<Ino, u64>,
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            world: World::new(),
            model: Model::new(0),
            dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            now: 1,
            open: Vec::new(),
            lookups: BTreeMap::new(),
        }
    }

    /// One step of the machinery around the operations.
    fn machinery(&mut self) {
        match self.dice.below(12) {
            0..=2 => self.world.log(&self.model),
            3..=4 => self.world.take_jobs(Settle::Settled, 4 << 20),
            5 => {
                let bytes = self.dice.below(1 << 20);
                self.world.take_jobs(Settle::All, bytes);
            }
            6..=8 => {
                self.world.finish_job(&mut self.dice, true);
            }
            9 => self.world.freeze(&mut self.dice, &self.model),
            10 => self.world.merge(),
            _ if self.world.frozen.is_some() && self.dice.one_in(3) => {
                self.world.frozen = None;
                self.world.drive.refreeze_later();
            }
            _ => self.let_go(),
        }
    }

    /// Closes a handle or forgets an inode.
    fn let_go(&mut self) {
        if !self.open.is_empty() && self.dice.one_in(2) {
            let at = self.dice.below(self.open.len() as u64) as usize;
            let (ino, handle) = self.open.swap_remove(at);
            self.world.drive.release(handle);
            self.bury(ino);
        } else {
            let held: Vec<Ino> = self.lookups.keys().copied().collect();
            if !held.is_empty() {
                let ino = self.dice.pick(&held);
                let count = self.lookups.remove(&ino).unwrap_or(0);
                self.world.drive.forget(ino, count);
                self.bury(ino);
            }
        }
    }

    /// A node without a name is gone once nobody holds it.
    fn bury(&mut self, ino: Ino) {
        let held =
            self.lookups.contains_key(&ino) || self.open.iter().any(|(open, _)| *open == ino);
        if !held
            && self
                .model
                .nodes
                .get(&ino)
                .is_some_and(|node| node.nlink == 0)
        {
            self.model.nodes.remove(&ino);
            assert_eq!(
                self.world.run(|drive| drive.getattr(ino)),
                Err(Errno::ENOENT)
            );
        }
    }

    fn crash(&mut self) {
        if std::env::var_os("DRIVE_MODEL_LOUD").is_some() {
            eprintln!("crash at {}", self.now);
        }
        // Anything from the first entry after the last checkpoint on may be lost.
        let least = self.dice.below(self.world.journal.len() as u64 + 1) as usize;
        let kept = if self.dice.one_in(3) {
            self.world.journal.len()
        } else {
            least
        };
        self.model = self.world.crash(kept);
        self.open.clear();
        self.lookups.clear();
        self.check();
        self.world.barriers = vec![(self.world.journal.len(), self.model.named())];
    }

    /// Compares everything.
    fn check(&mut self) {
        let ids: Vec<Ino> = self.model.nodes.keys().copied().collect();
        for ino in ids {
            self.check_node(ino);
        }
        let (files, bytes) = self
            .world
            .run(|drive| drive.usage())
            .map(|u| (u.files, u.bytes))
            .expect("usage");
        let named = self
            .model
            .nodes
            .values()
            .filter(|node| node.nlink > 0)
            .count();
        assert_eq!(files, named as u64, "files counted");
        let most: u64 = self
            .model
            .nodes
            .values()
            .filter(|n| n.kind == FileKind::Regular)
            .map(|n| n.content.len() as u64)
            .sum();
        assert!(
            bytes <= most + self.world.drive.dirty_bytes(),
            "{bytes} bytes counted, at most {most} there"
        );
    }

    fn check_node(&mut self, ino: Ino) {
        let node = self.model.nodes[&ino].clone();
        let attr = self
            .world
            .run(|drive| drive.getattr(ino))
            .unwrap_or_else(|errno| panic!("getattr of {ino}: {errno}, nlink {}", node.nlink));
        assert_eq!(attr.kind, node.kind);
        assert_eq!(
            (attr.mode, attr.nlink),
            (node.mode, node.nlink),
            "mode and nlink of {ino}"
        );
        assert_eq!(
            (attr.mtime.secs, attr.ctime.secs),
            (node.mtime, node.ctime),
            "times of {ino} {:?}",
            node.kind
        );
        match node.kind {
            FileKind::Regular => {
                assert_eq!(attr.size, node.content.len() as u64, "size of {ino}");
                let read = self.world.read(ino, 0, attr.size + 10);
                assert!(
                    read == node.content,
                    "content of {ino} differs at {:?}",
                    difference(&read, &node.content)
                );
                assert!(attr.blocks <= attr.size.next_multiple_of(4096) / 512);
                self.check_seek(ino, &node.content);
            }
            FileKind::Symlink => {
                let target = self
                    .world
                    .run(|drive| drive.readlink(ino))
                    .expect("readlink");
                assert_eq!(&target[..], &node.content[..]);
            }
            FileKind::Directory => self.check_dir(ino, &node.entries),
            _ => {}
        }
        let names = self
            .world
            .run(|drive| drive.listxattr(ino))
            .expect("listxattr");
        let mut names: Vec<Vec<u8>> = names
            .split(|b| *b == 0)
            .filter(|n| !n.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        names.sort();
        assert!(names.iter().eq(node.xattrs.keys()), "attributes of {ino}");
        for (name, value) in &node.xattrs {
            let found = self
                .world
                .run(|drive| drive.getxattr(ino, name))
                .expect("getxattr");
            assert!(found == value[..], "value of an attribute of {ino}");
        }
    }

    fn check_dir(&mut self, ino: Ino, entries: &BTreeMap<Vec<u8>, Ino>) {
        let handle = self.world.run(|drive| drive.opendir(ino)).expect("opendir");
        let mut found = BTreeMap::new();
        let mut cookie = 0;
        loop {
            let mut taken = 0;
            let mut seen = Vec::new();
            self.world
                .run(|drive| {
                    drive.readdir(handle, cookie, |entry| {
                        if taken == 7 {
                            return false;
                        }
                        taken += 1;
                        seen.push((entry.next, entry.name.to_vec(), entry.ino));
                        true
                    })
                })
                .expect("readdir");
            let Some(last) = seen.last() else {
                break;
            };
            cookie = last.0;
            for (_, name, ino) in seen {
                assert!(found.insert(name, ino).is_none(), "a name listed twice");
            }
        }
        self.world.drive.releasedir(handle);
        assert_eq!(found.remove(&b"."[..]), Some(ino));
        let parent = found.remove(&b".."[..]).expect("..");
        if ino != ROOT && self.model.nodes[&ino].nlink > 0 {
            assert!(
                self.model.nodes[&parent]
                    .entries
                    .values()
                    .any(|child| *child == ino),
                ".. of {ino}"
            );
        }
        assert_eq!(&found, entries, "entries of {ino}");
    }

    /// SEEK_DATA never steps over a byte that is not zero, and both make progress.
    fn check_seek(&mut self, ino: Ino, content: &[u8]) {
        let mut at = 0;
        while at < content.len() as u64 {
            match self.world.run(|drive| drive.lseek(ino, at, Seek::Data)) {
                Ok(data) => {
                    assert!(
                        content[at as usize..data as usize]
                            .iter()
                            .all(|byte| *byte == 0),
                        "data in a hole"
                    );
                    let hole = self
                        .world
                        .run(|drive| drive.lseek(ino, data, Seek::Hole))
                        .expect("hole");
                    assert!(hole > data);
                    at = hole;
                }
                Err(errno) => {
                    assert_eq!(errno, Errno::ENXIO);
                    assert!(
                        content[at as usize..].iter().all(|byte| *byte == 0),
                        "data after the last data"
                    );
                    break;
                }
            }
        }
        let beyond = self
            .world
            .run(|drive| drive.lseek(ino, content.len() as u64, Seek::Hole));
        assert_eq!(beyond, Err(Errno::ENXIO));
    }

    /// No record of a nameless inode is in the tree, and every record there belongs to an inode of the checkpoint.
    fn check_tree(&mut self) {
        self.world.freeze(&mut self.dice, &self.model);
        self.world.merge();
        let (root, _, model) = self.world.checkpoint.clone();
        for key in self.world.records(&root.expect("just made")) {
            let ino = match KeyRef::parse(&key).expect("key") {
                KeyRef::Inode(ino) | KeyRef::Dentry(ino, _) | KeyRef::Xattr(ino, _) => ino,
                KeyRef::Extent(ino, _) | KeyRef::Backref(ino, ..) => ino,
                KeyRef::Drive(..) => continue,
                KeyRef::Unknown { .. } => panic!("unknown record"),
            };
            assert!(
                model.nodes.contains_key(&ino),
                "a record of inode {ino}, which has no name: {:?}",
                KeyRef::parse(&key)
            );
        }
    }
}

fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    (0..a.len().max(b.len())).find(|at| a.get(*at) != b.get(*at))
}

fn run(seed: u64, steps: usize) {
    let mut run = Run::new(seed);
    for step in 0..steps {
        run.now += 1;
        run.step();
        if run.dice.one_in(4) {
            run.machinery();
        }
        if step % 97 == 96 {
            run.check();
        }
        if run.dice.one_in(400) {
            run.crash();
        }
    }
    run.check();
    run.check_tree();
    run.check();
    run.world.log(&run.model);
    let all = run.world.journal.len();
    run.model = run.world.crash(all);
    run.check();
    assert!(
        run.world.missing > 0,
        "nothing was ever missing: the test does not test that"
    );
}

#[test]
fn random_operations_agree_with_the_model() {
    let steps = std::env::var("DRIVE_MODEL_STEPS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(2_000);
    let first: u64 = std::env::var("DRIVE_MODEL_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let seeds: u64 = std::env::var("DRIVE_MODEL_SEEDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(6);
    for seed in first..first + seeds {
        let outcome = std::panic::catch_unwind(|| run(seed, steps));
        if let Err(panic) = outcome {
            eprintln!("DRIVE_MODEL_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
