//! Who gets no link, and what both ends are told: alerts of TLS, close codes, lines in their logs.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use littoral::{CloseCode, ClusterId, NodeId};
use littoral_node::{
    Node,
    pki::{self, Authority, Issued, Revoked, RevokedList},
};
use quinn::{
    ClientConfig, ConnectionError, Endpoint, TransportErrorCode, crypto::rustls::QuicClientConfig,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::TLS13,
};
use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};

use support::{Cluster, converge, dial_to, install, stop, until, write};

/// The alerts of TLS 1.3 (RFC 8446, section 6).
const BAD_CERTIFICATE: u8 = 42;
const CERTIFICATE_REVOKED: u8 = 44;
const CERTIFICATE_EXPIRED: u8 = 45;
const UNKNOWN_CA: u8 = 48;
const CERTIFICATE_REQUIRED: u8 = 116;
const NO_APPLICATION_PROTOCOL: u8 = 120;

const EDGE: &str = "edge1";

fn name(node: &str) -> NodeId {
    NodeId::new(node).unwrap()
}

/// What a stranger dials with: whom it trusts, what it shows, and which protocol it speaks.
fn dialing(trusts: &Authority, shows: Option<&Issued>, protocol: &[u8]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusts.certificate().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shows {
        None => config.with_no_client_auth(),
        Some(Issued { certificate, key }) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

/// Dials a node, and does nothing further; gives what becomes of it.
async fn refused(node: &Node, config: ClientConfig) -> ConnectionError {
    let identity = node.handle().identity();
    let name = pki::dns_name(&identity.node, identity.cluster);
    dialed(node, config, &name).await
}

async fn dialed(node: &Node, config: ClientConfig, name: &str) -> ConnectionError {
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let connecting = endpoint.connect_with(config, node.links_address(), name).unwrap();
    match connecting.await {
        Err(error) => error,
        // Of what it has shown itself, the dialing side hears only then.
        Ok(connection) => timeout(Duration::from_secs(60), connection.closed()).await.unwrap(),
    }
}

/// The alert with which the other side has ended a handshake.
fn alert(error: &ConnectionError) -> Option<TransportErrorCode> {
    match error {
        ConnectionError::ConnectionClosed(close) => Some(close.error_code),
        _ => None,
    }
}

fn list(authority: &Authority, number: u64, serials: &[String]) -> String {
    let revoked = serials.iter().map(|serial| Revoked { serial: serial.clone(), at: 0 }).collect();
    authority.sign_list(&RevokedList { number, revoked }).unwrap()
}

fn serial(issued: &Issued, cluster: ClusterId) -> String {
    pki::facts_of_pem(&issued.certificate, cluster).unwrap().serial
}

/// The authority of a cluster, for another cluster: what no `littoral ca` would make.
fn of_another_cluster(authority: &Authority) -> Authority {
    Authority::from_pem(ClusterId(0xc2), authority.certificate(), &authority.key()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stranger_is_told_why_it_is_refused() {
    let cluster = Cluster::new(&["origin", EDGE]).with_lists();
    let (ours, theirs) = (cluster.authority(), Authority::create(cluster.id()).unwrap());
    let good = ours.issue(&name(EDGE)).unwrap();
    let revoked = ours.issue(&name(EDGE)).unwrap();
    let expired = ours.issue_for(&name(EDGE), Duration::from_secs(1)).unwrap();
    let stranger = theirs.issue(&name(EDGE)).unwrap();
    let elsewhere = of_another_cluster(ours).issue(&name(EDGE)).unwrap();
    let config = cluster.config(0, vec![]);
    let serials = [serial(&revoked, cluster.id())];
    let file = config.tls.revoked.clone().unwrap();
    std::fs::write(file, list(ours, 1, &serials)).unwrap();
    let node = Node::start(config).await.unwrap();
    let before = node.handle().status().await.unwrap();
    sleep(Duration::from_secs(2)).await;

    let protocol: &[u8] = b"littoral/1";
    for (shows, protocol, expected) in [
        (None, protocol, CERTIFICATE_REQUIRED),
        (Some(&stranger), protocol, UNKNOWN_CA),
        (Some(&expired), protocol, CERTIFICATE_EXPIRED),
        (Some(&revoked), protocol, CERTIFICATE_REVOKED),
        (Some(&good), b"littoral/0", NO_APPLICATION_PROTOCOL),
    ] {
        let error = refused(&node, dialing(ours, shows, protocol)).await;
        assert_eq!(alert(&error), Some(TransportErrorCode::crypto(expected)), "{error}");
    }
    // An authority may serve two clusters; its certificates are for one each.
    let error = refused(&node, dialing(ours, Some(&elsewhere), protocol)).await;
    let ConnectionError::ApplicationClosed(close) = &error else { panic!("{error:?}") };
    assert_eq!(close.error_code, CloseCode::WrongCluster.to_u32().into(), "{error}");
    assert!(error.to_string().contains("names no node of cluster"), "{error}");

    // The dialing side refuses whom it did not mean to dial.
    for (trusts, dials, expected) in [
        (&theirs, pki::dns_name(&name("origin"), cluster.id()), UNKNOWN_CA),
        (ours, pki::dns_name(&name("origin"), ClusterId(0xc2)), BAD_CERTIFICATE),
        (ours, pki::dns_name(&name("edge2"), cluster.id()), BAD_CERTIFICATE),
    ] {
        let error = dialed(&node, dialing(trusts, Some(&good), protocol), &dials).await;
        let ConnectionError::TransportError(told) = &error else { panic!("{dials}: {error:?}") };
        assert_eq!(told.code, TransportErrorCode::crypto(expected), "{dials}: {error}");
    }

    let after = node.handle().status().await.unwrap();
    assert!(after.peers.is_empty(), "{:?}", after.peers);
    assert_eq!((after.vector, after.applied), (before.vector, before.applied));
    stop(vec![node]).await;
}

/// A link whose peer says nothing, with a certificate that is good for the time being.
async fn silent_link(node: &Node, config: ClientConfig) -> (Endpoint, quinn::Connection) {
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let identity = node.handle().identity();
    let name = pki::dns_name(&identity.node, identity.cluster);
    let connecting = endpoint.connect_with(config, node.links_address(), &name).unwrap();
    let connection = connecting.await.unwrap();
    for tag in 0..3 {
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&[tag]).await.unwrap();
        // It stays open.
        std::mem::forget((send, _receive));
    }
    (endpoint, connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_up_is_closed_with_the_reason() {
    let cluster = Cluster::new(&["origin", EDGE]).with_lists();
    let ours = cluster.authority();
    let config = cluster.config(0, vec![]);
    let file = config.tls.revoked.clone().unwrap();
    let node = Node::start(config).await.unwrap();
    for (lifetime, why) in
        [(4, "its certificate has expired"), (3600, "its certificate is revoked")]
    {
        let issued = ours.issue_for(&name(EDGE), Duration::from_secs(lifetime)).unwrap();
        let (_endpoint, connection) =
            silent_link(&node, dialing(ours, Some(&issued), b"littoral/1")).await;
        if lifetime > 60 {
            let serials = [serial(&issued, cluster.id())];
            pki::replace_private(&file, &list(ours, 1, &serials)).unwrap();
        }
        let error = timeout(Duration::from_secs(60), connection.closed()).await.unwrap();
        let ConnectionError::ApplicationClosed(close) = &error else { panic!("{error:?}") };
        assert_eq!(close.error_code, CloseCode::Certificate.to_u32().into(), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    stop(vec![node]).await;
}

/// What all nodes of this process have logged.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a line was logged that has all of these in it.
fn logged(parts: &[&str]) -> bool {
    let log = LOG.lock().unwrap();
    let log = String::from_utf8_lossy(&log);
    log.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

fn put(home: &Path, issued: &Issued) {
    pki::replace_private(&home.join("node.key"), &issued.key).unwrap();
    pki::replace_private(&home.join("node.pem"), &issued.certificate).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn both_nodes_log_why_there_is_no_link() {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .with_writer(|| Lines)
        .init();
    for case in ["another authority", "expired", "revoked", "another cluster"] {
        let cluster = Cluster::new(&["origin", EDGE]).with_lists();
        let ours = cluster.authority();
        let origin_config = cluster.config(0, vec![]);
        let list_file = origin_config.tls.revoked.clone().unwrap();
        let origin = Node::start(origin_config).await.unwrap();
        let mut config = cluster.config(1, vec![dial_to(&origin)]);
        let home = config.tls.key.parent().unwrap().to_owned();
        // What stands in the line of the node that dials, and in that of the other.
        let told = match case {
            "another authority" => {
                let theirs = Authority::create(cluster.id()).unwrap();
                config.tls = install(&home.join("other"), &theirs, &name(EDGE));
                ["error 48", "error 48"]
            }
            "expired" => {
                put(&home, &ours.issue_for(&name(EDGE), Duration::from_secs(1)).unwrap());
                sleep(Duration::from_secs(2)).await;
                ["error 45", "error 45"]
            }
            "revoked" => {
                let issued = ours.issue(&name(EDGE)).unwrap();
                put(&home, &issued);
                let serials = [serial(&issued, cluster.id())];
                pki::replace_private(&list_file, &list(ours, 1, &serials)).unwrap();
                // Whoever comes before the list is read is let in, and put out then.
                sleep(Duration::from_secs(6)).await;
                ["error 44", "error 44"]
            }
            _ => {
                let elsewhere = of_another_cluster(ours);
                config.identity.cluster = ClusterId(0xc2);
                config.tls.revoked = None;
                put(&home, &elsewhere.issue(&name(EDGE)).unwrap());
                // It dials a node of its own cluster, and finds one of another.
                ["error 42", "error 42"]
            }
        };
        let edge = Node::start(config).await.unwrap();
        let [dialer, accepter] = told;
        let to = origin.links_address().port().to_string();
        let from = edge.links_address().port().to_string();
        until(case, async || {
            logged(&["dial{", &to, dialer]) && logged(&["accept{", &from, accepter])
        })
        .await;
        assert!(origin.handle().status().await.unwrap().peers.is_empty(), "{case}");
        stop(vec![origin, edge]).await;
    }
}

/// Sends the first packet of a connection, and nothing else ever.
async fn knock(socket: &UdpSocket, to: SocketAddr, config: &ClientConfig, name: &str) {
    let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, false, None);
    let now = Instant::now();
    let (_, mut connection) = endpoint.connect(now, config.clone(), to, name).unwrap();
    let mut packet = Vec::new();
    while connection.poll_transmit(now, 1, &mut packet).is_some() {
        socket.send_to(&packet, to).await.unwrap();
        packet.clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_are_bounded_and_others_get_in_all_the_same() {
    let cluster = Cluster::new(&["origin", EDGE, "edge2"]);
    let origin = Node::start(cluster.config(0, vec![])).await.unwrap();
    let edge = Node::start(cluster.config(1, vec![dial_to(&origin)])).await.unwrap();
    converge(&[&origin, &edge]).await;
    let link = async || origin.handle().status().await.unwrap().peers[0].peer;
    let before = link().await;

    let good = cluster.authority().issue(&name("edge2")).unwrap();
    let config = dialing(cluster.authority(), Some(&good), b"littoral/1");
    let server = pki::dns_name(&name("origin"), cluster.id());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let turned_away = async || {
        for _ in 0..80 {
            knock(&socket, origin.links_address(), &config, &server).await;
        }
        let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let dialing = endpoint.connect_with(config.clone(), origin.links_address(), &server);
        match dialing.unwrap().await {
            Ok(_) => false,
            Err(error) => alert(&error) == Some(TransportErrorCode::CONNECTION_REFUSED),
        }
    };
    until("one handshake too many to be refused", turned_away).await;
    // Who had a link keeps it, and a node that comes now gets one when those have had their time.
    write(&origin, "INSERT INTO counters (name, n) VALUES ('c', 1)").await.unwrap();
    converge(&[&origin, &edge]).await;
    assert_eq!(link().await, before);
    let late = Node::start(cluster.config(2, vec![dial_to(&origin)])).await.unwrap();
    converge(&[&origin, &edge, &late]).await;
    stop(vec![origin, edge, late]).await;
}
