//! Faults that strike, machines that stop and start.
//!
//! A machine that stops in the middle of something has its disk stopped first; what its process would
//! still do on the way out is void.

use littoral::VersionVector;
use rusqlite::{Connection, OpenFlags};

use super::{Cluster, Event, PATIENCE};
use crate::{
    chance::Stream,
    clock::{MS, Nanos, WallClock},
    disk::vfs,
    fault::{Fault, Stop},
    machine::{StopPlan, genesis, node},
    network::Whose,
    oracle::{Check, Promise, broken, sights, unreadable},
};

impl Cluster {
    pub(super) fn strike(&mut self, fault: Fault) -> Check {
        match fault {
            Fault::Crash { machine: number, stop, after_changes, down, again_after, clock } => {
                let machine = &mut self.machines[number];
                if machine.engine.is_none() || machine.stopping.is_some() {
                    return Ok(());
                }
                machine.stopping = Some(StopPlan { stop, down, again_after, clock });
                let life = machine.life;
                match after_changes {
                    None => return self.stop(number),
                    Some(changes) => {
                        vfs::with(|store| store.stop_after(&machine.name, changes));
                        self.schedule(
                            self.now + PATIENCE,
                            Event::ForceStop { machine: number, life },
                        );
                    }
                }
            }
            Fault::Cut { link, down } => self.cut(link, down),
            Fault::Block { link, from, length } => {
                self.note(self.world.links[link].ends[from], "block", || format!("link {link}"));
                self.network.block(self.now, link, from, self.now + length);
            }
            Fault::Partition { group, length, silent } => {
                self.note(0, "parted", || format!("{group:?} silent {silent}"));
                for link in 0..self.world.links.len() {
                    let [a, b] = self.world.links[link].ends;
                    if group[a] == group[b] {
                        continue;
                    }
                    if silent {
                        self.network.block(self.now, link, 0, self.now + length);
                        self.network.block(self.now, link, 1, self.now + length);
                    } else {
                        self.cut(link, length);
                    }
                }
            }
            Fault::ClockJump { machine, clock } => {
                self.note(machine, "clock", || format!("{clock:?}"));
                self.set_clock(machine, clock);
            }
            Fault::DiskFull { machine, length } => {
                self.note(machine, "full", String::new);
                vfs::with(|store| store.set_full(&self.machines[machine].name, true));
                self.schedule(self.now + length, Event::SpaceReturns { machine });
            }
            Fault::SlowDisk { machine, sync, length } => {
                self.machines[machine].slow = (self.now + length, sync);
            }
            Fault::ForeignWrite { machine } => self.write_foreign(machine)?,
            Fault::SyncFails { machine } => {
                let machine = &mut self.machines[machine];
                machine.sync_fails = machine.engine.is_some() && machine.stopping.is_none();
            }
        }
        Ok(())
    }

