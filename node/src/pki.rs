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
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams, SerialNumber, SubjectPublicKeyInfo,
};
use time::{Duration, OffsetDateTime};
use x509_parser::{
    pem::{Pem, parse_x509_pem},
    prelude::{CertificateRevocationList, FromDer as _, GeneralName, X509Certificate},
};

/// How long certificates are valid where nobody says otherwise, in days. Long, because a certificate that
/// nobody has renewed in time cuts a node off.
pub const VALID_DAYS: u32 = 3650;

/// How long a list of revoked certificates says that it is valid. Nodes do not hold it to that: one that
/// is not replaced goes on counting.
const LIST_DAYS: i64 = 3650;

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
    /// A list of revoked certificates is not valid DER.
    #[error("the list of revoked certificates cannot be parsed")]
    UnreadableList,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    NoEntropy(getrandom::Error),
}

/// What a certificate of a node says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Whom it names.
    pub node: NodeId,
    /// Its number, in hexadecimal.
    pub serial: String,
    /// From when on it is valid, in seconds since 1970.
    pub not_before: i64,
    /// Until when it is valid, in seconds since 1970.
    pub not_after: i64,
}

/// A certificate that its authority no longer stands for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Revoked {
    /// Its number, in hexadecimal.
    pub serial: String,
    /// Since when, in seconds since 1970.
    pub at: i64,
}

/// The certificates that an authority no longer stands for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RevokedList {
    /// Counts the lists of the authority.
    pub number: u64,
    /// The certificates.
    pub revoked: Vec<Revoked>,
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
        let mut params = valid_for(CertificateParams::new(Vec::new())?, days(VALID_DAYS));
        // Two authorities of one cluster, an old and a new one, have different names: each has its own list
        // of revoked certificates, and the name tells whose list it is.
        params.serial_number = Some(serial()?);
        let unit = hex(&random::<8>()?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::OrganizationName, "littoral");
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
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

    /// Issues a certificate to a node, with a new key.
    ///
    /// # Errors
    /// Only if the cryptography fails.
    pub fn issue(&self, node: &NodeId) -> Result<Issued, PkiError> {
        self.issue_for(node, days(VALID_DAYS))
    }

    /// As [`Authority::issue`], for so long.
    ///
    /// # Errors
    /// Only if the cryptography fails.
    pub fn issue_for(
        &self,
        node: &NodeId,
        lifetime: std::time::Duration,
    ) -> Result<Issued, PkiError> {
        let key = KeyPair::generate()?;
        let certificate = self.certify(node, &key, lifetime)?;
        Ok(Issued { certificate, key: key.serialize_pem() })
    }

    /// Issues another certificate to the node that one names, for the same key.
    ///
    /// # Errors
    /// If the certificate is damaged, or names no node of this cluster.
    pub fn renew(
        &self,
        certificate: &str,
        lifetime: std::time::Duration,
    ) -> Result<String, PkiError> {
        let pem = read_pem(certificate)?;
        let node = certified_node(&pem.contents, self.cluster)?;
        let parsed = pem.parse_x509().map_err(|_| PkiError::Unreadable)?;
        let key = SubjectPublicKeyInfo::from_der(parsed.public_key().raw)?;
        self.certify(&node, &key, lifetime)
    }

    /// Issues a certificate to a node for a key that only the node has. Nothing but the key is taken from
    /// its request.
    pub(crate) fn sign(
        &self,
        node: &NodeId,
        request: &SigningRequest,
        lifetime: std::time::Duration,
    ) -> Result<String, PkiError> {
        self.certify(node, &request.0.public_key, lifetime)
    }

    /// Issues a certificate to whoever signs for machines that join. It is of no node's.
    pub(crate) fn issue_to_signer(
        &self,
        lifetime: std::time::Duration,
    ) -> Result<Issued, PkiError> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![signer_name(self.cluster)])?;
        let mut params = valid_for(params, lifetime);
        params.serial_number = Some(serial()?);
        params.distinguished_name.push(DnType::OrganizationName, "littoral");
        params.distinguished_name.push(DnType::CommonName, "signer");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }

    fn certify(
        &self,
        node: &NodeId,
        key: &impl PublicKeyData,
        lifetime: std::time::Duration,
    ) -> Result<String, PkiError> {
        let params = CertificateParams::new(vec![dns_name(node, self.cluster)])?;
        let mut params = valid_for(params, lifetime);
        params.serial_number = Some(serial()?);
        params.distinguished_name.push(DnType::OrganizationName, "littoral");
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// Signs a list of revoked certificates, PEM.
    ///
    /// # Errors
    /// If a serial is no hexadecimal number.
    pub fn sign_list(&self, list: &RevokedList) -> Result<String, PkiError> {
        let now = OffsetDateTime::now_utc();
        let revoked_certs = list.revoked.iter().map(|revoked| {
            let serial = unhex(&revoked.serial).ok_or(PkiError::Unreadable)?;
            let at = OffsetDateTime::from_unix_timestamp(revoked.at);
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: at.map_err(|_| PkiError::Unreadable)?,
                reason_code: None,
                invalidity_date: None,
            })
        });
        let params = CertificateRevocationListParams {
            this_update: now - BACKDATE,
            next_update: now + Duration::days(LIST_DAYS),
            crl_number: SerialNumber::from(list.number),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect::<Result<_, PkiError>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }
}

