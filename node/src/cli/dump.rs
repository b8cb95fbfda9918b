//! `littoral dump`: a SQLite database as SQL, to begin a cluster with what a copy or another program's file
//! holds.
//!
//! The schema for `littoral init` has tables and indexes only. Rows come parents first, and behind them what is
//! made of rows that are there: views, full-text tables and triggers, which so do not fire for these rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::{Context as _, anyhow, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::Args;
use rusqlite::{Connection, OpenFlags, types::ValueRef};
use serde_json::{Map, Value, json};

use super::{OrHint as _, say, warn};

/// Rows are put into one statement up to this size.
const STATEMENT_BYTES: usize = 64 << 10;

/// Print a SQLite database as SQL: its rows, or its schema.
///
/// FILE is a copy that `littoral backup` made, or any other SQLite database; it is only read, and all that is
/// read of it is of one moment. With --schema, the statements of its tables and indexes are printed, for
/// `littoral init --schema`. Without it, its rows, and behind them its views, full-text tables and triggers,
/// for `littoral sql` at the origin: triggers do not fire for these rows. littoral's own tables are left out.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral dump origin.sqlite --schema > schema.sql\n  \
    littoral dump origin.sqlite | littoral sql --config new/origin/littoral.toml\n  \
    littoral dump origin.sqlite products cart")]
pub(super) struct Dump {
    /// The database.
    file: PathBuf,
    /// Only the rows of these tables.
    #[arg(value_name = "TABLE", conflicts_with = "schema")]
    tables: Vec<String>,
    /// The tables and indexes in place of the rows.
    #[arg(long)]
    schema: bool,
    /// One JSON object for each row or statement.
    #[arg(long)]
    json: bool,
}

impl Dump {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(&self.file, flags)
            .with_context(|| format!("cannot open {}", self.file.display()))
            .or_hint("the file is a SQLite database, such as `littoral backup` makes")?;
        let moment = conn.unchecked_transaction()?;
        let found = Found::read(&conn)
            .with_context(|| format!("cannot read {}", self.file.display()))
            .or_hint("the file is a SQLite database, such as `littoral backup` makes")?;
        self.print(&conn, &found)?;
        Ok(moment.finish()?)
    }

    fn print(&self, conn: &Connection, found: &Found) -> anyhow::Result<()> {
        if self.schema {
            let mut made = found.made.iter().filter(|made| made.is_table || made.kind == "index");
            return made.try_for_each(|made| self.statement(made));
        }
        let unknown = |name: &&String| !found.order.iter().any(|t| t.eq_ignore_ascii_case(name));
        if let Some(name) = self.tables.iter().find(unknown) {
            return Err(anyhow!("{} has no table {name}", self.file.display()))
                .or_hint("views, full-text tables and littoral's own tables are not among them");
        }
        let is_asked = |name: &&String| {
            self.tables.is_empty() || self.tables.iter().any(|t| t.eq_ignore_ascii_case(name))
        };
        // As a migration, rows may come before those that they refer to.
        let switches = found.in_circles && !self.json;
        if switches {
            say("PRAGMA foreign_keys = OFF;")?;
        }
        for table in found.order.iter().filter(is_asked) {
            self.rows(conn, table)?;
        }
        if self.tables.is_empty() {
            for kind in ["view", "table", "trigger"] {
                let mut made = found.made.iter().filter(|made| made.kind == kind && !made.is_table);
                made.try_for_each(|made| self.virtual_or_statement(conn, made))?;
            }
        }
        if switches { say("PRAGMA foreign_keys = ON;") } else { Ok(()) }
    }

    fn statement(&self, made: &Made) -> anyhow::Result<()> {
        let Made { kind, name, sql, .. } = made;
        if self.json {
            return say(json!({ "type": kind, "name": name, "sql": sql }));
        }
        say(format_args!("{sql};"))
    }

    /// A view, a trigger, or a full-text table, which is filled from the rows that are there.
    fn virtual_or_statement(&self, conn: &Connection, made: &Made) -> anyhow::Result<()> {
        self.statement(made)?;
        if made.kind != "table" {
            return Ok(());
        }
        let has_content: bool = conn.query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?1 || '_content')",
            [&made.name],
            |row| row.get(0),
        )?;
        if has_content {
            warn(
                format_args!(
                    "the full-text table {} has content of its own, which is not dumped",
                    made.name
                ),
                "an index over a table (content = ...) is filled from it; see docs/schema.md, Full-text search",
            );
        } else if !self.json {
            let name = quoted(&made.name);
            say(format_args!("INSERT INTO {name}({name}) VALUES('rebuild');"))?;
        }
        Ok(())
    }

    fn rows(&self, conn: &Connection, table: &str) -> anyhow::Result<()> {
        let mut columns =
            conn.prepare("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0")?;
        let columns: Vec<String> =
            columns.query_map([table], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let list: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
        let list = list.join(", ");
        let mut rows = conn.prepare(&format!("SELECT {list} FROM {}", quoted(table)))?;
        let mut rows = rows.query(())?;
        let mut pending = String::new();
        while let Some(row) = rows.next()? {
            if self.json {
                let mut object = Map::new();
                for (i, name) in columns.iter().enumerate() {
                    object.insert(name.clone(), plain(row.get_ref(i)?)?);
                }
                say(json!({ "table": table, "row": object }))?;
                continue;
            }
            let values: Vec<String> = (0..columns.len())
                .map(|i| literal(row.get_ref(i)?))
                .collect::<Result<_, anyhow::Error>>()
                .with_context(|| format!("a row of {table} cannot be written as SQL"))?;
            if pending.is_empty() {
                pending = format!("INSERT INTO {} ({list}) VALUES\n", quoted(table));
            } else {
                pending.push_str(",\n");
            }
            pending.push_str(&format!("({})", values.join(", ")));
            if pending.len() > STATEMENT_BYTES {
                say(format_args!("{pending};"))?;
                pending.clear();
            }
        }
        if pending.is_empty() { Ok(()) } else { say(format_args!("{pending};")) }
    }
}

