//! Bursts of small requests on a machine with two processors: the loop stays on the processor of the program that
//! waits for it, and the other one does not fall asleep.
//!
//! The kernel wakes whoever waited on an idle processor if there is one. With two processors that is always the other
//! one: a program and the loop that answers it wake each other across processors with every request. In a virtual
//! machine that was measured at 60 us for a round trip where 2 us would do, many times the work of the request itself.
//! While requests come quickly, one thread of the lowest priority therefore keeps the other processor from being idle;
//! whatever else wants that processor goes first. With more processors there is always another idle one, and this
//! would only burn power: nothing is done then.
//!
//! Invariant: runs only from the first requests of a burst until a few milliseconds after the last; only the loop is
//! bound to a processor, and it is let go afterwards. Called by the door.

use std::fs;
use std::hint;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

use crate::{clock, priority};

/// Requests looked at together: few enough to notice a burst before a small directory is done.
const WINDOW: u64 = 64;
/// A window that took no longer is part of a burst: 8,000 requests a second. Large writes come slower.
const QUICK: Duration = Duration::from_millis(8);
/// How often the companion looks whether requests still come.
const LOOK: Duration = Duration::from_millis(4);
/// Fewer requests in one look end the burst.
const FEW: u64 = 4;
/// Looks between two questions where the program runs.
const FOLLOW: u32 = 8;
/// The lowest priority there is.
const LOWEST: i32 = 19;
/// The number of processors with which this helps.
const PROCESSORS: usize = 2;

/// What the loop notes, and the thread that acts on it.
pub(super) struct Burst {
    state: Arc<State>,
    companion: OnceLock<Thread>,
}

struct State {
    /// Requests so far.
    requests: AtomicU64,
    /// When the window began. Only the loop takes this lock.
    began: Mutex<Option<Instant>>,
    /// Who sent the last request of a full window; 0 if the kernel does not say.
    caller: AtomicU32,
    /// The loop's thread id; 0 before its first window.
    answerer: AtomicU32,
    active: AtomicBool,
}

impl Burst {
    /// Ready to be told of requests; does nothing on machines where it would not help.
    pub(super) fn start() -> io::Result<Self> {
        let burst = Self {
            state: Arc::new(State {
                requests: AtomicU64::new(0),
                began: Mutex::default(),
                caller: AtomicU32::new(0),
                answerer: AtomicU32::new(0),
                active: AtomicBool::new(false),
            }),
            companion: OnceLock::new(),
        };
        if processors().is_some() {
            let state = Arc::downgrade(&burst.state);
            let thread = thread::Builder::new()
                .name("fuse-awake".to_owned())
                .spawn(move || accompany(&state))?;
            // The cell is new: it cannot be taken.
            let _ = burst.companion.set(thread.thread().clone());
        }
        Ok(burst)
    }

    /// Notes a request of process `caller`. Called on the loop thread for every request: a count, and a look at the
    /// clock once a window.
    pub(super) fn note(&self, caller: u32) {
        let Some(companion) = self.companion.get() else {
            return;
        };
        let count = self.state.requests.fetch_add(1, Ordering::Relaxed);
        if count % WINDOW != WINDOW - 1 {
            return;
        }
        let now = clock::now();
        let began = self
            .state
            .began
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(now);
        self.state.caller.store(caller, Ordering::Relaxed);
        let quick = began.is_some_and(|began| now.duration_since(began) <= QUICK);
        if quick && !self.state.active.load(Ordering::Acquire) {
            let thread = u32::try_from(gettid().as_raw_nonzero().get()).unwrap_or(0);
            self.state.answerer.store(thread, Ordering::Relaxed);
            self.state.active.store(true, Ordering::Release);
            companion.unpark();
        }
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        if let Some(companion) = self.companion.get() {
            companion.unpark();
        }
    }
}

/// The two processors this process may use, if it is exactly two.
fn processors() -> Option<[usize; PROCESSORS]> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut found = (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor));
    let both = [found.next()?, found.next()?];
    found.next().is_none().then_some(both)
}

