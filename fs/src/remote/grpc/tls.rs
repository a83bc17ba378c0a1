//! The byte stream to exactly one server: TLS 1.3 with the certificate of the connect string, or loopback plaintext.
//!
//! Invariant: no certificate authority is trusted, so none can be tricked; the handshake signature is checked as well,
//! because a certificate is public and could be shown by anyone. Yields what the login is bound to. A machine that has
//! only the kit takes any certificate here: the server's signature over the exporter then is what authenticates it.
//! Called by `session`.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sealdrive_proto::connect::certificate_fingerprint;
use sealdrive_proto::transcript::{Binding, EXPORTER_LABEL};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Security, Server};
use crate::remote::RemoteError;

/// Longest wait for TCP and TLS together: a server that is up answers in a fraction of it.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A connection, and what makes it this one.
pub(super) struct Secured {
    /// The byte stream.
    pub(super) stream: Box<dyn Stream>,
    /// What the login is bound to: RFC 8446 §7.5 exporter of this connection and no other.
    pub(super) binding: Binding,
    /// Fingerprint of the certificate shown.
    pub(super) fingerprint: Option<[u8; 32]>,
}

/// A byte stream in both directions.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects, or says in one line why not.
pub(super) async fn connect(server: &Server) -> Result<Secured, RemoteError> {
    let unreachable =
        |why: &dyn std::fmt::Display| RemoteError::Unreachable(format!("{}: {why}", server.addr));
    let connecting = async {
        let tcp = TcpStream::connect(server.addr.as_str())
            .await
            .map_err(|e| unreachable(&e))?;
        // Small requests wait for no company.
        tcp.set_nodelay(true).map_err(|e| unreachable(&e))?;
        match server.security {
            Security::Certificate(fingerprint) => handshake(server, tcp, Some(fingerprint)).await,
            Security::AnyCertificate => handshake(server, tcp, None).await,
            Security::Plaintext => {
                // Checked on the address reached, not on a name somebody may have pointed elsewhere.
                if !tcp.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
                    return Err(unreachable(&"plaintext is for this machine only"));
                }
                let stream = Box::new(tcp);
                Ok(Secured {
                    stream,
                    binding: Binding::Loopback,
                    fingerprint: None,
                })
            }
        }
    };
    tokio::time::timeout(CONNECT_DEADLINE, connecting)
        .await
        .unwrap_or_else(|_| {
            Err(unreachable(&format_args!(
                "no answer in {} s",
                CONNECT_DEADLINE.as_secs()
            )))
        })
}

async fn handshake(
    server: &Server,
    tcp: TcpStream,
    pinned: Option<[u8; 32]>,
) -> Result<Secured, RemoteError> {
    let connector = TlsConnector::from(Arc::new(config(pinned)?));
    let stream = connector
        .connect(server_name(&server.addr), tcp)
        .await
        .map_err(|error| {
            let inner = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match inner {
                Some(rustls::Error::InvalidCertificate(_)) => RemoteError::WrongServer(format!(
                    "{} shows another certificate than the one in the connect string",
                    server.addr
                )),
                _ => RemoteError::Unreachable(format!("{}: TLS: {error}", server.addr)),
            }
        })?;
    let tls = stream.get_ref().1;
    let fingerprint = tls
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|certificate| certificate_fingerprint(certificate));
    let exporter = tls
        .export_keying_material([0u8; 32], EXPORTER_LABEL, Some(&[]))
        .map_err(|error| RemoteError::Unreachable(format!("TLS exporter: {error}")))?;
    Ok(Secured {
        stream: Box::new(stream),
        binding: Binding::Tls(exporter),
        fingerprint,
    })
}

fn config(pinned: Option<[u8; 32]>) -> Result<ClientConfig, RemoteError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Pinned {
        pinned,
        provider: Arc::clone(&provider),
    });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| RemoteError::Unreachable(format!("TLS: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session has an exporter of its own, but no certificate is shown again: always a full handshake.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// What the client calls the server in the handshake: its host name without the port.
fn server_name(addr: &str) -> ServerName<'static> {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).unwrap_or_else(|_| {
        ServerName::try_from("sealdrive.invalid").expect("a constant that is a valid DNS name")
    })
}

/// Accepts one certificate, or (for the first connection from a kit) any whose key the server proves to hold.
#[derive(Debug)]
struct Pinned {
    pinned: Option<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = certificate_fingerprint(end_entity);
        if self.pinned.is_none_or(|pinned| pinned == shown) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
