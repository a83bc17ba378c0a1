//! Too little space on the disk of the local state: a clear refusal, nothing lost, and all goes on when there is space.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod engine_support;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine_support::short::ShortDisk;
use engine_support::{ME, Machine, NOW, World, noise, soon};
use sealdrive::drive::{DriveError, Errno, NewNode, OVERLAY_LIMIT};
use sealdrive::engine::{EngineConfig, EventKind, NotDurable};
use sealdrive_core::record::{FileKind, ROOT};

const MIB: u64 = 1 << 20;
/// Bytes of each file.
const FILE: usize = 300_000;

struct Rig {
    world: World,
    disk: ShortDisk,
    /// What the drive has accepted.
    files: BTreeMap<String, Vec<u8>>,
    next: u64,
}

impl Rig {
    fn new(capacity: u64) -> Self {
        Self {
            world: World::new(),
            disk: ShortDisk::new(capacity),
            files: BTreeMap::new(),
            next: 0,
        }
    }

    fn config(&self) -> EngineConfig {
        let mut config = self.world.config("one", 1);
        config.medium = Some(self.disk.directory(&self.world.path("one")));
        config
    }

    fn mount(&self) -> Machine {
        self.world.try_mount(self.config()).unwrap()
    }

    /// Creates and writes one file; on a refusal nothing of it stays but perhaps its empty name.
    fn put(&mut self, machine: &Machine) -> Result<(), DriveError> {
        self.put_of(machine, FILE)
    }

    fn put_of(&mut self, machine: &Machine, len: usize) -> Result<(), DriveError> {
        self.next += 1;
        let (name, content) = (format!("f{:05}", self.next), noise(self.next, len));
        let new = NewNode {
            kind: FileKind::Regular,
            mode: 0o644,
            umask: 0,
            rdev: 0,
        };
        let (attr, handle) = machine.op(|d| d.create(ROOT, name.as_bytes(), new, ME, NOW))?;
        let written = machine.op(|d| d.write(attr.ino, 0, &content, false, NOW));
        machine.drive().release(handle);
        let kept = if written.is_ok() { content } else { Vec::new() };
        self.files.insert(format!("/{name}"), kept);
        written.map(drop)
    }

    /// Writes until that is refused.
    fn fill(&mut self, machine: &Machine) {
        let deadline = soon(90);
        loop {
            match self.put(machine) {
                Ok(()) => assert!(soon(0) < deadline, "writes are never refused"),
                Err(error) => return assert_eq!(error, DriveError::Errno(Errno::ENOSPC)),
            }
        }
    }

