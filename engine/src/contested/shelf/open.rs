//! [`Open`]: a block of which one row after the other is changed. The operations of an entry come by
//! ascending key, so that the next one mostly falls into the same block, behind the row before.

use super::*;

/// A copy of a block, to be changed. The shelf has what it was before until [`Shelf::close`].
#[derive(Debug)]
pub(in crate::contested) struct Open {
    table: TableId,
    /// Where it begins, and where the next one does.
    bound: Box<[u8]>,
    upto: Option<Box<[u8]>>,
    block: Block,
    changed: bool,
    /// Where the search for the next row begins.
    row: usize,
    /// The row changed last was put behind all others.
    ascending: bool,
    packed: Vec<u8>,
}

impl Open {
    fn holds(&self, table: TableId, key: &[u8]) -> bool {
        self.table == table && *self.bound <= *key && self.upto.as_ref().is_none_or(|b| *key < **b)
    }
}

impl Shelf {
    /// Changes the clocks of one row, which may have none, and may have none afterwards. The block is
    /// left `open`: it must be closed before anything else is asked of the shelf.
    pub(in crate::contested) fn change(
        &mut self,
        open: &mut Option<Open>,
        disk: &Connection,
        table: TableId,
        key: &[u8],
        change: impl FnOnce(&mut RowClock),
    ) -> rusqlite::Result<()> {
        if !open.as_ref().is_some_and(|open| open.holds(table, key)) {
            self.close(open.take());
        }
        let at = match open {
            Some(open) => open,
            None => open.insert(self.open_at(disk, table, key)?),
        };
        let place = at.block.find(key, at.row);
        let mut clock = place.map_or_else(|_| RowClock::default(), |row| at.block.clock(row));
        let shifts = clock.shifts.len() as u64;
        change(&mut clock);
        self.shifts = self.shifts - shifts + clock.shifts.len() as u64;
        at.ascending = place == Err(at.block.len());
        match place {
            Ok(row) if clock.is_empty() => {
                at.block.remove(row);
                at.row = row;
                self.rows -= 1;
            }
            Err(row) if clock.is_empty() => {
                at.row = row;
                return Ok(());
            }
            Ok(row) | Err(row) => {
                at.block.put(place, key, &clock, &mut at.packed);
                at.row = row + 1;
                self.rows += u64::from(place.is_err());
            }
        }
        at.changed = true;
        if at.block.is_full() {
            self.close(open.take());
        }
        Ok(())
    }

    fn open_at(&mut self, disk: &Connection, table: TableId, key: &[u8]) -> rusqlite::Result<Open> {
        let mut open = Open {
            table,
            bound: Box::default(),
            upto: None,
            block: Block::default(),
            changed: false,
            row: 0,
            ascending: false,
            packed: Vec::new(),
        };
        let Some(directory) = self.tables.get_mut(&table) else { return Ok(open) };
        let behind = (Bound::Excluded(key), Bound::Unbounded);
        open.upto = directory.range::<[u8], _>(behind).next().map(|(bound, _)| bound.clone());
        let upto = (Bound::Unbounded, Bound::Included(key));
        let (bound, slot) = directory
            .range_mut::<[u8], _>(upto)
            .next_back()
            .expect("a table's first block begins at the empty key");
        open.bound.clone_from(bound);
        open.block.clone_from(slot.load(disk, &mut self.loaded)?);
        Ok(open)
    }

    /// Puts a block back that was open, in as many as that takes.
    pub(in crate::contested) fn close(&mut self, open: Option<Open>) {
        let Some(Open { table, bound, mut block, ascending, .. }) = open.filter(|o| o.changed)
        else {
            return;
        };
        let mut right = block.is_full().then(|| block.split(ascending));
        let is_empty = block.is_empty();
        let slot = self.tables.get_mut(&table).and_then(|directory| directory.get_mut(&bound));
        match slot {
            Some(slot) => {
                save(&mut self.undo, self.marks, table, &bound, slot);
                self.loaded = self.loaded - slot.size() + block.size();
                slot.replace(block);
                if is_empty {
                    self.remove_empty(table, &bound);
                }
            }
            None if is_empty => {}
            None => self.insert(table, bound, block),
        }
        while let Some(mut new) = right.take() {
            let bound: Box<[u8]> = new.key(0).into();
            right = new.is_full().then(|| new.split(false));
            self.insert(table, bound, new);
        }
    }
}
