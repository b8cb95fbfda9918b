//! [`Application`]: what runs on a cluster: whose schema, which clients, and what readers may see.
//!
//! Machines, network, disks, clocks and faults are the same for every application. There are two:
//! [`BuiltIn`], the simulator's own, and [`scenario::Tenant`](crate::scenario::Tenant), a user's.

use std::{collections::BTreeMap, fmt};

use littoral::{Committed, TablePolicy, WriteError};
use rusqlite::Connection;

use crate::{
    chance::{Chance, Stream},
    clock::{MS, Nanos},
    oracle::{Check, Oracle, Promise, broken, sights},
    scenario::{BlockCounts, Violation},
    workload::{self, Failed, Habits, JobId, PlannedJob},
    world::Options,
};

/// A client that comes.
#[derive(Debug)]
pub(crate) struct Visit {
    /// Where its jobs are queued.
    pub(crate) machine: usize,
    /// Its jobs; none if it found its machine down.
    pub(crate) jobs: Vec<(JobId, PlannedJob)>,
    /// When it comes again, from now.
    pub(crate) again: Option<Nanos>,
}

/// What a client hears of a job that was sent to the origin.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Forwarded<'f> {
    /// It is done.
    Done,
    /// It has failed there.
    Failed(&'f Failed),
    /// The origin could not be reached, and nothing was run.
    OutOfReach,
    /// No answer came in time.
    Unanswered,
}

/// When a reader looks at a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moment {
    /// Things are under way.
    Passing,
    /// All machines are up and have applied the same entries.
    Converged,
    /// Clients and faults have ended, and everything has settled.
    Final,
}

/// A reader that looks at a machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight<'c> {
    /// Which machine.
    pub(crate) machine: usize,
    /// When.
    pub(crate) at: Nanos,
    /// At what moment of the run.
    pub(crate) moment: Moment,
    /// A read-only connection.
    pub(crate) reader: &'c Connection,
}

/// What runs on a cluster.
pub(crate) trait Application: fmt::Debug {
    /// The text of `schema.sql` and the policies that belong to it.
    fn schema(&self) -> (String, BTreeMap<String, TablePolicy>);

    /// A job of the origin's that everybody must have before clients and faults begin; nothing once it
    /// was answered.
    fn preparation(&self) -> Option<(JobId, PlannedJob)> {
        None
    }

    /// Clients and faults begin. Returns when clients come for the first time, from now, by number.
    fn begin(&mut self, now: Nanos) -> Vec<Nanos>;

    /// A client comes.
    fn visit(&mut self, client: usize, is_up: &dyn Fn(usize) -> bool) -> Visit;

    /// A job was answered.
    fn answered(&mut self, _id: JobId, _result: &Result<Committed, WriteError>) -> Check {
        Ok(())
    }