/// A table, index, view or trigger.
struct Made {
    kind: String,
    name: String,
    sql: String,
    /// An ordinary table, not a virtual one.
    is_table: bool,
}

/// What a database consists of, without what SQLite and littoral keep for themselves.
struct Found {
    /// In the order in which it was made.
    made: Vec<Made>,
    /// The names of the ordinary tables, those first that others refer to.
    order: Vec<String>,
    /// Whether tables refer to each other, or to themselves.
    in_circles: bool,
}

impl Found {
    fn read(conn: &Connection) -> anyhow::Result<Self> {
        let mut query = conn.prepare(
            "SELECT type, name, sql, coalesce((SELECT l.type FROM pragma_table_list(s.name) AS l
                                               WHERE l.schema = 'main'), '')
               FROM sqlite_schema AS s
               WHERE sql IS NOT NULL AND tbl_name NOT LIKE 'littoral\\_%' ESCAPE '\\'
                 AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid",
        )?;
        let found = query.query_map((), |row| {
            let kind: String = row.get(0)?;
            let class: String = row.get(3)?;
            let is_table = kind == "table" && class == "table";
            Ok((class, Made { kind, name: row.get(1)?, sql: row.get(2)?, is_table }))
        })?;
        let mut made = Vec::new();
        for found in found {
            let (class, one) = found?;
            if class != "shadow" {
                made.push(one);
            }
        }
        let tables: Vec<String> =
            made.iter().filter(|one| one.is_table).map(|one| one.name.clone()).collect();
        let mut parents: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut query = conn.prepare("SELECT \"table\" FROM pragma_foreign_key_list(?)")?;
        for table in &tables {
            let named = query.query_map([table], |row| row.get::<_, String>(0))?;
            let named = named.map(|name| name.map(|name| name.to_ascii_lowercase()));
            parents.insert(table.to_ascii_lowercase(), named.collect::<Result<_, _>>()?);
        }
        let (order, in_circles) = parents_first(tables, &parents);
        Ok(Self { made, order, in_circles })
    }
}

