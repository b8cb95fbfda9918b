//! What published clients send and were answered, recorded on the wire and replayed.
//!
//! `fixtures/clients.json` holds `@libsql/client` 0.18.0 over HTTP, `drizzle-orm` on top of it, and
//! `@tursodatabase/serverless`; they ran against a node with an empty database, in this order. At an edge
//! they get the same answers, but for what changes the schema: that is the origin's.
//! `fixtures/libsql-rust.json` holds the crate `libsql` 0.9.30 with its feature `remote`, and
//! `fixtures/libsql-python.json` the package `libsql-client` 0.3.1, over HTTP and over a WebSocket: each at the
//! origin, at an edge on a table of any writer's, and there on one of the origin's. Batons and durations differ
//! from run to run, everything else is equal.

use std::collections::HashMap;

use serde_json::Value;

use crate::harness::{Cluster, Node, Socket, assert_converge, stop};

/// What the first recorded clients find.
const FIRST: &str = "CREATE TABLE first (id INTEGER PRIMARY KEY, v);";

#[test]
fn recorded_clients_get_the_answers_that_they_got() {
    let cluster = Cluster::init(FIRST, &[], &["origin"]);
    let nodes = cluster.serve_star(&["origin"]);
    let recorded = recorded(include_str!("fixtures/clients.json"));
    assert!(recorded.len() > 50);
    let mut replay = Replay::default();
    recorded.iter().for_each(|pair| replay.again(pair, &nodes[0]));
    stop(nodes);
}

#[test]
fn recorded_clients_get_the_same_answers_at_an_edge() {
    let names = ["origin", "edge1"];
    let cluster = Cluster::init(FIRST, &[], &names);
    let nodes = cluster.serve_star(&names);
    let mut replay = Replay::default();
    let mut at_origin = 0;
    for pair in recorded(include_str!("fixtures/clients.json")) {
        if pair["request"].to_string().contains("CREATE TABLE") {
            is_refused_as_a_change_of_the_schema(&pair, &nodes[1]);
            replay.again(&pair, &nodes[0]);
            assert_converge(&nodes, &[]);
            at_origin += 1;
        } else {
            replay.again(&pair, &nodes[1]);
        }
    }
    assert_eq!(at_origin, 3, "the migration, drizzle's and serverless's tables");
    assert_converge(&nodes, &["SELECT * FROM t_http", "SELECT * FROM users", "SELECT * FROM s"]);
    stop(nodes);
}

/// Sends what changes the schema to an edge: `migrate` there ends with its ROLLBACK.
fn is_refused_as_a_change_of_the_schema(pair: &Value, edge: &Node) {
    let answer = edge.client().send("POST", path(pair), &pair["request"].to_string()).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = answer.json();
    let batch = &answer["results"][0]["response"]["result"];
    let error = match pair["client"].as_str() {
        Some("http: migrate") => {
            // The words around it, its COMMIT, which did not run, and the ROLLBACK.
            let failed = batch["step_errors"].as_array().unwrap().iter();
            assert_eq!(failed.filter(|error| !error.is_null()).count(), 1, "{answer}");
            assert_eq!(batch["step_results"][3], Value::Null, "{answer}");
            assert!(batch["step_results"][4].is_object(), "{answer}");
            &batch["step_errors"][2]
        }
        _ => &answer["results"][0]["error"],
    };
    assert_eq!(error["code"], "LITTORAL_SCHEMA_AT_ORIGIN", "{answer}");
    assert!(error["message"].as_str().unwrap().contains("origin"), "{answer}");
}

#[test]
fn the_rust_client_gets_the_answers_that_it_got_at_the_origin_and_at_an_edge() {
    let recorded = recorded(include_str!("fixtures/libsql-rust.json"));
    let at_edge = recorded.iter().filter(|pair| pair["at"] == "edge1").count();
    assert!(at_edge > 50 && recorded.len() - at_edge > 25);
    replay_at_both(&recorded, &[""]);
}

