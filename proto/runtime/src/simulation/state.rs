//! What the scheduler knows: threads, timers, machines, time, dice and the digest of all that happened.
//!
//! Invariant: exactly one thread of a world runs; `runnable` holds it and those that may be chosen next, ordered by
//! number, so that the order in which they were woken tells nothing. Changed under one lock by `scheduler.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use super::random::Random;

/// Decisions after which a world counts as one that never ends.
const MOST_DECISIONS: u64 = 20_000_000;
/// Virtual time after which a world counts as one that never ends.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// Most virtual microseconds that pass from one decision to the next.
const STEP_US: u64 = 10;

/// What a thread waits on: whoever rings this number wakes it.
pub(super) type Bell = u64;

/// The token of one thread.
#[derive(Default)]
pub(super) struct Baton {
    mine: Mutex<bool>,
    passed: Condvar,
}

impl Baton {
    pub(super) fn pass(&self) {
        *self.mine.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.passed.notify_one();
    }

    pub(super) fn wait(&self) {
        let mut mine = self.mine.lock().unwrap_or_else(PoisonError::into_inner);
        while !*mine {
            mine = self
                .passed
                .wait(mine)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *mine = false;
    }
}

pub(super) struct Blocked {
    pub(super) bell: Bell,
    pub(super) why: &'static str,
    pub(super) timer: Option<(Duration, u64)>,
}

pub(super) struct Slot {
    pub(super) name: String,
    pub(super) machine: usize,
    pub(super) baton: Arc<Baton>,
    pub(super) blocked: Option<Blocked>,
    pub(super) timed_out: bool,
    pub(super) killed: bool,
}

pub(super) enum Alarm {
    Thread(u64),
    Task(Waker),
}

/// What happens at the moment a machine dies, on whatever thread happens to run.
pub(super) type LastWill = Box<dyn FnOnce() + Send>;

pub(super) struct MachineState {
    pub(super) name: String,
    pub(super) dead: bool,
    /// Decisions left before it dies.
    pub(super) fuse: Option<u64>,
    pub(super) last_will: Option<LastWill>,
    pub(super) threads: usize,
    /// Rung when the last thread has ended.
    pub(super) empty: Bell,
    /// How far its wall clock is from the world's, seconds.
    pub(super) skew_s: i64,
}

pub(super) struct State {
    pub(super) now: Duration,
    pub(super) random: Random,
    pub(super) entropy: blake3::OutputReader,
    pub(super) digest: blake3::Hasher,
    pub(super) decisions: u64,
    pub(super) threads: BTreeMap<u64, Slot>,
    pub(super) runnable: BTreeSet<u64>,
    pub(super) next_thread: u64,
    pub(super) timers: BTreeMap<(Duration, u64), Alarm>,
    pub(super) next_timer: u64,
    pub(super) machines: Vec<MachineState>,
    /// What must not happen in a world, in the order it did: deadlock, panic, endlessness.
    pub(super) troubles: Vec<String>,
    /// Everything is being torn down after trouble: a second deadlock now is the end.
    pub(super) ending: bool,
}

/// What to do after a look at the state.
pub(super) enum Next {
    /// This thread's turn.
    Run(u64),
    /// These tasks are due; look again after waking them.
    Wake(Vec<Waker>),
    /// A machine died; look again after its last will.
    Bury(Option<LastWill>),
    /// Nobody can ever run again, even after everything was killed.
    Stuck,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("sealdrive simulation entropy v1");
        hasher.update(&seed.to_le_bytes());
        Self {
            now: Duration::ZERO,
            random: Random::new(seed),
            entropy: hasher.finalize_xof(),
            digest: blake3::Hasher::new(),
            decisions: 0,
            threads: BTreeMap::new(),
            runnable: BTreeSet::new(),
            next_thread: 0,
            timers: BTreeMap::new(),
            next_timer: 0,
            machines: Vec::new(),
            troubles: Vec::new(),
            ending: false,
        }
    }

