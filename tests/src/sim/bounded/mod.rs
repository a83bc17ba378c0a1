//! All short workloads that end in an fsync, with a power cut before every operation of the disk from that fsync's
//! beginning on, through its return, the mount's end and its checkpoint.
//!
//! Invariant (promise 2): each image is mounted again, by the real engine, and what is found is the drive after some
//! prefix of the requests, one that holds everything fsynced; nothing is reported damaged. A world is decided by its
//! sequence alone. Called by `tests/simulation.rs` and `src/bin/sim.rs`.

mod model;
mod mounted;
mod request;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sealdrive_runtime::simulation::World;
use sealdrive_runtime::{thread, time};

use self::model::Model;
use self::mounted::Mount;
use self::request::{BEFORE, Request, Step, before};
use super::account::Household;
use super::disk::{Config, Disk, Survivors, seeded};
use super::lanes;

/// Time given to what goes on behind a workload: a background round of the journal, sealing.
const A_WHILE: Duration = Duration::from_secs(3);

/// Time given to a mount before the workload begins: it makes a checkpoint of what it found, since no commit holds it.
/// No multiple of the journal's own interval, so that an fsync finds something left to do.
const SETTLED: Duration = Duration::from_millis(2200);

/// What some worlds came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tried {
    /// Workloads.
    pub worlds: u64,
    /// Moments at which the power failed.
    pub cuts: u64,
    /// Of these, after the fsync had returned.
    pub after: u64,
    /// Different disks that were left, each mounted again.
    pub images: u64,
}

impl Tried {
    /// Sums up.
    pub fn add(&mut self, other: &Self) {
        self.worlds += other.worlds;
        self.cuts += other.cuts;
        self.after += other.after;
        self.images += other.images;
    }
}

