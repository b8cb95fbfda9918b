//! [`run_seed`]: one run from its seed to its verdict, panics included.

use std::{
    cell::RefCell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use crate::{
    clock::Nanos,
    cluster::{Cluster, Tally},
    oracle::{Failure, Promise},
    scenario::BlockCounts,
    world::Options,
};

/// What one run came to.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// Its seed.
    pub(crate) seed: u64,
    /// The first promise that was broken, if any.
    pub(crate) failure: Option<Failure>,
    /// Hash of everything that happened, and of all files at the end; empty after a crash.
    pub(crate) hash: String,
    /// How many events there were.
    pub(crate) events: u64,
    /// How long it was in virtual time.
    pub(crate) simulated: Nanos,
    /// What happened in it.
    pub(crate) tally: Tally,
    /// What became of each kind of call of a scenario.
    pub(crate) counts: Vec<BlockCounts>,
}

thread_local! {
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a seed once.
pub(crate) fn run_seed(seed: u64, options: &Options) -> Report {
    catch_panics();
    LAST_PANIC.set(None);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        let mut cluster = Cluster::new(seed, options);
        let failure = cluster.run().err();
        Report {
            seed,
            failure,
            hash: cluster.hash(),
            events: cluster.events(),
            simulated: cluster.now(),
            tally: cluster.tally(),
            counts: cluster.counts(),
        }
    }));
    outcome.unwrap_or_else(|_| {
        let what = LAST_PANIC.take().unwrap_or_else(|| "a panic without a message".to_owned());
        Report {
            seed,
            failure: Some(Failure::Crash(what)),
            hash: String::new(),
            events: 0,
            simulated: 0,
            tally: Tally::default(),
            counts: Vec::new(),
        }
    })
}

/// Runs a seed twice; two runs that differ are a failure of their own.
pub(crate) fn run_twice(seed: u64, options: &Options) -> Report {
    let mut first = run_seed(seed, options);
    let second = run_seed(seed, &Options { trace: false, ..options.clone() });
    if first.hash != second.hash {
        let what = format!("two runs of one seed differ: {} and {}", first.hash, second.hash);
        first.failure.get_or_insert(Failure::Broken { promise: Promise::Determinism, what });
    }
    first
}

/// Runs a seed whose run has violated an invariant once more, and keeps what an explanation needs.
pub(crate) fn explain(report: &Report, options: &Options) -> Report {
    let recorded = run_seed(report.seed, &Options { recording: true, ..options.clone() });
    if recorded.hash == report.hash {
        return recorded;
    }
    let what = format!("two runs of one seed differ: {} and {}", report.hash, recorded.hash);
    Report { failure: Some(Failure::Broken { promise: Promise::Determinism, what }), ..recorded }
}

/// Keeps the message of a panic for the report, instead of printing it.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if crate::disk::vfs::Session::is_running() {
                LAST_PANIC.set(Some(panic.to_string()));
            } else {
                before(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;

    fn options() -> Options {
        Options { nodes: Some(4), chaos: 4 * SECOND, ..Options::default() }
    }

    #[test]
    fn the_same_seed_is_the_same_run() {
        for seed in 0..3 {
            let (one, two) = (run_seed(seed, &options()), run_seed(seed, &options()));
            assert_eq!(one.hash, two.hash, "seed {seed}");
            assert_eq!(one.events, two.events);
        }
    }

    #[test]
    fn different_seeds_are_different_runs() {
        assert_ne!(run_seed(1, &options()).hash, run_seed(2, &options()).hash);
    }

    #[test]
    fn a_cluster_without_writes_is_silent_for_ten_hours() {
        let hour = 3600 * SECOND;
        let options = Options { chaos: SECOND, silence: 10 * hour, ..options() };
        let report = run_seed(1, &options);
        assert!(report.failure.is_none(), "{:?}", report.failure);
        assert!(report.simulated > 10 * hour);
    }

    #[test]
    fn every_promise_is_kept() {
        for seed in 0..10 {
            let report = run_seed(seed, &options());
            assert!(report.failure.is_none(), "seed {seed}: {:?}", report.failure);
            assert!(report.tally.jobs.done > 0, "seed {seed}");
        }
    }
}
