//! Opening the outbox without reading its chunks: whatever is damaged is told all the same, at once or by who looks.

#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealdrive::store::{Local, Lost, NOTE_LEN, Position, Store, StoreError};
use sealdrive_pack::Directory;
use sealdrive_proto::id::Sid;

/// Lengths of the objects in the pack under test: chunks, and between them one as short as a tree node.
const LENGTHS: [usize; 3] = [60_000, 5_000, 70_000];
/// Length of what stands before an object: length, checksum, id, note.
const RECORD_HEAD: usize = 4 + 4 + Sid::LEN + NOTE_LEN;
/// Before the first record.
const PACK_HEAD: usize = 8;

fn sid(n: usize) -> Sid {
    Sid([n as u8 + 1; Sid::LEN])
}

fn object(n: usize) -> Vec<u8> {
    let mut object: Vec<u8> = (0..LENGTHS[n])
        .map(|at| ((at * (n + 3)) >> 3) as u8)
        .collect();
    object[..4].copy_from_slice(b"SDO1");
    object
}

fn open(dir: &Path) -> Store {
    Store::open(Arc::new(Directory::open(dir).unwrap()), 1 << 30).unwrap()
}

/// A closed pack with three objects, and a later one, so that the index vouches for the first.
fn rig(dir: &Path) -> PathBuf {
    let store = open(dir);
    for n in 0..LENGTHS.len() {
        store.put(sid(n), &[7; NOTE_LEN], &object(n)).unwrap();
    }
    store.close_pack().unwrap();
    store.put(sid(9), &[7; NOTE_LEN], &object(1)).unwrap();
    store.sync().unwrap();
    store.save_index().unwrap();
    let packs = std::fs::read_dir(dir.join("outbox")).unwrap();
    packs.map(|entry| entry.unwrap().path()).min().unwrap()
}

/// Which of the three objects a byte of the pack belongs to.
fn owner(at: usize) -> usize {
    let mut end = PACK_HEAD;
    let mut is_before = |length: &usize| {
        end += RECORD_HEAD + length;
        at >= end
    };
    LENGTHS
        .iter()
        .take_while(|length| is_before(length))
        .count()
}

fn flip(pack: &Path, at: usize) {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(pack)
        .unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&[byte[0] ^ 0x10]).unwrap();
}

fn told_at_opening(store: &Store) -> Vec<Sid> {
    let lost = store.lost().iter().flat_map(|lost| &lost.sids);
    lost.map(|(sid, _)| *sid).collect()
}

/// Looks at everything left unread, as the thread behind a mount does; what is damaged is set aside.
fn told_by_the_check(store: &Store) -> Vec<Sid> {
    let (mut told, mut cursor) = (Vec::new(), Position::default());
    loop {
        match store.outbox().check_after(cursor) {
            Ok(Some(end)) => cursor = end,
            Ok(None) => return told,
            Err(StoreError::OutboxDamaged(sid, end)) => {
                store.set_aside(sid, end).unwrap();
                told.push(sid);
                cursor = end;
            }
            Err(e) => panic!("{e}"),
        }
    }
}

fn assert_good(store: &Store, n: usize, what: &str) {
    match store.read(&sid(n)).unwrap() {
        Local::Object(bytes, _) => assert!(bytes[..] == object(n)[..], "{what}: object {n}"),
        _ => panic!("{what}: object {n} is not there"),
    }
}

