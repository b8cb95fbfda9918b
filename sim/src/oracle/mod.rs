//! [`Oracle`]: watches every machine and says when a promise is broken.
//!
//! It reads what any application could read, and the log; it trusts nothing that the engine says of
//! itself. Each promise has its file:
//!
//! - [`logs`]: logs are causal and never fork, and only what is durable leaves a machine;
//! - [`shadow`]: rows and conflicts are those that the merge rules lead to;
//! - [`jobs`]: what was answered is true and stays true;
//! - [`requests`]: what clients had run at the origin ran once, and they were told the truth;
//! - [`linear`], [`seats`]: an `origin-strong` table has one history, whoever reads and writes it where;
//! - [`references`]: foreign keys hold after every entry;
//! - [`sights`]: readers see whole transactions;
//! - [`spools`]: large entries are kept whole, and nothing else of them;
//! - [`schema`]: tables, policies and freezes are what the log says;
//! - [`clocks`]: nothing from the future is taken, and nobody writes it for long;
//! - [`sessions`], [`wanderers`]: who moves between machines reads nothing older than before;
//! - [`links`]: links end for a reason;
//! - [`staleness`]: nobody's rows are older than they say;
//! - [`convergence`]: in the end everybody holds the same;
//! - [`recording`]: no promise, but what happened to which row, to explain a violated invariant.

pub(crate) mod clocks;
pub(crate) mod convergence;
pub(crate) mod jobs;
pub(crate) mod keys;
pub(crate) mod linear;
pub(crate) mod links;
pub(crate) mod logs;
pub(crate) mod recording;
pub(crate) mod references;
pub(crate) mod requests;
pub(crate) mod schema;
pub(crate) mod seats;
pub(crate) mod sessions;
pub(crate) mod shadow;
pub(crate) mod shapes;
pub(crate) mod sights;
pub(crate) mod spools;
pub(crate) mod staleness;
pub(crate) mod wanderers;

use std::fmt;

use rusqlite::Connection;

use self::{
    clocks::Clocks, jobs::Jobs, links::Links, logs::Logs, requests::Requests, seats::Seats,
    sessions::Sessions, shapes::Shapes, wanderers::Wanderers,
};
use crate::scenario::Violation;

/// How a run can fail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// A promise was broken.
    Broken {
        /// Which one.
        promise: Promise,
        /// How.
        what: String,
    },
    /// The engine, or the simulator, panicked.
    Crash(String),
    /// What must happen in the end does not.
    NoProgress(String),
    /// An invariant of a user's scenario does not hold.
    Violated(Box<Violation>),
}

/// What the engine promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Promise {
    /// Replicas that have applied the same entries hold the same rows.
    Convergence,
    /// An answered write survives what its machine promised that it survives.
    Durability,
    /// Only what is on stable storage leaves a machine.
    DurableFirst,
    /// Entries are ordered as they caused each other, and no author's sequence forks.
    Causality,
    /// Rows are what the merge rules make of the entries.
    Merge,
    /// Discarded concurrent values are listed, and only these.
    Conflicts,
    /// Counters are the sums of their increments, deleted rows stay deleted.
    Exactness,
    /// A transaction is visible whole or not at all.
    Atomicity,
    /// Answers are true.
    Answers,
    /// An `origin-strong` table has one history, whoever reads and writes it where.
    Linearizability,
    /// What is sent to the origin runs once, and what is told of it is true.
    ExactlyOnce,
    /// A run is a function of its seed.
    Determinism,
    /// A cluster without writes writes nothing.
    Silence,
    /// A file opens after any crash, and a healthy replica goes on.
    Availability,
    /// What is kept stays within its bounds.
    Bounds,
    /// Nothing from the future is applied, and what nodes believe of the origin's clock is true.
    Clocks,
    /// A session that carries its bookmark reads nothing older than it wrote or read.
    Sessions,
    /// Rows are no older than a machine says.
    Staleness,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Convergence => "convergence",
            Self::Durability => "durability",
            Self::DurableFirst => "durable before sent",
            Self::Causality => "causality",
            Self::Merge => "merge",
            Self::Conflicts => "conflicts",
            Self::Exactness => "exactness",
            Self::Atomicity => "atomicity",
            Self::Answers => "answers",
            Self::Linearizability => "linearizability",
            Self::ExactlyOnce => "exactly once",
            Self::Determinism => "determinism",
            Self::Silence => "silence",
            Self::Availability => "availability",
            Self::Bounds => "bounds",
            Self::Clocks => "clocks",
            Self::Sessions => "sessions",
            Self::Staleness => "staleness",
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken { promise, what } => write!(f, "broken promise ({promise}): {what}"),
            Self::Crash(what) => write!(f, "crash: {what}"),
            Self::NoProgress(what) => write!(f, "no progress: {what}"),
            Self::Violated(violation) => write!(f, "{violation}"),
        }
    }
}

