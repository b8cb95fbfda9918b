//! Three processes that write at once end equal, file by file.

use std::thread;

use rusqlite::types::Value as Cell;
use serde_json::{Value, json};

use crate::harness::{Cluster, Node, assert_converge, rows_of, stop, until};

const SCHEMA: &str = "
    CREATE TABLE stock (
      item TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0, note TEXT, price REAL, photo BLOB
    );
    CREATE TABLE orders (id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE, total REAL);";
const STOCK: &str = "stock:writers=any,n=counter";
const TABLES: [&str; 2] =
    ["SELECT * FROM stock ORDER BY item", "SELECT id, code, total FROM orders ORDER BY id"];

fn cluster() -> Cluster {
    Cluster::init(SCHEMA, &[STOCK], &["origin", "edge1", "edge2"])
}

fn text(text: &str) -> Value {
    json!({ "type": "text", "value": text })
}

fn statement(sql: &str, arguments: Value) -> Value {
    json!({ "sql": sql, "args": arguments })
}

/// What one edge does in its `round`th transaction, on rows that the other edge writes too: counts,
/// describes, and every so often takes away and puts back.
fn transaction(edge: &str, round: usize) -> Vec<Value> {
    let shared = format!("shared {}", round % 7);
    let fragile = format!("fragile {}", round % 5);
    let put =
        "INSERT INTO stock (item, n) VALUES (?, 1) ON CONFLICT (item) DO UPDATE SET n = n + 1";
    let describe = "UPDATE stock SET note = ?, price = price * 2 WHERE item = ?";
    let own = "INSERT INTO stock VALUES (?, ?, NULL, 0.1, x'00ff')";
    let take = if round.is_multiple_of(3) { "DELETE FROM stock WHERE item = ?" } else { put };
    vec![
        statement(put, json!([text(&shared)])),
        statement(describe, json!([text(&format!("{edge} {round}")), text(&shared)])),
        statement(
            own,
            json!([text(&format!("{edge} {round}")), { "type": "integer", "value": round.to_string() }]),
        ),
        statement(take, json!([text(&fragile)])),
    ]
}

fn count(node: &Node, sql: &str) -> i64 {
    match rows_of(node.database(), sql)[..] {
        [ref row] => match row[..] {
            [Cell::Integer(n)] => n,
            _ => panic!("{row:?}"),
        },
        ref rows => panic!("{rows:?}"),
    }
}

#[test]
fn three_processes_end_equal_after_writes_at_all_of_them() {
    const ROUNDS: usize = 200;
    let cluster = cluster();
    let nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    thread::scope(|scope| {
        for node in &nodes[1..] {
            scope.spawn(|| {
                let mut client = node.client();
                for round in 0..ROUNDS {
                    client.transaction(&transaction(&node.name, round)).unwrap();
                }
            });
        }
        scope.spawn(|| {
            let mut client = nodes[0].client();
            for round in 0..ROUNDS {
                let code = text(&format!("code {round}"));
                let sql = "INSERT INTO orders (code, total) VALUES (?, 1.5)";
                client.transaction(&[statement(sql, json!([code]))]).unwrap();
            }
        });
    });
    assert_converge(&nodes, &TABLES);
    for node in &nodes {
        let shared = "SELECT sum(n) FROM stock WHERE item LIKE 'shared%'";
        assert_eq!(count(node, shared), 2 * i64::try_from(ROUNDS).unwrap(), "{}", node.name);
        assert_eq!(count(node, "SELECT count(*) FROM stock WHERE item LIKE 'edge%'"), 400);
        assert_eq!(count(node, "SELECT count(*) FROM orders"), 200);
        assert_eq!(count(node, "SELECT count(*) FROM stock WHERE photo <> x'00ff'"), 0);
    }
    stop(nodes);
}

#[test]
fn a_delete_at_one_edge_wins_over_an_update_at_the_other() {
    let cluster = cluster();
    let mut nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    nodes[1].run(&["INSERT INTO stock (item, n) VALUES ('pen', 10), ('ink', 10)"]);
    assert_converge(&nodes, &TABLES);

    // Alone, the edges cannot know of each other.
    nodes.remove(0).stop();
    until("the edges to be alone", || {
        nodes.iter().all(|edge| edge.status()["peers"].as_array().unwrap().is_empty())
    });
    nodes[0].run(&["DELETE FROM stock WHERE item = 'pen'", "UPDATE stock SET n = n + 5"]);
    nodes[1].run(&["UPDATE stock SET n = n - 3, note = 'late'"]);
    let origin = cluster.serve("origin", &[&nodes[0], &nodes[1]]);
    nodes.insert(0, origin);
    assert_converge(&nodes, &TABLES);
    let expected = [Cell::Text("ink".into()), Cell::Integer(12), Cell::Text("late".into())];
    assert_eq!(rows_of(nodes[0].database(), "SELECT item, n, note FROM stock"), [expected]);
    let conflict = "SELECT rule, lost FROM littoral_conflicts";
    let expected = [Cell::Text("delete wins".into()), Cell::Text("late".into())];
    assert_eq!(rows_of(nodes[0].database(), conflict), [expected]);
    stop(nodes);
}

#[test]
fn entries_reach_a_node_that_is_linked_to_another_edge_only() {
    let cluster = cluster();
    let origin = cluster.serve("origin", &[]);
    let edge1 = cluster.serve("edge1", &[&origin]);
    let edge2 = cluster.serve("edge2", &[&edge1]);
    edge2.until_ready();
    origin.run(&["INSERT INTO orders (id, code) VALUES (1, 'a')"]);
    edge2.run(&["INSERT INTO stock (item, n) VALUES ('pen', 1)"]);
    let nodes = vec![origin, edge1, edge2];
    assert_converge(&nodes, &TABLES);
    for node in &nodes {
        assert_eq!(count(node, "SELECT count(*) FROM stock, orders"), 1, "{}", node.name);
    }
    stop(nodes);
}
