//! What the benches share: the table they write, replicas in temporary directories, and how a figure
//! is printed.

use std::{
    collections::VecDeque,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use littoral::{
    Channel, ClusterId, Genesis, Identity, Incarnation, Input, NodeId, Now, Output, PeerId,
    Replica, Synchronous, TablePolicy, WallTime, WriteTx, Writers,
};
use rusqlite::{Connection, Statement, ToSql, params};

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

    /// The bytes of one row's values: what an entry's size is compared with.
    pub const fn row_bytes(self) -> f64 {
        match self {
            Self::Integer => 130.0,
            Self::Text => 165.0,
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

impl ItemRow {
    /// Its key.
    pub fn key(&self, key: Key) -> &dyn ToSql {
        match key {
            Key::Integer => &self.number,
            Key::Text => &self.id,
        }
    }
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

/// A row into the bench table.
pub const INSERT: &str = "INSERT INTO item VALUES(?1, ?2, ?3, ?4, ?5, ?6)";

/// One column of one row.
pub const UPDATE_BY_KEY: &str = "UPDATE item SET qty = ?2 WHERE id = ?1";

/// One row.
pub const DELETE_BY_KEY: &str = "DELETE FROM item WHERE id = ?1";

/// A plain database with the bench table.
#[derive(Debug)]
pub struct Plain {
    /// The connection, in WAL mode.
    pub conn: Connection,
    _dir: tempfile::TempDir,
}

impl Plain {
    /// In a temporary directory, at `synchronous = NORMAL`.
    pub fn new(key: Key) -> Self {
        Self::open(key, Synchronous::Normal)
    }

    /// In a temporary directory.
    pub fn open(key: Key, synchronous: Synchronous) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let conn = Connection::open(dir.path().join("plain.sqlite")).expect("a database");
        let synchronous = match synchronous {
            Synchronous::Full => "FULL",
            Synchronous::Normal => "NORMAL",
        };
        conn.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};
             PRAGMA wal_autocheckpoint = 0; {}",
            key.schema()
        ))
        .expect("the schema");
        Self { conn, _dir: dir }
    }

    /// Copies the WAL into the file, so that what is timed next begins with an empty one.
    pub fn checkpoint(&self) {
        self.conn
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
            .expect("a checkpoint");
    }

    /// The time of a transaction in which a statement runs once per row.
    pub fn each(
        &self,
        sql: &str,
        rows: &[ItemRow],
        mut run: impl FnMut(&mut Statement<'_>, &ItemRow),
    ) -> Duration {
        timed(|| {
            self.conn.execute_batch("BEGIN IMMEDIATE").expect("a transaction");
            let mut statement = self.conn.prepare_cached(sql).expect("a statement");
            rows.iter().for_each(|row| run(&mut statement, row));
            drop(statement);
            self.conn.execute_batch("COMMIT").expect("a commit");
        })
    }

    /// Inserts the rows in one transaction.
    pub fn insert(&self, key: Key, rows: &[ItemRow]) -> Duration {
        self.each(INSERT, rows, |insert, r| {
            insert
                .execute(params![r.key(key), r.qty, r.price, r.name, r.note, r.data])
                .expect("an insert");
        })
    }

    /// Bytes of pages in use, free ones not counted.
    pub fn bytes(&self) -> u64 {
        pages_in_use(&self.conn)
    }
}

fn pages_in_use(conn: &Connection) -> u64 {
    conn.query_row(
        "SELECT (page_count - freelist_count) * page_size
         FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        [],
        |row| row.get::<_, i64>(0),
    )
    .expect("counts of pages")
    .cast_unsigned()
}

/// How a bench wants its cluster.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// The bench table's key.
    pub key: Key,
    /// Who may write it.
    pub writers: Writers,
    /// How the replicas commit.
    pub synchronous: Synchronous,
    /// How many members there are; not all need be opened.
    pub members: u8,
    /// Replicated tables beside the one that is written.
    pub more_tables: usize,
}

