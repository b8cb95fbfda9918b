//! [`Fault`]: what goes wrong in a run, and the schedule of it, drawn from the seed.
//!
//! Every seed allows only some kinds of faults, so that one kind does not always hide another. All
//! of them are faults that the engine promises to survive without losing anything it has promised.

use crate::{
    chance::{Chance, Draw, Stream},
    clock::{MS, Nanos, SECOND, WallClock},
};

/// How a machine stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// The process ends in good order.
    Clean,
    /// The process is killed; the disk keeps what was written.
    Kill,
    /// The power fails; the disk keeps what was synced, and what chance adds.
    PowerCut,
}

/// One thing that goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A machine stops and starts again.
    Crash {
        /// Which one.
        machine: usize,
        /// How.
        stop: Stop,
        /// In the middle of what it does next: before the change to its disk after this many more.
        after_changes: Option<u64>,
        /// How long it is down.
        down: Nanos,
        /// It stops again while it starts, before the change after this many more.
        again_after: Option<u64>,
        /// Its wall clock is another one afterwards.
        clock: Option<WallClock>,
    },
    /// A connection is cut, and the link stays down for a while.
    Cut {
        /// Which link.
        link: usize,
        /// How long.
        down: Nanos,
    },
    /// One direction of a link stands still.
    Block {
        /// Which link.
        link: usize,
        /// Which end is not heard.
        from: usize,
        /// How long.
        length: Nanos,
    },
    /// Links between two groups of machines are cut, or stand still in both directions.
    Partition {
        /// Whether each machine is in the first group.
        group: Vec<bool>,
        /// How long.
        length: Nanos,
        /// Connections stay up but carry nothing.
        silent: bool,
    },
    /// A wall clock jumps.
    ClockJump {
        /// Whose.
        machine: usize,
        /// To this.
        clock: WallClock,
    },
    /// Writes fail for want of space.
    DiskFull {
        /// Whose.
        machine: usize,
        /// How long.
        length: Nanos,
    },
    /// Syncs take longer.
    SlowDisk {
        /// Whose.
        machine: usize,
        /// How long a sync takes.
        sync: Nanos,
        /// How long it lasts.
        length: Nanos,
    },
    /// The next sync of the WAL fails: the replica stops, and its machine starts again.
    SyncFails {
        /// Whose.
        machine: usize,
    },
    /// Another program writes the file of a machine that runs: a table of its own, so that nothing else
    /// follows from it.
    ForeignWrite {
        /// Whose.
        machine: usize,
    },
}

impl Fault {
    /// A machine stops between two inputs and starts again, with the same clock.
    pub(crate) const fn stop(machine: usize, stop: Stop, down: Nanos) -> Self {
        Self::Crash { machine, stop, after_changes: None, down, again_after: None, clock: None }
    }
}

/// A kind of fault that may be drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A machine ends in good order and starts again.
    Clean,
    /// A machine is killed and starts again.
    Kill,
    /// A machine loses power and starts again.
    PowerCut,
    /// A connection is cut.
    Cut,
    /// One direction of a link stands still.
    Block,
    /// Two groups of machines do not hear each other.
    Partition,
    /// A wall clock jumps.
    ClockJump,
    /// A disk is full.
    DiskFull,
    /// A disk is slow.
    SlowDisk,
    /// A sync fails.
    SyncFails,
    /// A wall clock jumps by minutes, or a machine comes back with such a clock.
    WrongClock,
    /// Another program writes a file.
    ForeignWrite,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 12] = [
        Self::Clean,
        Self::Kill,
        Self::PowerCut,
        Self::Cut,
        Self::Block,
        Self::Partition,
        Self::ClockJump,
        Self::DiskFull,
        Self::SlowDisk,
        Self::SyncFails,
        Self::WrongClock,
        Self::ForeignWrite,
    ];

    /// How many of a hundred runs may have it. Wrong clocks make nodes wait for minutes, and what happens
    /// meanwhile is hidden.
    const fn runs(self) -> u64 {
        match self {
            Self::WrongClock | Self::ForeignWrite => 20,
            _ => 65,
        }
    }

    /// How often it is drawn, against the others.
    const fn weight(self) -> u64 {
        match self {
            Self::PowerCut | Self::Cut => 4,
            Self::Kill | Self::ForeignWrite => 3,
            Self::WrongClock => 12,
            Self::Block | Self::Partition | Self::ClockJump => 2,
            Self::Clean | Self::DiskFull | Self::SlowDisk | Self::SyncFails => 1,
        }
    }
}

