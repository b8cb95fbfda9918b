//! The net changes of a transaction as the rows of an entry: assignments with the entry they
//! overwrite, increments, epochs.

use crate::{
    capture::{
        Recorder,
        fold::{NetChange, NetRow, changes, split},
    },
    contested::{ClockCursor, Contested},
    entry::{
        RowOpKind,
        codec::{Body, CellKind, RowsWriter},
    },
    error::WriteError,
    limits::MAX_ENTRY_BYTES,
    policy::ColumnType,
    schema::{Column, Table},
    testing::{Bug, planted},
    value::{ByteReader, ValueRef},
    version::Dot,
};

/// Writes down what `recorder` holds, as seen by a replica with these clocks; `None` if it comes to
/// nothing.
pub(crate) fn encode(
    recorder: &Recorder,
    contested: &Contested,
) -> Result<Option<Body>, WriteError> {
    if recorder.is_empty() {
        return Ok(None);
    }
    let mut encoder =
        Encoder { clocks: contested.cursor(), writer: RowsWriter::default(), saw: Vec::new() };
    let mut result = Ok(());
    recorder.net(|table, row| {
        if result.is_ok() {
            result = encoder.row(table, &row);
        }
    });
    result?;
    encoder.writer.finish();
    if encoder.writer.is_empty() {
        return Ok(None);
    }
    let mut body = Body::default();
    body.push_rows(encoder.writer);
    if body.len() > MAX_ENTRY_BYTES {
        return Err(WriteError::EntryTooLarge { bytes: body.len(), max: MAX_ENTRY_BYTES });
    }
    Ok(Some(body))
}

struct Encoder<'c> {
    clocks: ClockCursor<'c>,
    writer: RowsWriter,
    saw: Vec<Dot>,
}

impl Encoder<'_> {
    fn row(&mut self, table: &Table, row: &NetRow<'_>) -> Result<(), WriteError> {
        match row.change {
            NetChange::Insert(cells) => self.insert(table, row.key, cells),
            NetChange::Update(cells) => self.update(table, row.key, cells),
            NetChange::Delete => {
                let clock = self.clocks.row(table.id, row.key);
                let epoch = clock.map_or(0, |clock| clock.epoch_for(RowOpKind::Delete));
                self.saw.clear();
                if let Some(clock) = clock {
                    clock.seen(&mut self.saw);
                }
                self.writer.row(table.id, RowOpKind::Delete, [].into_iter(), row.key, epoch);
                self.writer.saw(&self.saw);
                Ok(())
            }
        }
    }

    fn insert(&mut self, table: &Table, key: &[u8], cells: &[u8]) -> Result<(), WriteError> {
        let clock = self.clocks.row(table.id, key);
        let epoch = clock.map_or(0, |clock| clock.epoch_for(RowOpKind::Insert));
        let columns = table.cells.iter().map(|column| (column.id, cell_kind(column)));
        self.writer.row(table.id, RowOpKind::Insert, columns, key, epoch);
        if table.assigned.len() == table.cells.len() {
            self.writer.encoded(cells);
            return Ok(());
        }
        for (column, cell) in table.cells.iter().zip(split(cells)) {
            match cell_kind(column) {
                CellKind::Assign => self.writer.encoded(cell),
                CellKind::Add => self.writer.delta(count(table, column, cell)?),
            }
        }
        Ok(())
    }

    fn update(&mut self, table: &Table, key: &[u8], cells: &[u8]) -> Result<(), WriteError> {
        let clock = self.clocks.row(table.id, key);
        let epoch = clock.map_or(0, |clock| clock.epoch_for(RowOpKind::Update));
        let columns = changes(cells).map(|(place, _, _)| {
            let column = &table.cells[place];
            (column.id, cell_kind(column))
        });
        self.writer.row(table.id, RowOpKind::Update, columns, key, epoch);
        for (place, old, new) in changes(cells) {
            let column = &table.cells[place];
            match cell_kind(column) {
                CellKind::Assign => {
                    self.writer.previous(clock.and_then(|clock| clock.previous(column.id)));
                    self.writer.encoded(new);
                }
                CellKind::Add => {
                    let after = count(table, column, new)?;
                    let before =
                        if planted(Bug::CounterAbsolute) { 0 } else { count(table, column, old)? };
                    self.writer.delta(after.wrapping_sub(before));
                }
            }
        }
        Ok(())
    }
}

fn cell_kind(column: &Column) -> CellKind {
    match column.merge {
        ColumnType::Lww => CellKind::Assign,
        ColumnType::Counter => CellKind::Add,
    }
}

fn count(table: &Table, column: &Column, cell: &[u8]) -> Result<i64, WriteError> {
    match ByteReader::new(cell).cell() {
        Ok(ValueRef::Integer(n)) => Ok(n),
        _ => Err(WriteError::Value {
            table: table.name.clone(),
            column: column.name.clone(),
            what: "a counter holds 64-bit integers only".to_owned(),
        }),
    }
}
