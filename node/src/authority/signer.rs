//! [`Signer`]: answers machines that join with a token.
//!
//! It runs where the authority's key is, in a process of its own, so that no node has the key. A connection
//! is TLS 1.3 with a certificate of the authority; it carries one line of JSON in each direction, and is
//! closed: [`Ask`], and then [`Signed`] or [`No`]. How many there are at one time, how long one takes, how
//! much it sends and how often one address may be wrong are bounded.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use littoral::NodeId;
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::TLS13,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, info, warn};

use super::{AuthorityHome, Invitation, invitations::Used};
use crate::pki;

/// What both sides speak.
pub(super) const ALPN: &[u8] = b"littoral-join/1";

/// What either side sends at most.
pub(super) const LINE_BYTES_MAX: u64 = 64 << 10;

/// Connections at one time.
const CONNECTIONS_MAX: usize = 64;

/// How long a connection may take, handshake and all.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// So many times in [`WRONG_PERIOD`] may an address be wrong.
const WRONG_MAX: u32 = 10;

const WRONG_PERIOD: Duration = Duration::from_secs(60);

/// So many addresses are counted at one time; beyond, nobody is answered until some are forgotten.
const ADDRESSES_COUNTED: usize = 4096;

/// Accepting failed for want of files or memory: time for some to come free.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// For how long the certificate is valid with which the signer shows that it is the authority.
const OWN_DAYS: u32 = 365;

/// What a machine that joins sends.
#[derive(Serialize, Deserialize)]
pub(super) struct Ask {
    /// The token's secret.
    pub(super) secret: String,
    /// A certificate signing request (PKCS #10), PEM: the machine's public key, signed with its private one.
    pub(super) request: String,
}

/// What it gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Signed {
    /// The node's name.
    pub(crate) node: String,
    /// Its certificate, PEM.
    pub(crate) certificate: String,
    /// The authority's, PEM.
    pub(crate) ca: String,
    /// The list of revoked certificates, PEM.
    pub(crate) revoked: String,
    /// The key of bookmarks, if the cluster has one.
    pub(crate) bookmark_key: Option<String>,
    /// Nodes to dial, `NODE=HOST:PORT`.
    pub(crate) dial: Vec<String>,
    /// The node only applies and relays.
    pub(crate) read_only: bool,
}

/// Why it gets nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct No {
    /// For people.
    pub(super) refused: String,
}

impl No {
    fn because(why: &str) -> Self {
        Self { refused: why.to_owned() }
    }
}

/// A running signer.
#[derive(Debug)]
pub(crate) struct Signer {
    listener: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    tls: TlsAcceptor,
    home: Mutex<AuthorityHome>,
    wrong: Mutex<BTreeMap<IpAddr, (Instant, u32)>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Signer {
    /// Listens; [`Signer::run`] answers.
    pub(crate) async fn bind(home: AuthorityHome, listen: SocketAddr) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let own = home.authority.issue_to_signer(pki::days(OWN_DAYS))?;
        let chain = vec![
            CertificateDer::from_pem_slice(own.certificate.as_bytes())?,
            CertificateDer::from_pem_slice(home.authority.certificate().as_bytes())?,
        ];
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes())?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen} (TCP)"))?;
        let tls = TlsAcceptor::from(Arc::new(config));
        let shared = Shared { tls, home: Mutex::new(home), wrong: Mutex::default() };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers for as long as it is polled.
    pub(crate) async fn run(self) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            // Whoever comes on top waits in the system's queue. The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let (stream, address) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                let _permit = permit;
                let ip = address.ip().to_canonical();
                match timeout(TIME_LIMIT, shared.serve(stream, ip)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(%address, %error, "a connection broke off"),
                    Err(_) => debug!(%address, "a connection took too long"),
                }
            });
        }
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, stream: TcpStream, ip: IpAddr) -> anyhow::Result<()> {
        let mut stream = BufReader::new(self.tls.accept(stream).await?);
        let mut line = String::new();
        (&mut stream).take(LINE_BYTES_MAX).read_line(&mut line).await?;
        let answered = if self.is_wrong_too_often(ip) {
            Ok(Err(No::because("too many wrong tries from this address; wait for a minute")))
        } else {
            let this = Arc::clone(&self);
            tokio::task::spawn_blocking(move || answer(&this.home, &line)).await?
        };
        let mut text = match answered {
            Ok(Ok(signed)) => {
                info!(%ip, node = signed.node, "a node was given its certificate");
                serde_json::to_string(&signed)?
            }
            Ok(Err(no)) => {
                warn!(%ip, why = no.refused, "a machine that wants to join was refused");
                self.count_wrong(ip);
                serde_json::to_string(&no)?
            }
            Err(error) => {
                error!(%ip, error = format!("{error:#}"), "a certificate could not be issued");
                serde_json::to_string(&No::because("the authority failed; its log says why"))?
            }
        };
        text.push('\n');
        stream.write_all(text.as_bytes()).await?;
        Ok(stream.shutdown().await?)
    }

    fn is_wrong_too_often(&self, ip: IpAddr) -> bool {
        let mut wrong = self.wrong.lock();
        wrong.retain(|_, (since, _)| since.elapsed() < WRONG_PERIOD);
        match wrong.get(&ip) {
            Some((_, count)) => *count >= WRONG_MAX,
            None => wrong.len() >= ADDRESSES_COUNTED,
        }
    }

    fn count_wrong(&self, ip: IpAddr) {
        let mut wrong = self.wrong.lock();
        wrong.entry(ip).or_insert_with(|| (Instant::now(), 0)).1 += 1;
    }
}

/// What a line is answered. One at a time looks at an invitation and uses it up.
pub(super) fn answer(
    home: &Mutex<AuthorityHome>,
    line: &str,
) -> anyhow::Result<Result<Signed, No>> {
    let no = |why| Ok(Err(No::because(why)));
    let Ok(ask) = serde_json::from_str::<Ask>(line) else {
        return no("the request cannot be read");
    };
    let Some(request) = pki::SigningRequest::read(&ask.request) else {
        return no("the certificate signing request cannot be read, or is not signed by its key");
    };
    let home = home.lock();
    let Some(mut invitation) = home.invitation(&ask.secret)? else {
        return no("the token is not known, or has expired");
    };
    let key = request.key_hash();
    let certificate = match &invitation.used {
        Some(used) if used.key == key => used.certificate.clone(),
        Some(_) => return no("the token was used already"),
        None => {
            let node = NodeId::new(&invitation.node)?;
            let certificate = home.sign(&node, &request, pki::days(invitation.days))?;
            let used = Used { key, certificate: certificate.clone() };
            invitation.used = Some(used);
            home.keep(&ask.secret, &invitation)?;
            certificate
        }
    };
    let Invitation { node, dial, read_only, .. } = invitation;
    Ok(Ok(Signed {
        node,
        certificate,
        ca: home.authority.certificate().to_owned(),
        revoked: home.signed_list()?,
        bookmark_key: home.bookmark_key()?,
        dial,
        read_only,
    }))
}