impl Setup {
    /// One node, `synchronous = NORMAL`, one table that every node may write.
    pub const fn new(key: Key) -> Self {
        Self {
            key,
            writers: Writers::Any,
            synchronous: Synchronous::Normal,
            members: 1,
            more_tables: 0,
        }
    }

    fn identity(self, member: u8) -> Identity {
        Identity {
            cluster: ClusterId(1),
            node: name(member),
            incarnation: Incarnation(1 + u128::from(member)),
        }
    }

    fn genesis(self) -> Genesis {
        let members = (0..self.members).map(|member| {
            let identity = self.identity(member);
            (identity.node, identity.incarnation)
        });
        let policy = TablePolicy {
            writers: self.writers,
            explicit_key: self.writers == Writers::Any && self.key == Key::Integer,
            ..TablePolicy::default()
        };
        let more: Vec<String> = (0..self.more_tables).map(|i| format!("more_{i}")).collect();
        let schema = more.iter().fold(self.key.schema(), |schema, table| {
            format!("{schema}; CREATE TABLE {table}(id TEXT PRIMARY KEY NOT NULL, note TEXT)")
        });
        let any = TablePolicy { writers: self.writers, ..TablePolicy::default() };
        let policies = more.into_iter().map(|table| (table, any.clone()));
        Genesis {
            members: members.collect(),
            schema,
            policies: policies.chain([("item".to_owned(), policy)]).collect(),
        }
    }
}

/// A database file, its WAL and the note of whose it is, as they stand.
fn copy_database(from: &Path, to: &Path) {
    for ending in ["", "-wal", "-id"] {
        let beside = |path: &Path| path.with_extension(format!("sqlite{ending}"));
        if beside(from).exists() {
            std::fs::copy(beside(from), beside(to)).expect("a copy");
        }
    }
}

fn name(member: u8) -> NodeId {
    NodeId::new(&format!("bench-{member}")).expect("a node name")
}

/// One replica of a cluster.
#[derive(Debug)]
pub struct Node {
    /// The replica.
    pub replica: Replica,
    /// What it wants sent.
    outbox: VecDeque<(PeerId, Channel, Vec<u8>)>,
    clock: Now,
    setup: Setup,
    member: u8,
    dir: tempfile::TempDir,
}

impl Node {
    /// The only node of a cluster.
    pub fn new(key: Key) -> Self {
        Self::open(Setup::new(key), 0)
    }

