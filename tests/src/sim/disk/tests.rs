//! The disk itself: what was synced stays, what was not may go in every way promised, and nothing else.

use std::io::IoSlice;

use sealdrive_pack::MediumFile;

use super::*;

fn disk(unit: usize) -> Disk {
    Disk::new(
        Config {
            unit,
            ..Config::default()
        },
        seeded(1),
    )
}

fn append(file: &dyn MediumFile, bytes: &[u8]) {
    let end = file.len().unwrap();
    file.append(end, &mut [IoSlice::new(bytes)]).unwrap();
}

#[test]
fn what_was_synced_survives_and_the_rest_in_every_possible_way() {
    let disk = disk(1);
    let root = disk.root();
    let file = root.create("x").unwrap();
    append(&*file, b"synced");
    file.sync().unwrap();
    root.sync_dir().unwrap();
    append(&*file, b"-later");
    file.write_at(b"S", 0).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let left = disk
            .power_cut(Survivors::Some(seed))
            .root()
            .read("x")
            .unwrap();
        assert!(left.len() >= 6 && &left[1..6] == b"ynced", "{left:?}");
        let later = left[6..].iter().zip(b"-later");
        assert!(
            later
                .into_iter()
                .all(|(got, want)| got == want || *got == 0),
            "{left:?}"
        );
        seen.insert(left);
    }
    for one in [
        &b"synced"[..],
        b"Synced",
        b"synced-later",
        b"Synced-later",
        b"synced\0\0\0\0\0\0",
    ] {
        assert!(
            seen.contains(one),
            "{:?} never came",
            String::from_utf8_lossy(one)
        );
    }
    assert!(
        seen.iter().any(|left| left.ends_with(b"\0\0r")),
        "the end without its beginning"
    );
    let left = disk.power_cut(Survivors::Nothing).root().read("x").unwrap();
    assert_eq!(left, b"synced");
}

#[test]
fn sectors_are_whole() {
    let disk = disk(512);
    let root = disk.root();
    let file = root.create("x").unwrap();
    file.write_at(&[1; 4096], 0).unwrap();
    file.sync().unwrap();
    root.sync_dir().unwrap();
    file.write_at(&[2; 3000], 100).unwrap();
    let mut torn = 0;
    for seed in 0..200 {
        let left = disk
            .power_cut(Survivors::Some(seed))
            .root()
            .read("x")
            .unwrap();
        for (n, sector) in left.chunks(512).enumerate() {
            let inner = &sector
                [if n == 0 { 100 } else { 0 }..if n == 6 { 28 } else { 512.min(sector.len()) }];
            if n < 6 {
                assert!(
                    inner.iter().all(|b| *b == inner[0]),
                    "sector {n} of seed {seed} is torn"
                );
            }
        }
        torn += u32::from(left[..3100].contains(&2) && left[100..3000].contains(&1));
    }
    assert!(torn > 20);
}

#[test]
fn names_need_their_directory_and_go_in_order() {
    let disk = disk(1);
    let root = disk.root();
    let (one, two) = (
        root.directory("one").unwrap(),
        root.directory("two").unwrap(),
    );
    root.sync_dir().unwrap();
    one.create("a").unwrap();
    one.sync_dir().unwrap();
    one.create("b").unwrap();
    root.rename("one/a", "two/a").unwrap();
    two.create("c").unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        seen.insert(disk.power_cut(Survivors::Some(seed)).paths());
    }
    let paths = |all: &[&str]| all.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    let expected = [
        paths(&["/one/a"]),
        paths(&["/one/a", "/one/b"]),
        paths(&["/one/b", "/two/a"]),
        paths(&["/one/b", "/two/a", "/two/c"]),
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);
    two.sync_dir().unwrap();
    let left = disk.power_cut(Survivors::Nothing).paths();
    assert_eq!(
        left,
        paths(&["/two/a", "/two/c"]),
        "b was made in the other directory"
    );
}

#[test]
fn directories_move_and_what_is_durable_in_them_stands_where_they_stand() {
    let disk = disk(1);
    let root = disk.root();
    let make = |name: &str| root.directory(name).unwrap();
    let (one, two) = (make("one"), make("two"));
    root.sync_dir().unwrap();
    one.directory("in").unwrap().create("deep").unwrap();
    one.directory("in").unwrap().sync_dir().unwrap();
    one.create("a").unwrap();
    one.sync_dir().unwrap();
    one.create("lost").unwrap();
    assert!(root.rename("one", "two").is_err(), "a name that is in use");
    root.rename("one", "two/moved").unwrap();
    let moved = two.directory("moved").unwrap();
    moved.create("later").unwrap();
    let left = |survivors| disk.power_cut(survivors).paths();
    let at = |dir: &str, names: &[&str]| -> Vec<String> {
        names.iter().map(|name| format!("{dir}/{name}")).collect()
    };
    assert_eq!(left(Survivors::Nothing), at("/one", &["a", "in/deep"]));
    let all = ["a", "in/deep", "later", "lost"];
    assert_eq!(left(Survivors::Everything), at("/two/moved", &all));
    // Under its new path it is the same directory: what was made before it moved is durable, too.
    moved.sync_dir().unwrap();
    assert_eq!(left(Survivors::Nothing), at("/one", &all));
    // The directory that now has the old path is another one.
    let another = make("one");
    another.create("new").unwrap();
    two.sync_dir().unwrap();
    assert_eq!(left(Survivors::Nothing), at("/two/moved", &all));
    root.remove_directory("two").unwrap();
    assert_eq!(disk.paths(), ["/one/new"]);
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        seen.insert(left(Survivors::Some(seed)).len());
    }
    assert_eq!(seen, (1..=5).collect(), "it goes in any number of steps");
    root.sync_dir().unwrap();
    assert_eq!(left(Survivors::Nothing), [""; 0]);
}

