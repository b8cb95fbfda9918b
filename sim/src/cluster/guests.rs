//! Guests: clients that open an interactive transaction at the origin from anywhere, send a statement,
//! think, and send the next one; and the driver's part at the origin.
//!
//! A guest adds a row with every step, so what is committed of it is all of its rows or none; and every step
//! tells how many of them it sees, which is its number.

use std::{collections::BTreeMap, time::Duration};

use littoral::{
    Committed, ForwardError, Guest, Lsn, Outcome, RequestId, Ticket, VersionVector, WriteError,
};

use super::{Cluster, Event, Stage};
use crate::{
    chance::{Draw, Stream},
    clock::{MS, Nanos, SECOND},
    disk::vfs,
    oracle::{Check, Promise, broken, requests::Asked},
    workload::{Kind, Program, RequestNumber, guest_number},
};

/// Who holds the origin's writer for longer is given up, as a node does.
const LIMIT: Nanos = 5 * SECOND;

/// What a guest asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Move {
    Begin,
    Step(Program),
    Leave,
}

/// The client of a guest.
#[derive(Debug)]
pub(super) struct Visitor {
    steps: u64,
    done: u64,
    answers: u64,
    moves: u64,
    /// It gives up before it commits, and may say so or not.
    gives_up: Option<bool>,
    /// Where it is, in which life of the machine, and what that had then.
    place: Option<(usize, u64, VersionVector)>,
    guest: Option<Guest>,
}

/// A guest's transaction at the origin.
#[derive(Debug)]
pub(super) struct Host {
    request: RequestId,
    /// The newest entry in the log when it got the writer; `None` while it waits.
    began: Option<Lsn>,
}

/// The guests of a machine's driver.
#[derive(Debug, Default)]
pub(super) struct Hosts(BTreeMap<Ticket, Host>);

impl Hosts {
    /// The guest that has the writer, and the newest entry in the log when it got it.
    pub(super) fn holder(&self) -> Option<(Ticket, Lsn)> {
        self.0.iter().find_map(|(ticket, host)| Some((*ticket, host.began?)))
    }

    /// Whether none waits or is open.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Cluster {
    /// Draws who will come, and when.
    pub(super) fn plan_guests(&mut self) {
        for (number, mut draw) in self.comers(Stream::Guest, &[0, 10, 30]) {
            let steps = draw.between(1, 4);
            let request = guest_number(number, steps);
            let gives_up = draw.percent(20).then(|| draw.percent(50));
            let visitor = Visitor {
                steps,
                done: 0,
                answers: 0,
                moves: 0,
                gives_up,
                place: None,
                guest: None,
            };
            self.visitors.insert(request, visitor);
            let at = self.now + draw.between(MS, self.options.chaos);
            self.schedule(at, Event::Guest { request });
        }
    }

    /// A client sends what comes next.
    pub(super) fn guest_moves(&mut self, request: RequestNumber) -> Check {
        if self.stage != Stage::Chaos {
            return Ok(());
        }
        let Some(visitor) = self.visitors.get_mut(&request) else { return Ok(()) };
        visitor.moves += 1;
        let mut draw = self.chance.draw(Stream::Guest, request, visitor.moves);
        let Some((number, life)) = visitor.place.as_ref().map(|(number, life, _)| (*number, *life))
        else {
            let number = draw.index(self.machines.len());
            let machine = &self.machines[number];
            let Some(engine) = &machine.engine else { return Ok(()) };
            visitor.place = Some((number, machine.life, engine.replica.status().vector));
            let last = Program { kind: Kind::Ends, request, edition: visitor.steps };
            self.oracle.requests.begun(last);
            return self.guest_asks(number, request, Move::Begin, &mut draw);
        };
        if visitor.guest.is_none() {
            return Ok(());
        }
        // Its stream was closed with the machine.
        if self.machines[number].life != life || self.machines[number].engine.is_none() {
            return Ok(());
        }
        let next = visitor.done + 1;
        if next == visitor.steps
            && let Some(says_so) = visitor.gives_up
        {
            return if says_so {
                self.guest_asks(number, request, Move::Leave, &mut draw)
            } else {
                Ok(())
            };
        }
        let kind = if next == visitor.steps { Kind::Ends } else { Kind::Steps };
        let program = Program { kind, request, edition: next };
        self.guest_asks(number, request, Move::Step(program), &mut draw)
    }

