//! One error enum per operation. Every variant says whether the database changed and what to do.

use std::time::Duration;

use crate::{
    contested::ClockError,
    driver::CloseCode,
    entry::Digest,
    id::{AuthorId, ClusterId, Incarnation, NodeId},
    limits::RESULT_BYTES_MAX,
    log::chunks::ChunkError,
    schema::Refusal,
    value::DecodeError,
    version::{Dot, VersionVector},
};

/// Why a file could not be opened as a replica. Nothing in it was changed, unless a variant says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// SQLite could not open, read or write the file.
    #[error("SQLite could not open the database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file has tables, but not littoral's: it was made by something else. Give littoral a path
    /// of its own.
    #[error("the file is a database that littoral did not make; give littoral a new path")]
    ForeignFile,
    /// The file was written by another version of littoral.
    #[error("the file has format {found}, this version reads format {expected}")]
    Format {
        /// What the file says.
        found: i64,
        /// What this version reads.
        expected: i64,
    },
    /// The file belongs to another cluster, node or incarnation than the configuration names. Use the
    /// directory that `init` made for this node.
    #[error("the file belongs to {node} ({incarnation}) of cluster {cluster}, not to this node")]
    WrongIdentity {
        /// The file's cluster.
        cluster: ClusterId,
        /// The file's node.
        node: NodeId,
        /// The file's incarnation.
        incarnation: Incarnation,
    },
    /// The file is an older copy of itself, or a copy in another place: others may have what it has
    /// forgotten. Nothing of it is told to anybody.
    #[error(
        "the file is a copy or was restored: it was opened {opened} times, and the note beside it, \
         {}, says {noted}. Others may have what this copy has forgotten, so it cannot go on as this \
         node. If the file was moved, move its note with it; else start with an empty directory and a \
         new incarnation (`littoral ca issue`), or, if this is the origin, begin a new cluster with \
         its rows (`littoral dump`)",
        crate::identity::NOTE
    )]
    CopiedFile {
        /// What the file says.
        opened: u64,
        /// What the note says.
        noted: u64,
    },
    /// The file is gone, and the note beside it says that there was one.
    #[error(
        "the database is gone, and the note beside it, {}, says that there was one: others may have \
         what it held. Put the file back, or start with an empty directory and a new incarnation \
         (`littoral ca issue`); a read-only node may just remove the note, and for the origin a new \
         cluster begins with the rows of a backup or of another node (`littoral dump`)",
        crate::identity::NOTE
    )]
    LostFile,
    /// A read-only node was given the file of a member.
    #[error(
        "the node is a member of the cluster, and its configuration says read_only = true: others \
         wait for members. Give a read-only node a directory and an incarnation of its own"
    )]
    ReadOnlyMember,
    /// The log in the file contradicts itself: the file is damaged. Keep it for inspection, and start
    /// the node again with an empty directory and a new incarnation.
    #[error("the log is damaged at LSN {lsn}: {what}")]
    DamagedLog {
        /// Where.
        lsn: u64,
        /// What is wrong there.
        what: String,
    },
    /// The schema or the policies of the genesis are not acceptable.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
}

/// Why the origin could not begin the cluster with the schema it was given. Nothing was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenesisError {
    /// A statement of `schema.sql` fails.
    #[error("schema statement failed: {error}\n  in: {statement}")]
    Statement {
        /// The statement.
        statement: String,
        /// SQLite's error.
        error: rusqlite::Error,
    },
    /// A statement of `schema.sql` is not one that a schema may have.
    #[error("{what} is not available in a schema: {statement}")]
    Unsupported {
        /// What kind of statement it is, or what it calls.
        what: String,
        /// The statement.
        statement: String,
    },
    /// Tables cannot replicate under their policies; every offending constraint is listed.
    #[error("{}", list(.0))]
    Refused(Vec<Refusal>),
    /// The list of members must begin with the node that is given the genesis.
    #[error("the genesis does not list {0} with its incarnation as its first member")]
    NotTheOrigin(NodeId),
    /// A policy names a table that the schema does not make.
    #[error("a policy names the table {0:?}, which the schema does not create")]
    NoSuchTable(String),
}

