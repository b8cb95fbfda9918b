//! Nodes for tests: in this process, with real links over loopback, in a temporary directory.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "helpers of tests, shared by several test crates"
)]

pub mod clients;

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use littoral::{ClusterId, DatabaseDigest, Genesis, Identity, Incarnation, NodeId, TablePolicy};
use littoral_node::{
    Config, Node,
    config::{Dial, Http, Links, Storage, Tls, parse_policies},
    pki::{self, Authority, RevokedList},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};

/// Longer than anything takes on a slow machine; a test that waits this long fails.
const PATIENCE: Duration = Duration::from_secs(60);

pub const SCHEMA: &str = "
    CREATE TABLE places (name TEXT NOT NULL PRIMARY KEY, note TEXT);
    CREATE TABLE counters (
      name TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0, label TEXT, payload BLOB, x REAL
    );";
pub const POLICIES: &str = "
    [tables.counters]
    writers = \"any\"
    columns.n = \"counter\"";

/// Directories of a cluster to be.
pub struct Cluster {
    directory: TempDir,
    authority: Authority,
    identities: Vec<Identity>,
    /// How many of them the cluster begins with.
    members: usize,
    /// Whether nodes look at a list of revoked certificates.
    lists: bool,
}

impl Cluster {
    pub fn new(names: &[&str]) -> Self {
        let cluster = ClusterId(0xc1);
        let authority = Authority::create(cluster).unwrap();
        let members = names.len();
        let identities = names
            .iter()
            .zip(1..)
            .map(|(name, n)| Identity {
                cluster,
                node: NodeId::new(name).unwrap(),
                incarnation: Incarnation(n),
            })
            .collect();
        Self {
            directory: tempfile::tempdir().unwrap(),
            authority,
            identities,
            members,
            lists: false,
        }
    }

    /// Every node has a list of revoked certificates, on which nothing is yet.
    pub fn with_lists(mut self) -> Self {
        self.lists = true;
        self
    }

