//! The net changes of a transaction as the rows of an entry: assignments with the entry they
//! overwrite, increments, epochs.

use std::cmp::Ordering;

use rusqlite::Connection;

use crate::{
    capture::{
        fold::{NetChange, NetRow, changes, split},
        normalize::elements,
        recorder::{Captured, Page},
    },
    contested::{ClockChanges, Contested, Known, LocalWrites, RowClock},
    entry::{
        Removal, RowOpKind, TableChange,
        change::put_change,
        codec::Body,
        rows::{CellKind, RowsWriter, put_previous},
    },
    error::WriteError,
    hlc::Stamp,
    id::{ColumnId, TableId},
    log::chunks::Draft,
    merge::{Parked, key_text},
    policy::ColumnType,
    schema::{Column, Table},
    set::Element,
    testing::{Bug, planted},
    value::{ByteReader, ValueRef, integral, put_zigzag},
    version::Dot,
};

/// What a transaction becomes, beside its entry.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    /// The clocks to install once it has committed.
    pub(crate) clocks: ClockChanges,
    /// By how much the entry raises the schema version.
    pub(crate) schema_changes: u32,
}

/// Writes down what was captured, and the keys that AUTOINCREMENT has handed out, as seen by a replica
/// with these clocks, of which some may be on `disk` only, for the entry with this stamp. On `disk`, rows
/// are as they were before the transaction. If the transaction changed the schema, clocks and what is known
/// of parked rows are changed on the way: undo that if it fails.
pub(crate) fn encode(
    captured: &Captured,
    sequences: &[(TableId, i64)],
    contested: &mut Contested,
    disk: &Connection,
    parked: &mut Parked,
    stamp: Stamp,
    draft: &mut Draft<'_>,
) -> Result<Encoded, WriteError> {
    let mut change = SchemaChange::default();
    for chapter in captured.chapters() {
        if !chapter.page().is_empty() {
            change.push_to(draft)?;
            let clocks = encode_rows(draft, contested, disk, parked, stamp, chapter.page())?;
            // What follows in the same entry overwrites what it has written itself.
            contested.install(disk, &clocks)?;
        }
        contested.forget_dropped(disk, &chapter.changes)?;
        parked.forget_dropped(&chapter.changes);
        if let (Some(TableChange::Dropped(_)), Some(TableChange::Declared(_))) =
            (change.changes.last(), chapter.changes.first())
        {
            // Dropped by one statement and made by the next is more than declared anew by one.
            change.push_to(draft)?;
        }
        change.statements.extend_from_slice(&chapter.statements);
        change.changes.extend_from_slice(&chapter.changes);
    }
    change.push_to(draft)?;
    let clocks = encode_rows(draft, contested, disk, parked, stamp, captured.page())?;
    if !sequences.is_empty() {
        draft.segment(|body| body.push_sequences(sequences))?;
    }
    Ok(Encoded { clocks, schema_changes: change.pushed })
}

/// Changes of the schema with no rows in between.
#[derive(Default)]
struct SchemaChange {
    statements: Vec<String>,
    changes: Vec<TableChange>,
    /// How many `Policy` segments were written.
    pushed: u32,
}

impl SchemaChange {
    fn push_to(&mut self, draft: &mut Draft<'_>) -> Result<(), WriteError> {
        if self.statements.is_empty() && self.changes.is_empty() {
            return Ok(());
        }
        draft.segment(|body: &mut Body| {
            if !self.statements.is_empty() {
                body.push_ddl(self.statements.drain(..).as_slice().iter().map(String::as_str));
            }
            // Also if no table changed: it makes the next version of the schema.
            body.push_policy(&self.changes);
        })?;
        self.changes.clear();
        self.pushed += 1;
        Ok(())
    }
}

