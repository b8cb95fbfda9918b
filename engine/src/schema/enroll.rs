//! What a table must be like to replicate under its policy, and every reason it is not.
//!
//! All reasons are told at once, each with the constraint that gives it and what to do.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::{
    entry::TableDeclaration,
    id::{ColumnId, TableId},
    policy::{ColumnType, Consistency, TablePolicy, Writers},
    schema::catalog,
};

/// Why a table cannot replicate as declared: one constraint and its remedy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("table {table:?}: {reason}; {remedy}")]
pub struct Refusal {
    /// The table.
    pub table: String,
    /// What stands in the way.
    pub reason: String,
    /// What to do.
    pub remedy: &'static str,
}

/// What SQLite says of one stored column.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) position: usize,
    /// Whether the column has REAL affinity.
    pub(crate) real: bool,
    /// From 1, for a column of the primary key.
    pub(crate) key_place: Option<usize>,
    integer: bool,
    not_null: bool,
    generated: bool,
}

/// The stored columns of a table in declaration order.
pub(crate) fn shape(conn: &Connection, table: &str) -> rusqlite::Result<Vec<Shape>> {
    Ok(all_columns(conn, table)?.into_iter().filter(|column| !column.generated).collect())
}

fn all_columns(conn: &Connection, table: &str) -> rusqlite::Result<Vec<Shape>> {
    conn.prepare("SELECT cid, name, type, \"notnull\", pk, hidden FROM pragma_table_xinfo(?)")?
        .query_map([table], |row| {
            let declared: String = row.get(2)?;
            let place = row.get::<_, u16>(4)?.into();
            Ok(Shape {
                name: row.get(1)?,
                position: row.get::<_, u16>(0)?.into(),
                real: affinity(&declared) == Affinity::Real,
                key_place: (place > 0).then_some(place),
                integer: affinity(&declared) == Affinity::Integer,
                not_null: row.get(3)?,
                generated: matches!(row.get::<_, i64>(5)?, 2 | 3),
            })
        })?
        .collect()
}

/// Whether nothing but a collision with another row, or a NULL, can keep a row out of a table: it has
/// no triggers, checks no types, and computes nothing.
pub(super) fn is_plain(conn: &Connection, table: &str) -> rusqlite::Result<bool> {
    conn.prepare_cached(
        "SELECT NOT EXISTS(SELECT 1 FROM sqlite_schema
                           WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE)
            AND NOT EXISTS(SELECT 1 FROM pragma_table_list
                           WHERE schema = 'main' AND name = ?1 COLLATE NOCASE AND strict)
            AND NOT EXISTS(SELECT 1 FROM pragma_table_xinfo(?1) WHERE hidden IN (2, 3))
            AND NOT EXISTS(SELECT 1 FROM pragma_index_list(?1) l, pragma_index_xinfo(l.name) x
                           WHERE l.partial OR x.cid = -2)",
    )?
    .query_row([table], |row| row.get(0))
}

#[derive(PartialEq, Eq)]
enum Affinity {
    Integer,
    Real,
    Other,
}

/// The rules of <https://sqlite.org/datatype3.html#determination_of_column_affinity>.
fn affinity(declared: &str) -> Affinity {
    let declared = declared.to_ascii_uppercase();
    let has = |part: &str| declared.contains(part);
    if has("INT") {
        Affinity::Integer
    } else if has("CHAR") || has("CLOB") || has("TEXT") || has("BLOB") || declared.is_empty() {
        Affinity::Other
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        Affinity::Real
    } else {
        Affinity::Other
    }
}

/// The tables of the schema that are not the engine's or SQLite's own, in creation order, and whether
/// each is an ordinary one.
fn user_tables(conn: &Connection) -> rusqlite::Result<Vec<(String, bool)>> {
    conn.prepare(
        "SELECT s.name, l.type = 'table' FROM sqlite_schema s JOIN pragma_table_list l \
         ON l.name = s.name AND l.schema = 'main' \
         WHERE s.type = 'table' AND s.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
         AND s.name NOT LIKE 'littoral\\_%' ESCAPE '\\' ORDER BY s.rowid",
    )?
    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
    .collect()
}

/// Gives every table of the schema its id and its policy, and every stored column its id.
pub(crate) fn declarations(
    conn: &Connection,
    policies: &BTreeMap<String, TablePolicy>,
) -> rusqlite::Result<Vec<TableDeclaration>> {
    let mut tables = Vec::new();
    for (id, (name, _)) in (1u32..).zip(user_tables(conn)?) {
        let policy = policies
            .iter()
            .find(|(table, _)| table.eq_ignore_ascii_case(&name))
            .map(|(_, policy)| policy.clone())
            .unwrap_or_default();
        let mut policy = policy;
        let columns: Vec<(ColumnId, String)> = (1u32..)
            .zip(shape(conn, &name)?)
            .map(|(id, column)| (ColumnId(id), column.name))
            .collect();
        // From here on columns are named as the table names them; SQLite does not mind the case.
        policy.columns = std::mem::take(&mut policy.columns)
            .into_iter()
            .map(|(named, merge)| {
                let column = columns.iter().find(|(_, name)| name.eq_ignore_ascii_case(&named));
                (column.map_or(named, |(_, name)| name.clone()), merge)
            })
            .collect();
        tables.push(TableDeclaration { id: TableId(id), name, policy, columns });
    }
    Ok(tables)
}

