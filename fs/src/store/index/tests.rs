//! The index through restarts, damage and full disks.

use super::*;
use crate::short::ShortDisk;
use sealdrive_pack::Directory;
use std::path::Path;

fn medium(dir: &Path) -> Arc<dyn Medium> {
    Arc::new(Directory::open(dir).unwrap())
}

fn open(dir: &Path) -> Index {
    Index::open(&medium(dir), "state.redb").unwrap()
}

fn sid(n: u8) -> Sid {
    Sid([n; 32])
}

fn local(pack: u64, offset: u64) -> Row {
    Row::Local(Place {
        pack,
        offset,
        len: 10,
        cached: false,
    })
}

#[test]
fn rows_wait_until_their_bytes_are_durable_and_marks_survive() {
    let dir = tempfile::tempdir().unwrap();
    {
        let index = open(dir.path());
        index.put(sid(1), local(1, 0));
        index.put(sid(2), local(1, 100));
        let marks = Marks {
            indexed_below: 1,
            acknowledged: Position { pack: 1, offset: 7 },
            ..Marks::default()
        };
        index
            .flush(
                Position {
                    pack: 1,
                    offset: 10,
                },
                Some(marks),
            )
            .unwrap();
        assert_eq!(
            index.get(&sid(2)).unwrap(),
            Some(local(1, 100)),
            "a waiting row is visible"
        );
    }
    let index = open(dir.path());
    assert_eq!(index.get(&sid(1)).unwrap(), Some(local(1, 0)));
    assert_eq!(
        index.get(&sid(2)).unwrap(),
        None,
        "its bytes were not durable, so neither is the row"
    );
    assert_eq!(index.marks().unwrap().acknowledged.offset, 7);
}

#[test]
fn eviction_keeps_the_knowledge_that_the_server_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    index.put(sid(1), local(1, 0));
    index.put(sid(2), local(2, 0));
    index
        .forget_pack(1, [sid(1), sid(2), sid(3)].into_iter())
        .unwrap();
    assert_eq!(index.get(&sid(1)).unwrap(), Some(Row::Sent));
    assert_eq!(
        index.get(&sid(2)).unwrap(),
        Some(local(2, 0)),
        "a row of another pack is left alone"
    );
    assert_eq!(index.get(&sid(3)).unwrap(), None);
}

const ROWS: u32 = 2000;

fn numbered(n: u32) -> Sid {
    Sid(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

/// Everything that is asked of an index too long to be checked. A panic would end the test.
fn use_all(dir: &Path) -> Result<(), IndexError> {
    let index = Index::open_checking(&medium(dir), "state.redb", 0)?;
    index.marks()?;
    let looks = (0..ROWS).map(|n| index.get(&numbered(n)).map(drop));
    let looked: Vec<_> = looks.collect();
    index.sids_in(&[1, 2])?;
    (0..ROWS).for_each(|n| index.put(numbered(n), local(2, u64::from(n))));
    let durable = Position::new(3, 0);
    index.flush(durable, None)?;
    index.flush(durable, Some(Marks::default()))?;
    looked.into_iter().collect()
}

/// Story: an index too long to be checked page by page when it is opened had a damaged page, which redb met with a
/// panic, and that ended the mount.
#[test]
fn a_damaged_page_is_an_error_and_gone_at_the_next_mount() {
    let dir = tempfile::tempdir().unwrap();
    {
        let index = open(dir.path());
        (0..ROWS).for_each(|n| index.put(numbered(n), local(1, u64::from(n))));
        let marks = Marks {
            indexed_below: 2,
            ..Marks::default()
        };
        index.flush(Position::new(2, 0), Some(marks)).unwrap();
    }
    let (file, aside) = (dir.path().join("state.redb"), dir.path().join(ASIDE));
    let good = std::fs::read(&file).unwrap();
    let used = |page: &&[u8]| page.iter().any(|byte| *byte != 0);
    let pages = good.chunks(4096).filter(used).count();
    let mut set_aside = 0;
    for at in (0..good.len()).step_by(4096) {
        if good[at..][..4096].iter().all(|byte| *byte == 0) {
            continue;
        }
        let mut bad = good.clone();
        bad[at..][..4096].iter_mut().for_each(|byte| *byte ^= 0xa5);
        std::fs::write(&file, bad).unwrap();
        let met = use_all(dir.path());
        if met.is_err() {
            assert!(matches!(met, Err(IndexError::Damaged)), "{at}: {met:?}");
            assert!(aside.exists(), "{at}");
        }
        if std::fs::remove_file(&aside).is_ok() {
            set_aside += 1;
            use_all(dir.path()).unwrap();
        }
    }
    assert!(set_aside * 2 > pages, "{set_aside} of {pages} pages");
}

#[test]
fn a_broken_file_is_set_aside_and_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.redb"), vec![7; 10_000]).unwrap();
    let index = open(dir.path());
    assert_eq!(index.marks().unwrap(), Marks::default());
}

/// One commit that found no space made the mount read-only for good; and what had gone to the database since its last
/// durable commit was not found any more.
#[test]
fn a_full_disk_loses_no_row_and_is_over_when_there_is_space() {
    const ROOMY: u64 = 1 << 30;
    let mut refused = 0;
    for blocks in (0..64).step_by(3) {
        let dir = tempfile::tempdir().unwrap();
        let disk = ShortDisk::new(ROOMY);
        let index = Index::open(&disk.directory(dir.path()), "state.redb").unwrap();
        let row = |n: u32| local(1, u64::from(n));
        let all = || (0..3 * ROWS).all(|n| index.get(&numbered(n)).unwrap() == Some(row(n)));
        let put = |from: u32| (from..from + ROWS).for_each(|n| index.put(numbered(n), row(n)));
        let durable = Position::new(2, 0);
        let flush = |marks: bool| index.flush(durable, marks.then(Marks::default));
        put(0);
        flush(true).unwrap();
        put(ROWS);
        // Visible, and not durable.
        flush(false).unwrap();
        put(2 * ROWS);
        disk.set_capacity(disk.used() + blocks * 4096);
        for marks in [false, true, true] {
            if let Err(error) = flush(marks) {
                assert!(matches!(error, IndexError::Full), "{error}");
                refused += 1;
            }
            assert!(all(), "{blocks} blocks");
        }
        disk.set_capacity(ROOMY);
        flush(true).unwrap();
        assert!(all());
        drop(index);
        let index = open(dir.path());
        assert!((0..3 * ROWS).all(|n| index.get(&numbered(n)).unwrap() == Some(row(n))));
        assert!(!dir.path().join(ASIDE).exists());
    }
    assert!(refused > 10, "{refused}");
}
