//! [`Driver`]: calls the [`Replica`], and carries out its outputs. The replica thread has it, and lends it to
//! who brings a short write; see [`Seat`](super::seat::Seat). The rest of the node holds a channel to that
//! thread, and [`Event`] is everything that it may be told.

mod transactions;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant as StdInstant},
};

use bytes::Bytes;
use littoral::{
    Channel, CloseCode, Committed, Event as News, Input, Instant, NodeId, Output, PeerId, Replica,
    RequestId, Snapshot, Status, Ticket, WriteError, WriteTx,
    limits::{
        CREDIT_WINDOW_BYTES, MAX_FRAME_BYTES, PROGRAM_BYTES_MAX, REQUEST_BYTES_PER_LINK,
        REQUESTS_PER_LINK, RESULT_BYTES_MAX, SNAPSHOT_WINDOW_BYTES, STEPS_PER_LINK,
    },
};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc as async_mpsc, oneshot};
use tracing::{debug, error, info, warn};

use super::{
    TransactionError,
    files::Files,
    forwards::{Ask, Asker, Programs},
    interactive::{Begin, Held, Who},
    meter::Meter,
    storage_threads::{SnapshotRequest, StorageRequests},
    writes::{Crowd, Turn, Watchdog, Write},
};
use crate::clock::Clock;

/// What may wait to be sent on one link: entries as credit allows, or a single larger one, a snapshot's
/// window, requests to the origin and replies to them, and as many other
/// control frames as only a peer that does not read lets pile up.
#[expect(clippy::cast_possible_truncation, reason = "8 MiB fit")]
pub(crate) const OUTBOX_BYTES_MAX: usize = CREDIT_WINDOW_BYTES as usize
    + MAX_FRAME_BYTES
    + SNAPSHOT_WINDOW_BYTES as usize
    + REQUEST_BYTES_PER_LINK
    + REQUESTS_PER_LINK * RESULT_BYTES_MAX
    + STEPS_PER_LINK * (PROGRAM_BYTES_MAX + RESULT_BYTES_MAX)
    + (8 << 20);

/// What a frame that waits takes beside its bytes.
const FRAME_COST: usize = 64;

pub(crate) type EventSender = mpsc::Sender<Event>;