/// Tables in an order in which each comes behind those that it refers to, if there is one.
fn parents_first(
    mut left: Vec<String>,
    parents: &BTreeMap<String, BTreeSet<String>>,
) -> (Vec<String>, bool) {
    let mut order: Vec<String> = Vec::new();
    while !left.is_empty() {
        let names: BTreeSet<String> = left.iter().map(|name| name.to_ascii_lowercase()).collect();
        let waits = |table: &String| {
            parents.get(&table.to_ascii_lowercase()).is_some_and(|of| !of.is_disjoint(&names))
        };
        let (later, now): (Vec<_>, Vec<_>) = left.into_iter().partition(waits);
        if now.is_empty() {
            order.extend(later);
            return (order, true);
        }
        order.extend(now);
        left = later;
    }
    (order, false)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A value as SQL has it.
fn literal(value: ValueRef<'_>) -> anyhow::Result<String> {
    Ok(match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(x) if x.is_infinite() => {
            if x > 0.0 {
                "9e999".to_owned()
            } else {
                "-9e999".to_owned()
            }
        }
        // With a point or an exponent, and as many digits as it takes to be the same again.
        ValueRef::Real(x) => format!("{x:?}"),
        ValueRef::Text(bytes) if bytes.contains(&0) => {
            format!("CAST(x'{}' AS TEXT)", crate::pki::hex(bytes))
        }
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => format!("'{}'", text.replace('\'', "''")),
            Err(_) => bail!("a text is not UTF-8: {}", String::from_utf8_lossy(bytes)),
        },
        ValueRef::Blob(bytes) => format!("x'{}'", crate::pki::hex(bytes)),
    })
}

fn plain(value: ValueRef<'_>) -> anyhow::Result<Value> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(n) if n.unsigned_abs() <= 1 << 53 => json!(n),
        // Integers beyond 2^53 stay exact as text, as `littoral sql` has them.
        ValueRef::Integer(n) => json!(n.to_string()),
        ValueRef::Real(x) => json!(x),
        ValueRef::Text(bytes) => json!(String::from_utf8_lossy(bytes)),
        ValueRef::Blob(bytes) => json!({ "base64": BASE64_STANDARD.encode(bytes) }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_the_same_again() {
        let conn = Connection::open_in_memory().unwrap();
        let reals = [0.1, -0.0, 1e300, 5e-324, 1.0, f64::INFINITY, f64::NEG_INFINITY];
        let text = b"it's\n\xc3\xa9";
        let values = reals.map(ValueRef::Real).into_iter().chain([
            ValueRef::Null,
            ValueRef::Integer(i64::MIN),
            ValueRef::Integer(i64::MAX),
            ValueRef::Text(text),
            ValueRef::Text(b"a\0b"),
            ValueRef::Blob(b"\0\xff"),
            ValueRef::Blob(b""),
        ]);
        for value in values {
            let sql = format!("SELECT {}", literal(value).unwrap());
            let same = conn.query_row(&sql, (), |row| Ok(row.get_ref(0)? == value)).unwrap();
            assert!(same, "{sql}");
        }
        assert!(literal(ValueRef::Text(b"\xff")).is_err());
    }

    #[test]
    fn tables_come_behind_those_that_they_refer_to() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let parents = |pairs: &[(&str, &str)]| {
            let mut map: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (table, parent) in pairs {
                map.entry((*table).to_owned()).or_default().insert((*parent).to_owned());
            }
            map
        };
        let of = parents(&[("a", "b"), ("b", "c")]);
        assert_eq!(parents_first(names(&["A", "b", "c"]), &of), (names(&["c", "b", "A"]), false));
        let of = parents(&[("a", "a")]);
        assert_eq!(parents_first(names(&["a", "b"]), &of), (names(&["b", "a"]), true));
    }
}
