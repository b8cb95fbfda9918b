//! Tokens out of their time, keys that are replaced, and clients that ask too often.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use littoral::NodeId;
use littoral_node::{
    Node,
    config::{HttpLimits, ServerTls},
    pki,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use support::{
    Cluster,
    clients::{ask, checked_with, guarded, issue, run, say, socket, token},
    http, pipeline, stop, until,
};

/// The private key that `littoral token key` has made in a directory.
fn signer(keys: &Path) -> Ed25519KeyPair {
    let key = PrivateKeyDer::from_pem_file(keys.join("token.key")).unwrap();
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_der()).unwrap()
}

/// A token with claims that `littoral token issue` would not write.
fn sign(key: &Ed25519KeyPair, id: Option<&str>, claims: &Value) -> String {
    let mut header = json!({ "alg": "EdDSA", "typ": "JWT" });
    if let Some(id) = id {
        header["kid"] = json!(id);
    }
    let [header, claims] =
        [&header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string()));
    let message = format!("{header}.{claims}");
    let signature = BASE64_URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_counts_from_its_beginning_to_its_end_and_within_the_leeway() {
    let keys = TempDir::new().unwrap();
    token(keys.path(), &["key"]);
    let key = signer(keys.path());
    for leeway in [0, 60] {
        let cluster = Cluster::new(&["origin"]);
        let mut config = cluster.config(0, vec![]);
        let mut auth = checked_with(keys.path().join("token.pem"));
        auth.leeway = Duration::from_secs(leeway);
        config.http.as_mut().unwrap().auth = Some(auth);
        let node = Node::start(config).await.unwrap();
        for (begins, ends, refused) in [
            (-3600, 3600, None),
            (30, 3600, (leeway == 0).then_some("the token is not valid yet")),
            (3600, 7200, Some("the token is not valid yet")),
            (-3600, -30, (leeway == 0).then_some("the token has expired")),
            (-7200, -3600, Some("the token has expired")),
        ] {
            let claims = json!({ "sub": "alice", "nbf": now() + begins, "exp": now() + ends,
                "littoral": { "read": ["counters"] } });
            let token = sign(&key, None, &claims);
            // What it was worth is remembered, and judged like the first time.
            for _ in 0..2 {
                let (status, answer) = ask(&node, &token, "GET", "/v2", "").await;
                let case = format!("{begins} {ends} leeway {leeway}: {answer}");
                assert_eq!(status, if refused.is_some() { 401 } else { 200 }, "{case}");
                if let Some(why) = refused {
                    assert_eq!(answer["code"], "LITTORAL_UNAUTHORIZED", "{case}");
                    assert_eq!(answer["message"], why, "{case}");
                }
            }
        }
        stop(vec![node]).await;
    }
}

