//! Replicas in one loop, exchanging frames until neither has more to say: no sockets, no clock.

#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::{collections::BTreeMap, time::Duration};

use littoral::{
    Bookmark, Channel, CloseCode, ClusterId, Committed, Event, ForwardError, Genesis, Identity,
    Incarnation, Input, Instant, NodeId, Now, Outcome, Output, PeerId, Replica, Request, RequestId,
    Snapshot, TablePolicy, Ticket, WallTime, WriteError, WriteTx, Writers,
};

/// Replicas, the links between them, and what they have put out.
pub(crate) struct Cluster {
    genesis: Genesis,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) names: Vec<NodeId>,
    pub(crate) replicas: Vec<Option<Replica>>,
    pub(crate) links: BTreeMap<(usize, PeerId), (usize, PeerId)>,
    pub(crate) next_peer: u64,
    pub(crate) now: Now,
    /// By how many milliseconds the wall clock of a replica is ahead of that.
    pub(crate) ahead: BTreeMap<usize, i64>,
    pub(crate) done: BTreeMap<(usize, Ticket), Result<Committed, WriteError>>,
    /// Interactive transactions whose turn has come.
    pub(crate) begun: Vec<(usize, Ticket)>,
    pub(crate) closed: Vec<(usize, CloseCode)>,
    pub(crate) events: Vec<(usize, Event)>,
    opened: u64,
    pub(crate) read_only: Vec<usize>,
    /// Snapshots that became somebody's file.
    pub(crate) installed: usize,
    /// Bytes of snapshots received.
    pub(crate) received: usize,
    /// All links are cut when so much was received.
    pub(crate) cut_at: Option<usize>,
    pub(crate) answered: BTreeMap<(usize, Ticket), Result<Outcome, ForwardError>>,
    /// Programs that the origin has run, in order.
    pub(crate) ran: Vec<String>,
    /// Programs wait here instead of running.
    pub(crate) held_runs: Option<Vec<(RequestId, Vec<u8>)>>,
    /// Steps of guests that are not run yet, if they are held.
    pub(crate) held_steps: Option<Vec<(Ticket, Vec<u8>)>>,
    guests: BTreeMap<(usize, Ticket), RequestId>,
    /// Frames of entries wait here instead of arriving.
    pub(crate) held_frames: Option<Vec<(usize, PeerId, Vec<u8>)>>,
    /// All frames that were sent.
    pub(crate) recorded: Option<Vec<(Channel, Vec<u8>)>>,
    /// What is written to the WAL is not synced.
    pub(crate) held_syncs: bool,
    runs: BTreeMap<(usize, Ticket), RequestId>,
}

impl Cluster {
    /// Replicas that are not linked yet; the first is the origin.
    pub(crate) fn new(nodes: usize, schema: &str, policies: &[(&str, TablePolicy)]) -> Self {
        let names: Vec<NodeId> =
            (0..nodes).map(|i| NodeId::new(&format!("n{i}")).unwrap()).collect();
        let genesis = Genesis {
            members: (0..nodes).map(|n| (names[n].clone(), Incarnation(100 + n as u128))).collect(),
            schema: schema.to_owned(),
            policies: policies.iter().map(|(name, p)| ((*name).to_owned(), p.clone())).collect(),
        };
        let mut cluster = Self {
            genesis,
            dir: tempfile::tempdir().unwrap(),
            names,
            replicas: (0..nodes).map(|_| None).collect(),
            links: BTreeMap::new(),
            next_peer: 1,
            now: Now { mono: Instant(1_000_000_000), wall: WallTime(1_700_000_000_000) },
            ahead: BTreeMap::new(),
            done: BTreeMap::new(),
            begun: Vec::new(),
            closed: Vec::new(),
            events: Vec::new(),
            opened: 0,
            read_only: Vec::new(),
            installed: 0,
            received: 0,
            cut_at: None,
            answered: BTreeMap::new(),
            ran: Vec::new(),
            held_runs: None,
            held_steps: None,
            guests: BTreeMap::new(),
            held_frames: None,
            recorded: None,
            held_syncs: false,
            runs: BTreeMap::new(),
        };
        for node in 0..nodes {
            cluster.open(node);
        }
        cluster
    }

    pub(crate) fn identity(&self, node: usize) -> Identity {
        Identity {
            cluster: ClusterId(7),
            node: self.names[node].clone(),
            incarnation: Incarnation(100 + node as u128),
        }
    }

