//! Increments that two edges forward while the origin and the edges are killed and started again, and the
//! links between them cut: each happens once.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rusqlite::types::Value as Cell;
use serde_json::{Value, json};

use crate::harness::{
    Cable, Client, Cluster, Node, Random, Weather, assert_converge, rows_of, stop, until,
};

const SCHEMA: &str = "
    CREATE TABLE tally (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
    CREATE TABLE run (id INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT NOT NULL);";
const TABLES: [&str; 2] = ["SELECT * FROM tally ORDER BY id", "SELECT * FROM run ORDER BY id"];
const NAMES: [&str; 3] = ["origin", "edge1", "edge2"];
const WORKERS: usize = 8;
/// Of so many cuts one lasts until the node beyond it is given up.
const LONG_CUT: usize = 16;

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

/// How often something was done to the cluster.
#[derive(Debug, Default)]
struct Harassed {
    kills: usize,
    cuts: usize,
}

/// Kills one node after the other and cuts one link after the other, whenever some more increments are
/// through, and starts it again or mends it.
fn harass(
    cluster: &Cluster,
    nodes: &mut Vec<Node>,
    cables: &[Cable],
    addresses: &Addresses,
    answered: &AtomicUsize,
    done: &AtomicBool,
) -> Harassed {
    let mut harassed = Harassed::default();
    let mut random = Random(0x9e37_79b9);
    let step = (increments() / 40).clamp(10, 100);
    let kill = |nodes: &mut Vec<Node>, random: &mut Random| {
        let victim = usize::try_from(random.below(3)).unwrap();
        let address = cluster.kill_and_serve_again_over(cables, nodes, victim);
        *addresses[victim].lock().unwrap_or_else(PoisonError::into_inner) = address;
    };
    while !done.load(Ordering::SeqCst) {
        let next = answered.load(Ordering::SeqCst) + step;
        until("some increments", || {
            done.load(Ordering::SeqCst) || answered.load(Ordering::SeqCst) >= next
        });
        let what = random.below(6);
        if what < 3 {
            kill(nodes, &mut random);
            harassed.kills += 1;
            continue;
        }
        let edge = usize::try_from(random.below(2)).unwrap();
        cables[edge].cut();
        harassed.cuts += 1;
        if what == 3 {
            kill(nodes, &mut random);
            harassed.kills += 1;
        } else if harassed.cuts % LONG_CUT == 3 {
            until("the edge to know no way to the origin", || {
                nodes[1 + edge].status()["origin_distance"].is_null()
            });
        } else {
            thread::sleep(Duration::from_millis(random.within(&(20..900))));
        }
        cables[edge].mend();
    }
    harassed
}

#[test]
fn forwarded_increments_happen_once_while_nodes_are_killed_and_links_cut() {
    let cluster = Cluster::init(SCHEMA, &[], &NAMES);
    let weather = Weather { late_ms: 0..3, lost_of_1000: 5 };
    let (mut nodes, cables) = cluster.serve_star_over(&NAMES, &weather, 1);
    nodes[0].run(&["INSERT INTO tally VALUES (1, 0)"]);
    let addresses: Addresses = [0, 1, 2].map(|node| Mutex::new(nodes[node].http()));
    let (taken, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    let (known, harassed) = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (addresses, taken, answered) = (&addresses, &taken, &answered);
                scope.spawn(move || increment(worker, addresses, taken, answered))
            })
            .collect();
        let harassing =
            scope.spawn(|| harass(&cluster, &mut nodes, &cables, &addresses, &answered, &done));
        let known: BTreeMap<String, Known> =
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        (known, harassing.join().unwrap())
    });
    assert_eq!(known.len(), increments());
    assert!(harassed.kills >= 5 && harassed.cuts >= 5, "{harassed:?}");
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