#[test]
fn every_damaged_byte_is_told_at_opening_or_by_the_check_and_costs_its_object_only() {
    let dir = tempfile::tempdir().unwrap();
    let pack = rig(dir.path());
    let len = PACK_HEAD + LENGTHS.iter().map(|len| RECORD_HEAD + len).sum::<usize>();
    assert_eq!(std::fs::metadata(&pack).unwrap().len(), len as u64);
    let starts =
        [0, 1, 2].map(|n| PACK_HEAD + (0..n).map(|n| RECORD_HEAD + LENGTHS[n]).sum::<usize>());
    let heads = starts
        .into_iter()
        .flat_map(|start| (start..start + RECORD_HEAD).step_by(3));
    let inside = (PACK_HEAD..len).step_by(2711);
    let (mut at_opening, mut later) = (0, 0);
    for at in heads.chain(inside) {
        flip(&pack, at);
        let store = open(dir.path());
        let hit = owner(at);
        let first = told_at_opening(&store);
        let then = told_by_the_check(&store);
        let told: Vec<Sid> = first.iter().chain(&then).copied().collect();
        assert_eq!(told, [sid(hit)], "byte {at}: {first:?}, {then:?}");
        // As short as a tree node: it must be known before the drive opens.
        assert!(hit != 1 || then.is_empty(), "byte {at}");
        at_opening += first.len();
        later += then.len();
        assert!(!matches!(store.read(&sid(hit)).unwrap(), Local::Object(..)));
        for n in (0..LENGTHS.len()).filter(|n| *n != hit) {
            assert_good(&store, n, &format!("byte {at}"));
        }
        // What was found out is known at the next opening, if not always by its id.
        store.save_index().unwrap();
        drop(store);
        let store = open(dir.path());
        assert!(store.lost().iter().any(Lost::is_loss), "byte {at}");
        assert!(told_at_opening(&store).iter().all(|told| *told == sid(hit)));
        drop(store);
        std::fs::remove_dir_all(dir.path().join("outbox")).unwrap();
        std::fs::remove_file(dir.path().join("state.redb")).unwrap();
        rig(dir.path());
    }
    assert!(
        at_opening > 50 && later > 30,
        "{at_opening} at opening, {later} later"
    );
}

#[test]
fn what_is_missing_at_the_end_of_a_pack_is_told_and_what_follows_it_hides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pack = rig(dir.path());
    let good = std::fs::read(&pack).unwrap();
    let last = good.len() - RECORD_HEAD - LENGTHS[2];
    for len in [last, last + 20, good.len() - 1] {
        std::fs::write(&pack, &good[..len]).unwrap();
        assert_eq!(told_at_opening(&open(dir.path())), [sid(2)], "{len} bytes");
        std::fs::remove_dir_all(dir.path().join("outbox")).unwrap();
        std::fs::remove_file(dir.path().join("state.redb")).unwrap();
        rig(dir.path());
    }
    let mut longer = good;
    longer.extend([3; 500]);
    std::fs::write(&pack, longer).unwrap();
    flip(&pack, PACK_HEAD + RECORD_HEAD + 1000);
    assert_eq!(told_at_opening(&open(dir.path())), [sid(0)]);
}

#[test]
fn what_the_server_has_is_not_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let pack = rig(dir.path());
    flip(&pack, PACK_HEAD + RECORD_HEAD + 1000);
    let store = open(dir.path());
    let first = Position::new(1, (PACK_HEAD + RECORD_HEAD + LENGTHS[0]) as u64);
    store.outbox().acknowledge(first);
    assert!(told_by_the_check(&store).is_empty());
    assert!(matches!(store.read(&sid(0)).unwrap(), Local::Absent));
}

/// An object that was sealed again elsewhere, or that the index does not know, leaves its old record unvouched for.
#[test]
fn a_record_that_the_index_does_not_know_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let pack = rig(dir.path());
    let store = open(dir.path());
    store.drop_knowledge(sid(0));
    store.save_index().unwrap();
    drop(store);
    flip(
        &pack,
        PACK_HEAD + RECORD_HEAD + LENGTHS[0] + RECORD_HEAD + LENGTHS[1] + RECORD_HEAD + 9,
    );
    let store = open(dir.path());
    assert_eq!(told_at_opening(&store), [sid(2)]);
    assert_good(&store, 0, "known again from its pack");
}

/// The old record of an object that was put again stands in a pack that is read whole, the new one in one that is not:
/// the old one became the object's place, and with the old record its good copy was given up.
#[test]
fn an_object_that_was_put_again_stays_where_it_was_put_last() {
    let dir = tempfile::tempdir().unwrap();
    let pack = rig(dir.path());
    let store = open(dir.path());
    store.put_again(sid(0), &[7; NOTE_LEN], &object(0)).unwrap();
    store.close_pack().unwrap();
    store.put(sid(8), &[7; NOTE_LEN], &object(1)).unwrap();
    store.sync().unwrap();
    store.save_index().unwrap();
    drop(store);
    let store = open(dir.path());
    let first = std::fs::metadata(&pack).unwrap().len();
    store.outbox().acknowledge(Position::new(1, first));
    flip(&pack, PACK_HEAD + RECORD_HEAD + 1000);
    assert_good(&store, 0, "put again");
}
