//! The store through stops, crashes and a lost index: what was acknowledged is there.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

use bytes::Bytes;
use sealdrive_pack::{Record, RecordKind};
use sealdrive_server::store::{Put, Store};

fn object(n: u32) -> Record {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&n.to_le_bytes());
    let payload: Vec<u8> = (0..5000u32)
        .map(|i| (i.wrapping_mul(n + 1) >> 3) as u8)
        .collect();
    Record::new(RecordKind::Object, [7; 32], id, Bytes::from(payload))
}

async fn assert_holds(store: &Store, numbers: std::ops::Range<u32>) {
    for n in numbers {
        let want = object(n);
        let found = store
            .read(RecordKind::Object, &want.owner, &want.id)
            .await
            .expect("readable");
        assert_eq!(found.as_ref(), Some(want.payload()), "object {n}");
    }
}

/// A clean end: the database is let go of.
fn stop(store: Store) {
    store.close();
}

/// What a crash leaves: a copy of the directory as it is while the store runs.
fn crash_copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("typed").is_dir() {
            crash_copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_objects_survive_a_crash_and_a_lost_index() {
    let dir = tempfile::tempdir().expect("made");
    let live = dir.path().join("live");
    std::fs::create_dir_all(&live).expect("made");
    let store = Store::open(&live).expect("opens").store;
    for first in (0..200).step_by(20) {
        let puts = store
            .put((first..first + 20).map(object).collect())
            .await
            .expect("stored");
        assert!(puts.iter().all(|put| *put == Put::Stored));
    }
    let again = store
        .put(vec![object(3), object(1000), object(1000)])
        .await
        .expect("stored");
    assert_eq!(
        again[0],
        Put::Exists {
            hash: *object(3).hash()
        }
    );
    assert_eq!(again[1], Put::Stored);
    assert_eq!(
        again[2],
        Put::Exists {
            hash: *object(1000).hash()
        },
        "twice in one group"
    );
    let crashed = dir.path().join("crashed");
    crash_copy(&live, &crashed);
    stop(store);

    for data in [&live, &crashed] {
        let opened = Store::open(data).expect("opens again");
        assert_eq!(opened.damage, 0);
        assert_holds(&opened.store, 0..200).await;
        opened.store.close();
        drop(opened);
        let rebuilt = sealdrive_server::store::rebuild(data).expect("rebuilt");
        assert_eq!(
            (rebuilt.rows, rebuilt.damage),
            (201, 0),
            "the packs alone tell the same"
        );
        let opened = Store::open(data).expect("opens after rebuild");
        assert_holds(&opened.store, 0..200).await;
        let more = opened
            .store
            .put(vec![object(2000)])
            .await
            .expect("takes more");
        assert_eq!(more, [Put::Stored]);
        stop(opened.store);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_cut_off_and_a_damaged_record_is_never_served() {
    let dir = tempfile::tempdir().expect("made");
    let store = Store::open(dir.path()).expect("opens").store;
    store
        .put((0..10).map(object).collect())
        .await
        .expect("stored");
    stop(store);
    let pack = std::fs::read_dir(dir.path().join("packs"))
        .expect("listed")
        .next()
        .expect("one")
        .expect("listed")
        .path();
    let whole = std::fs::read(&pack).expect("read");
    let mut torn = whole.clone();
    torn.extend_from_slice(&whole[64..164]);
    std::fs::write(&pack, &torn).expect("written");
    let opened = Store::open(dir.path()).expect("opens");
    assert_holds(&opened.store, 0..10).await;
    opened
        .store
        .put(vec![object(10)])
        .await
        .expect("goes on behind the tail");
    assert_holds(&opened.store, 0..11).await;
    stop(opened.store);

    let mut flipped = std::fs::read(&pack).expect("read");
    let at = flipped.len() / 2;
    flipped[at] ^= 1;
    std::fs::write(&pack, &flipped).expect("written");
    let opened = Store::open(dir.path()).expect("still opens");
    let mut lost = 0;
    for n in 0..11 {
        let want = object(n);
        match opened
            .store
            .read(RecordKind::Object, &want.owner, &want.id)
            .await
            .expect("answered")
        {
            Some(found) => assert_eq!(found, *want.payload(), "wrong bytes served"),
            None => lost += 1,
        }
    }
    assert_eq!(lost, 1, "exactly the damaged one is missing");
    stop(opened.store);
}

/// The power failed while the index grew: its file was left with a length between two pages, the database took it for
/// corrupted, and the server did not start.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_a_torn_length_opens() {
    let dir = tempfile::tempdir().expect("made");
    let live = dir.path().join("live");
    std::fs::create_dir_all(&live).expect("made");
    let store = Store::open(&live).expect("opens").store;
    store.put((0..50).map(object).collect()).await.unwrap();
    let torn = dir.path().join("torn");
    crash_copy(&live, &torn);
    stop(store);
    let index = std::fs::File::options()
        .write(true)
        .open(torn.join("index.redb"))
        .unwrap();
    index
        .set_len(index.metadata().unwrap().len() + 209)
        .unwrap();
    let opened = Store::open(&torn).expect("opens");
    assert_eq!(opened.damage, 0);
    assert_holds(&opened.store, 0..50).await;
    stop(opened.store);
}
