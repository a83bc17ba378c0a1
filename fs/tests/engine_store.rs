//! The local store: what is appended is found again after a crash, the budget holds, and nothing unacknowledged goes.

#![allow(clippy::unwrap_used, unreachable_pub)]

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealdrive::store::{Known, Local, NOTE_LEN, Position, Store, StoreError};
use sealdrive_pack::Directory;
use sealdrive_proto::id::Sid;

fn sid(n: u32) -> Sid {
    let mut out = [7; 32];
    out[..4].copy_from_slice(&n.to_le_bytes());
    Sid(out)
}

fn object(n: u32, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u32).wrapping_mul(n | 1).to_le_bytes()[1])
        .collect()
}

fn packs(dir: &Path) -> Vec<PathBuf> {
    let mut out: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    out.sort();
    out
}

fn open(dir: &Path, budget: u64) -> Result<Store, StoreError> {
    Store::open(Arc::new(Directory::open(dir).unwrap()), budget)
}

fn found(store: &Store, n: u32) -> Option<Vec<u8>> {
    match store.read(&sid(n)).unwrap() {
        Local::Object(bytes, _) => Some(bytes.to_vec()),
        Local::Absent => None,
        Local::Lost => panic!("lost"),
    }
}

#[test]
fn what_was_synced_is_found_after_a_crash_even_without_the_index() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path(), 1 << 30).unwrap();
        for n in 0..50 {
            store.put(sid(n), &[7; NOTE_LEN], &object(n, 5000)).unwrap();
        }
        assert_eq!(
            found(&store, 49),
            Some(object(49, 5000)),
            "readable before any flush"
        );
        store.sync().unwrap();
        // No save_index: as after kill -9.
    }
    std::fs::remove_file(dir.path().join("state.redb")).unwrap();
    let store = open(dir.path(), 1 << 30).unwrap();
    for n in 0..50 {
        assert_eq!(found(&store, n), Some(object(n, 5000)));
    }
    assert_eq!(store.outbox().pending().1, 50);
    assert_eq!(store.known(&sid(3)).unwrap(), Some(Known::Outbox));
}

#[test]
fn a_torn_tail_is_ignored_and_damage_inside_is_not_offered_for_dedup() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path(), 1 << 30).unwrap();
        for n in 0..5 {
            store.put(sid(n), &[7; NOTE_LEN], &object(n, 5000)).unwrap();
        }
        store.sync().unwrap();
        store.save_index().unwrap();
    }
    let pack = packs(&dir.path().join("outbox")).pop().unwrap();
    let len = std::fs::metadata(&pack).unwrap().len();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pack)
        .unwrap();
    file.set_len(len - 10).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(8 + 5040 + 98 + 2000)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Current(-1)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
    let store = open(dir.path(), 1 << 30).unwrap();
    assert_eq!(found(&store, 0), Some(object(0, 5000)));
    assert_eq!(
        store.known(&sid(1)).unwrap(),
        None,
        "damaged: writing it again must seal it again"
    );
    assert_eq!(found(&store, 3), Some(object(3, 5000)));
    assert_eq!(
        store
            .outbox()
            .next_after(Position::default(), usize::MAX)
            .unwrap()
            .len(),
        3
    );
    store.put(sid(4), &[7; NOTE_LEN], &object(4, 5000)).unwrap();
    assert_eq!(
        packs(&dir.path().join("outbox")).len(),
        2,
        "a recovered pack is never appended to"
    );
}

#[test]
fn the_outbox_is_read_in_order_and_acknowledged_as_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let middle;
    {
        let store = open(dir.path(), 1 << 30).unwrap();
        for n in 0..10 {
            store.put(sid(n), &[7; NOTE_LEN], &object(n, 1000)).unwrap();
        }
        let first = store
            .outbox()
            .next_after(Position::default(), 3000)
            .unwrap();
        assert_eq!(
            first.iter().map(|o| o.sid).collect::<Vec<_>>(),
            vec![sid(0), sid(1), sid(2)]
        );
        middle = first[2].end;
        store.outbox().acknowledge(middle);
        assert_eq!(store.outbox().pending(), (7000, 7));
        store.sync().unwrap();
        store.save_index().unwrap();
    }
    let store = open(dir.path(), 1 << 30).unwrap();
    assert_eq!(store.outbox().acknowledged(), middle);
    let rest = store.outbox().next_after(middle, usize::MAX).unwrap();
    assert_eq!(
        rest.iter().map(|o| o.sid).collect::<Vec<_>>(),
        (3..10).map(sid).collect::<Vec<_>>()
    );
}

