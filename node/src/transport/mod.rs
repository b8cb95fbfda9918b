//! The QUIC endpoint: accepting links from any node of the cluster, dialing the configured ones,
//! and dialing them again.
//!
//! A dialer waits while any link to its node is up, whoever dialed it. Two nodes that dial each other
//! at the same moment may make two links; the engine of one of them closes one.

mod link;
mod tls;
mod trust;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use littoral::{CloseCode, ClusterId, Identity, NodeId, PeerId};
use parking_lot::Mutex;
use quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, Incoming, MtuDiscoveryConfig, ServerConfig,
    TokioRuntime, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};
use tracing::{Instrument as _, debug, info_span, warn};

use self::link::{Role, run_link};
pub use self::tls::TlsError;
pub(crate) use self::{
    tls::check,
    trust::{Trust, Validity},
};
use crate::{
    config::{Dial, Links, Tls},
    pki,
    runtime::{EventSender, Meter, NodeHandle},
    watched::Watched,
};

/// The first pause of a dialer; each failure doubles it.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest pause of a dialer.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A link that lived this long makes its dialer begin with the shortest pause again.
const LINK_PROVED: Duration = Duration::from_secs(2);
/// How long a handshake may take, address lookup included.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes that strangers may have under way at once.
const HANDSHAKES_MAX: usize = 64;
/// Refused addresses and reasons remembered, so that each is logged once.
const REFUSALS_KNOWN: usize = 256;
/// QUIC gives a silent connection up after this long; the engine's keep-alives come every second and
/// its own timeout is shorter.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// What a peer may send on one stream before it is read.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// The largest datagram that is tried on a path: most of what a snapshot costs is per datagram. One call
/// hands the system ten of them, which have to fit the 64 KiB that it takes.
const DATAGRAM_BYTES_MAX: u16 = 6400;
/// How long stopping waits for links to say goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a link that the replica has closed may go on to deliver what was sent before.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long stopping waits for QUIC to send the last packets of connections closed before. Those to a
/// peer that never answered would drain for seconds, to no end.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// Why the endpoint could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (UDP): {error}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
}

/// The endpoint and its tasks.
#[derive(Debug)]
pub(crate) struct Transport {
    shared: Arc<Shared>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    cluster: ClusterId,
    trust: Arc<Trust>,
    events: EventSender,
    meter: Arc<Meter>,
    next_peer: AtomicU64,
    /// How many links are up to each node.
    links: watch::Sender<BTreeMap<NodeId, usize>>,
    mode: watch::Sender<Mode>,
    /// Counts suspensions, so that a link hears of one that is over already.
    suspensions: watch::Sender<u64>,
    /// Whose connections were refused, and why.
    refusals: Mutex<BTreeSet<(IpAddr, String)>>,
}

/// Whether links are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Open,
    Suspended,
    Stopping,
}

impl Transport {
    /// Binds the endpoint and starts accepting and dialing.
    pub(crate) fn start(
        links: &Links,
        tls: &Tls,
        me: &Identity,
        runtime: &NodeHandle,
    ) -> Result<Self, TransportError> {
        let (trust, server, watched) = Trust::load(tls, me, Arc::new(transport_config()))?;
        let secret = tls::reset_secret(&tls.key)?;
        let endpoint = bind(server, links.listen, &secret)
            .map_err(|error| TransportError::Bind { address: links.listen, error })?;

        let address = endpoint
            .local_addr()
            .map_err(|error| TransportError::Bind { address: links.listen, error })?;

        let shared = Arc::new(Shared {
            endpoint,
            cluster: me.cluster,
            trust: Arc::new(trust),
            events: runtime.events().clone(),
            meter: Arc::clone(runtime.meter()),
            next_peer: AtomicU64::new(1),
            links: watch::Sender::new(BTreeMap::new()),
            mode: watch::Sender::new(Mode::Open),
            suspensions: watch::Sender::new(0),
            refusals: Mutex::default(),
        });
        tokio::spawn(Arc::clone(&shared).accept());
        tokio::spawn(Arc::clone(&shared).keep_trust(watched));
        let this = Self { shared, address };
        for dial in &links.dial {
            this.dial(dial.clone());
        }
        Ok(this)
    }

