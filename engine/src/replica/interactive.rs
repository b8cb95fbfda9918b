//! Interactive transactions: begun, stepped and ended by the driver, which also sees to it that they end.
//!
//! ```text
//!   begin ── waits its turn ──► Begun ──► step, step … ──► commit or roll_back ──► Done
//! ```
//!
//! While one is open it has the file to itself: no job runs and nothing is applied. Links are served all
//! the same; what they bring that must be written down waits here.
//!
//! Invariants:
//! - who waits gets the writer in the order in which they came, jobs and interactive transactions alike;
//! - between two interactive transactions a batch of remote entries is applied, if any waits.

use std::{collections::VecDeque, mem};

use crate::{
    db::{Interactive, RunFor, WriteTx, transaction_gone},
    driver::Output,
    error::WriteError,
    id::{PeerId, Ticket},
    protocol::Received,
    replica::{Failure, Replica},
    testing::{Bug, planted},
    time::Now,
};

/// The one that is open, those that wait, and what waits for it.
#[derive(Debug, Default)]
pub(super) struct InteractiveJobs {
    waiting: VecDeque<Ticket>,
    open: Option<(Ticket, Interactive)>,
    /// What came over links meanwhile. What there can be of it is bounded by the credit of links.
    deferred: VecDeque<(PeerId, Received)>,
    /// Large entries were offered meanwhile, for which there was no room then.
    pub(super) held_offers: bool,
    /// The control register was told meanwhile.
    pub(super) register_due: bool,
}

impl Replica {
    /// Queues an interactive transaction. When its turn has come, [`Output::Begun`] says so; then it has
    /// the writer to itself until it is committed or rolled back. If it cannot begin, [`Output::Done`]
    /// says why.
    ///
    /// The driver is to end it in good time: meanwhile nothing else is written here, and nothing that
    /// other nodes wrote is applied.
    pub fn begin(&mut self, now: Now) -> Ticket {
        self.tell_time(now);
        let ticket = self.next_ticket();
        self.interactive.waiting.push_back(ticket);
        ticket
    }

