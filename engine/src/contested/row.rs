//! [`RowClock`]: the clocks of one row, and how a block packs them.

use crate::{
    contested::sets::{Known, SetClocks},
    entry::RowOpKind,
    hlc::{Hlc, Stamp},
    id::{AuthorId, ColumnId},
    testing::{Bug, planted},
    value::{ByteReader, DecodeError, put_varint},
    version::Dot,
};

/// The clocks of one row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RowClock {
    /// How often the row was deleted and inserted again, counted from the newest frontier.
    pub(super) epoch: u32,
    pub(super) dead: bool,
    /// The insert that wrote every column up to an id; single cells may be newer.
    pub(super) base: Option<(Stamp, ColumnId)>,
    pub(super) cells: CellClocks,
    pub(super) sets: SetClocks,
    /// Every delete that was applied and that no frontier covers yet, with the epoch it named.
    pub(super) deletes: Vec<(u32, Stamp)>,
    /// By how much frontiers have shifted the row's epochs.
    pub(super) shifts: Vec<Shift>,
}

/// A frontier has made the epochs of a row smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shift {
    /// Number of the frontier.
    pub(super) frontier: u64,
    pub(super) by: u32,
    /// The entry of the frontier: once a later one covers it, nobody writes under an older one.
    pub(super) at: Stamp,
}

/// Stands for the stamp of a cell that a frontier covers while the row's base is not covered.
pub(super) const FORGOTTEN: Stamp =
    Stamp { hlc: Hlc(0), author: AuthorId { term: 0, counter: 0 }, seq: 0 };

/// The stamps of single cells: most often one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CellClocks {
    first: Option<(ColumnId, Stamp)>,
    more: Vec<(ColumnId, Stamp)>,
}

impl CellClocks {
    pub(super) fn iter(&self) -> impl Iterator<Item = &(ColumnId, Stamp)> {
        self.first.iter().chain(&self.more)
    }

    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    pub(super) fn set(&mut self, column: ColumnId, stamp: Stamp) {
        let Some(first) = &mut self.first else {
            self.first = Some((column, stamp));
            return;
        };
        match std::iter::once(first).chain(&mut self.more).find(|(id, _)| *id == column) {
            Some((_, held)) => *held = stamp,
            None => self.more.push((column, stamp)),
        }
    }

    /// Forgets stamps. While a base stands that would show behind them, it is noted that they are
    /// forgotten.
    fn forget(&mut self, gone: impl Fn(Stamp) -> bool, base: bool) {
        if base {
            for (_, stamp) in self.first.iter_mut().chain(&mut self.more) {
                if gone(*stamp) {
                    *stamp = FORGOTTEN;
                }
            }
            return;
        }
        self.more.retain(|(_, stamp)| !gone(*stamp));
        if self.first.is_some_and(|(_, stamp)| gone(stamp)) {
            self.first = self.more.pop();
        }
    }
}

impl RowClock {
    pub(super) fn cell(&self, column: ColumnId) -> Option<Stamp> {
        match self.cells.iter().find(|(id, _)| *id == column) {
            Some((_, stamp)) => (*stamp != FORGOTTEN).then_some(*stamp),
            None => self.base.filter(|(_, upto)| column <= *upto).map(|(stamp, _)| stamp),
        }
    }

    pub(super) fn begin(&mut self, epoch: u32) {
        self.epoch = epoch;
        self.dead = false;
        self.base = None;
        self.cells = CellClocks::default();
        self.sets = SetClocks::default();
    }

    /// Whether no cell was assigned in the present epoch, as far as a concurrent write may ask.
    pub(super) fn has_no_cells(&self) -> bool {
        self.base.is_none() && self.cells.first.is_none()
    }

    /// Takes note of a delete that named `epoch`, whether it takes effect or not.
    pub(super) fn deleted(&mut self, epoch: u32, stamp: Stamp) {
        if planted(Bug::LateShift) {
            self.deletes.retain(|(held, _)| *held != epoch);
        }
        self.deletes.push((epoch, stamp));
    }

