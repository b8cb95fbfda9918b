//! Statements of a write job that change the schema, and declarations of policies: run in a savepoint,
//! taken into the catalog, judged, and written down behind the rows captured so far.
//!
//! Invariant: a change that fails or is refused leaves file, catalog and recorder as they were.

use std::sync::Arc;

use rusqlite::{Connection, Row, Statement};

use crate::{
    db::{
        tx::{Course, WriteTx, step_all, transaction_gone},
        writer::Writer,
    },
    error::WriteError,
    id::TableId,
    merge::follow_schema,
    policy::TablePolicy,
    schema::{
        change::{Action, Changed, Scope},
        functions,
    },
};

/// Runs a statement that changes the schema.
///
/// # Errors
/// SQLite's, or why the schema cannot be what the statement makes of it. The job may go on.
pub(super) fn run(
    writer: &Writer,
    course: &Course,
    statement: &mut Statement<'_>,
    action: &Action,
    each: impl FnMut(&Row<'_>) -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    let text = statement.expanded_sql().unwrap_or_default();
    let text = text.trim().trim_end_matches(';').trim_end().to_owned();
    if let Some(what) = functions::refused_in(&text).filter(|_| *action != Action::Policy) {
        return Err(WriteError::Forbidden { what });
    }
    within_savepoint(writer, course, || {
        let before = writer.as_engine(schema_cookie)?;
        if let Action::DropTable(table) = action {
            writer.user().sink().set_dropping(Some(table));
        }
        // The hook must tell all that a cascade changes.
        writer.announce(None);
        writer.gate().changing = *action != Action::Policy;
        let stepped = step_all(writer, statement, each);
        writer.gate().changing = false;
        writer.user().sink().set_dropping(None);
        stepped?;
        if *action == Action::Policy {
            return carry_out_calls(writer, course);
        }
        if writer.as_engine(schema_cookie)? == before {
            // IF NOT EXISTS, and it does.
            return Ok(());
        }
        let scope = scope(writer, course);
        let changed = writer.as_engine(|conn| scope.after(conn, action, &text))?;
        adopt(writer, course, vec![text], changed)
    })
}

/// Runs ANALYZE. What it writes is SQLite's, on this node alone, and no part of any entry.
///
/// # Errors
/// SQLite's. The job may go on.
pub(super) fn analyze(
    writer: &Writer,
    course: &Course,
    statement: &mut Statement<'_>,
    each: impl FnMut(&Row<'_>) -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    /// Other connections read statistics when they read the schema, and that when its version changes,
    /// which it does only where ANALYZE is the first.
    const READ_AGAIN: &str = "/*littoral*/ CREATE TABLE main.littoral_analyzed(x);
                              /*littoral*/ DROP TABLE main.littoral_analyzed";
    if writer.user().is_autocommit() {
        return Err(transaction_gone());
    }
    if !course.alone {
        writer.gate().wants_alone = true;
        return Err(WriteError::Aborted("the job analyzes tables and runs again".to_owned()));
    }
    let mark = writer.user().sink().mark();
    writer.gate().changing = true;
    let stepped = step_all(writer, statement, each);
    writer.gate().changing = false;
    if let Err(error) = stepped {
        if writer.user().is_autocommit() {
            writer.user().sink().clear();
        } else {
            writer.reread(mark)?;
        }
        return Err(error);
    }
    writer.as_engine(|conn| conn.execute_batch(READ_AGAIN))?;
    // Statements prepared before were planned without.
    let registry = Arc::clone(&writer.gate().registry);
    writer.adopt(registry);
    writer.gate().stale = true;
    Ok(())
}

/// Declares the policy of a table.
///
/// # Errors
/// Why the table cannot have it. The job may go on.
pub(super) fn declare(
    writer: &Writer,
    course: &Course,
    table: &str,
    policy: TablePolicy,
) -> Result<(), WriteError> {
    within_savepoint(writer, course, || declare_one(writer, course, table, policy))
}

fn carry_out_calls(writer: &Writer, course: &Course) -> Result<(), WriteError> {
    for call in writer.calls().take() {
        let policy = writer.as_engine(|conn| call.policy(conn))?;
        declare_one(writer, course, &call.table, policy)?;
    }
    Ok(())
}

fn declare_one(
    writer: &Writer,
    course: &Course,
    table: &str,
    policy: TablePolicy,
) -> Result<(), WriteError> {
    let scope = scope(writer, course);
    let changed = writer.as_engine(|conn| scope.declare(conn, table, policy))?;
    let known = scope.before.by_name(table);
    let written =
        known.filter(|table| table.is_multi_writer() && writer.user().sink().has_rows_of(table.id));
    if let Some(old) = written
        && let Some(new) = changed.registry.by_id(old.id)
        && (&old.policy.columns, &old.policy.groups) != (&new.policy.columns, &new.policy.groups)
    {
        return Err(WriteError::Policy(format!(
            "the types of columns of {table:?} must be declared all at once, before the transaction writes \
             its rows or a declaration has sets respelled"
        )));
    }
    if changed.changes.is_empty() { Ok(()) } else { adopt(writer, course, Vec::new(), changed) }
}

fn scope(writer: &Writer, course: &Course) -> Scope {
    let gate = writer.gate();
    Scope {
        base: Arc::clone(&course.base),
        before: Arc::clone(&gate.registry),
        lsn: course.lsn,
        passes_on: gate.migrating,
        thawed: gate.thawed.clone(),
    }
}

fn adopt(
    writer: &Writer,
    course: &Course,
    statements: Vec<String>,
    changed: Changed,
) -> Result<(), WriteError> {
    let Changed { changes, registry, respelling } = changed;
    let before = Arc::clone(&writer.gate().registry);
    // A table that is rebuilt was dropped by a statement before.
    let known = |id| before.by_id(id).or_else(|| course.base.by_id(id));
    writer.as_engine(|conn| follow_schema(conn, known, &registry))?;
    writer.user().sink().end_chapter(statements, changes, Arc::clone(&registry));
    writer.adopt(registry);
    // Behind the change, so that other nodes carry it out alike.
    let mut tx = WriteTx::new(writer, course.alike());
    respelling.iter().try_for_each(|statement| tx.execute(statement, []).map(drop))
}

fn within_savepoint(
    writer: &Writer,
    course: &Course,
    change: impl FnOnce() -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    if writer.user().is_autocommit() {
        return Err(transaction_gone());
    }
    let gate = writer.gate();
    if let Some(frozen) = gate.registry.frozen.as_ref().filter(|_| gate.thawed.is_empty()) {
        // One change that waits for others is enough; what comes between could spoil it.
        let name = |id: &TableId| gate.registry.by_id(*id).map(|table| table.name.clone());
        let table = frozen.tables.iter().find_map(name).unwrap_or_default();
        return Err(WriteError::SchemaChanging { table, waiting_for: Vec::new() });
    }
    drop(gate);
    if !course.alone {
        // The catalog changes in the middle of the transaction: that of a group would be in the way.
        writer.gate().wants_alone = true;
        return Err(WriteError::Aborted("the job changes the schema and runs again".to_owned()));
    }
    // What was captured so far is about to be closed.
    writer.normalize(course)?;
    if writer.verifies_capture() {
        let captured = writer.user().sink().take()?;
        let verified = writer.as_engine(|conn| captured.verify(conn, writer.apply()));
        writer.user().sink().put_back(captured);
        verified?;
    }
    writer.unmirror()?;
    let mark = writer.user().sink().mark();
    writer.command("/*littoral*/ SAVEPOINT littoral_change")?;
    let result = change();
    writer.calls().take();
    if writer.user().is_autocommit() {
        writer.user().sink().clear();
        return result.and(Err(transaction_gone()));
    }
    if result.is_err() {
        writer.command("/*littoral*/ ROLLBACK TO littoral_change")?;
        writer.user().sink().forget_since(mark);
        writer.adopt_recorders();
    }
    writer.command("/*littoral*/ RELEASE littoral_change")?;
    result
}

/// Changes with every change of the schema.
fn schema_cookie(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row("PRAGMA schema_version", [], |row| row.get(0))
}
