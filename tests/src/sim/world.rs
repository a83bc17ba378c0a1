//! One world: a server, a client that works and dies, and at the end another machine that reads what the server has.
//!
//! Invariant: everything that differs between worlds comes from the seed. A power cut leaves of a machine's disk what
//! was synced, and of the rest what the dice say (`rack.rs`); the next life starts on that. A machine whose disk fails
//! may refuse, and only that one. Called by `tests/simulation.rs` and `src/bin/sim.rs`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sealdrive::drive::{Answer, DriveError, Errno};
use sealdrive::engine::{Engine, EngineConfig, EngineError};
use sealdrive_runtime::simulation::{Machine, Outcome, World};
use sealdrive_runtime::{task, thread, time};
use sealdrive_server::identity::Identity;
use sealdrive_server::open_core_on;
use sealdrive_server::store::StoreOptions;

use super::account::{Household, device, signing};
use super::disk::Disk;
use super::drive::{Mounted, Tree};
use super::ledger::Ledger;
use super::line::Line;
use super::network::{Counts, Endpoint, Ends, Network, Weather};
use super::rack::{Fuse, Rack};
use super::rivals::Rivals;

/// Client lives in a world.
pub(super) const LIVES: u64 = 3;
/// What a client has at most before its power fails, if it fails.
pub(super) const CLIENT_FUSE: Fuse = Fuse {
    turns: 1500,
    operations: 160,
};
/// The same for a server.
const SERVER_FUSE: Fuse = Fuse {
    turns: 400,
    operations: 120,
};
/// The machine that writes.
pub(super) const CLIENT: &str = "client";
/// The machine that stores.
pub(super) const SERVER: &str = "server";
/// In one of so many worlds two machines write the drive.
const RIVALRY: u64 = 3;
/// Names in use.
const NAMES: u64 = 6;
/// Held for the server's index, bytes: little, so that it is used up.
const INDEX_RESERVE: u64 = 32 << 10;
/// One in so many servers has a quota; the next one may have another, or none.
const QUOTAS: u64 = 6;
/// Bytes of a quota at most: little, so that it is used up.
const QUOTA: u64 = 300_000;
/// Small packs, so that a short life fills some.
const PACK_BYTES: u64 = 256 << 10;

/// What a world came to, for the sums.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What the network did.
    pub network: Counts,
    /// What the disks did, by kind.
    pub disks: BTreeMap<String, u64>,
    /// Client power cuts.
    pub client_crashes: u64,
    /// Power cuts of a client that was not running: it had ended, well or because its disk had failed.
    pub idle_cuts: u64,
    /// Server power cuts.
    pub server_crashes: u64,
    /// Servers started again because their disk had failed.
    pub server_restarts: u64,
    /// Requests refused by a client whose disk was full or had failed; mounts among them.
    pub refusals: u64,
    /// Requests refused because the account had no room on the server.
    pub over_quota: u64,
    /// Requests made of the drive.
    pub requests: u64,
    /// Answered fsyncs and commits that a recovery was held to.
    pub promises: u64,
    /// Recoveries judged.
    pub recoveries: u64,
    /// Lives that ended because another machine had taken over.
    pub fenced: u64,
    /// Branches that were set aside, and found whole at the end.
    pub branches: u64,
}

impl Report {
    /// Sums up.
    pub fn add(&mut self, other: &Self) {
        self.network.add(&other.network);
        for (kind, count) in &other.disks {
            *self.disks.entry(kind.clone()).or_default() += count;
        }
        self.client_crashes += other.client_crashes;
        self.idle_cuts += other.idle_cuts;
        self.server_restarts += other.server_restarts;
        self.refusals += other.refusals;
        self.over_quota += other.over_quota;
        self.server_crashes += other.server_crashes;
        self.requests += other.requests;
        self.promises += other.promises;
        self.recoveries += other.recoveries;
        self.fenced += other.fenced;
        self.branches += other.branches;
    }
}

/// Runs the world of a seed.
pub fn run(seed: u64) -> Outcome<Report> {
    World::run(seed, move |world| match seed % RIVALRY {
        0 => Rivals::new(world).play(),
        _ => Scene::new(world, &[CLIENT, SERVER]).play(),
    })
}

/// The line that shows a failed seed again.
pub fn reproduce(seed: u64) -> String {
    format!("scripts/sim --seed {seed}")
}

#[derive(Clone)]
pub(super) struct Scene {
    /// The machine that writes, and its device.
    pub(super) name: &'static str,
    pub(super) device: u8,
    pub(super) world: World,
    pub(super) rack: Arc<Rack>,
    household: Household,
    pub(super) network: Arc<Network>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) report: Arc<Mutex<Report>>,
    server: Arc<Mutex<Option<Machine>>>,
    quota: Arc<Quota>,
    /// The server is not to come back.
    over: Arc<AtomicBool>,
}