    pub(super) fn die(&mut self) {
        self.begin(self.epoch);
        self.dead = true;
    }

    /// The epoch of an operation, named by an author who had applied the frontier `under`, as this
    /// replica counts; `None` if it is older than what can still arrive.
    pub(super) fn epoch_now(&self, named: u32, under: u64) -> Option<u32> {
        let later = self.shifts.iter().filter(|shift| shift.frontier > under);
        later.map(|shift| shift.by).try_fold(named, u32::checked_sub)
    }

    /// The epoch that a local write to the row names; `insert` begins a new one over a tombstone.
    pub(crate) fn epoch_for(&self, kind: RowOpKind) -> u32 {
        match kind {
            RowOpKind::Insert if self.dead && !planted(Bug::EpochKept) => self.epoch + 1,
            RowOpKind::Insert | RowOpKind::Update | RowOpKind::Delete => self.epoch,
        }
    }

    /// Stamps a cell; gives the entry whose value is overwritten.
    pub(crate) fn overwrite(&mut self, column: ColumnId, stamp: Stamp) -> Option<Dot> {
        let previous = self.cell(column).map(Stamp::dot);
        self.cells.set(column, stamp);
        previous
    }

    /// Takes in that a local write adds an element to a set.
    pub(crate) fn add(&mut self, column: ColumnId, element: Vec<u8>, stamp: Stamp) {
        self.sets.add(column, element, stamp);
    }

    /// Takes in that a local write removes an element from a set; gives the adds it takes away.
    pub(crate) fn remove(&mut self, column: ColumnId, element: Vec<u8>) -> Known {
        self.sets.take(column, element)
    }

    /// The entries whose values a local delete of the row discards.
    pub(super) fn seen(&self, dots: &mut Vec<Dot>) {
        dots.clear();
        dots.extend(self.base.iter().map(|(stamp, _)| stamp.dot()));
        let cells = self.cells.iter().filter(|(_, stamp)| *stamp != FORGOTTEN);
        dots.extend(cells.map(|(_, stamp)| stamp.dot()));
        dots.sort_unstable();
        dots.dedup();
    }

    /// Forgets what a frontier covers: after it, whoever writes the row has seen all of that.
    pub(super) fn drop_covered(
        &mut self,
        covered: &impl Fn(Stamp) -> bool,
        frontier: u64,
        at: Stamp,
    ) {
        self.shifts.retain(|shift| !covered(shift.at));
        let gone = |stamp: Stamp| covered(stamp) || planted(Bug::DropAny);
        let by = self.deletes.iter().filter(|(_, stamp)| gone(*stamp)).map(|(m, _)| m + 1).max();
        if let Some(by) = by {
            if !planted(Bug::NoShift) {
                self.shifts.push(Shift { frontier, by, at });
            }
            self.deletes.retain_mut(|(epoch, _)| {
                let stays = *epoch >= by;
                *epoch = epoch.saturating_sub(by);
                stays
            });
            if self.epoch < by { self.begin(0) } else { self.epoch -= by }
        }
        self.base = self.base.filter(|(stamp, _)| !gone(*stamp));
        self.sets.forget(gone);
        let gone = |stamp: Stamp| stamp == FORGOTTEN || gone(stamp);
        self.cells.forget(gone, self.base.is_some());
    }

    /// Whether the row is as if it had no clocks at all.
    pub(super) fn is_empty(&self) -> bool {
        let Self { epoch, dead, base, cells, sets, deletes, shifts } = self;
        *epoch == 0
            && !dead
            && base.is_none()
            && cells.first.is_none()
            && sets.is_empty()
            && deletes.is_empty()
            && shifts.is_empty()
    }

    // --- Packing

    /// How many stamps stand in it, about.
    pub(super) fn stamps(&self) -> usize {
        self.cells.len() + self.deletes.len() + self.sets.len()
    }