    /// A member of a cluster, in a temporary directory; the first is the origin.
    pub fn open(setup: Setup, member: u8) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let clock = Now { mono: littoral::Instant(1), wall: WallTime(1_700_000_000_000) };
        let mut builder = Replica::builder(setup.identity(member)).synchronous(setup.synchronous);
        if member == 0 {
            builder = builder.genesis(setup.genesis());
        }
        let replica = builder.open(&dir.path().join("node.sqlite"), clock, 0).expect("a replica");
        Self { replica, outbox: VecDeque::new(), clock, setup, member, dir }
    }

    /// As [`Plain::checkpoint`].
    pub fn checkpoint(&self) {
        self.replica.db().wal_checkpoint().expect("a checkpoint");
    }

    /// Lets time pass; the time it takes to do what that brings.
    pub fn advance(&mut self, time: Duration) -> Duration {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.clock.mono = self.clock.mono + time;
        self.clock.wall.0 += millis;
        self.handle(Input::Wake)
    }

    /// Opens the file again as it stands, as after a crash; the time that takes.
    pub fn reopen(&mut self) -> Duration {
        let path = self.dir.path().join("node.sqlite");
        let clock = self.clock;
        let identity = self.setup.identity(self.member);
        let copy = self.dir.path().join("again.sqlite");
        copy_database(&path, &copy);
        let builder = Replica::builder(identity).synchronous(self.setup.synchronous);
        let mut opened = None;
        let time = timed(|| opened = Some(builder.open(&copy, clock, 0).expect("a replica")));
        self.outbox.clear();
        if let Some(replica) = opened {
            self.replica = replica;
        }
        time
    }

    /// Hands an input over and drains the replica; the time that takes.
    pub fn handle(&mut self, input: Input) -> Duration {
        timed(|| {
            self.replica.handle(self.clock, input);
            self.drain();
        })
    }

    /// Runs one job; the time that takes.
    pub fn write(
        &mut self,
        job: impl FnMut(&mut WriteTx<'_>) -> Result<(), littoral::WriteError> + Send + 'static,
    ) -> Duration {
        timed(|| {
            self.queue(job);
            self.drain();
        })
    }

    /// Queues a job for the next drain.
    pub fn queue(
        &mut self,
        job: impl FnMut(&mut WriteTx<'_>) -> Result<(), littoral::WriteError> + Send + 'static,
    ) {
        self.replica.write(self.clock, Box::new(job));
    }

    /// Carries out what the replica asks for. Syncs are answered at once, as for a plain database at
    /// `NORMAL`; the WAL is left alone, as there.
    pub fn drain(&mut self) {
        loop {
            match self.replica.poll() {
                Output::Done { result, .. } => {
                    result.expect("the job commits");
                }
                Output::Sync(lsn) => self.replica.handle(self.clock, Input::Synced(lsn)),
                Output::WakeAt(_) => return,
                Output::WalCheckpoint | Output::Event(_) => {}
                Output::Send { peer, channel, bytes } => {
                    self.outbox.push_back((peer, channel, bytes));
                }
                other @ (Output::Begun { .. }
                | Output::TakeSnapshot(_)
                | Output::ReadSnapshot { .. }
                | Output::DiscardSnapshot
                | Output::WriteSnapshot { .. }
                | Output::InstallSnapshot(_)) => panic!("nobody asks for that here: {other:?}"),
                other @ (Output::Run { .. }
                | Output::GuestArrived { .. }
                | Output::GuestStep { .. }
                | Output::Answered { .. }) => panic!("nothing is forwarded here: {other:?}"),
                Output::Close { code, reason, .. } => panic!("link closed ({code:?}): {reason}"),
            }
        }
    }

    /// Runs a statement once per row in one transaction; the time that takes.
    pub fn each(
        &mut self,
        sql: &'static str,
        rows: &[ItemRow],
        mut run: impl FnMut(
            &mut littoral::TxStatement<'_>,
            &ItemRow,
        ) -> Result<(), littoral::WriteError>
        + Send
        + 'static,
    ) -> Duration {
        // Kept here too, so that it is not the job that frees them.
        let rows: Arc<[ItemRow]> = rows.into();
        let shared = Arc::clone(&rows);
        self.write(move |tx| {
            let mut statement = tx.prepare(sql)?;
            shared.iter().try_for_each(|row| run(&mut statement, row))
        })
    }

    /// Inserts the rows in one transaction.
    pub fn insert(&mut self, key: Key, rows: &[ItemRow]) -> Duration {
        self.each(INSERT, rows, move |insert, r| {
            insert.execute(params![r.key(key), r.qty, r.price, r.name, r.note, r.data]).map(drop)
        })
    }

    /// As [`Plain::bytes`].
    pub fn bytes(&self) -> u64 {
        pages_in_use(self.replica.db().reader().expect("a reader").connection())
    }

    /// Closes the replica, and gives the bytes of its file after VACUUM.
    pub fn vacuumed(self) -> u64 {
        let (_, closed) = self.replica.close(self.clock);
        closed.expect("the file closes");
        let conn = Connection::open(self.dir.path().join("node.sqlite")).expect("the file");
        conn.execute_batch("VACUUM").expect("a vacuum");
        pages_in_use(&conn)
    }
}

/// Two linked replicas.
#[derive(Debug)]
pub struct Pair {
    /// The origin.
    pub origin: Node,
    /// An edge.
    pub edge: Node,
    links: u64,
}

/// What passed between the two of a [`Pair`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Exchanged {
    /// The time the edge took for what it received.
    pub edge: Duration,
    /// Bytes of frames of entries that it received.
    pub wire_bytes: u64,
}

