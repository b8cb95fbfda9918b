//! littoral: embedded edge data replication for SQLite.
//!
//! [`Replica`] is the whole engine, without a socket, a clock or a thread: a driver hands in what
//! happened and drains what is to be done. Begin with [`Replica::builder`].
//!
//! ```
//! use littoral::{ClusterId, Genesis, Identity, Incarnation, NodeId, Now, Output, Replica};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("app.sqlite");
//! let identity = Identity {
//!     cluster: ClusterId(1),
//!     node: NodeId::new("app")?,
//!     incarnation: Incarnation(1),
//! };
//! let genesis = Genesis {
//!     members: vec![(identity.node.clone(), identity.incarnation)],
//!     schema: "CREATE TABLE cart(item TEXT PRIMARY KEY NOT NULL, n INTEGER)".into(),
//!     ..Genesis::default()
//! };
//! let now = Now::default(); // what the driver's clocks say
//! let mut replica = Replica::builder(identity).genesis(genesis).open(&path, now, 0)?;
//! replica.write(now, Box::new(|tx| tx.execute("INSERT INTO cart VALUES('tea', 1)", ()).map(drop)));
//! let committed = loop {
//!     match replica.poll() {
//!         Output::Done { result, .. } => break result?,
//!         Output::WakeAt(_) => unreachable!("a job is answered in the drain that follows"),
//!         _ => {}
//!     }
//! };
//! assert!(committed.dot.is_some());
//! # Ok(())
//! # }
//! ```
//!
//! Reading order of the sources: `entry`, `contested`, `log`, `capture`, `merge`, `db`, `protocol`,
//! `replica`. `docs/ARCHITECTURE.md` is the map.

mod bookmark;
mod capture;
mod contested;
mod corrected;
mod db;
mod driver;
mod entry;
mod error;
mod forward;
mod genesis;
mod grants;
mod hlc;
mod id;
mod identity;
mod ids;
pub mod limits;
mod log;
mod merge;
mod open;
mod policy;
mod protocol;
mod replica;
mod schema;
mod set;
mod sqlite;
mod status;
#[cfg_attr(not(feature = "testing"), doc(hidden))]
pub mod testing;
mod time;
mod value;
mod version;
mod watermarks;

pub use bookmark::{Bookmark, BookmarkNotReached, Missing};
pub use db::{
    Admission, Committed, Db, Job, PieceWritten, ProgramJob, ReadRefused, Reader, Snapshot,
    Touched, TxStatement, WriteTx, writer::Synchronous,
};
pub use driver::{Channel, CloseCode, DatabaseDigest, Event, Identity, Input, Output};
pub use entry::{
    Cell, CellWrite, Digest, Entry, EntryHeader, Fate, Freeze, Member, Membership, Removal, RowOp,
    RowOpKind, Segment, SetChange, TableChange, TableDeclaration, rows::RowsReader,
};
pub use error::{GenesisError, OpenError, WriteError};
pub use forward::{ForwardError, Guest, Outcome, Request, RequestId};
pub use genesis::Genesis;
pub use grants::{Grants, TableSet};
pub use hlc::{Hlc, Stamp};
pub use id::{
    AuthorId, ClusterId, ColumnId, Incarnation, InvalidNodeId, Lsn, NodeId, PeerId, SchemaVersion,
    Seq, TableId, Ticket,
};
pub use open::Builder;
pub use policy::{
    ColumnType, Consistency, MaxLag, OnStale, OnUnreachable, PERSONAL_VALUE, TablePolicy,
    UnknownWord, Writers,
};
pub use protocol::frame::{FRAME_HEADER_BYTES, FrameTooLong, Piece, frame_length};
pub use replica::Replica;
pub use schema::{Refusal, Trigger, TriggerClass};
pub use set::Element;
pub use status::{
    ClockStatus, Counts, ForeignWrites, FreezeStatus, Held, Hold, HoldReason, PeerStatus,
    Stability, Status, Verification,
};
pub use time::{Instant, Now, WallTime};
pub use value::{DecodeError, ValueRef};
pub use version::{Dot, VersionVector};