    /// Appends the clocks; `intern` gives each stamp a number.
    pub(super) fn pack(&self, out: &mut Vec<u8>, mut intern: impl FnMut(Stamp) -> u64) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        out.push(
            flag(self.dead, DEAD)
                | flag(self.epoch > 0, EPOCH)
                | flag(self.base.is_some(), BASE)
                | flag(self.cells.first.is_some(), CELLS)
                | flag(!self.deletes.is_empty(), DELETES)
                | flag(!self.shifts.is_empty(), SHIFTS)
                | flag(!self.sets.is_empty(), SETS),
        );
        if self.epoch > 0 {
            put_varint(out, u64::from(self.epoch));
        }
        if let Some((stamp, upto)) = self.base {
            put_varint(out, intern(stamp));
            put_varint(out, u64::from(upto.0));
        }
        if self.cells.first.is_some() {
            put_varint(out, self.cells.len() as u64);
            for (column, stamp) in self.cells.iter() {
                put_varint(out, u64::from(column.0));
                put_varint(out, intern(*stamp));
            }
        }
        if !self.deletes.is_empty() {
            put_varint(out, self.deletes.len() as u64);
            for (epoch, stamp) in &self.deletes {
                put_varint(out, u64::from(*epoch));
                put_varint(out, intern(*stamp));
            }
        }
        if !self.shifts.is_empty() {
            put_varint(out, self.shifts.len() as u64);
            for shift in &self.shifts {
                put_varint(out, shift.frontier);
                put_varint(out, u64::from(shift.by));
                put_varint(out, intern(shift.at));
            }
        }
        if !self.sets.is_empty() {
            self.sets.pack(out, intern);
        }
    }

    /// Whether packed clocks are nothing but stamps of values: of a row that is there and was never
    /// deleted, as far as it is remembered. Without the stamps nothing is left of them.
    pub(super) fn are_stamps_alone(packed: &[u8]) -> bool {
        packed.first().is_some_and(|flags| flags & !(BASE | CELLS | SETS) == 0)
    }

    /// The inverse of [`RowClock::pack`].
    pub(super) fn unpack(
        reader: &mut ByteReader<'_>,
        stamps: &[Stamp],
    ) -> Result<Self, DecodeError> {
        let flags = reader.byte()?;
        let has = |flag: u8| flags & flag != 0;
        let mut clock = Self { dead: has(DEAD), ..Self::default() };
        let stamp = |reader: &mut ByteReader<'_>| {
            let number = usize::try_from(reader.varint()?).map_err(|_| DecodeError::Range)?;
            stamps.get(number).copied().ok_or(DecodeError::Range)
        };
        if has(EPOCH) {
            clock.epoch = reader.varint_u32()?;
        }
        if has(BASE) {
            clock.base = Some((stamp(reader)?, ColumnId(reader.varint_u32()?)));
        }
        if has(CELLS) {
            for _ in 0..reader.varint()? {
                let column = ColumnId(reader.varint_u32()?);
                let cell = (column, stamp(reader)?);
                match clock.cells.first {
                    None => clock.cells.first = Some(cell),
                    Some(_) => clock.cells.more.push(cell),
                }
            }
        }
        if has(DELETES) {
            for _ in 0..reader.varint()? {
                clock.deletes.push((reader.varint_u32()?, stamp(reader)?));
            }
        }
        if has(SHIFTS) {
            for _ in 0..reader.varint()? {
                let (frontier, by) = (reader.varint()?, reader.varint_u32()?);
                clock.shifts.push(Shift { frontier, by, at: stamp(reader)? });
            }
        }
        if has(SETS) {
            clock.sets = SetClocks::unpack(reader, stamp)?;
        }
        Ok(clock)
    }
}

const DEAD: u8 = 1;
const EPOCH: u8 = 2;
const BASE: u8 = 4;
const CELLS: u8 = 8;
const DELETES: u8 = 16;
const SHIFTS: u8 = 32;
const SETS: u8 = 64;
