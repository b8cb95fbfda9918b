//! Guests: interactive transactions at the origin whose steps come from other nodes.
//!
//! ```text
//!   Begin ──► waits for what its sender had ──► GuestArrived ── the driver's queue ──► open: Begun
//!                                                                                       │
//!   Step 1, 2, 3 … ──► runs, Stepped ◄──────────────────────────────────────────────────┤
//!                                                                                       ▼
//!   a step that commits ──► an entry with its outcome ──► Committed          left, or too slow: Gone
//! ```
//!
//! A step that comes again is answered from what is remembered of the last one; after the commit, from the
//! outcome that stands in the entry. A guest is named by its request and by a number that no other guest
//! ever has: what is late, or meant for one of before a restart, is never done in another one.
//!
//! Invariants:
//! - every step runs at most once, and none runs without all before it;
//! - who is told [`Reply::Gone`] is told so for good: nothing of that transaction is, or will be, committed.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{
    db::{Committed, RunFor},
    entry::{Digest, Fate},
    error::WriteError,
    forward::RequestId,
    id::{PeerId, Ticket},
    limits::{GUESTS_REMEMBERED, RESULT_BYTES_MAX},
    protocol::{
        forward::{Reply, Waiter},
        message::wire_vector,
    },
    replica::{Replica, is_sync_failure},
    testing::{Bug, planted},
    time::{Instant, Now},
};

/// The guests of this node.
#[derive(Debug, Default)]
pub(super) struct Guests {
    by_request: BTreeMap<RequestId, Guest>,
    /// How many there were since the file was opened.
    count: u64,
    /// What became of the last ones that were not committed.
    ended: VecDeque<(RequestId, u64, Reply)>,
}

#[derive(Debug)]
struct Guest {
    number: u64,
    /// Until when it has to begin.
    deadline: Instant,
    /// Its transaction, once the driver has asked for it.
    ticket: Option<Ticket>,
    open: bool,
    /// The step that came last, and its digest.
    step: u64,
    digest: Digest,
    /// What that gave; until then these wait for it, or for the beginning.
    reply: Option<Reply>,
    waiters: Vec<Waiter>,
}

/// What can be done with what a guest asks.
pub(super) enum Asked {
    /// This is the answer.
    Reply(Reply),
    /// The answer comes.
    Waits,
    /// The driver is told to look for it.
    Arrived,
    /// The driver is to run it.
    Runs(Ticket),
}

/// The digest of a step: what the outcome of a guest names as its program.
fn digest(step: u64, program: &[u8]) -> Digest {
    Digest::of(&[&step.to_be_bytes()[..], program].concat())
}

impl Guests {
    fn of(&self, ticket: Ticket) -> Option<RequestId> {
        let found = self.by_request.iter().find(|(_, guest)| guest.ticket == Some(ticket));
        found.map(|(request, _)| *request)
    }

    /// Whether a request is a guest here.
    pub(super) fn has(&self, request: RequestId) -> bool {
        self.by_request.contains_key(&request)
    }

    /// Nobody waits any more for what came over a link.
    pub(super) fn forget(&mut self, peer: PeerId) {
        for guest in self.by_request.values_mut() {
            guest.waiters.retain(|waiter| !matches!(waiter, Waiter::Peer(of, _) if *of == peer));
        }
    }

    /// Those who wait.
    pub(super) fn waiters(&self) -> usize {
        self.by_request.values().map(|guest| guest.waiters.len()).sum()
    }

    /// How a guest has ended, if that is remembered. Without a number, any of this request.
    fn remembered(&self, request: RequestId, number: Option<u64>) -> Option<Reply> {
        let found = self
            .ended
            .iter()
            .rev()
            .find(|(of, is, _)| *of == request && number.is_none_or(|number| number == *is));
        found.map(|(.., reply)| reply.clone())
    }

    /// Somebody wants to begin, and may.
    pub(super) fn arrives(
        &mut self,
        waiter: Waiter,
        request: RequestId,
        number: u64,
        deadline: Instant,
    ) -> Asked {
        if let Some(guest) = self.by_request.get_mut(&request) {
            if guest.open {
                return Asked::Reply(Reply::Begun(guest.number));
            }
            guest.waiters.push(waiter);
            guest.deadline = guest.deadline.max(deadline);
            return Asked::Waits;
        }
        if self.remembered(request, None).is_some() {
            return Asked::Reply(Reply::Gone);
        }
        let guest = Guest {
            number,
            deadline,
            ticket: None,
            open: false,
            step: 0,
            digest: Digest::NONE,
            reply: None,
            waiters: vec![waiter],
        };
        self.by_request.insert(request, guest);
        Asked::Arrived
    }

