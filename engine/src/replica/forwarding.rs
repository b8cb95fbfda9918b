//! Requests on their way to the origin: those of this node's clients, and those of others that it passes on.
//!
//! ```text
//!   forward ──► waits ──► sent ──► committed in an entry ──► answered, once the entry is applied
//!                 ▲         │
//!                 └─────────┴─ not begun, or a link was lost: tried again with the same id
//! ```
//!
//! Every node tells its peers how far it is from the origin, and a request takes the shortest way it is told
//! of. A node that passes one on keeps nothing of it but where the reply goes.
//!
//! Invariants:
//! - a client hears [`ForwardError::OriginUnreachable`] only if no attempt can have begun at the origin;
//! - it hears what its request has done, or seen, only when that is applied here.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use crate::{
    bookmark::Bookmark,
    driver::Output,
    error::ProtocolError,
    forward::{ForwardError, Guest, Outcome, Request, RequestId},
    id::{AuthorId, NodeId, PeerId, Seq, Ticket},
    limits::{
        HOPS_MAX, PATIENCE_MAX, PROGRAM_BYTES_MAX, REQUEST_BYTES_WAITING, REQUEST_GRACE,
        REQUEST_RETRY, REQUESTS_WAITING,
    },
    protocol::{
        PeerSession,
        forward::{Asks, Carried, Reply, Waiter},
        message::{Register, read_vector, wire_vector},
    },
    replica::Replica,
    testing::{Bug, planted},
    time::{Instant, Now, WallTime},
    version::{Dot, VersionVector},
};

/// The requests of this node's clients.
#[derive(Debug, Default)]
pub(super) struct Forwarding {
    own: BTreeMap<Ticket, Own>,
    bytes: usize,
}

/// A request of a client.
#[derive(Debug)]
struct Own {
    carried: Carried,
    /// Until when the origin has to begin with it.
    deadline: Instant,
    stage: Stage,
    /// An attempt may have reached the origin, and how it ended is not known.
    doubt: bool,
    /// It only reads, so that no attempt leaves a doubt.
    reads: bool,
}

#[derive(Debug)]
enum Stage {
    /// It is sent as soon as that is possible, but not before.
    Waits(Instant),
    /// It is on its way.
    Sent,
    /// This became of it, and is told once these entries are applied.
    Ended(VersionVector, Option<Outcome>),
}

impl Own {
    fn bytes(&self) -> usize {
        self.carried.asks.bytes()
    }

    fn request(&self) -> RequestId {
        RequestId(self.carried.request)
    }

    /// When it is looked at next.
    fn due(&self) -> Instant {
        match self.stage {
            Stage::Waits(after) => after.min(self.deadline),
            Stage::Sent if self.reads => self.deadline,
            Stage::Sent | Stage::Ended(..) => self.deadline + REQUEST_GRACE,
        }
    }
}

impl Replica {
    /// Has a program run at the origin, at most once whatever fails meanwhile. It is answered by
    /// [`Output::Answered`] with this ticket, at the latest one second after the request's patience; if it is
    /// committed, only once the entry is applied here. At the origin itself it runs as everywhere.
    ///
    /// The origin begins only when it has all that this node has written, and shown, up to now.
    pub fn forward(&mut self, now: Now, request: Request) -> Ticket {
        let Request { id, issued, program, patience } = request;
        self.ask_origin(now, id, issued, Asks::Run(program), patience)
    }

    /// Has a program read at the origin that does not write. It is answered as soon as the reply comes, with
    /// [`Outcome::Read`], whatever of what it has seen is applied here; and with
    /// [`ForwardError::OriginUnreachable`] once the request's patience is over.
    ///
    /// The origin begins only when it has all that this node has written, and shown, up to now, and all that
    /// `after` names, which this node need not have.
    pub fn read_at_origin(
        &mut self,
        now: Now,
        request: Request,
        after: Option<&Bookmark>,
    ) -> Ticket {
        let ticket = self.forward(now, request);
        if let Some(own) = self.forwarding.own.get_mut(&ticket) {
            own.reads = true;
            if let Some(after) = after.filter(|_| !planted(Bug::BookmarkLeftBehind)) {
                // The entry that brought the frontier is among these, or covered by a later frontier.
                let mut requires = read_vector(&own.carried.requires);
                requires.advance_all(after.entries());
                own.carried.requires = wire_vector(&requires);
            }
        }
        ticket
    }

    /// Has the origin get all that this node has applied, and asks what it has applied then. It is answered with
    /// [`Outcome::Read`]: whoever requires the bookmark in it sees all that was shown anywhere before
    /// another meeting that ended before this one began.
    pub fn meet_origin(&mut self, now: Now, patience: Duration) -> Ticket {
        // It has no name, and grows no older on its way.
        let (id, issued) = (RequestId(0), WallTime(u64::MAX));
        let ticket = self.ask_origin(now, id, issued, Asks::Meet, patience);
        if let Some(own) = self.forwarding.own.get_mut(&ticket) {
            own.reads = true;
        }
        ticket
    }

