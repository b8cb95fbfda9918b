//! What published clients send and were answered, recorded on the wire and replayed.
//!
//! `fixtures/clients.json` holds `@libsql/client` 0.18.0 over HTTP, `drizzle-orm` on top of it, and
//! `@tursodatabase/serverless`; they ran against a node with an empty database, in this order. Batons and
//! durations differ from run to run, everything else is equal.

use std::collections::HashMap;

use serde_json::Value;

use crate::harness::{Cluster, stop};

const RECORDED: &str = include_str!("fixtures/clients.json");

#[test]
fn recorded_clients_get_the_answers_that_they_got() {
    let cluster =
        Cluster::init("CREATE TABLE first (id INTEGER PRIMARY KEY, v);", &[], &["origin"]);
    let node = cluster.serve("origin", &[]);
    node.until_ready();
    let mut client = node.client();
    let mut batons: HashMap<String, Value> = HashMap::new();
    let recorded: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    assert!(recorded.len() > 50);
    for pair in &recorded {
        let mut request = pair["request"].clone();
        if let Some(baton) = request.get("baton").and_then(Value::as_str) {
            request["baton"] = batons[baton].clone();
        }
        let path = pair["path"].as_str().unwrap();
        let answer = client.send("POST", path, &request.to_string()).unwrap();
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
    stop(vec![node]);
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