/// Everything the replica thread can be told.
pub(crate) enum Event {
    /// Queue a write job, and answer when it is done.
    Write(Write),
    /// Ask the origin for something, and answer when it has answered.
    Forward { ask: Ask, done: Asker },
    /// Queue an interactive transaction, and answer when it has the writer.
    Begin(Begin),
    /// Run statements in one.
    Step { id: u64, run: Box<dyn FnOnce(&mut WriteTx<'_>) + Send> },
    /// Commit one, and answer when it is done.
    Commit { id: u64, done: oneshot::Sender<Result<Committed, WriteError>> },
    /// Roll one back, or let it wait no more.
    RollBack(u64),
    /// Run a migration, and answer when it is done.
    Migrate { script: String, done: oneshot::Sender<Result<Committed, WriteError>> },
    /// Give up the change of the schema that waits, and answer when that is done.
    AbortSchemaChange(oneshot::Sender<Result<Committed, WriteError>>),
    /// Compare all rows with a peer's; the answer says whether this node does that.
    Verify(oneshot::Sender<bool>),
    /// A link is up; its frames go to the outbox.
    LinkUp { peer: PeerId, node: NodeId, outbox: LinkOutbox },
    /// A frame arrived; the permit bounds how much of one link waits here.
    Frame { peer: PeerId, channel: Channel, bytes: Vec<u8>, permit: OwnedSemaphorePermit },
    /// Anything else that the engine asks to be told.
    Input(Input),
    /// What a storage thread did for the file as it was opened the time of that number.
    Stored { opening: u64, input: Input },
    /// Say how things are.
    Status(oneshot::Sender<Status>),
    /// Close everything and end.
    Stop(oneshot::Sender<Result<(), rusqlite::Error>>),
}

/// Where the frames of one link go. Dropping it tells the link's task to send what is queued and then
/// to close the connection with the code in `closing`.
pub(crate) struct LinkOutbox {
    pub(crate) control: async_mpsc::UnboundedSender<Bytes>,
    pub(crate) entries: async_mpsc::UnboundedSender<Bytes>,
    pub(crate) snapshot: async_mpsc::UnboundedSender<Bytes>,
    pub(crate) closing: Arc<OnceLock<(CloseCode, String)>>,
    /// Bytes in both queues; the link's task takes off what it has handed to QUIC.
    pub(crate) waiting: Arc<AtomicUsize>,
    /// Dropped with the outbox. A message says that too much waits, and not to send it any more.
    pub(crate) overflow: oneshot::Sender<()>,
}

/// What a frame counts in [`LinkOutbox::waiting`].
pub(crate) fn frame_cost(frame: &Bytes) -> usize {
    frame.len() + FRAME_COST
}

/// What runs jobs, and makes them of programs.
pub(crate) struct Runner {
    pub(crate) watchdog: Watchdog,
    pub(crate) programs: Programs,
    pub(crate) meter: Arc<Meter>,
}

/// The replica, with all that driving it takes.
pub(crate) struct Driver {
    /// `None` only after a snapshot could not become its file.
    replica: Option<Replica>,
    files: Files,
    clock: Clock,
    effects: Effects,
    wake_at: Option<Instant>,
    /// What is not before the replica yet, oldest first.
    writes: VecDeque<Waiting>,
    crowd: Crowd,
    watchdog: Watchdog,
    programs: Programs,
    meter: Arc<Meter>,
}

/// What waits for the writer.
enum Waiting {
    Write(Write),
    Begin(Begin),
    Guest(RequestId),
}

impl Driver {
    pub(crate) fn new(
        replica: Replica,
        files: Files,
        clock: Clock,
        storage: StorageRequests,
        news: broadcast::Sender<News>,
        Runner { watchdog, programs, meter }: Runner,
    ) -> Self {
        let effects = Effects {
            waiting: HashMap::new(),
            forwards: HashMap::new(),
            failed: Vec::new(),
            ended: Vec::new(),
            migrations: HashMap::new(),
            held: None,
            postponed: Vec::new(),
            postponements: 0,
            links: HashMap::new(),
            storage,
            news,
        };
        let writes = VecDeque::new();
        Self {
            replica: Some(replica),
            files,
            clock,
            effects,
            wake_at: None,
            writes,
            crowd: Crowd::default(),
            watchdog,
            programs,
            meter,
        }
    }

    /// Handles a batch of events and runs writes; gives whom to answer if one of them was to stop.
    pub(super) fn round(
        &mut self,
        batch: &mut Vec<Event>,
    ) -> Option<oneshot::Sender<Result<(), rusqlite::Error>>> {
        let stop = self.take(batch);
        self.end_what_takes_too_long();
        self.run_writes();
        stop
    }

    /// Whether it can do nothing any more.
    pub(super) fn has_ended(&self) -> bool {
        self.replica.is_none()
    }

    /// Whether nobody has the writer or waits for it here, many have not come together of late, and nothing is
    /// due. Once something is, events have to be looked at first: a link may be silent only because its frames
    /// wait.
    pub(super) fn is_idle(&self) -> bool {
        self.is_free()
            && self.crowd.is_small()
            && self.wake_at.is_none_or(|at| self.clock.now().mono < at)
    }

    fn is_free(&self) -> bool {
        self.replica.is_some() && self.writes.is_empty() && self.effects.held.is_none()
    }

    /// Does a write, if it is idle; tells whether there is more to do than before, or sooner.
    pub(super) fn write(&mut self, write: Write) -> bool {
        let before = self.wake_at;
        self.writes.push_back(Waiting::Write(write));
        self.run_writes();
        let sooner = self.wake_at.is_some_and(|at| before.is_none_or(|before| at < before));
        sooner || !self.is_free()
    }

    /// How long it waits for the next event at most; `None` for as long as it takes.
    pub(super) fn wait(&self) -> Option<Duration> {
        // One transaction has the writer, so nobody else's turn has come.
        if !self.writes.is_empty() && self.effects.held.is_none() {
            return Some(Duration::ZERO);
        }
        let wakes = self.wake_at.map(|at| at.since(self.clock.now().mono));
        let ends_at = self.effects.held.as_ref().and_then(|held| held.ends_at);
        let ends = ends_at.map(|at| at.saturating_duration_since(StdInstant::now()));
        wakes.into_iter().chain(ends).min()
    }

    /// Handles a batch of events, its writes excepted, and drains once; returns whom to answer if one
    /// of them was to stop.
    fn take(
        &mut self,
        batch: &mut Vec<Event>,
    ) -> Option<oneshot::Sender<Result<(), rusqlite::Error>>> {
        let mut stop = None;
        let mut asked = Vec::new();
        for event in batch.drain(..) {
            match event {
                Event::Write(write) => self.writes.push_back(Waiting::Write(write)),
                Event::Begin(begin) => self.writes.push_back(Waiting::Begin(begin)),
                Event::Step { id, run } => self.step(id, run),
                Event::Commit { id, done } => self.commit(id, done),
                Event::RollBack(id) => self.roll_back(id),
                Event::Forward { ask, done } => {
                    if let Some(replica) = &mut self.replica {
                        let now = self.clock.now();
                        self.effects.forwards.insert(ask.of(replica, now), done);
                    }
                }
                Event::Migrate { script, done } => {
                    // Without a replica the thread is ending, and who waits is told by that.
                    if let Some(replica) = &mut self.replica {
                        let ticket = replica.migrate(self.clock.now(), &script);
                        self.effects.migrations.insert(ticket, done);
                    }
                }
                Event::AbortSchemaChange(done) => {
                    if let Some(replica) = &mut self.replica {
                        let ticket = replica.abort_schema_change(self.clock.now());
                        self.effects.migrations.insert(ticket, done);
                    }
                }
                Event::Verify(reply) => {
                    if let Some(replica) = &mut self.replica {
                        // Nobody waits any more if this fails; the comparison goes on.
                        let _ = reply.send(replica.verify(self.clock.now()));
                    }
                }
                Event::LinkUp { peer, node, outbox } => {
                    self.effects.links.insert(peer, outbox);
                    self.input(Input::PeerUp { peer, node });
                }
                Event::Frame { peer, channel, bytes, permit } => {
                    self.input(Input::Frame { peer, channel, bytes });
                    drop(permit);
                }
                Event::Input(input) => {
                    if let Input::PeerDown { peer } = input {
                        self.effects.links.remove(&peer);
                    }
                    self.input(input);
                }
                Event::Stored { opening, input } => {
                    if self.effects.storage.are_of(opening) {
                        self.input(input);
                    }
                }
                Event::Status(reply) => asked.push(reply),
                Event::Stop(reply) => stop = Some(reply),
            }
        }
        self.wake();
        if let Some(replica) = &self.replica {
            self.meter.look_at_peers(|| replica.progress());
        }
        for reply in asked {
            // Nobody waits any more if this fails, and nothing is lost.
            if let Some(status) = self.status() {
                let _ = reply.send(status);
            }
        }
        stop
    }

    /// Hands writes to the replica, up to the next interactive transaction, and drains. Those that did
    /// not begin in time come back. If nothing is before it any more, the transaction follows.
    fn run_writes(&mut self) {
        if self.effects.held.is_some() {
            return;
        }
        let turn = Turn::begin(&self.watchdog);
        let mut handed = 0;
        while let Some(Waiting::Write(_)) = self.writes.front()
            && let Some(replica) = &mut self.replica
            && let Some(Waiting::Write(write)) = self.writes.pop_front()
        {
            let first = handed == 0;
            let write = Arc::new(Mutex::new(write));
            let (theirs, turn) = (Arc::clone(&write), Arc::clone(&turn));
            let now = self.clock.now();
            let program = write.lock().program.as_ref().map(|p| (p.request, Arc::clone(&p.result)));
            let ticket = match program {
                None => {
                    let job = move |tx: &mut WriteTx<'_>| theirs.lock().run(&turn, first, tx);
                    replica.write(now, Box::new(job))
                }
                Some((request, result)) => {
                    let job = move |tx: &mut WriteTx<'_>| {
                        theirs.lock().run(&turn, first, tx)?;
                        Ok(std::mem::take(&mut *result.lock()))
                    };
                    replica.run(now, request, Box::new(job))
                }
            };
            self.effects.waiting.insert(ticket, write);
            handed += 1;
        }
        if handed > 0 {
            self.crowd.came(handed);
            self.drain();
            for write in self.effects.postponed.drain(..).rev() {
                self.writes.push_front(Waiting::Write(write));
            }
        }
        self.begin_next();
    }

    fn status(&self) -> Option<Status> {
        let mut status = self.replica.as_ref()?.status();
        // The engine takes a postponed job for a failed one.
        let failed = &mut status.counts.jobs_failed;
        *failed = failed.saturating_sub(self.effects.postponements);
        Some(status)
    }

    fn input(&mut self, input: Input) {
        if let Some(replica) = &mut self.replica {
            replica.handle(self.clock.now(), input);
        }
    }

    fn wake(&mut self) {
        self.input(Input::Wake);
        self.drain();
    }

    fn drain(&mut self) {
        loop {
            let Some(replica) = &mut self.replica else { return };
            match replica.poll() {
                Output::WakeAt(at) => {
                    self.wake_at = at;
                    return;
                }
                Output::InstallSnapshot(snapshot) => {
                    self.install(&snapshot);
                    if self.replica.is_none() {
                        return;
                    }
                }
                Output::GuestArrived { request } => self.writes.push_back(Waiting::Guest(request)),
                Output::GuestStep { ticket, program, .. } => self.guest_step(ticket, &program),
                Output::Run { request, program } => match (self.programs.prepare)(&program) {
                    Ok(prepared) => {
                        self.writes.push_back(Waiting::Write(Write::of(request, prepared)));
                    }
                    Err(answer) => replica.run_failed(self.clock.now(), request, answer),
                },
                output => {
                    self.effects.carry_out(output);
                    for (request, answer) in self.effects.failed.drain(..) {
                        replica.run_failed(self.clock.now(), request, answer);
                    }
                    for (request, why) in self.effects.ended.drain(..) {
                        let answer = (self.programs.ended)(&why);
                        replica.guest_ended(self.clock.now(), request, answer);
                    }
                }
            }
        }
    }

    /// Puts a snapshot that was received in the place of the file, and goes on with that. If it cannot
    /// be opened, the thread ends, and says why.
    fn install(&mut self, snapshot: &Snapshot) {
        let Some(replica) = self.replica.take() else { return };
        let db = replica.db().clone();
        // Whoever has the file open when the replica closes it keeps its WAL there.
        self.files.readers.pause();
        let file = self.effects.storage.file();
        let alone = file.write();
        let (outputs, closed) = replica.close(self.clock.now());
        for output in outputs {
            self.effects.carry_out(output);
        }
        self.effects.storage.reopened();
        let installed = closed
            .map_err(|error| error.to_string())
            .and_then(|()| self.files.replace(&db, snapshot))
            .and_then(|()| self.files.open(self.clock));
        drop(alone);
        match installed {
            Ok(replica) => {
                self.watchdog.watch_other(replica.interrupt_handle());
                self.replica = Some(replica);
                info!(bytes = snapshot.bytes, "a snapshot has become this node's file");
            }
            Err(why) => {
                self.files.readers.resume(None);
                error!(why, "a snapshot could not become this node's file");
            }
        }
    }

    /// Closes everything.
    pub(super) fn stop(mut self, reply: oneshot::Sender<Result<(), rusqlite::Error>>) {
        let Some(replica) = self.replica.take() else { return };
        let (outputs, closed) = replica.close(self.clock.now());
        for output in outputs {
            self.effects.carry_out(output);
        }
        // Links that are left are closed by dropping their outboxes, waiting writes by dropping their
        // senders, the storage threads by dropping their channels.
        drop(self.effects);
        if reply.send(closed).is_err() {
            debug!("nobody waited for the replica to close");
        }
    }
}

/// Where outputs go.
struct Effects {
    waiting: HashMap<Ticket, Arc<Mutex<Write>>>,
    forwards: HashMap<Ticket, Asker>,
    /// Programs that have failed, and what who sent them is told.
    failed: Vec<(RequestId, Vec<u8>)>,
    /// Guests whose transactions have ended, and why.
    ended: Vec<(RequestId, TransactionError)>,
    migrations: HashMap<Ticket, oneshot::Sender<Result<Committed, WriteError>>>,
    /// The interactive transaction that has the writer, or is about to.
    held: Option<Held>,
    /// Writes of the drain under way that did not begin, in their order.
    postponed: Vec<Write>,
    /// How many there ever were.
    postponements: u64,
    links: HashMap<PeerId, LinkOutbox>,
    storage: StorageRequests,
    news: broadcast::Sender<News>,
}

impl Effects {
    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send { peer, channel, bytes } => self.send(peer, channel, bytes),
            Output::Close { peer, code, reason } => {
                if let Some(outbox) = self.links.remove(&peer) {
                    debug!(peer = peer.0, ?code, reason, "closing a link");
                    // It cannot be set yet: only this removes an outbox with a reason.
                    let _ = outbox.closing.set((code, reason));
                }
            }
            Output::Sync(lsn) => {
                let is_urgent = !self.waiting.is_empty() || self.held.is_some();
                self.storage.sync(lsn, is_urgent);
            }
            Output::WalCheckpoint => self.storage.checkpoint(),
            Output::Begun { ticket } => {
                if let Some(held) = self.held.as_mut().filter(|held| held.ticket == ticket) {
                    held.begun();
                }
            }
            Output::Done { ticket, result } => {
                if let Some(held) = self.held.take_if(|held| held.ticket == ticket) {
                    match (held.who, result) {
                        (Who::Here(_), result) => held.ended(result),
                        (Who::Guest(request), Err(error)) => {
                            self.ended.push((request, held.why(error)));
                        }
                        // Who sent its last step is told by the replica.
                        (Who::Guest(_), Ok(_)) => {}
                    }
                    return;
                }
                if let Some(done) = self.migrations.remove(&ticket) {
                    // Whoever asked may have gone away; what was done stands.
                    let _ = done.send(result);
                    return;
                }
                // The replica has dropped its job, so this is the last that holds the write.
                let write = self.waiting.remove(&ticket).and_then(Arc::into_inner);
                let Some(mut write) = write.map(Mutex::into_inner) else { return };
                if write.postponed && result.is_err() {
                    self.postponed.push(write);
                    self.postponements += 1;
                } else if let Some(mut program) = write.program.take() {
                    // Who sent it is told by the replica if it is committed.
                    if let Err(error) = &result {
                        self.failed.push((program.request, (program.failed)(error)));
                    }
                } else if let Some(done) = write.done.take() {
                    // Whoever asked may have gone away; the write stands.
                    let _ = done.send(result);
                }
            }
            Output::Answered { ticket, result } => {
                if let Some(done) = self.forwards.remove(&ticket) {
                    // Whoever asked may have gone away; what was done stands.
                    let _ = done.send(result);
                }
            }
            Output::Event(news) => {
                log(&news);
                // An error says that nobody listens.
                let _ = self.news.send(news);
            }
            Output::TakeSnapshot(name) => self.storage.snapshot(SnapshotRequest::Take(name)),
            Output::ReadSnapshot { peer, offset, bytes } => {
                self.storage.snapshot(SnapshotRequest::Read { peer, offset, bytes });
            }
            Output::DiscardSnapshot => self.storage.snapshot(SnapshotRequest::Discard),
            Output::WriteSnapshot { peer, piece, sync } => {
                self.storage.snapshot(SnapshotRequest::Write { peer, piece, sync });
            }
            // The replica thread's own business.
            Output::InstallSnapshot(_)
            | Output::WakeAt(_)
            | Output::Run { .. }
            | Output::GuestArrived { .. }
            | Output::GuestStep { .. } => {}
        }
    }

    fn send(&mut self, peer: PeerId, channel: Channel, bytes: Vec<u8>) {
        let Some(outbox) = self.links.get(&peer) else { return };
        let frame = Bytes::from(bytes);
        let cost = frame_cost(&frame);
        if outbox.waiting.fetch_add(cost, Ordering::Relaxed) + cost > OUTBOX_BYTES_MAX {
            if let Some(outbox) = self.links.remove(&peer) {
                // If the link's task has gone, its `PeerDown` is on the way; if not, it sends one.
                let _ = outbox.overflow.send(());
            }
            return;
        }
        let queue = match channel {
            Channel::Control => &outbox.control,
            Channel::Entries => &outbox.entries,
            Channel::Snapshot => &outbox.snapshot,
        };
        // If the link's task has gone, its `PeerDown` is on the way.
        let _ = queue.send(frame);
    }
}

