//! [`Meter`]: how long things take and how much waits, counted where it happens, for `/metrics`.
//!
//! Counting takes no lock but for links, of which there are few.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use littoral::PeerId;
use parking_lot::Mutex;

/// How often it is looked how far peers are.
const LOOK_AT_PEERS: Duration = Duration::from_millis(250);

/// So many looks at one peer are remembered; when there are more, every second one is forgotten.
const LOOKS_KEPT: usize = 512;

/// What is counted.
#[derive(Debug)]
pub(crate) struct Meter {
    /// From a write job's being handed over to its being committed and as durable as configured.
    pub(crate) commits: Histogram,
    /// From a read's being handed over to its end.
    pub(crate) reads: Histogram,
    /// From a request's being handed over to the origin's answer, or to giving it up.
    pub(crate) forwarded: Histogram,
    /// Syncs of the WAL, beside those that a commit makes itself.
    pub(crate) syncs: Histogram,
    /// Write jobs that are not done, the running one included.
    pub(crate) writes_waiting: Waiting,
    /// Reads that wait for a connection.
    pub(crate) reads_waiting: Waiting,
    /// Statements that were slow.
    pub(crate) slow_statements: AtomicU64,
    /// Spans that no collector was told of.
    pub(crate) spans_dropped: AtomicU64,
    links: Mutex<BTreeMap<PeerId, Link>>,
    looked: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Link {
    /// Bytes of frames that wait to be sent.
    outbox: Arc<AtomicUsize>,
    /// How many entries this node had at some moments: the last one at which the peer has all of them by now,
    /// and those behind it.
    looks: VecDeque<(Instant, u64)>,
    lag: Duration,
}

/// A link, for `/metrics`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkMeter {
    /// Bytes of frames that wait to be sent.
    pub(crate) outbox: usize,
    /// The peer has acknowledged all that this node had so long ago.
    pub(crate) lag: Duration,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            commits: Histogram::default(),
            reads: Histogram::default(),
            forwarded: Histogram::default(),
            syncs: Histogram::default(),
            writes_waiting: Waiting::default(),
            reads_waiting: Waiting::default(),
            slow_statements: AtomicU64::new(0),
            spans_dropped: AtomicU64::new(0),
            links: Mutex::default(),
            looked: Mutex::default(),
        }
    }
}

impl Meter {
    /// A link is up.
    pub(crate) fn linked(&self, peer: PeerId, outbox: Arc<AtomicUsize>) {
        let looks = VecDeque::from([(Instant::now(), 0)]);
        self.links.lock().insert(peer, Link { outbox, looks, lag: Duration::ZERO });
    }

    /// A link is down.
    pub(crate) fn unlinked(&self, peer: PeerId) {
        self.links.lock().remove(&peer);
    }

    /// The links that are up.
    pub(crate) fn links(&self) -> BTreeMap<PeerId, LinkMeter> {
        let links = self.links.lock();
        let meter =
            |link: &Link| LinkMeter { outbox: link.outbox.load(Ordering::Relaxed), lag: link.lag };
        links.iter().map(|(peer, link)| (*peer, meter(link))).collect()
    }

    /// Looks how far peers are, if it is time: `progress` gives for each link how many entries there are, and
    /// how many of these the peer has not acknowledged.
    pub(crate) fn look_at_peers(&self, progress: impl FnOnce() -> Vec<(PeerId, u64, u64)>) {
        let now = Instant::now();
        let mut looked = self.looked.lock();
        if looked.is_some_and(|at| now < at + LOOK_AT_PEERS) {
            return;
        }
        *looked = Some(now);
        let mut links = self.links.lock();
        for (peer, entries, missing) in progress() {
            if let Some(link) = links.get_mut(&peer) {
                link.look(now, entries, missing);
            }
        }
    }
}

impl Link {
    fn look(&mut self, now: Instant, entries: u64, missing: u64) {
        self.looks.push_back((now, entries));
        let done = entries.saturating_sub(missing);
        while self.looks.get(1).is_some_and(|(_, entries)| *entries <= done) {
            self.looks.pop_front();
        }
        if self.looks.len() > LOOKS_KEPT {
            let mut place = 0;
            self.looks.retain(|_| {
                place += 1;
                place % 2 == 1
            });
        }
        let since = self.looks.front().map_or(now, |(at, _)| *at);
        self.lag = if missing == 0 { Duration::ZERO } else { now.saturating_duration_since(since) };
    }
}

/// How many of something are under way.
#[derive(Debug, Default)]
pub(crate) struct Waiting(AtomicU64);

impl Waiting {
    /// One more, until the guard is dropped.
    pub(crate) fn enter(&self) -> Entered<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Entered(&self.0)
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// See [`Waiting::enter`].
#[derive(Debug)]
pub(crate) struct Entered<'a>(&'a AtomicU64);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The upper bounds of a histogram's buckets, in microseconds; one without a bound follows.
pub(crate) const BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// How long something took, how often.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// It took so long once more.
    pub(crate) fn took(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// How often it took at most each of [`BOUNDS_US`], and how often at all.
    pub(crate) fn cumulative(&self) -> [u64; BOUNDS_US.len() + 1] {
        let mut sum = 0;
        self.buckets.each_ref().map(|bucket| {
            sum += bucket.load(Ordering::Relaxed);
            sum
        })
    }

    /// How long it took in all, in seconds.
    pub(crate) fn sum(&self) -> f64 {
        Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let histogram = Histogram::default();
        for us in [0, 500, 501, 20_000_000] {
            histogram.took(Duration::from_micros(us));
        }
        let counts = histogram.cumulative();
        assert_eq!((counts[0], counts[1], counts[13], counts[14]), (2, 3, 3, 4));
        assert!((histogram.sum() - 20.001_001).abs() < 1e-9);
    }

    #[test]
    fn a_peer_lags_by_the_age_of_what_it_has_all_of() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut link = Link {
            outbox: Arc::default(),
            looks: VecDeque::from([(start, 0)]),
            lag: Duration::ZERO,
        };
        link.look(at(250), 10, 0);
        assert_eq!(link.lag, Duration::ZERO);
        link.look(at(500), 20, 10);
        assert_eq!(link.lag, Duration::from_millis(250), "it has what there was at 250");
        link.look(at(750), 30, 15);
        assert_eq!(link.lag, Duration::from_millis(500));
        // It takes entries all the time, and is never done with all of them.
        link.look(at(1000), 40, 10);
        assert_eq!(link.lag, Duration::from_millis(250));
        link.look(at(1250), 40, 0);
        assert_eq!(link.lag, Duration::ZERO);
        for n in 0..10_000 {
            link.look(at(1250 + 250 * n), 50, 10);
        }
        assert!(link.looks.len() <= LOOKS_KEPT);
        assert_eq!(link.lag, Duration::from_millis(250 * 9_999));
    }
}
