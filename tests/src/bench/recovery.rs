//! kill -9 of a mount that holds much, and how long until the next one answers: with many files, and with a journal as
//! full as it gets while the server is away.
//!
//! Invariant: what is timed is also read back; a recovery that lost something ends the bench and is no figure. Ours
//! alone, with a server and a machine of its own. Called once, when the rounds are over.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sealdrive::limits::JOURNAL_CHECKPOINT;

use super::subject::disk_use;
use super::table::{Better, Samples};
use super::{Plan, seconds};
use crate::made::Noise;
use crate::world::{InBackground, Machine, Mounted, Server};

/// Files in one directory.
const IN_ONE: usize = 1000;
/// Bytes of a file that is fsynced.
const FILE: usize = 4 << 20;
/// Bytes of a small change to one.
const CHANGE: usize = 16 << 10;
/// Changes between two looks at the journal's size.
const LOOK: usize = 16;
/// The journal is as full as it gets: a little more, and a checkpoint empties it.
const FULL: u64 = JOURNAL_CHECKPOINT / 16 * 15;
const MIB: f64 = (1 << 20) as f64;

/// Both kills.
pub fn kills(plan: &Plan, place: &Path, samples: &mut Samples) {
    eprintln!("recovery: many files");
    many_files(plan, &place.join("recovery-files"), samples);
    eprintln!("recovery: a full journal");
    full_journal(plan, &place.join("recovery-journal"), samples);
}

/// Empty files, all durable here, and the server there.
fn many_files(plan: &Plan, place: &Path, samples: &mut Samples) {
    let (_server, machine, mounted) = world(place);
    let root = mounted.path().to_owned();
    let count = plan.recovery_files;
    let made = seconds(|| {
        for number in 0..count {
            let directory = root.join(format!("{:04}", number / IN_ONE));
            if number % IN_ONE == 0 {
                fs::create_dir(&directory).unwrap();
            }
            File::create(directory.join(format!("{number:07}"))).unwrap();
        }
        durable(&root);
    });
    let peak = mounted.daemon.peak_memory();
    mounted.kill();
    let mut rows = Rows {
        samples,
        what: format!("kill -9 with {} files", grouped(count)),
    };
    rows.plain(
        &format!("{} empty files made, until fsync", grouped(count)),
        "1/s",
        Better::Higher,
        count as f64 / made,
    );
    rows.add("peak memory before the kill", "MiB", peak as f64 / MIB);
    let again = rows.mount_again(&machine, Path::new("0000"));
    let directories = names(&root);
    assert_eq!(directories.len(), count.div_ceil(IN_ONE));
    let there: usize = directories
        .iter()
        .map(|directory| names(directory).len())
        .sum();
    assert_eq!(there, count, "all were fsynced before the kill");
    again.kill();
    fs::remove_dir_all(place).unwrap();
}

/// Files fsynced one by one while nothing can be sent, then small changes until the journal is full.
fn full_journal(plan: &Plan, place: &Path, samples: &mut Samples) {
    let (mut server, machine, mounted) = world(place);
    server.kill();
    let directory = mounted.path().join("data");
    fs::create_dir(&directory).unwrap();
    let count = (plan.recovery_mib << 20) / FILE;
    let mut took = 0.0;
    for number in 0..count {
        let content = content(number);
        took += seconds(|| {
            let file = File::create(directory.join(name(number))).unwrap();
            file.write_all_at(&content, 0).unwrap();
            file.sync_all().unwrap();
        });
    }
    let changes = change(plan, &machine, &directory, count);
    mounted.kill();
    let length = count * FILE;
    let size = grouped(length >> 20);
    let mut rows = Rows {
        samples,
        what: format!("kill -9 after {size} MiB fsynced, server away"),
    };
    rows.plain(
        &format!("{size} MiB in files of 4 MiB, each fsynced, server away"),
        "MB/s",
        Better::Higher,
        length as f64 / 1e6 / took,
    );
    let again = rows.mount_again(&machine, Path::new("data"));
    verify(&directory, count, &changes);
    again.kill();
    drop(server);
    fs::remove_dir_all(place).unwrap();
}

/// A change that was fsynced.
struct Change {
    file: usize,
    at: usize,
    content: Vec<u8>,
}

