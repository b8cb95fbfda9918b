//! What the verdicts of [`Contested`](crate::contested::Contested) do to stored rows.
//!
//! The verdict is `contested`'s alone; here it is carried out, on the apply connection, which has
//! foreign keys, triggers and CHECK constraints off.
//!
//! Invariants:
//! - rows of other nodes are written by this module only, with INSERT, UPDATE and DELETE only;
//! - a value that a merge discards goes to `littoral_conflicts` in the same transaction;
//! - so does a row that cannot be stored, and word of one that breaks a CHECK: no entry fails for what
//!   its rows hold;
//! - of the schema's triggers only the derived ones fire, [mirrored](mirror).

pub(crate) mod apply;
mod checks;
mod conflict;
pub(crate) mod functions;
mod listed;
pub(crate) mod mirror;
mod parked;
mod repair;
mod row;
mod store;

pub(crate) use checks::Checks;
pub(crate) use conflict::key_text;
pub(crate) use listed::follow_schema;
pub(crate) use parked::Parked;
pub(crate) use repair::{Mended, cells_of, repair};

/// What merging remembers from one entry to the next.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    pub(crate) parked: Parked,
    pub(crate) checks: Checks,
}

#[cfg(test)]
mod tests;