fn log(news: &News) {
    match news {
        News::Joined(author) => info!(%author, "this node is a member of the cluster"),
        News::Member { node, author } => info!(%node, %author, "a node has joined"),
        News::Streaming { peer, node } => info!(peer = peer.0, %node, "linked"),
        News::Applied { lsn, entries } => debug!(%lsn, entries, "applied"),
        News::SchemaChanged => {
            info!("the change of the schema that waited for other nodes is carried out");
        }
        News::StorageFailed(why) => error!(why, "storage fails: writes fail until it works again"),
        News::StorageRecovered => warn!("storage works again"),
        News::ForeignWrites => error!(
            "another program has written this node's file; what it wrote replicates nowhere, see \
             foreign_writes in the status"
        ),
        News::Halted(why) => error!(why, "halted: an operator is needed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_whose_peer_does_not_read_is_given_up() {
        let (control, _control) = async_mpsc::unbounded_channel();
        let (entries, _entries) = async_mpsc::unbounded_channel();
        let (snapshot, _snapshot) = async_mpsc::unbounded_channel();
        let (overflow, mut overflowed) = oneshot::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let outbox = LinkOutbox {
            control,
            entries,
            snapshot,
            closing: Arc::default(),
            waiting: Arc::clone(&waiting),
            overflow,
        };
        let mut effects = Effects {
            waiting: HashMap::new(),
            forwards: HashMap::new(),
            failed: Vec::new(),
            ended: Vec::new(),
            migrations: HashMap::new(),
            held: None,
            postponed: Vec::new(),
            postponements: 0,
            links: HashMap::from([(PeerId(1), outbox)]),
            storage: StorageRequests::to_nobody(),
            news: broadcast::channel(1).0,
        };
        let frame = vec![0; 1 << 20];
        for _ in 0..100 {
            effects.send(PeerId(1), Channel::Control, frame.clone());
            if effects.links.is_empty() {
                break;
            }
            assert!(waiting.load(Ordering::Relaxed) <= OUTBOX_BYTES_MAX);
        }
        assert!(effects.links.is_empty());
        assert_eq!(overflowed.try_recv(), Ok(()));
    }
}
