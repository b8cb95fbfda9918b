//! What clients of a `littoral serve` process get: requests a second and how long one takes, at 1, 16 and
//! 64 connections, reads by key and inserts of one row; the process's memory, and how long it takes to
//! start. Clients and node share the machine.
//!
//! Rates are of this machine at this time; the ratios are to plain SQLite in this process, measured in
//! the same run on the same disk.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run says why by panicking")]
#![allow(clippy::print_stdout, reason = "its figures")]

#[path = "../tests/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest of it")]
mod harness;

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use self::harness::{Client, Cluster, Node};

const SCHEMA: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, qty INTEGER, price REAL,
    name TEXT, note TEXT)";
const CONNECTIONS: [usize; 3] = [1, 16, 64];
/// Requests a second of sqld, libSQL's server, on two shared cores, with one sync per commit, at as many
/// connections: measured once, for orientation.
const SQLD_SELECT: [f64; 3] = [1051.0, 1984.0, 1462.0];
const SQLD_INSERT: [f64; 3] = [625.0, 505.0, 495.0];
/// Rows that reads choose from.
const ROWS: i64 = 10_000;

fn smoke() -> bool {
    std::env::var_os("BENCH_SMOKE").is_some()
}

/// How long each point is measured.
fn span() -> Duration {
    Duration::from_millis(if smoke() { 200 } else { 3000 })
}

fn main() {
    let cluster = Cluster::init(SCHEMA, &["item:policy=eventual"], &["full"]);
    let began = Instant::now();
    let full = cluster.serve("full", &[]);
    full.until_ready();
    println!("http-start-to-ready {:.0} ms, the database not there yet", ms(began.elapsed()));
    full.stop();
    let began = Instant::now();
    let full = cluster.serve("full", &[]);
    full.until_ready();
    println!("http-start-to-ready {:.0} ms", ms(began.elapsed()));
    thread::sleep(Duration::from_secs(1));
    println!("http-memory-idle {:.1} MiB resident", mib(full.resident_kib()));

    let plain = Plain::new("FULL").inserts();
    println!("plain-insert-full {plain:.0}/s, one connection in this process");
    fill(&full);
    for (connections, sqld) in CONNECTIONS.into_iter().zip(SQLD_SELECT) {
        let rate = reads(&full, connections);
        value(&format!("sqld-to-http-select-{connections}"), sqld / rate, 0.5);
    }
    let next = Arc::new(AtomicI64::new(ROWS + 1));
    for (connections, sqld) in CONNECTIONS.into_iter().zip(SQLD_INSERT) {
        let rate = inserts("full", &full, connections, &next);
        value(&format!("sqld-to-http-insert-full-{connections}"), sqld / rate, 0.5);
        println!("http-insert-full-{connections}-to-plain {:.2}", rate / plain);
    }
    println!("http-memory-after {:.1} MiB resident", mib(full.resident_kib()));
    full.stop();

    let cluster = Cluster::init(SCHEMA, &["item:policy=eventual"], &["normal"]);
    cluster.configure("normal", "synchronous = \"full\"", "synchronous = \"normal\"");
    let normal = cluster.serve("normal", &[]);
    normal.until_ready();
    let plain = Plain::new("NORMAL").inserts();
    println!("plain-insert-normal {plain:.0}/s, one connection in this process");
    let next = Arc::new(AtomicI64::new(1));
    for connections in CONNECTIONS {
        let rate = inserts("normal", &normal, connections, &next);
        println!("http-insert-normal-{connections}-to-plain {:.3}", rate / plain);
    }
    normal.stop();
}

/// Prints a figure and its bound.
fn value(name: &str, value: f64, bound: f64) {
    println!("figure {name} {value:.2} {bound}");
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The same table without littoral.
struct Plain {
    conn: Connection,
    _home: tempfile::TempDir,
}

impl Plain {
    fn new(synchronous: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let conn = Connection::open(home.path().join("plain.sqlite")).unwrap();
        conn.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}; {SCHEMA}"
        ))
        .unwrap();
        Self { conn, _home: home }
    }

    /// Transactions of one row a second.
    fn inserts(&self) -> f64 {
        let mut insert = self.conn.prepare(INSERT).unwrap();
        let began = Instant::now();
        let mut rows = 0u32;
        while began.elapsed() < span() {
            rows += 1;
            insert.execute((rows, rows % 1000, 9.5, NAME, NOTE)).unwrap();
        }
        f64::from(rows) / began.elapsed().as_secs_f64()
    }
}

