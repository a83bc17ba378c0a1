//! Power cuts, broken disks and full ones under the real engine, on a simulated disk, with real threads.
//!
//! A power cut is taken at every named point of the engine (`fs/src/engine/crash.rs`), with nothing, some or all of
//! what
//! was not synced; a machine is started on what is left, beside the server as it stood at that moment. `TABLE` says
//! what
//! must hold then. `SEALDRIVE_CRASH_ALL=1` takes every cut instead of some at each point, and sectors besides bytes.

#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../../fs/tests/engine_support/mod.rs"]
mod engine_support;

mod aside;
mod client_store;
mod cost;
mod rig;
mod store;
mod trouble;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use engine_support::{MemoryServer, World, soon};
use rig::{Ledger, Rig, locked, mount, note, outline, read_tree, which};
use sealdrive::engine::{CrashPoints, POINTS};
use sealdrive_tests::sim::disk::{Config, Disk, Survivors, seeded};

/// What must hold after a power cut at a point, besides what holds after any (`always`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Must {
    /// What the fsync under way has asked for is there, though it has not returned.
    HoldWhatIsBeingSynced,
    /// The server has a commit, and every object it names: a machine that never saw the drive reads all of it there.
    BeCommitted,
}
use Must::{BeCommitted, HoldWhatIsBeingSynced};

/// Point → what must hold. Always: everything an fsync has returned for is there; what is there is one state of the
/// drive, in the order of the requests; no byte is wrong; no event, so nothing was found damaged and no chain forked;
/// nothing has left the outbox while the server has no commit; all of it still reaches the server, and a new machine
/// reads it there.
const TABLE: &[(&str, &[Must])] = &[
    ("adopted-tree", &[]),
    ("adopted", &[]),
    ("log-taken", &[]),
    ("outbox-durable", &[]),
    ("journal-written", &[]),
    ("journal-durable", &[HoldWhatIsBeingSynced]),
    ("chunked", &[]),
    ("object-sealed", &[]),
    ("outbox-written", &[]),
    ("sealed", &[]),
    ("installed", &[]),
    ("upload-read", &[]),
    ("upload-sent", &[]),
    ("upload-acknowledged", &[]),
    ("frozen", &[]),
    ("merged", &[]),
    ("nodes-durable", &[]),
    ("index-durable", &[]),
    ("checkpoint-durable", &[]),
    ("journal-trimmed", &[]),
    ("acknowledged", &[]),
    ("commit-durable", &[]),
    ("commit-accepted", &[BeCommitted]),
    ("pins-durable", &[BeCommitted]),
    ("pinned", &[BeCommitted]),
    ("pack-retired", &[BeCommitted]),
    ("retired", &[BeCommitted]),
];

/// One power cut and the world around it.
struct Cut {
    point: &'static str,
    survivors: Survivors,
    disk: Disk,
    server: Arc<MemoryServer>,
    ledger: Ledger,
    /// Packs that were in the outbox when the drive had never been committed, and are there no more.
    gone: Vec<String>,
}

