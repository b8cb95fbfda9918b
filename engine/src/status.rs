//! [`Status`]: what a replica knows of itself and its peers, for people, metrics and tests.

use std::time::Duration;

use crate::{
    driver::Identity,
    entry::Member,
    id::{AuthorId, Lsn, NodeId, PeerId, SchemaVersion},
    policy::TablePolicy,
    schema::Trigger,
    time::WallTime,
    version::{Dot, VersionVector},
};

/// A picture of one replica at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Who it is.
    pub identity: Identity,
    /// What its entries are signed with, once its `Join` was applied.
    pub author: Option<AuthorId>,
    /// Whether it is read-only, and so never a member.
    pub read_only: bool,
    /// A snapshot that it is receiving: bytes on stable storage, and in all.
    pub receiving: Option<(u64, u64)>,
    /// The node that is origin, as the control register says; `None` before it is known.
    pub origin: Option<NodeId>,
    /// How many links away the origin is; `None` while no way to it is known.
    pub distance: Option<u8>,
    /// Requests of this node's clients that wait for the origin.
    pub requests_waiting: u64,
    /// At the origin: requests, its own clients' too, that have come and are not answered.
    pub requests_here: u64,
    /// Position of the newest entry in its log.
    pub applied: Lsn,
    /// Position up to which the log is on stable storage.
    pub durable: Lsn,
    /// Which entries it has applied.
    pub vector: VersionVector,
    /// The members, in author order.
    pub members: Vec<Member>,
    /// The version of the schema, 0 before there is one.
    pub schema: SchemaVersion,
    /// The replicated tables and their policies, by name.
    pub tables: Vec<(String, TablePolicy)>,
    /// The triggers of the schema and what each is for, by name.
    pub triggers: Vec<Trigger>,
    /// Tables that triggers keep (full-text indexes) and that a trigger could not keep: opening the file
    /// again rebuilds them, if they can be rebuilt.
    pub stale: Vec<String>,
    /// Its links.
    pub peers: Vec<PeerStatus>,
    /// Large entries that are being received, or were until their links were lost.
    pub spools: u64,
    /// What every member has applied, and what holds that back.
    pub stability: Stability,
    /// Rows that a concurrent write may still meet.
    pub contested_rows: u64,
    /// Rows of other nodes that could not be stored; they are in `littoral_conflicts`, whole.
    pub parked_rows: u64,
    /// The change of the schema that waits for other nodes, if one does.
    pub freeze: Option<FreezeStatus>,
    /// The comparison of its rows with a peer's that runs, or the last one.
    pub verification: Verification,
    /// What it makes of the time.
    pub clock: ClockStatus,
    /// How old what it shows may be at most: it has all that the origin had so long ago. Zero at the
    /// origin; `None` while it cannot tell.
    pub lag: Option<Duration>,
    /// Counts since the file was opened.
    pub counts: Counts,
    /// What another program has written into the file, if that was noticed since it was opened.
    pub foreign: Option<ForeignWrites>,
    /// Why storage is failing, if it is.
    pub storage_error: Option<String>,
    /// Why the replica has stopped its links or its writes, if it has.
    pub halted: Option<String>,
}

impl Status {
    /// Whether the node is the origin.
    pub fn is_origin(&self) -> bool {
        self.origin.as_ref() == Some(&self.identity.node)
    }
}

/// Another program has written the replica's file. What it wrote is in no entry: other nodes do not get
/// it, and later entries may not fit what they meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ForeignWrites {
    /// When that was noticed for the first time.
    pub since: WallTime,
    /// How often it was noticed while the file was open; each time may stand for several commits.
    pub noticed: u64,
    /// Whether the file had been changed when it was opened.
    pub while_closed: bool,
}

/// What a replica makes of the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockStatus {
    /// What its own wall clock says.
    pub wall: WallTime,
    /// What it takes the origin's wall clock to say; its own clock while it cannot tell.
    pub corrected: WallTime,
    /// By how much that may be wrong; `None` while it cannot tell, since no peer has told it yet.
    pub error: Option<Duration>,
    /// How long ago the origin has said so, through whoever is in between.
    pub age: Option<Duration>,
    /// How far the greatest stamp that it has written or applied is ahead of the corrected clock.
    pub stamps_ahead: Duration,
}

