//! [`Cluster`]: machines, network and clock, stepped by one event queue.
//!
//! ```text
//!   world (from the seed): jobs, faults ─┐
//!   network: frames, cuts ───────────────┼─► queue ─► event ─► Replica::handle ─► poll ─┐
//!   machines: syncs, wake-ups, restarts ─┘     ▲                                        │
//!                                              └───────── outputs become events ◄───────┘
//! ```
//!
//! A run has up to four stages: what the application wants to be there first is written and must be
//! everywhere; chaos; then clients and faults end, and everything must settle; then every machine
//! writes once more, which must succeed and settle too.
//!
//! Invariants:
//! - every input is followed by a full drain; what a machine puts out after it has stopped is void;
//! - time moves only from event to event; idle time costs nothing.

mod calls;
mod checkpoints;
mod contract;
mod crashes;
mod decay;
mod ending;
mod forwarded;
mod guests;
mod links;
mod requests;
mod sessions;
mod snapshots;
mod talks;
mod wanderers;

pub(crate) use self::{calls::UnderWay, guests::Move, requests::Errands, talks::Open};

use std::{collections::BTreeMap, rc::Rc};

use littoral::{Channel, Input, Lsn, RequestId, Ticket};

use self::{calls::Callers, guests::Visitor, requests::Client, wanderers::Wanderer};
use crate::{
    application::{Application, BuiltIn, Moment, Sight},
    chance::{Chance, Stream},
    clock::{MS, Nanos, SECOND},
    disk::vfs,
    fault::Stop,
    machine::{Machine, StopPlan, node},
    network::{Arrival, Network, Port},
    oracle::{
        Check, Failure, Oracle, Promise, broken, jobs::JobCounts, shapes::Shapes, sights, spools,
        unreadable,
    },
    scenario::{BlockCounts, Tenant},
    trace::Trace,
    workload::{JobId, PlannedJob, RequestNumber},
    world::{Options, World},
};

/// A run with more events than this is going in circles.
const EVENTS_PER_RUN: u64 = 4_000_000;

/// Peers ask each other for signs of life, and for what is new, also while nothing happens.
const EVENTS_PER_SILENT_SECOND: u64 = 1000;

/// After the faults have ended, everything settles within this time: a slow link of 27 kB a second may
/// have megabytes of large entries to carry.
const SETTLE_WITHIN: Nanos = 900 * SECOND;

/// How often it is looked whether everything has settled.
const CHECK_EVERY: Nanos = 250 * MS;

/// A machine that should stop in the middle of something, and does nothing, stops after this time.
const PATIENCE: Nanos = 300 * MS;

/// Something that will happen.
#[derive(Clone, Copy, Debug)]
enum Event {
    Arrive { port: Port, channel: Channel },
    LinkUp { port: Port },
    LinkDown { port: Port },
    Connect { link: usize },
    Wake { machine: usize, life: u64 },
    SyncEnd { machine: usize, life: u64, lsn: Lsn, mark: Option<u64> },
    Checkpoint { machine: usize, life: u64 },
    Checkpointed { machine: usize, life: u64 },
    SnapshotWork { machine: usize, life: u64 },
    Visit { client: usize },
    Talk { machine: usize, life: u64, ticket: Ticket },
    Request { request: RequestNumber },
    Call { caller: usize },
    Wander { wanderer: usize },
    RunProgram { machine: usize, life: u64, request: RequestId },
    Guest { request: RequestNumber },
    HostGuest { machine: usize, life: u64, request: RequestId },
    EndGuest { machine: usize, life: u64, ticket: Ticket },
    Strike { fault: usize },
    ForceStop { machine: usize, life: u64 },
    Start { machine: usize, life: u64 },
    SpaceReturns { machine: usize },
    Probe { machine: usize, count: u64 },
    Heal,
    CheckSettled,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Preparing {
        deadline: Nanos,
    },
    Chaos,
    Settling {
        deadline: Nanos,
    },
    Marked {
        deadline: Nanos,
    },
    /// Rows that a disk has lost are found and put back.
    Mending {
        deadline: Nanos,
    },
    /// Nothing is written any more: frontiers come until everything is stable and forgotten.
    Forgetting {
        deadline: Nanos,
    },
    /// And then nothing at all happens.
    Silent {
        until: Nanos,
    },
    Over,
}

