//! What no reader may ever see, on any machine at any time: parts of transactions.

use rusqlite::Connection;

use super::{Check, Promise, broken, unreadable};
use crate::workload::FORBIDDEN_SIGHTS;

/// Looks at a machine once. A machine that has not received the schema yet shows nothing.
pub(crate) fn look(machine: usize, reader: &Connection) -> Check {
    let failed = unreadable(machine);
    if !has_schema(reader).map_err(&failed)? {
        return Ok(());
    }
    for (what, sql) in FORBIDDEN_SIGHTS {
        let mut query = reader.prepare_cached(sql).map_err(&failed)?;
        let seen: i64 = query.query_row([], |row| row.get(0)).map_err(&failed)?;
        if seen != 0 {
            return broken(
                Promise::Atomicity,
                format!("a reader on m{machine} sees {what} ({seen})"),
            );
        }
    }
    Ok(())
}

/// Whether the schema has arrived.
pub(crate) fn has_schema(reader: &Connection) -> rusqlite::Result<bool> {
    let mut query = reader
        .prepare_cached("SELECT count(*) FROM sqlite_schema WHERE name IN ('item', 'refund')")?;
    query.query_row([], |row| Ok(row.get::<_, i64>(0)? == 2))
}

/// The newest position of a log, of which a prefix may be trimmed.
pub(crate) fn log_end(machine: usize, reader: &Connection) -> Check<i64> {
    let failed = unreadable(machine);
    let mut query = reader
        .prepare_cached(
            "SELECT ifnull((SELECT max(lsn) FROM littoral_log), 0),
                    ifnull((SELECT value FROM littoral_meta WHERE name = 'trimmed'), x'00')",
        )
        .map_err(&failed)?;
    let (logged, trimmed): (i64, Vec<u8>) =
        query.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(&failed)?;
    Ok(logged.max(first_number(&trimmed)))
}

/// The LEB128 number that the bytes begin with.
fn first_number(bytes: &[u8]) -> i64 {
    let end = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap_or(0);
    bytes[..=end].iter().rev().fold(0, |number, byte| number << 7 | i64::from(byte & 0x7f))
}

/// How many entries the log holds, as a reader sees it.
pub(crate) fn log_length(machine: usize, reader: &Connection) -> Check<i64> {
    let failed = unreadable(machine);
    let mut query = reader.prepare_cached("SELECT count(*) FROM littoral_log").map_err(&failed)?;
    query.query_row([], |row| row.get(0)).map_err(&failed)
}
