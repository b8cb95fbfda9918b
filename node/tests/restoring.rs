//! The ways back that docs/operating.md shows, with its own commands: from a copy to a new cluster, from
//! a copy back into one that runs, and from another program's database into a cluster.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use rusqlite::{Connection, types::Value};

const POLICIES: &str = "[tables.stock]\nwriters = \"any\"\ncolumns.n = \"counter\"\n";

const SCHEMA: &str = "
    CREATE TABLE supplier (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE product (
      id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, price REAL, picture BLOB,
      supplier INTEGER REFERENCES supplier(id), shout TEXT AS (upper(name)));
    CREATE INDEX product_by_name ON product(name);
    CREATE TABLE stock (item TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE log (what TEXT);";

const DERIVED: &str = "
    CREATE VIEW dear AS SELECT name FROM product WHERE price > 4;
    CREATE VIRTUAL TABLE found USING fts5(name, content='product', content_rowid='id');
    CREATE TRIGGER found_new AFTER INSERT ON product BEGIN
      INSERT INTO found(rowid, name) VALUES(new.id, new.name);
    END;
    CREATE TRIGGER found_gone AFTER DELETE ON product BEGIN
      INSERT INTO found(found, rowid, name) VALUES('delete', old.id, old.name);
    END;
    CREATE TRIGGER product_logged AFTER INSERT ON product BEGIN
      INSERT INTO log VALUES('new: ' || new.name);
    END;";

const ROWS: &str = "
    INSERT INTO supplier VALUES(1, 'O''Hara'), (2, 'Zoë');
    INSERT INTO product(name, price, picture, supplier) VALUES
      ('tea', 4.5, x'00ff', 2), ('jam; or
two lines', 0.1, NULL, 1), ('bun', NULL, x'', NULL);
    INSERT INTO stock VALUES('tea', 9007199254740993), ('jam', -1);";

/// What must be the same: rows, what is found, and what triggers have logged.
const LOOKS: [&str; 6] = [
    "SELECT * FROM supplier ORDER BY id",
    "SELECT id, name, price, picture, supplier, shout FROM product ORDER BY id",
    "SELECT * FROM stock ORDER BY item",
    "SELECT * FROM log ORDER BY rowid",
    "SELECT * FROM dear",
    "SELECT rowid FROM found WHERE found MATCH 'tea OR two' ORDER BY rowid",
];

fn shell(home: &Path, line: &str) -> Output {
    let littoral = Path::new(env!("CARGO_BIN_EXE_littoral")).parent().unwrap();
    let path = format!("{}:{}", littoral.display(), std::env::var("PATH").unwrap());
    // A pipe fails if its first command does; `sh` alone would not tell.
    Command::new("bash")
        .args(["-o", "pipefail", "-c", line])
        .current_dir(home)
        .env("PATH", path)
        .output()
        .unwrap()
}

fn run(home: &Path, line: &str) -> String {
    let output = shell(home, line);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{line}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands of a section of docs/operating.md, those that begin with `littoral`.
fn documented(section: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(&format!("## {section}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let commands = section.lines().filter_map(|line| line.strip_prefix("$ littoral "));
    commands.map(|command| format!("littoral {command}")).collect()
}

/// A port such that the next few are free, too, as far as one can tell.
fn ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + (std::process::id() % 1000) as u16 * 8;
    let is_free = |port: &u16| {
        (*port..*port + 4).all(|port| {
            UdpSocket::bind(("127.0.0.1", port)).is_ok()
                && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
        })
    };
    let mut ports = std::iter::repeat_with(|| start + 8 * NEXT.fetch_add(1, Ordering::Relaxed));
    ports.find(is_free).unwrap()
}

/// A node that runs; killed if a test fails before it is stopped.
struct Served {
    child: Child,
    log: PathBuf,
}

impl Served {
    fn start(home: &Path, config: &str) -> Self {
        let log = home.join(config).with_file_name("log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_littoral"))
            .args(["serve", "--config", config])
            .current_dir(home)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("is up"), "{line}");
        Self { child, log }
    }

    fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let code = self.child.wait().unwrap().code();
        assert_eq!(code, Some(0), "{}", fs::read_to_string(&self.log).unwrap_or_default());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn look(database: &Path) -> Vec<Vec<Vec<Value>>> {
    let conn = Connection::open(database).unwrap();
    let rows = |sql: &str| {
        let mut query = conn.prepare(sql).unwrap();
        let columns = query.column_count();
        let rows = query.query_map((), |row| (0..columns).map(|i| row.get(i)).collect());
        rows.unwrap().collect::<Result<Vec<Vec<Value>>, _>>().unwrap()
    };
    LOOKS.iter().map(|sql| rows(sql)).collect()
}

/// Waits until a node shows that. Its file is not read before it is ready: a snapshot takes its place.
fn until_equal(home: &Path, node: &str, expected: &[Vec<Vec<Value>>]) {
    let (began, database) = (Instant::now(), home.join(node).join("data.sqlite"));
    let is_ready = || {
        let status = shell(home, &format!("littoral status --config {node}/littoral.toml"));
        // The origin is ready, and nobody is linked to it.
        status.status.success() || node.ends_with("origin")
    };
    while !is_ready() || look(&database) != expected {
        assert!(began.elapsed() < Duration::from_secs(60), "{node}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Runs the documented way from `file` to a new cluster, `new`; gives its nodes.
fn begin_anew(home: &Path, commands: &[String]) -> Vec<Served> {
    let mut nodes = Vec::new();
    for command in commands {
        match command.strip_prefix("littoral serve --config ") {
            Some(config) => nodes.push(Served::start(home, config.trim_end_matches(" &"))),
            // Its default ports may be taken on this machine.
            None if command.starts_with("littoral init") => {
                run(home, &format!("{command} --listen-base {}", ports()));
            }
            None => {
                run(home, command);
            }
        }
    }
    nodes
}

#[test]
fn a_lost_cluster_is_begun_anew_from_a_copy() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("policies.toml"), POLICIES).unwrap();
    fs::write(home.join("first.sql"), SCHEMA).unwrap();
    fs::write(home.join("more.sql"), format!("{DERIVED}{ROWS}")).unwrap();
    let base = ports();
    run(
        home,
        &format!(
            "littoral init old --schema first.sql --policies policies.toml --nodes origin \
             --listen-base {base}"
        ),
    );
    std::os::unix::fs::symlink("old/origin", home.join("origin")).unwrap();
    let node = Served::start(home, "old/origin/littoral.toml");
    run(home, "littoral sql --config old/origin/littoral.toml < more.sql");
    let commands = documented("Backups");
    let (back_up, commands) = commands.split_first().unwrap();
    assert!(back_up.starts_with("littoral backup"), "{back_up}");
    run(home, back_up);
    let expected = look(&home.join("origin.sqlite"));
    assert_eq!(expected[3].len(), 3, "the triggers have logged: {expected:?}");
    assert_eq!(expected[5].len(), 2, "{expected:?}");

    // The rows of a table are put back into the cluster that has lost them.
    let (put_back, commands) = commands.split_first().unwrap();
    assert!(put_back.contains("littoral dump origin.sqlite stock"), "{put_back}");
    run(home, "littoral sql --config origin/littoral.toml -c 'DELETE FROM stock'");
    run(home, put_back);
    assert_eq!(look(&home.join("origin/data.sqlite")), expected);
    node.stop();
    fs::remove_dir_all(home.join("old")).unwrap();

    let nodes = begin_anew(home, commands);
    until_equal(home, "new/origin", &expected);
    // Another node has all of it, and what is derived works on.
    let edge = Served::start(home, "new/edge1/littoral.toml");
    until_equal(home, "new/edge1", &expected);
    let add = "INSERT INTO product(name) VALUES('green tea')";
    run(home, &format!("littoral sql --config new/origin/littoral.toml -c \"{add}\""));
    let expected = look(&home.join("new/origin/data.sqlite"));
    assert_eq!((expected[3].len(), expected[5].len()), (4, 3), "{expected:?}");
    until_equal(home, "new/edge1", &expected);
    edge.stop();
    nodes.into_iter().for_each(Served::stop);
}

#[test]
fn another_programs_database_becomes_a_cluster_and_is_not_changed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("policies.toml"), POLICIES).unwrap();
    let old = home.join("old.sqlite");
    let conn = Connection::open(&old).unwrap();
    conn.execute_batch(&format!("{SCHEMA}{DERIVED}{ROWS}")).unwrap();
    // More than goes into one request, and more than one statement holds.
    conn.execute_batch(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
         INSERT INTO stock SELECT printf('%06d %s', i, hex(zeroblob(40))), i FROM n",
    )
    .unwrap();
    conn.close().unwrap();
    let (bytes, expected) = (fs::read(&old).unwrap(), look(&old));

    // What cannot replicate is named, each with its remedy, before anything is made.
    run(home, "littoral dump old.sqlite --schema > schema.sql");
    let refused = shell(
        home,
        "littoral init new --schema schema.sql --nodes origin --table product:writers=any",
    );
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    for reason in ["AUTOINCREMENT", "foreign key", "generated"] {
        assert!(message.contains(reason), "{reason}: {message}");
    }
    assert!(!home.join("new").exists());

    let nodes = begin_anew(home, &documented("An existing database"));
    until_equal(home, "new/origin", &expected);
    let edge = Served::start(home, "new/edge1/littoral.toml");
    until_equal(home, "new/edge1", &expected);
    edge.stop();
    nodes.into_iter().for_each(Served::stop);
    assert_eq!(fs::read(&old).unwrap(), bytes);
    let beside: Vec<PathBuf> = fs::read_dir(home).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(!beside.iter().any(|path| path.to_string_lossy().contains("old.sqlite-")));
}

#[test]
fn rows_that_refer_in_circles_come_as_one_migration() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let conn = Connection::open(home.join("old.sqlite")).unwrap();
    conn.execute_batch(
        "CREATE TABLE node (id INTEGER PRIMARY KEY, up INTEGER REFERENCES node(id));
         INSERT INTO node VALUES(3, NULL), (2, 3), (1, 2);",
    )
    .unwrap();
    conn.close().unwrap();
    run(home, "littoral dump old.sqlite --schema > schema.sql");
    let base = ports();
    run(
        home,
        &format!("littoral init new --schema schema.sql --nodes origin --listen-base {base}"),
    );
    let node = Served::start(home, "new/origin/littoral.toml");
    run(home, "littoral dump old.sqlite | littoral sql --config new/origin/littoral.toml");
    let sql = "SELECT count(*) AS n FROM node";
    let told =
        run(home, &format!("littoral sql --json --config new/origin/littoral.toml -c '{sql}'"));
    assert_eq!(told.trim(), "[{\"n\":3}]");
    node.stop();
    let missing = shell(home, "littoral dump old.sqlite nothing --json");
    assert_eq!(missing.status.code(), Some(1));
    let nothing = shell(home, "littoral dump nothing.sqlite");
    assert!(String::from_utf8(nothing.stderr).unwrap().contains("cannot open nothing.sqlite"));
    let lines = run(home, "littoral dump old.sqlite --json");
    assert_eq!(lines.lines().next(), Some("{\"row\":{\"id\":1,\"up\":2},\"table\":\"node\"}"));
}

#[test]
fn a_database_that_another_program_has_locked_for_a_moment_is_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("schema.sql"), SCHEMA).unwrap();
    let base = ports();
    run(
        home,
        &format!("littoral init new --schema schema.sql --nodes origin --listen-base {base}"),
    );
    Served::start(home, "new/origin/littoral.toml").stop();
    let other = Connection::open(home.join("new/origin/data.sqlite")).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        other.execute_batch("COMMIT").unwrap();
    });
    Served::start(home, "new/origin/littoral.toml").stop();
    release.join().unwrap();
}
