//! [`Entry`] and its segments: the unit that is logged, sent and applied.
//!
//! An entry is what one transaction did. Its bytes are written once, by its author, and travel
//! unchanged: a relay never encodes again. `docs/format.md` specifies them.
//!
//! Invariants:
//! - an entry's digest is the blake3 hash of its bytes, and its bytes hold the digest of its
//!   author's entry before it: corruption and forks show, they are not merged;
//! - a `Rows` segment holds one operation per key, ordered by table and key.

pub(crate) mod change;
pub(crate) mod codec;
mod digest;
mod large;
pub(crate) mod rows;

pub use change::{Removal, SetChange};
pub use digest::Digest;
pub(crate) use large::{ChunksId, LargeEntry, LargeName, Logged};

use std::sync::Arc;

use crate::{
    forward::RequestId,
    hlc::{Hlc, Stamp},
    id::{AuthorId, ColumnId, Incarnation, NodeId, SchemaVersion, TableId},
    policy::TablePolicy,
    value::ValueRef,
    version::{Dot, VersionVector},
};

/// What every entry says of itself before its segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryHeader {
    /// Author and position in the author's sequence.
    pub dot: Dot,
    /// When it was written.
    pub hlc: Hlc,
    /// Digest of the author's previous entry; [`Digest::NONE`] before the first.
    pub previous: Digest,
    /// The schema version it was written under.
    pub schema: SchemaVersion,
    /// Number of the frontier it was written under.
    pub under: u64,
}

impl EntryHeader {
    /// The stamp of every assignment in the entry.
    pub const fn stamp(&self) -> Stamp {
        Stamp { hlc: self.hlc, author: self.dot.author, seq: self.dot.seq }
    }
}

/// One entry, with its bytes.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Decoded from the bytes.
    pub header: EntryHeader,
    /// Hash of the bytes.
    pub digest: Digest,
    /// The encoding, shared between the log, the links and the appliers.
    pub bytes: Arc<Vec<u8>>,
}

/// A part of an entry; they take effect in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Segment<'a> {
    /// Rows that changed; see [`rows::RowsReader`].
    Rows(&'a [u8]),
    /// Statements to run in order; written by the origin only.
    Ddl(Vec<String>),
    /// What is known of tables from here on; written by the origin only.
    Policy(Vec<TableChange>),
    /// Tables are frozen; written by the origin only.
    Freeze(Freeze),
    /// The freeze in that entry is over: what it waited for has happened in this entry, or, if there is a
    /// reason, will not happen. Written by the origin only.
    Unfreeze {
        /// The entry with the freeze.
        freeze: Dot,
        /// Why the change did not happen.
        failure: Option<String>,
    },
    /// A change of who is a member; written by the origin only.
    Membership(Membership),
    /// Everything that `covered` names has been applied by every member; written by the origin only.
    Frontier {
        /// Counts the frontiers, from 1.
        number: u64,
        /// What is covered.
        covered: VersionVector,
    },
    /// The greatest keys that AUTOINCREMENT has handed out in tables; written by the origin only.
    Sequence(Vec<(TableId, i64)>),
    /// What became of a request that was carried to the origin; written by the origin only.
    Outcome {
        /// The request.
        request: RequestId,
        /// What became of it.
        fate: Fate,
    },
}

/// What became of a request, for good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The rest of the entry is what it did.
    Committed {
        /// The digest of the program that ran.
        program: Digest,
        /// What it gave, unless that is too much to keep.
        result: Option<Vec<u8>>,
    },
    /// It has not run, and never will.
    Refused,
}

/// Tables that take no more local writes until a change of theirs has happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Freeze {
    /// The tables, ascending.
    pub tables: Vec<TableId>,
    /// What is to run once no write from before can arrive any more.
    pub script: String,
}

/// A change of what is known of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TableChange {
    /// What the table is from here on, in place of what its id stood for before.
    Declared(TableDeclaration),
    /// The table is gone. Its id is never used again.
    Dropped(TableId),
}

impl TableChange {
    /// The tables that are gone with their rows. One that is declared again in the next breath keeps them:
    /// it only begins anew, without clocks.
    pub(crate) fn gone(changes: &[Self]) -> impl Iterator<Item = TableId> {
        let next = changes.iter().skip(1).map(Some).chain([None]);
        changes.iter().zip(next).filter_map(|(change, next)| match (change, next) {
            (Self::Dropped(id), Some(Self::Declared(again))) if again.id == *id => None,
            (Self::Dropped(id), _) => Some(*id),
            (Self::Declared(_), _) => None,
        })
    }
}

/// Gives a table its id, and its columns theirs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableDeclaration {
    /// The id operations use from now on.
    pub id: TableId,
    /// The table's name in the schema.
    pub name: String,
    /// What was declared of it. Column types stand in `columns`.
    pub policy: TablePolicy,
    /// Every stored column with its id, ascending. A column keeps its id when it is renamed; no other
    /// column of the table ever gets it.
    pub columns: Vec<(ColumnId, String)>,
}

/// A change of who is a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Membership {
    /// An incarnation becomes a member and gets its author id.
    Join(Member),
}

/// A member of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// What its entries are signed with.
    pub author: AuthorId,
    /// The node's name.
    pub node: NodeId,
    /// Which life of the node.
    pub incarnation: Incarnation,
}

/// What happened to one row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RowOp<'r> {
    /// The row's table.
    pub table: TableId,
    /// Insert, update or delete.
    pub kind: RowOpKind,
    /// Canonical encoding of the primary key.
    pub key: &'r [u8],
    /// The epoch the author saw; for an insert the epoch it begins or joins.
    pub epoch: u32,
    /// All stored columns outside the key for an insert, the changed ones for an update.
    pub cells: &'r [Cell<'r>],
    /// For a delete: the dots the author held clocks of in the deleted row.
    pub saw: &'r [Dot],
}

/// The kind of a [`RowOp`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RowOpKind {
    /// The row did not exist before and does now.
    Insert,
    /// The row existed before and after.
    Update,
    /// The row existed before and does not now.
    Delete,
}

/// What happened to one column of a row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Cell<'r> {
    /// Which column.
    pub column: ColumnId,
    /// What was written.
    pub write: CellWrite<'r>,
}

/// How a cell was written.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum CellWrite<'r> {
    /// A value under the entry's stamp, over the clock the author held (absent: none).
    Assign {
        /// The value.
        value: ValueRef<'r>,
        /// The entry whose value it overwrote.
        previous: Option<Dot>,
    },
    /// An increment of a counter, modulo 2^64.
    Add(i64),
    /// A value of a `max` or `min` column: stored where it is beyond the one that stands there.
    Extreme(ValueRef<'r>),
    /// Elements of a set that were added and removed.
    Set(SetChange<'r>),
}

impl CellWrite<'_> {
    /// How it is encoded.
    pub(crate) const fn kind(&self) -> rows::CellKind {
        match self {
            Self::Assign { .. } => rows::CellKind::Assign,
            Self::Add(_) => rows::CellKind::Add,
            Self::Extreme(_) => rows::CellKind::Extreme,
            Self::Set(_) => rows::CellKind::Set,
        }
    }
}

#[cfg(test)]
mod tests;
