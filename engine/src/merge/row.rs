//! Merging into a row in memory, for what one statement cannot do.

use std::collections::BTreeSet;

use rusqlite::Connection;

use crate::{
    entry::{CellWrite, RowOp, SetChange},
    schema::{Column, Table, shape::TableShape},
    set, sqlite,
    value::{ValueRef, put_cell, value},
};

/// A counter that wrapped around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overflow {
    /// The counter's place among the cells.
    pub(super) place: usize,
    /// The sum modulo 2^64, which is stored.
    pub(super) wrapped: i64,
    /// The sum itself.
    pub(super) exact: i128,
}

/// A cell that holds NULL.
pub(super) fn null() -> Vec<u8> {
    let mut cell = Vec::new();
    put_cell(&mut cell, ValueRef::Null);
    cell
}

/// What the columns of a table begin with.
pub(super) fn defaults(conn: &Connection, table: &Table) -> rusqlite::Result<Vec<Vec<u8>>> {
    let shape = TableShape::read(conn, &table.name)?;
    let default = |column: &Column| -> rusqlite::Result<Vec<u8>> {
        let declared = shape.columns.iter().find(|declared| declared.name == column.name);
        let Some(text) = declared.and_then(|declared| declared.default_sql()) else {
            return Ok(null());
        };
        let mut cell = Vec::new();
        let computed = conn.query_row(&format!("SELECT {text}"), [], |row| {
            put_cell(&mut cell, column.stored(sqlite::column(row, 0)?));
            Ok(())
        });
        match computed {
            Ok(()) => Ok(cell),
            // It calls a function that only authors have: no reason to stop replication.
            Err(rusqlite::Error::SqlInputError { .. }) => Ok(null()),
            Err(error) => Err(error),
        }
    };
    let cells = table.cells.iter();
    cells.map(|cell| if cell.is_spelling() { Ok(null()) } else { default(cell) }).collect()
}

/// The cells of a row that an insert is about to begin: defaults in the columns that its author did not
/// know. What it gives itself counts from nothing.
pub(super) fn unwritten(
    conn: &Connection,
    table: &Table,
    op: &RowOp<'_>,
) -> rusqlite::Result<Vec<Vec<u8>>> {
    let given = |column: &Column| op.cells.iter().any(|cell| cell.column == column.id);
    if table.cells.iter().all(given) {
        return Ok(vec![null(); table.cells.len()]);
    }
    let mut cells = defaults(conn, table)?;
    for (cell, _) in cells.iter_mut().zip(&table.cells).filter(|(_, column)| given(column)) {
        *cell = null();
    }
    Ok(cells)
}

/// Merges an operation into the cells of a row. `wins` says of its assignments, by their place in it,
/// which take effect.
pub(super) fn merge(
    table: &Table,
    cells: &mut [Vec<u8>],
    op: &RowOp<'_>,
    wins: impl Fn(usize) -> bool,
) -> Vec<Overflow> {
    let mut overflows = Vec::new();
    for (index, cell) in op.cells.iter().enumerate() {
        let Some(place) = table.cell(cell.column) else { continue };
        let united;
        let merged = match cell.write {
            CellWrite::Assign { value, .. } => wins(index).then_some(value),
            CellWrite::Extreme(new) => {
                table.cells[place].merge.takes(value(&cells[place]), new).then_some(new)
            }
            CellWrite::Set(change) => {
                united = unite(value(&cells[place]), change);
                Some(ValueRef::Text(united.as_bytes()))
            }
            CellWrite::Add(delta) => {
                let count = match value(&cells[place]) {
                    ValueRef::Integer(n) => n,
                    _ => 0,
                };
                let wrapped = count.wrapping_add(delta);
                if count.checked_add(delta).is_none() {
                    let exact = i128::from(count) + i128::from(delta);
                    overflows.push(Overflow { place, wrapped, exact });
                }
                Some(ValueRef::Integer(wrapped))
            }
        };
        if let Some(merged) = merged {
            let mut encoded = Vec::new();
            put_cell(&mut encoded, merged);
            cells[place] = encoded;
        }
    }
    overflows
}

/// What becomes of a set by a change of it. What is no set counts as an empty one: nothing but littoral may
/// have written it.
pub(super) fn unite(held: ValueRef<'_>, change: SetChange<'_>) -> String {
    let mut elements: BTreeSet<_> = set::read(held).unwrap_or_default().into_iter().collect();
    elements.extend(change.added());
    for removal in change.removed() {
        elements.remove(&removal.element);
    }
    set::spell(&elements)
}