#[test]
fn a_directory_without_a_durable_name_is_lost_with_all_in_it() {
    let disk = disk(1);
    let outer = disk.root().directory("outer").unwrap();
    let inner = outer.directory("inner").unwrap();
    inner.create("file").unwrap();
    inner.sync_dir().unwrap();
    outer.sync_dir().unwrap();
    assert_eq!(disk.power_cut(Survivors::Nothing).paths(), [""; 0]);
    disk.root().sync_dir().unwrap();
    let left = disk.power_cut(Survivors::Nothing);
    assert_eq!(left.paths(), ["/outer/inner/file"]);
}

#[test]
fn a_failed_sync_loses_what_reads_still_show() {
    for seed in 0..50 {
        let disk = Disk::new(Config::default(), seeded(seed));
        let root = disk.root();
        let file = root.create("x").unwrap();
        root.sync_dir().unwrap();
        append(&*file, &[7; 100]);
        disk.fail(Op::Sync, 1, Trouble::Broken);
        assert!(file.sync().is_err());
        assert_eq!(root.read("x").unwrap(), [7; 100]);
        append(&*file, &[8; 10]);
        file.sync().unwrap();
        let left = disk
            .power_cut(Survivors::Everything)
            .root()
            .read("x")
            .unwrap();
        assert_eq!((left.len(), &left[100..]), (110, &[8; 10][..]));
        file.drop_cache().unwrap();
        assert_eq!(root.read("x").unwrap(), left, "memory and disk agree again");
    }
    let lost = (0..50).filter(|seed| {
        let disk = Disk::new(Config::default(), seeded(*seed));
        let file = disk.root().create("x").unwrap();
        append(&*file, &[7; 100]);
        disk.fail(Op::Sync, 1, Trouble::Broken);
        let _ = file.sync();
        file.sync().unwrap();
        file.drop_cache().unwrap();
        disk.root().read("x").unwrap() != [7; 100]
    });
    assert!(lost.count() > 10);
}

#[test]
fn space_runs_out_and_comes_back() {
    let disk = disk(1);
    let root = disk.root();
    disk.set_capacity(3 * BLOCK);
    let file = root.create("x").unwrap();
    file.truncate(100 * BLOCK).unwrap();
    file.write_at(&[1; 2 * BLOCK as usize], 5 * BLOCK).unwrap();
    let full = file
        .write_at(&[2; 2 * BLOCK as usize], 10 * BLOCK)
        .unwrap_err();
    assert!(sealdrive_pack::is_no_space(&full));
    file.write_at(&[3; 10], 5 * BLOCK).unwrap();
    assert!(root.create("y").is_err());
    assert_eq!(disk.used(), 3 * BLOCK);
    root.remove("x").unwrap();
    assert_eq!(disk.used(), 3 * BLOCK, "it is still open");
    drop(file);
    assert_eq!((disk.used(), root.free().unwrap()), (0, 3 * BLOCK));
    root.create("y").unwrap();
    assert_eq!(
        disk.counters()["write: ENOSPC"] + disk.counters()["create: ENOSPC"],
        2
    );
}

#[test]
fn an_append_cut_short_is_done_again_from_where_it_began_and_from_nowhere_else() {
    let disk = disk(1);
    let file = disk.root().create("x").unwrap();
    append(&*file, b"first");
    disk.set_capacity(disk.used());
    let again = [vec![1; 5000], vec![2; 10]];
    let at = |end: u64, bytes: &[u8]| file.append(end, &mut [IoSlice::new(bytes)]);
    assert!(at(5, &again[0]).is_err() && file.len().unwrap() == BLOCK);
    disk.set_capacity(u64::MAX);
    at(5, &again[1]).unwrap();
    // Shorter than what was left: the next one still begins behind it.
    at(15, b"next").unwrap();
    let mut found = vec![0; 19];
    file.read_at(&mut found, 0).unwrap();
    assert_eq!(found, [b"first", &again[1][..], b"next"].concat());
    let elsewhere = std::panic::AssertUnwindSafe(|| at(5, b"gap"));
    assert!(std::panic::catch_unwind(elsewhere).is_err());
}

#[test]
fn a_lost_truncation_takes_what_came_after_it_along() {
    let disk = disk(1);
    let root = disk.root();
    let file = root.create("x").unwrap();
    append(&*file, b"old old");
    file.sync().unwrap();
    root.sync_dir().unwrap();
    file.truncate(3).unwrap();
    append(&*file, b" new");
    for seed in 0..200 {
        let left = disk
            .power_cut(Survivors::Some(seed))
            .root()
            .read("x")
            .unwrap();
        assert!(left.starts_with(b"old"), "{left:?}");
        let rest = &left[3..];
        let mixed = rest.contains(&b'w') && rest.contains(&b'd');
        assert!(
            !mixed && (rest == b" old" || !rest.contains(&b'd')),
            "{left:?}"
        );
    }
}

#[test]
fn locks_go_with_their_handle_and_the_digest_tells_worlds_apart() {
    let disk = disk(1);
    let root = disk.root();
    let (one, two) = (root.create("lock").unwrap(), root.open("lock").unwrap());
    assert!(one.try_lock().unwrap() && !two.try_lock().unwrap());
    drop(one);
    assert!(two.try_lock().unwrap());
    let before = disk.digest();
    two.write_at(b"x", 0).unwrap();
    assert_ne!(disk.digest(), before);
    disk.halt();
    assert!(two.sync().is_err() && root.create("z").is_err());
}
