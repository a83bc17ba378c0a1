//! The scheduler: passes the token from thread to thread of one world, and the view a thread has of it.
//!
//! Invariant: a thread returns from here only with the token in its hand, and a killed one never returns: it unwinds.
//! While it unwinds it is let through, so that what it holds is given back; only locks and ends of threads still make
//! it wait. Called by every primitive of this crate.

use std::cell::RefCell;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::state::{Alarm, Baton, Bell, Blocked, MachineState, Next, Slot, State};
use crate::time::FOREVER;

/// Wall clock at the beginning of every world, seconds since 1970 (January 2027).
const EPOCH_S: u64 = 1_800_000_000;
/// One in so many locks taken is a point where somebody else may go first.
const LOCKS_PER_YIELD: u64 = 6;
/// One in so many yields is a thread held up, as on a machine under load.
const YIELDS_PER_STALL: u64 = 400;
/// Longest such hold-up, milliseconds.
const STALL_MS: u64 = 40;

/// What a killed thread unwinds with. Nobody outside this crate can make or catch one.
pub(super) struct Killed;

/// Whether a thread woke because it was called or because its time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    Rung,
    TimedOut,
}

/// A name for something to wait on; taken at first use.
#[derive(Debug, Default)]
pub(super) struct Key(AtomicU64);

impl Key {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(super) fn bell(&self) -> Bell {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        match self.0.load(Ordering::Relaxed) {
            0 => {
                let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
                // Numbers are only ever compared, so what they are changes nothing.
                match self
                    .0
                    .compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed)
                {
                    Ok(_) => fresh,
                    Err(taken) => taken,
                }
            }
            bell => bell,
        }
    }
}

pub(super) struct Scheduler {
    state: Mutex<State>,
    zero: Instant,
    over: Mutex<Option<bool>>,
    ended: Condvar,
}

impl Scheduler {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: Mutex::new(State::new(seed)),
            zero: Instant::now(),
            over: Mutex::new(None),
            ended: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_machine(&self, name: &str) -> usize {
        let mut state = self.lock();
        state.machines.push(MachineState {
            name: name.into(),
            dead: false,
            fuse: None,
            last_will: None,
            threads: 0,
            empty: Key::new().bell(),
            skew_s: 0,
        });
        state.machines.len() - 1
    }

    /// A place for a thread that does not run yet.
    pub(super) fn add_thread(self: &Arc<Self>, machine: usize, name: &str) -> Me {
        let mut state = self.lock();
        let thread = state.next_thread;
        state.next_thread += 1;
        state.machines[machine].threads += 1;
        let (baton, end) = (Arc::<Baton>::default(), Key::new().bell());
        let slot = Slot {
            name: name.into(),
            machine,
            baton: Arc::clone(&baton),
            blocked: None,
            timed_out: false,
            killed: state.machines[machine].dead,
        };
        state.threads.insert(thread, slot);
        state.runnable.insert(thread);
        drop(state);
        Me {
            scheduler: Arc::clone(self),
            thread,
            machine,
            baton,
            end,
        }
    }

    /// Gives the token to whoever is chosen.
    pub(super) fn pass_on<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        loop {
            match state.choose() {
                Next::Run(thread) => {
                    let baton = Arc::clone(&state.threads[&thread].baton);
                    drop(state);
                    return baton.pass();
                }
                Next::Wake(tasks) => {
                    drop(state);
                    tasks.into_iter().for_each(Waker::wake);
                }
                Next::Bury(last_will) => {
                    drop(state);
                    if let Some(last_will) = last_will {
                        last_will();
                    }
                }
                Next::Stuck => {
                    drop(state);
                    return self.finish(false);
                }
            }
            state = self.lock();
        }
    }

    /// The world is over; `clean`: every thread has ended.
    pub(super) fn finish(&self, clean: bool) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = Some(clean);
        self.ended.notify_all();
    }

    /// Waits, outside the world, for its end.
    pub(super) fn wait_over(&self) -> bool {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(clean) = *over {
                return clean;
            }
            over = self
                .ended
                .wait(over)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn ring(&self, bell: Bell) {
        self.lock().ring(bell);
    }
}

/// A thread's place in its world.
#[derive(Clone)]
pub(crate) struct Me {
    pub(super) scheduler: Arc<Scheduler>,
    pub(super) thread: u64,
    pub(super) machine: usize,
    baton: Arc<Baton>,
    /// Rung when the thread has ended.
    pub(super) end: Bell,
}

thread_local! {
    static ME: RefCell<Option<Me>> = const { RefCell::new(None) };
}

/// The calling thread's place, if it lives in a world.
pub(crate) fn current() -> Option<Me> {
    ME.try_with(|me| me.borrow().clone()).ok().flatten()
}