    pub(crate) fn path(&self, node: usize) -> std::path::PathBuf {
        self.dir.path().join(format!("{node}.sqlite"))
    }

    /// The note beside a replica's file.
    pub(crate) fn note(&self, node: usize) -> std::path::PathBuf {
        self.dir.path().join(format!("{node}.sqlite-id"))
    }

    pub(crate) fn open(&mut self, node: usize) {
        let mut builder = Replica::builder(self.identity(node)).verify_capture();
        if self.read_only.contains(&node) {
            builder = builder.read_only();
        }
        if node == 0 {
            builder = builder.genesis(self.genesis.clone());
        }
        self.opened += 1;
        let seed = self.opened;
        self.replicas[node] =
            Some(builder.open(&self.path(node), self.now_at(node), seed).unwrap());
    }

    pub(crate) fn link(&mut self, a: usize, b: usize) {
        let (x, y) = (PeerId(self.next_peer), PeerId(self.next_peer + 1));
        self.next_peer += 2;
        self.links.insert((a, x), (b, y));
        self.links.insert((b, y), (a, x));
        let (name_a, name_b) = (self.names[a].clone(), self.names[b].clone());
        // Both ends of a link are there before a frame arrives at either.
        let (now_a, now_b) = (self.now_at(a), self.now_at(b));
        self.replica(a).handle(now_a, Input::PeerUp { peer: x, node: name_b });
        self.replica(b).handle(now_b, Input::PeerUp { peer: y, node: name_a });
        self.drain(a);
        self.drain(b);
    }

    pub(crate) fn cut(&mut self) {
        for ((node, peer), _) in std::mem::take(&mut self.links) {
            self.handle(node, Input::PeerDown { peer });
        }
    }

    pub(crate) fn replica(&mut self, node: usize) -> &mut Replica {
        self.replicas[node].as_mut().unwrap()
    }

    /// What the clocks of a replica say.
    pub(crate) fn now_at(&self, node: usize) -> Now {
        let ahead = self.ahead.get(&node).copied().unwrap_or(0);
        Now { wall: WallTime(self.now.wall.0.saturating_add_signed(ahead)), ..self.now }
    }

    pub(crate) fn handle(&mut self, node: usize, input: Input) {
        let now = self.now_at(node);
        self.replica(node).handle(now, input);
        self.drain(node);
    }

