//! [`Contested`]: the clocks that a concurrent write may still meet.
//!
//! A pure reducer over the log: it takes operations in the order in which this node applied their
//! entries and says what of each takes effect. It never looks at rows, so opening a file replays the
//! log through it, effects discarded. What an effect does to stored values is the business of
//! `merge`.
//!
//! This version has no frontier yet: clocks are never dropped, and epochs are absolute.
//!
//! Invariants:
//! - the clocks are a function of the set of entries applied, whatever their order, as long as it is
//!   causal; so are the rows that the verdicts lead to;
//! - a cell has a clock exactly if some operation assigned it in the row's present epoch;
//! - tables that only the origin writes have no clocks at all.
//!
//! The rules are those of section 5 of the design and of its executable model; the row epoch is the
//! causal length of Yu and Rostad, "A low-cost set CRDT based on causal lengths" (2020).

use std::{
    cmp::Ordering,
    collections::{BTreeMap, btree_map::Range},
    iter::Peekable,
    ops::Bound,
};

mod key;
mod local;

use key::RowKey;
pub(crate) use local::{ClockChanges, LocalWrites};

use crate::{
    entry::{Cell, CellWrite, RowOp, RowOpKind},
    hlc::Stamp,
    id::{ColumnId, TableId},
    testing::{Bug, planted},
    version::Dot,
};

/// All contested clocks of one replica.
#[derive(Debug, Default)]
pub(crate) struct Contested {
    tables: BTreeMap<TableId, BTreeMap<RowKey, RowClock>>,
    rows: u64,
    undo: Option<Vec<Undo>>,
}

/// What a row's clocks were before a change; `None` for a row that had none.
#[derive(Debug)]
struct Undo {
    table: TableId,
    key: RowKey,
    before: Option<RowClock>,
}

/// The clocks of one row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RowClock {
    epoch: u32,
    dead: bool,
    /// The insert that wrote every column up to an id; single cells may be newer.
    base: Option<(Stamp, ColumnId)>,
    cells: CellClocks,
}

/// The stamps of single cells: most often one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct CellClocks {
    first: Option<(ColumnId, Stamp)>,
    more: Vec<(ColumnId, Stamp)>,
}

impl CellClocks {
    fn iter(&self) -> impl Iterator<Item = &(ColumnId, Stamp)> {
        self.first.iter().chain(&self.more)
    }

    fn set(&mut self, column: ColumnId, stamp: Stamp) {
        let Some(first) = &mut self.first else {
            self.first = Some((column, stamp));
            return;
        };
        match std::iter::once(first).chain(&mut self.more).find(|(id, _)| *id == column) {
            Some((_, held)) => *held = stamp,
            None => self.more.push((column, stamp)),
        }
    }
}

/// What of an operation takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing: the row was deleted by somebody who had not seen this, or is dead already.
    Nothing,
    /// The row goes.
    Delete,
    /// The row begins anew: what may be stored of an older epoch goes first.
    Begin,
    /// The cells that win are written, the increments added; an insert may find no row yet.
    Merge,
}

/// The details of a verdict, in buffers that are used again.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// For [`Verdict::Merge`]: per cell of the operation whether it is written.
    pub(crate) wins: Vec<bool>,
    /// Concurrent values that this operation discards, or that discard parts of it.
    pub(crate) conflicts: Vec<Conflict>,
}

/// A concurrent value that is discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) column: ColumnId,
    pub(crate) kind: ConflictKind,
    /// The stamp the replica held; for [`ConflictKind::RowGone`] it is not kept.
    pub(crate) held: Option<Stamp>,
}

/// Which side of a [`Conflict`] is discarded, and by which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConflictKind {
    /// The stored value, because the operation's stamp is greater.
    StoredLoses,
    /// The operation's value, because the stored one's stamp is greater.
    IncomingLoses,
    /// The stored value, because its row was deleted by somebody who had not seen it.
    StoredDeleted,
    /// The operation's value, because its row was deleted or is of a later epoch.
    RowGone,
}

impl RowClock {
    fn cell(&self, column: ColumnId) -> Option<Stamp> {
        match self.cells.iter().find(|(id, _)| *id == column) {
            Some((_, stamp)) => Some(*stamp),
            None => self.base.filter(|(_, upto)| column <= *upto).map(|(stamp, _)| stamp),
        }
    }