impl Me {
    /// Makes the calling thread this one, and waits for its first turn.
    pub(super) fn enter(&self) {
        ME.with(|me| *me.borrow_mut() = Some(self.clone()));
        self.baton.wait();
    }

    /// The thread has ended: it gives the token away for good. `broke` tells how, if not by itself.
    pub(super) fn leave(self, broke: Option<String>) {
        ME.with(|me| *me.borrow_mut() = None);
        let mut state = self.scheduler.lock();
        state.runnable.remove(&self.thread);
        if let Some(slot) = state.threads.remove(&self.thread)
            && let Some(how) = broke
        {
            let machine = &state.machines[self.machine].name;
            let what = format!("{machine}/{} panicked: {how}", slot.name);
            state.give_up(what);
        }
        state.ring(self.end);
        state.machines[self.machine].threads -= 1;
        if state.machines[self.machine].threads == 0 {
            let empty = state.machines[self.machine].empty;
            state.ring(empty);
        }
        if state.threads.is_empty() {
            drop(state);
            return self.scheduler.finish(true);
        }
        self.scheduler.pass_on(state);
    }

    /// Gives the token away and waits until it is back. A thread killed meanwhile does not return.
    fn switch(&self, state: MutexGuard<'_, State>) {
        self.scheduler.pass_on(state);
        self.baton.wait();
    }

    fn check(&self) {
        if self.is_killed() && !std::thread::panicking() {
            resume_unwind(Box::new(Killed));
        }
    }

    pub(super) fn is_killed(&self) -> bool {
        self.scheduler
            .lock()
            .threads
            .get(&self.thread)
            .is_some_and(|slot| slot.killed)
    }

    fn is_dying(&self) -> bool {
        std::thread::panicking() && self.is_killed()
    }

    /// Somebody else may go first.
    pub(super) fn yield_now(&self) {
        self.check();
        if std::thread::panicking() {
            return;
        }
        let mut state = self.scheduler.lock();
        if state.random.below(YIELDS_PER_STALL) == 0 {
            let stall = Duration::from_millis(state.random.below(STALL_MS + 1));
            drop(state);
            return self.sleep(stall);
        }
        self.switch(state);
        self.check();
    }

    /// Now and then somebody else may go first.
    pub(super) fn maybe_yield(&self) {
        let here = self.scheduler.lock().random.below(LOCKS_PER_YIELD) == 0;
        if here {
            self.yield_now();
        } else {
            self.check();
        }
    }

    /// Waits until somebody rings, or until `deadline`. The caller looks again at what it waits for.
    pub(super) fn wait(&self, bell: Bell, why: &'static str, deadline: Option<Duration>) -> Woken {
        self.check();
        let mut state = self.scheduler.lock();
        let timer = deadline.map(|at| {
            let timer = (at, state.next_timer);
            state.next_timer += 1;
            state.timers.insert(timer, Alarm::Thread(self.thread));
            timer
        });
        state.runnable.remove(&self.thread);
        if let Some(slot) = state.threads.get_mut(&self.thread) {
            slot.timed_out = false;
            slot.blocked = Some(Blocked { bell, why, timer });
        }
        self.switch(state);
        self.check();
        let mut state = self.scheduler.lock();
        let slot = state.threads.get_mut(&self.thread);
        match slot.is_some_and(|slot| std::mem::take(&mut slot.timed_out)) {
            true => Woken::TimedOut,
            false => Woken::Rung,
        }
    }

    pub(super) fn sleep(&self, time: Duration) {
        if self.is_dying() {
            return;
        }
        let deadline = self.deadline(time);
        while self.elapsed() < deadline {
            self.wait(Key::new().bell(), "sleeps", Some(deadline));
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.scheduler.lock().now
    }

    pub(super) fn deadline(&self, from_now: Duration) -> Duration {
        self.elapsed() + from_now.min(FOREVER)
    }

    pub(super) fn set_alarm(&self, at: Duration, waker: Waker) -> (Duration, u64) {
        let mut state = self.scheduler.lock();
        let timer = (at, state.next_timer);
        state.next_timer += 1;
        state.timers.insert(timer, Alarm::Task(waker));
        timer
    }

    pub(crate) fn now(&self) -> Instant {
        self.scheduler.zero + self.elapsed()
    }

    pub(crate) fn wall(&self) -> SystemTime {
        let state = self.scheduler.lock();
        let skew = state.machines[self.machine].skew_s;
        UNIX_EPOCH + Duration::from_secs(EPOCH_S.saturating_add_signed(skew)) + state.now
    }

    pub(crate) fn entropy(&self, out: &mut [u8]) {
        self.scheduler.lock().entropy.fill(out);
    }

    pub(super) fn below(&self, bound: u64) -> u64 {
        self.scheduler.lock().random.below(bound)
    }
}
