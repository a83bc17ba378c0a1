//! What the journal is given of a file's bytes, and when; and that bytes kept where they are count as written.

// What a test did not expect is to stop it.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use sealdrive::drive::{
    Cred, Drive, Handle, LogData, NewNode, PlanPiece, Progress, SetAttr, Settle,
};
use sealdrive_core::journal::Entry;
use sealdrive_core::record::{FileKind, Ino, ROOT, Time, ino_of};
use sealdrive_core::reference::Reference;
use sealdrive_core::tree::Root;
use sealdrive_proto::id::{Cid, Epoch};
use sealdrive_proto::limits::MAX_CHUNK;

const NOW: Time = Time {
    secs: 1_800_000_000,
    nanos: 5,
};
const ME: Cred = Cred {
    uid: 1000,
    gid: 1000,
    pid: 1,
};

fn drive_with_file() -> (Drive, Ino, Handle) {
    let drive = Drive::new(None, 0);
    drive.format_if_empty(1000, 1000, NOW).unwrap();
    let new = NewNode {
        kind: FileKind::Regular,
        mode: 0o644,
        umask: 0o022,
        rdev: 0,
    };
    let (attr, handle) = drive.create(ROOT, b"file", new, ME, NOW).unwrap();
    (drive, attr.ino, handle)
}

/// Bytes of file content in the log that is taken now.
fn logged(drive: &Drive, data: LogData) -> usize {
    let entries = drive.take_log(data).unwrap();
    let data = entries.iter().map(|entry| match entry {
        Entry::Data { bytes, .. } => bytes.len(),
        _ => 0,
    });
    data.sum()
}

fn write(drive: &Drive, ino: Ino, off: usize, len: usize) {
    let data = vec![off as u8; len];
    drive.write(ino, off as u64, &data, false, NOW).unwrap();
}

/// Story: a large file being written went to the disk twice: what was not yet in a job when the journal's clock struck
/// was logged, and sealed a moment later.
#[test]
fn what_is_about_to_be_sealed_is_left_out_of_the_background_log_once() {
    let (drive, ino, _open) = drive_with_file();
    write(&drive, ino, 0, 3 * MAX_CHUNK);
    assert_eq!(logged(&drive, LogData::Background), 0);
    // Nobody sealed it meanwhile: it does not wait a second time, while what came later does.
    write(&drive, ino, 8 * MAX_CHUNK, 2 * MAX_CHUNK);
    assert_eq!(logged(&drive, LogData::Background), 3 * MAX_CHUNK);
    assert_eq!(logged(&drive, LogData::Background), 2 * MAX_CHUNK);
    assert_eq!(logged(&drive, LogData::All), 0);
}

#[test]
fn what_a_job_has_is_left_out_for_as_long_as_it_has_it() {
    let (drive, ino, _open) = drive_with_file();
    write(&drive, ino, 0, 2 * MAX_CHUNK);
    let jobs = drive.writeback_jobs(Settle::Settled, u64::MAX).unwrap();
    assert_eq!(jobs.len(), 1);
    for _ in 0..3 {
        assert_eq!(logged(&drive, LogData::Background), 0);
    }
    // Somebody waits: all of it, whatever is on its way.
    assert_eq!(logged(&drive, LogData::All), 2 * MAX_CHUNK);
}

#[test]
fn short_runs_and_closed_files_are_logged_at_once() {
    let (drive, ino, open) = drive_with_file();
    write(&drive, ino, 0, MAX_CHUNK - 1);
    assert_eq!(logged(&drive, LogData::Background), MAX_CHUNK - 1);
    write(&drive, ino, 4 * MAX_CHUNK, 2 * MAX_CHUNK);
    drive.release(open);
    assert_eq!(logged(&drive, LogData::Background), 2 * MAX_CHUNK);
}

/// A tree that nobody looks into.
const TREE: Root = Root(Reference {
    cid: Cid([7; 32]),
    plain_len: 1,
    variant: 0,
    epoch: Epoch(0),
});

