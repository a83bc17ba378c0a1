//! `Condvar`: waiting for a change of what a mutex guards.
//!
//! Invariant: no ring is lost, because nobody else runs between giving the lock up and waiting. Called through
//! `sync.rs`.

use std::sync::{LockResult, PoisonError};
use std::time::Duration;

use super::lock::MutexGuard;
use super::scheduler::{Key, Me, Woken, current};

/// Whether a wait ended because its time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether the time was up.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

/// A condition variable.
#[derive(Debug, Default)]
pub struct Condvar {
    key: Key,
    inner: std::sync::Condvar,
}

type Timed<'a, T> = (MutexGuard<'a, T>, WaitTimeoutResult);

impl Condvar {
    /// With nobody waiting.
    pub const fn new() -> Self {
        Self {
            key: Key::new(),
            inner: std::sync::Condvar::new(),
        }
    }

    /// Wakes one who waits.
    pub fn notify_one(&self) {
        match current() {
            Some(me) => me.scheduler.lock().ring_one(self.key.bell()),
            None => self.inner.notify_one(),
        }
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        match current() {
            Some(me) => me.scheduler.ring(self.key.bell()),
            None => self.inner.notify_all(),
        }
    }

    /// Waits for a ring.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        match current() {
            Some(me) => {
                let lock = guard.lock;
                self.await_ring(&me, guard, None);
                lock.lock()
            }
            None => {
                let (lock, inner) = guard.into_std();
                let back = |inner| MutexGuard::from_std(lock, inner);
                match self.inner.wait(inner) {
                    Ok(inner) => Ok(back(inner)),
                    Err(left) => Err(PoisonError::new(back(left.into_inner()))),
                }
            }
        }
    }

    /// Waits for a ring, at most `at_most`.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        at_most: Duration,
    ) -> LockResult<Timed<'a, T>> {
        match current() {
            Some(me) => {
                let lock = guard.lock;
                let deadline = me.deadline(at_most);
                let woken = self.await_ring(&me, guard, Some(deadline));
                timed(lock.lock(), woken == Woken::TimedOut)
            }
            None => {
                let (lock, inner) = guard.into_std();
                let back = |inner| MutexGuard::from_std(lock, inner);
                match self.inner.wait_timeout(inner, at_most) {
                    Ok((inner, end)) => Ok((back(inner), WaitTimeoutResult(end.timed_out()))),
                    Err(left) => {
                        let (inner, end) = left.into_inner();
                        let end = WaitTimeoutResult(end.timed_out());
                        Err(PoisonError::new((back(inner), end)))
                    }
                }
            }
        }
    }

    /// Waits while `condition` holds.
    pub fn wait_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        while condition(&mut guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// Waits while `condition` holds, at most `at_most`.
    pub fn wait_timeout_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        at_most: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<Timed<'a, T>> {
        let start = crate::time::now();
        loop {
            if !condition(&mut guard) {
                return Ok((guard, WaitTimeoutResult(false)));
            }
            let spent = crate::time::now().saturating_duration_since(start);
            let Some(left) = at_most.checked_sub(spent).filter(|left| !left.is_zero()) else {
                return Ok((guard, WaitTimeoutResult(true)));
            };
            guard = self.wait_timeout(guard, left)?.0;
        }
    }

    fn await_ring<T>(
        &self,
        me: &Me,
        guard: MutexGuard<'_, T>,
        deadline: Option<Duration>,
    ) -> Woken {
        drop(guard);
        me.wait(self.key.bell(), "waits for a condition", deadline)
    }
}

fn timed<G>(got: LockResult<G>, up: bool) -> LockResult<(G, WaitTimeoutResult)> {
    match got {
        Ok(guard) => Ok((guard, WaitTimeoutResult(up))),
        Err(left) => Err(PoisonError::new((left.into_inner(), WaitTimeoutResult(up)))),
    }
}
