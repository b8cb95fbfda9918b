//! Nodes in this process, linked over real QUIC with real certificates.

mod support;

use littoral::{ClusterId, NodeId, WriteError};
use littoral_node::{Node, RuntimeError, StartError, config::Dial, pki::Authority};

use support::{Cluster, converge, dial_to, integer, stop, until, write};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_converge_through_a_partition() {
    let cluster = Cluster::new(&["origin", "edge1", "edge2"]);
    let nodes = cluster.start().await;
    write(&nodes[0], "INSERT INTO places VALUES ('here', NULL)").await.unwrap();
    write(&nodes[1], "INSERT INTO counters (name, n) VALUES ('c', 1)").await.unwrap();
    converge(&nodes).await;
    assert_eq!(integer(&nodes[2], "SELECT count(*) FROM places").await, 1);
    assert_eq!(integer(&nodes[2], "SELECT n FROM counters").await, 1);

    nodes[2].suspend_links();
    until("the links to be gone", async || {
        nodes[2].handle().status().await.unwrap().peers.is_empty()
    })
    .await;
    write(&nodes[1], "UPDATE counters SET n = n + 10, label = 'one'").await.unwrap();
    write(&nodes[2], "UPDATE counters SET n = n + 100, label = 'two'").await.unwrap();
    write(&nodes[0], "INSERT INTO places VALUES ('there', NULL)").await.unwrap();
    assert_eq!(integer(&nodes[1], "SELECT n FROM counters").await, 11);
    assert_eq!(integer(&nodes[2], "SELECT n FROM counters").await, 101);
    assert_eq!(integer(&nodes[2], "SELECT count(*) FROM places").await, 1);

    nodes[2].resume_links();
    converge(&nodes).await;
    assert_eq!(integer(&nodes[0], "SELECT n FROM counters").await, 111);
    assert_eq!(integer(&nodes[2], "SELECT count(*) FROM places").await, 2);
    let discarded = "SELECT count(*) FROM littoral_conflicts WHERE \"column\" = 'label'";
    assert_eq!(integer(&nodes[0], discarded).await, 1);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_on_where_it_stopped() {
    let cluster = Cluster::new(&["origin", "edge1"]);
    let nodes = cluster.start().await;
    write(&nodes[1], "INSERT INTO counters (name, n) VALUES ('c', 1)").await.unwrap();
    converge(&nodes).await;
    stop(nodes).await;

    let nodes = cluster.start().await;
    write(&nodes[0], "UPDATE counters SET n = n + 1").await.unwrap();
    write(&nodes[1], "UPDATE counters SET n = n + 1").await.unwrap();
    converge(&nodes).await;
    assert_eq!(integer(&nodes[0], "SELECT n FROM counters").await, 3);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_that_was_read_before_it_had_anything_becomes_a_member() {
    let cluster = Cluster::new(&["origin", "late"]).begin_with(1);
    let origin = Node::start(cluster.config(0, Vec::new())).await.unwrap();
    for number in 0..100 {
        write(&origin, &format!("INSERT INTO places VALUES ({number}, hex(randomblob(5000)))"))
            .await
            .unwrap();
    }
    origin.suspend_links();
    let late = Node::start(cluster.config(1, vec![dial_to(&origin)])).await.unwrap();
    // Its reader stays open, in a pool, while a snapshot takes the file's place.
    assert_eq!(integer(&late, "SELECT count(*) FROM sqlite_schema WHERE name = 'places'").await, 0);
    // So does one of another program, which reads on in the file that was.
    let other = rusqlite::Connection::open(late.database()).unwrap();
    let count = |sql: &str| other.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
    let before = count("SELECT count(*) FROM sqlite_schema");
    origin.resume_links();
    until("the newcomer to be a member", async || {
        late.handle().status().await.unwrap().author.is_some()
    })
    .await;
    assert_eq!(count("SELECT count(*) FROM sqlite_schema"), before);
    assert_eq!(integer(&late, "SELECT count(*) FROM places").await, 100);
    write(&late, "INSERT INTO counters (name, n) VALUES ('c', 1)").await.unwrap();
    let nodes = vec![origin, late];
    converge(&nodes).await;
    let file = rusqlite::Connection::open(nodes[1].database()).unwrap();
    let whole: String = file.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(whole, "ok");
    drop((file, other));
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_dial_each_other_settle_on_one_link() {
    let cluster = Cluster::new(&["origin", "edge1"]);
    let nodes = cluster.start().await;
    nodes[0].dial(dial_to(&nodes[1]));
    write(&nodes[1], "INSERT INTO counters (name, n) VALUES ('c', 1)").await.unwrap();
    let link = async || {
        let peers = nodes[0].handle().status().await.unwrap().peers;
        (peers.len() == 1 && peers[0].streaming).then(|| peers[0].peer)
    };
    until("a link to stream", async || link().await.is_some()).await;
    let first = link().await;
    nodes[1].suspend_links();
    nodes[1].resume_links();
    converge(&nodes).await;
    until("another link to stream, and it alone", async || {
        let now = link().await;
        now.is_some() && now != first
    })
    .await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_are_told_where_origin_tables_are_written() {
    let cluster = Cluster::new(&["origin", "edge1"]);
    let nodes = cluster.start().await;
    let error = write(&nodes[1], "INSERT INTO places VALUES ('x', NULL)").await.unwrap_err();
    assert!(matches!(error, WriteError::OriginOnly { table } if table == "places"));
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_without_its_origin_reads_and_says_why_it_cannot_write() {
    let cluster = Cluster::new(&["origin", "edge1"]);
    let edge = Node::start(cluster.config(1, vec![])).await.unwrap();
    let error = write(&edge, "INSERT INTO counters (name) VALUES ('c')").await.unwrap_err();
    assert!(matches!(error, WriteError::NotAMember), "{error}");
    let (status, body) = support::get(&edge, "/ready").await;
    assert_eq!(status, 503);
    assert!(body.contains("not a member"), "{body}");
    stop(vec![edge]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_kept_out() {
    let cluster = Cluster::new(&["origin", "edge1", "edge2"]);
    let origin = Node::start(cluster.config(0, vec![])).await.unwrap();
    // A certificate for the right name in the right cluster, from somebody else's authority.
    let forger = Authority::create(ClusterId(0xc1)).unwrap();
    let mut config = cluster.config(1, vec![dial_to(&origin)]);
    let issued = forger.issue(&NodeId::new("edge1").unwrap()).unwrap();
    std::fs::write(&config.tls.certificate, issued.certificate).unwrap();
    std::fs::write(&config.tls.key, issued.key).unwrap();
    // It trusts both, and itself with them.
    let both = std::fs::read_to_string(&config.tls.ca).unwrap() + forger.certificate();
    std::fs::write(&config.tls.ca, both).unwrap();
    let stranger = Node::start(config.clone()).await.unwrap();
    origin.dial(dial_to(&stranger));
    // Under a name that is not its own, a node is not linked to either.
    let friend = Node::start(cluster.config(2, vec![])).await.unwrap();
    let wrong_name = NodeId::new("edge1").unwrap();
    origin.dial(Dial { node: wrong_name, ..dial_to(&friend) });
    // All of them had their chance by the time that a friend, dialed last, is a member.
    origin.dial(dial_to(&friend));
    until("a friend to be a member", async || {
        friend.handle().status().await.unwrap().author.is_some()
    })
    .await;
    let peers = origin.handle().status().await.unwrap().peers;
    assert!(peers.iter().all(|peer| peer.node.as_str() == "edge2"), "{peers:?}");
    assert!(stranger.handle().status().await.unwrap().author.is_none());
    stop(vec![friend, stranger]).await;

    config.tls.key = config.tls.certificate.clone();
    assert!(matches!(Node::start(config).await, Err(StartError::Transport(_))));
    stop(vec![origin]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_database_has_one_node() {
    let cluster = Cluster::new(&["origin"]);
    let node = Node::start(cluster.config(0, vec![])).await.unwrap();
    let again = Node::start(cluster.config(0, vec![])).await;
    assert!(matches!(again, Err(StartError::Runtime(RuntimeError::InUse(_)))));
    stop(vec![node]).await;
    let again = Node::start(cluster.config(0, vec![])).await.unwrap();
    stop(vec![again]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_answers_with_errors() {
    let cluster = Cluster::new(&["origin"]);
    let node = Node::start(cluster.config(0, vec![])).await.unwrap();
    let handle = node.handle().clone();
    stop(vec![node]).await;
    handle.ended().await;
    assert!(handle.status().await.is_none());
    assert!(handle.read(|_| ()).await.is_err());
    let error = handle.write(|_| Ok(())).await.unwrap_err();
    assert!(matches!(error, WriteError::Unavailable(_)));
}
