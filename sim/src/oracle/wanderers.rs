//! [`Wanderers`]: clients that carry nothing from machine to machine read nothing older than they have read,
//! as their machines meet the origin for them before and after.

use littoral::{Dot, VersionVector};

use super::{Check, Promise, broken};

/// How many there are at most.
pub(crate) const WANDERERS: usize = 3;

/// What each has seen.
#[derive(Debug, Default)]
pub(crate) struct Wanderers {
    each: [Seen; WANDERERS],
}

#[derive(Debug, Default)]
struct Seen {
    told: VersionVector,
    /// What a machine held where it has just read, and has not been answered yet.
    found: Option<VersionVector>,
}

impl Wanderers {
    /// One reads on a machine that holds these entries, and is answered later.
    pub(crate) fn reads(&mut self, number: usize, machine: usize, held: &VersionVector) -> Check {
        let seen = &mut self.each[number];
        if let Some(dot) = seen.told.iter().find(|dot| !held.covers(*dot)) {
            let what = format!(
                "client {number}, who carries nothing, reads on m{machine}, which holds {held}, and has seen \
                 {dot} before"
            );
            return broken(Promise::Sessions, what);
        }
        seen.found = Some(held.clone());
        Ok(())
    }

    /// It is answered, or is not.
    pub(crate) fn answered(&mut self, number: usize, told: bool) {
        let seen = &mut self.each[number];
        if let Some(found) = seen.found.take().filter(|_| told) {
            seen.told.advance_all(&found);
        }
    }

    /// A power cut took an entry from its author: who has seen it begins anew.
    pub(crate) fn lost(&mut self, dot: Dot) {
        for seen in &mut self.each {
            if seen.found.as_ref().is_some_and(|found| found.covers(dot)) {
                seen.found = None;
            }
            if seen.told.covers(dot) {
                seen.told = VersionVector::default();
            }
        }
    }
}
