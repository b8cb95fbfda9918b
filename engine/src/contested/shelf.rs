//! [`Shelf`]: the blocks of all tables, in memory, on disk, or both.
//!
//! A table's blocks lie side by side by their bounds, the first bound is the empty key. A checkpoint
//! writes the blocks that changed to `littoral_clock`; a block that is the same on disk may leave
//! memory and is read again when one of its rows is asked for.
//!
//! Invariants:
//! - a row stands in the block with the greatest bound that is not greater than its key;
//! - a block that is not in memory is on disk as it was when it left.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension, params, types::Type};

use crate::{
    contested::{
        ClockChanges,
        block::Block,
        row::{FORGOTTEN, RowClock},
    },
    id::TableId,
    limits::CLOCK_MEMORY_BYTES,
    testing::{Bug, planted},
    value::DecodeError,
    version::Dot,
};

mod open;

pub(super) use open::Open;

pub(super) type Directory = BTreeMap<Box<[u8]>, Slot>;

/// All blocks.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    tables: BTreeMap<TableId, Directory>,
    rows: u64,
    /// How many shifts are remembered.
    shifts: u64,
    /// Bytes of the blocks in memory, about.
    loaded: usize,
    /// The highest number a block has on disk.
    newest: i64,
    /// Blocks on disk that are none any more.
    gone: BTreeSet<i64>,
    undo: Option<Undo>,
    marks: u64,
    /// Where the search for blocks to take out of memory goes on.
    turn: (u32, Box<[u8]>),
}

/// What was before the changes since a mark.
#[derive(Debug, Default)]
struct Undo {
    slots: Vec<(TableId, Box<[u8]>, Option<Slot>)>,
    rows: u64,
    shifts: u64,
}

/// The place of one block.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    held: Held,
    /// Its number on disk.
    id: Option<i64>,
    /// Whether it differs from what is on disk.
    dirty: bool,
    /// The mark since which it was changed.
    marked: u64,
    /// Of each author the first entry that a clock of the block names: a frontier passes over the blocks
    /// that it has nothing to do with by a look at this.
    oldest: Arc<[Dot]>,
}

#[derive(Debug, Clone)]
enum Held {
    Loaded(Arc<Block>),
    Paged,
}

impl Slot {
    fn new(block: Block, marked: u64) -> Self {
        let oldest = block.oldest().into();
        Self { held: Held::Loaded(Arc::new(block)), id: None, dirty: true, marked, oldest }
    }

    /// The block, read from disk if it is not in memory.
    pub(super) fn block(&self, disk: &Connection) -> rusqlite::Result<Arc<Block>> {
        match (&self.held, self.id) {
            (Held::Loaded(block), _) => Ok(Arc::clone(block)),
            (Held::Paged, Some(id)) => read_block(disk, id).map(Arc::new),
            (Held::Paged, None) => Err(damaged(DecodeError::Invalid("a block without number"))),
        }
    }

    fn load(&mut self, disk: &Connection, loaded: &mut usize) -> rusqlite::Result<&mut Arc<Block>> {
        if matches!(self.held, Held::Paged) {
            let block = self.block(disk)?;
            *loaded += block.size();
            self.held = Held::Loaded(block);
        }
        match &mut self.held {
            Held::Loaded(block) => Ok(block),
            Held::Paged => unreachable!("it was loaded above"),
        }
    }
}

impl Shelf {
    pub(super) const fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of the blocks in memory, about.
    pub(super) const fn loaded(&self) -> usize {
        self.loaded
    }

    pub(super) const fn shifts(&self) -> u64 {
        self.shifts
    }

    pub(super) fn directory(&self, table: TableId) -> Option<&Directory> {
        self.tables.get(&table)
    }

    /// All rows of a table, which are all in memory.
    #[cfg(test)]
    pub(super) fn all(&self, table: TableId) -> Vec<(Vec<u8>, RowClock)> {
        let slots = self.tables.get(&table).into_iter().flat_map(BTreeMap::values);
        let rows = slots.flat_map(|slot| match &slot.held {
            Held::Loaded(block) => {
                (0..block.len()).map(|row| (block.key(row).to_vec(), block.clock(row))).collect()
            }
            Held::Paged => Vec::new(),
        });
        rows.collect()
    }

    // --- Changing

    fn insert(&mut self, table: TableId, bound: Box<[u8]>, block: Block) {
        self.loaded += block.size();
        if let Some(undo) = &mut self.undo {
            undo.slots.push((table, bound.clone(), None));
        }
        let slot = Slot::new(block, self.marks);
        self.tables.entry(table).or_default().insert(bound, slot);
    }

