//! What a busy node logs at its most talkative: slow statements, and no value of anybody's.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Stands in every value, and in no name.
const MARK: &str = "zq7mark";

const SCHEMA: &str = "
    CREATE TABLE people (id INTEGER PRIMARY KEY, email TEXT UNIQUE, age INTEGER CHECK (age > 0), \"full name\" TEXT);
    CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL);";

struct Node {
    child: Child,
    http: String,
    links: String,
}

impl Node {
    fn serve(home: &Path, name: &str, dial: &[String]) -> Self {
        let config = home.join("cluster").join(name).join("littoral.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace("[http]\n", "[http]\nslow_statement_ms = 1\n")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_littoral"))
            .args(["serve", "-vv", "--json", "--config"])
            .arg(&config)
            .args(dial.iter().flat_map(|dial| ["--dial", dial]))
            .stdout(Stdio::piped())
            .stderr(File::create(home.join(format!("{name}.log"))).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        let http = told["http"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        Self { child, http, links: told["links"].as_str().unwrap().to_owned() }
    }

    fn request(&self, head: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        write!(
            stream,
            "{head}\r\nconnection: close\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn run(&self, sql: &str, args: Value) -> String {
        let body = json!({ "requests": [
            { "type": "execute", "stmt": { "sql": sql, "args": args } }, { "type": "close" },
        ]});
        self.request("POST /v3/pipeline HTTP/1.1", &body.to_string())
    }

    fn until_ready(&self) {
        let began = Instant::now();
        while !self.request("GET /ready HTTP/1.1", "").contains(" 200 ") {
            assert!(began.elapsed() < Duration::from_secs(60), "never ready");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn no_value_reaches_a_log_and_slow_statements_do() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("schema.sql"), SCHEMA).unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_littoral"))
        .current_dir(home)
        .args(["init", "cluster", "--schema", "schema.sql", "--nodes", "origin,edge1"])
        .args(["--table", "notes:writers=any,key=explicit", "--listen-base", "0"])
        .status()
        .unwrap();
    assert!(made.success());
    let origin = Node::serve(home, "origin", &[]);
    let edge = Node::serve(home, "edge1", &[format!("origin={}", origin.links)]);
    edge.until_ready();

    let text = |n: u32| json!({ "type": "text", "value": format!("{MARK}{n}") });
    for node in [&origin, &edge] {
        for n in 0..20_u32 {
            node.run(
                "INSERT INTO notes VALUES (?, ?)",
                json!([{ "type": "integer", "value": n.to_string() }, text(n)]),
            );
            node.run(&format!("UPDATE notes SET text = '{MARK} {n}' WHERE id = {n}"), json!([]));
        }
        // At the origin, and from the edge on the way there.
        for sql in [
            format!("INSERT INTO people (email) VALUES ('{MARK}@one')"),
            format!("INSERT INTO people (email) VALUES ('{MARK}@one')"),
            format!("INSERT INTO people (email, age) VALUES ('{MARK}@two', -1)"),
            format!("INSERT INTO people (id, email) VALUES ('{MARK}', 1)"),
            format!("INSERT INTO people (email) VALUES ('{MARK}"),
            format!("SELECT {MARK}"),
            format!("SELECT * FROM {MARK}"),
            format!("SELECT \"{MARK}\""),
            format!("SELECT json('{MARK}')"),
            format!("SELECT 1 {MARK} {MARK}"),
            format!("SELECT \"full name\", '{MARK}' FROM people, notes -- {MARK}"),
            format!("ATTACH '{MARK}' AS x"),
            format!("PRAGMA user_version = {MARK}"),
            format!("INSERT INTO notes VALUES (1, NULL), (2, '{MARK}')"),
            format!("UPDATE people SET \"full name\" = '{MARK}', email = lower('{MARK}')"),
            format!("SELECT littoral_policy('{MARK}', '{MARK}')"),
            format!("BEGIN; INSERT INTO notes VALUES (77, '{MARK}'); ROLLBACK"),
        ] {
            node.run(&sql, json!([]));
        }
        let slow = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) \
             SELECT count(*) FROM n, people WHERE '{MARK}' <> \"full name\" AND i > 12345"
        );
        assert!(node.run(&slow, json!([])).contains(" 200 "));
        // What is wrong with requests themselves.
        let explained = json!({ "sql": format!("SELECT '{MARK}' FROM people") }).to_string();
        node.request("POST /policy/explain HTTP/1.1", &explained);
        for head in [
            format!("POST /v3/pipeline HTTP/1.1\r\nauthorization: Bearer {MARK}.{MARK}.{MARK}"),
            format!("POST /v3/pipeline HTTP/1.1\r\nx-littoral-bookmark: {MARK}"),
            format!("POST /v3/pipeline HTTP/1.1\r\nidempotency-key: {MARK}"),
            "POST /v3/pipeline HTTP/1.1".to_owned(),
            "POST /v3/cursor HTTP/1.1".to_owned(),
        ] {
            node.request(&head, &format!("{{\"requests\": \"{MARK}\"}}"));
        }
    }
    for (script, answer) in [
        (format!("CREATE TABLE made (id INTEGER PRIMARY KEY, v DEFAULT '{MARK}')"), "\"ok\""),
        (format!("INSERT INTO people (email) VALUES ('{MARK}@one')"), "\"error\""),
    ] {
        let script = format!("PRAGMA foreign_keys = off; {script}; PRAGMA foreign_keys = on");
        let body = json!({ "requests": [{ "type": "sequence", "sql": script }] }).to_string();
        let answered = origin.request("POST /v3/pipeline HTTP/1.1", &body);
        assert!(answered.contains(answer), "{script}: {answered}");
    }
    origin.run(&format!("ALTER TABLE people ADD COLUMN extra TEXT DEFAULT '{MARK}'"), json!([]));
    let (_, page) = edge
        .request("GET /metrics HTTP/1.1", "")
        .split_once("\r\n\r\n")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    for metric in [
        "littoral_commit_seconds_count ",
        "littoral_read_seconds_bucket{le=\"0.0005\"} ",
        "littoral_forwarded_seconds_sum ",
        "littoral_sync_seconds_bucket{le=\"+Inf\"} ",
        "littoral_writes_waiting 0",
        "littoral_reads_waiting 0",
        "littoral_frontier_held_seconds ",
        "littoral_peer_lag_seconds{node=\"origin\"} ",
        "littoral_peer_outbox_bytes{node=\"origin\"} ",
        "littoral_table_lag_seconds{table=\"people\"} ",
    ] {
        assert!(page.contains(&format!("\n{metric}")), "{metric} is not in\n{page}");
    }
    let counted = |name: &str| {
        let line = page.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    for name in ["commit", "read", "forwarded"] {
        assert!(counted(&format!("littoral_{name}_seconds_count")) > 0, "{name}\n{page}");
    }
    assert!(counted("littoral_slow_statements_total") > 0, "{page}");
    edge.stop();
    origin.stop();

    for name in ["origin", "edge1"] {
        let log = fs::read_to_string(home.join(format!("{name}.log"))).unwrap();
        let told: Vec<&str> =
            log.lines().filter(|line| line.to_lowercase().contains(MARK)).collect();
        assert!(told.is_empty(), "{name} has logged a value:\n{}", told.join("\n"));
        let slow = log
            .lines()
            .find(|line| line.contains("a slow statement") && line.contains("WITH RECURSIVE"));
        let slow =
            slow.unwrap_or_else(|| panic!("{name} has not logged the slow statement:\n{log}"));
        for part in [
            "WHERE ? <> ",
            "full name",
            "i > ?",
            "tables=\"people\"",
            "took_ms=",
            "at=\"a reader\"",
        ] {
            assert!(slow.contains(part), "{part} is not in {slow}");
        }
        let begun = log.lines().filter(|line| line.contains("a migration begins bytes=")).count();
        let done = log.lines().filter(|line| line.contains("the migration is committed entry="));
        let failed = log.lines().filter(|line| line.contains("the migration has failed"));
        let expected = if name == "origin" { (2, 1, 1) } else { (0, 0, 0) };
        assert_eq!((begun, done.count(), failed.count()), expected, "{log}");
        if name == "edge1" {
            assert!(log.contains("at=\"the origin\""), "{log}");
        }
    }
}
