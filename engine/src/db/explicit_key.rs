//! `key = "explicit"`: a statement that leaves the key to SQLite is refused before it runs.
//!
//! SQLite's compiler says it: in the program of such a statement, the instruction that hands out a rowid
//! is not skipped by a test whether the statement gives one. A statement that gives NULL for the key is
//! not found out here; see `docs/decisions/0012-explicit-keys.md`.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::{
    error::WriteError,
    schema::{Registry, catalog::MARK},
};

/// An instruction of a statement's program.
struct Instruction {
    address: i64,
    opcode: String,
    p1: i64,
    p2: i64,
    p3: i64,
}

/// Refuses the statement if it leaves the key of a `key = "explicit"` table to SQLite.
pub(super) fn check(conn: &Connection, registry: &Registry, sql: &str) -> Result<(), WriteError> {
    let mut roots = BTreeMap::new();
    for table in registry.tables().iter().filter(|table| table.is_given_its_key()) {
        let root: Option<i64> = conn
            .prepare_cached("/*littoral*/ SELECT max(rootpage) FROM sqlite_schema WHERE type = 'table' AND name = ?")?
            .query_row([&table.name], |row| row.get(0))?;
        roots.extend(root.map(|root| (root, table)));
    }
    let mut explain = conn.prepare(&format!("{MARK} EXPLAIN {sql}"))?;
    let mut rows = explain.raw_query();
    let mut cursors = BTreeMap::new();
    let mut before = None;
    while let Some(row) = rows.next()? {
        let at = Instruction {
            address: row.get(0)?,
            opcode: row.get(1)?,
            p1: row.get(2)?,
            p2: row.get(3)?,
            p3: row.get(4)?,
        };
        if at.address == 0 {
            // The program of a trigger has cursors of its own.
            cursors.clear();
        }
        if at.opcode == "OpenWrite" && at.p3 == 0 {
            cursors.insert(at.p1, at.p2);
        }
        if at.opcode == "NewRowid"
            && !before.as_ref().is_some_and(|before| skips(before, &at))
            && let Some(table) = cursors.get(&at.p1).and_then(|root| roots.get(root))
        {
            return Err(WriteError::Value {
                table: table.name.clone(),
                column: table.key.first().map(|key| key.name.clone()).unwrap_or_default(),
                what:
                    "the statement leaves it to SQLite, and another node would hand out the same; \
                       give it a value, as key = \"explicit\" says"
                        .to_owned(),
            });
        }
        before = Some(at);
    }
    Ok(())
}

/// Whether `test` leads past `at` where a key is given.
fn skips(test: &Instruction, at: &Instruction) -> bool {
    test.opcode == "NotNull" && test.address + 1 == at.address && test.p2 == at.address + 1
}
