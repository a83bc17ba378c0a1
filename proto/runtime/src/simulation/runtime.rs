//! Runtimes, spawning and joining of tasks: tokio's outside a world, `executor.rs` inside one.
//!
//! Invariant: a task that panics tells whoever joins it and nobody else, as with tokio; one that is killed tells
//! nobody. Called through `task.rs`.

use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use super::executor::{Entered, Executor, block_on, current_executor};
use super::scheduler::{Killed, current};
use super::thread;

/// Why a task has no result.
#[derive(Debug)]
pub enum JoinError {
    /// It panicked.
    Panicked,
    /// Its runtime ended first.
    Cancelled,
}

impl std::fmt::Display for JoinError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Panicked => "task panicked",
            Self::Cancelled => "task was cancelled",
        })
    }
}

impl std::error::Error for JoinError {}

/// A task to wait for.
#[derive(Debug)]
pub enum JoinHandle<T> {
    /// Tokio's.
    Real(tokio::task::JoinHandle<T>),
    /// A world's.
    Simulated(oneshot::Receiver<Result<T, JoinError>>),
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Real(handle) => Pin::new(handle).poll(cx).map_err(|error| {
                if error.is_panic() {
                    JoinError::Panicked
                } else {
                    JoinError::Cancelled
                }
            }),
            Self::Simulated(end) => Pin::new(end)
                .poll(cx)
                .map(|said| said.unwrap_or(Err(JoinError::Cancelled))),
        }
    }
}

fn unless_killed<T>(ended: std::thread::Result<T>) -> Result<T, JoinError> {
    ended.map_err(|payload| {
        if payload.is::<Killed>() {
            resume_unwind(payload);
        }
        JoinError::Panicked
    })
}

fn spawn_on<T: Send + 'static>(
    executor: &Executor,
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let (tell, end) = oneshot::channel();
    executor.add(Box::pin(async move {
        let mut future = pin!(future);
        let ended = poll_fn(|cx| {
            let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
            match unless_killed(polled) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
                Err(error) => Poll::Ready(Err(error)),
            }
        });
        // Nobody may be waiting.
        let _ = tell.send(ended.await);
    }));
    JoinHandle::Simulated(end)
}

/// Starts a task on the runtime of the calling task or thread.
///
/// # Panics
/// On a thread of a world that has no runtime; outside as tokio's.
#[track_caller]
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    if current().is_none() {
        return JoinHandle::Real(tokio::spawn(future));
    }
    let executor = current_executor().expect("called from within a runtime");
    spawn_on(&executor, future)
}

/// Runs on a thread of its own what may block.
pub fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    if current().is_none() {
        return JoinHandle::Real(tokio::task::spawn_blocking(work));
    }
    let executor = current_executor();
    let (tell, end) = oneshot::channel();
    let started = thread::spawn("blocking", move || {
        let _entered = Entered::new(executor);
        let ended = unless_killed(catch_unwind(AssertUnwindSafe(work)));
        let _ = tell.send(ended);
    });
    // Without a thread `tell` is gone, and the waiter hears `Cancelled`.
    drop(started);
    JoinHandle::Simulated(end)
}

/// Drives tasks until dropped.
pub struct Runtime {
    handle: Handle,
    /// Gone only while it shuts down.
    real: Option<tokio::runtime::Runtime>,
    thread: Option<thread::JoinHandle<()>>,
}

/// The way to a runtime.
#[derive(Clone)]
pub struct Handle(Kind);

#[derive(Clone)]
enum Kind {
    Real(tokio::runtime::Handle),
    Simulated(Arc<Executor>),
}

/// A runtime with `workers` threads; a world's has one.
pub fn runtime(workers: usize, name: &str) -> io::Result<Runtime> {
    runtime_with(workers, name, || ())
}

/// A runtime with `workers` threads, each of which begins with `start`; a world's has one.
pub fn runtime_with(
    workers: usize,
    name: &str,
    start: impl Fn() + Send + Sync + 'static,
) -> io::Result<Runtime> {
    let Some(me) = current() else {
        let real = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name(name)
            .on_thread_start(start)
            .enable_all()
            .build()?;
        return Ok(Runtime {
            handle: Handle(Kind::Real(real.handle().clone())),
            real: Some(real),
            thread: None,
        });
    };
    let executor = Arc::new(Executor::new(Arc::clone(&me.scheduler)));
    let running = Arc::clone(&executor);
    let thread = thread::spawn(name, move || {
        start();
        running.run();
    })?;
    Ok(Runtime {
        handle: Handle(Kind::Simulated(executor)),
        real: None,
        thread: Some(thread),
    })
}

impl Runtime {
    /// A handle of it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Starts a task.
    pub fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.handle.spawn(future)
    }

    /// Drives a future on the calling thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }

    /// Ends it; tasks still under way are dropped. Waits for what blocks, at most `at_most`.
    pub fn shutdown_timeout(mut self, at_most: Duration) {
        if let Some(real) = self.real.take() {
            real.shutdown_timeout(at_most);
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Kind::Simulated(executor) = &self.handle.0 {
            executor.stop();
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

impl Handle {
    /// Starts a task.
    pub fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        match &self.0 {
            Kind::Real(real) => JoinHandle::Real(real.spawn(future)),
            Kind::Simulated(executor) => spawn_on(executor, future),
        }
    }

    /// Drives a future on the calling thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match &self.0 {
            Kind::Real(real) => real.block_on(future),
            Kind::Simulated(executor) => {
                let _entered = Entered::new(Some(Arc::clone(executor)));
                block_on(future)
            }
        }
    }
}
