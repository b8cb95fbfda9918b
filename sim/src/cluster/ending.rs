//! The end of a run: faults end, everything settles, and everybody is judged.

use std::collections::BTreeSet;

use littoral::{Entry, NodeId, Segment, Status, Verification, limits::OWN_STAMPS_AHEAD_MAX};
use rusqlite::{Connection, OpenFlags};

use super::{CHECK_EVERY, Cluster, Event, SETTLE_WITHIN, Stage};
use crate::{
    application::Moment,
    clock::WallClock,
    disk::vfs,
    oracle::{
        Check, Failure, Promise, broken, convergence, schema, shapes::Shapes, sights, spools,
        unreadable,
    },
};

impl Cluster {
    pub(super) fn heal(&mut self) -> Check {
        self.note(0, "heal", String::new);
        self.stage = Stage::Settling { deadline: self.now + SETTLE_WITHIN };
        self.network.heal();
        for number in 0..self.machines.len() {
            let name = self.machines[number].name.clone();
            vfs::with(|store| store.set_full(&name, false));
            let machine = &mut self.machines[number];
            if machine.clock.is_wrong() {
                self.set_clock(number, WallClock::RIGHT);
            }
            let machine = &mut self.machines[number];
            machine.slow = (0, 0);
            machine.sync_fails = false;
            if machine.engine.is_some() && machine.stopping.is_some() {
                self.stop(number)?;
                self.machines[number].stopping = None;
            } else {
                machine.stopping = None;
            }
        }
        for link in 0..self.world.links.len() {
            if !self.network.is_connected(link) {
                self.reconnect(link);
            }
        }
        self.schedule(self.now + CHECK_EVERY, Event::CheckSettled);
        Ok(())
    }

    pub(super) fn check_settled(&mut self) -> Check {
        let deadline = match self.stage {
            Stage::Preparing { deadline }
            | Stage::Settling { deadline }
            | Stage::Marked { deadline }
            | Stage::Mending { deadline }
            | Stage::Forgetting { deadline } => deadline,
            Stage::Silent { until } => until + CHECK_EVERY,
            Stage::Chaos | Stage::Over => return Ok(()),
        };
        if let Stage::Silent { until } = self.stage {
            return self.check_silent(until);
        }
        let forgets = matches!(self.stage, Stage::Forgetting { .. });
        let mends = matches!(self.stage, Stage::Mending { .. });
        if !self.is_settled()
            || forgets && self.remembers().is_some()
            || mends && !self.is_mended()?
            || matches!(self.stage, Stage::Marked { .. }) && self.compares()
        {
            if self.now > deadline {
                let remembers = self.remembers().filter(|_| forgets).unwrap_or_default();
                return Err(Failure::NoProgress(format!("{remembers}{}", self.waiting())));
            }
            self.schedule(self.now + CHECK_EVERY, Event::CheckSettled);
            return Ok(());
        }
        self.note(0, "settled", String::new);
        match self.stage {
            Stage::Preparing { .. } => match self.application.preparation() {
                Some(job) => self.write(0, vec![job])?,
                None => {
                    self.begin();
                    return Ok(());
                }
            },
            Stage::Settling { .. } => {
                self.stage = Stage::Marked { deadline: self.now + SETTLE_WITHIN };
                for number in 0..self.machines.len() {
                    let writes = !self.machines[number].plan.read_only;
                    if let Some(job) = self.application.last_job(number).filter(|_| writes) {
                        self.write(number, vec![job])?;
                    }
                }
                self.ask_for_outcomes()?;
                self.ask_for_calls()?;
            }
            Stage::Marked { .. } => {
                self.stage = Stage::Mending { deadline: self.now + SETTLE_WITHIN };
                self.decay()?;
            }
            Stage::Mending { .. } => {
                self.stage = Stage::Forgetting { deadline: self.now + SETTLE_WITHIN };
            }
            Stage::Forgetting { .. } => {
                self.silence = self.lengths()?;
                let until = self.now + self.options.silence;
                self.stage = Stage::Silent { until };
                self.schedule(until, Event::CheckSettled);
                return Ok(());
            }
            Stage::Chaos | Stage::Silent { .. } | Stage::Over => return Ok(()),
        }
        self.schedule(self.now + CHECK_EVERY, Event::CheckSettled);
        Ok(())
    }