/// Everything that will go wrong within `chaos`, by time; of the kinds in `allowed` only.
pub(crate) fn schedule(
    chance: &Chance,
    nodes: usize,
    chaos: Nanos,
    links: usize,
    allowed: &[Kind],
) -> Vec<(Nanos, Fault)> {
    let mut swarm = chance.draw(Stream::Fault, 0, 0);
    if swarm.percent(6) {
        return Vec::new();
    }
    let kinds: Vec<(u64, Kind)> = Kind::ALL
        .into_iter()
        .filter(|kind| swarm.percent(kind.runs()) && allowed.contains(kind))
        .map(|kind| (kind.weight(), kind))
        .collect();
    if kinds.is_empty() {
        return Vec::new();
    }
    let gap = swarm.spread(200 * MS, 4 * SECOND);
    let mut faults = Vec::new();
    let mut at = 0;
    for index in 0.. {
        let mut draw = chance.draw(Stream::Fault, 1, index);
        at += draw.between(1, 2 * gap);
        if at >= chaos {
            break;
        }
        let kind = *draw.weighted(&kinds);
        faults.push((at, one(kind, nodes, links, &mut draw)));
    }
    faults
}

/// Machines that stop while the schema changes: the origin in the middle of it, or any of them at some
/// time until what waited for others has come to pass.
pub(crate) fn around_changes(
    chance: &Chance,
    nodes: usize,
    changes: &[Nanos],
) -> Vec<(Nanos, Fault)> {
    let mut faults = Vec::new();
    for (number, at) in (0..).zip(changes) {
        let mut draw = chance.draw(Stream::Fault, 2, number);
        let (at, machine) = match draw.below(100) {
            0..8 => (at - 1, 0),
            8..16 => (at + draw.spread(10 * MS, 3 * SECOND), draw.index(nodes)),
            _ => continue,
        };
        let fault = Fault::Crash {
            machine,
            stop: if draw.percent(50) { Stop::Kill } else { Stop::PowerCut },
            after_changes: Some(draw.spread(1, 200) - 1),
            down: draw.spread(MS, 3 * SECOND),
            again_after: draw.percent(10).then(|| draw.spread(1, 30) - 1),
            clock: None,
        };
        faults.push((at, fault));
    }
    faults
}

fn one(kind: Kind, nodes: usize, links: usize, draw: &mut Draw) -> Fault {
    let machine = draw.index(nodes);
    let crash = |stop, draw: &mut Draw| Fault::Crash {
        machine,
        stop,
        after_changes: (stop != Stop::Clean && draw.percent(50)).then(|| draw.spread(1, 40) - 1),
        down: if draw.percent(70) {
            draw.spread(MS, 500 * MS)
        } else {
            draw.between(0, 6 * SECOND)
        },
        again_after: (stop != Stop::Clean && draw.percent(10)).then(|| draw.spread(1, 30) - 1),
        clock: draw.percent(50).then(|| WallClock::draw(draw)),
    };
    match kind {
        Kind::Clean => crash(Stop::Clean, draw),
        Kind::Kill => crash(Stop::Kill, draw),
        Kind::PowerCut => crash(Stop::PowerCut, draw),
        Kind::Cut => Fault::Cut { link: draw.index(links), down: draw.spread(MS, 5 * SECOND) },
        Kind::Block => Fault::Block {
            link: draw.index(links),
            from: draw.index(2),
            length: draw.spread(50 * MS, 15 * SECOND),
        },
        Kind::Partition => Fault::Partition {
            group: (0..nodes).map(|_| draw.percent(50)).collect(),
            length: draw.spread(200 * MS, 8 * SECOND),
            silent: draw.percent(50),
        },
        Kind::ClockJump => Fault::ClockJump { machine, clock: WallClock::draw(draw) },
        Kind::WrongClock => {
            let wrong = WallClock::draw_wrong(draw);
            // All others follow the origin's clock.
            let machine = if draw.percent(25) { 0 } else { machine };
            match *draw.pick(&[None, Some(Stop::Clean), Some(Stop::Kill), Some(Stop::PowerCut)]) {
                None => Fault::ClockJump { machine, clock: wrong },
                Some(stop) => match crash(stop, draw) {
                    Fault::Crash { stop, after_changes, down, again_after, .. } => Fault::Crash {
                        machine,
                        stop,
                        after_changes,
                        down,
                        again_after,
                        clock: Some(wrong),
                    },
                    other => other,
                },
            }
        }
        Kind::DiskFull => Fault::DiskFull { machine, length: draw.spread(10 * MS, 2 * SECOND) },
        Kind::SlowDisk => Fault::SlowDisk {
            machine,
            sync: draw.between(100 * MS, 2 * SECOND),
            length: draw.between(SECOND, 5 * SECOND),
        },
        Kind::SyncFails => Fault::SyncFails { machine },
        Kind::ForeignWrite => Fault::ForeignWrite { machine },
    }
}
