//! The engine's own tables: their DDL, and how a row of each is read and written.
//!
//! They share the prefix `littoral_`, which user tables may not have, and live in the user's file,
//! because a commit in WAL mode is atomic within one file only.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    entry::{Freeze, Member, TableChange, TableDeclaration},
    id::{AuthorId, ColumnId, Incarnation, Lsn, NodeId, SchemaVersion, TableId},
    schema::Frozen,
    testing::{Bug, planted},
    time::WallTime,
    version::Dot,
};

/// What the names of the engine's tables begin with.
pub(crate) const PREFIX: &str = "littoral_";

/// The version of everything below, as `littoral_meta` holds it.
pub(crate) const FILE_FORMAT: i64 = 1;

/// Stands in every statement of the engine on the user connection, and in none of the user's: so the
/// statement cache can never hand one to the other past the authorizer.
pub(crate) const MARK: &str = "/*littoral*/";

/// Rows of `littoral_meta` that are about this file of this node: no snapshot has them.
pub(crate) const OWN_ROWS: [&str; 7] =
    ["node", "incarnation", "file", "last_id", "probed", "closed", INCOMING];

/// The row of `littoral_meta` that marks a snapshot which nobody has opened yet: its cluster.
pub(crate) const SNAPSHOT_OF: &str = "snapshot_of";

/// The row of `littoral_meta` that says how far a snapshot was received.
pub(crate) const INCOMING: &str = "incoming";

