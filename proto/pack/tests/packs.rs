//! Packs on a real directory and on one that fails: what was durable is there, what was not is cut off, and damage is
//! told from a torn tail.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sealdrive_pack::{
    Directory, Entry, Medium, MediumFile, PackError, PackHeader, Reader, Record, RecordKind, Scan,
    Writer, file_name,
};

const HEADER: PackHeader = PackHeader {
    id: 1,
    created_ms: 2,
    store: [3; 32],
};

fn record(n: u8, len: usize) -> Record {
    let mut record = Record::new(
        RecordKind::Object,
        [n % 3; 32],
        [n; 32],
        Bytes::from(vec![n; len]),
    );
    record.sequence = u64::from(n);
    record
}

struct Disk {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    medium: Directory,
}

fn disk() -> Disk {
    let dir = tempfile::tempdir().unwrap();
    Disk {
        path: dir.path().join(file_name(1)),
        medium: Directory::open(dir.path()).unwrap(),
        _dir: dir,
    }
}

impl Disk {
    fn reader(&self) -> Reader {
        Reader::open(&self.medium, &file_name(1)).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    fn set(&self, bytes: &[u8]) {
        std::fs::write(&self.path, bytes).unwrap();
    }
}

fn check(reader: &Reader, entries: &[Entry]) {
    for entry in entries {
        let found = reader.read(entry.location()).unwrap();
        assert_eq!(found.header, entry.header);
        let n = entry.header.sequence as u8;
        assert!(found.payload.iter().all(|byte| *byte == n) && entry.header.id == [n; 32]);
    }
}

#[test]
fn a_sealed_pack_lists_itself_and_a_scan_agrees() {
    let disk = disk();
    let mut writer = Writer::create(&disk.medium, HEADER).unwrap();
    writer
        .append(&[record(9, 0), record(5, 7), record(7, 4096)])
        .unwrap();
    writer.sync().unwrap();
    writer.append(&[record(1, 100_000)]).unwrap();
    let written = writer.finish().unwrap();

    let reader = disk.reader();
    assert_eq!(*reader.header(), HEADER);
    assert_eq!(reader.sealed_entries().unwrap().unwrap(), written);
    check(&reader, &written);

    // The footer lost: everything is found again, and nothing of the footer is taken for a record.
    let bytes = disk.bytes();
    disk.set(&bytes[..bytes.len() - 1]);
    assert_eq!(disk.reader().sealed_entries().unwrap(), None);
    let scan = Scan::read(&disk.reader(), 0, 0).unwrap();
    assert_eq!((scan.entries, scan.damage), (written, vec![]));
}

#[test]
fn a_flipped_bit_in_the_footer_is_no_footer() {
    let disk = disk();
    let mut writer = Writer::create(&disk.medium, HEADER).unwrap();
    writer.append(&[record(1, 8)]).unwrap();
    let start = writer.len() as usize;
    writer.finish().unwrap();
    let good = disk.bytes();
    for at in start..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        disk.set(&bad);
        assert_eq!(disk.reader().sealed_entries().unwrap(), None, "byte {at}");
    }
}

#[test]
fn a_pack_cut_at_every_byte_keeps_every_whole_record_and_can_go_on() {
    let disk = disk();
    let mut writer = Writer::create(&disk.medium, HEADER).unwrap();
    let entries = writer
        .append(&[record(1, 5), record(2, 0), record(3, 64)])
        .unwrap();
    drop(writer);
    let whole = disk.bytes();
    for cut in 64..=whole.len() {
        disk.set(&whole[..cut]);
        let reader = disk.reader();
        let scan = Scan::read(&reader, 0, 0).unwrap();
        let kept: Vec<Entry> = entries
            .iter()
            .filter(|e| e.location().end() <= cut as u64)
            .copied()
            .collect();
        assert_eq!(
            (&scan.entries, scan.damage.len()),
            (&kept, 0),
            "cut at {cut}"
        );
        assert_eq!(scan.torn, cut as u64 - scan.end);

        let mut writer = Writer::resume(reader, &scan).unwrap();
        let more = writer.append(&[record(4, 9)]).unwrap();
        let all = writer.finish().unwrap();
        assert_eq!(all, [kept, more].concat());
        assert_eq!(disk.reader().sealed_entries().unwrap().unwrap(), all);
        check(&disk.reader(), &all);
    }
}

#[test]
fn every_flipped_byte_is_a_torn_tail_behind_the_watermark_and_corruption_before_it() {
    let disk = disk();
    let mut writer = Writer::create(&disk.medium, HEADER).unwrap();
    let early = writer.append(&[record(1, 13), record(2, 30)]).unwrap();
    writer.sync().unwrap();
    let watermark = writer.durable();
    let late = writer.append(&[record(3, 13), record(4, 30)]).unwrap();
    drop(writer);
    let good = disk.bytes();
    for at in 64..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        disk.set(&bad);
        // Nobody remembers the watermark: the late records carry it.
        let scan = Scan::read(&disk.reader(), 0, 0).unwrap();
        let hit = |e: &Entry| (e.offset..e.location().end()).contains(&(at as u64));
        if (at as u64) < watermark {
            let kept: Vec<Entry> = early
                .iter()
                .chain(&late)
                .filter(|e| !hit(e))
                .copied()
                .collect();
            assert_eq!(scan.entries, kept, "byte {at}");
            assert_eq!(scan.damage.len(), 1, "byte {at}");
            assert_eq!(scan.torn, 0, "corruption is never cut off (byte {at})");
        } else {
            let kept: Vec<Entry> = early
                .iter()
                .chain(late.iter().take_while(|e| !hit(e)))
                .copied()
                .collect();
            assert_eq!((scan.entries, scan.damage), (kept, vec![]), "byte {at}");
            assert!(scan.torn > 0);
        }
    }
}

