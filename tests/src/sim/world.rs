//! One world: a server, a client that works and dies, and at the end another machine that reads what the server has.
//!
//! Invariant: everything that differs between worlds comes from the seed. A power cut leaves a machine's directory as
//! it was at that moment: it is copied before any thread unwinds, and the next life starts on the copy. Called by
//! `tests/simulation.rs` and `src/bin/sim.rs`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sealdrive::engine::{Engine, EngineConfig};
use sealdrive_runtime::channel::sync_channel;
use sealdrive_runtime::simulation::{Machine, Outcome, World};
use sealdrive_runtime::{task, thread, time};
use sealdrive_server::store::StoreOptions;
use sealdrive_server::{Options, open_core};

use super::account::{Household, device};
use super::drive::{Mounted, Tree};
use super::ledger::Ledger;
use super::line::Line;
use super::network::{Counts, Endpoint, Ends, Network, Weather};

/// Client lives in a world.
const LIVES: u64 = 3;
/// Turns a client has at most before its power fails, if it fails.
const CLIENT_FUSE: u64 = 1500;
/// The same for a server.
const SERVER_FUSE: u64 = 400;
/// Names in use.
const NAMES: u64 = 6;
/// Small packs, so that a short life fills some.
const PACK_BYTES: u64 = 256 << 10;

/// What a world came to, for the sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// What the network did.
    pub network: Counts,
    /// Client power cuts.
    pub client_crashes: u64,
    /// Server power cuts.
    pub server_crashes: u64,
    /// Requests made of the drive.
    pub requests: u64,
    /// Answered fsyncs and commits that a recovery was held to.
    pub promises: u64,
    /// Recoveries judged.
    pub recoveries: u64,
}

impl Report {
    /// Sums up.
    pub fn add(&mut self, other: &Self) {
        self.network.add(&other.network);
        self.client_crashes += other.client_crashes;
        self.server_crashes += other.server_crashes;
        self.requests += other.requests;
        self.promises += other.promises;
        self.recoveries += other.recoveries;
    }
}

/// Runs the world of a seed.
pub fn run(seed: u64) -> Outcome<Report> {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().to_owned();
    World::run(seed, move |world| Scene::new(world, here).play())
}

/// The line that shows a failed seed again.
pub fn reproduce(seed: u64) -> String {
    format!("scripts/sim --seed {seed}")
}

