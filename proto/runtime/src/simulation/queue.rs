//! Bounded channels between threads: std's inside, with the waiting done by the scheduler.
//!
//! Invariant: whatever changes a channel (a message, room, an end going away) rings its bell. Called through
//! `channel.rs`.

use std::sync::Arc;
pub use std::sync::mpsc::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};
use std::time::Duration;

use super::scheduler::{Key, Woken, current};

/// The sending end.
pub struct SyncSender<T> {
    inner: Option<std::sync::mpsc::SyncSender<T>>,
    key: Arc<Key>,
}

/// The receiving end.
#[derive(Debug)]
pub struct Receiver<T> {
    inner: Option<std::sync::mpsc::Receiver<T>>,
    key: Arc<Key>,
}

/// A channel for at most `bound` waiting messages; a rendezvous (0) has no place in a world.
pub fn sync_channel<T>(bound: usize) -> (SyncSender<T>, Receiver<T>) {
    assert!(bound > 0, "a channel has room for a message");
    let (sender, receiver) = std::sync::mpsc::sync_channel(bound);
    let key = Arc::<Key>::default();
    let sender = SyncSender {
        inner: Some(sender),
        key: Arc::clone(&key),
    };
    let receiver = Receiver {
        inner: Some(receiver),
        key,
    };
    (sender, receiver)
}

fn ring(key: &Key) {
    if let Some(me) = current() {
        me.scheduler.ring(key.bell());
    }
}

impl<T> SyncSender<T> {
    fn std(&self) -> &std::sync::mpsc::SyncSender<T> {
        self.inner.as_ref().expect("held until dropped")
    }

    /// Sends; waits while the channel is full.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        let Some(me) = current() else {
            return self.std().send(value);
        };
        me.maybe_yield();
        let mut value = value;
        loop {
            match self.try_send(value) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(back)) => return Err(SendError(back)),
                Err(TrySendError::Full(back)) => value = back,
            }
            me.wait(self.key.bell(), "waits for room in a channel", None);
        }
    }

    /// Sends if there is room.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let sent = self.std().try_send(value);
        if sent.is_ok() {
            ring(&self.key);
        }
        sent
    }
}

impl<T> Clone for SyncSender<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            key: Arc::clone(&self.key),
        }
    }
}

impl<T> std::fmt::Debug for SyncSender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SyncSender")
    }
}

impl<T> Drop for SyncSender<T> {
    fn drop(&mut self) {
        self.inner.take();
        ring(&self.key);
    }
}

impl<T> Receiver<T> {
    fn std(&self) -> &std::sync::mpsc::Receiver<T> {
        self.inner.as_ref().expect("held until dropped")
    }

    /// The next message; an error when all senders are gone.
    pub fn recv(&self) -> Result<T, RecvError> {
        let Some(me) = current() else {
            return self.std().recv();
        };
        me.maybe_yield();
        loop {
            match self.try_recv() {
                Ok(value) => return Ok(value),
                Err(TryRecvError::Disconnected) => return Err(RecvError),
                Err(TryRecvError::Empty) => {}
            }
            me.wait(self.key.bell(), "waits for a message", None);
        }
    }

    /// The next message, if it comes within `at_most`.
    pub fn recv_timeout(&self, at_most: Duration) -> Result<T, RecvTimeoutError> {
        let Some(me) = current() else {
            return self.std().recv_timeout(at_most);
        };
        me.maybe_yield();
        let deadline = me.deadline(at_most);
        let mut up = false;
        loop {
            match self.try_recv() {
                Ok(value) => return Ok(value),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) if up => return Err(RecvTimeoutError::Timeout),
                Err(TryRecvError::Empty) => {}
            }
            let woken = me.wait(self.key.bell(), "waits for a message", Some(deadline));
            up = woken == Woken::TimedOut;
        }
    }

    /// The next message, if it is there.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let got = self.std().try_recv();
        if got.is_ok() {
            ring(&self.key);
        }
        got
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.inner.take();
        ring(&self.key);
    }
}
