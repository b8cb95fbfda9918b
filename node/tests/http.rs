//! The libSQL protocol and the operator's pages, over real HTTP against a node in this process.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use littoral_node::Node;
use serde_json::{Value, json};

use support::{Cluster, execute, get, http, pipeline, sql, stop};

async fn origin() -> (Cluster, Node) {
    let cluster = Cluster::new(&["origin"]);
    let node = Node::start(cluster.config(0, vec![])).await.unwrap();
    (cluster, node)
}

fn step(sql: &str, condition: Value) -> Value {
    json!({ "condition": condition, "stmt": { "sql": sql } })
}

fn ok(step: usize) -> Value {
    json!({ "type": "ok", "step": step })
}

/// A batch as `@libsql/client` frames it.
fn framed(begin: &str, statements: &[&str]) -> Value {
    let mut steps = vec![step(begin, Value::Null)];
    for (i, sql) in statements.iter().enumerate() {
        steps.push(step(sql, ok(i)));
    }
    steps.push(step("COMMIT", ok(statements.len())));
    let failed = json!({ "type": "not", "cond": ok(statements.len() + 1) });
    steps.push(step("ROLLBACK", failed));
    json!([{ "type": "batch", "batch": { "steps": steps } }, { "type": "close" }])
}

async fn batch(node: &Node, requests: Value) -> Value {
    pipeline(node, requests).await[0]["response"]["result"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_come_back_as_they_went() {
    let (_cluster, node) = origin().await;
    let inserted = execute(
        &node,
        json!({
            "sql": "INSERT INTO counters VALUES (?, ?, :label, ?4, ?5)",
            "args": [
                { "type": "text", "value": "a" },
                { "type": "integer", "value": "9007199254740993" },
                { "type": "null" },
                { "type": "blob", "base64": "AAEC" },
                { "type": "float", "value": 0.1 },
            ],
            "named_args": [{ "name": "label", "value": { "type": "text", "value": "é" } }],
        }),
    )
    .await
    .unwrap();
    assert_eq!(inserted["affected_row_count"], 1);
    let read = sql(&node, "SELECT *, 1 + 1 AS two FROM counters").await.unwrap();
    assert_eq!(
        read["rows"][0],
        json!([
            { "type": "text", "value": "a" },
            { "type": "integer", "value": "9007199254740993" },
            { "type": "text", "value": "é" },
            { "type": "blob", "base64": "AAEC" },
            { "type": "float", "value": 0.1 },
            { "type": "integer", "value": "2" },
        ])
    );
    assert_eq!(read["cols"][1], json!({ "name": "n", "decltype": "INTEGER" }));
    assert_eq!(read["cols"][5], json!({ "name": "two", "decltype": null }));
    assert!(read.as_object().unwrap().contains_key("last_insert_rowid"));
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_one_transaction() {
    let (_cluster, node) = origin().await;
    let before = node.handle().status().await.unwrap().counts.entries_authored;
    let insert = "INSERT INTO counters (name) VALUES ('a')";
    let update = "UPDATE counters SET n = n + 1 RETURNING n";
    let done = batch(&node, framed("BEGIN IMMEDIATE", &[insert, update])).await;
    assert_eq!(done["step_errors"], json!([null, null, null, null, null]));
    assert_eq!(done["step_results"][2]["rows"][0][0]["value"], "1");
    assert!(done["step_results"][4].is_null(), "no ROLLBACK after a COMMIT");
    let counts = node.handle().status().await.unwrap().counts;
    assert_eq!(counts.entries_authored, before + 1);

    let failed = batch(&node, framed("BEGIN", &[update, insert, update])).await;
    assert_eq!(failed["step_errors"][2]["code"], "SQLITE_CONSTRAINT");
    assert_eq!(failed["step_errors"][2]["extended_code"], "SQLITE_CONSTRAINT_PRIMARYKEY");
    let message = failed["step_errors"][2]["message"].as_str().unwrap();
    assert!(message.contains("UNIQUE constraint failed: counters.name"), "{message}");
    assert!(failed["step_results"][3].is_null() && failed["step_errors"][3].is_null());
    assert!(failed["step_results"][5].is_object(), "the ROLLBACK ran");
    let n = sql(&node, "SELECT n FROM counters").await.unwrap();
    assert_eq!(n["rows"][0][0]["value"], "1", "nothing of the failed batch stands");
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_statement_does_not_end_a_transaction() {
    let (_cluster, node) = origin().await;
    let steps = json!([
        step("BEGIN", Value::Null),
        step("INSERT INTO counters (name) VALUES ('a'), ('b')", Value::Null),
        step("INSERT INTO counters (name) VALUES ('c'), ('a')", Value::Null),
        step("INSERT INTO counters (name) VALUES ('d')", Value::Null),
        step("COMMIT", Value::Null),
    ]);
    let requests = json!([{ "type": "batch", "batch": { "steps": steps } }, { "type": "close" }]);
    let done = batch(&node, requests).await;
    assert_eq!(done["step_errors"][2]["code"], "SQLITE_CONSTRAINT");
    assert!(done["step_errors"][4].is_null());
    let names = sql(&node, "SELECT group_concat(name) FROM counters").await.unwrap();
    assert_eq!(names["rows"][0][0]["value"], "a,b,d");
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_transactions_read_and_refuse_to_write() {
    let (_cluster, node) = origin().await;
    let select = "SELECT count(*) FROM counters";
    let read = batch(&node, framed("BEGIN TRANSACTION READONLY", &[select, select])).await;
    assert_eq!(read["step_results"][2]["rows"][0][0]["value"], "0");
    assert!(read["step_errors"][3].is_null());
    let insert = "INSERT INTO counters (name) VALUES ('a')";
    let wrote = batch(&node, framed("BEGIN TRANSACTION READONLY", &[select, insert])).await;
    assert_eq!(wrote["step_errors"][2]["code"], "SQLITE_READONLY");
    let deferred = batch(&node, framed("BEGIN DEFERRED", &[select, insert, select])).await;
    assert_eq!(deferred["step_results"][3]["rows"][0][0]["value"], "1");
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_stop_at_their_first_error_and_keep_what_ran() {
    let (_cluster, node) = origin().await;
    let script = "INSERT INTO counters (name) VALUES ('a'); -- ; \n
        INSERT INTO counters (name) VALUES ('b;c'); INSERT INTO nowhere VALUES (1);
        INSERT INTO counters (name) VALUES ('d')";
    let requests = json!([{ "type": "sequence", "sql": script }, { "type": "close" }]);
    let results = pipeline(&node, requests).await;
    assert_eq!(results[0]["type"], "error");
    assert!(results[0]["error"]["message"].as_str().unwrap().contains("nowhere"));
    assert_eq!(results[1]["type"], "ok");
    let names = sql(&node, "SELECT group_concat(name) FROM counters").await.unwrap();
    assert_eq!(names["rows"][0][0]["value"], "a,b;c");
    let script = "BEGIN; DELETE FROM counters; ROLLBACK; BEGIN; DELETE FROM counters
        WHERE name = 'a'; COMMIT; SELECT 1";
    let requests = json!([{ "type": "sequence", "sql": script }, { "type": "close" }]);
    assert_eq!(pipeline(&node, requests).await[0]["type"], "ok");
    let names = sql(&node, "SELECT group_concat(name) FROM counters").await.unwrap();
    assert_eq!(names["rows"][0][0]["value"], "b;c");
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_nobody_comes_back_to_leaves_nothing() {
    let (_cluster, node) = origin().await;
    let insert = "INSERT INTO counters (name) VALUES ('a')";
    let requests = json!([
        { "type": "execute", "stmt": { "sql": "BEGIN IMMEDIATE" } },
        { "type": "execute", "stmt": { "sql": insert } },
        { "type": "get_autocommit" },
    ]);
    let results = pipeline(&node, requests).await;
    assert_eq!(results[1]["response"]["result"]["affected_row_count"], 1);
    assert_eq!(results[2]["response"]["is_autocommit"], false);
    let reads = sql(&node, "SELECT count(*) FROM counters").await.unwrap();
    assert_eq!(reads["rows"][0][0]["value"], "0");
    // Whoever writes waits until its time is over.
    sql(&node, "INSERT INTO counters (name) VALUES ('b')").await.unwrap();
    let names = sql(&node, "SELECT group_concat(name) FROM counters").await.unwrap();
    assert_eq!(names["rows"][0][0]["value"], "b");
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_are_described() {
    let (_cluster, node) = origin().await;
    let describe = |sql: &str| json!([{ "type": "describe", "sql": sql }, { "type": "close" }]);
    let read = pipeline(&node, describe("SELECT n, 1 FROM counters WHERE name = :name")).await;
    assert_eq!(
        read[0]["response"]["result"],
        json!({
            "params": [{ "name": ":name" }],
            "cols": [{ "name": "n", "decltype": "INTEGER" }, { "name": "1", "decltype": null }],
            "is_explain": false,
            "is_readonly": true,
        })
    );
    let write = pipeline(&node, describe("DELETE FROM counters WHERE name = ?")).await;
    assert_eq!(write[0]["response"]["result"]["is_readonly"], false);
    assert_eq!(write[0]["response"]["result"]["params"], json!([{ "name": null }]));
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_codes_that_clients_test() {
    let (_cluster, node) = origin().await;
    for (text, code) in [
        ("SELEC 1", "SQL_PARSE_ERROR"),
        ("SELECT * FROM nowhere", "SQLITE_ERROR"),
        ("SELECT 1; SELECT 2", "SQL_MANY_STATEMENTS"),
        ("-- nothing", "SQL_NO_STATEMENT"),
        ("SELECT ?", "ARGS_INVALID"),
        ("COMMIT", "SQLITE_ERROR"),
        ("ROLLBACK", "SQLITE_ERROR"),
        ("VACUUM", "LITTORAL_FORBIDDEN"),
        ("CREATE TABLE littoral_t (a)", "LITTORAL_FORBIDDEN"),
        ("CREATE TABLE t (rowid, oid, _rowid_)", "LITTORAL_TABLE_REFUSED"),
        ("ATTACH 'x' AS y", "LITTORAL_FORBIDDEN"),
        ("INSERT INTO counters (name) VALUES (NULL)", "SQLITE_CONSTRAINT"),
    ] {
        let error = sql(&node, text).await.unwrap_err();
        assert_eq!(error["code"], code, "{text}: {error}");
        assert!(error["message"].is_string());
    }
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_answer_line_by_line() {
    let (_cluster, node) = origin().await;
    let steps = json!([
        step("SELECT 1 AS a UNION SELECT 2", Value::Null),
        step("SELECT * FROM nowhere", Value::Null),
        step("SELECT 3", ok(1)),
    ]);
    let body = json!({ "baton": null, "batch": { "steps": steps } }).to_string();
    let (status, _, body) = http(&node, "POST /v3/cursor HTTP/1.1", &body).await;
    assert_eq!(status, 200);
    let lines: Vec<Value> = body.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let kinds: Vec<_> = lines[1..].iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["step_begin", "row", "row", "step_end", "step_error"]);
    assert_eq!(lines[0], json!({ "baton": null, "base_url": null }));
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_clients_send_one_statement_or_batch() {
    let (_cluster, node) = origin().await;
    let body = json!({ "stmt": { "sql": "SELECT 1 AS a" } }).to_string();
    let (status, _, body) = http(&node, "POST /v1/execute HTTP/1.1", &body).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["result"]["rows"][0][0]["value"]), (200, &json!("1")));
    let body = json!({ "stmt": { "sql": "SELECT * FROM nowhere" } }).to_string();
    let (status, _, body) = http(&node, "POST /v1/execute HTTP/1.1", &body).await;
    assert!(status == 400 && body.contains("SQLITE_ERROR"), "{status} {body}");
    let steps = json!([step("BEGIN", Value::Null), step("SELECT 1", ok(0)), step("COMMIT", ok(1))]);
    let body = json!({ "batch": { "steps": steps } }).to_string();
    let (status, _, body) = http(&node, "POST /v1/batch HTTP/1.1", &body).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!(answer["result"]["step_errors"], json!([null, null, null]));
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_a_body_that_says_why() {
    let (_cluster, node) = origin().await;
    let post = "POST /v2/pipeline HTTP/1.1";
    for (head, body, expected) in [
        (post, "{", 400),
        (post, "{\"requests\":[{\"type\":\"explode\"}]}", 400),
        (post, "{\"baton\":\"x\",\"requests\":[]}", 400),
        ("GET /v3-protobuf HTTP/1.1", "", 404),
        ("GET /v2/pipeline HTTP/1.1", "", 405),
        ("GET /health HTTP/1.1\r\nhost: evil.example", "", 403),
        ("GET /health HTTP/1.1\r\norigin: http://evil.example", "", 403),
        ("OPTIONS /v2/pipeline HTTP/1.1\r\norigin: http://evil.example", "", 403),
    ] {
        let (status, _, answer) = http(&node, head, body).await;
        assert_eq!(status, expected, "{head} {body}: {answer}");
        if status != 405 {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert!(answer["code"].is_string() && answer["message"] == answer["error"]);
        }
    }
    let large = "x".repeat(2 << 20);
    let (status, _, _) = http(&node, post, &large).await;
    assert_eq!(status, 413);
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn web_pages_of_this_machine_may_ask() {
    let (_cluster, node) = origin().await;
    let preflight = "OPTIONS /v2/pipeline HTTP/1.1\r\norigin: http://localhost:5173\r\n\
        access-control-request-method: POST\r\naccess-control-request-headers: content-type";
    let page = "POST /v2/pipeline HTTP/1.1\r\norigin: http://localhost:5173";
    for (head, body, expected) in [(preflight, "", 204), (page, "{\"requests\":[]}", 200)] {
        let (status, head, body) = http(&node, head, body).await;
        assert_eq!(status, expected, "{head} {body}");
        assert!(head.contains("access-control-allow-origin: *\r\n"), "{head}");
    }
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_how_the_node_is() {
    let (_cluster, node) = origin().await;
    assert_eq!(get(&node, "/health").await.0, 200);
    assert_eq!(get(&node, "/v2").await.0, 200);
    assert_eq!(get(&node, "/v3").await.0, 200);
    assert_eq!(get(&node, "/ready").await, (200, "{\"ready\":true}".to_owned()));
    let (_, status) = get(&node, "/status").await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["node"], &status["origin"]), (&json!("origin"), &json!("origin")));
    let (_, page) = get(&node, "/metrics").await;
    assert!(page.contains("\nlittoral_ready 1\n"), "{page}");
    stop(vec![node]).await;
}