fn encode_rows(
    draft: &mut Draft<'_>,
    contested: &Contested,
    disk: &Connection,
    parked: &Parked,
    stamp: Stamp,
    page: Page<'_>,
) -> Result<ClockChanges, WriteError> {
    let mut encoder = Encoder {
        clocks: LocalWrites::new(contested, disk, stamp),
        writer: RowsWriter::default(),
        saw: Vec::new(),
        columns: Vec::new(),
        cells: Vec::new(),
        parked,
    };
    page.net(disk, |table, row| {
        encoder.row(table, &row)?;
        if encoder.writer.len() >= draft.segment_bytes() {
            draft.rows(&mut encoder.writer)?;
        }
        Ok(())
    })?;
    draft.rows(&mut encoder.writer)?;
    Ok(encoder.clocks.finish())
}

struct Encoder<'c> {
    clocks: LocalWrites<'c>,
    writer: RowsWriter,
    saw: Vec<Dot>,
    /// Of the update at hand.
    columns: Vec<(ColumnId, CellKind)>,
    cells: Vec<u8>,
    parked: &'c Parked,
}

impl Encoder<'_> {
    fn row(&mut self, table: &Table, row: &NetRow<'_>) -> Result<(), WriteError> {
        match row.change {
            NetChange::Insert(cells) => self.insert(table, row.key, cells),
            NetChange::Update(cells) => self.update(table, row.key, cells),
            NetChange::Delete => {
                self.saw.clear();
                let epoch = if table.is_multi_writer() {
                    self.clocks.delete(table.id, row.key, &mut self.saw)?
                } else {
                    0
                };
                self.writer.row(table.id, RowOpKind::Delete, [].into_iter(), row.key, epoch);
                self.writer.saw(&self.saw);
                Ok(())
            }
        }
    }

    fn insert(&mut self, table: &Table, key: &[u8], cells: &[u8]) -> Result<(), WriteError> {
        if self.parked.contains(table.id, key) {
            let row = key_text(table, key);
            return Err(WriteError::Parked { table: table.name.clone(), row });
        }
        let epoch = if table.is_multi_writer() {
            let upto = table.cells.last().map(|column| column.id);
            let added = if table.has_sets { added(table, cells)? } else { Vec::new() };
            self.clocks.insert(table.id, key, upto, added)?
        } else {
            0
        };
        if self.writer.is_in_run(table.id, RowOpKind::Insert) {
            // Every insert names all columns.
            self.writer.alike(key, epoch);
        } else {
            let columns = table.cells.iter().map(|column| (column.id, cell_kind(column)));
            self.writer.row(table.id, RowOpKind::Insert, columns, key, epoch);
        }
        if !table.counted && !table.has_sets {
            self.writer.encoded(cells);
            return Ok(());
        }
        for (column, cell) in table.cells.iter().zip(split(cells)) {
            match cell_kind(column) {
                CellKind::Assign | CellKind::Extreme => self.writer.encoded(cell),
                CellKind::Add => self.writer.delta(count(table, column, cell)?),
                CellKind::Set => {
                    self.cells.clear();
                    put_change(&mut self.cells, &elements(table, column, cell)?, &[]);
                    self.writer.encoded(&self.cells);
                }
            }
        }
        Ok(())
    }

    fn update(&mut self, table: &Table, key: &[u8], cells: &[u8]) -> Result<(), WriteError> {
        let stamp = self.clocks.stamp();
        let mut clock =
            if table.is_multi_writer() { self.clocks.update(table.id, key)? } else { None };
        let had = clock.is_some();
        let epoch = clock.as_ref().map_or(0, |clock| clock.epoch_for(RowOpKind::Update));
        self.columns.clear();
        self.cells.clear();
        for (place, old, new) in changes(cells) {
            let column = &table.cells[place];
            let kind = cell_kind(column);
            self.columns.push((column.id, kind));
            match kind {
                CellKind::Assign => {
                    let previous = clock.as_mut().and_then(|c| c.overwrite(column.id, stamp));
                    put_previous(&mut self.cells, previous);
                    self.cells.extend_from_slice(new);
                }
                CellKind::Extreme => self.cells.extend_from_slice(new),
                CellKind::Add => {
                    let after = count(table, column, new)?;
                    // As a merge has it: a value that another program has spoiled counts as nothing.
                    let before = count(table, column, old).unwrap_or(0);
                    let before = if planted(Bug::CounterAbsolute) { 0 } else { before };
                    put_zigzag(&mut self.cells, after.wrapping_sub(before));
                }
                CellKind::Set => {
                    let old = elements(table, column, old).unwrap_or_default();
                    let new = elements(table, column, new)?;
                    // Only multi-writer tables have columns that merge.
                    let clock = clock.get_or_insert_default();
                    put_set(&mut self.cells, clock, column.id, stamp, &old, &new);
                }
            }
        }
        let columns = self.columns.iter().copied();
        let like_before = self.writer.row(table.id, RowOpKind::Update, columns, key, epoch);
        self.writer.encoded(&self.cells);
        if !table.is_multi_writer()
            || !had && clock.is_none() && like_before && self.clocks.updated_alike(table.id, key)
        {
            return Ok(());
        }
        let mut clock = clock.unwrap_or_default();
        if !had {
            for (column, _) in self.columns.iter().filter(|(_, kind)| *kind == CellKind::Assign) {
                clock.overwrite(*column, stamp);
            }
        }
        self.clocks.updated(table.id, key, &clock, had);
        Ok(())
    }
}

