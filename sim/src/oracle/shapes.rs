//! [`Shape`]: how a table is read, so that its rows can be compared with those that its log leads to.

use rusqlite::Connection;

use crate::workload::TABLES;

/// How a table is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// The columns of its key.
    pub(crate) key: Vec<String>,
    /// Whether its key compares text without regard to case.
    pub(crate) nocase: bool,
    /// Whether equal keys may differ in bytes, and then which parts of the key are REAL.
    pub(crate) spelled: Option<Vec<bool>>,
}

/// Who knows the shapes of the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shapes {
    /// The built-in workload says.
    BuiltIn,
    /// SQLite says.
    Asked,
}

impl Shapes {
    /// The shape of a table; `None` if its keys are of a kind that only convergence is checked for.
    pub(crate) fn of(self, table: &str, reader: &Connection) -> rusqlite::Result<Option<Shape>> {
        if self == Self::Asked {
            return ask(table, reader);
        }
        // SQLite is asked about tables that are made later.
        let Some(known) = TABLES.iter().find(|shape| shape.name == table) else {
            return ask(table, reader);
        };
        Ok(Some(Shape {
            key: known.key.iter().map(|name| (*name).to_owned()).collect(),
            nocase: known.nocase,
            spelled: known.spelled.map(<[bool]>::to_vec),
        }))
    }
}

fn ask(table: &str, reader: &Connection) -> rusqlite::Result<Option<Shape>> {
    let mut query = reader
        .prepare_cached("SELECT name, upper(type), pk FROM pragma_table_info(?) ORDER BY pk")?;
    let columns = query
        .query_map([table], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<Vec<(String, String, i64)>>>()?;
    let mut key: Vec<String> = Vec::new();
    for (name, declared, place) in &columns {
        if *place == 0 {
            continue;
        }
        // Values of other affinities may be equal and yet differ in bytes.
        let is_integer = declared.contains("INT");
        let is_text = ["CHAR", "CLOB", "TEXT"].iter().any(|word| declared.contains(word));
        if !is_integer && !is_text {
            return Ok(None);
        }
        key.push(name.clone());
    }
    if key.is_empty() {
        if columns.iter().any(|(name, ..)| name.eq_ignore_ascii_case("rowid")) {
            return Ok(None);
        }
        key.push("rowid".to_owned());
    }
    let mut query = reader.prepare_cached(
        "SELECT count(*) FROM pragma_index_list(?) AS list, pragma_index_xinfo(list.name) AS part
         WHERE list.origin = 'pk' AND part.key AND part.coll <> 'BINARY'",
    )?;
    let collated: i64 = query.query_row([table], |row| row.get(0))?;
    Ok((collated == 0).then_some(Shape { key, nocase: false, spelled: None }))
}

/// The columns of a table's primary key, in its order.
pub(crate) fn key_columns(table: &str, reader: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut query =
        reader.prepare_cached("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk")?;
    let names = query.query_map([table], |row| row.get(0))?;
    names.collect()
}

/// A name as it stands in a statement, whatever characters it has.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_could_be_spelled_otherwise_are_left_to_convergence() {
        let conn = Connection::open_in_memory().unwrap();
        let key = |declaration: &str| {
            conn.execute_batch(&format!("DROP TABLE IF EXISTS t; CREATE TABLE t {declaration}"))
                .unwrap();
            Shapes::Asked.of("t", &conn).unwrap().map(|shape| shape.key.join(" "))
        };
        for (declaration, due) in [
            ("(id INTEGER PRIMARY KEY, n)", Some("id")),
            ("(n, b TEXT, a VARCHAR(9), PRIMARY KEY (a, b))", Some("a b")),
            ("(a TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID", Some("a")),
            ("(n)", Some("rowid")),
            ("(rowid TEXT)", None),
            ("(a TEXT COLLATE NOCASE PRIMARY KEY)", None),
            ("(a REAL PRIMARY KEY)", None),
            ("(a PRIMARY KEY)", None),
        ] {
            assert_eq!(key(declaration).as_deref(), due, "{declaration}");
        }
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