/// A JSON Web Key Set.
fn set(keys: &[(&str, &Ed25519KeyPair)]) -> String {
    let keys = keys.iter().map(|(id, key)| {
        let x = BASE64_URL_SAFE_NO_PAD.encode(key.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": id, "x": x })
    });
    json!({ "keys": keys.collect::<Vec<_>>() }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_of_keys_is_rotated_while_the_node_runs() {
    let homes = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let [old, new] = homes.each_ref().map(|home| {
        token(home.path(), &["key"]);
        signer(home.path())
    });
    let file = homes[0].path().join("keys.json");
    fs::write(&file, set(&[("old", &old)])).unwrap();
    let cluster = Cluster::new(&["origin"]);
    let mut config = cluster.config(0, vec![]);
    config.http.as_mut().unwrap().auth = Some(checked_with(file.clone()));
    let node = Node::start(config).await.unwrap();
    let claims = json!({ "exp": now() + 3600, "littoral": { "read": ["counters"] } });
    let (by_old, by_new) = (sign(&old, Some("old"), &claims), sign(&new, Some("new"), &claims));
    let status = async |token: &str| ask(&node, token, "GET", "/v2", "").await.0;
    assert_eq!((status(&by_old).await, status(&by_new).await), (200, 401));

    fs::write(&file, set(&[("old", &old), ("new", &new)])).unwrap();
    until("the new key to be taken", async || status(&by_new).await == 200).await;
    assert_eq!(status(&by_old).await, 200, "both count while they are changed over");

    fs::write(&file, set(&[("new", &new)])).unwrap();
    until("the old key to be gone", async || status(&by_old).await == 401).await;
    assert_eq!(status(&by_new).await, 200);

    // What cannot be read changes nothing.
    fs::write(&file, "{\"keys\": [").unwrap();
    sleep(Duration::from_secs(6)).await;
    assert_eq!((status(&by_old).await, status(&by_new).await), (401, 200));
    stop(vec![node]).await;
}

/// Connects to a node's port that speaks TLS; whom it trusts is the caller's business.
async fn connect(node: &Node, roots: &RootCertStore) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    let identity = node.handle().identity();
    let name = ServerName::try_from(pki::dns_name(&identity.node, identity.cluster)).unwrap();
    let stream = TcpStream::connect(node.http_address().unwrap()).await.unwrap();
    TlsConnector::from(Arc::new(client)).connect(name, stream).await.unwrap()
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_the_http_port_is_replaced_while_the_node_runs() {
    let home = TempDir::new().unwrap();
    let files =
        ServerTls { certificate: home.path().join("http.pem"), key: home.path().join("http.key") };
    let cluster = Cluster::new(&["origin"]);
    let replace = || {
        let issued = cluster.authority().issue(&NodeId::new("origin").unwrap()).unwrap();
        pki::replace_private(&files.key, &issued.key).unwrap();
        pki::replace_private(&files.certificate, &issued.certificate).unwrap();
        CertificateDer::from_pem_file(&files.certificate).unwrap().to_vec()
    };
    let first = replace();
    let mut config = cluster.config(0, vec![]);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&config.tls.ca).unwrap()).unwrap();
    config.http.as_mut().unwrap().tls = Some(files.clone());
    let node = Node::start(config).await.unwrap();
    let mut open = connect(&node, &roots).await;
    assert_eq!(shown(&open), first);

    let second = replace();
    until("the new certificate to be shown", async || {
        shown(&connect(&node, &roots).await) == second
    })
    .await;
    // Who was connected before goes on.
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    open.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    open.read_to_end(&mut answer).await.ok();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));

    // What cannot be used changes nothing.
    fs::write(&files.key, "nonsense").unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(shown(&connect(&node, &roots).await), second);
    let third = replace();
    until("the next one to be shown", async || shown(&connect(&node, &roots).await) == third).await;
    stop(vec![node]).await;
}

