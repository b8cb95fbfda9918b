//! [`Replica`]: the whole engine as one synchronous state machine.
//!
//! It reads no clock and no socket. A driver hands in what happened and drains what is to be done:
//!
//! ```text
//!   write(now, job) ─┐                        ┌─► Send, Close        to peers
//!   handle(now, …) ──┴─► queued ─► poll() ────┼─► Sync, WalCheckpoint to the disk
//!                                             ├─► Done, Event         to the application
//!                                             └─► WakeAt              quiet: wait for input or time
//! ```
//!
//! One or several inputs, then a full drain. All work is done in the drain: the jobs that wait are
//! committed as a group, then one batch of remote entries is applied, then links are served.
//!
//! Invariants:
//! - only entries on stable storage are sent or acknowledged: `durable` never runs ahead of the disk;
//! - what a transaction changed in memory is undone when the transaction is.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
};

use crate::{
    contested::{Contested, Effects},
    db::{
        Answer, Db, File, Job, Local, Queued,
        writer::{Synchronous, Writer},
    },
    driver::{CloseCode, Event, Identity, Input, Output},
    entry::{Digest, Entry, Member, Membership, Segment, codec::Head},
    error::{ApplyError, ProtocolError, WriteError},
    hlc::HlcClock,
    id::{AuthorId, Lsn, NodeId, PeerId, SchemaVersion, Ticket},
    limits::{APPLY_BATCH_BYTES, GROUP_JOBS, KEEP_ALIVE, STORAGE_RETRY, UNAPPLIED_BYTES_MAX},
    log::{Log, LogError},
    merge::apply::{Applier, Tally},
    open::Builder,
    protocol::{
        PeerSession, Received, check_hello,
        message::{Hello, Register, begins_with},
    },
    schema::{Registry, catalog},
    status::{Counts, Status},
    testing::{Bug, planted},
    time::{Instant, Now},
    value::DecodeError,
    version::{Dot, VersionVector},
};

/// One replica of the database.
#[derive(Debug)]
pub struct Replica {
    identity: Identity,
    synchronous: Synchronous,
    db: Db,
    writer: Writer,
    registry: Arc<Registry>,
    members: Vec<Member>,
    author: Option<AuthorId>,
    register: Option<Register>,
    log: Log,
    contested: Contested,
    hlc: HlcClock,
    durable: Durable,
    now: Now,
    jobs: Vec<Queued>,
    next_ticket: u64,
    sessions: BTreeMap<PeerId, PeerSession>,
    incoming: BTreeMap<PeerId, Incoming>,
    /// The link whose entries are applied first in the next batch.
    next_peer: PeerId,
    /// Nodes that were linked before, in this process.
    linked: BTreeSet<NodeId>,
    outputs: VecDeque<Output>,
    /// One batch of remote entries is applied per drain, so that writes and links get their turn.
    applied_in_drain: bool,
    storage: Storage,
    halted: Option<String>,
    /// What halted the replica stops local writes too.
    writes_stopped: bool,
    counts: Counts,
}

/// What a file holds when it was just opened.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) identity: Identity,
    pub(crate) synchronous: Synchronous,
    pub(crate) file: Arc<File>,
    pub(crate) writer: Writer,
    pub(crate) registry: Arc<Registry>,
    pub(crate) members: Vec<Member>,
    pub(crate) register: Option<Register>,
    pub(crate) log: Log,
    pub(crate) contested: Contested,
    pub(crate) hlc: HlcClock,
    pub(crate) now: Now,
}

/// How far the log is on stable storage.
#[derive(Debug, Default)]
struct Durable {
    lsn: Lsn,
    vector: VersionVector,
    /// Entries behind `lsn`.
    waiting: VecDeque<(Lsn, Dot)>,
    asked: Lsn,
}

/// Entries of one link that wait to be applied.
#[derive(Debug, Default)]
struct Incoming {
    entries: VecDeque<Entry>,
    bytes: u64,
}

/// Whether storage works.
#[derive(Debug, Default)]
struct Storage {
    error: Option<String>,
    retry_at: Option<Instant>,
}

impl Durable {
    fn appended(&mut self, lsn: Lsn, dot: Dot) {
        self.waiting.push_back((lsn, dot));
    }

    fn reached(&mut self, lsn: Lsn) {
        self.lsn = self.lsn.max(lsn);
        while let Some((_, dot)) = self.waiting.pop_front_if(|(waiting, _)| *waiting <= lsn) {
            self.vector.advance(dot);
        }
    }
}