/// Story: what a checkpoint had taken was written to the journal once more, under a number behind the checkpoint. It
/// stayed there after a clean unmount, and when another machine had written the drive meanwhile it was set aside as a
/// conflict, although nothing of it was missing on the server.
#[test]
fn what_a_durable_checkpoint_holds_is_not_logged_any_more() {
    let (drive, ino, _open) = drive_with_file();
    write(&drive, ino, 0, 100);
    drive.freeze().unwrap().unwrap();
    let more = NewNode {
        kind: FileKind::Fifo,
        mode: 0o600,
        umask: 0,
        rdev: 0,
    };
    drive.mknod(ROOT, b"later", more, ME, NOW).unwrap();
    drive.thaw(TREE);
    let later = drive.take_log(LogData::All).unwrap();
    let keys = later.iter().flat_map(|entry| match entry {
        Entry::Op { edits, .. } => edits.iter().map(|edit| edit.key().clone()).collect(),
        _ => Vec::new(),
    });
    let inodes: Vec<Ino> = keys.map(|key| ino_of(key.as_bytes())).collect();
    assert!(inodes.contains(&(ino + 1)) && !inodes.contains(&ino));
    assert_eq!(drive.take_log(LogData::All).unwrap(), []);
}

/// The same of what the journal was to forget: a clean unmount leaves nothing in it.
#[test]
fn what_a_durable_checkpoint_holds_is_not_discarded_any_more() {
    let (drive, ino, _open) = drive_with_file();
    write(&drive, ino, 0, 1000);
    drive.take_log(LogData::All).unwrap();
    let empty = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    drive.setattr(ino, empty, NOW).unwrap();
    drive.freeze().unwrap().unwrap();
    drive.thaw(TREE);
    assert_eq!(drive.take_log(LogData::All).unwrap(), []);
}

#[test]
fn what_is_frozen_is_logged_under_the_number_of_its_checkpoint() {
    let (drive, ino, _open) = drive_with_file();
    write(&drive, ino, 0, 100);
    let frozen = drive.freeze().unwrap().unwrap();
    assert_eq!(drive.state_of(ino).unwrap().progress, Progress::Dirty);
    let log = drive.take_log(LogData::All).unwrap();
    assert!(!log.is_empty() && log.iter().all(|entry| entry.seq() <= frozen.seq));
    // Without the checkpoint all of it counts, and with it nothing.
    let before = Drive::recover(None, 0, log.clone());
    assert_eq!(content(&before, ino), content(&drive, ino));
    assert!(Drive::recover(None, frozen.seq, log).getattr(ino).is_err());
}

#[test]
fn a_checkpoint_that_does_not_come_about_leaves_what_it_had_taken_to_the_journal() {
    let (drive, ino, _open) = drive_with_file();
    write(&drive, ino, 0, 100);
    drive.freeze().unwrap().unwrap();
    write(&drive, ino, 50, 100);
    drive.refreeze_later();
    // Nor does the next one.
    drive.freeze().unwrap().unwrap();
    drive.refreeze_later();
    let log = drive.take_log(LogData::All).unwrap();
    let after = Drive::recover(None, 0, log);
    assert_eq!(content(&after, ino), content(&drive, ino));
    assert_eq!(content(&after, ino).len(), 150);
    assert_eq!(after.lookup(ROOT, b"file").unwrap().ino, ino);
}

/// The journal holds bytes that a truncation took away. A checkpoint took the truncation over and did not come about:
/// unless the journal is told of it after all, the bytes are back after a crash, where the file has grown over zeros.
#[test]
fn a_checkpoint_that_does_not_come_about_brings_no_discarded_bytes_back() {
    let (drive, ino, _open) = drive_with_file();
    let resize = |size| {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        drive.setattr(ino, set, NOW).unwrap();
    };
    drive.write(ino, 0, &[7; 1000], false, NOW).unwrap();
    let mut log = drive.take_log(LogData::All).unwrap();
    resize(0);
    drive.freeze().unwrap().unwrap();
    // While it is frozen the journal has not been asked for, and something else is discarded.
    resize(1000);
    drive.write(ino, 900, &[8; 50], false, NOW).unwrap();
    drive.refreeze_later();
    log.extend(drive.take_log(LogData::All).unwrap());
    let after = Drive::recover(None, 0, log);
    let expected = [vec![0; 900], vec![8; 50], vec![0; 50]].concat();
    assert!(content(&drive, ino) == expected);
    assert!(content(&after, ino) == expected);
}

