//! [`Registry`]: which tables replicate, under which policy, and how their rows are told apart.
//!
//! The origin gives tables and columns their ids; the catalog in the file holds them, and the
//! registry is that catalog joined with what SQLite says of the tables.
//!
//! Invariants:
//! - a table's key columns are its primary key's, in the key's order; its cells are the other stored
//!   columns, by ascending id;
//! - generated columns are neither: every node computes them.

pub(crate) mod catalog;
pub(crate) mod ddl;
mod enroll;
pub(crate) mod row;

pub use enroll::Refusal;
pub(crate) use enroll::{check, declarations};

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::{
    id::{ColumnId, SchemaVersion, TableId},
    policy::{ColumnType, TablePolicy, Writers},
    sqlite::quoted,
};

/// The replicated tables.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) version: SchemaVersion,
    tables: Vec<Table>,
    by_id: BTreeMap<TableId, usize>,
}

/// A replicated table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) id: TableId,
    pub(crate) name: String,
    pub(crate) policy: TablePolicy,
    /// The columns of the primary key, in its order.
    pub(crate) key: Vec<Column>,
    /// The other stored columns, by ascending id.
    pub(crate) cells: Vec<Column>,
    /// The ids of the cells that are assigned (not counted), ascending.
    pub(crate) assigned: Vec<ColumnId>,
    /// Nothing but a collision with another row, or a NULL, keeps a row out.
    pub(crate) is_plain: bool,
    pub(crate) sql: TableSql,
}

/// A stored column.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) id: ColumnId,
    pub(crate) name: String,
    /// Its place in the table's declaration, generated columns counted.
    pub(crate) position: usize,
    pub(crate) real: bool,
    pub(crate) merge: ColumnType,
}

/// Statements that every table needs, as text.
#[derive(Debug)]
pub(crate) struct TableSql {
    /// All cells of the row with a key; `1` if the table has none.
    pub(crate) select: String,
    /// A full row: key, then cells. OR ABORT, whatever conflict clause the table declares: a merge
    /// decides itself what a collision means.
    pub(crate) insert: String,
    /// The row with a key.
    pub(crate) delete: String,
    /// All rows in key order: key, then cells.
    pub(crate) scan: String,
    /// `"k1" = ?1 AND "k2" = ?2`.
    pub(crate) where_key: String,
}

impl Table {
    /// Whether every node may write it, so that its rows have clocks.
    pub(crate) fn is_multi_writer(&self) -> bool {
        self.policy.writers == Writers::Any
    }

    /// The place of a column among the cells.
    pub(crate) fn cell(&self, id: ColumnId) -> Option<usize> {
        self.cells.binary_search_by_key(&id, |column| column.id).ok()
    }
}

impl Registry {
    /// Reads the catalog.
    pub(crate) fn load(conn: &Connection) -> rusqlite::Result<Self> {
        let version = catalog::meta::<u32>(conn, "schema_version")?.unwrap_or(0);
        let mut registry = Self { version: SchemaVersion(version), ..Self::default() };
        let tables: Vec<(u32, String, String, String, bool)> = conn
            .prepare(
                "SELECT id, name, policy, writers, explicit_key FROM littoral_tables ORDER BY id",
            )?
            .query_map([], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
            })?
            .collect::<Result<_, _>>()?;
        for (id, name, policy, writers, explicit_key) in tables {
            let mut policy = TablePolicy {
                consistency: word(&policy)?,
                writers: word(&writers)?,
                explicit_key,
                columns: BTreeMap::new(),
            };
            let columns: Vec<(u32, String, String)> = conn
                .prepare(
                    "SELECT id, name, type FROM littoral_columns WHERE table_id = ? ORDER BY id",
                )?
                .query_map([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect::<Result<_, _>>()?;
            let shape = enroll::shape(conn, &name)?;
            let (mut key, mut cells) = (Vec::new(), Vec::new());
            for (id, column, merge) in columns {
                let merge: ColumnType = word(&merge)?;
                if merge != ColumnType::default() {
                    policy.columns.insert(column.clone(), merge);
                }
                let Some(found) = shape.iter().find(|c| c.name == column) else { continue };
                let stored = Column {
                    id: ColumnId(id),
                    name: column,
                    position: found.position,
                    real: found.real,
                    merge,
                };
                match found.key_place {
                    Some(place) => key.push((place, stored)),
                    None => cells.push(stored),
                }
            }
            key.sort_by_key(|(place, _)| *place);
            let key: Vec<Column> = key.into_iter().map(|(_, column)| column).collect();
            registry.push(Table {
                sql: TableSql::new(&name, &key, &cells),
                is_plain: enroll::is_plain(conn, &name)?,
                id: TableId(id),
                name,
                policy,
                assigned: cells
                    .iter()
                    .filter(|c| c.merge == ColumnType::Lww)
                    .map(|c| c.id)
                    .collect(),
                key,
                cells,
            });
        }
        Ok(registry)
    }

    fn push(&mut self, table: Table) {
        self.by_id.insert(table.id, self.tables.len());
        self.tables.push(table);
    }

    /// All tables by ascending id.
    pub(crate) fn tables(&self) -> &[Table] {
        &self.tables
    }

    pub(crate) fn by_id(&self, id: TableId) -> Option<&Table> {
        self.by_id.get(&id).map(|&index| &self.tables[index])
    }

    /// The place in [`Registry::tables`] of the table with that name, which SQLite compares without
    /// regard to ASCII case.
    pub(crate) fn position(&self, name: &[u8]) -> Option<usize> {
        self.tables.iter().position(|table| table.name.as_bytes().eq_ignore_ascii_case(name))
    }
}

impl TableSql {
    fn new(table: &str, key: &[Column], cells: &[Column]) -> Self {
        let table = quoted(table);
        let name = |column: &Column| quoted(&column.name);
        let keys: Vec<String> = key.iter().map(name).collect();
        let values: Vec<String> = cells.iter().map(name).collect();
        let all = [keys.clone(), values.clone()].concat();
        let places: Vec<String> = (1..=all.len()).map(|i| format!("?{i}")).collect();
        let where_key = keys
            .iter()
            .zip(&places)
            .map(|(k, p)| format!("{k} = {p}"))
            .collect::<Vec<_>>()
            .join(" AND ");
        Self {
            select: format!(
                "{} SELECT {} FROM {table} WHERE {where_key}",
                catalog::MARK,
                if values.is_empty() { "1".to_owned() } else { values.join(", ") }
            ),
            insert: format!(
                "INSERT OR ABORT INTO {table}({}) VALUES({})",
                all.join(", "),
                places.join(", ")
            ),
            delete: format!("DELETE FROM {table} WHERE {where_key}"),
            scan: format!("SELECT {} FROM {table} ORDER BY {}", all.join(", "), keys.join(", ")),
            where_key,
        }
    }
}

fn word<T: std::str::FromStr>(word: &str) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    word.parse().map_err(|error: T::Err| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
    })
}