    /// Removes the block that a key falls into, which is empty, unless it is the first of several.
    fn remove_empty(&mut self, table: TableId, key: &[u8]) {
        let Some(directory) = self.tables.get_mut(&table) else { return };
        let range = (Bound::Unbounded, Bound::Included(key));
        let Some(bound) = directory.range::<[u8], _>(range).next_back().map(|(b, _)| b.clone())
        else {
            return;
        };
        if bound.is_empty() && directory.len() > 1 {
            return;
        }
        let mut removed = vec![directory.remove(&bound)];
        // The first of several may have become empty before.
        if directory.len() == 1
            && let Some((bound, slot)) = directory.first_key_value()
            && matches!(&slot.held, Held::Loaded(block) if block.is_empty())
        {
            let bound = bound.clone();
            let mut slot = directory.remove(&bound);
            if let Some(slot) = &mut slot {
                save(&mut self.undo, self.marks, table, &bound, slot);
            }
            removed.push(slot);
        }
        if directory.is_empty() {
            self.tables.remove(&table);
        }
        for slot in removed.into_iter().flatten() {
            self.dropped(&slot);
        }
    }

    fn dropped(&mut self, slot: &Slot) {
        if let Held::Loaded(block) = &slot.held {
            self.loaded -= block.size();
        }
        self.gone.extend(slot.id);
    }

    /// Brings the blocks into memory that the changes fall into.
    pub(super) fn load(
        &mut self,
        disk: &Connection,
        changes: &ClockChanges,
    ) -> rusqlite::Result<()> {
        for (table, rows) in changes.tables() {
            let Some(directory) = self.tables.get_mut(table) else { continue };
            if directory.values().all(|slot| matches!(slot.held, Held::Loaded(_))) {
                continue;
            }
            for row in 0..rows.len() {
                let upto = (Bound::Unbounded, Bound::Included(rows.key(row)));
                if let Some((_, slot)) = directory.range_mut::<[u8], _>(upto).next_back() {
                    slot.load(disk, &mut self.loaded)?;
                }
            }
        }
        Ok(())
    }

    /// Takes in what a committed transaction of this node leaves behind.
    pub(super) fn install(
        &mut self,
        disk: &Connection,
        changes: &ClockChanges,
    ) -> rusqlite::Result<()> {
        for (table, rows) in changes.tables() {
            let mut row = 0;
            while row < rows.len() {
                let behind = self.append(*table, rows, row);
                if behind > row {
                    row = behind;
                    continue;
                }
                let behind = self.merge(disk, *table, rows, row)?;
                if behind > row {
                    row = behind;
                    continue;
                }
                let (clock, mut open) = (rows.clock(row), None);
                self.change(&mut open, disk, *table, rows.key(row), |held| *held = clock)?;
                self.close(open);
                row += 1;
            }
        }
        Ok(())
    }

    /// Appends as many rows as lie behind all that the table has; gives the place behind the last.
    fn append(&mut self, table: TableId, rows: &Block, from: usize) -> usize {
        let directory = self.tables.get(&table);
        let last = directory.and_then(|directory| directory.last_key_value());
        if let Some((bound, slot)) = last {
            let Held::Loaded(block) = &slot.held else { return from };
            let highest = if block.is_empty() { bound } else { block.key(block.len() - 1) };
            // A block that is not full is filled row by row first.
            if rows.key(from) <= highest || block.len() < 2 || !block.is_nearly_full() {
                return from;
            }
        }
        let mut row = from;
        let mut first = last.is_none();
        while row < rows.len() {
            let mut block = Block::default();
            let next = block.push_rows(rows, row, rows.len());
            let bound = if first { Box::default() } else { rows.key(row).into() };
            first = false;
            self.rows += block.len() as u64;
            self.insert(table, bound, block);
            row = next;
        }
        row
    }

