//! [`Machine`]: one simulated node: a `Replica`, its disk, its clock, and what it owes its driver.
//!
//! A machine keeps nothing over a crash but its disk; [`cluster`](crate::cluster) decides when it
//! crashes and starts.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    rc::Rc,
};

use littoral::{
    ClusterId, Digest, Genesis, Identity, Incarnation, Lsn, NodeId, OpenError, PeerId, Piece,
    Reader, Replica, RequestId, Synchronous, TablePolicy, Ticket, VersionVector,
};
use rusqlite::{Connection, OpenFlags};

use crate::{
    application::Application,
    chance::{Chance, Stream},
    clock::{Nanos, WallClock},
    cluster::{Errands, Open, UnderWay},
    disk::vfs,
    fault::Stop,
    workload::{JobId, Script},
    world::MachinePlan,
};

/// A running engine and a connection to look at its rows.
#[derive(Debug)]
pub(crate) struct Engine {
    /// A reader in the middle of a transaction, and the length of the log that it saw.
    pub(crate) held: Option<(Reader, i64)>,
    /// Declared before the replica, so that it is dropped first: what clients read with.
    pub(crate) reader: Reader,
    /// What the oracle reads with: SQLite without the engine, and so all that the file holds.
    pub(crate) eye: Connection,
    /// Another one, which now and then begins to read while the engine is at work.
    pub(crate) passer: Rc<Connection>,
    /// The shipped engine.
    pub(crate) replica: Replica,
}

/// How a machine that is about to stop will stop, and start again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StopPlan {
    /// How it stops.
    pub(crate) stop: Stop,
    /// How long it stays down.
    pub(crate) down: Nanos,
    /// It stops again while it starts, before the change to its disk after this many more.
    pub(crate) again_after: Option<u64>,
    /// Its wall clock is another one afterwards.
    pub(crate) clock: Option<WallClock>,
}

/// Something that a driver does with snapshots.
#[derive(Debug)]
pub(crate) enum SnapshotWork {
    Take(Digest),
    Read { peer: PeerId, offset: u64, bytes: usize },
    Discard,
    Write { peer: PeerId, piece: Piece, sync: bool },
}

/// One simulated node.
#[derive(Debug)]
pub(crate) struct Machine {
    /// `m` and its number: the node's name and the beginning of its files' paths.
    pub(crate) name: String,
    /// What it is made of.
    pub(crate) plan: MachinePlan,
    /// Its wall clock.
    pub(crate) clock: WallClock,
    /// Counts its starts; events of an earlier life are void.
    pub(crate) life: u64,
    /// `None` while it is down.
    pub(crate) engine: Option<Engine>,
    /// Jobs without an answer.
    pub(crate) tickets: BTreeMap<Ticket, JobId>,
    /// What clients wait for from the origin, and, at the origin, what it has to run.
    pub(crate) errands: Errands,
    /// Jobs of a scenario that are run at the origin if they cannot be run here.
    pub(crate) scripts: BTreeMap<JobId, Script>,
    /// Calls of clients that are routed, without an answer.
    pub(crate) calls: BTreeMap<Ticket, UnderWay>,
    /// Reads that it has sent to the origin.
    pub(crate) reads: BTreeMap<Ticket, RequestId>,
    /// Clients for whom it meets the origin.
    pub(crate) meetings: BTreeMap<Ticket, usize>,
    /// Those of the jobs that are interactive transactions.
    pub(crate) talks: BTreeMap<Ticket, Open>,
    /// Whether a sync of the WAL is under way.
    pub(crate) syncing: bool,
    /// The next sync will answer this.
    pub(crate) sync_wanted: Option<Lsn>,
    /// Syncs begun, over all lives.
    pub(crate) syncs: u64,
    /// When the next wake-up is due.
    pub(crate) wake_at: Option<Nanos>,
    /// The disk is slow until then, and how long a sync takes.
    pub(crate) slow: (Nanos, Nanos),
    /// It stops soon.
    pub(crate) stopping: Option<StopPlan>,
    /// What the next start must know of the last stop.
    pub(crate) power_was_cut: bool,
    /// What the replica called durable when it stopped.
    pub(crate) durable_told: Lsn,
    /// What it had acknowledged to its peers when it stopped, as far as they had heard.
    pub(crate) acknowledged: VersionVector,
    /// The next sync fails.
    pub(crate) sync_fails: bool,
    /// Another program has written its file in this life, which its replica must say, or some time ago.
    pub(crate) foreign: bool,
    /// The replica was told of a failed sync and may halt.
    pub(crate) may_halt: bool,
    /// How many entries its log had, as far as is known, when its replica began with what it does now.
    pub(crate) log_before: usize,
    /// What its replica waits for to be done with snapshots, in that order.
    pub(crate) snapshot_work: VecDeque<SnapshotWork>,
    /// A snapshot has taken the place of its file, and was not opened yet.
    pub(crate) adopted: Option<Digest>,
    /// Rows were taken out of its file behind its back, and it has not put them back yet.
    pub(crate) decayed: bool,
    /// An older copy of its file.
    pub(crate) copy: Option<Vec<u8>>,
    identity: Identity,
}

