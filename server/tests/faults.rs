//! The store on a disk that forgets what was not synced, fills up, and fails: what was acknowledged is there, and what
//! is not there was never acknowledged.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sealdrive_pack::{Directory, Medium, MediumFile, Record, RecordKind};
use sealdrive_server::index::{Index, Row, RowKey};
use sealdrive_server::store::{Opened, Put, Store, StoreError, StoreOptions};

#[derive(Default, Clone)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, Arc<Mutex<Inode>>>,
    durable_names: BTreeMap<String, Arc<Mutex<Inode>>>,
    space: Option<usize>,
    fail_sync: bool,
}

#[derive(Default, Clone)]
struct Disk(Arc<Mutex<State>>);
struct File(Arc<Mutex<Inode>>, Disk);
impl Disk {
    fn cut(&self, extra: usize) -> Disk {
        let state = self.0.lock().unwrap();
        let left = state.durable_names.iter().map(|(name, inode)| {
            let Inode { seen, durable } = inode.lock().unwrap().clone();
            let mut left = durable;
            if left.len() < seen.len() {
                let upto = seen.len().min(left.len() + extra);
                left = seen[..upto].to_vec();
            }
            (
                name.clone(),
                Arc::new(Mutex::new(Inode {
                    seen: left.clone(),
                    durable: left,
                })),
            )
        });
        let names: BTreeMap<_, _> = left.collect();
        Disk(Arc::new(Mutex::new(State {
            durable_names: names.clone(),
            names,
            ..State::default()
        })))
    }
    fn set_space(&self, space: Option<usize>) {
        self.0.lock().unwrap().space = space;
    }
}

impl Medium for Disk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        let mut state = self.0.lock().unwrap();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode: Arc<Mutex<Inode>> = Arc::default();
        state.names.insert(name.into(), Arc::clone(&inode));
        Ok(Arc::new(File(inode, self.clone())))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        let state = self.0.lock().unwrap();
        let inode = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(File(Arc::clone(inode), self.clone())))
    }
    fn directory(&self, _name: &str) -> io::Result<Arc<dyn Medium>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().names.keys().cloned().collect())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.into(), inode);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let gone = self.0.lock().unwrap().names.remove(name);
        gone.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
    fn remove_directory(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.durable_names = state.names.clone();
        Ok(())
    }
    fn free(&self) -> io::Result<u64> {
        Ok(1 << 40)
    }
}

impl MediumFile for File {
    fn append(&self, end: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let left = {
            let state = self.1.0.lock().unwrap();
            let used: usize = state
                .names
                .values()
                .map(|inode| inode.lock().unwrap().seen.len())
                .sum();
            state
                .space
                .map_or(usize::MAX, |space| space.saturating_sub(used))
        };
        let mut inode = self.0.lock().unwrap();
        assert_eq!(inode.seen.len() as u64, end, "appends are at the end");
        inode
            .seen
            .extend_from_slice(&bytes[..bytes.len().min(left)]);
        if bytes.len() > left {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let inode = self.0.lock().unwrap();
        let from = inode
            .seen
            .get(offset as usize..)
            .and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        if std::mem::take(&mut self.1.0.lock().unwrap().fail_sync) {
            return Err(io::Error::other("EIO"));
        }
        let mut inode = self.0.lock().unwrap();
        inode.durable = inode.seen.clone();
        Ok(())
    }
    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn try_lock(&self) -> io::Result<bool> {
        Ok(true)
    }
    fn write_behind(&self, _from: u64, _len: u64) {}
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().seen.truncate(len as usize);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }
}

const DOMAIN: [u8; 32] = [7; 32];
fn object(n: u32) -> Record {
    let len = 50 + n as usize * 37 % 900;
    let payload = blake3::hash(&n.to_le_bytes())
        .as_bytes()
        .repeat(len / 32 + 1);
    Record::new(RecordKind::Object, DOMAIN, id(n), Bytes::from(payload))
}

fn id(n: u32) -> [u8; 32] {
    *blake3::hash(&n.to_be_bytes()).as_bytes()
}

fn open(disk: &Disk, data: &Path, options: StoreOptions) -> Store {
    let Opened { store, damage, .. } = Store::open_split(
        Arc::new(disk.clone()),
        &Directory::open(data).unwrap(),
        options,
    )
    .unwrap();
    assert_eq!(damage, 0, "nothing was corrupted");
    store
}

fn small_packs() -> StoreOptions {
    StoreOptions {
        pack_bytes: 4000,
        ..StoreOptions::default()
    }
}

async fn assert_holds(store: &Store, numbers: impl IntoIterator<Item = u32>, why: &str) {
    for n in numbers {
        let found = store
            .read(RecordKind::Object, &DOMAIN, &id(n))
            .await
            .unwrap();
        assert_eq!(
            found.as_ref(),
            Some(object(n).payload()),
            "object {n}, {why}"
        );
    }
}

