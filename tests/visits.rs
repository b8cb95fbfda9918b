//! Interactive transactions of clients of an edge that touch what only the origin may: statements one by
//! one, over a relay, as if they were at the origin.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rusqlite::types::Value as Cell;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, Node, Socket, assert_converge, rows_of, stop, until};

const SCHEMA: &str = "
    CREATE TABLE stock (item TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL CHECK (n >= 0));
    CREATE TABLE cart (id INTEGER NOT NULL PRIMARY KEY, item TEXT, pieces INTEGER);
    CREATE TABLE ledger (id INTEGER PRIMARY KEY AUTOINCREMENT, who TEXT NOT NULL);
    CREATE TABLE vault (id INTEGER PRIMARY KEY, gold INTEGER NOT NULL);";
const POLICIES: &[&str] = &["cart:writers=any,key=explicit", "vault:policy=origin-strong"];

/// An edge behind a relay behind the origin.
fn line() -> (Cluster, Vec<Node>) {
    let cluster = Cluster::init(SCHEMA, POLICIES, &["origin", "relay", "edge"]);
    let origin = cluster.serve("origin", &[]);
    let relay = cluster.serve("relay", &[&origin]);
    let edge = cluster.serve("edge", &[&relay]);
    let nodes = vec![origin, relay, edge];
    nodes.iter().for_each(Node::until_ready);
    nodes[0].run(&["INSERT INTO stock VALUES ('tea', 10)", "INSERT INTO vault VALUES (1, 7)"]);
    let tea = "SELECT count(*) FROM stock";
    until("the edge to have it", || rows_of(nodes[2].database(), tea) == [[Cell::Integer(1)]]);
    (cluster, nodes)
}

/// A client's stream.
struct Stream {
    client: Client,
    baton: Value,
}

impl Stream {
    fn of(node: &Node) -> Self {
        Self { client: node.client(), baton: Value::Null }
    }

    fn at(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self { client: Client::connect(address)?, baton: Value::Null })
    }

    fn send(&mut self, requests: &Value) -> std::io::Result<Vec<Value>> {
        let body = json!({ "baton": self.baton, "requests": requests });
        let answer = self.client.send("POST", "/v3/pipeline", &body.to_string())?;
        if answer.status != 200 {
            return Err(std::io::Error::other(answer.body));
        }
        let mut answer = answer.json();
        self.baton = answer["baton"].take();
        Ok(serde_json::from_value(answer["results"].take()).unwrap())
    }

    /// Runs one statement; gives the first cell, or the code of the error.
    fn try_run(&mut self, sql: &str) -> std::io::Result<Result<Value, String>> {
        let results = self.send(&json!([{ "type": "execute", "stmt": { "sql": sql } }]))?;
        Ok(match results[0]["error"]["code"].as_str() {
            Some(code) => Err(code.to_owned()),
            None => Ok(results[0]["response"]["result"]["rows"][0][0]["value"].clone()),
        })
    }

    fn run(&mut self, sql: &str) -> Result<Value, String> {
        self.try_run(sql).unwrap()
    }
}

fn ok(value: &str) -> Result<Value, String> {
    Ok(json!(value))
}

fn done() -> Result<Value, String> {
    Ok(Value::Null)
}

const STOCK: &str = "SELECT n FROM stock WHERE item = 'tea'";