    /// Another program writes a machine's file, and the replica must notice.
    fn write_foreign(&mut self, number: usize) -> Check {
        let held = self.is_writer_held(number);
        let machine = &mut self.machines[number];
        let Some(engine) = machine.engine.as_ref().filter(|_| machine.stopping.is_none()) else {
            return Ok(());
        };
        // Who writes at the same time waits for others, which programs do that are on their own.
        if held || vfs::with(|store| store.is_full(&machine.name)) {
            return Ok(());
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let written = Connection::open_with_flags_and_vfs(machine.database(), flags, vfs::NAME)
            .and_then(|conn| {
                conn.execute_batch(
                    "PRAGMA wal_autocheckpoint = 0; PRAGMA busy_timeout = 0;
                     INSERT OR REPLACE INTO littoral_meta VALUES('foreign', random())",
                )
            });
        written.map_err(unreadable(number))?;
        machine.foreign = true;
        let noticed = engine.replica.status().foreign.is_some();
        self.note(number, "foreign", || format!("noticed {noticed}"));
        if noticed {
            return Ok(());
        }
        let what = format!("another program wrote the file of m{number}, and it did not notice");
        broken(Promise::Answers, what)
    }

    pub(super) fn cut(&mut self, link: usize, down: Nanos) {
        self.note(self.world.links[link].ends[0], "cut", || format!("link {link}"));
        self.network.links[link].down_until = self.now + down;
        for conn in self.network.connections(Whose::Link(link)) {
            for (port, at) in self.network.cut(self.now, conn) {
                self.schedule(at, Event::LinkDown { port });
            }
        }
        self.reconnect(link);
    }

    /// The machine stops as planned: now, or it has just done so in the middle of something.
    pub(super) fn stop(&mut self, number: usize) -> Check {
        let now = self.now;
        let machine = &mut self.machines[number];
        let plan = machine.stopping.take().unwrap_or(StopPlan {
            stop: Stop::Kill,
            down: MS,
            again_after: None,
            clock: None,
        });
        let Some(engine) = machine.engine.take() else { return Ok(()) };
        let name = machine.name.clone();
        self.tally.stops += 1;
        vfs::forget_after_writes();
        // What its readers have seen until now is what may be lost.
        self.oracle.refresh(number, &engine.eye)?;
        machine.durable_told = engine.replica.status().durable;
        let acknowledged = self.heard_from(number);
        let machine = &mut self.machines[number];
        machine.acknowledged = acknowledged;
        if plan.stop == Stop::Clean {
            let closing = machine.clock.at(now);
            drop((engine.held, engine.reader, engine.eye, engine.passer));
            let (outputs, closed) = engine.replica.close(closing);
            if !vfs::with(|store| store.is_full(&name)) {
                closed.map_err(unreadable(number))?;
            }
            for output in outputs {
                self.carry_out(number, output)?;
            }
            self.try_restored(number)?;
            vfs::with(|store| store.stop(&name));
        } else {
            // What the process would still do on its way out does not reach the disk.
            vfs::with(|store| store.stop(&name));
            drop(engine);
        }
        for (port, at) in self.network.crash(now, number) {
            self.schedule(at, Event::LinkDown { port });
        }
        let mut lost = false;
        if plan.stop == Stop::PowerCut {
            let life = self.machines[number].life;
            let mut draw = self.chance.draw(Stream::PowerCut, number as u64, life);
            lost = vfs::with(|store| store.cut_power(&name, &mut draw));
            self.tally.losses += u64::from(lost);
        }
        let machine = &mut self.machines[number];
        machine.power_was_cut |= plan.stop == Stop::PowerCut;
        machine.life += 1;
        machine.talks.clear();
        self.errands_lost(number);
        let machine = &mut self.machines[number];
        for id in std::mem::take(&mut machine.tickets).into_values() {
            self.application.unanswered(id);
        }
        machine.syncing = false;
        machine.sync_wanted = None;
        machine.wake_at = None;
        machine.sync_fails = false;
        machine.may_halt = false;
        machine.foreign = false;
        machine.snapshot_work.clear();
        // Until it has started, this plan says how it stops the next time.
        machine.stopping = plan.again_after.map(|_| StopPlan { clock: None, ..plan });
        let life = machine.life;
        if let Some(clock) = plan.clock {
            self.set_clock(number, clock);
        }
        let changes = vfs::with(|store| store.changes(&name));
        self.trace.event(now, number, "stop", &[changes, u64::from(lost)], &[], || {
            format!("{:?}, down for {} ms, lost {lost}", plan.stop, plan.down / MS)
        });
        self.schedule(now + plan.down, Event::Start { machine: number, life });
        Ok(())
    }

    pub(super) fn set_clock(&mut self, number: usize, clock: WallClock) {
        self.machines[number].clock = clock;
        if number == 0 {
            self.oracle.clocks.set(self.now, clock);
        }
    }

    pub(super) fn start(&mut self, number: usize) -> Check {
        let machine = &mut self.machines[number];
        let name = machine.name.clone();
        let again = machine.stopping.take();
        vfs::with(|store| {
            store.start(&name);
            if let Some(changes) = again.and_then(|plan| plan.again_after) {
                store.stop_after(&name, changes);
            }
        });
        machine.stopping = again.map(|plan| StopPlan { again_after: None, ..plan });
        let seed = self.chance.draw(Stream::Engine, number as u64, machine.life).word();
        let plans = self.world.machines.iter().enumerate();
        let members: Vec<usize> =
            plans.filter(|(_, plan)| !plan.joins).map(|(number, _)| number).collect();
        let genesis = (number == 0).then(|| genesis(&members, &*self.application));
        let opened = machine.open(self.now, genesis, seed);
        let down = vfs::with(|store| store.is_down(&name));
        let engine = match opened {
            Ok(engine) => engine,
            Err(_) if down => return self.stop_while_starting(number),
            Err(_) if vfs::with(|store| store.is_full(&name)) => {
                let life = self.machines[number].life;
                vfs::with(|store| store.stop(&name));
                self.schedule(self.now + 100 * MS, Event::Start { machine: number, life });
                return Ok(());
            }
            Err(error) => {
                return broken(
                    Promise::Availability,
                    format!("m{number} does not open after its stop: {error}"),
                );
            }
        };
        self.machines[number].engine = Some(engine);
        self.opened_snapshot(number)?;
        if down {
            return self.stop(number);
        }
        let power_cut = std::mem::take(&mut self.machines[number].power_was_cut);
        self.note(number, "start", || "up".to_owned());
        for (other, machine) in self.machines.iter().enumerate() {
            if let Some(engine) = &machine.engine
                && other != number
                && power_cut
            {
                self.oracle.refresh(other, &engine.eye)?;
            }
        }
        if let Some(engine) = &self.machines[number].engine {
            let told = self.machines[number].durable_told;
            let reader = &engine.eye;
            if sights::log_end(number, reader)?.cast_unsigned() < told.0 {
                return broken(
                    Promise::Durability,
                    format!(
                        "m{number} called its log durable up to LSN {told}, and lost a part of that"
                    ),
                );
            }
            let full = self.machines[number].plan.full;
            self.oracle.restarted(number, full, power_cut, reader)?;
            // What is read again was judged when it was new.
            self.oracle.logs.take_news();
            let logs = &self.oracle.logs;
            let mut told = self.machines[number].acknowledged.iter();
            if let Some(dot) = told.find(|dot| !logs.holds(number, *dot)) {
                return broken(
                    Promise::DurableFirst,
                    format!("m{number} acknowledged {dot} to a peer, and lost it in a power cut"),
                );
            }
        }
        if self.machines[number].stopping.is_some() {
            let life = self.machines[number].life;
            self.schedule(self.now + PATIENCE, Event::ForceStop { machine: number, life });
        }
        for link in 0..self.world.links.len() {
            if self.world.links[link].ends.contains(&number) {
                self.reconnect(link);
            }
        }
        self.drain(number)
    }

    /// What the others know to be durable at a machine.
    fn heard_from(&self, number: usize) -> VersionVector {
        let mut heard = VersionVector::new();
        let name = node(number);
        for engine in self.machines.iter().filter_map(|machine| machine.engine.as_ref()) {
            for peer in engine.replica.status().peers.iter().filter(|peer| peer.node == name) {
                heard.advance_all(&peer.acknowledged);
            }
        }
        heard
    }

    /// The machine went down before its replica was open.
    pub(super) fn stop_while_starting(&mut self, number: usize) -> Check {
        let machine = &mut self.machines[number];
        let plan = machine.stopping.take();
        machine.life += 1;
        let (life, name) = (machine.life, machine.name.clone());
        if plan.is_some_and(|plan| plan.stop == Stop::PowerCut) {
            machine.power_was_cut = true;
            let mut draw = self.chance.draw(Stream::PowerCut, number as u64, life);
            vfs::with(|store| store.cut_power(&name, &mut draw));
        }
        self.note(number, "stop", || "while it was starting".to_owned());
        self.schedule(self.now + MS, Event::Start { machine: number, life });
        Ok(())
    }
}