/// Every reason why the tables cannot replicate under these policies.
pub(crate) fn check(
    conn: &Connection,
    tables: &[TableDeclaration],
) -> rusqlite::Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    let ordinary: BTreeMap<String, bool> = user_tables(conn)?.into_iter().collect();
    for table in tables {
        let mut reasons = Reasons { table: &table.name, refusals: &mut refusals };
        if !ordinary.get(&table.name).copied().unwrap_or(false) {
            reasons.refuse(
                "it is a virtual table".to_owned(),
                "virtual tables do not replicate in this version; leave it out of the schema",
            );
            continue;
        }
        any_table(conn, table, &mut reasons)?;
        if table.policy.writers == Writers::Any {
            multi_writer_table(conn, table, tables, &mut reasons)?;
        }
    }
    Ok(refusals)
}

struct Reasons<'r> {
    table: &'r str,
    refusals: &'r mut Vec<Refusal>,
}

impl Reasons<'_> {
    fn refuse(&mut self, reason: String, remedy: &'static str) {
        self.refusals.push(Refusal { table: self.table.to_owned(), reason, remedy });
    }
}

fn any_table(
    conn: &Connection,
    table: &TableDeclaration,
    reasons: &mut Reasons<'_>,
) -> rusqlite::Result<()> {
    if table.policy.consistency == Consistency::OriginStrong {
        reasons.refuse(
            "policy = \"origin-strong\" needs reads and writes to be forwarded to the origin".to_owned(),
            "this version does not forward yet; declare \"read-after-write\" with writers = \"origin\"",
        );
    }
    let columns = all_columns(conn, &table.name)?;
    let key: Vec<&Shape> = columns.iter().filter(|c| c.key_place.is_some()).collect();
    if key.is_empty() {
        reasons.refuse(
            "it has no primary key to tell its rows apart".to_owned(),
            "declare a PRIMARY KEY whose columns are NOT NULL",
        );
    }
    let rowid_alias = rowid_alias(conn, &table.name, &key)?;
    for column in key.iter().filter(|c| !c.not_null && !rowid_alias) {
        reasons.refuse(
            format!("its key column {:?} may be NULL", column.name),
            "declare every column of the PRIMARY KEY as NOT NULL",
        );
    }
    for column in key.iter().filter(|c| c.generated) {
        reasons.refuse(
            format!("its key column {:?} is generated", column.name),
            "use stored columns as the PRIMARY KEY",
        );
    }
    let counted = key.iter().try_fold(false, |counted, column| {
        Ok::<_, rusqlite::Error>(counted || is_autoincrement(conn, &table.name, &column.name)?)
    })?;
    if counted {
        reasons.refuse(
            "it uses AUTOINCREMENT, whose counter does not replicate in this version".to_owned(),
            "leave AUTOINCREMENT out, or use a TEXT key",
        );
    }
    for (column, collation) in key_collations(conn, &table.name, &key)? {
        reasons.refuse(
            format!("its key column {column:?} is compared with COLLATE {collation}"),
            "key columns must use the BINARY collation in this version",
        );
    }
    for (name, merge) in &table.policy.columns {
        match columns.iter().find(|c| c.name.eq_ignore_ascii_case(name)) {
            None => reasons.refuse(
                format!("its policy names the column {name:?}, which it does not have"),
                "correct the name in the policy",
            ),
            Some(column) if *merge == ColumnType::Counter => {
                counter_column(column, table.policy.writers, reasons);
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn counter_column(column: &Shape, writers: Writers, reasons: &mut Reasons<'_>) {
    if writers == Writers::Origin {
        reasons.refuse(
            format!(
                "its column {:?} is a counter, but only the origin writes the table",
                column.name
            ),
            "declare writers = \"any\", or leave the column type out",
        );
    }
    if column.key_place.is_some() || column.generated {
        reasons.refuse(
            format!("its column {:?} is a counter and part of the key or generated", column.name),
            "use an ordinary column as a counter",
        );
    } else if !column.integer || !column.not_null {
        reasons.refuse(
            format!("its column {:?} is a counter but not INTEGER NOT NULL", column.name),
            "declare the column INTEGER NOT NULL DEFAULT 0",
        );
    }
}

fn multi_writer_table(
    conn: &Connection,
    table: &TableDeclaration,
    tables: &[TableDeclaration],
    reasons: &mut Reasons<'_>,
) -> rusqlite::Result<()> {
    let indexes: Vec<(String, bool, String, bool)> = conn
        .prepare("SELECT name, \"unique\", origin, partial FROM pragma_index_list(?) ORDER BY seq")?
        .query_map([&table.name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Result<_, _>>()?;
    for (name, unique, origin, partial) in indexes {
        let columns: Vec<Option<String>> = conn
            .prepare("SELECT name FROM pragma_index_info(?) ORDER BY seqno")?
            .query_map([&name], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let listed: Vec<&str> =
            columns.iter().map(|c| c.as_deref().unwrap_or("expression")).collect();
        if unique && origin != "pk" {
            reasons.refuse(
                format!("UNIQUE ({}) cannot hold while several nodes write at once", listed.join(", ")),
                "make it the PRIMARY KEY, make the index not unique, or declare writers = \"origin\"",
            );
        }
        if partial || columns.iter().any(Option::is_none) {
            reasons.refuse(
                format!(
                    "index {name:?} has a condition or an expression, which a merge could break"
                ),
                "index plain columns, or declare writers = \"origin\"",
            );
        }
    }
    if !foreign_key_parents(conn, &table.name)?.is_empty() {
        reasons.refuse(
            "it has foreign keys, which cannot hold while several nodes write at once".to_owned(),
            "drop the foreign keys, or declare writers = \"origin\"",
        );
    }
    for other in tables {
        let parents = foreign_key_parents(conn, &other.name)?;
        if other.id != table.id && parents.iter().any(|p| p.eq_ignore_ascii_case(&table.name)) {
            reasons.refuse(
                format!("table {:?} has a foreign key to it", other.name),
                "drop that foreign key, or declare writers = \"origin\"",
            );
        }
    }
    let columns = all_columns(conn, &table.name)?;
    for column in columns.iter().filter(|c| c.generated) {
        reasons.refuse(
            format!("its column {:?} is generated", column.name),
            "compute it in a view or in queries, or declare writers = \"origin\"",
        );
    }
    let key: Vec<&Shape> = columns.iter().filter(|c| c.key_place.is_some()).collect();
    if rowid_alias(conn, &table.name, &key)? && !table.policy.explicit_key {
        reasons.refuse(
            "SQLite hands out its INTEGER PRIMARY KEY, and two nodes would hand out the same"
                .to_owned(),
            "declare key = \"explicit\" if the application always gives the key, or use a TEXT key",
        );
    }
    Ok(())
}

fn foreign_key_parents(conn: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    conn.prepare("SELECT DISTINCT \"table\" FROM pragma_foreign_key_list(?)")?
        .query_map([table], |row| row.get(0))?
        .collect()
}

/// Whether the key is the rowid: a single column declared INTEGER, with no index of its own.
fn rowid_alias(conn: &Connection, table: &str, key: &[&Shape]) -> rusqlite::Result<bool> {
    let [column] = key else { return Ok(false) };
    let indexed: bool = conn.query_row(
        "SELECT EXISTS(SELECT 1 FROM pragma_index_list(?) WHERE origin = 'pk')",
        [table],
        |row| row.get(0),
    )?;
    Ok(column.integer && !indexed && !without_rowid(conn, table)?)
}

fn without_rowid(conn: &Connection, table: &str) -> rusqlite::Result<bool> {
    conn.query_row(
        "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?",
        [table],
        |row| row.get(0),
    )
}

/// Whether SQLite hands out the key and never twice.
fn is_autoincrement(conn: &Connection, table: &str, column: &str) -> rusqlite::Result<bool> {
    let (_, _, _, _, autoincrement) = conn.column_metadata(None, table, column)?;
    Ok(autoincrement)
}

/// Key columns that are compared in another way than byte by byte, in the index of the key or by
/// themselves.
fn key_collations(
    conn: &Connection,
    table: &str,
    key: &[&Shape],
) -> rusqlite::Result<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = conn
        .prepare(
            "SELECT x.name, x.coll FROM pragma_index_list(?) l, pragma_index_xinfo(l.name) x \
             WHERE l.origin = 'pk' AND x.key AND x.coll <> 'BINARY' ORDER BY x.seqno",
        )?
        .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for column in key {
        let (_, collation, ..) = conn.column_metadata(None, table, column.name.as_str())?;
        let collation = collation.map(|name| name.to_string_lossy().into_owned());
        if let Some(collation) = collation.filter(|name| !name.eq_ignore_ascii_case("BINARY"))
            && found.iter().all(|(name, _)| *name != column.name)
        {
            found.push((column.name.clone(), collation));
        }
    }
    Ok(found)
}

/// Whether a name is one that only the engine may use.
pub(crate) fn is_reserved(name: &str) -> bool {
    let prefix = catalog::PREFIX;
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}
