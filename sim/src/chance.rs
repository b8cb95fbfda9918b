//! [`Chance`]: every random decision of a run, each drawn by name.
//!
//! A decision is a function of the seed and of a key: which kind of decision, for which thing, the
//! how-manieth of that thing. There is no shared sequence to advance, so leaving one decision out
//! moves no other: the run around it stays as it was, and a failing seed can be taken apart.
//!
//! Invariants:
//! - the same seed and key give the same [`Draw`], in every process and on every machine;
//! - nothing else in this crate is random.

/// What kind of decision is drawn. Kinds never share bits, whatever their keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Stream {
    /// Shape of the cluster: topology, rates, which faults may happen.
    World,
    /// Skew of a machine's wall clock.
    Clock,
    /// Latency and bandwidth of a link.
    Link,
    /// Delay of one frame.
    Frame,
    /// How a connection ends.
    Cut,
    /// When a connection comes back.
    Connect,
    /// Faults: when, what, whom.
    Fault,
    /// When jobs are submitted, and how many at once.
    Arrival,
    /// What one job does.
    Job,
    /// What survives a power cut.
    PowerCut,
    /// How long a sync or a WAL checkpoint takes.
    Disk,
    /// What SQLite gets as randomness.
    Entropy,
    /// The engine's own seeds.
    Engine,
    /// Order of events of the same time.
    Tie,
    /// When readers look.
    Probe,
    /// When rows are compared, and which a disk loses.
    Decay,
    /// What a client of a scenario calls.
    Call,
    /// How long it waits from call to call.
    Think,
    /// When the origin changes the schema, and how.
    Schema,
    /// How long a client thinks within an interactive transaction.
    Talk,
    /// What clients have run at the origin, from where, and how often they try.
    Request,
    /// What clients do with the rows of an `origin-strong` table, and from where.
    Seat,
    /// What clients do in transactions at the origin, and how long they think.
    Guest,
    /// Where clients go who carry nothing.
    Wander,
}

/// The source of every decision in one run.
#[derive(Clone, Debug)]
pub(crate) struct Chance {
    key: [u8; 32],
}

impl Chance {
    /// The decisions of one seed.
    pub(crate) fn of(seed: u64) -> Self {
        Self { key: blake3::derive_key("littoral-sim 2026 chance", &seed.to_le_bytes()) }
    }

    /// The decision of kind `stream` that is the `index`th about `entity`.
    pub(crate) fn draw(&self, stream: Stream, entity: u64, index: u64) -> Draw {
        let mut name = [0; 24];
        name[..8].copy_from_slice(&(stream as u64).to_le_bytes());
        name[8..16].copy_from_slice(&entity.to_le_bytes());
        name[16..].copy_from_slice(&index.to_le_bytes());
        let hash = blake3::keyed_hash(&self.key, &name);
        let mut state = [0; 4];
        for (word, bytes) in state.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            *word = u64::from_le_bytes(eight);
        }
        Draw { state }
    }
}

/// One decision, which may need several numbers: xoshiro256++ seeded by the hash of the key.
#[derive(Clone, Debug)]
pub(crate) struct Draw {
    state: [u64; 4],
}

impl Draw {
    /// 64 random bits.
    pub(crate) const fn word(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let word = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        word
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing to choose from");
        let wide = u128::from(self.word()) * u128::from(bound);
        u64::try_from(wide >> 64).expect("the product of two 64-bit numbers has 128 bits")
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A number from `low` to `high` whose logarithm is even: small ones are as likely as large.
    pub(crate) fn spread(&mut self, low: u64, high: u64) -> u64 {
        let low = low.max(1);
        let octaves = u64::from((high / low).max(1).ilog2()) + 1;
        let base = low << self.below(octaves);
        self.between(base.min(high), (base.saturating_mul(2) - 1).min(high))
    }

    /// An index into something of `len` elements, which is not empty.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("an index below a usize")
    }

    /// One of `choices`.
    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.index(choices.len())]
    }

    /// One of `choices`, each as likely as its weight says.
    pub(crate) fn weighted<'a, T>(&mut self, choices: &'a [(u64, T)]) -> &'a T {
        let mut left = self.below(choices.iter().map(|(weight, _)| weight).sum());
        for (weight, choice) in choices {
            if left < *weight {
                return choice;
            }
            left -= weight;
        }
        unreachable!("a number below the sum of the weights falls into one of them")
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Puts `items` into a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_depends_on_its_key_alone() {
        let chance = Chance::of(7);
        let alone = chance.draw(Stream::Job, 3, 9).word();
        for index in 0..8 {
            chance.draw(Stream::Job, 3, index).word();
            chance.draw(Stream::Frame, 3, 9).word();
        }
        assert_eq!(chance.draw(Stream::Job, 3, 9).word(), alone);
    }

    #[test]
    fn neighbors_in_every_part_of_the_key_differ() {
        let chance = Chance::of(7);
        let draws = [
            chance.draw(Stream::Job, 3, 9).word(),
            chance.draw(Stream::Job, 3, 10).word(),
            chance.draw(Stream::Job, 4, 9).word(),
            chance.draw(Stream::Fault, 3, 9).word(),
            Chance::of(8).draw(Stream::Job, 3, 9).word(),
        ];
        let mut sorted = draws.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), draws.len());
    }

    #[test]
    fn every_choice_is_drawn_and_none_beyond() {
        let chance = Chance::of(1);
        let mut seen = [0u32; 5];
        for index in 0..500 {
            seen[chance.draw(Stream::World, 0, index).index(5)] += 1;
            let spread = chance.draw(Stream::World, 1, index).spread(10, 1000);
            assert!((10..=1000).contains(&spread), "{spread}");
        }
        assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
    }
}
