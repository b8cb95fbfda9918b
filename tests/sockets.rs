//! The libSQL remote protocol over WebSockets, as its clients use it: they wait for nothing.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
};

use serde_json::{Value, json};

use crate::harness::{Cluster, Node, PATIENCE, stop};

/// A WebSocket that knows as much of the protocol as this needs.
struct Socket {
    stream: BufReader<TcpStream>,
    protocol: String,
    requests: i32,
}

impl Socket {
    fn connect(node: &Node, protocols: &str) -> Self {
        let mut stream = TcpStream::connect(node.http).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        write!(
            stream,
            "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\
             sec-websocket-protocol: {protocols}\r\n\r\n"
        )
        .unwrap();
        let mut socket =
            Self { stream: BufReader::new(stream), protocol: String::new(), requests: 0 };
        let mut status = None;
        loop {
            let mut line = String::new();
            socket.stream.read_line(&mut line).unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(protocol) = line.strip_prefix("sec-websocket-protocol: ") {
                protocol.clone_into(&mut socket.protocol);
            }
            status.get_or_insert(line);
        }
        assert!(status.unwrap().starts_with("http/1.1 101 "));
        socket
    }

    fn send(&mut self, message: &Value) {
        let text = message.to_string();
        let mut frame = vec![0x81];
        let length = u16::try_from(text.len()).unwrap();
        match u8::try_from(length) {
            Ok(short) if short < 126 => frame.push(0x80 | short),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
        }
        // A mask of zeros changes nothing.
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        self.stream.get_mut().write_all(&frame).unwrap();
    }

    /// The next message; `None` if the server closes.
    fn receive(&mut self) -> Option<Value> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).unwrap();
        let mut length = u64::from(head[1]);
        if length >= 126 {
            let mut bytes = vec![0; if length == 126 { 2 } else { 8 }];
            self.stream.read_exact(&mut bytes).unwrap();
            length = bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
        }
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).unwrap();
        match head[0] {
            0x81 => Some(serde_json::from_slice(&payload).unwrap()),
            0x88 => None,
            other => panic!("a frame of kind {other:x}"),
        }
    }

    fn request(&mut self, request: &Value) -> i32 {
        self.requests += 1;
        self.send(&json!({ "type": "request", "request_id": self.requests, "request": request }));
        self.requests
    }

    /// The answer to a request, whatever comes before it.
    fn answer(&mut self, request: i32) -> Result<Value, String> {
        loop {
            let mut message = self.receive().unwrap();
            if message["request_id"] != json!(request) {
                continue;
            }
            return match message["type"].as_str() {
                Some("response_ok") => Ok(message["response"].take()),
                _ => Err(message["error"]["code"].as_str().unwrap().to_owned()),
            };
        }
    }

    fn ask(&mut self, request: &Value) -> Result<Value, String> {
        let request = self.request(request);
        self.answer(request)
    }

    fn run(&mut self, stream: i32, sql: &str) -> Result<Value, String> {
        let stmt = json!({ "sql": sql, "want_rows": true });
        let answer = self.ask(&json!({ "type": "execute", "stream_id": stream, "stmt": stmt }))?;
        Ok(answer["result"]["rows"][0][0]["value"].clone())
    }
}

fn node() -> (Cluster, Node) {
    let schema = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);";
    let cluster = Cluster::init(schema, &[], &["origin"]);
    let node = cluster.serve("origin", &[]);
    node.until_ready();
    (cluster, node)
}

fn greeted(node: &Node, protocols: &str) -> Socket {
    let mut socket = Socket::connect(node, protocols);
    socket.send(&json!({ "type": "hello", "jwt": null }));
    assert_eq!(socket.receive(), Some(json!({ "type": "hello_ok" })));
    socket
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
    let mut socket = greeted(&node, "hrana3");
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
    let mut socket = greeted(&node, "hrana3");
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
        let mut socket = greeted(&node, "hrana2");
        socket.request(&wrong);
        assert_eq!(socket.receive(), None, "{wrong}");
    }
    let mut socket = greeted(&node, "hrana2");
    assert_eq!(socket.run(9, COUNT), Err("NOT_OPEN".into()));
    socket.ask(&json!({ "type": "open_stream", "stream_id": 1 })).unwrap();
    socket.request(&json!({ "type": "execute", "stream_id": 1, "stmt": { "sql_id": 5 } }));
    assert_eq!(socket.receive(), None, "an sql_id that is not stored");
    stop(vec![node]);
}
