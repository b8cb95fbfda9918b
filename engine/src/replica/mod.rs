//! [`Replica`]: the whole engine as one synchronous state machine.
//!
//! It reads no clock and no socket. A driver hands in what happened and drains what is to be done:
//!
//! ```text
//!   write(now, job) ─┐                        ┌─► Send, Close        to peers
//!   handle(now, …) ──┼─► queued ─► poll() ────┼─► Sync, WalCheckpoint to the disk
//!   begin(now) ──────┘                        ├─► Done, Begun, Event  to the application
//!                                             └─► WakeAt              quiet: wait for input or time
//! ```
//!
//! One or several inputs, then a full drain. All work is done in the drain: the jobs that wait are
//! committed as a group, then one batch of remote entries is applied, then links are served. While an
//! interactive transaction is open, only links are served.
//!
//! Invariants:
//! - only entries on stable storage are sent or acknowledged: `durable` never runs ahead of the disk;
//! - what a transaction changed in memory is undone when the transaction is.

mod answering;
mod applying;
mod clock;
mod foreign;
mod forwarding;
mod frontier;
mod guests;
mod holds;
mod interactive;
mod joining;
mod links;
mod requests;
mod schema;
mod snapshot;
mod staleness;
mod storage;
mod verifying;

pub(crate) use holds::Spools;
pub(crate) use snapshot::Progress;
pub(crate) use storage::{Discarding, is_storage_failure};

use self::schema::SchemaJob;
pub(crate) use links::origin_seen_by;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
};

