//! [`Trigger`]: what each trigger of the schema is for, which decides where it fires.
//!
//! SQLite's own compiler tells what a trigger reads and writes: in a scratch database with the same
//! schema, statements that would fire it are prepared, and the authorizer is asked about every access,
//! with the trigger's name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;
use rusqlite::{
    Connection,
    hooks::{AuthAction, AuthContext, Authorization},
};

use crate::{
    entry::TableDeclaration,
    policy::Consistency,
    schema::{
        enroll::{Refusal, is_reserved},
        survey::{Object, Survey},
        words::words,
    },
    sqlite::quoted,
};

/// What a trigger is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TriggerClass {
    /// It writes nothing, or may refuse with RAISE: it judges where a row is first written, and never a
    /// merge.
    Guard,
    /// It reads its own row only, and writes tables that do not replicate (virtual ones, such as FTS5):
    /// it fires on every node, for every row that changes there.
    Derived,
    /// It changes rows that replicate by themselves: it fires where the statement runs, and its effects
    /// travel as rows.
    Effect,
}

impl TriggerClass {
    /// The name in output and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Derived => "derived",
            Self::Effect => "effect",
        }
    }
}

impl fmt::Display for TriggerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A trigger of the schema.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trigger {
    /// Its name.
    pub name: String,
    /// The table or view whose rows fire it.
    pub table: String,
    /// What it is for.
    pub class: TriggerClass,
    /// The tables it writes that do not replicate.
    pub(crate) targets: Vec<String>,
    /// Whether a DELETE fires it.
    pub(crate) on_delete: bool,
    /// As the schema holds it: `CREATE TRIGGER`, then its name.
    sql: String,
}

impl Trigger {
    /// The statement that makes the same trigger for one connection.
    pub(crate) fn temporary(&self) -> Option<String> {
        self.sql.strip_prefix("CREATE TRIGGER").map(|rest| format!("CREATE TEMP TRIGGER{rest}"))
    }
}

/// What was seen of a trigger while it was compiled.
#[derive(Debug, Default)]
struct Access {
    writes: BTreeSet<String>,
    reads: BTreeSet<String>,
    selects: bool,
    on_delete: bool,
}

/// What the authorizer has seen, by trigger.
#[derive(Debug, Default)]
struct Seen {
    triggers: BTreeMap<String, Access>,
    deleting: bool,
}

/// All triggers of the schema. `replicates` says of a table whether its rows travel.
pub(crate) fn triggers(
    survey: &Survey<'_>,
    replicates: impl Fn(&str) -> bool,
) -> rusqlite::Result<Vec<Trigger>> {
    let found = survey.triggers();
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let seen =
        compile(survey.conn(), found.iter().map(|trigger| trigger.table.as_str()).collect())?;
    let lasting: BTreeSet<String> = survey.tables().map(str::to_ascii_lowercase).collect();
    let derivable = |table: &str| {
        lasting.contains(&table.to_ascii_lowercase()) && !replicates(table) && !is_reserved(table)
    };
    let nothing = Access::default();
    Ok(found
        .into_iter()
        .map(|Object { name, table, sql, .. }| {
            let (name, table) = (name.clone(), table.clone());
            let sql = sql.clone().unwrap_or_default();
            let access = seen.triggers.get(&name).unwrap_or(&nothing);
            let words = words(&sql);
            let raises = words
                .windows(2)
                .any(|pair| pair[0].eq_ignore_ascii_case("RAISE") && pair[1] == "(");
            let own_row = access
                .reads
                .iter()
                .all(|read| read.eq_ignore_ascii_case(&table) || derivable(read))
                && !(access.selects && reads_tables(&words));
            let class = if raises || access.writes.is_empty() {
                TriggerClass::Guard
            } else if own_row && access.writes.iter().all(|written| derivable(written)) {
                TriggerClass::Derived
            } else {
                TriggerClass::Effect
            };
            let targets = access.writes.iter().filter(|t| derivable(t)).cloned().collect();
            Trigger { name, table, class, targets, on_delete: access.on_delete, sql }
        })
        .collect())
}