    /// Runs statements in an interactive transaction that is open, at once. If one of them ends the
    /// transaction (OR ROLLBACK, a full disk), [`Output::Done`] says so in the drain that follows.
    ///
    /// # Errors
    /// If the transaction is not open. Nothing has run.
    pub fn step<T>(
        &mut self,
        now: Now,
        ticket: Ticket,
        step: impl FnOnce(&mut WriteTx<'_>) -> T,
    ) -> Result<T, WriteError> {
        self.tell_time(now);
        let Some((_, open)) = self.interactive.open.as_mut().filter(|(open, _)| *open == ticket)
        else {
            return Err(not_open());
        };
        let (value, still_open) = self.writer.step_interactive(open, step);
        if !still_open {
            self.undo_interactive(ticket, transaction_gone());
        }
        Ok(value)
    }

    /// Commits an interactive transaction. [`Output::Done`] answers as it does for a job; in any case it
    /// is over.
    pub fn commit(&mut self, now: Now, ticket: Ticket) {
        self.tell_time(now);
        self.commit_interactive(ticket, None);
    }

    /// Commits one, for a request if it is one's.
    pub(super) fn commit_interactive(&mut self, ticket: Ticket, run_for: Option<&RunFor>) {
        let Some((_, open)) = self.interactive.open.take_if(|(open, _)| *open == ticket) else {
            return self.answer_job(ticket, Err(not_open()));
        };
        let result = match self.may_write() {
            Err(error) => Err(error),
            Ok(author) => self.writing(author, |writer, local| {
                let result = writer.commit_interactive(&open, run_for, local);
                let failures = result.as_ref().err().and_then(Failure::of);
                (result, failures.into_iter().collect())
            }),
        };
        self.answer_job(ticket, result);
    }

    /// Ends an interactive transaction, or one that still waits, with nothing written. [`Output::Done`]
    /// answers with `why`.
    pub fn abandon(&mut self, now: Now, ticket: Ticket, why: WriteError) {
        self.tell_time(now);
        self.undo_interactive(ticket, why);
    }

    fn undo_interactive(&mut self, ticket: Ticket, why: WriteError) {
        if let Some(place) = self.interactive.waiting.iter().position(|other| *other == ticket) {
            self.interactive.waiting.remove(place);
            return self.answer_job(ticket, Err(why));
        }
        let Some((_, open)) = self.interactive.open.take_if(|(open, _)| *open == ticket) else {
            return;
        };
        // Only a member begins one, and stays one.
        let Some(author) = self.author else { return };
        let why = self.writing(author, |writer, local| {
            let why = writer.roll_back_interactive(&open, why, local);
            let failure = Failure::of(&why);
            (why, failure.into_iter().collect())
        });
        self.answer_job(ticket, Err(why));
    }

    /// Whether an interactive transaction is open: nothing else can be written.
    pub(super) fn is_open(&self) -> bool {
        self.interactive.open.is_some()
    }

    /// How many of the jobs that wait have come before the next interactive transaction.
    pub(super) fn jobs_before_interactive(&self) -> usize {
        let next = self.interactive.waiting.front();
        self.jobs.partition_point(|job| next.is_none_or(|next| job.ticket < *next))
    }

    /// Begins the interactive transaction whose turn it is.
    pub(super) fn begin_interactive(&mut self) -> bool {
        if self.interactive.open.is_some() {
            return false;
        }
        let Some(ticket) = self.interactive.waiting.pop_front() else { return false };
        let begun = self
            .may_begin_write()
            .and_then(|_| self.writer.begin_interactive(&self.registry, self.log.last().next()));
        match begun {
            Ok(open) => {
                self.interactive.open = Some((ticket, open));
                self.outputs.push_back(Output::Begun { ticket });
                self.note_begun(ticket);
            }
            Err(error) => {
                if let Some(failure) = Failure::of(&error) {
                    self.failed(&failure);
                }
                self.answer_job(ticket, Err(error));
            }
        }
        true
    }

    /// The replica closes or halts: none goes on.
    pub(super) fn give_up_interactive(&mut self, why: &str) {
        let open = self.interactive.open.as_ref().map(|(ticket, _)| *ticket);
        let waiting = self.interactive.waiting.iter().copied();
        for ticket in open.into_iter().chain(waiting).collect::<Vec<_>>() {
            self.undo_interactive(ticket, WriteError::Unavailable(why.to_owned()));
        }
    }

    /// Puts off what may have to be written down, until nobody else writes. Gives back the rest.
    pub(super) fn defer(&mut self, peer: PeerId, received: Received) -> Option<Received> {
        let writes = matches!(received, Received::Chunk(..) | Received::Answer(..));
        if !(writes && self.is_open()) {
            return Some(received);
        }
        self.interactive.deferred.push_back((peer, received));
        None
    }

    /// Takes up what was put off.
    pub(super) fn take_deferred(&mut self) {
        if self.interactive.register_due && self.storage.error.is_none() {
            match self.keep_register() {
                Ok(()) => self.interactive.register_due = false,
                Err(error) => self.storage_fails(error.to_string()),
            }
        }
        for (peer, received) in mem::take(&mut self.interactive.deferred) {
            if self.sessions.contains_key(&peer)
                && let Err(error) = self.received(peer, received)
            {
                self.refuse(peer, &error);
            }
        }
        if mem::take(&mut self.interactive.held_offers) {
            self.fill_room();
        }
    }
}

impl Replica {
    /// The planted bug [`Bug::AppliedInside`]: who waits is let in between two steps.
    pub(super) fn let_others_in(&mut self) {
        if !planted(Bug::AppliedInside) || !self.can_apply() {
            return;
        }
        let Some((ticket, open)) = self.interactive.open.take() else { return };
        let Some(author) = self.author else { return };
        self.writing(author, |writer, local| {
            // What it has done so far stands from here on.
            let _ = writer.commit_interactive(&open, None, local);
            ((), Vec::new())
        });
        self.apply_incoming();
        let again = self.writer.begin_interactive(&self.registry, self.log.last().next());
        self.interactive.open = again.ok().map(|open| (ticket, open));
    }
}

fn not_open() -> WriteError {
    WriteError::Aborted("the transaction is not open".to_owned())
}
