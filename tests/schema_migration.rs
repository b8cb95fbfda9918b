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
    assert_eq!(answer["error"]["code"], "LITTORAL_SCHEMA_ACCEPTED", "{answer}");
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

#[test]
fn the_columns_of_an_answer_are_those_that_the_table_has_now() {
    let schema = "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT)";
    let cluster = Cluster::init(schema, &[], &["origin", "edge1"]);
    let origin = cluster.serve("origin", &[]);
    let edge = cluster.serve("edge1", &[&origin]);
    origin.until_ready();
    edge.until_ready();
    assert_eq!(run(&origin, "INSERT INTO item VALUES(1, 'bag')")["type"], "ok");
    let read = |node: &Node| {
        let result = run(node, "SELECT * FROM item")["response"]["result"].take();
        let names: Vec<Value> =
            result["cols"].as_array().unwrap().iter().map(|col| col["name"].clone()).collect();
        let values: Vec<Value> = result["rows"][0]
            .as_array()
            .unwrap()
            .iter()
            .map(|cell| cell.get("value").cloned().unwrap_or_default())
            .collect();
        (json!(names), json!(values))
    };
    let stream = |node: &Node| {
        let batch = json!({ "steps": [{ "stmt": { "sql": "SELECT * FROM item" } }] });
        let body = json!({ "batch": batch }).to_string();
        let answer = node.client().send("POST", "/v3/cursor", &body).unwrap();
        let mut entries =
            answer.body.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let begun = entries.find(|entry| entry["type"] == "step_begin").unwrap();
        begun["cols"].as_array().unwrap().len()
    };
    for node in [&origin, &edge] {
        until("the row", || {
            run(node, "SELECT * FROM item")["response"]["result"]["rows"][0] != Value::Null
        });
        assert_eq!(read(node), (json!(["id", "name"]), json!(["1", "bag"])));
        assert_eq!(stream(node), 2);
    }
    let changes = [
        (
            "ALTER TABLE item ADD COLUMN n DEFAULT 7",
            json!(["id", "name", "n"]),
            json!(["1", "bag", "7"]),
        ),
        (
            "ALTER TABLE item RENAME COLUMN name TO title",
            json!(["id", "title", "n"]),
            json!(["1", "bag", "7"]),
        ),
        ("ALTER TABLE item DROP COLUMN title", json!(["id", "n"]), json!(["1", "7"])),
    ];
    for (change, names, values) in changes {
        assert_eq!(run(&origin, change)["type"], "ok", "{change}");
        let version =
            |node: &Node| rows_of(node.database(), "SELECT name FROM pragma_table_info('item')");
        until("the change to arrive", || version(&edge) == version(&origin));
        for node in [&origin, &edge] {
            assert_eq!(stream(node), names.as_array().unwrap().len(), "{change}");
            assert_eq!(read(node), (names.clone(), values.clone()), "{change}");
        }
        let written = run(&origin, "UPDATE item SET id = id RETURNING *");
        assert_eq!(
            written["response"]["result"]["cols"].as_array().unwrap().len(),
            names.as_array().unwrap().len()
        );
    }
}
