//! Rows of a table in a range of its key: read one by one, or as sums to compare with what another
//! replica holds.
//!
//! Equal rows have equal sums on every replica, since both are made from what is stored, column by
//! column in the order of the ids.

use std::ops::ControlFlow;

use rusqlite::Connection;

use crate::{
    schema::{
        Table,
        row::{key_parts, no_key},
        spelling::put_spelling,
    },
    sqlite::{self, Param},
    value::{Sum, put_cell, put_key_part},
};

/// A range of keys in the order of the table's key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct KeyRange {
    /// Behind this one, or from the first.
    pub(crate) after: Option<Vec<u8>>,
    /// Up to this one and with it, or to the last.
    pub(crate) upto: Option<Vec<u8>>,
}

/// One stored row: its key, and all its cells, encoded one behind the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) cells: &'a [u8],
}

/// What one row comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowSum {
    pub(crate) key: Sum,
    pub(crate) row: Sum,
}

impl Stored<'_> {
    pub(crate) fn sum(&self) -> RowSum {
        RowSum { key: sum_of(self.key), row: sum_of(self.cells) }
    }
}

/// The sum of bytes.
pub(crate) fn sum_of(bytes: &[u8]) -> Sum {
    start_of(blake3::hash(bytes))
}

fn start_of(hash: blake3::Hash) -> Sum {
    let mut sum = Sum::default();
    sum.copy_from_slice(&hash.as_bytes()[..size_of::<Sum>()]);
    sum
}

/// Gives the rows of a range in key order, until it has no more or `each` breaks.
pub(crate) fn visit(
    conn: &Connection,
    table: &Table,
    range: &KeyRange,
    mut each: impl FnMut(Stored<'_>) -> ControlFlow<()>,
) -> rusqlite::Result<()> {
    let sql = table.sql.range(range.after.is_some(), range.upto.is_some());
    let mut statement = conn.prepare_cached(&sql)?;
    let mut place = 0;
    for bound in range.after.iter().chain(&range.upto) {
        for part in key_parts(table, bound) {
            place += 1;
            statement.raw_bind_parameter(place, Param(part.map_err(no_key)?.as_value()))?;
        }
    }
    let width = table.key.len();
    let (mut key, mut cells) = (Vec::new(), Vec::new());
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        key.clear();
        cells.clear();
        for (place, column) in table.key.iter().enumerate() {
            let value = sqlite::column(row, place)?;
            put_key_part(&mut key, value, column.collation).map_err(no_key)?;
        }
        if table.has_spelling() {
            put_spelling(&mut cells, table, |place, _| sqlite::column(row, place))?;
        }
        for place in 0..table.stored().len() {
            put_cell(&mut cells, sqlite::column(row, width + place)?);
        }
        if each(Stored { key: &key, cells: &cells }).is_break() {
            break;
        }
    }
    Ok(())
}

/// The sums of the rows of a range, at most `rows` of them, and the key of the last one if there were
/// as many.
pub(crate) fn sums(
    conn: &Connection,
    table: &Table,
    range: &KeyRange,
    rows: usize,
) -> rusqlite::Result<(Vec<RowSum>, Option<Vec<u8>>)> {
    let mut sums = Vec::new();
    let mut last = None;
    visit(conn, table, range, |row| {
        sums.push(row.sum());
        if sums.len() < rows {
            return ControlFlow::Continue(());
        }
        last = Some(row.key.to_vec());
        ControlFlow::Break(())
    })?;
    Ok((sums, last))
}

/// Sums up a range, of which at most `rows` rows and not many more than `bytes` bytes are read: gives
/// the range that was read.
pub(crate) fn sum(
    conn: &Connection,
    table: &Table,
    after: Option<Vec<u8>>,
    (rows, bytes): (usize, usize),
) -> rusqlite::Result<(KeyRange, Sum)> {
    let mut range = KeyRange { after, upto: None };
    let mut hasher = blake3::Hasher::new();
    let (mut count, mut read, mut last) = (0, 0, None);
    visit(conn, table, &range, |row| {
        put_row(&mut hasher, row);
        count += 1;
        read += row.key.len() + row.cells.len();
        if count < rows && read < bytes {
            return ControlFlow::Continue(());
        }
        last = Some(row.key.to_vec());
        ControlFlow::Break(())
    })?;
    range.upto = last;
    Ok((range, start_of(hasher.finalize())))
}

/// Whether a range comes to that sum here as well, and how many rows were read: not more than `rows`, and
/// not many more than `bytes` bytes.
pub(crate) fn has_sum(
    conn: &Connection,
    table: &Table,
    range: &KeyRange,
    (rows, bytes): (usize, usize),
    sum: Sum,
) -> rusqlite::Result<(bool, u64)> {
    let mut hasher = blake3::Hasher::new();
    let (mut count, mut read, mut more) = (0, 0, false);
    visit(conn, table, range, |row| {
        if count == rows || read >= bytes {
            more = true;
            return ControlFlow::Break(());
        }
        put_row(&mut hasher, row);
        count += 1;
        read += row.key.len() + row.cells.len();
        ControlFlow::Continue(())
    })?;
    Ok((!more && start_of(hasher.finalize()) == sum, count as u64))
}

fn put_row(hasher: &mut blake3::Hasher, row: Stored<'_>) {
    hasher.update(&(row.key.len() as u64).to_le_bytes());
    hasher.update(row.key);
    hasher.update(&(row.cells.len() as u64).to_le_bytes());
    hasher.update(row.cells);
}
