//! The thread that owns the [`Replica`]; the rest of the node holds a channel to it.
//!
//! Everything it may be told is in [`Event`]. Whatever waits in the channel is taken together: all
//! writes are queued first, so that they commit as one group, then every input is handled and drained.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, mpsc},
    time::Duration,
};

use bytes::Bytes;
use littoral::{
    Channel, CloseCode, Committed, Event as News, Input, Instant, Job, NodeId, Output, PeerId,
    Replica, Status, Ticket, WriteError,
};
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc as async_mpsc, oneshot};
use tracing::{debug, error, info, warn};

use super::storage_threads::StorageRequests;
use crate::clock::Clock;

/// Events taken from the channel together at most, so that timers are not starved.
const BATCH_EVENTS: usize = 1024;

pub(crate) type EventSender = mpsc::Sender<Event>;

/// Everything the replica thread can be told.
pub(crate) enum Event {
    /// Queue a write job, and answer when it is done.
    Write { job: Job, done: oneshot::Sender<Result<Committed, WriteError>> },
    /// A link is up; its frames go to the outbox.
    LinkUp { peer: PeerId, node: NodeId, outbox: LinkOutbox },
    /// A frame arrived; the permit bounds how many of one link wait here.
    Frame { peer: PeerId, channel: Channel, bytes: Vec<u8>, permit: OwnedSemaphorePermit },
    /// Anything else that the engine asks to be told.
    Input(Input),
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
    pub(crate) closing: Arc<OnceLock<(CloseCode, String)>>,
}

pub(crate) struct ReplicaThread {
    replica: Replica,
    clock: Clock,
    inbox: mpsc::Receiver<Event>,
    effects: Effects,
    wake_at: Option<Instant>,
}

impl ReplicaThread {
    pub(crate) fn new(
        replica: Replica,
        clock: Clock,
        inbox: mpsc::Receiver<Event>,
        storage: StorageRequests,
        news: broadcast::Sender<News>,
    ) -> Self {
        let effects = Effects { waiting: HashMap::new(), links: HashMap::new(), storage, news };
        Self { replica, clock, inbox, effects, wake_at: None }
    }

    /// Runs until it is told to stop, or until nobody is left who could tell it anything.
    pub(crate) fn run(mut self) {
        self.input(Input::Wake);
        let mut batch = Vec::new();
        while let Some(first) = self.next_event() {
            batch.extend(first);
            while batch.len() < BATCH_EVENTS
                && let Ok(event) = self.inbox.try_recv()
            {
                batch.push(event);
            }
            if let Some(reply) = self.take(&mut batch) {
                return self.stop(reply);
            }
        }
    }

    /// Waits for an event, or for the time to wake (`Some(None)`). `None` when all senders are gone.
    fn next_event(&mut self) -> Option<Option<Event>> {
        let Some(wake_at) = self.wake_at else {
            return self.inbox.recv().ok().map(Some);
        };
        let wait = wake_at.since(self.clock.now().mono);
        if wait > Duration::ZERO {
            match self.inbox.recv_timeout(wait) {
                Ok(event) => return Some(Some(event)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
        self.input(Input::Wake);
        Some(None)
    }

    /// Handles a batch of events; returns whom to answer if one of them was to stop.
    fn take(
        &mut self,
        batch: &mut Vec<Event>,
    ) -> Option<oneshot::Sender<Result<(), rusqlite::Error>>> {
        let mut undrained = false;
        let mut others = Vec::new();
        for event in batch.drain(..) {
            match event {
                Event::Write { job, done } => {
                    let ticket = self.replica.write(self.clock.now(), job);
                    self.effects.waiting.insert(ticket, done);
                    undrained = true;
                }
                other => others.push(other),
            }
        }
        if undrained {
            self.drain();
        }
        let mut stop = None;
        for event in others {
            match event {
                Event::Write { .. } => {}
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
                Event::Status(reply) => {
                    // Nobody waits any more if this fails, and nothing is lost.
                    let _ = reply.send(self.replica.status());
                }
                Event::Stop(reply) => stop = Some(reply),
            }
        }
        stop
    }

    fn input(&mut self, input: Input) {
        self.replica.handle(self.clock.now(), input);
        self.drain();
    }

    fn drain(&mut self) {
        loop {
            match self.replica.poll() {
                Output::WakeAt(at) => {
                    self.wake_at = at;
                    return;
                }
                output => self.effects.carry_out(output),
            }
        }
    }

    fn stop(mut self, reply: oneshot::Sender<Result<(), rusqlite::Error>>) {
        let (outputs, closed) = self.replica.close(self.clock.now());
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
    waiting: HashMap<Ticket, oneshot::Sender<Result<Committed, WriteError>>>,
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
            Output::Sync(lsn) => self.storage.sync(lsn),
            Output::WalCheckpoint => self.storage.checkpoint(),
            Output::Done { ticket, result } => {
                if let Some(done) = self.waiting.remove(&ticket) {
                    // Whoever asked may have gone away; the write stands.
                    let _ = done.send(result);
                }
            }
            Output::Event(news) => {
                log(&news);
                // An error says that nobody listens.
                let _ = self.news.send(news);
            }
            Output::WakeAt(_) => {}
        }
    }

    fn send(&self, peer: PeerId, channel: Channel, bytes: Vec<u8>) {
        let Some(outbox) = self.links.get(&peer) else { return };
        let queue = match channel {
            Channel::Control => &outbox.control,
            Channel::Entries => &outbox.entries,
        };
        // If the link's task has gone, its `PeerDown` is on the way.
        let _ = queue.send(Bytes::from(bytes));
    }
}

fn log(news: &News) {
    match news {
        News::Joined(author) => info!(%author, "this node is a member of the cluster"),
        News::Streaming { peer, node } => info!(peer = peer.0, %node, "linked"),
        News::Applied { lsn, entries } => debug!(%lsn, entries, "applied"),
        News::StorageFailed(why) => error!(why, "storage fails: local writes are refused"),
        News::StorageRecovered => warn!("storage works again"),
        News::Halted(why) => error!(why, "halted: an operator is needed"),
    }
}