impl Replica {
    /// Begins to open the replica of a node.
    pub fn builder(identity: Identity) -> Builder {
        Builder::new(identity)
    }

    pub(crate) fn new(parts: Parts) -> Self {
        let author = parts
            .members
            .iter()
            .find(|member| member.incarnation == parts.identity.incarnation)
            .map(|member| member.author);
        let durable = Durable {
            lsn: parts.log.last(),
            vector: parts.log.vector(),
            waiting: VecDeque::new(),
            asked: parts.log.last(),
        };
        Self {
            identity: parts.identity,
            synchronous: parts.synchronous,
            db: Db::new(parts.file),
            writer: parts.writer,
            registry: parts.registry,
            members: parts.members,
            author,
            register: parts.register,
            log: parts.log,
            contested: parts.contested,
            hlc: parts.hlc,
            durable,
            now: parts.now,
            jobs: Vec::new(),
            next_ticket: 1,
            sessions: BTreeMap::new(),
            incoming: BTreeMap::new(),
            next_peer: PeerId(0),
            linked: BTreeSet::new(),
            outputs: VecDeque::new(),
            applied_in_drain: false,
            storage: Storage::default(),
            halted: None,
            writes_stopped: false,
            counts: Counts::default(),
        }
    }

    /// Queues a write job. It runs in the drain that follows, together with the others that wait, and
    /// is answered by [`Output::Done`] with this ticket.
    pub fn write(&mut self, now: Now, job: Job) -> Ticket {
        self.now = now;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.jobs.push(Queued { ticket, job });
        ticket
    }

