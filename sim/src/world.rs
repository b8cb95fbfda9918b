//! [`World`]: what a seed makes of nodes, links, disks, clients and faults, before anything happens.

use std::fmt;

use crate::{
    chance::{Chance, Draw, Stream},
    clock::{MS, Nanos, SECOND},
    fault::{self, Fault},
    network::LinkPlan,
    workload::{self, Habits},
};

/// What the command line says about every run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// How many machines there are.
    pub(crate) nodes: usize,
    /// How long clients write and faults happen.
    pub(crate) chaos: Nanos,
    /// Whether every event is printed.
    pub(crate) trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 5, chaos: 20 * SECOND, trace: false }
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
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Star => "star",
            Self::Line => "line",
            Self::Ring => "ring",
            Self::Tree => "tree",
            Self::Mesh => "mesh",
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
    /// When it starts for the first time.
    pub(crate) starts: Nanos,
    /// The cluster does not know it before it asks to join.
    pub(crate) joins: bool,
    /// It never becomes a member.
    pub(crate) read_only: bool,
}

/// Jobs that are queued at one machine at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// When.
    pub(crate) at: Nanos,
    /// Where.
    pub(crate) machine: usize,
    /// The number of the first.
    pub(crate) first: u64,
    /// How many.
    pub(crate) count: u64,
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
    /// What clients like to do.
    pub(crate) habits: Habits,
    /// What clients do, by time.
    pub(crate) arrivals: Vec<Arrival>,
    /// What goes wrong, by time.
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
        let mut draw = chance.draw(Stream::World, 0, 0);
        let topology = *draw.pick(&[
            Topology::Star,
            Topology::Line,
            Topology::Ring,
            Topology::Tree,
            Topology::Mesh,
        ]);
        let links: Vec<LinkPlan> = pairs(topology, options.nodes, &mut draw)
            .into_iter()
            .enumerate()
            .map(|(index, ends)| LinkPlan::draw(chance, index, ends))
            .collect();
        let late = *draw.pick(&[0, 0, 30, 60]);
        let machines: Vec<MachinePlan> = (0..options.nodes)
            .map(|number| {
                let joins = number > 0 && draw.percent(late);
                MachinePlan {
                    full: draw.percent(40),
                    sync: draw.spread(MS, 600 * MS),
                    starts: match number {
                        0 => 1,
                        _ if joins => draw.between(1, options.chaos * 3 / 4),
                        _ => draw.between(1, 2 * SECOND),
                    },
                    joins,
                    read_only: joins && draw.percent(25),
                }
            })
            .collect();
        let habits = Habits::draw(&mut chance.draw(Stream::World, 1, 0));
        let faults = fault::schedule(chance, options, links.len());
        Self {
            topology,
            links,
            machines,
            habits,
            arrivals: arrivals(chance, options),
            faults,
            checkpoints: *draw.pick(&[0, 20, 60]),
            long_readers: *draw.pick(&[0, 0, 40]),
            probe_every: chance.draw(Stream::Probe, 0, 0).between(300 * MS, 1500 * MS),
        }
    }
}

fn pairs(topology: Topology, nodes: usize, draw: &mut Draw) -> Vec<[usize; 2]> {
    let mut order: Vec<usize> = (0..nodes).collect();
    draw.shuffle(&mut order);
    let mut pairs = Vec::new();
    for place in 1..nodes {
        let before = match topology {
            Topology::Star => 0,
            Topology::Line | Topology::Ring => place - 1,
            Topology::Tree | Topology::Mesh => draw.index(place),
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

fn arrivals(chance: &Chance, options: &Options) -> Vec<Arrival> {
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
        let machine = draw.index(options.nodes);
        let count = if bursts && draw.percent(30) { draw.between(2, 6) } else { 1 };
        arrivals.push(Arrival { at, machine, first, count });
        first += count;
    }
    arrivals
}
