//! Virtual time: one monotonic clock for the whole run, and a wall clock of its own per machine.
//!
//! Wall clocks are wrong by up to [`SKEW_MS`] in either direction, and jump within these bounds; where a
//! run has wrong clocks, by up to [`WRONG_MS`].

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

/// How wrong a wall clock may be that is wrong by more than that, in milliseconds.
pub(crate) const WRONG_MS: u64 = 300_000;

/// What the wall clocks would say at the beginning of a run if they were right.
const START_WALL_MS: u64 = 1_700_000_000_000;

/// The wall clock of one machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WallClock {
    /// Milliseconds that the clock is ahead.
    ahead_ms: i64,
}

impl WallClock {
    /// A clock that is right.
    pub(crate) const RIGHT: Self = Self { ahead_ms: 0 };

    /// A clock that is wrong by seconds or minutes.
    pub(crate) fn draw_wrong(draw: &mut Draw) -> Self {
        let least = if draw.percent(50) { 2 * SKEW_MS } else { WRONG_MS / 3 };
        let ms = draw.spread(least, WRONG_MS).cast_signed();
        Self { ahead_ms: if draw.percent(60) { ms } else { -ms } }
    }

    /// A clock that is right, wrong by a little, or as wrong as it may be.
    pub(crate) fn draw(draw: &mut Draw) -> Self {
        let offset_ms = match draw.below(4) {
            0 => SKEW_MS,
            1 => draw.between(SKEW_MS - 50, SKEW_MS + 50),
            _ => draw.between(0, 2 * SKEW_MS),
        };
        Self { ahead_ms: offset_ms.cast_signed() - SKEW_MS.cast_signed() }
    }

    /// Whether it is wrong by more than clocks are in every run.
    pub(crate) const fn is_wrong(self) -> bool {
        self.ahead_ms.unsigned_abs() > SKEW_MS
    }

    /// What both clocks say at a time of the run.
    pub(crate) const fn at(self, now: Nanos) -> Now {
        let right = START_WALL_MS + now / MS;
        Now { mono: Instant(now), wall: WallTime(right.saturating_add_signed(self.ahead_ms)) }
    }
}
