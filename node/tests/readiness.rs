//! `/ready`: when clients are better served elsewhere.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::time::Duration;

use littoral_node::{Config, Node};

use support::{Cluster, dial_to, get, sql, stop, until};

fn bound(mut config: Config, lag: Duration) -> Config {
    config.http.as_mut().unwrap().ready_max_lag = lag;
    config
}

async fn until_ready(node: &Node) {
    until("a node to be ready", async || get(node, "/ready").await.0 == 200).await;
}

async fn until_not_ready(node: &Node, why: &str) {
    until(why, async || {
        let (status, body) = get(node, "/ready").await;
        status == 503 && body.contains(why)
    })
    .await;
    let (_, page) = get(node, "/metrics").await;
    assert!(page.contains("\nlittoral_ready 0\n"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_ready_once_it_is_linked_and_new_enough() {
    let cluster = Cluster::new(&["origin", "edge1", "edge2"]);
    let origin = Node::start(cluster.config(0, vec![])).await.unwrap();
    // The origin alone is what there is, and says what it lacks.
    let (status, body) = get(&origin, "/ready").await;
    assert!(status == 200 && body.contains("no link"), "{status} {body}");
    // A node that nobody has told anything is not ready, whatever it is asked.
    let lag = Duration::from_secs(3);
    let edge1 = Node::start(bound(cluster.config(1, vec![]), lag)).await.unwrap();
    until_not_ready(&edge1, "not a member").await;
    let error = sql(&edge1, "SELECT * FROM places").await.unwrap_err();
    assert_eq!(error["code"], "LITTORAL_NOT_A_MEMBER", "{error}");
    assert!(error["message"].as_str().unwrap().contains("no such table: places"), "{error}");
    edge1.dial(dial_to(&origin));
    until_ready(&edge1).await;
    sql(&edge1, "SELECT * FROM places").await.unwrap();
    let error = sql(&edge1, "SELECT * FROM nowhere").await.unwrap_err();
    assert_eq!(error["code"], "SQLITE_ERROR", "{error}");
    let edge2 = Node::start(bound(cluster.config(2, vec![dial_to(&edge1)]), lag)).await.unwrap();
    until_ready(&edge2).await;

    // Without a link it is not, although it dials nobody and nothing has failed.
    edge1.suspend_links();
    until_not_ready(&edge1, "no link to any node is up").await;
    edge1.resume_links();
    until_ready(&edge1).await;
    until_ready(&edge2).await;

    // Two edges that have each other only grow old.
    stop(vec![origin]).await;
    until_not_ready(&edge2, "http.ready_max_lag_ms allows 3000").await;
    stop(vec![edge1, edge2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_a_member_and_is_alone_now_is_not_ready() {
    let cluster = Cluster::new(&["origin", "edge1"]);
    stop(cluster.start().await).await;
    let edge = Node::start(cluster.config(1, vec![])).await.unwrap();
    until_not_ready(&edge, "no link to any node is up").await;
    // It goes on all the same.
    sql(&edge, "INSERT INTO counters (name) VALUES ('c')").await.unwrap();
    stop(vec![edge]).await;
}