    /// Begins an interactive transaction at the origin: a *guest* there. [`Output::Answered`] with
    /// [`Outcome::Begun`] says that it has the writer. Its id is never used again.
    ///
    /// The origin begins only when it has all that this node has written, and shown, up to now.
    pub fn begin_at_origin(
        &mut self,
        now: Now,
        id: RequestId,
        issued: WallTime,
        patience: Duration,
    ) -> Ticket {
        self.ask_origin(now, id, issued, Asks::Begin, patience)
    }

    /// Takes a step in it: they count from 1, and the one before must have been answered. The same may be
    /// sent again. It runs at most once, whatever fails meanwhile. [`Output::Answered`] says
    /// [`Outcome::Stepped`] if the transaction is still open; after all else it is over, and what became of
    /// it is told as with [`Replica::forward`]. An error but [`ForwardError::Unknown`] says that nothing of
    /// it stands, provided that no step follows.
    pub fn step_at_origin(
        &mut self,
        now: Now,
        guest: Guest,
        step: u64,
        program: Vec<u8>,
        patience: Duration,
    ) -> Ticket {
        let issued = now.wall;
        self.ask_origin(now, guest.id, issued, Asks::Step(guest.number, step, program), patience)
    }

    /// Gives it up, or does not want it any more: nothing of it stands, unless a step that commits it was
    /// sent. If this does not reach the origin, its driver ends the transaction for taking too long.
    pub fn leave_origin(&mut self, now: Now, id: RequestId, patience: Duration) -> Ticket {
        let theirs: Vec<Ticket> = self
            .forwarding
            .own
            .iter()
            .filter(|(_, own)| {
                own.request() == id && matches!(own.carried.asks, Asks::Begin | Asks::Step(..))
            })
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in theirs {
            self.answer_own(ticket, Err(ForwardError::Gone { id }));
        }
        self.ask_origin(now, id, now.wall, Asks::Leave, patience)
    }

    /// Asks what became of a request, whoever has made it. If the origin does not know of it, it decides that
    /// the request never runs: so the answer is final. It is answered by [`Output::Answered`], with
    /// [`Outcome::Committed`] or [`Outcome::Refused`].
    pub fn outcome(
        &mut self,
        now: Now,
        id: RequestId,
        issued: WallTime,
        patience: Duration,
    ) -> Ticket {
        self.ask_origin(now, id, issued, Asks::Outcome, patience)
    }

    fn ask_origin(
        &mut self,
        now: Now,
        id: RequestId,
        issued: WallTime,
        asks: Asks,
        patience: Duration,
    ) -> Ticket {
        self.tell_time(now);
        let ticket = self.next_ticket();
        let bytes = asks.bytes();
        let refused = if bytes > PROGRAM_BYTES_MAX {
            Some(ForwardError::TooLarge { bytes })
        } else if self.forwarding.own.len() >= REQUESTS_WAITING
            || self.forwarding.bytes + bytes > REQUEST_BYTES_WAITING
        {
            Some(ForwardError::TooMany)
        } else {
            None
        };
        if let Some(error) = refused {
            self.outputs.push_back(Output::Answered { ticket, result: Err(error) });
            return ticket;
        }
        let requires = match asks {
            // The transaction sees what was there when it was begun.
            Asks::Step(..) | Asks::Leave => Vec::new(),
            Asks::Outcome | Asks::Run(_) | Asks::Begin | Asks::Meet => self.beyond_frontier(),
        };
        let carried = Carried {
            request: id.0,
            issued: issued.0,
            asks,
            requires,
            patience: 0,
            hops: HOPS_MAX,
        };
        let deadline = now.mono + patience.min(PATIENCE_MAX);
        let stage = Stage::Waits(now.mono);
        self.forwarding
            .own
            .insert(ticket, Own { carried, deadline, stage, doubt: false, reads: false });
        self.forwarding.bytes += bytes;
        ticket
    }

    /// Sends what waits, and answers what can be answered. True if there is something to put out.
    pub(super) fn serve_forwarding(&mut self) -> bool {
        let now = self.now.mono;
        let due = |own: &Own| match &own.stage {
            Stage::Ended(seen, _) => own.due() <= now || self.has_applied(seen),
            _ => own.due() <= now,
        };
        let due: Vec<Ticket> = self
            .forwarding
            .own
            .iter()
            .filter_map(|(ticket, own)| due(own).then_some(*ticket))
            .collect();
        for ticket in due {
            self.serve_own(ticket);
        }
        self.serve_requests();
        !self.outputs.is_empty()
    }

