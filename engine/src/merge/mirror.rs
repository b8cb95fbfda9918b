//! Derived triggers on the apply connection, as TEMP triggers: those fire although the schema's own do
//! not.
//!
//! Invariants:
//! - they are gone while DDL runs, since one whose table or target changes its name would fail or be
//!   orphaned, and made anew after it;
//! - an index that a schema change makes is filled with the rows that are there by then;
//! - one that fails costs its target, never the row: the target is marked stale in `littoral_stale`,
//!   its triggers are not mirrored any more, and the next open of the file tries to rebuild it.

use std::collections::BTreeSet;

use rusqlite::{Connection, ErrorCode, ffi};

use crate::{
    replica::is_storage_failure,
    schema::{Registry, Table, TriggerClass, catalog},
    sqlite::quoted,
};

/// Mirrors the derived triggers of the schema whose targets are not stale.
pub(crate) fn refresh(conn: &Connection, registry: &Registry) -> rusqlite::Result<()> {
    remove(conn)?;
    let derived = registry.triggers.iter().filter(|t| t.class == TriggerClass::Derived);
    let mut derived = derived.peekable();
    if derived.peek().is_none() {
        return Ok(());
    }
    let stale = catalog::stale(conn)?;
    for trigger in derived {
        if let Some(sql) = trigger.temporary()
            && !trigger.targets.iter().any(|target| stale.contains(target))
        {
            conn.execute_batch(&sql)?;
        }
    }
    Ok(())
}

/// Takes all mirrored triggers away.
pub(crate) fn remove(conn: &Connection) -> rusqlite::Result<()> {
    remove_where(conn, "?1 IS NULL", None)
}

fn remove_where(conn: &Connection, which: &str, table: Option<&str>) -> rusqlite::Result<()> {
    let sql = format!("SELECT name FROM sqlite_temp_schema WHERE type = 'trigger' AND {which}");
    let names: Vec<String> = conn
        .prepare_cached(&sql)?
        .query_map([table], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    names
        .iter()
        .try_for_each(|name| conn.execute_batch(&format!("DROP TRIGGER temp.{}", quoted(name))))
}

/// Whether a statement on the table failed because of a trigger that is mirrored, and not for a reason
/// of its own or the storage's.
pub(super) fn is_at_fault(table: &Table, error: &rusqlite::Error) -> bool {
    let rusqlite::Error::SqliteFailure(failure, message) = error else { return false };
    match failure.code {
        ErrorCode::DatabaseCorrupt => failure.extended_code == ffi::SQLITE_CORRUPT_VTAB,
        ErrorCode::ConstraintViolation => {
            let of = |target: &String| {
                message.as_ref().is_some_and(|text| text.contains(&format!(" {target}.")))
            };
            let virtually = [ffi::SQLITE_CONSTRAINT, ffi::SQLITE_CONSTRAINT_VTAB];
            virtually.contains(&failure.extended_code) || table.targets.iter().any(of)
        }
        ErrorCode::Unknown | ErrorCode::SchemaChanged => true,
        _ => false,
    }
}

/// Marks stale what the mirrored triggers of the table keep, and takes them away.
pub(super) fn give_up(
    conn: &Connection,
    table: &Table,
    error: &rusqlite::Error,
) -> rusqlite::Result<()> {
    for target in &table.targets {
        tracing::error!(table = table.name, target, %error, "what triggers keep is stale");
        catalog::mark_stale(conn, target)?;
    }
    remove_where(conn, "tbl_name = ?1 COLLATE NOCASE", Some(&table.name))
}

/// Tries to rebuild what is stale. Only FTS5 can do that by itself.
pub(crate) fn repair(conn: &Connection) -> rusqlite::Result<()> {
    for target in catalog::stale(conn)? {
        match rebuild(conn, &target) {
            Ok(()) => catalog::forget_stale(conn, &target)?,
            Err(error) => tracing::error!(target, %error, "still stale"),
        }
    }
    Ok(())
}

fn rebuild(conn: &Connection, index: &str) -> rusqlite::Result<()> {
    let name = quoted(index);
    conn.execute_batch(&format!("INSERT INTO {name}({name}) VALUES('rebuild')"))
}

/// Runs statements that have changed the schema elsewhere, and fills the full-text indexes that they make
/// with the rows that are there: what was written to them elsewhere does not come here.
pub(crate) fn run(conn: &Connection, statements: &[String]) -> rusqlite::Result<()> {
    remove(conn)?;
    let before = indexes(conn)?;
    let mut made = BTreeSet::new();
    for statement in statements {
        // One that is dropped and made again is new.
        let known = indexes(conn)?;
        conn.execute_batch(statement)?;
        made.extend(indexes(conn)?.difference(&known).cloned());
    }
    let now = indexes(conn)?;
    for index in now.iter().filter(|index| made.contains(*index) || !before.contains(*index)) {
        match rebuild(conn, index) {
            Ok(()) => {}
            // It indexes no table: there is nothing to read.
            Err(error) if error.to_string().contains("contentless") => {}
            Err(error) if is_storage_failure(&error) => return Err(error),
            Err(error) => {
                tracing::error!(index, %error, "a full-text index cannot be filled: it is stale");
                catalog::mark_stale(conn, index)?;
            }
        }
    }
    Ok(())
}

/// The virtual tables of the schema, which are full-text indexes all.
fn indexes(conn: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    conn.prepare_cached(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE 'CREATE VIRTUAL TABLE%'",
    )?
    .query_map([], |row| row.get(0))?
    .collect()
}
