//! What a driver owes a replica: every input is followed by a full drain, and every output is carried out.

use std::rc::Rc;

use littoral::{CloseCode, Event as News, Input, Output, WriteError};

use super::{Cluster, Event, Stage};
use crate::{
    chance::Stream,
    clock::MS,
    disk::vfs,
    machine::SnapshotWork,
    oracle::{Check, Failure, Promise, broken, links, unreadable},
};

/// A replica that gives more outputs than this after one input will never be quiet.
const OUTPUTS_PER_DRAIN: u64 = 200_000;

/// In so many of a hundred drains a reader begins in the middle.
const PASSERS: u64 = 3;

impl Cluster {
    pub(super) fn handle(&mut self, number: usize, input: Input) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else { return Ok(()) };
        let now = machine.clock.at(self.now);
        vfs::with(|store| store.wall_ms = now.wall.0);
        engine.replica.handle(now, input);
        self.drain(number)
    }

    pub(super) fn drain(&mut self, number: usize) -> Check {
        self.machines[number].log_before = self.oracle.logs.length(number);
        self.send_passer(number);
        let verdict = self.drain_fully(number);
        vfs::forget_after_writes();
        verdict
    }

    fn drain_fully(&mut self, number: usize) -> Check {
        for _ in 0..OUTPUTS_PER_DRAIN {
            let machine = &mut self.machines[number];
            let Some(engine) = &mut machine.engine else { return Ok(()) };
            let wall = machine.clock.at(self.now).wall;
            vfs::with(|store| store.wall_ms = wall.0);
            let output = engine.replica.poll();
            if vfs::with(|store| store.is_down(&machine.name)) {
                return self.stop(number);
            }
            self.judge_passer(number)?;
            if !self.carry_out(number, output)? {
                // Before anything of it can be trimmed.
                if let Some(engine) = &self.machines[number].engine {
                    self.oracle.refresh(number, &engine.eye)?;
                }
                self.judge_lag(number)?;
                return self.judge_clock(number);
            }
        }
        Err(Failure::NoProgress(format!(
            "m{number} has given {OUTPUTS_PER_DRAIN} outputs without becoming quiet"
        )))
    }

    /// Sometimes a reader begins while a machine is at work: after one of the transactions in which it is
    /// about to write.
    fn send_passer(&mut self, number: usize) {
        let Some(engine) = &self.machines[number].engine else { return };
        self.drains += 1;
        let mut draw = self.chance.draw(Stream::Probe, 1 << 32 | number as u64, self.drains);
        if self.machines[number].decayed || !draw.percent(PASSERS) {
            return;
        }
        let passer = Rc::clone(&engine.passer);
        vfs::after_writes(draw.between(1, 6), move || {
            // If the file cannot be read, whoever looks next says so.
            let _ = passer.execute_batch("BEGIN; SELECT 1 FROM littoral_meta");
        });
    }

    /// What it finds is what the log leads to that it sees: whole transactions, and all of each.
    fn judge_passer(&mut self, number: usize) -> Check {
        let Some(engine) = &self.machines[number].engine else { return Ok(()) };
        if engine.passer.is_autocommit() {
            return Ok(());
        }
        let passer = Rc::clone(&engine.passer);
        self.oracle.compare(number, &passer)?;
        passer.execute_batch("ROLLBACK").map_err(unreadable(number))
    }

    /// What a machine has just taken into its log is not from the future.
    fn judge_clock(&mut self, number: usize) -> Check {
        let news = self.oracle.logs.take_news();
        match &self.machines[number].engine {
            Some(engine) if !news.is_empty() => {
                let clock = engine.replica.status().clock;
                let mine = news.iter().filter(|(machine, ..)| *machine == number);
                let mine = mine.map(|(_, own, header)| (*own, header));
                self.oracle.clocks.judge(number, self.now, &clock, mine)
            }
            _ => Ok(()),
        }
    }

    /// Returns whether more outputs may follow.
    pub(super) fn carry_out(&mut self, number: usize, output: Output) -> Check<bool> {
        let life = self.machines[number].life;
        self.judge_alone(number, &output)?;
        // What a lone member has committed and synced may be trimmed at once.
        if let Output::Done { .. } | Output::Event(News::SchemaChanged) = &output
            && let Some(engine) = &self.machines[number].engine
        {
            self.oracle.refresh(number, &engine.eye)?;
        }
        match output {
            Output::Begun { ticket } => self.begun(number, ticket)?,
            Output::Send { peer, channel, bytes } => {
                self.trace.event(self.now, number, "send", &[peer.0], &bytes, || {
                    format!("{} bytes of {channel:?} on {peer:?}", bytes.len())
                });
                if let Some((port, at)) = self.network.send(self.now, number, peer, channel, bytes)
                {
                    self.schedule(at, Event::Arrive { port, channel });
                }
            }
            Output::Close { peer, code, reason } => {
                self.trace.event(self.now, number, "close", &[peer.0], reason.as_bytes(), || {
                    format!("{peer:?} {code:?}: {reason}")
                });
                let machine = &self.machines[number];
                match (code, self.network.side(number, peer)) {
                    (CloseCode::Replaced, Some(side)) => {
                        self.oracle.links.replaced(self.now, number, side)?;
                    }
                    (CloseCode::TooOld, Some(side)) if !reason.starts_with("asking again") => {
                        if let Some(engine) = &machine.engine {
                            let (logs, known) = (&self.oracle.logs, machine.log_before);
                            links::too_old(logs, number, &engine.eye, known, side.other)?;
                        }
                    }
                    _ => {}
                }
                self.close_link(number, peer);
                let machine = &self.machines[number];
                let excused = match code {
                    CloseCode::Shutdown
                    | CloseCode::TimedOut
                    | CloseCode::Replaced
                    | CloseCode::TooOld => true,
                    // Nothing can be kept until there is space again.
                    CloseCode::Storage => vfs::with(|store| store.is_full(&machine.name)),
                    _ => false,
                };
                if !excused && !machine.may_halt {
                    return broken(
                        Promise::Availability,
                        format!("m{number} closed an honest peer's link as {code:?}: {reason}"),
                    );
                }
            }
            Output::Sync(lsn) => {
                let wanted = &mut self.machines[number].sync_wanted;
                *wanted = (*wanted).max(Some(lsn));
                self.begin_sync(number);
            }
            Output::WalCheckpoint => {
                let mut draw = self.chance.draw(Stream::Disk, number as u64, self.queued << 8);
                let at = self.now + draw.between(1, 50 * MS);
                self.schedule(at, Event::Checkpoint { machine: number, life });
            }
            Output::Done { ticket, result } if self.program_ended(number, ticket, &result) => {}
            Output::Done { ticket, result }
                if self.machines[number].calls.contains_key(&ticket) =>
            {
                self.call_done(number, ticket, &result)?;
            }
            Output::Done { ticket, result } => {
                self.machines[number].talks.remove(&ticket);
                let Some(id) = self.machines[number].tickets.remove(&ticket) else {
                    return broken(
                        Promise::Answers,
                        format!("m{number} answers {ticket:?}, which is not open"),
                    );
                };
                let script = self.machines[number].scripts.remove(&id);
                if let (Some(script), Err(WriteError::OriginOnly { .. })) = (script, &result)
                    && self.forward_job(number, id, &script)
                {
                    return Ok(true);
                }
                let text = match &result {
                    Ok(committed) => format!("{id}: {committed:?}"),
                    Err(error) => format!("{id}: {error}"),
                };
                self.trace
                    .event(self.now, number, "answer", &[id], text.as_bytes(), || text.clone());
                if let Err(why @ (WriteError::Unavailable(_) | WriteError::DiskFull)) = &result
                    && matches!(self.stage, Stage::Marked { .. })
                {
                    return broken(
                        Promise::Availability,
                        format!("m{number} cannot write after all faults have ended: {why}"),
                    );
                }
                self.application.answered(id, &result)?;
                let Some(engine) = &self.machines[number].engine else { return Ok(false) };
                let shadow = self.oracle.logs.shadow(number);
                self.oracle.jobs.answered(id, &result, &engine.eye, shadow)?;
                if let Ok(committed) = result {
                    self.session_wrote(number, id, committed)?;
                }
            }
            Output::Event(news) => {
                let text = format!("{news:?}");
                self.trace.event(self.now, number, "news", &[], text.as_bytes(), || text.clone());
                if matches!(news, News::ForeignWrites) && !self.machines[number].foreign {
                    let what = format!("m{number} takes its own writes for another program's");
                    return broken(Promise::Answers, what);
                }
                if let News::Halted(why) = news
                    && !self.machines[number].may_halt
                {
                    return broken(Promise::Availability, format!("m{number} halted: {why}"));
                }
                self.record(number)?;
            }
            Output::TakeSnapshot(name) => {
                self.queue_snapshot_work(number, SnapshotWork::Take(name));
            }
            Output::ReadSnapshot { peer, offset, bytes } => {
                self.queue_snapshot_work(number, SnapshotWork::Read { peer, offset, bytes });
            }
            Output::DiscardSnapshot => self.queue_snapshot_work(number, SnapshotWork::Discard),
            Output::WriteSnapshot { peer, piece, sync } => {
                let work = SnapshotWork::Write { peer, piece, sync };
                self.queue_snapshot_work(number, work);
            }
            Output::Answered { ticket, result } => {
                let machine = &mut self.machines[number];
                if let Some(read) = machine.reads.remove(&ticket) {
                    self.session_read_answered(number, read, &result)?;
                } else if let Some(wanderer) = machine.meetings.remove(&ticket) {
                    self.met(number, wanderer, &result)?;
                } else if let Some(call) = machine.calls.remove(&ticket) {
                    self.call_answered(number, call, &result)?;
                } else if let Some(id) = machine.tickets.remove(&ticket) {
                    self.job_answered(number, id, &result)?;
                } else {
                    self.answered(number, ticket, &result)?;
                }
            }
            Output::Run { request, program } => self.program_came(number, request, program),
            Output::GuestArrived { request } => self.guest_arrived(number, request),
            Output::GuestStep { ticket, program, .. } => {
                self.guest_step(number, ticket, &program)?;
            }
            Output::InstallSnapshot(snapshot) => {
                self.install_snapshot(number, &snapshot)?;
                return Ok(false);
            }
            Output::WakeAt(at) => {
                if let Some(at) = at {
                    let at = at.0.max(self.now + 1);
                    let machine = &mut self.machines[number];
                    if machine.wake_at.is_none_or(|due| due > at || due <= self.now) {
                        machine.wake_at = Some(at);
                        self.schedule(at, Event::Wake { machine: number, life });
                    }
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// If this run is to be explained, takes down when entries came.
    fn record(&mut self, number: usize) -> Check {
        match &self.machines[number].engine {
            Some(engine) if self.options.recording => self.oracle.refresh(number, &engine.eye),
            _ => Ok(()),
        }
    }
}
