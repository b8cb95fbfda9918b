//! Certificates over a node's life: renewed while it runs, revoked, expired, of another authority.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{fs, path::Path, time::Duration};

use littoral::NodeId;
use littoral_node::{
    Node,
    config::Tls,
    pki::{self, Authority, Revoked, RevokedList},
};
use serde_json::Value;

use support::{Cluster, converge, dial_to, get, stop, until, write};

/// Replaces a file as a careful operator does.
fn replace(path: &Path, text: &str) {
    pki::replace_private(path, text).unwrap();
}

fn name(node: &str) -> NodeId {
    NodeId::new(node).unwrap()
}

async fn status(node: &Node) -> Value {
    serde_json::from_str(&get(node, "/status").await.1).unwrap()
}

async fn serial(node: &Node) -> String {
    status(node).await["certificate"]["serial"].as_str().unwrap().to_owned()
}

async fn linked(node: &Node, to: &str) -> bool {
    let peers = status(node).await["peers"].clone();
    peers.as_array().unwrap().iter().any(|p| p["node"] == to && p["streaming"] == true)
}

fn serial_in(tls: &Tls, cluster: &Cluster) -> String {
    let pem = fs::read_to_string(&tls.certificate).unwrap();
    pki::facts_of_pem(&pem, cluster.id()).unwrap().serial
}

