//! A client that moves from node to node with its bookmark reads nothing older than it wrote or read.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::harness::{Answer, Cable, Cluster, Node, Weather, stop, until};

const SCHEMA: &str = "
    CREATE TABLE hits (page TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0);";
const BOOKMARK: &str = "x-littoral-bookmark";
const READ_AT: &str = "x-littoral-read-at";

/// A client's session: what it carries, and how often it has counted.
#[derive(Debug, Default)]
struct Session {
    bookmark: Option<String>,
}

impl Session {
    fn send(&self, node: &Node, sql: &str) -> Answer {
        let body = json!({ "requests": [
            { "type": "execute", "stmt": { "sql": sql } },
            { "type": "close" },
        ] });
        self.post(node, &body)
    }

    fn post(&self, node: &Node, body: &Value) -> Answer {
        self.post_to(node, "/v2/pipeline", body)
    }

    fn post_to(&self, node: &Node, path: &str, body: &Value) -> Answer {
        let carried: Vec<(&str, &str)> =
            self.bookmark.iter().map(|bookmark| (BOOKMARK, bookmark.as_str())).collect();
        node.client().send_with("POST", path, &carried, &body.to_string()).unwrap()
    }

    /// As [`Session::run`], by a cursor.
    fn cursor(&mut self, node: &Node, sql: &str) -> Value {
        let body = json!({ "batch": { "steps": [{ "stmt": { "sql": sql } }] } });
        let answer = self.post_to(node, "/v3/cursor", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        self.bookmark = Some(answer.header(BOOKMARK).unwrap().to_owned());
        first_row(&answer)
    }

    /// Runs a statement at a node; gives the first value of its answer.
    fn run(&mut self, node: &Node, sql: &str) -> Value {
        let answer = self.send(node, sql);
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.header("x-littoral-served-by"), Some(node.name.as_str()));
        assert!(answer.header("server-timing").unwrap().starts_with("wait;dur="));
        self.bookmark = Some(answer.header(BOOKMARK).unwrap().to_owned());
        let mut result = answer.json()["results"][0].take();
        assert_eq!(result["type"], "ok", "{result}");
        let first = result.pointer_mut("/response/result/rows/0/0/value");
        first.map_or(Value::Null, Value::take)
    }
}

#[test]
fn a_session_that_moves_reads_what_it_wrote() {
    let cluster =
        Cluster::init(SCHEMA, &["hits:writers=any,n=counter"], &["origin", "edge1", "edge2"]);
    let nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    nodes[0].run(&["INSERT INTO hits(page) VALUES('home')"]);
    let mut session = Session::default();
    assert_eq!(session.run(&nodes[0], "SELECT n FROM hits"), "0");
    for round in 1..=60_u32 {
        let (writes, reads) = hop(round);
        session.run(&nodes[writes], "UPDATE hits SET n = n + 1");
        let n = if round % 12 == 3 {
            // The way from edge to edge is closed for a while: the answer waits for it.
            nodes[0].freeze();
            thread::scope(|threads| {
                let read = threads.spawn(|| session.run(&nodes[reads], "SELECT n FROM hits"));
                thread::sleep(Duration::from_millis(300));
                nodes[0].thaw();
                read.join().unwrap()
            })
        } else {
            session.run(&nodes[reads], "SELECT n FROM hits")
        };
        assert_eq!(n, round.to_string().as_str(), "after round {round}");
    }
    stop(nodes);
}

/// The first value that a cursor gives.
fn first_row(answer: &Answer) -> Value {
    let lines = answer.body.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut rows = lines.filter(|line| line["type"] == "row");
    rows.next().map_or(Value::Null, |mut line| line["row"][0]["value"].take())
}

