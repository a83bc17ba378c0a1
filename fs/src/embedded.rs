//! The storage server inside this process, for `quickstart`: reached over loopback gRPC and TLS like any other.
//!
//! Invariant: no short cut; client and server share nothing but the socket. The only file of the client that names the
//! server crate. Called by `quickstart`.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use sealdrive_proto::connect::ConnectString;
use sealdrive_server::{Config, Running, Server, StartError};
use tokio::runtime::Runtime;

/// Threads of the server: it shares the machine with its only client.
const THREADS: usize = 2;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No threads.
    #[error("threads: {0}")]
    Threads(#[from] io::Error),
    /// The server itself.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// A server that runs in this process until stopped.
pub struct Embedded {
    runtime: Runtime,
    running: Running,
}

impl Embedded {
    /// Starts a server over the data in `dir`.
    pub fn start(dir: &Path, listen: SocketAddr) -> Result<Self, EmbeddedError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("server")
            .enable_all()
            .build()?;
        let config = Config {
            data: dir.to_path_buf(),
            listen,
            plaintext_loopback: false,
        };
        let running = runtime.block_on(Server::start(config))?;
        Ok(Self { runtime, running })
    }

    /// How to reach it, without an invitation.
    pub fn connect(&self) -> &ConnectString {
        self.running.connect_string()
    }

    /// How to reach it, with a fresh one-time invitation.
    pub fn invite(&self) -> io::Result<ConnectString> {
        self.running.invite()
    }

    /// Lets streams end, writes the index, closes.
    pub fn stop(self) -> Result<(), EmbeddedError> {
        Ok(self.runtime.block_on(self.running.shutdown())?)
    }
}