/// A sequence that is possible.
#[derive(Clone)]
pub struct Workload(Vec<&'static Step>);

impl Workload {
    /// All of up to so many steps, in order.
    pub fn all(longest: usize) -> Vec<Self> {
        let all = request::sequences(longest);
        all.into_iter().map(Self).collect()
    }

    /// One by its name; `None` if it has a step nobody knows.
    pub fn parse(name: &str) -> Option<Self> {
        request::parse(name).map(Self)
    }

    /// Steps.
    pub fn steps(&self) -> usize {
        self.0.len()
    }

    /// The names of its steps.
    pub fn name(&self) -> String {
        let names: Vec<_> = self.0.iter().map(|step| step.name).collect();
        names.join(",")
    }

    /// What decides everything in its world.
    fn seed(&self) -> u64 {
        let hash = blake3::hash(self.name().as_bytes());
        let (first, _) = hash.as_bytes().split_first_chunk().expect("32 bytes");
        u64::from_le_bytes(*first)
    }

    /// The line that runs it again.
    pub fn reproduce(&self) -> String {
        format!("scripts/sim --workload {}", self.name())
    }
}

/// The disk that all workloads begin on.
pub struct Ground(Disk);

impl Ground {
    /// Lays it out.
    pub fn lay() -> Result<Self, String> {
        let disk = Disk::new(Config::default(), seeded(1));
        let mine = disk.clone();
        let laid = World::run(0, move |_| {
            let mut mount = Mount::open(&Household::found(), &mine);
            BEFORE.iter().for_each(|request| mount.request(request));
            mount.end();
        });
        laid.result.map(|()| Self(disk))
    }

    /// Tries a workload; an error says what was lost, and at which moment.
    pub fn run(&self, workload: &Workload) -> Result<Tried, String> {
        let disk = self.0.power_cut(Survivors::Everything);
        let (steps, seed) = (workload.0.clone(), workload.seed());
        World::run(seed, move |_| Trial::new(disk, seed).run(&steps)).result
    }
}

/// Tries these, side by side. `step` is told after each how many are done and how many of them failed. What failed
/// comes back with what it said.
pub fn try_all(
    ground: &Ground,
    workloads: &[Workload],
    step: impl Fn(usize, usize) + Sync,
) -> (Tried, Vec<(Workload, String)>) {
    let next = AtomicUsize::new(0);
    let sum = Mutex::new((Tried::default(), Vec::new(), 0));
    lanes::side_by_side(|| {
        while let Some(workload) = workloads.get(next.fetch_add(1, Ordering::SeqCst)) {
            let outcome = ground.run(workload);
            let mut sum = lock(&sum);
            match outcome {
                Ok(tried) => sum.0.add(&tried),
                Err(trouble) => sum.1.push((workload.clone(), trouble)),
            }
            sum.2 += 1;
            step(sum.2, sum.1.len());
        }
    });
    let (tried, failed, _) = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    (tried, failed)
}

/// What a power cut left: the first of its kind, and the strongest promise that was given when one like it was left.
struct Image {
    disk: Disk,
    promised: usize,
    moment: String,
}

#[derive(Default)]
struct Album {
    seed: u64,
    images: BTreeMap<[u8; 32], Image>,
    moments: u64,
    after: u64,
}

/// One world.
struct Trial {
    household: Household,
    disk: Disk,
    /// The drive before the workload, then after each request.
    states: Vec<Model>,
    /// Everything up to here has been fsynced.
    promised: Arc<AtomicUsize>,
    album: Arc<Mutex<Album>>,
}

impl Trial {
    fn new(disk: Disk, seed: u64) -> Self {
        let album = Album {
            seed,
            ..Album::default()
        };
        Self {
            household: Household::found(),
            disk,
            states: vec![before()],
            promised: Arc::default(),
            album: Arc::new(Mutex::new(album)),
        }
    }

    fn run(mut self, steps: &[&'static Step]) -> Tried {
        let mut mount = Mount::open(&self.household, &self.disk);
        thread::sleep(SETTLED);
        for request in steps.iter().flat_map(|step| step.requests) {
            self.request(&mut mount, request);
        }
        self.watch();
        self.request(&mut mount, &Request::Fsync);
        self.promised.store(self.states.len() - 1, Ordering::SeqCst);
        thread::sleep(A_WHILE);
        self.request(&mut mount, &Request::Close);
        thread::sleep(A_WHILE);
        mount.end();
        self.disk.watch(None);
        let disk = self.disk.clone();
        look(&self.album, &self.promised, &mut |left| {
            disk.power_cut(left)
        });
        let album = std::mem::take(&mut *lock(&self.album));
        let images = album.images.len() as u64;
        for image in album.images.into_values() {
            self.judge(&image);
        }
        Tried {
            worlds: 1,
            cuts: album.moments,
            after: album.after,
            images,
        }
    }

    fn request(&mut self, mount: &mut Mount, request: &Request) {
        let mut next = self.states.last().cloned().unwrap_or_default();
        next.apply(request).expect("only what is possible is tried");
        self.states.push(next);
        mount.request(request);
    }

    fn watch(&self) {
        let (album, promised) = (Arc::clone(&self.album), Arc::clone(&self.promised));
        self.disk.watch(Some(Box::new(move |cut| {
            look(&album, &promised, cut);
            false
        })));
    }

    fn judge(&self, image: &Image) {
        let (found, events) = Mount::look(&self.household, &image.disk);
        let at = &image.moment;
        assert!(events.is_empty(), "{at}: {events:?}");
        let promised = &self.states[image.promised..];
        if !promised.iter().any(|state| state.allows(&found)) {
            let older = self.states.iter().rposition(|state| state.allows(&found));
            let found: Vec<_> = found.iter().map(outline).collect();
            panic!(
                "{at}: found is {}, promised {} of {} requests\n  found    {found:?}\n  promised {:?}\n  last     {:?}",
                older.map_or("no prefix at all".to_owned(), |n| format!("the first {n}")),
                image.promised,
                self.states.len() - 1,
                promised[0].outline(),
                self.states[self.states.len() - 1].outline(),
            );
        }
    }
}

fn outline((path, found): (&String, &model::Found)) -> String {
    format!("{path}: {}", model::outline(&found.what))
}

// A lock of std: nothing inside waits for another thread of a world.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The power fails now, in each way. Takes no lock that lets another thread run.
fn look(album: &Mutex<Album>, promised: &AtomicUsize, cut: &mut dyn FnMut(Survivors) -> Disk) {
    let mut album = lock(album);
    album.moments += 1;
    let promised = promised.load(Ordering::SeqCst);
    album.after += u64::from(promised > 0);
    let moment = album.moments;
    for survivors in [
        Survivors::Nothing,
        Survivors::Everything,
        Survivors::Some(album.seed.wrapping_add(moment)),
    ] {
        let disk = cut(survivors);
        match album.images.entry(disk.content()) {
            Entry::Vacant(place) => {
                place.insert(Image {
                    disk,
                    promised,
                    moment: format!("power cut {moment}, {survivors:?}"),
                });
            }
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                if promised > known.promised {
                    known.promised = promised;
                    known.moment = format!("power cut {moment}, {survivors:?}");
                }
            }
        }
    }
}
