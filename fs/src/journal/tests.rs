//! The journal's files through crashes, damage and loss.

use std::path::{Path, PathBuf};

use super::*;
use crate::short::ShortDisk;
use bytes::Bytes;
use sealdrive_pack::Directory;

fn open(dir: &Path) -> (Journal, Replay) {
    open_on(Arc::new(Directory::open(dir).unwrap()))
}

fn open_on(dir: Arc<dyn Medium>) -> (Journal, Replay) {
    let keys = Arc::new(LocalKeys::derive(&[1; 32], &[2; 32]));
    Journal::open(dir, DriveId([3; 32]), keys).unwrap()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let numbers = files_in(&Directory::open(dir).unwrap(), SEGMENT).unwrap();
    numbers
        .into_iter()
        .map(|n| dir.join(file_name(n)))
        .collect()
}

fn data(seq: u64) -> Entry {
    Entry::Data {
        seq,
        ino: 2,
        off: seq,
        bytes: Bytes::from_static(b"content"),
    }
}

fn seqs(replay: &Replay) -> Vec<u64> {
    replay.entries.iter().map(Entry::seq).collect()
}

#[test]
fn what_was_synced_comes_back_over_several_mounts_and_nothing_is_in_clear() {
    let dir = tempfile::tempdir().unwrap();
    for mount in 0..3 {
        let (mut journal, replay) = open(dir.path());
        assert_eq!(seqs(&replay), (0..mount * 2).collect::<Vec<_>>());
        journal.append(&[data(mount * 2)]).unwrap();
        journal.sync().unwrap();
        journal.append(&[data(mount * 2 + 1)]).unwrap();
        journal.sync().unwrap();
    }
    for path in segments(dir.path()) {
        let bytes = std::fs::read(path).unwrap();
        assert!(!bytes.windows(7).any(|w| w == b"content"));
    }
}

#[test]
fn trim_deletes_only_what_the_checkpoint_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&[data(1), data(2)]).unwrap();
    journal.sync().unwrap();
    journal.trim(1).unwrap();
    assert_eq!(
        seqs(&open(dir.path()).1),
        [1, 2],
        "operation 2 is not in the checkpoint"
    );
    journal.trim(2).unwrap();
    assert!(journal.bytes() == 0 && open(dir.path()).1.entries.is_empty());
    journal.append(&[data(3)]).unwrap();
    journal.sync().unwrap();
    assert_eq!(seqs(&open(dir.path()).1), [3]);
}

#[test]
fn damage_in_what_was_synced_is_reported_and_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    for seq in 0..4 {
        journal.append(&[data(seq)]).unwrap();
        journal.sync().unwrap();
    }
    let path = segments(dir.path()).remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (mut journal, replay) = open(dir.path());
    let kept = replay.entries.len();
    assert!(replay.damage.is_some() && (1..4).contains(&kept));
    assert_eq!(replay.aside.len(), 1);
    // The good part was renamed away with the rest once, and a second crash lost it.
    journal.append(&[data(9)]).unwrap();
    journal.sync().unwrap();
    let (_, replay) = open(dir.path());
    assert!(
        replay.damage.is_none(),
        "it does not stand in the way of the next mount"
    );
    assert_eq!(replay.entries.len(), kept + 1);
    assert_eq!(replay.aside.len(), 1, "and is not forgotten");
}

/// A machine stopped in the middle of a flush, came back, wrote on and stopped again: the half step of the first
/// stop was then taken for a part of the first step after it.
#[test]
fn a_step_cut_at_the_end_of_a_segment_stays_out_for_good() {
    let barrier = |seq| Entry::Op {
        seq,
        edits: Vec::new(),
    };
    let dir = tempfile::tempdir().unwrap();
    for (entries, whole) in [
        (vec![data(1), barrier(1), data(2)], vec![1, 1]),
        (vec![data(3), barrier(3)], vec![1, 1, 3, 3]),
    ] {
        let (mut journal, _) = open(dir.path());
        journal.append(&entries).unwrap();
        journal.sync().unwrap();
        let steps = open(dir.path()).1.take_steps();
        assert!(steps.iter().map(Entry::seq).eq(whole));
    }
}

#[test]
fn a_lost_segment_is_missed() {
    for lost in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..3 {
            let (mut journal, _) = open(dir.path());
            journal.append(&[data(number)]).unwrap();
            journal.sync().unwrap();
        }
        let path = segments(dir.path()).remove(lost);
        std::fs::remove_file(path).unwrap();
        let (mut journal, replay) = open(dir.path());
        assert!(replay.damage.is_some(), "segment {lost} is gone in silence");
        assert!(seqs(&replay).into_iter().eq(0..lost as u64));
        journal.append(&[data(9)]).unwrap();
        journal.sync().unwrap();
        let again = open(dir.path()).1;
        assert!(again.damage.is_none(), "told once");
        assert_eq!(seqs(&again).last(), Some(&9));
    }
}