#[test]
fn the_python_client_gets_the_answers_that_it_got_at_the_origin_and_at_an_edge() {
    let recorded = recorded(include_str!("fixtures/libsql-python.json"));
    let at_edge = recorded.iter().filter(|pair| pair["at"] == "edge1").count();
    assert!(at_edge > 45 && recorded.len() - at_edge > 20);
    let on_sockets = recorded.iter().filter_map(|pair| pair["exchanges"].as_array());
    assert!(on_sockets.map(Vec::len).sum::<usize>() > 500);
    replay_at_both(&recorded, &["_http", "_ws"]);
}

/// Replays what was recorded at an origin and an edge: with a table for each end of its name at the origin, one
/// of the origin's that the edge uses, and one that any node writes.
fn replay_at_both(recorded: &[Value], ends: &[&str]) {
    let columns = "price REAL, data BLOB";
    let schema = |end: &&str| {
        format!(
            "CREATE TABLE atorigin{end} (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, {columns});
             CREATE TABLE shared{end} (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, {columns});
             CREATE TABLE everywhere{end} (id INTEGER PRIMARY KEY, name TEXT NOT NULL, {columns});"
        )
    };
    let schema: String = ends.iter().map(schema).collect();
    let policies: Vec<String> =
        ends.iter().map(|end| format!("everywhere{end}:writers=any,key=explicit")).collect();
    let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
    let names = ["origin", "edge1"];
    let cluster = Cluster::init(&schema, &policies, &names);
    let nodes = cluster.serve_star(&names);
    let mut replay = Replay::default();
    for pair in recorded {
        let node = nodes.iter().find(|node| pair["at"] == *node.name).unwrap();
        match pair["exchanges"].as_array() {
            Some(exchanges) => replay_socket(exchanges, node, &pair["client"].to_string()),
            None => replay.again(pair, node),
        }
    }
    stop(nodes);
}

fn recorded(fixture: &str) -> Vec<Value> {
    serde_json::from_str(fixture).unwrap()
}

fn path(pair: &Value) -> &str {
    pair["path"].as_str().unwrap()
}

/// Sends again what a WebSocket carried, and is to be answered the same.
fn replay_socket(exchanges: &[Value], node: &Node, what: &str) {
    let mut socket = Socket::connect(node, "hrana2");
    assert_eq!(socket.protocol, "hrana2");
    for exchange in exchanges {
        match exchange.get("send") {
            Some(message) => socket.send(message),
            None => {
                let mut expected = exchange["receive"].clone();
                // Streams do not wait for each other.
                let mut given = socket.receive_of(&expected["request_id"]);
                without_durations(&mut expected);
                without_durations(&mut given);
                assert_eq!(expected, given, "{what}");
            }
        }
    }
}

/// Requests sent again, one after the other: the batons that were given then are others now.
#[derive(Default)]
struct Replay {
    batons: HashMap<String, Value>,
}

impl Replay {
    fn again(&mut self, pair: &Value, node: &Node) {
        let mut request = pair["request"].clone();
        if let Some(baton) = request.get("baton").and_then(Value::as_str) {
            request["baton"] = self.batons[baton].clone();
        }
        let path = path(pair);
        let answer = node.client().send("POST", path, &request.to_string()).unwrap();
        let what = format!("{} at {}: {path} {request}", pair["client"], node.name);
        assert_eq!(pair["status"], answer.status, "{what}: {}", answer.body);
        let mut lines: Vec<Value> =
            answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.iter_mut().for_each(without_durations);
        let mut expected = pair["answer"].clone();
        without_durations(&mut expected);
        if let Some(recorded) = expected[0].get_mut("baton") {
            let given = lines[0]["baton"].take();
            assert_eq!(recorded.is_null(), given.is_null(), "{what}");
            if let Value::String(recorded) = recorded.take() {
                self.batons.insert(recorded, given);
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
