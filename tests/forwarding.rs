//! Increments that two edges forward while the origin and the edges are killed and started again: each
//! happens once.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use rusqlite::types::Value as Cell;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, Node, assert_converge, rows_of, stop, until};

const SCHEMA: &str = "
    CREATE TABLE tally (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
    CREATE TABLE run (id INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT NOT NULL);";
const TABLES: [&str; 2] = ["SELECT * FROM tally ORDER BY id", "SELECT * FROM run ORDER BY id"];
const NAMES: [&str; 3] = ["origin", "edge1", "edge2"];
const WORKERS: usize = 8;

/// How many increments there are; acceptance asks for 20,000.
fn increments() -> usize {
    std::env::var("LITTORAL_INCREMENTS").map_or(400, |count| count.parse().unwrap())
}

/// What a client knows of its increment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    Answered,
    Nothing,
}

/// Where the edges take requests at present.
type Addresses = [Mutex<SocketAddr>; 3];

fn address(addresses: &Addresses, node: usize) -> SocketAddr {
    *addresses[node].lock().unwrap_or_else(PoisonError::into_inner)
}

/// Increments through one edge until all are taken. Every other one that fails is tried again with its
/// key until it is answered, at the other edge too.
fn increment(
    worker: usize,
    addresses: &Addresses,
    taken: &AtomicUsize,
    answered: &AtomicUsize,
) -> BTreeMap<String, Known> {
    let mut known = BTreeMap::new();
    let mut edge = 1 + worker % 2;
    let mut client: Option<Client> = None;
    while taken.fetch_add(1, Ordering::SeqCst) < increments() {
        let key = format!("worker-{worker}-{}", known.len());
        let again = known.len() % 2 == 0;
        let statements = [
            json!({ "sql": "UPDATE tally SET n = n + 1" }),
            json!({
                "sql": "INSERT INTO run (request) VALUES (?)",
                "args": [{ "type": "text", "value": key }],
            }),
        ];
        let result = loop {
            let open = client.take().map_or_else(|| Client::connect(address(addresses, edge)), Ok);
            let sent = open.and_then(|mut open| {
                let result = open.transaction_with_key(&key, &statements)?;
                client = Some(open);
                Ok(result)
            });
            match sent {
                Ok(Ok(())) => break Known::Answered,
                // The node before it was killed may have had it.
                Ok(Err(code)) => assert!(
                    ["LITTORAL_ORIGIN_UNREACHABLE", "LITTORAL_OUTCOME_UNKNOWN"]
                        .contains(&code.as_str()),
                    "{code}"
                ),
                Err(_) => edge = 3 - edge,
            }
            if !again {
                break Known::Nothing;
            }
            thread::yield_now();
        };
        answered.fetch_add(1, Ordering::SeqCst);
        known.insert(key, result);
    }
    known
}

/// Kills one node after the other, whenever some more increments are through, and starts it again.
fn harass(
    cluster: &Cluster,
    nodes: &mut Vec<Node>,
    addresses: &Addresses,
    answered: &AtomicUsize,
    done: &AtomicBool,
) -> usize {
    let mut kills = 0;
    let mut state: usize = 0x9e37_79b9;
    let step = increments() / 20;
    while !done.load(Ordering::SeqCst) {
        let next = answered.load(Ordering::SeqCst) + step.max(10);
        until("some increments", || {
            done.load(Ordering::SeqCst) || answered.load(Ordering::SeqCst) >= next
        });
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let victim = state % 3;
        kills += 1;
        let address = cluster.kill_and_serve_again(nodes, victim);
        *addresses[victim].lock().unwrap_or_else(PoisonError::into_inner) = address;
    }
    kills
}

#[test]
fn forwarded_increments_happen_once_while_nodes_are_killed() {
    let cluster = Cluster::init(SCHEMA, &[], &NAMES);
    let mut nodes = cluster.serve_star(&NAMES);
    nodes[0].run(&["INSERT INTO tally VALUES (1, 0)"]);
    let addresses: Addresses = [0, 1, 2].map(|node| Mutex::new(nodes[node].http()));
    let (taken, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    let (known, kills) = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (addresses, taken, answered) = (&addresses, &taken, &answered);
                scope.spawn(move || increment(worker, addresses, taken, answered))
            })
            .collect();
        let harassing = scope.spawn(|| harass(&cluster, &mut nodes, &addresses, &answered, &done));
        let known: BTreeMap<String, Known> =
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        (known, harassing.join().unwrap())
    });
    assert_eq!(known.len(), increments());
    assert!(kills >= 5, "{kills}");
    nodes.iter().for_each(Node::until_ready);

    let committed: Vec<&String> = known
        .iter()
        .filter(|(key, known)| **known == Known::Answered || is_committed(&nodes[1], key))
        .map(|(key, _)| key)
        .collect();
    assert_converge(&nodes, &TABLES);
    let count = Cell::Integer(i64::try_from(committed.len()).unwrap());
    for node in &nodes {
        assert_eq!(rows_of(node.database(), "SELECT n FROM tally"), [[count.clone()]]);
        let mut ran: Vec<String> = rows_of(node.database(), "SELECT request FROM run")
            .into_iter()
            .map(|row| match row.into_iter().next() {
                Some(Cell::Text(request)) => request,
                other => panic!("{other:?}"),
            })
            .collect();
        ran.sort();
        assert!(ran.iter().eq(committed.iter().copied()), "another request ran, or one ran twice");
    }
    stop(nodes);
}

/// Asks a node until it knows.
fn is_committed(node: &Node, key: &str) -> bool {
    let mut committed = None;
    until("the outcome of a request", || {
        let path = format!("/v1/outcome?key={key}");
        let answer = node.client().send("POST", &path, "").unwrap();
        let body: Value = answer.json();
        committed = body["outcome"].as_str().map(|outcome| outcome == "committed");
        committed.is_some()
    });
    committed.unwrap()
}
