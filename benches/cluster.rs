//! Three `littoral serve` processes on loopback, each linked to both others: how long after its
//! acknowledgement a write shows at the others, what it costs on the wire, what a node that was killed
//! costs the others, and how long it takes to catch up, and a new node to join.
//!
//! A write shows when a reader of the node's SQLite file finds its row. All of it shares one machine, so
//! the times are of this machine at this time; those of the disk's own syncs stand beside them.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run says why by panicking")]
#![allow(clippy::print_stdout, reason = "its figures")]

#[path = "../tests/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest of it")]
mod harness;

use std::{
    fs::File,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags};

use self::harness::{Client, Cluster, Node, until};

const SCHEMA: &str =
    "CREATE TABLE item(id TEXT PRIMARY KEY NOT NULL, qty INTEGER NOT NULL DEFAULT 0,
    price REAL NOT NULL DEFAULT 0, name TEXT NOT NULL DEFAULT '', note TEXT, data TEXT)";
/// Bytes of one row's values: 36 of the key, 8, 8, 20, 40 and 32.
const ROW_BYTES: f64 = 144.0;
/// Other writes a second while a write is waited for.
const BESIDE: u64 = 200;

fn smoke() -> bool {
    std::env::var_os("BENCH_SMOKE").is_some()
}

/// So many, or a twentieth of it.
fn count(whole: u64) -> u64 {
    if smoke() { whole / 20 } else { whole }
}

fn main() {
    let cluster = Cluster::init(SCHEMA, &["item:writers=any"], &["a", "b", "c"]);
    let a = cluster.serve("a", &[]);
    let b = cluster.serve("b", &[&a]);
    let c = cluster.serve("c", &[&a, &b]);
    let nodes = vec![a, b, c];
    nodes.iter().for_each(Node::until_ready);
    linked(&nodes);

    propagation("quiet", &nodes, count(300));
    let stop = Arc::new(AtomicBool::new(false));
    let beside = writes_beside(&nodes[0], &stop);
    let syncs = thread::spawn({
        let stop = Arc::clone(&stop);
        move || sync_times(&stop)
    });
    propagation("loaded", &nodes, count(300));
    stop.store(true, Ordering::Relaxed);
    beside.join().unwrap();
    quantiles("cluster-fdatasync", syncs.join().unwrap());
    settle(&nodes);

    one_dead(&cluster, nodes);
    joins();
}

/// Waits until all three links are there.
fn linked(nodes: &[Node]) {
    for node in nodes {
        until("every node to be linked to both others", || {
            node.status()["peers"].as_array().is_some_and(|peers| peers.len() == nodes.len() - 1)
        });
    }
}

fn vector(node: &Node) -> serde_json::Value {
    node.status()["vector"].take()
}

fn settle(nodes: &[Node]) {
    for node in &nodes[1..] {
        until("the nodes to have the same entries", || vector(node) == vector(&nodes[0]));
    }
}

/// A key of 36 characters, in random order.
fn key(number: u64) -> String {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    format!("{mixed:016x}-{number:019}")
}

/// Inserts one row in a transaction of its own; answered when it is committed.
fn insert(client: &mut Client, number: u64) {
    let sql = format!(
        "INSERT INTO item VALUES('{}', {number}, 9.5, 'name of 20 character',
         'a note that has forty characters, so far', '{:032x}')",
        key(number),
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    );
    let stmt = serde_json::json!({ "type": "execute", "stmt": { "sql": sql } });
    let results = client.pipeline(&serde_json::json!([stmt, { "type": "close" }])).unwrap();
    assert_eq!(results[0]["type"], "ok", "{results:?}");
}

