//! The `littoral` command as a process: what it prints, and how it ends.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    io::{BufRead as _, BufReader, PipeWriter},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

const SCHEMA: &str =
    "CREATE TABLE stock (item TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT);";

fn littoral(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_littoral"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeed(directory: &Path, arguments: &[&str]) -> String {
    let output = littoral(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn fail(directory: &Path, arguments: &[&str]) -> String {
    let output = littoral(directory, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stderr));
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    text(&output.stderr)
}

/// What a command says on stderr that found something which is not in order.
fn find(directory: &Path, arguments: &[&str]) -> String {
    let output = littoral(directory, arguments);
    assert_eq!(output.status.code(), Some(3), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stderr)
}

/// A pipe whose reader has gone.
fn closed() -> PipeWriter {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer
}

fn init(directory: &Path) {
    fs::write(directory.join("schema.sql"), SCHEMA).unwrap();
    let table = "stock:writers=any,n=counter";
    succeed(
        directory,
        &[
            "init",
            "cluster",
            "--schema",
            "schema.sql",
            "--table",
            table,
            "--nodes",
            "origin,edge1",
            "--listen-base",
            "0",
        ],
    );
}

/// A served node; killed if a test fails before it is stopped.
struct Served {
    child: Child,
    links: String,
    http: String,
}

impl Served {
    fn start(directory: &Path, node: &str, more: &[&str]) -> Self {
        Self::spawn(directory, node, more, Stdio::null())
    }

    fn start_logging_to(directory: &Path, node: &str, log: impl Into<Stdio>) -> Self {
        Self::spawn(directory, node, &[], log.into())
    }

    fn spawn(directory: &Path, node: &str, more: &[&str], log: Stdio) -> Self {
        let config = format!("cluster/{node}/littoral.toml");
        let mut child = Command::new(env!("CARGO_BIN_EXE_littoral"))
            .args(["serve", "--json", "--config", &config])
            .args(more)
            .current_dir(directory)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addresses: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(addresses["node"], node);
        let address = |key: &str| addresses[key].as_str().unwrap().to_owned();
        Self { child, links: address("links"), http: address("http") }
    }

    fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn init_refuses_to_overwrite_and_refuses_what_cannot_replicate() {
    let home = tempfile::tempdir().unwrap();
    init(home.path());
    let again = ["init", "cluster", "--schema", "schema.sql", "--nodes", "origin,edge1"];
    let message = fail(home.path(), &again);
    assert!(message.contains("exists already") && message.contains("hint:"), "{message}");

    fs::write(home.path().join("bad.sql"), "CREATE TABLE t (a TEXT PRIMARY KEY, b UNIQUE);")
        .unwrap();
    let bad = ["init", "other", "--schema", "bad.sql", "--table", "t:writers=any", "--nodes", "a"];
    let message = fail(home.path(), &bad);
    assert!(message.contains("cannot replicate") && message.contains('t'), "{message}");
    let misspelled = ["init", "other", "--schema", "schema.sql", "--nodes", "a"];
    let misspelled = [&misspelled[..], &["--table", "stock:writer=any,n=counter"]].concat();
    let message = fail(home.path(), &misspelled);
    let told = "writer is no setting, so it is taken for a column, and \"any\" is no merge type";
    assert!(message.contains(told) && message.contains("hint: settings are policy, writers,"));
    let left: Vec<_> = fs::read_dir(home.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["cluster", "schema.sql", "bad.sql"].contains(&name.as_str()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn nodes_are_served_asked_and_stopped() {
    let home = tempfile::tempdir().unwrap();
    init(home.path());
    let origin = Served::start(home.path(), "origin", &[]);
    let dial = format!("origin={}", origin.links);
    let edge = Served::start(home.path(), "edge1", &["--dial", &dial]);

    let status = || -> Value {
        let shown = littoral(home.path(), &["status", "--url", &edge.http, "--json"]);
        let status: Value = serde_json::from_slice(&shown.stdout).unwrap();
        let in_order = status["ready"] == true && status["degraded"].is_null();
        assert_eq!(shown.status.code(), Some(if in_order { 0 } else { 3 }), "{status}");
        status
    };
    let began = std::time::Instant::now();
    while status()["ready"] != true {
        assert!(began.elapsed().as_secs() < 30, "{}", status());
    }
    let sql = "BEGIN; INSERT INTO stock VALUES ('pen', 1); UPDATE stock SET n = n + 1; COMMIT;
               SELECT * FROM stock";
    let rows = succeed(home.path(), &["sql", "--url", &edge.http, "--json", "-c", sql]);
    let rows: Value = serde_json::from_str(rows.trim()).unwrap();
    assert_eq!(rows, serde_json::json!([{ "item": "pen", "n": 2 }]));
    let table = succeed(home.path(), &["sql", "--url", &edge.http, "-c", "SELECT * FROM stock"]);
    assert_eq!(table, "item  n\n────  ─\npen   2\n");

    let sql = "BEGIN; UPDATE stock SET n = 99";
    let message = fail(home.path(), &["sql", "--url", &edge.http, "-c", sql]);
    assert!(message.contains("leaves a transaction open"), "{message}");
    let sql = "INSERT INTO orders VALUES (1, 'pen')";
    succeed(home.path(), &["sql", "--url", &edge.http, "-c", sql]);
    let sql = "SELECT count(*) AS n FROM orders";
    let rows = succeed(home.path(), &["sql", "--url", &edge.http, "--json", "-c", sql]);
    assert_eq!(rows.trim(), "[{\"n\":1}]");

    // Statistics are each node's own.
    for node in [&edge.http, &origin.http] {
        assert_eq!(succeed(home.path(), &["sql", "--url", node, "-c", "ANALYZE"]), "");
        let message = fail(home.path(), &["sql", "--url", node, "-c", "PRAGMA optimize"]);
        assert!(message.contains("run ANALYZE instead"), "{message}");
    }
    // The rows of both are compared; what waits or is held back is explained.
    let verified = succeed(home.path(), &["verify", "--url", &edge.http, "--json"]);
    let verified: Value = serde_json::from_str(&verified).unwrap();
    assert_eq!((&verified["differing"], &verified["undecided"]), (&0.into(), &0.into()));
    assert_eq!(verified["with"], "origin");
    let message = fail(home.path(), &["verify", "--url", &origin.http]);
    assert!(message.contains("this node is the origin"), "{message}");
    let waits = succeed(home.path(), &["schema", "status", "--url", &edge.http]);
    assert!(waits.contains("no change waits"), "{waits}");
    let message = fail(home.path(), &["schema", "abort", "--url", &origin.http]);
    assert!(message.contains("no change of the schema waits"), "{message}");
    let message = fail(home.path(), &["schema", "abort", "--url", &edge.http]);
    assert!(message.contains("origin"), "{message}");
    let explained = succeed(home.path(), &["gc", "explain", "--url", &origin.http]);
    assert!(explained.contains("frontier"), "{explained}");

    // A backup is whole although the node goes on, and overwrites nothing.
    let backup = ["backup", "--config", "cluster/edge1/littoral.toml", "copy.sqlite"];
    let made: Value =
        serde_json::from_str(&succeed(home.path(), &[&backup[..], &["--json"][..]].concat()))
            .unwrap();
    assert_eq!(made["tables"], 2, "{made}");
    assert!(fail(home.path(), &backup).contains("exists already"));
    let copy = rusqlite::Connection::open(home.path().join("copy.sqlite")).unwrap();
    let n: i64 = copy.query_row("SELECT n FROM stock", (), |row| row.get(0)).unwrap();
    assert_eq!(n, 2);
    drop(copy);
    let conflicts = succeed(home.path(), &["conflicts", "--url", &edge.http, "--table", "stock"]);
    assert!(conflicts.contains("there are none"), "{conflicts}");
    let conflicts = succeed(home.path(), &["conflicts", "--url", &edge.http, "--json"]);
    assert_eq!(conflicts.trim(), "[]");

    edge.stop();
    // A change that must not meet writes under way waits for the edge that is away.
    let sql = "PRAGMA foreign_keys = off; DROP TABLE stock; PRAGMA foreign_keys = on";
    let drop = ["sql", "--url", &origin.http, "-c", sql];
    let message = find(home.path(), &drop);
    assert!(message.starts_with("note: the change is accepted"), "{message}");
    assert!(message.contains("waiting for edge1") && message.contains("hint:"), "{message}");
    let message = fail(home.path(), &[&drop[..], &["--json"]].concat());
    let message: Value = serde_json::from_str(&message).unwrap();
    assert!(message["error"].as_str().unwrap().contains("LITTORAL_SCHEMA_CHANGING"), "{message}");
    assert_eq!(message["exit_code"], 1);
    let waits = littoral(home.path(), &["schema", "status", "--url", &origin.http]);
    assert_eq!(waits.status.code(), Some(3));
    let waits = text(&waits.stdout);
    assert!(waits.contains("stock") && waits.contains("edge1"), "{waits}");
    assert!(waits.contains("since       20") && waits.contains("s ago)"), "{waits}");
    let explain = ["policy", "explain", "--url", &origin.http, "UPDATE stock SET n = 1"];
    let explained = succeed(home.path(), &explain);
    assert!(explained.contains("not here: stock is about to change its schema"), "{explained}");
    let explained = succeed(home.path(), &["gc", "explain", "--url", &origin.http]);
    assert!(explained.contains("edge1") && explained.contains("s ago)"), "{explained}");
    let degraded = littoral(home.path(), &["status", "--url", &origin.http, "--json"]);
    assert_eq!((degraded.status.code(), &*degraded.stderr), (Some(3), &b""[..]));
    let degraded: Value = serde_json::from_slice(&degraded.stdout).unwrap();
    assert_eq!(degraded["ready"], true, "{degraded}");
    let abort = ["schema", "abort", "--url", &origin.http];
    succeed(home.path(), &abort);
    // What follows a change that waits is not run, and that is no success.
    let sql =
        "PRAGMA foreign_keys = off; BEGIN; DROP TABLE stock; COMMIT; PRAGMA foreign_keys = on;
               INSERT INTO orders VALUES (7, 'ink'); INSERT INTO orders VALUES (8, 'ink')";
    let message = fail(home.path(), &["sql", "--url", &origin.http, "-c", sql]);
    assert!(message.contains("accepted") && message.contains("not run: 2"), "{message}");
    succeed(home.path(), &abort);
    // Nor is what follows one that fails.
    let sql = sql.replace("DROP TABLE stock", "DROP TABLE absent");
    let message = fail(home.path(), &["sql", "--url", &origin.http, "-c", &sql]);
    assert!(message.contains("no such table: absent"), "{message}");
    assert!(message.contains("\n  in: DROP TABLE absent"), "{message}");
    let sql = sql.replace(
        "DROP TABLE absent",
        "CREATE TABLE two (id TEXT PRIMARY KEY NOT NULL); INSERT INTO two VALUES (1), (1)",
    );
    let message = fail(home.path(), &["sql", "--url", &origin.http, "-c", &sql]);
    assert!(
        message.contains("UNIQUE constraint failed: two.id\n  in: INSERT INTO two"),
        "{message}"
    );
    let sql = "SELECT count(*) AS n FROM orders WHERE item = 'ink'";
    let rows = succeed(home.path(), &["sql", "--url", &origin.http, "--json", "-c", sql]);
    assert_eq!(rows.trim(), "[{\"n\":0}]");
    let commented = format!("-- How many?\n{sql}");
    let rows = succeed(home.path(), &["sql", "--url", &origin.http, "--json", "-c", &commented]);
    assert_eq!(rows.trim(), "[{\"n\":0}]");
    let sql = "UPDATE stock SET n = 5";
    succeed(home.path(), &["sql", "--url", &origin.http, "-c", sql]);
    origin.stop();
    let config = "cluster/origin/littoral.toml";
    let message = fail(home.path(), &["status", "--config", config]);
    assert!(message.contains("hint:"), "{message}");
}

#[test]
fn output_that_nobody_reads_ends_commands_quietly_and_no_node() {
    let home = tempfile::tempdir().unwrap();
    init(home.path());
    let node = Served::start_logging_to(home.path(), "origin", closed());
    let url = node.http.as_str();
    let config = "cluster/origin/littoral.toml";
    for words in [
        &["--help"][..],
        &["init", "other", "--schema", "schema.sql", "--nodes", "a"],
        &["check-config", "--config", config],
        &["token", "key"],
        &["token", "issue", "--key", "token.key", "--read", "stock"],
        &["ca", "list", "--cluster", "cluster"],
        &["ca", "issue", "edge8", "--cluster", "cluster"],
        &["backup", "--config", config, "copy.sqlite"],
        &["status", "--url", url],
        &["status", "--url", url, "--json"],
        &["sql", "--url", url, "-c", "SELECT * FROM stock"],
        &["conflicts", "--url", url],
        &["gc", "explain", "--url", url],
        &["schema", "status", "--url", url],
        &["policy", "explain", "--url", url, "SELECT 1"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_littoral"));
        let output =
            command.args(words).current_dir(home.path()).stdout(closed()).output().unwrap();
        assert!(output.stderr.is_empty(), "{words:?}: {}", text(&output.stderr));
        let expected = if words == ["--help"] { 0 } else { 1 };
        assert_eq!(output.status.code(), Some(expected), "{words:?}");
    }
    // The node logs where nobody reads, and has answered all the same.
    node.stop();
}

#[test]
fn changes_of_the_schema_change_no_rows() {
    let home = tempfile::tempdir().unwrap();
    init(home.path());
    let node = Served::start(home.path(), "origin", &[]);
    let sql = |sql: &str| succeed(home.path(), &["sql", "--url", &node.http, "-c", sql]);
    assert_eq!(sql("INSERT INTO orders VALUES (1, 'pen'), (2, 'ink')"), "2 rows changed\n");
    for change in [
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)",
        "ALTER TABLE orders ADD COLUMN n INTEGER",
        "CREATE INDEX orders_item ON orders (item)",
        "CREATE VIEW pens AS SELECT * FROM orders WHERE item = 'pen'",
        "DROP VIEW pens",
        "EXPLAIN UPDATE orders SET n = 1",
    ] {
        let told = sql(change);
        assert!(!told.contains("changed"), "{change}: {told}");
    }
    let both = "UPDATE orders SET n = 1; CREATE TABLE more (id INTEGER PRIMARY KEY)";
    assert_eq!(sql(both), "2 rows changed\n");
    node.stop();
}

#[test]
fn a_wrong_configuration_is_explained() {
    let home = tempfile::tempdir().unwrap();
    let message = fail(home.path(), &["serve", "--config", "missing.toml"]);
    assert!(message.contains("missing.toml") && message.contains("hint:"), "{message}");
    init(home.path());
    let check = ["check-config", "--config", "cluster/edge1/littoral.toml"];
    let shown = succeed(home.path(), &check);
    assert!(shown.contains("edge1") && shown.contains("whoever reaches it"), "{shown}");
    let shown = succeed(home.path(), &[&check[..], &["--json"][..]].concat());
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["node"], &shown["tokens"]), (&"edge1".into(), &false.into()));
    // Another node's certificate would let it start, and then no peer would let it in.
    for file in ["node.pem", "node.key"] {
        fs::rename(
            home.path().join("cluster/edge1").join(file),
            home.path().join("cluster/edge1").join(format!("{file}.own")),
        )
        .unwrap();
        fs::copy(
            home.path().join("cluster/origin").join(file),
            home.path().join("cluster/edge1").join(file),
        )
        .unwrap();
    }
    let message = find(home.path(), &check);
    assert!(message.contains("does not name the node edge1"), "{message}");
    // Errors are JSON, too, if that was asked for: of what was found, of a failure, of a mistake.
    let json = |output: &Output, code: i32| -> Value {
        assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0));
        let said: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(said["exit_code"], code, "{said}");
        said
    };
    let said = json(&littoral(home.path(), &[&check[..], &["--json"]].concat()), 3);
    assert!(said["error"].as_str().unwrap().contains("edge1"), "{said}");
    let missing = ["check-config", "--config", "missing.toml", "--json"];
    let said = json(&littoral(home.path(), &missing), 1);
    assert!(said["hint"].as_str().unwrap().contains("littoral init"), "{said}");
    let said = json(&littoral(home.path(), &["check-config", "--json"]), 2);
    assert!(said["error"].as_str().unwrap().contains("--config"), "{said}");
    let path = home.path().join("cluster/edge1/littoral.toml");
    let text = fs::read_to_string(&path).unwrap().replace("[storage]", "[storage]\nreader = 3");
    fs::write(&path, text).unwrap();
    let message = fail(home.path(), &["serve", "--config", "cluster/edge1/littoral.toml"]);
    assert!(message.contains("reader") && message.contains("readers"), "{message}");
}

#[test]
fn a_database_that_the_node_cannot_have_is_told_before_it_starts() {
    let home = tempfile::tempdir().unwrap();
    init(home.path());
    let edge = home.path().join("cluster/edge1");
    let config = edge.join("littoral.toml");
    let settings = fs::read_to_string(&config).unwrap();
    let check = ["check-config", "--config", "cluster/edge1/littoral.toml"];
    let there = |directory: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = there(&edge);
    assert!(succeed(home.path(), &check).contains("data.sqlite: not there yet"));
    for (data, why) in [
        ("nowhere/data.sqlite", "is not there: make the directory"),
        ("node.pem/data.sqlite", "is no directory"),
        ("../edge1", "is no file"),
        ("node.pem", "file is not a database"),
    ] {
        fs::write(&config, settings.replace("\"data.sqlite\"", &format!("{data:?}"))).unwrap();
        let message = find(home.path(), &check);
        assert!(message.contains(why), "{data}: {message}");
        let message = fail(home.path(), &["serve", "--config", "cluster/edge1/littoral.toml"]);
        assert!(message.contains(why), "{data}: {message}");
    }
    for name in [".lock", "-wal", "-shm", "-id"] {
        // What `serve` has made beside the file that it refused.
        let _ = fs::remove_file(edge.join(format!("node.pem{name}")));
    }
    fs::write(&config, &settings).unwrap();
    assert_eq!(there(&edge), before);

    let origin = Served::start(home.path(), "origin", &[]);
    let running = ["check-config", "--config", "cluster/origin/littoral.toml", "--json"];
    let shown: Value = serde_json::from_str(&succeed(home.path(), &running)).unwrap();
    assert_eq!(shown["database_is"], "in use");
    succeed(
        home.path(),
        &["sql", "--url", &origin.http, "-c", "INSERT INTO orders VALUES (1, 'a')"],
    );
    origin.stop();
    let shown: Value = serde_json::from_str(&succeed(home.path(), &running)).unwrap();
    assert_eq!(shown["database_is"], "there");
    fs::copy(home.path().join("cluster/origin/data.sqlite"), edge.join("data.sqlite")).unwrap();
    let message = find(home.path(), &check);
    assert!(message.contains("the file belongs to origin"), "{message}");
    fs::remove_file(edge.join("data.sqlite")).unwrap();
    let other = rusqlite::Connection::open(edge.join("data.sqlite")).unwrap();
    other.execute_batch("CREATE TABLE t (a)").unwrap();
    drop(other);
    let message = find(home.path(), &check);
    assert!(message.contains("littoral did not make"), "{message}");
    fs::remove_file(edge.join("data.sqlite")).unwrap();
    assert_eq!(there(&edge), before);

    // Nor what the cluster could not begin with.
    let fresh = home.path().join("fresh");
    succeed(home.path(), &["init", "fresh", "--schema", "schema.sql", "--nodes", "origin"]);
    let schema = fs::read_to_string(fresh.join("origin/schema.sql")).unwrap();
    let check = ["check-config", "--config", "fresh/origin/littoral.toml"];
    for (more, why) in [
        ("CREATE TABLE broken (", "incomplete input"),
        ("CREATE TABLE strange (k BLOB PRIMARY KEY NOT NULL, v TEXT UNIQUE COLLATE mine);", "mine"),
    ] {
        fs::write(fresh.join("origin/schema.sql"), format!("{schema}\n{more}")).unwrap();
        let message = find(home.path(), &check);
        assert!(message.contains("cannot begin") && message.contains(why), "{message}");
    }
    fs::remove_file(fresh.join("origin/schema.sql")).unwrap();
    let message = find(home.path(), &check);
    assert!(message.contains("genesis.schema = fresh/origin/schema.sql"), "{message}");
    fs::write(fresh.join("origin/schema.sql"), &schema).unwrap();
    succeed(home.path(), &check);
    assert!(!fresh.join("origin/data.sqlite").exists());

    // A file that was restored is not this node's any more, nor is a directory whose file is gone.
    let data = home.path().join("cluster/origin/data.sqlite");
    let older = fs::read(&data).unwrap();
    Served::start(home.path(), "origin", &[]).stop();
    let newer = fs::read(&data).unwrap();
    let check = ["check-config", "--config", "cluster/origin/littoral.toml"];
    succeed(home.path(), &check);
    fs::write(&data, older).unwrap();
    let message = find(home.path(), &check);
    assert!(message.contains("is a copy or was restored"), "{message}");
    fs::remove_file(&data).unwrap();
    let message = find(home.path(), &check);
    assert!(message.contains("the database is gone"), "{message}");
    fs::write(&data, newer).unwrap();
    // After a crash the newest count is in the WAL, and nothing is wrong with that.
    let mut killed = Served::start(home.path(), "origin", &[]);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    drop(killed);
    assert!(fs::metadata(home.path().join("cluster/origin/data.sqlite-wal")).unwrap().len() > 0);
    succeed(home.path(), &check);
    Served::start(home.path(), "origin", &[]).stop();
}

#[test]
fn mistakes_are_answered_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    init(home.path());
    let node = Served::start(home.path(), "origin", &[]);
    let url = node.http.clone();
    let message = fail(
        home.path(),
        &["backup", "--config", "cluster/origin/littoral.toml", "nowhere/copy.sqlite"],
    );
    assert!(message.contains("no directory nowhere") && message.contains("hint:"), "{message}");
    let message = fail(home.path(), &["conflicts", "--url", &url, "--table", "nonsense"]);
    assert!(message.contains("no table nonsense") && message.contains("hint:"), "{message}");
    assert_eq!(
        succeed(home.path(), &["conflicts", "--url", &url, "--table", "Stock"]),
        "there are none\n"
    );
    for sql in ["CREATE TABLE t (a)", " drop table stock", "ALTER TABLE stock ADD x"] {
        let message = fail(home.path(), &["policy", "explain", "--url", &url, sql]);
        assert!(message.contains("changes the schema"), "{message}");
    }
    node.stop();
}

