//! Clients that speak to any machine, and whose statements go where the policies of their tables send them, by
//! the engine's own word: a reader here, a job here, or the origin.
//!
//! Each client does one thing after the other, everything at a machine of its choice. If it does not hear what
//! became of something, it tries again with the same id, asks, or goes on without knowing.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use littoral::{
    Admission, Committed, ForwardError, Instant, Outcome, ReadRefused, Request, RequestId, Ticket,
    WriteError,
};
use rusqlite::types::Value;

use super::{Cluster, Event, Stage};
use crate::{
    chance::{Draw, Stream},
    clock::{MS, Nanos, SECOND},
    disk::vfs,
    oracle::{Check, Promise, broken, linear::Action, seats::OperationNumber, staleness},
    workload::{BOUNDED_READS, GAUGE_LAG_MS, Script, SeatCall, decode_values},
};

/// Once a run is over, an answer comes within this time.
const LAST_PATIENCE: Nanos = 60 * SECOND;

/// Requests of these clients are named apart from others.
const REQUESTS: u128 = 1 << 64;

/// The clients.
#[derive(Debug, Default)]
pub(super) struct Callers {
    each: Vec<Caller>,
    /// About how long each waits from one thing to the next.
    think: Nanos,
    /// What clients have gone on without knowing of.
    given_up: Vec<Call>,
}

#[derive(Debug, Default)]
struct Caller {
    visits: u64,
    /// What it does not know the end of.
    doubt: Option<Call>,
}

/// Something that a client wants done.
#[derive(Debug)]
pub(super) struct Call {
    operation: OperationNumber,
    action: Action,
    script: Script,
    /// An attempt may have run.
    doubt: bool,
}

/// A call without an answer, on a machine.
#[derive(Debug)]
pub(crate) struct UnderWay {
    /// `None` in the end, when nobody waits.
    caller: Option<usize>,
    call: Call,
    sent: Sent,
}

#[derive(Debug)]
enum Sent {
    /// As a job of the machine's, which leaves here what it gives.
    Job(Arc<Mutex<Vec<Value>>>),
    /// To the origin.
    Request,
    /// A question what became of it.
    Question,
}

impl Call {
    fn request(&self) -> RequestId {
        RequestId(REQUESTS | u128::from(self.operation.cast_unsigned()))
    }
}

impl Cluster {
    /// Draws who will call.
    pub(super) fn plan_calls(&mut self) {
        if self.options.scenario.is_some() {
            return;
        }
        let mut draw = self.chance.draw(Stream::Seat, 0, 0);
        let count = *draw.pick(&[0, 2, 3, 5]);
        self.callers.think = draw.spread(80 * MS, 800 * MS);
        self.callers.each.resize_with(count, Caller::default);
        for caller in 0..count {
            self.call_again(caller);
        }
    }

    fn call_again(&mut self, number: usize) {
        let think = self.callers.think;
        let Some(caller) = self.callers.each.get_mut(number) else { return };
        caller.visits += 1;
        let mut draw = self.chance.draw(Stream::Seat, 1 + number as u64, 2 * caller.visits);
        let at = self.now + draw.between(MS, 2 * think);
        self.schedule(at, Event::Call { caller: number });
    }

    /// A client does the next thing, or comes back to the last one.
    pub(super) fn call(&mut self, number: usize) -> Check {
        if matches!(self.stage, Stage::Marked { .. }) {
            return self.ask_for_calls();
        }
        if self.stage != Stage::Chaos {
            return Ok(());
        }
        let Some(caller) = self.callers.each.get_mut(number) else { return Ok(()) };
        let mut draw = self.chance.draw(Stream::Seat, 1 + number as u64, 2 * caller.visits + 1);
        let machine = draw.index(self.machines.len());
        let patience = *draw.pick(&[200 * MS, SECOND, 3 * SECOND, 10 * SECOND]);
        if self.machines[machine].engine.is_none() {
            self.call_again(number);
            return Ok(());
        }
        let doubt = mem::take(&mut self.callers.each[number].doubt);
        match (doubt, draw.below(100)) {
            (Some(call), 0..45) => self.forward(machine, Some(number), call, patience),
            (Some(call), 45..80) => self.ask(machine, Some(number), call, patience),
            (given_up, _) => {
                self.callers.given_up.extend(given_up);
                if draw.percent(20) {
                    self.read_bounded(machine, &mut draw, patience)?;
                    self.call_again(number);
                    return self.drain(machine);
                }
                let operation = self.oracle.seats.next();
                let SeatCall { seat, action, script } = SeatCall::draw(&mut draw, operation);
                self.trace.event(
                    self.now,
                    machine,
                    "call",
                    &[operation.cast_unsigned()],
                    &[],
                    || format!("{operation}: {}", script.describe()),
                );
                let who = format!("client {number} on m{machine}");
                self.oracle.seats.called(operation, seat, action, who);
                let call = Call { operation, action, script, doubt: false };
                self.route(machine, number, call, patience)?;
            }
        }
        self.drain(machine)
    }