/// Numbers that were not used yet.
fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn propagation(name: &str, nodes: &[Node], writes: u64) {
    let mut client = nodes[0].client();
    let readers: Vec<Connection> = nodes[1..]
        .iter()
        .map(|node| {
            Connection::open_with_flags(node.database(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
        })
        .collect();
    let mut shows: Vec<_> = readers
        .iter()
        .map(|reader| reader.prepare("SELECT 1 FROM item WHERE id = ?").unwrap())
        .collect();
    let mut took = vec![Vec::new(); shows.len()];
    for _ in 0..writes {
        let number = fresh();
        insert(&mut client, number);
        let acknowledged = Instant::now();
        let key = key(number);
        let mut waiting: Vec<usize> = (0..shows.len()).collect();
        while !waiting.is_empty() {
            waiting.retain(|place| {
                let shown = shows[*place].exists([&key]).unwrap();
                if shown {
                    took[*place].push(acknowledged.elapsed());
                }
                !shown
            });
            thread::sleep(Duration::from_micros(200));
        }
    }
    for (node, took) in nodes[1..].iter().zip(took) {
        quantiles(&format!("cluster-propagation-{name}-{}", node.name), took);
    }
}

fn quantiles(name: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |share: usize| {
        took.get((took.len() * share / 1000).min(took.len().saturating_sub(1)))
            .map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    };
    println!(
        "{name} p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, at most {:.2} ms",
        at(500),
        at(900),
        at(990),
        at(1000)
    );
}

/// Other writes at a node, at a steady rate.
fn writes_beside(node: &Node, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (mut client, stop) = (node.client(), Arc::clone(stop));
    thread::spawn(move || {
        let (began, mut sent) = (Instant::now(), 0u32);
        while !stop.load(Ordering::Relaxed) {
            insert(&mut client, fresh());
            sent += 1;
            let due = Duration::from_secs(1) * sent / u32::try_from(BESIDE).unwrap();
            thread::sleep(due.saturating_sub(began.elapsed()));
        }
    })
}

/// How long the disk takes to sync a page that was appended, ten times a second.
fn sync_times(stop: &AtomicBool) -> Vec<Duration> {
    let home = tempfile::tempdir().unwrap();
    let mut file = File::create(home.path().join("synced")).unwrap();
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        file.write_all(&[1; 4096]).unwrap();
        let began = Instant::now();
        file.sync_data().unwrap();
        took.push(began.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    took
}

/// Transactions of one row from 16 clients at a node.
fn load(node: &Node, rows: u64) -> Duration {
    let began = Instant::now();
    let left = Arc::new(AtomicU64::new(rows));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (mut client, left) = (node.client(), Arc::clone(&left));
            thread::spawn(move || {
                let take = |left: u64| left.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    insert(&mut client, fresh());
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    began.elapsed()
}

fn sent(nodes: &[Node]) -> u64 {
    let statuses = nodes.iter().map(Node::status);
    statuses
        .flat_map(|status| status["peers"].as_array().unwrap().clone())
        .map(|peer| peer["bytes_sent"].as_u64().unwrap())
        .sum()
}

#[expect(clippy::cast_precision_loss, reason = "a figure of three digits")]
fn one_dead(cluster: &Cluster, mut nodes: Vec<Node>) {
    let rows = count(20_000);
    let before = sent(&nodes);
    let took = load(&nodes[0], rows);
    behind("all-alive", &nodes);
    settle(&nodes);
    let wire = (sent(&nodes) - before) as f64 / rows as f64 / ROW_BYTES / 2.0;
    println!("cluster-writes {:.0}/s from 16 clients", rows as f64 / took.as_secs_f64());
    println!("figure cluster-wire-bytes-per-byte-and-replica {wire:.2} 2");

    nodes.pop().unwrap().kill();
    load(&nodes[0], rows);
    behind("one-dead", &nodes);
    settle(&nodes);
    let began = Instant::now();
    let c = cluster.serve("c", &[&nodes[0], &nodes[1]]);
    until("the node that was killed to catch up", || vector(&c) == vector(&nodes[0]));
    println!(
        "figure cluster-catch-up-after-kill {:.2} 2 s for {rows} rows, from the process's start",
        began.elapsed().as_secs_f64()
    );
    nodes.push(c);
    harness::stop(nodes);
}

/// How long the second node is behind the first once a load has ended.
fn behind(name: &str, nodes: &[Node]) {
    let (began, wanted) = (Instant::now(), vector(&nodes[0]));
    until("the second node to catch up", || vector(&nodes[1]) == wanted);
    println!("cluster-behind-{name} {:.1} ms", began.elapsed().as_secs_f64() * 1000.0);
}

/// New nodes join one with 100,000 rows, and one with 500,000.
fn joins() {
    for (name, thousands, bound) in [("100k", count(100), 3.0), ("500k", count(500), 15.0)] {
        let cluster = Cluster::init(SCHEMA, &["item:writers=any"], &["a"]);
        let a = cluster.serve("a", &[]);
        a.until_ready();
        for thousand in 0..thousands {
            a.run(&[&format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
                 INSERT INTO item SELECT lower(hex(randomblob(8))) || '-' || printf('%019d', {thousand} * 1000 + i),
                 i, 9.5, 'name of 20 character', 'a note that has forty characters, so far',
                 lower(hex(randomblob(16))) FROM n"
            )]);
        }
        cluster.issue("new", &[]);
        let began = Instant::now();
        let new = cluster.serve("new", &[&a]);
        until("the new node to hold all rows", || vector(&new) == vector(&a));
        let took = began.elapsed().as_secs_f64();
        println!(
            "figure cluster-join-{name} {took:.2} {bound} s, {:.0} MiB of memory at most",
            f64::from(u32::try_from(new.peak_kib()).unwrap()) / 1024.0
        );
        harness::stop(vec![a, new]);
    }
}
