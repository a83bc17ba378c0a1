//! The calls on a drive and its objects, without a transport: who asks is known, what is asked is a message, what comes
//! back is a message or a [`CallError`].
//!
//! Invariant: what the book decides is durable before it is answered, and nothing here knows tonic: the services and
//! the simulated network of the tests call the same functions. Called by `service/` and by the simulation.

mod drives;
mod objects;

use std::future::Future;

use sealdrive_proto::transcript::Role;
use sealdrive_runtime::task;

use crate::book::BookError;
use crate::core::{ChangeError, Core};
use crate::sessions::Caller;
use crate::store::StoreError;

pub use self::drives::{acquire_lease, chain, commit, commits, head, release_lease, watched};
pub use self::objects::{fetch, find_missing, upload};

/// Why a call was not answered as asked. `service/status.rs` makes a gRPC status of each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No such thing, or not the caller's: both are told alike.
    #[error("not found")]
    NotFound,
    /// The message says something that can never be right.
    #[error("{0}")]
    Invalid(String),
    /// The collection generation of the session is old.
    #[error("the collection generation has moved on")]
    OldGeneration,
    /// Asked to stop while the call was under way.
    #[error("the server is stopping")]
    Stopping,
    /// What was asked for is damaged here.
    #[error("{0}")]
    Damaged(&'static str),
    /// Something inside broke off.
    #[error("{0}")]
    Interrupted(&'static str),
    /// The book says no.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The store cannot.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ChangeError> for CallError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Book(error) => Self::Book(error),
            ChangeError::Store(error) => Self::Store(error),
        }
    }
}

pub(crate) fn invalid(what: impl Into<String>) -> CallError {
    CallError::Invalid(what.into())
}

/// A field of fixed length.
pub(crate) fn field<'a, T: TryFrom<&'a [u8]>>(
    bytes: &'a [u8],
    name: &'static str,
) -> Result<T, CallError> {
    T::try_from(bytes).map_err(|_| invalid(format!("{name} has the wrong length")))
}

/// Whether a caller is still who it was at login: a device, with a key that is good now.
pub fn is_device(core: &Core, caller: &Caller) -> bool {
    let key = core
        .book
        .login_key(&caller.account, caller.role, &caller.device);
    caller.role == Role::Device && key.is_some()
}

/// Does something to its end, even when the caller hangs up half-way: what is made durable must also be applied.
pub(crate) async fn uninterrupted<T, E>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<CallError> + Send + 'static,
{
    task::spawn(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a call was cut short");
        Err(CallError::Interrupted("the call was cut short").into())
    })
}