fn list_of(cluster: &Cluster, serials: &[String]) -> String {
    let revoked = serials.iter().map(|serial| Revoked { serial: serial.clone(), at: 0 }).collect();
    cluster.authority().sign_list(&RevokedList { number: 1, revoked }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_while_the_node_runs_and_nothing_is_lost() {
    let cluster = Cluster::new(&["origin", "edge1"]);
    let nodes = cluster.start().await;
    let tls = cluster.config(1, vec![]).tls;
    let before = serial(&nodes[1]).await;
    let link = status(&nodes[0]).await["peers"][0]["link"].clone();

    write(&nodes[1], "INSERT INTO counters (name, n) VALUES ('c', 1)").await.unwrap();
    let issued = cluster.authority().issue(&name("edge1")).unwrap();
    replace(&tls.key, &issued.key);
    replace(&tls.certificate, &issued.certificate);
    until("the new certificate to be taken", async || {
        write(&nodes[1], "UPDATE counters SET n = n + 1").await.unwrap();
        serial(&nodes[1]).await != before
    })
    .await;
    // The link that was up did not notice.
    converge(&nodes).await;
    assert_eq!(status(&nodes[0]).await["peers"][0]["link"], link);
    // The next one is made with the new certificate.
    nodes[1].suspend_links();
    nodes[1].resume_links();
    let expected = status(&nodes[1]).await["certificate"]["not_after_ms"].clone();
    until("a link with the new certificate", async || {
        let peers = status(&nodes[0]).await["peers"].clone();
        peers
            .as_array()
            .unwrap()
            .iter()
            .any(|peer| peer["link"] != link && peer["certificate_not_after_ms"] == expected)
    })
    .await;
    converge(&nodes).await;
    let (_, page) = get(&nodes[0], "/metrics").await;
    for line in [
        "littoral_certificate_not_after_seconds{node=\"origin\"} ",
        "littoral_certificate_not_after_seconds{node=\"edge1\"} ",
        "littoral_authority_not_after_seconds ",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }

    // What cannot be used changes nothing.
    let good = serial(&nodes[1]).await;
    replace(&tls.certificate, "nonsense");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(serial(&nodes[1]).await, good);
    assert!(linked(&nodes[1], "origin").await);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_loses_its_links_and_gets_no_new_ones() {
    let cluster = Cluster::new(&["origin", "edge1", "edge2"]).with_lists();
    let nodes = cluster.start().await;
    nodes[2].dial(dial_to(&nodes[1]));
    let revoked = serial_in(&cluster.config(1, vec![]).tls, &cluster);
    until("edge2 to be linked to both", async || {
        linked(&nodes[2], "edge1").await && linked(&nodes[2], "origin").await
    })
    .await;
    for place in [0, 2] {
        let tls = cluster.config(place, vec![]).tls;
        replace(&tls.revoked.unwrap(), &list_of(&cluster, std::slice::from_ref(&revoked)));
    }
    until("edge1 to be alone", async || {
        status(&nodes[1]).await["peers"].as_array().unwrap().is_empty()
    })
    .await;
    // Neither of those who dial it, nor it itself, makes another link.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!linked(&nodes[0], "edge1").await && !linked(&nodes[2], "edge1").await);
    write(&nodes[0], "INSERT INTO places VALUES ('here', NULL)").await.unwrap();
    converge(&[&nodes[0], &nodes[2]]).await;
    // With a certificate that was not revoked it is let in again, and gets what it missed.
    let tls = cluster.config(1, vec![]).tls;
    let issued = cluster.authority().issue(&name("edge1")).unwrap();
    replace(&tls.key, &issued.key);
    replace(&tls.certificate, &issued.certificate);
    converge(&nodes).await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_ends_the_link_and_is_refused() {
    let cluster = Cluster::new(&["origin", "edge1"]);
    let origin = Node::start(cluster.config(0, vec![])).await.unwrap();
    let config = cluster.config(1, vec![dial_to(&origin)]);
    let short = |seconds| {
        let authority = cluster.authority();
        let issued = authority.issue_for(&name("edge1"), Duration::from_secs(seconds)).unwrap();
        replace(&config.tls.key, &issued.key);
        replace(&config.tls.certificate, &issued.certificate);
    };
    short(8);
    let edge = Node::start(config.clone()).await.unwrap();
    until("a link", async || linked(&origin, "edge1").await).await;
    until("the link to end", async || !linked(&origin, "edge1").await).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!linked(&origin, "edge1").await, "it has expired");
    // The node itself goes on, also after a restart, and is let in once it is renewed.
    stop(vec![edge]).await;
    let edge = Node::start(config.clone()).await.unwrap();
    write(&edge, "INSERT INTO counters (name, n) VALUES ('c', 1)").await.unwrap();
    assert!(!linked(&edge, "origin").await);
    short(3600);
    converge(&[&origin, &edge]).await;
    stop(vec![origin, edge]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_replaced_while_the_nodes_run() {
    let cluster = Cluster::new(&["origin", "edge1"]).with_lists();
    let nodes = cluster.start().await;
    let new = Authority::create(cluster.id()).unwrap();
    let both = format!("{}{}", new.certificate(), cluster.authority().certificate());
    let tls: Vec<Tls> = (0..2).map(|place| cluster.config(place, vec![]).tls).collect();
    let serials = async || [serial(&nodes[0]).await, serial(&nodes[1]).await];
    // First everybody trusts both, and then everybody gets a certificate of the new one.
    tls.iter().for_each(|tls| replace(&tls.ca, &both));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = serials().await;
    for tls in &tls {
        let old = fs::read_to_string(&tls.certificate).unwrap();
        replace(&tls.certificate, &new.renew(&old, pki::days(90)).unwrap());
    }
    until("the new certificates to be taken", async || {
        let now = serials().await;
        now[0] != before[0] && now[1] != before[1]
    })
    .await;
    let link = async || status(&nodes[0]).await["peers"][0]["link"].clone();
    let old = link().await;
    nodes[1].suspend_links();
    nodes[1].resume_links();
    until("another link", async || {
        let now = link().await;
        linked(&nodes[1], "origin").await && !now.is_null() && now != old
    })
    .await;
    // Then nobody trusts the old authority any more, and the link stays.
    let before = link().await;
    for tls in &tls {
        replace(&tls.ca, new.certificate());
        let list = new.sign_list(&RevokedList::default()).unwrap();
        replace(tls.revoked.as_ref().unwrap(), &list);
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    write(&nodes[1], "INSERT INTO counters (name, n) VALUES ('c', 1)").await.unwrap();
    converge(&nodes).await;
    assert_eq!(link().await, before);
    // A certificate of the old one is worth nothing now, and its own node says so at start.
    let issued = cluster.authority().issue(&name("edge1")).unwrap();
    let edge = cluster.config(1, vec![]);
    stop(nodes).await;
    replace(&tls[1].key, &issued.key);
    replace(&tls[1].certificate, &issued.certificate);
    let error = Node::start(edge).await.unwrap_err().to_string();
    assert!(error.contains("of another authority"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_belong_together_is_refused_at_start() {
    let cluster = Cluster::new(&["origin", "edge1"]).with_lists();
    let config = cluster.config(0, vec![]);
    // Another node's certificate, of the same authority.
    let other = cluster.authority().issue(&name("edge1")).unwrap();
    let good = fs::read_to_string(&config.tls.certificate).unwrap();
    replace(&config.tls.certificate, &other.certificate);
    let error = Node::start(config.clone()).await.unwrap_err().to_string();
    assert!(error.contains("does not name the node origin"), "{error}");
    replace(&config.tls.certificate, &good);
    // Another authority's list.
    let list = config.tls.revoked.as_ref().unwrap();
    let stranger = Authority::create(cluster.id()).unwrap();
    replace(list, &stranger.sign_list(&RevokedList::default()).unwrap());
    let error = Node::start(config.clone()).await.unwrap_err().to_string();
    assert!(error.contains("of another authority"), "{error}");
    replace(list, &list_of(&cluster, &[]));
    stop(vec![Node::start(config).await.unwrap()]).await;
}
