//! Clients with tokens: what they may do, and what they may not, over HTTP and HTTPS.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::time::Duration;

use littoral_node::{Node, config::HttpLimits};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use support::{
    Cluster,
    clients::{ask, checked_with, guarded, issue, run, say, socket, token},
    http, integer, stop,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_gives_what_it_says_and_no_more() {
    let (_cluster, keys, node) = guarded(HttpLimits::default(), false).await;
    let reader = issue(&keys, &["--read", "counters"]);
    let writer = issue(&keys, &["--read", "counters", "--write", "counters"]);
    let admin = issue(&keys, &["--read", "*", "--write", "*", "--schema"]);
    assert_eq!(run(&node, &reader, "SELECT n FROM counters").await["type"], "ok");
    assert_eq!(run(&node, &writer, "UPDATE counters SET n = n + 1").await["type"], "ok");
    for (token, sql) in [
        (&reader, "UPDATE counters SET n = 9"),
        (&reader, "INSERT INTO counters (name) SELECT note FROM places"),
        (&reader, "SELECT note FROM places"),
        (&reader, "SELECT bytes FROM littoral_log"),
        (&writer, "UPDATE counters SET label = (SELECT note FROM places)"),
        (&writer, "WITH p AS (SELECT note FROM places) SELECT * FROM p"),
        (&writer, "SELECT sql FROM sqlite_schema"),
        (&writer, "PRAGMA table_info(places)"),
        (&writer, "CREATE TABLE more (id TEXT PRIMARY KEY)"),
        (&writer, "BEGIN"),
    ] {
        let answer = run(&node, token, sql).await;
        let code = answer["error"]["code"].as_str().unwrap_or("none").to_owned();
        // A transaction that is left open changes nothing either.
        assert!(sql == "BEGIN" || code == "LITTORAL_NOT_GRANTED", "{sql}: {answer}");
        assert!(!answer.to_string().contains("secret"), "{answer}");
    }
    assert_eq!(run(&node, &admin, "SELECT note FROM places").await["type"], "ok");
    assert_eq!(run(&node, &admin, "CREATE TABLE more (id TEXT PRIMARY KEY)").await["type"], "ok");
    assert_eq!(integer(&node, "SELECT n FROM counters").await, 2);
    assert_eq!(integer(&node, "SELECT count(*) FROM counters").await, 1);
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_comes_in_without_a_token() {
    let (_cluster, keys, node) = guarded(HttpLimits::default(), false).await;
    let sql = r#"{"requests":[{"type":"execute","stmt":{"sql":"DELETE FROM counters"}}]}"#;
    let good = issue(&keys, &["--write", "*"]);
    let other = TempDir::new().unwrap();
    token(other.path(), &["key"]);
    let expired = issue(&keys, &["--write", "*", "--expires", "1s"]);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let stranger = issue(&other, &["--write", "*"]);
    let (payload, _) = good.rsplit_once('.').unwrap();
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", payload.split_once('.').unwrap().1);
    for token in ["", "x", &expired, &stranger, &unsigned] {
        let (status, answer) = ask(&node, token, "POST", "/v2/pipeline", sql).await;
        assert_eq!(
            (status, answer["code"].as_str()),
            (401, Some("LITTORAL_UNAUTHORIZED")),
            "{answer}"
        );
    }
    for (method, path) in [
        ("POST", "/v2/pipeline"),
        ("POST", "/v3/pipeline"),
        ("POST", "/v3/cursor"),
        ("POST", "/v1/execute"),
        ("POST", "/v1/batch"),
        ("GET", "/status"),
        ("GET", "/metrics"),
        ("POST", "/verify"),
        ("POST", "/schema/abort"),
        ("GET", "/nowhere"),
    ] {
        let (status, head, _) = http(&node, &format!("{method} {path} HTTP/1.1"), sql).await;
        assert_eq!(status, 401, "{path}");
        assert!(head.to_ascii_lowercase().contains("www-authenticate: bearer"), "{head}");
    }
    // Operating is a right of its own.
    for (method, path) in [("GET", "/status"), ("GET", "/metrics"), ("POST", "/schema/abort")] {
        let (status, answer) = ask(&node, &good, method, path, "").await;
        assert_eq!(
            (status, answer["code"].as_str()),
            (403, Some("LITTORAL_NOT_GRANTED")),
            "{path}"
        );
    }
    let operator = issue(&keys, &["--operate"]);
    assert_eq!(ask(&node, &operator, "GET", "/status", "").await.0, 200);
    assert_eq!(run(&node, &operator, "SELECT 1 FROM counters").await["type"], "error");
    // What the machinery around a node asks before it has any token.
    for path in ["/health", "/ready"] {
        assert_eq!(http(&node, &format!("GET {path} HTTP/1.1"), "").await.0, 200);
    }
    assert_eq!(integer(&node, "SELECT count(*) FROM counters").await, 1);
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_come_again() {
    let limits = HttpLimits { requests_per_second_per_client: Some(5), ..HttpLimits::default() };
    let (_cluster, keys, node) = guarded(limits, false).await;
    let (alice, bob) = (
        issue(&keys, &["--read", "counters"]),
        token(keys.path(), &["issue", "--key", "token.key", "--subject", "bob", "--read", "*"]),
    );
    let mut refused = 0;
    for _ in 0..20 {
        let head = format!("GET /v2 HTTP/1.1\r\nauthorization: Bearer {alice}");
        let (status, head, _) = http(&node, &head, "").await;
        if status == 429 {
            assert!(head.to_ascii_lowercase().contains("retry-after: 1"), "{head}");
            refused += 1;
        }
    }
    assert!(refused >= 5, "{refused} of 20 requests were refused");
    assert_eq!(ask(&node, &bob, "GET", "/v2", "").await.0, 200, "another client is not held up");
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_body_is_not_read_says_that_it_ends() {
    let (_cluster, _keys, node) = guarded(HttpLimits::default(), false).await;
    for (head, closes) in [
        ("POST /v2/pipeline HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n", true),
        ("GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n", false),
    ] {
        let mut stream = TcpStream::connect(node.http_address().unwrap()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]).to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 401"), "{answer}");
        assert_eq!(answer.contains("connection: close"), closes, "{answer}");
    }
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_and_the_others_wait() {
    let limits = HttpLimits { connections: 2, ..HttpLimits::default() };
    let (_cluster, keys, node) = guarded(limits, false).await;
    let reader = issue(&keys, &["--read", "counters"]);
    let address = node.http_address().unwrap();
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"POST /v2/pipeline HTTP/1.1\r\nhost: local").await.unwrap();
        slow.push(stream);
    }
    let waiting =
        tokio::time::timeout(Duration::from_millis(300), ask(&node, &reader, "GET", "/v2", ""));
    assert!(waiting.await.is_err(), "two slow clients have both connections");
    drop(slow);
    assert_eq!(ask(&node, &reader, "GET", "/v2", "").await.0, 200);
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_certificate_speaks_tls_only() {
    use std::sync::Arc;

    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    };
    let (cluster, keys, node) = guarded(HttpLimits::default(), true).await;
    let mut roots = RootCertStore::empty();
    let ca = cluster.config(0, vec![]).tls.ca;
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(node.http_address().unwrap()).await.unwrap();
    let identity = node.handle().identity();
    let name = format!("{}.{}.littoral", identity.node, identity.cluster);
    let name = ServerName::try_from(name).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let mut stream = connector.connect(name, stream).await.unwrap();
    let reader = issue(&keys, &["--read", "counters"]);
    let request = format!(
        "GET /v2 HTTP/1.1\r\nhost: origin\r\nauthorization: Bearer {reader}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    let mut plain = TcpStream::connect(node.http_address().unwrap()).await.unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_at_the_origin_is_held_to_the_token_there_too() {
    let keys = TempDir::new().unwrap();
    token(keys.path(), &["key"]);
    let cluster = Cluster::new(&["origin", "edge1"]);
    let origin = Node::start(cluster.config(0, vec![])).await.unwrap();
    let mut config = cluster.config(1, vec![support::dial_to(&origin)]);
    config.http.as_mut().unwrap().auth = Some(checked_with(keys.path().join("token.pem")));
    let edge = Node::start(config).await.unwrap();
    support::until("the edge to know its way", async || {
        let status = edge.handle().status().await.unwrap();
        status.author.is_some() && status.distance.is_some()
    })
    .await;
    let keyed = async |token: &str, sql: &str| {
        let body = json!({ "requests": [
            { "type": "execute", "stmt": { "sql": sql } },
            { "type": "close" },
        ]});
        let head = format!(
            "POST /v2/pipeline HTTP/1.1\r\nidempotency-key: same\r\nauthorization: Bearer {token}"
        );
        let (_, _, body) = http(&edge, &head, &body.to_string()).await;
        serde_json::from_str::<Value>(&body).unwrap()["results"][0].clone()
    };
    let alice = issue(&keys, &["--read", "counters", "--write", "counters"]);
    let place = "INSERT INTO places VALUES ('a', NULL)";
    // Run there at once, for the key; or only after the edge has refused it.
    assert_eq!(keyed(&alice, place).await["error"]["code"], "LITTORAL_NOT_GRANTED");
    assert_eq!(run(&edge, &alice, place).await["error"]["code"], "LITTORAL_NOT_GRANTED");
    assert_eq!(integer(&origin, "SELECT count(*) FROM places").await, 0);
    // Step by step, too, in a transaction that is there.
    let mut baton = Value::Null;
    let mut step = async |sql: &str| {
        let requests = json!([{ "type": "execute", "stmt": { "sql": sql } }]);
        let body = json!({ "baton": baton, "requests": requests }).to_string();
        let (_, mut answer) = ask(&edge, &alice, "POST", "/v3/pipeline", &body).await;
        baton = answer["baton"].take();
        answer["results"][0].take()
    };
    assert_eq!(step("BEGIN EXCLUSIVE").await["type"], "ok");
    assert_eq!(step("INSERT INTO counters (name, n) VALUES ('d', 1)").await["type"], "ok");
    assert_eq!(step(place).await["error"]["code"], "LITTORAL_NOT_GRANTED");
    let look = step("SELECT * FROM places").await;
    assert_eq!(look["error"]["code"], "LITTORAL_NOT_GRANTED", "{look}");
    assert_eq!(step("COMMIT").await["type"], "ok");
    assert_eq!(integer(&origin, "SELECT count(*) FROM places").await, 0);
    assert_eq!(integer(&edge, "SELECT n FROM counters WHERE name = 'd'").await, 1);
    let both = issue(&keys, &["--read", "places", "--write", "places"]);
    assert_eq!(run(&edge, &both, place).await["type"], "ok");

    // A key is its subject's.
    let count =
        "INSERT INTO counters (name, n) VALUES ('c', 1) ON CONFLICT DO UPDATE SET n = n + 1";
    assert_eq!(keyed(&alice, count).await["type"], "ok");
    let bob = ["issue", "--key", "token.key", "--subject", "bob"];
    let grants = ["--read", "counters", "--write", "counters"];
    let bob = token(keys.path(), &[&bob[..], &grants[..]].concat());
    for _ in 0..2 {
        assert_eq!(keyed(&bob, count).await["type"], "ok");
    }
    assert_eq!(integer(&origin, "SELECT n FROM counters WHERE name = 'c'").await, 2);
    let (status, outcome) = ask(&edge, &alice, "POST", "/v1/outcome?key=same", "").await;
    assert_eq!((status, &outcome["outcome"]), (200, &json!("committed")));
    let (status, _) = ask(&edge, "none", "POST", "/v1/outcome?key=same", "").await;
    assert_eq!(status, 401);
    stop(vec![origin, edge]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn web_pages_may_ask_where_tokens_are_wanted() {
    let (_cluster, keys, node) = guarded(HttpLimits::default(), false).await;
    let preflight = "OPTIONS /v2/pipeline HTTP/1.1\r\norigin: https://shop.example\r\n\
        access-control-request-method: POST\r\naccess-control-request-headers: authorization";
    let (status, head, _) = http(&node, preflight, "").await;
    assert_eq!(status, 204, "{head}");
    assert!(head.contains("access-control-allow-origin: *\r\n"), "{head}");
    assert!(head.contains("access-control-allow-headers: authorization\r\n"), "{head}");
    let (status, head, _) = http(&node, "POST /v2/pipeline HTTP/1.1", "{}").await;
    assert_eq!(status, 401, "{head}");
    assert!(head.contains("access-control-allow-origin: *\r\n"), "a page can read why: {head}");
    drop(keys);
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_brings_its_token_in_the_hello() {
    let (_cluster, keys, node) = guarded(HttpLimits::default(), false).await;
    let reader = issue(&keys, &["--read", "counters"]);
    let pad = " ".repeat(150);
    let execute = |sql: &str| {
        json!({ "type": "request", "request_id": 2, "request": { "type": "execute", "stream_id": 1,
            "stmt": { "sql": format!("{sql}{pad}") } } })
    };
    let open = json!({ "type": "request", "request_id": 1, "pad": pad,
        "request": { "type": "open_stream", "stream_id": 1 } });

    let mut stream = socket(&node).await;
    assert_eq!(say(&mut stream, open.clone()).await, None, "no hello");
    for wrong in [Value::Null, json!("nonsense")] {
        let mut stream = socket(&node).await;
        let answer = say(&mut stream, json!({ "type": "hello", "jwt": wrong, "pad": pad })).await;
        let answer = answer.unwrap();
        assert_eq!(answer["type"], "hello_error");
        assert_eq!(answer["error"]["code"], "LITTORAL_UNAUTHORIZED");
    }
    let mut stream = socket(&node).await;
    let hello = json!({ "type": "hello", "jwt": reader, "pad": pad });
    assert_eq!(say(&mut stream, hello).await.unwrap()["type"], "hello_ok");
    assert_eq!(say(&mut stream, open).await.unwrap()["type"], "response_ok");
    let read = say(&mut stream, execute("SELECT n FROM counters")).await.unwrap();
    assert_eq!(read["response"]["result"]["rows"][0][0]["value"], "1");
    // Also within a transaction that has the writer, or one that reads.
    for begin in ["SELECT 1", "BEGIN IMMEDIATE", "ROLLBACK", "BEGIN"] {
        assert_eq!(say(&mut stream, execute(begin)).await.unwrap()["type"], "response_ok");
        for sql in ["SELECT note FROM places", "UPDATE counters SET n = 9"] {
            let answer = say(&mut stream, execute(sql)).await.unwrap();
            assert_eq!(answer["error"]["code"], "LITTORAL_NOT_GRANTED", "{begin}: {sql}: {answer}");
        }
    }
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_closed_when_its_token_is_worth_nothing_any_more() {
    let (_cluster, keys, node) = guarded(HttpLimits::default(), false).await;
    let pad = " ".repeat(150);
    let hello = |token: &str| json!({ "type": "hello", "jwt": token, "pad": pad });
    let open = json!({ "type": "request", "request_id": 1, "pad": pad,
        "request": { "type": "open_stream", "stream_id": 1 } });
    let execute = |sql: &str| {
        json!({ "type": "request", "request_id": 2, "request": { "type": "execute", "stream_id": 1,
            "stmt": { "sql": format!("{sql}{pad}") } } })
    };
    let grants = ["--read", "counters", "--write", "counters"];
    let lasting = issue(&keys, &grants);
    let brief = issue(&keys, &[&grants[..], &["--expires", "2s"]].concat());
    let (mut expiring, mut renewed) = (socket(&node).await, socket(&node).await);
    for stream in [&mut expiring, &mut renewed] {
        assert_eq!(say(stream, hello(&brief)).await.unwrap()["type"], "hello_ok");
        assert_eq!(say(stream, open.clone()).await.unwrap()["type"], "response_ok");
    }
    for sql in ["BEGIN IMMEDIATE", "UPDATE counters SET n = 9"] {
        assert_eq!(say(&mut expiring, execute(sql)).await.unwrap()["type"], "response_ok", "{sql}");
    }
    // Whoever says another hello in time goes on.
    assert_eq!(say(&mut renewed, hello(&lasting)).await.unwrap()["type"], "hello_ok");
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    let refused = say(&mut expiring, execute("COMMIT")).await.unwrap();
    assert_eq!((&refused["type"], &refused["request_id"]), (&json!("response_error"), &json!(2)));
    assert_eq!(refused["error"]["code"], "LITTORAL_UNAUTHORIZED");
    assert_eq!(refused["error"]["message"], "the token has expired");
    assert_eq!(closed_with(&mut expiring).await, 1008);
    let read = say(&mut renewed, execute("SELECT n FROM counters")).await.unwrap();
    assert_eq!(read["response"]["result"]["rows"][0][0]["value"], "1", "the other was rolled back");

    // A key that is gone takes its tokens along.
    let other = TempDir::new().unwrap();
    token(other.path(), &["key"]);
    std::fs::copy(other.path().join("token.pem"), keys.path().join("token.pem")).unwrap();
    let refused = loop {
        let answer = say(&mut renewed, execute("SELECT n FROM counters")).await.unwrap();
        if answer["type"] == "response_error" {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(refused["error"]["message"], "no key of this node has signed the token");
    assert_eq!(closed_with(&mut renewed).await, 1008);
    stop(vec![node]).await;
}

/// The code that a socket is closed with.
async fn closed_with(stream: &mut TcpStream) -> u16 {
    assert_eq!(stream.read_u8().await.unwrap(), 0x88);
    stream.read_u8().await.unwrap();
    stream.read_u16().await.unwrap()
}
