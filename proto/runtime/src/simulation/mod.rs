//! Simulated worlds: one seed decides who runs when, what time it is, what is random and who dies.
//!
//! Invariant: the same seed and the same code give the same digest, which covers every scheduling decision and
//! everything noted. A world that deadlocks, panics or never ends is an error that says so. Called by the simulation
//! tests only.

pub(crate) mod condvar;
pub(crate) mod executor;
pub(crate) mod lock;
pub(crate) mod queue;
mod random;
pub(crate) mod runtime;
mod scheduler;
mod state;
pub(crate) mod thread;
pub(crate) mod timer;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::scheduler::{Me, Scheduler};

pub(crate) use self::scheduler::current;
pub use self::thread::JoinHandle;

/// One world, seen from within. Cheap to clone.
#[derive(Clone)]
pub struct World(Arc<Scheduler>);

/// What a world came to.
#[derive(Debug)]
pub struct Outcome<T> {
    /// What the root returned; or everything that went wrong.
    pub result: Result<T, String>,
    /// BLAKE3 over every decision and note.
    pub digest: [u8; 32],
    /// Scheduling decisions.
    pub decisions: u64,
    /// Virtual time that passed.
    pub elapsed: Duration,
}

impl World {
    /// Runs `root` as the first thread of a world of this seed, until it and all others have ended. Machines that still
    /// run when `root` returns are switched off.
    pub fn run<T: Send + 'static>(
        seed: u64,
        root: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Outcome<T> {
        let scheduler = Arc::new(Scheduler::new(seed));
        let machine = scheduler.add_machine("root");
        let place = scheduler.add_thread(machine, "root");
        let world = Self(Arc::clone(&scheduler));
        let started = thread::spawn_at(place, "root", move || {
            let value = root(&world);
            world.switch_off();
            value
        });
        let value = started.ok().map(|root| {
            scheduler.pass_on(scheduler.lock());
            // A world that is stuck has threads that never end; theirs is not waited for.
            scheduler.wait_over().then(|| root.join().ok()).flatten()
        });
        let state = scheduler.lock();
        let result = match value.flatten() {
            Some(value) if state.troubles.is_empty() => Ok(value),
            _ => Err(state.troubles.join("\n")),
        };
        Outcome {
            result,
            digest: *state.digest.finalize().as_bytes(),
            decisions: state.decisions,
            elapsed: state.now,
        }
    }

    /// The world of the calling thread, if it lives in one.
    pub fn current() -> Option<Self> {
        current().map(|me| Self(me.scheduler))
    }

    /// A new machine.
    pub fn machine(&self, name: &str) -> Machine {
        Machine {
            world: self.clone(),
            index: self.0.add_machine(name),
        }
    }

    /// Something that happened, for the digest.
    pub fn note(&self, what: &str, bytes: &[u8]) {
        let mut state = self.0.lock();
        state.digest.update(&(what.len() as u64).to_le_bytes());
        state.digest.update(what.as_bytes());
        state.digest.update(&(bytes.len() as u64).to_le_bytes());
        state.digest.update(bytes);
    }

    /// A number below `bound`.
    pub fn below(&self, bound: u64) -> u64 {
        self.0.lock().random.below(bound)
    }

    /// Virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.0.lock().now
    }

    fn switch_off(&self) {
        let count = self.0.lock().machines.len();
        for index in 1..count {
            let machine = Machine {
                world: self.clone(),
                index,
            };
            self.0.lock().machines[index].last_will = None;
            machine.kill();
            machine.wait_dead();
        }
    }
}

/// Threads that live and die together.
#[derive(Clone)]
pub struct Machine {
    world: World,
    index: usize,
}

impl Machine {
    /// The machine of the calling thread, if it lives in a world.
    pub fn current() -> Option<Self> {
        current().map(|me| Self {
            world: World(me.scheduler),
            index: me.machine,
        })
    }

    /// Starts a thread on it.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let place: Me = self.world.0.add_thread(self.index, name);
        thread::spawn_at(place, name, body)
    }

    /// Stops it as a power cut would: none of its threads returns from where it stands.
    pub fn kill(&self) {
        let mut state = self.world.0.lock();
        if state.machines[self.index].dead {
            return;
        }
        let last_will = state.kill(self.index);
        drop(state);
        if let Some(last_will) = last_will {
            last_will();
        }
    }

    /// It will die when it has had so many more turns.
    pub fn kill_after(&self, turns: u64) {
        self.world.0.lock().machines[self.index].fuse = Some(turns);
    }

    /// Takes a `kill_after` back.
    pub fn spare(&self) {
        self.world.0.lock().machines[self.index].fuse = None;
    }

    /// What happens at the moment it dies, before any of its threads unwinds. Must not wait.
    pub fn on_kill(&self, last_will: impl FnOnce() + Send + 'static) {
        self.world.0.lock().machines[self.index].last_will = Some(Box::new(last_will));
    }

    /// Whether it has died.
    pub fn is_dead(&self) -> bool {
        self.world.0.lock().machines[self.index].dead
    }

    /// Waits until the last of its threads has ended.
    pub fn wait_dead(&self) {
        let Some(me) = current() else { return };
        loop {
            let state = self.world.0.lock();
            let machine = &state.machines[self.index];
            let (threads, empty) = (machine.threads, machine.empty);
            drop(state);
            if threads == 0 {
                return;
            }
            me.wait(empty, "waits for a machine to end", None);
        }
    }

    /// Sets its wall clock wrong by so many seconds.
    pub fn set_skew(&self, seconds: i64) {
        self.world.0.lock().machines[self.index].skew_s = seconds;
    }
}
