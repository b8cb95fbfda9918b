//! What a change of a `local` table could meet in rows that only other nodes have.
//!
//! Every node replays the statement on rows of its own, which the origin cannot see. What such rows could
//! make fail there is refused at the origin, whatever its own rows are; so is what would put the origin's
//! rows in their place. A table that becomes `local` in the same transaction has the same rows everywhere
//! still, and may change in any way.

use rusqlite::{Connection, OptionalExtension};

use crate::schema::{
    Refusal, Table,
    change::{has_word, is_constant},
    shape::ColumnShape,
    survey::Survey,
};

/// Why an index that was just made on a table could fail at other nodes.
pub(super) fn index(conn: &Connection, table: &Table) -> rusqlite::Result<Option<Refusal>> {
    let newest: Option<(bool, bool, bool)> = conn
        .query_row(
            "SELECT l.\"unique\", l.partial,
                    EXISTS(SELECT 1 FROM pragma_index_xinfo(l.name) x WHERE x.key AND x.cid = -2)
             FROM sqlite_schema s JOIN pragma_index_list(?1) l ON l.name = s.name
             WHERE s.type = 'index' ORDER BY s.rowid DESC LIMIT 1",
            [&table.name],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    Ok(match newest {
        Some((true, ..)) => Some(refusal(
            table,
            "a UNIQUE index fails where a node's own rows repeat a value".to_owned(),
            "make the index not unique, or create a new table with it",
        )),
        Some((_, true, _) | (.., true)) => Some(refusal(
            table,
            "an index with a condition or an expression fails where it cannot be computed of a \
             node's own rows"
                .to_owned(),
            "index plain columns, or create a new table with it",
        )),
        _ => None,
    })
}

/// Why a column that a statement has just added to a table could fail at other nodes.
pub(super) fn column(
    survey: &Survey<'_>,
    table: &Table,
    statement: &str,
) -> rusqlite::Result<Option<Refusal>> {
    let shape = survey.shape(&table.name)?;
    if shape.columns.len() <= table.width {
        return Ok(None);
    }
    let Some(added) = shape.columns.last() else { return Ok(None) };
    let mut fault = fault(added, statement);
    if fault.is_none() && shape.strict && !added.takes_default(survey.conn())? {
        fault = Some((
            "has a default that is not of its type, which fails where a node has rows",
            "give it a default of its type",
        ));
    }
    Ok(fault.map(|(what, remedy)| {
        refusal(table, format!("its new column {:?} {what}", added.name), remedy)
    }))
}

fn fault(added: &ColumnShape, statement: &str) -> Option<(&'static str, &'static str)> {
    let default = added.default.as_deref().map_or("NULL", str::trim);
    let is_null = default.eq_ignore_ascii_case("NULL");
    if added.generated {
        return Some((
            "is generated, and may not be computable of a node's own rows",
            "compute it in a view or in queries, or create a new table with it",
        ));
    }
    if is_null && added.not_null {
        return Some((
            "is NOT NULL without a default, which fails where a node has rows",
            "give it a default that is a constant, or leave NOT NULL out",
        ));
    }
    if !is_null && !is_constant(default) {
        return Some((
            "has a default that is not a constant, which fails where a node has rows",
            "give it a constant, or NULL",
        ));
    }
    if has_word(statement, "CHECK") {
        return Some((
            "has a CHECK, which a node's own rows may break",
            "leave the CHECK out, or create a new table with it",
        ));
    }
    if !is_null && has_word(statement, "REFERENCES") {
        return Some((
            "refers to another table and has a default, which that table may lack at a node",
            "leave the default out",
        ));
    }
    None
}

/// Why a table cannot be made anew in place of one that is `local`.
pub(super) fn rebuild(table: &Table) -> Refusal {
    refusal(
        table,
        "it is \"local\", and rebuilding it would put the origin's rows in the place of every \
         node's own"
            .to_owned(),
        "use ALTER TABLE, or drop it and create one of another name",
    )
}

fn refusal(table: &Table, reason: String, remedy: &'static str) -> Refusal {
    Refusal { table: table.name.clone(), reason, remedy }
}
