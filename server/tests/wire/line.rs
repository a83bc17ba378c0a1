//! One pinned TLS connection to the server, with its exporter.
//!
//! Invariant: a `Line` is one connection for its whole life, so that a token and an exporter belong together. Called by
//! the rig.

use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use sealdrive_proto::connect::{ConnectString, certificate_fingerprint};
use sealdrive_proto::transcript::{Binding, EXPORTER_LABEL};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

#[derive(Debug)]
struct Pinned([u8; 32], Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        assert_eq!(
            certificate_fingerprint(certificate),
            self.0,
            "the connect string pins another certificate"
        );
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 was spoken".into()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.1.signature_verification_algorithms,
        )
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}

/// One connection to a server.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) channel: Channel,
    pub(crate) binding: Binding,
    pub(crate) server_pk: [u8; 32],
}

/// Connects over TLS and takes the exporter.
pub(crate) async fn connect(to: &ConnectString) -> Line {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Pinned(to.tls_fingerprint.unwrap(), Arc::clone(&provider));
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let tcp = TcpStream::connect(&to.addr).await.unwrap();
    let stream = connector
        .connect("sealdrive.invalid".try_into().unwrap(), tcp)
        .await
        .unwrap();
    let exporter = stream
        .get_ref()
        .1
        .export_keying_material([0u8; 32], EXPORTER_LABEL, Some(&[]))
        .unwrap();
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().unwrap().take();
        async move {
            stream
                .map(hyper_util::rt::TokioIo::new)
                .ok_or_else(|| std::io::Error::other("one connection only"))
        }
    });
    let channel = Endpoint::from_static("http://test")
        .connect_with_connector(connector)
        .await
        .unwrap();
    Line {
        channel,
        binding: Binding::Tls(exporter),
        server_pk: to.server_pk,
    }
}
