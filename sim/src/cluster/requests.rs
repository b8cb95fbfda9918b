//! Requests to the origin: clients that send programs from anywhere, try again, send them elsewhere, ask
//! what became of them; and the driver's part at the origin.

use std::collections::BTreeMap;

use littoral::{
    Committed, ForwardError, Outcome, Request, RequestId, Ticket, VersionVector, WriteError,
};

use super::{
    Cluster, Event, Stage,
    forwarded::job_of,
    guests::{Hosts, Move},
};
use crate::{
    chance::{Draw, Stream},
    clock::{MS, Nanos, SECOND},
    disk::vfs,
    oracle::{
        Check, Promise, broken,
        requests::{Asked, Known},
    },
    workload::{Failed, Kind, Program, RequestNumber, Script},
};

/// Once a run is over, an answer comes within this time.
const LAST_PATIENCE: Nanos = 60 * SECOND;

/// A client of a request.
#[derive(Debug)]
pub(super) struct Client {
    program: Program,
    attempts: u64,
    /// What its machines had applied, attempt by attempt.
    had: Vec<VersionVector>,
}

/// What a machine's driver owes clients and the origin.
#[derive(Debug, Default)]
pub(crate) struct Errands {
    /// Attempts without an answer.
    pub(super) open: BTreeMap<Ticket, (RequestNumber, Asked)>,
    /// Programs that are about to run.
    programs: BTreeMap<RequestId, Vec<u8>>,
    /// Their jobs.
    runs: BTreeMap<Ticket, RequestId>,
    /// The transactions of guests.
    pub(super) hosts: Hosts,
}

impl Errands {
    /// Whether nobody waits for anything.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.hosts.is_empty()
    }
}

impl Cluster {
    /// Draws who will want something, and when.
    pub(super) fn plan_requests(&mut self) {
        for (request, mut draw) in self.comers(Stream::Request, &[0, 15, 40]) {
            let program = Program::draw(&mut draw, request);
            let at = self.now + draw.between(MS, self.options.chaos);
            self.clients.insert(request, Client { program, attempts: 0, had: Vec::new() });
            self.schedule(at, Event::Request { request });
        }
    }

    /// Clients of the built-in workload by number, as many as chance picks, with what each draws first.
    pub(super) fn comers(&self, stream: Stream, counts: &[u64]) -> Vec<(u64, Draw)> {
        if self.options.scenario.is_some() {
            return Vec::new();
        }
        let count = *self.chance.draw(stream, 0, 0).pick(counts);
        (1..=count).map(|number| (number, self.chance.draw(stream, number, 0))).collect()
    }

    /// A client sends its program, or asks what became of it.
    pub(super) fn request(&mut self, request: RequestNumber) -> Check {
        let open = self.oracle.requests.known(request) == Known::Perhaps;
        if open && matches!(self.stage, Stage::Marked { .. }) {
            self.send(0, request, Asked::Outcome, LAST_PATIENCE)?;
        }
        if self.stage != Stage::Chaos {
            return Ok(());
        }
        let Some(client) = self.clients.get_mut(&request) else { return Ok(()) };
        client.attempts += 1;
        let mut draw = self.chance.draw(Stream::Request, request, client.attempts);
        let known = self.oracle.requests.known(request);
        let mut program = client.program;
        let asked = match known {
            Known::Perhaps if draw.percent(25) => Asked::Outcome,
            Known::Committed(_) | Known::Refused if draw.percent(40) => {
                program.edition = client.attempts;
                Asked::Run(program)
            }
            _ => Asked::Run(program),
        };
        let machine = draw.index(self.machines.len());
        let patience = *draw.pick(&[200 * MS, SECOND, 3 * SECOND, 10 * SECOND]);
        if !self.send(machine, request, asked, patience)? {
            self.again(request, &mut draw);
        }
        Ok(())
    }

    /// Sends something from a machine; false if it is down.
    fn send(
        &mut self,
        number: usize,
        request: RequestNumber,
        asked: Asked,
        patience: Nanos,
    ) -> Check<bool> {
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else { return Ok(false) };
        let now = machine.clock.at(self.now);
        vfs::with(|store| store.wall_ms = now.wall.0);
        let (id, patience) = (RequestId(request.into()), std::time::Duration::from_nanos(patience));
        let ticket = match asked {
            Asked::Run(program) => {
                if let Some(client) = self.clients.get_mut(&request) {
                    client.had.push(engine.replica.status().vector);
                    self.oracle.requests.begun(client.program);
                }
                let program = program.encode();
                engine.replica.forward(now, Request { id, issued: now.wall, program, patience })
            }
            Asked::Outcome | Asked::Guest(_) => engine.replica.outcome(now, id, now.wall, patience),
        };
        machine.errands.open.insert(ticket, (request, asked));
        self.trace.event(self.now, number, "request", &[request], &[], || {
            format!("{request}: {asked:?}")
        });
        self.drain(number)?;
        Ok(true)
    }

    /// The client comes again, some time later.
    fn again(&mut self, request: RequestNumber, draw: &mut Draw) {
        let at = self.now + draw.between(MS, 2 * SECOND);
        self.schedule(at, Event::Request { request });
    }