    /// A step has come, and its guest was not committed.
    pub(super) fn steps(
        &mut self,
        waiter: Waiter,
        request: RequestId,
        (number, step): (u64, u64),
        program: &[u8],
    ) -> Asked {
        let digest = digest(step, program);
        let known = self.by_request.get_mut(&request);
        let Some(guest) = known.filter(|guest| guest.open && guest.number == number) else {
            let reply = self.remembered(request, Some(number));
            return Asked::Reply(reply.unwrap_or(Reply::Gone));
        };
        let next = guest.step + 1;
        let again = step == guest.step && digest == guest.digest;
        if again && !(planted(Bug::StepTwice) && guest.reply.is_some()) {
            let Some(reply) = &guest.reply else {
                guest.waiters.push(waiter);
                return Asked::Waits;
            };
            return Asked::Reply(reply.clone());
        }
        // Who sends the next one has the answer to the last.
        let in_order = step == next && (step == 1 || guest.reply.is_some());
        let Some(ticket) = guest.ticket.filter(|_| in_order || again) else {
            return Asked::Reply(Reply::Gone);
        };
        (guest.step, guest.digest, guest.reply) = (step, digest, None);
        guest.waiters = vec![waiter];
        Asked::Runs(ticket)
    }

    /// It is over, and nothing of it stands.
    fn ends(&mut self, request: RequestId, reply: Reply) -> Vec<Waiter> {
        let Some(guest) = self.by_request.remove(&request) else { return Vec::new() };
        self.remember(request, guest.number, reply);
        guest.waiters
    }

    fn remember(&mut self, request: RequestId, number: u64, reply: Reply) {
        if self.ended.len() >= GUESTS_REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((request, number, reply));
    }
}

impl Replica {
    /// The number of the next guest: no other one of this cluster has it, before a restart or elsewhere.
    pub(super) fn next_guest(&mut self) -> u64 {
        self.guests.count += 1;
        let node = self.identity.incarnation.0.to_be_bytes();
        let counts = [self.opened.to_be_bytes(), self.guests.count.to_be_bytes()].concat();
        let digest = Digest::of(&[&node[..], &counts].concat());
        u64::from_be_bytes(digest.0[..8].try_into().expect("a digest has more bytes"))
    }

    /// At the origin: begins the transaction of a guest that [`Output::GuestArrived`](crate::Output) has
    /// announced, as [`Replica::begin`] does. If it cannot begin, or the guest has left, or waited for too
    /// long, [`Output::Done`](crate::Output) says so.
    pub fn begin_guest(&mut self, now: Now, request: RequestId) -> Ticket {
        self.tell_time(now);
        let guest = self.guests.by_request.get(&request);
        let begins = guest.map(|guest| (guest.ticket.is_none(), guest.deadline > now.mono));
        if begins == Some((true, true)) {
            let ticket = self.begin(now);
            if let Some(guest) = self.guests.by_request.get_mut(&request) {
                guest.ticket = Some(ticket);
            }
            return ticket;
        }
        if begins == Some((true, false)) {
            self.guest_is_not_begun(request);
        }
        let ticket = self.next_ticket();
        self.answer_job(ticket, Err(WriteError::Aborted("the guest is gone".to_owned())));
        ticket
    }

    fn guest_is_not_begun(&mut self, request: RequestId) {
        let guest = self.guests.by_request.remove(&request);
        for waiter in guest.into_iter().flat_map(|guest| guest.waiters) {
            self.reply_to(waiter, Reply::NotBegun);
        }
        self.entries_came();
    }

    /// An interactive transaction has begun, and may be a guest's.
    pub(super) fn note_begun(&mut self, ticket: Ticket) {
        let Some(request) = self.guests.of(ticket) else { return };
        let Some(guest) = self.guests.by_request.get_mut(&request) else { return };
        guest.open = true;
        let number = guest.number;
        for waiter in mem::take(&mut guest.waiters) {
            self.reply_to(waiter, Reply::Begun(number));
        }
    }

    /// At the origin: the step of a guest has run, and its transaction is still open. `result` is what it
    /// gave. One that gives more than can be carried ends the transaction.
    pub fn guest_stepped(&mut self, now: Now, ticket: Ticket, result: Vec<u8>) {
        self.tell_time(now);
        let Some(request) = self.guests.of(ticket) else { return };
        if result.len() > RESULT_BYTES_MAX {
            let bytes = result.len();
            return self.abandon(now, ticket, WriteError::ResultTooLarge { bytes });
        }
        let Some(guest) = self.guests.by_request.get_mut(&request) else { return };
        let reply = Reply::Stepped(result);
        guest.reply = Some(reply.clone());
        for waiter in mem::take(&mut guest.waiters) {
            self.reply_to(waiter, reply.clone());
        }
    }