    /// Writes as soon as that is allowed again, on the same mount.
    fn wait_for_room(&mut self, machine: &Machine) {
        let deadline = soon(90);
        while self.put(machine).is_err() {
            assert!(soon(0) < deadline, "{:#?}", machine.engine.status());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Somebody else takes all that is free, and what the reserve was.
    fn crowd(&self) {
        self.disk.set_capacity(self.disk.used() - MIB);
    }

    fn offline(&self, offline: bool) {
        let faults = &self.world.server.faults;
        faults.offline.store(offline, Ordering::SeqCst);
    }

    fn is_whole(&self, machine: &Machine) {
        let found = machine.tree();
        let (names, expected) = (found.keys(), self.files.keys());
        assert_eq!(
            names.collect::<Vec<_>>(),
            expected.collect::<Vec<_>>(),
            "the names"
        );
        for (name, content) in &self.files {
            assert!(found[name] == *content, "{name}");
        }
    }
}

/// Waits until it is so.
fn until(machine: &Machine, is_so: impl Fn() -> bool) {
    let deadline = soon(90);
    while !is_so() {
        assert!(soon(0) < deadline, "{:#?}", machine.engine.status());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until everything written is in the outbox.
fn seal(machine: &Machine) {
    until(machine, || {
        machine.engine.drive().nudge();
        machine.engine.status().dirty_bytes == 0
    });
}

fn is_well(machine: &Machine) {
    let status = machine.engine.status();
    assert_eq!(status.failed, None);
    let bad = |kind| kind != EventKind::LittleSpace;
    assert!(
        !status.events.iter().any(|event| bad(event.kind)),
        "{:#?}",
        status.events
    );
}

#[test]
fn what_was_accepted_before_the_disk_was_full_is_durable_and_drains() {
    let mut rig = Rig::new(40 * MIB);
    rig.mount().unmount();
    rig.offline(true);
    let machine = rig.mount();
    rig.fill(&machine);
    // Everything accepted finds its place, and names go on.
    machine.engine.sync_local().unwrap();
    assert_eq!(rig.disk.refused(), 0, "the disk was never really full");
    machine
        .op(|d| d.mkdir(ROOT, b"dir", 0o755, 0, ME, NOW))
        .unwrap_err();
    let (first, content) = rig.files.pop_first().unwrap();
    machine
        .op(|d| {
            let rule = sealdrive::drive::RenameRule::Replace;
            d.rename(ROOT, &first.as_bytes()[1..], ROOT, b"renamed", rule, NOW)
        })
        .unwrap();
    rig.files.insert("/renamed".to_owned(), content);
    let (second, _) = rig.files.pop_first().unwrap();
    machine.unlink(&second);
    machine.engine.sync_local().unwrap();
    rig.is_whole(&machine);
    is_well(&machine);
    drop(machine);
    let machine = rig.mount();
    rig.is_whole(&machine);
    rig.offline(false);
    machine.sync();
    machine.unmount();
    let other = rig.world.mount("two", 2);
    rig.is_whole(&other);
}

/// Story: after a full disk had drained, the last pack of the outbox stayed where it was, because nothing came to fill
/// it, and writes stayed refused until the next mount.
#[test]
fn a_drained_disk_takes_writes_again_without_a_new_mount() {
    let mut rig = Rig::new(24 * MIB);
    rig.mount().unmount();
    let machine = rig.mount();
    for _ in 0..3 {
        rig.offline(true);
        rig.fill(&machine);
        rig.offline(false);
        rig.wait_for_room(&machine);
    }
    assert!(rig.files.len() * FILE > 24 << 20, "more than fits at once");
    machine.sync();
    is_well(&machine);
    rig.is_whole(&machine);
    machine.unmount();
    let other = rig.world.mount("two", 2);
    rig.is_whole(&other);
}

#[test]
fn when_somebody_else_makes_room_writes_go_on() {
    let mut rig = Rig::new(24 * MIB);
    rig.mount().unmount();
    rig.offline(true);
    let machine = rig.mount();
    rig.fill(&machine);
    rig.disk.set_capacity(200 * MIB);
    rig.wait_for_room(&machine);
    machine.engine.sync_local().unwrap();
    rig.is_whole(&machine);
    is_well(&machine);
}

/// Somebody else fills the disk to the last block, at any moment: what was written is in memory, fsync says ENOSPC and
/// means it, and everything is made durable when there is space.
#[test]
fn a_disk_that_others_fill_loses_nothing_and_fails_nothing() {
    let (mut refusals, mut refused) = (0, 0);
    for left in (0..24).step_by(2) {
        let mut rig = Rig::new(200 * MIB);
        rig.mount().unmount();
        rig.offline(true);
        let machine = rig.mount();
        rig.put(&machine).unwrap();
        machine.engine.sync_local().unwrap();
        rig.disk.set_capacity(rig.disk.used() + left * 3 * 4096);
        // The reserve is worth a MiB: more than that, all at once.
        for _ in 0..6 {
            let _ = rig.put(&machine);
        }
        match machine.engine.sync_local() {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error, NotDurable::NoSpace);
                refusals += 1;
            }
        }
        let late = machine.engine.sync_server(soon(1), |_| true);
        assert!(late.is_err(), "there is no server");
        rig.is_whole(&machine);
        is_well(&machine);
        refused += rig.disk.refused();
        rig.disk.set_capacity(200 * MIB);
        let deadline = soon(90);
        while machine.engine.sync_local().is_err() {
            assert!(soon(0) < deadline, "{:#?}", machine.engine.status());
        }
        // As after kill -9: what fsync has promised is there.
        drop(machine);
        let machine = rig.mount();
        rig.is_whole(&machine);
        rig.offline(false);
        rig.wait_for_room(&machine);
        machine.sync();
        is_well(&machine);
        machine.unmount();
        rig.is_whole(&rig.world.mount("two", 2));
    }
    assert!(refused > 0 && refusals > 0, "{refused} {refusals}");
}

#[test]
fn a_full_disk_can_be_mounted_and_drained() {
    let mut rig = Rig::new(24 * MIB);
    rig.mount().unmount();
    rig.offline(true);
    let machine = rig.mount();
    rig.fill(&machine);
    machine.engine.sync_local().unwrap();
    drop(machine);
    // Nothing but the reserve is left.
    rig.disk.set_capacity(rig.disk.used());
    let machine = rig.mount();
    rig.is_whole(&machine);
    rig.offline(false);
    machine.sync();
    rig.wait_for_room(&machine);
    machine.sync();
    is_well(&machine);
    machine.unmount();
    rig.is_whole(&rig.world.mount("two", 2));
}

/// Story: a checkpoint that found no space took what was dirty to be sealed, saw that it would find none again, and
/// gave up without handing it out: nobody else could, and what was accepted waited for ever, whatever room there was.
#[test]
fn what_a_commit_covers_makes_room_for_what_was_accepted() {
    let mut rig = Rig::new(200 * MIB);
    rig.mount().unmount();
    let machine = rig.mount();
    for _ in 0..10 {
        rig.put(&machine).unwrap();
    }
    machine.sync();
    rig.crowd();
    for _ in 0..2 {
        rig.put(&machine).unwrap();
    }
    machine.sync();
    assert!(rig.disk.refused() > 0, "the disk was never full");
    is_well(&machine);
    rig.is_whole(&machine);
    machine.unmount();
    rig.is_whole(&rig.world.mount("two", 2));
}

/// Not only whole packs: also the one being written, small as it is, may be all that is left of the disk.
#[test]
fn also_the_pack_being_written_makes_room_when_a_commit_covers_it() {
    const SMALL: usize = 30_000;
    let mut rig = Rig::new(200 * MIB);
    rig.mount().unmount();
    let machine = rig.mount();
    for _ in 0..3 {
        rig.put_of(&machine, SMALL).unwrap();
    }
    machine.sync();
    // Somebody else leaves a few blocks, when the reserve has gone.
    rig.disk.set_capacity(rig.disk.used() - MIB + 8 * 4096);
    until(&machine, || machine.engine.status().outbox_bytes == 0);
    let deadline = soon(90);
    while rig.put_of(&machine, SMALL / 3).is_err() {
        assert!(soon(0) < deadline, "{:#?}", machine.engine.status());
        std::thread::sleep(Duration::from_millis(50));
    }
    machine.engine.sync_local().unwrap();
    rig.is_whole(&machine);
    is_well(&machine);
    rig.disk.set_capacity(200 * MIB);
    machine.sync();
    machine.unmount();
    rig.is_whole(&rig.world.mount("two", 2));
}

/// The server has it, but no commit names it: however little space there is, it stays.
#[test]
fn what_no_commit_covers_makes_no_room() {
    let mut rig = Rig::new(24 * MIB);
    rig.mount().unmount();
    let machine = rig.mount();
    let refuse = &rig.world.server.clone().faults.refuse_commits;
    refuse.store(true, Ordering::SeqCst);
    rig.fill(&machine);
    until(&machine, || machine.engine.status().pending_objects == 0);
    let accepted: usize = rig.files.values().map(Vec::len).sum();
    // Until what space there is has been looked at some times more.
    for _ in 0..10 {
        let _ = machine.engine.sync_server(soon(0), |_| true);
        assert!(machine.engine.status().outbox_bytes >= accepted as u64);
        std::thread::sleep(Duration::from_millis(100));
    }
    refuse.store(false, Ordering::SeqCst);
    rig.wait_for_room(&machine);
    machine.sync();
    machine.unmount();
    rig.is_whole(&rig.world.mount("two", 2));
}

/// Story: an object of the outbox was damaged, and the disk full when it was to be sealed again. It had left the queue,
/// was neither lost nor there, and nothing kept the next restore point from being signed without it.
#[test]
fn a_damaged_object_that_finds_no_space_is_waited_for() {
    let mut rig = Rig::new(200 * MIB);
    rig.mount().unmount();
    rig.offline(true);
    let machine = rig.mount();
    rig.put(&machine).unwrap();
    machine.engine.sync_local().unwrap();
    seal(&machine);
    // Read from its chunk, which stays in memory.
    rig.is_whole(&machine);
    let outbox = rig.world.path("one").join("outbox");
    for pack in std::fs::read_dir(outbox).unwrap() {
        let path = pack.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    rig.disk.set_capacity(0);
    let (before, committed) = (rig.disk.refused(), machine.engine.status().commit_seq);
    rig.offline(false);
    until(&machine, || rig.disk.refused() >= before + 3);
    let status = machine.engine.status();
    assert_eq!((status.failed, status.commit_seq), (None, committed));
    rig.disk.set_capacity(200 * MIB);
    machine.sync();
    let events = machine.engine.status().events;
    assert!(
        events.iter().all(|event| event.kind == EventKind::Healed) && !events.is_empty(),
        "{events:#?}"
    );
    machine.unmount();
    rig.is_whole(&rig.world.mount("two", 2));
}

/// Another device of the account has uploaded garbage under the id that a chunk has, which must be sealed again under
/// another: a full disk was taken for a failed one.
#[test]
fn poison_that_finds_a_full_disk_is_stepped_around_when_there_is_room() {
    let probe = Rig::new(200 * MIB);
    let machine = probe.mount();
    machine.write("/probe", &noise(1, FILE));
    machine.sync();
    let honest = probe.world.server.disk().objects.clone();

    let mut rig = Rig::new(200 * MIB);
    rig.mount().unmount();
    for (sid, object) in honest {
        let mut garbage = object.to_vec();
        let last = garbage.len() - 1;
        garbage[last] ^= 1;
        let mut server = rig.world.server.disk();
        server.objects.entry(sid).or_insert(garbage.into());
    }
    rig.offline(true);
    let machine = rig.mount();
    rig.put(&machine).unwrap();
    machine.engine.sync_local().unwrap();
    seal(&machine);
    rig.disk.set_capacity(0);
    rig.offline(false);
    // Found, and found again because the first time there was no space.
    let found = || {
        let events = machine.engine.status().events;
        let poisoned = events.iter().filter(|e| e.kind == EventKind::Poisoned);
        poisoned.count()
    };
    until(&machine, || found() >= 2);
    assert_eq!(machine.engine.status().failed, None);
    rig.disk.set_capacity(200 * MIB);
    machine.sync();
    machine.unmount();
    rig.is_whole(&rig.world.mount("two", 2));
}

/// Changes that only free or rename are taken on a full disk as long as memory has room for them; then they are refused
/// like the rest, and not left to wait for a checkpoint that nobody can make.
#[test]
fn changes_that_no_checkpoint_has_room_for_are_refused() {
    let mut rig = Rig::new(200 * MIB);
    rig.mount().unmount();
    rig.offline(true);
    let machine = rig.mount();
    rig.put(&machine).unwrap();
    machine.engine.sync_local().unwrap();
    rig.crowd();
    let (first, content) = rig.files.pop_first().unwrap();
    let mut name = first[1..].to_owned();
    let rename = |from: &str, to: &str| {
        let rule = sealdrive::drive::RenameRule::Replace;
        machine.op(|d| d.rename(ROOT, from.as_bytes(), ROOT, to.as_bytes(), rule, NOW))
    };
    // Each leaves a record of the name that is gone.
    let most = OVERLAY_LIMIT / 250;
    let refused = (0..most).find_map(|n| {
        let next = format!("{n:0>250}");
        let done = rename(&name, &next);
        if done.is_ok() {
            name = next;
        }
        done.err()
    });
    assert_eq!(refused, Some(DriveError::Errno(Errno::ENOSPC)));
    assert!(machine.engine.drive().overlay_bytes() > OVERLAY_LIMIT);
    rig.disk.set_capacity(2000 * MIB);
    until(&machine, || rename(&name, "last").is_ok());
    rig.files.insert("/last".to_owned(), content);
    rig.is_whole(&machine);
    is_well(&machine);
    rig.offline(false);
    machine.sync();
    machine.unmount();
    rig.is_whole(&rig.world.mount("two", 2));
}

#[test]
fn a_small_disk_holds_less_and_says_so() {
    let mut rig = Rig::new(7 * MIB);
    let machine = rig.mount();
    let told = || {
        let events = machine.engine.status().events;
        events.iter().any(|e| e.kind == EventKind::LittleSpace)
    };
    until(&machine, told);
    rig.put(&machine).unwrap();
    machine.sync();
    is_well(&machine);
    machine.unmount();
    rig.is_whole(&rig.world.mount("two", 2));
}