    fn guest_asks(
        &mut self,
        number: usize,
        request: RequestNumber,
        what: Move,
        draw: &mut Draw,
    ) -> Check {
        let guest = self.visitors.get(&request).and_then(|visitor| visitor.guest);
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else { return Ok(()) };
        let now = machine.clock.at(self.now);
        vfs::with(|store| store.wall_ms = now.wall.0);
        let patience = *draw.pick(&[200 * MS, SECOND, 3 * SECOND, 10 * SECOND]);
        let patience = Duration::from_nanos(patience);
        let id = RequestId(request.into());
        let replica = &mut engine.replica;
        let ticket = match (what, guest) {
            (Move::Step(program), Some(guest)) => {
                let step = program.edition;
                replica.step_at_origin(now, guest, step, program.encode(), patience)
            }
            (Move::Leave, _) => replica.leave_origin(now, id, patience),
            _ => replica.begin_at_origin(now, id, now.wall, patience),
        };
        machine.errands.open.insert(ticket, (request, Asked::Guest(what)));
        self.trace
            .event(self.now, number, "guest", &[request], &[], || format!("{request}: {what:?}"));
        // Some send a step again before they are answered, or after.
        if draw.percent(15) {
            let at = self.now + draw.between(1, 300 * MS);
            self.schedule(at, Event::Guest { request });
        }
        self.drain(number)
    }

    /// A guest was answered.
    pub(super) fn guest_answered(
        &mut self,
        number: usize,
        request: RequestNumber,
        what: Move,
        result: &Result<Outcome, ForwardError>,
    ) -> Check {
        let text = match result {
            Ok(outcome) => format!("{request}: {outcome:?}"),
            Err(error) => format!("{request}: {error}"),
        };
        self.trace
            .event(self.now, number, "answered", &[request], text.as_bytes(), || text.clone());
        let wrong = |text| broken(Promise::ExactlyOnce, format!("guest {text} after {what:?}"));
        let Some(visitor) = self.visitors.get_mut(&request) else { return Ok(()) };
        match (what, result) {
            (Move::Begin, Ok(Outcome::Begun(guest))) => visitor.guest = Some(*guest),
            (Move::Step(program), Ok(Outcome::Stepped { result }))
                if program.kind == Kind::Steps =>
            {
                if *result != program.encode() {
                    return wrong(format!("{text}: its steps before are not there once"));
                }
                if program.edition <= visitor.done {
                    return Ok(());
                }
                visitor.done = program.edition;
            }
            // It is over: only what would have committed it can have.
            (Move::Step(program), _) if program.kind == Kind::Ends => {
                if let Ok(Outcome::Stepped { .. } | Outcome::Begun(_)) = result {
                    return wrong(text);
                }
                let reader = self.machines[number].engine.as_ref().map(|e| &e.eye);
                let asked = Asked::Run(program);
                self.oracle.requests.answered(request, asked, result, number, reader)?;
                if !matches!(result, Err(ForwardError::Unknown { .. })) {
                    return Ok(());
                }
            }
            // It may be sent again.
            (
                Move::Step(_),
                Err(ForwardError::Unknown { .. } | ForwardError::OriginUnreachable { .. }),
            ) => {}
            (_, Ok(Outcome::Committed { .. } | Outcome::Unchanged { .. })) => return wrong(text),
            _ => return Ok(()),
        }
        let Some(visitor) = self.visitors.get_mut(&request) else { return Ok(()) };
        visitor.answers += 1;
        let mut draw = self.chance.draw(Stream::Guest, request, 10_000 + visitor.answers);
        let most = *draw.pick(&[MS, 20 * MS, 20 * MS, 200 * MS, 3 * SECOND]);
        let at = self.now + draw.between(1, most);
        self.schedule(at, Event::Guest { request });
        Ok(())
    }

    // --- The origin's driver

