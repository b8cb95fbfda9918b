//! The libSQL remote protocol over WebSockets, as its clients use it: they wait for nothing.

use littoral::testing::fuzz::{Fuzz, cases};
use serde_json::{Value, json};

use crate::harness::{Cluster, Node, Socket, stop};

fn node() -> (Cluster, Node) {
    let schema = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);";
    let cluster = Cluster::init(schema, &[], &["origin"]);
    let node = cluster.serve("origin", &[]);
    node.until_ready();
    (cluster, node)
}

const COUNT: &str = "SELECT count(*) FROM items";

#[test]
fn many_streams_run_on_one_socket_and_each_in_order() {
    let (_cluster, node) = node();
    let mut socket = Socket::connect(&node, "hrana2, hrana1");
    assert_eq!(socket.protocol, "hrana2");
    // Nothing is waited for.
    socket.send(&json!({ "type": "hello", "jwt": null }));
    socket.request(
        &json!({ "type": "store_sql", "sql_id": 1, "sql": "INSERT INTO items VALUES (?, ?)" }),
    );
    let mut asked = Vec::new();
    for stream in 0..10 {
        socket.request(&json!({ "type": "open_stream", "stream_id": stream }));
        let args = json!([{ "type": "integer", "value": stream.to_string() },
            { "type": "text", "value": format!("item {stream}") }]);
        let stmt = json!({ "sql_id": 1, "args": args, "want_rows": false });
        asked
            .push(socket.request(&json!({ "type": "execute", "stream_id": stream, "stmt": stmt })));
        socket.request(&json!({ "type": "close_stream", "stream_id": stream }));
    }
    let mut answers = 0;
    while answers < 31 {
        let message = socket.receive().unwrap();
        if message["type"] != "hello_ok" {
            assert_eq!(message["type"], "response_ok", "{message}");
            answers += 1;
        }
    }
    assert_eq!(asked.len(), 10);
    assert_eq!(node.run(&[COUNT])["rows"][0][0]["value"], "10");
    stop(vec![node]);
}

#[test]
fn transactions_end_with_their_stream_and_with_the_socket() {
    let (_cluster, node) = node();
    let mut socket = Socket::greeted(&node, "hrana3");
    socket.ask(&json!({ "type": "open_stream", "stream_id": 1 })).unwrap();
    socket.run(1, "BEGIN IMMEDIATE").unwrap();
    socket.run(1, "INSERT INTO items VALUES (1, 'a')").unwrap();
    assert_eq!(socket.run(1, "INSERT INTO items VALUES (1, 'a')"), Err("SQLITE_CONSTRAINT".into()));
    let asked = json!({ "type": "get_autocommit", "stream_id": 1 });
    assert_eq!(socket.ask(&asked).unwrap()["is_autocommit"], false);
    socket.run(1, "COMMIT").unwrap();
    assert_eq!(socket.ask(&asked).unwrap()["is_autocommit"], true);
    for sql in ["BEGIN IMMEDIATE", "DELETE FROM items"] {
        socket.run(1, sql).unwrap();
    }
    socket.ask(&json!({ "type": "close_stream", "stream_id": 1 })).unwrap();
    socket.ask(&json!({ "type": "open_stream", "stream_id": 2 })).unwrap();
    for sql in ["BEGIN IMMEDIATE", "DELETE FROM items"] {
        socket.run(2, sql).unwrap();
    }
    drop(socket);
    assert_eq!(
        node.run(&["INSERT INTO items VALUES (2, 'b') RETURNING id"])["rows"][0][0]["value"],
        "2"
    );
    assert_eq!(node.run(&[COUNT])["rows"][0][0]["value"], "2");
    stop(vec![node]);
}

#[test]
fn a_cursor_is_fetched_piece_by_piece() {
    let (_cluster, node) = node();
    let mut socket = Socket::greeted(&node, "hrana3");
    socket.ask(&json!({ "type": "open_stream", "stream_id": 1 })).unwrap();
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) SELECT i FROM n";
    let open = |cursor: i32, sql: &str| {
        json!({ "type": "open_cursor", "stream_id": 1, "cursor_id": cursor,
            "batch": { "steps": [{ "stmt": { "sql": sql } }] } })
    };
    socket.ask(&open(1, many)).unwrap();
    let mut rows = 0;
    loop {
        let fetch = json!({ "type": "fetch_cursor", "cursor_id": 1, "max_count": 300 });
        let answer = socket.ask(&fetch).unwrap();
        let entries = answer["entries"].as_array().unwrap();
        assert!(entries.len() <= 300);
        rows += entries.iter().filter(|entry| entry["type"] == "row").count();
        if answer["done"] == json!(true) {
            break;
        }
    }
    assert_eq!(rows, 5000);
    socket.ask(&json!({ "type": "close_cursor", "cursor_id": 1 })).unwrap();
    // One that is closed half way lets its stream go on.
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
    socket.ask(&open(2, endless)).unwrap();
    socket.ask(&json!({ "type": "fetch_cursor", "cursor_id": 2, "max_count": 10 })).unwrap();
    socket.ask(&json!({ "type": "close_cursor", "cursor_id": 2 })).unwrap();
    assert_eq!(socket.run(1, COUNT), Ok(json!("0")));
    stop(vec![node]);
}

