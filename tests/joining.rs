//! A node that was issued later joins running processes, through an edge, and is equal to them.

use serde_json::json;

use crate::harness::{Cluster, assert_converge, stop};

const SCHEMA: &str = "
    CREATE TABLE stock (item TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0, photo BLOB);
    CREATE TABLE orders (id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE);";
const TABLES: [&str; 2] =
    ["SELECT * FROM stock ORDER BY item", "SELECT id, code FROM orders ORDER BY id"];

#[test]
fn an_issued_node_joins_through_an_edge() {
    let cluster = Cluster::init(SCHEMA, &["stock:writers=any,n=counter"], &["origin", "edge1"]);
    let mut nodes = cluster.serve_star(&["origin", "edge1"]);
    for round in 0..80 {
        nodes[round % 2].run(&[&format!(
            "INSERT INTO stock VALUES ('item {round}', {round}, randomblob(30000))"
        )]);
    }
    nodes[0].run(&["INSERT INTO orders VALUES (1, 'first')"]);

    cluster.issue("edge2", &[]);
    let joined = cluster.serve("edge2", &[&nodes[1]]);
    joined.until_ready();
    // Readers are of the file that the snapshot has become.
    let select = json!({ "type": "execute", "stmt": { "sql": "SELECT littoral_id()" } });
    let results = joined.client().pipeline(&json!([select, { "type": "close" }])).unwrap();
    assert_eq!(results[0]["type"], "ok", "{results:?}");
    cluster.issue("reader", &["--read-only"]);
    let reader = cluster.serve("reader", &[&joined]);
    joined.run(&["UPDATE stock SET n = n + 1000 WHERE item = 'item 7'"]);
    nodes[0].run(&["UPDATE stock SET n = n + 100 WHERE item = 'item 7'"]);
    nodes.extend([joined, reader]);
    assert_converge(&nodes, &TABLES);

    // It is itself again after a restart, without another snapshot.
    let reader = nodes.pop().unwrap();
    nodes.pop().unwrap().kill();
    let again = cluster.serve("edge2", &[&nodes[1]]);
    again.until_ready();
    again.run(&["DELETE FROM stock WHERE item = 'item 8'"]);
    nodes.push(again);
    assert_converge(&nodes, &TABLES);
    let body = json!({ "sql": "DELETE FROM stock" }).to_string();
    let explained = reader.client().send("POST", "/policy/explain", &body).unwrap().json();
    assert_eq!(explained["runs_here"], false, "{explained}");
    assert!(explained["why"].as_str().unwrap().contains("read-only"), "{explained}");
    reader.stop();
    stop(nodes);
}
