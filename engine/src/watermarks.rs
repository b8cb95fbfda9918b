//! [`Watermarks`]: how old what this node shows may be at most.
//!
//! A watermark says: at some moment the origin had applied these entries, and nothing else. Whoever has
//! applied them too shows nothing older than that moment. Every `Ping` asks for the newest one; the answer
//! says how old it is. So a watermark's age is measured from the asker's own question, by its own monotonic
//! clock: too long by what the question took to arrive, and never too short. No wall clock takes part,
//! so a clock that is wrong, or is set, is no matter; the clocks' rates are, and count as
//! [`CLOCK_DRIFT_PPM`].
//!
//! Invariant: [`Watermarks::age`] is no shorter than the time for which the origin has had an entry that
//! this node has not applied.

use std::{collections::VecDeque, time::Duration};

use crate::{
    limits::{CLOCK_DRIFT_PPM, WATERMARKS_MAX},
    testing::{Bug, planted},
    time::Instant,
    version::VersionVector,
};

/// A moment, so long before a point on the own monotonic clock, which may not reach back that far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AsOf {
    at: Instant,
    before: Duration,
}

impl AsOf {
    /// How long ago that is, with all that clocks may differ.
    pub(crate) fn age(self, now: Instant) -> Duration {
        let passed = now.since(self.at);
        passed.saturating_add(passed / (1_000_000 / CLOCK_DRIFT_PPM)).saturating_add(self.before)
    }

    fn is_after(self, other: Self) -> bool {
        let nanos = |of: Self| {
            i128::from(of.at.0) - i128::try_from(of.before.as_nanos()).unwrap_or(i128::MAX)
        };
        nanos(self) > nanos(other)
    }
}

/// A moment, and what the origin had applied then.
#[derive(Debug)]
struct Watermark {
    as_of: AsOf,
    vector: VersionVector,
}

/// The watermarks that a node has heard of.
#[derive(Debug, Default)]
pub(crate) struct Watermarks {
    /// The newest one that counts: all its entries are applied here.
    counts: Option<AsOf>,
    /// Newer ones whose entries are not all applied, oldest first.
    waiting: VecDeque<Watermark>,
    /// The newest of all, to pass on.
    newest: Option<Watermark>,
}

impl Watermarks {
    /// A peer, asked at `asked`, has answered that the origin had applied `vector` so long before.
    /// `applied` is what this node has applied.
    pub(crate) fn learn(
        &mut self,
        asked: Instant,
        age: Duration,
        vector: &VersionVector,
        applied: &VersionVector,
    ) {
        let as_of = AsOf { at: asked, before: age };
        if self.newest.as_ref().is_none_or(|newest| as_of.is_after(newest.as_of)) {
            self.newest = Some(Watermark { as_of, vector: vector.clone() });
        }
        if !self.counts.is_none_or(|counts| as_of.is_after(counts)) {
            return;
        }
        let place = self.waiting.partition_point(|other| as_of.is_after(other.as_of));
        self.waiting.insert(place, Watermark { as_of, vector: vector.clone() });
        self.settle(applied);
        if self.waiting.len() > WATERMARKS_MAX {
            // Every second one is enough for a node that is so far behind; the newest stays.
            let mut keep = self.waiting.len().is_multiple_of(2);
            self.waiting.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// This node has applied more.
    pub(crate) fn settle(&mut self, applied: &VersionVector) {
        let is_covered =
            |mark: &Watermark| applied.covers_all(&mark.vector) || planted(Bug::WatermarkUncovered);
        if let Some(place) = self.waiting.iter().rposition(is_covered) {
            self.counts = Some(self.waiting[place].as_of);
            self.waiting.drain(..=place);
        }
    }

    /// Whether [`Watermarks::settle`] may find something.
    pub(crate) fn wait(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The newest moment whose state, or a later one, this node shows; `None` while that is not known.
    pub(crate) const fn counts(&self) -> Option<AsOf> {
        self.counts
    }

    /// The newest watermark and its age, for a peer that asks.
    pub(crate) fn newest(&self, now: Instant) -> Option<(Duration, &VersionVector)> {
        self.newest.as_ref().map(|mark| (mark.as_of.age(now), &mark.vector))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::AuthorId, version::Dot};

    fn has(seq: u64) -> VersionVector {
        [Dot { author: AuthorId::FIRST, seq }].into_iter().collect()
    }

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn age(marks: &Watermarks, now: u64) -> Option<u128> {
        marks.counts().map(|as_of| as_of.age(at(now)).as_millis())
    }

    #[test]
    fn a_watermark_counts_once_its_entries_are_applied() {
        let mut marks = Watermarks::default();
        marks.learn(at(1000), ms(0), &has(5), &has(4));
        marks.learn(at(1250), ms(0), &has(6), &has(4));
        assert_eq!(age(&marks, 1300), None, "nothing is known yet");
        marks.settle(&has(5));
        assert_eq!(age(&marks, 1300), Some(300));
        marks.settle(&has(7));
        assert_eq!(age(&marks, 1300), Some(50));
        assert!(!marks.wait());
    }

    #[test]
    fn age_is_counted_from_the_question_and_on_relays_added() {
        let mut relay = Watermarks::default();
        relay.learn(at(1000), ms(0), &has(5), &has(5));
        let (told, vector) = relay.newest(at(1400)).unwrap();
        let mut edge = Watermarks::default();
        edge.learn(at(7000), told, vector, &has(5));
        assert_eq!(age(&edge, 7000), Some(400));
        // An older one by another way changes nothing.
        edge.learn(at(7000), ms(600), &has(4), &has(5));
        assert_eq!(age(&edge, 7000), Some(400));
        // And one from before this node's clock began is as old as it is.
        let mut other = Watermarks::default();
        other.learn(at(0), ms(90_000), &has(5), &has(5));
        assert_eq!(age(&other, 1), Some(90_001));
    }

    #[test]
    fn clocks_may_differ_in_rate() {
        let as_of = AsOf { at: at(0), before: ms(0) };
        assert_eq!(as_of.age(at(2_000_000)), ms(2_001_000));
    }

    #[test]
    fn a_node_that_is_far_behind_keeps_some_and_finds_the_right_one() {
        let mut marks = Watermarks::default();
        for n in 1..=10_000 {
            marks.learn(at(n * 250), ms(0), &has(n), &has(0));
            assert!(marks.waiting.len() <= WATERMARKS_MAX);
        }
        assert_eq!(marks.waiting.back().unwrap().vector, has(10_000));
        for n in (100..=10_000).step_by(100) {
            marks.settle(&has(n));
            if let Some(age) = age(&marks, 2_500_000) {
                assert!(age >= u128::from(2_500_000 - n * 250), "it has {n} and claims {age} ms");
            }
        }
        assert_eq!(age(&marks, 2_500_000), Some(0));
    }

    #[test]
    fn nothing_that_a_peer_says_overflows() {
        let mut marks = Watermarks::default();
        marks.learn(Instant(u64::MAX), Duration::MAX, &has(1), &has(1));
        marks.learn(Instant(0), Duration::MAX, &has(1), &has(1));
        assert!(marks.newest(Instant(u64::MAX)).is_some());
        assert_eq!(marks.counts().unwrap().age(Instant(u64::MAX)), Duration::MAX);
    }
}
