//! What reaches beyond the file is refused to every client, with a token and without, here and at the origin.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use littoral_node::{Node, config::HttpLimits};
use serde_json::{Value, json};

use support::{
    Cluster,
    clients::{guarded, issue},
    http, integer, stop,
};

/// A statement, its arguments, and what its refusal names.
fn forbidden() -> Vec<(&'static str, Value, &'static str)> {
    let text = |value: &str| json!({ "type": "text", "value": value });
    let pointer = json!({ "type": "blob", "base64": "QUFBQUFBQUE=" });
    vec![
        ("SELECT hex(fts3_tokenizer(?))", json!([text("simple")]), "fts3_tokenizer()"),
        ("SELECT fts3_tokenizer(?, ?)", json!([text("simple"), pointer]), "fts3_tokenizer()"),
        (
            "WITH x AS (SELECT fts3_tokenizer(?) AS p) SELECT p FROM x",
            json!([text("simple")]),
            "fts3_tokenizer()",
        ),
        (
            "INSERT INTO counters (name, payload) VALUES ('p', fts3_tokenizer(?))",
            json!([text("simple")]),
            "fts3_tokenizer()",
        ),
        ("SELECT load_extension(?)", json!([text("/tmp/x.so")]), "load_extension()"),
        ("SELECT sqlite_log(1, ?)", json!([text("not written")]), "sqlite_log()"),
        ("ATTACH ? AS other", json!([text("other.sqlite")]), "ATTACH"),
        ("DETACH main", json!([]), "DETACH"),
        ("PRAGMA writable_schema = 1", json!([]), "PRAGMA writable_schema"),
        ("CREATE VIEW v AS SELECT fts3_tokenizer('simple')", json!([]), "fts3_tokenizer()"),
    ]
}

/// Runs a statement as it comes, and within transactions of every kind; gives the errors.
async fn errors(node: &Node, token: Option<&str>, sql: &str, args: &Value) -> Vec<Value> {
    let head = token.map_or(String::new(), |token| format!("\r\nauthorization: Bearer {token}"));
    let mut errors = Vec::new();
    for begin in [None, Some("BEGIN TRANSACTION READONLY"), Some("BEGIN"), Some("BEGIN IMMEDIATE")]
    {
        let begin = begin.map(|sql| json!({ "type": "execute", "stmt": { "sql": sql } }));
        let execute = json!({ "type": "execute", "stmt": { "sql": sql, "args": args } });
        let requests: Vec<Value> =
            begin.into_iter().chain([execute, json!({ "type": "close" })]).collect();
        let at = requests.len() - 2;
        let body = json!({ "requests": requests }).to_string();
        let head = format!("POST /v3/pipeline HTTP/1.1{head}");
        let (status, _, answer) = http(node, &head, &body).await;
        assert_eq!(status, 200, "{answer}");
        let mut answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["results"][at]["type"], "error", "{sql}: {answer}");
        errors.push(answer["results"][at]["error"].take());
    }
    errors
}

async fn assert_refused(node: &Node, token: Option<&str>) {
    for (sql, args, told) in forbidden() {
        for error in errors(node, token, sql, &args).await {
            let message = error["message"].as_str().unwrap();
            // Whoever may not write at all, or not here, hears that first.
            let writes = sql.starts_with("CREATE") || sql.starts_with("INSERT");
            let may_not = ["LITTORAL_NOT_GRANTED", "LITTORAL_SCHEMA_AT_ORIGIN", "SQLITE_READONLY"];
            if writes && may_not.iter().any(|code| error["code"] == *code) {
                continue;
            }
            assert_eq!(error["code"], "LITTORAL_FORBIDDEN", "{sql}: {error}");
            assert!(message.contains(told), "{sql}: {message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_token_gives_nobody_reaches_beyond_the_file() {
    let (_cluster, keys, node) = guarded(HttpLimits::default(), false).await;
    let little = issue(&keys, &["--read", "counters"]);
    let all = issue(&keys, &["--read", "*", "--write", "*", "--schema", "--operate"]);
    for token in [&little, &all] {
        assert_refused(&node, Some(token)).await;
    }
    // The process is there, and nothing was written.
    assert_eq!(integer(&node, "SELECT count(*) FROM counters").await, 1);
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_nobody_does_either_here_or_at_the_origin() {
    let cluster = Cluster::new(&["origin", "edge1"]);
    let nodes = cluster.start().await;
    for node in &nodes {
        assert_refused(node, None).await;
    }
    // Sent to the origin, it is the origin that refuses it.
    let insert = "INSERT INTO places VALUES ('p', fts3_tokenizer(?))";
    let args = json!([{ "type": "text", "value": "simple" }]);
    for error in errors(&nodes[1], None, insert, &args).await {
        let read_only = error["code"] == "SQLITE_READONLY";
        assert!(read_only || error["code"] == "LITTORAL_FORBIDDEN", "{error}");
    }
    assert_eq!(integer(&nodes[0], "SELECT count(*) FROM places").await, 0);
    stop(nodes).await;
}