/// How far the frontier has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stability {
    /// Number of the newest frontier applied.
    pub frontier: u64,
    /// What it covers.
    pub covered: VersionVector,
    /// Members that have not acknowledged all that this node has applied, as far as it has heard.
    pub held_back_by: Vec<Held>,
    /// Bytes of entries that the log keeps for them, and for what is new.
    pub log_bytes: u64,
    /// Bytes of memory that contested clocks take, about.
    pub contested_bytes: u64,
}

/// A member that holds the frontier back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// The member.
    pub node: NodeId,
    /// How many entries it has not acknowledged.
    pub missing: u64,
    /// When the oldest entry was written that it has not acknowledged; `None` if this node has that no more,
    /// since the member has said so to others.
    pub since: Option<WallTime>,
    /// When anything came from it last: over a link between the two any sign of life, else its newest
    /// acknowledgement, which others have passed on. `None` if nothing has since the file was opened.
    pub heard: Option<WallTime>,
}

/// A change of multi-writer tables that waits until every node has heard of it. Until then the tables
/// take no local writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FreezeStatus {
    /// The tables.
    pub tables: Vec<String>,
    /// When the origin froze them.
    pub since: WallTime,
    /// What is to run.
    pub script: String,
    /// Members that have not said yet that they know, as far as this node has heard.
    pub waiting_for: Vec<NodeId>,
}

/// How a comparison of all rows with those of a peer goes, or went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verification {
    /// Whether it is under way. It waits while there is no link.
    pub running: bool,
    /// The node compared with, once one was asked.
    pub with: Option<NodeId>,
    /// The table that is being compared.
    pub table: Option<String>,
    /// Rows compared.
    pub rows: u64,
    /// Rows that differ although both nodes have applied the same to them.
    pub differing: u64,
    /// Those of them that are now as the origin has them: none if the comparison was with another node.
    /// What was stored before is in `littoral_conflicts`.
    pub repaired: u64,
    /// Rows, or tables, that could not be compared.
    pub undecided: u64,
    /// The last thing that kept a row from being compared or repaired.
    pub problem: Option<String>,
    /// When it was done.
    pub finished: Option<WallTime>,
}

/// A picture of one link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerStatus {
    /// Its number.
    pub peer: PeerId,
    /// The node at the other end.
    pub node: NodeId,
    /// Whether the handshake is complete.
    pub streaming: bool,
    /// Which entries the peer has said to hold durably.
    pub acknowledged: VersionVector,
    /// How many of our entries it has not acknowledged.
    pub behind: u64,
    /// The last measured round trip, keep-alive to answer.
    pub round_trip: Option<Duration>,
    /// The entry with which this replica has the peer wait, and why.
    pub holds: Option<Hold>,
    /// The entry with which the peer has this replica wait, or which it was offered a moment ago.
    pub held_by_peer: Option<Dot>,
    /// Bytes of frames sent.
    pub bytes_sent: u64,
    /// Bytes of frames received.
    pub bytes_received: u64,
}

/// An entry that a replica does not take from a link now. Nothing behind it is taken either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold {
    /// The entry.
    pub dot: Dot,
    /// Why not.
    pub why: HoldReason,
}

/// Why an entry is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldReason {
    /// It is large, and being received on another link.
    ReceivedElsewhere,
    /// It is large, and there is no room before others were received.
    NoRoom,
    /// Its stamp is in the future: it is taken once the corrected clock has come near it.
    Future {
        /// How far ahead of the corrected clock the stamp is.
        ahead: Duration,
    },
}

/// Counts since the file was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Write jobs committed.
    pub jobs_committed: u64,
    /// Write jobs refused or failed.
    pub jobs_failed: u64,
    /// SQLite transactions that committed local jobs.
    pub groups: u64,
    /// Entries written here.
    pub entries_authored: u64,
    /// Entries of other authors applied.
    pub entries_applied: u64,
    /// Entries that arrived although they were applied before.
    pub entries_duplicate: u64,
    /// Row operations of other authors applied.
    pub rows_applied: u64,
    /// Concurrent values discarded; the newest are in `littoral_conflicts`.
    pub conflicts: u64,
    /// Links closed because the peer broke the protocol.
    pub links_refused: u64,
}