#[test]
fn commands_speak_https() {
    let home = tempfile::tempdir().unwrap();
    init(home.path());
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(home.path().join("server.pem"), made.cert.pem()).unwrap();
    fs::write(home.path().join("server.key"), made.signing_key.serialize_pem()).unwrap();
    let path = home.path().join("cluster/origin/littoral.toml");
    let text = fs::read_to_string(&path).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (before, rest) = text.split_once("[http]\nlisten = \"127.0.0.1:0\"").unwrap();
    let tls = "[http.tls]\ncertificate = \"../../server.pem\"\nkey = \"../../server.key\"\n";
    let text = format!("{before}[http]\nlisten = \"127.0.0.1:{port}\"{rest}\n{tls}");
    fs::write(&path, text).unwrap();
    let node = Served::start(home.path(), "origin", &[]);
    assert!(node.http.starts_with("https://"), "{}", node.http);
    let url = format!("https://localhost:{port}");
    fn sql<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["sql", "-c", "SELECT 40 + 2 AS n", "--json"], more].concat()
    }
    let asked = succeed(home.path(), &sql(&["--url", &url, "--ca", "server.pem"]));
    assert_eq!(asked, "[{\"n\":42}]\n");
    // The node's own configuration says which certificate it shows.
    succeed(home.path(), &sql(&["--config", "cluster/origin/littoral.toml"]));
    // Somebody else's certificate, or none that the system knows.
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(home.path().join("other.pem"), other.cert.pem()).unwrap();
    let message = fail(home.path(), &sql(&["--url", &url, "--ca", "other.pem"]));
    assert!(message.contains("no TLS connection") && message.contains("is --ca"), "{message}");
    // The scheme of the other kind.
    let plain = format!("http://localhost:{port}");
    let message = fail(home.path(), &sql(&["--url", &plain]));
    assert!(message.contains("does not answer in plain HTTP"), "{message}");
    assert!(message.contains(&format!("say https://localhost:{port}")), "{message}");
    let edge = Served::start(home.path(), "edge1", &[]);
    let url = edge.http.replace("http://127.0.0.1", "https://localhost");
    let message = fail(home.path(), &sql(&["--url", &url, "--ca", "server.pem"]));
    assert!(message.contains("speaks plain HTTP: say http://localhost:"), "{message}");
    edge.stop();
    node.stop();
    // What many a recipe for a self-signed certificate makes.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    fs::write(home.path().join("server.pem"), authority.pem()).unwrap();
    fs::write(home.path().join("server.key"), key.serialize_pem()).unwrap();
    let node = Served::start(home.path(), "origin", &[]);
    let url = format!("https://localhost:{port}");
    let message = fail(home.path(), &sql(&["--url", &url, "--ca", "server.pem"]));
    assert!(message.contains("certificate is one for an authority (CA:TRUE)"), "{message}");
    node.stop();
}