#[test]
fn a_session_of_cursors_reads_what_it_wrote() {
    let cluster =
        Cluster::init(SCHEMA, &["hits:writers=any,n=counter"], &["origin", "edge1", "edge2"]);
    let nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    nodes[0].run(&["INSERT INTO hits(page) VALUES('home')"]);
    let mut session = Session::default();
    session.cursor(&nodes[0], "SELECT n FROM hits");
    for round in 1..=20_u32 {
        let (writes, reads) = hop(round);
        let n = json!(round.to_string());
        let wrote = session.cursor(&nodes[writes], "UPDATE hits SET n = n + 1 RETURNING n");
        assert_eq!(wrote, n, "written in round {round}");
        assert_eq!(session.cursor(&nodes[reads], "SELECT n FROM hits"), n, "after round {round}");
    }
    // One that is longer begins before it is over, and says where it is from all the same.
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
        SELECT i, 'row ' || i AS t FROM n";
    let body = json!({ "batch": { "steps": [{ "stmt": { "sql": many } }] } });
    let answer = session.post_to(&nodes[1], "/v3/cursor", &body);
    assert_eq!(answer.body.lines().filter(|line| line.contains("row ")).count(), 50_000);
    assert_eq!(answer.header(BOOKMARK), None);
    assert_eq!(answer.header("x-littoral-served-by"), Some("edge1"));
    stop(nodes);
}

/// Where a session writes in a round, and then reads.
fn hop(round: u32) -> (usize, usize) {
    match round % 4 {
        0 => (0, 1),
        1 => (1, 2),
        2 => (2, 0),
        _ => (2, 1),
    }
}

#[test]
fn a_session_that_moves_over_slow_links_reads_what_it_wrote() {
    let schema = format!(
        "{SCHEMA} CREATE TABLE notes (id INTEGER PRIMARY KEY AUTOINCREMENT, n INTEGER NOT NULL);"
    );
    let names = ["origin", "edge1", "edge2"];
    let cluster = Cluster::init(&schema, &["hits:writers=any,n=counter"], &names);
    let weather = Weather { late_ms: 30..80, lost_of_1000: 10 };
    let (nodes, cables) = cluster.serve_star_over(&names, &weather, 11);
    nodes[0].run(&["INSERT INTO hits(page) VALUES('home')"]);
    let mut session = Session::default();
    session.run(&nodes[0], "SELECT n FROM hits");
    let mut behind = 0;
    for round in 1..=24_u32 {
        let (writes, reads) = hop(round);
        session.run(&nodes[writes], "UPDATE hits SET n = n + 1");
        let n = json!(round.to_string());
        // Who carries nothing is shown what there is.
        let shown = Session::default().run(&nodes[reads], "SELECT n FROM hits");
        behind += u32::from(shown != n);
        let read = thread::scope(|threads| {
            let read = threads.spawn(|| session.run(&nodes[reads], "SELECT n FROM hits"));
            if round % 6 == 3 {
                cables.iter().for_each(Cable::cut);
                thread::sleep(Duration::from_millis(300));
                cables.iter().for_each(Cable::mend);
            }
            read.join().unwrap()
        });
        assert_eq!(read, n, "after round {round}");
        // What only the origin writes, too.
        session.run(&nodes[reads], &format!("INSERT INTO notes(n) VALUES({round})"));
        assert_eq!(session.run(&nodes[writes], "SELECT max(n) FROM notes"), n);
    }
    assert!(behind > 12, "the links are slow, and {behind} of 24 reads were behind");
    assert!(cables.iter().all(|cable| cable.carried() > 100), "{cables:?}");
    stop(nodes);
}

