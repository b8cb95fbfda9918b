//! rustls configuration for mutual TLS: 1.3 only, peers verified against the cluster's authority in
//! both directions, no resumption and no early data. [`judge`] is the one place that says whether a
//! certificate is accepted, at a handshake and later.

use std::{fs, io, path::PathBuf, sync::Arc};

use littoral::{Identity, NodeId};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::{
    RootCertStore,
    client::WebPkiServerVerifier,
    crypto::ring,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem,
        pem::PemObject as _,
    },
    server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};

use crate::{
    config::Tls,
    pki::{self, Facts, PkiError},
};

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
    /// A file does not hold what it should.
    #[error("{}: there is no {what} in it, in PEM", path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
    },
    /// The key is not that of the certificate.
    #[error("{} is not the key of the certificate {}; they belong together", key.display(), certificate.display())]
    OtherKey {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// A file is not PEM.
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
    /// A certificate, or a list of revoked ones, is damaged.
    #[error("{}: {error}", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: PkiError,
    },
    /// The certificate is not one of the authority, or the authority's list of revoked ones is not signed
    /// by it.
    #[error("{}: the node's own certificate does not stand before the authority: {why}", path.display())]
    NotOfAuthority {
        /// The certificate.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A list of revoked certificates is of another authority.
    #[error("{}: the list of revoked certificates is of another authority than that of tls.ca", .0.display())]
    ListOfAnother(PathBuf),
    /// Rustls refuses certificate or key.
    #[error("certificate or key: {0}")]
    Rustls(#[from] rustls::Error),
    /// The authority's certificate cannot verify anything.
    #[error("the authority's certificate: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// The cryptography lacks what QUIC needs.
    #[error("{0}")]
    Quic(#[from] NoInitialCipherSuite),
}

/// A secret of the node that is the same at every start with the same key. Blocks on the disk.
pub(super) fn reset_secret(key: &PathBuf) -> Result<[u8; 32], TlsError> {
    Ok(blake3::derive_key("littoral stateless reset", private_key(key)?.secret_der()))
}

/// What the files of a node make of its links.
pub(super) struct Loaded {
    pub(super) client: Arc<QuicClientConfig>,
    pub(super) server: Arc<QuicServerConfig>,
    /// Judges the certificates of peers, whoever dialed.
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// The node's own certificate.
    pub(super) own: Facts,
    /// What speaks against it now, if anything does: peers see the same.
    pub(super) own_refused: Option<String>,
    /// Until when the authority's certificate is valid, in seconds since 1970; the last one's, if there are
    /// several.
    pub(super) authority_not_after: i64,
}

/// Reads certificates and key. Blocks on the disk.
pub(super) fn load(files: &Tls, me: &Identity) -> Result<Loaded, TlsError> {
    let authorities = certificates(&files.ca)?;
    let mut authority_not_after = i64::MIN;
    let mut roots = RootCertStore::empty();
    for certificate in &authorities {
        let wrong = |error| TlsError::Certificate { path: files.ca.clone(), error };
        authority_not_after = authority_not_after.max(pki::not_after(certificate).map_err(wrong)?);
        roots.add(certificate.clone())?;
    }
    let roots = Arc::new(roots);
    let lists = match &files.revoked {
        None => Vec::new(),
        Some(path) => revoked(path, &authorities)?,
    };
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let provider = Arc::new(ring::default_provider());

    let mut servers =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
    let mut clients =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
    if !lists.is_empty() {
        // Of several authorities, some may have no list.
        servers = servers
            .with_crls(lists.clone())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status();
        clients = clients
            .with_crls(lists)
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status();
    }
    let verifier = clients.build()?;

    let own = pki::facts(&chain[0], me.cluster).ok().filter(|own| own.node == me.node);
    let Some(own) = own else {
        return Err(TlsError::WrongNode { path: files.certificate.clone(), node: me.node.clone() });
    };
    // With one that has expired or was revoked the node goes on alone; what does not fit is a mistake.
    let own_refused = match judge(&*verifier, &chain) {
        Ok(()) => None,
        Err(Refused::Now(why)) => Some(why.to_owned()),
        Err(Refused::Ever(why)) => {
            return Err(TlsError::NotOfAuthority { path: files.certificate.clone(), why });
        }
    };

    let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .with_webpki_verifier(servers.build()?)
        .with_client_auth_cert(chain.clone(), key.clone_key())
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::OtherKey {
                key: files.key.clone(),
                certificate: files.certificate.clone(),
            },
            error => TlsError::Rustls(error),
        })?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();

    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::clone(&verifier))
        .with_single_cert(chain, key)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 0;

    Ok(Loaded {
        client: Arc::new(client.try_into()?),
        server: Arc::new(server.try_into()?),
        verifier,
        own,
        own_refused,
        authority_not_after,
    })
}

/// Whether the files would do for a node, and what its peers have against its certificate by now.
pub(crate) fn check(files: &Tls, me: &Identity) -> Result<(Facts, Option<String>), TlsError> {
    let loaded = load(files, me)?;
    Ok((loaded.own, loaded.own_refused))
}

/// Why a certificate is not accepted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// It was good, or will be.
    #[error("{0}")]
    Now(&'static str),
    /// It never was.
    #[error("{0}")]
    Ever(String),
}

/// Whether a chain of certificates is accepted now.
pub(super) fn judge(
    verifier: &dyn ClientCertVerifier,
    chain: &[CertificateDer<'static>],
) -> Result<(), Refused> {
    use rustls::CertificateError::{
        Expired, ExpiredContext, NotValidYet, NotValidYetContext, Revoked, UnknownIssuer,
    };
    let [certificate, others @ ..] = chain else {
        return Err(Refused::Ever("there is no certificate".to_owned()));
    };
    let Err(error) = verifier.verify_client_cert(certificate, others, UnixTime::now()) else {
        return Ok(());
    };
    Err(match error {
        rustls::Error::InvalidCertificate(Revoked) => Refused::Now("its certificate is revoked"),
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            Refused::Now("its certificate has expired")
        }
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            Refused::Now("its certificate is not valid yet")
        }
        rustls::Error::InvalidCertificate(UnknownIssuer) => {
            Refused::Ever("its certificate is of another authority".to_owned())
        }
        other => Refused::Ever(other.to_string()),
    })
}

fn revoked(
    path: &PathBuf,
    authorities: &[CertificateDer<'static>],
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Pem { path: path.clone(), error })?;
    if lists.is_empty() {
        return Err(TlsError::Empty { path: path.clone(), what: "list of revoked certificates" });
    }
    for list in &lists {
        let mut known = false;
        for authority in authorities {
            known |= pki::is_list_of(list, authority)
                .map_err(|error| TlsError::Certificate { path: path.clone(), error })?;
        }
        if !known {
            return Err(TlsError::ListOfAnother(path.clone()));
        }
    }
    Ok(lists)
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Pem { path: path.clone(), error })?;
    if found.is_empty() {
        return Err(TlsError::Empty { path: path.clone(), what: "certificate" });
    }
    Ok(found)
}

fn private_key(path: &PathBuf) -> Result<PrivateKeyDer<'static>, TlsError> {
    let public =
        pki::others_may_read(path).map_err(|error| TlsError::Read { path: path.clone(), error })?;
    if public {
        return Err(TlsError::KeyNotPrivate(path.clone()));
    }
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::Empty { path: path.clone(), what: "private key" },
        error => TlsError::Pem { path: path.clone(), error },
    })
}

fn read(path: &PathBuf) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::Read { path: path.clone(), error })
}
