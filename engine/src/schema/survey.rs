//! [`Survey`]: what SQLite says of the schema, asked once while it stays as it is.
//!
//! A change of the schema has SQLite prepare every statement anew, so that asking again and again costs
//! more than the change itself.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use rusqlite::Connection;

use crate::{
    schema::{enroll::is_reserved, shape::TableShape},
    sqlite::quoted,
};

/// The schema `main` of a connection, at one moment.
#[derive(Debug)]
pub(crate) struct Survey<'c> {
    conn: &'c Connection,
    objects: Vec<Object>,
    /// Tables and views by name.
    tables: BTreeMap<String, Kind>,
    shapes: RefCell<BTreeMap<String, Rc<TableShape>>>,
    parents: RefCell<BTreeMap<String, Rc<[String]>>>,
}

/// A row of `sqlite_schema`.
#[derive(Debug)]
pub(super) struct Object {
    kind: String,
    pub(super) name: String,
    pub(super) table: String,
    pub(super) sql: Option<String>,
}

/// What kind of a table one is.
#[derive(Debug)]
pub(super) struct Kind {
    /// `table`, `virtual`, `shadow` or `view`.
    kind: String,
    pub(super) without_rowid: bool,
    pub(super) strict: bool,
}

impl<'c> Survey<'c> {
    pub(crate) fn new(conn: &'c Connection) -> rusqlite::Result<Self> {
        let objects = conn
            .prepare("SELECT type, name, tbl_name, sql FROM main.sqlite_schema ORDER BY rowid")?
            .query_map([], |row| {
                let (kind, name, table) = (row.get(0)?, row.get(1)?, row.get(2)?);
                Ok(Object { kind, name, table, sql: row.get(3)? })
            })?
            .collect::<Result<_, _>>()?;
        let tables = conn
            .prepare("PRAGMA main.table_list")?
            .query_map([], |row| Ok((row.get(1)?, Kind::read(row)?)))?
            .collect::<Result<_, _>>()?;
        let (shapes, parents) = (RefCell::default(), RefCell::default());
        Ok(Self { conn, objects, tables, shapes, parents })
    }

    pub(crate) const fn conn(&self) -> &'c Connection {
        self.conn
    }

    /// The tables of the schema that can replicate, in creation order: not the engine's or SQLite's own,
    /// nor virtual ones and those behind them.
    pub(crate) fn user_tables(&self) -> impl Iterator<Item = &str> {
        let is_sqlites = |name: &str| {
            let prefix = "sqlite_";
            name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        let names = self.objects_of("table").map(|table| table.name.as_str());
        names.filter(move |name| {
            self.is_of_kind(name, "table") && !is_sqlites(name) && !is_reserved(name)
        })
    }

    /// What a table is like.
    pub(crate) fn shape(&self, table: &str) -> rusqlite::Result<Rc<TableShape>> {
        if let Some(shape) = self.shapes.borrow().get(table) {
            return Ok(Rc::clone(shape));
        }
        let kind = self.tables.get(table).ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        let shape = Rc::new(TableShape::read_as(self.conn, table, kind)?);
        self.shapes.borrow_mut().insert(table.to_owned(), Rc::clone(&shape));
        Ok(shape)
    }

    /// The tables to which a table has foreign keys.
    pub(crate) fn parents(&self, table: &str) -> rusqlite::Result<Rc<[String]>> {
        if let Some(parents) = self.parents.borrow().get(table) {
            return Ok(Rc::clone(parents));
        }
        let mut names: Vec<String> = Vec::new();
        let mut statement =
            self.conn.prepare(&format!("PRAGMA main.foreign_key_list({})", quoted(table)))?;
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            let name: String = row.get(2)?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let parents: Rc<[String]> = names.into();
        self.parents.borrow_mut().insert(table.to_owned(), Rc::clone(&parents));
        Ok(parents)
    }

    /// Whether the word CHECK stands in the table's declaration: as a constraint, or as something else.
    pub(super) fn may_check(&self, table: &str) -> bool {
        let mut tables = self.objects_of("table").filter(|o| o.name.eq_ignore_ascii_case(table));
        tables.any(|table| {
            let sql = table.sql.as_deref().unwrap_or_default();
            sql.as_bytes().windows(5).any(|word| word.eq_ignore_ascii_case(b"check"))
        })
    }

    /// Whether nothing but a collision with another row, or a NULL, can keep a row out of a table: it has
    /// no triggers, checks no types, and computes nothing.
    pub(super) fn is_plain(&self, table: &str) -> rusqlite::Result<bool> {
        let shape = self.shape(table)?;
        let is_fired = self.objects_of("trigger").any(|o| o.table.eq_ignore_ascii_case(table));
        let computes = shape.columns.iter().any(|column| column.generated)
            || shape.indexes.iter().any(|index| index.partial || index.has_expressions());
        Ok(!is_fired && !shape.strict && !computes)
    }

    /// All triggers, by name.
    pub(super) fn triggers(&self) -> Vec<&Object> {
        let mut triggers: Vec<&Object> = self.objects_of("trigger").collect();
        triggers.sort_by(|a, b| a.name.cmp(&b.name));
        triggers
    }

    /// The names of all tables, also virtual ones and those behind them.
    pub(super) fn tables(&self) -> impl Iterator<Item = &str> {
        let tables = self.tables.iter().filter(|(_, kind)| kind.kind != "view");
        tables.map(|(name, _)| name.as_str())
    }

    pub(super) fn is_virtual(&self, table: &str) -> bool {
        self.is_of_kind(table, "virtual")
    }

    fn is_of_kind(&self, table: &str, kind: &str) -> bool {
        self.tables.get(table).is_some_and(|table| table.kind == kind)
    }

    fn objects_of(&self, kind: &'static str) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(move |object| object.kind == kind)
    }
}

impl Kind {
    /// From a row of `PRAGMA table_list`.
    pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { kind: row.get(2)?, without_rowid: row.get(4)?, strict: row.get(5)? })
    }
}