#[test]
fn what_a_node_does_not_get_in_time_it_does_not_show() {
    let cluster =
        Cluster::init(SCHEMA, &["hits:writers=any,n=counter"], &["origin", "edge1", "edge2"]);
    let nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    nodes[0].run(&["INSERT INTO hits(page) VALUES('home')"]);
    let mut session = Session::default();
    session.run(&nodes[1], "SELECT littoral_bookmark()");
    session.run(&nodes[2], "SELECT littoral_bookmark()");
    nodes[0].freeze();
    session.run(&nodes[1], "INSERT INTO hits VALUES('about', 1)");
    let answer = session.send(&nodes[2], "SELECT n FROM hits WHERE page = 'about'");
    nodes[0].thaw();
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(answer.json()["code"], "LITTORAL_BOOKMARK_NOT_REACHED");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(session.run(&nodes[2], "SELECT n FROM hits WHERE page = 'about'"), "1");

    // What no node has given is refused, and nothing runs.
    let mut forged = session.bookmark.clone().unwrap().into_bytes();
    forged[30] = if forged[30] == b'A' { b'B' } else { b'A' };
    let forged = Session { bookmark: Some(String::from_utf8(forged).unwrap()) };
    let answer = forged.send(&nodes[1], "DELETE FROM hits");
    assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some("LITTORAL_BOOKMARK")));
    assert_eq!(session.run(&nodes[1], "SELECT count(*) FROM hits"), "2");

    // A node that is issued later has the key, too.
    cluster.issue("edge3", &[]);
    let joined = cluster.serve("edge3", &[&nodes[2]]);
    assert_eq!(session.run(&joined, "SELECT n FROM hits WHERE page = 'about'"), "1");
    joined.until_ready();
    session.run(&joined, "UPDATE hits SET n = n + 1 WHERE page = 'about'");
    assert_eq!(session.run(&nodes[0], "SELECT n FROM hits WHERE page = 'about'"), "2");
    joined.stop();
    stop(nodes);
}

#[test]
fn what_a_node_does_not_reach_is_read_at_the_origin() {
    let tables = ["hits:writers=any,n=counter", "mine:policy=local"];
    let schema = format!("{SCHEMA} CREATE TABLE mine (n INTEGER PRIMARY KEY);");
    let cluster = Cluster::init(&schema, &tables, &["origin", "edge1"]);
    let nodes = cluster.serve_star(&["origin", "edge1"]);
    nodes[0].run(&["INSERT INTO hits(page) VALUES('home')"]);
    let mut session = Session::default();
    session.run(&nodes[0], "SELECT n FROM hits");
    assert_eq!(session.run(&nodes[1], "SELECT n FROM hits"), "0");
    let execute = |sql: &str| json!({ "type": "execute", "stmt": { "sql": sql } });
    let steps = ["BEGIN READONLY", "SELECT n FROM hits", "COMMIT"];
    let steps: Vec<Value> = steps.iter().map(|sql| json!({ "stmt": { "sql": sql } })).collect();
    let batch = json!([{ "type": "batch", "batch": { "steps": steps } }, { "type": "close" }]);
    let cursor = json!({ "batch": { "steps": [{ "stmt": { "sql": "SELECT n FROM hits" } }] } });
    let (mut read_there, mut cursors_there) = (0, 0);
    for round in 1..=5_u32 {
        // As long as a transaction has the writer, nothing that comes is applied.
        let requests = json!([execute("BEGIN IMMEDIATE"), execute("DELETE FROM mine")]);
        let holds = Session::default().post(&nodes[1], &json!({ "requests": requests })).json();
        session.run(&nodes[0], "UPDATE hits SET n = n + 1");
        let read = session.send(&nodes[1], "SELECT n FROM hits");
        let whole = session.post(&nodes[1], &json!({ "requests": batch }));
        let by_cursor = session.post_to(&nodes[1], "/v3/cursor", &cursor);
        // It may be over by now.
        let rollback = json!({ "baton": holds["baton"], "requests": [execute("ROLLBACK")] });
        Session::default().post(&nodes[1], &rollback);
        let n = json!(round.to_string());
        for (answer, place) in
            [(&read, "rows/0/0/value"), (&whole, "step_results/1/rows/0/0/value")]
        {
            let found = answer.json();
            let found = found.pointer(&format!("/results/0/response/result/{place}"));
            assert_eq!(found, Some(&n), "{answer:?}");
            read_there += u32::from(answer.header(READ_AT) == Some("origin"));
        }
        assert_eq!(first_row(&by_cursor), n, "{by_cursor:?}");
        cursors_there += u32::from(by_cursor.header(READ_AT) == Some("origin"));
        // What was read there is in the bookmark.
        session.bookmark = Some(whole.header(BOOKMARK).unwrap().to_owned());
        assert_eq!(session.run(&nodes[1], "SELECT n FROM hits"), n);
    }
    assert!(read_there > 0 && cursors_there > 0, "{read_there}, {cursors_there} by cursors");

    // Rows that each node has for itself are none of the origin's.
    let requests = json!([execute("BEGIN IMMEDIATE"), execute("INSERT INTO mine VALUES(7)")]);
    let holds = Session::default().post(&nodes[1], &json!({ "requests": requests })).json();
    session.run(&nodes[0], "UPDATE hits SET n = n + 1");
    let commit = json!({ "baton": holds["baton"], "requests": [execute("COMMIT")] });
    let own = thread::scope(|threads| {
        let read = threads.spawn(|| session.send(&nodes[1], "SELECT n FROM mine"));
        thread::sleep(Duration::from_millis(1500));
        Session::default().post(&nodes[1], &commit);
        read.join().unwrap()
    });
    let found = own.json();
    let found = found.pointer("/results/0/response/result/rows/0/0/value");
    assert_eq!((found, own.header(READ_AT)), (Some(&json!("7")), None), "{own:?}");
    stop(nodes);
}

