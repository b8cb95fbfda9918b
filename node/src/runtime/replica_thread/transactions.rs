//! The replica thread's part in interactive transactions: those of this node's clients, and of guests.

use std::time::Instant as StdInstant;

use littoral::{Committed, Ticket, WriteError, WriteTx};
use tokio::sync::oneshot;

use super::{
    super::{
        forwards::Next,
        interactive::{Held, Who},
    },
    Driver, Waiting,
};

impl Driver {
    /// Lets the transaction begin whose turn it is.
    pub(super) fn begin_next(&mut self) {
        let Some(replica) = &mut self.replica else { return };
        let now = self.clock.now();
        let held = match self.writes.pop_front() {
            Some(Waiting::Begin(begin)) => Held::new(begin, replica.begin(now)),
            Some(Waiting::Guest(request)) => {
                Held::guest(request, replica.begin_guest(now, request))
            }
            Some(write @ Waiting::Write(_)) => return self.writes.push_front(write),
            None => return,
        };
        self.effects.held = Some(held);
        self.drain();
    }

    /// The ticket of a client's transaction, if it has the writer or is about to get it.
    fn ticket(&self, id: u64) -> Option<Ticket> {
        let held = self.effects.held.as_ref().filter(|held| held.who == Who::Here(id));
        held.map(|held| held.ticket)
    }

    /// Runs statements in a transaction. If it is over, whoever waits is told by `run` being dropped.
    pub(super) fn step(&mut self, id: u64, run: Box<dyn FnOnce(&mut WriteTx<'_>) + Send>) {
        if let Some(ticket) = self.ticket(id) {
            self.run_step(ticket, |tx| run(tx));
        }
    }

    /// Runs a step of the transaction that has the writer; `None` if that is over, or took too long.
    fn run_step<T>(
        &mut self,
        ticket: Ticket,
        run: impl FnOnce(&mut WriteTx<'_>) -> T,
    ) -> Option<T> {
        let held = self.effects.held.as_ref().filter(|held| held.ticket == ticket);
        let ends_at = held.and_then(|held| held.ends_at)?;
        let replica = self.replica.as_mut()?;
        let timer = self.watchdog.start(ends_at);
        let ran = if StdInstant::now() < ends_at {
            // An error says that it is over, and `run` was dropped.
            replica.step(self.clock.now(), ticket, run).ok()
        } else {
            None
        };
        timer.stop();
        self.end_what_takes_too_long();
        ran.filter(|_| StdInstant::now() < ends_at)
    }

    /// Runs a step of a guest, and says what it came to. If its time is over meanwhile, it hears of that.
    pub(super) fn guest_step(&mut self, ticket: Ticket, program: &[u8]) {
        let job = (self.programs.step)(program);
        let Some((next, result)) = self.run_step(ticket, job) else { return };
        let Some(replica) = &mut self.replica else { return };
        let now = self.clock.now();
        match next {
            Next::Open => replica.guest_stepped(now, ticket, result),
            Next::Commit => replica.commit_guest(now, ticket, result),
        }
    }

    pub(super) fn commit(&mut self, id: u64, done: oneshot::Sender<Result<Committed, WriteError>>) {
        self.end_what_takes_too_long();
        let Some(ticket) = self.ticket(id) else { return };
        if let (Some(replica), Some(held)) = (&mut self.replica, &mut self.effects.held) {
            held.done = Some(done);
            replica.commit(self.clock.now(), ticket);
            self.drain();
        }
    }

    pub(super) fn roll_back(&mut self, id: u64) {
        self.writes.retain(|waiting| !matches!(waiting, Waiting::Begin(begin) if begin.id == id));
        if let Some(ticket) = self.ticket(id) {
            self.abandon(ticket);
        }
    }

    fn abandon(&mut self, ticket: Ticket) {
        if let Some(replica) = &mut self.replica {
            let why = WriteError::Aborted("it was rolled back".to_owned());
            replica.abandon(self.clock.now(), ticket, why);
            self.drain();
        }
    }

    pub(super) fn end_what_takes_too_long(&mut self) {
        let Some(held) = &self.effects.held else { return };
        if held.ends_at.is_some_and(|at| at <= StdInstant::now()) {
            held.timed_out();
            self.abandon(held.ticket);
        }
    }
}
