//! Rows of `littoral_conflicts` that were listed before the schema changed. They go by the names that columns
//! have now, and their keys show nothing of what is personal by now: whoever hides personal values from them
//! goes by these names.
//!
//! What was lost stays as it was, and so does the key itself.

use rusqlite::{Connection, params};

use super::conflict::{json_string, key_text};
use crate::{
    id::TableId,
    schema::{Column, Registry, Table},
};

/// What a column that is gone is called. No other column may be taken for it, one that gets its name included.
const GONE: &str = " (gone)";

/// Takes a change of the schema into what is listed already; `before` gives tables as they were.
pub(crate) fn follow_schema<'t>(
    conn: &Connection,
    before: impl Fn(TableId) -> Option<&'t Table>,
    after: &Registry,
) -> rusqlite::Result<()> {
    for table in after.tables() {
        let Some(old) = before(table.id) else { continue };
        let names = new_names(old, table);
        if !names.is_empty() {
            rename(conn, table, &format!("{{{}}}", names.join(",")))?;
        }
        let was_personal = |column: &Column| {
            old.key.iter().any(|known| known.id == column.id && old.is_personal(known))
        };
        if table.key.iter().any(|column| table.is_personal(column) && !was_personal(column)) {
            hide_keys(conn, table)?;
        }
    }
    Ok(())
}

/// Members of a JSON object: the new name of each column that has another one, or none any more.
fn new_names(old: &Table, new: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for column in old.key.iter().chain(&old.cells) {
        let now = new.key.iter().chain(&new.cells).find(|known| known.id == column.id);
        let name = match now {
            Some(known) if known.name == column.name => continue,
            Some(known) => known.name.clone(),
            None => format!("{}{GONE}", column.name),
        };
        names.push(format!("{}:{}", json_string(&column.name), json_string(&name)));
    }
    names
}

/// Gives the columns of rows that are listed whole their new names. Numbers stay as they are written.
fn rename(conn: &Connection, table: &Table, names: &str) -> rusqlite::Result<()> {
    let renamed = |side: &str| {
        format!(
            "{side} = CASE WHEN typeof({side}) <> 'text' OR NOT json_valid({side}) THEN {side}
               WHEN json_type({side}) <> 'object' THEN {side}
               ELSE (SELECT json_group_object(
                   coalesce((SELECT atom FROM json_each(?2) AS name WHERE name.key = cell.key), cell.key),
                   coalesce({side} -> cell.fullkey, json_quote(cell.atom)))
                 FROM json_each({side}) AS cell) END"
        )
    };
    let sql = format!(
        "UPDATE littoral_conflicts SET {}, {} WHERE table_id = ?1 AND column_id IS NULL",
        renamed("kept"),
        renamed("lost")
    );
    conn.execute(&sql, params![table.id.0, names])?;
    Ok(())
}

/// Writes the keys of rows anew, as people read them.
fn hide_keys(conn: &Connection, table: &Table) -> rusqlite::Result<()> {
    let mut listed = conn.prepare("SELECT id, key FROM littoral_conflicts WHERE table_id = ?")?;
    let mut write = conn.prepare("UPDATE littoral_conflicts SET \"row\" = ? WHERE id = ?")?;
    let rows = listed.query_map([table.id.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
    // All of them first: what is read must not be written meanwhile.
    let rows: Vec<(i64, Vec<u8>)> = rows.collect::<Result<_, _>>()?;
    for (id, key) in rows {
        write.execute(params![key_text(table, &key), id])?;
    }
    Ok(())
}
