//! Bounded channels between threads (the interface of `std::sync::mpsc`), and the blocking ends of tokio's.
//!
//! Invariant: every channel has a bound of at least one. Tokio's own channels need nothing from here while both ends
//! await; a thread that blocks on one calls `send_blocking` or `recv_blocking`. Called by threads with queues.

use tokio::sync::mpsc;

#[cfg(not(feature = "simulation"))]
pub use std::sync::mpsc::{
    Receiver, RecvError, RecvTimeoutError, SendError, SyncSender, TryRecvError, TrySendError,
    sync_channel,
};

#[cfg(feature = "simulation")]
pub use crate::simulation::queue::{
    Receiver, RecvError, RecvTimeoutError, SendError, SyncSender, TryRecvError, TrySendError,
    sync_channel,
};

/// Sends from a thread that may block. Not for threads that drive tasks.
pub fn send_blocking<T>(
    sender: &mpsc::Sender<T>,
    value: T,
) -> Result<(), mpsc::error::SendError<T>> {
    #[cfg(feature = "simulation")]
    if crate::simulation::current().is_some() {
        return crate::task::block_on(sender.send(value));
    }
    sender.blocking_send(value)
}

/// Receives on a thread that may block; `None` when all senders are gone. Not for threads that drive tasks.
pub fn recv_blocking<T>(receiver: &mut mpsc::Receiver<T>) -> Option<T> {
    #[cfg(feature = "simulation")]
    if crate::simulation::current().is_some() {
        return crate::task::block_on(receiver.recv());
    }
    receiver.blocking_recv()
}
