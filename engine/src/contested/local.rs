//! [`LocalWrites`]: what the entry of a local transaction names of the clocks, and the clocks it
//! leaves behind.
//!
//! A local write is newer than everything the replica holds, so it wins without a decision. The clocks
//! are changed only when the transaction has committed, by [`Contested::install`]; the result is the
//! same as that of `Taking::apply` with the entry.

use rusqlite::Connection;

use crate::{
    contested::{ClockCursor, Contested, block::Block, row::RowClock},
    entry::RowOpKind,
    hlc::Stamp,
    id::{ColumnId, TableId},
    version::Dot,
};

/// The clocks as one transaction finds and leaves them. Rows must be named by ascending table and key,
/// each once.
#[derive(Debug)]
pub(crate) struct LocalWrites<'c> {
    clocks: ClockCursor<'c>,
    stamp: Stamp,
    changes: ClockChanges,
    /// What was done to the row pushed last, if it had no clocks before: the next one of which the same
    /// is true has the same clocks.
    fresh: Option<(TableId, RowOpKind)>,
}

/// New clocks of rows, by table and key.
#[derive(Debug, Default)]
pub(crate) struct ClockChanges {
    /// Several of one table if there are many stamps in its rows.
    tables: Vec<(TableId, Block)>,
}

impl<'c> LocalWrites<'c> {
    pub(crate) fn new(contested: &'c Contested, disk: &'c Connection, stamp: Stamp) -> Self {
        let (clocks, changes) = (contested.cursor(disk), ClockChanges::default());
        Self { clocks, stamp, changes, fresh: None }
    }

    /// The epoch to name for a deleted row; the entries whose values it discards go to `saw`.
    pub(crate) fn delete(
        &mut self,
        table: TableId,
        key: &[u8],
        saw: &mut Vec<Dot>,
    ) -> rusqlite::Result<u32> {
        let held = self.clocks.row(table, key)?;
        saw.clear();
        if held.is_none() && self.push_alike(table, RowOpKind::Delete, key) {
            return Ok(0);
        }
        let fresh = held.is_none();
        let mut clock = held.unwrap_or_default();
        let epoch = clock.epoch_for(RowOpKind::Delete);
        clock.seen(saw);
        clock.deleted(epoch, self.stamp);
        clock.die();
        self.push(table, RowOpKind::Delete, key, &clock, fresh);
        Ok(epoch)
    }

    /// The epoch to name for an inserted row, whose last cell is `upto`, and to whose sets these elements
    /// belong.
    pub(crate) fn insert(
        &mut self,
        table: TableId,
        key: &[u8],
        upto: Option<ColumnId>,
        elements: Vec<(ColumnId, Vec<u8>)>,
    ) -> rusqlite::Result<u32> {
        let held = self.clocks.row(table, key)?;
        let fresh = held.is_none() && elements.is_empty();
        if fresh && self.push_alike(table, RowOpKind::Insert, key) {
            return Ok(0);
        }
        let mut clock = held.unwrap_or_default();
        let epoch = clock.epoch_for(RowOpKind::Insert);
        clock.begin(epoch);
        clock.base = upto.map(|column| (self.stamp, column));
        for (column, element) in elements {
            clock.add(column, element, self.stamp);
        }
        self.push(table, RowOpKind::Insert, key, &clock, fresh);
        Ok(epoch)
    }

    /// The clocks of a row that is updated, if it has any, to be changed cell by cell and given to
    /// [`LocalWrites::updated`].
    pub(crate) fn update(
        &mut self,
        table: TableId,
        key: &[u8],
    ) -> rusqlite::Result<Option<RowClock>> {
        self.clocks.row(table, key)
    }

    /// Takes in the clocks of a row that is updated; `had` says whether it had any.
    pub(crate) fn updated(&mut self, table: TableId, key: &[u8], clock: &RowClock, had: bool) {
        // Increments alone leave none where none was; a removal from a set may take the last one.
        if had || !clock.is_empty() {
            self.push(table, RowOpKind::Update, key, clock, !had);
        } else {
            // Whose clocks were pushed last is not the row that the next one may be like.
            self.fresh = None;
        }
    }

    /// As [`LocalWrites::updated`], for a row that had no clocks and of which the same columns, no sets
    /// among them, were assigned as of the row before; false if the row before was not like it.
    pub(crate) fn updated_alike(&mut self, table: TableId, key: &[u8]) -> bool {
        self.push_alike(table, RowOpKind::Update, key)
    }

    fn push(&mut self, table: TableId, kind: RowOpKind, key: &[u8], clock: &RowClock, fresh: bool) {
        self.changes.push(table, key, clock);
        self.fresh = fresh.then_some((table, kind));
    }

    fn push_alike(&mut self, table: TableId, kind: RowOpKind, key: &[u8]) -> bool {
        self.fresh == Some((table, kind)) && self.changes.push_alike(key)
    }

    /// What every assignment is stamped with.
    pub(crate) const fn stamp(&self) -> Stamp {
        self.stamp
    }

    pub(crate) fn finish(self) -> ClockChanges {
        self.changes
    }
}

impl ClockChanges {
    pub(super) fn tables(&self) -> &[(TableId, Block)] {
        &self.tables
    }

    /// Pushes a row of the same table with the same clocks as the one before.
    fn push_alike(&mut self, key: &[u8]) -> bool {
        self.tables.last_mut().is_some_and(|(_, rows)| rows.push_alike(key))
    }

    fn push(&mut self, table: TableId, key: &[u8], clock: &RowClock) {
        /// More would make it slow to find a stamp's number.
        const STAMPS: usize = 64;
        let another =
            |(last, rows): &(TableId, Block)| *last != table || rows.stamps.len() > STAMPS;
        if self.tables.last().is_none_or(another) {
            self.tables.push((table, Block::default()));
        }
        if let Some((_, rows)) = self.tables.last_mut() {
            rows.push(key, clock);
        }
    }
}

impl Contested {
    /// Makes sure that [`Contested::install`] of the same changes cannot fail.
    pub(crate) fn load(
        &mut self,
        disk: &Connection,
        changes: &ClockChanges,
    ) -> rusqlite::Result<()> {
        self.shelf.load(disk, changes)
    }

    /// Takes in what a transaction of this node leaves behind.
    pub(crate) fn install(
        &mut self,
        disk: &Connection,
        changes: &ClockChanges,
    ) -> rusqlite::Result<()> {
        self.shelf.install(disk, changes)
    }
}