fn list(refusals: &[Refusal]) -> String {
    let lines: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    format!("the schema cannot replicate as declared:\n  {}", lines.join("\n  "))
}

fn waiting(nodes: &[NodeId]) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
    format!(" (waiting for {})", names.join(", "))
}

fn at(origin: Option<&NodeId>) -> String {
    origin.map(|node| format!(" (node {node})")).unwrap_or_default()
}

/// Why a write job was not committed. Nothing of it was written; of a migration that is
/// [`SchemaAccepted`](Self::SchemaAccepted), only that it waits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// SQLite refused a statement or the commit; its own code and message are inside.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// SQLite refused a statement of a migration; nothing of the migration was done.
    #[error("statement {number} of the migration: {error}")]
    InMigration {
        /// Which one, counted from 1.
        number: usize,
        /// SQLite's error.
        #[source]
        error: rusqlite::Error,
    },
    /// This node's `Join` has not been applied yet, so its entries would have no author. It passes
    /// once the node has been linked to the cluster.
    #[error("this node is not a member yet: it has not received its Join from the origin")]
    NotAMember,
    /// The node is read-only by its configuration: it never becomes a member. Send the write to one.
    #[error(
        "this node is read-only (read_only = true in its configuration); write at a member, or at the \
         origin"
    )]
    ReadOnly,
    /// The table is written at the origin only. Send the statement to the origin.
    #[error(
        "table {table:?} is written at the origin only, and read there only if it is origin-strong; run the \
         statement there, or declare the table with writers = \"any\""
    )]
    OriginOnly {
        /// The table.
        table: String,
    },
    /// The schema changes at the origin only. Run the statement there: it reaches every node.
    #[error(
        "{what} concerns the schema, which is the origin's: run it there{}, and it reaches every node",
        at(.origin.as_ref())
    )]
    SchemaChange {
        /// What was asked for.
        what: String,
        /// The node that is origin, if this node knows.
        origin: Option<NodeId>,
    },
    /// Tables could not replicate after the change; every offending constraint is listed.
    #[error("{}", list(.0))]
    Refused(Vec<Refusal>),
    /// A policy was declared of a table that there is not.
    #[error("there is no table {table:?} to declare a policy of")]
    NoSuchTable {
        /// Its name.
        table: String,
    },
    /// The table waits for a change of its schema, and takes no writes meanwhile; nothing was written.
    /// Retry once every node has heard of it.
    #[error(
        "table {table:?} is about to change its schema and takes no writes until every node knows{}; \
         retry later",
        waiting(.waiting_for)
    )]
    SchemaChanging {
        /// The table.
        table: String,
        /// The nodes that have not said yet that they know; empty where that is not known.
        waiting_for: Vec<NodeId>,
    },
    /// Not refused: the change of the schema was accepted, and happens by itself once every node has heard of
    /// it. It must not be run again; [`Status::freeze`](crate::Status::freeze) tells how it goes.
    #[error(
        "the change is accepted, and happens by itself once every node knows of it{}; until then table \
         {table:?} takes no writes. Do not run it again",
        waiting(.waiting_for)
    )]
    SchemaAccepted {
        /// The first table that waits.
        table: String,
        /// The nodes that have not said yet that they know.
        waiting_for: Vec<NodeId>,
    },
    /// What was declared is no policy.
    #[error("{0}")]
    Policy(String),
    /// A change of a multi-writer table that must not meet writes under way on other nodes.
    #[error(
        "{what} cannot happen while other nodes write to table {table:?}: the change has to wait for them; \
         run it as a migration, outside of a transaction that goes on"
    )]
    NeedsFreeze {
        /// The table.
        table: String,
        /// The change.
        what: String,
    },
    /// A statement that write jobs may not use, because it would reach beyond the job.
    #[error("{what} is not available in a write job")]
    Forbidden {
        /// What was asked for.
        what: String,
    },
    /// The job may not do that; see [`WriteTx::restrict`](crate::WriteTx::restrict).
    #[error("{what} is not granted")]
    NotGranted {
        /// What was asked for.
        what: String,
    },
    /// A program that was carried here has given back more than can be carried.
    #[error(
        "the request gives back {bytes} bytes, and {RESULT_BYTES_MAX} can be carried from the origin; ask \
         for less, or ask the origin itself"
    )]
    ResultTooLarge {
        /// How much.
        bytes: usize,
    },
    /// A value that the column's declaration cannot replicate.
    #[error("table {table:?}, column {column:?}: {what}")]
    Value {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// What is wrong with the value.
        what: String,
    },
    /// A row with this key exists but could not be stored here, so it is parked; it can be written at
    /// other nodes. See `littoral_conflicts` for what stands in its way.
    #[error(
        "table {table:?}: the row {row} exists but is parked at this node, because it could not be \
         stored; see littoral_conflicts for the reason"
    )]
    Parked {
        /// The table.
        table: String,
        /// The key, as a JSON array.
        row: String,
    },
    /// The stamps of this node have come too far ahead of the origin's clock: a clock was wrong. What
    /// it would write to multi-writer tables would win against everybody, and be held by every other
    /// node. Mend the clock, and retry; it passes once the time has caught up.
    #[error(
        "the stamps of this node are {:.1} s ahead of the origin's clock, because a clock was or is \
         wrong, so it writes nothing to tables that every node writes; set the clock right, and retry \
         when the time has caught up",
        .ahead.as_secs_f64()
    )]
    ClockAhead {
        /// How far.
        ahead: Duration,
    },
    /// The transaction changes more than one entry can hold. Split it.
    #[error(
        "the transaction's entry would be {bytes} bytes or more, and {max} are allowed; split it, or \
         raise max_entry"
    )]
    EntryTooLarge {
        /// Its size as far as it was encoded.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// The job itself gave up.
    #[error("{0}")]
    Aborted(String),
    /// The disk is full; nothing was written. The replica reads only until there is room, which it tries
    /// twice a second; retry then.
    #[error(
        "the disk is full, and nothing was written: this node takes no writes until there is room, and \
         tries twice a second whether there is; reads go on"
    )]
    DiskFull,
    /// The replica stopped, or its storage fails; retry once it has recovered.
    #[error("the replica cannot write: {0}")]
    Unavailable(String),
}