impl Pair {
    /// Both hold what the cluster begins with.
    pub fn new(setup: Setup) -> Self {
        let setup = Setup { members: 2, ..setup };
        let mut pair = Self { origin: Node::open(setup, 0), edge: Node::open(setup, 1), links: 0 };
        pair.link();
        pair.settle();
        pair
    }

    /// Links the two, once more if they were linked before.
    pub fn link(&mut self) {
        if self.links > 0 {
            self.edge.handle(Input::PeerDown { peer: PeerId(self.links) });
            self.edge.outbox.clear();
        }
        self.links += 1;
        let peer = PeerId(self.links);
        self.origin.handle(Input::PeerUp { peer, node: name(1) });
        self.edge.handle(Input::PeerUp { peer, node: name(0) });
    }

    /// Exchanges frames until both have been quiet for three simulated seconds.
    pub fn settle(&mut self) -> Exchanged {
        const STEP: Duration = Duration::from_millis(25);
        let mut total = Exchanged::default();
        for _ in 0..120 {
            let part = self.exchange();
            total.edge += part.edge;
            total.wire_bytes += part.wire_bytes;
            self.origin.advance(STEP);
            self.edge.advance(STEP);
        }
        total
    }

    /// Exchanges frames until none is under way.
    pub fn exchange(&mut self) -> Exchanged {
        let mut total = Exchanged::default();
        loop {
            if let Some((peer, channel, bytes)) = self.origin.outbox.pop_front() {
                if channel == Channel::Entries {
                    total.wire_bytes += bytes.len() as u64;
                }
                total.edge += self.edge.handle(Input::Frame { peer, channel, bytes });
            } else if let Some((peer, channel, bytes)) = self.edge.outbox.pop_front() {
                self.origin.handle(Input::Frame { peer, channel, bytes });
            } else {
                return total;
            }
        }
    }
}

/// How many rows a bench writes: fewer in a smoke run (`BENCH_SMOKE=1`).
pub fn row_count(full: usize) -> usize {
    if std::env::var_os("BENCH_SMOKE").is_some() { full / 20 } else { full }
}

/// How often a pair of runs is repeated: `BENCH_REPEATS`, or 7, or 3 in a smoke run.
pub fn repeats() -> usize {
    let asked = std::env::var("BENCH_REPEATS").ok().and_then(|n| n.parse().ok());
    let smoke = std::env::var_os("BENCH_SMOKE").is_some();
    asked.unwrap_or(if smoke { 3 } else { 7 })
}

/// The time `run` takes. With `BENCH_CPU=1` the time its thread spends on a processor: for a busy
/// machine, and to be read with care, since what a disk costs is left out.
pub fn timed(run: impl FnOnce()) -> Duration {
    if std::env::var_os("BENCH_CPU").is_some() {
        let start = on_processor();
        run();
        return on_processor() - start;
    }
    let start = Instant::now();
    run();
    start.elapsed()
}

/// What Linux says of the present thread.
fn on_processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanos = stat.split(' ').next().and_then(|n| n.parse().ok()).expect("a time");
    Duration::from_nanos(nanos)
}

/// Prints the median ratio of pairs of interleaved runs: `figure NAME RATIO BOUND`.
pub fn figure(name: &str, pairs: &[(Duration, Duration)], bound: f64) {
    let mut ratios: Vec<f64> =
        pairs.iter().map(|(ours, plain)| ours.as_secs_f64() / plain.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    value(name, ratios[ratios.len() / 2], bound);
}

/// Prints a figure that needs no repetition: `figure NAME VALUE BOUND`.
#[expect(clippy::print_stdout, reason = "figures are what a bench is for")]
pub fn value(name: &str, value: f64, bound: f64) {
    println!("figure {name} {value:.2} {bound}");
}
