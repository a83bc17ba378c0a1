//! The door to tonic: requests are parsed here, once, into types that cannot hold an invalid value; errors get their
//! status here, from one table. Nothing is decided here.
//!
//! Invariant: an unknown name and a forbidden one answer alike. Called by `Server::start`.

mod account;
mod drive;
mod object;

use std::sync::Arc;
use std::time::Duration;

use sealdrive_proto::limits::{CONNECTION_WINDOW, MAX_MESSAGE, MAX_STREAMS, STREAM_WINDOW};
use sealdrive_proto::transcript::{Role, TOKEN_METADATA};
use sealdrive_proto::v1::account_service_server::AccountServiceServer;
use sealdrive_proto::v1::drive_service_server::DriveServiceServer;
use sealdrive_proto::v1::object_service_server::ObjectServiceServer;
use tonic::transport::server::Router;
use tonic::{Request, Status};

use crate::book::BookError;
use crate::clock;
use crate::core::{ChangeError, Core};
use crate::listen::Peer;
use crate::sessions::Caller;
use crate::store::StoreError;

/// Streams a peer may open and reset before the connection is closed (CVE-2023-44487 and kin).
const MAX_RESETS: usize = 32;
/// A quiet connection is probed this often, and dropped after as long without an answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Most header bytes of one request.
const MAX_HEADERS: u32 = 16 << 10;
/// Largest HTTP/2 frame accepted, bytes.
const MAX_FRAME: u32 = 256 << 10;

/// All services with every limit named, ready to serve connections.
pub fn router(core: &Arc<Core>) -> Router {
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_RESETS))
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_header_list_size(MAX_HEADERS)
        .max_frame_size(MAX_FRAME)
        .add_service(
            AccountServiceServer::new(account::Accounts(Arc::clone(core)))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            DriveServiceServer::new(drive::Drives(Arc::clone(core)))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            ObjectServiceServer::new(object::Objects(Arc::clone(core)))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
}

/// The connection a request came on.
fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    request
        .extensions()
        .get::<Peer>()
        .cloned()
        .ok_or_else(|| Status::internal("connection without a peer"))
}

/// Who asks. Revocation counts at once: the key must still be good.
fn caller<T>(core: &Core, request: &Request<T>) -> Result<Caller, Status> {
    let refused = || Status::unauthenticated("log in first");
    let token = request
        .metadata()
        .get_bin(TOKEN_METADATA)
        .ok_or_else(refused)?;
    let token = token.to_bytes().map_err(|_| refused())?;
    let binding = peer(request)?.binding;
    let caller = core
        .sessions
        .caller(&token, &binding, clock::unix_ms())
        .ok_or_else(refused)?;
    core.book
        .login_key(&caller.account, caller.role, &caller.device)
        .ok_or_else(refused)?;
    Ok(caller)
}

/// Who asks, if it is a device.
fn device<T>(core: &Core, request: &Request<T>) -> Result<Caller, Status> {
    let caller = caller(core, request)?;
    if caller.role == Role::Device {
        Ok(caller)
    } else {
        Err(not_found())
    }
}

fn not_found() -> Status {
    Status::not_found("not found")
}

/// A field of fixed length.
fn field<'a, T: TryFrom<&'a [u8]>>(bytes: &'a [u8], name: &'static str) -> Result<T, Status> {
    T::try_from(bytes).map_err(|_| Status::invalid_argument(format!("{name} has the wrong length")))
}

/// The one table from our errors to gRPC status.
fn status(error: ChangeError) -> Status {
    match error {
        ChangeError::Book(error) => book_status(error),
        ChangeError::Store(error) => store_status(error),
    }
}

fn book_status(error: BookError) -> Status {
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

fn store_status(error: StoreError) -> Status {
    match error {
        StoreError::NoSpace => Status::resource_exhausted("the server has no space left"),
        error => {
            tracing::error!(%error, "store");
            Status::unavailable("the server's storage has failed")
        }
    }
}
