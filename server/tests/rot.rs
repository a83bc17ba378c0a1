//! Bit rot in a store, systematically: every file damaged at many places, then opened and read.
//!
//! The store always opens, what is read is right or reported as missing, what is damaged takes a new copy under its id,
//! and the index is healed without loss because the packs hold all it did.

// What a test did not expect is to stop it, also in its helpers.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sealdrive_pack::{Record, RecordKind};
use sealdrive_proto::id::DomainId;
use sealdrive_server::store::{Put, Store, StoreOptions};

const DOMAIN: [u8; 32] = [7; 32];
/// Objects in the store: a few sealed packs and one that is open.
const OBJECTS: u32 = 40;

fn object(n: u32) -> Record {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&n.to_le_bytes());
    let payload: Vec<u8> = (0..3000 + n)
        .map(|i| (i.wrapping_mul(n + 1) >> 3) as u8)
        .collect();
    Record::new(RecordKind::Object, DOMAIN, id, Bytes::from(payload))
}

fn options() -> StoreOptions {
    StoreOptions {
        pack_bytes: 40_000,
        // It holds nothing, and would be copied every time.
        index_reserve: 0,
        ..StoreOptions::default()
    }
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

fn load(dir: &Path, into: &mut Files) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            load(&path, into);
        } else {
            into.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
}

fn restore(dir: &Path, files: &Files) {
    std::fs::remove_dir_all(dir).unwrap();
    for (path, bytes) in files {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// Opens, reads everything, puts back what is missing, reads again. How many objects were missing.
async fn judge(dir: &Path, case: &str) -> u32 {
    let opened = Store::open_with(dir, options());
    let store = opened
        .unwrap_or_else(|error| panic!("{case}: {error}"))
        .store;
    let mut missing = Vec::new();
    for n in 0..OBJECTS {
        let want = object(n);
        match store
            .read(RecordKind::Object, &DOMAIN, &want.id)
            .await
            .unwrap()
        {
            Some(found) => assert!(found == want.payload(), "{case}: object {n} is another"),
            None => missing.push(n),
        }
    }
    let puts = store
        .put(missing.iter().map(|n| object(*n)).collect())
        .await
        .unwrap();
    assert!(
        puts.iter().all(|put| *put == Put::Stored),
        "{case}: counts as there"
    );
    for n in &missing {
        let found = store
            .read(RecordKind::Object, &DOMAIN, &object(*n).id)
            .await
            .unwrap();
        assert_eq!(
            found.as_ref(),
            Some(object(*n).payload()),
            "{case}: {n} is not healed"
        );
    }
    store.close();
    // What was put back survives, too, and nothing is wanted any more.
    let store = Store::open_with(dir, options())
        .unwrap_or_else(|error| panic!("{case}: {error}"))
        .store;
    for n in 0..OBJECTS {
        let found = store
            .read(RecordKind::Object, &DOMAIN, &object(n).id)
            .await
            .unwrap();
        assert_eq!(
            found.as_ref(),
            Some(object(n).payload()),
            "{case}: {n} at the next start"
        );
    }
    assert!(
        store.suspects(&DomainId(DOMAIN), 100).unwrap().is_empty(),
        "{case}"
    );
    store.close();
    missing.len() as u32
}

#[tokio::test(flavor = "multi_thread")]
async fn any_damage_to_any_file_costs_at_most_what_it_hit_and_is_healed_by_a_put() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    std::fs::create_dir(&dir).unwrap();
    let store = Store::open_with(&dir, options()).unwrap().store;
    for n in 0..OBJECTS {
        store.put(vec![object(n)]).await.unwrap();
    }
    store.close();
    let mut good = Files::new();
    load(&dir, &mut good);
    let packs = good
        .keys()
        .filter(|path| path.extension().is_some_and(|e| e == "pack"))
        .count();
    assert!(packs >= 3, "sealed ones and an open one");
    let full = std::env::var("SEALDRIVE_ROT").is_ok_and(|value| value == "full");
    let spread = if full { 400 } else { 12 };
    let (mut cases, mut lost) = (0, 0);
    for (path, bytes) in &good {
        let len = bytes.len();
        let is_pack = path.extension().is_some_and(|e| e == "pack");
        let structure = [0, 5, 9, 30, 60, 64, 70, 90, 150, 210];
        let mut at: Vec<usize> = (0..spread)
            .map(|part| len * part / spread)
            .chain(structure)
            .collect();
        at.extend([1, 9, 40, 60, 65, 130, 200].map(|back| len.saturating_sub(back)));
        at.retain(|at| *at < len);
        at.sort_unstable();
        at.dedup();
        let flips = at.iter().map(|at| {
            let mut bad = bytes.clone();
            bad[*at] ^= 1 << (at % 8);
            (format!("{} byte {at}", path.display()), Some(bad))
        });
        let cuts = at.iter().step_by(4).map(|at| {
            (
                format!("{} cut at {at}", path.display()),
                Some(bytes[..*at].to_vec()),
            )
        });
        let gone = std::iter::once((format!("{} gone", path.display()), None));
        for (case, bad) in flips.chain(cuts).chain(gone) {
            restore(&dir, &good);
            let (flipped, removed) = (
                bad.as_ref().is_some_and(|bad| bad.len() == len),
                bad.is_none(),
            );
            match bad {
                Some(bad) => std::fs::write(path, bad).unwrap(),
                None => std::fs::remove_file(path).unwrap(),
            }
            let missing = judge(&dir, &case).await;
            if is_pack {
                assert!(
                    !flipped || missing <= 1,
                    "{case}: {missing} objects for one byte"
                );
                assert!(!removed || missing > 0, "{case}: was anything read?");
            } else {
                assert_eq!(missing, 0, "{case}: the packs hold all that the index did");
            }
            cases += 1;
            lost += missing;
        }
    }
    println!("{cases} cases, {lost} objects put back");
}
