//! One stored row by its key.

use rusqlite::{Connection, Statement};

use crate::{
    schema::Table,
    sqlite::{self, Param, Parameters},
    value::{ByteReader, DecodeError, KeyPart, put_cell},
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
    let mut parts = parts(table, key);
    parts.try_for_each(|(place, part)| {
        statement.raw_bind_parameter(place, Param(part.map_err(no_key)?.as_value()))
    })
}

/// As [`bind_key`], for a statement that is kept: only what is not in the key as it stands is copied.
pub(crate) fn lend_key<'v>(
    parameters: &mut Parameters<'v>,
    table: &Table,
    key: &'v [u8],
) -> rusqlite::Result<()> {
    let mut parts = parts(table, key);
    parts.try_for_each(|(place, part)| {
        let part = part.map_err(no_key)?;
        match part.lent() {
            Some(value) => parameters.lend(place, value),
            None => parameters.copy(place, part.as_value()),
        }
    })
}

/// The parts of a key, each with its place among the parameters.
fn parts<'k>(
    table: &Table,
    key: &'k [u8],
) -> impl Iterator<Item = (usize, Result<KeyPart<'k>, DecodeError>)> {
    let mut reader = ByteReader::new(key);
    (1..=table.key.len()).map(move |place| (place, reader.key_part()))
}

fn no_key(error: DecodeError) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
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
