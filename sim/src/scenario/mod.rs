//! [`Scenario`]: a user's own schema, policies, clients and invariants, run on the simulator's cluster.
//!
//! It is read from a TOML file (`file`) and the SQL that it names (`blocks`, `arguments`, `policies`),
//! tried out on a replica of its own (`rehearsal`), and then run seed by seed: `tenant` is the
//! [`Application`](crate::application::Application), `violation` what it finds, `story` what led there.
//! Machines, network, disks, clocks and faults are those of the built-in run.
//!
//! `docs/simulation.md` is the manual.

mod arguments;
mod blocks;
mod file;
mod key;
mod mistake;
mod policies;
mod rehearsal;
mod story;
mod tenant;
mod violation;

use std::{collections::BTreeMap, path::Path};

use littoral::TablePolicy;

use self::blocks::{Block, Statement};
pub(crate) use self::{
    mistake::Mistake,
    tenant::{BlockCounts, Tenant},
    violation::Violation,
};
use crate::{
    chance::{Chance, Stream},
    clock::{MS, Nanos},
    fault::{self, Fault, Kind},
    network::LinkPlan,
    world::{MachinePlan, Topology, World, pairs},
};

/// Everything that a scenario says.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its file, as it was named on the command line.
    pub(crate) file: String,
    schema_file: String,
    schema: String,
    policies: BTreeMap<String, TablePolicy>,
    /// What the origin writes before clients begin, as one transaction.
    setup: Vec<Statement>,
    /// Names; the first is the origin.
    pub(crate) nodes: Vec<String>,
    links: Links,
    /// How long clients write and faults happen.
    pub(crate) time: Nanos,
    /// Whether an answered commit is durable on every node.
    full: bool,
    /// About how long it is between two looks at one node.
    check_every: Nanos,
    crowds: Vec<Crowd>,
    /// Kinds of faults that may be drawn.
    random: Vec<Kind>,
    /// Faults of every run, by time since the clients began.
    faults: Vec<(Nanos, Fault)>,
    /// What must hold.
    pub(crate) invariants: Vec<Invariant>,
    /// The key columns of each table, as SQLite says.
    keys: BTreeMap<String, Vec<String>>,
}

/// Which links there are.
#[derive(Debug)]
enum Links {
    /// Drawn from the seed, as far as it is not told.
    Drawn { topology: Option<Topology>, latency: Option<(Nanos, Nanos)> },
    /// These.
    Told(Vec<LinkPlan>),
}

/// Clients that do the same.
#[derive(Debug)]
struct Crowd {
    name: String,
    blocks: Vec<Block>,
    clients: u32,
    /// Where they are; they are dealt to these machines in turn.
    at: Vec<usize>,
    /// How long each waits from call to call.
    think: (Nanos, Nanos),
}

/// When an invariant must hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum When {
    Always,
    Converged,
    Final,
}

/// Where an invariant must hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum On {
    Every,
    Node(usize),
}

/// A query that must return no row.
#[derive(Debug)]
pub(crate) struct Invariant {
    /// Its name.
    pub(crate) name: String,
    /// Where it stands, for mistakes.
    place: String,
    sql: String,
    when: When,
    on: On,
    /// The tables that it reads, as SQLite says.
    reads: Vec<String>,
}

impl Scenario {
    /// Reads a scenario and tries out everything that it says.
    ///
    /// # Errors
    /// What is wrong, where, and what to do about it.
    pub(crate) fn load(path: &Path) -> Result<Self, Mistake> {
        let mut scenario = file::load(path)?;
        rehearsal::rehearse(&mut scenario)?;
        Ok(scenario)
    }

    /// Expands a seed.
    pub(crate) fn world(&self, chance: &Chance) -> World {
        let mut draw = chance.draw(Stream::World, 0, 0);
        let drawn = *draw.pick(&[
            Topology::Star,
            Topology::Line,
            Topology::Ring,
            Topology::Tree,
            Topology::Mesh,
        ]);
        let (topology, links) = match &self.links {
            Links::Told(plans) => (Topology::Told, plans.clone()),
            Links::Drawn { topology, latency } => {
                let ends = match topology {
                    Some(Topology::Mesh) => every_pair(self.nodes.len()),
                    told => pairs(told.unwrap_or(drawn), self.nodes.len(), &mut draw),
                };
                let plan = |(index, ends)| {
                    let plan = LinkPlan::draw(chance, index, ends);
                    latency.map_or(plan, |(low, high)| LinkPlan {
                        latency: low,
                        jitter: high - low,
                        ..plan
                    })
                };
                (topology.unwrap_or(drawn), ends.into_iter().enumerate().map(plan).collect())
            }
        };
        let machines =
            self.nodes.iter().map(|_| MachinePlan::member(self.full, draw.spread(MS, 100 * MS)));
        let machines = machines.collect();
        let mut faults =
            fault::schedule(chance, self.nodes.len(), self.time, links.len(), &self.random);
        faults.extend(self.faults.iter().cloned());
        faults.sort_by_key(|(at, _)| *at);
        World {
            topology,
            links,
            machines,
            faults,
            probe_every: self.check_every,
            checkpoints: *draw.pick(&[0, 20, 60]),
            long_readers: *draw.pick(&[0, 0, 40]),
        }
    }
}

fn every_pair(nodes: usize) -> Vec<[usize; 2]> {
    (0..nodes).flat_map(|a| (a + 1..nodes).map(move |b| [a, b])).collect()
}