impl WriteError {
    /// Whether the same job may succeed later without being changed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotAMember
            | Self::DiskFull
            | Self::Unavailable(_)
            | Self::SchemaChanging { .. }
            | Self::ClockAhead { .. } => true,
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(
                    rusqlite::ErrorCode::DatabaseBusy
                        | rusqlite::ErrorCode::DatabaseLocked
                        | rusqlite::ErrorCode::DiskFull
                        | rusqlite::ErrorCode::SystemIoFailure
                )
            ),
            Self::InMigration { .. }
            | Self::OriginOnly { .. }
            | Self::ReadOnly
            | Self::SchemaChange { .. }
            | Self::SchemaAccepted { .. }
            | Self::Refused(_)
            | Self::NoSuchTable { .. }
            | Self::Policy(_)
            | Self::NeedsFreeze { .. }
            | Self::Forbidden { .. }
            | Self::NotGranted { .. }
            | Self::Value { .. }
            | Self::ResultTooLarge { .. }
            | Self::Parked { .. }
            | Self::EntryTooLarge { .. }
            | Self::Aborted(_) => false,
        }
    }
}

/// Why remote entries were not applied. Nothing of the batch was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ApplyError {
    /// Storage fails: tried again later.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The entry breaks the format or its author's rights: applying anything behind it would break
    /// causality, so the node stops its links.
    #[error("entry {dot} cannot be applied: {what}")]
    Undecodable { dot: Dot, what: String },
}

