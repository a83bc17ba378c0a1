//! `Mutex` and `RwLock`: std's inside, with the waiting done by the scheduler.
//!
//! Invariant: std's lock is only ever tried, never waited for, by a thread of a world. What a killed machine left
//! poisoned is seen by nobody who lives. Called through `sync.rs`.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, PoisonError, TryLockError};

use super::scheduler::{Key, Me, current};

/// Mutual exclusion.
#[derive(Default)]
pub struct Mutex<T: ?Sized> {
    key: Key,
    inner: std::sync::Mutex<T>,
}

/// What is locked, as long as this lives.
pub struct MutexGuard<'a, T: ?Sized> {
    pub(super) lock: &'a Mutex<T>,
    inner: Option<std::sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    /// Around a value.
    pub const fn new(value: T) -> Self {
        Self {
            key: Key::new(),
            inner: std::sync::Mutex::new(value),
        }
    }

    /// The value.
    pub fn into_inner(self) -> LockResult<T> {
        self.inner.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Locks; waits while another thread has it.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let guard = |inner| MutexGuard {
            lock: self,
            inner: Some(inner),
        };
        let Some(me) = current() else {
            return wrap(self.inner.lock(), guard);
        };
        me.maybe_yield();
        let got = obtain(&me, &self.key, "waits for a lock", || self.inner.try_lock());
        wrap(got, guard)
    }

    /// The value, without locking: nobody else can have it.
    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        self.inner.get_mut()
    }
}

fn wrap<G, W>(got: LockResult<G>, guard: impl Fn(G) -> W) -> LockResult<W> {
    match got {
        Ok(inner) => Ok(guard(inner)),
        Err(poisoned) => Err(PoisonError::new(guard(poisoned.into_inner()))),
    }
}

fn obtain<G>(
    me: &Me,
    key: &Key,
    why: &'static str,
    attempt: impl Fn() -> Result<G, TryLockError<G>>,
) -> LockResult<G> {
    loop {
        match attempt() {
            Ok(inner) => return Ok(inner),
            // Only the dying of a killed machine meet what their fellows left; they are let through.
            Err(TryLockError::Poisoned(left)) if me.is_killed() => return Ok(left.into_inner()),
            Err(TryLockError::Poisoned(left)) => return Err(left),
            Err(TryLockError::WouldBlock) => {
                me.wait(key.bell(), why, None);
            }
        }
    }
}

fn released(key: &Key) {
    if let Some(me) = current() {
        me.scheduler.ring(key.bell());
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_deref().expect("held until dropped")
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_deref_mut().expect("held until dropped")
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.inner.take();
        released(&self.lock.key);
    }
}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    /// Takes std's guard out, for std's condition variable.
    pub(super) fn into_std(mut self) -> (&'a Mutex<T>, std::sync::MutexGuard<'a, T>) {
        let inner = self.inner.take().expect("held until dropped");
        (self.lock, inner)
    }

    pub(super) fn from_std(lock: &'a Mutex<T>, inner: std::sync::MutexGuard<'a, T>) -> Self {
        Self {
            lock,
            inner: Some(inner),
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// Many readers or one writer.
#[derive(Default)]
pub struct RwLock<T: ?Sized> {
    key: Key,
    inner: std::sync::RwLock<T>,
}

/// Shared access.
pub struct RwLockReadGuard<'a, T: ?Sized> {
    key: &'a Key,
    inner: Option<std::sync::RwLockReadGuard<'a, T>>,
}

/// Sole access.
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    key: &'a Key,
    inner: Option<std::sync::RwLockWriteGuard<'a, T>>,
}

impl<T> RwLock<T> {
    /// Around a value.
    pub const fn new(value: T) -> Self {
        Self {
            key: Key::new(),
            inner: std::sync::RwLock::new(value),
        }
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Shares; waits while a writer has it.
    pub fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        let guard = |inner| RwLockReadGuard {
            key: &self.key,
            inner: Some(inner),
        };
        let Some(me) = current() else {
            return wrap(self.inner.read(), guard);
        };
        me.maybe_yield();
        let got = obtain(&me, &self.key, "waits to read", || self.inner.try_read());
        wrap(got, guard)
    }

    /// Takes for itself; waits while anybody has it.
    pub fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        let guard = |inner| RwLockWriteGuard {
            key: &self.key,
            inner: Some(inner),
        };
        let Some(me) = current() else {
            return wrap(self.inner.write(), guard);
        };
        me.maybe_yield();
        let got = obtain(&me, &self.key, "waits to write", || self.inner.try_write());
        wrap(got, guard)
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_deref().expect("held until dropped")
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_deref().expect("held until dropped")
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_deref_mut().expect("held until dropped")
    }
}

impl<T: ?Sized> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        self.inner.take();
        released(self.key);
    }
}

impl<T: ?Sized> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        self.inner.take();
        released(self.key);
    }
}