    /// Takes in the rows that fall into the same block as the first, if they are not few: the block is
    /// written anew once, not row by row. Gives the place behind the last.
    fn merge(
        &mut self,
        disk: &Connection,
        table: TableId,
        rows: &Block,
        from: usize,
    ) -> rusqlite::Result<usize> {
        const FEW: usize = 4;
        let Some(directory) = self.tables.get_mut(&table) else { return Ok(from) };
        let key = rows.key(from);
        let behind = directory.range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded)).next();
        let upto = behind.map_or(rows.len(), |(bound, _)| rows.behind(bound, from));
        if upto - from < FEW {
            return Ok(from);
        }
        let upto_key = (Bound::Unbounded, Bound::Included(key));
        let Some((bound, slot)) = directory.range_mut::<[u8], _>(upto_key).next_back() else {
            return Ok(from);
        };
        let before = Arc::clone(slot.load(disk, &mut self.loaded)?);
        save(&mut self.undo, self.marks, table, bound, slot);
        let mut blocks = before.merged(rows, from..upto).into_iter();
        // A local write keeps what is remembered of shifts, so their number stays.
        let block = blocks.next().unwrap_or_default();
        self.loaded = self.loaded - before.size() + block.size();
        self.rows = self.rows - before.len() as u64 + block.len() as u64;
        let is_empty = block.is_empty();
        slot.replace(block);
        if is_empty {
            self.remove_empty(table, key);
        }
        for block in blocks {
            self.rows += block.len() as u64;
            self.insert(table, block.key(0).into(), block);
        }
        Ok(upto)
    }

    /// Changes the rows of every block that has a stamp of an entry that is `covered`, and with an entry all
    /// that its author wrote before; `change` takes away at least those stamps. Other blocks cost a look at
    /// their oldest entries.
    pub(super) fn change_all(
        &mut self,
        disk: &Connection,
        covered: impl Fn(Dot) -> bool,
        mut change: impl FnMut(&mut RowClock),
    ) -> rusqlite::Result<()> {
        let Self { tables, undo, loaded, rows, shifts, marks, .. } = self;
        let mut empty = Vec::new();
        for (table, directory) in tables {
            for (bound, slot) in directory {
                if !slot.oldest.iter().any(|dot| covered(*dot)) {
                    continue;
                }
                let before = Arc::clone(slot.load(disk, loaded)?);
                save(undo, *marks, *table, bound, slot);
                let block = before.rewritten(
                    |stamp| stamp == FORGOTTEN || covered(stamp.dot()),
                    |clock| {
                        let before = clock.shifts.len() as u64;
                        change(clock);
                        *shifts = *shifts - before + clock.shifts.len() as u64;
                    },
                );
                *rows = *rows - before.len() as u64 + block.len() as u64;
                *loaded = *loaded - before.size() + block.size();
                let is_empty = block.is_empty();
                slot.replace(block);
                if is_empty {
                    empty.push((*table, bound.clone()));
                }
            }
        }
        // The first of a table last, so that it may go too.
        for (table, bound) in empty.into_iter().rev() {
            self.remove_empty(table, &bound);
        }
        Ok(())
    }

    /// Removes all blocks of a table.
    pub(super) fn forget(&mut self, disk: &Connection, table: TableId) -> rusqlite::Result<()> {
        let Some(directory) = self.tables.get(&table) else { return Ok(()) };
        let (mut rows, mut shifts) = (0, 0);
        for slot in directory.values() {
            let block = slot.block(disk)?;
            rows += block.len() as u64;
            shifts += (0..block.len()).map(|r| block.clock(r).shifts.len() as u64).sum::<u64>();
        }
        self.rows -= rows;
        self.shifts -= shifts;
        for (bound, mut slot) in self.tables.remove(&table).into_iter().flatten() {
            save(&mut self.undo, self.marks, table, &bound, &mut slot);
            self.dropped(&slot);
        }
        Ok(())
    }

    // --- Taking back

    pub(super) fn mark(&mut self) {
        self.marks += 1;
        self.undo = Some(Undo { slots: Vec::new(), rows: self.rows, shifts: self.shifts });
    }

    pub(super) fn keep(&mut self) {
        self.undo = None;
    }

    pub(super) fn undo(&mut self) {
        let Some(undo) = self.undo.take() else { return };
        (self.rows, self.shifts) = (undo.rows, undo.shifts);
        for (table, bound, before) in undo.slots.into_iter().rev() {
            let directory = self.tables.entry(table).or_default();
            if let Some(slot) = directory.remove(&bound) {
                self.dropped(&slot);
            }
            let directory = self.tables.entry(table).or_default();
            match before {
                Some(slot) => {
                    if let Held::Loaded(block) = &slot.held {
                        self.loaded += block.size();
                    }
                    if let Some(id) = slot.id {
                        self.gone.remove(&id);
                    }
                    directory.insert(bound, slot);
                }
                None if directory.is_empty() => drop(self.tables.remove(&table)),
                None => {}
            }
        }
    }

    // --- On disk

    /// Reads what the last checkpoint wrote.
    pub(super) fn open(disk: &Connection) -> rusqlite::Result<Self> {
        let mut shelf = Self::default();
        let mut statement =
            disk.prepare("SELECT id, table_id, bound, bytes FROM littoral_clock")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            let (id, table): (i64, u32) = (row.get(0)?, row.get(1)?);
            let bytes = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
            let block = block_from(bytes)?;
            shelf.rows += block.len() as u64;
            shelf.shifts +=
                (0..block.len()).map(|r| block.clock(r).shifts.len() as u64).sum::<u64>();
            shelf.newest = shelf.newest.max(id);
            let size = block.size();
            let mut slot = Slot { id: Some(id), dirty: false, ..Slot::new(block, 0) };
            if shelf.loaded > CLOCK_MEMORY_BYTES {
                slot.held = Held::Paged;
            } else {
                shelf.loaded += size;
            }
            let bound: Vec<u8> = row.get(2)?;
            shelf.tables.entry(TableId(table)).or_default().insert(bound.into(), slot);
        }
        for directory in shelf.tables.values_mut() {
            if !directory.contains_key::<[u8]>(&[]) {
                return Err(damaged(DecodeError::Invalid("the first block of a table is missing")));
            }
        }
        Ok(shelf)
    }

    /// Bytes that a checkpoint would write, about.
    pub(super) fn unsaved(&self) -> usize {
        let slots = self.tables.values().flat_map(BTreeMap::values);
        slots.filter(|slot| slot.dirty).map(|slot| slot.size()).sum()
    }

    /// Writes what changed since the last checkpoint, within the transaction under way. When that has
    /// committed, [`Shelf::saved`] must follow.
    pub(super) fn save(&mut self, disk: &Connection) -> rusqlite::Result<()> {
        let mut delete = disk.prepare_cached("DELETE FROM littoral_clock WHERE id = ?")?;
        for id in &self.gone {
            delete.execute([id])?;
        }
        let mut insert =
            disk.prepare_cached("INSERT OR REPLACE INTO littoral_clock VALUES(?, ?, ?, ?)")?;
        for (table, directory) in &mut self.tables {
            for (bound, slot) in directory.iter_mut().filter(|(_, slot)| slot.dirty) {
                let Held::Loaded(block) = &slot.held else { continue };
                let id = *slot.id.get_or_insert_with(|| {
                    self.newest += 1;
                    self.newest
                });
                insert.execute(params![id, table.0, &bound[..], block.encode()])?;
            }
        }
        Ok(())
    }

    pub(super) fn saved(&mut self) {
        self.gone.clear();
        for slot in self.tables.values_mut().flat_map(BTreeMap::values_mut) {
            slot.dirty = false;
        }
    }

    /// Takes blocks out of memory that are the same on disk, while there are more bytes than
    /// [`CLOCK_MEMORY_BYTES`]. False if that was not enough: then a checkpoint is due.
    pub(super) fn shrink(&mut self) -> bool {
        if self.loaded <= CLOCK_MEMORY_BYTES || self.undo.is_some() {
            return true;
        }
        // Down to three quarters, so that it is not done again at once.
        let target = CLOCK_MEMORY_BYTES / 4 * 3;
        for _ in 0..2 {
            let (table, bound) = std::mem::take(&mut self.turn);
            for (id, directory) in self.tables.range_mut(TableId(table)..) {
                let from: &[u8] = if id.0 == table { &bound } else { &[] };
                for (bound, slot) in
                    directory.range_mut::<[u8], _>((Bound::Included(from), Bound::Unbounded))
                {
                    if self.loaded <= target {
                        self.turn = (id.0, bound.clone());
                        return true;
                    }
                    if let (false, Held::Loaded(block)) = (slot.dirty, &slot.held) {
                        self.loaded -= block.size();
                        slot.held = Held::Paged;
                    }
                }
            }
        }
        self.loaded <= CLOCK_MEMORY_BYTES
    }
}

