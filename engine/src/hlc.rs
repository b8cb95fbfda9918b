//! Hybrid logical clocks: [`Hlc`] timestamps, the [`Stamp`] that orders writes, and the clock that
//! issues them.
//!
//! After Kulkarni et al., "Logical Physical Clocks" (2014): 48 bits of milliseconds since 1970 and a
//! 16-bit counter for events within one of them or while the wall clock lags behind.
//!
//! Invariant: a clock issues only stamps greater than everything it issued or observed before.

use std::fmt;

use crate::{
    id::{AuthorId, Seq},
    time::WallTime,
    version::Dot,
};

/// A hybrid timestamp.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The wall clock part.
    pub const fn wall(self) -> WallTime {
        WallTime(self.0 >> 16)
    }

    /// The latest wall clock time that a timestamp may carry, in milliseconds: in the year 6429.
    /// Later ones are refused on links, so that there is always a greater timestamp.
    pub(crate) const LATEST: WallTime = WallTime((1 << 47) - 1);

    const fn at(wall: WallTime) -> Self {
        let wall = if wall.0 > Self::LATEST.0 { Self::LATEST } else { wall };
        Self(wall.0 << 16)
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.wall(), self.0 & 0xffff)
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What last-writer-wins compares: time first, then author. The sequence number makes it name the
/// entry; it never decides, since one author's stamps are ascending.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stamp {
    /// When.
    pub hlc: Hlc,
    /// By whom: breaks ties.
    pub author: AuthorId,
    /// In which entry of the author.
    pub seq: Seq,
}

impl Stamp {
    /// The entry that carries the stamp.
    pub const fn dot(self) -> Dot {
        Dot { author: self.author, seq: self.seq }
    }
}

/// Issues timestamps.
#[derive(Debug, Clone, Default)]
pub(crate) struct HlcClock {
    last: Hlc,
}

impl HlcClock {
    /// A clock that has already observed `last`.
    pub(crate) const fn starting_after(last: Hlc) -> Self {
        Self { last }
    }

    /// The greatest timestamp issued or observed.
    pub(crate) const fn last(&self) -> Hlc {
        self.last
    }

    /// Makes every later timestamp greater than `seen`.
    pub(crate) fn observe(&mut self, seen: Hlc) {
        self.last = self.last.max(seen);
    }

    /// A timestamp greater than all before, and not before `wall`.
    pub(crate) fn tick(&mut self, wall: WallTime) -> Hlc {
        self.last = Hlc(self.last.0 + 1).max(Hlc::at(wall));
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_ascend_while_the_wall_clock_stands_still_or_goes_back() {
        let mut clock = HlcClock::default();
        let a = clock.tick(WallTime(1000));
        let b = clock.tick(WallTime(1000));
        let c = clock.tick(WallTime(900));
        assert!(a < b && b < c);
        assert_eq!(clock.tick(WallTime(1001)).wall(), WallTime(1001));
    }

    #[test]
    fn a_timestamp_follows_what_was_observed() {
        let mut clock = HlcClock::default();
        clock.observe(Hlc::at(WallTime(5000)));
        assert!(clock.tick(WallTime(1000)) > Hlc::at(WallTime(5000)));
    }

    #[test]
    fn a_wall_clock_beyond_the_latest_time_does_not_overflow() {
        let mut clock = HlcClock::default();
        let first = clock.tick(WallTime(u64::MAX));
        assert_eq!(first.wall(), Hlc::LATEST);
        assert!(clock.tick(WallTime(u64::MAX)) > first);
    }

    #[test]
    fn a_full_counter_carries_into_the_milliseconds() {
        let mut clock = HlcClock::starting_after(Hlc((7 << 16) | 0xffff));
        assert_eq!(clock.tick(WallTime(7)), Hlc(8 << 16));
    }
}