    /// One decision: who runs next.
    pub(super) fn choose(&mut self) -> Next {
        self.now += Duration::from_micros(self.random.below(STEP_US + 1));
        let due = self.fire();
        if !due.is_empty() {
            return Next::Wake(due);
        }
        if self.runnable.is_empty() {
            return self.idle();
        }
        self.decisions += 1;
        if self.decisions > MOST_DECISIONS || self.now > LONGEST {
            return self.end_all("does not end");
        }
        let nth = self.random.below(self.runnable.len() as u64) as usize;
        let chosen = *self.runnable.iter().nth(nth).unwrap_or(&0);
        let machine = self.threads[&chosen].machine;
        self.digest.update(&chosen.to_le_bytes());
        self.digest.update(&self.now.as_micros().to_le_bytes());
        if self.machines[machine]
            .fuse
            .take_if(|left| *left == 0)
            .is_some()
        {
            return Next::Bury(self.kill(machine));
        }
        if let Some(left) = &mut self.machines[machine].fuse {
            *left -= 1;
        }
        Next::Run(chosen)
    }

    fn idle(&mut self) -> Next {
        match self.timers.first_key_value() {
            Some((&(at, _), _)) => {
                self.now = self.now.max(at);
                Next::Wake(self.fire())
            }
            None => self.end_all("deadlock: nobody can run and no timer is set"),
        }
    }

    /// Wakes the threads whose time has come; returns the tasks.
    fn fire(&mut self) -> Vec<Waker> {
        let mut tasks = Vec::new();
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= self.now
        {
            match entry.remove() {
                Alarm::Task(waker) => tasks.push(waker),
                Alarm::Thread(thread) => {
                    if let Some(slot) = self.threads.get_mut(&thread) {
                        slot.blocked = None;
                        slot.timed_out = true;
                        self.runnable.insert(thread);
                    }
                }
            }
        }
        tasks
    }

    fn end_all(&mut self, why: &str) -> Next {
        if self.ending {
            return Next::Stuck;
        }
        let mut report = format!("{why} (after {} decisions, {:?})", self.decisions, self.now);
        for slot in self.threads.values() {
            let machine = &self.machines[slot.machine].name;
            let waits = slot.blocked.as_ref().map_or("may run", |b| b.why);
            report.push_str(&format!("\n  {machine}/{}: {waits}", slot.name));
        }
        self.decisions = 0;
        self.give_up(report);
        Next::Bury(None)
    }

    /// Something is wrong: everything ends now, so that the report comes soon.
    pub(super) fn give_up(&mut self, trouble: String) {
        self.troubles.push(trouble);
        self.ending = true;
        for machine in 0..self.machines.len() {
            // A last will is for a crash, not for the end of the world.
            drop(self.kill(machine));
        }
    }

    /// From now on each thread of the machine ends as soon as it would wait.
    pub(super) fn kill(&mut self, machine: usize) -> Option<LastWill> {
        let state = &mut self.machines[machine];
        state.dead = true;
        state.fuse = None;
        let last_will = state.last_will.take();
        self.digest.update(b"kill");
        let all = self.threads.iter_mut();
        for (thread, slot) in all.filter(|(_, slot)| slot.machine == machine) {
            slot.killed = true;
            if let Some(timer) = slot.blocked.take().and_then(|blocked| blocked.timer) {
                self.timers.remove(&timer);
            }
            self.runnable.insert(*thread);
        }
        last_will
    }

    /// Makes all who wait on `bell` runnable.
    pub(super) fn ring(&mut self, bell: Bell) {
        for (thread, slot) in &mut self.threads {
            if let Some(blocked) = slot.blocked.take_if(|blocked| blocked.bell == bell) {
                if let Some(timer) = blocked.timer {
                    self.timers.remove(&timer);
                }
                self.runnable.insert(*thread);
            }
        }
    }

    /// Lets one of those who wait on `bell` run, chosen by the dice.
    pub(super) fn ring_one(&mut self, bell: Bell) {
        let waiting = |slot: &Slot| slot.blocked.as_ref().is_some_and(|b| b.bell == bell);
        let all: Vec<u64> = self
            .threads
            .iter()
            .filter(|(_, slot)| waiting(slot))
            .map(|(thread, _)| *thread)
            .collect();
        if all.is_empty() {
            return;
        }
        let chosen = all[self.random.below(all.len() as u64) as usize];
        let slot = self.threads.get_mut(&chosen);
        if let Some(timer) = slot
            .and_then(|slot| slot.blocked.take())
            .and_then(|blocked| blocked.timer)
        {
            self.timers.remove(&timer);
        }
        self.runnable.insert(chosen);
    }
}
