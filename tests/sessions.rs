//! Clients that are known by their token alone, and hop from node to node, read nothing older than they wrote
//! or read.

use std::{process::Command, thread, time::Duration};

use serde_json::{Value, json};

use crate::harness::{Answer, Cable, Cluster, Node, Socket, Weather, stop, until};

const SCHEMA: &str = "
    CREATE TABLE hits (page TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE notes (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);";
const NAMES: [&str; 3] = ["origin", "edge1", "edge2"];

/// A client that has nothing but its token.
struct Alice {
    authorization: String,
}

impl Alice {
    fn send(&self, node: &Node, path: &str, body: &Value) -> Answer {
        let headers = [("authorization", self.authorization.as_str())];
        node.client().send_with("POST", path, &headers, &body.to_string()).unwrap()
    }

    fn pipeline(&self, node: &Node, requests: &Value) -> Value {
        let answer = self.send(node, "/v2/pipeline", &json!({ "requests": requests }));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// The first value that a statement gives.
    fn run(&self, node: &Node, sql: &str) -> Value {
        let execute = json!({ "type": "execute", "stmt": { "sql": sql } });
        let mut answer = self.pipeline(node, &json!([execute, { "type": "close" }]));
        assert_eq!(answer["results"][0]["type"], "ok", "{answer}");
        let first = answer.pointer_mut("/results/0/response/result/rows/0/0/value");
        first.map_or(Value::Null, Value::take)
    }

    /// The same, read by a cursor.
    fn cursor(&self, node: &Node, sql: &str) -> Value {
        let body = json!({ "batch": { "steps": [{ "stmt": { "sql": sql } }] } });
        let answer = self.send(node, "/v3/cursor", &body);
        let mut lines =
            answer.body.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find_map(|mut line| line.pointer_mut("/row/0/value").map(Value::take)).unwrap()
    }
}

impl Alice {
    /// A WebSocket of hers with a stream.
    fn socket(&self, node: &Node) -> Socket {
        let mut socket = Socket::connect(node, "hrana3");
        let token = self.authorization.strip_prefix("Bearer ");
        assert_eq!(socket.hello(token), Some(json!({ "type": "hello_ok" })));
        socket.ask(&json!({ "type": "open_stream", "stream_id": 1 })).unwrap();
        socket
    }

    /// What a cursor on a WebSocket gives first.
    fn socket_cursor(&self, node: &Node, sql: &str) -> Value {
        let mut socket = self.socket(node);
        let batch = json!({ "steps": [{ "stmt": { "sql": sql } }] });
        let open = json!({ "type": "open_cursor", "stream_id": 1, "cursor_id": 1, "batch": batch });
        socket.ask(&open).unwrap();
        let fetch = json!({ "type": "fetch_cursor", "cursor_id": 1, "max_count": 100 });
        loop {
            let mut answer = socket.ask(&fetch).unwrap();
            let entries = answer["entries"].as_array_mut().unwrap();
            let row = entries.iter_mut().find(|entry| entry["type"] == "row");
            match row.and_then(|row| row.pointer_mut("/row/0/value")) {
                Some(value) => return value.take(),
                None => assert_eq!(answer["done"], false, "{answer}"),
            }
        }
    }
}

/// A cluster whose nodes keep sessions by subject, and a client.
fn cluster() -> (Cluster, Alice) {
    let cluster = Cluster::init(SCHEMA, &["hits:writers=any,n=counter"], &NAMES);
    let token = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-under-test"));
        let command = command.current_dir(cluster.home()).arg("token").args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    token(&["key"]);
    let issued = token(&[
        "issue",
        "--key",
        "token.key",
        "--subject",
        "alice",
        "--read",
        "*",
        "--write",
        "*",
        "--operate",
    ]);
    let keys = cluster.home().join("token.pem");
    for name in NAMES {
        let auth = format!("subject_sessions = true\n[http.auth]\nkeys = [{keys:?}]\n[storage]");
        cluster.configure(name, "[storage]", &auth);
    }
    (cluster, Alice { authorization: format!("Bearer {issued}") })
}

/// Where the client writes in a round, and then reads.
fn hop(round: u32) -> (usize, usize) {
    match round % 4 {
        0 => (0, 1),
        1 => (1, 2),
        2 => (2, 0),
        _ => (2, 1),
    }
}

#[test]
fn a_client_with_a_token_alone_reads_what_it_wrote_over_slow_links() {
    let (cluster, alice) = cluster();
    let weather = Weather { late_ms: 30..80, lost_of_1000: 10 };
    let (nodes, cables) = cluster.serve_star_over(&NAMES, &weather, 12);
    alice.run(&nodes[0], "INSERT INTO hits(page) VALUES('home')");
    let sql = "SELECT n FROM hits";
    for round in 1..=16_u32 {
        let (writes, reads) = hop(round);
        match round % 3 {
            0 => drop(alice.socket(&nodes[writes]).run(1, "UPDATE hits SET n = n + 1").unwrap()),
            _ => drop(alice.run(&nodes[writes], "UPDATE hits SET n = n + 1")),
        }
        let n = thread::scope(|threads| {
            let read = threads.spawn(|| match round % 4 {
                2 => alice.cursor(&nodes[reads], sql),
                3 => alice.socket_cursor(&nodes[reads], sql),
                _ => alice.run(&nodes[reads], sql),
            });
            if round % 4 == 1 {
                cables.iter().for_each(Cable::cut);
                thread::sleep(Duration::from_millis(300));
                cables.iter().for_each(Cable::mend);
            }
            read.join().unwrap()
        });
        assert_eq!(n, round.to_string().as_str(), "after round {round}");
        alice.run(&nodes[reads], &format!("INSERT INTO notes(n) VALUES({round})"));
        assert_eq!(alice.run(&nodes[writes], "SELECT max(n) FROM notes"), n);
    }
    assert!(cables.iter().all(|cable| cable.carried() > 100), "{cables:?}");
    stop(nodes);
}

#[test]
fn a_client_with_a_token_alone_reads_what_it_wrote_wherever_it_comes() {
    let (cluster, alice) = cluster();
    let nodes = cluster.serve_star(&NAMES);
    alice.run(&nodes[0], "INSERT INTO hits(page) VALUES('home')");
    for round in 1..=40_u32 {
        let (writes, reads) = hop(round);
        match round % 3 {
            0 => drop(alice.socket(&nodes[writes]).run(1, "UPDATE hits SET n = n + 1").unwrap()),
            _ => drop(alice.run(&nodes[writes], "UPDATE hits SET n = n + 1")),
        }
        let sql = "SELECT n FROM hits";
        let n = match round % 12 {
            3 => {
                // The way from edge to edge is closed for a while: the answer waits for it.
                nodes[0].freeze();
                thread::scope(|threads| {
                    let read = threads.spawn(|| alice.run(&nodes[reads], sql));
                    thread::sleep(Duration::from_millis(300));
                    nodes[0].thaw();
                    read.join().unwrap()
                })
            }
            6 => alice.cursor(&nodes[reads], sql),
            1 | 7 => alice.socket(&nodes[reads]).run(1, sql).unwrap(),
            10 => alice.socket_cursor(&nodes[reads], sql),
            _ => alice.run(&nodes[reads], sql),
        };
        assert_eq!(n, round.to_string().as_str(), "after round {round}");
        // What the origin writes, too.
        alice.run(&nodes[reads], &format!("INSERT INTO notes(n) VALUES({round})"));
        assert_eq!(alice.run(&nodes[writes], "SELECT max(n) FROM notes"), n);
    }

    // A transaction that stays open goes on where it is, whatever comes meanwhile.
    let execute = |sql: &str| json!({ "type": "execute", "stmt": { "sql": sql } });
    let mut answer = alice.pipeline(&nodes[1], &json!([execute("BEGIN IMMEDIATE")]));
    alice.run(&nodes[0], "INSERT INTO hits VALUES('about', 1)");
    for sql in ["UPDATE hits SET n = n + 1 WHERE page = 'home'", "COMMIT"] {
        let body = json!({ "baton": answer["baton"], "requests": [execute(sql)] });
        answer = alice.send(&nodes[1], "/v2/pipeline", &body).json();
        assert_eq!(answer["results"][0]["type"], "ok", "{answer}");
    }
    assert_eq!(alice.run(&nodes[2], "SELECT sum(n) FROM hits"), "42");

    // Without the origin nobody knows what the client has seen, and so it is shown nothing.
    let mut socket = alice.socket(&nodes[2]);
    nodes[0].freeze();
    let body = json!({ "requests": [execute("UPDATE hits SET n = 0")] });
    let (refused, on_socket) = thread::scope(|threads| {
        let on_socket = threads.spawn(|| socket.run(1, "UPDATE hits SET n = 0"));
        (alice.send(&nodes[1], "/v2/pipeline", &body), on_socket.join().unwrap())
    });
    nodes[0].thaw();
    assert_eq!(on_socket, Err("LITTORAL_ORIGIN_UNREACHABLE".to_owned()));
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.json()["code"], "LITTORAL_ORIGIN_UNREACHABLE", "{refused:?}");
    until("the client to be let in again", || {
        alice.send(&nodes[1], "/v2/pipeline", &json!({ "requests": [execute("SELECT 1")] })).status
            == 200
    });
    assert_eq!(alice.run(&nodes[1], "SELECT n FROM hits WHERE page = 'home'"), "41");
    stop(nodes);
}
