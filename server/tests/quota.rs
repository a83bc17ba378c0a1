//! The quota: counted at the put itself, however far the index is behind, and whoever sends.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use sealdrive_pack::{Record, RecordKind};
use sealdrive_server::store::{CrashHook, Put, Store, StoreError, StoreOptions};

/// Bytes an owner may store.
const QUOTA: u64 = 100_000;
const OWNER: [u8; 32] = [7; 32];

fn id(n: u8) -> [u8; 32] {
    [n; 32]
}

fn object(owner: [u8; 32], n: u8, len: usize) -> Record {
    Record::new(RecordKind::Object, owner, id(n), Bytes::from(vec![n; len]))
}

fn tombstone(n: u8) -> Record {
    Record::new(
        RecordKind::Tombstone,
        OWNER,
        id(n),
        Bytes::from_static(b"damaged"),
    )
}

fn open(data: &Path, crash: Option<CrashHook>) -> Store {
    let options = StoreOptions {
        quota: Some(QUOTA),
        crash,
        ..StoreOptions::default()
    };
    Store::open_with(data, options).unwrap().store
}

/// Story: the count was taken from the index when a stream began, so what the index did not have yet was not counted,
/// and an object that had been refused was taken a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_index_does_not_have_yet_counts() {
    let dir = tempfile::tempdir().unwrap();
    let held = Arc::new(AtomicBool::new(true));
    let index = Arc::clone(&held);
    let hook: CrashHook = Arc::new(move |point| {
        while point == "server.before-index" && index.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
    });
    let store = open(dir.path(), Some(hook));
    let put = |records| store.put(records);
    let small = |n| object(OWNER, n, 9_000);
    for n in 0..11 {
        assert_eq!(put(vec![small(n)]).await.unwrap(), [Put::Stored]);
    }
    assert_eq!(put(vec![small(11)]).await, Err(StoreError::OverQuota));
    // All or nothing, though the first of the two would fit.
    let two = vec![object(OWNER, 12, 500), small(13)];
    assert_eq!(put(two).await, Err(StoreError::OverQuota));
    assert_eq!(
        put(vec![object(OWNER, 12, 500)]).await.unwrap(),
        [Put::Stored]
    );
    // What is there already takes nothing, and neither does what somebody else stores.
    let again = put((0..11).map(small).collect()).await.unwrap();
    assert!(again.iter().all(|put| matches!(put, Put::Exists { .. })));
    let other = object([8; 32], 1, 90_000);
    assert_eq!(put(vec![other]).await.unwrap(), [Put::Stored]);
    // Exactly the quota may be stored, and what is gone makes room.
    assert_eq!(
        put(vec![object(OWNER, 14, 500)]).await.unwrap(),
        [Put::Stored]
    );
    assert_eq!(
        put(vec![object(OWNER, 15, 1)]).await,
        Err(StoreError::OverQuota)
    );
    assert_eq!(put(vec![tombstone(3)]).await.unwrap(), [Put::Stored]);
    assert_eq!(put(vec![small(11)]).await.unwrap(), [Put::Stored]);
    assert_eq!(put(vec![small(3)]).await, Err(StoreError::OverQuota));
    held.store(false, Ordering::SeqCst);
    store.close();
}

/// Many at once: what one of them stores, the others find counted.
#[tokio::test(flavor = "multi_thread")]
async fn senders_side_by_side_share_one_quota() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), None);
    let puts = (0..40).map(|n| {
        let store = store.clone();
        tokio::spawn(async move { store.put(vec![object(OWNER, n, 9_000)]).await })
    });
    let mut stored = 0;
    for put in puts.collect::<Vec<_>>() {
        match put.await.unwrap() {
            Ok(put) => {
                assert_eq!(put, [Put::Stored]);
                stored += 1;
            }
            Err(error) => assert_eq!(error, StoreError::OverQuota),
        }
    }
    assert_eq!(stored, QUOTA / 9_000);
    store.close();
}

/// Puts, removals, clean stops and power cuts at random, against a map of what is stored.
#[tokio::test(flavor = "multi_thread")]
async fn the_count_is_that_of_a_plain_map() {
    let (mut refused, mut removed, mut starts) = (0, 0, 0);
    for seed in 1..13u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |most: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % most
        };
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path(), None);
        let mut there: BTreeMap<u8, u64> = BTreeMap::new();
        for _ in 0..60 {
            match below(12) {
                0 => {
                    if below(2) == 0 {
                        store.close();
                    } else {
                        store.abandon();
                    }
                    store = open(dir.path(), None);
                    starts += 1;
                }
                1 | 2 => {
                    let n = u8::try_from(below(24)).unwrap();
                    store.put(vec![tombstone(n)]).await.unwrap();
                    removed += u32::from(there.remove(&n).is_some());
                }
                _ => {
                    let sent: BTreeMap<u8, u64> = (0..=below(3))
                        .map(|_| (u8::try_from(below(24)).unwrap(), 1 + below(16_000)))
                        .collect();
                    let objects = sent
                        .iter()
                        .map(|(n, len)| object(OWNER, *n, usize::try_from(*len).unwrap()));
                    let mut new = sent.clone();
                    new.retain(|n, _| !there.contains_key(n));
                    let sum = |map: &BTreeMap<u8, u64>| map.values().sum::<u64>();
                    let fits = sum(&there) + sum(&new) <= QUOTA;
                    let done = store.put(objects.collect()).await;
                    if fits {
                        let stored = done.unwrap().into_iter().filter(|put| *put == Put::Stored);
                        assert_eq!(stored.count(), new.len(), "seed {seed}");
                        there.extend(new);
                    } else {
                        assert_eq!(done, Err(StoreError::OverQuota), "seed {seed}");
                        refused += 1;
                    }
                }
            }
        }
        store.close();
    }
    assert!(
        refused > 50 && removed > 20 && starts > 20,
        "{refused} refused, {removed} removed, {starts} starts"
    );
}