const INSERT: &str = "INSERT INTO item VALUES(?, ?, ?, ?, ?)";
const NAME: &str = "name of 20 character";
const NOTE: &str = "a note that has forty characters, so far";

fn fill(node: &Node) {
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO item SELECT i, i % 1000, 9.5, '{NAME}', '{NOTE}' FROM n"
    );
    node.run(&[&sql]);
}

fn pipeline(sql: &str, args: &str) -> String {
    format!(
        r#"{{"requests":[{{"type":"execute","stmt":{{"sql":"{sql}","args":[{args}]}}}},{{"type":"close"}}]}}"#
    )
}

fn reads(node: &Node, connections: usize) -> f64 {
    let name = format!("http-select-{connections}");
    let mut seed = 0u64;
    load(&name, node, connections, move |connection| {
        seed = seed.wrapping_add(connection as u64 + 1).wrapping_mul(6_364_136_223_846_793_005);
        let id = i64::try_from(seed >> 33).unwrap() % ROWS + 1;
        let arg = format!(r#"{{"type":"integer","value":"{id}"}}"#);
        (pipeline("SELECT * FROM item WHERE id = ?", &arg), NOTE)
    })
}

fn inserts(mode: &str, node: &Node, connections: usize, next: &Arc<AtomicI64>) -> f64 {
    let name = format!("http-insert-{mode}-{connections}");
    let next = Arc::clone(next);
    load(&name, node, connections, move |_| {
        let id = next.fetch_add(1, Ordering::Relaxed);
        let integer = |value: i64| format!(r#"{{"type":"integer","value":"{value}"}}"#);
        let text = |value: &str| format!(r#"{{"type":"text","value":"{value}"}}"#);
        let args = [
            integer(id),
            integer(id % 1000),
            r#"{"type":"float","value":9.5}"#.to_owned(),
            text(NAME),
            text(NOTE),
        ];
        (pipeline(INSERT, &args.join(",")), r#""affected_row_count":1"#)
    })
}

/// Sends requests on so many connections, one at a time on each, and prints how it went. A request is
/// a body, and what its answer must hold. Gives the rate.
fn load(
    name: &str,
    node: &Node,
    connections: usize,
    request: impl FnMut(usize) -> (String, &'static str) + Clone + Send + 'static,
) -> f64 {
    let begin = Arc::new(Barrier::new(connections + 1));
    let clients: Vec<_> = (0..connections)
        .map(|connection| {
            let (mut request, begin) = (request.clone(), Arc::clone(&begin));
            let mut client = node.client();
            thread::spawn(move || {
                send_one(&mut client, &request(connection));
                begin.wait();
                let began = Instant::now();
                let mut took = Vec::new();
                while began.elapsed() < span() {
                    let sent = Instant::now();
                    send_one(&mut client, &request(connection));
                    took.push(sent.elapsed());
                }
                took
            })
        })
        .collect();
    let used = node.processor_ms();
    begin.wait();
    let began = Instant::now();
    let mut took: Vec<Duration> =
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    let passed = began.elapsed();
    let used = node.processor_ms() - used;
    took.sort_unstable();
    let at = |share: usize| ms(took[(took.len() * share / 1000).min(took.len() - 1)]);
    let count = f64::from(u32::try_from(took.len()).unwrap());
    let rate = count / passed.as_secs_f64();
    println!(
        "{name} {rate:.0}/s, p50 {:.2} ms, p99 {:.2} ms, {:.3} ms of processor a request",
        at(500),
        at(990),
        used / count
    );
    rate
}

fn send_one(client: &mut Client, (body, expected): &(String, &str)) {
    let answer = client.send("POST", "/v2/pipeline", body).unwrap();
    assert!(answer.status == 200 && answer.body.contains(expected), "{}", answer.body);
}