#[test]
fn certificates_are_renewed_revoked_and_listed() {
    let home = tempfile::tempdir().unwrap();
    init(home.path());
    let read = |path: &str| fs::read_to_string(home.path().join("cluster").join(path)).unwrap();
    let (certificate, key) = (read("edge1/node.pem"), read("edge1/node.key"));
    succeed(home.path(), &["ca", "renew", "edge1", "--cluster", "cluster", "--days", "7"]);
    assert_ne!(read("edge1/node.pem"), certificate);
    assert_eq!(read("edge1/node.key"), key);
    succeed(home.path(), &["ca", "renew", "edge1", "--cluster", "cluster", "--new-key"]);
    assert_ne!(read("edge1/node.key"), key);
    let check = ["check-config", "--config", "cluster/edge1/littoral.toml"];
    succeed(home.path(), &check);
    // A node whose directory is elsewhere is renewed by what the authority has noted.
    fs::rename(home.path().join("cluster/edge1"), home.path().join("away")).unwrap();
    let told = succeed(home.path(), &["ca", "renew", "edge1", "--cluster", "cluster"]);
    let copied = told.split(' ').nth(1).unwrap();
    fs::copy(home.path().join(copied), home.path().join("away/node.pem")).unwrap();
    succeed(home.path(), &["check-config", "--config", "away/littoral.toml"]);

    let list = |home: &Path| -> Vec<Value> {
        let text = succeed(home, &["ca", "list", "--cluster", "cluster", "--json"]);
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(list(home.path()).len(), 5);
    let json = |arguments: &[&str]| -> Value {
        let arguments = [arguments, &["--cluster", "cluster", "--json"]].concat();
        serde_json::from_str(&succeed(home.path(), &arguments)).unwrap()
    };
    let issued = json(&["ca", "issue", "edge7"]);
    assert_eq!((&issued["node"], &issued["needs_peer"]), (&"edge7".into(), &true.into()));
    assert!(home.path().join(issued["config"].as_str().unwrap()).exists(), "{issued}");
    let renewed = json(&["ca", "renew", "edge7", "--days", "7"]);
    assert_eq!(renewed["in_place"], true, "{renewed}");
    assert_eq!(renewed["certificate"], "cluster/edge7/node.pem");
    let revoked = json(&["ca", "revoke", "edge7"]);
    assert_eq!(revoked["revoked"].as_array().unwrap().len(), 2, "{revoked}");
    assert_eq!(revoked["given_to"].as_array().unwrap().len(), 2, "{revoked}");
    let told = succeed(home.path(), &["ca", "revoke", "edge1", "--cluster", "cluster"]);
    assert!(told.contains("4 certificates of edge1") && told.contains("origin"), "{told}");
    for one in list(home.path()) {
        assert_eq!(one["revoked"].is_null(), one["node"] == "origin", "{one}");
    }
    succeed(home.path(), &["check-config", "--config", "cluster/origin/littoral.toml"]);
    fs::copy(home.path().join("cluster/ca/revoked.pem"), home.path().join("away/revoked.pem"))
        .unwrap();
    let message = find(home.path(), &["check-config", "--config", "away/littoral.toml"]);
    assert!(message.contains("revoked"), "{message}");
    let message = fail(home.path(), &["ca", "revoke", "edge1", "--cluster", "cluster"]);
    assert!(message.contains("hint:"), "{message}");
    // The name is free again, but once only.
    let invite = ["ca", "invite", "edge1", "--cluster", "cluster"];
    let invite = [&invite[..], &["--at", "localhost:1", "--dial", "origin=localhost:2"]].concat();
    let warned = |arguments: &[&str]| {
        let output = littoral(home.path(), arguments);
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}");
        text(&output.stderr)
    };
    assert_eq!(warned(&invite), "");
    assert_eq!(warned(&["ca", "issue", "edge1", "--cluster", "cluster"]), "");
    let json: Value = serde_json::from_str(&warned(&[&invite[..], &["--json"]].concat())).unwrap();
    assert!(json["warning"].as_str().unwrap().starts_with("edge1 has"), "{json}");
    let again = warned(&invite);
    assert!(again.contains("warning: edge1 has a certificate already, valid for 3"), "{again}");
    assert!(again.contains("hint: ") && again.contains("littoral ca revoke edge1"), "{again}");
    let again = warned(&["ca", "issue", "edge1", "--cluster", "cluster", "--dir", "again"]);
    assert!(again.contains("warning: edge1 has a certificate already"), "{again}");
    succeed(home.path(), &check);
}
