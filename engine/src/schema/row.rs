//! One stored row by its key.

use rusqlite::{Connection, Statement};

use crate::{
    schema::{Table, spelling::put_spelling},
    sqlite::{self, Param},
    value::{ByteReader, put_cell},
};

/// Binds the parts of a canonical key, from the parameter behind `before` on.
///
/// # Errors
/// Also if the bytes are no key of the table.
pub(crate) fn bind_key(
    statement: &mut Statement<'_>,
    before: usize,
    table: &Table,
    key: &[u8],
) -> rusqlite::Result<()> {
    let mut reader = ByteReader::new(key);
    for place in 1..=table.key.len() {
        let part = reader
            .key_part()
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        statement.raw_bind_parameter(before + place, Param(part.as_value()))?;
    }
    Ok(())
}

/// All cells of the row with a key, each encoded; `None` if there is no such row.
pub(crate) fn read_row(
    conn: &Connection,
    table: &Table,
    key: &[u8],
) -> rusqlite::Result<Option<Vec<Vec<u8>>>> {
    let mut statement = conn.prepare_cached(&table.sql.select)?;
    bind_key(&mut statement, 0, table, key)?;
    let mut rows = statement.raw_query();
    let Some(row) = rows.next()? else { return Ok(None) };
    let mut cells = vec![Vec::new(); table.cells.len()];
    let stored = match &mut *cells {
        [spelling, stored @ ..] if table.has_spelling() => {
            put_spelling(spelling, table, |part, _| sqlite::column(row, stored.len() + part))?;
            stored
        }
        stored => stored,
    };
    for (place, cell) in stored.iter_mut().enumerate() {
        put_cell(cell, sqlite::column(row, place)?);
    }
    Ok(Some(cells))
}
