//! The net changes of a transaction as the rows of an entry: assignments with the entry they
//! overwrite, increments, epochs.

use rusqlite::Connection;

use crate::{
    capture::{
        Recorder,
        fold::{NetChange, NetRow, changes, split},
    },
    contested::{ClockChanges, Contested, LocalWrites},
    entry::{
        RowOpKind,
        codec::{Body, CellKind, HEADER_BYTES_MAX, RowsWriter},
    },
    error::WriteError,
    hlc::Stamp,
    id::TableId,
    limits::MAX_ENTRY_BYTES,
    policy::ColumnType,
    schema::{Column, Table},
    testing::{Bug, planted},
    value::{ByteReader, ValueRef, integral},
    version::Dot,
};

/// What a transaction becomes.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) body: Body,
    /// The clocks to install once it has committed.
    pub(crate) clocks: ClockChanges,
}

/// Writes down what `recorder` holds, and the keys that AUTOINCREMENT has handed out, as seen by a replica
/// with these clocks, of which some may be on `disk` only, for the entry with this stamp; `None` if it
/// comes to nothing.
pub(crate) fn encode(
    recorder: &Recorder,
    sequences: &[(TableId, i64)],
    contested: &Contested,
    disk: &Connection,
    stamp: Stamp,
) -> Result<Option<Encoded>, WriteError> {
    let mut encoder = Encoder {
        clocks: LocalWrites::new(contested, disk, stamp),
        writer: RowsWriter::default(),
        saw: Vec::new(),
    };
    let mut result = Ok(());
    recorder.net(|table, row| {
        if result.is_ok() {
            result = encoder.row(table, &row);
        }
    });
    result?;
    encoder.writer.finish();
    if encoder.writer.is_empty() && sequences.is_empty() {
        return Ok(None);
    }
    let mut body = Body::default();
    if !encoder.writer.is_empty() {
        body.push_rows(encoder.writer);
    }
    if !sequences.is_empty() {
        body.push_sequences(sequences);
    }
    let bytes = body.len() + HEADER_BYTES_MAX;
    if bytes > MAX_ENTRY_BYTES {
        return Err(WriteError::EntryTooLarge { bytes, max: MAX_ENTRY_BYTES });
    }
    Ok(Some(Encoded { body, clocks: encoder.clocks.finish() }))
}

struct Encoder<'c> {
    clocks: LocalWrites<'c>,
    writer: RowsWriter,
    saw: Vec<Dot>,
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
        let epoch = if table.is_multi_writer() {
            let upto = table.cells.last().map(|column| column.id);
            self.clocks.insert(table.id, key, upto)?
        } else {
            0
        };
        let columns = table.cells.iter().map(|column| (column.id, cell_kind(column)));
        self.writer.row(table.id, RowOpKind::Insert, columns, key, epoch);
        if !table.counted {
            self.writer.encoded(cells);
            return Ok(());
        }
        for (column, cell) in table.cells.iter().zip(split(cells)) {
            match cell_kind(column) {
                CellKind::Assign | CellKind::Extreme => self.writer.encoded(cell),
                CellKind::Add => self.writer.delta(count(table, column, cell)?),
            }
        }
        Ok(())
    }

    fn update(&mut self, table: &Table, key: &[u8], cells: &[u8]) -> Result<(), WriteError> {
        let stamp = self.clocks.stamp();
        let (epoch, mut clock) = if table.is_multi_writer() {
            let clock = self.clocks.update(table.id, key)?;
            (clock.epoch_for(RowOpKind::Update), Some(clock))
        } else {
            (0, None)
        };
        let columns = changes(cells).map(|(place, _, _)| {
            let column = &table.cells[place];
            (column.id, cell_kind(column))
        });
        self.writer.row(table.id, RowOpKind::Update, columns, key, epoch);
        for (place, old, new) in changes(cells) {
            let column = &table.cells[place];
            match cell_kind(column) {
                CellKind::Assign => {
                    let previous = clock.as_mut().and_then(|c| c.overwrite(column.id, stamp));
                    self.writer.previous(previous);
                    self.writer.encoded(new);
                }
                CellKind::Extreme => self.writer.encoded(new),
                CellKind::Add => {
                    let after = count(table, column, new)?;
                    let before =
                        if planted(Bug::CounterAbsolute) { 0 } else { count(table, column, old)? };
                    self.writer.delta(after.wrapping_sub(before));
                }
            }
        }
        if let Some(clock) = &clock {
            self.clocks.updated(table.id, key, clock);
        }
        Ok(())
    }
}

fn cell_kind(column: &Column) -> CellKind {
    match column.merge {
        ColumnType::Lww => CellKind::Assign,
        ColumnType::Counter => CellKind::Add,
        ColumnType::Max | ColumnType::Min => CellKind::Extreme,
    }
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
