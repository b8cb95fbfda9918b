//! What clients cannot make a node do: run for ever, or answer without end.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::time::{Duration, Instant};

use littoral_node::Node;
use serde_json::{Value, json};

use support::{Cluster, converge, integer, pipeline, sql, stop, write};

const ENDLESS: &str = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)";

async fn origin() -> (Cluster, Node) {
    let cluster = Cluster::new(&["origin"]);
    let node = Node::start(cluster.config(0, vec![])).await.unwrap();
    (cluster, node)
}

fn executes(statements: &[&str]) -> Value {
    let mut requests: Vec<Value> =
        statements.iter().map(|sql| json!({ "type": "execute", "stmt": { "sql": sql } })).collect();
    requests.push(json!({ "type": "close" }));
    requests.into()
}

fn assert_interrupted(result: &Value, limit: &str) {
    assert_eq!(result["error"]["code"], "SQLITE_INTERRUPT", "{result}");
    assert!(result["error"]["message"].as_str().unwrap().contains(limit), "{result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_transaction_that_takes_too_long_is_not_run_as_a_write() {
    let (_cluster, node) = origin().await;
    let select = format!("{ENDLESS} SELECT count(*) FROM c");
    let began = Instant::now();
    let requests =
        executes(&["BEGIN TRANSACTION READONLY", &select, &select, "COMMIT", "SELECT 1"]);
    let results = pipeline(&node, requests).await;
    assert_interrupted(&results[0], "30 s");
    assert_interrupted(&results[3], "30 s");
    assert_eq!(results[4]["type"], "ok", "the transaction is over: {results:?}");
    assert!(began.elapsed() < Duration::from_secs(34), "{:?}", began.elapsed());
    // The second statement did not begin, so the connection is free; stopping waits 5 s if not.
    let began = Instant::now();
    stop(vec![node]).await;
    assert!(began.elapsed() < Duration::from_secs(4), "a read went on: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_takes_too_long_is_interrupted_and_the_others_are_not() {
    let cluster = Cluster::new(&["origin", "edge1"]);
    let nodes = cluster.start().await;
    let peers = nodes[1].handle().status().await.unwrap().peers;
    let link = peers[0].peer;
    let insert = "INSERT INTO counters (name) VALUES ('kept')";
    let select = format!("{ENDLESS} SELECT count(*) FROM c");
    let endless = format!(
        "INSERT INTO counters (name) {ENDLESS} SELECT 'x' || (x % 3) FROM c \
                           WHERE x < 0"
    );
    // Three that never end, and one that is innocent, most likely in their group.
    let (alone, beside, script, other) = tokio::join!(
        pipeline(&nodes[0], executes(&[&endless, "SELECT 1"])),
        pipeline(&nodes[0], executes(&["BEGIN", "DELETE FROM counters", &select, "COMMIT"])),
        pipeline(
            &nodes[0],
            json!([{ "type": "sequence",
            "sql": format!("INSERT INTO counters (name) VALUES ('lost'); {endless}") }])
        ),
        write(&nodes[0], insert),
    );
    assert_interrupted(&alone[0], "5 s");
    assert_eq!(alone[1]["type"], "ok");
    assert_eq!(beside[0]["type"], "ok");
    assert_interrupted(&beside[2], "5 s");
    assert_interrupted(&beside[3], "5 s");
    assert_interrupted(&script[0], "5 s");
    other.unwrap();
    assert_eq!(integer(&nodes[0], "SELECT count(*) FROM counters").await, 1);
    // The next jobs run as if nothing had been.
    for i in 0..100 {
        sql(&nodes[0], &format!("INSERT INTO counters (name) VALUES ('{i}')")).await.unwrap();
    }
    converge(&nodes).await;
    let peers = nodes[1].handle().status().await.unwrap().peers;
    assert_eq!(peers[0].peer, link, "the link was given up");
    let counts = nodes[0].handle().status().await.unwrap().counts;
    assert_eq!(counts.jobs_failed, 3, "{counts:?}");
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_served_between_slow_jobs() {
    let cluster = Cluster::new(&["origin", "edge1"]);
    let nodes = cluster.start().await;
    let link = nodes[1].handle().status().await.unwrap().peers[0].peer;
    let slow = |name: &'static str| {
        nodes[0].handle().write(move |tx| {
            std::thread::sleep(Duration::from_secs(4));
            tx.execute("INSERT INTO counters (name) VALUES (?1)", [name])
        })
    };
    // Together they take longer than a peer waits for a sign of life.
    let (a, b, c) = tokio::join!(slow("a"), slow("b"), slow("c"));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    converge(&nodes).await;
    for node in &nodes {
        let peers = node.handle().status().await.unwrap().peers;
        assert_eq!(peers.len(), 1);
    }
    let peers = nodes[1].handle().status().await.unwrap().peers;
    assert_eq!(peers[0].peer, link, "the link was given up");
    assert_eq!(nodes[0].handle().status().await.unwrap().counts.jobs_failed, 0);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_many_short_statements_has_the_same_limit() {
    let (_cluster, node) = origin().await;
    let slow = format!("{ENDLESS} SELECT count(*) FROM (SELECT x FROM c LIMIT 300000)");
    let mut statements = vec!["BEGIN", "DELETE FROM counters"];
    statements.extend(std::iter::repeat_n(slow.as_str(), 1000));
    statements.push("COMMIT");
    let began = Instant::now();
    let results = pipeline(&node, executes(&statements)).await;
    assert_interrupted(&results[1002], "5 s");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_a_pipeline_have_one_budget() {
    let (_cluster, node) = origin().await;
    let blob = "SELECT zeroblob(20000000)";
    for requests in [
        executes(&[blob; 5]),
        executes(&["BEGIN", blob, "COMMIT", blob, blob, "BEGIN", blob, "COMMIT"]),
        executes(&[
            "BEGIN",
            "DELETE FROM counters",
            blob,
            "COMMIT",
            blob,
            "INSERT INTO counters (name, payload) VALUES ('a', zeroblob(20000000)) RETURNING payload",
        ]),
    ] {
        let results = pipeline(&node, requests).await;
        let sent: usize = results.iter().map(|result| result.to_string().len()).sum();
        assert!(sent < 70 << 20, "{sent} bytes");
        let refused =
            results.iter().filter(|result| result["error"]["code"] == "RESPONSE_TOO_LARGE");
        assert!(refused.count() > 0);
    }
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_need_a_transaction() {
    let (_cluster, node) = origin().await;
    let insert = "INSERT INTO counters (name) VALUES ('a')";
    for statement in ["SAVEPOINT s", "RELEASE s", "ROLLBACK TO s"] {
        let error = sql(&node, statement).await.unwrap_err();
        assert_eq!(error["code"], "LITTORAL_FORBIDDEN", "{statement}: {error}");
    }
    let within = ["BEGIN", "SAVEPOINT s", insert, "ROLLBACK TO s", "RELEASE s", "COMMIT"];
    for result in pipeline(&node, executes(&within)).await {
        assert_eq!(result["type"], "ok", "{result}");
    }
    assert_eq!(integer(&node, "SELECT count(*) FROM counters").await, 0);
    let script = format!("SAVEPOINT s; {insert}; RELEASE s");
    let results = pipeline(&node, json!([{ "type": "sequence", "sql": script }])).await;
    assert_eq!(results[0]["type"], "ok", "{results:?}");
    assert_eq!(integer(&node, "SELECT count(*) FROM counters").await, 1);
    stop(vec![node]).await;
}