impl Slot {
    fn size(&self) -> usize {
        match &self.held {
            Held::Loaded(block) => block.size(),
            Held::Paged => 0,
        }
    }

    fn replace(&mut self, block: Block) {
        self.dirty = true;
        self.oldest = block.oldest().into();
        self.held = Held::Loaded(Arc::new(block));
    }
}

/// Keeps what a slot was before the first change since the mark.
fn save(undo: &mut Option<Undo>, mark: u64, table: TableId, bound: &[u8], slot: &mut Slot) {
    if let Some(undo) = undo
        && slot.marked != mark
    {
        undo.slots.push((table, bound.into(), Some(slot.clone())));
        slot.marked = mark;
    }
}

fn read_block(disk: &Connection, id: i64) -> rusqlite::Result<Block> {
    let mut statement = disk.prepare_cached("SELECT bytes FROM littoral_clock WHERE id = ?")?;
    let bytes: Option<Vec<u8>> = statement.query_row([id], |row| row.get(0)).optional()?;
    let bytes = bytes.ok_or_else(|| damaged(DecodeError::Invalid("a block is missing")))?;
    block_from(&bytes)
}

fn block_from(bytes: &[u8]) -> rusqlite::Result<Block> {
    let block = Block::decode(bytes).map_err(damaged)?;
    Ok(if planted(Bug::ShiftsNotSaved) {
        block.rewritten(|_| false, |c| c.shifts.clear())
    } else {
        block
    })
}

fn damaged(error: DecodeError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error))
}