#[test]
fn a_transaction_of_an_edge_reads_and_writes_the_origins_tables() {
    let (_cluster, nodes) = line();
    let mut stream = Stream::of(&nodes[2]);
    // As client.transaction("write") begins: nothing is sent before the first statement.
    let results = stream
        .send(&json!([{ "type": "batch", "batch": { "steps": [
            { "stmt": { "sql": "BEGIN IMMEDIATE" } },
            { "condition": { "type": "ok", "step": 0 }, "stmt": { "sql": STOCK } },
        ] } }]))
        .unwrap();
    let result = &results[0]["response"]["result"];
    assert_eq!(result["step_results"][1]["rows"][0][0]["value"], "10", "{results:?}");
    assert_eq!(stream.run("UPDATE stock SET n = 9"), done());
    assert_eq!(stream.run("INSERT INTO cart VALUES (1, 'tea', 1)"), done());
    assert_eq!(stream.run("SELECT gold FROM vault"), ok("7"));
    // An error does not end it.
    let again = stream.run("INSERT INTO cart VALUES (1, 'tea', 1)");
    assert_eq!(again, Err("SQLITE_CONSTRAINT".to_owned()));
    assert_eq!(stream.run("SAVEPOINT s"), done());
    assert_eq!(stream.run("UPDATE stock SET n = 0"), done());
    assert_eq!(stream.run("ROLLBACK TO s"), done());
    assert_eq!(stream.run(STOCK), ok("9"));
    // Nobody sees it before it is committed; then the node that was asked shows it at once.
    assert_eq!(rows_of(nodes[0].database(), STOCK), [[Cell::Integer(10)]]);
    assert_eq!(stream.run("COMMIT"), done());
    assert_eq!(stream.run(STOCK), ok("9"));
    assert_eq!(stream.run("SELECT pieces FROM cart"), ok("1"));

    assert_eq!(stream.run("BEGIN EXCLUSIVE"), done());
    assert_eq!(stream.run("UPDATE stock SET n = 1"), done());
    assert_eq!(stream.run("ROLLBACK"), done());
    assert_eq!(stream.run(STOCK), ok("9"));
    // One that reads only may read there, too, and write nothing.
    assert_eq!(stream.run("BEGIN READONLY"), done());
    assert_eq!(stream.run(STOCK), ok("9"));
    assert_eq!(stream.run("SELECT gold FROM vault"), ok("7"));
    assert_eq!(stream.run("UPDATE vault SET gold = 0"), Err("SQLITE_READONLY".to_owned()));
    assert_eq!(stream.run("COMMIT"), done());
    // The commit that fails is the one that is told.
    assert_eq!(stream.run("BEGIN EXCLUSIVE"), done());
    assert_eq!(stream.run("UPDATE stock SET n = n - 10"), Err("SQLITE_CONSTRAINT".to_owned()));
    assert_eq!(stream.run("COMMIT"), done());
    assert_converge(&nodes, &["SELECT * FROM stock", "SELECT * FROM cart", "SELECT * FROM vault"]);
    stop(nodes);
}

#[test]
fn one_that_began_on_the_edge_moves_and_comes_to_the_same_or_is_over() {
    let (_cluster, nodes) = line();
    let mut stream = Stream::of(&nodes[2]);
    for begin in ["BEGIN IMMEDIATE", "BEGIN"] {
        assert_eq!(stream.run(begin), done());
        assert_eq!(stream.run("SELECT count(*) FROM cart"), ok("0"));
        assert_eq!(stream.run("INSERT INTO cart VALUES (1, 'tea', 2) RETURNING pieces"), ok("2"));
        assert_eq!(stream.run("UPDATE stock SET n = n - 2 RETURNING n"), ok("8"));
        assert_eq!(stream.run("SELECT pieces FROM cart"), ok("2"));
        assert_eq!(stream.run("ROLLBACK"), done());
    }
    // What it has read is different there.
    assert_eq!(stream.run("BEGIN"), done());
    assert_eq!(stream.run(STOCK), ok("10"));
    nodes[0].run(&["UPDATE stock SET n = 5"]);
    assert_eq!(stream.run("UPDATE stock SET n = 9"), Err("SQLITE_BUSY".to_owned()));
    assert_eq!(stream.run("SELECT 1"), Err("SQLITE_BUSY".to_owned()), "until its client says so");
    assert_eq!(stream.run("ROLLBACK"), done());
    // One that says so stays where it is.
    assert_eq!(stream.run("BEGIN CONCURRENT"), done());
    assert_eq!(stream.run("INSERT INTO cart VALUES (2, 'jam', 1)"), done());
    let stays = stream.run("UPDATE stock SET n = 0");
    assert_eq!(stays, Err("LITTORAL_ORIGIN_ONLY".to_owned()));
    assert_eq!(stream.run("ROLLBACK"), done());
    until("the edge to have it", || rows_of(nodes[2].database(), STOCK) == [[Cell::Integer(5)]]);
    assert_eq!(stream.run("SELECT count(*) FROM cart"), ok("0"));
    stop(nodes);
}

#[test]
fn without_the_origin_only_what_needs_it_fails() {
    let (_cluster, mut nodes) = line();
    let mut visiting = Stream::of(&nodes[2]);
    assert_eq!(visiting.run("BEGIN EXCLUSIVE"), done());
    assert_eq!(visiting.run("UPDATE stock SET n = 1"), done());
    nodes.remove(0).kill();
    assert_eq!(visiting.run("UPDATE stock SET n = 2"), Err("LITTORAL_TRANSACTION_LOST".to_owned()));
    assert_eq!(visiting.run("COMMIT"), Err("LITTORAL_TRANSACTION_LOST".to_owned()));
    until("the edge to notice", || nodes[1].status()["origin_distance"].is_null());
    let mut stream = Stream::of(&nodes[1]);
    assert_eq!(stream.run("BEGIN IMMEDIATE"), done());
    assert_eq!(stream.run(STOCK), ok("10"), "what the edge has");
    assert_eq!(stream.run("INSERT INTO cart VALUES (1, 'tea', 1)"), done());
    assert_eq!(stream.run("COMMIT"), done());
    assert_eq!(stream.run("BEGIN IMMEDIATE"), done());
    assert_eq!(stream.run("UPDATE stock SET n = 9"), Err("LITTORAL_ORIGIN_UNREACHABLE".to_owned()));
    assert_eq!(stream.run("ROLLBACK"), done());
    stop(nodes);
}

