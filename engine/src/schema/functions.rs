//! Functions of SQLite's that neither a statement of a client nor a schema may call, whatever is granted.
//!
//! They are those that SQLite itself keeps out of views and triggers: they reach beyond the file. A test
//! holds the list against what the linked SQLite says of its functions. `fts5()` is not among them: it takes
//! nothing but a pointer that a program in this process has bound, which no SQL can make.

use rusqlite::{Connection, functions::FunctionFlags};

use super::words::calls;

/// Each with what it does.
const REFUSED: [(&str, &str); 3] = [
    // Also where SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER is off, if its arguments are bound.
    (TOKENIZER, "gives and takes addresses in the memory of this process"),
    ("load_extension", "loads code into this process"),
    ("sqlite_log", "writes to the log of this process"),
];

const TOKENIZER: &str = "fts3_tokenizer";

/// What is wrong with calling a function, if it must not be called.
pub(crate) fn refused(function: &str) -> Option<String> {
    let refused = REFUSED.iter().find(|(name, _)| name.eq_ignore_ascii_case(function))?;
    Some(format!("{}(), which {},", refused.0, refused.1))
}

/// The same of a statement that makes something of the schema: SQLite looks for the functions that a view
/// or a trigger calls only where it is used.
pub(crate) fn refused_in(sql: &str) -> Option<String> {
    calls(sql).into_iter().find_map(refused)
}

/// Takes `fts3_tokenizer()` out of reach of whatever is prepared on a connection, also past its authorizer.
pub(crate) fn take_away(conn: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
    for arguments in [1, 2] {
        conn.create_scalar_function(TOKENIZER, arguments, flags, |_| -> rusqlite::Result<bool> {
            let what = refused(TOKENIZER).unwrap_or_default();
            Err(rusqlite::Error::UserFunctionError(format!("{what} is not available").into()))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(sql: &str) -> Vec<String> {
        let conn = Connection::open_in_memory().unwrap();
        let mut statement = conn.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// If a newer SQLite has more of them, each must be decided.
    #[test]
    fn what_sqlite_keeps_out_of_schemas_is_refused() {
        let direct_only = 0x8_0000;
        let dangerous = told(&format!(
            "SELECT DISTINCT name FROM pragma_function_list WHERE flags & {direct_only} ORDER BY name"
        ));
        assert_eq!(dangerous, REFUSED.map(|(name, _)| name));
    }

    /// Of these a client reaches only those that are there without being made:
    /// - `dbstat` tells names and sizes of tables, to whoever may read the schema;
    /// - `fts3tokenize` gives the words of the text it is given, by SQLite's own tokenizers;
    /// - PRAGMAs are judged as such, and JSON reads what it is given.
    ///
    /// The others need CREATE VIRTUAL TABLE, which is for FTS5 only.
    #[test]
    fn every_module_is_known() {
        let modules = told("SELECT name FROM pragma_module_list ORDER BY name");
        let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
        assert_eq!(
            modules,
            [
                "dbstat",
                "fts3",
                "fts3tokenize",
                "fts4",
                "fts4aux",
                "fts5",
                "fts5vocab",
                "pragma_module_list",
                "rtree",
                "rtree_i32"
            ]
        );
        let conn = Connection::open_in_memory().unwrap();
        for module in modules {
            let there = conn.prepare(&format!("SELECT * FROM {module}")).is_ok();
            let expected = ["dbstat", "fts3tokenize", "pragma_module_list"].contains(&module);
            assert_eq!(there, expected, "{module}");
        }
    }

    #[test]
    fn a_schema_is_searched_for_them() {
        for sql in [
            "CREATE VIEW v AS SELECT FTS3_Tokenizer('simple')",
            "CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT \"load_extension\" ('x'); END",
        ] {
            assert!(refused_in(sql).is_some(), "{sql}");
        }
        for sql in [
            "CREATE VIEW v AS SELECT 'load_extension(1)', load_extension FROM t",
            "CREATE VIEW load_extensions AS SELECT my_load_extension(1)",
        ] {
            assert_eq!(refused_in(sql), None, "{sql}");
        }
    }

    #[test]
    fn the_tokenizers_of_a_connection_cannot_be_reached() {
        let conn = Connection::open_in_memory().unwrap();
        let ask = "SELECT fts3_tokenizer(?1) IS NOT NULL";
        let give = "SELECT fts3_tokenizer(?1, ?2)";
        let simple = "simple";
        assert!(conn.query_row(ask, [simple], |row| row.get::<_, bool>(0)).unwrap());
        take_away(&conn).unwrap();
        let error = conn.query_row(ask, [simple], |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("is not available"), "{error}");
        assert!(conn.query_row(give, (simple, [1u8; 8]), |_| Ok(())).is_err());
        // What uses them by their names goes on.
        conn.execute_batch(
            "CREATE VIRTUAL TABLE found USING fts4(text, tokenize=porter);
             INSERT INTO found VALUES('walking home');",
        )
        .unwrap();
        let text: String = conn
            .query_row("SELECT text FROM found WHERE found MATCH 'walks'", [], |row| row.get(0))
            .unwrap();
        assert_eq!(text, "walking home");
    }
}
