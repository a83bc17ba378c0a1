//! The server over gRPC: the only place of the client that knows tonic.
//!
//! Invariant: everything goes through TLS 1.3 to the one certificate of the connect string, after the server proved
//! its identity key; calls that change something are signed with a number that only rises. What comes back is bytes:
//! who signed them is checked by the callers. `Grpc` serves the engine, `Account` the account flows.

mod account;
mod drive;
mod login;
mod session;
mod status;
mod stream;
mod tls;

use std::sync::Arc;

use bytes::Bytes;
use sealdrive_proto::connect::ConnectString;
use sealdrive_proto::id::{DomainId, DriveId, Sid};
use sealdrive_proto::limits::MAX_MESSAGE;
use sealdrive_proto::v1::account_service_client::AccountServiceClient;
use sealdrive_proto::v1::drive_service_client::DriveServiceClient;
use sealdrive_proto::v1::object_service_client::ObjectServiceClient;
use tonic::transport::Channel;

pub use account::{Account, Registration, SlotAnswer};
pub use login::Identity;
use session::Line;
pub use status::translate;
pub use stream::ack;

/// Where a server is and how it is recognised.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    /// `host:port`.
    pub addr: String,
    /// Its Ed25519 identity key.
    pub server_pk: [u8; 32],
    /// What the connection itself must show.
    pub security: Security,
}

/// What a connection must show before the server's identity is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// TLS with the certificate of this fingerprint.
    Certificate([u8; 32]),
    /// TLS with any certificate: only for a machine that knows the identity key from its kit and nothing else.
    AnyCertificate,
    /// No TLS, to this very machine.
    Plaintext,
}

impl From<&ConnectString> for Server {
    fn from(text: &ConnectString) -> Self {
        let security = match text.tls_fingerprint {
            Some(fingerprint) => Security::Certificate(fingerprint),
            None => Security::Plaintext,
        };
        Self {
            addr: text.addr.clone(),
            server_pk: text.server_pk,
            security,
        }
    }
}

/// Numbers for signed calls: each is handed out once in the life of a device, also across crashes.
pub trait CallNumbers: Send + Sync + 'static {
    /// The next number, durably reserved.
    fn next(&self) -> std::io::Result<u64>;
}

/// One drive on one server, as one device.
pub struct Grpc {
    /// Calls and fetches: what somebody waits for.
    line: Line,
    /// Uploads, on a connection of their own, so that their bytes never stand before an answer in a socket's buffer.
    bulk: Line,
    drive: DriveId,
    domain: DomainId,
    numbers: Arc<dyn CallNumbers>,
}

impl Grpc {
    /// Nothing is connected yet: the first call does that.
    pub fn new(
        server: Server,
        identity: Identity,
        drive: DriveId,
        domain: DomainId,
        numbers: Arc<dyn CallNumbers>,
    ) -> Self {
        let identity = Arc::new(identity);
        Self {
            line: Line::new(server.clone(), Arc::clone(&identity)),
            bulk: Line::new(server, identity),
            drive,
            domain,
            numbers,
        }
    }

    fn drive_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.drive.as_bytes())
    }

    fn domain_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.domain.as_bytes())
    }
}

fn sid_bytes(sids: &[Sid]) -> Vec<Bytes> {
    // One allocation for all: thousands of ids a call.
    let all: Bytes = sids.iter().flat_map(|sid| sid.0).collect();
    (0..sids.len())
        .map(|at| all.slice(at * Sid::LEN..(at + 1) * Sid::LEN))
        .collect()
}

fn accounts(channel: Channel) -> AccountServiceClient<Channel> {
    AccountServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

fn drives(channel: Channel) -> DriveServiceClient<Channel> {
    DriveServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

fn objects(channel: Channel) -> ObjectServiceClient<Channel> {
    ObjectServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}
