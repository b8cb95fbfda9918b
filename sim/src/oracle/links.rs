//! [`Links`]: links end for a reason.
//!
//! - Of two links that two machines made at once, not both are closed for the other's sake.
//! - A machine that is linked, and known to be a member, is never told that the log has been trimmed past
//!   what it was sent, except for what was trimmed before that was known.

use std::collections::BTreeMap;

use littoral::limits::KEEP_ALIVE;
use rusqlite::Connection;

use super::{Check, Promise, broken, logs::Logs};
use crate::{
    clock::Nanos,
    network::{ConnId, Side},
};

/// The last link that a machine has closed for a newer one's sake.
#[derive(Clone, Copy, Debug)]
struct Replaced {
    conn: ConnId,
    opened: Nanos,
    closed: Nanos,
}

/// What was closed for a newer link's sake.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// By who closed it, and whom it led to.
    replaced: BTreeMap<[usize; 2], Replaced>,
}

impl Links {
    /// A machine closes its side of a link, since another one leads to the same machine.
    pub(crate) fn replaced(&mut self, now: Nanos, machine: usize, side: Side) -> Check {
        let Side { conn, opened, other } = side;
        let young = |opened, closed: Nanos| closed - opened < nanos_of_keep_alive();
        if !young(opened, now) {
            return Ok(());
        }
        let ours = Replaced { conn, opened, closed: now };
        self.replaced.insert([machine, other], ours);
        let at_once = |theirs: &&Replaced| {
            theirs.conn != conn && theirs.opened <= now && opened <= theirs.closed
        };
        match self.replaced.get(&[other, machine]).filter(at_once) {
            None => Ok(()),
            Some(theirs) => broken(
                Promise::Availability,
                format!(
                    "m{machine} and m{other} made two links at once, and closed both: connections {conn} \
                     and {}",
                    theirs.conn
                ),
            ),
        }
    }
}

/// A machine, whose log held `known` entries when it last had nothing to do, closes a link since the
/// other end lacks what is trimmed. It may, if that was trimmed before the other was a member.
pub(crate) fn too_old(
    logs: &Logs,
    machine: usize,
    reader: &Connection,
    known: usize,
    other: usize,
) -> Check {
    let Some((place, trimmed)) = logs.member_since(machine, other) else { return Ok(()) };
    if place >= known || logs.trimmed(machine, reader)? == trimmed {
        return Ok(());
    }
    broken(
        Promise::Availability,
        format!("m{machine} has trimmed what m{other}, a member, was to be sent on its link"),
    )
}

fn nanos_of_keep_alive() -> Nanos {
    Nanos::try_from(KEEP_ALIVE.as_nanos()).expect("a second")
}