    /// The address on which links are accepted.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Which certificates are accepted.
    pub(crate) fn trust(&self) -> &Arc<Trust> {
        &self.shared.trust
    }

    /// Dials a node whenever no link to it is up, until the transport stops.
    pub(crate) fn dial(&self, dial: Dial) {
        let span = info_span!("dial", node = %dial.node, address = dial.address);
        tokio::spawn(Arc::clone(&self.shared).keep_dialing(dial).instrument(span));
    }

    /// Drops all links without a word, and makes and accepts none until [`Transport::resume`].
    pub(crate) fn suspend(&self) {
        let suspended = self.shared.mode.send_if_modified(|mode| {
            let open = *mode == Mode::Open;
            if open {
                *mode = Mode::Suspended;
            }
            open
        });
        if suspended {
            self.shared.suspensions.send_modify(|count| *count += 1);
        }
    }

    /// Ends a suspension.
    pub(crate) fn resume(&self) {
        self.shared.mode.send_if_modified(|mode| {
            let suspended = *mode == Mode::Suspended;
            if suspended {
                *mode = Mode::Open;
            }
            suspended
        });
    }

    /// Makes and accepts no more links. Those that are up stay until the replica closes them.
    pub(crate) fn stop_linking(&self) {
        self.shared.mode.send_replace(Mode::Stopping);
    }

    /// Waits until the links are closed, then closes the endpoint.
    pub(crate) async fn stop(self) {
        self.stop_linking();
        let mut links = self.shared.links.subscribe();
        if timeout(GOODBYE_TIMEOUT, links.wait_for(BTreeMap::is_empty)).await.is_err() {
            warn!("links did not close in time");
        }
        self.shared.endpoint.close(VarInt::from_u32(0), b"shutdown");
        if timeout(DRAIN_TIMEOUT, self.shared.endpoint.wait_idle()).await.is_err() {
            debug!("some connections were still draining when the endpoint was left");
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.stop_linking();
    }
}

/// The certificates of a connection's peer, which were accepted when it was made.
fn chain_of(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let identity = connection.peer_identity();
    identity.and_then(|identity| identity.downcast().ok()).map_or_else(Vec::new, |chain| *chain)
}

/// What the node resets connections with is made of its secret, and so the same after a restart: who still
/// sends on a connection of before is told at once that it is gone, and need not find out by waiting.
fn bind(server: ServerConfig, address: SocketAddr, secret: &[u8; 32]) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret)));
    // A packet is answered with a reset only if its connection's id may be one of ours.
    let ids = blake3::derive_key("littoral connection ids", secret);
    let ids = u64::from_le_bytes(std::array::from_fn(|place| ids[place]));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config.max_udp_payload_size(DATAGRAM_BYTES_MAX).map_err(io::Error::other)?;
    let socket = std::net::UdpSocket::bind(address)?;
    Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))
}

fn transport_config() -> quinn::TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM_BYTES_MAX);
    let mut config = quinn::TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("15 s is far below QUIC's bound");
    config
        .max_idle_timeout(Some(idle))
        .mtu_discovery_config(Some(discovery))
        .max_concurrent_bidi_streams(VarInt::from_u32(3))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(2 * STREAM_WINDOW_BYTES))
        .send_window(2 * u64::from(STREAM_WINDOW_BYTES));
    config
}

