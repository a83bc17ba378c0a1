//! Serving: all services on one HTTP/2 server, every limit of it named.
//!
//! Invariant: no limit is left to a default, because tonic's is "none" for several; stopping is bounded in time,
//! whatever peers do. Called by `Server::start`.

use std::sync::Arc;

use sealdrive_proto::limits::{CONNECTION_WINDOW, MAX_MESSAGE, MAX_STREAMS, STREAM_WINDOW};
use sealdrive_proto::v1;
use sealdrive_proto::v1::account_service_server::AccountServiceServer;
use sealdrive_proto::v1::drive_service_server::DriveServiceServer;
use sealdrive_proto::v1::object_service_server::ObjectServiceServer;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;

use super::{account, drive, listen, object};
use crate::core::Core;
use crate::limits;

/// The services cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("services: {0}")]
pub struct ServeError(String);

const NAMES: [&str; 4] = [
    "",
    "sealdrive.v1.AccountService",
    "sealdrive.v1.DriveService",
    "sealdrive.v1.ObjectService",
];

/// Serves connections of `listener` until `core` is told to stop, then for a bounded time. The task yields when all is
/// done. `tls` is `None` on plaintext loopback only.
pub async fn serve(
    core: Arc<Core>,
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Result<tokio::task::JoinHandle<()>, ServeError> {
    let setup = |error: tonic_reflection::server::Error| ServeError(error.to_string());
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    for name in NAMES {
        health
            .set_service_status(name, tonic_health::ServingStatus::Serving)
            .await;
    }
    let router = router(&core)
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(setup)?)
        .add_service(reflection().build_v1alpha().map_err(setup)?);
    let incoming = ReceiverStream::new(listen::accept(listener, tls));
    let (stop, drained) = (Arc::clone(&core), core);
    let serving = router.serve_with_incoming_shutdown(incoming, async move {
        stop.stopping().await;
        for name in NAMES {
            health
                .set_service_status(name, tonic_health::ServingStatus::NotServing)
                .await;
        }
    });
    Ok(tokio::spawn(async move {
        let bound = async {
            drained.stopping().await;
            tokio::time::sleep(limits::SHUTDOWN).await;
        };
        tokio::select! {
            served = serving => if let Err(error) = served {
                tracing::error!(%error, "serving ended");
            },
            // A peer that ignores GOAWAY or never finishes a handshake must not keep the server from stopping.
            () = bound => tracing::warn!("connections cut off at shutdown"),
        }
    }))
}

fn router(core: &Arc<Core>) -> Router {
    let accounts = AccountServiceServer::new(account::Accounts(Arc::clone(core)))
        .max_decoding_message_size(limits::CONTROL_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let drives = DriveServiceServer::new(drive::Drives(Arc::clone(core)))
        .max_decoding_message_size(limits::CONTROL_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let objects = ObjectServiceServer::new(object::Objects(Arc::clone(core)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    tonic::transport::Server::builder()
        .accept_http1(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .concurrency_limit_per_connection(MAX_STREAMS as usize)
        .http2_max_pending_accept_reset_streams(Some(limits::PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(limits::LOCAL_RESETS))
        .http2_keepalive_interval(Some(limits::KEEPALIVE))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_PATIENCE))
        .http2_max_header_list_size(limits::HEADER_LIST)
        .max_frame_size(limits::FRAME)
        .timeout(limits::CALL)
        .add_service(accounts)
        .add_service(drives)
        .add_service(objects)
}