/// The seconds of `Retry-After`.
fn retry_after(head: &str) -> u64 {
    let head = head.to_ascii_lowercase();
    let line = head.lines().find_map(|line| line.strip_prefix("retry-after: "));
    line.unwrap_or_else(|| panic!("{head}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_clients_together_are_bounded_and_told_when_to_come_again() {
    let limits = HttpLimits { requests_per_second: Some(2), ..HttpLimits::default() };
    let (_cluster, keys, node) = guarded(limits, false).await;
    let issue = |subject: &str| {
        let who = ["issue", "--key", "token.key", "--subject", subject];
        token(keys.path(), &[&who[..], &["--write", "counters"]].concat())
    };
    let tokens = ["alice", "bob", "carol"].map(issue);
    let before = node.handle().status().await.unwrap().counts.entries_authored;
    let mut answers = [0; 2];
    for n in 0..30 {
        let body =
            json!({ "stmt": { "sql": format!("INSERT INTO counters (name) VALUES ('{n}')") } });
        let head = format!(
            "POST /v1/execute HTTP/1.1\r\nauthorization: Bearer {}",
            tokens[n % tokens.len()]
        );
        let (status, head, body) = http(&node, &head, &body.to_string()).await;
        match status {
            200 => answers[0] += 1,
            429 => {
                assert_eq!(retry_after(&head), 1);
                assert!(body.contains("LITTORAL_RATE_LIMITED"), "{body}");
                answers[1] += 1;
            }
            _ => panic!("{status}: {body}"),
        }
    }
    let [done, refused] = answers;
    assert!(refused >= 5, "{refused} of 30 requests were refused");
    let counts = node.handle().status().await.unwrap().counts;
    assert_eq!(counts.entries_authored - before, done, "who was refused has written nothing");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        ask(&node, &tokens[0], "GET", "/v2", "").await.0,
        200,
        "after the second it was told"
    );
    stop(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_on_a_websocket_are_counted_like_all_others() {
    let limits = HttpLimits { requests_per_second_per_client: Some(2), ..HttpLimits::default() };
    let (_cluster, keys, node) = guarded(limits, false).await;
    let grants = ["--read", "counters", "--write", "counters"];
    let alice = issue(&keys, &grants);
    let pad = " ".repeat(150);
    let mut stream = socket(&node).await;
    let hello = json!({ "type": "hello", "jwt": alice, "pad": pad });
    assert_eq!(say(&mut stream, hello).await.unwrap()["type"], "hello_ok");
    let request = |request: Value| json!({ "type": "request", "request_id": 7, "request": request, "pad": pad });
    let open = request(json!({ "type": "open_stream", "stream_id": 1 }));
    assert_eq!(say(&mut stream, open).await.unwrap()["type"], "response_ok");
    let (mut done, mut refused) = (0, 0);
    for n in 0..30 {
        let sql = format!("INSERT INTO counters (name) VALUES ('{n}')");
        let execute = json!({ "type": "execute", "stream_id": 1, "stmt": { "sql": sql } });
        let answer = say(&mut stream, request(execute)).await.unwrap();
        if answer["type"] == "response_ok" {
            done += 1;
        } else {
            assert_eq!(answer["error"]["code"], "LITTORAL_RATE_LIMITED", "{answer}");
            assert_eq!(answer["request_id"], 7);
            refused += 1;
        }
    }
    assert!(refused >= 5, "{refused} of 30 requests were refused");
    let bob = ["issue", "--key", "token.key", "--subject", "bob"];
    let bob = token(keys.path(), &[&bob[..], &grants[..]].concat());
    let count = run(&node, &bob, "SELECT count(*) FROM counters").await;
    let count = &count["response"]["result"]["rows"][0][0]["value"];
    assert_eq!(
        *count,
        json!((done + 1).to_string()),
        "one was there, and who was refused wrote nothing"
    );
    sleep(Duration::from_secs(1)).await;
    let read = json!({ "type": "execute", "stream_id": 1, "stmt": { "sql": "SELECT 1" } });
    let answer = say(&mut stream, request(read)).await.unwrap();
    assert_eq!(answer["type"], "response_ok", "the socket is as good as before: {answer}");
    stop(vec![node]).await;
}

/// The words of an upgrade are no way past the limits of a body.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_bounded_whatever_it_says_to_be() {
    let cluster = Cluster::new(&["origin"]);
    let node = Node::start(cluster.config(0, vec![])).await.unwrap();
    let sql = format!("SELECT '{}'", "x".repeat(2 << 20));
    let requests = json!([{ "type": "execute", "stmt": { "sql": sql } }]);
    let body = json!({ "requests": requests }).to_string();
    for upgrade in ["", "\r\nupgrade: websocket", "\r\nupgrade: h2c"] {
        for path in ["/v2/pipeline", "/v3/cursor", "/v1/execute", "/nowhere"] {
            let head = format!("POST {path} HTTP/1.1{upgrade}");
            let (status, _, answer) = http(&node, &head, &body).await;
            assert_eq!(status, 413, "{head}: {}", &answer[..answer.len().min(200)]);
            assert!(answer.contains("BODY_TOO_LARGE"), "{answer}");
        }
    }
    let ok = json!([{ "type": "execute", "stmt": { "sql": "SELECT 1" } }]);
    assert_eq!(pipeline(&node, ok).await[0]["type"], "ok");
    let began = Instant::now();
    stop(vec![node]).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}
