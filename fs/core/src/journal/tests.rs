//! What a reader makes of every cut, every flipped byte, and of noise.

use bytes::Bytes;
use proptest::prelude::*;
use sealdrive_proto::id::DriveId;

use super::entry::{decode_record, encode_record};
use super::{
    Ending, Entry, HEADER_LEN, JournalError, RECORD_TARGET, SealRecord, SegmentHeader,
    SegmentReader, SegmentWriter,
};
use crate::local::LocalKeys;
use crate::record::{Dentry, Edit, FileKind, Inode, Key, Time, Value};

const DRIVE: DriveId = DriveId([0xd0; 32]);

fn keys() -> LocalKeys {
    LocalKeys::derive(&[1; 32], &[2; 32])
}

fn header(segment: u64, prev_tag: [u8; 16]) -> SegmentHeader {
    SegmentHeader {
        drive: DRIVE,
        segment,
        first_op: 5,
        prev_tag,
        salt: std::array::from_fn(|at| at as u8 ^ 0xa5),
    }
}

fn some_entries(seq: u64) -> Vec<Entry> {
    let inode = Inode::new(
        FileKind::Regular,
        0o644,
        1,
        1,
        Time {
            secs: seq as i64,
            nanos: 0,
        },
    );
    vec![
        Entry::Op {
            seq,
            edits: vec![
                Edit::Put(Key::inode(seq + 2), inode.encode()),
                Edit::Put(
                    Key::dentry(1, b"name"),
                    Dentry {
                        ino: seq + 2,
                        kind: FileKind::Regular,
                    }
                    .encode(),
                ),
                Edit::Put(Key::backref(seq + 2, 1, b"name"), Value::from(&b""[..])),
                Edit::Delete(Key::dentry(1, b"old name")),
            ],
        },
        Entry::Data {
            seq,
            ino: seq + 2,
            off: seq << 32,
            bytes: Bytes::from(vec![seq as u8; 40]),
        },
        Entry::Discard {
            seq,
            ino: seq + 2,
            off: 0,
            len: u64::MAX,
        },
    ]
}

/// A segment of `records` batches, where each ends, and how the writer left it.
fn segment(records: u64, synced_each: bool) -> (Vec<u8>, Vec<usize>, SegmentWriter) {
    let (mut writer, mut bytes) = SegmentWriter::begin(&header(3, [9; 16]), &keys());
    let mut ends = vec![bytes.len()];
    for seq in 0..records {
        if synced_each {
            writer.synced();
        }
        bytes.extend(writer.append(&keys(), &some_entries(seq)).concat());
        ends.push(bytes.len());
    }
    (bytes, ends, writer)
}

type Read = (Vec<Vec<Entry>>, Result<Ending, JournalError>);

fn read(bytes: &[u8]) -> Read {
    let keys = keys();
    let mut batches = Vec::new();
    let mut reader = match SegmentReader::open(bytes, DRIVE, &keys) {
        Ok(reader) => reader,
        Err(error) => return (batches, Err(error)),
    };
    loop {
        match reader.next_batch() {
            Ok(Some(batch)) => batches.push(batch),
            Ok(None) => return (batches, Ok(reader.ending().expect("it said so"))),
            Err(error) => return (batches, Err(error)),
        }
    }
}

fn batches(count: usize) -> Vec<Vec<Entry>> {
    (0..count as u64).map(some_entries).collect()
}

#[test]
fn what_was_appended_is_read() {
    let (bytes, ends, writer) = segment(5, true);
    assert_eq!(read(&bytes), (batches(5), Ok(Ending::Clean)));
    assert_eq!(writer.records(), 6);
    let keys = keys();
    let mut reader = SegmentReader::open(&bytes, DRIVE, &keys).unwrap();
    assert_eq!(reader.header(), &header(3, [9; 16]));
    while reader.next_batch().unwrap().is_some() {}
    assert_eq!(
        reader.tag(),
        writer.tag(),
        "the next segment names the same end whoever writes it"
    );
    assert_eq!(ends[0], bytes.len() - 5 * (ends[1] - ends[0]));
}

#[test]
fn every_cut_leaves_the_batches_before_it() {
    for synced in [false, true] {
        let (bytes, ends, _) = segment(4, synced);
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let expected = match whole {
                0 => (batches(0), Err(JournalError::Unborn)),
                _ if ends[whole - 1] == cut => (batches(whole - 1), Ok(Ending::Clean)),
                _ => (
                    batches(whole - 1),
                    Ok(Ending::Torn {
                        good: ends[whole - 1],
                    }),
                ),
            };
            assert_eq!(read(&bytes[..cut]), expected, "cut to {cut}");
        }
    }
}

