//! [`Contested`]: the clocks that a concurrent write may still meet.
//!
//! A pure reducer over the log: it takes operations and frontiers in the order in which this node
//! applied their entries and says what of each operation takes effect. It never looks at rows, so
//! opening a file replays the log behind the last checkpoint through it, effects discarded. What an
//! effect does to stored values is the business of `merge`.
//!
//! Clocks lie packed in [`Block`](block::Block)s of neighboring rows; `shelf` writes them to the file
//! and takes them out of memory.
//!
//! Invariants:
//! - the clocks are a function of the set of entries applied, whatever their order, as long as it is
//!   causal; so are the rows that the verdicts lead to;
//! - a cell has a clock exactly if some operation that no frontier covers assigned it in the row's
//!   present epoch; so *absent* means "older than anything that can still arrive";
//! - a row without clocks is not remembered at all;
//! - no clock outlives a change after which its table is another one, or merges otherwise;
//! - tables that only the origin writes have no clocks at all.
//!
//! The rules are those of section 5 of the design and of its executable model; the row epoch is the
//! causal length of Yu and Rostad, "A low-cost set CRDT based on causal lengths" (2020).
//! `docs/frontier.md` has the proof.

mod block;
mod cursor;
mod frontier;
mod local;
mod row;
mod sets;
mod shelf;

pub(crate) use cursor::ClockCursor;
pub(crate) use frontier::Stable;
pub(crate) use local::{ClockChanges, LocalWrites};
pub(crate) use row::RowClock;
pub(crate) use sets::Known;
use shelf::{Open, Shelf};

use rusqlite::Connection;

use crate::{
    entry::{Cell, CellWrite, EntryHeader, RowOp, RowOpKind, SetChange, TableChange},
    hlc::Stamp,
    id::ColumnId,
    testing::{Bug, planted},
    version::VersionVector,
};

/// All contested clocks of one replica.
#[derive(Debug, Default)]
pub(crate) struct Contested {
    shelf: Shelf,
    stable: Stable,
    /// What was stable at the last [`Contested::mark`].
    marked: Option<Stable>,
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
    /// Elements that the operation removes and that stay, because of adds its author did not know: their
    /// columns and bytes.
    pub(crate) outlived: Vec<(ColumnId, Vec<u8>)>,
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

/// Why an operation was not taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClockError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// An author who kept to the protocol cannot have written it.
    #[error("an operation on an epoch that the frontier has passed")]
    PassedEpoch,
    /// The frontier breaks the protocol.
    #[error("frontier {found} after frontier {last}, or one that goes back")]
    Frontier { found: u64, last: u64 },
}

impl Contested {
    /// Looks up rows by ascending table and key; clocks that are not in memory are read from `disk`.
    pub(crate) fn cursor<'c>(&'c self, disk: &'c Connection) -> ClockCursor<'c> {
        ClockCursor::new(&self.shelf, disk)
    }

    /// How many rows have clocks.
    pub(crate) fn rows(&self) -> u64 {
        self.shelf.rows()
    }

    /// Bytes of memory that clocks take, about.
    pub(crate) const fn bytes(&self) -> usize {
        self.shelf.loaded()
    }

    /// From here on changes can be undone, until [`Contested::keep`] or [`Contested::undo`].
    pub(crate) fn mark(&mut self) {
        self.shelf.mark();
        self.marked = Some(self.stable.clone());
    }

    /// Makes the changes since [`Contested::mark`] final.
    pub(crate) fn keep(&mut self) {
        self.shelf.keep();
        self.marked = None;
    }

    /// Takes the changes since [`Contested::mark`] back.
    pub(crate) fn undo(&mut self) {
        self.shelf.undo();
        if let Some(marked) = self.marked.take() {
            self.stable = marked;
        }
    }

    /// Takes in what the origin has made of tables: of one that is gone, or that begins anew under its
    /// id, no clock counts any more. If it goes on, then every write from before is applied here, and
    /// everybody who writes to it from now on has applied this: `docs/frontier.md` says why.
    pub(crate) fn forget_dropped(
        &mut self,
        disk: &Connection,
        changes: &[TableChange],
    ) -> rusqlite::Result<()> {
        for change in changes {
            if let TableChange::Dropped(table) = change {
                self.shelf.forget(disk, *table)?;
            }
        }
        Ok(())
    }

    /// To take in operations.
    pub(crate) fn taking<'c>(&'c mut self, disk: &'c Connection) -> Taking<'c> {
        Taking { contested: self, disk, open: None }
    }
}

/// Takes in operations, mostly by ascending table and key. Until it is dropped, [`Contested`] does not
/// have all of them.
#[derive(Debug)]
pub(crate) struct Taking<'c> {
    contested: &'c mut Contested,
    disk: &'c Connection,
    open: Option<Open>,
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.contested.shelf.close(self.open.take());
    }
}

