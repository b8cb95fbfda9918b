//! Writes that edges are sent and the origin runs, over real HTTP and real links.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use littoral_node::Node;
use serde_json::{Value, json};

use support::{Cluster, dial_to, execute, http, integer, pipeline, sql, stop, until};

/// The origin, an edge that is linked to it, and one behind that.
async fn line(cluster: &Cluster) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for place in 0..3 {
        let dial = nodes.last().map(dial_to).into_iter().collect();
        nodes.push(Node::start(cluster.config(place, dial)).await.unwrap());
    }
    for node in &nodes {
        until("a node to know its way", async || {
            let status = node.handle().status().await.unwrap();
            status.author.is_some() && status.distance.is_some()
        })
        .await;
    }
    nodes
}

/// Sends a pipeline with a key.
async fn keyed(node: &Node, key: &str, requests: Value) -> Vec<Value> {
    let body = json!({ "requests": requests }).to_string();
    let head = format!("POST /v2/pipeline HTTP/1.1\r\nidempotency-key: {key}");
    let (status, _, body) = http(node, &head, &body).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["results"].as_array().unwrap().clone()
}

async fn ask(node: &Node, query: &str) -> (u16, Value) {
    let (status, _, body) = http(node, &format!("POST /v1/outcome?{query} HTTP/1.1"), "").await;
    (status, serde_json::from_str(&body).unwrap())
}

