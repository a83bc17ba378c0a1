//! The disks of a world's machines: which one a machine stands on, how it loses its power, and what fails on it.
//!
//! Invariant: a machine that loses its power loses it together with its disk, at one moment: what is left is taken
//! before any of its threads unwinds, and from then on its old disk does nothing any more. Everything is drawn from the
//! world's dice. A disk's own lock is the only one that its operations take, so none of them lets another thread run.
//! Called by `world.rs`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sealdrive_runtime::simulation::{Machine, World};

use super::disk::{Config, Disk, Op, Survivors, Trouble, seeded};

/// What a disk is like that nobody has made small.
const ROOMY: u64 = 1 << 40;
/// Room left on a disk that fills up, bytes, at most: some packs, or not even a journal record.
const TIGHT: u64 = 400_000;

/// How a machine may die, besides not at all.
#[derive(Clone, Copy)]
pub(super) struct Fuse {
    /// Turns of its threads at most.
    pub(super) turns: u64,
    /// Operations of its disk at most.
    pub(super) operations: u64,
}

/// What is wrong with the disk of a machine in this world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ill {
    Nothing,
    /// Now and then an operation fails.
    Broken(Op),
    /// Space runs out and comes back.
    Full,
}

impl Ill {
    fn draw(world: &World) -> Self {
        match world.below(8) {
            0 => Self::Broken(Op::Sync),
            1 => Self::Broken(Op::Write),
            2 => Self::Full,
            _ => Self::Nothing,
        }
    }
}

#[derive(Default)]
struct Disks {
    now: BTreeMap<&'static str, Disk>,
    /// Those of machines that lost their power, in order.
    past: Vec<Disk>,
}

/// The disks. They outlive every machine.
pub(super) struct Rack {
    world: World,
    ill: BTreeMap<&'static str, Ill>,
    calm: AtomicBool,
    disks: Mutex<Disks>,
}

impl Rack {
    /// Disks for these machines, some of them ill.
    pub(super) fn new(world: &World, machines: &[&'static str]) -> Arc<Self> {
        let ill = machines.iter().map(|name| (*name, Ill::draw(world)));
        Arc::new(Self {
            world: world.clone(),
            ill: ill.collect(),
            calm: AtomicBool::new(false),
            disks: Mutex::default(),
        })
    }

    // A lock of std: nothing inside waits.
    fn disks(&self) -> MutexGuard<'_, Disks> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ill(&self, name: &str) -> Ill {
        self.ill.get(name).copied().unwrap_or(Ill::Nothing)
    }

    /// Whether the disk of this machine may refuse.
    pub(super) fn is_ill(&self, name: &str) -> bool {
        self.ill(name) != Ill::Nothing && !self.calm.load(Ordering::SeqCst)
    }

    /// Whether there are no more accidents.
    pub(super) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::SeqCst)
    }

    fn disk(&self, name: &'static str) -> Disk {
        let seed = self.world.below(u64::MAX);
        let unit = if seed.is_multiple_of(2) { 1 } else { 512 };
        let config = Config {
            unit,
            capacity: ROOMY,
            ..Config::default()
        };
        let fresh = || Disk::new(config, seeded(seed));
        self.disks().now.entry(name).or_insert_with(fresh).clone()
    }

    /// Another disk in the place of a machine's.
    fn replace(&self, name: &'static str, left: Disk) {
        self.world.note("power cut", name.as_bytes());
        let mut disks = self.disks();
        if let Some(old) = disks.now.insert(name, left) {
            disks.past.push(old);
        }
    }

    fn survivors(&self) -> Survivors {
        match self.world.below(8) {
            0 => Survivors::Nothing,
            1 => Survivors::Everything,
            _ => Survivors::Some(self.world.below(u64::MAX)),
        }
    }

    /// The power fails while nothing runs on that machine.
    pub(super) fn cut(&self, name: &'static str) {
        let (disk, survivors) = (self.disk(name), self.survivors());
        let left = disk.power_cut(survivors);
        disk.halt();
        self.replace(name, left);
    }

    /// A machine on its disk, which may die of `fuse`.
    pub(super) fn machine(
        self: &Arc<Self>,
        name: &'static str,
        fuse: Option<Fuse>,
    ) -> (Machine, Disk) {
        let (machine, disk) = (self.world.machine(name), self.disk(name));
        let survivors = self.survivors();
        let taken = Arc::new(AtomicBool::new(false));
        let (rack, old, was) = (Arc::clone(self), disk.clone(), Arc::clone(&taken));
        machine.on_kill(move || {
            if !was.swap(true, Ordering::SeqCst) {
                let left = old.power_cut(survivors);
                old.halt();
                rack.replace(name, left);
            }
        });
        disk.watch(None);
        let calm = self.calm.load(Ordering::SeqCst);
        let Some(fuse) = fuse.filter(|_| !calm) else {
            return (machine, disk);
        };
        match self.world.below(8) {
            0 | 1 => {}
            2..5 => machine.kill_after(self.world.below(fuse.turns)),
            _ => {
                let mut left = self.world.below(fuse.operations);
                let (rack, dies) = (Arc::clone(self), machine.clone());
                disk.watch(Some(Box::new(move |cut| {
                    if left > 0 {
                        left -= 1;
                        return false;
                    }
                    if !taken.swap(true, Ordering::SeqCst) {
                        rack.replace(name, cut(survivors));
                        dies.kill();
                    }
                    true
                })));
            }
        }
        if let Ill::Broken(op) = self.ill(name)
            && self.world.below(2) == 0
        {
            let nth = 1 + self.world.below(fuse.operations / 2);
            disk.fail(op, nth, Trouble::Broken);
        }
        (machine, disk)
    }

    /// Space runs out, or comes back, where that is what is wrong.
    pub(super) fn change_space(&self) {
        for (name, ill) in &self.ill {
            if *ill == Ill::Full && !self.calm.load(Ordering::SeqCst) {
                let disk = self.disk(name);
                let room = match self.world.below(2) {
                    0 => disk.used() + self.world.below(TIGHT),
                    _ => ROOMY,
                };
                disk.set_capacity(room);
            }
        }
    }

    /// No more accidents.
    pub(super) fn calm(&self) {
        self.calm.store(true, Ordering::SeqCst);
        for disk in self.disks().now.values() {
            disk.heal();
            disk.set_capacity(ROOMY);
            disk.watch(None);
        }
    }

    /// Everything any disk did goes into the world's digest; what went wrong, by machine and kind.
    pub(super) fn close(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        let mut disks = self.disks();
        let now = std::mem::take(&mut disks.now);
        let now = now.into_values();
        for disk in disks.past.drain(..).chain(now) {
            disk.watch(None);
            self.world.note("disk", &disk.digest());
            for (kind, count) in disk.counters() {
                *sum.entry(kind.to_owned()).or_default() += count;
            }
        }
        sum
    }
}
