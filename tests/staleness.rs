//! Reads of rows that are too old, or whose node cannot be asked: where they are answered, and what the
//! answer says of it.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Answer, Cluster, Node, stop, until};

const BOOKMARK: &str = "x-littoral-bookmark";
const READ_AT: &str = "x-littoral-read-at";
const STALE: &str = "x-littoral-stale";

fn send(node: &Node, request: &Value, bookmark: Option<&str>) -> Answer {
    let body = json!({ "requests": [request, { "type": "close" }] }).to_string();
    let headers: Vec<(&str, &str)> =
        bookmark.iter().map(|bookmark| (BOOKMARK, *bookmark)).collect();
    let answer = node.client().send_with("POST", "/v2/pipeline", &headers, &body).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

fn ask(node: &Node, sql: &str) -> Answer {
    send(node, &json!({ "type": "execute", "stmt": { "sql": sql } }), None)
}

/// A transaction that only reads, in one request.
fn read_only(sql: &str) -> Value {
    transaction(&["BEGIN READONLY", sql, "COMMIT"])
}

fn transaction(statements: &[&str]) -> Value {
    let steps: Vec<Value> =
        statements.iter().map(|sql| json!({ "stmt": { "sql": sql } })).collect();
    json!({ "type": "batch", "batch": { "steps": steps } })
}

/// The first value of the statement, or of the second one of a batch.
fn value(answer: &Answer) -> Value {
    let result = answer.json()["results"][0]["response"]["result"].take();
    let of_batch = result.pointer("/step_results/1/rows/0/0/value");
    of_batch.or_else(|| result.pointer("/rows/0/0/value")).cloned().unwrap_or_default()
}

fn error(answer: &Answer) -> Value {
    answer.json()["results"][0]["error"]["code"].take()
}

fn explain(node: &Node, sql: &str) -> Value {
    let body = json!({ "sql": sql }).to_string();
    node.client().send("POST", "/policy/explain", &body).unwrap().json()
}

#[test]
fn what_is_too_old_here_is_read_at_the_origin() {
    const SCHEMA: &str = "
        CREATE TABLE menu (dish TEXT NOT NULL PRIMARY KEY, price INTEGER NOT NULL);
        CREATE TABLE notes (id INTEGER PRIMARY KEY, price INTEGER);
        CREATE VIEW prices AS SELECT price FROM menu;";
    // A node hears how old it is every 250 ms, so about every other read finds this exceeded.
    let tables =
        ["menu:policy=eventual,max_lag_ms=100,on_stale=forward", "notes:writers=any,key=explicit"];
    let cluster = Cluster::init(SCHEMA, &tables, &["origin", "edge1", "edge2"]);
    let nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    nodes[0].run(&["INSERT INTO menu VALUES('soup', 0)"]);
    until("the edges to have the row", || {
        nodes[1..].iter().all(|edge| value(&ask(edge, "SELECT price FROM menu")) == "0")
    });
    let mut read_there = 0;
    for price in 1..=2000_u64 {
        if read_there == 8 {
            break;
        }
        nodes[0].run(&[&format!("UPDATE menu SET price = {price}")]);
        let (edge, other) = if price % 2 == 0 { (1, 2) } else { (2, 1) };
        let answer = match price % 3 {
            0 => ask(&nodes[edge], "SELECT price FROM menu"),
            1 => ask(&nodes[edge], "SELECT price FROM prices"),
            _ => send(&nodes[edge], &read_only("SELECT price FROM menu"), None),
        };
        if answer.header(READ_AT) != Some("origin") {
            continue;
        }
        read_there += 1;
        assert_eq!(value(&answer), price.to_string().as_str(), "{answer:?}");
        // Whoever goes on with the bookmark of that, finds nothing older, wherever that is read.
        let request = json!({ "type": "execute", "stmt": {
            "sql": "INSERT INTO notes SELECT littoral_id(), price FROM menu RETURNING price" } });
        let later = send(&nodes[other], &request, answer.header(BOOKMARK));
        assert_eq!(value(&later), price.to_string().as_str(), "{later:?}");
        thread::sleep(Duration::from_millis(5 * (price % 60)));
    }
    assert_eq!(read_there, 8, "reads at the origin");

    // What writes is none of these reads.
    let wrote = ask(
        &nodes[1],
        "WITH p AS (SELECT price FROM menu) INSERT INTO notes SELECT littoral_id(), price FROM p",
    );
    assert!(error(&wrote).is_null() && wrote.header(READ_AT).is_none(), "{wrote:?}");

    nodes[0].freeze();
    until("the edge to be too old", || nodes[1].status()["lag_ms"].as_u64() > Some(400));
    let told = explain(&nodes[1], "SELECT * FROM prices");
    let (refused, in_doubt) = thread::scope(|threads| {
        let write = "INSERT INTO notes SELECT littoral_id(), price FROM menu";
        let in_doubt = threads.spawn(|| ask(&nodes[1], write));
        (ask(&nodes[1], "SELECT price FROM menu"), in_doubt.join().unwrap())
    });
    nodes[0].thaw();
    // It was sent there, as any write is that does not belong here.
    assert_eq!(error(&in_doubt), "LITTORAL_OUTCOME_UNKNOWN", "{in_doubt:?}");
    assert_eq!(told["runs_here"], false, "{told}");
    let why = told["why"].as_str().unwrap();
    assert!(why.contains("100 ms behind the origin") && why.contains("fails"), "{why}");
    assert_eq!(told["tables"][0]["on_stale"], "forward");
    assert_eq!(error(&refused), "LITTORAL_ORIGIN_UNREACHABLE", "{refused:?}");
    stop(nodes);
}

#[test]
fn while_the_origin_is_away_what_may_be_stale_is_read_here() {
    const SCHEMA: &str = "
        CREATE TABLE orders (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
        CREATE TABLE payments (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
        CREATE VIEW due AS SELECT n FROM orders;";
    let tables =
        ["orders:policy=origin-strong,on_unreachable=stale", "payments:policy=origin-strong"];
    let cluster = Cluster::init(SCHEMA, &tables, &["origin", "edge1", "edge2"]);
    let mut nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    nodes[0].run(&["INSERT INTO orders VALUES(1, 7)", "INSERT INTO payments VALUES(1, 8)"]);
    let fresh = |node: &Node| {
        let answer = ask(node, "SELECT n FROM due");
        value(&answer) == "7" && answer.header(STALE).is_none()
    };
    until("the edge to reach the origin", || fresh(&nodes[1]));
    assert_eq!(ask(&nodes[1], "SELECT n FROM orders").header(READ_AT), Some("origin"));
    // What was shown counts, whatever came after it.
    let undone = transaction(&["BEGIN READONLY", "SELECT n FROM orders", "ROLLBACK"]);
    let answer = send(&nodes[1], &undone, None);
    assert_eq!((value(&answer), answer.header(READ_AT)), ("7".into(), Some("origin")));
    assert!(answer.header(BOOKMARK).is_some(), "{answer:?}");
    let told = explain(&nodes[1], "SELECT n FROM due");
    assert_eq!(told["tables"][0]["on_unreachable"], "stale", "{told}");
    assert!(told["why"].as_str().unwrap().contains("if the origin does not answer"), "{told}");

    // Nobody has noticed yet that it is dead.
    nodes.remove(0).kill();
    let (stale, refused) = thread::scope(|threads| {
        let stale = threads.spawn(|| ask(&nodes[0], "SELECT n FROM due"));
        let refused = threads.spawn(|| ask(&nodes[0], "SELECT n FROM payments"));
        (stale.join().unwrap(), refused.join().unwrap())
    });
    assert_eq!((value(&stale), stale.header(STALE)), ("7".into(), Some("orders")), "{stale:?}");
    assert!(stale.header("x-littoral-lag").is_some() && stale.header(READ_AT).is_none());
    // A read leaves no doubt.
    assert_eq!(error(&refused), "LITTORAL_ORIGIN_UNREACHABLE", "{refused:?}");

    until("the edge to notice", || nodes[0].status()["origin_distance"].is_null());
    let began = Instant::now();
    let read = send(&nodes[0], &read_only("SELECT n FROM orders"), None);
    assert_eq!((value(&read), read.header(STALE)), ("7".into(), Some("orders")), "{read:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let told = explain(&nodes[0], "SELECT n FROM due");
    assert_eq!(told["runs_here"], true, "{told}");
    assert!(told["why"].as_str().unwrap().contains("from what this node has"), "{told}");
    let both = "SELECT * FROM due JOIN payments ON true";
    assert_eq!(error(&ask(&nodes[0], both)), "LITTORAL_ORIGIN_UNREACHABLE");
    assert_eq!(explain(&nodes[0], both)["runs_here"], false);
    // So does a transaction that stays open, if it is not to write what follows from it.
    let execute = |sql: &str| json!({ "type": "execute", "stmt": { "sql": sql } });
    let open = |begin: &str| {
        let requests = json!([execute(begin), execute("SELECT n FROM orders")]);
        let body = json!({ "requests": requests }).to_string();
        let read = nodes[0].client().send("POST", "/v2/pipeline", &body).unwrap();
        let rest = json!([execute("SELECT n FROM payments"), { "type": "close" }]);
        let rest = json!({ "baton": read.json()["baton"], "requests": rest }).to_string();
        (read, nodes[0].client().send("POST", "/v2/pipeline", &rest).unwrap())
    };
    let (read, refused) = open("BEGIN READONLY");
    let found = read.json();
    let found = found.pointer("/results/1/response/result/rows/0/0/value");
    assert_eq!((found, read.header(STALE)), (Some(&json!("7")), Some("orders")), "{read:?}");
    assert_eq!(error(&refused), "LITTORAL_ORIGIN_UNREACHABLE", "{refused:?}");
    let (read, _) = open("BEGIN");
    let code = read.json()["results"][1]["error"]["code"].take();
    assert_eq!(
        (code, read.header(STALE)),
        ("LITTORAL_ORIGIN_UNREACHABLE".into(), None),
        "{read:?}"
    );
    let written = ask(&nodes[0], "UPDATE orders SET n = 9");
    assert_eq!(error(&written), "LITTORAL_ORIGIN_UNREACHABLE", "{written:?}");

    // It comes back, and nothing old is shown any more, on whatever connection.
    let others: Vec<&Node> = nodes.iter().collect();
    let origin = cluster.serve("origin", &others);
    until("the edge to reach the origin", || fresh(&nodes[0]));
    origin.run(&["UPDATE orders SET n = 10"]);
    for _ in 0..20 {
        let answer = ask(&nodes[0], "SELECT n FROM due");
        assert_eq!((value(&answer), answer.header(STALE)), ("10".into(), None), "{answer:?}");
    }
    origin.stop();
    stop(nodes);
}
