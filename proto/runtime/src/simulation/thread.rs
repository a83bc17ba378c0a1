//! Threads of a world: real ones, of which only the holder of the token runs.
//!
//! Invariant: a thread has dropped all it owned before it gives the token away for the last time. Called through
//! `crate::thread`.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::scheduler::{Killed, Me, current};

/// A thread to wait for.
pub struct JoinHandle<T> {
    real: std::thread::JoinHandle<T>,
    place: Option<Me>,
}

impl<T> JoinHandle<T> {
    /// Waits for the thread's end. An error is what it panicked with.
    pub fn join(self) -> std::thread::Result<T> {
        if let (Some(me), Some(other)) = (current(), &self.place) {
            me.yield_now();
            loop {
                if !me.scheduler.lock().threads.contains_key(&other.thread) {
                    break;
                }
                me.wait(other.end, "waits for a thread to end", None);
            }
        }
        self.real.join()
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        match &self.place {
            Some(other) => !other.scheduler.lock().threads.contains_key(&other.thread),
            None => self.real.is_finished(),
        }
    }
}

/// Starts a thread with a name.
pub fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    match current() {
        Some(me) => {
            let place = me.scheduler.add_thread(me.machine, name);
            spawn_at(place, name, body)
        }
        None => Ok(JoinHandle {
            real: std::thread::Builder::new().name(name.into()).spawn(body)?,
            place: None,
        }),
    }
}

/// Starts the thread of a place.
pub(super) fn spawn_at<T: Send + 'static>(
    place: Me,
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let me = place.clone();
    let started = std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            me.enter();
            // Killed before its first step: what it owns is dropped like anything else's.
            let first = me.clone();
            let ended = catch_unwind(AssertUnwindSafe(move || {
                first.yield_now();
                body()
            }));
            let broke = ended
                .as_ref()
                .err()
                .and_then(|payload| told(payload.as_ref()));
            me.leave(broke);
            ended.unwrap_or_else(|payload| resume_unwind(payload))
        });
    match started {
        Ok(real) => Ok(JoinHandle {
            real,
            place: Some(place),
        }),
        Err(error) => {
            // The system gave no thread: the place must not be chosen.
            let mut state = place.scheduler.lock();
            state.threads.remove(&place.thread);
            state.runnable.remove(&place.thread);
            state.machines[place.machine].threads -= 1;
            drop(state);
            Err(error)
        }
    }
}

/// What a panic said; nothing for a killed thread.
fn told(payload: &(dyn Any + Send)) -> Option<String> {
    if payload.is::<Killed>() {
        return None;
    }
    let text = payload.downcast_ref::<String>().cloned().or_else(|| {
        payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
    });
    Some(text.unwrap_or_else(|| "something that is no text".into()))
}

/// Waits for `time`.
pub fn sleep(time: Duration) {
    match current() {
        Some(me) => me.sleep(time),
        None => std::thread::sleep(time),
    }
}

/// A point where somebody else may run, and where a machine may die.
pub fn yield_point() {
    if let Some(me) = current() {
        me.yield_now();
    }
}

/// Does work that may panic; `None` if it did. A machine that loses its power in the middle is no panic to be caught.
pub fn catching<T>(work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => Some(done),
        Err(payload) if payload.is::<Killed>() => resume_unwind(payload),
        Err(_) => None,
    }
}