use crate::{
    bookmark::Bookmark,
    contested::Contested,
    corrected::CorrectedClock,
    db::{
        Answer, Committed, Db, File, Job, Local, Queued, watch,
        writer::{Synchronous, Writer},
    },
    driver::{CloseCode, Identity, Input, Output},
    entry::Member,
    error::WriteError,
    hlc::HlcClock,
    id::{AuthorId, Lsn, NodeId, PeerId, Ticket},
    limits::GROUP_JOBS,
    log::Log,
    merge::{Aside, Parked},
    open::Builder,
    protocol::{PeerSession, acks::Acks, message::Register},
    replica::{
        foreign::Foreign,
        forwarding::Forwarding,
        frontier::{Checkpointing, Counting},
        guests::Guests,
        holds::Incoming,
        interactive::InteractiveJobs,
        joining::Joining,
        requests::Requests,
        snapshot::{Fetching, Sponsor},
        storage::{Failure, Storage, is_disk_full, is_sync_failure},
        verifying::Verifying,
    },
    schema::{Registry, catalog},
    status::{Counts, PeerStatus, Status},
    time::{Instant, Now},
    version::{Dot, VersionVector},
    watermarks::Watermarks,
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
    aside: Aside,
    /// Something has changed since parked rows were last tried.
    parked_due: bool,
    hlc: HlcClock,
    corrected: CorrectedClock,
    watermarks: Watermarks,
    /// The largest entry that a write job may become, in bytes.
    max_entry: u64,
    durable: Durable,
    now: Now,
    jobs: Vec<Queued>,
    interactive: InteractiveJobs,
    schema_jobs: VecDeque<(Ticket, SchemaJob)>,
    /// Answers to those that wait until the log is on stable storage up to there.
    schema_answers: VecDeque<(Lsn, Ticket, Result<Committed, WriteError>)>,
    next_ticket: u64,
    /// Never a member: it applies and relays only.
    read_only: bool,
    joining: Joining,
    forwarding: Forwarding,
    requests: Requests,
    guests: Guests,
    sponsor: Sponsor,
    fetching: Fetching,
    sessions: BTreeMap<PeerId, PeerSession>,
    incoming: BTreeMap<PeerId, Incoming>,
    spools: Spools,
    discarding: Discarding,
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
    /// How often the file was opened.
    opened: u64,
    foreign: Foreign,
    /// What members have acknowledged.
    acks: Acks,
    counting: Counting,
    checkpointing: Checkpointing,
    verifying: Verifying,
    /// The freeze that the job ends which is committed next.
    ending: Option<Dot>,
    /// The job that is about to run is only tried.
    only_tries: bool,
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
    pub(crate) parked: Parked,
    pub(crate) hlc: HlcClock,
    pub(crate) read_only: bool,
    pub(crate) progress: Option<Progress>,
    pub(crate) spools: Spools,
    pub(crate) discarding: Discarding,
    pub(crate) max_entry: u64,
    /// How often the file was opened, this time included.
    pub(crate) opened: u64,
    /// Another program has written the file while it was closed.
    pub(crate) changed_closed: bool,
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

    pub(crate) fn new(mut parts: Parts) -> Self {
        let author = parts
            .members
            .iter()
            .find(|member| member.incarnation == parts.identity.incarnation)
            .map(|member| member.author);
        let db = Db::new(parts.file);
        db.ids().tell(parts.now.wall, author);
        parts.log.publish_at(Arc::clone(db.published()));
        db.published().stable(parts.contested.stable());
        db.published().tell(parts.now.wall);
        let register = parts.register.as_ref();
        let is_origin = register.is_some_and(|register| register.is_origin(&parts.identity));
        db.published().origin(is_origin);
        db.publish_registry(&parts.registry, is_origin);
        let durable = Durable {
            lsn: parts.log.last(),
            vector: parts.log.vector(),
            waiting: VecDeque::new(),
            asked: parts.log.last(),
        };
        Self {
            identity: parts.identity,
            synchronous: parts.synchronous,
            db,
            writer: parts.writer,
            registry: parts.registry,
            members: parts.members,
            author,
            register: parts.register,
            log: parts.log,
            contested: parts.contested,
            aside: Aside { parked: parts.parked, ..Aside::default() },
            parked_due: true,
            hlc: parts.hlc,
            corrected: CorrectedClock::default(),
            watermarks: Watermarks::default(),
            max_entry: parts.max_entry,
            durable,
            now: parts.now,
            jobs: Vec::new(),
            interactive: InteractiveJobs::default(),
            schema_jobs: VecDeque::new(),
            schema_answers: VecDeque::new(),
            next_ticket: 1,
            read_only: parts.read_only,
            joining: Joining::default(),
            forwarding: Forwarding::default(),
            requests: Requests::default(),
            guests: Guests::default(),
            sponsor: Sponsor::default(),
            fetching: Fetching::from(parts.progress),
            sessions: BTreeMap::new(),
            incoming: BTreeMap::new(),
            spools: parts.spools,
            discarding: parts.discarding,
            next_peer: PeerId(0),
            linked: BTreeSet::new(),
            outputs: VecDeque::new(),
            applied_in_drain: false,
            storage: Storage::default(),
            halted: None,
            writes_stopped: false,
            counts: Counts::default(),
            opened: parts.opened,
            foreign: Foreign::at_open(parts.changed_closed, parts.now),
            acks: Acks::default(),
            counting: Counting { news: true, ..Counting::default() },
            checkpointing: Checkpointing { frontier: true, ..Checkpointing::default() },
            verifying: Verifying::new(parts.now.mono),
            ending: None,
            only_tries: false,
        }
    }

    /// Queues a write job. It runs in the drain that follows, together with the others that wait, and
    /// is answered by [`Output::Done`] with this ticket.
    pub fn write(&mut self, now: Now, job: Job) -> Ticket {
        self.tell_time(now);
        let ticket = self.next_ticket();
        self.jobs.push(Queued { ticket, job, run_for: None });
        ticket
    }

    fn next_ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        ticket
    }

    fn tell_time(&mut self, now: Now) {
        self.now = now;
        self.db.ids().tell(now.wall, self.author);
        self.db.published().tell(self.corrected());
    }

    /// Takes an input. Drain [`Replica::poll`] afterwards.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.tell_time(now);
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
            Input::SnapshotTaken(result) => self.snapshot_taken(result),
            Input::SnapshotRead { peer, piece } => self.snapshot_read(peer, piece),
            Input::SnapshotWritten { peer, upto, result } => {
                self.snapshot_written(peer, upto, result);
            }
            Input::Synced(lsn) => {
                self.durable.reached(lsn);
                self.answer_durable();
                self.entries_came();
                self.counting.news = true;
            }
            Input::SyncFailed(error) => self.sync_failed(&error),
            // What a transaction that is open adds may be much: the next time, then.
            Input::WalCheckpointed => self.storage.wal_copied = !self.is_open(),
            Input::Wake => {}
        }
    }

    /// The next thing to do. [`Output::WakeAt`] ends a drain.
    pub fn poll(&mut self) -> Output {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return output;
            }
            self.let_others_in();
            if (!self.is_open() && self.write_something())
                || self.serve_forwarding()
                || self.serve_snapshots()
                || self.serve_verifying()
                || self.serve_links()
                || self.serve_disk()
            {
                continue;
            }
            self.applied_in_drain = false;
            self.db.publish_registry(&self.registry, self.is_origin());
            return Output::WakeAt(self.deadline());
        }
    }

    /// What an interactive transaction keeps waiting: everything that writes.
    fn write_something(&mut self) -> bool {
        self.take_deferred();
        self.retry_parked();
        self.commit_jobs()
            || self.serve_schema()
            || self.apply_incoming()
            || self.serve_joins()
            || self.serve_frontier()
            // Last, so that what others wrote is applied between two of them.
            || self.begin_interactive()
    }

    /// A bookmark of all that is committed: whoever requires it elsewhere sees there what was written here,
    /// also by the job that was answered last.
    pub fn bookmark(&self) -> Bookmark {
        self.db.bookmark().expect("between inputs and drains nothing is being committed")
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
            read_only: self.read_only,
            receiving: self.receiving(),
            distance: self.distance(),
            requests_waiting: self.forwarded() as u64,
            requests_here: self.requests_here() as u64,
            origin: self.register.as_ref().and_then(|r| NodeId::new(&r.origin.0).ok()),
            applied: self.log.last(),
            durable: self.durable.lsn,
            members: self.members.clone(),
            schema: self.registry.version,
            tables,
            triggers: self.registry.triggers.clone(),
            stale: catalog::stale(self.writer.apply()).unwrap_or_default().into_iter().collect(),
            peers: self
                .sessions
                .values()
                .map(|session| PeerStatus {
                    holds: self.hold_of(session.peer),
                    ..session.status(&vector)
                })
                .collect(),
            spools: self.spools.count() as u64,
            vector,
            stability: self.stability(),
            contested_rows: self.contested.rows(),
            freeze: self.freeze(),
            parked_rows: self.aside.parked.count(),
            verification: self.verifying.report(),
            clock: self.clock(),
            lag: self.lag(),
            counts: self.counts,
            foreign: self.foreign(),
            storage_error: self.storage.error.clone(),
            halted: self.halted.clone(),
        }
    }

    /// For each link how many entries this replica has applied, and how many of these the peer has not
    /// acknowledged.
    pub fn progress(&self) -> Vec<(PeerId, u64, u64)> {
        let vector = self.log.vector();
        let entries = vector.missing_from(&VersionVector::new());
        let missing = |session: &PeerSession| vector.missing_from(session.acknowledged());
        self.sessions.values().map(|s| (s.peer, entries, missing(s))).collect()
    }

    /// Closes all links, then the file. Jobs that still wait are not run.
    ///
    /// # Errors
    /// SQLite's; the file is closed in any case, and whatever was committed stays committed.
    pub fn close(mut self, now: Now) -> (Vec<Output>, rusqlite::Result<()>) {
        self.tell_time(now);
        for peer in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.close_link(peer, CloseCode::Shutdown, "the node is shutting down".to_owned());
        }
        for queued in mem::take(&mut self.jobs) {
            let result = Err(WriteError::Unavailable("the node is shutting down".to_owned()));
            self.outputs.push_back(Output::Done { ticket: queued.ticket, result });
        }
        self.give_up_interactive("the node is shutting down");
        self.give_up_answers("the node is shutting down");
        self.give_up_requests();
        let outputs = mem::take(&mut self.outputs).into();
        let unsaved = self.checkpointing.entries && !self.writes_stopped;
        let saved = if unsaved { self.checkpoint() } else { Ok(()) };
        let noted = if self.writes_stopped {
            Ok(())
        } else {
            watch::note_closed(self.writer.apply(), self.opened)
        };
        let closed = self.writer.close();
        (outputs, saved.and(noted).and(closed))
    }

    // --- Writing

    fn commit_jobs(&mut self) -> bool {
        let ready = self.jobs_before_interactive().min(GROUP_JOBS);
        if ready == 0 {
            return false;
        }
        let rest = self.jobs.split_off(ready);
        let mut jobs = mem::replace(&mut self.jobs, rest);
        let answers = match self.may_begin_write() {
            Ok(author) => self.commit_all(author, &mut jobs),
            Err(_) => jobs
                .into_iter()
                .map(|job| Answer {
                    ticket: job.ticket,
                    result: self.may_begin_write().and(Err(WriteError::NotAMember)),
                })
                .collect(),
        };
        for Answer { ticket, result } in answers {
            self.answer_job(ticket, result);
        }
        true
    }

    /// The author of what is written here, if anything can be.
    fn may_write(&self) -> Result<AuthorId, WriteError> {
        match (self.author, &self.halted) {
            (_, Some(why)) if self.writes_stopped => Err(WriteError::Unavailable(why.clone())),
            (None, _) if self.read_only => Err(WriteError::ReadOnly),
            (None, _) => Err(WriteError::NotAMember),
            (Some(author), _) => Ok(author),
        }
    }

    /// As [`Replica::may_write`], for what has not begun.
    fn may_begin_write(&self) -> Result<AuthorId, WriteError> {
        let author = self.may_write()?;
        if self.storage.is_full { Err(WriteError::DiskFull) } else { Ok(author) }
    }

    fn answer_job(&mut self, ticket: Ticket, mut result: Result<Committed, WriteError>) {
        if matches!(&result, Err(WriteError::Sqlite(error)) if is_disk_full(error)) {
            result = Err(WriteError::DiskFull);
        }
        if let Err(WriteError::SchemaChanging { waiting_for, .. }) = &mut result {
            *waiting_for = self.freeze().map(|freeze| freeze.waiting_for).unwrap_or_default();
        }
        self.note_run(ticket, &result);
        self.note_guest(ticket, &result);
        match &result {
            Ok(_) => self.counts.jobs_committed += 1,
            Err(_) => self.counts.jobs_failed += 1,
        }
        self.outputs.push_back(Output::Done { ticket, result });
    }

    fn commit_all(&mut self, author: AuthorId, jobs: &mut [Queued]) -> Vec<Answer> {
        self.writing(author, |writer, local| {
            let answers = writer.commit(jobs, local);
            let failures = answers.iter().filter_map(|answer| answer.result.as_ref().err());
            let failures = failures.filter_map(Failure::of).collect();
            (answers, failures)
        })
    }

    /// Lets the writer write as `author`, and takes in what has become of that.
    fn writing<T>(
        &mut self,
        author: AuthorId,
        write: impl FnOnce(&mut Writer, &mut Local<'_>) -> (T, Vec<Failure>),
    ) -> T {
        let (before, bytes) = (self.log.last(), self.log.bytes());
        let wall = self.corrected();
        let mut local = Local {
            author,
            registry: &mut self.registry,
            log: &mut self.log,
            contested: &mut self.contested,
            parked: &mut self.aside.parked,
            hlc: &mut self.hlc,
            wall,
            max_entry: self.max_entry,
            ends: self.ending.take(),
            only_tries: self.only_tries,
        };
        let (result, failures) = write(&mut self.writer, &mut local);
        self.counts.groups += 1;
        self.parked_due = true;
        self.checkpointing.bytes += self.log.bytes() - bytes;
        let first = self.log.head(author).seq - (self.log.last().0 - before.0);
        for (lsn, seq) in (before.0 + 1..=self.log.last().0).zip(first + 1..) {
            self.durable.appended(Lsn(lsn), Dot { author, seq });
            self.counts.entries_authored += 1;
            self.counting.news = true;
            self.checkpointing.entries = true;
        }
        self.entries_came();
        if self.log.last() > before {
            match self.synchronous {
                // The commit has synced the WAL, and all that stood in it before.
                Synchronous::Full => self.durable.reached(self.log.last()),
                Synchronous::Normal => {}
            }
            self.storage_works();
        }
        if let Some(failure) =
            failures.iter().find(|failure| failure.of_sync).or_else(|| failures.first())
        {
            self.failed(failure);
        }
        result
    }

    fn deadline(&self) -> Option<Instant> {
        let told = self.acknowledged();
        let links = self.sessions.values().map(|session| session.deadline(&told, &self.acks));
        let others = links
            .chain(self.snapshot_deadline())
            .chain(self.verifying_deadline())
            .chain(self.forwarding_deadline())
            .min();
        // Whoever has the writer is to end first: the driver sees to that.
        if self.is_open() { others } else { others.into_iter().chain(self.write_deadline()).min() }
    }

    /// When there is something to write again.
    fn write_deadline(&self) -> Option<Instant> {
        if self.halted.is_none() && self.can_apply() && !self.is_fetching() {
            return Some(self.storage.retry_at.unwrap_or(self.now.mono));
        }
        let deadlines = [
            self.storage.retry_at,
            self.spools.deadline(),
            self.discarding_deadline(),
            self.frontier_deadline(),
            self.hold_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }
}
