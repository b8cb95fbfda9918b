//! Streams that outlive a request: interactive transactions, batons and cursors over HTTP.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Client, Cluster, Node, stop};

const SCHEMA: &str = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);";

fn node() -> (Cluster, Node) {
    let cluster = Cluster::init(SCHEMA, &[], &["origin"]);
    let node = cluster.serve("origin", &[]);
    node.until_ready();
    (cluster, node)
}

/// A client's stream.
struct Stream {
    client: Client,
    baton: Value,
}

impl Stream {
    fn of(node: &Node) -> Self {
        Self { client: node.client(), baton: Value::Null }
    }

    /// Sends requests; gives the results.
    fn send(&mut self, requests: &Value) -> Vec<Value> {
        let body = json!({ "baton": self.baton, "requests": requests });
        let answer = self.client.send("POST", "/v3/pipeline", &body.to_string()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        let mut answer = answer.json();
        self.baton = answer["baton"].take();
        serde_json::from_value(answer["results"].take()).unwrap()
    }

    /// Runs one statement; gives the first cell, or the code of the error.
    fn run(&mut self, sql: &str) -> Result<Value, String> {
        let results = self.send(&json!([{ "type": "execute", "stmt": { "sql": sql } }]));
        read(&results[0])
    }

    fn is_in_transaction(&mut self) -> bool {
        let results = self.send(&json!([{ "type": "get_autocommit" }]));
        results[0]["response"]["is_autocommit"] == json!(false)
    }

    fn close(&mut self) {
        self.send(&json!([{ "type": "close" }]));
        assert_eq!(self.baton, Value::Null);
    }
}

fn read(result: &Value) -> Result<Value, String> {
    match result["error"]["code"].as_str() {
        Some(code) => Err(code.to_owned()),
        None => Ok(result["response"]["result"]["rows"][0][0]["value"].clone()),
    }
}

fn failed(code: &str) -> Result<Value, String> {
    Err(code.to_owned())
}

const COUNT: &str = "SELECT count(*) FROM items";

#[test]
fn a_transaction_spans_requests() {
    let (_cluster, node) = node();
    let (mut writer, mut other) = (Stream::of(&node), Stream::of(&node));
    // As client.transaction("write") begins: nothing is sent before the first statement.
    let results = writer.send(&json!([{ "type": "batch", "batch": { "steps": [
        { "stmt": { "sql": "BEGIN IMMEDIATE" } },
        { "condition": { "type": "ok", "step": 0 }, "stmt": { "sql": "INSERT INTO items VALUES (1, 'a')" } },
    ] } }]));
    let batch = &results[0]["response"]["result"];
    assert_eq!(batch["step_results"][1]["affected_row_count"], 1);
    assert_eq!(batch["step_results"][1]["last_insert_rowid"], "1");
    assert!(writer.baton.is_string() && writer.is_in_transaction());
    assert_eq!(writer.run(COUNT), Ok(json!("1")));
    assert_eq!(other.run(COUNT), Ok(json!("0")), "nobody else sees it");
    assert_eq!(other.baton, Value::Null, "there is nothing to come back to");
    // A failed statement does not end it, and savepoints nest.
    assert_eq!(writer.run("INSERT INTO items VALUES (2, 'a')"), failed("SQLITE_CONSTRAINT"));
    for sql in ["SAVEPOINT s", "INSERT INTO items VALUES (3, 'c')", "ROLLBACK TO s", "RELEASE s"] {
        writer.run(sql).unwrap();
    }
    assert_eq!(writer.run("BEGIN"), failed("SQLITE_ERROR"));
    writer.run("COMMIT").unwrap();
    assert_eq!(writer.baton, Value::Null);
    assert_eq!(other.run("SELECT group_concat(id) FROM items"), Ok(json!("1")));

    writer.run("BEGIN IMMEDIATE").unwrap();
    writer.run("DELETE FROM items").unwrap();
    writer.run("ROLLBACK").unwrap();
    writer.run("BEGIN IMMEDIATE").unwrap();
    writer.run("DELETE FROM items").unwrap();
    writer.close();
    assert_eq!(other.run(COUNT), Ok(json!("1")), "rolled back by a word, and by the close");
    stop(vec![node]);
}

#[test]
fn a_baton_is_used_once_and_belongs_to_one_stream() {
    let (_cluster, node) = node();
    let mut stream = Stream::of(&node);
    stream.run("BEGIN IMMEDIATE").unwrap();
    let first = stream.baton.clone();
    stream.run("INSERT INTO items VALUES (1, 'a')").unwrap();
    let wrong = [first, json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), json!("")];
    for baton in wrong {
        let body = json!({ "baton": baton, "requests": [{ "type": "close" }] });
        let answer = node.client().send("POST", "/v2/pipeline", &body.to_string()).unwrap();
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("STREAM_EXPIRED")));
    }
    stream.run("COMMIT").unwrap();
    // Stored statements keep a stream too.
    stream.send(&json!([{ "type": "store_sql", "sql_id": 7, "sql": COUNT }]));
    assert!(stream.baton.is_string() && !stream.is_in_transaction());
    let stored = stream.send(&json!([{ "type": "execute", "stmt": { "sql_id": 7 } },
        { "type": "close_sql", "sql_id": 7 }]));
    assert_eq!(read(&stored[0]), Ok(json!("1")));
    assert_eq!(stream.baton, Value::Null);
    stop(vec![node]);
}