fn valid_for(mut params: CertificateParams, lifetime: std::time::Duration) -> CertificateParams {
    // `CertificateParams` comes with a common name of rcgen's own.
    params.distinguished_name = rcgen::DistinguishedName::new();
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + lifetime;
    params
}

/// So many days.
pub fn days(n: u32) -> std::time::Duration {
    std::time::Duration::from_secs(u64::from(n) * 24 * 60 * 60)
}

/// A number that no other certificate has. Its first byte is such that it is written as it is.
fn serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(PkiError::NoEntropy)?;
    Ok(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

/// The DNS name by which a node of a cluster is certified.
pub fn dns_name(node: &NodeId, cluster: ClusterId) -> String {
    format!("{node}.{cluster}.littoral")
}

/// The DNS name of whoever signs for machines that join a cluster. No node has such a name.
pub(crate) fn signer_name(cluster: ClusterId) -> String {
    format!("{cluster}.signer.littoral")
}

/// Somebody's wish for a certificate: their public key, and a proof that they have the private one.
#[derive(Debug)]
pub(crate) struct SigningRequest(CertificateSigningRequestParams);

impl SigningRequest {
    /// Reads one, PEM; `None` if it is damaged, or not signed by its own key.
    pub(crate) fn read(pem: &str) -> Option<Self> {
        CertificateSigningRequestParams::from_pem(pem).ok().map(Self)
    }

    /// Tells keys apart.
    pub(crate) fn key_hash(&self) -> String {
        hex(blake3::hash(self.0.public_key.der_bytes()).as_bytes())
    }
}

/// A wish for a certificate for this key, PEM.
pub(crate) fn signing_request(key: &KeyPair) -> Result<String, PkiError> {
    Ok(CertificateParams::new(Vec::new())?.serialize_request(key)?.pem()?)
}

/// SHA-256 of a certificate, in hexadecimal, as other programs show it.
pub(crate) fn fingerprint_of(der: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, der).as_ref())
}

/// As [`fingerprint_of`], of a certificate in PEM.
pub(crate) fn fingerprint(certificate: &str) -> Result<String, PkiError> {
    Ok(fingerprint_of(&read_pem(certificate)?.contents))
}

/// The cluster whose authority's certificate this is.
///
/// # Errors
/// If it is none that [`Authority::create`] made.
pub fn cluster_of(certificate: &str) -> Result<ClusterId, PkiError> {
    let pem = read_pem(certificate)?;
    let parsed = pem.parse_x509().map_err(|_| PkiError::Unreadable)?;
    let named = parsed.subject().iter_common_name().find_map(|name| {
        let cluster = name.as_str().ok()?.strip_prefix("littoral cluster ")?;
        u128::from_str_radix(cluster, 16).ok()
    });
    named.map(ClusterId).ok_or(PkiError::NoAuthority)
}

fn read_pem(certificate: &str) -> Result<Pem, PkiError> {
    let (_, pem) = parse_x509_pem(certificate.as_bytes()).map_err(|_| PkiError::Unreadable)?;
    Ok(pem)
}

/// The node that a certificate names, given that the certificate was verified already.
///
/// # Errors
/// If it names none of this cluster.
pub fn certified_node(der: &[u8], cluster: ClusterId) -> Result<NodeId, PkiError> {
    facts(der, cluster).map(|facts| facts.node)
}

/// What the certificate of a node says, whether it is to be believed or not.
///
/// # Errors
/// If it names no node of this cluster.
pub fn facts(der: &[u8], cluster: ClusterId) -> Result<Facts, PkiError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| PkiError::Unreadable)?;
    let names = certificate.subject_alternative_name().map_err(|_| PkiError::Unreadable)?;
    let suffix = format!(".{cluster}.littoral");
    let node = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .find_map(|name| match name {
            GeneralName::DNSName(name) => NodeId::new(name.strip_suffix(&suffix)?).ok(),
            _ => None,
        })
        .ok_or(PkiError::NamesNoNode(cluster))?;
    let validity = certificate.validity();
    Ok(Facts {
        node,
        serial: hex(certificate.raw_serial()),
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
    })
}