/// The verdict of one check.
pub(crate) type Check<T = ()> = Result<T, Failure>;

/// A broken promise.
pub(crate) fn broken<T>(promise: Promise, what: impl Into<String>) -> Check<T> {
    Err(Failure::Broken { promise, what: what.into() })
}

/// A query of the oracle's own failed: the file is not readable.
pub(crate) fn unreadable(machine: usize) -> impl Fn(rusqlite::Error) -> Failure {
    move |error| Failure::Broken {
        promise: Promise::Availability,
        what: format!("m{machine} cannot be read: {error}"),
    }
}

/// Everything that is watched.
#[derive(Debug)]
pub(crate) struct Oracle {
    /// What stands in the logs.
    pub(crate) logs: Logs,
    /// What time it was at the origin.
    pub(crate) clocks: Clocks,
    /// What was asked and answered.
    pub(crate) jobs: Jobs,
    /// What the origin was asked.
    pub(crate) requests: Requests,
    /// What was done with the rows of an `origin-strong` table.
    pub(crate) seats: Seats,
    /// Clients that move between machines.
    pub(crate) sessions: Sessions,
    pub(crate) wanderers: Wanderers,
    /// Which links were closed why.
    pub(crate) links: Links,
    /// Who knows how tables are read.
    pub(crate) shapes: Shapes,
}

impl Oracle {
    /// Begins to watch.
    pub(crate) fn new(machines: usize, shapes: Shapes, recording: bool) -> Self {
        Self {
            logs: Logs::new(machines, shapes, recording),
            clocks: Clocks::default(),
            jobs: Jobs::default(),
            requests: Requests::default(),
            seats: Seats::default(),
            sessions: Sessions::default(),
            wanderers: Wanderers::default(),
            links: Links::default(),
            shapes,
        }
    }

    /// Takes what is new in a machine's log.
    pub(crate) fn refresh(&mut self, machine: usize, reader: &Connection) -> Check {
        self.logs.refresh(machine, reader)
    }

    /// Compares a machine's rows with the shadow's.
    pub(crate) fn compare(&mut self, machine: usize, reader: &Connection) -> Check {
        self.refresh(machine, reader)?;
        schema::follows_log(machine, reader, self.logs.shadow(machine))?;
        convergence::rows_follow_log(machine, reader, self.logs.shadow(machine), self.shapes)?;
        convergence::conflicts_follow_log(machine, reader, self.logs.shadow(machine))
    }

    /// A machine has started again: finds out what its log has lost, and whether that was allowed.
    pub(crate) fn restarted(
        &mut self,
        machine: usize,
        full: bool,
        power_cut: bool,
        reader: &Connection,
    ) -> Check {
        let lost = self.logs.reopened(machine, power_cut, reader)?;
        if machine == 0 && !full && !lost.is_empty() {
            self.seats.rolled_back(reader)?;
        }
        for dot in lost {
            self.jobs.lost(dot)?;
            self.sessions.lost(dot)?;
            self.wanderers.lost(dot);
            self.requests.lost(dot);
        }
        self.refresh(machine, reader)
    }
}
