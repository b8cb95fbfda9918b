//! [`World`]: what a seed makes of nodes, links, disks, clients and faults, before anything happens.

use std::{fmt, rc::Rc};

use littoral::limits::Sizes;

use crate::{
    chance::{Chance, Draw, Stream},
    clock::{MS, Nanos, SECOND},
    fault::{self, Fault},
    network::LinkPlan,
    scenario::Scenario,
    workload,
};

/// A seed has from so many machines, if it may choose.
const FEWEST: usize = 3;

/// To so many.
const MOST: usize = 7;

/// What the command line says about every run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How many machines there are; `None` leaves it to the seed.
    pub(crate) nodes: Option<usize>,
    /// How long clients write and faults happen.
    pub(crate) chaos: Nanos,
    /// How long the cluster is watched once it has nothing to do any more.
    pub(crate) silence: Nanos,
    /// Whether every event is printed.
    pub(crate) trace: bool,
    /// Whether everything is kept that an explanation of a violated invariant needs.
    pub(crate) recording: bool,
    /// A user's scenario; `None` runs the simulator's own schema and workload.
    pub(crate) scenario: Option<Rc<Scenario>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: None,
            chaos: 20 * SECOND,
            silence: 5 * SECOND,
            trace: false,
            recording: false,
            scenario: None,
        }
    }
}

impl Options {
    /// How many machines the run of a seed has.
    pub(crate) fn machines(&self, chance: &Chance) -> usize {
        let drawn = chance.draw(Stream::World, 4, 0).index(MOST - FEWEST + 1);
        self.nodes.unwrap_or(FEWEST + drawn)
    }
}

/// How the machines are linked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Topology {
    Star,
    Line,
    Ring,
    Tree,
    Mesh,
    /// Each link was named.
    Told,
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Star => "star",
            Self::Line => "line",
            Self::Ring => "ring",
            Self::Tree => "tree",
            Self::Mesh => "mesh",
            Self::Told => "links as told",
        })
    }
}

/// What a machine is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MachinePlan {
    /// Whether an answered commit is durable.
    pub(crate) full: bool,
    /// A sync takes up to this long.
    pub(crate) sync: Nanos,
    /// What counts as a large entry.
    pub(crate) sizes: Sizes,
    /// When it starts for the first time, if that is not left to chance.
    pub(crate) starts: Option<Nanos>,
    /// The cluster does not know it before it asks to join.
    pub(crate) joins: bool,
    /// It never becomes a member.
    pub(crate) read_only: bool,
}

impl MachinePlan {
    /// A member from the beginning.
    pub(crate) fn member(full: bool, sync: Nanos) -> Self {
        let sizes = Sizes::default();
        Self { full, sync, sizes, starts: None, joins: false, read_only: false }
    }
}

/// Everything a run will meet. Machine 0 is the origin.
#[derive(Debug)]
pub(crate) struct World {
    /// How the machines are linked.
    pub(crate) topology: Topology,
    /// The links.
    pub(crate) links: Vec<LinkPlan>,
    /// The machines.
    pub(crate) machines: Vec<MachinePlan>,
    /// What goes wrong, by time since the clients began.
    pub(crate) faults: Vec<(Nanos, Fault)>,
    /// How long between two looks of the readers.
    pub(crate) probe_every: Nanos,
    /// Per hundred looks: a WAL checkpoint that nobody has asked for.
    pub(crate) checkpoints: u64,
    /// Per hundred looks: a reader that keeps its snapshot until the next one.
    pub(crate) long_readers: u64,
}

impl World {
    /// Expands a seed.
    pub(crate) fn of(chance: &Chance, options: &Options) -> Self {
        if let Some(scenario) = &options.scenario {
            return scenario.world(chance);
        }
        let nodes = options.machines(chance);
        let mut draw = chance.draw(Stream::World, 0, 0);
        let topology = *draw.pick(&[
            Topology::Star,
            Topology::Line,
            Topology::Ring,
            Topology::Tree,
            Topology::Mesh,
        ]);
        let links: Vec<LinkPlan> = pairs(topology, nodes, &mut draw)
            .into_iter()
            .enumerate()
            .map(|(index, ends)| LinkPlan::draw(chance, index, ends))
            .collect();
        let large = chance.draw(Stream::World, 2, 0).percent(60);
        let late = *draw.pick(&[0, 0, 30, 60]);
        let machines: Vec<MachinePlan> = (0..nodes)
            .map(|number| {
                let joins = number > 0 && draw.percent(late);
                MachinePlan {
                    full: draw.percent(40),
                    sync: draw.spread(MS, 600 * MS),
                    sizes: if large {
                        sizes(&mut chance.draw(Stream::World, 3, number as u64))
                    } else {
                        Sizes::default()
                    },
                    starts: joins.then(|| draw.between(1, options.chaos * 3 / 4)),
                    joins,
                    read_only: joins && draw.percent(25),
                }
            })
            .collect();
        let mut faults =
            fault::schedule(chance, nodes, options.chaos, links.len(), &fault::Kind::ALL);
        if !faults.is_empty() {
            let changes = workload::schema_change_times(chance, options.chaos);
            faults.extend(fault::around_changes(chance, nodes, &changes));
        }
        Self {
            topology,
            links,
            machines,
            faults,
            checkpoints: *draw.pick(&[0, 20, 60]),
            long_readers: *draw.pick(&[0, 0, 40]),
            probe_every: chance.draw(Stream::Probe, 0, 0).between(300 * MS, 1500 * MS),
        }
    }
}

/// Bounds so small that entries of every run exceed them; nodes need not have the same.
fn sizes(draw: &mut Draw) -> Sizes {
    let mut bytes = |least, most| usize::try_from(draw.spread(least, most)).unwrap_or(usize::MAX);
    Sizes {
        large_entry: bytes(150, 3000),
        chunk: bytes(40, 800),
        tape: bytes(200, 5000),
        spool: bytes(500, 30_000) as u64,
    }
}

/// Which machines are linked.
pub(crate) fn pairs(topology: Topology, nodes: usize, draw: &mut Draw) -> Vec<[usize; 2]> {
    let mut order: Vec<usize> = (0..nodes).collect();
    draw.shuffle(&mut order);
    let mut pairs = Vec::new();
    for place in 1..nodes {
        let before = match topology {
            Topology::Star => 0,
            Topology::Line | Topology::Ring => place - 1,
            Topology::Tree | Topology::Mesh | Topology::Told => draw.index(place),
        };
        pairs.push([order[before], order[place]]);
    }
    if topology == Topology::Ring && nodes > 2 {
        pairs.push([order[nodes - 1], order[0]]);
    }
    if topology == Topology::Mesh {
        for a in 0..nodes {
            for b in a + 1..nodes {
                let known = pairs.contains(&[a, b]) || pairs.contains(&[b, a]);
                if !known && draw.percent(60) {
                    pairs.push([a, b]);
                }
            }
        }
    }
    pairs
}