    /// Takes an input. Drain [`Replica::poll`] afterwards.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.now = now;
        match input {
            Input::PeerUp { peer, node } => self.peer_up(peer, node),
            Input::PeerDown { peer } => self.forget(peer),
            Input::Frame { peer, channel, bytes } => {
                let Some(session) = self.sessions.get_mut(&peer) else { return };
                let received = session.handle_frame(now.mono, channel, bytes);
                if let Err(error) = received.and_then(|received| self.received(peer, received)) {
                    self.refuse(peer, &error);
                }
            }
            Input::Synced(lsn) => self.durable.reached(lsn),
            Input::SyncFailed(error) => self.sync_failed(&error),
            Input::Wake => {}
        }
    }

    /// The next thing to do. [`Output::WakeAt`] ends a drain.
    pub fn poll(&mut self) -> Output {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return output;
            }
            if self.commit_jobs()
                || self.apply_incoming()
                || self.serve_links()
                || self.serve_disk()
            {
                continue;
            }
            self.applied_in_drain = false;
            return Output::WakeAt(self.deadline());
        }
    }

    /// The file, for readers.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Stops the statement that a write job is running, from any thread: it fails with
    /// `SQLITE_INTERRUPT`, and the job with it unless it goes on. Jobs of the same group run again.
    pub fn interrupt_handle(&self) -> rusqlite::InterruptHandle {
        self.writer.user().get_interrupt_handle()
    }

    /// What the replica knows of itself and its peers.
    pub fn status(&self) -> Status {
        let vector = self.log.vector();
        let mut tables: Vec<_> = self
            .registry
            .tables()
            .iter()
            .map(|table| (table.name.clone(), table.policy.clone()))
            .collect();
        tables.sort_by(|a, b| a.0.cmp(&b.0));
        Status {
            identity: self.identity.clone(),
            author: self.author,
            origin: self.register.as_ref().and_then(|r| NodeId::new(&r.origin.0).ok()),
            applied: self.log.last(),
            durable: self.durable.lsn,
            members: self.members.clone(),
            schema: self.registry.version,
            tables,
            peers: self.sessions.values().map(|session| session.status(&vector)).collect(),
            vector,
            contested_rows: self.contested.rows(),
            counts: self.counts,
            storage_error: self.storage.error.clone(),
            halted: self.halted.clone(),
        }
    }

    /// Closes all links, then the file. Jobs that still wait are not run.
    ///
    /// # Errors
    /// SQLite's; the file is closed in any case, and whatever was committed stays committed.
    pub fn close(mut self, now: Now) -> (Vec<Output>, rusqlite::Result<()>) {
        self.now = now;
        for peer in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.close_link(peer, CloseCode::Shutdown, "the node is shutting down".to_owned());
        }
        for queued in mem::take(&mut self.jobs) {
            let result = Err(WriteError::Unavailable("the node is shutting down".to_owned()));
            self.outputs.push_back(Output::Done { ticket: queued.ticket, result });
        }
        let outputs = mem::take(&mut self.outputs).into();
        (outputs, self.writer.close())
    }

    // --- Writing

    fn commit_jobs(&mut self) -> bool {
        if self.jobs.is_empty() {
            return false;
        }
        let rest = self.jobs.split_off(self.jobs.len().min(GROUP_JOBS));
        let mut jobs = mem::replace(&mut self.jobs, rest);
        let refused = match (self.author, &self.halted) {
            (_, Some(why)) if self.writes_stopped => Some(WriteError::Unavailable(why.clone())),
            (None, _) => Some(WriteError::NotAMember),
            (Some(_), _) => None,
        };
        let answers = match (self.author, refused) {
            (Some(author), None) => self.commit(author, &mut jobs),
            (_, refused) => jobs
                .into_iter()
                .map(|job| Answer {
                    ticket: job.ticket,
                    result: Err(match &refused {
                        Some(WriteError::Unavailable(why)) => WriteError::Unavailable(why.clone()),
                        _ => WriteError::NotAMember,
                    }),
                })
                .collect(),
        };
        for Answer { ticket, result } in answers {
            match &result {
                Ok(_) => self.counts.jobs_committed += 1,
                Err(_) => self.counts.jobs_failed += 1,
            }
            self.outputs.push_back(Output::Done { ticket, result });
        }
        true
    }

    fn commit(&mut self, author: AuthorId, jobs: &mut [Queued]) -> Vec<Answer> {
        let before = self.log.last();
        let mut local = Local {
            author,
            registry: &self.registry,
            log: &mut self.log,
            contested: &mut self.contested,
            hlc: &mut self.hlc,
            wall: self.now.wall,
        };
        let answers = self.writer.commit(jobs, &mut local);
        self.counts.groups += 1;
        let first = self.log.head(author).seq - (self.log.last().0 - before.0);
        for (lsn, seq) in (before.0 + 1..=self.log.last().0).zip(first + 1..) {
            self.durable.appended(Lsn(lsn), Dot { author, seq });
            self.counts.entries_authored += 1;
        }
        if self.log.last() > before {
            match self.synchronous {
                // The commit has synced the WAL, and all that stood in it before.
                Synchronous::Full => self.durable.reached(self.log.last()),
                Synchronous::Normal => {}
            }
            self.storage_works();
        }
        let failure = answers.iter().find_map(|answer| match &answer.result {
            Err(WriteError::Sqlite(error)) if is_storage_failure(error) => Some(error.to_string()),
            _ => None,
        });
        if let Some(error) = failure {
            self.storage_fails(error);
        }
        let lost = answers.iter().find_map(|answer| match &answer.result {
            Err(WriteError::Sqlite(error)) if is_sync_failure(error) => Some(error.to_string()),
            _ => None,
        });
        if let Some(error) = lost {
            self.sync_failed(&error);
        }
        answers
    }

    // --- Applying

    fn apply_incoming(&mut self) -> bool {
        let waits = self.storage.retry_at.is_some_and(|at| self.now.mono < at);
        if self.applied_in_drain || waits || self.halted.is_some() {
            return false;
        }
        let batch = self.take_batch();
        if batch.is_empty() {
            return false;
        }
        self.applied_in_drain = true;
        let before = self.log.last();
        let snapshot = (Arc::clone(&self.registry), self.members.clone(), self.author);
        self.contested.mark();
        let mut refused = BTreeMap::new();
        match self.apply_batch(&batch, &mut refused) {
            Ok(tally) => {
                self.contested.keep();
                for (lsn, entry) in self.log.keep() {
                    self.durable.appended(lsn, entry.header.dot);
                    self.hlc.observe(entry.header.hlc);
                }
                for (peer, entry) in &batch {
                    if let Some(session) = self.sessions.get_mut(peer) {
                        session.took(entry);
                    }
                }
                self.applied(before, tally, &snapshot);
                for (peer, error) in refused {
                    self.refuse(peer, &error);
                }
            }
            Err(error) => {
                self.contested.undo();
                self.log.undo();
                (self.registry, self.members, self.author) = snapshot;
                if !self.writer.apply().is_autocommit()
                    && let Err(error) = self.writer.apply().execute_batch("ROLLBACK")
                {
                    tracing::error!(%error, "the transaction of a batch could not be rolled back");
                }
                match error {
                    ApplyError::Sqlite(error) if is_storage_failure(&error) => {
                        for (peer, entry) in batch.into_iter().rev() {
                            self.incoming.entry(peer).or_default().put_back(entry);
                        }
                        self.storage_fails(error.to_string());
                    }
                    error => self.stop_links(error.to_string()),
                }
            }
        }
        true
    }

    /// Entries to apply together, of one link after the other, each link's in order.
    fn take_batch(&mut self) -> Vec<(PeerId, Entry)> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let order: Vec<PeerId> = self
            .incoming
            .range(self.next_peer..)
            .chain(self.incoming.range(..self.next_peer))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in order {
            let Some(incoming) = self.incoming.get_mut(&peer) else { continue };
            while bytes < APPLY_BATCH_BYTES
                && let Some(entry) = incoming.take()
            {
                bytes += entry.bytes.len();
                batch.push((peer, entry));
            }
            if bytes >= APPLY_BATCH_BYTES {
                self.next_peer = PeerId(peer.0 + 1);
                break;
            }
        }
        batch
    }

    fn apply_batch(
        &mut self,
        batch: &[(PeerId, Entry)],
        refused: &mut BTreeMap<PeerId, ProtocolError>,
    ) -> Result<Tally, ApplyError> {
        self.writer.apply().prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
        let mut total = Tally::default();
        for (peer, entry) in batch {
            if refused.contains_key(peer) {
                continue;
            }
            match self.place(entry) {
                Ok(true) => {
                    let tally = self.apply(entry)?;
                    total.rows += tally.rows;
                    total.conflicts += tally.conflicts;
                }
                Ok(false) => {
                    self.counts.entries_duplicate += 1;
                    if planted(Bug::CounterReapplied) {
                        self.apply_segments(entry, true)?;
                    }
                }
                Err(error) => {
                    refused.insert(*peer, error);
                }
            }
        }
        self.writer.apply().prepare_cached("COMMIT")?.raw_execute()?;
        Ok(total)
    }

    /// Whether the entry is its author's next (true) or was applied before (false).
    fn place(&self, entry: &Entry) -> Result<bool, ProtocolError> {
        let dot = entry.header.dot;
        let head = self.log.head(dot.author);
        if dot.seq <= head.seq {
            let forked = dot.seq == head.seq && entry.digest != head.digest;
            return if forked { Err(ProtocolError::ForkedVector { dot }) } else { Ok(false) };
        }
        if Some(dot.author) == self.author {
            return Err(ProtocolError::LostState { theirs: dot, ours: head.seq });
        }
        let expected = Dot { author: dot.author, seq: head.seq + 1 };
        if dot != expected {
            return Err(ProtocolError::Gap { found: dot, expected });
        }
        if entry.header.previous != head.digest {
            let found = entry.header.previous;
            return Err(ProtocolError::Fork { dot, found, ours: head.digest });
        }
        let first = dot == Dot { author: AuthorId::FIRST, seq: 1 };
        if !first && !self.members.iter().any(|member| member.author == dot.author) {
            return Err(ProtocolError::UnknownAuthor(dot.author));
        }
        Ok(true)
    }

    fn apply(&mut self, entry: &Entry) -> Result<Tally, ApplyError> {
        let tally = self.apply_segments(entry, false)?;
        self.log.append(self.writer.apply(), entry.clone())?;
        Ok(tally)
    }

    fn apply_segments(&mut self, entry: &Entry, again: bool) -> Result<Tally, ApplyError> {
        let broken = |error| ApplyError::undecodable(entry.header.dot, error);
        let origin = self.register.as_ref().map_or(AuthorId::FIRST, Register::origin_author);
        let mut total = Tally::default();
        for segment in entry.segments() {
            let segment = segment.map_err(broken)?;
            if let Segment::Rows(rows) = segment {
                let registry = Arc::clone(&self.registry);
                let mut applier = Applier {
                    conn: self.writer.apply(),
                    registry: &registry,
                    contested: &mut self.contested,
                    origin,
                    tally: Tally::default(),
                    effects: Effects::default(),
                };
                if again {
                    applier.count_again(rows)?;
                } else {
                    applier.rows(entry, rows)?;
                }
                total.rows += applier.tally.rows;
                total.conflicts += applier.tally.conflicts;
                continue;
            }
            if again {
                continue;
            }
            if entry.header.dot.author != origin {
                return Err(broken(DecodeError::Invalid(
                    "a segment that only the origin may write",
                )));
            }
            self.apply_decree(segment)?;
        }
        Ok(total)
    }

    /// Applies a segment that only the origin writes.
    fn apply_decree(&mut self, segment: Segment<'_>) -> Result<(), ApplyError> {
        let conn = self.writer.apply();
        match segment {
            Segment::Rows(_) => {}
            Segment::Ddl(statements) => {
                for statement in statements {
                    conn.execute_batch(&statement)?;
                }
            }
            Segment::Policy(tables) => {
                let version = SchemaVersion(self.registry.version.0 + 1);
                catalog::declare(conn, version, &tables)?;
                self.registry = Arc::new(Registry::load(conn)?);
            }
            Segment::Membership(Membership::Join(member)) => {
                catalog::add_member(conn, &member)?;
                if member.incarnation == self.identity.incarnation {
                    self.author = Some(member.author);
                }
                self.members.push(member);
            }
        }
        Ok(())
    }

    /// A batch was committed.
    fn applied(
        &mut self,
        before: Lsn,
        tally: Tally,
        (registry, _, author): &(Arc<Registry>, Vec<Member>, Option<AuthorId>),
    ) {
        let entries = self.log.last().0 - before.0;
        self.counts.entries_applied += entries;
        self.counts.rows_applied += tally.rows;
        self.counts.conflicts += tally.conflicts;
        if !Arc::ptr_eq(registry, &self.registry) {
            self.writer.learn(&self.registry, self.is_origin());
        }
        if self.author != *author
            && let Some(author) = self.author
        {
            self.outputs.push_back(Output::Event(Event::Joined(author)));
            let head = self.log.head(author);
            let known = self.sessions.values().map(|session| session.known_of(author)).max();
            if let Some(seq) = known.filter(|seq| *seq > head.seq) {
                self.lost_state(Dot { author, seq });
            }
        }
        if entries > 0 {
            let lsn = self.log.last();
            self.outputs.push_back(Output::Event(Event::Applied { lsn, entries }));
        }
        self.storage_works();
    }

    // --- Links

    fn peer_up(&mut self, peer: PeerId, node: NodeId) {
        if let Some(why) = self.halted.clone() {
            self.outputs.push_back(Output::Close { peer, code: CloseCode::Halted, reason: why });
            return;
        }
        let hello = Hello::new(
            &self.identity,
            self.log.heads(),
            self.register.as_ref(),
            self.registry.version,
        );
        let mut session = PeerSession::new(peer, node, self.now.mono, hello);
        session.is_reconnect = !self.linked.insert(session.node.clone());
        self.sessions.insert(peer, session);
    }

    fn received(&mut self, peer: PeerId, received: Received) -> Result<(), ProtocolError> {
        match received {
            Received::Nothing => Ok(()),
            Received::Entries(entries) => self.queue(peer, entries),
            Received::Hello(hello) => self.hello(peer, &hello),
        }
    }

    fn queue(&mut self, peer: PeerId, entries: Vec<Entry>) -> Result<(), ProtocolError> {
        let incoming = self.incoming.entry(peer).or_default();
        entries.into_iter().for_each(|entry| incoming.put(entry));
        if incoming.bytes > UNAPPLIED_BYTES_MAX {
            return Err(ProtocolError::TooMuch);
        }
        Ok(())
    }

    fn hello(&mut self, peer: PeerId, hello: &Hello) -> Result<(), ProtocolError> {
        let Some(session) = self.sessions.get(&peer) else { return Ok(()) };
        let node = session.node.clone();
        check_hello(&self.identity, &node, hello)?;
        for (dot, prefix) in hello.heads() {
            self.compare(dot, prefix)?;
        }
        if let Some(register) = &hello.register
            && self.register.as_ref().is_none_or(|ours| register.version > ours.version)
        {
            self.obey(register)?;
        }
        self.close_replaced(peer, &node);
        let vector = hello.vector();
        let cursor = match self.sessions.get(&peer) {
            Some(session) if session.is_reconnect && planted(Bug::RelayForgotten) => {
                self.durable.lsn.next()
            }
            _ => self.log.start_for(&vector),
        };
        let Some(session) = self.sessions.get_mut(&peer) else { return Ok(()) };
        let early = session.start_streaming(vector, cursor)?;
        self.outputs.push_back(Output::Event(Event::Streaming { peer, node }));
        self.queue(peer, early)
    }

    /// Compares the newest entry that a peer has of an author with ours.
    fn compare(&self, theirs: Dot, prefix: [u8; 8]) -> Result<(), ProtocolError> {
        let Head { seq, .. } = self.log.head(theirs.author);
        if theirs.seq > seq {
            if Some(theirs.author) == self.author {
                return Err(ProtocolError::LostState { theirs, ours: seq });
            }
            return Ok(());
        }
        let ours: Option<Digest> =
            self.log.digest_of(self.writer.apply(), theirs).map_err(|error| match error {
                LogError::Sqlite(error) => ProtocolError::Storage(error),
                LogError::Damaged { .. } => ProtocolError::Halted(error.to_string()),
            })?;
        match ours {
            Some(digest) if !begins_with(&digest, prefix) => {
                Err(ProtocolError::ForkedVector { dot: theirs })
            }
            _ => Ok(()),
        }
    }

    /// Takes a newer version of the control register, and keeps it before anything follows from it.
    fn obey(&mut self, register: &Register) -> Result<(), ProtocolError> {
        if register.version > 0 || register.origin_author() != AuthorId::FIRST {
            return Err(ProtocolError::Incompatible(format!(
                "version {} of the control register; this node knows only the first",
                register.version
            )));
        }
        catalog::set_meta(self.writer.apply(), "register", register.encode())?;
        self.register = Some(register.clone());
        self.writer.learn(&self.registry, self.is_origin());
        Ok(())
    }

    fn is_origin(&self) -> bool {
        self.register.as_ref().is_some_and(|register| register.is_origin(&self.identity))
    }

    /// Closes older links to the same node. One that is as new stays: if both nodes dial at the same
    /// moment and each closed the link it made first, none would be left.
    fn close_replaced(&mut self, newest: PeerId, node: &NodeId) {
        let replaced: Vec<PeerId> = self
            .sessions
            .values()
            .filter(|s| {
                s.peer != newest && s.node == *node && self.now.mono >= s.since + KEEP_ALIVE
            })
            .map(|session| session.peer)
            .collect();
        for peer in replaced {
            self.refuse(peer, &ProtocolError::Replaced);
        }
    }

    fn serve_links(&mut self) -> bool {
        self.push_entries();
        let mut failed = Vec::new();
        for (peer, session) in &mut self.sessions {
            if let Err(error) = session.tick(self.now.mono, &self.durable.vector) {
                failed.push((*peer, error));
            }
            while let Some((channel, bytes)) = session.take_frame() {
                self.outputs.push_back(Output::Send { peer: *peer, channel, bytes });
            }
        }
        for (peer, error) in failed {
            self.refuse(peer, &error);
        }
        !self.outputs.is_empty()
    }

    fn push_entries(&mut self) {
        let upto = if planted(Bug::SendUnsynced) { self.log.last() } else { self.durable.lsn };
        let mut broken = None;
        for session in self.sessions.values_mut() {
            let Some(from) = session.wants_from(upto) else { continue };
            let read = self
                .log
                .read(self.writer.apply(), from, upto, |lsn, entry| session.offer(lsn, entry));
            session.flush();
            if let Err(error) = read {
                broken = Some(error);
                break;
            }
        }
        match broken {
            None => {}
            Some(LogError::Sqlite(error)) if is_storage_failure(&error) => {
                self.storage_fails(error.to_string());
            }
            Some(error) => self.halt(error.to_string()),
        }
    }

    /// A peer broke the protocol, or its link has to end.
    fn refuse(&mut self, peer: PeerId, error: &ProtocolError) {
        match error {
            ProtocolError::Undecodable(_) => return self.stop_links(error.to_string()),
            ProtocolError::LostState { theirs, .. } => {
                self.close_link(peer, error.code(), error.to_string());
                return self.lost_state(*theirs);
            }
            ProtocolError::Storage(failure) => self.storage_fails(failure.to_string()),
            _ => {}
        }
        let theirs = !matches!(
            error,
            ProtocolError::TimedOut | ProtocolError::Replaced | ProtocolError::Storage(_)
        );
        if theirs {
            self.counts.links_refused += 1;
            tracing::warn!(node = %self.identity.node, peer = peer.0, %error, "link refused");
        }
        self.close_link(peer, error.code(), error.to_string());
    }

    fn close_link(&mut self, peer: PeerId, code: CloseCode, reason: String) {
        self.forget(peer);
        self.outputs.push_back(Output::Close { peer, code, reason });
    }

    fn forget(&mut self, peer: PeerId) {
        self.sessions.remove(&peer);
        self.incoming.remove(&peer);
    }

    // --- Storage

    fn serve_disk(&mut self) -> bool {
        if self.storage.retry_at.is_some_and(|at| self.now.mono >= at) {
            self.storage.retry_at = None;
            self.probe();
        }
        if self.durable.asked < self.log.last() && self.durable.lsn < self.log.last() {
            self.durable.asked = self.log.last();
            self.outputs.push_back(Output::Sync(self.log.last()));
        }
        if self.writer.wants_checkpoint() {
            self.outputs.push_back(Output::WalCheckpoint);
        }
        !self.outputs.is_empty()
    }

    /// Tries whether storage works again, by a write that changes nothing that matters.
    fn probe(&mut self) {
        match catalog::set_meta(self.writer.apply(), "probed", self.now.wall.0.cast_signed()) {
            Ok(()) => self.storage_works(),
            Err(error) => self.storage_fails(error.to_string()),
        }
    }

    fn storage_fails(&mut self, error: String) {
        self.storage.retry_at = Some(self.now.mono + STORAGE_RETRY);
        if self.storage.error.is_none() {
            self.outputs.push_back(Output::Event(Event::StorageFailed(error.clone())));
        }
        self.storage.error = Some(error);
    }

    fn storage_works(&mut self) {
        if self.storage.error.take().is_some() {
            self.storage.retry_at = None;
            self.outputs.push_back(Output::Event(Event::StorageRecovered));
        }
    }

    fn sync_failed(&mut self, error: &str) {
        self.halt(format!(
            "the WAL could not be synced ({error}); what the disk holds is only known after the file is \
             opened again"
        ));
    }

    /// Others have entries of this node that it has not: the file is an old copy, or was lost.
    fn lost_state(&mut self, theirs: Dot) {
        let ours = self.log.head(theirs.author).seq;
        self.halt(format!(
            "a peer has entry {theirs} of this node, which itself has only {ours}: the file is an old \
             copy, or was lost. Start the node again with an empty directory and a new incarnation"
        ));
    }

    /// Stops all links and all writing, for good: only an operator helps.
    fn halt(&mut self, why: String) {
        self.writes_stopped = true;
        self.stop_links(why);
    }

    /// Stops all links, for good; local writes go on.
    fn stop_links(&mut self, why: String) {
        if self.halted.is_some() {
            return;
        }
        tracing::error!(node = %self.identity.node, %why, "replica halted");
        self.halted = Some(why.clone());
        for peer in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.close_link(peer, CloseCode::Halted, why.clone());
        }
        self.outputs.push_back(Output::Event(Event::Halted(why)));
    }

    fn deadline(&self) -> Option<Instant> {
        let more = self.incoming.values().any(|incoming| !incoming.entries.is_empty());
        if more && self.halted.is_none() {
            return Some(self.storage.retry_at.unwrap_or(self.now.mono));
        }
        self.sessions
            .values()
            .map(|session| session.deadline(&self.durable.vector))
            .chain(self.storage.retry_at)
            .min()
    }
}

impl Incoming {
    fn put(&mut self, entry: Entry) {
        self.bytes += entry.bytes.len() as u64;
        self.entries.push_back(entry);
    }

    fn put_back(&mut self, entry: Entry) {
        self.bytes += entry.bytes.len() as u64;
        self.entries.push_front(entry);
    }

    fn take(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.bytes.len() as u64;
        Some(entry)
    }
}

/// After a failed sync the pages count as written, and a later sync would seem to succeed.
fn is_sync_failure(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC};
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC))
}

fn is_storage_failure(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, FileLockingProtocolFailed, OutOfMemory,
        ReadOnly, SystemIoFailure,
    };
    matches!(
        error.sqlite_error_code(),
        Some(
            CannotOpen
                | DatabaseBusy
                | DatabaseLocked
                | DiskFull
                | FileLockingProtocolFailed
                | OutOfMemory
                | ReadOnly
                | SystemIoFailure
        )
    )
}
