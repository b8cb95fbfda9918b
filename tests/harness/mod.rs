//! Clusters of `littoral serve` processes in a temporary directory.
//!
//! Every port is the system's choice. Nothing is waited for by sleeping: [`until`] asks again until a
//! condition holds, and a test that loses its patience says what it waited for.

mod cable;
mod http;
mod rows;
mod socket;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) use self::{
    cable::{Cable, Random, Weather},
    http::{Answer, Client, batch},
    rows::rows_of,
    socket::Socket,
};

/// Longer than anything takes on a slow machine; a test that waits this long fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Asks again until a condition holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The directories of a cluster, removed with it.
#[derive(Debug)]
pub(crate) struct Cluster {
    home: TempDir,
}

impl Cluster {
    /// Runs `littoral init`; the first of `nodes` is the origin.
    pub(crate) fn init(schema: &str, tables: &[&str], nodes: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("schema.sql"), schema).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-under-test"));
        command.current_dir(home.path());
        command.args(["init", "cluster", "--schema", "schema.sql", "--listen-base", "0"]);
        command.args(["--nodes", &nodes.join(",")]);
        command.args(tables.iter().flat_map(|table| ["--table", table]));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { home }
    }

    /// Runs `littoral serve` for a node, dialing others, and waits until it listens.
    pub(crate) fn serve(&self, name: &str, dial: &[&Node]) -> Node {
        let dial: Vec<_> = dial.iter().map(|peer| (peer.name.as_str(), peer.links())).collect();
        self.serve_dialing(name, &dial)
    }

    /// The same; where the others are to be dialed is given with their names.
    fn serve_dialing(&self, name: &str, dial: &[(&str, &str)]) -> Node {
        let directory = self.home.path().join("cluster").join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-under-test"));
        command.args(["serve", "--json", "--config"]).arg(directory.join("littoral.toml"));
        for (peer, address) in dial {
            command.args(["--dial", &format!("{peer}={address}")]);
        }
        self.run_node(name, &directory, command)
    }

    /// Runs `littoral join` with a token, and waits until the node listens.
    pub(crate) fn join(&self, directory: &str, name: &str, token: &str) -> Node {
        let directory = self.home.path().join(directory);
        let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-under-test"));
        command.arg("join").arg(&directory).args(["--json", "--token", token]);
        self.run_node(name, &directory, command)
    }

    /// The directory that holds the cluster's.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    fn run_node(&self, name: &str, directory: &Path, mut command: Command) -> Node {
        let log = self.home.path().join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(file).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let announced = serde_json::from_str::<Value>(&line).unwrap_or_else(|_| {
            panic!("{name} did not start: {}", fs::read_to_string(&log).unwrap());
        });
        let address = |key: &str| announced[key].as_str().unwrap().to_owned();
        let http = address("http").strip_prefix("http://").unwrap().parse().unwrap();
        Node {
            child,
            name: name.to_owned(),
            links: address("links"),
            http,
            database: directory.join("data.sqlite"),
            log,
        }
    }

    /// Replaces a line of a node's configuration.
    pub(crate) fn configure(&self, name: &str, line: &str, by: &str) {
        let path = self.home.path().join("cluster").join(name).join("littoral.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(line), "{text}");
        fs::write(path, text.replace(line, by)).unwrap();
    }

    /// Runs `littoral ca issue` for one more node.
    pub(crate) fn issue(&self, name: &str, options: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-under-test"));
        command.current_dir(self.home.path()).args(["ca", "issue", name, "--cluster", "cluster"]);
        let output = command.args(options).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Kills a node of a star, the origin of which is the first, and serves it again; gives where it takes
    /// requests then.
    pub(crate) fn kill_and_serve_again(&self, nodes: &mut Vec<Node>, victim: usize) -> SocketAddr {
        self.serve_again(nodes, victim, |name, nodes| {
            let others: Vec<&Node> = match victim {
                // Its port is another one now, so it dials the edges.
                0 => nodes.iter().collect(),
                _ => vec![&nodes[0]],
            };
            self.serve(name, &others)
        })
    }

    /// The same, of a star whose edges have cables to the origin.
    pub(crate) fn kill_and_serve_again_over(
        &self,
        cables: &[Cable],
        nodes: &mut Vec<Node>,
        victim: usize,
    ) -> SocketAddr {
        self.serve_again(nodes, victim, |name, nodes| {
            if let Some(cable) = victim.checked_sub(1) {
                return self.serve_dialing(name, &[(&nodes[0].name, &cables[cable].address())]);
            }
            let origin = self.serve(name, &[]);
            cables.iter().for_each(|cable| cable.lead_to(&origin));
            origin
        })
    }

    fn serve_again(
        &self,
        nodes: &mut Vec<Node>,
        victim: usize,
        serve: impl FnOnce(&str, &[Node]) -> Node,
    ) -> SocketAddr {
        let killed = nodes.remove(victim);
        let name = killed.name.clone();
        killed.kill();
        let node = serve(&name, nodes);
        let address = node.http();
        nodes.insert(victim, node);
        address
    }

    /// Serves all nodes, the edges dialing the origin, and waits until all are ready.
    pub(crate) fn serve_star(&self, names: &[&str]) -> Vec<Node> {
        let mut nodes: Vec<Node> = Vec::new();
        for name in names {
            let dial: Vec<&Node> = nodes.first().into_iter().collect();
            let node = self.serve(name, &dial);
            nodes.push(node);
        }
        nodes.iter().for_each(Node::until_ready);
        nodes
    }

    /// The same, each edge over a cable of its own: the first one's is the first.
    pub(crate) fn serve_star_over(
        &self,
        names: &[&str],
        weather: &Weather,
        seed: u64,
    ) -> (Vec<Node>, Vec<Cable>) {
        let mut nodes = vec![self.serve(names[0], &[])];
        let mut cables = Vec::new();
        for (seed, name) in (seed..).zip(&names[1..]) {
            let cable = Cable::to(&nodes[0], weather.clone(), seed);
            nodes.push(self.serve_dialing(name, &[(names[0], &cable.address())]));
            cables.push(cable);
        }
        nodes.iter().for_each(Node::until_ready);
        (nodes, cables)
    }
}

/// A process that serves a node; killed if a test fails before it is stopped.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    pub(crate) name: String,
    links: String,
    pub(crate) http: SocketAddr,
    database: PathBuf,
    log: PathBuf,
}