/// A server whose open pack had lost its end to a broken disk panicked at start: records begin at multiples of eight.
#[test]
fn a_pack_cut_in_what_was_durable_can_go_on_wherever_it_ends() {
    let disk = disk();
    let mut writer = Writer::create(&disk.medium, HEADER).unwrap();
    writer.append(&[record(1, 13), record(2, 30)]).unwrap();
    writer.sync().unwrap();
    let durable = writer.durable();
    drop(writer);
    let whole = disk.bytes();
    for cut in 64..whole.len() {
        disk.set(&whole[..cut]);
        let reader = disk.reader();
        let scan = Scan::read(&reader, 0, durable).unwrap();
        let mut writer = Writer::resume(reader, &scan).unwrap();
        let more = writer.append(&[record(4, 9)]).unwrap();
        let all = writer.finish().unwrap();
        assert_eq!(all, [scan.entries, more].concat(), "cut at {cut}");
        assert_eq!(disk.reader().sealed_entries().unwrap().unwrap(), all);
        check(&disk.reader(), &all);
    }
}

#[test]
fn the_callers_watermark_counts_where_the_records_are_silent() {
    let disk = disk();
    let mut writer = Writer::create(&disk.medium, HEADER).unwrap();
    writer.append(&[record(1, 13)]).unwrap();
    writer.sync().unwrap();
    let durable = writer.durable();
    drop(writer);
    let mut bad = disk.bytes();
    bad[64 + 150] ^= 1;
    disk.set(&bad);
    let torn = Scan::read(&disk.reader(), 0, 0).unwrap();
    assert_eq!((torn.damage.len(), torn.end), (0, 64));
    let corrupt = Scan::read(&disk.reader(), 0, durable).unwrap();
    assert_eq!((corrupt.damage.len(), corrupt.torn), (1, 0));
    assert_eq!(
        corrupt.damage[0].entry.map(|e| e.header.id),
        Some([1; 32]),
        "the report names the record"
    );
}

#[test]
fn a_read_refuses_what_was_not_written_there() {
    let disk = disk();
    let mut writer = Writer::create(&disk.medium, HEADER).unwrap();
    let entries = writer.append(&[record(1, 50), record(2, 50)]).unwrap();
    writer.finish().unwrap();
    let good = disk.bytes();
    let location = entries[0].location();
    for at in location.offset as usize..(location.offset as usize + 144 + 50) {
        let mut bad = good.clone();
        bad[at] ^= 0x80;
        disk.set(&bad);
        assert!(
            matches!(disk.reader().read(location), Err(PackError::Damaged { .. })),
            "byte {at}"
        );
    }
    disk.set(&good);
    let mut wrong = location;
    wrong.len += 1;
    assert!(disk.reader().read(wrong).is_err());
    wrong.offset = 1 << 40;
    assert!(matches!(
        disk.reader().read(wrong),
        Err(PackError::Damaged { .. })
    ));
}

#[test]
fn a_record_hidden_in_a_payload_is_not_found_behind_damage() {
    // A client knows the format and where its object will land, but not the id of the store.
    let disk = disk();
    let forged = {
        let strangers = tempfile::tempdir().unwrap();
        let medium = Directory::open(strangers.path()).unwrap();
        let mut writer = Writer::create(
            &medium,
            PackHeader {
                store: [4; 32],
                ..HEADER
            },
        )
        .unwrap();
        // 64 + 144: so that the forged record has the offset at which it will be met.
        writer
            .append(&[Record::new(
                RecordKind::Object,
                [0; 32],
                [0; 32],
                Bytes::new(),
            )])
            .unwrap();
        writer
            .append(&[Record::new(
                RecordKind::Link,
                [9; 32],
                [9; 32],
                Bytes::from_static(b"forged!!"),
            )])
            .unwrap();
        writer.finish().unwrap();
        std::fs::read(strangers.path().join(file_name(1)))
            .unwrap()
            .split_off(64 + 144)
    };
    let mut writer = Writer::create(&disk.medium, HEADER).unwrap();
    let hostile = Record::new(
        RecordKind::Object,
        [1; 32],
        [1; 32],
        Bytes::from(forged.clone()),
    );
    let entries = writer.append(&[hostile]).unwrap();
    writer.sync().unwrap();
    writer.append(&[record(2, 8)]).unwrap();
    drop(writer);
    let good = disk.bytes();
    assert_eq!(good[64 + 144..64 + 144 + forged.len()], forged);

    let mut bad = good.clone();
    bad[70] ^= 1;
    disk.set(&bad);
    let scan = Scan::read(&disk.reader(), 0, 0).unwrap();
    assert_eq!(scan.entries.len(), 1, "only the honest second record");
    assert_eq!(scan.entries[0].header.id, [2; 32]);

    // A power cut that leaves a pack ending in the client's own footer does not make it a sealed pack.
    disk.set(&good[..entries[0].offset as usize + 144 + forged.len()]);
    assert_eq!(disk.reader().sealed_entries().unwrap(), None);
}

