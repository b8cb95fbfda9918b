//! What published clients send and were answered, recorded on the wire and replayed.
//!
//! `fixtures/clients.json` holds `@libsql/client` 0.18.0 over HTTP, `drizzle-orm` on top of it, and
//! `@tursodatabase/serverless`; they ran against a node with an empty database, in this order.
//! `fixtures/libsql-rust.json` holds the crate `libsql` 0.9.30 with its feature `remote`: at the origin, at an
//! edge on a table of any writer's, and there on one of the origin's. Batons and durations differ from run to
//! run, everything else is equal.

use std::collections::HashMap;

use serde_json::Value;

use crate::harness::{Cluster, Node, stop};

#[test]
fn recorded_clients_get_the_answers_that_they_got() {
    let schema = "CREATE TABLE first (id INTEGER PRIMARY KEY, v);";
    let cluster = Cluster::init(schema, &[], &["origin"]);
    let nodes = cluster.serve_star(&["origin"]);
    let recorded: Vec<Value> = serde_json::from_str(include_str!("fixtures/clients.json")).unwrap();
    assert!(recorded.len() > 50);
    replay(&recorded, |_| &nodes[0]);
    stop(nodes);
}

#[test]
fn the_rust_client_gets_the_answers_that_it_got_at_the_origin_and_at_an_edge() {
    let columns = "price REAL, data BLOB";
    let schema = format!(
        "CREATE TABLE atorigin (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, {columns});
         CREATE TABLE shared (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, {columns});
         CREATE TABLE everywhere (id INTEGER PRIMARY KEY, name TEXT NOT NULL, {columns});"
    );
    let names = ["origin", "edge1"];
    let cluster = Cluster::init(&schema, &["everywhere:writers=any,key=explicit"], &names);
    let nodes = cluster.serve_star(&names);
    let recorded: Vec<Value> =
        serde_json::from_str(include_str!("fixtures/libsql-rust.json")).unwrap();
    let at_edge = recorded.iter().filter(|pair| pair["at"] == "edge1").count();
    assert!(at_edge > 50 && recorded.len() - at_edge > 25);
    replay(&recorded, |pair| nodes.iter().find(|node| pair["at"] == *node.name).unwrap());
    stop(nodes);
}

fn replay<'n>(recorded: &[Value], node: impl Fn(&Value) -> &'n Node) {
    let mut batons: HashMap<String, Value> = HashMap::new();
    for pair in recorded {
        let mut request = pair["request"].clone();
        if let Some(baton) = request.get("baton").and_then(Value::as_str) {
            request["baton"] = batons[baton].clone();
        }
        let path = pair["path"].as_str().unwrap();
        let answer = node(pair).client().send("POST", path, &request.to_string()).unwrap();
        let what = format!("{} {path} {request}", pair["client"]);
        assert_eq!(pair["status"], answer.status, "{what}: {}", answer.body);
        let mut lines: Vec<Value> =
            answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.iter_mut().for_each(without_durations);
        let mut expected = pair["answer"].clone();
        if let Some(recorded) = expected[0].get_mut("baton") {
            let given = lines[0]["baton"].take();
            assert_eq!(recorded.is_null(), given.is_null(), "{what}");
            if let Value::String(recorded) = recorded.take() {
                batons.insert(recorded, given);
            }
        }
        assert_eq!(expected, Value::Array(lines), "{what}");
    }
}

fn without_durations(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("query_duration_ms");
            fields.values_mut().for_each(without_durations);
        }
        Value::Array(values) => values.iter_mut().for_each(without_durations),
        _ => {}
    }
}