    /// Delivers depth first, which is one order of many.
    pub(crate) fn drain(&mut self, node: usize) {
        loop {
            match self.replica(node).poll() {
                Output::WakeAt(at) => {
                    if at.is_some_and(|at| at <= self.now.mono) {
                        continue;
                    }
                    return;
                }
                Output::Send { peer, channel, bytes } => {
                    if let Some(recorded) = &mut self.recorded {
                        recorded.push((channel, bytes.clone()));
                    }
                    if let Some(&(to, at)) = self.links.get(&(node, peer)) {
                        if channel == Channel::Entries
                            && let Some(held) = &mut self.held_frames
                        {
                            held.push((to, at, bytes));
                            continue;
                        }
                        self.handle(to, Input::Frame { peer: at, channel, bytes });
                    }
                }
                Output::Close { peer, code, .. } => {
                    self.closed.push((node, code));
                    if let Some((to, at)) = self.links.remove(&(node, peer)) {
                        self.links.remove(&(to, at));
                        self.handle(to, Input::PeerDown { peer: at });
                    }
                }
                Output::Sync(_) if self.held_syncs => {}
                Output::Sync(lsn) => self.handle(node, Input::Synced(lsn)),
                Output::WalCheckpoint => {
                    self.replica(node).db().wal_checkpoint().unwrap();
                    self.handle(node, Input::WalCheckpointed);
                }
                Output::Begun { ticket } => self.begun.push((node, ticket)),
                Output::Done { ticket, result } => {
                    if let Some(request) = self.runs.remove(&(node, ticket))
                        && let Err(error) = &result
                    {
                        let now = self.now_at(node);
                        let answer = error.to_string().into_bytes();
                        self.replica(node).run_failed(now, request, answer);
                    }
                    if let Some(request) = self.guests.remove(&(node, ticket))
                        && let Err(error) = &result
                    {
                        let now = self.now_at(node);
                        let answer = error.to_string().into_bytes();
                        self.replica(node).guest_ended(now, request, answer);
                    }
                    self.done.insert((node, ticket), result);
                }
                Output::Run { request, program } => match &mut self.held_runs {
                    Some(held) => held.push((request, program)),
                    None => self.run(node, request, &program),
                },
                Output::GuestArrived { request } => {
                    let now = self.now_at(node);
                    let ticket = self.replica(node).begin_guest(now, request);
                    self.guests.insert((node, ticket), request);
                }
                Output::GuestStep { ticket, program, .. } => match &mut self.held_steps {
                    Some(held) => held.push((ticket, program)),
                    None => self.guest_step(node, ticket, &program),
                },
                Output::Answered { ticket, result } => {
                    if let Ok(Outcome::Committed { dot, .. }) = &result {
                        assert!(self.replica(node).status().vector.covers(*dot));
                    }
                    self.answered.insert((node, ticket), result);
                }
                Output::Event(event) => self.events.push((node, event)),
                Output::TakeSnapshot(name) => {
                    let taken = self.replica(node).db().take_snapshot(name);
                    let taken = taken.map_err(|error| error.to_string());
                    self.handle(node, Input::SnapshotTaken(taken));
                }
                Output::ReadSnapshot { peer, offset, bytes } => {
                    let read = self.replica(node).db().read_snapshot(offset, bytes);
                    let piece = read.map_err(|error| error.to_string());
                    self.handle(node, Input::SnapshotRead { peer, piece });
                }
                Output::DiscardSnapshot => self.replica(node).db().discard_snapshot().unwrap(),
                Output::WriteSnapshot { peer, piece, sync } => {
                    let upto = piece.end();
                    self.received += piece.bytes().len();
                    let written = self.replica(node).db().write_incoming(&piece, sync);
                    let result = written.map_err(|error| error.to_string());
                    if self.cut_at.is_some_and(|at| self.received >= at) {
                        self.cut_at = None;
                        self.cut();
                    }
                    self.handle(node, Input::SnapshotWritten { peer, upto, result });
                }
                Output::InstallSnapshot(snapshot) => return self.install(node, &snapshot),
            }
        }
    }