#[test]
fn writers_queue_and_none_is_told_that_the_database_is_busy() {
    let (_cluster, node) = node();
    node.run(&["INSERT INTO items VALUES (1, '0')"]);
    let streams: Vec<Stream> = (0..8).map(|_| Stream::of(&node)).collect();
    let writers: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            thread::spawn(move || {
                for _ in 0..5 {
                    stream.run("BEGIN IMMEDIATE").unwrap();
                    let n = stream.run("SELECT name + 1 FROM items").unwrap();
                    let n = n.as_str().unwrap();
                    stream.run(&format!("UPDATE items SET name = '{n}'")).unwrap();
                    stream.run("COMMIT").unwrap();
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert_eq!(node.run(&["SELECT name FROM items"])["rows"][0][0]["value"], "40");
    stop(vec![node]);
}

#[test]
fn a_deferred_transaction_reads_one_snapshot_and_writes_only_on_top_of_it() {
    let (_cluster, node) = node();
    let (mut stream, mut other) = (Stream::of(&node), Stream::of(&node));
    stream.run("BEGIN").unwrap();
    assert_eq!(stream.run(COUNT), Ok(json!("0")));
    other.run("INSERT INTO items VALUES (1, 'a')").unwrap();
    assert_eq!(stream.run(COUNT), Ok(json!("0")), "its snapshot");
    assert_eq!(stream.run("INSERT INTO items VALUES (2, 'b')"), failed("SQLITE_BUSY"));
    assert_eq!(stream.run(COUNT), failed("SQLITE_BUSY"), "nothing slips into autocommit");
    stream.run("ROLLBACK").unwrap();
    stream.run("BEGIN DEFERRED").unwrap();
    assert_eq!(stream.run(COUNT), Ok(json!("1")));
    stream.run("INSERT INTO items VALUES (2, 'b')").unwrap();
    assert_eq!(stream.run(COUNT), Ok(json!("2")));
    stream.run("COMMIT").unwrap();
    for begin in ["BEGIN READONLY", "BEGIN TRANSACTION READONLY"] {
        stream.run(begin).unwrap();
        assert_eq!(stream.run("DELETE FROM items"), failed("SQLITE_READONLY"));
        assert_eq!(stream.run(COUNT), Ok(json!("2")));
        assert_eq!(stream.run("DELETE FROM items"), failed("SQLITE_READONLY"));
        stream.run("COMMIT").unwrap();
    }
    stop(vec![node]);
}

#[test]
fn who_thinks_for_too_long_loses_the_transaction_and_nobody_else_waits_for_ever() {
    let (_cluster, node) = node();
    let (mut stream, mut other) = (Stream::of(&node), Stream::of(&node));
    stream.run("BEGIN IMMEDIATE").unwrap();
    stream.run("INSERT INTO items VALUES (1, 'a')").unwrap();
    let began = Instant::now();
    other.run("INSERT INTO items VALUES (2, 'b')").unwrap();
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
    for sql in ["INSERT INTO items VALUES (3, 'c')", COUNT] {
        assert_eq!(stream.run(sql), failed("TRANSACTION_TIMEOUT"));
    }
    assert!(stream.is_in_transaction(), "until it is told");
    stream.run("ROLLBACK").unwrap();
    assert_eq!(stream.run("SELECT group_concat(id) FROM items"), Ok(json!("2")));
    stream.run("BEGIN IMMEDIATE").unwrap();
    // It takes all the time there is by itself.
    let slow =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    assert_eq!(stream.run(slow), failed("TRANSACTION_TIMEOUT"));
    assert_eq!(stream.run("COMMIT"), failed("TRANSACTION_TIMEOUT"));
    assert_eq!(stream.run(COUNT), Ok(json!("1")));
    stop(vec![node]);
}

fn lines(body: &str) -> Vec<Value> {
    body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_cursor_sends_every_row_and_its_stream_goes_on() {
    let (_cluster, node) = node();
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
        SELECT i, 'row ' || i AS t FROM n";
    let body = json!({ "batch": { "steps": [
        { "stmt": { "sql": "INSERT INTO items VALUES (5, 'e') RETURNING id" } },
        { "stmt": { "sql": many } },
        { "stmt": { "sql": "SELECT nonsense" } },
        { "condition": { "type": "ok", "step": 2 }, "stmt": { "sql": "SELECT 1" } },
        { "condition": { "type": "is_autocommit" }, "stmt": { "sql": "SELECT 1", "want_rows": false } },
    ] } });
    let answer = node.client().send("POST", "/v3/cursor", &body.to_string()).unwrap();
    assert_eq!(answer.status, 200);
    let lines_ = lines(&answer.body);
    assert_eq!(lines_[0], json!({ "baton": null, "base_url": null }));
    let kinds: Vec<&str> = lines_[1..]
        .iter()
        .map(|line| line["type"].as_str().unwrap())
        .filter(|kind| *kind != "row")
        .collect();
    assert_eq!(
        kinds,
        [
            "step_begin",
            "step_end",
            "step_begin",
            "step_end",
            "step_error",
            "step_begin",
            "step_end"
        ]
    );
    assert_eq!(lines_[3]["last_insert_rowid"], "5");
    let rows: Vec<&Value> = lines_.iter().filter(|line| line["type"] == "row").collect();
    assert_eq!(rows.len(), 50_001);
    assert_eq!(rows[50_000]["row"][1]["value"], "row 50000");

    // A transaction begun by a cursor goes on in a pipeline.
    let mut stream = Stream::of(&node);
    let body = json!({ "baton": null, "batch": { "steps": [
        { "stmt": { "sql": "BEGIN IMMEDIATE" } }, { "stmt": { "sql": "DELETE FROM items" } },
        { "condition": { "type": "is_autocommit" }, "stmt": { "sql": "SELECT 1" } },
    ] } });
    let answer = stream.client.send("POST", "/v3/cursor", &body.to_string()).unwrap();
    let lines_ = lines(&answer.body);
    assert_eq!(lines_.len(), 5, "{lines_:?}");
    stream.baton = lines_[0]["baton"].clone();
    assert!(stream.is_in_transaction());
    stream.run("ROLLBACK").unwrap();
    assert_eq!(stream.run(COUNT), Ok(json!("1")));
    stop(vec![node]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_cursor_that_is_not_read_takes_no_memory_and_ends_with_its_client() {
    let (_cluster, node) = node();
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
        SELECT i, hex(randomblob(500)) FROM n";
    let body = json!({ "batch": { "steps": [
        { "stmt": { "sql": "BEGIN" } }, { "stmt": { "sql": endless } },
    ] } });
    let mut client = node.client();
    let head = client.begin("POST", "/v3/cursor", &body.to_string()).unwrap();
    let baton = head["baton"].clone();
    thread::sleep(Duration::from_millis(500));
    let memory = node.resident_kib();
    thread::sleep(Duration::from_millis(500));
    assert!(node.resident_kib() < memory + 4096, "{memory} KiB and more");
    drop(client);
    let mut stream = Stream { client: node.client(), baton };
    assert!(stream.is_in_transaction(), "its stream can be used again");
    stream.close();
    stop(vec![node]);
}