    /// At the origin: the step of a guest has run, and its client commits. `result` is what it gave.
    /// [`Output::Done`](crate::Output) answers; if it says that this has failed,
    /// [`Replica::guest_ended`] has the last word.
    pub fn commit_guest(&mut self, now: Now, ticket: Ticket, result: Vec<u8>) {
        self.tell_time(now);
        let Some(request) = self.guests.of(ticket) else {
            let why = WriteError::Aborted("the guest is gone".to_owned());
            return self.answer_job(ticket, Err(why));
        };
        if result.len() > RESULT_BYTES_MAX {
            let bytes = result.len();
            return self.abandon(now, ticket, WriteError::ResultTooLarge { bytes });
        }
        let Some(guest) = self.guests.by_request.get_mut(&request) else { return };
        guest.reply = Some(Reply::Stepped(result.clone()));
        let program = guest.digest;
        let run_for = RunFor { request, program, result: Arc::new(Mutex::new(result)) };
        let kept = (!planted(Bug::GuestOutcomeLost)).then_some(run_for);
        self.commit_interactive(ticket, kept.as_ref());
    }

    /// At the origin: the transaction of a guest has ended, as [`Output::Done`](crate::Output) with an error
    /// has said. Who waits, and who comes late, is told `answer`.
    pub fn guest_ended(&mut self, now: Now, request: RequestId, mut answer: Vec<u8>) {
        self.tell_time(now);
        answer.truncate(RESULT_BYTES_MAX);
        let reply = Reply::Failed(answer, self.seen_by_failed());
        for waiter in self.guests.ends(request, reply.clone()) {
            self.reply_to(waiter, reply.clone());
        }
        self.entries_came();
    }

    /// The transaction of a guest has ended.
    pub(super) fn note_guest(&mut self, ticket: Ticket, result: &Result<Committed, WriteError>) {
        let Some(request) = self.guests.of(ticket) else { return };
        let committed = match result {
            Ok(committed) => committed,
            Err(WriteError::Sqlite(error)) if is_sync_failure(error) => {
                // What the disk holds is not known, and this replica has halted.
                let guest = self.guests.by_request.remove(&request);
                for waiter in guest.into_iter().flat_map(|guest| guest.waiters) {
                    self.reply_to(waiter, Reply::Lost);
                }
                return;
            }
            // One that has not begun may try again, for all that is known.
            Err(_) if self.guests.by_request.get(&request).is_some_and(|guest| !guest.open) => {
                return self.guest_is_not_begun(request);
            }
            // The driver says what becomes of it.
            Err(_) => {
                if let Some(guest) = self.guests.by_request.get_mut(&request) {
                    guest.open = false;
                }
                return;
            }
        };
        let Some(guest) = self.guests.by_request.get_mut(&request) else { return };
        let Some(Reply::Stepped(result)) = guest.reply.take() else { return };
        match committed.dot {
            Some(dot) => {
                let waiters = mem::take(&mut guest.waiters);
                self.guests.by_request.remove(&request);
                for waiter in waiters {
                    let reply =
                        Reply::Committed(dot.author.to_u64(), dot.seq, Some(result.clone()));
                    self.reply_when_durable(dot, waiter, reply);
                }
            }
            None => {
                let reply = Reply::Unchanged(result, wire_vector(&self.log.vector()));
                for waiter in self.guests.ends(request, reply.clone()) {
                    self.reply_to(waiter, reply.clone());
                }
            }
        }
        self.entries_came();
    }

    /// A guest leaves, or will not come: nor does it when its request to begin arrives later.
    pub(super) fn guest_leaves(&mut self, request: RequestId) -> Reply {
        match self.guests.by_request.get(&request).map(|guest| guest.ticket) {
            Some(Some(ticket)) => {
                let now = self.now;
                self.abandon(now, ticket, WriteError::Aborted("the guest has left".to_owned()));
            }
            // The driver finds nobody when its turn comes.
            Some(None) => self.guest_is_not_begun(request),
            None => {}
        }
        self.guests.remember(request, 0, Reply::Gone);
        Reply::Gone
    }

    /// What is said to a step of a guest that is committed, as the entry says.
    pub(super) fn step_of_committed(step: u64, program: &[u8], fate: &Fate) -> bool {
        matches!(fate, Fate::Committed { program: ran, .. } if *ran == digest(step, program))
    }
}