    /// What became of a job that the origin was to do for a machine.
    fn forwarded(&mut self, _id: JobId, _told: Forwarded<'_>) {}

    /// A machine stopped before it had answered a job.
    fn unanswered(&mut self, _id: JobId) {}

    /// Whether it must know when machines have applied the same entries.
    fn waits_for_convergence(&self) -> bool {
        false
    }

    /// A reader looks at a machine.
    fn look(&mut self, sight: Sight<'_>) -> Check;

    /// Looks at the file of a machine that was closed in the end.
    fn inspect(&self, _machine: usize, _file: &Connection) -> Check {
        Ok(())
    }

    /// A job that must succeed on a healthy machine after everything has settled.
    fn last_job(&self, _machine: usize) -> Option<(JobId, PlannedJob)> {
        None
    }

    /// Adds to a violation what led to it.
    fn explain(&self, _violation: &mut Violation, _oracle: &Oracle) {}

    /// What became of each kind of call.
    fn counts(&self) -> Vec<BlockCounts> {
        Vec::new()
    }

    /// What machines are called, for people; `m0` and so on if it names none.
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    /// What clients will do, for the trace.
    fn describe(&self) -> String;
}

/// Jobs that are queued at one machine at one time.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    at: Nanos,
    machine: usize,
    /// The number of the first.
    first: JobId,
    count: u64,
}

/// The numbers of changes of the schema begin here.
const CHANGES: JobId = 800_000;

/// The numbers of the last jobs begin here.
const MARKS: JobId = 900_000;

/// The simulator's own schema and jobs. Every client comes once.
#[derive(Debug)]
pub(crate) struct BuiltIn {
    chance: Chance,
    habits: Habits,
    arrivals: Vec<Arrival>,
    /// When the origin changes the schema.
    changes: Vec<Nanos>,
}

impl BuiltIn {
    /// Draws what clients do.
    pub(crate) fn new(chance: &Chance, options: &Options) -> Self {
        Self {
            chance: chance.clone(),
            habits: Habits::draw(&mut chance.draw(Stream::World, 1, 0)),
            arrivals: arrivals(chance, options),
            changes: workload::schema_change_times(chance, options.chaos),
        }
    }
}

impl Application for BuiltIn {
    fn schema(&self) -> (String, BTreeMap<String, TablePolicy>) {
        (workload::SCHEMA.to_owned(), workload::policies())
    }

    fn begin(&mut self, _now: Nanos) -> Vec<Nanos> {
        let arrivals = self.arrivals.iter().map(|arrival| arrival.at);
        arrivals.chain(self.changes.iter().copied()).collect()
    }

    fn visit(&mut self, client: usize, is_up: &dyn Fn(usize) -> bool) -> Visit {
        let Some(arrival) = self.arrivals.get(client) else {
            let number = (client - self.arrivals.len()) as u64;
            let job =
                is_up(0).then(|| (CHANGES + number, PlannedJob::change(&self.chance, number)));
            return Visit { machine: 0, jobs: job.into_iter().collect(), again: None };
        };
        let machine = arrival.machine;
        let ids = arrival.first..arrival.first + arrival.count;
        let jobs = ids
            .filter(|_| is_up(machine))
            .map(|id| (id, PlannedJob::draw(&self.chance, &self.habits, id, machine)));
        Visit { machine, jobs: jobs.collect(), again: None }
    }

    fn look(&mut self, sight: Sight<'_>) -> Check {
        sights::look(sight.machine, sight.reader)
    }

    fn inspect(&self, machine: usize, file: &Connection) -> Check {
        let words = "INSERT INTO memo_words (memo_words, rank) VALUES ('integrity-check', 1)";
        if let Err(error) = file.execute(words, []) {
            let what = format!("the full-text index of m{machine}: {error}");
            return broken(Promise::Convergence, what);
        }
        Ok(())
    }

    fn last_job(&self, machine: usize) -> Option<(JobId, PlannedJob)> {
        let id = MARKS + machine as u64;
        Some((id, PlannedJob::mark(&self.chance, &self.habits, id, machine)))
    }

    fn describe(&self) -> String {
        format!("{} arrivals, {} changes of the schema", self.arrivals.len(), self.changes.len())
    }
}

fn arrivals(chance: &Chance, options: &Options) -> Vec<Arrival> {
    let nodes = options.machines(chance);
    let mut rate = chance.draw(Stream::Arrival, 0, 0);
    let gap = rate.spread(25 * MS, 200 * MS);
    let bursts = rate.percent(70);
    let mut arrivals = Vec::new();
    let (mut at, mut first) = (50 * MS, workload::FIRST_JOB);
    for index in 0.. {
        let mut draw = chance.draw(Stream::Arrival, 1, index);
        at += draw.between(1, 2 * gap);
        if at >= options.chaos {
            break;
        }
        let machine = draw.index(nodes);
        let count = if bursts && draw.percent(30) { draw.between(2, 6) } else { 1 };
        arrivals.push(Arrival { at, machine, first, count });
        first += count;
    }
    arrivals
}