#[test]
fn answers_say_how_old_they_are_and_a_request_may_ask_for_no_older() {
    let cluster = Cluster::init(SCHEMA, &["hits:writers=any,n=counter"], &["origin", "edge1"]);
    let nodes = cluster.serve_star(&["origin", "edge1"]);
    nodes[0].run(&["INSERT INTO hits(page) VALUES('home')"]);
    let ask = |node: &Node, most: &str| {
        let body = r#"{"requests":[{"type":"execute","stmt":{"sql":"SELECT 1"}}]}"#;
        let headers = [("x-littoral-max-lag", most)];
        node.client().send_with("POST", "/v2/pipeline", &headers, body).unwrap()
    };
    let lag =
        |answer: &Answer| answer.header("x-littoral-lag").map(|ms| ms.parse::<u64>().unwrap());
    let answer = ask(&nodes[0], "0");
    assert!(answer.status == 200 && lag(&answer) < Some(1000), "{answer:?}");
    let answer = ask(&nodes[1], "1000");
    assert!(answer.status == 200 && lag(&answer) < Some(4000), "{answer:?}");
    assert!(nodes[1].status()["lag_ms"].is_u64());

    nodes[0].freeze();
    until("the edge to know that it is behind", || {
        nodes[1].status()["lag_ms"].as_u64() > Some(1200)
    });
    let answer = ask(&nodes[1], "100");
    nodes[0].thaw();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert_eq!(answer.json()["code"], "LITTORAL_TOO_STALE");
    assert_eq!(ask(&nodes[1], "soon").status, 400);
    assert_eq!(ask(&nodes[1], "3000").status, 200);
    stop(nodes);
}

