//! [`Known`]: which statements were short when they were run last.

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::BuildHasher as _,
    time::Duration,
};

use parking_lot::Mutex;

/// So many texts are known at most; when there are more, all are learned anew.
const TEXTS_KNOWN: usize = 4096;

/// Texts of what was short when it was done last.
pub(super) struct Known {
    /// What is short takes no longer.
    most: Duration,
    hasher: RandomState,
    short: Mutex<HashSet<u64>>,
}

impl Known {
    pub(super) fn new(most: Duration) -> Self {
        Self { most, hasher: RandomState::new(), short: Mutex::default() }
    }

    /// What a text is called here. If two should be called the same, only time is lost.
    pub(super) fn name(&self, text: &str) -> u64 {
        self.hasher.hash_one(text)
    }

    pub(super) fn is_short(&self, name: u64) -> bool {
        self.short.lock().contains(&name)
    }

    pub(super) fn took(&self, name: u64, took: Duration) {
        let mut short = self.short.lock();
        if took > self.most {
            short.remove(&name);
        } else if !short.contains(&name) {
            if short.len() >= TEXTS_KNOWN {
                short.clear();
            }
            short.insert(name);
        }
    }
}
