//! rustls configuration for mutual TLS: 1.3 only, peers verified against the cluster's authority in
//! both directions, no resumption and no early data.

use std::{fs, io, path::PathBuf, sync::Arc};

use littoral::{ClusterId, NodeId};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::{
    RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::{VerifierBuilderError, WebPkiClientVerifier},
    version::TLS13,
};

use crate::{config::Tls, pki};

/// What both sides of a link must speak.
pub(crate) const ALPN: &[u8] = b"littoral/1";

/// Why certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is not PEM, or does not hold what it should.
    #[error("{}: {error}", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// Others than its owner may read the private key.
    #[error("{} can be read by others than its owner; make it private (mode 0600)", .0.display())]
    KeyNotPrivate(PathBuf),
    /// The certificate is another node's, or another cluster's.
    #[error("{}: the certificate does not name the node {node} of this cluster", path.display())]
    WrongNode {
        /// The certificate.
        path: PathBuf,
        /// Whom it should name.
        node: NodeId,
    },
    /// Certificate and key do not fit, or rustls refuses them.
    #[error("certificate or key: {0}")]
    Rustls(#[from] rustls::Error),
    /// The authority's certificate cannot verify anything.
    #[error("the authority's certificate: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// The cryptography lacks what QUIC needs.
    #[error("{0}")]
    Quic(#[from] NoInitialCipherSuite),
}

/// Configuration of both sides.
pub(crate) struct TlsConfigs {
    pub(crate) client: Arc<QuicClientConfig>,
    pub(crate) server: Arc<QuicServerConfig>,
}

/// Reads certificates and key. Blocks on the disk.
pub(crate) fn load(files: &Tls) -> Result<TlsConfigs, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca)? {
        roots.add(certificate)?;
    }
    let roots = Arc::new(roots);
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let provider = Arc::new(ring::default_provider());

    let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(Arc::clone(&roots))
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();

    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 0;

    Ok(TlsConfigs { client: Arc::new(client.try_into()?), server: Arc::new(server.try_into()?) })
}

/// Whether the files would do for a node of that name.
pub(crate) fn check(files: &Tls, cluster: ClusterId, node: &NodeId) -> Result<(), TlsError> {
    load(files)?;
    let certificate = &certificates(&files.certificate)?[0];
    let named = pki::certified_node(certificate, cluster);
    if named.as_ref().ok() == Some(node) {
        return Ok(());
    }
    Err(TlsError::WrongNode { path: files.certificate.clone(), node: node.clone() })
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Pem { path: path.clone(), error })?;
    if found.is_empty() {
        return Err(TlsError::Pem { path: path.clone(), error: pem::Error::NoItemsFound });
    }
    Ok(found)
}

fn private_key(path: &PathBuf) -> Result<PrivateKeyDer<'static>, TlsError> {
    let public =
        pki::others_may_read(path).map_err(|error| TlsError::Read { path: path.clone(), error })?;
    if public {
        return Err(TlsError::KeyNotPrivate(path.clone()));
    }
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|error| TlsError::Pem { path: path.clone(), error })
}

fn read(path: &PathBuf) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::Read { path: path.clone(), error })
}
