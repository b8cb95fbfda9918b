//! One stored row by its key.

use rusqlite::{Connection, Statement};

use crate::{
    schema::Table,
    sqlite::{self, Param},
    value::{ByteReader, put_cell},
};

/// Binds the parts of a canonical key to the first parameters of a statement.
///
/// # Errors
/// Also if the bytes are no key of the table.
pub(crate) fn bind_key(
    statement: &mut Statement<'_>,
    table: &Table,
    key: &[u8],
) -> rusqlite::Result<()> {
    let mut reader = ByteReader::new(key);
    for place in 1..=table.key.len() {
        let part = reader
            .key_part()
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        statement.raw_bind_parameter(place, Param(part.as_value()))?;
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
    bind_key(&mut statement, table, key)?;
    let mut rows = statement.raw_query();
    let Some(row) = rows.next()? else { return Ok(None) };
    let mut cells = vec![Vec::new(); table.cells.len()];
    for (place, cell) in cells.iter_mut().enumerate() {
        put_cell(cell, sqlite::column(row, place)?);
    }
    Ok(Some(cells))
}