#[test]
fn a_table_may_bound_how_old_what_is_read_of_it_may_be() {
    const SCHEMA: &str = "
        CREATE TABLE hits (page TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0);
        CREATE TABLE menu (dish TEXT NOT NULL PRIMARY KEY);
        CREATE TABLE orders (id INTEGER PRIMARY KEY);
        CREATE VIEW dishes AS SELECT dish FROM menu;";
    let tables =
        ["hits:writers=any,n=counter", "menu:policy=eventual,max_lag_ms=1500,on_stale=fail"];
    let cluster = Cluster::init(SCHEMA, &tables, &["origin", "edge1"]);
    let nodes = cluster.serve_star(&["origin", "edge1"]);
    nodes[0].run(&["INSERT INTO hits(page) VALUES('home')", "INSERT INTO menu VALUES('soup')"]);
    let mut session = Session::default();
    session.run(&nodes[0], "SELECT 1");
    until("the edge to know how far it is behind", || nodes[1].status()["lag_ms"].is_u64());
    assert_eq!(session.run(&nodes[1], "SELECT count(*) FROM dishes"), "1");
    let explain = |node: &Node, sql: &str| {
        let body = json!({ "sql": sql }).to_string();
        node.client().send("POST", "/policy/explain", &body).unwrap().json()
    };
    let told = explain(&nodes[1], "SELECT * FROM dishes, hits");
    assert_eq!((&told["runs_here"], &told["policy"]), (&json!(true), &json!("read-after-write")));
    assert_eq!(told["tables"][1]["table"], "menu");
    assert_eq!(told["tables"][1]["max_lag_ms"], 1500);
    let told = explain(&nodes[1], "INSERT INTO orders VALUES(1)");
    assert_eq!(told["runs_here"], false, "{told}");
    assert!(
        told["why"].as_str().unwrap().contains("at the origin only, which is origin"),
        "{told}"
    );
    assert_eq!(explain(&nodes[0], "INSERT INTO orders VALUES(1)")["runs_here"], true);

    nodes[0].freeze();
    until("the edge to be too old", || nodes[1].status()["lag_ms"].as_u64() > Some(1600));
    let fresh = Session::default();
    let refused = fresh.send(&nodes[1], "SELECT count(*) FROM dishes").json();
    let served = fresh.send(&nodes[1], "SELECT n FROM hits").json();
    let told = explain(&nodes[1], "SELECT * FROM dishes");
    // What writes is bound by what it reads beside, and not by the rows that it changes.
    let wrote = fresh.send(&nodes[1], "INSERT INTO hits SELECT dish, 1 FROM dishes").json();
    let with = "WITH d AS (SELECT dish FROM menu) INSERT INTO hits SELECT dish, 1 FROM d";
    let wrote_with = fresh.send(&nodes[1], with).json();
    let counted = fresh.send(&nodes[1], "UPDATE hits SET n = n + 1").json();
    let execute = |sql: &str| json!({ "type": "execute", "stmt": { "sql": sql } });
    let statements = ["BEGIN IMMEDIATE", "UPDATE hits SET n = n + 1", "SELECT dish FROM menu"];
    let whole: Vec<Value> = statements.iter().chain(&["COMMIT"]).map(|sql| execute(sql)).collect();
    let whole = fresh.post(&nodes[1], &json!({ "requests": whole })).json();
    let open: Vec<Value> = statements.iter().map(|sql| execute(sql)).collect();
    let open = fresh.post(&nodes[1], &json!({ "requests": open })).json();
    let commit = json!({ "baton": open["baton"], "requests": [execute("COMMIT")] });
    let committed = fresh.post(&nodes[1], &commit).json();
    nodes[0].thaw();
    for refused in [&wrote, &wrote_with, &whole] {
        let error = &refused["results"][0]["error"];
        assert_eq!(error["code"], "LITTORAL_TOO_STALE", "{refused}");
    }
    assert_eq!(counted["results"][0]["type"], "ok", "{counted}");
    assert_eq!(open["results"][1]["type"], "ok", "{open}");
    assert_eq!(open["results"][2]["error"]["code"], "LITTORAL_TOO_STALE", "{open}");
    assert_eq!(committed["results"][0]["type"], "ok", "{committed}");
    assert_eq!(refused["results"][0]["error"]["code"], "LITTORAL_TOO_STALE", "{refused}");
    assert_eq!(served["results"][0]["type"], "ok", "{served}");
    assert_eq!(told["runs_here"], false, "{told}");
    until("the edge to be new enough", || {
        fresh.send(&nodes[1], "SELECT count(*) FROM dishes").json()["results"][0]["type"] == "ok"
    });
    stop(nodes);
}