#[derive(Clone)]
struct Scene {
    world: World,
    dir: PathBuf,
    household: Household,
    network: Arc<Network>,
    ledger: Arc<Mutex<Ledger>>,
    report: Arc<Mutex<Report>>,
    server: Arc<Mutex<Option<Machine>>>,
    /// No more accidents.
    calm: Arc<AtomicBool>,
    /// The server is not to come back.
    over: Arc<AtomicBool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scene {
    fn new(world: &World, dir: PathBuf) -> Self {
        let weather = Weather::draw(world);
        Self {
            world: world.clone(),
            dir,
            household: Household::found(),
            network: Network::new(world, weather),
            ledger: Arc::default(),
            report: Arc::default(),
            server: Arc::default(),
            calm: Arc::default(),
            over: Arc::default(),
        }
    }

    fn play(&self) -> Report {
        let mine = self.clone();
        let keeper = thread::spawn("keeper", move || mine.keep_server()).unwrap();
        let mut life = 0;
        for _ in 0..LIVES {
            if self.live(life) {
                life += 1;
            }
        }
        self.calm.store(true, Ordering::SeqCst);
        if let Some(server) = &*lock(&self.server) {
            server.spare();
        }
        self.network.set_weather(Weather::FAIR);
        self.finish(life);
        self.read_elsewhere();
        self.over.store(true, Ordering::SeqCst);
        let server = lock(&self.server).take();
        server.inspect(Machine::kill);
        keeper.join().unwrap();
        let mut report = *lock(&self.report);
        let ledger = lock(&self.ledger);
        report.network = self.network.counts();
        report.requests = ledger.requests;
        report.promises = ledger.promises;
        report
    }

    /// A machine whose directory survives it.
    fn machine(&self, name: &str, life: u64) -> (Machine, PathBuf) {
        let machine = self.world.machine(name);
        let here = self.dir.join(format!("{name}-{life}"));
        let next = self.dir.join(format!("{name}-{}", life + 1));
        let from = here.clone();
        machine.on_kill(move || copy(&from, &next));
        (machine, here)
    }

    /// Starts the server again whenever its power has failed.
    fn keep_server(&self) {
        for life in 0.. {
            let (machine, here) = self.machine("server", life);
            if !self.calm.load(Ordering::SeqCst) && self.world.below(3) > 0 {
                machine.kill_after(self.world.below(SERVER_FUSE));
            }
            *lock(&self.server) = Some(machine.clone());
            let scene = self.clone();
            machine.spawn("main", move || scene.serve(&here)).unwrap();
            machine.wait_dead();
            drop(self.network.place(None));
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            lock(&self.report).server_crashes += 1;
            thread::sleep(Duration::from_secs(self.world.below(60)));
        }
    }

    fn serve(&self, here: &Path) {
        std::fs::create_dir_all(here).unwrap();
        let store = StoreOptions {
            pack_bytes: PACK_BYTES,
            reserve_bytes: 0,
            crash: None,
        };
        let core = Arc::new(open_core(here, Options { store, quota: None }).unwrap());
        let runtime = task::runtime(1, "serve").unwrap();
        runtime.block_on(self.household.register(&core));
        let endpoint = Endpoint {
            core,
            serving: runtime.handle().clone(),
            machine: Machine::current().unwrap(),
        };
        drop(self.network.place(Some(endpoint)));
        let (_kept, never) = sync_channel::<()>(1);
        let _ = never.recv();
    }

    fn config(&self, here: PathBuf, n: u8) -> EngineConfig {
        let household = &self.household;
        let mut config = household.config(here, n);
        config.remote = Some(Arc::new(Line(Arc::new(Ends {
            network: Arc::clone(&self.network),
            number: n,
            device: device(n),
            account: household.account(),
            drive: household.drive,
        }))));
        config
    }

    /// One life of the client; whether it ended by a power cut.
    fn live(&self, life: u64) -> bool {
        let (machine, here) = self.machine("client", life);
        if self.world.below(4) > 0 {
            machine.kill_after(self.world.below(CLIENT_FUSE));
        }
        let scene = self.clone();
        let work = machine.spawn("work", move || scene.work(here)).unwrap();
        let ended = work.join();
        let crashed = machine.is_dead();
        assert!(ended.is_ok() || crashed, "the workload broke off");
        machine.wait_dead();
        lock(&self.report).client_crashes += u64::from(crashed);
        crashed
    }

    fn mount(&self, here: PathBuf, n: u8) -> Mounted {
        Mounted(Engine::open(self.config(here, n)).unwrap())
    }

    /// Mounts, and holds what is there against the ledger.
    fn recover(&self, here: PathBuf, n: u8) -> Mounted {
        let mounted = self.mount(here, n);
        let found = mounted.tree();
        let end = lock(&self.ledger).recovered(&found);
        let end = end.unwrap_or_else(|complaint| panic!("{complaint}"));
        self.world.note("recovered", &(end as u64).to_le_bytes());
        lock(&self.report).recoveries += 1;
        mounted
    }

    fn work(&self, here: PathBuf) {
        let mounted = self.recover(here, 1);
        for _ in 0..self.world.below(25) {
            self.step(&mounted);
        }
        if self.world.below(2) == 0 {
            let mark = lock(&self.ledger).mark();
            let deadline = time::now() + Duration::from_secs(self.world.below(300));
            if mounted.0.shutdown(deadline).is_ok() {
                lock(&self.ledger).promise(mark);
            }
        }
    }

    fn step(&self, mounted: &Mounted) {
        let below = |bound| self.world.below(bound);
        let name = format!("f{}", below(NAMES));
        let stands = lock(&self.ledger).tree().get(&name).cloned();
        let dice = below(100);
        self.world.note("step", &[dice as u8]);
        match (dice, stands) {
            (0..40, stands) => self.rewrite(mounted, &name, stands.is_some()),
            (40..48, Some(content)) => {
                let size = below(content.len() as u64 + 2000);
                self.request(|t| resize(t, &name, size), None);
                mounted.truncate(&name, size);
            }
            (48..56, Some(_)) => {
                self.request(|t| drop(t.remove(&name)), None);
                mounted.unlink(&name);
            }
            (56..64, Some(content)) => {
                let to = format!("f{}", below(NAMES));
                self.request(
                    |t| {
                        t.remove(&name);
                        t.insert(to.clone(), content);
                    },
                    None,
                );
                mounted.rename(&name, &to);
            }
            (64..82, _) => {
                let mark = lock(&self.ledger).mark();
                if mounted.0.sync_local().is_ok() {
                    lock(&self.ledger).promise(mark);
                }
            }
            (82..90, _) => {
                let mark = lock(&self.ledger).mark();
                let deadline = time::now() + Duration::from_secs(below(200));
                if mounted.0.sync_server(deadline, |_| true).is_ok() {
                    lock(&self.ledger).promise(mark);
                }
            }
            _ => thread::sleep(Duration::from_millis(below(6000))),
        }
    }

    fn rewrite(&self, mounted: &Mounted, name: &str, stands: bool) {
        let handle = if stands {
            self.request(|_| {}, Some(name));
            mounted.open(name)
        } else {
            self.request(
                |t| drop(t.insert(name.to_owned(), Arc::default())),
                Some(name),
            );
            mounted.create(name)
        };
        for _ in 0..=self.world.below(3) {
            let most = match self.world.below(16) {
                0 => 700_000,
                1 => 50_000,
                _ => 3000,
            };
            let seed = self.world.below(u64::MAX);
            let data = noise(seed, 1 + self.world.below(most) as usize);
            let off = self.world.below(4000);
            self.request(|t| overwrite(t, name, off as usize, &data), Some(name));
            mounted.write(name, off, &data);
        }
        self.request(|_| {}, None);
        mounted.release(handle);
    }

    fn request(&self, change: impl FnOnce(&mut Tree), open: Option<&str>) {
        lock(&self.ledger).request(change, open);
    }

    /// In fair weather everything reaches the server.
    fn finish(&self, life: u64) {
        let (machine, here) = self.machine("client", life);
        let scene = self.clone();
        let last = machine.spawn("last", move || {
            let mounted = scene.recover(here, 1);
            let mark = lock(&scene.ledger).mark();
            let deadline = time::now() + Duration::from_secs(3600);
            let synced = mounted.0.sync_server(deadline, |_| true);
            assert_eq!(synced, Ok(()), "{:#?}", mounted.0.status());
            lock(&scene.ledger).promise(mark);
            let ended = mounted.0.shutdown(time::now() + Duration::from_secs(3600));
            assert_eq!(ended, Ok(()));
        });
        last.unwrap().join().expect("the last life ends well");
        machine.wait_dead();
    }

    /// Another machine, without state of its own, finds the same.
    fn read_elsewhere(&self) {
        let (machine, here) = self.machine("other", 0);
        let scene = self.clone();
        let reader = machine.spawn("reads", move || drop(scene.recover(here, 2)));
        reader.unwrap().join().expect("the other machine reads all");
        machine.wait_dead();
    }
}

fn resize(tree: &mut Tree, name: &str, size: u64) {
    if let Some(content) = tree.get_mut(name) {
        Arc::make_mut(content).resize(size as usize, 0);
    }
}

fn overwrite(tree: &mut Tree, name: &str, off: usize, data: &[u8]) {
    if let Some(content) = tree.get_mut(name) {
        let content = Arc::make_mut(content);
        content.resize(content.len().max(off + data.len()), 0);
        content[off..off + data.len()].copy_from_slice(data);
    }
}

/// Bytes that do not repeat, different for every seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// Copies a directory of files; a machine that had none yet leaves none.
fn copy(from: &Path, to: &Path) {
    let Ok(entries) = std::fs::read_dir(from) else {
        return;
    };
    std::fs::create_dir_all(to).unwrap();
    for entry in entries {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
