//! Two machines with homes and disks of their own that write one drive and take it from each other.
//!
//! Invariant: what a machine had fsynced and not committed when it lost the drive is in a branch of its own, byte by
//! byte, until it is dropped; what the server had answered for is in the state that the next one goes on from; and each
//! machine by itself finds a prefix again, as in a world of one. Called by `world.rs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sealdrive::engine::{
    Branch, ChainError, Engine, EngineConfig, EngineError, drop_branch, list_conflicts,
};
use sealdrive_runtime::simulation::World;
use sealdrive_runtime::{thread, time};

use super::disk::Disk;
use super::drive::{Mounted, Tree};
use super::ledger::{Claim, outline};
use super::world::{CLIENT, LIVES, Report, SERVER, Scene, lock};

/// The other machine that writes.
const RIVAL: &str = "rival";
/// Requests of one life, at most.
const STEPS: u64 = 25;
/// Longest pause between two lives of one machine, seconds: a lease runs out in it, or not.
const PAUSE: u64 = 90;

/// What must be in which branch, by its id.
type Claims = BTreeMap<String, Vec<Claim>>;

/// Both machines.
#[derive(Clone)]
pub(super) struct Rivals {
    seats: [Scene; 2],
    /// What must be in the branches of each, by their ids.
    claims: Arc<[Mutex<Claims>; 2]>,
}

impl Rivals {
    pub(super) fn new(world: &World) -> Self {
        let one = Scene::new(world, &[CLIENT, RIVAL, SERVER]);
        let mut other = one.clone();
        (other.name, other.device, other.ledger) = (RIVAL, 2, Arc::default());
        Self {
            seats: [one, other],
            claims: Arc::default(),
        }
    }

    pub(super) fn play(&self) -> Report {
        self.seats[0].with_server(|| {
            let both = [0, 1].map(|me| {
                let rivals = self.clone();
                thread::spawn("rival", move || rivals.lives(me)).unwrap()
            });
            both.into_iter().for_each(|one| one.join().unwrap());
            self.seats[0].calm();
            // Each takes the drive once more; then the first sees what the second has made of it.
            for me in [0, 1, 0] {
                self.last(me);
            }
            for me in [0, 1] {
                self.judge_branches(me);
            }
            let other = lock(&self.seats[1].ledger);
            let mut report = lock(&self.seats[0].report);
            report.requests += other.requests;
            report.promises += other.promises;
        })
    }

    fn lives(&self, me: usize) {
        let seat = &self.seats[me];
        for _ in 0..LIVES {
            let rivals = self.clone();
            seat.live(move |_, disk| rivals.work(me, disk));
            thread::sleep(Duration::from_secs(seat.world.below(PAUSE)));
        }
    }

    fn config(&self, me: usize, disk: &Disk, take_over: bool) -> EngineConfig {
        let seat = &self.seats[me];
        let mut config = seat.config(disk, seat.device);
        config.take_over = take_over;
        config
    }

    /// Mounts, and holds what is there and what was set aside against both ledgers.
    fn mount(
        &self,
        me: usize,
        disk: &Disk,
        take_over: bool,
        fair: bool,
    ) -> Result<Mounted, EngineError> {
        let config = || self.config(me, disk, take_over);
        let (mine, theirs) = (&self.seats[me], &self.seats[1 - me]);
        let mounted = Mounted(Engine::open(config())?);
        let found = match mounted.tree() {
            Ok(found) => found,
            Err(_) if mounted.0.status().failed.is_some() => return Err(EngineError::Busy),
            Err(error) => panic!("cannot be read: {error}"),
        };
        let listed = list_conflicts(&config())?;
        let mut claims = lock(&self.claims[me]);
        let kept = claims
            .keys()
            .all(|id| listed.iter().any(|one| one.id == *id));
        assert!(kept, "{}: a branch is gone: {listed:?}", mine.name);
        let new = listed.into_iter().map(|one| one.id);
        let new: Vec<String> = new.filter(|id| !claims.contains_key(id)).collect();
        let judged = lock(&mine.ledger).recovered_beside(
            &mut lock(&theirs.ledger),
            &found,
            !new.is_empty(),
            fair,
        );
        let claim = judged.unwrap_or_else(|complaint| {
            let events = mounted.0.status().events;
            panic!(
                "{}: {complaint}\n  set aside: {new:?}\n  {events:?}",
                mine.name
            )
        });
        // If more than one is new, an earlier mount broke off: the first has what there was.
        let mut claim: Vec<Claim> = claim.into_iter().collect();
        for id in new {
            mine.world.note("set aside", id.as_bytes());
            claims.insert(id, std::mem::take(&mut claim));
        }
        lock(&mine.report).recoveries += 1;
        Ok(mounted)
    }

