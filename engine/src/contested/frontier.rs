//! Frontiers: which entries every member has applied, and what is forgotten for it.

use rusqlite::Connection;

use crate::{
    contested::{ClockError, Contested, row::RowClock, shelf::Shelf},
    hlc::Stamp,
    testing::{Bug, planted},
    value::{ByteReader, DecodeError, put_varint},
    version::{Dot, VersionVector, put_dots, read_dots},
};

/// What the newest frontier covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stable {
    /// Its number, 0 before the first.
    pub(crate) number: u64,
    /// Every member had applied this before it acknowledged the frontier's reason.
    pub(crate) covered: VersionVector,
    /// Entries that hold frontiers and are not covered yet.
    open: Vec<Dot>,
}

impl Contested {
    /// What is stable so far.
    pub(crate) const fn stable(&self) -> &Stable {
        &self.stable
    }

    /// Takes in frontier `number`, which covers `covered` and stands in the entry stamped `at`.
    pub(crate) fn frontier(
        &mut self,
        disk: &Connection,
        number: u64,
        covered: &VersionVector,
        at: Stamp,
    ) -> Result<(), ClockError> {
        if number != self.stable.number + 1 || !covered.covers_all(&self.stable.covered) {
            return Err(ClockError::Frontier { found: number, last: self.stable.number });
        }
        self.stable.number = number;
        self.stable.covered = covered.clone();
        self.stable.open.push(at.dot());
        self.stable.open.retain(|dot| !covered.covers(*dot));
        // Asked for every stamp of the blocks that it concerns: a search in a few words side by side.
        let bounds: Vec<Dot> = covered.iter().collect();
        let covers = |dot: Dot| {
            let found = bounds.binary_search_by_key(&dot.author, |bound| bound.author);
            found.is_ok_and(|place| dot.seq <= bounds[place].seq)
        };
        let is_covered = |stamp: Stamp| covers(stamp.dot());
        let change = |clock: &mut RowClock| clock.drop_covered(&is_covered, number, at);
        let concerned = |dot| covers(dot) || planted(Bug::DropAny);
        Ok(self.shelf.change_all(disk, concerned, change)?)
    }

    /// What the next frontier covers, if `applied` is what every member has acknowledged; `None` if it
    /// would bring nothing: frontiers about frontiers would never end.
    pub(crate) fn next_frontier(&self, applied: &VersionVector) -> Option<VersionVector> {
        let mut covered = self.stable.covered.clone();
        covered.advance_all(applied);
        let more = covered.missing_from(&self.stable.covered);
        let is_frontier = |dot: &&Dot| covered.covers(**dot);
        let frontiers = self.stable.open.iter().filter(is_frontier).count() as u64;
        (more > frontiers || more > 0 && self.shelf.shifts() > 0).then_some(covered)
    }

    // --- On disk

    /// The clocks as the last checkpoint of the file left them; `stable` is what it says of frontiers.
    pub(crate) fn open(disk: &Connection, stable: Stable) -> rusqlite::Result<Self> {
        Ok(Self { shelf: Shelf::open(disk)?, stable, marked: None })
    }

    /// Bytes that a checkpoint would write, about.
    pub(crate) fn unsaved_bytes(&self) -> usize {
        self.shelf.unsaved()
    }

    /// Writes what changed since the last checkpoint, within the transaction under way. When that has
    /// committed, [`Contested::saved`] must follow.
    pub(crate) fn save(&mut self, disk: &Connection) -> rusqlite::Result<()> {
        self.shelf.save(disk)
    }

    /// What was written is committed.
    pub(crate) fn saved(&mut self) {
        self.shelf.saved();
    }

    /// Keeps within [`CLOCK_MEMORY_BYTES`](crate::limits::CLOCK_MEMORY_BYTES) if the last checkpoint
    /// allows; false if another one is due for that.
    pub(crate) fn shrink(&mut self) -> bool {
        self.shelf.shrink()
    }
}

impl Stable {
    /// Whether it is an entry that holds a frontier and is not covered by a later one.
    pub(crate) fn is_open_frontier(&self, dot: Dot) -> bool {
        self.open.contains(&dot)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.number);
        put_dots(out, self.covered.iter());
        put_dots(out, self.open.iter().copied());
    }

    pub(crate) fn decode(reader: &mut ByteReader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            number: reader.varint()?,
            covered: read_dots(reader)?.into_iter().collect(),
            open: read_dots(reader)?,
        })
    }
}