impl Shared {
    async fn accept(self: Arc<Self>) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming,
                () = self.until(Mode::Stopping) => return,
            };
            let Some(incoming) = incoming else { return };
            let open = *self.mode.borrow() == Mode::Open;
            let permit = Arc::clone(&handshakes).try_acquire_owned();
            let (true, Ok(permit)) = (open, permit) else {
                incoming.refuse();
                continue;
            };
            let shared = Arc::clone(&self);
            let address = incoming.remote_address();
            let span = info_span!("accept", %address);
            tokio::spawn(
                async move {
                    let linked = shared.welcome(incoming).await;
                    drop(permit);
                    match linked {
                        Ok((connection, node)) => {
                            run_link(&shared, connection, node, Role::Accepter).await;
                        }
                        Err(why) => shared.log_refusal(address, why),
                    }
                }
                .instrument(span),
            );
        }
    }

    /// The handshake of the accepting side.
    async fn welcome(&self, incoming: Incoming) -> Result<(Connection, NodeId), String> {
        let connection = match timeout(HANDSHAKE_TIMEOUT, incoming).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("the handshake took too long".to_owned()),
        };
        match self.certified(&connection) {
            Ok(node) => Ok((connection, node)),
            Err(why) => {
                link::close(&connection, CloseCode::WrongCluster, &why);
                Err(why)
            }
        }
    }

    /// Who is at the other end, as its certificate says, which rustls has verified.
    fn certified(&self, connection: &Connection) -> Result<NodeId, String> {
        let chain = chain_of(connection);
        let certificate = chain.first().ok_or("the peer has no certificate")?;
        pki::certified_node(certificate, self.cluster).map_err(|error| error.to_string())
    }

    async fn keep_trust(self: Arc<Self>, watched: Watched) {
        tokio::select! {
            () = Arc::clone(&self.trust).keep(watched, self.endpoint.clone()) => {}
            () = self.until(Mode::Stopping) => {}
        }
    }

    async fn keep_dialing(self: Arc<Self>, dial: Dial) {
        tokio::select! {
            () = self.dial_forever(&dial) => {}
            () = self.until(Mode::Stopping) => {}
        }
    }

    async fn dial_forever(self: &Arc<Self>, dial: &Dial) {
        let mut backoff = BACKOFF_MIN;
        let mut last_failure = String::new();
        let mut links = self.links.subscribe();
        loop {
            // The senders live in `self`, so neither wait can fail.
            let _ = links.wait_for(|links| !links.contains_key(&dial.node)).await.is_ok();
            self.until(Mode::Open).await;
            match self.connect(dial).await {
                Ok(connection) => {
                    last_failure.clear();
                    let since = Instant::now();
                    // In a task of its own, so that it says goodbye even when dialing ends.
                    let shared = Arc::clone(self);
                    let node = dial.node.clone();
                    let link = tokio::spawn(
                        async move { run_link(&shared, connection, node, Role::Dialer).await }
                            .in_current_span(),
                    );
                    if link.await.is_err() {
                        warn!("the link's task failed");
                    }
                    if since.elapsed() >= LINK_PROVED {
                        backoff = BACKOFF_MIN;
                    }
                }
                Err(why) if why == last_failure => debug!(why, "dialing failed again"),
                Err(why) => {
                    warn!(why, "dialing failed; trying again");
                    last_failure = why;
                }
            }
            tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn connect(&self, dial: &Dial) -> Result<Connection, String> {
        let attempt = async {
            let address = tokio::net::lookup_host(&dial.address)
                .await
                .map_err(|error| error.to_string())?
                .next()
                .ok_or_else(|| "the name has no address".to_owned())?;
            let name = pki::dns_name(&dial.node, self.cluster);
            self.endpoint
                .connect_with(self.trust.client(), address, &name)
                .map_err(|error| error.to_string())?
                .await
                .map_err(|error| error.to_string())
        };
        timeout(HANDSHAKE_TIMEOUT, attempt)
            .await
            .map_err(|_| "no answer in time".to_owned())
            .flatten()
    }

    /// Whoever knocks again and again is logged once.
    fn log_refusal(&self, address: SocketAddr, why: String) {
        let mut known = self.refusals.lock();
        if known.len() < REFUSALS_KNOWN && known.insert((address.ip(), why.clone())) {
            warn!(why, "a connection was refused");
        } else {
            debug!(why, "a connection was refused again");
        }
    }

    /// Waits for a mode. The sender lives in `self`, so the wait cannot fail.
    async fn until(&self, wanted: Mode) {
        let _ = self.mode.subscribe().wait_for(|mode| *mode == wanted).await.is_ok();
    }

    fn next_peer(&self) -> PeerId {
        PeerId(self.next_peer.fetch_add(1, Ordering::Relaxed))
    }
}
