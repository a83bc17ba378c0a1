//! A machine without changes of its own goes on from another's restore point: whole or not at all, wherever the power
//! fails.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use engine_support::{Machine, World, copy_dir, device, soon};
use sealdrive::engine::{EventKind, SyncError, list_conflicts};
use sealdrive_pack::{Directory, Medium, MediumFile};

/// A directory of which a copy is taken before each change of a name in it.
struct Watched {
    inner: Directory,
    path: PathBuf,
    copies: PathBuf,
    taken: Arc<Mutex<Vec<String>>>,
    on: Arc<AtomicBool>,
}

impl Watched {
    fn step(&self, name: &str) {
        if !self.on.load(Ordering::SeqCst) {
            return;
        }
        let mut taken = self.taken.lock().unwrap();
        let copy = format!("step-{}-{}", taken.len(), name.replace('/', "-"));
        copy_dir(&self.path, &self.copies.join(&copy));
        taken.push(copy);
    }
}

impl Medium for Watched {
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.step(name);
        self.inner.create(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.inner.open(name)
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        self.inner.directory(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step(from);
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn remove_directory(&self, name: &str) -> io::Result<()> {
        self.inner.remove_directory(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.step("synced");
        self.inner.sync_dir()
    }

    fn free(&self) -> io::Result<u64> {
        self.inner.free()
    }
}

fn names(machine: &Machine) -> Vec<String> {
    machine.tree().into_keys().collect()
}

/// The place in the chain was written before the tree. A power cut between the two left this machine's old tree beside
/// the other machine's place: at the next mount it looked like work of its own on top of the other's, and was committed
/// over it. What the other machine had written was gone from the drive.
#[test]
fn a_power_cut_while_another_machines_state_is_adopted_never_brings_the_old_tree_back() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.write("/one", b"1");
    one.sync();
    one.unmount();
    let two = world.mount("two", 2);
    two.write("/two", b"2");
    two.unlink("/one");
    two.sync();
    two.unmount();

    let (taken, on) = (Arc::default(), Arc::new(AtomicBool::new(true)));
    let mut config = world.config("one", 1);
    config.remote = Some(world.server.snapshot().connect(device(1)));
    config.medium = Some(Arc::new(Watched {
        inner: Directory::open(&world.path("one")).unwrap(),
        path: world.path("one"),
        copies: world.dir.path().to_owned(),
        taken: Arc::clone(&taken),
        on: Arc::clone(&on),
    }));
    let one = world.try_mount(config).unwrap();
    on.store(false, Ordering::SeqCst);
    assert_eq!(names(&one), ["/two"]);
    drop(one);
    let steps = taken.lock().unwrap().clone();
    let of = |stem: &str| steps.iter().filter(|step| step.contains(stem)).count();
    assert!(of("pins") >= 4 && of("checkpoint") >= 4, "{steps:?}");
    for step in &steps {
        goes_on(&world, step, true);
        goes_on(&world, step, false);
    }
}

/// The machine comes back from `step`, with the server or at first without, and works on.
fn goes_on(world: &World, step: &str, reached: bool) {
    let server = world.server.snapshot();
    let name = format!("{step}-{reached}");
    copy_dir(&world.path(step), &world.path(&name));
    let config = |machine: &str, n| {
        let mut config = world.config(machine, n);
        config.remote = Some(server.connect(device(n)));
        config
    };
    server.faults.offline.store(!reached, Ordering::SeqCst);
    let one = world.try_mount(config(&name, 1)).unwrap();
    server.faults.offline.store(false, Ordering::SeqCst);
    let found = names(&one);
    if reached {
        assert_eq!(found, ["/two"], "{name}");
        one.write("/more", b"3");
    } else {
        assert!(found == ["/one"] || found == ["/two"], "{name}: {found:?}");
        if found == ["/two"] {
            one.write("/more", b"3");
        }
    }
    if found == ["/two"] {
        one.sync();
    } else {
        // Without the server it is the old tree, and nothing of it may be committed.
        drop(one.engine.sync_server(engine_support::soon(3), |_| true));
    }
    drop(one);
    server.disk().lease = None;
    let conflicts = list_conflicts(&config(&name, 1)).unwrap();
    assert_eq!(conflicts, [], "{name}: there was nothing to set aside");
    let three = world
        .try_mount(config(&format!("{name}-three"), 3))
        .unwrap();
    let expected: &[&str] = match found == ["/two"] {
        true => &["/more", "/two"],
        false => &["/two"],
    };
    assert_eq!(names(&three), expected, "{name}");
}

/// What is committed is no change of this machine's own, whatever its journal was given on the way.
#[test]
fn a_machine_that_has_committed_everything_makes_no_conflict() {
    let world = World::new();
    let one = world.mount("one", 1);
    // Of every kind: in the tree, in a chunk with others, in chunks of its own, in part written anew, and gone.
    for (name, len) in [("/inline", 100), ("/small", 9_000), ("/large", 2 << 20)] {
        one.write(name, &engine_support::noise(7, len));
    }
    one.sync();
    one.write_at("/large", 1 << 20, b"changed");
    one.write_at("/inline", 50, b"changed");
    one.unlink("/small");
    one.mkdir("/dir");
    one.sync();
    one.unmount();
    let left: Vec<String> = std::fs::read_dir(world.path("one").join("journal"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".sdj"))
        .collect();
    assert_eq!(left, [""; 0], "the journal holds something");
    let two = world.mount("two", 2);
    two.write("/two", b"2");
    two.sync();
    two.unmount();
    let one = world.mount("one", 1);
    assert_eq!(names(&one), ["/dir/", "/inline", "/large", "/two"]);
    assert_eq!(list_conflicts(&world.config("one", 1)).unwrap(), []);
}

/// Another machine has written and gone while this one worked without the server: the lease is free, the head is not
/// the one this machine knows.
#[test]
fn a_writer_that_was_away_stops_at_the_commit_of_another() {
    let world = World::new();
    let one = world.mount("one", 1);
    one.write("/a", b"1");
    one.sync();
    one.unmount();
    let two = world.mount("two", 2);
    two.write("/b", b"2");
    two.sync();
    two.unmount();
    let offline = &world.server.faults.offline;
    offline.store(true, Ordering::SeqCst);
    let one = world.mount("one", 1);
    one.write("/c", b"3");
    offline.store(false, Ordering::SeqCst);
    let stopped = one.engine.sync_server(soon(20), |_| true);
    assert!(matches!(stopped, Err(SyncError::Stopped(_))), "{stopped:?}");
    one.told(EventKind::Fenced);
    drop(one);
    let one = world.mount("one", 1);
    assert_eq!(one.read("/b"), b"2");
    assert!(one.ino("/c").is_err());
    one.told(EventKind::SetAside);
}