    pub fn id(&self) -> ClusterId {
        self.identities[0].cluster
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Only the first nodes are members from the beginning.
    pub fn begin_with(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// The configuration of a node; its directory is made when this is first called.
    pub fn config(&self, place: usize, dial: Vec<Dial>) -> Config {
        let identity = self.identities[place].clone();
        let home = self.directory.path().join(identity.node.as_str());
        let mut tls = install(&home, &self.authority, &identity.node);
        if self.lists {
            let list = home.join("revoked.pem");
            if !list.exists() {
                let empty = self.authority.sign_list(&RevokedList::default()).unwrap();
                std::fs::write(&list, empty).unwrap();
            }
            tls.revoked = Some(list);
        }
        let any_port = ([127, 0, 0, 1], 0).into();
        Config {
            identity,
            database: home.join("data.sqlite"),
            links: Links { listen: any_port, dial },
            tls,
            http: Some(Http { max_body_bytes: 1 << 20, ..Http::on(any_port) }),
            storage: Storage::default(),
            read_only: false,
            genesis: (place == 0).then(|| self.genesis()),
        }
    }

    fn genesis(&self) -> Genesis {
        let policies: BTreeMap<String, TablePolicy> =
            parse_policies(POLICIES, Path::new("policies")).unwrap();
        let members = self.identities[..self.members]
            .iter()
            .map(|i| (i.node.clone(), i.incarnation))
            .collect();
        Genesis { members, schema: SCHEMA.to_owned(), policies }
    }

    /// Starts all nodes; the others dial the first. Waits until all are members.
    pub async fn start(&self) -> Vec<Node> {
        let mut nodes: Vec<Node> = Vec::new();
        for place in 0..self.identities.len() {
            let dial = nodes.first().map(dial_to).into_iter().collect();
            nodes.push(Node::start(self.config(place, dial)).await.unwrap());
        }
        for node in &nodes {
            until("a node to be a member", async || {
                node.handle().status().await.unwrap().author.is_some()
            })
            .await;
        }
        nodes
    }
}

pub fn install(home: &Path, authority: &Authority, node: &NodeId) -> Tls {
    let tls = Tls {
        ca: home.join("ca.pem"),
        certificate: home.join("node.pem"),
        key: home.join("node.key"),
        revoked: None,
    };
    if !home.exists() {
        std::fs::create_dir(home).unwrap();
        let issued = authority.issue(node).unwrap();
        std::fs::write(&tls.ca, authority.certificate()).unwrap();
        std::fs::write(&tls.certificate, issued.certificate).unwrap();
        pki::write_private(&tls.key, &issued.key).unwrap();
    }
    tls
}

pub fn dial_to(node: &Node) -> Dial {
    Dial { node: node.handle().identity().node.clone(), address: node.links_address().to_string() }
}

/// Polls a condition until it holds; what is waited for is named if it never does.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

pub async fn digest(node: &Node) -> DatabaseDigest {
    node.handle().read(|reader| reader.digest()).await.unwrap().unwrap()
}

/// Waits until all nodes have applied the same entries and hold the same rows.
pub async fn converge<N: Borrow<Node>>(nodes: &[N]) {
    until("the nodes to be equal", async || {
        let mut nodes = nodes.iter().map(Borrow::borrow);
        let Some(node) = nodes.next() else { return true };
        let first = (node.handle().status().await.unwrap().vector, digest(node).await);
        for node in nodes {
            if first != (node.handle().status().await.unwrap().vector, digest(node).await) {
                return false;
            }
        }
        true
    })
    .await;
}

pub async fn integer(node: &Node, sql: &str) -> i64 {
    let sql = sql.to_owned();
    let read = node.handle().read(move |reader| {
        reader.connection().query_row(&sql, (), |row| row.get::<_, i64>(0)).unwrap()
    });
    read.await.unwrap()
}

pub async fn write(node: &Node, sql: &str) -> Result<usize, littoral::WriteError> {
    let sql = sql.to_owned();
    node.handle().write(move |tx| tx.execute(&sql, ())).await.map(|(rows, _)| rows)
}

pub async fn stop(nodes: Vec<Node>) {
    for node in nodes.into_iter().rev() {
        node.stop().await.unwrap();
    }
}

/// A request by hand, so that tests may also send what no client would.
pub async fn http(node: &Node, head: &str, body: &str) -> (u16, String, String) {
    let address = node.http_address().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let host = if head.to_ascii_lowercase().contains("host:") { "" } else { "host: localhost\r\n" };
    let request = format!(
        "{head}\r\n{host}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    // The server may answer, and close, before it has read a body that is too large.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body =
        if head.contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_owned() };
    (status, head.to_owned(), body)
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            break;
        }
        whole.push_str(&rest[..length]);
        body = &rest[length + 2..];
    }
    whole
}

pub async fn get(node: &Node, path: &str) -> (u16, String) {
    let (status, _, body) = http(node, &format!("GET {path} HTTP/1.1"), "").await;
    (status, body)
}

/// Sends a pipeline, which must be answered with status 200; gives its results.
pub async fn pipeline(node: &Node, requests: Value) -> Vec<Value> {
    let body = serde_json::json!({ "requests": requests }).to_string();
    let (status, head, body) = http(node, "POST /v2/pipeline HTTP/1.1", &body).await;
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("content-type: application/json\r\n"), "{head}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    answer["results"].as_array().unwrap().clone()
}

/// Runs one statement as `execute` does; gives its result or its error.
pub async fn execute(node: &Node, stmt: Value) -> Result<Value, Value> {
    let requests = serde_json::json!([{ "type": "execute", "stmt": stmt }, { "type": "close" }]);
    let results = pipeline(node, requests).await;
    match results[0]["type"].as_str() {
        Some("ok") => Ok(results[0]["response"]["result"].clone()),
        _ => Err(results[0]["error"].clone()),
    }
}

pub async fn sql(node: &Node, sql: &str) -> Result<Value, Value> {
    execute(node, serde_json::json!({ "sql": sql })).await
}