pub(crate) const DDL: &str = "
CREATE TABLE littoral_meta(name TEXT PRIMARY KEY NOT NULL, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE littoral_log(
  lsn INTEGER PRIMARY KEY NOT NULL, author INTEGER NOT NULL, seq INTEGER NOT NULL, bytes BLOB NOT NULL
) STRICT;
CREATE TABLE littoral_large(
  author INTEGER NOT NULL, seq INTEGER NOT NULL, id INTEGER NOT NULL,
  digest BLOB NOT NULL, length INTEGER NOT NULL, PRIMARY KEY(author, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE littoral_chunks(place INTEGER PRIMARY KEY NOT NULL, bytes BLOB NOT NULL) STRICT;
CREATE TABLE littoral_members(
  author INTEGER PRIMARY KEY NOT NULL, node TEXT NOT NULL, incarnation BLOB NOT NULL
) STRICT;
CREATE TABLE littoral_tables(
  id INTEGER PRIMARY KEY NOT NULL, name TEXT NOT NULL, policy TEXT NOT NULL, writers TEXT NOT NULL,
  explicit_key INTEGER NOT NULL, since INTEGER NOT NULL, max_lag_ms INTEGER, on_stale TEXT,
  on_unreachable TEXT NOT NULL
) STRICT;
CREATE TABLE littoral_ids(
  table_id INTEGER PRIMARY KEY NOT NULL, next_column INTEGER NOT NULL
) STRICT;
CREATE TABLE littoral_columns(
  table_id INTEGER NOT NULL, id INTEGER NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL,
  PRIMARY KEY(table_id, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE littoral_stale(name TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE littoral_clock(
  id INTEGER PRIMARY KEY NOT NULL, table_id INTEGER NOT NULL, bound BLOB NOT NULL, bytes BLOB NOT NULL
) STRICT;
CREATE TABLE littoral_frozen(
  table_id INTEGER PRIMARY KEY NOT NULL, author INTEGER NOT NULL, seq INTEGER NOT NULL,
  since INTEGER NOT NULL, script TEXT NOT NULL
) STRICT;
CREATE TABLE littoral_outcomes(
  n INTEGER PRIMARY KEY NOT NULL, request BLOB NOT NULL UNIQUE, at INTEGER NOT NULL,
  author INTEGER NOT NULL, seq INTEGER NOT NULL, program BLOB, result BLOB
) STRICT;
CREATE TABLE littoral_conflicts(
  id INTEGER PRIMARY KEY NOT NULL,
  rule TEXT NOT NULL, \"table\" TEXT NOT NULL, \"column\" TEXT, \"row\" TEXT NOT NULL,
  kept ANY, kept_at INTEGER, kept_by TEXT,
  lost ANY, lost_at INTEGER, lost_by TEXT,
  table_id INTEGER NOT NULL, column_id INTEGER, key BLOB NOT NULL,
  kept_hlc INTEGER, kept_author INTEGER, kept_seq INTEGER,
  lost_hlc INTEGER, lost_author INTEGER, lost_seq INTEGER,
  reason TEXT, cells BLOB
) STRICT;
CREATE INDEX littoral_parked ON littoral_conflicts(table_id, key) WHERE cells IS NOT NULL;
";

/// Whether the file has the engine's tables; `None` for an empty file.
pub(crate) fn exists(conn: &Connection) -> rusqlite::Result<Option<bool>> {
    let (tables, ours): (i64, i64) = conn.query_row(
        "SELECT count(*), count(*) FILTER (WHERE name = 'littoral_meta') FROM sqlite_schema",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok((tables > 0).then_some(ours > 0))
}

/// Reads a row of `littoral_meta`.
pub(crate) fn meta<T: rusqlite::types::FromSql>(
    conn: &Connection,
    name: &str,
) -> rusqlite::Result<Option<T>> {
    conn.prepare_cached("/*littoral*/ SELECT value FROM littoral_meta WHERE name = ?")?
        .query_row([name], |row| row.get(0))
        .optional()
}

/// Writes a row of `littoral_meta`.
pub(crate) fn set_meta(
    conn: &Connection,
    name: &str,
    value: impl rusqlite::ToSql,
) -> rusqlite::Result<()> {
    conn.prepare_cached("/*littoral*/ INSERT OR REPLACE INTO littoral_meta VALUES(?, ?)")?
        .execute(params![name, value])?;
    Ok(())
}

/// The tables whose rows stay on their node.
pub(crate) fn local_tables(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    conn.prepare("SELECT name FROM littoral_tables WHERE policy = 'local'")?
        .query_map([], |row| row.get(0))?
        .collect()
}

/// Removes a row of `littoral_meta`.
pub(crate) fn remove_meta(conn: &Connection, name: &str) -> rusqlite::Result<()> {
    conn.prepare_cached("/*littoral*/ DELETE FROM littoral_meta WHERE name = ?")?
        .execute([name])?;
    Ok(())
}

/// The greatest key that AUTOINCREMENT has handed out in a table; 0 if none.
pub(crate) fn sequence(conn: &Connection, table: &str) -> rusqlite::Result<i64> {
    let last = conn
        .prepare_cached("/*littoral*/ SELECT seq FROM main.sqlite_sequence WHERE name = ?")?
        .query_row([table], |row| row.get(0))
        .optional()?;
    Ok(last.unwrap_or(0))
}

/// Makes AUTOINCREMENT go on behind `last`.
pub(crate) fn set_sequence(conn: &Connection, table: &str, last: i64) -> rusqlite::Result<()> {
    let known = conn
        .prepare_cached("UPDATE sqlite_sequence SET seq = ?2 WHERE name = ?1")?
        .execute(params![table, last])?;
    if known == 0 {
        conn.prepare_cached("INSERT INTO sqlite_sequence(name, seq) VALUES(?, ?)")?
            .execute(params![table, last])?;
    }
    Ok(())
}

/// The tables that derived triggers could not keep.
pub(crate) fn stale(conn: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    conn.prepare_cached("SELECT name FROM littoral_stale ORDER BY name")?
        .query_map([], |row| row.get(0))?
        .collect()
}

pub(crate) fn mark_stale(conn: &Connection, name: &str) -> rusqlite::Result<()> {
    conn.execute("INSERT OR IGNORE INTO littoral_stale VALUES(?)", [name]).map(drop)
}

pub(crate) fn forget_stale(conn: &Connection, name: &str) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM littoral_stale WHERE name = ?", [name]).map(drop)
}

/// Adds a member.
pub(crate) fn add_member(conn: &Connection, member: &Member) -> rusqlite::Result<()> {
    conn.execute(
        "INSERT INTO littoral_members VALUES(?, ?, ?)",
        params![
            member.author.to_u64().cast_signed(),
            member.node.as_str(),
            member.incarnation.0.to_be_bytes()
        ],
    )?;
    Ok(())
}

/// All members in author order.
pub(crate) fn members(conn: &Connection) -> rusqlite::Result<Vec<Member>> {
    conn.prepare("SELECT author, node, incarnation FROM littoral_members ORDER BY author")?
        .query_map([], |row| {
            let node: String = row.get(1)?;
            Ok(Member {
                author: AuthorId::from_u64(row.get::<_, i64>(0)?.cast_unsigned()),
                node: NodeId::new(&node).map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(
                        1,
                        rusqlite::types::Type::Text,
                        error.into(),
                    )
                })?,
                incarnation: Incarnation(u128::from_be_bytes(row.get(2)?)),
            })
        })?
        .collect()
}

/// Takes changes of tables into the catalog, as the entry at `lsn` makes them. Every replica does it
/// alike, so that any of them can go on giving ids.
pub(crate) fn carry_out(
    conn: &Connection,
    changes: &[TableChange],
    lsn: Lsn,
) -> rusqlite::Result<()> {
    let known = meta::<u32>(conn, "next_table")?;
    let mut next_table = known.unwrap_or(1);
    for table in TableChange::gone(changes) {
        // Parked rows of it have no table to return to; what they held can still be read.
        conn.execute(
            "UPDATE littoral_conflicts SET rule = 'dropped', cells = NULL
             WHERE table_id = ? AND cells IS NOT NULL",
            [table.0],
        )?;
    }
    for change in changes {
        let id = match change {
            TableChange::Declared(table) => {
                declare(conn, table, lsn)?;
                table.id
            }
            TableChange::Dropped(id) => {
                conn.execute("DELETE FROM littoral_tables WHERE id = ?", [id.0])?;
                conn.execute("DELETE FROM littoral_columns WHERE table_id = ?", [id.0])?;
                *id
            }
        };
        next_table = next_table.max(id.0.saturating_add(1));
    }
    if known == Some(next_table) { Ok(()) } else { set_meta(conn, "next_table", next_table) }
}

/// Writes what differs from what the catalog has.
fn declare(conn: &Connection, table: &TableDeclaration, lsn: Lsn) -> rusqlite::Result<()> {
    let TableDeclaration { id, name, policy, columns } = table;
    let declared = (
        name.clone(),
        policy.consistency.as_str().to_owned(),
        policy.writers.as_str().to_owned(),
        policy.explicit_key,
        policy.max_lag.map(|bound| bound.ms.cast_signed()),
        policy.max_lag.map(|bound| bound.on_stale.as_str().to_owned()),
        policy.on_unreachable.as_str().to_owned(),
    );
    // A table that begins anew under its id was dropped just before.
    let known = conn
        .query_row(
            "SELECT name, policy, writers, explicit_key, max_lag_ms, on_stale, on_unreachable
             FROM littoral_tables WHERE id = ?",
            [id.0],
            |row| {
                let word = |place| row.get(place);
                Ok((word(0)?, word(1)?, word(2)?, row.get(3)?, row.get(4)?, row.get(5)?, word(6)?))
            },
        )
        .optional()?;
    if known.as_ref() != Some(&declared) {
        let (name, policy, writers, explicit_key, max_lag_ms, on_stale, unreachable) = &declared;
        let since = lsn.0.cast_signed();
        conn.execute(
            "INSERT INTO littoral_tables VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT(id) DO UPDATE SET name = ?2, policy = ?3, writers = ?4, explicit_key = ?5,
               max_lag_ms = ?7, on_stale = ?8, on_unreachable = ?9",
            params![
                id.0,
                name,
                policy,
                writers,
                explicit_key,
                since,
                max_lag_ms,
                on_stale,
                unreachable
            ],
        )?;
    }
    let next = next_column(conn, *id)?.0;
    let behind = columns.last().map_or(1, |(last, _)| last.0.saturating_add(1));
    if known.is_none() || next < behind {
        conn.execute(
            "INSERT OR REPLACE INTO littoral_ids VALUES(?, ?)",
            params![id.0, next.max(behind)],
        )?;
    }
    let mut before: BTreeMap<ColumnId, (String, String)> = conn
        .prepare("SELECT id, name, type FROM littoral_columns WHERE table_id = ?")?
        .query_map([id.0], |row| Ok((ColumnId(row.get(0)?), (row.get(1)?, row.get(2)?))))?
        .collect::<Result<_, _>>()?;
    for (column, name) in columns {
        let word = match planted(Bug::PersonalForgotten) {
            true => policy.merge_word(name),
            false => policy.column_word(name),
        };
        if before.remove(column).is_none_or(|known| known != (name.clone(), word.to_string())) {
            conn.execute(
                "INSERT OR REPLACE INTO littoral_columns VALUES(?, ?, ?, ?)",
                params![id.0, column.0, name, word],
            )?;
        }
    }
    for gone in before.keys() {
        conn.execute("DELETE FROM littoral_columns WHERE table_id = ? AND id = ?", [id.0, gone.0])?;
    }
    Ok(())
}

/// A column as the catalog has it: its id, its name, and how it merges.
type ColumnRow = (ColumnId, String, String);

/// The columns of every table by ascending id.
pub(super) fn columns(conn: &Connection) -> rusqlite::Result<BTreeMap<TableId, Vec<ColumnRow>>> {
    let mut columns: BTreeMap<TableId, Vec<ColumnRow>> = BTreeMap::new();
    let mut statement = conn
        .prepare("SELECT table_id, id, name, type FROM littoral_columns ORDER BY table_id, id")?;
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        let column = (ColumnId(row.get(1)?), row.get(2)?, row.get(3)?);
        columns.entry(TableId(row.get(0)?)).or_default().push(column);
    }
    Ok(columns)
}

/// The id that the next new column of a table gets: that of no column it ever had, also not before it was
/// dropped and made anew.
pub(super) fn next_column(conn: &Connection, table: TableId) -> rusqlite::Result<ColumnId> {
    let next = conn
        .query_row("SELECT next_column FROM littoral_ids WHERE table_id = ?", [table.0], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(ColumnId(next.unwrap_or(1)))
}

/// Takes a freeze into the catalog: that of the entry `dot`, written at `since`.
pub(crate) fn freeze(
    conn: &Connection,
    freeze: &Freeze,
    dot: Dot,
    since: WallTime,
) -> rusqlite::Result<()> {
    for table in &freeze.tables {
        conn.execute(
            "INSERT OR REPLACE INTO littoral_frozen VALUES(?, ?, ?, ?, ?)",
            params![
                table.0,
                dot.author.to_u64().cast_signed(),
                dot.seq.cast_signed(),
                since.0.cast_signed(),
                freeze.script,
            ],
        )?;
    }
    Ok(())
}

/// Ends the freeze of the entry `dot`; says why its change did not happen, if it did not.
pub(crate) fn unfreeze(conn: &Connection, dot: Dot, failure: Option<&str>) -> rusqlite::Result<()> {
    conn.execute(
        "DELETE FROM littoral_frozen WHERE author = ? AND seq = ?",
        params![dot.author.to_u64().cast_signed(), dot.seq.cast_signed()],
    )?;
    set_meta(conn, "last_freeze", failure.unwrap_or(""))
}

/// What is frozen.
pub(crate) fn frozen(conn: &Connection) -> rusqlite::Result<Option<Frozen>> {
    let mut frozen: Option<Frozen> = None;
    let mut statement = conn
        .prepare("SELECT table_id, author, seq, since, script FROM littoral_frozen ORDER BY 1")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let table = TableId(row.get(0)?);
        if let Some(frozen) = &mut frozen {
            frozen.tables.push(table);
            continue;
        }
        let author = AuthorId::from_u64(row.get::<_, i64>(1)?.cast_unsigned());
        frozen = Some(Frozen {
            dot: Dot { author, seq: row.get::<_, i64>(2)?.cast_unsigned() },
            since: WallTime(row.get::<_, i64>(3)?.cast_unsigned()),
            tables: vec![table],
            script: row.get(4)?,
        });
    }
    Ok(frozen)
}

/// Says which version of the schema the file has.
pub(crate) fn set_version(conn: &Connection, version: SchemaVersion) -> rusqlite::Result<()> {
    set_meta(conn, "schema_version", version.0)
}
