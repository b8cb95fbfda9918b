//! Spans that a node sends to a collector, with the feature `otlp`.

#![cfg(feature = "otlp")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// A collector that takes what it is sent.
fn collector() -> (String, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (told, batches) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (head, body) = message(&mut BufReader::new(stream.as_ref().unwrap()));
            assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
            assert!(head.to_lowercase().contains("content-type: application/json\r\n"), "{head}");
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            stream.unwrap().write_all(answer.as_bytes()).unwrap();
            if told.send(serde_json::from_str(&body).unwrap()).is_err() {
                return;
            }
        }
    });
    (address, batches)
}

/// Head and body of a request or an answer.
fn message(stream: &mut impl std::io::BufRead) -> (String, String) {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head += &line;
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

struct Served(Child, String);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(home: &Path, collector: &str) -> Served {
    fs::write(home.join("schema.sql"), "CREATE TABLE people(name TEXT PRIMARY KEY);").unwrap();
    let littoral = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_littoral"));
        command.current_dir(home);
        command
    };
    let init = ["init", "cluster", "--schema", "schema.sql", "--nodes", "origin"];
    assert!(littoral().args(init).args(["--listen-base", "0"]).status().unwrap().success());
    let mut child = littoral()
        .args(["serve", "--json", "--config", "cluster/origin/littoral.toml"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        .env("OTEL_SERVICE_NAME", "shop")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let announced: Value = serde_json::from_str(&line).unwrap();
    let http = announced["http"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    Served(child, http)
}

fn ask(address: &str, traceparent: &str, sql: &[&str]) -> Value {
    let requests: Vec<Value> =
        sql.iter().map(|sql| json!({ "type": "execute", "stmt": { "sql": sql } })).collect();
    let body = json!({ "requests": requests }).to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST /v3/pipeline HTTP/1.1\r\nhost: localhost\r\ntraceparent: {traceparent}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    serde_json::from_str(&message(&mut BufReader::new(stream)).1).unwrap()
}

/// What a cursor of one statement answers, as it comes.
fn open_cursor(address: &str, traceparent: &str, sql: &str) -> String {
    let body = json!({ "batch": { "steps": [{ "stmt": { "sql": sql } }] } }).to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST /v3/cursor HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         traceparent: {traceparent}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// How many spans are lost, as the metrics say.
fn dropped(address: &str) -> u64 {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let line = page.lines().find(|line| line.starts_with("littoral_spans_dropped_total ")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn attribute<'v>(span: &'v Value, key: &str) -> &'v Value {
    let attributes = span["attributes"].as_array().unwrap();
    attributes
        .iter()
        .find(|attribute| attribute["key"] == *key)
        .map_or(&Value::Null, |found| found["value"].as_object().unwrap().values().next().unwrap())
}

#[test]
fn a_collector_is_told_of_requests_and_of_what_they_ran_and_of_no_values() {
    let home = tempfile::tempdir().unwrap();
    let (address, batches) = collector();
    let node = serve(home.path(), &address);
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let insert = "INSERT INTO people VALUES ('SECRET')";
    let select = "SELECT * FROM people WHERE name = 'SECRET'";
    let answer = ask(&node.1, &format!("00-{trace}-{parent}-01"), &[insert, select, insert]);
    assert_eq!(answer["results"][2]["type"], "error");

    let mut spans = Vec::new();
    let is_request = |span: &Value| span["name"] == "POST /v3/pipeline";
    while !spans.iter().any(is_request) {
        let batch = batches.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(!batch.to_string().contains("SECRET"), "{batch}");
        let resource = &batch["resourceSpans"][0];
        assert_eq!(*attribute(&resource["resource"], "service.name"), "shop");
        assert_eq!(*attribute(&resource["resource"], "service.instance.id"), "origin");
        spans.extend(resource["scopeSpans"][0]["spans"].as_array().unwrap().clone());
    }
    let request = spans.iter().find(|span| is_request(span)).unwrap();
    assert_eq!((&request["traceId"], &request["parentSpanId"]), (&json!(trace), &json!(parent)));
    assert_eq!(
        (&request["kind"], attribute(request, "http.response.status_code")),
        (&json!(2), &json!("200"))
    );
    let of_request = |span: &&Value| span["parentSpanId"] == request["spanId"];
    let steps: Vec<&Value> = spans.iter().filter(of_request).collect();
    let places: Vec<&str> = steps.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(places, ["the writer", "a reader", "the writer"]);
    assert_eq!(*attribute(steps[0], "littoral.affected_rows"), "1");
    assert_eq!(*attribute(steps[1], "db.response.returned_rows"), "1");
    assert_eq!(steps[2]["status"], json!({ "code": 2, "message": "SQLITE_CONSTRAINT" }));
    let nanos = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u128>().unwrap();
    for step in steps {
        assert_eq!(step["traceId"], *trace);
        assert!(nanos(step, "startTimeUnixNano") <= nanos(step, "endTimeUnixNano"));
        assert!(nanos(step, "endTimeUnixNano") <= nanos(request, "endTimeUnixNano"));
    }
}

#[test]
fn what_a_cursor_runs_is_told_as_of_its_request() {
    let home = tempfile::tempdir().unwrap();
    let (address, batches) = collector();
    let node = serve(home.path(), &address);
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let answer =
        open_cursor(&node.1, &format!("00-{trace}-{parent}-01"), "SELECT count(*) FROM people");
    assert!(answer.contains("step_end"), "{answer}");
    let mut spans: Vec<Value> = Vec::new();
    while spans.len() < 2 {
        let batch = batches.recv_timeout(Duration::from_secs(60)).unwrap();
        let told = &batch["resourceSpans"][0]["scopeSpans"][0]["spans"];
        spans.extend(told.as_array().unwrap().clone());
    }
    let request = spans.iter().find(|span| span["name"] == "POST /v3/cursor").unwrap();
    let step = spans.iter().find(|span| span["name"] == "a reader").unwrap();
    assert_eq!((&step["traceId"], &step["parentSpanId"]), (&json!(trace), &request["spanId"]));
    assert_eq!(*attribute(step, "littoral.statements"), "1");
    assert_eq!(dropped(&node.1), 0);
}

#[test]
fn spans_that_nobody_takes_are_counted() {
    let home = tempfile::tempdir().unwrap();
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let node = serve(home.path(), &format!("http://{gone}"));
    let began = Instant::now();
    while dropped(&node.1) == 0 {
        assert!(began.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(50));
    }
}
