//! Drives tasks on one thread of a world, and single futures on any.
//!
//! Invariant: which ready task is polled next is the dice's choice from an ordered set, so that the order of wakes
//! tells nothing. Tasks end with their executor, on its thread. Called by `runtime.rs`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use super::scheduler::{Key, Scheduler, current};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
struct Tasks {
    waiting: BTreeMap<u64, Task>,
    ready: BTreeSet<u64>,
    next: u64,
    stopping: bool,
}

pub(super) struct Executor {
    key: Key,
    scheduler: Arc<Scheduler>,
    tasks: Mutex<Tasks>,
}

thread_local! {
    static EXECUTOR: RefCell<Option<Arc<Executor>>> = const { RefCell::new(None) };
}

/// The executor of the calling thread, if it has one.
pub(super) fn current_executor() -> Option<Arc<Executor>> {
    EXECUTOR.try_with(|e| e.borrow().clone()).ok().flatten()
}

/// Makes an executor the calling thread's, until dropped.
pub(super) struct Entered(Option<Arc<Executor>>);

impl Entered {
    pub(super) fn new(executor: Option<Arc<Executor>>) -> Self {
        Self(EXECUTOR.with(|e| e.replace(executor)))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let _ = EXECUTOR.try_with(|e| e.replace(self.0.take()));
    }
}

struct TaskWaker {
    executor: Arc<Executor>,
    task: u64,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.executor.lock().ready.insert(self.task);
        self.executor.ring();
    }
}

impl Executor {
    pub(super) fn new(scheduler: Arc<Scheduler>) -> Self {
        Self {
            key: Key::new(),
            scheduler,
            tasks: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        self.scheduler.ring(self.key.bell());
    }

    /// Takes a task in; one that comes after the end is dropped at once.
    pub(super) fn add(&self, task: Task) {
        let mut tasks = self.lock();
        if tasks.stopping {
            drop(tasks);
            return drop(task);
        }
        let number = tasks.next;
        tasks.next += 1;
        tasks.waiting.insert(number, task);
        tasks.ready.insert(number);
        drop(tasks);
        self.ring();
    }

    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.ring();
    }

    /// The executor's thread.
    pub(super) fn run(self: &Arc<Self>) {
        let _end = End(self);
        let _entered = Entered::new(Some(Arc::clone(self)));
        let Some(me) = current() else { return };
        loop {
            let mut tasks = self.lock();
            if tasks.stopping {
                return;
            }
            if tasks.ready.is_empty() {
                drop(tasks);
                me.wait(self.key.bell(), "no task is ready", None);
                continue;
            }
            let nth = me.below(tasks.ready.len() as u64) as usize;
            let number = *tasks.ready.iter().nth(nth).unwrap_or(&0);
            tasks.ready.remove(&number);
            let task = tasks.waiting.remove(&number);
            drop(tasks);
            let Some(mut task) = task else { continue };
            me.yield_now();
            let waker = Waker::from(Arc::new(TaskWaker {
                executor: Arc::clone(self),
                task: number,
            }));
            if task
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
            {
                self.lock().waiting.insert(number, task);
            }
        }
    }
}

/// However the thread ends, its tasks end with it.
struct End<'a>(&'a Executor);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut tasks = self.0.lock();
        tasks.stopping = true;
        let left = std::mem::take(&mut tasks.waiting);
        drop(tasks);
        drop(left);
    }
}

struct ThreadWaker {
    scheduler: Arc<Scheduler>,
    key: Key,
    woken: AtomicBool,
}

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.scheduler.ring(self.key.bell());
    }
}

/// Drives one future on the calling thread of a world.
///
/// # Panics
/// On a thread outside a world.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let me = current().expect("a thread of a world");
    let signal = Arc::new(ThreadWaker {
        scheduler: Arc::clone(&me.scheduler),
        key: Key::new(),
        woken: AtomicBool::new(true),
    });
    let waker = Waker::from(Arc::clone(&signal));
    let mut future = pin!(future);
    me.maybe_yield();
    loop {
        if signal.woken.swap(false, Ordering::SeqCst)
            && let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
        {
            return output;
        }
        if !signal.woken.load(Ordering::SeqCst) {
            me.wait(signal.key.bell(), "waits for a future", None);
        }
    }
}