    /// A client was answered.
    pub(super) fn answered(
        &mut self,
        number: usize,
        ticket: Ticket,
        result: &Result<Outcome, ForwardError>,
    ) -> Check {
        let Some((request, asked)) = self.machines[number].errands.open.remove(&ticket) else {
            let what = format!("m{number} answers {ticket:?}, which nobody sent");
            return broken(Promise::Answers, what);
        };
        if let Asked::Guest(what) = asked {
            return self.guest_answered(number, request, what, result);
        }
        let text = match result {
            Ok(Outcome::Committed { dot, .. }) => format!("{request}: committed {dot}"),
            Ok(outcome) => format!("{request}: {outcome:?}"),
            Err(error) => format!("{request}: {error}"),
        };
        self.trace
            .event(self.now, number, "answered", &[request], text.as_bytes(), || text.clone());
        let reader = self.machines[number].engine.as_ref().map(|e| &e.eye);
        self.oracle.requests.answered(request, asked, result, number, reader)?;
        if let (Ok(Outcome::Failed { .. }), Some(engine)) = (result, &self.machines[number].engine)
        {
            let held = engine.replica.status().vector;
            self.oracle.requests.told_failed(request, number, &held)?;
        }
        let ending = matches!(self.stage, Stage::Marked { .. });
        if ending && matches!(result, Err(ForwardError::Stopping { .. })) {
            // A snapshot takes the place of the machine's file.
            self.schedule(self.now + 1, Event::Request { request });
            return Ok(());
        }
        if ending && result.is_err() {
            let what = format!("after all faults have ended m{number} cannot ask: {text}");
            return broken(Promise::Availability, what);
        }
        let Some(client) = self.clients.get(&request) else { return Ok(()) };
        let mut draw = self.chance.draw(Stream::Request, request, 1_000_000 + client.attempts);
        let eager = match result {
            Ok(Outcome::Committed { .. }) => 30,
            Ok(_) => 40,
            Err(_) => 85,
        };
        if draw.percent(eager) {
            self.again(request, &mut draw);
        }
        Ok(())
    }

    /// A machine has stopped, and whoever waited at it waits in vain.
    pub(super) fn errands_lost(&mut self, number: usize) {
        let errands = std::mem::take(&mut self.machines[number].errands);
        for (request, asked) in errands.open.into_values() {
            if let Asked::Guest(what) = asked {
                if matches!(what, Move::Step(Program { kind: Kind::Ends, .. })) {
                    self.oracle.requests.unanswered(request);
                }
                continue;
            }
            let own = self.clients.get(&request).map(|client| Asked::Run(client.program));
            if Some(asked) == own {
                self.oracle.requests.unanswered(request);
            }
            let mut draw = self.chance.draw(Stream::Request, request, 2_000_000);
            if draw.percent(90) {
                self.again(request, &mut draw);
            }
        }
        self.calls_lost(number);
    }

    // --- The origin's driver

    /// The replica wants a program run, which takes its time to begin.
    pub(super) fn program_came(&mut self, number: usize, request: RequestId, program: Vec<u8>) {
        let machine = &mut self.machines[number];
        let life = machine.life;
        machine.errands.programs.insert(request, program);
        let mut draw = self.chance.draw(Stream::Request, 3_000_000, self.queued);
        let most = *draw.pick(&[MS, MS, 30 * MS, 500 * MS]);
        let at = self.now + draw.between(1, most);
        self.schedule(at, Event::RunProgram { machine: number, life, request });
    }

    /// A program runs: whoever has sent it has sent on before all that its machine had.
    pub(super) fn run_program(&mut self, number: usize, life: u64, request: RequestId) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = machine.engine.as_mut().filter(|_| machine.life == life) else {
            return Ok(());
        };
        let Some(bytes) = machine.errands.programs.remove(&request) else { return Ok(()) };
        let now = machine.clock.at(self.now);
        vfs::with(|store| store.wall_ms = now.wall.0);
        if let Some(script) = Script::decode(&bytes) {
            self.oracle.sessions.reads_there(request, &engine.replica.status().vector);
            let ticket = engine.replica.run(now, request, script.into_program_job());
            machine.errands.runs.insert(ticket, request);
            return self.drain(number);
        }
        let Some(program) = Program::decode(&bytes) else {
            return broken(Promise::ExactlyOnce, format!("{request} came as another program"));
        };
        let has = engine.replica.status().vector;
        let had = self.clients.get(&program.request).map_or(&[][..], |client| &client.had);
        if !had.iter().any(|had| has.covers_all(had)) {
            let what = format!("request {request} runs where what its client had seen is not");
            return broken(Promise::ExactlyOnce, what);
        }
        let ticket = engine.replica.run(now, request, program.into_job());
        machine.errands.runs.insert(ticket, request);
        self.drain(number)
    }

    /// Whether that was the job of a program; if it has failed, who sent it is told.
    pub(super) fn program_ended(
        &mut self,
        number: usize,
        ticket: Ticket,
        result: &Result<Committed, WriteError>,
    ) -> bool {
        let machine = &mut self.machines[number];
        let Some(request) = machine.errands.runs.remove(&ticket) else {
            return self.guest_ended(number, ticket, result);
        };
        if let (Err(error), Some(engine)) = (result, &mut machine.engine) {
            let now = machine.clock.at(self.now);
            if let Ok(request) = RequestNumber::try_from(request.0) {
                self.oracle.requests.fails_there(request, &engine.replica.status().vector);
            }
            engine.replica.run_failed(now, request, Failed::of(error).encode());
        }
        if let (Some(id), Ok(Committed { dot: Some(dot), .. })) = (job_of(request), result) {
            self.oracle.jobs.ran(id, *dot);
        }
        let text = format!("{request}: {result:?}");
        self.trace.event(self.now, number, "ran", &[], text.as_bytes(), || text.clone());
        true
    }

    // --- In the end

    /// Asks what became of every request of which that is not known.
    pub(super) fn ask_for_outcomes(&mut self) -> Check {
        for request in self.oracle.requests.open() {
            let mut draw = self.chance.draw(Stream::Request, request, 4_000_000);
            let machine = draw.index(self.machines.len());
            self.send(machine, request, Asked::Outcome, LAST_PATIENCE)?;
        }
        Ok(())
    }
}
