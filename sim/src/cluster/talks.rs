//! Interactive transactions: clients that send a statement, think, and send the next one.
//!
//! Meanwhile other jobs wait, entries arrive, machines stop. The driver's part is here as well: who takes
//! too long is given up. What must hold beside what holds of every job:
//!
//! - while one is open, nothing else is committed on its machine;
//! - a step finds the log as the first one found it.

use littoral::{Event as News, Lsn, Now, Output, Replica, Ticket, WriteError, WriteTx};

use super::{Cluster, Event};
use crate::{
    chance::Stream,
    clock::{MS, Nanos, SECOND},
    disk::vfs,
    oracle::{Check, Promise, broken},
    workload::{JobId, Progress, Talk},
};

/// Who holds the writer for longer is given up, as a node does.
const LIMIT: Nanos = 5 * SECOND;

/// An interactive transaction that waits or is open.
#[derive(Debug)]
pub(crate) struct Open {
    id: JobId,
    talk: Talk,
    /// When it has the writer no more; `None` while it waits.
    ends: Option<Nanos>,
    /// The newest entry in the log when it got the writer.
    began: Option<Lsn>,
    /// The same, as the first step saw it.
    seen: Option<i64>,
}

impl Open {
    /// One that waits for its turn.
    pub(super) const fn waiting(id: JobId, talk: Talk) -> Self {
        Self { id, talk, ends: None, began: None, seen: None }
    }

    /// Whether its turn has come.
    pub(super) const fn has_writer(&self) -> bool {
        self.began.is_some()
    }
}

impl Cluster {
    /// Whether an interactive transaction has a machine's writer.
    pub(super) fn is_writer_held(&self, number: usize) -> bool {
        let machine = &self.machines[number];
        machine.talks.values().any(Open::has_writer) || machine.errands.hosts.holder().is_some()
    }

    /// A transaction has the writer: its client says what it wants.
    pub(super) fn begun(&mut self, number: usize, ticket: Ticket) -> Check {
        let ends = self.now + LIMIT;
        if self.is_writer_held(number) {
            return broken(Promise::Atomicity, format!("m{number} begins a second transaction"));
        }
        if self.guest_begun(number, ticket)? {
            return Ok(());
        }
        let machine = &mut self.machines[number];
        let Some(open) = machine.talks.get_mut(&ticket) else {
            return broken(
                Promise::Answers,
                format!("m{number} begins {ticket:?}, which nobody asked for"),
            );
        };
        open.ends = Some(ends);
        open.began = machine.engine.as_ref().map(|engine| engine.replica.status().applied);
        let id = open.id;
        self.trace.event(self.now, number, "begun", &[id], &[], || format!("{id}"));
        self.think(number, ticket);
        Ok(())
    }

    fn think(&mut self, number: usize, ticket: Ticket) {
        let machine = &self.machines[number];
        let Some(open) = machine.talks.get(&ticket) else { return };
        let mut draw = self.chance.draw(Stream::Talk, open.id, open.talk.steps_done());
        let most = *draw.pick(&[MS, 20 * MS, 20 * MS, 200 * MS, 3 * SECOND]);
        let at = self.now + draw.between(1, most);
        let at = open.ends.map_or(at, |ends| at.min(ends));
        self.schedule(at, Event::Talk { machine: number, life: machine.life, ticket });
    }

    /// The client sends the next statement, or ends the transaction.
    pub(super) fn talk(&mut self, number: usize, life: u64, ticket: Ticket) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = machine.engine.as_mut().filter(|_| machine.life == life) else {
            return Ok(());
        };
        let Some(open) = machine.talks.get_mut(&ticket) else { return Ok(()) };
        let now = machine.clock.at(self.now);
        vfs::with(|store| store.wall_ms = now.wall.0);
        if open.ends.is_some_and(|ends| self.now >= ends) {
            let why = WriteError::Aborted("it took too long".to_owned());
            engine.replica.abandon(now, ticket, why);
            return self.drain(number);
        }
        match open.talk.progress() {
            Progress::Step => {
                let seen = open.seen;
                let talk = &mut open.talk;
                let stepped = engine.replica.step(now, ticket, |tx| {
                    let before = newest(tx);
                    (before, talk.step(tx))
                });
                let Ok((before, result)) = stepped else {
                    return broken(Promise::Answers, format!("m{number}: {ticket:?} is not open"));
                };
                // A disk that fails tells nothing.
                if let Ok(before) = before {
                    open.seen = Some(before);
                    if seen.is_some_and(|seen| seen != before) {
                        let what = format!(
                            "the log of m{number} has moved to {before} within transaction {}",
                            open.id
                        );
                        return broken(Promise::Atomicity, what);
                    }
                }
                if let Err(why) = result {
                    engine.replica.abandon(now, ticket, why);
                }
            }
            Progress::Commit => engine.replica.commit(now, ticket),
            Progress::GiveUp => give_up(&mut engine.replica, now, ticket),
            Progress::GoneAway => {
                // Nobody says anything: it ends when its time is over.
                let at = open.ends.unwrap_or(self.now);
                self.schedule(at, Event::Talk { machine: number, life, ticket });
                return Ok(());
            }
        }
        self.drain(number)?;
        if self.machines[number].life == life {
            self.think(number, ticket);
        }
        Ok(())
    }

    /// While a transaction has the writer, nothing else is committed.
    pub(super) fn judge_alone(&self, number: usize, output: &Output) -> Check {
        let machine = &self.machines[number];
        let talk = machine.talks.iter().find_map(|(ticket, open)| Some((*ticket, open.began?)));
        let Some((holder, began)) = talk.or_else(|| machine.errands.hosts.holder()) else {
            return Ok(());
        };
        let what = match output {
            // What was committed before is answered when it is on stable storage.
            Output::Done { ticket, result: Ok(committed) }
                if *ticket != holder && (committed.dot.is_none() || committed.lsn > began) =>
            {
                "another job is committed"
            }
            Output::Event(News::Applied { .. }) => "remote entries are applied",
            _ => return Ok(()),
        };
        broken(Promise::Atomicity, format!("{what} on m{number} within {holder:?}"))
    }
}

fn give_up(replica: &mut Replica, now: Now, ticket: Ticket) {
    replica.abandon(now, ticket, WriteError::Aborted("the client gave up".to_owned()));
}

fn newest(tx: &mut WriteTx<'_>) -> Result<i64, WriteError> {
    tx.query_row("SELECT coalesce(max(lsn), 0) FROM littoral_log", [], |row| row.get(0))
}
