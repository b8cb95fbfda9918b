//! Large answers, and many requests at once, at the origin and at an edge.

use std::{collections::BTreeSet, sync::Barrier, thread};

use serde_json::{Value, json};

use crate::harness::{Cluster, Node, Socket, assert_converge, stop};

const SCHEMA: &str = "
    CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE tally (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
    CREATE TABLE hits (page TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL DEFAULT 0);";
const NAMES: [&str; 2] = ["origin", "edge1"];
const ROWS: usize = 50_000;
const AT_ONCE: usize = 50;

fn serve() -> (Cluster, Vec<Node>) {
    let cluster = Cluster::init(SCHEMA, &["hits:writers=any,n=counter"], &NAMES);
    let nodes = cluster.serve_star(&NAMES);
    nodes[0].run(&["INSERT INTO tally VALUES (1, 0)", "INSERT INTO hits(page) VALUES('home')"]);
    (cluster, nodes)
}

fn integer(value: usize) -> Value {
    json!({ "type": "integer", "value": value.to_string() })
}

fn name_of(id: usize) -> Value {
    json!({ "type": "text", "value": format!("item {id}") })
}

/// The value of the only row and column of a result.
fn only(result: &Value) -> &Value {
    assert_eq!(result["rows"].as_array().map(Vec::len), Some(1), "{result}");
    &result["rows"][0][0]
}

#[test]
fn an_answer_may_have_50_000_rows() {
    let (_cluster, nodes) = serve();
    let all = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO item SELECT i, 'item ' || i FROM n"
    );
    nodes[0].run(&[&all]);
    assert_converge(&nodes, &[]);
    let stmt = json!({ "sql": "SELECT id, name FROM item ORDER BY id", "want_rows": true });
    let check = |rows: &Value, what: &str| {
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), ROWS, "{what}");
        for (row, id) in rows.iter().zip(1..) {
            assert_eq!(*row, json!([integer(id), name_of(id)]), "{what}");
        }
    };
    for node in &nodes {
        let execute = json!({ "type": "execute", "stmt": stmt });
        let body = json!({ "requests": [execute, { "type": "close" }] }).to_string();
        for path in ["/v2/pipeline", "/v3/pipeline"] {
            let answer = node.client().send("POST", path, &body).unwrap();
            assert_eq!(answer.status, 200, "{}", answer.body);
            let answer = answer.json();
            let rows = &answer["results"][0]["response"]["result"]["rows"];
            check(rows, &format!("{path} at {}", node.name));
        }
        let mut socket = Socket::greeted(node, "hrana3");
        socket.ask(&json!({ "type": "open_stream", "stream_id": 1 })).unwrap();
        let answer = socket.ask(&json!({ "type": "execute", "stream_id": 1, "stmt": stmt }));
        check(&answer.unwrap()["result"]["rows"], &format!("a socket at {}", node.name));
    }
    stop(nodes);
}

#[test]
fn fifty_connections_at_once_are_each_answered() {
    let (_cluster, nodes) = serve();
    for (round, node) in (1..).zip(&nodes) {
        let first = round * 1000;
        let barrier = Barrier::new(AT_ONCE);
        thread::scope(|threads| {
            for id in first..first + AT_ONCE {
                let barrier = &barrier;
                threads.spawn(move || {
                    let mut client = node.client();
                    barrier.wait();
                    // At the origin, wherever it is asked.
                    let insert = "INSERT INTO item VALUES (?, ?) RETURNING id";
                    let insert = json!({ "sql": insert, "args": [integer(id), name_of(id)] });
                    let count = json!({ "sql": "UPDATE tally SET n = n + 1" });
                    let results = client.transaction(&[insert, count]).unwrap();
                    assert_eq!(only(&results[0]), &integer(id));
                    // Where it is asked.
                    let select = json!({ "sql": "SELECT name FROM item WHERE id = ?",
                        "args": [integer(id)] });
                    let hit = json!({ "sql": "UPDATE hits SET n = n + 1" });
                    let mut results = Vec::new();
                    for stmt in [select, hit] {
                        let execute = json!({ "type": "execute", "stmt": stmt });
                        results.extend(client.pipeline(&json!([execute])).unwrap());
                    }
                    assert!(results.iter().all(|result| result["type"] == "ok"), "{results:?}");
                    assert_eq!(only(&results[0]["response"]["result"]), &name_of(id));
                });
            }
        });
        let all = integer(round * AT_ONCE);
        assert_eq!(only(&node.run(&["SELECT n FROM tally"])), &all, "at {}", node.name);
        assert_eq!(only(&node.run(&["SELECT n FROM hits"])), &all, "at {}", node.name);
    }
    assert_converge(&nodes, &["SELECT * FROM item", "SELECT * FROM tally", "SELECT * FROM hits"]);
    stop(nodes);
}

#[test]
fn fifty_streams_of_one_socket_at_once_are_each_answered() {
    let (_cluster, nodes) = serve();
    for (round, node) in (1..).zip(&nodes) {
        let first = round * 1000;
        let mut socket = Socket::greeted(node, "hrana3");
        for stream in 0..AT_ONCE {
            socket.request(&json!({ "type": "open_stream", "stream_id": stream }));
        }
        let mut asked = Vec::new();
        for stream in 0..AT_ONCE {
            let id = first + stream;
            for (sql, args) in [
                ("INSERT INTO item VALUES (?, ?) RETURNING name", vec![integer(id), name_of(id)]),
                ("UPDATE tally SET n = n + 1 RETURNING n", vec![]),
                ("SELECT name FROM item WHERE id = ?", vec![integer(id)]),
            ] {
                let stmt = json!({ "sql": sql, "args": args, "want_rows": true });
                let execute = json!({ "type": "execute", "stream_id": stream, "stmt": stmt });
                asked.push((id, sql, socket.request(&execute)));
            }
        }
        let mut counted = BTreeSet::new();
        for (id, sql, request) in asked {
            let answer = socket.receive_of(&json!(request));
            assert_eq!(answer["type"], "response_ok", "{sql}: {answer}");
            let value = only(&answer["response"]["result"]);
            if sql.starts_with("UPDATE") {
                counted.insert(value["value"].as_str().unwrap().parse::<usize>().unwrap());
            } else {
                assert_eq!(value, &name_of(id), "{sql}");
            }
        }
        // Each increment was another one.
        assert!(counted.into_iter().eq((round - 1) * AT_ONCE + 1..=round * AT_ONCE));
    }
    assert_converge(&nodes, &["SELECT * FROM item", "SELECT * FROM tally"]);
    stop(nodes);
}
