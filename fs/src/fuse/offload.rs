//! The bounded pools to which a request is moved, with its reply, when it may have to wait: for the network, for
//! the local disk, or for space. The loop threads thus stay free to answer from memory.
//!
//! Invariant: threads and queue are bounded; a job is either run once or handed back to the caller, never lost.
//! Called by the door (mod.rs); idle threads end by themselves.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

/// One request with its reply. Dropped unrun, its reply answers EIO.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads for one kind of waiting. Kinds do not share threads: 16 reads waiting for a dead network must
/// not keep an fsync from the local disk.
pub(super) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    max_threads: usize,
    max_queue: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Pool {
    /// A pool without threads; they are started by work.
    pub(super) fn new(name: &'static str, max_threads: usize, max_queue: usize) -> Self {
        let state = Mutex::new(State::default());
        Self {
            shared: Arc::new(Shared {
                name,
                max_threads,
                max_queue,
                state,
                work: Condvar::new(),
            }),
        }
    }

    /// Takes the job, or gives it back when the queue is full or no thread can be started.
    pub(super) fn submit(&self, job: Job) -> Result<(), Job> {
        let mut state = self.shared.lock();
        if state.closed || state.queue.len() >= self.shared.max_queue {
            return Err(job);
        }
        if state.idle <= state.queue.len() && state.threads < self.shared.max_threads {
            let shared = Arc::clone(&self.shared);
            let spawned = thread::Builder::new()
                .name(self.shared.name.to_owned())
                .spawn(move || shared.run());
            match spawned {
                Ok(_) => state.threads += 1,
                Err(_) if state.threads == 0 => return Err(job),
                Err(_) => {}
            }
        }
        state.queue.push_back(job);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock; nothing inside can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!(
                        pool = self.name,
                        "a request failed by a defect and was answered with EIO"
                    );
                }
                state = self.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let (guard, timeout) = self
                .work
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_full_queue_hands_the_job_back() {
        let pool = Pool::new("test", 1, 2);
        let (release, gate) = mpsc::channel::<()>();
        let (started, running) = mpsc::channel::<()>();
        assert!(
            pool.submit(Box::new(move || {
                started.send(()).unwrap();
                gate.recv().unwrap()
            }))
            .is_ok()
        );
        running.recv().unwrap();
        let (done, count) = mpsc::channel::<u8>();
        for _ in 0..2 {
            let done = done.clone();
            assert!(pool.submit(Box::new(move || done.send(1).unwrap())).is_ok());
        }
        let back = pool.submit(Box::new(move || done.send(2).unwrap()));
        let Err(back) = back else {
            panic!("the third job must come back")
        };
        release.send(()).unwrap();
        assert_eq!((count.recv(), count.recv()), (Ok(1), Ok(1)));
        back();
        assert_eq!(count.recv(), Ok(2));
    }

    #[test]
    fn a_panic_costs_one_job_not_the_thread() {
        let pool = Pool::new("test", 1, 8);
        let (done, seen) = mpsc::channel::<u8>();
        assert!(pool.submit(Box::new(|| panic!("on purpose"))).is_ok());
        assert!(pool.submit(Box::new(move || done.send(1).unwrap())).is_ok());
        assert_eq!(seen.recv_timeout(Duration::from_secs(5)), Ok(1));
    }

    #[test]
    fn jobs_run_side_by_side_up_to_the_limit() {
        let pool = Pool::new("test", 4, 64);
        let inside = Arc::new(Mutex::new((0usize, 0usize)));
        let (done, seen) = mpsc::channel::<()>();
        for _ in 0..16 {
            let (inside, done) = (Arc::clone(&inside), done.clone());
            let job = move || {
                {
                    let mut both = inside.lock().unwrap();
                    both.0 += 1;
                    both.1 = both.1.max(both.0);
                }
                thread::sleep(Duration::from_millis(10));
                inside.lock().unwrap().0 -= 1;
                done.send(()).unwrap();
            };
            assert!(pool.submit(Box::new(job)).is_ok());
        }
        for _ in 0..16 {
            seen.recv_timeout(Duration::from_secs(5)).unwrap();
        }
        let most = inside.lock().unwrap().1;
        assert!((2..=4).contains(&most), "{most} at once");
    }
}