/// As [`facts`], of a certificate in PEM.
///
/// # Errors
/// If it names no node of this cluster.
pub fn facts_of_pem(certificate: &str, cluster: ClusterId) -> Result<Facts, PkiError> {
    facts(&read_pem(certificate)?.contents, cluster)
}

/// Until when a certificate is valid, in seconds since 1970.
///
/// # Errors
/// If it is damaged.
pub fn not_after(der: &[u8]) -> Result<i64, PkiError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| PkiError::Unreadable)?;
    Ok(certificate.validity().not_after.timestamp())
}

/// Whether a list of revoked certificates says that it is of the authority with this certificate.
///
/// # Errors
/// If one of them is damaged.
pub fn is_list_of(list: &[u8], authority: &[u8]) -> Result<bool, PkiError> {
    let (_, list) =
        CertificateRevocationList::from_der(list).map_err(|_| PkiError::UnreadableList)?;
    let (_, authority) = X509Certificate::from_der(authority).map_err(|_| PkiError::Unreadable)?;
    Ok(list.issuer().as_raw() == authority.subject().as_raw())
}

/// Reads a list of revoked certificates, PEM, whether it is to be believed or not.
///
/// # Errors
/// If it is damaged.
pub fn read_list(list: &str) -> Result<RevokedList, PkiError> {
    let (_, pem) = parse_x509_pem(list.as_bytes()).map_err(|_| PkiError::UnreadableList)?;
    let (_, list) =
        CertificateRevocationList::from_der(&pem.contents).map_err(|_| PkiError::UnreadableList)?;
    let number = list.crl_number().map(ToString::to_string).and_then(|n| n.parse().ok());
    let revoked = list.iter_revoked_certificates().map(|revoked| Revoked {
        serial: hex(revoked.raw_serial()),
        at: revoked.revocation_date.timestamp(),
    });
    Ok(RevokedList { number: number.unwrap_or_default(), revoked: revoked.collect() })
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

/// Puts a file that only its owner may read in the place of another one, whole or not at all.
///
/// # Errors
/// As the operating system says; then the other one stays.
pub fn replace_private(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    // One that was left behind when a machine went down.
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write_private(new, text)?;
    fs::rename(new, path)?;
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
    fs::File::open(directory.unwrap_or_else(|| ".".as_ref()))?.sync_all()
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
    fn a_renewed_certificate_is_for_the_same_key_and_has_another_serial() {
        let authority = Authority::create(CLUSTER).unwrap();
        let node = NodeId::new("edge1").unwrap();
        let issued = authority.issue_for(&node, days(1)).unwrap();
        let renewed = authority.renew(&issued.certificate, days(90)).unwrap();
        let key =
            |pem: &str| read_pem(pem).unwrap().parse_x509().unwrap().public_key().raw.to_vec();
        assert_eq!(key(&renewed), key(&issued.certificate));
        let (old, new) = (
            facts_of_pem(&issued.certificate, CLUSTER).unwrap(),
            facts_of_pem(&renewed, CLUSTER).unwrap(),
        );
        assert_eq!(new.node, node);
        assert_ne!(new.serial, old.serial);
        assert!(new.not_after > old.not_after + 80 * 24 * 60 * 60);
    }

    #[test]
    fn a_list_says_what_was_revoked_and_whose_it_is() {
        let authority = Authority::create(CLUSTER).unwrap();
        let issued = authority.issue(&NodeId::new("edge1").unwrap()).unwrap();
        let serial = facts_of_pem(&issued.certificate, CLUSTER).unwrap().serial;
        let revoked = vec![Revoked { serial, at: 1_700_000_000 }];
        for list in [RevokedList::default(), RevokedList { number: 7, revoked }] {
            let pem = authority.sign_list(&list).unwrap();
            assert_eq!(read_list(&pem).unwrap(), list);
            let der = parse_x509_pem(pem.as_bytes()).unwrap().1.contents;
            assert!(is_list_of(&der, &der_of(&authority)).unwrap());
            let other = Authority::create(CLUSTER).unwrap();
            assert!(!is_list_of(&der, &der_of(&other)).unwrap());
        }
        assert!(matches!(read_list("nonsense"), Err(PkiError::UnreadableList)));
    }

    fn der_of(authority: &Authority) -> CertificateDer<'static> {
        der(authority.certificate())
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