impl From<(Dot, ChunkError)> for ApplyError {
    fn from((dot, error): (Dot, ChunkError)) -> Self {
        match error {
            ChunkError::Sqlite(error) => Self::Sqlite(error),
            error => Self::Undecodable { dot, what: error.to_string() },
        }
    }
}

impl ApplyError {
    pub(crate) fn undecodable(dot: Dot, error: DecodeError) -> Self {
        Self::Undecodable { dot, what: error.to_string() }
    }

    pub(crate) fn clocks(dot: Dot, error: ClockError) -> Self {
        match error {
            ClockError::Sqlite(error) => Self::Sqlite(error),
            ClockError::PassedEpoch | ClockError::Frontier { .. } => {
                Self::Undecodable { dot, what: error.to_string() }
            }
        }
    }
}

/// A peer broke the protocol; its link is closed, nothing else happens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ProtocolError {
    #[error("malformed frame: {0}")]
    Malformed(String),
    #[error("frame or entry format not supported: {0}")]
    Incompatible(String),
    #[error("the peer belongs to cluster {0}")]
    WrongCluster(ClusterId),
    #[error("the certificate names {certificate}, the peer says it is {said}")]
    WrongNode { certificate: NodeId, said: NodeId },
    #[error("entry {found} came where {expected} must")]
    Gap { found: Dot, expected: Dot },
    #[error("entry {dot} has previous digest {found:?}, ours is {ours:?}: the author's log forked")]
    Fork { dot: Dot, found: Digest, ours: Digest },
    #[error("at {dot} the digests differ: the author's log forked")]
    ForkedVector { dot: Dot },
    #[error("the peer has {theirs} of this node's entries, this node has {ours}: it lost state")]
    LostState { theirs: Dot, ours: u64 },
    #[error(
        "the peer has written {seq} entries as {author} and has an empty file: it lost its file, and \
         must start again with an empty directory and a new incarnation"
    )]
    LostFile { author: AuthorId, seq: u64 },
    #[error(
        "a peer has trimmed entries that this member has not: its file is an old copy, or it was cut \
         from the cluster. Start the node again with an empty directory and a new incarnation \
         (`littoral ca issue`)"
    )]
    LeftBehind,
    #[error("the peer is this node itself")]
    LinkedToSelf,
    #[error("an entry cannot be decoded, and nothing behind it may be applied: {0}")]
    Undecodable(String),
    #[error("entries of author {0}, whose join is not in the log before them")]
    UnknownAuthor(AuthorId),
    #[error("more entries than the credit allows")]
    TooMuch,
    #[error("entries up to {trimmed} are trimmed at one end, and the other lacks some of them")]
    TooOld { trimmed: VersionVector },
    #[error("nothing heard for too long")]
    TimedOut,
    #[error("a newer link to the same node took over")]
    Replaced,
    #[error("storage fails: {0}")]
    Storage(#[from] rusqlite::Error),
    #[error("{0}")]
    Halted(String),
}

impl ProtocolError {
    /// What the peer is told.
    pub(crate) const fn code(&self) -> CloseCode {
        match self {
            Self::Malformed(_) | Self::TooMuch => CloseCode::Malformed,
            Self::Incompatible(_) => CloseCode::Incompatible,
            Self::WrongCluster(_) => CloseCode::WrongCluster,
            Self::WrongNode { .. } | Self::LinkedToSelf => CloseCode::WrongNode,
            Self::Gap { .. } | Self::UnknownAuthor(_) => CloseCode::Gap,
            Self::Fork { .. } | Self::ForkedVector { .. } => CloseCode::Fork,
            Self::LostState { .. } | Self::LostFile { .. } => CloseCode::LostState,
            Self::TooOld { .. } => CloseCode::TooOld,
            Self::TimedOut => CloseCode::TimedOut,
            Self::Replaced => CloseCode::Replaced,
            Self::Storage(_) => CloseCode::Storage,
            Self::Undecodable(_) | Self::Halted(_) | Self::LeftBehind => CloseCode::Halted,
        }
    }
}
