//! The table from gRPC status to what the caller decides on.
//!
//! Invariant: every code has a row; text of the server is shortened and cleaned before a person sees it.
//! Called by `grpc` and by the simulated network of the tests.

use tonic::{Code, Status};

use crate::remote::RemoteError;

/// Longest text of a server that is passed on, characters: the server is not trusted with our terminal.
const MAX_TEXT: usize = 200;

/// What a status means for the caller.
pub fn translate(status: &Status) -> RemoteError {
    let text = clean(status.message());
    match status.code() {
        Code::Unauthenticated => RemoteError::Unauthenticated(text),
        Code::NotFound => RemoteError::NotFound,
        Code::ResourceExhausted if text.contains("quota") => RemoteError::Quota,
        Code::ResourceExhausted => RemoteError::Full,
        Code::FailedPrecondition if text.contains("lease") => RemoteError::Fenced,
        Code::FailedPrecondition if text.contains("generation") => RemoteError::Stale,
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss => RemoteError::Refused(text),
        // What a broken connection looks like through HTTP/2, and what a server says that is shutting down.
        Code::Ok
        | Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Aborted
        | Code::Unknown
        | Code::Internal => RemoteError::Unreachable(text),
    }
}

/// At most `MAX_TEXT` characters, no control characters.
fn clean(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_TEXT)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fenced_writer_stops_a_stale_session_renews_and_a_lost_line_is_tried_again() {
        let of = |code, text: &str| translate(&Status::new(code, text));
        assert_eq!(
            of(Code::FailedPrecondition, "stale lease epoch"),
            RemoteError::Fenced
        );
        assert_eq!(
            of(Code::FailedPrecondition, "stale gc generation"),
            RemoteError::Stale
        );
        assert!(matches!(
            of(Code::FailedPrecondition, "stale head"),
            RemoteError::Refused(_)
        ));
        assert!(of(Code::Unavailable, "").is_temporary());
        assert!(of(Code::Unknown, "transport error").is_temporary());
        assert!(!of(Code::InvalidArgument, "").is_temporary());
    }

    #[test]
    fn a_server_cannot_write_on_our_terminal() {
        let text = format!("\x1b[2J{}\n", "x".repeat(1000));
        let RemoteError::Refused(shown) = translate(&Status::new(Code::InvalidArgument, text))
        else {
            panic!("a refusal");
        };
        assert!(shown.chars().all(|c| !c.is_control()) && shown.chars().count() == MAX_TEXT);
    }
}
