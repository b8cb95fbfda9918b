//! The schema changes at the origin, over HTTP, while edges serve; an edge says where to go.

use serde_json::{Value, json};

use crate::harness::{Cluster, Node, rows_of, until};

const SCHEMA: &str = "CREATE TABLE stock (
    item TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0
);";

fn run(node: &Node, sql: &str) -> Value {
    let request = json!([{ "type": "execute", "stmt": { "sql": sql } }, { "type": "close" }]);
    node.client().pipeline(&request).unwrap()[0].take()
}

fn transaction(node: &Node, statements: &[&str]) {
    let statements: Vec<Value> = statements.iter().map(|sql| json!({ "sql": sql })).collect();
    node.client().transaction(&statements).unwrap();
}

#[test]
fn the_schema_changes_at_the_origin_and_reaches_a_serving_edge() {
    let cluster = Cluster::init(SCHEMA, &["stock:writers=any,n=counter"], &["origin", "edge1"]);
    let origin = cluster.serve("origin", &[]);
    let edge = cluster.serve("edge1", &[&origin]);
    origin.until_ready();
    edge.until_ready();
    assert_eq!(run(&edge, "INSERT INTO stock VALUES('a', 3)")["type"], "ok");

    transaction(
        &origin,
        &[
            "ALTER TABLE stock ADD COLUMN color TEXT DEFAULT 'red'",
            "CREATE TABLE visits (page TEXT NOT NULL PRIMARY KEY, hits INTEGER NOT NULL DEFAULT 0)",
            "INSERT INTO visits VALUES('/', 1)",
            "SELECT littoral_policy('visits', 'eventual', \
             json('{\"writers\":\"any\",\"columns\":{\"hits\":\"counter\"}}'))",
        ],
    );
    until("the table to arrive", || {
        rows_of(edge.database(), "SELECT 1 FROM pragma_table_info('visits')").len() == 2
    });
    assert_eq!(run(&edge, "UPDATE visits SET hits = hits + 1")["type"], "ok");
    let color = &run(&edge, "SELECT color FROM stock")["response"]["result"]["rows"][0][0]["value"];
    assert_eq!(color, "red");
    until("the edge's write to arrive", || {
        rows_of(origin.database(), "SELECT 1 FROM visits WHERE hits = 2").len() == 1
    });

    for sql in
        ["CREATE TABLE t (a)", "DROP TABLE stock", "SELECT littoral_policy('stock', 'local')"]
    {
        let answer = run(&edge, sql);
        assert_eq!(answer["error"]["code"], "LITTORAL_SCHEMA_AT_ORIGIN", "{sql}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("run it there (node origin)"), "{message}");
    }
    let answer = run(&origin, "DROP TABLE stock");
    assert_eq!(answer["error"]["code"], "LITTORAL_NEEDS_FREEZE", "{answer}");
    // As a migration it waits until the edge has said that it knows.
    let migration = |node: &Node, sql: &str| {
        let script =
            format!("PRAGMA foreign_keys=OFF; BEGIN; {sql}; COMMIT; PRAGMA foreign_keys=ON");
        let request = json!([{ "type": "sequence", "sql": script }, { "type": "close" }]);
        node.client().pipeline(&request).unwrap()[0].take()
    };
    let answer = migration(&origin, "ALTER TABLE stock DROP COLUMN color");
    assert_eq!(answer["error"]["code"], "LITTORAL_SCHEMA_CHANGING", "{answer}");
    let columns = "SELECT 1 FROM pragma_table_info('stock')";
    until("the column to go", || rows_of(edge.database(), columns).len() == 2);
    until("the edge to write again", || run(&edge, "UPDATE stock SET n = n + 1")["type"] == "ok");
    let answer = migration(&origin, "CREATE TABLE more (k INTEGER PRIMARY KEY)");
    assert_eq!(answer["type"], "ok", "{answer}");
    until("the table to arrive", || {
        rows_of(edge.database(), "SELECT 1 FROM pragma_table_info('more')").len() == 1
    });
    let answer = run(&origin, "SELECT littoral_policy('stock', 'often')");
    assert_eq!(answer["error"]["code"], "LITTORAL_POLICY", "{answer}");
}