    fn has_applied(&self, seen: &VersionVector) -> bool {
        self.log.vector().covers_all(seen) || planted(Bug::AnsweredUnapplied)
    }

    fn serve_own(&mut self, ticket: Ticket) {
        let now = self.now.mono;
        let Some(own) = self.forwarding.own.get_mut(&ticket) else { return };
        if let Stage::Ended(seen, outcome) = &mut own.stage
            && (self.log.vector().covers_all(seen) || planted(Bug::AnsweredUnapplied))
            && let Some(outcome) = outcome.take()
        {
            return self.answer_own(ticket, Ok(outcome));
        }
        if own.deadline <= now {
            let id = own.request();
            // A question asked twice has the same answer, and a transaction without steps does nothing.
            let harmless = match &own.stage {
                Stage::Waits(_) => !own.doubt,
                Stage::Ended(_, outcome) => {
                    matches!(outcome, Some(Outcome::Unchanged { .. } | Outcome::Failed { .. }))
                }
                Stage::Sent => own.reads,
            };
            let runs = matches!(own.carried.asks, Asks::Run(_) | Asks::Step(..));
            let unknown = runs && !harmless;
            let error = if unknown {
                ForwardError::Unknown { id }
            } else {
                ForwardError::OriginUnreachable { origin: self.origin_name() }
            };
            return self.answer_own(ticket, Err(error));
        }
        own.stage = Stage::Sent;
        own.carried.patience = millis(own.deadline.since(now));
        let carried = own.carried.clone();
        self.carry(Waiter::Own(ticket), carried);
    }

    fn answer_own(&mut self, ticket: Ticket, result: Result<Outcome, ForwardError>) {
        if let Some(own) = self.forwarding.own.remove(&ticket) {
            self.forwarding.bytes -= own.bytes();
            self.outputs.push_back(Output::Answered { ticket, result });
        }
    }

    /// What this node has applied, as far as no frontier says that the origin has it.
    pub(super) fn beyond_frontier(&self) -> Vec<(u64, Seq)> {
        let covered = &self.contested.stable().covered;
        let origin = self.register.as_ref().map(Register::origin_author);
        let beyond =
            |dot: &Dot| !covered.covers(*dot) && (self.is_origin() || Some(dot.author) != origin);
        wire_vector(&self.log.vector().iter().filter(beyond).collect())
    }

    fn origin_name(&self) -> Option<NodeId> {
        self.register.as_ref().and_then(|register| NodeId::new(&register.origin.0).ok())
    }

    /// Brings a request nearer to the origin, or into its hands.
    fn carry(&mut self, waiter: Waiter, mut carried: Carried) {
        if self.is_origin() {
            return self.request_arrived(waiter, carried);
        }
        let from = match waiter {
            Waiter::Own(_) => None,
            Waiter::Peer(peer, _) => Some(peer),
        };
        let sent = match (carried.hops.checked_sub(1), self.way_to_origin()) {
            (Some(hops), Some((next, _))) if Some(next) != from => {
                carried.hops = hops;
                let session = self.sessions.get_mut(&next);
                session.is_some_and(|session| session.carry(waiter, carried))
            }
            _ => false,
        };
        if !sent {
            self.reply_to(waiter, Reply::NotBegun);
        }
    }

