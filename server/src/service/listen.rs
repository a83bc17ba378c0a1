//! Connections: the accept loop, the TLS handshake, and what a request may know of its connection.
//!
//! Invariant: every connection is either TLS 1.3 with its exporter, or plaintext on a loopback address; at most
//! `MAX_CONNECTIONS` are open, and a handshake that dawdles is dropped. Called by `serve`; the services find
//! [`Peer`] among a request's extensions.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use sealdrive_proto::transcript::{Binding, EXPORTER_LABEL};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// Connections at once: each may hold `CONNECTION_WINDOW` bytes in the worst case, so this bounds memory.
pub const MAX_CONNECTIONS: usize = 4096;
/// A handshake takes one round trip; a slower peer is in trouble or up to something.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Finished handshakes that wait for the HTTP/2 server.
const BACKLOG: usize = 64;

/// The connection a request came on. No `Debug`: the exporter is as good as a part of the connection's keys.
#[derive(Clone)]
pub struct Peer {
    /// Other end.
    pub addr: SocketAddr,
    /// What a login on this connection is bound to.
    pub binding: Binding,
}

/// One accepted connection.
pub struct Connection {
    io: Io,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

enum Io {
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// Accepts for ever; ends when the receiver is dropped. `tls` is `None` on plaintext loopback only (checked by the
/// caller before it binds).
pub fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (out, accepted) = mpsc::channel(BACKLOG);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let acceptor = tls.map(TlsAcceptor::from);
    tokio::spawn(async move {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let (tcp, addr) = tokio::select! {
                () = out.closed() => return,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let (out, acceptor) = (out.clone(), acceptor.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE_DEADLINE, greet(tcp, addr, acceptor, place))
                    .await
                {
                    Ok(Ok(connection)) => drop(out.send(Ok(connection)).await),
                    Ok(Err(error)) => tracing::debug!(%addr, %error, "handshake failed"),
                    Err(_) => tracing::debug!(%addr, "handshake took too long"),
                }
            });
        }
    });
    accepted
}

async fn greet(
    tcp: TcpStream,
    addr: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    place: OwnedSemaphorePermit,
) -> io::Result<Connection> {
    tcp.set_nodelay(true)?;
    let Some(acceptor) = acceptor else {
        let peer = Peer {
            addr,
            binding: Binding::Loopback,
        };
        return Ok(Connection {
            io: Io::Plain(tcp),
            peer,
            _place: place,
        });
    };
    let stream = acceptor.accept(tcp).await?;
    let exporter = stream
        .get_ref()
        .1
        .export_keying_material([0u8; 32], EXPORTER_LABEL, Some(&[]))
        .map_err(io::Error::other)?;
    let peer = Peer {
        addr,
        binding: Binding::Tls(exporter),
    };
    Ok(Connection {
        io: Io::Tls(Box::new(stream)),
        peer,
        _place: place,
    })
}
