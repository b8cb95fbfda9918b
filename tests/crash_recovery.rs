//! A process killed in the middle of a load loses nothing that it has answered.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use rusqlite::types::Value as Cell;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, Node, assert_converge, rows_of, stop, until};

const SCHEMA: &str = "
    CREATE TABLE load (id TEXT NOT NULL PRIMARY KEY, payload TEXT);
    CREATE TABLE totals (name TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL);
    CREATE TABLE ledger (id TEXT NOT NULL PRIMARY KEY, payload TEXT) WITHOUT ROWID;";
const TABLES: [&str; 3] = [
    "SELECT * FROM load ORDER BY id",
    "SELECT * FROM totals ORDER BY name",
    "SELECT * FROM ledger ORDER BY id",
];
const WORKERS: usize = 4;

fn cluster() -> Cluster {
    let tables = ["load:writers=any", "totals:writers=any,n=counter"];
    Cluster::init(SCHEMA, &tables, &["origin", "edge1", "edge2"])
}

/// Writes one transaction after the other until `enough` are answered or the node is gone; each adds
/// a row and counts it. Gives the ids of those that were answered.
fn load(
    client: &mut Client,
    table: &str,
    prefix: &str,
    answered: &AtomicUsize,
    enough: usize,
) -> Vec<String> {
    let mut ids = Vec::new();
    while answered.load(Ordering::SeqCst) < enough {
        let id = format!("{prefix} {:05}", ids.len());
        let arguments = json!([
            { "type": "text", "value": id },
            { "type": "text", "value": "payload ".repeat(1 + ids.len() % 30) },
        ]);
        let insert = json!({
            "sql": format!("INSERT INTO {table} VALUES (?, ?)"),
            "args": arguments,
        });
        let mut statements = vec![insert];
        if table == "load" {
            statements.push(json!({ "sql": "UPDATE totals SET n = n + 1" }));
        }
        if client.transaction(&statements).is_err() {
            break;
        }
        answered.fetch_add(1, Ordering::SeqCst);
        ids.push(id);
    }
    ids
}

/// Loads `table` through several connections, and calls `meanwhile` with the node once `at`
/// transactions are answered. Gives the ids of all that were answered.
fn load_in_parallel(
    node: Node,
    table: &str,
    life: &str,
    enough: usize,
    (at, meanwhile): (usize, impl FnOnce(Node)),
) -> BTreeSet<String> {
    let answered = AtomicUsize::new(0);
    let clients: Vec<Client> = (0..WORKERS).map(|_| node.client()).collect();
    thread::scope(|scope| {
        let answered = &answered;
        let workers: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(worker, mut client)| {
                let prefix = format!("{life} {worker}");
                scope.spawn(move || load(&mut client, table, &prefix, answered, enough))
            })
            .collect();
        until("the load to be under way", || answered.load(Ordering::SeqCst) >= at);
        meanwhile(node);
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

fn ids(node: &Node, table: &str) -> BTreeSet<String> {
    let rows = rows_of(node.database(), &format!("SELECT id FROM {table}"));
    let id = |row: Vec<Cell>| match row.into_iter().next() {
        Some(Cell::Text(id)) => id,
        other => panic!("{other:?}"),
    };
    rows.into_iter().map(id).collect()
}

/// All that was answered is there, and of what was not, at most what each worker had under way.
fn assert_kept(found: &BTreeSet<String>, answered: &BTreeSet<String>) {
    let lost: Vec<&String> = answered.difference(found).collect();
    assert!(lost.is_empty(), "{} answered transactions are lost: {lost:?}", lost.len());
    assert!(found.len() <= answered.len() + WORKERS, "{} of {}", found.len(), answered.len());
}

#[test]
fn an_edge_killed_in_the_middle_of_a_load_ends_equal_with_all_it_has_answered() {
    let cluster = cluster();
    let mut nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    nodes[2].run(&["INSERT INTO totals VALUES ('all', 0)"]);
    assert_converge(&nodes, &TABLES);

    let edge1 = nodes.remove(1);
    let mut answered = load_in_parallel(edge1, "load", "first", usize::MAX, (1500, Node::kill));
    assert!(answered.len() >= 1500);
    let edge1 = cluster.serve("edge1", &[&nodes[0]]);
    assert_kept(&ids(&edge1, "load"), &answered);

    let mut again = None;
    let more = load_in_parallel(edge1, "load", "second", 1500, (1, |node| again = Some(node)));
    assert!(more.len() >= 1500);
    answered.extend(more);
    nodes.insert(1, again.unwrap());
    assert_converge(&nodes, &TABLES);
    for node in &nodes {
        let found = ids(node, "load");
        assert_kept(&found, &answered);
        let total = Cell::Integer(i64::try_from(found.len()).unwrap());
        let totals = rows_of(node.database(), "SELECT n FROM totals");
        assert_eq!(totals, [[total]], "each transaction is there whole, and once");
    }
    let status = nodes[1].status();
    assert_eq!((&status["halted"], &status["storage_error"]), (&Value::Null, &Value::Null));
    stop(nodes);
}

#[test]
fn an_edge_hears_at_once_that_its_origin_was_killed_and_is_back() {
    let cluster = cluster();
    let origin = cluster.serve("origin", &[]);
    let edge = cluster.serve("edge1", &[&origin]);
    edge.until_ready();
    let address = format!("[links]\nlisten = \"{}\"", origin.links());
    origin.kill();
    cluster.configure("origin", "[links]\nlisten = \"127.0.0.1:0\"", &address);
    let origin = cluster.serve("origin", &[]);
    // Without that it would wait until the silence is too long.
    let log = cluster.home().join("edge1.log");
    until("the link to end", || fs::read_to_string(&log).unwrap().contains("link lost"));
    let log = fs::read_to_string(&log).unwrap();
    let lost = log.lines().find(|line| line.contains("link lost")).unwrap();
    assert!(lost.contains("reset by peer"), "{lost}");
    edge.run(&["INSERT INTO ledger VALUES ('forwarded', NULL)"]);
    assert_converge(&[origin, edge], &TABLES);
}

#[test]
fn an_origin_killed_in_the_middle_of_a_load_ends_equal_with_all_it_has_answered() {
    let cluster = cluster();
    let mut nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    let origin = nodes.remove(0);
    let answered = load_in_parallel(origin, "ledger", "first", usize::MAX, (1000, Node::kill));
    nodes[0].run(&["INSERT INTO load VALUES ('meanwhile', NULL)"]);
    // Its port is another one now; so it dials the edges.
    let origin = cluster.serve("origin", &[&nodes[0], &nodes[1]]);
    nodes.insert(0, origin);
    nodes[0].run(&["INSERT INTO ledger VALUES ('afterwards', NULL)"]);
    assert_converge(&nodes, &TABLES);
    for node in &nodes {
        let mut found = ids(node, "ledger");
        assert!(found.remove("afterwards"), "{}", node.name);
        assert_kept(&found, &answered);
        assert_eq!(ids(node, "load").len(), 1);
    }
    stop(nodes);
}
