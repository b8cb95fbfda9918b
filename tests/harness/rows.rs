//! What stands in a database file, read beside the process that has it open.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, types::Value};

/// The rows of a query, read from the file itself.
pub(crate) fn rows_of(database: &Path, sql: &str) -> Vec<Vec<Value>> {
    let conn = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut statement = conn.prepare(sql).unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map((), |row| (0..columns).map(|column| row.get(column)).collect());
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}
