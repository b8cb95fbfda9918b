//! What the verdicts of [`Contested`](crate::contested::Contested) do to stored rows.
//!
//! The verdict is `contested`'s alone; here it is carried out, on the apply connection, which has
//! foreign keys, triggers and CHECK constraints off.
//!
//! Invariants:
//! - rows of other nodes are written by this module only, with INSERT, UPDATE and DELETE only;
//! - a value that a merge discards goes to `littoral_conflicts` in the same transaction.

pub(crate) mod apply;
mod conflict;
pub(crate) mod functions;
mod row;
mod store;