#[test]
fn the_evictor_keeps_the_budget_and_never_touches_the_outbox() {
    let dir = tempfile::tempdir().unwrap();
    let budget = 8 << 20;
    let store = open(dir.path(), budget).unwrap();
    for n in 0..20 {
        store
            .put(sid(n), &[7; NOTE_LEN], &object(n, 100_000))
            .unwrap();
    }
    store.sync().unwrap();
    for n in 100..400 {
        store.put_copy(sid(n), &object(n, 100_000)).unwrap();
        let on_disk: u64 = packs(&dir.path().join("cache"))
            .iter()
            .map(|p| p.metadata().unwrap().len())
            .sum();
        assert!(on_disk <= budget && store.cache().bytes() <= budget);
    }
    assert!(found(&store, 399).is_some());
    assert_eq!(found(&store, 100), None, "evicted");
    assert_eq!(
        store.known(&sid(100)).unwrap(),
        Some(Known::Sent),
        "but known to be on the server"
    );
    for n in 0..20 {
        assert_eq!(found(&store, n), Some(object(n, 100_000)));
    }
}

#[test]
fn a_pack_moves_to_the_cache_only_when_acknowledged_and_committed() {
    let dir = tempfile::tempdir().unwrap();
    let end = {
        let store = open(dir.path(), 1 << 30).unwrap();
        store.put(sid(1), &[7; NOTE_LEN], &object(1, 1000)).unwrap();
        store.sync().unwrap()
    };
    // Opened again, so that the pack is closed.
    let store = open(dir.path(), 1 << 30).unwrap();
    store.retire(end).unwrap();
    assert_eq!(
        store.known(&sid(1)).unwrap(),
        Some(Known::Outbox),
        "committed, not acknowledged"
    );
    store.outbox().acknowledge(end);
    store.retire(Position::default()).unwrap();
    assert_eq!(
        store.known(&sid(1)).unwrap(),
        Some(Known::Outbox),
        "acknowledged, not committed"
    );
    store.retire(end).unwrap();
    assert_eq!(store.known(&sid(1)).unwrap(), Some(Known::Cached));
    assert_eq!(found(&store, 1), Some(object(1, 1000)));
    store.save_index().unwrap();
    drop(store);
    let store = open(dir.path(), 1 << 30).unwrap();
    assert_eq!(store.known(&sid(1)).unwrap(), Some(Known::Cached));
}

#[test]
fn a_damaged_copy_counts_as_absent() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1 << 30).unwrap();
    store.put_copy(sid(1), &object(1, 1000)).unwrap();
    assert!(found(&store, 1).is_some());
    let pack = packs(&dir.path().join("cache")).pop().unwrap();
    let mut file = OpenOptions::new().write(true).open(pack).unwrap();
    file.seek(SeekFrom::Start(400)).unwrap();
    file.write_all(b"xxxx").unwrap();
    assert_eq!(found(&store, 1), None);
    assert_eq!(store.known(&sid(1)).unwrap(), Some(Known::Sent));
}

/// What only this machine has and cannot read is lost, which is told; absent is what the server may have.
#[test]
fn damage_in_the_outbox_is_a_loss_until_the_server_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1 << 30).unwrap();
    store.put(sid(1), &[7; NOTE_LEN], &object(1, 1000)).unwrap();
    let end = store.sync().unwrap();
    let pack = packs(&dir.path().join("outbox")).pop().unwrap();
    let mut file = OpenOptions::new().write(true).open(pack).unwrap();
    file.seek(SeekFrom::Start(400)).unwrap();
    file.write_all(b"xxxx").unwrap();
    assert!(matches!(store.read(&sid(1)), Ok(Local::Lost)));
    store.outbox().acknowledge(end);
    assert!(matches!(store.read(&sid(1)), Ok(Local::Absent)));
}

/// A pack that somebody had removed from the outbox counted as sent: its objects were never sealed again, and commits
/// that named them went out.
#[test]
fn an_outbox_pack_that_is_gone_is_missed_and_not_taken_for_sent() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path(), 1 << 30).unwrap();
        for n in 0..5 {
            store.put(sid(n), &[7; NOTE_LEN], &object(n, 5000)).unwrap();
        }
        store.sync().unwrap();
        store.save_index().unwrap();
    }
    for pack in packs(&dir.path().join("outbox")) {
        std::fs::remove_file(pack).unwrap();
    }
    let store = open(dir.path(), 1 << 30).unwrap();
    let lost = store.lost();
    assert_eq!(lost.len(), 1);
    assert!(lost[0].is_loss() && lost[0].sids.len() == 5, "{lost:?}");
    for n in 0..5 {
        assert_eq!(store.known(&sid(n)).unwrap(), None, "object {n}");
    }
}