#[test]
fn a_tail_of_zeros_is_torn() {
    let (bytes, ends, _) = segment(2, true);
    let zeros = [&bytes[..], &[0; 5000]].concat();
    assert_eq!(
        read(&zeros),
        (batches(2), Ok(Ending::Torn { good: ends[2] }))
    );
    assert_eq!(
        read(&vec![0; ends[0]]).1,
        Err(JournalError::Unborn),
        "created, never synced"
    );
}

/// Story: a disk lost one sector of a journal that had been synced, and recovery took the rest for a torn tail.
#[test]
fn every_flipped_byte_of_what_was_synced_is_noticed() {
    let (bytes, ends, _) = segment(4, true);
    for at in 0..bytes.len() {
        for bit in [0x01, 0x80] {
            let mut bad = bytes.clone();
            bad[at] ^= bit;
            let hit = ends.iter().filter(|end| **end <= at).count();
            let (found, ending) = read(&bad);
            assert_eq!(
                found,
                batches(hit.saturating_sub(1)),
                "byte {at}: what stands before is read"
            );
            match (hit, ending) {
                (0, Err(JournalError::Foreign | JournalError::Damaged { index: 0 })) => {}
                (4, Ok(Ending::Torn { good })) => {
                    assert_eq!(good, ends[3], "the last flush has no witness")
                }
                (1..4, Err(JournalError::Damaged { index })) => assert_eq!(index, hit as u64),
                (_, other) => panic!("byte {at} in record {hit}: {other:?}"),
            }
        }
    }
}

/// Story: one append of several records, power lost before fdatasync; the disk had kept the later pages and not the
/// earlier.
#[test]
fn a_hole_in_what_was_never_synced_is_a_torn_tail() {
    let (bytes, ends, _) = segment(4, false);
    for (hit, range) in ends.windows(2).enumerate() {
        let mut bad = bytes.clone();
        bad[range[0]..range[1]].fill(0);
        assert_eq!(
            read(&bad),
            (batches(hit), Ok(Ending::Torn { good: range[0] }))
        );
    }
}

#[test]
fn what_was_synced_ends_exactly_before_what_was_not() {
    let (mut writer, mut bytes) = SegmentWriter::begin(&header(3, [9; 16]), &keys());
    bytes.extend(writer.append(&keys(), &some_entries(0)).concat());
    writer.synced();
    let durable = bytes.len();
    bytes.extend(writer.append(&keys(), &some_entries(1)).concat());
    let second = bytes.len();
    bytes.extend(writer.append(&keys(), &some_entries(2)).concat());
    bytes[durable..second].fill(0);
    assert_eq!(
        read(&bytes),
        (batches(1), Ok(Ending::Torn { good: durable }))
    );
    bytes[durable - 1] ^= 1;
    assert_eq!(
        read(&bytes),
        (batches(0), Err(JournalError::Damaged { index: 1 }))
    );
}

#[test]
fn two_lost_records_are_found_by_what_follows() {
    let (bytes, ends, _) = segment(5, true);
    let mut bad = bytes.clone();
    bad[ends[1]..ends[3]].fill(0xee);
    assert_eq!(
        read(&bad),
        (batches(1), Err(JournalError::Damaged { index: 2 }))
    );
    let removed = [&bytes[..ends[1]], &bytes[ends[2]..]].concat();
    assert_eq!(
        read(&removed),
        (batches(1), Err(JournalError::Damaged { index: 2 })),
        "a record taken out"
    );
    let swapped = [
        &bytes[..ends[1]],
        &bytes[ends[2]..ends[3]],
        &bytes[ends[1]..ends[2]],
    ]
    .concat();
    assert!(read(&swapped).1.is_err(), "two records exchanged");
    let forged = [&bytes[..], &bad[72..80].repeat(100)].concat();
    assert!(
        read(&forged).1.is_err(),
        "marks without records are not noise"
    );
}

#[test]
fn segments_join_or_say_so() {
    let (bytes, _, writer) = segment(3, true);
    let keys = keys();
    let (_, next) = SegmentWriter::begin(&header(4, writer.tag()), &keys);
    let reader = SegmentReader::open(&next, DRIVE, &keys).unwrap();
    assert_eq!(reader.check_follows(3, writer.tag()), Ok(()));
    assert_eq!(
        reader.check_follows(2, writer.tag()),
        Err(JournalError::Broken)
    );
    assert_eq!(reader.check_follows(3, [0; 16]), Err(JournalError::Broken));
    assert_eq!(
        SegmentReader::open(&bytes, DriveId([1; 32]), &keys).err(),
        Some(JournalError::OtherDrive)
    );
    let foreign = LocalKeys::derive(&[3; 32], &[2; 32]);
    assert_eq!(
        SegmentReader::open(&bytes, DRIVE, &foreign).err(),
        Some(JournalError::Damaged { index: 0 })
    );
}

