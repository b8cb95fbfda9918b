//! Machines that make themselves nodes with a token, over real TLS, against the real processes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::harness::{Cluster, Node, assert_converge, stop};

const SCHEMA: &str = "CREATE TABLE c (id INTEGER PRIMARY KEY, name TEXT);";

/// `littoral ca serve`, on a port of the system's choice.
struct Signing {
    child: Child,
    at: String,
}

impl Signing {
    fn start(cluster: &Cluster) -> Self {
        let mut child = littoral(cluster)
            .args(["ca", "serve", "--cluster", "cluster", "--listen", "127.0.0.1:0", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        Self { child, at: told["listen"].as_str().unwrap().to_owned() }
    }

    fn invite(&self, cluster: &Cluster, node: &str, origin: &Node, options: &[&str]) -> String {
        let dial = format!("origin={}", origin.links());
        let arguments = ["ca", "invite", node, "--cluster", "cluster", "--at", &self.at];
        let output = littoral(cluster)
            .args(arguments)
            .args(["--dial", &dial])
            .args(options)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Signing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn littoral(cluster: &Cluster) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-under-test"));
    command.current_dir(cluster.home());
    command
}

/// What `littoral join` says when it is refused.
fn refused(cluster: &Cluster, directory: &str, token: &str) -> String {
    let output = littoral(cluster).args(["join", directory, "--token", token]).output().unwrap();
    assert!(!output.status.success());
    assert!(!cluster.home().join(directory).join("littoral.toml").exists());
    let said = String::from_utf8(output.stderr).unwrap();
    // Nothing is left behind, unless a certificate was made for the key that is there.
    let was_signed = said.contains("gave a certificate of");
    assert_eq!(cluster.home().join(directory).exists(), was_signed, "{said}");
    said
}

/// A token whose text was changed in one place.
fn changed(token: &str, field: &str, value: &str) -> String {
    let (prefix, encoded) = token.split_once('.').unwrap();
    let mut parts: Value =
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(encoded).unwrap()).unwrap();
    parts[field] = value.into();
    format!("{prefix}.{}", BASE64_URL_SAFE_NO_PAD.encode(parts.to_string()))
}

#[test]
fn a_machine_joins_with_nothing_but_a_token() {
    let cluster = Cluster::init(SCHEMA, &["c:writers=any,key=explicit"], &["origin"]);
    let origin = cluster.serve("origin", &[]);
    origin.until_ready();
    origin.run(&["INSERT INTO c VALUES (1, 'one')"]);
    let signing = Signing::start(&cluster);
    let token = signing.invite(&cluster, "edge1", &origin, &["--days", "30"]);
    let edge = cluster.join("cluster/edge1", "edge1", &token);
    edge.until_ready();
    assert_eq!(edge.run(&["SELECT count(*) FROM c"])["rows"][0][0]["value"], "1");
    edge.run(&["INSERT INTO c VALUES (2, 'two')"]);
    let nodes = vec![origin, edge];
    assert_converge(&nodes, &["SELECT * FROM c ORDER BY id"]);
    stop(nodes);
}

#[test]
fn a_token_is_used_once_whatever_is_restarted_in_between() {
    let cluster = Cluster::init(SCHEMA, &["c:writers=any,key=explicit"], &["origin"]);
    let origin = cluster.serve("origin", &[]);
    origin.until_ready();
    let signing = Signing::start(&cluster);
    let token = signing.invite(&cluster, "edge1", &origin, &[]);
    let edge = cluster.join("one", "edge1", &token);
    edge.until_ready();
    edge.stop();
    assert!(refused(&cluster, "two", &token).contains("used already"));
    let at = signing.at.clone();
    drop(signing);
    let mut signing = Signing::start(&cluster);
    let token = changed(&token, "at", &signing.at);
    assert_ne!(at, signing.at);
    assert!(refused(&cluster, "two", &token).contains("used already"));
    // Who has the key may ask again, if they did not hear the answer; the same certificate is given.
    let certificate = fs::read_to_string(cluster.home().join("one/node.pem")).unwrap();
    for file in ["littoral.toml", "node.pem"] {
        fs::remove_file(cluster.home().join("one").join(file)).unwrap();
    }
    fs::create_dir(cluster.home().join("two")).unwrap();
    fs::copy(cluster.home().join("one/node.key"), cluster.home().join("two/node.key")).unwrap();
    let edge = cluster.join("two", "edge1", &token);
    assert_eq!(fs::read_to_string(cluster.home().join("two/node.pem")).unwrap(), certificate);
    edge.stop();
    // A node that has joined is only run, also when nobody signs any more.
    signing.child.kill().unwrap();
    let edge = cluster.join("two", "edge1", &token);
    edge.stop();
    origin.stop();
}

#[test]
fn tokens_that_are_worth_nothing_are_refused() {
    let cluster = Cluster::init(SCHEMA, &["c:writers=any,key=explicit"], &["origin"]);
    let origin = cluster.serve("origin", &[]);
    let signing = Signing::start(&cluster);
    let short = signing.invite(&cluster, "edge1", &origin, &["--expires", "1s"]);
    let good = signing.invite(&cluster, "edge1", &origin, &[]);
    // Another authority: the secret is not told to it.
    let elsewhere = Cluster::init(SCHEMA, &[], &["origin"]);
    let stranger = Signing::start(&elsewhere);
    let message = refused(&cluster, "a", &changed(&good, "at", &stranger.at));
    assert!(message.contains("does not show that it is the authority"), "{message}");
    let message = refused(&cluster, "a", &changed(&good, "ca", &"00".repeat(32)));
    assert!(message.contains("does not show that it is the authority"), "{message}");
    // The secret of somebody else's token, or a guess.
    std::thread::sleep(Duration::from_secs(2));
    assert!(refused(&cluster, "b", &short).contains("not known, or has expired"));
    let guess = changed(&good, "secret", &"5a".repeat(32));
    assert!(refused(&cluster, "b", &guess).contains("not known, or has expired"));
    // A token of one node does not make another.
    let message = refused(&cluster, "c", &changed(&good, "node", "edge2"));
    assert!(message.contains("a certificate of edge1"), "{message}");
    // Guessing is slow: ten tries a minute.
    let mut said = String::new();
    for _ in 0..9 {
        said = refused(&cluster, "b", &guess);
    }
    assert!(said.contains("too many wrong tries"), "{said}");
    // Taken back with the node.
    let output = littoral(&cluster)
        .args(["ca", "revoke", "edge1", "--cluster", "cluster"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let kept = cluster.home().join("cluster/ca/invitations");
    assert_eq!(fs::read_dir(kept).unwrap().count(), 0);
    origin.stop();
}

#[test]
fn one_process_signs_at_a_time() {
    let cluster = Cluster::init(SCHEMA, &[], &["origin"]);
    let _signing = Signing::start(&cluster);
    let output = littoral(&cluster)
        .args(["ca", "serve", "--cluster", "cluster", "--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("served by another process"), "{said}");
}