/// Changes the files at random, each change fsynced, until the journal is full or there were as many as the plan has.
fn change(plan: &Plan, machine: &Machine, directory: &Path, files: usize) -> Vec<Change> {
    let mut noise = Noise::new(0xc4a);
    let mut changes = Vec::new();
    let journal = journal(machine);
    while changes.len() < plan.recovery_changes {
        if changes.len() % LOOK == 0 && disk_use(&journal) >= FULL {
            break;
        }
        let change = Change {
            file: noise.below(files as u64) as usize,
            at: noise.below((FILE - CHANGE) as u64) as usize,
            content: noise.bytes(CHANGE),
        };
        let path = directory.join(name(change.file));
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&change.content, change.at as u64)
            .unwrap();
        file.sync_all().unwrap();
        changes.push(change);
    }
    changes
}

/// Every file reads as it was when it was last fsynced.
fn verify(directory: &Path, count: usize, changes: &[Change]) {
    assert_eq!(names(directory).len(), count);
    for number in 0..count {
        let mut wanted = content(number);
        for change in changes.iter().filter(|change| change.file == number) {
            wanted[change.at..change.at + CHANGE].copy_from_slice(&change.content);
        }
        let there = fs::read(directory.join(name(number))).unwrap();
        assert!(
            there == wanted,
            "{}: other bytes than were fsynced, {} of them",
            name(number),
            there.len()
        );
    }
}

fn content(number: usize) -> Vec<u8> {
    Noise::new(0xf11e_0000 + number as u64).bytes(FILE)
}

fn name(number: usize) -> String {
    format!("{number:04}")
}

/// Rows of one kill.
struct Rows<'a> {
    samples: &'a mut Samples,
    what: String,
}

impl Rows<'_> {
    fn plain(&mut self, what: &str, unit: &'static str, better: Better, value: f64) {
        self.samples.add(what, unit, better, "sealdrive", value);
    }

    fn add(&mut self, what: &str, unit: &'static str, value: f64) {
        let row = format!("{}: {what}", self.what);
        self.plain(&row, unit, Better::Lower, value);
    }

    /// Mounts again as a user would, passphrase included, and lists the root and `inside`, for the first time both.
    fn mount_again(&mut self, machine: &Machine, inside: &Path) -> InBackground {
        let journal = disk_use(&journal(machine)) as f64 / MIB;
        self.add("journal at the kill", "MiB", journal);
        let (mounted, took) = machine.mount_in_background();
        let mut listed = 0;
        let mut ls = |path: &Path| 1e3 * seconds(|| listed = names(path).len());
        let root = ls(mounted.path());
        let directory = ls(&mounted.path().join(inside));
        self.add("mounted again", "s", took.as_secs_f64());
        self.add("first ls of the root", "ms", root);
        let what = format!("first ls of a directory of {}", grouped(listed));
        self.add(&what, "ms", directory);
        mounted
    }
}

/// A server, and a machine with a drive mounted.
fn world(place: &Path) -> (Server, Machine, Mounted) {
    let server = Server::start(&place.join("server"), &[]);
    let machine = Machine::new(&place.join("machine"));
    machine.init(&server.invite());
    let mounted = machine.mount();
    (server, machine, mounted)
}

/// Makes everything done so far durable on this machine, as [`super::subject::Subject::sync_local`] does.
fn durable(root: &Path) {
    let root = File::open(root).unwrap();
    rustix::fs::syncfs(&root).unwrap();
    root.sync_all().unwrap();
}

/// Where the journal of the only drive of a machine lies.
fn journal(machine: &Machine) -> PathBuf {
    let mut drives = names(&machine.home().join("drives"));
    assert_eq!(drives.len(), 1, "{drives:?}");
    let journal = drives.remove(0).join("journal");
    assert!(journal.is_dir());
    journal
}

/// What a directory holds.
fn names(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// A number with a comma before every three digits.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_grouped() {
        let numbers = [0, 64, 999, 1000, 20_000, 1_000_000];
        let wanted = ["0", "64", "999", "1,000", "20,000", "1,000,000"];
        assert_eq!(numbers.map(grouped), wanted);
    }
}
