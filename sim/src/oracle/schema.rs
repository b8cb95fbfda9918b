//! The schema and what is declared of tables follow from the log, and in the end are the same everywhere.

use std::collections::{BTreeMap, BTreeSet};

use littoral::{ColumnId, ColumnType, TableId};
use rusqlite::{Connection, types::Value};

use super::{Check, Promise, broken, shadow::Shadow, unreadable};

/// What a catalog says of a table: name, whether every node writes it, its columns, and those of them that are
/// personal.
type Declared = (String, bool, BTreeMap<ColumnId, (String, ColumnType)>, BTreeSet<ColumnId>);

/// What a machine has of tables and freezes is what its log leads to.
pub(crate) fn follows_log(machine: usize, reader: &Connection, shadow: &Shadow) -> Check {
    let failed = unreadable(machine);
    let declared = read_catalog(reader).map_err(&failed)?;
    for (id, table) in &shadow.tables {
        let due = (table.name.clone(), table.any, table.columns.clone(), table.personal.clone());
        if declared.get(id) != Some(&due) {
            let what = format!(
                "m{machine}, table {}: declared as {:?}, the log leads to {due:?}",
                id.0,
                declared.get(id)
            );
            return broken(Promise::Merge, what);
        }
    }
    if let Some((id, table)) = declared.iter().find(|(id, _)| !shadow.tables.contains_key(id)) {
        let what =
            format!("m{machine}, table {}: declared as {table:?}, and gone by the log", id.0);
        return broken(Promise::Merge, what);
    }
    let mut query = reader
        .prepare_cached("SELECT table_id FROM littoral_frozen ORDER BY 1")
        .map_err(&failed)?;
    let rows = query.query_map([], |row| row.get(0).map(TableId)).map_err(&failed)?;
    let frozen: Vec<TableId> = rows.collect::<Result<_, _>>().map_err(&failed)?;
    if frozen != shadow.frozen() {
        let due = shadow.frozen();
        let what = format!("m{machine} has frozen {frozen:?}, the log leads to {due:?}");
        return broken(Promise::Merge, what);
    }
    Ok(())
}

fn read_catalog(reader: &Connection) -> rusqlite::Result<BTreeMap<TableId, Declared>> {
    let mut query = reader.prepare_cached(
        "SELECT t.id, t.name, t.writers = 'any' AND t.policy <> 'local', c.id, c.name, c.type
         FROM littoral_tables t LEFT JOIN littoral_columns c ON c.table_id = t.id",
    )?;
    let mut rows = query.query([])?;
    let mut tables: BTreeMap<TableId, Declared> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let table = tables.entry(TableId(row.get(0)?)).or_default();
        (table.0, table.1) = (row.get(1)?, row.get(2)?);
        let Some(column) = row.get::<_, Option<u32>>(3)? else { continue };
        let word: String = row.get(5)?;
        let merge = match word.strip_prefix("personal") {
            Some(merge) => {
                table.3.insert(ColumnId(column));
                merge.trim_start()
            }
            None => &word,
        };
        // A group is told by another word; its columns are `lww`.
        let merge = merge.parse().unwrap_or_default();
        table.2.insert(ColumnId(column), (row.get(4)?, merge));
    }
    Ok(tables)
}

/// What must be alike on all machines, beside rows: each with what it is.
const ALIKE: [(&str, &str); 5] = [
    (
        "schema",
        "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY 2",
    ),
    (
        "declarations of tables",
        "SELECT id, name, policy, writers, explicit_key, max_lag_ms, on_stale, on_unreachable
         FROM littoral_tables ORDER BY 1",
    ),
    ("ids that columns have", "SELECT * FROM littoral_ids ORDER BY 1"),
    ("declarations of columns", "SELECT * FROM littoral_columns ORDER BY 1, 2"),
    (
        "version of the schema",
        "SELECT name, value FROM littoral_meta
         WHERE name IN ('schema_version', 'next_table', 'last_freeze') ORDER BY 1",
    ),
];

/// Two machines have the same schema, and say the same of it.
pub(crate) fn same(machines: [usize; 2], readers: [&Connection; 2]) -> Check {
    for (what, sql) in ALIKE {
        let [one, other] =
            [0, 1].map(|side| read_rows(readers[side], sql).map_err(unreadable(machines[side])));
        let (one, other) = (one?, other?);
        if one == other {
            continue;
        }
        let [a, b] = machines;
        let differing = one.iter().zip(&other).find(|(one, other)| one != other);
        let text = match differing {
            Some((one, other)) => format!("m{a} has {one:?}, m{b} has {other:?}"),
            None => format!("m{a} has {} rows of it, m{b} has {}", one.len(), other.len()),
        };
        return broken(Promise::Convergence, format!("the {what} differ: {text}"));
    }
    Ok(())
}

fn read_rows(reader: &Connection, sql: &str) -> rusqlite::Result<Vec<Vec<Value>>> {
    let mut query = reader.prepare_cached(sql)?;
    let width = query.column_count();
    let rows = query.query_map([], |row| (0..width).map(|place| row.get(place)).collect())?;
    rows.collect()
}