/// Clients at all nodes count and read: a read that begins after a write was answered sees it, and what one
/// client has seen, a later read of any other sees too.
#[test]
fn an_origin_strong_table_has_one_history() {
    const SCHEMA: &str = "
        CREATE TABLE seats (id INTEGER PRIMARY KEY, taken INTEGER NOT NULL DEFAULT 0);
        CREATE VIEW free AS SELECT 1000 - taken AS n FROM seats;
        CREATE TABLE hits (page TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0);";
    let tables = ["seats:policy=origin-strong", "hits:writers=any,n=counter"];
    let cluster = Cluster::init(SCHEMA, &tables, &["origin", "edge1", "edge2"]);
    let nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    nodes[0].run(&["INSERT INTO seats(id) VALUES(1)"]);
    until("the edges to know their distance", || {
        nodes[1..].iter().all(|node| {
            Session::default().send(node, "SELECT n FROM free").json()["results"][0]["type"] == "ok"
        })
    });
    // Every client notes what it knew when it asked, and nobody may be told less.
    let known = AtomicU64::new(0);
    let written = AtomicU64::new(0);
    thread::scope(|threads| {
        for client in 0..6_usize {
            let (nodes, known, written) = (&nodes, &known, &written);
            threads.spawn(move || {
                let mut session = Session::default();
                for round in 0..25 {
                    let node = &nodes[(client + round) % 3];
                    if (client + round) % 4 == 0 {
                        session.run(node, "UPDATE seats SET taken = taken + 1");
                        written.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                    let before = known.load(Ordering::SeqCst).max(written.load(Ordering::SeqCst));
                    let sql = if round % 2 == 0 {
                        "SELECT taken FROM seats"
                    } else {
                        "SELECT 1000 - n FROM free"
                    };
                    let taken: u64 = session.run(node, sql).as_str().unwrap().parse().unwrap();
                    assert!(taken >= before, "{} shows {taken} after {before}", node.name);
                    known.fetch_max(taken, Ordering::SeqCst);
                }
            });
        }
    });
    let all = written.load(Ordering::SeqCst).to_string();
    let mut session = Session::default();
    assert_eq!(session.run(&nodes[1], "SELECT taken FROM seats"), all.as_str());

    // A transaction that reads it runs there as a whole, also if it says that it only reads.
    let transaction = |node: &Node, begin: &str, second: &str| {
        let steps: Vec<Value> = [begin, "SELECT taken FROM seats", second, "COMMIT"]
            .iter()
            .map(|sql| json!({ "stmt": { "sql": sql } }))
            .collect();
        let batch = json!({ "type": "batch", "batch": { "steps": steps } });
        let mut results = node.client().pipeline(&json!([batch, { "type": "close" }])).unwrap();
        results[0]["response"]["result"].take()
    };
    let read = transaction(&nodes[1], "BEGIN READONLY", "SELECT count(*) FROM hits");
    assert_eq!(read["step_results"][1]["rows"][0][0]["value"], all.as_str(), "{read}");
    let refused = transaction(&nodes[1], "BEGIN READONLY", "INSERT INTO hits VALUES('x', 1)");
    assert_eq!(refused["step_errors"][2]["code"], "SQLITE_READONLY", "{refused}");
    let mixed =
        transaction(&nodes[1], "BEGIN", "INSERT INTO hits SELECT 'seats', taken FROM seats");
    assert_eq!(mixed["step_errors"][2], Value::Null, "{mixed}");
    assert_eq!(session.run(&nodes[1], "SELECT n FROM hits WHERE page = 'seats'"), all.as_str());
    assert_eq!(session.run(&nodes[1], "SELECT count(*) FROM hits"), "1");

    // Without the origin there is no answer, and other tables are read as ever.
    nodes[0].freeze();
    let answer = session.send(&nodes[2], "SELECT taken FROM seats");
    nodes[0].thaw();
    assert_eq!(answer.json()["results"][0]["type"], "error", "{answer:?}");
    stop(nodes);
}