    /// Runs a script here, as a client's driver does, or where the engine says that it belongs.
    fn route(&mut self, number: usize, caller: usize, call: Call, patience: Nanos) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else { return Ok(()) };
        let now = machine.clock.at(self.now);
        vfs::with(|store| store.wall_ms = now.wall.0);
        if call.script.may_read() {
            let reader = &engine.reader;
            let read = reader.restrict(None).and_then(|()| call.script.read(reader.connection()));
            return match read.map_err(|error| (reader.refused(&error), error)) {
                Ok(values) => self.call_ended(number, Some(caller), &call, Some(&values)),
                Err((ReadRefused::AtOrigin { .. }, _)) => {
                    self.forward(number, Some(caller), call, patience);
                    Ok(())
                }
                // The schema has not come yet.
                Err((ReadRefused::Failed, error)) => {
                    self.call_never(number, Some(caller), &call, &error.to_string());
                    Ok(())
                }
                Err((refused, error)) => {
                    let what = format!("m{number} does not read ({refused:?}: {error}): {call:?}");
                    broken(Promise::Answers, what)
                }
            };
        }
        let (slot, script) = (Arc::<Mutex<Vec<Value>>>::default(), call.script.clone());
        let given = Arc::clone(&slot);
        let job = move |tx: &mut littoral::WriteTx<'_>| {
            let values = script.run(tx)?;
            *given.lock().unwrap_or_else(PoisonError::into_inner) = values;
            Ok(())
        };
        let ticket = engine.replica.write(now, Box::new(job));
        let sent = Sent::Job(slot);
        machine.calls.insert(ticket, UnderWay { caller: Some(caller), call, sent });
        Ok(())
    }

    fn forward(&mut self, number: usize, caller: Option<usize>, call: Call, patience: Nanos) {
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else {
            return self.call_in_doubt(number, caller, call);
        };
        let now = machine.clock.at(self.now);
        let (id, program) = (call.request(), call.script.encode());
        let patience = Duration::from_nanos(patience);
        let request = Request { id, issued: now.wall, program, patience };
        let ticket = if call.script.may_read() {
            engine.replica.read_at_origin(now, request, None)
        } else {
            engine.replica.forward(now, request)
        };
        machine.calls.insert(ticket, UnderWay { caller, call, sent: Sent::Request });
    }

    fn ask(&mut self, number: usize, caller: Option<usize>, call: Call, patience: Nanos) {
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else {
            return self.call_in_doubt(number, caller, call);
        };
        let now = machine.clock.at(self.now);
        let patience = Duration::from_nanos(patience);
        let ticket = engine.replica.outcome(now, call.request(), now.wall, patience);
        machine.calls.insert(ticket, UnderWay { caller, call, sent: Sent::Question });
    }

    /// The job of a call has ended: here, or it belongs elsewhere.
    pub(super) fn call_done(
        &mut self,
        number: usize,
        ticket: Ticket,
        result: &Result<Committed, WriteError>,
    ) -> Check {
        let Some(UnderWay { caller, call, sent }) = self.machines[number].calls.remove(&ticket)
        else {
            return Ok(());
        };
        let Sent::Job(slot) = sent else {
            return broken(Promise::Answers, format!("m{number} has done {call:?} as a job"));
        };
        match result {
            Ok(_) => {
                let values = mem::take(&mut *slot.lock().unwrap_or_else(PoisonError::into_inner));
                self.call_ended(number, caller, &call, Some(&values))
            }
            Err(WriteError::OriginOnly { .. }) if self.machines[number].engine.is_some() => {
                let operation = call.operation.cast_unsigned();
                let mut draw = self.chance.draw(Stream::Seat, 1_000_000, operation);
                let patience = *draw.pick(&[200 * MS, SECOND, 3 * SECOND, 10 * SECOND]);
                self.forward(number, caller, call, patience);
                Ok(())
            }
            Err(error) => {
                self.call_never(number, caller, &call, &error.to_string());
                Ok(())
            }
        }
    }

    /// The origin has answered a call, or nobody has.
    pub(super) fn call_answered(
        &mut self,
        number: usize,
        under_way: UnderWay,
        result: &Result<Outcome, ForwardError>,
    ) -> Check {
        let UnderWay { caller, mut call, sent } = under_way;
        let text = format!("{}: {result:?}", call.operation);
        self.trace.event(self.now, number, "called", &[], text.as_bytes(), || text.clone());
        let asked = matches!(sent, Sent::Question);
        let ending = matches!(self.stage, Stage::Marked { .. });
        if ending && matches!(result, Err(ForwardError::Stopping { .. })) {
            // A snapshot takes the place of the machine's file.
            self.callers.given_up.push(call);
            self.schedule(self.now + 1, Event::Call { caller: 0 });
            return Ok(());
        }
        match result {
            Ok(Outcome::Committed { result, .. }) => {
                let values = result.as_deref().and_then(decode_values);
                return self.call_ended(number, caller, &call, values.as_deref());
            }
            Ok(Outcome::Unchanged { result }) if !asked => {
                if matches!(call.action, Action::Put(_) | Action::Swap(_)) {
                    let what = format!("m{number} was told that nothing was changed: {call:?}");
                    return broken(Promise::ExactlyOnce, what);
                }
                let values = decode_values(result);
                return self.call_ended(number, caller, &call, values.as_deref());
            }
            Ok(Outcome::Read { result, .. }) if call.script.may_read() => {
                let values = decode_values(result);
                return self.call_ended(number, caller, &call, values.as_deref());
            }
            Err(ForwardError::Unknown { .. }) if call.script.may_read() && !asked => {
                return broken(Promise::Answers, format!("m{number} doubts a read: {text}"));
            }
            Err(ForwardError::OriginUnreachable { .. }) if call.script.may_read() && !asked => {
                self.read_stale(number, &call)?;
                self.call_never(number, caller, &call, "read where it may be old");
            }
            Ok(Outcome::Refused) => self.call_never(number, caller, &call, "refused"),
            Err(ForwardError::OtherProgram { .. }) => {
                let what = format!("m{number} takes it for another program: {call:?}");
                return broken(Promise::ExactlyOnce, what);
            }
            Err(ForwardError::Unknown { .. } | ForwardError::Stopping { .. }) => {
                call.doubt = true;
                self.call_in_doubt(number, caller, call);
            }
            // This attempt has run nothing, or nothing of it stands.
            Ok(_) | Err(_) if call.doubt || asked => self.call_in_doubt(number, caller, call),
            Ok(_) | Err(_) => self.call_never(number, caller, &call, "nothing stands"),
        }
        if ending && result.is_err() {
            let what = format!("after all faults have ended m{number} cannot ask: {text}");
            return broken(Promise::Availability, what);
        }
        Ok(())
    }

    /// The origin cannot be reached: what may be old is read here, and told as such.
    fn read_stale(&mut self, number: usize, call: &Call) -> Check {
        let Some(engine) = &self.machines[number].engine else { return Ok(()) };
        let reader = &engine.reader;
        reader.serve_stale(true);
        let read = call.script.read(reader.connection());
        let refused = read.as_ref().err().map(|error| reader.refused(error));
        reader.serve_stale(false);
        let again = reader.restrict(None).and_then(|()| call.script.read(reader.connection()));
        if again.is_ok() && number != 0 {
            let what = format!("m{number} goes on reading what is the origin's: {call:?}");
            return broken(Promise::Linearizability, what);
        }
        match (read, refused) {
            // The schema may not have come yet.
            (Ok(_), _) | (Err(_), Some(ReadRefused::Failed)) => Ok(()),
            (Err(error), refused) => {
                let what =
                    format!("m{number} does not read what may be old ({refused:?}: {error})");
                broken(Promise::Answers, what)
            }
        }
    }

    /// A call has taken effect.
    fn call_ended(
        &mut self,
        number: usize,
        caller: Option<usize>,
        call: &Call,
        given: Option<&[Value]>,
    ) -> Check {
        let saw = match (call.action, given) {
            (Action::Put(_) | Action::Clear, _) | (_, None) => None,
            (Action::Get | Action::Swap(_), Some([Value::Integer(holder)])) => Some(Some(*holder)),
            (Action::Get | Action::Swap(_), Some([Value::Null])) => Some(None),
            (_, Some(other)) => {
                let what = format!("m{number} was given {other:?} for {call:?}");
                return broken(Promise::Answers, what);
            }
        };
        let operation = call.operation;
        self.note(number, "seen", || format!("{operation}: {saw:?}"));
        self.oracle.seats.answered(operation, saw);
        if let Some(caller) = caller {
            self.call_again(caller);
        }
        Ok(())
    }

    /// A call has had no effect, and will have none.
    fn call_never(&mut self, number: usize, caller: Option<usize>, call: &Call, why: &str) {
        let operation = call.operation;
        self.note(number, "not done", || format!("{operation}: {why}"));
        self.oracle.seats.never(call.operation);
        if let Some(caller) = caller {
            self.call_again(caller);
        }
    }

    /// Nobody here knows whether a call has had an effect, or will have.
    fn call_in_doubt(&mut self, number: usize, caller: Option<usize>, call: Call) {
        let Some(place) = caller else { return };
        if call.script.may_read() {
            return self.call_never(number, caller, &call, "a read without an answer");
        }
        self.callers.each[place].doubt = Some(call);
        self.call_again(place);
    }

    /// A machine has stopped, and whoever waited at it waits in vain.
    pub(super) fn calls_lost(&mut self, number: usize) {
        self.machines[number].scripts.clear();
        for request in mem::take(&mut self.machines[number].reads).into_values() {
            self.oracle.sessions.unanswered(request);
        }
        for wanderer in mem::take(&mut self.machines[number].meetings).into_values() {
            self.wander_on(wanderer);
        }
        for UnderWay { caller, mut call, sent } in
            mem::take(&mut self.machines[number].calls).into_values()
        {
            match sent {
                // It had no name, so nobody can be asked.
                Sent::Job(_) if number == 0 => {
                    if let Some(caller) = caller {
                        self.call_again(caller);
                    }
                }
                // Of a seat nothing is written here.
                Sent::Job(_) => self.call_never(number, caller, &call, "the machine stopped"),
                Sent::Request | Sent::Question => {
                    call.doubt = true;
                    self.call_in_doubt(number, caller, call);
                }
            }
        }
    }

    /// Asks what became of every call of which that is not known.
    pub(super) fn ask_for_calls(&mut self) -> Check {
        let mut open = mem::take(&mut self.callers.given_up);
        open.extend(self.callers.each.iter_mut().filter_map(|caller| caller.doubt.take()));
        for call in open {
            let operation = call.operation.cast_unsigned();
            let mut draw: Draw = self.chance.draw(Stream::Seat, 2_000_000, operation);
            let machine = draw.index(self.machines.len());
            self.ask(machine, None, call, LAST_PATIENCE);
            self.drain(machine)?;
        }
        Ok(())
    }

    /// A session reads a table that bounds how old its rows may be: here, or at the origin.
    fn read_bounded(&mut self, number: usize, draw: &mut Draw, patience: Nanos) -> Check {
        let sql = *draw.pick(&BOUNDED_READS);
        let Some(engine) = &self.machines[number].engine else { return Ok(()) };
        // The schema may not have come yet.
        let Ok(touched) = engine.reader.touches(sql) else { return Ok(()) };
        let lag = engine.replica.db().lag(Instant(self.now));
        let admission = Admission::of(&touched, lag);
        self.note(number, "admit", || format!("{admission:?} at a lag of {lag:?}: {sql}"));
        // Who keeps the bounds as it prepares comes to the same.
        let Some(engine) = &self.machines[number].engine else { return Ok(()) };
        engine.reader.keep_bounds(lag);
        let prepared = engine.reader.connection().prepare_cached(sql).is_ok();
        let refused = engine.reader.refused_old();
        staleness::judge_kept(number, sql, admission, prepared, refused)?;
        match admission {
            Admission::Serve => {
                staleness::judge_bound(&mut self.oracle.logs, number, self.now, GAUGE_LAG_MS * MS)
            }
            Admission::Forward(_) => self.session_reads_at_origin(number, sql, draw, patience),
            Admission::Wait(_) | Admission::Fail(_) => Ok(()),
        }
    }
}
