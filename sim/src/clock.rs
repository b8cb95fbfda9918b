//! Virtual time: one monotonic clock for the whole run, and a wall clock of its own per machine.
//!
//! Wall clocks are wrong by up to [`SKEW_MS`] in either direction, and jump within these bounds.

use littoral::{Instant, Now, WallTime};

use crate::chance::Draw;

/// A point or a length of virtual time, in nanoseconds.
pub(crate) type Nanos = u64;

/// One millisecond.
pub(crate) const MS: Nanos = 1_000_000;

/// One second.
pub(crate) const SECOND: Nanos = 1000 * MS;

/// How wrong a wall clock may be, in milliseconds.
pub(crate) const SKEW_MS: u64 = 2000;

/// What the wall clocks would say at the beginning of a run if they were right.
const START_WALL_MS: u64 = 1_700_000_000_000;

/// The wall clock of one machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WallClock {
    /// Milliseconds that the clock is ahead, above [`SKEW_MS`] behind.
    offset_ms: u64,
}

impl WallClock {
    /// A clock that is right, wrong by a little, or as wrong as it may be.
    pub(crate) fn draw(draw: &mut Draw) -> Self {
        let offset_ms = match draw.below(4) {
            0 => SKEW_MS,
            1 => draw.between(SKEW_MS - 50, SKEW_MS + 50),
            _ => draw.between(0, 2 * SKEW_MS),
        };
        Self { offset_ms }
    }

    /// What both clocks say at a time of the run.
    pub(crate) const fn at(self, now: Nanos) -> Now {
        Now {
            mono: Instant(now),
            wall: WallTime(START_WALL_MS - SKEW_MS + self.offset_ms + now / MS),
        }
    }
}
