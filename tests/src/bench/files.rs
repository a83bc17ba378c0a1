//! Many small files: made, listed, read and removed.

use std::fs;
use std::path::Path;

use super::subject::{Subject, three_times};
use super::table::{Better, Samples};
use super::{Plan, seconds};
use crate::made::prose;

/// Files in one directory.
const IN_ONE: usize = 500;
/// Bytes in each.
const LENGTH: usize = 1024;

/// Makes, walks and removes small files.
pub fn small(plan: &Plan, round: usize, subject: &mut Subject, samples: &mut Samples) {
    let root = subject.root().join("small");
    let contents: Vec<Vec<u8>> = (0..plan.small_files)
        .map(|n| prose((round * plan.small_files + n) as u64, LENGTH))
        .collect();
    let [done, synced, committed] = three_times(subject, || {
        for (number, content) in contents.iter().enumerate() {
            let directory = root.join(format!("{:03}", number / IN_ONE));
            if number % IN_ONE == 0 {
                fs::create_dir_all(&directory).unwrap();
            }
            fs::write(directory.join(format!("{number:06}")), content).unwrap();
        }
    });
    let name = subject.name();
    let count = plan.small_files as f64;
    let mut rate =
        |what: &str, seconds: f64| samples.add(what, "1/s", Better::Higher, name, count / seconds);
    rate("create and write 1 KiB files", done);
    rate("create and write 1 KiB files, until synced", synced);
    if subject.has_server() {
        rate("create and write 1 KiB files, until committed", committed);
    }
    walk(&root);
    rate(
        "stat walk, warm",
        seconds(|| assert!(walk(&root) >= plan.small_files)),
    );
    subject.cold();
    rate(
        "stat walk, cold, local",
        seconds(|| assert!(walk(&root) >= plan.small_files)),
    );
    if subject.has_server() {
        subject.cold_from_server();
        rate(
            "stat walk, cold, from the server",
            seconds(|| assert!(walk(&root) >= plan.small_files)),
        );
    }
    let removed = seconds(|| fs::remove_dir_all(&root).unwrap());
    rate("unlink", removed);
}

/// Stats everything below; how many entries.
pub fn walk(root: &Path) -> usize {
    let mut count = 0;
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            count += 1;
            if entry.metadata().unwrap().is_dir() {
                open.push(entry.path());
            }
        }
    }
    count
}
