//! A disk that is full: the node reads only, says why, and goes on by itself when there is room.
//!
//! The disk is a small tmpfs in a user namespace of the node's own, which needs no rights. Where the system
//! allows no such namespaces this says so and checks nothing; the simulator fills disks of its own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

struct Served {
    child: Child,
    http: String,
    links: String,
}

impl Served {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        let address = |key: &str| told[key].as_str().unwrap().replace("http://", "");
        Self { child, http: address("http"), links: address("links") }
    }

    fn request(&self, head: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        write!(
            stream,
            "{head} HTTP/1.1\r\nconnection: close\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap())
    }

    /// The first value of a statement's first row, or its error.
    fn run(&self, sql: &str) -> Result<Value, Value> {
        let body = json!({ "requests": [{ "type": "execute", "stmt": { "sql": sql } }, { "type": "close" }] });
        let (_, mut answer) = self.request("POST /v3/pipeline", &body.to_string());
        let mut result = answer["results"][0].take();
        match result["type"].as_str() {
            Some("ok") => {
                let first = result.pointer("/response/result/rows/0/0/value");
                Ok(first.cloned().unwrap_or_default())
            }
            _ => Err(result["error"].take()),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn namespaces_are_allowed(directory: &Path) -> bool {
    let mount = "mount -t tmpfs -o size=1m tmpfs \"$1\"";
    let tried = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"])
        .arg(directory)
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

#[test]
fn a_node_whose_disk_is_full_reads_only_until_there_is_room() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("schema.sql"), "CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB);")
        .unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_littoral"))
        .current_dir(home)
        .args(["init", "cluster", "--schema", "schema.sql", "--nodes", "origin,edge1"])
        .args(["--table", "t:writers=any,key=explicit", "--listen-base", "0"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
    let small = home.join("cluster/origin/small");
    fs::create_dir(&small).unwrap();
    if !namespaces_are_allowed(&small) {
        eprintln!("user namespaces are not allowed here: nothing was checked");
        return;
    }
    let config = home.join("cluster/origin/littoral.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"data.sqlite\"", "\"small/data.sqlite\"")).unwrap();
    let script = "mount -t tmpfs -o size=8m tmpfs \"$1\" && head -c 3145728 /dev/zero > \"$1/ballast\" && \
                  exec \"$2\" serve --json --config \"$3\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    command.arg(&small).arg(env!("CARGO_BIN_EXE_littoral")).arg(&config);
    let origin = Served::start(command);
    let mut command = Command::new(env!("CARGO_BIN_EXE_littoral"));
    command.args(["serve", "--json", "--config"]).arg(home.join("cluster/edge1/littoral.toml"));
    command.args(["--dial", &format!("origin={}", origin.links)]);
    let edge = Served::start(command);
    until("the edge to be ready", || edge.request("GET /ready", "").0 == 200);

    let mut rows = 0;
    let error = loop {
        match origin.run(&format!("INSERT INTO t VALUES ({rows}, randomblob(100000))")) {
            Ok(_) => rows += 1,
            Err(error) => break error,
        }
        assert!(rows < 200, "the disk is never full");
    };
    assert_eq!(error["code"], "SQLITE_FULL", "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("the disk is full") && message.contains("reads go on"), "{message}");
    let count = |node: &Served| -> u32 {
        let count = node.run("SELECT count(*) FROM t").unwrap();
        count.as_str().unwrap().parse().unwrap()
    };
    assert_eq!(count(&origin), rows);
    until("not to be ready", || {
        let refused = origin.run("INSERT INTO t VALUES (-1, randomblob(100000))").unwrap_err();
        assert_eq!(refused["code"], "SQLITE_FULL", "{refused}");
        let (status, body) = origin.request("GET /ready", "");
        status == 503 && body["reason"].as_str().unwrap().contains("full")
    });
    // What others write meanwhile waits for room.
    edge.run("INSERT INTO t VALUES (1000, randomblob(100000))").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(count(&origin), rows, "nothing of what was refused is there");

    let ballast: PathBuf = ["/proc", &origin.child.id().to_string(), "root"].iter().collect();
    let ballast = ballast.join(small.strip_prefix("/").unwrap()).join("ballast");
    fs::remove_file(ballast).unwrap();
    until("the edge's row to come", || count(&origin) == rows + 1);
    until("a write to be taken", || origin.run("INSERT INTO t VALUES (2000, x'00')").is_ok());
    until("to be ready", || origin.request("GET /ready", "").0 == 200);
    until("the edge to have all", || count(&edge) == rows + 2);
    assert_eq!(origin.run("PRAGMA integrity_check").unwrap(), "ok");
}

#[test]
fn a_directory_that_cannot_be_written_is_told_before_the_node_starts() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("schema.sql"), "CREATE TABLE t (id INTEGER PRIMARY KEY);").unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_littoral"))
        .current_dir(home)
        .args(["init", "cluster", "--schema", "schema.sql", "--nodes", "origin"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
    let sealed = home.join("cluster/origin/sealed");
    fs::create_dir(&sealed).unwrap();
    if !namespaces_are_allowed(&sealed) {
        eprintln!("user namespaces are not allowed here: nothing was checked");
        return;
    }
    let config = home.join("cluster/origin/littoral.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"data.sqlite\"", "\"sealed/data.sqlite\"")).unwrap();
    let script = "mount -t tmpfs -o ro tmpfs \"$1\" && exec \"$2\" check-config --config \"$3\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    let output =
        command.arg(&sealed).arg(env!("CARGO_BIN_EXE_littoral")).arg(&config).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("cannot be written"), "{told}");
}