/// A flipped bit in the index was met when it was read, and stopped the drive.
#[test]
fn a_damaged_index_never_fails_a_lookup_nor_tells_of_what_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path(), 1 << 30).unwrap();
        for n in 0..300 {
            store.put_copy(sid(n), &object(n, 300)).unwrap();
        }
        for n in 300..330 {
            store.put(sid(n), &[7; NOTE_LEN], &object(n, 300)).unwrap();
        }
        store.sync().unwrap();
        store.save_index().unwrap();
    }
    let index = dir.path().join("state.redb");
    let good = std::fs::read(&index).unwrap();
    let used = good.iter().enumerate().filter(|(_, byte)| **byte != 0);
    let used: Vec<usize> = used.map(|(at, _)| at).collect();
    for at in used.iter().step_by(used.len() / 150) {
        let mut bad = good.clone();
        bad[*at] ^= 0x24;
        std::fs::write(&index, bad).unwrap();
        let store = open(dir.path(), 1 << 30).unwrap();
        assert!(store.lost().is_empty(), "byte {at}");
        for n in 0..330 {
            let known = store.known(&sid(n));
            assert!(known.is_ok(), "byte {at}, object {n}: {known:?}");
            let content = found(&store, n);
            let is_right = content.is_none_or(|content| content == object(n, 300));
            assert!(is_right, "byte {at}, object {n}");
            assert!(n < 300 || found(&store, n).is_some(), "byte {at}: {n}");
        }
    }
}

/// An acknowledgement of what stood behind a refused object counted for it, too, after the next mount: its pack went to
/// the cache, was evicted, and the only copy was gone.
#[test]
fn a_withheld_object_is_never_acknowledged_retired_or_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let ends: Vec<Position> = {
        let store = open(dir.path(), 1 << 30).unwrap();
        for n in 0..5 {
            store.put(sid(n), &[7; NOTE_LEN], &object(n, 5000)).unwrap();
        }
        store.sync().unwrap();
        let all = store
            .outbox()
            .next_after(Position::default(), usize::MAX)
            .unwrap();
        let ends: Vec<Position> = all.iter().map(|object| object.end).collect();
        store.outbox().acknowledge(ends[1]);
        assert!(store.outbox().withhold(ends[2]));
        assert_eq!(store.outbox().acknowledged(), ends[2], "stepped over");
        let behind = store.outbox().next_after(ends[1], usize::MAX).unwrap();
        assert_eq!(behind.len(), 2, "only what is not refused is sent");
        store.outbox().acknowledge(ends[4]);
        assert_eq!(store.outbox().pending(), (5000, 1));
        store.save_index().unwrap();
        ends
    };
    let whole = std::fs::read(packs(&dir.path().join("outbox")).pop().unwrap()).unwrap();

    // Damage to it is a loss, whatever was acknowledged behind it; damage to another is none.
    for (at, lost) in [(2, true), (3, false)] {
        let copy = tempfile::tempdir().unwrap();
        for name in ["outbox", "cache"] {
            std::fs::create_dir(copy.path().join(name)).unwrap();
        }
        let mut bad = whole.clone();
        bad[ends[at].offset as usize - 100] ^= 1;
        let pack = packs(&dir.path().join("outbox")).pop().unwrap();
        std::fs::write(
            copy.path().join("outbox").join(pack.file_name().unwrap()),
            bad,
        )
        .unwrap();
        let index = dir.path().join("state.redb");
        std::fs::copy(index, copy.path().join("state.redb")).unwrap();
        let store = open(copy.path(), 1 << 30).unwrap();
        let found: Vec<_> = store.lost().iter().flat_map(|l| l.sids.clone()).collect();
        assert_eq!(found, [(sid(at as u32), !lost)]);
    }

    let store = open(dir.path(), 1 << 30).unwrap();
    assert_eq!(store.outbox().withheld(), [(ends[2], sid(2))]);
    assert_eq!(store.outbox().pending(), (5000, 1));
    assert_eq!(store.known(&sid(2)).unwrap(), Some(Known::Outbox));
    store.retire(ends[4]).unwrap();
    assert_eq!(store.known(&sid(2)).unwrap(), Some(Known::Outbox));
    let again = store.outbox().outgoing_at(ends[2]).unwrap().unwrap();
    assert_eq!(again.object, object(2, 5000));
    assert!(store.outbox().accept(ends[2]));
    assert!(!store.outbox().accept(ends[2]), "once");
    assert_eq!(store.outbox().pending(), (0, 0));
    store.retire(ends[4]).unwrap();
    assert_eq!(store.known(&sid(2)).unwrap(), Some(Known::Cached));
}
