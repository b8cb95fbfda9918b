//! What the benches share: the table they write, a replica in a temporary directory, and how a figure
//! is printed.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use littoral::{
    ClusterId, Genesis, Identity, Incarnation, Input, NodeId, Now, Output, Replica, Synchronous,
    TablePolicy, WriteTx, Writers,
};
use rusqlite::Connection;

/// What kind of key the bench table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// INTEGER PRIMARY KEY, given in ascending order.
    Integer,
    /// TEXT of 36 characters, in random order.
    Text,
}

impl Key {
    /// For the names of figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer-key",
            Self::Text => "text-key",
        }
    }

    /// The table of every bench: a key, and one column of each common kind.
    fn schema(self) -> String {
        let key = match self {
            Self::Integer => "INTEGER PRIMARY KEY",
            Self::Text => "TEXT PRIMARY KEY NOT NULL",
        };
        format!(
            "CREATE TABLE item(id {key}, qty INTEGER, price REAL, name TEXT, note TEXT, data BLOB)"
        )
    }
}

/// One row of the bench table.
#[derive(Debug, Clone)]
pub struct ItemRow {
    /// Ascending.
    pub number: i64,
    /// 36 characters, in random order.
    pub id: String,
    /// A small integer.
    pub qty: i64,
    /// A real.
    pub price: f64,
    /// 20 characters.
    pub name: String,
    /// 40 characters.
    pub note: String,
    /// 32 bytes.
    pub data: [u8; 32],
}

/// The same rows in every run.
pub fn rows(count: usize) -> Vec<ItemRow> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (1..)
        .take(count)
        .map(|number| {
            let (a, b, c, d) = (next(), next(), next(), next());
            let mut data = [0; 32];
            for (place, word) in data.chunks_exact_mut(8).zip([a, b, c, d]) {
                place.copy_from_slice(&word.to_le_bytes());
            }
            ItemRow {
                number,
                id: format!(
                    "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
                    a >> 32,
                    a & 0xffff,
                    b >> 48,
                    c & 0xffff,
                    d >> 16
                ),
                qty: i64::try_from(b % 1000).unwrap_or(0),
                price: f64::from(u32::try_from(c % 100_000).unwrap_or(0)) / 100.0,
                name: format!("name {:015x}", a >> 4),
                note: format!("note {:015x} {:019x}", b >> 4, c),
                data,
            }
        })
        .collect()
}

/// A plain database with the bench table.
#[derive(Debug)]
pub struct Plain {
    /// The connection, in WAL mode.
    pub conn: Connection,
    _dir: tempfile::TempDir,
}

impl Plain {
    /// In a temporary directory.
    pub fn new(key: Key) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let conn = Connection::open(dir.path().join("plain.sqlite")).expect("a database");
        conn.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0; {}",
            key.schema()
        ))
        .expect("the schema");
        Self { conn, _dir: dir }
    }
}

impl Plain {
    /// Copies the WAL into the file, so that what is timed next begins with an empty one.
    pub fn checkpoint(&self) {
        self.conn
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
            .expect("a checkpoint");
    }
}

/// A replica of one node with the bench table, every node allowed to write it.
#[derive(Debug)]
pub struct Node {
    /// The replica.
    pub replica: Replica,
    start: Instant,
    _dir: tempfile::TempDir,
}

impl Node {
    /// In a temporary directory, at `synchronous = NORMAL`.
    pub fn new(key: Key) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let identity = Identity {
            cluster: ClusterId(1),
            node: NodeId::new("bench").expect("a node name"),
            incarnation: Incarnation(1),
        };
        let policy = TablePolicy {
            writers: Writers::Any,
            explicit_key: key == Key::Integer,
            ..TablePolicy::default()
        };
        let genesis = Genesis {
            members: vec![(identity.node.clone(), identity.incarnation)],
            schema: key.schema(),
            policies: [("item".to_owned(), policy)].into(),
        };
        let path: PathBuf = dir.path().join("node.sqlite");
        let replica = Replica::builder(identity)
            .genesis(genesis)
            .synchronous(Synchronous::Normal)
            .open(&path, Now::default(), 0)
            .expect("a replica");
        Self { replica, start: Instant::now(), _dir: dir }
    }

    /// As [`Plain::checkpoint`].
    pub fn checkpoint(&self) {
        self.replica.db().wal_checkpoint().expect("a checkpoint");
    }

    /// Runs one job and drains the replica; syncs are answered at once, as for the plain database.
    pub fn write(
        &mut self,
        job: impl FnMut(&mut WriteTx<'_>) -> Result<(), littoral::WriteError> + Send + 'static,
    ) {
        let elapsed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let now = Now { mono: littoral::Instant(elapsed), wall: littoral::WallTime(1) };
        self.replica.write(now, Box::new(job));
        loop {
            match self.replica.poll() {
                Output::Done { result, .. } => {
                    result.expect("the job commits");
                }
                Output::Sync(lsn) => self.replica.handle(now, Input::Synced(lsn)),
                Output::WakeAt(_) => return,
                Output::WalCheckpoint | Output::Event(_) => {}
                Output::Send { .. } | Output::Close { .. } => unreachable!("there are no links"),
            }
        }
    }
}

/// How many rows a bench writes: fewer in a smoke run (`BENCH_SMOKE=1`).
pub fn row_count(full: usize) -> usize {
    if std::env::var_os("BENCH_SMOKE").is_some() { full / 20 } else { full }
}

/// How often a pair of runs is repeated.
pub fn repeats() -> usize {
    if std::env::var_os("BENCH_SMOKE").is_some() { 3 } else { 7 }
}

/// The time `run` takes.
pub fn timed(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

/// Prints the median ratio of pairs of interleaved runs: `figure NAME RATIO BOUND`.
#[expect(clippy::print_stdout, reason = "figures are what a bench is for")]
pub fn figure(name: &str, pairs: &[(Duration, Duration)], bound: f64) {
    let mut ratios: Vec<f64> =
        pairs.iter().map(|(ours, plain)| ours.as_secs_f64() / plain.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    println!("figure {name} {:.2} {bound}", ratios[ratios.len() / 2]);
}
