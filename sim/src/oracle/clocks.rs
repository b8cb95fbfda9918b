//! [`Clocks`]: what time it was at the origin, and that nobody lived in its future.
//!
//! A machine that was told the origin's time may only be as wrong as it says itself: its estimate is what
//! some clock said that the origin had since the estimate's age. A machine that was not told has its own
//! clock. Either way it takes nothing that is further ahead, and writes nothing that is far ahead.

use littoral::{
    ClockStatus, EntryHeader, WallTime,
    limits::{FUTURE_MAX, OWN_STAMPS_AHEAD_MAX},
};

use super::{Check, Promise, broken};
use crate::clock::{MS, Nanos, WallClock};

/// Clocks count in whole milliseconds, and so do messages.
const ROUNDING_MS: u64 = 5;

/// The clocks that the origin had.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    origin: Vec<(Nanos, WallClock)>,
}

impl Clocks {
    /// The origin has this clock from now on.
    pub(crate) fn set(&mut self, now: Nanos, clock: WallClock) {
        self.origin.push((now, clock));
    }

    /// The earliest and the latest that a clock would say now which the origin had since a time.
    fn range(&self, since: Nanos, now: Nanos) -> (u64, u64) {
        let first = self.origin.iter().rposition(|(from, _)| *from <= since).unwrap_or(0);
        let says = self.origin[first..].iter().map(|(_, clock)| clock.at(now).wall.0);
        (says.clone().min().unwrap_or(0), says.max().unwrap_or(0))
    }

    /// A machine has taken entries into its log, its own among them.
    pub(crate) fn judge<'e>(
        &self,
        machine: usize,
        now: Nanos,
        clock: &ClockStatus,
        entries: impl Iterator<Item = (bool, &'e EntryHeader)>,
    ) -> Check {
        let (from, upto) = match (machine, clock.error, clock.age) {
            (1.., Some(error), Some(age)) => {
                let age = Nanos::try_from(age.as_nanos()).unwrap_or(Nanos::MAX);
                let (from, upto) = self.range(now.saturating_sub(age).saturating_sub(MS), now);
                let error = millis(error) + ROUNDING_MS;
                (from - error, upto + error)
            }
            _ => (clock.wall.0, clock.wall.0),
        };
        if !(from..=upto).contains(&clock.corrected.0) {
            return broken(
                Promise::Clocks,
                format!(
                    "m{machine} takes the origin's clock to say {}, and it says {} to {}: {clock:?}",
                    clock.corrected,
                    WallTime(from),
                    WallTime(upto)
                ),
            );
        }
        for (own, header) in entries {
            let most = if own { OWN_STAMPS_AHEAD_MAX } else { FUTURE_MAX };
            // The origin stamps what only it may write, whatever its clock says.
            let exempt = own && machine == 0;
            if !exempt && header.hlc.wall().0 > upto + millis(most) + ROUNDING_MS {
                let what = if own { "wrote" } else { "applied" };
                return broken(
                    Promise::Clocks,
                    format!(
                        "m{machine} {what} {} with stamp {}, when it was {} at the latest",
                        header.dot,
                        header.hlc,
                        WallTime(upto)
                    ),
                );
            }
        }
        Ok(())
    }
}

fn millis(length: std::time::Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}