#[test]
fn who_holds_the_origins_writer_for_too_long_is_rolled_back() {
    let (_cluster, nodes) = line();
    let mut stream = Stream::of(&nodes[2]);
    assert_eq!(stream.run("BEGIN IMMEDIATE"), done());
    assert_eq!(stream.run("UPDATE stock SET n = 1"), done());
    let began = Instant::now();
    // Writes of others wait for it, and are not refused.
    nodes[0].run(&["UPDATE stock SET n = n + 100"]);
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(stream.run(STOCK), Err("TRANSACTION_TIMEOUT".to_owned()));
    assert_eq!(stream.run("ROLLBACK"), done());
    // A client that goes away is rolled back when its stream is closed, at the latest.
    let mut gone = Stream::of(&nodes[2]);
    assert_eq!(gone.run("BEGIN EXCLUSIVE"), done());
    assert_eq!(gone.run("UPDATE stock SET n = 2"), done());
    gone.send(&json!([{ "type": "close" }])).unwrap();
    let began = Instant::now();
    nodes[0].run(&["UPDATE stock SET n = n + 100"]);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(rows_of(nodes[0].database(), STOCK), [[Cell::Integer(210)]]);
    stop(nodes);
}

/// A cursor reads what only the origin may, and its transaction writes there.
#[test]
fn a_cursor_goes_to_the_origin_too() {
    let (_cluster, nodes) = line();
    let ok = |step: usize| json!({ "type": "ok", "step": step });
    let body = json!({ "batch": { "steps": [
        { "stmt": { "sql": "BEGIN" } },
        { "condition": ok(0), "stmt": { "sql": "SELECT gold FROM vault" } },
        { "condition": ok(1), "stmt": { "sql": STOCK } },
        { "condition": ok(2), "stmt": { "sql": "COMMIT" } },
    ] } });
    let answer = nodes[2].client().send("POST", "/v3/cursor", &body.to_string()).unwrap();
    assert!(!answer.body.contains("error"), "{}", answer.body);
    assert!(answer.body.contains("\"7\""), "{}", answer.body);
    let body = json!({ "batch": { "steps": [
        { "stmt": { "sql": "BEGIN IMMEDIATE" } },
        { "condition": ok(0), "stmt": { "sql": "UPDATE vault SET gold = gold + 1 RETURNING gold" } },
        { "condition": ok(1), "stmt": { "sql": "COMMIT" } },
    ] } });
    let answer = nodes[2].client().send("POST", "/v3/cursor", &body.to_string()).unwrap();
    assert!(!answer.body.contains("error"), "{}", answer.body);
    assert!(answer.body.contains("\"8\""), "{}", answer.body);
    stop(nodes);
}

// --- While nodes are killed

const WORKERS: usize = 4;

/// How many transactions there are.
fn count() -> usize {
    std::env::var("LITTORAL_VISITS").map_or(60, |count| count.parse().unwrap())
}

/// What a client knows of its transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    Committed,
    Nothing,
    Perhaps,
}

type Addresses = [Mutex<SocketAddr>; 3];

fn address(addresses: &Addresses, node: usize) -> SocketAddr {
    *addresses[node].lock().unwrap_or_else(PoisonError::into_inner)
}

/// One transaction that reads, thinks and writes what it has read less one.
fn take_one(address: SocketAddr, who: &str) -> Known {
    let Ok(mut stream) = Stream::at(address) else { return Known::Nothing };
    let mut steps = || -> std::io::Result<Result<(), String>> {
        for sql in
            ["BEGIN IMMEDIATE".to_owned(), format!("INSERT INTO ledger (who) VALUES ('{who}')")]
        {
            if let Err(code) = stream.try_run(&sql)? {
                return Ok(Err(code));
            }
        }
        let n: i64 = match stream.try_run(STOCK)? {
            Ok(n) => n.as_str().unwrap().parse().unwrap(),
            Err(code) => return Ok(Err(code)),
        };
        Ok(stream.try_run(&format!("UPDATE stock SET n = {}", n - 1))?.map(drop))
    };
    // Nothing can be committed before COMMIT is sent.
    match steps() {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => return Known::Nothing,
    }
    match stream.try_run("COMMIT") {
        Ok(Ok(_)) => Known::Committed,
        Ok(Err(code)) if code != "LITTORAL_OUTCOME_UNKNOWN" => Known::Nothing,
        Ok(Err(_)) | Err(_) => Known::Perhaps,
    }
}

