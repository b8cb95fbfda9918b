//! [`CorrectedClock`]: what the origin's wall clock says, as far as this node can tell.
//!
//! Every keep-alive asks a peer what it takes the origin's clock to say. The answer was given at some
//! moment between question and answer, so taken for the middle of the two it is wrong by at most half
//! the round trip, beside what the peer may be wrong by itself (Cristian, "Probabilistic clock
//! synchronization", 1989). So the origin's time spreads along relays, and errors add up.
//!
//! An estimate goes on with the monotonic clock, so the wall clock of this node and its jumps do not
//! matter once there is one; until then the wall clock is all there is. Its error grows with its age, so
//! of the answers of some seconds the one with the least round trip counts.
//!
//! Invariants:
//! - what a node has told others never comes back as something better: on its way its error only grows;
//! - of two answers that contradict each other the one counts that the origin gave later: the origin's
//!   clock was set in between.

use std::time::Duration;

use crate::{
    hlc::Hlc,
    limits::{CLOCK_DRIFT_PPM, FUTURE_MAX},
    time::{Instant, Now, WallTime},
};

/// What somebody takes the origin's wall clock to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OriginTime {
    /// Since 1970.
    pub(crate) time: Duration,
    /// By how much it may be wrong, either way.
    pub(crate) error: Duration,
    /// How long ago the origin itself has said so.
    pub(crate) age: Duration,
}

impl OriginTime {
    /// The origin's own clock.
    pub(crate) const fn exact(wall: WallTime) -> Self {
        let time = Duration::from_millis(wall.0);
        Self { time, error: Duration::ZERO, age: Duration::ZERO }
    }

    /// In milliseconds, as links carry it; the error is rounded up.
    pub(crate) fn to_wire(self) -> (u64, u64, u64) {
        let error = self.error.as_nanos().div_ceil(1_000_000);
        (millis(self.time), u64::try_from(error).unwrap_or(u64::MAX), millis(self.age))
    }

    /// The inverse.
    pub(crate) fn from_wire((time, error, age): (u64, u64, u64)) -> Self {
        let time = Duration::from_millis(time.min(Hlc::LATEST.0));
        Self { time, error: Duration::from_millis(error), age: Duration::from_millis(age) }
    }

    /// The same, so much later.
    fn after(self, elapsed: Duration) -> Self {
        let drift = elapsed / (1_000_000 / CLOCK_DRIFT_PPM);
        Self {
            time: self.time + elapsed,
            error: self.error.saturating_add(drift),
            age: self.age.saturating_add(elapsed),
        }
    }

    /// Whether both cannot be right.
    fn contradicts(self, other: Self) -> bool {
        self.time.abs_diff(other.time) > self.error.saturating_add(other.error)
    }
}

/// The origin's wall clock, as it is estimated; the node's own one until there is an estimate.
#[derive(Debug, Default)]
pub(crate) struct CorrectedClock {
    estimate: Option<(Instant, OriginTime)>,
}

impl CorrectedClock {
    /// What is known of the origin's clock.
    pub(crate) fn origin(&self, now: Instant) -> Option<OriginTime> {
        self.estimate.map(|(at, estimate)| estimate.after(now.since(at)))
    }

    /// What it says.
    pub(crate) fn at(&self, now: Now) -> WallTime {
        self.origin(now.mono).map_or(now.wall, |origin| WallTime(millis(origin.time)))
    }

    /// A peer has answered, so long after it was asked.
    pub(crate) fn learn(&mut self, now: Instant, round_trip: Duration, told: OriginTime) {
        let half = round_trip / 2;
        let heard = OriginTime {
            time: told.time + half,
            // It was told in whole milliseconds.
            error: told.error.saturating_add(half + Duration::from_millis(1)),
            age: told.age.saturating_add(round_trip),
        };
        let counts = self.origin(now).is_none_or(|known| {
            if heard.contradicts(known) {
                heard.age < known.age
            } else {
                heard.error <= known.error
            }
        });
        if counts {
            self.estimate = Some((now, heard));
        }
    }
}

