//! [`LocalWrites`]: what the entry of a local transaction names of the clocks, and the clocks it
//! leaves behind.
//!
//! A local write is newer than everything the replica holds, so it wins without a decision. The clocks
//! are changed only when the transaction has committed, by [`Contested::install`]; the result is the
//! same as that of [`Contested::apply`] with the entry.

use crate::{
    contested::{ClockCursor, Contested, RowClock, Undo, key::RowKey},
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
}

/// New clocks of rows, by table and key.
#[derive(Debug, Default)]
pub(crate) struct ClockChanges {
    tables: Vec<(TableId, Vec<(RowKey, RowClock)>)>,
}

impl<'c> LocalWrites<'c> {
    pub(crate) fn new(contested: &'c Contested, stamp: Stamp) -> Self {
        Self { clocks: contested.cursor(), stamp, changes: ClockChanges::default() }
    }

    /// The epoch to name for a deleted row; the entries whose values it discards go to `saw`.
    pub(crate) fn delete(&mut self, table: TableId, key: &[u8], saw: &mut Vec<Dot>) -> u32 {
        let held = self.clocks.row(table, key);
        let epoch = held.map_or(0, |clock| clock.epoch_for(RowOpKind::Delete));
        saw.clear();
        if let Some(clock) = held {
            clock.seen(saw);
        }
        self.changes.push(table, key, RowClock { epoch, dead: true, ..RowClock::default() });
        epoch
    }

    /// The epoch to name for an inserted row, whose last cell is `upto`.
    pub(crate) fn insert(&mut self, table: TableId, key: &[u8], upto: Option<ColumnId>) -> u32 {
        let held = self.clocks.row(table, key);
        let epoch = held.map_or(0, |clock| clock.epoch_for(RowOpKind::Insert));
        let base = upto.map(|column| (self.stamp, column));
        self.changes.push(table, key, RowClock { epoch, base, ..RowClock::default() });
        epoch
    }

    /// The epoch to name for an updated row, and its clocks, to [`RowClock::overwrite`] cell by cell.
    pub(crate) fn update(&mut self, table: TableId, key: &[u8]) -> (u32, &mut RowClock) {
        let clock = self.clocks.row(table, key).cloned().unwrap_or_default();
        (clock.epoch_for(RowOpKind::Update), self.changes.push(table, key, clock))
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
    fn push(&mut self, table: TableId, key: &[u8], clock: RowClock) -> &mut RowClock {
        if self.tables.last().is_none_or(|(last, _)| *last != table) {
            self.tables.push((table, Vec::new()));
        }
        let (_, rows) = self.tables.last_mut().expect("there is a last table");
        rows.push((RowKey::new(key), clock));
        let (_, clock) = rows.last_mut().expect("there is a last row");
        clock
    }
}

impl RowClock {
    /// Stamps a cell; gives the entry whose value is overwritten.
    pub(crate) fn overwrite(&mut self, column: ColumnId, stamp: Stamp) -> Option<Dot> {
        let previous = self.previous(column);
        self.assign(column, stamp);
        previous
    }
}

impl Contested {
    /// Takes in what a committed transaction of this node leaves behind.
    pub(crate) fn install(&mut self, changes: ClockChanges) {
        for (table, changed) in changes.tables {
            let rows = self.tables.entry(table).or_default();
            if rows.is_empty() && self.undo.is_none() {
                self.rows += changed.len() as u64;
                // In order already: built in one pass, without a search per row.
                *rows = changed.into_iter().collect();
                continue;
            }
            let mut changed = changed.into_iter().peekable();
            while let Some((key, clock)) = changed.next() {
                // Rows that have clocks already are mostly neighbors.
                let mut near = rows.range_mut::<RowKey, _>(&key..);
                let mut next = Some((key, clock));
                for (held_key, held) in near.by_ref() {
                    let Some((key, clock)) = next.take_if(|(key, _)| key == held_key) else {
                        break;
                    };
                    if let Some(undo) = &mut self.undo {
                        undo.push(Undo { table, key, before: Some(held.clone()) });
                    }
                    *held = clock;
                    next = changed.next();
                    if next.is_none() {
                        break;
                    }
                }
                let Some((key, clock)) = next else { continue };
                if let Some(undo) = &mut self.undo {
                    let before = rows.get(&key).cloned();
                    undo.push(Undo { table, key: key.clone(), before });
                }
                self.rows += u64::from(rows.insert(key, clock).is_none());
            }
        }
    }
}