    fn assign(&mut self, column: ColumnId, stamp: Stamp) {
        self.cells.set(column, stamp);
    }

    fn begin(&mut self, epoch: u32) {
        *self = Self { epoch, dead: false, base: None, cells: CellClocks::default() };
    }

    /// The epoch that a local write to the row names; `insert` begins a new one over a tombstone.
    pub(crate) fn epoch_for(&self, kind: RowOpKind) -> u32 {
        match kind {
            RowOpKind::Insert if self.dead && !planted(Bug::EpochKept) => self.epoch + 1,
            RowOpKind::Insert | RowOpKind::Update | RowOpKind::Delete => self.epoch,
        }
    }

    /// The entry whose value a local write to the cell overwrites.
    pub(crate) fn previous(&self, column: ColumnId) -> Option<Dot> {
        self.cell(column).map(|stamp| stamp.dot())
    }

    /// The entries whose values a local delete of the row discards.
    pub(crate) fn seen(&self, dots: &mut Vec<Dot>) {
        dots.clear();
        dots.extend(self.base.iter().map(|(stamp, _)| stamp.dot()));
        dots.extend(self.cells.iter().map(|(_, stamp)| stamp.dot()));
        dots.sort_unstable();
        dots.dedup();
    }
}

/// Finds the clocks of rows that are asked for in ascending order, which is the order of an entry:
/// mostly the next one is near.
#[derive(Debug)]
pub(crate) struct ClockCursor<'c> {
    contested: &'c Contested,
    table: Option<TableId>,
    rest: Option<Peekable<Range<'c, RowKey, RowClock>>>,
}

impl<'c> ClockCursor<'c> {
    /// The clocks of a row, if it has any. Any order gives the right answer.
    pub(crate) fn row(&mut self, table: TableId, key: &[u8]) -> Option<&'c RowClock> {
        /// After so many steps a search from the root is cheaper.
        const STEPS: usize = 8;
        if self.table == Some(table)
            && let Some(rest) = &mut self.rest
        {
            for _ in 0..STEPS {
                match rest.peek().map(|(next, clock)| (next.as_bytes().cmp(key), *clock)) {
                    None | Some((Ordering::Greater, _)) => break,
                    Some((Ordering::Equal, clock)) => return Some(clock),
                    Some((Ordering::Less, _)) => drop(rest.next()),
                }
            }
        }
        let rows = self.contested.tables.get(&table)?;
        let mut rest = rows.range::<[u8], _>((Bound::Included(key), Bound::Unbounded)).peekable();
        let found = rest.peek().filter(|(next, _)| next.as_bytes() == key).map(|(_, clock)| *clock);
        self.table = Some(table);
        self.rest = Some(rest);
        found
    }
}

