//! The client's store on the simulated disk: what a failed write leaves, and what may be believed after it.
//!
//! Invariant: a sync that answers well has made everything appended before it durable, whatever failed in between; a
//! record is in a pack whole or not at all.

use sealdrive::store::{Known, Local, NOTE_LEN, Store};
use sealdrive_proto::id::Sid;
use sealdrive_tests::sim::disk::{Config, Disk, Op, Survivors, Trouble, seeded};

use crate::engine_support::noise;

/// Bytes of copies: each pack of the cache takes an eighth.
const BUDGET: u64 = 4 << 20;

fn sid(n: u64) -> Sid {
    Sid(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn open(disk: &Disk) -> Store {
    Store::open(disk.root(), BUDGET).unwrap()
}

fn disk() -> Disk {
    Disk::new(Config::default(), seeded(1))
}

fn is_here(store: &Store, n: u64, len: usize) -> bool {
    matches!(store.read(&sid(n)).unwrap(), Local::Object(found, _) if found[..] == noise(n, len)[..])
}

/// A pack had been closed and not synced yet; the write of the next one's buffer failed at the beginning of a sync. The
/// sync was refused, the closed pack forgotten, and the next sync answered well without it.
#[test]
fn a_sync_that_could_not_begin_is_not_made_good_by_the_next() {
    for trouble in [Trouble::Full, Trouble::Broken] {
        let disk = disk();
        let store = open(&disk);
        store.put(sid(0), &[0; NOTE_LEN], &noise(0, 1000)).unwrap();
        // Copies take numbers, and an outbox pack that is far behind is closed.
        for n in 1..20 {
            let copy = noise(n, BUDGET as usize / 8);
            store.put_copy(sid(n), &copy).unwrap();
        }
        store
            .put(sid(50), &[0; NOTE_LEN], &noise(50, 1000))
            .unwrap();
        disk.fail(Op::Write, 1, trouble);
        assert!(store.sync().is_err(), "{trouble:?}");
        let again = store.sync();
        assert_eq!(again.is_ok(), trouble == Trouble::Full, "{trouble:?}");
        if again.is_ok() {
            let left = open(&disk.power_cut(Survivors::Nothing));
            for n in [0, 50] {
                assert!(is_here(&left, n, 1000), "{n} was synced");
            }
        } else {
            let more = store.put(sid(51), &[0; NOTE_LEN], &noise(51, 1000));
            assert!(more.is_err(), "nothing goes behind what is in doubt");
        }
    }
}

/// The disk was full in the middle of a copy. Its header stayed in the buffer, went into the pack before the next
/// record and swallowed it.
#[test]
fn a_copy_that_did_not_fit_leaves_the_next_ones_whole() {
    const LARGE: usize = 100_000;
    let disk = disk();
    let store = open(&disk);
    store.put_copy(sid(1), &noise(1, 5000)).unwrap();
    disk.set_capacity(disk.used() + 20_000);
    assert!(store.put_copy(sid(2), &noise(2, LARGE)).is_err());
    disk.set_capacity(Config::default().capacity);
    store.put_copy(sid(3), &noise(3, 5000)).unwrap();
    store.put_copy(sid(4), &noise(4, LARGE)).unwrap();
    let all = [(1, 5000), (3, 5000), (4, LARGE)];
    for (n, len) in all {
        assert!(is_here(&store, n, len), "{n}");
    }
    drop(store);
    let store = open(&disk);
    for (n, len) in all {
        assert!(is_here(&store, n, len), "{n} after a restart");
    }
    assert_eq!(store.known(&sid(2)).unwrap(), None::<Known>);
}
