//! Clients with tokens, over HTTP and WebSockets.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use littoral_node::{
    Node,
    config::{Auth, HttpLimits, ServerTls},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Cluster, http, write};

/// Runs `littoral token`; gives what it prints.
pub fn token(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_littoral"))
        .arg("token")
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Tokens are checked with this key, without leeway.
pub fn checked_with(key: PathBuf) -> Auth {
    Auth { keys: vec![key], issuer: None, audience: None, leeway: Duration::ZERO }
}

/// A node that wants tokens, and where they are made.
pub async fn guarded(limits: HttpLimits, tls: bool) -> (Cluster, TempDir, Node) {
    let keys = TempDir::new().unwrap();
    token(keys.path(), &["key"]);
    let cluster = Cluster::new(&["origin"]);
    let mut config = cluster.config(0, vec![]);
    let server = config.http.as_mut().unwrap();
    server.auth = Some(checked_with(keys.path().join("token.pem")));
    server.limits = limits;
    if tls {
        let (certificate, key) = (config.tls.certificate.clone(), config.tls.key.clone());
        server.tls = Some(ServerTls { certificate, key });
    }
    let node = Node::start(config).await.unwrap();
    write(&node, "INSERT INTO places VALUES ('quay', 'secret')").await.unwrap();
    write(&node, "INSERT INTO counters (name, n) VALUES ('visits', 1)").await.unwrap();
    (cluster, keys, node)
}

pub fn issue(keys: &TempDir, grants: &[&str]) -> String {
    let mut arguments = vec!["issue", "--key", "token.key", "--subject", "alice"];
    arguments.extend(grants);
    token(keys.path(), &arguments)
}

pub async fn ask(node: &Node, token: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let head = format!("{method} {path} HTTP/1.1\r\nauthorization: Bearer {token}");
    let (status, _, body) = http(node, &head, body).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

pub async fn run(node: &Node, token: &str, sql: &str) -> Value {
    let body = json!({ "requests": [
        { "type": "execute", "stmt": { "sql": sql } },
        { "type": "close" },
    ]});
    let (status, answer) = ask(node, token, "POST", "/v2/pipeline", &body.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    answer["results"][0].clone()
}

/// Opens a WebSocket without a token in its head.
pub async fn socket(node: &Node) -> TcpStream {
    let mut stream = TcpStream::connect(node.http_address().unwrap()).await.unwrap();
    let head = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        sec-websocket-protocol: hrana2\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    stream
}

/// Sends a message and reads one; `None` if the socket is closed instead.
pub async fn say(stream: &mut TcpStream, message: Value) -> Option<Value> {
    let text = message.to_string();
    let length = u16::try_from(text.len()).unwrap();
    // Long form, and a mask of zeros, which changes nothing.
    let mut frame = vec![0x81, 0x80 | 126];
    frame.extend(length.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    assert!(length >= 126, "short messages have another form");
    stream.write_all(&frame).await.unwrap();
    let kind = stream.read_u8().await.unwrap();
    let length = match stream.read_u8().await.unwrap() {
        126 => stream.read_u16().await.unwrap(),
        short => u16::from(short),
    };
    let mut payload = vec![0; usize::from(length)];
    stream.read_exact(&mut payload).await.unwrap();
    (kind == 0x81).then(|| serde_json::from_slice(&payload).unwrap())
}
