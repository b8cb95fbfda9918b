//! [`Ids`]: the numbers that the SQL function `littoral_id()` gives.
//!
//! An id is below 2^53, since JavaScript and several SDKs cannot read larger integers: 41 bits of ticks,
//! then 12 bits that name the author. A tick is a millisecond since 2020, or the tick after the last
//! one, whichever is later. So an author gives no id twice, whatever its clock does, and no two authors
//! give the same; ids are ordered by time as well as clocks agree, as long as a node gives less than a
//! thousand a second. One that gives more runs ahead of its clock, and comes back to it later.
//!
//! Ticks last until September 2089. Authors beyond the 4095th have no ids.
//!
//! What was given is saved with the next job that commits, that which asked for it included. What was
//! only read, and never written at this node, may be given again if the node restarts after its clock
//! was set back.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use rusqlite::{Connection, functions::FunctionFlags};

use crate::{id::AuthorId, time::WallTime};

/// 2020-01-01T00:00:00Z, in milliseconds since 1970.
const EPOCH_MS: u64 = 1_577_836_800_000;

const TICK_BITS: u32 = 41;
const AUTHOR_BITS: u32 = 12;

const _: () = assert!(TICK_BITS + AUTHOR_BITS == 53);

/// Gives ids to all connections of a file, on any thread.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    /// The author's number; 0 while there is none.
    author: AtomicU32,
    /// Milliseconds since the epoch, as the replica was last told.
    now: AtomicU64,
    /// The last tick given.
    last: AtomicU64,
    /// The last tick that the file knows of.
    saved: AtomicU64,
}

/// Why there is no id to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoId {
    #[error("littoral_id(): this node is not a member yet, so it has no ids of its own")]
    NotAMember,
    #[error("littoral_id(): only the first 4095 members have ids; use a TEXT key instead")]
    TooManyAuthors,
    #[error("littoral_id(): the time is beyond what an id can hold")]
    TooLate,
}

impl Ids {
    /// Takes from the file what was given before it was opened.
    pub(crate) fn resume(&self, saved: u64, wall: WallTime) {
        // Every entry is younger than the ids that its job was given within their milliseconds.
        let given = saved.max(ticks(wall));
        self.last.fetch_max(given, Ordering::Relaxed);
        self.saved.store(given, Ordering::Relaxed);
    }

    /// Tells the time, and who the node is.
    pub(crate) fn tell(&self, wall: WallTime, author: Option<AuthorId>) {
        self.now.store(ticks(wall), Ordering::Relaxed);
        // Origins of later terms will number their members on; there are none yet.
        let number = author.filter(|author| author.term == AuthorId::FIRST.term);
        self.author.store(number.map_or(0, |author| author.counter), Ordering::Relaxed);
    }

    /// The last tick given, if the file does not know of it; from here on it counts as saved.
    pub(crate) fn unsaved(&self) -> Option<u64> {
        let last = self.last.load(Ordering::Relaxed);
        (self.saved.swap(last, Ordering::Relaxed) < last).then_some(last)
    }

    fn next(&self) -> Result<i64, NoId> {
        let author = u64::from(self.author.load(Ordering::Relaxed));
        if author == 0 {
            return Err(NoId::NotAMember);
        }
        if author >> AUTHOR_BITS > 0 {
            return Err(NoId::TooManyAuthors);
        }
        let now = self.now.load(Ordering::Relaxed);
        let after = |last: u64| Some(now.max(last + 1)).filter(|tick| tick >> TICK_BITS == 0);
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, after)
            .map_err(|_| NoId::TooLate)?;
        Ok((now.max(last + 1) << AUTHOR_BITS | author).cast_signed())
    }
}

fn ticks(wall: WallTime) -> u64 {
    wall.0.saturating_sub(EPOCH_MS)
}

/// Makes the function on a connection.
pub(crate) fn prepare_connection(conn: &Connection, ids: &Arc<Ids>) -> rusqlite::Result<()> {
    // Innocuous: defaults, views and triggers may call it.
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let ids = Arc::clone(ids);
    conn.create_scalar_function("littoral_id", 0, flags, move |_| {
        ids.next().map_err(|error| rusqlite::Error::UserFunctionError(Box::new(error)))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn author(counter: u32) -> Option<AuthorId> {
        Some(AuthorId { term: 1, counter })
    }

    proptest! {
        #[test]
        fn no_id_is_given_twice_whatever_clocks_do(
            steps in proptest::collection::vec((1u32..4, 0u64..2000, 1usize..40, any::<bool>()), 1..60),
        ) {
            let mut nodes: Vec<Ids> = (0..4).map(|_| Ids::default()).collect();
            let mut saved = [0; 4];
            let mut given = BTreeSet::new();
            for (node, ms, count, restart) in steps {
                let place = node as usize;
                let wall = WallTime(EPOCH_MS + ms);
                if restart {
                    nodes[place] = Ids::default();
                    nodes[place].resume(saved[place], WallTime(0));
                }
                nodes[place].tell(wall, author(node));
                let mut last = None;
                for _ in 0..count {
                    let id = nodes[place].next().unwrap();
                    prop_assert!((1..1 << 53).contains(&id));
                    prop_assert!(given.insert(id), "{id} was given before");
                    prop_assert!(last < Some(id), "ids of a node ascend");
                    last = Some(id);
                }
                saved[place] = nodes[place].unsaved().unwrap_or(saved[place]);
            }
        }
    }

    #[test]
    fn ids_follow_the_clock_across_nodes() {
        let (one, other) = (Ids::default(), Ids::default());
        one.tell(WallTime(1_900_000_000_000), author(7));
        other.tell(WallTime(1_900_000_000_001), author(2));
        assert!(one.next().unwrap() < other.next().unwrap());
    }

    #[test]
    fn what_has_no_number_has_no_ids() {
        let ids = Ids::default();
        assert_eq!(ids.next(), Err(NoId::NotAMember));
        ids.tell(WallTime(EPOCH_MS), author(4095));
        assert!(ids.next().is_ok());
        ids.tell(WallTime(EPOCH_MS), author(4096));
        assert_eq!(ids.next(), Err(NoId::TooManyAuthors));
        ids.tell(WallTime(EPOCH_MS + (1 << 41)), author(1));
        assert_eq!(ids.next(), Err(NoId::TooLate));
    }
}