fn one(sql: &str) -> Value {
    json!([{ "type": "execute", "stmt": { "sql": sql } }, { "type": "close" }])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_takes_writes_of_the_origins_tables_and_shows_them_at_once() {
    let cluster = Cluster::new(&["origin", "edge1", "edge2"]);
    let nodes = line(&cluster).await;
    let insert = json!({
        "sql": "INSERT INTO places VALUES (?, ?) RETURNING name, note",
        "args": [{ "type": "text", "value": "a" }, { "type": "integer", "value": "9007199254740993" }],
    });
    let inserted = execute(&nodes[2], insert.clone()).await.unwrap();
    assert_eq!(inserted["affected_row_count"], 1);
    assert_eq!(inserted["rows"][0][1], json!({ "type": "text", "value": "9007199254740993" }));
    assert_eq!(integer(&nodes[2], "SELECT count(*) FROM places").await, 1);
    // SQLite's own error comes back, and nothing stands.
    let error = execute(&nodes[2], insert).await.unwrap_err();
    assert_eq!(error["code"], "SQLITE_CONSTRAINT");
    assert_eq!(error["extended_code"], "SQLITE_CONSTRAINT_PRIMARYKEY");
    // What is written and read before, on this node, is there.
    for n in 0..10 {
        let mine = format!("INSERT INTO counters (name, n) VALUES ('c{n}', 1)");
        sql(&nodes[2], &mine).await.unwrap();
        let both = format!("INSERT INTO places SELECT 'p{n}', count(*) FROM counters");
        sql(&nodes[2], &both).await.unwrap();
        let seen = format!("SELECT note FROM places WHERE name = 'p{n}'");
        assert_eq!(integer(&nodes[2], &format!("SELECT CAST(({seen}) AS INTEGER)")).await, n + 1);
    }
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_runs_at_one_place_whole() {
    let cluster = Cluster::new(&["origin", "edge1", "edge2"]);
    let nodes = line(&cluster).await;
    let step =
        |sql: &str, condition: Value| json!({ "condition": condition, "stmt": { "sql": sql } });
    let ok = |n: usize| json!({ "type": "ok", "step": n });
    let batch = |sql: &str| {
        let not = json!({ "type": "not", "cond": ok(3) });
        json!([{ "type": "batch", "batch": { "steps": [
            step("BEGIN IMMEDIATE", Value::Null),
            step("INSERT INTO counters (name, n) VALUES ('c', 1) ON CONFLICT DO UPDATE SET n = n + 1", ok(0)),
            step(sql, ok(1)),
            step("COMMIT", ok(2)),
            step("ROLLBACK", not),
        ] } }, { "type": "close" }])
    };
    let good = pipeline(&nodes[2], batch("INSERT INTO places VALUES ('x', NULL)")).await;
    let result = &good[0]["response"]["result"];
    assert!(result["step_errors"].as_array().unwrap().iter().all(Value::is_null), "{good:?}");
    assert!(result["step_results"][4].is_null(), "nothing was rolled back");
    let bad = pipeline(&nodes[2], batch("INSERT INTO places VALUES ('x', NULL)")).await;
    let result = &bad[0]["response"]["result"];
    assert_eq!(result["step_errors"][2]["code"], "SQLITE_CONSTRAINT");
    assert!(result["step_errors"][4].is_null() && result["step_results"][3].is_null(), "{bad:?}");
    assert_eq!(integer(&nodes[2], "SELECT n FROM counters").await, 1, "the counter ran with it");
    // Of a script that is no transaction, what ran before the error stands.
    let script = "INSERT INTO places VALUES ('y', NULL); INSERT INTO places VALUES ('y', NULL)";
    let ran = pipeline(&nodes[2], json!([{ "type": "sequence", "sql": script }])).await;
    assert_eq!(ran[0]["error"]["code"], "SQLITE_CONSTRAINT");
    assert_eq!(integer(&nodes[2], "SELECT count(*) FROM places").await, 2);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_makes_a_request_happen_once_wherever_it_is_sent() {
    let cluster = Cluster::new(&["origin", "edge1", "edge2"]);
    let nodes = line(&cluster).await;
    sql(&nodes[0], "INSERT INTO counters (name, n) VALUES ('c', 0)").await.unwrap();
    let add = one("UPDATE counters SET n = n + 1 WHERE name = 'c' RETURNING n");
    let first = keyed(&nodes[2], "k-1", add.clone()).await;
    assert_eq!(first[0]["response"]["result"]["rows"][0][0]["value"], "1");
    for node in &nodes {
        assert_eq!(keyed(node, "k-1", add.clone()).await[0], first[0]);
    }
    assert_eq!(integer(&nodes[0], "SELECT n FROM counters").await, 1);
    let other = keyed(&nodes[1], "k-1", one("DELETE FROM counters")).await;
    assert_eq!(other[0]["error"]["code"], "LITTORAL_KEY_REUSED");

    let (status, body) = ask(&nodes[2], "key=k-1").await;
    assert_eq!((status, &body["outcome"]), (200, &json!("committed")));
    assert_eq!(body["steps"][0]["rows"]["rows"][0][0]["value"], "1");
    // A request that is asked about before it comes never runs.
    let (status, body) = ask(&nodes[1], "key=k-2").await;
    assert_eq!((status, &body["outcome"]), (200, &json!("not committed")));
    let late = keyed(&nodes[2], "k-2", add.clone()).await;
    assert_eq!(late[0]["error"]["code"], "LITTORAL_OUTCOME_REFUSED");
    assert_eq!(integer(&nodes[0], "SELECT n FROM counters").await, 1);

    assert_eq!(ask(&nodes[0], "key=").await.0, 400);
    assert_eq!(ask(&nodes[0], "id=zz").await.0, 400);
    assert_eq!(ask(&nodes[0], "step=1").await.0, 400);
    // An id of 1970 is too old for anybody to know.
    let (status, body) = ask(&nodes[0], "id=0000000000000000000000000000ffff").await;
    assert_eq!((status, &body["code"]), (410, &json!("LITTORAL_OUTCOME_EXPIRED")));
    let head = format!("POST /v2/pipeline HTTP/1.1\r\nidempotency-key: {}", "k".repeat(256));
    let (status, _, body) = http(&nodes[0], &head, &json!({ "requests": add }).to_string()).await;
    assert!(status == 400 && body.contains("BAD_IDEMPOTENCY_KEY"), "{body}");
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_origin_cannot_do_is_told_by_kind() {
    let cluster = Cluster::new(&["origin", "edge1", "edge2"]);
    let mut nodes = line(&cluster).await;
    let large = format!("INSERT INTO places VALUES ('l', '{}')", "x".repeat(600_000));
    let error = sql(&nodes[2], &large).await.unwrap_err();
    assert_eq!(error["code"], "LITTORAL_REQUEST_TOO_LARGE");
    let much = "INSERT INTO places VALUES ('m', NULL) RETURNING hex(zeroblob(300000))";
    let error = sql(&nodes[2], much).await.unwrap_err();
    assert_eq!(error["code"], "RESPONSE_TOO_LARGE");
    // What was read before a failure does not stand in the way of telling it.
    let step = |sql: &str| json!({ "stmt": { "sql": sql } });
    let failing = json!([{ "type": "batch", "batch": { "steps": [
        step("BEGIN"), step("SELECT hex(zeroblob(300000))"), step("INSERT INTO places VALUES (NULL, NULL)"),
        step("ROLLBACK"),
    ] } }, { "type": "close" }]);
    let failed = pipeline(&nodes[2], failing).await;
    let error = &failed[0]["response"]["result"]["step_errors"][0];
    assert_eq!(error["code"], "SQLITE_CONSTRAINT", "{error}");
    let slow = "INSERT INTO places WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
        SELECT 's', max(i) FROM n";
    let error = sql(&nodes[2], slow).await.unwrap_err();
    assert_eq!(error["code"], "SQLITE_INTERRUPT");
    assert_eq!(integer(&nodes[0], "SELECT count(*) FROM places").await, 0);

    nodes.remove(0).stop().await.unwrap();
    until("the edges to notice", async || {
        nodes[1].handle().status().await.unwrap().distance.is_none()
    })
    .await;
    let error = sql(&nodes[1], "INSERT INTO places VALUES ('n', NULL)").await.unwrap_err();
    assert_eq!(error["code"], "LITTORAL_ORIGIN_UNREACHABLE");
    // What needs no origin goes on.
    sql(&nodes[1], "INSERT INTO counters (name) VALUES ('c')").await.unwrap();
    stop(nodes).await;
}