/// The companion: sleeps between bursts, and ends with the session.
fn accompany(state: &Weak<State>) {
    priority::step_back(LOWEST);
    let Some(both) = processors() else { return };
    loop {
        thread::park();
        let Some(state) = state.upgrade() else { return };
        if state.active.load(Ordering::Acquire) {
            accompany_burst(&state, both);
            state.active.store(false, Ordering::Release);
        }
    }
}

fn accompany_burst(state: &State, both: [usize; PROCESSORS]) {
    let answerer = thread_id(state.answerer.load(Ordering::Relaxed));
    let mut at = None;
    let mut seen = state.requests.load(Ordering::Relaxed);
    for look in 0_u32.. {
        if look % FOLLOW == 0 {
            let caller = processor_of(state.caller.load(Ordering::Relaxed));
            if caller.is_some() && caller != at {
                at = caller;
                part(answerer, caller, both);
            }
        }
        let until = clock::now() + LOOK;
        while clock::now() < until {
            hint::spin_loop();
        }
        let requests = state.requests.load(Ordering::Relaxed);
        if requests - seen < FEW {
            break;
        }
        seen = requests;
    }
    if answerer.is_some() {
        bind(answerer, &both);
    }
    bind(None, &both);
}

/// The loop to the program's processor, this thread to the other one.
fn part(answerer: Option<Pid>, caller: Option<usize>, both: [usize; PROCESSORS]) {
    let other = both.iter().find(|&&processor| Some(processor) != caller);
    if let (Some(answerer), Some(caller), Some(&other)) = (answerer, caller, other)
        && both.contains(&caller)
    {
        bind(Some(answerer), &[caller]);
        bind(None, &[other]);
    }
}

/// Restricts a thread of this process (`None`: the calling one) to `processors`.
fn bind(thread: Option<Pid>, processors: &[usize]) {
    let mut set = CpuSet::new();
    processors.iter().for_each(|&processor| set.set(processor));
    if let Err(error) = sched_setaffinity(thread, &set) {
        tracing::debug!(%error, "a thread stays where it is");
    }
}

fn thread_id(raw: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(raw).ok()?)
}

/// The processor a process last ran on (field 39 of proc_pid_stat(5)).
fn processor_of(process: u32) -> Option<usize> {
    if process == 0 {
        return None;
    }
    processor_in(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// The command's name, in parentheses, may hold anything: fields are counted from behind it.
fn processor_in(stat: &str) -> Option<usize> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(burst: &Burst) {
        (0..WINDOW).for_each(|_| burst.note(std::process::id()));
    }

    /// The processors the calling thread may use.
    fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|&p| set.is_set(p)).collect()
    }

    #[test]
    fn a_burst_ends_by_itself_and_lets_the_loop_go() {
        let before = allowed();
        let burst = Burst::start().unwrap();
        assert_eq!(burst.companion.get().is_some(), before.len() == PROCESSORS);
        window(&burst);
        window(&burst);
        if burst.companion.get().is_none() {
            assert!(!burst.state.active.load(Ordering::Acquire));
            return;
        }
        let started = Instant::now();
        while burst.state.active.load(Ordering::Acquire) {
            assert!(started.elapsed() < Duration::from_secs(20), "still active");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(allowed(), before);
        assert_eq!(burst.state.requests.load(Ordering::Relaxed), 2 * WINDOW);
    }

    #[test]
    fn slow_requests_are_no_burst() {
        let burst = Burst::start().unwrap();
        window(&burst);
        if burst.companion.get().is_none() {
            return;
        }
        let long_ago = clock::now().checked_sub(QUICK * 2).unwrap();
        *burst.state.began.lock().unwrap() = Some(long_ago);
        window(&burst);
        assert!(!burst.state.active.load(Ordering::Acquire));
    }

    #[test]
    fn the_processor_of_a_process_whatever_its_name() {
        let behind: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        for name in ["cp", "a) R 1 (b", ""] {
            let stat = format!("17 ({name}) {}", behind.join(" "));
            assert_eq!(processor_in(&stat), Some(39));
        }
        assert_eq!(processor_in("17 cp S"), None);
        assert_eq!(processor_in("17 (cp) S 1"), None);
        assert_eq!(processor_of(0), None);
        assert!(processor_of(std::process::id()).is_some());
    }
}
