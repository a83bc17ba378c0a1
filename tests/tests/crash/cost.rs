//! What one small fsync costs: synced files and directories, counted on the disk.

use std::sync::Arc;

use bytes::Bytes;
use sealdrive::journal::Journal;
use sealdrive_core::journal::Entry;
use sealdrive_core::local::LocalKeys;
use sealdrive_proto::id::DriveId;
use sealdrive_tests::sim::disk::{Config, Disk, Op, seeded};

fn open(disk: &Disk) -> Journal {
    let keys = Arc::new(LocalKeys::derive(&[1; 32], &[2; 32]));
    let dir = disk.root().directory("journal").unwrap();
    Journal::open(dir, DriveId([3; 32]), keys).unwrap().0
}

/// Syncs of files and of directories that one entry costs.
fn fsync(disk: &Disk, journal: &mut Journal, seq: u64) -> (u64, u64) {
    let before = (disk.done(Op::Sync), disk.done(Op::SyncDir));
    let entry = Entry::Data {
        seq,
        ino: 2,
        off: 0,
        bytes: Bytes::from_static(b"a few bytes"),
    };
    journal.append(&[entry]).unwrap();
    journal.sync().unwrap();
    let after = (disk.done(Op::Sync), disk.done(Op::SyncDir));
    (after.0 - before.0, after.1 - before.1)
}

/// The note of which segments there are made the first fsync after each checkpoint wait for three more syncs.
#[test]
fn an_fsync_waits_for_nothing_but_its_own_records() {
    let disk = Disk::new(Config::default(), seeded(1));
    let mut journal = open(&disk);
    for round in 0..3 {
        let seq = round * 10;
        assert_eq!(fsync(&disk, &mut journal, seq), (2, 1), "a new segment");
        for more in 1..5 {
            assert_eq!(fsync(&disk, &mut journal, seq + more), (1, 0), "an old one");
        }
        let before = (disk.done(Op::Sync), disk.done(Op::SyncDir));
        journal.trim(seq + 4).unwrap();
        let after = (disk.done(Op::Sync), disk.done(Op::SyncDir));
        assert_eq!((after.0 - before.0, after.1 - before.1), (1, 0), "trimming");
    }
}
