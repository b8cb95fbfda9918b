//! Plants each mistake that the engine can make on purpose, and looks whether the simulator finds it.
//!
//! A planted bug is the process's, so one is planted at a time. A seed counts only if it passes
//! without the bug.

use littoral::testing::{Bug, plant};

use crate::{oracle::Failure, run::run_seed, world::Options};

/// What became of one planted bug.
#[derive(Clone, Debug)]
pub(crate) struct Hunt {
    /// The bug.
    pub(crate) bug: Bug,
    /// How many seeds were run.
    pub(crate) seeds: u64,
    /// The seed that found it, and what it saw.
    pub(crate) found: Option<(u64, Failure)>,
}

/// Runs seeds with `bug` planted until one fails or `expired` says so.
pub(crate) fn hunt(bug: Bug, first: u64, options: &Options, expired: impl Fn() -> bool) -> Hunt {
    plant(bug);
    let mut hunt = Hunt { bug, seeds: 0, found: None };
    while hunt.found.is_none() && !expired() {
        let seed = first + hunt.seeds;
        hunt.seeds += 1;
        let Some(failure) = run_seed(seed, options).failure else { continue };
        plant(Bug::None);
        if run_seed(seed, options).failure.is_none() {
            hunt.found = Some((seed, failure));
        }
        plant(bug);
    }
    plant(Bug::None);
    hunt
}

/// The bug of a name.
pub(crate) fn bug_named(name: &str) -> Option<Bug> {
    Bug::ALL.into_iter().find(|bug| format!("{bug:?}").eq_ignore_ascii_case(name))
}
