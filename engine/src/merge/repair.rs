//! [`repair`]: puts rows in the place of others that are not what they have to be.
//!
//! Nothing of this is an entry: other nodes compare for themselves.

use crate::{
    entry::Member,
    merge::{
        conflict::Conflicts,
        parked::is_rejection,
        store::{delete_row, insert_row},
    },
    schema::{Table, catalog, spelling::check_spelling},
    sqlite::Keeping,
    value::{ByteReader, DecodeError},
};

/// A row as it has to be, and as it is.
#[derive(Debug)]
pub(crate) struct Mended {
    pub(crate) key: Vec<u8>,
    /// The cells of the row as it has to be, each encoded; `None` if there must be none.
    pub(crate) right: Option<Vec<Vec<u8>>>,
    /// The cells of the row that is there, if one is.
    pub(crate) wrong: Option<Vec<Vec<u8>>>,
}

/// Mends rows of a table in a transaction of its own, all or none, and lists what was there in
/// `littoral_conflicts`. Gives what is in the way if some of them cannot be stored.
///
/// # Errors
/// SQLite's, if storage fails. The transaction is rolled back, or the caller has to see to it.
pub(crate) fn repair(
    conn: &Keeping,
    members: &[Member],
    table: &Table,
    rows: &[Mended],
) -> rusqlite::Result<Option<rusqlite::Error>> {
    conn.prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
    match replace(conn, members, table, rows) {
        Ok(()) => {
            conn.prepare_cached("COMMIT")?.raw_execute()?;
            Ok(None)
        }
        Err(error) if is_rejection(&error) => {
            conn.execute_batch("ROLLBACK")?;
            Ok(Some(error))
        }
        Err(error) => Err(error),
    }
}

fn replace(
    conn: &Keeping,
    members: &[Member],
    table: &Table,
    rows: &[Mended],
) -> rusqlite::Result<()> {
    let last = table.autoincrement.then(|| catalog::sequence(conn, &table.name)).transpose()?;
    // First all that is wrong: a row may be in the way of another.
    for row in rows.iter().filter(|row| row.wrong.is_some()) {
        delete_row(conn, table, &row.key)?;
    }
    let mut conflicts = Conflicts::new(conn, members);
    for row in rows {
        if let Some(cells) = &row.right {
            insert_row(conn, table, &row.key, cells)?;
        }
        conflicts.record_repair(table, &row.key, row.right.as_deref(), row.wrong.as_deref())?;
    }
    if let Some(last) = last {
        // Putting a row back has moved it; what it must be came with entries.
        catalog::set_sequence(conn, &table.name, last)?;
    }
    conflicts.flush()
}

/// The cells of a row with that key, which stand one behind the other, each by itself.
///
/// # Errors
/// If the bytes are not those of a key and of all cells of a row.
pub(crate) fn cells_of(
    table: &Table,
    key: &[u8],
    bytes: &[u8],
) -> Result<Vec<Vec<u8>>, DecodeError> {
    let mut parts = ByteReader::new(key);
    for _ in &table.key {
        parts.key_part()?;
    }
    if !parts.is_empty() {
        return Err(DecodeError::Invalid("a key with more parts than the table's"));
    }
    let mut reader = ByteReader::new(bytes);
    let mut cells = Vec::with_capacity(table.cells.len());
    for _ in &table.cells {
        cells.push(reader.cell_bytes()?.to_vec());
    }
    if !reader.is_empty() {
        return Err(DecodeError::Invalid("more cells than the table has"));
    }
    if table.has_spelling()
        && let Some(spelling) = cells.first()
    {
        check_spelling(table, key, ByteReader::new(spelling).cell()?)?;
    }
    Ok(cells)
}