    /// How far every log goes, and how many entries it keeps.
    fn lengths(&self) -> Check<Vec<(u64, i64)>> {
        let mut lengths = Vec::new();
        for (number, machine) in self.machines.iter().enumerate() {
            if let Some(engine) = &machine.engine {
                let kept = sights::log_length(number, &engine.eye)?;
                lengths.push((engine.replica.status().applied.0, kept));
            }
        }
        Ok(lengths)
    }

    /// After quiet no clock is left, and of the log only frontiers that no later one covers.
    fn remembers(&self) -> Option<String> {
        self.machines.iter().find_map(|machine| {
            let engine = machine.engine.as_ref()?;
            let rows = engine.replica.status().contested_rows;
            let reader = &engine.eye;
            let blocks: i64 = reader
                .query_row("SELECT count(*) FROM littoral_clock", [], |row| row.get(0))
                .unwrap_or(i64::MAX);
            let entries = entries_of_note(reader).unwrap_or(usize::MAX);
            (rows > 0 || blocks > 0 || entries > 0).then(|| {
                format!(
                    "{} remembers {rows} rows, {blocks} blocks of clocks and {entries} entries | ",
                    machine.name
                )
            })
        })
    }

    fn check_silent(&mut self, until: u64) -> Check {
        if self.now < until {
            return Ok(());
        }
        let lengths = self.lengths()?;
        if lengths != self.silence {
            let what = format!("entries without end: {:?}, then {lengths:?}", self.silence);
            return broken(Promise::Silence, what);
        }
        self.judge_sessions()?;
        self.stage = Stage::Over;
        Ok(())
    }