#[test]
fn what_breaks_the_protocol_closes_the_socket() {
    let (_cluster, node) = node();
    let mut socket = Socket::connect(&node, "hrana2");
    socket.request(&json!({ "type": "open_stream", "stream_id": 1 }));
    assert_eq!(socket.receive(), None, "no hello");
    for wrong in [json!({ "type": "open_stream" }), json!({ "type": "nonsense" })] {
        let mut socket = Socket::greeted(&node, "hrana2");
        socket.request(&wrong);
        assert_eq!(socket.receive(), None, "{wrong}");
    }
    let mut socket = Socket::greeted(&node, "hrana2");
    assert_eq!(socket.run(9, COUNT), Err("NOT_OPEN".into()));
    socket.ask(&json!({ "type": "open_stream", "stream_id": 1 })).unwrap();
    socket.request(&json!({ "type": "execute", "stream_id": 1, "stmt": { "sql_id": 5 } }));
    assert_eq!(socket.receive(), None, "an sql_id that is not stored");
    stop(vec![node]);
}

#[test]
fn fuzz_a_damaged_message_is_answered_or_closes_its_socket_and_no_other() {
    let (_cluster, node) = node();
    let recorded: Vec<Value> = serde_json::from_str(include_str!("fixtures/shop-ws.json")).unwrap();
    let exchanges = recorded.iter().filter_map(|step| step["exchanges"].as_array()).flatten();
    let mut corpus: Vec<String> = exchanges
        .filter(|exchange| exchange["send"].is_object())
        .map(|exchange| exchange["send"].to_string().replace("products", "items"))
        .collect();
    let cursor = json!({ "type": "request", "request_id": 1, "request":
        { "type": "open_cursor", "stream_id": 0, "cursor_id": 1,
            "batch": { "steps": [{ "stmt": { "sql": "SELECT 1" } }] } } });
    corpus.push(cursor.to_string());
    corpus.extend(
        [
            json!({ "type": "fetch_cursor", "cursor_id": 1, "max_count": 10 }),
            json!({ "type": "close_cursor", "cursor_id": 1 }),
            json!({ "type": "close_sql", "sql_id": 0 }),
            json!({ "type": "describe", "stream_id": 0, "sql": "SELECT 1" }),
            json!({ "type": "sequence", "stream_id": 0, "sql": "SELECT 1; SELECT 2" }),
            json!({ "type": "get_autocommit", "stream_id": 0 }),
        ]
        .map(|request| {
            json!({ "type": "request", "request_id": 1, "request": request }).to_string()
        }),
    );
    let bytes: Vec<Vec<u8>> = corpus.iter().map(|text| text.clone().into_bytes()).collect();
    let words =
        ["request", "hello", "stream_id", "-1", "1e999", "null", "[", "{", "SELECT", ";", "é"];
    let mut calm = Socket::greeted(&node, "hrana3");
    calm.ask(&json!({ "type": "open_stream", "stream_id": 1 })).unwrap();
    let mut fuzz = Fuzz::new(13);
    let (mut answered, mut closed) = (0, 0);
    let mut socket = None;
    for case in 0..cases(1000) {
        if case % 50 == 0 {
            socket = None;
        }
        let message = match fuzz.below(3) {
            0 => String::from_utf8_lossy(&fuzz.bytes(&bytes)).into_owned(),
            _ => fuzz.text(&corpus, &words),
        };
        if fuzz.below(8) == 0 {
            // The frame, too.
            let frame = fuzz.bytes(&[Socket::frame(&message)]);
            Socket::connect(&node, "hrana2").send_and_hang_up(&frame);
            continue;
        }
        let open = socket.get_or_insert_with(|| Socket::greeted(&node, "hrana3"));
        open.send_text(&message);
        // What is asked behind it is answered, unless the socket is closed.
        if open.is_alive() {
            answered += 1;
        } else {
            closed += 1;
            socket = None;
        }
    }
    assert!(answered > 10 && closed > 10, "{answered} were answered, {closed} closed the socket");
    drop(socket);
    assert!(calm.run(1, COUNT).is_ok());
    assert_eq!(
        calm.run(1, "INSERT INTO items VALUES (-77, 'calm') RETURNING id"),
        Ok(json!("-77"))
    );
    drop(calm);
    stop(vec![node]);
}