#[test]
fn large_batches_become_several_records_and_data_is_not_copied() {
    let (mut writer, mut bytes) = SegmentWriter::begin(&header(1, [0; 16]), &Bare);
    let payload = Bytes::from(vec![7; RECORD_TARGET - 100]);
    let mut entries: Vec<Entry> = (0..3)
        .map(|n| Entry::Data {
            seq: n,
            ino: 2,
            off: n << 20,
            bytes: payload.clone(),
        })
        .collect();
    entries.push(Entry::Data {
        seq: 3,
        ino: 2,
        off: 0,
        bytes: Bytes::from(vec![8; 3 * RECORD_TARGET]),
    });
    entries.extend(some_entries(9));
    let pieces = writer.append(&Bare, &entries);
    assert_eq!(writer.records(), 1 + 5);
    assert_eq!(writer.append(&Bare, &[]), Vec::<Vec<u8>>::new());
    bytes.extend(pieces.concat());
    let mut reader = SegmentReader::open(&bytes, DRIVE, &Bare).unwrap();
    let mut found = Vec::new();
    while let Some(batch) = reader.next_batch().unwrap() {
        found.extend(batch);
    }
    assert_eq!(found, entries);
    let plain = Bytes::from(encode_record(0, &entries[..1]).to_vec());
    let (_, decoded) = decode_record(plain.clone()).unwrap();
    let Entry::Data { bytes, .. } = &decoded[0] else {
        panic!("not data")
    };
    assert!(
        plain.as_ptr_range().contains(&bytes.as_ptr()),
        "a slice of the record"
    );
}

/// No seal at all: lets a test look at the grammar alone.
struct Bare;

impl SealRecord for Bare {
    fn seal(&self, _: &[u8], _: u64, plain: &[u8]) -> Vec<u8> {
        plain.to_vec()
    }

    fn open(&self, _: &[u8], _: u64, sealed: &[u8]) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(sealed))
    }
}

#[test]
fn entries_out_of_range_are_refused() {
    let with =
        |entry: &[u8]| decode_record(Bytes::from([&[1, 0, 0, 0, 0, 0, 0, 0, 0], entry].concat()));
    assert!(with(&[]).is_some());
    let data = |off: u64, len: u32, bytes: &[u8]| {
        [
            &[2; 1][..],
            &[0; 16],
            &off.to_le_bytes(),
            &len.to_le_bytes(),
            bytes,
        ]
        .concat()
    };
    assert!(with(&data(0, 1, b"x")).is_some());
    assert!(with(&data(0, 0, b"")).is_none());
    assert!(with(&data(0, 2, b"x")).is_none());
    assert!(with(&data(i64::MAX as u64, 1, b"x")).is_none());
    let op =
        |count: u32, edits: &[u8]| [&[1; 1][..], &[0; 8], &count.to_le_bytes(), edits].concat();
    let delete = [&[9, 0, 0xff, 0xff][..], Key::inode(3).as_bytes()].concat();
    assert!(with(&op(1, &delete)).is_some());
    assert!(
        with(&op(u32::MAX, &delete)).is_none(),
        "a count is not believed"
    );
    assert!(
        with(&op(
            1,
            &[&[9, 0, 1, 0][..], Key::inode(3).as_bytes(), b"?"].concat()
        ))
        .is_none(),
        "a bad record"
    );
    assert!(with(&[4]).is_none());
    assert!(decode_record(Bytes::from_static(&[2, 0, 0, 0, 0, 0, 0, 0, 0])).is_none());
}

proptest! {
    #[test]
    fn noise_never_panics_and_what_decodes_is_canonical(
        kind in 1..4u8,
        noise in prop::collection::vec(prop_oneof![0..4u8, any::<u8>()], 0..80),
    ) {
        let plain = [&[1, 0, 0, 0, 0, 0, 0, 0, 0, kind], &noise[..]].concat();
        if let Some((synced, entries)) = decode_record(Bytes::from(plain.clone())) {
            prop_assert_eq!(&encode_record(synced, &entries)[..], &plain[..]);
        }
        prop_assert!(read(&noise).1.is_err());
        let (mut bytes, ends, _) = segment(1, true);
        bytes.truncate(ends[0]);
        bytes.extend_from_slice(&noise);
        prop_assert!(read(&bytes).0.is_empty());
    }
}

#[test]
fn the_header_is_what_the_format_says() {
    let bytes = header(3, [9; 16]).encode();
    assert_eq!(bytes.len(), HEADER_LEN);
    assert_eq!(&bytes[..8], b"SDJ1\x01\0\0\0");
    assert_eq!(SegmentHeader::parse(&bytes), Ok(header(3, [9; 16])));
    assert_eq!(
        SegmentHeader::parse(&bytes[..103]),
        Err(JournalError::Unborn)
    );
}
