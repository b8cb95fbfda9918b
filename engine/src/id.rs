//! Newtypes for everything that is counted or named, so that the compiler keeps them apart.
//!
//! Their bytes are the business of `value.rs` and `entry/codec.rs`; nothing here is serializable.

use std::fmt;

/// The name of a node: 1 to 32 of `a-z`, `0-9` and `-`, beginning with a letter.
///
/// It is what certificates carry and what people read; two incarnations of one node share it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(String);

impl NodeId {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 32;

    /// Checks a name.
    ///
    /// # Errors
    /// Tells which rule the name breaks.
    pub fn new(name: &str) -> Result<Self, InvalidNodeId> {
        let well_formed = name.len() <= Self::MAX_LEN
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if well_formed { Ok(Self(name.to_owned())) } else { Err(InvalidNodeId(name.to_owned())) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node name that breaks the rules of [`NodeId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "node name {0:?} is not 1 to 32 lowercase letters, digits and hyphens beginning with a letter"
)]
pub struct InvalidNodeId(String);

/// One life of a node: a new one is drawn whenever state that others have seen was lost or copied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u128);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incarnation({self})")
    }
}

/// The cluster a node belongs to, drawn by `init`; links between different clusters are refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// Who wrote an entry: the term that issued the id and a counter within it, from 1.
///
/// A `Join` gives each incarnation its own; two origins never issue the same, because terms differ.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthorId {
    /// The term of the origin that issued the id.
    pub term: u32,
    /// Counts the ids issued in that term, from 1.
    pub counter: u32,
}

impl AuthorId {
    /// The first origin of every cluster.
    pub const FIRST: Self = Self { term: 1, counter: 1 };

    /// The id as one number, for SQLite columns and metrics.
    pub const fn to_u64(self) -> u64 {
        (self.term as u64) << 32 | self.counter as u64
    }

    /// The inverse of [`AuthorId::to_u64`].
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
    pub const fn from_u64(raw: u64) -> Self {
        Self { term: (raw >> 32) as u32, counter: raw as u32 }
    }
}

impl fmt::Display for AuthorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.counter)
    }
}

impl fmt::Debug for AuthorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Position of an entry in its author's sequence, from 1 without gaps.
pub type Seq = u64;

/// A replicated table; given by the origin and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TableId(pub u32);

/// A column of one replicated table; given by the origin, ascending in the table, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ColumnId(pub u32);

/// Counts the schema changes of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SchemaVersion(pub u32);

/// Position in one node's own log, from 1; 0 means "nothing yet". Other nodes have other LSNs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A link, as its driver numbers it: every new connection gets a number never used before in this
/// process, also to a node that was linked earlier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u64);

/// A queued write, as [`Replica::write`](crate::Replica::write) numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);