impl Taking<'_> {
    /// Takes an operation of an entry into the clocks and says what takes effect. `assigned` are the
    /// table's columns that have clocks: what a delete may discard.
    pub(crate) fn apply(
        &mut self,
        op: &RowOp<'_>,
        header: &EntryHeader,
        assigned: &[ColumnId],
        effects: &mut Effects,
    ) -> Result<Verdict, ClockError> {
        effects.wins.clear();
        effects.outlived.clear();
        effects.conflicts.clear();
        let stamp = header.stamp();
        let mut verdict = Err(ClockError::PassedEpoch);
        let Contested { shelf, stable, .. } = &mut *self.contested;
        let mut ruling = Ruling { stamp, covered: &stable.covered, effects };
        shelf.change(&mut self.open, self.disk, op.table, op.key, |clock| {
            if let Some(epoch) = clock.epoch_now(op.epoch, header.under) {
                verdict = Ok(ruling.decide(clock, op, epoch, assigned));
            }
        })?;
        verdict
    }
}

/// What is needed to decide on an operation, and what comes of it.
struct Ruling<'r> {
    stamp: Stamp,
    /// What the newest frontier covers.
    covered: &'r VersionVector,
    effects: &'r mut Effects,
}

impl Ruling<'_> {
    fn decide(
        &mut self,
        clock: &mut RowClock,
        op: &RowOp<'_>,
        epoch: u32,
        assigned: &[ColumnId],
    ) -> Verdict {
        match op.kind {
            RowOpKind::Delete => self.delete(clock, op, epoch, assigned),
            RowOpKind::Insert if epoch > clock.epoch => {
                clock.begin(epoch);
                self.insert_all(clock, op);
                Verdict::Begin
            }
            RowOpKind::Insert | RowOpKind::Update => {
                let gone = epoch != clock.epoch || clock.dead;
                if gone && !planted(Bug::UpdateRevives) {
                    self.effects.conflicts.extend(op.cells.iter().filter_map(
                        |cell| match cell.write {
                            CellWrite::Assign { .. } => Some(Conflict {
                                column: cell.column,
                                kind: ConflictKind::RowGone,
                                held: None,
                            }),
                            CellWrite::Add(_) | CellWrite::Extreme(_) | CellWrite::Set(_) => None,
                        },
                    ));
                    return Verdict::Nothing;
                }
                if op.kind == RowOpKind::Insert && clock.has_no_cells() {
                    self.insert_all(clock, op);
                } else {
                    self.merge_cells(clock, op.cells);
                }
                Verdict::Merge
            }
        }
    }

    /// The common case: nobody has written the row before, one clock serves all its columns but sets.
    fn insert_all(&mut self, clock: &mut RowClock, op: &RowOp<'_>) {
        clock.base = op.cells.last().map(|cell| (self.stamp, cell.column));
        for cell in op.cells {
            if let CellWrite::Set(change) = cell.write {
                self.merge_set(clock, cell.column, change);
            }
        }
        self.effects.wins.resize(op.cells.len(), true);
    }

    fn delete(
        &mut self,
        clock: &mut RowClock,
        op: &RowOp<'_>,
        epoch: u32,
        assigned: &[ColumnId],
    ) -> Verdict {
        clock.deleted(epoch, self.stamp);
        if epoch != clock.epoch || clock.dead {
            // Dead already, or deleted and begun anew by somebody who had not seen this delete.
            return Verdict::Nothing;
        }
        for &column in assigned {
            let unseen = clock
                .cell(column)
                .filter(|stamp| !op.saw.contains(&stamp.dot()) && !planted(Bug::SawIgnored));
            if unseen.is_some() {
                let kind = ConflictKind::StoredDeleted;
                self.effects.conflicts.push(Conflict { column, kind, held: unseen });
            }
        }
        clock.die();
        Verdict::Delete
    }

    fn merge_cells(&mut self, clock: &mut RowClock, cells: &[Cell<'_>]) {
        for cell in cells {
            let previous = match cell.write {
                CellWrite::Assign { previous, .. } => previous,
                CellWrite::Set(change) => {
                    self.merge_set(clock, cell.column, change);
                    self.effects.wins.push(true);
                    continue;
                }
                CellWrite::Add(_) | CellWrite::Extreme(_) => {
                    self.effects.wins.push(true);
                    continue;
                }
            };
            let held = clock.cell(cell.column);
            // An equal stamp is the same entry's: what stands later in it wins.
            let wins = held.is_none_or(|held| self.stamp >= held || planted(Bug::TiesByArrival));
            if let Some(held) = held {
                let concurrent =
                    !wins || (previous != Some(held.dot()) && !planted(Bug::PrevIgnored));
                if concurrent {
                    self.effects.conflicts.push(Conflict {
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
                clock.cells.set(cell.column, self.stamp);
            }
            self.effects.wins.push(wins);
        }
    }

    /// Adds always count; a removal counts where it leaves no add of its element. A set never conflicts:
    /// nothing that somebody wrote and nobody saw is lost.
    fn merge_set(&mut self, clock: &mut RowClock, column: ColumnId, change: SetChange<'_>) {
        for element in change.added() {
            clock.sets.add(column, element.to_bytes(), self.stamp);
        }
        for removal in change.removed() {
            // An add that is covered here is part of the stable one, which whoever names it has known.
            let stable = removal.stable || removal.dots.iter().any(|dot| self.covered.covers(*dot));
            let stable = stable && !planted(Bug::StableFlagIgnored);
            let element = removal.element.to_bytes();
            let known = Known { dots: removal.dots, stable };
            if !clock.sets.remove(column, element.clone(), &known) {
                self.effects.outlived.push((column, element));
            }
        }
    }
}

#[cfg(test)]
mod tests;