/// So many statements the oracle keeps prepared.
const EYE_STATEMENTS: usize = 128;

const CLUSTER: ClusterId = ClusterId(0x6c69_7474_6f72_616c);

fn incarnation(machine: usize) -> Incarnation {
    Incarnation(0x1000 + machine as u128)
}

/// The name of a machine.
pub(crate) fn node(machine: usize) -> NodeId {
    NodeId::new(&format!("m{machine}")).expect("a letter and digits")
}

/// What a cluster of these machines begins with.
pub(crate) fn genesis(members: &[usize], application: &dyn Application) -> Genesis {
    let (schema, policies) = application.schema();
    genesis_of(members, schema, policies)
}

/// What a cluster of these machines with this schema begins with.
pub(crate) fn genesis_of(
    members: &[usize],
    schema: String,
    policies: BTreeMap<String, TablePolicy>,
) -> Genesis {
    let members = members.iter().map(|machine| (node(*machine), incarnation(*machine))).collect();
    Genesis { members, schema, policies }
}

impl Machine {
    /// A machine that was never started.
    pub(crate) fn new(number: usize, plan: MachinePlan, chance: &Chance) -> Self {
        Self {
            name: format!("m{number}"),
            plan,
            clock: WallClock::draw(&mut chance.draw(Stream::Clock, number as u64, 0)),
            life: 0,
            engine: None,
            tickets: BTreeMap::new(),
            errands: Errands::default(),
            scripts: BTreeMap::new(),
            calls: BTreeMap::new(),
            reads: BTreeMap::new(),
            meetings: BTreeMap::new(),
            talks: BTreeMap::new(),
            syncing: false,
            sync_wanted: None,
            syncs: 0,
            wake_at: None,
            slow: (0, 0),
            stopping: None,
            power_was_cut: false,
            durable_told: Lsn(0),
            acknowledged: VersionVector::new(),
            sync_fails: false,
            foreign: false,
            may_halt: false,
            log_before: 0,
            snapshot_work: VecDeque::new(),
            adopted: None,
            decayed: false,
            copy: None,
            identity: Identity {
                cluster: CLUSTER,
                node: node(number),
                incarnation: incarnation(number),
            },
        }
    }

    /// The path of the database.
    pub(crate) fn database(&self) -> PathBuf {
        PathBuf::from(format!("/{}/replica.db", self.name))
    }

    /// The path of its WAL.
    pub(crate) fn wal(&self) -> String {
        format!("/{}/replica.db-wal", self.name)
    }

    /// Opens the replica, at the origin with what the cluster begins with.
    pub(crate) fn open(
        &self,
        now: Nanos,
        genesis: Option<Genesis>,
        seed: u64,
    ) -> Result<Engine, OpenError> {
        let synchronous = if self.plan.full { Synchronous::Full } else { Synchronous::Normal };
        let mut builder = Replica::builder(self.identity.clone())
            .vfs(vfs::NAME)
            .synchronous(synchronous)
            .sizes(self.plan.sizes)
            .verify_capture();
        if self.plan.read_only {
            builder = builder.read_only();
        }
        if let Some(genesis) = genesis {
            builder = builder.genesis(genesis);
        }
        let now = self.clock.at(now);
        vfs::with(|store| store.wall_ms = now.wall.0);
        let replica = builder.open(&self.database(), now, seed)?;
        let reader = replica.db().reader()?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let eye = Connection::open_with_flags_and_vfs(self.database(), flags, vfs::NAME)?;
        eye.set_prepared_statement_cache_capacity(EYE_STATEMENTS);
        let passer = Connection::open_with_flags_and_vfs(self.database(), flags, vfs::NAME)?;
        passer.set_prepared_statement_cache_capacity(EYE_STATEMENTS);
        Ok(Engine { held: None, reader, eye, passer: Rc::new(passer), replica })
    }

    /// How long the next sync takes.
    pub(crate) fn sync_length(&self, now: Nanos, chance: &Chance, number: u64) -> Nanos {
        let mut draw = chance.draw(Stream::Disk, number, self.syncs);
        let (slow_until, slow_sync) = self.slow;
        let most = if now < slow_until { slow_sync } else { self.plan.sync };
        draw.between(most / 20 + 1, most + 1)
    }
}
