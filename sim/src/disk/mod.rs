//! The disks of all machines: files in memory behind a SQLite VFS of our own.
//!
//! [`store`] knows what is written, what is synced and what a crash leaves of it; [`vfs`] lends it
//! to SQLite, shared memory, clock and randomness included. A machine's files are those whose path
//! begins with its name, as in `/m3/replica.db`.
//!
//! Invariants:
//! - a process crash keeps every completed write, a power cut keeps what was synced, and of the rest
//!   any part that chance names;
//! - SQLite learns of no clock and no entropy but the run's.

pub(crate) mod store;
pub(crate) mod vfs;