    fn work(&self, me: usize, disk: &Disk) {
        let seat = &self.seats[me];
        let take_over = seat.world.below(2) == 0;
        let mounted = match self.mount(me, disk, take_over, false) {
            Ok(mounted) => mounted,
            // Nothing was changed: the server is away.
            Err(
                EngineError::TakeOver(error)
                | EngineError::NoState(error)
                | EngineError::Chain(ChainError::Remote(error)),
            ) if error.is_temporary() => return,
            Err(error) => return seat.excused(seat.name, &error),
        };
        for _ in 0..seat.world.below(STEPS) {
            let Err(error) = seat.step(&mounted) else {
                continue;
            };
            lock(&seat.ledger).refused();
            if mounted.0.status().read_only {
                lock(&seat.report).fenced += 1;
                break;
            }
            seat.refused(seat.name, &error);
        }
        if seat.world.below(2) == 0 {
            let mark = lock(&seat.ledger).mark();
            let deadline = time::now() + Duration::from_secs(seat.world.below(300));
            if mounted.0.shutdown(deadline).is_ok() {
                lock(&seat.ledger).commit(mark);
            }
        }
    }

    /// In fair weather, and on well disks: takes the drive, finds what the other has committed, and commits.
    fn last(&self, me: usize) {
        let seat = &self.seats[me];
        let (machine, disk) = seat.rack.machine(seat.name, None);
        let rivals = self.clone();
        let last = machine.spawn("last", move || {
            let mounted = rivals
                .mount(me, &disk, true, true)
                .expect("the disk is well");
            let ledger = &rivals.seats[me].ledger;
            let mark = lock(ledger).mark();
            let hour = || time::now() + Duration::from_secs(3600);
            let synced = mounted.0.sync_server(hour(), |_| true);
            assert_eq!(synced, Ok(()), "{:#?}", mounted.0.status());
            lock(ledger).commit(mark);
            assert_eq!(mounted.0.shutdown(hour()), Ok(()));
        });
        last.unwrap().join().expect("the last life ends well");
        machine.wait_dead();
    }

    /// Every branch is there and whole, and goes when it is dropped.
    fn judge_branches(&self, me: usize) {
        let seat = &self.seats[me];
        let (machine, disk) = seat.rack.machine(seat.name, None);
        let rivals = self.clone();
        let judge = machine.spawn("branches", move || {
            let config = rivals.config(me, &disk, false);
            let mut left = list_conflicts(&config).expect("the disk is well").len();
            let claims = std::mem::take(&mut *lock(&rivals.claims[me]));
            assert_eq!(left, claims.len(), "a branch that nobody knows of, or one less");
            for (id, claims) in claims {
                let out = tempfile::tempdir().unwrap();
                let branch = Branch::open(&config, &id).expect("the disk is well");
                let exported = branch.export(out.path()).expect("the server is there");
                assert_eq!(exported.missing, []);
                let files = read_files(out.path());
                for claim in &claims {
                    assert!(
                        claim.is_met(&files),
                        "branch {id} of {} is not what it had done\n  exported {:?}\n  had      {:?}",
                        rivals.seats[me].name,
                        outline(&files),
                        claim.files()
                    );
                    lock(&rivals.seats[me].report).branches += 1;
                }
                drop(branch);
                drop_branch(&config, &id).expect("the disk is well");
                left -= 1;
                let listed = list_conflicts(&config).expect("the disk is well");
                assert_eq!(listed.len(), left, "one goes, and no other");
            }
        });
        judge.unwrap().join().expect("all branches are whole");
        machine.wait_dead();
    }
}

fn read_files(dir: &Path) -> Tree {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let content = std::fs::read(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), Arc::new(content))
        })
        .collect()
}
