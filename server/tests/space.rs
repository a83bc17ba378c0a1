//! A disk that is full, or fails once, under the index: what was acknowledged is there, reading goes on, nothing has to
//! be started again when there is space, and a sound index stays one.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::io::{self, ErrorKind, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealdrive_pack::{Directory, Medium, MediumFile, Record, RecordKind};
use sealdrive_server::store::{Put, Store, StoreError, StoreOptions};

/// What is wrong with a disk.
struct Trouble {
    /// Nothing is written any more, but over the first page of a file.
    full: AtomicBool,
    /// How much space it says it has.
    free: Mutex<Option<u64>>,
    refused: AtomicU64,
    /// Questions for a length that are answered before one fails.
    spared: AtomicU64,
}

impl Default for Trouble {
    fn default() -> Self {
        Self {
            full: AtomicBool::new(false),
            free: Mutex::new(None),
            refused: AtomicU64::new(0),
            spared: AtomicU64::new(u64::MAX),
        }
    }
}

struct Moody(Arc<dyn Medium>, Arc<Trouble>);
struct MoodyFile(Arc<dyn MediumFile>, Arc<Trouble>);

impl Moody {
    fn file(&self, file: Arc<dyn MediumFile>) -> Arc<dyn MediumFile> {
        Arc::new(MoodyFile(file, Arc::clone(&self.1)))
    }
}

