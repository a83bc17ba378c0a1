//! A source tree copied in and out, a second version of it, and what both cost in storage.

use std::fs;
use std::io::Write;
use std::path::Path;

use super::files::walk;
use super::subject::{Subject, disk_use, three_times};
use super::table::{Better, Samples};
use super::{Plan, seconds};
use crate::world::copy_tree;

/// One file in so many is changed in the second version.
const CHANGED: usize = 100;

/// `cp -a` in and out, and a second, lightly changed version beside the first.
pub fn copy(plan: &Plan, subject: &mut Subject, samples: &mut Samples) {
    let Some(tree) = &plan.tree else { return };
    let name = subject.name();
    let (inside, second) = (subject.root().join("tree"), subject.root().join("tree2"));
    let size = plain_size(tree) as f64;
    let empty = subject.stored();
    let [done, synced, committed] = three_times(subject, || copy_tree(tree, &inside));
    let mut add =
        |what: &str, unit, value: f64| samples.add(what, unit, Better::Lower, name, value);
    add("cp -a of a source tree in", "s", done);
    add("cp -a of a source tree in, until synced here", "s", synced);
    if subject.has_server() {
        add("cp -a of a source tree in, until committed", "s", committed);
    }
    let stored = subject.stored();
    add(
        "stored size over source size",
        "×",
        stored.saturating_sub(empty) as f64 / size,
    );
    walk(&inside);
    add(
        "stat walk of the tree, warm",
        "s",
        seconds(|| assert!(walk(&inside) > 0)),
    );
    subject.cold();
    add(
        "stat walk of the tree, cold, local",
        "s",
        seconds(|| assert!(walk(&inside) > 0)),
    );
    subject.cold();
    let out = subject.root().with_extension("out");
    add(
        "cp -a of a source tree out, cold, local",
        "s",
        seconds(|| copy_tree(&inside, &out)),
    );
    fs::remove_dir_all(&out).unwrap();
    if subject.has_server() {
        subject.cold_from_server();
        add(
            "cp -a of a source tree out, cold, from the server",
            "s",
            seconds(|| copy_tree(&inside, &out)),
        );
        fs::remove_dir_all(&out).unwrap();
    }
    // The second version: the same tree copied again, one file in a hundred with a line more.
    let version = subject.root().with_extension("version");
    copy_tree(tree, &version);
    let mut number = 0;
    change(&version, &mut number);
    subject.commit();
    let (stored, sent) = (subject.stored(), subject.sent());
    let [done, _, committed] = three_times(subject, || copy_tree(&version, &second));
    fs::remove_dir_all(&version).unwrap();
    let grown = subject.stored().saturating_sub(stored) as f64;
    let mut add =
        |what: &str, unit, value: f64| samples.add(what, unit, Better::Lower, name, value);
    add("second version of the tree, cp -a in", "s", done);
    add(
        "second version of the tree, further stored size over source size",
        "×",
        grown / size,
    );
    if let Some((before, after)) = sent.zip(subject.sent()) {
        add(
            "second version of the tree, until committed",
            "s",
            committed,
        );
        add(
            "second version of the tree, sent",
            "MB",
            after.saturating_sub(before) as f64 / 1e6,
        );
    }
}

fn change(root: &Path, number: &mut usize) {
    let mut entries: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            change(&path, number);
        } else if meta.is_file() {
            *number += 1;
            if number.is_multiple_of(CHANGED) {
                let mut file = fs::File::options().append(true).open(&path).unwrap();
                writeln!(file, "/* changed {number} */").unwrap();
            }
        }
    }
}

/// Bytes of content in a tree.
fn plain_size(root: &Path) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        sum += if meta.is_dir() {
            plain_size(&entry.path())
        } else {
            meta.len()
        };
    }
    if sum == 0 { disk_use(root) } else { sum }
}
