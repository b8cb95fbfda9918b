//! How old a machine's rows are, and that it never says less.

use std::time::Duration;

use littoral::Admission;

use super::{Check, Promise, broken, logs::Logs};
use crate::clock::{Nanos, SECOND};

/// When everything is quiet, every machine's rows are known to be no older than this: a question every
/// quarter of a second on each of some links, and its way.
const QUIET_LAG: Nanos = 10 * SECOND;

/// A machine, whose log was just read, says that it has all that the origin had so long ago.
pub(crate) fn judge(logs: &mut Logs, machine: usize, now: Nanos, lag: Option<Duration>) -> Check {
    let Some(lag) = lag.map(nanos) else { return Ok(()) };
    let Some((dot, since)) = logs.oldest_missing(machine) else { return Ok(()) };
    let truly = now - since;
    if lag >= truly {
        return Ok(());
    }
    broken(
        Promise::Staleness,
        format!(
            "m{machine} says that it lacks nothing that the origin has had for {lag} ns, and lacks {dot}, \
             which it has had for {truly} ns"
        ),
    )
}

/// A machine, whose log was just read, serves a read of rows that may be `bound` old at most.
pub(crate) fn judge_bound(logs: &mut Logs, machine: usize, now: Nanos, bound: Nanos) -> Check {
    let Some((dot, since)) = logs.oldest_missing(machine) else { return Ok(()) };
    let truly = now - since;
    if truly <= bound {
        return Ok(());
    }
    let what = format!(
        "m{machine} shows rows that may be {bound} ns old, and lacks {dot}, which the origin has had for \
         {truly} ns"
    );
    broken(Promise::Staleness, what)
}

/// A connection that keeps the bounds of tables prepares what is admitted, and nothing else.
pub(crate) fn judge_kept(
    machine: usize,
    sql: &str,
    admission: Admission,
    prepared: bool,
    refused: Option<Admission>,
) -> Check {
    if (admission == Admission::Serve) == prepared && prepared == refused.is_none() {
        return Ok(());
    }
    let what = format!(
        "m{machine} has {admission:?} for {sql}, and a connection that keeps bounds has {} it: {refused:?}",
        if prepared { "prepared" } else { "refused" }
    );
    broken(Promise::Staleness, what)
}

/// After quiet every machine knows that it is up to date.
pub(crate) fn judge_quiet(machine: usize, lag: Option<Duration>) -> Check {
    if lag.is_some_and(|lag| nanos(lag) < QUIET_LAG) {
        return Ok(());
    }
    broken(
        Promise::Staleness,
        format!("nothing happens, and m{machine} says that its lag is {lag:?}"),
    )
}

fn nanos(length: Duration) -> Nanos {
    Nanos::try_from(length.as_nanos()).unwrap_or(Nanos::MAX)
}
