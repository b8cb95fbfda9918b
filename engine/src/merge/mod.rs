//! What the verdicts of [`Contested`](crate::contested::Contested) do to stored rows.
//!
//! The verdict is `contested`'s alone; here it is carried out, on the apply connection, which has
//! foreign keys, triggers and CHECK constraints off.
//!
//! Invariants:
//! - rows of other nodes are written by this module only, with INSERT, UPDATE and DELETE only;
//! - a value that a merge discards goes to `littoral_conflicts` in the same transaction;
//! - of the schema's triggers only the derived ones fire, [mirrored](mirror).

pub(crate) mod apply;
mod conflict;
pub(crate) mod functions;
pub(crate) mod mirror;
mod row;
mod store;