/// A change of attributes is in no record until somebody asks for the records: it counts as the change that it is.
#[test]
fn nothing_counts_as_journaled_before_the_journal_is_durable() {
    let (drive, ino, _open) = drive_with_file();
    let progress = || drive.state_of(ino).unwrap().progress;
    let journaled = || {
        assert_eq!(progress(), Progress::Dirty);
        drive.take_log(LogData::All).unwrap();
        assert_eq!(progress(), Progress::Dirty, "taken is not yet durable");
        drive.log_durable();
        assert_eq!(progress(), Progress::Journaled);
    };
    journaled();
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    drive.setattr(ino, set, NOW).unwrap();
    journaled();
    write(&drive, ino, 0, 100);
    journaled();
    // Pages that the kernel kept change nothing but bytes.
    drive.write(ino, 0, &[7; 100], false, None).unwrap();
    journaled();
    // The journal has the record, and not yet the bytes, which are about to be sealed.
    write(&drive, ino, 0, 3 * MAX_CHUNK);
    assert_eq!(logged(&drive, LogData::Background), 0);
    drive.log_durable();
    journaled();
}

fn content(drive: &Drive, ino: Ino) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in drive.read_plan(ino, 0, u64::MAX).unwrap().pieces {
        match piece {
            PlanPiece::Memory(bytes) => out.extend_from_slice(&bytes),
            PlanPiece::Zero(len) => out.resize(out.len() + len as usize, 0),
            PlanPiece::Chunk { .. } => panic!("nothing was sealed"),
        }
    }
    out
}

/// Story: the kernel's times of a file arrived before the pages that it still held, which then set them to when they
/// came: another machine saw another mtime than the one that had written.
#[test]
fn pages_that_the_kernel_kept_leave_the_times_alone() {
    let (drive, ino, _open) = drive_with_file();
    let before = drive.getattr(ino).unwrap();
    drive.write(ino, 0, b"kept", false, None).unwrap();
    let after = drive.getattr(ino).unwrap();
    assert_eq!((after.mtime, after.ctime), (before.mtime, before.ctime));
    assert_eq!(after.size, 4);
    let later = Time {
        secs: NOW.secs + 1,
        nanos: 0,
    };
    drive.write(ino, 0, b"straight", false, later).unwrap();
    let after = drive.getattr(ino).unwrap();
    assert_eq!((after.mtime, after.ctime), (later, later));
}

/// Bytes kept where they are, between and over copied ones: the file and the count of dirty bytes are the same.
#[test]
fn shared_writes_are_writes() {
    let (copied, a, _open_a) = drive_with_file();
    let (shared, b, _open_b) = drive_with_file();
    let mut seed = 1u64;
    for n in 0..400u64 {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let (off, len) = (seed >> 40 & 0xffff, (seed >> 20 & 0x3fff) as usize + 1);
        let data = vec![n as u8; len];
        let written = copied.write(a, off, &data, false, NOW).unwrap();
        let kept = match n % 2 {
            0 => shared.write_shared(b, off, Bytes::from(data), false, NOW),
            _ => shared.write(b, off, &data, false, NOW),
        };
        assert_eq!(kept.unwrap(), written);
        assert_eq!(shared.dirty_bytes(), copied.dirty_bytes(), "step {n}");
    }
    assert!(content(&shared, b) == content(&copied, a));
    assert_eq!(
        shared.getattr(b).unwrap().size,
        copied.getattr(a).unwrap().size
    );
}
