//! littoral: embedded edge data replication for SQLite.
mod entry;
mod hlc;
mod id;
pub mod limits;
mod policy;
mod time;
mod value;
mod version;
pub use entry::*;
pub use entry::codec::RowsReader;
pub use hlc::*;
pub use id::*;
pub use policy::*;
pub use time::*;
pub use version::*;
pub use value::{ValueRef, DecodeError};