/// Takes the cuts.
struct Camera {
    disk: Disk,
    server: Arc<MemoryServer>,
    ledger: Arc<Mutex<Ledger>>,
    uncommitted: Arc<Mutex<Vec<String>>>,
    cuts: Mutex<Vec<Cut>>,
    seen: Mutex<BTreeSet<(&'static str, u64)>>,
    all: bool,
}

impl Camera {
    fn point(&self, point: &'static str) {
        let phase = {
            let mut ledger = locked(&self.ledger);
            note(&mut ledger, point);
            ledger.phase
        };
        let (first_ever, first) = {
            let mut seen = locked(&self.seen);
            let ever = seen.iter().all(|(seen, _)| *seen != point);
            (ever, seen.insert((point, phase)))
        };
        let number = locked(&self.cuts).len() as u64;
        let kinds: &[Survivors] = match (self.all || first_ever, first) {
            (true, _) => &[
                Survivors::Nothing,
                Survivors::Everything,
                Survivors::Some(number),
            ],
            (false, true) => &[Survivors::Nothing, Survivors::Some(number)],
            (false, false) => &[],
        };
        for survivors in kinds.iter().copied() {
            let (disk, (server, ledger, gone)) = self.disk.power_cut_with(survivors, |paths| {
                let uncommitted = locked(&self.uncommitted).clone();
                let gone = uncommitted.into_iter().filter(|pack| !paths.contains(pack));
                (
                    self.server.snapshot(),
                    locked(&self.ledger).clone(),
                    gone.collect(),
                )
            });
            locked(&self.cuts).push(Cut {
                point,
                survivors,
                disk,
                server,
                ledger,
                gone,
            });
        }
    }
}

/// What the machine does: offline first, then with the server; files that go through the journal and files that are
/// sealed before; overwrites, renames and removals of both; a kill -9 in the middle.
fn workload(rig: &mut Rig, camera: &Arc<Camera>) {
    let points = || {
        let camera = Arc::clone(camera);
        Some(CrashPoints::new(move |point| camera.point(point)))
    };
    rig.open(false, points()).unwrap();
    rig.mkdir("/d").unwrap();
    rig.put("/d/a", 1, 300_000).unwrap();
    rig.settle();
    assert!(rig.sync());
    rig.next_phase();
    rig.put("/small", 2, 5).unwrap();
    assert!(rig.sync());
    rig.put("/big", 3, 2 << 20).unwrap();
    rig.settle();
    rig.write("/d/a", 1000, b"over").unwrap();
    assert!(rig.sync());
    rig.put("/unsynced", 9, 150_000).unwrap();
    rig.settle();
    // Killed, not unmounted: what follows must not rest on what only the kernel has.
    rig.machine = None;
    rig.next_phase();
    let packs = rig.disk.paths().into_iter();
    *locked(&camera.uncommitted) = packs.filter(|path| path.starts_with("/outbox/")).collect();
    assert!(!locked(&camera.uncommitted).is_empty());
    rig.open(true, points()).unwrap();
    rig.revived("after a kill");
    rig.put("/after", 4, 700_000).unwrap();
    rig.settle();
    assert!(rig.sync());
    rig.sync_server();
    rig.next_phase();
    rig.rename("/small", "/d/moved").unwrap();
    rig.unlink("/big").unwrap();
    rig.put("/tail", 5, 400_000).unwrap();
    let open = rig.create("/open").unwrap();
    rig.write("/open", 0, &engine_support::noise(6, 1_300_000))
        .unwrap();
    assert!(rig.sync());
    rig.next_phase();
    rig.write("/open", 1_300_000, &engine_support::noise(7, 1_300_000))
        .unwrap();
    rig.sync_server();
    rig.close(open);
    rig.put("/last", 8, 200_000).unwrap();
    rig.sync_server();
    rig.machine = None;
}

fn always(world: &World, cut: &Cut) {
    let at = format!("power cut at {} with {:?} left", cut.point, cut.survivors);
    let must = |what| {
        let row = TABLE.iter().find(|(point, _)| *point == cut.point);
        row.expect("a row for each point").1.contains(&what)
    };
    let committed = !cut.server.disk().commits.is_empty();
    assert!(
        cut.gone.is_empty() || committed,
        "{at}: {:?} left the outbox",
        cut.gone
    );
    assert!(committed || !must(BeCommitted), "{at}: no commit");
    if committed {
        let two = mount(world, &empty(), Some(&cut.server.snapshot()), 2, None).unwrap();
        let tree = read_tree(&two).unwrap_or_else(|e| panic!("{at}: from the server: {e}"));
        let found = which(&cut.ledger, cut.ledger.committed, &tree);
        assert!(
            found.is_some(),
            "{at}: the server shows {:?}",
            outline(&tree)
        );
    }
    let machine = mount(world, &cut.disk, Some(&cut.server), 1, None);
    let machine = machine.unwrap_or_else(|e| panic!("{at}: {e}"));
    let tree = read_tree(&machine).unwrap_or_else(|e| panic!("{at}: {e}"));
    let least = if must(HoldWhatIsBeingSynced) {
        cut.ledger.taken.max(cut.ledger.synced)
    } else {
        cut.ledger.synced
    };
    assert!(
        which(&cut.ledger, least, &tree).is_some(),
        "{at}: {:?} is no state from {least} on; promised: {:?}",
        outline(&tree),
        outline(&cut.ledger.states[least].files)
    );
    let synced = machine.engine.sync_server(soon(90), |_| true);
    assert_eq!(synced, Ok(()), "{at}: {:#?}", machine.engine.status());
    assert_eq!(machine.engine.status().events, [], "{at}");
    drop(machine);
    let two = mount(world, &empty(), Some(&cut.server), 2, None).unwrap();
    let there = read_tree(&two).unwrap_or_else(|e| panic!("{at}: sent afterwards: {e}"));
    assert_eq!(outline(&there), outline(&tree), "{at}: on another machine");
    assert!(there == tree, "{at}: another machine reads other bytes");
    assert_eq!(two.engine.status().events, [], "{at}: on another machine");
}

fn empty() -> Disk {
    Disk::new(Config::default(), seeded(0))
}

#[test]
fn a_power_cut_at_every_step_loses_nothing_promised() {
    let all = std::env::var_os("SEALDRIVE_CRASH_ALL").is_some();
    for unit in if all { vec![1, 512] } else { vec![1] } {
        let disk = Disk::new(
            Config {
                unit,
                ..Config::default()
            },
            seeded(7),
        );
        let mut rig = Rig::new(disk.clone());
        let camera = Arc::new(Camera {
            disk,
            server: Arc::clone(&rig.world.server),
            ledger: Arc::clone(&rig.ledger),
            uncommitted: Arc::default(),
            cuts: Mutex::default(),
            seen: Mutex::default(),
            all,
        });
        workload(&mut rig, &camera);
        let cuts = std::mem::take(&mut *locked(&camera.cuts));
        for (point, _) in TABLE {
            assert!(
                cuts.iter().any(|cut| cut.point == *point),
                "{point} was never reached"
            );
        }
        println!("{} power cuts, {:?}", cuts.len(), rig.disk.counters());
        judge(&rig.world, cuts);
    }
}

/// On all cores: most of the time goes into waiting.
fn judge(world: &World, cuts: Vec<Cut>) {
    let left = Mutex::new(cuts.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(cut) = locked(&left).next() else {
                        return;
                    };
                    always(world, &cut);
                }
            });
        }
    });
}

#[test]
fn every_point_has_a_row() {
    let rows: Vec<&str> = TABLE.iter().map(|(point, _)| *point).collect();
    assert_eq!(rows, POINTS);
}