    /// Runs a program as a driver does: a script, and a query behind `=>` whose first value it gives.
    fn run(&mut self, node: usize, request: RequestId, program: &[u8]) {
        let text = String::from_utf8(program.to_vec()).unwrap();
        self.ran.push(text.clone());
        let now = self.now_at(node);
        let job = move |tx: &mut WriteTx<'_>| {
            let (script, query) = text.split_once("=>").unwrap_or((&text, "SELECT ''"));
            tx.execute_batch(script)?;
            tx.query_row(query, (), |row| row.get(0)).map(String::into_bytes)
        };
        let ticket = self.replica(node).run(now, request, Box::new(job));
        self.runs.insert((node, ticket), request);
    }

    /// Runs a step of a guest as a driver does: as a program, and with `;COMMIT` in the end it commits.
    fn guest_step(&mut self, node: usize, ticket: Ticket, program: &[u8]) {
        let text = String::from_utf8(program.to_vec()).unwrap();
        self.ran.push(text.clone());
        let now = self.now_at(node);
        let (text, commits) = match text.strip_suffix(";COMMIT") {
            Some(text) => (text.to_owned(), true),
            None => (text, false),
        };
        let ran = self.replica(node).step(now, ticket, |tx| {
            let (script, query) = text.split_once("=>").unwrap_or((&text, "SELECT ''"));
            tx.execute_batch(script)?;
            tx.query_row(query, (), |row| row.get::<_, String>(0)).map(String::into_bytes)
        });
        let replica = self.replica(node);
        match ran {
            Ok(Ok(result)) if commits => replica.commit_guest(now, ticket, result),
            Ok(Ok(result)) => replica.guest_stepped(now, ticket, result),
            Ok(Err(error)) => {
                replica.guest_stepped(now, ticket, error.to_string().into_bytes());
            }
            Err(_) => {}
        }
    }

    /// Runs steps that wait to be run.
    pub(crate) fn step_held(&mut self, node: usize) {
        for (ticket, program) in self.held_steps.take().unwrap_or_default() {
            self.guest_step(node, ticket, &program);
        }
        self.drain(node);
    }

    /// Runs what waits to be run.
    pub(crate) fn run_held(&mut self, node: usize) {
        for (request, program) in self.held_runs.take().unwrap_or_default() {
            self.run(node, request, &program);
        }
        self.drain(node);
    }

    /// Delivers what waits to be delivered.
    pub(crate) fn deliver_held(&mut self) {
        for (to, peer, bytes) in self.held_frames.take().unwrap_or_default() {
            self.handle(to, Input::Frame { peer, channel: Channel::Entries, bytes });
        }
    }

    /// Sends a program to the origin.
    pub(crate) fn forward(&mut self, node: usize, id: u128, program: &str) -> (usize, Ticket) {
        let (now, request) = self.request(node, id, program);
        let ticket = self.replica(node).forward(now, request);
        self.drain(node);
        (node, ticket)
    }

    /// Sends one that only reads.
    pub(crate) fn read_there(&mut self, node: usize, id: u128, program: &str) -> (usize, Ticket) {
        self.read_there_after(node, id, program, None)
    }

    /// The same, of a session that carries a bookmark.
    pub(crate) fn read_there_after(
        &mut self,
        node: usize,
        id: u128,
        program: &str,
        after: Option<&Bookmark>,
    ) -> (usize, Ticket) {
        let (now, request) = self.request(node, id, program);
        let ticket = self.replica(node).read_at_origin(now, request, after);
        self.drain(node);
        (node, ticket)
    }

    fn request(&self, node: usize, id: u128, program: &str) -> (Now, Request) {
        let now = self.now_at(node);
        let request = Request {
            id: RequestId(id),
            issued: now.wall,
            program: program.as_bytes().to_vec(),
            patience: Duration::from_secs(5),
        };
        (now, request)
    }

    /// Asks for the outcome of a request.
    pub(crate) fn ask(&mut self, node: usize, id: u128) -> (usize, Ticket) {
        let now = self.now_at(node);
        let patience = Duration::from_secs(5);
        let ticket = self.replica(node).outcome(now, RequestId(id), now.wall, patience);
        self.drain(node);
        (node, ticket)
    }

    /// Puts a snapshot in the place of a replica's file, as a driver does.
    fn install(&mut self, node: usize, snapshot: &Snapshot) {
        let replica = self.replicas[node].take().unwrap();
        let db = replica.db().clone();
        let (outputs, closed) = replica.close(self.now);
        closed.unwrap();
        for output in outputs {
            if let Output::Close { peer, .. } = output
                && let Some((to, at)) = self.links.remove(&(node, peer))
            {
                self.links.remove(&(to, at));
                self.handle(to, Input::PeerDown { peer: at });
            }
        }
        assert!(db.verify_incoming(snapshot).unwrap());
        std::fs::rename(db.incoming_path(), db.path()).unwrap();
        self.installed += 1;
        self.open(node);
    }

    /// One more node, whom nobody knows yet.
    pub(crate) fn newcomer(&mut self) -> usize {
        let node = self.names.len();
        self.names.push(NodeId::new(&format!("n{node}")).unwrap());
        self.replicas.push(None);
        self.open(node);
        node
    }

    pub(crate) fn settle(&mut self) {
        (0..10).for_each(|_| self.wait(25));
    }

    /// So many milliseconds pass.
    pub(crate) fn wait(&mut self, ms: u64) {
        self.now.mono = Instant(self.now.mono.0 + ms * 1_000_000);
        self.now.wall = WallTime(self.now.wall.0 + ms);
        for node in 0..self.replicas.len() {
            self.handle(node, Input::Wake);
        }
    }

    pub(crate) fn try_write(
        &mut self,
        node: usize,
        job: impl FnMut(&mut WriteTx<'_>) -> Result<(), WriteError> + Send + 'static,
    ) -> Result<Committed, WriteError> {
        let now = self.now_at(node);
        let ticket = self.replica(node).write(now, Box::new(job));
        self.drain(node);
        self.done.remove(&(node, ticket)).unwrap()
    }

    pub(crate) fn write(&mut self, node: usize, sql: &'static str) {
        self.try_write(node, |tx| tx.execute_batch(sql)).unwrap();
    }

    pub(crate) fn rows(&mut self, node: usize, sql: &str) -> Vec<String> {
        let reader = self.replica(node).db().reader().unwrap();
        let mut statement = reader.connection().prepare(sql).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            let cells: Vec<String> = (0..columns)
                .map(|i| match row.get_ref(i).unwrap() {
                    rusqlite::types::ValueRef::Null => "null".to_owned(),
                    rusqlite::types::ValueRef::Integer(n) => n.to_string(),
                    rusqlite::types::ValueRef::Real(r) => format!("{r:?}"),
                    rusqlite::types::ValueRef::Text(t) => String::from_utf8_lossy(t).into_owned(),
                    rusqlite::types::ValueRef::Blob(b) => format!("{b:x?}"),
                })
                .collect();
            Ok(cells.join("|"))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    pub(crate) fn assert_equal(&mut self) {
        let digests: Vec<_> = (0..self.replicas.len())
            .map(|node| self.replica(node).db().reader().unwrap().digest().unwrap())
            .collect();
        for digest in &digests {
            assert_eq!(digest, &digests[0]);
        }
    }
}

/// Replicas in a line.
pub(crate) fn linked(nodes: usize, schema: &str, policies: &[(&str, TablePolicy)]) -> Cluster {
    let mut cluster = Cluster::new(nodes, schema, policies);
    for node in 1..nodes {
        cluster.link(node, node - 1);
    }
    cluster.settle();
    cluster
}

pub(crate) fn any() -> TablePolicy {
    TablePolicy { writers: Writers::Any, ..TablePolicy::default() }
}

pub(crate) fn explicit() -> TablePolicy {
    TablePolicy { explicit_key: true, ..any() }
}

impl Cluster {
    /// All replicas hold these rows.
    pub(crate) fn assert_rows(&mut self, sql: &str, rows: &[&str]) {
        self.settle();
        for node in 0..self.replicas.len() {
            assert_eq!(self.rows(node, sql), rows, "n{node}: {sql}");
        }
        self.assert_equal();
    }

    pub(crate) fn refused(&mut self, node: usize, sql: &'static str) -> String {
        self.try_write(node, move |tx| tx.execute_batch(sql)).unwrap_err().to_string()
    }

    /// Queues jobs so that they run in one group; says which were committed.
    pub(crate) fn group<const N: usize>(
        &mut self,
        node: usize,
        jobs: [&'static str; N],
    ) -> [bool; N] {
        let now = self.now;
        let tickets = jobs.map(|sql| {
            let job = Box::new(move |tx: &mut WriteTx<'_>| tx.execute_batch(sql));
            self.replica(node).write(now, job)
        });
        self.drain(node);
        tickets.map(|ticket| self.done.remove(&(node, ticket)).unwrap().is_ok())
    }
}

/// Rows with a full-text index that triggers keep.
pub(crate) const NOTES: &str = "
    CREATE TABLE note(id INTEGER PRIMARY KEY, title TEXT, body TEXT, n INTEGER NOT NULL DEFAULT 0);
    CREATE VIRTUAL TABLE found USING fts5(title, body, content = 'note', content_rowid = 'id');
    CREATE TRIGGER note_in AFTER INSERT ON note BEGIN
      INSERT INTO found(rowid, title, body) VALUES(new.id, new.title, new.body); END;
    CREATE TRIGGER note_out AFTER DELETE ON note BEGIN
      INSERT INTO found(found, rowid, title, body) VALUES('delete', old.id, old.title, old.body); END;
    CREATE TRIGGER note_again AFTER UPDATE ON note BEGIN
      INSERT INTO found(found, rowid, title, body) VALUES('delete', old.id, old.title, old.body);
      INSERT INTO found(rowid, title, body) VALUES(new.id, new.title, new.body); END;";

impl Cluster {
    /// Full-text search finds these rows on every node, and nothing is wrong with the index.
    pub(crate) fn assert_found(&mut self, word: &str, ids: &[&str]) {
        self.settle();
        for node in 0..self.replicas.len() {
            let sql = format!("SELECT rowid FROM found('{word}') ORDER BY rowid");
            assert_eq!(self.rows(node, &sql), ids, "n{node} looks for {word}");
            // On a copy: the check is an INSERT.
            let copy = self.path(node).with_extension("copy");
            std::fs::remove_file(&copy).ok();
            let reader = self.replica(node).db().reader().unwrap();
            let mut to = rusqlite::Connection::open(&copy).unwrap();
            let backup = rusqlite::backup::Backup::new(reader.connection(), &mut to).unwrap();
            backup.run_to_completion(1000, Duration::ZERO, None).unwrap();
            drop(backup);
            let check = "INSERT INTO found(found, rank) VALUES('integrity-check', 1)";
            to.execute(check, []).unwrap_or_else(|error| panic!("n{node}: {error}"));
        }
    }
}
