//! The one table from our errors to gRPC status. Clients decide by code, and by the words "lease" and "generation" in a
//! FAILED_PRECONDITION.
//!
//! Invariant: an unknown name and a forbidden one answer alike; nothing of the inside is told. Called by the services.

use tonic::Status;

use crate::book::BookError;
use crate::calls::CallError;
use crate::core::ChangeError;
use crate::store::StoreError;

pub(super) fn not_found() -> Status {
    Status::not_found("not found")
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NotFound => not_found(),
            CallError::Invalid(what) => Self::invalid_argument(what),
            error @ CallError::OldGeneration => Self::failed_precondition(error.to_string()),
            error @ CallError::Stopping => Self::unavailable(error.to_string()),
            CallError::Damaged(what) => Self::data_loss(what),
            CallError::Interrupted(what) => Self::internal(what),
            CallError::Book(error) => book_status(error),
            CallError::Store(error) => store_status(error),
        }
    }
}

pub(super) fn change_status(error: ChangeError) -> Status {
    match error {
        ChangeError::Book(error) => book_status(error),
        ChangeError::Store(error) => store_status(error),
    }
}

pub(super) fn book_status(error: BookError) -> Status {
    match error {
        BookError::NotFound | BookError::Proof => not_found(),
        BookError::Malformed(what) => Status::invalid_argument(what),
        BookError::Stale(what) => Status::failed_precondition(what),
        BookError::Fenced => Status::failed_precondition("another device holds the writer lease"),
        BookError::Damaged(what) => {
            tracing::error!(what, "control record damaged");
            Status::data_loss("a stored record is damaged")
        }
    }
}

pub(super) fn store_status(error: StoreError) -> Status {
    match error {
        StoreError::NoSpace => Status::resource_exhausted("the server has no space left"),
        error @ StoreError::OverQuota => Status::resource_exhausted(error.to_string()),
        error => {
            tracing::error!(%error, "store");
            Status::unavailable("the server's storage has failed")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn forbidden_and_unknown_answer_alike_and_clients_can_tell_the_rest() {
        let answer = |error| {
            let status = book_status(error);
            (status.code(), status.message().to_owned())
        };
        assert_eq!(answer(BookError::NotFound), answer(BookError::Proof));
        let (code, text) = answer(BookError::Fenced);
        assert_eq!(
            (code, text.contains("lease"), text.contains("generation")),
            (Code::FailedPrecondition, true, false)
        );
        let old = Status::from(CallError::OldGeneration);
        assert!(old.message().contains("generation") && !old.message().contains("lease"));
        assert_eq!(
            store_status(StoreError::NoSpace).code(),
            Code::ResourceExhausted
        );
        let inside = store_status(StoreError::Failed("/secret/path".into()));
        assert!(inside.code() == Code::Unavailable && !inside.message().contains("secret"));
    }
}
