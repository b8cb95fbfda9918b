//! littoral: embedded edge data replication for SQLite.
mod capture;
mod contested;
mod db;
mod driver;
mod entry;
mod error;
mod genesis;
mod hlc;
mod id;
pub mod limits;
mod log;
mod merge;
mod open;
mod policy;
mod protocol;
mod replica;
mod schema;
mod sqlite;
mod status;
#[cfg_attr(not(feature = "testing"), doc(hidden))]
pub mod testing;
mod time;
mod value;
mod version;

pub use db::{Committed, Db, Job, Reader, TxStatement, WriteTx, writer::Synchronous};
pub use driver::{Channel, CloseCode, DatabaseDigest, Event, Identity, Input, Output};
pub use entry::{
    Cell, CellWrite, Digest, Entry, EntryHeader, Member, Membership, RowOp, RowOpKind, Segment,
    TableDeclaration, codec::RowsReader,
};
pub use error::{GenesisError, OpenError, WriteError};
pub use genesis::Genesis;
pub use hlc::{Hlc, Stamp};
pub use id::{
    AuthorId, ClusterId, ColumnId, Incarnation, InvalidNodeId, Lsn, NodeId, PeerId, SchemaVersion,
    Seq, TableId, Ticket,
};
pub use open::Builder;
pub use policy::{ColumnType, Consistency, TablePolicy, UnknownWord, Writers};
pub use protocol::frame::{FRAME_HEADER_BYTES, FrameTooLong, frame_length};
pub use replica::Replica;
pub use schema::Refusal;
pub use status::{Counts, PeerStatus, Status};
pub use time::{Instant, Now, WallTime};
pub use value::{DecodeError, ValueRef};
pub use version::{Dot, VersionVector};