/// What a run that has kept all promises amounts to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// How the jobs ended.
    pub(crate) jobs: JobCounts,
    /// Conflicts listed at the origin in the end.
    pub(crate) conflicts: u64,
    /// How often machines stopped.
    pub(crate) stops: u64,
    /// Power cuts that took something.
    pub(crate) losses: u64,
    /// What clients did with the rows of an `origin-strong` table, and were answered.
    pub(crate) strong_calls: u64,
    /// Changes of the schema and of policies.
    pub(crate) changes: u64,
    /// Freezes, and those that ended with the change that they waited for.
    pub(crate) freezes: [u64; 2],
    /// Connections made.
    pub(crate) connections: u64,
    /// Snapshots that became a machine's file.
    pub(crate) snapshots: u64,
}

/// One run.
#[derive(Debug)]
pub(crate) struct Cluster {
    chance: Chance,
    options: Options,
    application: Box<dyn Application>,
    world: World,
    /// Dropped before the session, so that files are closed while there are disks.
    machines: Vec<Machine>,
    /// Whoever has something run at the origin.
    clients: BTreeMap<RequestNumber, Client>,
    /// Whoever has a transaction there.
    visitors: BTreeMap<RequestNumber, Visitor>,
    /// Clients whose statements go where policies send them.
    callers: Callers,
    /// Clients that carry nothing from machine to machine.
    wanderers: Vec<Wanderer>,
    /// How many reads sessions have sent to the origin.
    sent_reads: u64,
    network: Network,
    oracle: Oracle,
    trace: Trace,
    queue: BTreeMap<(Nanos, u64, u64), Event>,
    queued: u64,
    /// How often anybody was drained.
    drains: u64,
    now: Nanos,
    stage: Stage,
    /// When clients and faults began.
    begun: Nanos,
    /// What everybody had applied, and how long logs were, when everything had become quiet.
    silence: Vec<(u64, i64)>,
    next_peer: u64,
    tally: Tally,
    _session: vfs::Session,
}