    /// A peer asks that a request be carried to the origin.
    pub(super) fn asked_to_carry(
        &mut self,
        peer: PeerId,
        token: u64,
        carried: Carried,
    ) -> Result<(), ProtocolError> {
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.asked_to_carry(token, &carried)?;
            self.carry(Waiter::Peer(peer, token), carried);
        }
        Ok(())
    }

    /// A reply has come from a peer.
    pub(super) fn reply_came(
        &mut self,
        peer: PeerId,
        token: u64,
        reply: Reply,
    ) -> Result<(), ProtocolError> {
        if let Some(session) = self.sessions.get_mut(&peer)
            && let Some(waiter) = session.replied(token)?
        {
            self.reply_to(waiter, reply);
        }
        Ok(())
    }

    /// Gives a reply to who waits for it.
    pub(super) fn reply_to(&mut self, waiter: Waiter, reply: Reply) {
        let ticket = match waiter {
            Waiter::Own(ticket) => ticket,
            Waiter::Peer(peer, token) => {
                if let Some(session) = self.sessions.get_mut(&peer) {
                    session.reply(token, reply);
                }
                return;
            }
        };
        let again = Stage::Waits(self.now.mono + REQUEST_RETRY);
        let Some(own) = self.forwarding.own.get_mut(&ticket) else { return };
        let id = own.request();
        match reply {
            Reply::Committed(author, seq, result) => {
                let dot = Dot { author: AuthorId::from_u64(author), seq };
                let outcome = Outcome::Committed { dot, result };
                own.stage = Stage::Ended([dot].into_iter().collect(), Some(outcome));
            }
            Reply::Unchanged(result, seen) if own.reads => {
                let seen = if planted(Bug::ReadThereUnseen) {
                    Bookmark::default()
                } else {
                    self.db.published().bookmark_of(&read_vector(&seen))
                };
                self.answer_own(ticket, Ok(Outcome::Read { result, seen }));
            }
            Reply::Unchanged(result, seen) => {
                let outcome = Outcome::Unchanged { result };
                own.stage = Stage::Ended(read_vector(&seen), Some(outcome));
            }
            // One that only reads tells of rows only if it has not failed.
            Reply::Failed(answer, _) if own.reads => {
                self.answer_own(ticket, Ok(Outcome::Failed { answer }));
            }
            Reply::Failed(answer, seen) => {
                let outcome = Outcome::Failed { answer };
                own.stage = Stage::Ended(read_vector(&seen), Some(outcome));
            }
            Reply::Refused => self.answer_own(ticket, Ok(Outcome::Refused)),
            Reply::OtherProgram => self.answer_own(ticket, Err(ForwardError::OtherProgram { id })),
            Reply::Expired => self.answer_own(ticket, Err(ForwardError::Expired { id })),
            Reply::Begun(number) => {
                self.answer_own(ticket, Ok(Outcome::Begun(Guest { id, number })));
            }
            Reply::Stepped(result) => self.answer_own(ticket, Ok(Outcome::Stepped { result })),
            Reply::Gone => self.answer_own(ticket, Err(ForwardError::Gone { id })),
            Reply::NotBegun => own.stage = again,
            Reply::Lost => {
                own.doubt = !own.reads;
                own.stage = again;
            }
        }
    }

    /// A link is gone, and what was sent on it may have arrived or not.
    pub(super) fn requests_without(&mut self, session: PeerSession) {
        self.forget_requests_of(session.peer);
        for waiter in session.requests.into_waiters() {
            self.reply_to(waiter, Reply::Lost);
        }
    }

    /// There is a newer link to the same node, so an older one may be dead: what was sent on it is sent again.
    pub(super) fn requests_move_to(&mut self, newest: PeerId, node: &NodeId) {
        let older = self.sessions.values_mut().filter(|s| s.peer != newest && s.node == *node);
        let waiters: Vec<Waiter> = older.flat_map(|s| s.requests.give_up()).collect();
        for waiter in waiters {
            self.reply_to(waiter, Reply::Lost);
        }
    }

    /// Clients hear that this node stops.
    pub(super) fn give_up_requests(&mut self) {
        for (ticket, own) in std::mem::take(&mut self.forwarding.own) {
            let result = Err(ForwardError::Stopping { id: own.request() });
            self.outputs.push_back(Output::Answered { ticket, result });
        }
    }

    pub(super) fn forwarding_deadline(&self) -> Option<Instant> {
        self.forwarding.own.values().map(Own::due).chain(self.requests_deadline()).min()
    }

    /// Requests of this node's clients that have no answer.
    pub(super) fn forwarded(&self) -> usize {
        self.forwarding.own.len()
    }

    // --- The way

    /// The link over which the origin is nearest, and how many links away it is.
    fn way_to_origin(&self) -> Option<(PeerId, u8)> {
        let behind = |session: &PeerSession| session.requests.distance.saturating_add(1);
        self.sessions
            .values()
            .filter(|session| session.is_streaming())
            // Of two to the same node the newer one is surely alive.
            .map(|session| (behind(session), Reverse(session.peer)))
            .min()
            .filter(|(distance, _)| *distance < HOPS_MAX)
            .map(|(distance, Reverse(peer))| (peer, distance))
    }

    /// How many links away the origin is, as far as this node is told.
    pub(super) fn distance(&self) -> Option<u8> {
        if self.is_origin() {
            return Some(0);
        }
        self.way_to_origin().map(|(_, distance)| distance)
    }

    /// Tells peers how far the origin is. The one through which it is reached hears of no way, so that the
    /// two never send a request back and forth.
    pub(super) fn tell_distances(&mut self) {
        let distance = self.distance().unwrap_or(HOPS_MAX);
        let next = self.way_to_origin().map(|(peer, _)| peer).filter(|_| distance > 0);
        for session in self.sessions.values_mut() {
            let told = if Some(session.peer) == next { HOPS_MAX } else { distance };
            session.tell_distance(told);
        }
    }

    /// A peer says how far the origin is.
    pub(super) fn hear_distance(&mut self, peer: PeerId, distance: u8) {
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.requests.distance = distance.min(HOPS_MAX);
        }
        for own in self.forwarding.own.values_mut() {
            if let Stage::Waits(after) = &mut own.stage {
                *after = self.now.mono;
            }
        }
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}