    pub(super) fn is_settled(&self) -> bool {
        let mut vectors = Vec::new();
        for machine in &self.machines {
            let Some(engine) = &machine.engine else { return false };
            let status = engine.replica.status();
            let belongs = status.author.is_some() || machine.plan.read_only;
            // Writes go on when the time has caught up with stamps of clocks that were wrong.
            let writes = status.clock.stamps_ahead <= OWN_STAMPS_AHEAD_MAX;
            let settled = status.applied == status.durable && status.freeze.is_none();
            let linked: BTreeSet<&NodeId> = status.peers.iter().map(|peer| &peer.node).collect();
            let linked_once = linked.len() == status.peers.len();
            if !settled || !belongs || !writes || !linked_once {
                return false;
            }
            let answered = machine.tickets.is_empty() && machine.calls.is_empty();
            if !answered || !machine.errands.is_empty() {
                return false;
            }
            vectors.push(status.vector);
        }
        vectors.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// Whether all machines are up and have applied the same entries.
    pub(super) fn agrees(&self) -> bool {
        let vector = |number: usize| {
            let engine = self.machines[number].engine.as_ref()?;
            Some(engine.replica.status().vector)
        };
        let first = vector(0);
        first.is_some() && (1..self.machines.len()).all(|number| vector(number) == first)
    }

    /// Who waits for what.
    pub(super) fn waiting(&self) -> String {
        let machines: Vec<String> = self
            .machines
            .iter()
            .map(|machine| {
                let Some(engine) = &machine.engine else {
                    return format!("{} is down", machine.name);
                };
                let status = engine.replica.status();
                let peers: Vec<String> = status
                    .peers
                    .iter()
                    .map(|peer| {
                        let state = if peer.streaming { "streaming" } else { "handshake" };
                        let held = match (peer.holds, peer.held_by_peer) {
                            (None, None) => String::new(),
                            (ours, theirs) => format!(", holds {ours:?}, is held at {theirs:?}"),
                        };
                        format!("{} {state}, behind {}{held}", peer.node, peer.behind)
                    })
                    .collect();
                format!(
                    "{}: vector {}, frontier {} over {}, waiting for {:?}, durable {} of {}, {} jobs and {} requests open, {}links: {}{}",
                    machine.name,
                    status.vector,
                    status.stability.frontier,
                    status.stability.covered,
                    status.stability.held_back_by,
                    status.durable,
                    status.applied,
                    machine.tickets.len() + machine.calls.len(),
                    machine.errands.open.len(),
                    comparing(&status),
                    peers.join("; "),
                    status.halted.map_or_else(String::new, |why| format!(", halted: {why}"))
                )
            })
            .collect();
        machines.join(" | ")
    }

    /// Everything is quiet: now everybody must hold the same, and all that was promised.
    pub(super) fn judge(&mut self) -> Check {
        for number in 0..self.machines.len() {
            let Some(engine) = &self.machines[number].engine else { continue };
            self.oracle.compare(number, &engine.eye)?;
            spools::none_left(number, &engine.eye)?;
            self.look(number, Moment::Final)?;
        }
        let Some(first) = &self.machines[0].engine else { return Ok(()) };
        if matches!(self.oracle.shapes, Shapes::BuiltIn) {
            self.oracle.seats.judge(&first.eye)?;
        }
        let digest = first.reader.digest().map_err(unreadable(0))?;
        for (number, machine) in self.machines.iter().enumerate() {
            let Some(engine) = &machine.engine else { continue };
            let reader = &engine.eye;
            let logs = &self.oracle.logs;
            schema::same([0, number], [&first.eye, reader])?;
            convergence::same_rows(
                [0, number],
                [&first.eye, reader],
                logs.shadow(0),
                self.oracle.shapes,
            )?;
            if engine.reader.digest().map_err(unreadable(number))? != digest {
                return broken(
                    Promise::Convergence,
                    format!("m0 and m{number} hold the same rows, but their digests differ"),
                );
            }
            if matches!(self.oracle.shapes, Shapes::BuiltIn) {
                self.oracle.requests.judge(number, reader)?;
            }
            self.oracle.jobs.judge(number, reader, |dot| logs.holds(number, dot))?;
            if matches!(self.stage, Stage::Over)
                && !machine.plan.read_only
                && !logs.shadow(number).heads().is_empty()
                && let Some((id, _)) = self.application.last_job(number)
            {
                self.oracle.jobs.judge_mark(id)?;
            }
        }
        self.close_all()
    }

    pub(super) fn close_all(&mut self) -> Check {
        for number in 0..self.machines.len() {
            let closing = self.machines[number].clock.at(self.now);
            if let Some(engine) = self.machines[number].engine.take() {
                drop((engine.held, engine.reader, engine.eye, engine.passer));
                engine.replica.close(closing).1.map_err(unreadable(number))?;
            }
            let path = self.machines[number].database();
            let failed = unreadable(number);
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
            let plain =
                Connection::open_with_flags_and_vfs(path, flags, vfs::NAME).map_err(&failed)?;
            // A merged row may break a CHECK; that it is listed was compared before.
            plain.pragma_update(None, "ignore_check_constraints", true).map_err(&failed)?;
            let verdict: String =
                plain.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(&failed)?;
            if verdict != "ok" {
                return broken(
                    Promise::Availability,
                    format!("the file of m{number} is damaged: {verdict}"),
                );
            }
            let orphans: i64 = plain
                .query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))
                .map_err(&failed)?;
            if !self.oracle.logs.shadow(number).tables.is_empty() {
                self.application.inspect(number, &plain)?;
            }
            if orphans != 0 {
                return broken(Promise::Atomicity, format!("m{number} holds {orphans} orphans"));
            }
        }
        Ok(())
    }
}

/// What a replica compares at present.
fn comparing(status: &Status) -> String {
    let Verification { running, with, table, rows, .. } = &status.verification;
    if !running {
        return String::new();
    }
    format!("comparing {table:?} with {with:?} behind {rows} rows, ")
}

/// How many entries of a log hold something else than a frontier.
fn entries_of_note(reader: &Connection) -> rusqlite::Result<usize> {
    let mut query = reader.prepare_cached("SELECT bytes FROM littoral_log")?;
    let entries: Vec<Vec<u8>> = query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let is_frontier = |bytes: &Vec<u8>| {
        Entry::decode(bytes).is_ok_and(|entry| {
            entry.segments().all(|segment| matches!(segment, Ok(Segment::Frontier { .. })))
        })
    };
    Ok(entries.iter().filter(|bytes| !is_frontier(bytes)).count())
}