    /// A guest wants the writer, and gets it some time later.
    pub(super) fn guest_arrived(&mut self, number: usize, request: RequestId) {
        let life = self.machines[number].life;
        let mut draw = self.chance.draw(Stream::Guest, 3_000_000, self.queued);
        let at = self.now + draw.between(1, 30 * MS);
        self.schedule(at, Event::HostGuest { machine: number, life, request });
    }

    /// The driver asks for the writer.
    pub(super) fn host_guest(&mut self, number: usize, life: u64, request: RequestId) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = machine.engine.as_mut().filter(|_| machine.life == life) else {
            return Ok(());
        };
        let now = machine.clock.at(self.now);
        vfs::with(|store| store.wall_ms = now.wall.0);
        let ticket = engine.replica.begin_guest(now, request);
        machine.errands.hosts.0.insert(ticket, Host { request, began: None });
        self.drain(number)
    }

    /// Whether a transaction that has begun is a guest's, who then has what was there where it came from.
    pub(super) fn guest_begun(&mut self, number: usize, ticket: Ticket) -> Check<bool> {
        let ends = self.now + LIMIT;
        let machine = &mut self.machines[number];
        let life = machine.life;
        let Some(host) = machine.errands.hosts.0.get_mut(&ticket) else { return Ok(false) };
        let status = machine.engine.as_ref().map(|engine| engine.replica.status());
        host.began = status.as_ref().map(|status| status.applied);
        let request = host.request;
        self.trace.event(self.now, number, "begun", &[], &[], || format!("guest {request}"));
        self.schedule(ends, Event::EndGuest { machine: number, life, ticket });
        let had = u64::try_from(request.0).ok().and_then(|request| self.visitors.get(&request));
        let had = had.and_then(|visitor| visitor.place.as_ref());
        if let (Some((_, _, had)), Some(status)) = (had, status)
            && !status.vector.covers_all(had)
        {
            let what = format!("guest {request} begins where what its client had seen is not");
            return broken(Promise::ExactlyOnce, what);
        }
        Ok(true)
    }

    /// Runs a step.
    pub(super) fn guest_step(&mut self, number: usize, ticket: Ticket, bytes: &[u8]) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else { return Ok(()) };
        let now = machine.clock.at(self.now);
        let Some(program) = Program::decode(bytes) else {
            return broken(Promise::ExactlyOnce, "a step came as another program".to_owned());
        };
        match engine.replica.step(now, ticket, |tx| program.step(tx)) {
            Ok(Ok(result)) if program.kind == Kind::Ends => {
                engine.replica.commit_guest(now, ticket, result);
            }
            Ok(Ok(result)) => engine.replica.guest_stepped(now, ticket, result),
            Ok(Err(why)) => engine.replica.abandon(now, ticket, why),
            // It has ended, and who waits hears of that.
            Err(_) => {}
        }
        Ok(())
    }

    /// A guest has had the writer for long enough.
    pub(super) fn end_guest(&mut self, number: usize, life: u64, ticket: Ticket) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = machine.engine.as_mut().filter(|_| machine.life == life) else {
            return Ok(());
        };
        if machine.errands.hosts.0.contains_key(&ticket) {
            let now = machine.clock.at(self.now);
            vfs::with(|store| store.wall_ms = now.wall.0);
            let why = WriteError::Aborted("it took too long".to_owned());
            engine.replica.abandon(now, ticket, why);
        }
        self.drain(number)
    }

    /// Whether that was the transaction of a guest; if it has failed, its client is told.
    pub(super) fn guest_ended(
        &mut self,
        number: usize,
        ticket: Ticket,
        result: &Result<Committed, WriteError>,
    ) -> bool {
        let machine = &mut self.machines[number];
        let Some(Host { request, .. }) = machine.errands.hosts.0.remove(&ticket) else {
            return false;
        };
        if let (Err(error), Some(engine)) = (result, &mut machine.engine) {
            let now = machine.clock.at(self.now);
            engine.replica.guest_ended(now, request, error.to_string().into_bytes());
        }
        let text = format!("guest {request}: {result:?}");
        self.trace.event(self.now, number, "ended", &[], text.as_bytes(), || text.clone());
        true
    }
}