impl Node {
    /// The database file; to be read only, as the process has it open.
    pub(crate) fn database(&self) -> &Path {
        &self.database
    }

    /// Where it takes links.
    pub(crate) fn links(&self) -> &str {
        &self.links
    }

    /// Where it takes requests.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// A connection of its own.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.http).unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        self.client().get("/status").unwrap().json()
    }

    /// How much memory the process has.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most memory the process has had.
    pub(crate) fn peak_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    /// How long it has run on the processor, in milliseconds.
    pub(crate) fn processor_ms(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        // Fields 14 and 15 of the line, in ticks of 10 ms.
        let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u32>().unwrap());
        f64::from(ticks.sum::<u32>()) * 10.0
    }

    pub(crate) fn until_ready(&self) {
        until(&format!("{} to be ready", self.name), || {
            self.client().get("/ready").unwrap().status == 200
        });
    }

    /// Runs one transaction, which must succeed; gives the answer to its last statement.
    pub(crate) fn run(&self, statements: &[&str]) -> Value {
        let statements: Vec<Value> = statements.iter().map(|sql| json!({ "sql": sql })).collect();
        let mut results = self.client().transaction(&statements).unwrap();
        results.pop().unwrap()
    }

    /// Ends the process in good order.
    pub(crate) fn stop(mut self) {
        self.signal("-TERM");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{} ended with {status}", self.name);
    }

    /// Stops the process where it is, links and all, for a while.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Ends [`Node::freeze`].
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Ends the process with SIGKILL: it does nothing more, wherever it is.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            tell(&format!("--- log of {}\n{log}", self.name));
        }
    }
}

#[expect(clippy::print_stdout, reason = "shown with the failed test")]
fn tell(text: &str) {
    println!("{text}");
}

/// Stops nodes, the origin last.
pub(crate) fn stop(nodes: Vec<Node>) {
    nodes.into_iter().rev().for_each(Node::stop);
}

/// Waits until all nodes have applied the same entries, and checks that their files then hold the
/// same rows. `tables` are SELECTs in key order.
pub(crate) fn assert_converge(nodes: &[Node], tables: &[&str]) {
    until("the nodes to have the same entries", || {
        let vectors: Vec<Value> = nodes.iter().map(|node| node.status()["vector"].take()).collect();
        vectors.iter().all(|vector| *vector == vectors[0])
    });
    for table in tables {
        let expected = rows_of(nodes[0].database(), table);
        for node in &nodes[1..] {
            let rows = rows_of(node.database(), table);
            assert_eq!(rows.len(), expected.len(), "rows at {} of {table}", node.name);
            for (ours, theirs) in rows.iter().zip(&expected) {
                assert_eq!(ours, theirs, "a row at {} of {table}", node.name);
            }
        }
    }
}