#[test]
fn interactive_transactions_happen_once_or_not_at_all_while_nodes_are_killed() {
    let cluster = Cluster::init(SCHEMA, POLICIES, &["origin", "edge1", "edge2"]);
    let mut nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    nodes[0].run(&["INSERT INTO stock VALUES ('tea', 1000000)"]);
    nodes.iter().for_each(Node::until_ready);
    let addresses: Addresses = [0, 1, 2].map(|node| Mutex::new(nodes[node].http()));
    let (taken, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let known = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (addresses, taken) = (&addresses, &taken);
                scope.spawn(move || {
                    let mut known = BTreeMap::new();
                    while taken.fetch_add(1, Ordering::SeqCst) < count() {
                        let who = format!("{worker}-{}", known.len());
                        let became = take_one(address(addresses, 1 + worker % 2), &who);
                        known.insert(who, became);
                        if became != Known::Committed {
                            thread::sleep(Duration::from_millis(100));
                        }
                    }
                    known
                })
            })
            .collect();
        let harassing = scope.spawn(|| {
            let mut victim = 0;
            while !done.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(700));
                let address = cluster.kill_and_serve_again(&mut nodes, victim);
                *addresses[victim].lock().unwrap_or_else(PoisonError::into_inner) = address;
                nodes.iter().for_each(Node::until_ready);
                victim = (victim + 1) % 3;
            }
        });
        let known: BTreeMap<String, Known> =
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        harassing.join().unwrap();
        known
    });
    nodes.iter().for_each(Node::until_ready);
    assert_converge(&nodes, &["SELECT * FROM stock", "SELECT * FROM ledger ORDER BY id"]);
    let mut ran: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows_of(nodes[0].database(), "SELECT who FROM ledger") {
        let Some(Cell::Text(who)) = row.into_iter().next() else { panic!("no text") };
        *ran.entry(who).or_default() += 1;
    }
    for (who, known) in &known {
        let times = ran.remove(who).unwrap_or(0);
        let right = match known {
            Known::Committed => times == 1,
            Known::Nothing => times == 0,
            Known::Perhaps => times <= 1,
        };
        assert!(right, "{who} ran {times} times, and {known:?}");
    }
    assert!(ran.is_empty());
    // No update is lost: each took one of what was there.
    let counted = "SELECT n + (SELECT count(*) FROM ledger) FROM stock";
    assert_eq!(rows_of(nodes[0].database(), counted), [[Cell::Integer(1_000_000)]]);
    let committed = known.values().filter(|known| **known == Known::Committed).count();
    assert!(committed >= count() / 4, "{committed} of {}", count());
    stop(nodes);
}

#[test]
fn a_transaction_over_a_websocket_is_at_the_origin_and_ends_with_its_stream_or_socket() {
    let (_cluster, nodes) = line();
    let mut socket = Socket::greeted(&nodes[2], "hrana3");
    for stream in 1..=3 {
        socket.ask(&json!({ "type": "open_stream", "stream_id": stream })).unwrap();
    }
    assert_eq!(socket.run(1, "BEGIN IMMEDIATE"), done());
    assert_eq!(socket.run(1, STOCK), ok("10"));
    assert_eq!(socket.run(1, "UPDATE stock SET n = 9 RETURNING n"), ok("9"));
    assert_eq!(socket.run(1, "SELECT gold FROM vault"), ok("7"));
    // Another stream of the socket waits for none of this.
    assert_eq!(socket.run(2, STOCK), ok("10"));
    let asked = json!({ "type": "get_autocommit", "stream_id": 1 });
    assert_eq!(socket.ask(&asked).unwrap()["is_autocommit"], false);
    assert_eq!(socket.run(1, "COMMIT"), done());
    assert_eq!(socket.ask(&asked).unwrap()["is_autocommit"], true);
    assert_eq!(socket.run(2, STOCK), ok("9"));

    for (stream, begin) in [(2, "BEGIN EXCLUSIVE"), (3, "BEGIN")] {
        assert_eq!(socket.run(stream, begin), done());
        assert_eq!(socket.run(stream, "UPDATE stock SET n = 0"), done());
        let began = Instant::now();
        if stream == 2 {
            socket.ask(&json!({ "type": "close_stream", "stream_id": 2 })).unwrap();
        } else {
            socket = Socket::greeted(&nodes[2], "hrana3");
        }
        // Nobody has to wait until it has been idle for too long.
        nodes[0].run(&["UPDATE stock SET n = n + 1"]);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    drop(socket);
    assert_eq!(rows_of(nodes[0].database(), STOCK), [[Cell::Integer(11)]]);
    assert_converge(&nodes, &["SELECT * FROM stock"]);
    stop(nodes);
}