fn cell_kind(column: &Column) -> CellKind {
    match column.merge {
        ColumnType::Lww => CellKind::Assign,
        ColumnType::Counter => CellKind::Add,
        ColumnType::Max | ColumnType::Min => CellKind::Extreme,
        ColumnType::Set => CellKind::Set,
    }
}

/// The elements of the sets of a row that is inserted, by column, as bytes.
fn added(table: &Table, cells: &[u8]) -> Result<Vec<(ColumnId, Vec<u8>)>, WriteError> {
    let mut added = Vec::new();
    for (column, cell) in table.cells.iter().zip(split(cells)) {
        if column.merge == ColumnType::Set {
            let elements = elements(table, column, cell)?;
            added.extend(elements.iter().map(|element| (column.id, element.to_bytes())));
        }
    }
    Ok(added)
}

/// Writes down how a set came from `old` to `new`: what was in both is not mentioned.
fn put_set(
    out: &mut Vec<u8>,
    clock: &mut RowClock,
    column: ColumnId,
    stamp: Stamp,
    old: &[Element<'_>],
    new: &[Element<'_>],
) {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(gone), Some(come)) => gone.cmp(come),
        };
        let gone = old.next_if(|_| order.is_le());
        let come = new.next_if(|_| order.is_ge());
        match (gone, come) {
            (Some(element), None) => {
                let mut known = clock.remove(column, element.to_bytes());
                if planted(Bug::RemovalWithoutDots) {
                    known = Known { dots: Vec::new(), stable: true };
                }
                let Known { dots, stable } = known;
                removed.push(Removal { element: element.clone(), dots, stable });
            }
            (None, Some(element)) => {
                clock.add(column, element.to_bytes(), stamp);
                added.push(element);
            }
            _ => {}
        }
    }
    put_change(out, added, &removed);
}

fn count(table: &Table, column: &Column, cell: &[u8]) -> Result<i64, WriteError> {
    match ByteReader::new(cell).cell() {
        Ok(ValueRef::Integer(n)) => Ok(n),
        other => Err(WriteError::Value {
            table: table.name.clone(),
            column: column.name.clone(),
            what: match other {
                // SQL gives a REAL where the sum of two integers is beyond 64 bits.
                Ok(ValueRef::Real(r)) if integral(r).is_none() && r.fract() == 0.0 => {
                    "the counter overflows 64 bits".to_owned()
                }
                _ => "a counter holds 64-bit integers only".to_owned(),
            },
        }),
    }
}
