//! TLS of the server: TLS 1.3 only, one self-made certificate whose fingerprint the connect string pins.
//!
//! Invariant: the certificate is made once, on first start, and never replaced by itself (every client pins it); its
//! key file is readable by its owner alone. Called by `Server::start` and by the `invite` command.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sealdrive_proto::connect::certificate_fingerprint;

use crate::private_file;

/// Name of the certificate's file.
pub(crate) const CERTIFICATE: &str = "certificate.pem";
/// Name of its key's file.
pub(crate) const KEY: &str = "certificate-key.pem";
/// Name in the certificate. Clients pin the fingerprint and ignore it.
const NAME: &str = "sealdrive.invalid";

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The files cannot be read or written.
    #[error("TLS certificate in {dir}: {source}")]
    Io {
        /// The data directory.
        dir: String,
        /// What the system said.
        source: io::Error,
    },
    /// The files are there but are no certificate and key.
    #[error("TLS certificate in {0} is damaged; restore it from a backup (clients pin it)")]
    Damaged(String),
    /// rustls or rcgen refused.
    #[error("TLS: {0}")]
    Setup(String),
}

/// The server's certificate and key.
#[derive(Debug)]
pub struct Certificate {
    chain: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// Reads the certificate of a data directory, making it on first start.
    pub fn open(dir: &Path) -> Result<Self, TlsError> {
        let io = |source| TlsError::Io {
            dir: dir.display().to_string(),
            source,
        };
        let damaged = || TlsError::Damaged(dir.display().to_string());
        if !dir.join(KEY).try_exists().map_err(io)? {
            Self::make(dir)?;
        }
        let chain = std::fs::read(dir.join(CERTIFICATE)).map_err(io)?;
        let key = zeroize::Zeroizing::new(std::fs::read(dir.join(KEY)).map_err(io)?);
        Ok(Self {
            chain: CertificateDer::from_pem_slice(&chain).map_err(|_| damaged())?,
            key: PrivateKeyDer::from_pem_slice(&key).map_err(|_| damaged())?,
        })
    }

    fn make(dir: &Path) -> Result<(), TlsError> {
        let io = |source| TlsError::Io {
            dir: dir.display().to_string(),
            source,
        };
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])
            .map_err(|error| TlsError::Setup(error.to_string()))?;
        // The key comes last: a certificate without a key is made anew, a key without a certificate cannot be.
        private_file::write(&dir.join(CERTIFICATE), made.cert.pem().as_bytes()).map_err(io)?;
        let key = zeroize::Zeroizing::new(made.signing_key.serialize_pem());
        private_file::write(&dir.join(KEY), key.as_bytes()).map_err(io)
    }

    /// What connect strings pin.
    pub fn fingerprint(&self) -> [u8; 32] {
        certificate_fingerprint(&self.chain)
    }

    /// TLS 1.3 with HTTP/2, no resumption (every connection has a handshake and an exporter of its own), no early data.
    pub fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let setup = |error: rustls::Error| TlsError::Setup(error.to_string());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(setup)?
            .with_no_client_auth()
            .with_single_cert(vec![self.chain.clone()], self.key.clone_key())
            .map_err(setup)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Certificate::open(dir.path()).unwrap();
        let again = Certificate::open(dir.path()).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        again.config().unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(dir.path().join(KEY))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "key readable by others");
        std::fs::write(dir.path().join(KEY), "not a key").unwrap();
        assert!(matches!(
            Certificate::open(dir.path()),
            Err(TlsError::Damaged(_))
        ));
    }
}
