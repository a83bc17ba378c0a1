//! Power cuts while a branch is set aside, while the server's state is adopted, and while the branch is dropped: before
//! every operation of the disk, with nothing or some of what was not synced.
//!
//! Must hold after each: the next mount shows what the other machine committed, and what this one had fsynced and not
//! sent is in exactly one conflict, byte by byte, until a person drops it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use sealdrive::engine::{ASIDE, Branch, CrashPoints, drop_branch, list_conflicts};
use sealdrive_tests::sim::disk::{Config, Disk, Survivors, seeded};

use crate::engine_support::{MemoryServer, World, noise};
use crate::rig::{config_on, locked, mount, outline, read_tree};

type Files = BTreeMap<String, Vec<u8>>;

/// A drive that two machines wrote.
struct Rivals {
    world: World,
    /// The disk of the machine that lost the lease; it is not running.
    disk: Disk,
    /// What it had fsynced and never sent.
    unsent: Files,
    /// What the other machine has committed.
    committed: Files,
}

impl Rivals {
    fn meet() -> Self {
        let world = World::new();
        let disk = Disk::new(Config::default(), seeded(3));
        let server = Arc::clone(&world.server);
        let one = mount(&world, &disk, Some(&server), 1, None).unwrap();
        one.write("/shared", b"of both");
        one.sync();
        server.faults.offline.store(true, Ordering::SeqCst);
        // Some of it in a checkpoint and the outbox, some in the journal alone.
        let (large, small) = (noise(1, 700_000), noise(2, 3000));
        one.write("/large", &large);
        assert!(one.engine.sync_server(soon_over(), |_| false).is_err());
        one.write("/small", &small);
        one.write("/shared", b"of one alone");
        one.engine.sync_local().unwrap();
        drop(one);
        server.faults.offline.store(false, Ordering::SeqCst);
        let elsewhere = Disk::new(Config::default(), seeded(4));
        let mut config = config_on(&world, &elsewhere, Some(&server), 2);
        config.take_over = true;
        let two = world.try_mount(config).unwrap();
        two.write("/other", &noise(5, 5000));
        two.sync();
        let committed = read_tree(&two).unwrap();
        two.unmount();
        let unsent = [
            ("large", large),
            ("small", small),
            ("shared", b"of one alone".to_vec()),
        ];
        Self {
            world,
            disk,
            unsent: unsent
                .map(|(name, content)| (name.to_owned(), content))
                .into(),
            committed,
        }
    }

    /// What the disk's owner finds after a power cut. `dropped`: a person has asked for the branch to go.
    fn judge(&self, at: &str, disk: &Disk, dropped: bool) {
        let server: Arc<MemoryServer> = self.world.server.snapshot();
        let machine = mount(&self.world, disk, Some(&server), 1, None);
        let machine = machine.unwrap_or_else(|error| panic!("{at}: {error}"));
        let tree = read_tree(&machine).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(outline(&tree), outline(&self.committed), "{at}");
        assert!(tree == self.committed, "{at}: other bytes");
        drop(machine);
        let config = config_on(&self.world, disk, Some(&server), 1);
        let conflicts = list_conflicts(&config).unwrap_or_else(|error| panic!("{at}: {error}"));
        let paths = disk.paths();
        let stray = |path: &&String| path.starts_with("/conflicts/") && path.contains('.');
        let halfway = paths.iter().filter(stray);
        let halfway: Vec<_> = halfway
            .filter(|path| path.split('/').nth(2).is_some_and(|id| id.contains('.')))
            .collect();
        assert!(halfway.is_empty(), "{at}: {halfway:?}");
        if dropped && conflicts.is_empty() {
            let left = paths.iter().find(|path| path.starts_with("/conflicts/"));
            assert_eq!(left, None, "{at}: deleted, and still there");
            return;
        }
        assert_eq!(conflicts.len(), 1, "{at}: {conflicts:?}");
        let out = tempfile::tempdir().unwrap();
        let branch = Branch::open(&config, &conflicts[0].id);
        let branch = branch.unwrap_or_else(|error| panic!("{at}: {error}"));
        let exported = branch.export(out.path());
        exported.unwrap_or_else(|error| panic!("{at}: {error}"));
        assert!(
            read_files(out.path()) == self.unsent,
            "{at}: exported otherwise"
        );
    }

    /// Judges every different disk of these, on all cores.
    fn judge_all(&self, cuts: Vec<(String, Disk)>, dropped: bool) {
        let mut known = BTreeSet::new();
        let new = cuts
            .into_iter()
            .filter(|(_, disk)| known.insert(disk.content()));
        let new: Vec<_> = new.collect();
        println!("{} different disks", new.len());
        let left = Mutex::new(new.into_iter());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let Some((at, disk)) = locked(&left).next() else {
                            return;
                        };
                        self.judge(&at, &disk, dropped);
                    }
                });
            }
        });
    }
}

fn soon_over() -> std::time::Instant {
    crate::engine_support::soon(3)
}

fn read_files(dir: &Path) -> Files {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// Takes power cuts of `disk` before each of its operations from now on.
fn film(disk: &Disk, what: &'static str) -> Arc<Mutex<Vec<(String, Disk)>>> {
    let cuts: Arc<Mutex<Vec<(String, Disk)>>> = Arc::default();
    let film = Arc::clone(&cuts);
    disk.watch(Some(Box::new(move |cut| {
        let mut film = locked(&film);
        let number = film.len() as u64;
        for survivors in [Survivors::Nothing, Survivors::Some(number)] {
            let at = format!("{what}, cut {number} with {survivors:?} left");
            film.push((at, cut(survivors)));
        }
        false
    })));
    cuts
}

#[test]
fn a_power_cut_at_any_step_of_setting_aside_keeps_the_branch_whole() {
    let rivals = Rivals::meet();
    let seen: Arc<Mutex<BTreeSet<&'static str>>> = Arc::default();
    let note = Arc::clone(&seen);
    let points = CrashPoints::new(move |point| {
        locked(&note).insert(point);
    });
    let config = || {
        let mut config = config_on(&rivals.world, &rivals.disk, Some(&rivals.world.server), 1);
        config.crash = points.clone();
        config
    };
    let cuts = film(&rivals.disk, "setting aside");
    let machine = rivals.world.try_mount(config()).unwrap();
    rivals.disk.watch(None);
    assert!(read_tree(&machine).unwrap() == rivals.committed);
    drop(machine);
    rivals.judge_all(std::mem::take(&mut *locked(&cuts)), false);
    rivals.judge(
        "no power cut",
        &rivals.disk.power_cut(Survivors::Nothing),
        false,
    );

    let config = config();
    let id = list_conflicts(&config).unwrap().remove(0).id;
    let cuts = film(&rivals.disk, "dropping");
    drop_branch(&config, &id).unwrap();
    rivals.disk.watch(None);
    assert_eq!(list_conflicts(&config).unwrap(), []);
    rivals.judge_all(std::mem::take(&mut *locked(&cuts)), true);
    let seen = locked(&seen);
    let all = ASIDE.iter().chain(&["adopted-tree", "adopted"]);
    let missed: Vec<_> = all.filter(|point| !seen.contains(*point)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}