impl Trouble {
    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Medium for Moody {
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.1.room()?;
        Ok(self.file(self.0.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        Ok(self.file(self.0.open(name)?))
    }
    fn directory(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        let inner = self.0.directory(name)?;
        Ok(Arc::new(Self(inner, Arc::clone(&self.1))))
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn remove_directory(&self, name: &str) -> io::Result<()> {
        self.0.remove_directory(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }
    fn free(&self) -> io::Result<u64> {
        match *self.1.free.lock().unwrap() {
            Some(free) => Ok(free),
            None => self.0.free(),
        }
    }
}

impl MediumFile for MoodyFile {
    fn append(&self, end: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.1.room()?;
        self.0.append(end, parts)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // The header of a database is written over in its place.
        if offset > 0 {
            self.1.room()?;
        }
        self.0.write_at(bytes, offset)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
    fn len(&self) -> io::Result<u64> {
        match self.1.spared.load(Ordering::SeqCst) {
            0 => {
                self.1.spared.store(u64::MAX, Ordering::SeqCst);
                return Err(io::Error::other("EIO"));
            }
            u64::MAX => {}
            left => self.1.spared.store(left - 1, Ordering::SeqCst),
        }
        self.0.len()
    }
    fn try_lock(&self) -> io::Result<bool> {
        self.0.try_lock()
    }
    fn write_behind(&self, from: u64, len: u64) {
        self.0.write_behind(from, len)
    }
}

const DOMAIN: [u8; 32] = [7; 32];

fn id(n: u32) -> [u8; 32] {
    *blake3::hash(&n.to_be_bytes()).as_bytes()
}

fn object(n: u32) -> Record {
    let payload = id(n).repeat(20);
    Record::new(RecordKind::Object, DOMAIN, id(n), Bytes::from(payload))
}

/// Packs on a good disk, the index on a moody one.
struct Rig {
    dir: tempfile::TempDir,
    trouble: Arc<Trouble>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["packs", "data"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let trouble = Arc::default();
        Self { dir, trouble }
    }

    fn medium(&self, name: &str) -> Arc<dyn Medium> {
        Arc::new(Directory::open(&self.dir.path().join(name)).unwrap())
    }

    fn try_open(&self) -> Result<Store, sealdrive_server::store::OpenError> {
        let data = Moody(self.medium("data"), Arc::clone(&self.trouble));
        let options = StoreOptions {
            index_reserve: 1 << 20,
            ..StoreOptions::default()
        };
        Store::open_split(self.medium("packs"), &data, options).map(|opened| opened.store)
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }
}

async fn holds(store: &Store, numbers: impl IntoIterator<Item = u32>) {
    for n in numbers {
        let found = store.read(RecordKind::Object, &DOMAIN, &id(n)).await;
        assert_eq!(found.unwrap().as_ref(), Some(object(n).payload()), "{n}");
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}

/// Story: a disk under the index was filled by somebody else, one commit of the index failed, and the server stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_index_stops_nothing() {
    let rig = Rig::new();
    let store = rig.try_open().unwrap();
    store.put((0..100).map(object).collect()).await.unwrap();
    until("indexed", || store.totals().unwrap().0 == 100).await;
    rig.trouble.full.store(true, Ordering::SeqCst);
    for round in 1..5 {
        let some = (round * 100..round * 100 + 100).map(object).collect();
        let put = store.put(some).await.unwrap();
        assert!(put.iter().all(|put| *put == Put::Stored));
        let before = rig.trouble.refused.load(Ordering::SeqCst);
        let refused = || rig.trouble.refused.load(Ordering::SeqCst) > before;
        until("the index meets the full disk", refused).await;
        holds(&store, 0..round * 100 + 100).await;
    }
    assert_eq!(store.failure(), None);
    rig.trouble.full.store(false, Ordering::SeqCst);
    until("indexed", || store.totals().is_ok_and(|t| t.0 == 500)).await;
    assert_eq!(store.failure(), None);
    holds(&store, 0..500).await;
    store.close();
    // Full again at the end: it ends all the same, and the next start replays the packs.
    let store = rig.try_open().unwrap();
    rig.trouble.full.store(true, Ordering::SeqCst);
    store.put((500..600).map(object).collect()).await.unwrap();
    store.close();
    assert_eq!(store.failure(), None);
    rig.trouble.full.store(false, Ordering::SeqCst);
    holds(&rig.try_open().unwrap(), 0..600).await;
    assert!(!exists(&rig.data().join("index.damaged")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_full_disk_is_an_error_and_no_damage() {
    let rig = Rig::new();
    let store = rig.try_open().unwrap();
    store.put((0..100).map(object).collect()).await.unwrap();
    store.abandon();
    drop(store);
    rig.trouble.full.store(true, Ordering::SeqCst);
    assert!(rig.try_open().is_err());
    assert!(!exists(&rig.data().join("index.damaged")));
    rig.trouble.full.store(false, Ordering::SeqCst);
    holds(&rig.try_open().unwrap(), 0..100).await;
}

/// Story: one EIO when the index was asked for its length set a sound index aside.
#[tokio::test(flavor = "multi_thread")]
async fn one_failed_question_for_its_length_is_no_damage_of_the_index() {
    let mut failed = 0;
    for question in 0..8 {
        let rig = Rig::new();
        let store = rig.try_open().unwrap();
        store.put((0..100).map(object).collect()).await.unwrap();
        store.close();
        drop(store);
        rig.trouble.spared.store(question, Ordering::SeqCst);
        failed += u32::from(rig.try_open().is_err());
        rig.trouble.spared.store(u64::MAX, Ordering::SeqCst);
        assert!(!exists(&rig.data().join("index.damaged")), "{question}");
        holds(&rig.try_open().unwrap(), 0..100).await;
    }
    assert!(failed > 2, "{failed} starts met it");
}

/// Leases, commits and logins are small: they go on when objects do not, and then are refused too, for a time.
#[tokio::test(flavor = "multi_thread")]
async fn a_nearly_full_disk_refuses_objects_before_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let trouble = Arc::<Trouble>::default();
    let packs = Moody(
        Arc::new(Directory::open(dir.path()).unwrap()),
        Arc::clone(&trouble),
    );
    let data = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        reserve_bytes: 1000,
        index_reserve: 0,
        ..StoreOptions::default()
    };
    let data = Directory::open(data.path()).unwrap();
    let opened = Store::open_split(Arc::new(packs), &data, options).unwrap();
    let store = opened.store;
    let lease = || {
        Record::new(
            RecordKind::Lease,
            id(1),
            [0; 32],
            Bytes::from_static(&[1; 60]),
        )
    };
    let free = |bytes| *trouble.free.lock().unwrap() = Some(bytes);
    free(1000);
    assert_eq!(store.put(vec![object(1)]).await.unwrap(), [Put::Stored]);
    free(999);
    assert_eq!(store.put(vec![object(2)]).await, Err(StoreError::NoSpace));
    assert_eq!(store.put(vec![lease()]).await.unwrap(), [Put::Stored]);
    free(249);
    assert_eq!(store.put(vec![lease()]).await, Err(StoreError::NoSpace));
    // Who asks whether it is alive is not told that it is not.
    assert_eq!(store.pulse().await, Ok(()));
    holds(&store, [1]).await;
    free(1000);
    assert_eq!(store.put(vec![object(2)]).await.unwrap(), [Put::Stored]);
}