/// A power cut at every named point, with none, some and all of what was not synced: everything acknowledged until then
/// is found from the packs alone, and with whatever index there was.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_point_loses_nothing_acknowledged() {
    type Cut = (&'static str, Vec<Disk>, Vec<u32>, Option<Vec<u8>>);
    let (disk, data) = (Disk::default(), tempfile::tempdir().unwrap());
    let acknowledged: Arc<Mutex<Vec<u32>>> = Arc::default();
    let cuts: Arc<Mutex<Vec<Cut>>> = Arc::default();
    let hook = {
        let (disk, acknowledged, cuts) =
            (disk.clone(), Arc::clone(&acknowledged), Arc::clone(&cuts));
        let index = data.path().join("index.redb");
        move |point: &'static str| {
            let known = acknowledged.lock().unwrap().clone();
            // The index file is at rest only while its own thread is in here; it is taken before the packs.
            let index = point
                .contains("index")
                .then(|| std::fs::read(&index).unwrap());
            let left = [0, 1, 150, usize::MAX / 2]
                .map(|extra| disk.cut(extra))
                .to_vec();
            cuts.lock().unwrap().push((point, left, known, index));
        }
    };
    let options = StoreOptions {
        crash: Some(Arc::new(hook)),
        ..small_packs()
    };
    let store = open(&disk, data.path(), options);
    for n in 0..12 {
        store
            .put(vec![object(2 * n), object(2 * n + 1)])
            .await
            .unwrap();
        acknowledged.lock().unwrap().extend([2 * n, 2 * n + 1]);
    }
    store.close();
    let cuts = std::mem::take(&mut *cuts.lock().unwrap());
    let points: std::collections::BTreeSet<&str> = cuts.iter().map(|cut| cut.0).collect();
    let all = [
        "acked",
        "appended",
        "before-ack",
        "before-index",
        "created",
        "indexed",
        "sealed",
        "synced",
    ];
    assert_eq!(
        points
            .iter()
            .map(|point| &point["server.".len()..])
            .collect::<Vec<_>>(),
        all
    );
    for (point, left, known, index) in cuts {
        for disk in left {
            let data = tempfile::tempdir().unwrap();
            if let Some(index) = &index {
                std::fs::write(data.path().join("index.redb"), index).unwrap();
            }
            let store = open(&disk, data.path(), small_packs());
            assert_holds(&store, known.iter().copied(), point).await;
            let more = store.put(vec![object(500)]).await.unwrap();
            assert_eq!(more, [Put::Stored], "goes on after {point}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_cut_at_any_byte_keeps_what_is_whole() {
    let (disk, data) = (Disk::default(), tempfile::tempdir().unwrap());
    let store = open(&disk, data.path(), StoreOptions::default());
    let mut ends = Vec::new();
    for n in 0..3 {
        store.put(vec![object(n)]).await.unwrap();
        ends.push(
            disk.0.lock().unwrap().names["0000000000000001.pack"]
                .lock()
                .unwrap()
                .seen
                .len(),
        );
    }
    store.abandon();
    let whole = disk.0.lock().unwrap().names["0000000000000001.pack"]
        .lock()
        .unwrap()
        .seen
        .clone();
    let cuts = (0..ends[1]).step_by(13).chain(ends[1]..=ends[2]);
    for cut in cuts {
        let inode = Inode {
            seen: whole[..cut].to_vec(),
            durable: whole[..cut].to_vec(),
        };
        let names = BTreeMap::from([(
            "0000000000000001.pack".to_owned(),
            Arc::new(Mutex::new(inode)),
        )]);
        let disk = Disk(Arc::new(Mutex::new(State {
            durable_names: names.clone(),
            names,
            ..State::default()
        })));
        let data = tempfile::tempdir().unwrap();
        let store = open(&disk, data.path(), StoreOptions::default());
        let kept = ends.iter().filter(|end| **end <= cut).count() as u32;
        assert_holds(&store, 0..kept, "whole").await;
        for n in kept..3 {
            assert_eq!(
                store.find(RecordKind::Object, &DOMAIN, &id(n)).unwrap(),
                None,
                "half of {n} at {cut}"
            );
        }
        assert_eq!(
            store.put(vec![object(2)]).await.unwrap()[0] == Put::Stored,
            kept < 3
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_recovers() {
    for space in (0..9000).step_by(487) {
        let (disk, data) = (Disk::default(), tempfile::tempdir().unwrap());
        let store = open(&disk, data.path(), small_packs());
        disk.set_space(Some(space));
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        for n in 0..20 {
            match store.put(vec![object(n)]).await {
                Ok(_) => taken.push(n),
                Err(StoreError::NoSpace) => refused.push(n),
                Err(other) => panic!("space {space}: {other}"),
            }
        }
        assert!(!refused.is_empty(), "space {space} was enough");
        assert_holds(&store, taken.iter().copied(), "while full").await;
        disk.set_space(None);
        for n in &refused {
            assert_eq!(store.put(vec![object(*n)]).await.unwrap(), [Put::Stored]);
        }
        store.close();
        let rest = disk.cut(0);
        let fresh = tempfile::tempdir().unwrap();
        assert_holds(
            &open(&rest, fresh.path(), small_packs()),
            0..20,
            "from the packs alone",
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_stops_the_store_and_nothing_unsure_is_acknowledged() {
    let (disk, data) = (Disk::default(), tempfile::tempdir().unwrap());
    let store = open(&disk, data.path(), StoreOptions::default());
    store.put(vec![object(1)]).await.unwrap();
    disk.0.lock().unwrap().fail_sync = true;
    assert_eq!(store.put(vec![object(2)]).await, Err(StoreError::Stopped));
    assert!(store.failed().await.contains("sync"), "the reason is told");
    assert_eq!(
        store.put(vec![object(3)]).await,
        Err(StoreError::Stopped),
        "no second try"
    );
    assert_holds(&store, [1], "reading goes on").await;
    drop(store);
    let left = disk.cut(0);
    let store = open(&left, data.path(), StoreOptions::default());
    assert_holds(&store, [1], "after a restart").await;
    assert_eq!(
        store.find(RecordKind::Object, &DOMAIN, &id(2)).unwrap(),
        None
    );
}

fn rows(data: &Path) -> (Vec<(RowKey, Row)>, u64) {
    let index = Index::open(&Directory::open(data).unwrap(), "index.redb").unwrap();
    let kinds = [
        RecordKind::Object,
        RecordKind::Commit,
        RecordKind::Link,
        RecordKind::Slot,
        RecordKind::Lease,
    ];
    let all = kinds
        .iter()
        .flat_map(|kind| index.list(*kind).unwrap())
        .collect();
    let usage = index.usage(&DOMAIN).unwrap();
    index.close().unwrap();
    (all, usage)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_made_anew_equals_the_one_that_grew() {
    let (disk, data) = (Disk::default(), tempfile::tempdir().unwrap());
    let store = open(&disk, data.path(), small_packs());
    let control =
        |kind, n: u32, seq: u8| Record::new(kind, id(n), [0; 32], Bytes::from(vec![seq; 60]));
    for n in 0..40 {
        store.put(vec![object(n), object(n % 7)]).await.unwrap();
        store
            .put(vec![
                control(RecordKind::Slot, n % 3, n as u8),
                control(RecordKind::Lease, n % 5, n as u8),
            ])
            .await
            .unwrap();
        if n % 4 == 0 {
            let gone = Record::new(
                RecordKind::Tombstone,
                DOMAIN,
                id(n / 2),
                Bytes::from_static(b"damaged"),
            );
            store.put(vec![gone]).await.unwrap();
            assert_eq!(
                store.find(RecordKind::Object, &DOMAIN, &id(n / 2)).unwrap(),
                None,
                "gone at once"
            );
            assert!(store.totals().is_ok());
        }
        if n % 8 == 0 {
            assert_eq!(
                store.put(vec![object(n / 2)]).await.unwrap(),
                [Put::Stored],
                "and takes a new copy"
            );
        }
    }
    store.close();
    let grown = rows(data.path());
    assert!(grown.0.len() > 30 && disk.list().unwrap().len() > 5);
    let slot = grown
        .0
        .iter()
        .find(|(key, _)| key.kind == RecordKind::Slot && key.owner == id(0))
        .unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let store = open(&disk.cut(0), fresh.path(), small_packs());
    assert_eq!(
        store
            .read(RecordKind::Slot, &id(0), &[0; 32])
            .await
            .unwrap(),
        Some(Bytes::from(vec![39; 60]))
    );
    store.close();
    let anew = rows(fresh.path());
    assert_eq!(
        anew.0.iter().find(|(key, _)| key == &slot.0),
        Some(slot),
        "the newest counts"
    );
    assert_eq!(anew, grown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_of_another_store_is_refused() {
    let (one, two) = (Disk::default(), Disk::default());
    for disk in [&one, &two] {
        let data = tempfile::tempdir().unwrap();
        let store = open(disk, data.path(), small_packs());
        for n in 0..40 {
            store.put(vec![object(n)]).await.unwrap();
        }
        store.close();
    }
    let stray = Arc::clone(&two.0.lock().unwrap().names["0000000000000002.pack"]);
    one.0
        .lock()
        .unwrap()
        .names
        .insert("0000000000000002.pack".into(), stray);
    let data = tempfile::tempdir().unwrap();
    let refused = Store::open_split(
        Arc::new(one),
        &Directory::open(data.path()).unwrap(),
        small_packs(),
    );
    assert!(refused.is_err_and(|error| error.to_string().contains("another store")));
}