impl Cluster {
    /// Prepares the run of a seed.
    pub(crate) fn new(seed: u64, options: &Options) -> Self {
        let chance = Chance::of(seed);
        let session = vfs::Session::begin(&chance);
        let world = World::of(&chance, options);
        let (application, shapes): (Box<dyn Application>, Shapes) = match &options.scenario {
            None => (Box::new(BuiltIn::new(&chance, options)), Shapes::BuiltIn),
            Some(scenario) => {
                (Box::new(Tenant::new(Rc::clone(scenario), &chance, &world)), Shapes::Asked)
            }
        };
        let machines: Vec<Machine> = world
            .machines
            .iter()
            .enumerate()
            .map(|(number, plan)| Machine::new(number, *plan, &chance))
            .collect();
        Self {
            network: Network::new(chance.clone(), &world.links),
            oracle: Oracle::new(machines.len(), shapes, options.recording),
            trace: Trace::new(options.trace, application.names()),
            queue: BTreeMap::new(),
            queued: 0,
            drains: 0,
            now: 0,
            stage: Stage::Chaos,
            begun: 0,
            silence: Vec::new(),
            next_peer: 1,
            tally: Tally::default(),
            options: options.clone(),
            application,
            chance,
            world,
            machines,
            clients: BTreeMap::new(),
            visitors: BTreeMap::new(),
            callers: Callers::default(),
            wanderers: Vec::new(),
            sent_reads: 0,
            _session: session,
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub(crate) fn run(&mut self) -> Check {
        let mut verdict = self.run_through();
        if let Err(Failure::Violated(violation)) = &mut verdict {
            self.application.explain(violation, &self.oracle);
        }
        verdict
    }

    fn run_through(&mut self) -> Check {
        self.describe_world();
        self.oracle.clocks.set(0, self.machines[0].clock);
        for machine in 0..self.machines.len() {
            let mut draw = self.chance.draw(Stream::Clock, machine as u64, 1);
            let by_chance = if machine == 0 { 1 } else { draw.between(1, 2 * SECOND) };
            let delay = self.world.machines[machine].starts.unwrap_or(by_chance);
            self.schedule(delay, Event::Start { machine, life: 0 });
            self.schedule(delay + self.world.probe_every, Event::Probe { machine, count: 0 });
        }
        if self.application.preparation().is_some() {
            self.stage = Stage::Preparing { deadline: SETTLE_WITHIN };
            self.schedule(CHECK_EVERY, Event::CheckSettled);
        } else {
            self.begin();
        }
        let mut steps = 0;
        while self.stage != Stage::Over {
            let Some(((at, _, _), event)) = self.queue.pop_first() else {
                return Err(Failure::NoProgress("nothing is left to happen".to_owned()));
            };
            self.now = at;
            self.oracle.logs.at = at;
            steps += 1;
            if steps > EVENTS_PER_RUN + self.options.silence / SECOND * EVENTS_PER_SILENT_SECOND {
                return Err(Failure::NoProgress(format!(
                    "{steps} events and no end: {}",
                    self.waiting()
                )));
            }
            self.step(event)?;
        }
        self.judge()
    }

    /// Clients come, and faults strike.
    fn begin(&mut self) {
        self.stage = Stage::Chaos;
        self.begun = self.now;
        self.trace.begin(self.now);
        for (client, wait) in self.application.begin(self.now).into_iter().enumerate() {
            self.schedule(self.now + wait, Event::Visit { client });
        }
        for fault in 0..self.world.faults.len() {
            self.schedule(self.now + self.world.faults[fault].0, Event::Strike { fault });
        }
        self.plan_requests();
        self.plan_calls();
        self.plan_wanderers();
        self.plan_guests();
        self.schedule(self.now + self.options.chaos, Event::Heal);
    }

    /// How long the run was, in virtual time.
    pub(crate) const fn now(&self) -> Nanos {
        self.now
    }

    /// How many events there were.
    pub(crate) const fn events(&self) -> u64 {
        self.trace.events()
    }

    /// The hash of all events and of all files.
    pub(crate) fn hash(&self) -> String {
        self.trace.hash(|hasher| vfs::with(|store| store.hash_into(hasher)))
    }

    /// What became of each kind of call.
    pub(crate) fn counts(&self) -> Vec<BlockCounts> {
        self.application.counts()
    }

    /// What the run amounts to.
    pub(crate) fn tally(&self) -> Tally {
        Tally {
            jobs: self.oracle.jobs.counts(),
            conflicts: self.oracle.logs.shadow(0).conflicts.len() as u64,
            strong_calls: self.oracle.seats.count(),
            changes: self.oracle.logs.shadow(0).changes,
            freezes: self.oracle.logs.shadow(0).freezes(),
            ..self.tally
        }
    }

    fn describe_world(&mut self) {
        let world = &self.world;
        let text = format!(
            "{} of {} machines, {} links, {}, {} faults; FULL on {:?}",
            world.topology,
            world.machines.len(),
            world.links.len(),
            self.application.describe(),
            world.faults.len(),
            world.machines.iter().map(|plan| plan.full).collect::<Vec<_>>()
        );
        self.trace.event(0, 0, "world", &[], text.as_bytes(), || text.clone());
        if self.trace.is_printing() {
            for link in &world.links {
                self.trace.line(0, link.ends[0], "link", &format!("{link:?}"));
            }
        }
    }

    fn schedule(&mut self, at: Nanos, event: Event) {
        self.queued += 1;
        let tie = self.chance.draw(Stream::Tie, 0, self.queued).word();
        self.queue.insert((at, tie, self.queued), event);
    }

    fn note(&mut self, machine: usize, kind: &'static str, text: impl FnOnce() -> String) {
        self.trace.event(self.now, machine, kind, &[], &[], text);
    }

    // --- Events

    fn step(&mut self, event: Event) -> Check {
        match event {
            Event::Arrive { port, channel } => match self.network.arrive(self.now, port, channel) {
                Arrival::Gone => Ok(()),
                Arrival::Later(at) => {
                    self.schedule(at, Event::Arrive { port, channel });
                    Ok(())
                }
                Arrival::Frame { machine, peer, bytes } => {
                    self.trace.event(self.now, machine, "frame", &[peer.0], &bytes, || {
                        format!("{} bytes of {channel:?} on {peer:?}", bytes.len())
                    });
                    self.handle(machine, Input::Frame { peer, channel, bytes })
                }
            },
            Event::LinkUp { port } => {
                let Some(other) = self.network.opposite(port) else { return Ok(()) };
                let Some((machine, peer)) = self.network.open(self.now, port) else {
                    return Ok(());
                };
                self.trace.event(self.now, machine, "up", &[peer.0], &[], || {
                    format!("{peer:?} to m{other}")
                });
                self.handle(machine, Input::PeerUp { peer, node: node(other) })
            }
            Event::LinkDown { port } => {
                let link = self.network.link_of(port.conn);
                let known = self.network.notice(port);
                if let Some(link) = link {
                    self.reconnect(link);
                }
                let Some((machine, peer)) = known else { return Ok(()) };
                self.trace.event(self.now, machine, "down", &[peer.0], &[], || format!("{peer:?}"));
                self.handle(machine, Input::PeerDown { peer })
            }
            Event::Connect { link } => {
                self.connect(link);
                Ok(())
            }
            Event::Wake { machine, life } => {
                let due = self.machines[machine].wake_at.is_some_and(|at| at <= self.now);
                if self.machines[machine].life != life || !due {
                    return Ok(());
                }
                self.machines[machine].wake_at = None;
                self.handle(machine, Input::Wake)
            }
            Event::SyncEnd { machine, life, lsn, mark } => self.end_sync(machine, life, lsn, mark),
            Event::Checkpoint { machine, life } => self.checkpoint(machine, life),
            Event::Checkpointed { machine, life } => self.checkpointed(machine, life),
            Event::SnapshotWork { machine, life } => self.work_on_snapshot(machine, life),
            Event::Visit { client } => self.visit(client),
            Event::Talk { machine, life, ticket } => self.talk(machine, life, ticket),
            Event::Request { request } => self.request(request),
            Event::Call { caller } => self.call(caller),
            Event::Wander { wanderer } => self.wander(wanderer),
            Event::RunProgram { machine, life, request } => {
                self.run_program(machine, life, request)
            }
            Event::Guest { request } => self.guest_moves(request),
            Event::HostGuest { machine, life, request } => self.host_guest(machine, life, request),
            Event::EndGuest { machine, life, ticket } => self.end_guest(machine, life, ticket),
            Event::Strike { fault } => {
                let (_, fault) = self.world.faults[fault].clone();
                self.strike(fault)
            }
            Event::ForceStop { machine, life } => {
                if self.machines[machine].life == life && self.machines[machine].stopping.is_some()
                {
                    return self.stop(machine);
                }
                Ok(())
            }
            Event::Start { machine, life } => {
                if self.machines[machine].life == life && self.machines[machine].engine.is_none() {
                    return self.start(machine);
                }
                Ok(())
            }
            Event::SpaceReturns { machine } => {
                vfs::with(|store| store.set_full(&self.machines[machine].name, false));
                Ok(())
            }
            Event::Probe { machine, count } => self.probe(machine, count),
            Event::Heal => self.heal(),
            Event::CheckSettled => self.check_settled(),
        }
    }

    fn visit(&mut self, client: usize) -> Check {
        if self.stage != Stage::Chaos {
            return Ok(());
        }
        let machines = &self.machines;
        let visit = self.application.visit(client, &|machine| machines[machine].engine.is_some());
        if let Some(wait) = visit.again {
            self.schedule(self.now + wait, Event::Visit { client });
        }
        self.write(visit.machine, visit.jobs)
    }

    fn write(&mut self, number: usize, jobs: Vec<(JobId, PlannedJob)>) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else { return Ok(()) };
        let now = machine.clock.at(self.now);
        for (id, job) in jobs {
            let [freezes, _] = self.oracle.logs.shadow(number).freezes();
            self.oracle.jobs.queued(id, number, machine.plan.full, freezes, &job);
            self.trace
                .event(self.now, number, "job", &[id], &[], || format!("{id}: {}", job.describe()));
            if self.options.scenario.is_some() {
                machine.scripts.insert(id, job.script());
            }
            let (ticket, talk) = job.queue(&mut engine.replica, now);
            machine.tickets.insert(ticket, id);
            if let Some(talk) = talk {
                machine.talks.insert(ticket, Open::waiting(id, talk));
            }
        }
        self.drain(number)
    }

    fn end_sync(&mut self, number: usize, life: u64, lsn: Lsn, mark: Option<u64>) -> Check {
        let machine = &mut self.machines[number];
        if machine.life != life || machine.engine.is_none() {
            return Ok(());
        }
        machine.syncing = false;
        if std::mem::take(&mut machine.sync_fails) {
            machine.may_halt = true;
            let plan =
                StopPlan { stop: Stop::PowerCut, down: 200 * MS, again_after: None, clock: None };
            machine.stopping = Some(plan);
            self.schedule(self.now + PATIENCE, Event::ForceStop { machine: number, life });
            self.note(number, "sync", || "fails".to_owned());
            return self.handle(number, Input::SyncFailed("input/output error".to_owned()));
        }
        if let Some(mark) = mark {
            vfs::with(|store| store.end_sync(&machine.wal(), mark));
        }
        self.trace.event(self.now, number, "synced", &[lsn.0], &[], || format!("LSN {lsn}"));
        self.handle(number, Input::Synced(lsn))?;
        self.begin_sync(number);
        Ok(())
    }

    fn begin_sync(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        if machine.syncing || machine.engine.is_none() {
            return;
        }
        let Some(lsn) = machine.sync_wanted.take() else { return };
        machine.syncing = true;
        machine.syncs += 1;
        let length = machine.sync_length(self.now, &self.chance, number as u64);
        let mark = vfs::with(|store| store.begin_sync(&machine.wal()));
        let life = machine.life;
        self.schedule(self.now + length, Event::SyncEnd { machine: number, life, lsn, mark });
    }

    fn probe(&mut self, number: usize, count: u64) -> Check {
        if matches!(self.stage, Stage::Silent { .. }) {
            // Whatever there is to see then, is seen in the end.
            return Ok(());
        }
        let mut draw = self.chance.draw(Stream::Probe, number as u64, count + 1);
        let next =
            self.now + draw.between(self.world.probe_every / 2, self.world.probe_every * 3 / 2);
        self.schedule(next, Event::Probe { machine: number, count: count + 1 });
        let Some(engine) = &mut self.machines[number].engine else { return Ok(()) };
        if let Some((reader, seen)) = engine.held.take()
            && sights::log_length(number, reader.connection())? != seen
        {
            return broken(Promise::Atomicity, format!("a snapshot on m{number} changed"));
        }
        if draw.percent(self.world.long_readers)
            && let Ok(reader) = engine.replica.db().reader()
        {
            reader.connection().execute_batch("BEGIN").map_err(unreadable(number))?;
            let seen = sights::log_length(number, reader.connection())?;
            engine.held = Some((reader, seen));
        }
        if draw.percent(self.world.checkpoints) {
            let life = self.machines[number].life;
            self.schedule(
                self.now + draw.between(1, 20 * MS),
                Event::Checkpoint { machine: number, life },
            );
        }
        self.compare_at_random(number, count)?;
        let Some(engine) = &self.machines[number].engine else { return Ok(()) };
        if self.machines[number].decayed {
            return Ok(());
        }
        let reader = &engine.eye;
        spools::look(number, reader, &self.machines[number].plan.sizes)?;
        if draw.percent(20) {
            self.oracle.compare(number, reader)?;
        }
        self.oracle.refresh(number, reader)?;
        self.session_reads(number, &mut draw)?;
        self.look(number, Moment::Passing)
    }

    /// A reader of the application's looks at a machine.
    fn look(&mut self, number: usize, moment: Moment) -> Check {
        let moment = match moment {
            Moment::Passing if self.application.waits_for_convergence() && self.agrees() => {
                Moment::Converged
            }
            moment => moment,
        };
        let Some(engine) = &self.machines[number].engine else { return Ok(()) };
        let sight = Sight { machine: number, at: self.now, moment, reader: &engine.eye };
        self.application.look(sight)
    }
}