impl Contested {
    /// Looks up rows by ascending table and key.
    pub(crate) fn cursor(&self) -> ClockCursor<'_> {
        ClockCursor { contested: self, table: None, rest: None }
    }

    /// How many rows have clocks.
    pub(crate) const fn rows(&self) -> u64 {
        self.rows
    }

    /// From here on changes can be undone, until [`Contested::keep`] or [`Contested::undo`].
    pub(crate) fn mark(&mut self) {
        self.undo = Some(Vec::new());
    }

    /// Makes the changes since [`Contested::mark`] final.
    pub(crate) fn keep(&mut self) {
        self.undo = None;
    }

    /// Takes the changes since [`Contested::mark`] back.
    pub(crate) fn undo(&mut self) {
        for Undo { table, key, before } in self.undo.take().into_iter().flatten().rev() {
            let rows = self.tables.entry(table).or_default();
            let changed = match before {
                Some(clock) => rows.insert(key, clock).is_none(),
                None => {
                    self.rows -= u64::from(rows.remove(&key).is_some());
                    false
                }
            };
            self.rows += u64::from(changed);
        }
    }

    /// Takes an operation of an entry stamped `stamp` into the clocks and says what takes effect.
    /// `assigned` are the table's columns that have clocks: what a delete may discard.
    pub(crate) fn apply(
        &mut self,
        op: &RowOp<'_>,
        stamp: Stamp,
        assigned: &[ColumnId],
        effects: &mut Effects,
    ) -> Verdict {
        effects.wins.clear();
        effects.conflicts.clear();
        let rows = self.tables.entry(op.table).or_default();
        let clock = match rows.get_mut(op.key) {
            Some(clock) => {
                if let Some(undo) = &mut self.undo {
                    undo.push(Undo {
                        table: op.table,
                        key: RowKey::new(op.key),
                        before: Some(clock.clone()),
                    });
                }
                clock
            }
            None => {
                if let Some(undo) = &mut self.undo {
                    undo.push(Undo { table: op.table, key: RowKey::new(op.key), before: None });
                }
                self.rows += 1;
                if op.kind == RowOpKind::Insert {
                    return first_insert(rows, op, stamp, effects);
                }
                rows.entry(RowKey::new(op.key)).or_default()
            }
        };
        match op.kind {
            RowOpKind::Delete => delete(clock, op, assigned, effects),
            RowOpKind::Insert if op.epoch > clock.epoch => {
                clock.begin(op.epoch);
                merge_cells(clock, op.cells, stamp, effects);
                Verdict::Begin
            }
            RowOpKind::Insert | RowOpKind::Update => {
                let gone = op.epoch != clock.epoch || clock.dead;
                if gone && !planted(Bug::UpdateRevives) {
                    effects.conflicts.extend(op.cells.iter().filter_map(|cell| match cell.write {
                        CellWrite::Assign { .. } => Some(Conflict {
                            column: cell.column,
                            kind: ConflictKind::RowGone,
                            held: None,
                        }),
                        CellWrite::Add(_) | CellWrite::Extreme(_) => None,
                    }));
                    return Verdict::Nothing;
                }
                merge_cells(clock, op.cells, stamp, effects);
                Verdict::Merge
            }
        }
    }
}

/// The common case: nobody has written the row before, one clock serves all its columns.
fn first_insert(
    rows: &mut BTreeMap<RowKey, RowClock>,
    op: &RowOp<'_>,
    stamp: Stamp,
    effects: &mut Effects,
) -> Verdict {
    let upto = op.cells.last().map(|cell| cell.column);
    let clock = RowClock {
        epoch: op.epoch,
        dead: false,
        base: upto.map(|column| (stamp, column)),
        cells: CellClocks::default(),
    };
    rows.insert(RowKey::new(op.key), clock);
    effects.wins.resize(op.cells.len(), true);
    Verdict::Merge
}

fn delete(
    clock: &mut RowClock,
    op: &RowOp<'_>,
    assigned: &[ColumnId],
    effects: &mut Effects,
) -> Verdict {
    if op.epoch != clock.epoch || clock.dead {
        // Dead already, or deleted and begun anew by somebody who had not seen this delete.
        return Verdict::Nothing;
    }
    for &column in assigned {
        let unseen = clock
            .cell(column)
            .filter(|stamp| !op.saw.contains(&stamp.dot()) && !planted(Bug::SawIgnored));
        if unseen.is_some() {
            let kind = ConflictKind::StoredDeleted;
            effects.conflicts.push(Conflict { column, kind, held: unseen });
        }
    }
    clock.begin(clock.epoch);
    clock.dead = true;
    Verdict::Delete
}

fn merge_cells(clock: &mut RowClock, cells: &[Cell<'_>], stamp: Stamp, effects: &mut Effects) {
    for cell in cells {
        let CellWrite::Assign { previous, .. } = cell.write else {
            effects.wins.push(true);
            continue;
        };
        let held = clock.cell(cell.column);
        let wins = held.is_none_or(|held| stamp > held || planted(Bug::TiesByArrival));
        if let Some(held) = held {
            let concurrent = !wins || (previous != Some(held.dot()) && !planted(Bug::PrevIgnored));
            if concurrent {
                effects.conflicts.push(Conflict {
                    column: cell.column,
                    kind: if wins {
                        ConflictKind::StoredLoses
                    } else {
                        ConflictKind::IncomingLoses
                    },
                    held: Some(held),
                });
            }
        }
        if wins {
            clock.assign(cell.column, stamp);
        }
        effects.wins.push(wins);
    }
}

#[cfg(test)]
mod tests;