/// Every trigger that writes a virtual table and would not do so on every node.
pub(crate) fn check(
    survey: &Survey<'_>,
    tables: &[TableDeclaration],
) -> rusqlite::Result<Vec<Refusal>> {
    let replicates = |table: &&TableDeclaration| table.policy.consistency != Consistency::Local;
    let named = |name: &str| {
        tables.iter().filter(replicates).any(|table| table.name.eq_ignore_ascii_case(name))
    };
    let mut refusals = Vec::new();
    for trigger in triggers(survey, named)? {
        if trigger.class == TriggerClass::Derived || !named(&trigger.table) {
            continue;
        }
        for target in trigger.targets {
            if survey.is_virtual(&target) {
                refusals.push(Refusal {
                    table: trigger.table.clone(),
                    reason: format!(
                        "trigger {:?} writes the virtual table {target:?}, and has RAISE, reads other rows \
                         than its own or writes replicated tables, so it cannot fire on every node",
                        trigger.name
                    ),
                    remedy: "put what writes the virtual table into a trigger of its own that uses OLD and \
                             NEW only",
                });
            }
        }
    }
    Ok(refusals)
}

/// Compiles every trigger of these tables in a scratch database.
fn compile(conn: &Connection, tables: BTreeSet<&str>) -> rusqlite::Result<Seen> {
    let mut scratch = Connection::open_in_memory()?;
    // The tables behind a virtual one come with it.
    let mut objects = conn.prepare(
        "SELECT s.sql FROM sqlite_schema s WHERE s.sql IS NOT NULL AND s.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
         AND s.type IN ('table', 'view', 'trigger')
         AND NOT EXISTS(SELECT 1 FROM pragma_table_list l
                        WHERE l.schema = 'main' AND l.name = s.name AND l.type = 'shadow')
         ORDER BY CASE s.type WHEN 'table' THEN 0 WHEN 'view' THEN 1 ELSE 2 END, s.rowid",
    )?;
    let mut rows = objects.query([])?;
    while let Some(row) = rows.next()? {
        scratch.execute_batch(row.get_ref(0)?.as_str()?)?;
    }
    let seen = Arc::new(Mutex::new(Seen::default()));
    let watching = Arc::clone(&seen);
    scratch.authorizer(Some(move |context: AuthContext<'_>| watching.lock().see(&context)))?;
    for table in tables {
        let columns: Vec<String> = conn
            .prepare("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0")?
            .query_map([table], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let set: Vec<String> =
            columns.iter().map(|name| format!("{0} = {0}", quoted(name))).collect();
        let table = quoted(table);
        let statements = [
            format!("INSERT INTO {table} DEFAULT VALUES"),
            format!("UPDATE {table} SET {}", set.join(", ")),
            format!("DELETE FROM {table}"),
        ];
        for statement in statements {
            seen.lock().deleting = statement.starts_with("DELETE");
            // A trigger that does not compile fails every statement that would fire it, on every node.
            drop(scratch.prepare(&statement));
        }
    }
    scratch.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
    let seen = std::mem::take(&mut *seen.lock());
    Ok(seen)
}

impl Seen {
    fn see(&mut self, context: &AuthContext<'_>) -> Authorization {
        let Some(trigger) = context.accessor else { return Authorization::Allow };
        let access = self.triggers.entry(trigger.to_owned()).or_default();
        access.on_delete |= self.deleting;
        match context.action {
            AuthAction::Insert { table_name }
            | AuthAction::Update { table_name, .. }
            | AuthAction::Delete { table_name } => {
                access.writes.insert(table_name.to_owned());
            }
            AuthAction::Read { table_name, .. } => {
                access.reads.insert(table_name.to_owned());
            }
            AuthAction::Select => access.selects = true,
            _ => {}
        }
        Authorization::Allow
    }
}

/// Whether a statement among these words reads a table: the authorizer does not tell a column of the
/// trigger's row from one of the same table.
fn reads_tables(words: &[&str]) -> bool {
    let is = |place: Option<usize>, word: &str| {
        place.and_then(|place| words.get(place)).is_some_and(|w| w.eq_ignore_ascii_case(word))
    };
    (0..words.len()).any(|place| {
        let before = place.checked_sub(1);
        let from = is(Some(place), "FROM") && !is(before, "DELETE") && !is(before, "DISTINCT");
        // `x IN t` reads the table t.
        let within = is(Some(place), "IN") && !is(Some(place + 1), "(");
        from || within
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = "
        CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, note TEXT);
        CREATE TABLE other(id INTEGER PRIMARY KEY, n);
        CREATE TABLE mine(id INTEGER PRIMARY KEY, n);
        CREATE VIEW names AS SELECT id, name FROM t;
        CREATE VIRTUAL TABLE f USING fts5(name, content = 't', content_rowid = 'id');";

    fn class(trigger: &str) -> TriggerClass {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        conn.execute_batch(&format!("CREATE TRIGGER x {trigger}; END")).unwrap();
        let found = triggers(&Survey::new(&conn).unwrap(), |table| ["t", "other"].contains(&table))
            .unwrap();
        assert_eq!((found.len(), &*found[0].name), (1, "x"));
        found[0].class
    }

    #[test]
    fn what_a_trigger_reads_and_writes_says_what_it_is_for() {
        use TriggerClass::{Derived, Effect, Guard};
        for (trigger, expected) in [
            ("BEFORE INSERT ON t BEGIN SELECT 1", Guard),
            ("BEFORE INSERT ON t BEGIN SELECT RAISE(ABORT, 'no') FROM other", Guard),
            (
                "AFTER INSERT ON t BEGIN INSERT INTO other VALUES(1, 1); SELECT raise (ignore)",
                Guard,
            ),
            (
                "AFTER INSERT ON t BEGIN INSERT INTO f(rowid, name) VALUES(new.id, new.name)",
                Derived,
            ),
            (
                "AFTER DELETE ON t BEGIN INSERT INTO f(f, rowid, name) VALUES('delete', old.id, old.name)",
                Derived,
            ),
            (
                "AFTER UPDATE OF name ON t WHEN old.name IS DISTINCT FROM new.name BEGIN
                 INSERT INTO f(f, rowid, name) SELECT 'delete', old.id, old.name;
                 INSERT INTO f(rowid, name) VALUES(new.id, new.name)",
                Derived,
            ),
            ("AFTER DELETE ON t BEGIN DELETE FROM f WHERE rowid = old.id", Derived),
            ("AFTER UPDATE ON t BEGIN UPDATE f SET name = new.name WHERE rowid = new.id", Derived),
            (
                "AFTER INSERT ON t BEGIN INSERT INTO mine VALUES(new.id, 'RAISE(' || new.note)",
                Derived,
            ),
            ("AFTER INSERT ON t BEGIN INSERT INTO mine SELECT id, 1 FROM t", Effect),
            ("AFTER INSERT ON t BEGIN INSERT INTO mine SELECT 1, 2 WHERE new.id NOT IN t", Effect),
            ("AFTER INSERT ON t BEGIN INSERT INTO mine SELECT new.id, count(*) FROM names", Effect),
            ("AFTER INSERT ON t BEGIN INSERT INTO f(rowid, name) SELECT id, n FROM other", Effect),
            ("AFTER INSERT ON t BEGIN UPDATE other SET n = n + 1", Effect),
            ("AFTER UPDATE ON t BEGIN UPDATE t SET note = 'changed' WHERE id = new.id", Effect),
            (
                "AFTER INSERT ON t BEGIN INSERT INTO mine VALUES(1, 2); INSERT INTO other VALUES(1, 2)",
                Effect,
            ),
            ("INSTEAD OF UPDATE ON names BEGIN UPDATE t SET name = new.name", Effect),
        ] {
            assert_eq!(class(trigger), expected, "{trigger}");
        }
    }
}