/// A flipped bit in the first bytes of a segment made the whole drive refuse to mount.
#[test]
fn damage_anywhere_in_any_segment_leaves_a_prefix_and_is_told() {
    let make = |dir: &Path| {
        for number in 0..3 {
            let (mut journal, _) = open(dir);
            for seq in 0..2 {
                journal.append(&[data(number * 2 + seq)]).unwrap();
                journal.sync().unwrap();
            }
        }
    };
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let files = segments(dir.path());
    let good: Vec<_> = files
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let span = std::fs::read(dir.path().join("span")).unwrap();
    for (number, path) in files.iter().enumerate() {
        for at in (number..good[number].len()).step_by(29) {
            for entry in std::fs::read_dir(dir.path()).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
            for (path, bytes) in files.iter().zip(&good) {
                std::fs::write(path, bytes).unwrap();
            }
            std::fs::write(dir.path().join("span"), &span).unwrap();
            let mut bad = good[number].clone();
            bad[at] ^= 1;
            std::fs::write(path, bad).unwrap();
            let (mut journal, replay) = open(dir.path());
            let kept = seqs(&replay);
            assert!(kept.iter().copied().eq(0..kept.len() as u64), "{kept:?}");
            // Of the last flush of all there is no witness (FORMAT.md).
            let told = replay.damage.is_some() || (number == 2 && kept.len() == 5);
            assert!(
                told,
                "segment {number}, byte {at}: kept {kept:?} in silence"
            );
            journal.append(&[data(99)]).unwrap();
            journal.sync().unwrap();
            let again = open(dir.path()).1;
            assert!(again.damage.is_none(), "segment {number}, byte {at}");
            assert_eq!(seqs(&again), [kept, vec![99]].concat());
        }
    }
}

/// The machine stopped, or its disk failed, while segment 2 was being created. The next mount removed it and called
/// its own segment 3; the mount after that found that 3 does not follow 1, set it aside as damaged, and everything
/// fsynced in between was gone.
#[test]
fn a_segment_after_an_unborn_one_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path()).0;
    journal.append(&[data(1)]).unwrap();
    journal.sync().unwrap();
    drop(journal);
    std::fs::write(dir.path().join(file_name(2)), [0; 40]).unwrap();
    let (mut journal, replay) = open(dir.path());
    assert_eq!((replay.entries.len(), replay.damage), (1, None));
    journal.append(&[data(2)]).unwrap();
    journal.sync().unwrap();
    drop(journal);
    let (_, replay) = open(dir.path());
    assert_eq!(replay.damage, None);
    assert_eq!(replay.entries, [data(1), data(2)]);
}

/// The note of which segments there are is not synced with every one of them: what a power cut leaves of it must not
/// call a good journal damaged, nor let an older note come back and delete what is new.
#[test]
fn a_note_that_lags_or_is_torn_costs_no_segment() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("span");
    let mut older = Vec::new();
    for round in 0..4u64 {
        let (mut journal, replay) = open(dir.path());
        assert_eq!(replay.damage, None, "round {round}");
        assert_eq!(seqs(&replay), (0..round).collect::<Vec<_>>());
        older.push(std::fs::read(&note).unwrap());
        journal.append(&[data(round)]).unwrap();
        journal.sync().unwrap();
        drop(journal);
        let newest = std::fs::read(&note).unwrap();
        assert_ne!(older.last(), Some(&newest), "it was noted");
        let torn = [&newest[..20], &older[0][20..]].concat();
        for left in [older.last().unwrap().clone(), torn, Vec::new()] {
            std::fs::write(&note, &left).unwrap();
            let (_, replay) = open(dir.path());
            assert_eq!(replay.damage, None, "round {round}");
            assert_eq!(seqs(&replay), (0..=round).collect::<Vec<_>>());
        }
    }
}

/// A full disk was a failed journal, and the mount read-only for good.
#[test]
fn an_append_that_finds_no_space_leaves_nothing_and_the_journal_goes_on() {
    const ROOMY: u64 = 1 << 30;
    let large = |seq| {
        let piece = |off| Entry::Data {
            seq,
            ino: 2,
            off,
            bytes: Bytes::from(vec![off as u8; 16 << 10]),
        };
        (0..30).map(|n| piece(n << 14)).collect::<Vec<_>>()
    };
    let mut refused = [0; 2];
    for (blocks, begun) in (0..130).step_by(3).flat_map(|n| [(n, true), (n, false)]) {
        let dir = tempfile::tempdir().unwrap();
        let disk = ShortDisk::new(ROOMY);
        let (mut journal, _) = open_on(disk.directory(dir.path()));
        let mut expected = Vec::new();
        if begun {
            journal.append(&[data(1)]).unwrap();
            journal.sync().unwrap();
            expected.push(1);
        }
        disk.set_capacity(disk.used() + blocks * 4096);
        let Err(error) = journal.append(&large(2)) else {
            continue;
        };
        assert!(error.is_no_space(), "{error}");
        refused[usize::from(begun)] += 1;
        assert_eq!(seqs(&open(dir.path()).1), expected, "{blocks} blocks");
        // It is refused again, and then there is space, also for something else in its place.
        assert!(journal.append(&large(2)).unwrap_err().is_no_space());
        disk.set_capacity(ROOMY);
        journal.append(&[data(3)]).unwrap();
        journal.sync().unwrap();
        journal.append(&large(4)).unwrap();
        journal.sync().unwrap();
        expected.push(3);
        expected.extend([4; 30]);
        let (_, replay) = open(dir.path());
        assert_eq!(seqs(&replay), expected, "{blocks} blocks");
        assert!(replay.damage.is_none());
    }
    assert!(refused[0] > 10 && refused[1] > 10, "{refused:?}");
}
