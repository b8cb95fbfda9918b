//! [`ClockCursor`]: clocks of rows that are asked for in ascending order, which is the order of an
//! entry: mostly the next one is near.

use std::{ops::Bound, sync::Arc};

use rusqlite::Connection;

use crate::{
    contested::{block::Block, row::RowClock, shelf::Shelf},
    id::TableId,
};

/// Looks up rows.
#[derive(Debug)]
pub(crate) struct ClockCursor<'c> {
    shelf: &'c Shelf,
    disk: &'c Connection,
    at: Option<Place<'c>>,
}

/// Where the last row was looked for.
#[derive(Debug)]
struct Place<'c> {
    table: TableId,
    from: &'c [u8],
    upto: Option<&'c [u8]>,
    block: Arc<Block>,
    row: usize,
}

impl<'c> ClockCursor<'c> {
    pub(super) const fn new(shelf: &'c Shelf, disk: &'c Connection) -> Self {
        Self { shelf, disk, at: None }
    }

    /// The clocks of a row, if it has any. Any order gives the right answer.
    pub(crate) fn row(&mut self, table: TableId, key: &[u8]) -> rusqlite::Result<Option<RowClock>> {
        if !self.at.as_ref().is_some_and(|place| place.holds(table, key)) {
            let Some(directory) = self.shelf.directory(table) else { return Ok(None) };
            let upto = (Bound::Unbounded, Bound::Included(key));
            let Some((from, slot)) = directory.range::<[u8], _>(upto).next_back() else {
                return Ok(None);
            };
            let behind = (Bound::Excluded(key), Bound::Unbounded);
            let next = directory.range::<[u8], _>(behind).next();
            let upto = next.map(|(bound, _)| &**bound);
            self.at = Some(Place { table, from, upto, block: slot.block(self.disk)?, row: 0 });
        }
        Ok(self.at.as_mut().and_then(|place| place.find(key)))
    }
}

impl Place<'_> {
    fn holds(&self, table: TableId, key: &[u8]) -> bool {
        self.table == table && self.from <= key && self.upto.is_none_or(|upto| key < upto)
    }

    fn find(&mut self, key: &[u8]) -> Option<RowClock> {
        match self.block.find(key, self.row) {
            Ok(row) => {
                self.row = row;
                Some(self.block.clock(row))
            }
            Err(row) => {
                self.row = row;
                None
            }
        }
    }
}