/// The latest stamp that is not from the future.
pub(crate) fn latest_stamp(corrected: WallTime) -> WallTime {
    WallTime(corrected.0.saturating_add(millis(FUTURE_MAX)))
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// At this many milliseconds of the monotonic clock, with a wall clock that stands still.
    fn at(millis: u64) -> Now {
        Now { mono: Instant(0) + ms(millis), wall: WallTime(5) }
    }

    fn told(clock: &mut CorrectedClock, now: u64, round_trip: u64, time: u64) {
        clock.learn(at(now).mono, ms(round_trip), OriginTime::exact(WallTime(time)));
    }

    #[test]
    fn until_somebody_answers_the_own_wall_clock_counts() {
        let mut clock = CorrectedClock::default();
        assert_eq!(clock.at(at(100)), WallTime(5));
        told(&mut clock, 100, 20, 1_000_000);
        assert_eq!(clock.at(at(100)), WallTime(1_000_010));
        assert_eq!(clock.at(at(350)), WallTime(1_000_260));
    }

    #[test]
    fn the_least_round_trip_of_some_seconds_counts() {
        let mut clock = CorrectedClock::default();
        told(&mut clock, 0, 20, 1_000_000);
        // The way back took all of the 80 ms.
        told(&mut clock, 1000, 80, 1_000_930);
        assert_eq!(clock.at(at(1000)), WallTime(1_001_010), "the quicker answer stays");
        told(&mut clock, 2000, 4, 1_002_006);
        assert_eq!(clock.at(at(2000)), WallTime(1_002_008), "a still quicker one replaces it");
        told(&mut clock, 300_000, 80, 1_299_960);
        assert_eq!(clock.at(at(300_000)), WallTime(1_300_000), "an old one does not last for ever");
    }

    #[test]
    fn an_origin_whose_clock_was_set_is_believed_at_once() {
        let mut clock = CorrectedClock::default();
        told(&mut clock, 0, 2, 1_000_000);
        told(&mut clock, 1000, 200, 700_000);
        assert_eq!(clock.at(at(1000)), WallTime(700_100));
    }

    #[test]
    fn what_others_heard_before_the_origins_clock_was_set_is_not_believed() {
        let mut clock = CorrectedClock::default();
        let mut other = CorrectedClock::default();
        told(&mut clock, 0, 2, 1_000_000);
        let echo = OriginTime::from_wire(clock.origin(at(500).mono).unwrap().to_wire());
        other.learn(at(501).mono, ms(2), echo);
        told(&mut clock, 1000, 200, 700_000);
        let echo = OriginTime::from_wire(other.origin(at(1001).mono).unwrap().to_wire());
        clock.learn(at(1002).mono, ms(2), echo);
        assert_eq!(clock.at(at(1002)), WallTime(700_102));
    }

    #[test]
    fn an_estimate_never_comes_back_as_a_better_one() {
        let mut clocks = [CorrectedClock::default(), CorrectedClock::default()];
        told(&mut clocks[0], 0, 2, 1_000_000);
        let first = clocks[0].origin(at(0).mono).unwrap();
        for round in 1..2000 {
            let (now, to) = (at(round), usize::from(round % 2 == 1));
            let told = clocks[1 - to].origin(now.mono).unwrap();
            clocks[to].learn(now.mono, ms(0), OriginTime::from_wire(told.to_wire()));
        }
        assert_eq!(clocks[0].origin(at(2000).mono).unwrap(), first.after(ms(2000)));
    }

    #[test]
    fn nothing_that_a_peer_says_overflows() {
        let mut clock = CorrectedClock::default();
        let most = OriginTime::from_wire((u64::MAX, u64::MAX, u64::MAX));
        clock.learn(Instant(u64::MAX), Duration::from_nanos(u64::MAX), most);
        clock.learn(Instant(0), Duration::from_nanos(u64::MAX), most);
        let _ = clock.origin(Instant(u64::MAX)).unwrap().to_wire();
        assert_eq!(latest_stamp(WallTime(u64::MAX)), WallTime(u64::MAX));
    }
}
