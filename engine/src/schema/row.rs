//! One stored row by its key.

use rusqlite::{Connection, Statement};

use crate::{
    schema::{Table, spelling::put_spelling},
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

/// As [`bind_key`], for a statement that is kept, from the parameter behind `before` on: only what is not
/// in the key as it stands is copied.
pub(crate) fn lend_key<'v>(
    parameters: &mut Parameters<'v>,
    before: usize,
    table: &Table,
    key: &'v [u8],
) -> rusqlite::Result<()> {
    let mut parts = parts(table, key);
    parts.try_for_each(|(place, part)| {
        let part = part.map_err(no_key)?;
        match part.lent() {
            Some(value) => parameters.lend(before + place, value),
            None => parameters.copy(before + place, part.as_value()),
        }
    })
}

/// The parts of a key, each with its place among the parameters.
fn parts<'k>(
    table: &Table,
    key: &'k [u8],
) -> impl Iterator<Item = (usize, Result<KeyPart<'k>, DecodeError>)> {
    (1..).zip(key_parts(table, key))
}

/// The parts of a key.
pub(crate) fn key_parts<'k>(
    table: &Table,
    key: &'k [u8],
) -> impl Iterator<Item = Result<KeyPart<'k>, DecodeError>> {
    let mut reader = ByteReader::new(key);
    (0..table.key.len()).map(move |_| reader.key_part())
}

pub(crate) fn no_key(error: DecodeError) -> rusqlite::Error {
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
