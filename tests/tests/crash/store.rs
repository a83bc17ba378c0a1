//! The server's store on the same disk, packs and index: what was acknowledged is there, whatever else is.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sealdrive_pack::{Record, RecordKind};
use sealdrive_server::store::{POINTS, Put, Store, StoreError, StoreOptions};
use sealdrive_tests::sim::disk::{Config, Disk, Op, Survivors, Trouble, seeded};

use crate::rig::locked;

const DOMAIN: [u8; 32] = [7; 32];

/// Point → what must hold after a power cut there. Always: every acknowledged record is found, whole and right; of the
/// others each is found whole or not at all; the store goes on. `true`: the group that was appended is there, too.
const TABLE: &[(&str, bool)] = &[
    ("server.created", false),
    ("server.appended", false),
    ("server.synced", true),
    ("server.before-ack", true),
    ("server.acked", true),
    ("server.before-index", false),
    ("server.indexed", false),
    ("server.sealed", false),
];

fn whole(point: &str) -> bool {
    TABLE.contains(&(point, true))
}

fn id(n: u32) -> [u8; 32] {
    *blake3::hash(&n.to_be_bytes()).as_bytes()
}

/// Objects, with a commit among them now and then: control records take the same way.
fn record(n: u32) -> Record {
    let len = 50 + n as usize * 37 % 900;
    let payload = blake3::hash(&n.to_le_bytes())
        .as_bytes()
        .repeat(len / 32 + 1);
    let kind = if n % 5 == 4 {
        RecordKind::Commit
    } else {
        RecordKind::Object
    };
    Record::new(kind, DOMAIN, id(n), Bytes::from(payload))
}

fn options(crash: Option<sealdrive_server::store::CrashHook>) -> StoreOptions {
    StoreOptions {
        pack_bytes: 4000,
        index_reserve: 8 << 10,
        crash,
        ..StoreOptions::default()
    }
}

fn open(disk: &Disk, at: &str) -> Store {
    let opened = Store::open_on(&*disk.root(), options(None));
    let opened = opened.unwrap_or_else(|e| panic!("{at}: {e}"));
    assert_eq!(opened.damage, 0, "{at}: a power cut is no damage");
    opened.store
}

async fn holds(store: &Store, n: u32, at: &str) -> bool {
    let wanted = record(n);
    let found = store.read(wanted.kind, &DOMAIN, &id(n)).await.unwrap();
    if let Some(found) = &found {
        assert_eq!(
            found,
            wanted.payload(),
            "{at}: record {n} is not what was sent"
        );
    }
    found.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_of_the_server_at_every_step_loses_nothing_acknowledged() {
    type Cut = (&'static str, Survivors, Disk, u32, u32);
    let disk = Disk::new(Config::default(), seeded(3));
    // Acknowledged, sent, and appended.
    let progress = Arc::new(Mutex::new((0u32, 0u32, 0u32)));
    let cuts: Arc<Mutex<Vec<Cut>>> = Arc::default();
    let hook = {
        let (disk, progress, cuts) = (disk.clone(), Arc::clone(&progress), Arc::clone(&cuts));
        move |point: &'static str| {
            let number = locked(&cuts).len() as u64;
            if point == "server.appended" {
                let mut progress = locked(&progress);
                progress.2 = progress.1;
            }
            for survivors in [Survivors::Nothing, Survivors::Some(number)] {
                let (left, (acked, sent, appended)) =
                    disk.power_cut_with(survivors, |_| *locked(&progress));
                locked(&cuts).push((
                    point,
                    survivors,
                    left,
                    acked.max(if whole(point) { appended } else { 0 }),
                    sent,
                ));
            }
        }
    };
    let store = Store::open_on(&*disk.root(), options(Some(Arc::new(hook))))
        .unwrap()
        .store;
    for n in 0..14 {
        locked(&progress).1 = 2 * n + 2;
        store
            .put(vec![record(2 * n), record(2 * n + 1)])
            .await
            .unwrap();
        locked(&progress).0 = 2 * n + 2;
    }
    store.close();
    let cuts = std::mem::take(&mut *locked(&cuts));
    let points: BTreeSet<&str> = cuts.iter().map(|cut| cut.0).collect();
    assert_eq!(points, POINTS.iter().copied().collect());
    println!("{} power cuts, {:?}", cuts.len(), disk.counters());
    for (point, survivors, left, least, sent) in cuts {
        let at = format!("power cut at {point} with {survivors:?} left");
        let store = open(&left, &at);
        for n in 0..sent {
            assert!(
                holds(&store, n, &at).await || n >= least,
                "{at}: record {n} is lost"
            );
        }
        assert_eq!(
            store.put(vec![record(500)]).await.unwrap(),
            [Put::Stored],
            "{at}: goes on"
        );
        store.close();
        // The index alone is never needed: without it the packs give the same.
        left.root().remove("index.redb").unwrap();
        let store = open(&left, &at);
        for n in (0..least).chain([500]) {
            assert!(
                holds(&store, n, &at).await,
                "{at}: record {n} is not in the packs"
            );
        }
    }
}

/// One operation fails; what was acknowledged is there before and after a power cut.
async fn one_failure(op: Op, n: u64, trouble: Trouble) -> bool {
    let at = format!("{trouble:?} at {op:?} {n}");
    let disk = Disk::new(Config::default(), seeded(n));
    disk.fail(op, n, trouble);
    let mut acknowledged = Vec::new();
    if let Ok(opened) = Store::open_on(&*disk.root(), options(None)) {
        let store = opened.store;
        for n in 0..24 {
            match store.put(vec![record(n)]).await {
                Ok(_) => acknowledged.push(n),
                Err(StoreError::NoSpace | StoreError::Stopped) => {}
                Err(other) => panic!("{at}: {other}"),
            }
        }
        for n in &acknowledged {
            assert!(
                holds(&store, *n, &at).await,
                "{at}: {n} is gone while it runs"
            );
        }
        store.close();
    }
    let met = disk.done(op) >= n;
    for left in [Survivors::Nothing, Survivors::Some(n)] {
        let store = open(&disk.power_cut(left), &format!("{at}, {left:?}"));
        for n in &acknowledged {
            assert!(holds(&store, *n, &at).await, "{at}, {left:?}: {n} is lost");
        }
    }
    met
}

#[tokio::test(flavor = "multi_thread")]
async fn no_failed_write_or_sync_of_the_server_is_acknowledged() {
    for (op, trouble) in [
        (Op::Write, Trouble::Broken),
        (Op::Write, Trouble::Full),
        (Op::Sync, Trouble::Broken),
        (Op::SyncDir, Trouble::Broken),
        (Op::Create, Trouble::Full),
    ] {
        let mut n = 1;
        while one_failure(op, n, trouble).await {
            n += 1;
        }
        println!("{trouble:?} at {op:?}: {} runs", n - 1);
        assert!(n > 3);
    }
}
