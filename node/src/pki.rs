//! The cluster's certificate authority, and the certificates that it issues to nodes.
//!
//! A node's certificate names the node in a DNS name, `NODE.CLUSTER.littoral`, where `CLUSTER` is
//! the cluster id in hexadecimal. So a certificate of one cluster is worth nothing in another, even
//! if somebody used one authority for both. Rotation and revocation are not here yet.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::Path,
};

use littoral::{ClusterId, NodeId};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};
use x509_parser::{
    pem::parse_x509_pem,
    prelude::{FromDer as _, GeneralName, X509Certificate},
};

/// How long certificates are valid, in days. Long, because nothing renews them yet.
const VALID_DAYS: i64 = 3650;

/// Clocks of nodes may be behind that of the machine that issues a certificate.
const BACKDATE: Duration = Duration::days(1);

/// A certificate and its private key, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl std::fmt::Debug for Issued {
    /// Without the key, so that it reaches no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Why a certificate was not made or not understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// The certificate could not be made or its authority not be read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A certificate is not valid DER.
    #[error("the certificate cannot be parsed")]
    Unreadable,
    /// A certificate is not that of a cluster's authority.
    #[error("the certificate is not that of a littoral cluster's authority")]
    NoAuthority,
    /// A certificate names no node of this cluster.
    #[error("the certificate names no node of cluster {0}")]
    NamesNoNode(ClusterId),
}

/// The authority of one cluster.
#[derive(Debug)]
pub struct Authority {
    cluster: ClusterId,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority.
    ///
    /// # Errors
    /// Only if the cryptography fails.
    pub fn create(cluster: ClusterId) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = valid_now(CertificateParams::new(Vec::new())?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::OrganizationName, "littoral");
        params.distinguished_name.push(DnType::CommonName, format!("littoral cluster {cluster}"));
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { cluster, certificate, issuer: Issuer::new(params, key) })
    }

    /// Takes up an authority made earlier.
    ///
    /// # Errors
    /// If certificate or key are damaged.
    pub fn from_pem(cluster: ClusterId, certificate: &str, key: &str) -> Result<Self, PkiError> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { cluster, certificate: certificate.to_owned(), issuer })
    }

    /// The authority's own certificate, which every node is given.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The authority's private key, which no node is given.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Issues a certificate to a node.
    ///
    /// # Errors
    /// Only if the cryptography fails.
    pub fn issue(&self, node: &NodeId) -> Result<Issued, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = valid_now(CertificateParams::new(vec![dns_name(node, self.cluster)])?);
        params.distinguished_name.push(DnType::OrganizationName, "littoral");
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }
}

fn valid_now(mut params: CertificateParams) -> CertificateParams {
    // `CertificateParams` comes with a common name of rcgen's own.
    params.distinguished_name = rcgen::DistinguishedName::new();
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(VALID_DAYS);
    params
}

/// The DNS name by which a node of a cluster is certified.
pub fn dns_name(node: &NodeId, cluster: ClusterId) -> String {
    format!("{node}.{cluster}.littoral")
}

/// The cluster whose authority's certificate this is.
///
/// # Errors
/// If it is none that [`Authority::create`] made.
pub fn cluster_of(certificate: &str) -> Result<ClusterId, PkiError> {
    let (_, pem) = parse_x509_pem(certificate.as_bytes()).map_err(|_| PkiError::Unreadable)?;
    let parsed = pem.parse_x509().map_err(|_| PkiError::Unreadable)?;
    let named = parsed.subject().iter_common_name().find_map(|name| {
        let cluster = name.as_str().ok()?.strip_prefix("littoral cluster ")?;
        u128::from_str_radix(cluster, 16).ok()
    });
    named.map(ClusterId).ok_or(PkiError::NoAuthority)
}

/// The node that a certificate names, given that the certificate was verified already.
///
/// # Errors
/// If it names none of this cluster.
pub fn certified_node(der: &[u8], cluster: ClusterId) -> Result<NodeId, PkiError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| PkiError::Unreadable)?;
    let names = certificate.subject_alternative_name().map_err(|_| PkiError::Unreadable)?;
    let suffix = format!(".{cluster}.littoral");
    names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .find_map(|name| match name {
            GeneralName::DNSName(name) => NodeId::new(name.strip_suffix(&suffix)?).ok(),
            _ => None,
        })
        .ok_or(PkiError::NamesNoNode(cluster))
}

/// Writes a new file that only its owner may read. An existing file is never overwritten.
///
/// # Errors
/// As the operating system says; [`io::ErrorKind::AlreadyExists`] if there is such a file.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Whether anybody but its owner may read the file.
///
/// # Errors
/// If the file cannot be looked at.
pub fn others_may_read(path: &Path) -> io::Result<bool> {
    let metadata = fs::metadata(path)?;
    #[cfg(unix)]
    let others = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0;
    // Elsewhere access lists decide, which this cannot judge.
    #[cfg(not(unix))]
    let others = !metadata.is_file();
    Ok(others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};

    const CLUSTER: ClusterId = ClusterId(0x1234);

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_certificate_names_its_node_in_its_cluster_only() {
        let node = NodeId::new("edge-7").unwrap();
        let issued = Authority::create(CLUSTER).unwrap().issue(&node).unwrap();
        let der = der(&issued.certificate);
        assert_eq!(certified_node(&der, CLUSTER).unwrap(), node);
        assert!(matches!(certified_node(&der, ClusterId(1)), Err(PkiError::NamesNoNode(_))));
        assert!(matches!(certified_node(&der[..40], CLUSTER), Err(PkiError::Unreadable)));
    }

    #[test]
    fn an_authority_goes_on_from_its_files() {
        let first = Authority::create(CLUSTER).unwrap();
        let again = Authority::from_pem(CLUSTER, first.certificate(), &first.key()).unwrap();
        let node = NodeId::new("edge1").unwrap();
        let issued = again.issue(&node).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der(first.certificate())).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            std::sync::Arc::new(roots),
            provider,
        )
        .build()
        .unwrap();
        let name = dns_name(&node, CLUSTER).try_into().unwrap();
        let now = rustls::pki_types::UnixTime::now();
        use rustls::client::danger::ServerCertVerifier as _;
        verifier.verify_server_cert(&der(&issued.certificate), &[], &name, &[], now).unwrap();
    }

    #[test]
    fn private_files_are_private_and_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write_private(&path, "one").unwrap();
        assert!(!others_may_read(&path).unwrap());
        let error = write_private(&path, "two").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
    }
}