/// Whether the server allows an account only so much.
#[derive(Default)]
struct Quota {
    /// The one that runs, or ran last.
    now: AtomicBool,
    /// Any so far: a client goes by what it was told last.
    ever: AtomicBool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scene {
    pub(super) fn new(world: &World, machines: &[&'static str]) -> Self {
        let weather = Weather::draw(world);
        Self {
            name: CLIENT,
            device: 1,
            world: world.clone(),
            rack: Rack::new(world, machines),
            household: Household::found(),
            network: Network::new(world, weather),
            ledger: Arc::default(),
            report: Arc::default(),
            server: Arc::default(),
            quota: Arc::default(),
            over: Arc::default(),
        }
    }

    fn play(&self) -> Report {
        self.with_server(|| {
            for _ in 0..LIVES {
                self.live(|scene, disk| scene.work(disk));
            }
            self.calm();
            self.finish();
            self.read_elsewhere();
        })
    }

    /// Well disks, fair weather and all the room there is from now on.
    pub(super) fn calm(&self) {
        self.rack.calm();
        if let Some(server) = &*lock(&self.server) {
            match self.quota.now.load(Ordering::SeqCst) {
                true => server.kill(),
                false => server.spare(),
            }
        }
        self.network.set_weather(Weather::FAIR);
    }

    /// Plays with a server, and sums up.
    pub(super) fn with_server(&self, play: impl FnOnce()) -> Report {
        let mine = self.clone();
        let keeper = thread::spawn("keeper", move || mine.keep_server()).unwrap();
        play();
        self.over.store(true, Ordering::SeqCst);
        let server = lock(&self.server).take();
        server.inspect(Machine::kill);
        keeper.join().unwrap();
        let mut report = lock(&self.report).clone();
        let ledger = lock(&self.ledger);
        report.network = self.network.counts();
        report.disks = self.rack.close();
        report.requests += ledger.requests;
        report.promises += ledger.promises;
        report
    }

    /// Starts the server again whenever its power or its disk has failed.
    fn keep_server(&self) {
        loop {
            let (machine, disk) = self.rack.machine(SERVER, Some(SERVER_FUSE));
            *lock(&self.server) = Some(machine.clone());
            let scene = self.clone();
            machine.spawn("main", move || scene.serve(&disk)).unwrap();
            machine.wait_dead();
            drop(self.network.place(None));
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            {
                let mut report = lock(&self.report);
                report.server_crashes += u64::from(machine.is_dead());
                report.server_restarts += u64::from(!machine.is_dead());
            }
            thread::sleep(Duration::from_secs(self.world.below(60)));
        }
    }

    /// Serves until the disk fails.
    fn serve(&self, disk: &Disk) {
        let frugal = self.world.below(QUOTAS) == 0 && !self.rack.is_calm();
        self.quota.now.store(frugal, Ordering::SeqCst);
        self.quota.ever.fetch_or(frugal, Ordering::SeqCst);
        let options = StoreOptions {
            pack_bytes: PACK_BYTES,
            reserve_bytes: 0,
            index_reserve: INDEX_RESERVE,
            quota: frugal.then(|| self.world.below(QUOTA)),
            crash: None,
        };
        let identity = Identity::of(signing(0x55));
        let core = match open_core_on(&*disk.root(), identity, options) {
            Ok(core) => Arc::new(core),
            Err(error) => return self.excused(SERVER, &error),
        };
        let runtime = task::runtime(1, "serve").unwrap();
        if let Err(error) = runtime.block_on(self.household.register(&core)) {
            return self.excused(SERVER, &error);
        }
        let endpoint = Endpoint {
            core: Arc::clone(&core),
            serving: runtime.handle().clone(),
            machine: Machine::current().unwrap(),
        };
        drop(self.network.place(Some(endpoint)));
        let why = runtime.block_on(core.store.failed());
        drop(self.network.place(None));
        core.stop();
        self.excused(SERVER, &why);
    }

    /// What is refused is refused by a machine whose disk is ill, or which has no power any more.
    pub(super) fn excused(&self, name: &str, why: &dyn std::fmt::Display) {
        self.world.note("refused", name.as_bytes());
        let dead = Machine::current().is_some_and(|machine| machine.is_dead());
        assert!(dead || self.rack.is_ill(name), "{name}: {why}");
        if !dead && name != SERVER {
            lock(&self.report).refusals += 1;
        }
    }

    /// A request is refused by a machine that is excused, or because the server has no room for the account.
    pub(super) fn refused(&self, name: &str, why: &DriveError) {
        let over = matches!(why, DriveError::Errno(Errno::EDQUOT));
        if !over || !self.quota.ever.load(Ordering::SeqCst) {
            return self.excused(name, why);
        }
        self.world.note("over quota", name.as_bytes());
        lock(&self.report).over_quota += 1;
    }

    pub(super) fn config(&self, disk: &Disk, n: u8) -> EngineConfig {
        let household = &self.household;
        let mut config = household.config(disk, n);
        config.remote = Some(Arc::new(Line(Arc::new(Ends {
            network: Arc::clone(&self.network),
            number: n,
            device: device(n),
            account: household.account(),
            drive: household.drive,
        }))));
        config
    }

    /// One life of the client. Unless it ends by a power cut, the next one finds what the kernel still has in memory;
    /// or the power fails in between.
    pub(super) fn live(&self, work: impl FnOnce(&Self, &Disk) + Send + 'static) {
        let (machine, disk) = self.rack.machine(self.name, Some(CLIENT_FUSE));
        let scene = self.clone();
        let work = machine.spawn("work", move || work(&scene, &disk)).unwrap();
        let ended = work.join();
        let crashed = machine.is_dead();
        assert!(ended.is_ok() || crashed, "the workload broke off");
        machine.wait_dead();
        lock(&self.report).client_crashes += u64::from(crashed);
        if !crashed && self.world.below(3) == 0 {
            self.rack.cut(self.name);
            lock(&self.report).idle_cuts += 1;
        }
    }

    /// Mounts, and holds what is there against the ledger. An error: the disk has failed.
    fn recover(&self, disk: &Disk, n: u8) -> Result<Mounted, EngineError> {
        let mounted = Mounted(Engine::open(self.config(disk, n))?);
        let found = match mounted.tree() {
            Ok(found) => found,
            Err(_) if mounted.0.status().failed.is_some() => return Err(EngineError::Busy),
            Err(error) => panic!("cannot be read: {error}"),
        };
        let end = lock(&self.ledger).recovered(&found);
        let end = end
            .unwrap_or_else(|complaint| panic!("{complaint}\n  {:?}", mounted.0.status().events));
        self.world.note("recovered", &(end as u64).to_le_bytes());
        lock(&self.report).recoveries += 1;
        Ok(mounted)
    }

    fn work(&self, disk: &Disk) {
        let mounted = match self.recover(disk, 1) {
            Ok(mounted) => mounted,
            Err(error) => return self.excused(CLIENT, &error),
        };
        for _ in 0..self.world.below(25) {
            if let Err(error) = self.step(&mounted) {
                lock(&self.ledger).refused();
                self.refused(CLIENT, &error);
            }
        }
        if self.world.below(2) == 0 {
            let mark = lock(&self.ledger).mark();
            let deadline = time::now() + Duration::from_secs(self.world.below(300));
            if mounted.0.shutdown(deadline).is_ok() {
                lock(&self.ledger).promise(mark);
            }
        }
    }

    /// One thing a program does. An error: it was refused, and so was the last request in the ledger.
    pub(super) fn step(&self, mounted: &Mounted) -> Answer<()> {
        let below = |bound| self.world.below(bound);
        let name = format!("f{}", below(NAMES));
        let stands = lock(&self.ledger).tree().get(&name).cloned();
        let dice = below(100);
        self.world.note("step", &[dice as u8]);
        match (dice, stands) {
            (0..40, stands) => self.rewrite(mounted, &name, stands.is_some())?,
            (40..48, Some(content)) => {
                let size = below(content.len() as u64 + 2000);
                self.request(|t| resize(t, &name, size), None);
                mounted.truncate(&name, size)?;
            }
            (48..56, Some(_)) => {
                self.request(|t| drop(t.remove(&name)), None);
                mounted.unlink(&name)?;
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
                mounted.rename(&name, &to)?;
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
                    lock(&self.ledger).commit(mark);
                }
            }
            (90..94, _) => self.rack.change_space(),
            _ => thread::sleep(Duration::from_millis(below(6000))),
        }
        Ok(())
    }

    fn rewrite(&self, mounted: &Mounted, name: &str, stands: bool) -> Answer<()> {
        let handle = if stands {
            self.request(|_| {}, Some(name));
            mounted.open(name)?
        } else {
            self.request(
                |t| drop(t.insert(name.to_owned(), Arc::default())),
                Some(name),
            );
            mounted.create(name)?
        };
        let written = self.write_some(mounted, name);
        if written.is_err() {
            lock(&self.ledger).refused();
        }
        self.request(|_| {}, None);
        mounted.release(handle);
        if written.is_err() {
            // For the caller to take back.
            self.request(|_| {}, None);
        }
        written
    }

    fn write_some(&self, mounted: &Mounted, name: &str) -> Answer<()> {
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
            mounted.write(name, off, &data)?;
        }
        Ok(())
    }

    fn request(&self, change: impl FnOnce(&mut Tree), open: Option<&str>) {
        lock(&self.ledger).request(change, open);
    }

    /// In fair weather, and on well disks, everything reaches the server.
    fn finish(&self) {
        let (machine, disk) = self.rack.machine(CLIENT, None);
        let scene = self.clone();
        let last = machine.spawn("last", move || {
            let mounted = scene.recover(&disk, 1).expect("the disk is well");
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
        let (machine, disk) = self.rack.machine("other", None);
        let scene = self.clone();
        let read = move || drop(scene.recover(&disk, 2).expect("the disk is well"));
        let reader = machine.spawn("reads", read);
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