/// A medium with a switch for each misfortune.
#[derive(Default)]
struct Trouble {
    space: AtomicU64,
    fail_sync: AtomicBool,
    syncs: AtomicU64,
}

struct Troubled(Arc<dyn MediumFile>, Arc<Trouble>);

impl MediumFile for Troubled {
    fn append(&self, end: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let space = self.1.space.load(Ordering::SeqCst).saturating_sub(end) as usize;
        if bytes.len() > space {
            self.0.append(end, &mut [IoSlice::new(&bytes[..space])])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.append(end, &mut [IoSlice::new(&bytes)])
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.syncs.fetch_add(1, Ordering::SeqCst);
        // Like the page cache: the error is told once, then everything looks fine.
        if self.1.fail_sync.swap(false, Ordering::SeqCst) {
            Err(io::Error::other("EIO"))
        } else {
            self.0.sync()
        }
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn try_lock(&self) -> io::Result<bool> {
        self.0.try_lock()
    }
    fn write_behind(&self, from: u64, len: u64) {
        self.0.write_behind(from, len)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

struct TroubledDir(Directory, Arc<Trouble>, Mutex<Vec<String>>);

impl Medium for TroubledDir {
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        Ok(Arc::new(Troubled(
            self.0.create(name)?,
            Arc::clone(&self.1),
        )))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        Ok(Arc::new(Troubled(self.0.open(name)?, Arc::clone(&self.1))))
    }
    fn directory(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        self.0.directory(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.2.lock().unwrap().push(name.into());
        self.0.remove(name)
    }
    fn remove_directory(&self, name: &str) -> io::Result<()> {
        self.0.remove_directory(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }
    fn free(&self) -> io::Result<u64> {
        self.0.free()
    }
}

fn troubled(space: u64) -> (tempfile::TempDir, TroubledDir, Arc<Trouble>) {
    let dir = tempfile::tempdir().unwrap();
    let trouble = Arc::new(Trouble {
        space: space.into(),
        ..Trouble::default()
    });
    let medium = TroubledDir(
        Directory::open(dir.path()).unwrap(),
        Arc::clone(&trouble),
        Mutex::default(),
    );
    (dir, medium, trouble)
}

#[test]
fn a_full_disk_loses_nothing_and_is_forgotten_when_there_is_space() {
    let (_dir, medium, trouble) = troubled(1000);
    let mut writer = Writer::create(&medium, HEADER).unwrap();
    writer.append(&[record(1, 100)]).unwrap();
    let before = writer.len();
    let full = writer.append(&[record(2, 100), record(3, 1000)]);
    assert!(matches!(full, Err(PackError::NoSpace)), "all or none");
    assert_eq!(writer.len(), before);
    writer.sync().unwrap();
    trouble.space.store(1 << 20, Ordering::SeqCst);
    writer.append(&[record(3, 1000)]).unwrap();
    let entries = writer.finish().unwrap();
    let reader = Reader::open(&medium, &file_name(1)).unwrap();
    assert_eq!(reader.sealed_entries().unwrap().unwrap(), entries);
    assert_eq!(entries.len(), 2);
    check(&reader, &entries);
}

#[test]
fn a_failed_sync_is_never_retried() {
    let (_dir, medium, trouble) = troubled(1 << 20);
    let mut writer = Writer::create(&medium, HEADER).unwrap();
    writer.append(&[record(1, 100)]).unwrap();
    trouble.fail_sync.store(true, Ordering::SeqCst);
    assert!(matches!(writer.sync(), Err(PackError::Io { .. })));
    let syncs = trouble.syncs.load(Ordering::SeqCst);
    assert!(matches!(writer.sync(), Err(PackError::Poisoned)));
    assert!(matches!(
        writer.append(&[record(2, 1)]),
        Err(PackError::Poisoned)
    ));
    assert!(matches!(writer.finish(), Err(PackError::Poisoned)));
    assert_eq!(
        trouble.syncs.load(Ordering::SeqCst),
        syncs,
        "the medium was asked again"
    );
}

#[test]
fn a_pack_that_could_not_be_created_leaves_its_name_free() {
    let (_dir, medium, trouble) = troubled(10);
    assert!(matches!(
        Writer::create(&medium, HEADER),
        Err(PackError::NoSpace)
    ));
    trouble.space.store(1 << 20, Ordering::SeqCst);
    Writer::create(&medium, HEADER).unwrap();
    assert!(Writer::create(&medium, HEADER).is_err(), "exclusive");
}
