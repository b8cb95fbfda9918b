//! The rehearsal: everything that a scenario says is tried out on one replica, before any seed is run.
//!
//! The shipped engine judges schema and policies, prepares every statement and runs the setup; so what is
//! told here is what a deployment would be told.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use littoral::{Job, OpenError, Output, Replica, WriteError};
use rusqlite::{
    Connection, OpenFlags,
    hooks::{AuthAction, AuthContext, Authorization},
};

use super::{Invariant, Mistake, Scenario, Statement};
use crate::{
    chance::Chance,
    clock::MS,
    disk::vfs,
    machine::{Machine, genesis_of},
    oracle::shapes::key_columns,
    world::MachinePlan,
};

/// Tries everything out, and learns which tables the invariants read.
pub(super) fn rehearse(scenario: &mut Scenario) -> Result<(), Mistake> {
    let chance = Chance::of(0);
    let _session = vfs::Session::begin(&chance);
    let machine = Machine::new(0, MachinePlan::member(true, MS), &chance);
    vfs::with(|store| store.start(&machine.name));
    let members: Vec<usize> = (0..scenario.nodes.len()).collect();
    let genesis = genesis_of(&members, scenario.schema.clone(), scenario.policies.clone());
    let mut engine = machine.open(0, Some(genesis), 0).map_err(|error| match error {
        OpenError::Genesis(error) => Mistake::new(&scenario.schema_file, error.to_string())
            .hint("the engine judges schema and policies as it would at `littoral init`"),
        error => Mistake::new(&scenario.schema_file, error.to_string()),
    })?;
    let tables = user_tables(&engine.eye)
        .map_err(|error| Mistake::new(&scenario.schema_file, error.to_string()))?;
    for table in &tables {
        let keys = key_columns(table, &engine.eye)
            .map_err(|error| Mistake::new(&scenario.schema_file, error.to_string()))?;
        // A table without a key is told by its rowid.
        let keys = if keys.is_empty() { vec!["rowid".to_owned()] } else { keys };
        scenario.keys.insert(table.clone(), keys);
    }
    let hint = format!("the schema has the tables {}", tables.join(", "));
    let replica = &mut engine.replica;
    let run = |replica: &mut Replica, statements: &[Statement], keep: bool| {
        attempt(replica, &machine, statements, keep).map_err(|mistake| match &mistake.what {
            what if what.contains("no such table") => mistake.hint(hint.as_str()),
            _ => mistake,
        })
    };
    if !scenario.setup.is_empty() {
        run(replica, &scenario.setup, true)?;
    }
    for block in scenario.crowds.iter().flat_map(|crowd| &crowd.blocks) {
        run(replica, &block.statements, false)?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    for invariant in &mut scenario.invariants {
        let mut plain = Connection::open_with_flags_and_vfs(machine.database(), flags, vfs::NAME)
            .map_err(|error| Mistake::new(&invariant.place, error.to_string()))?;
        check(invariant, &engine.eye, &mut plain).map_err(|what| {
            let mistake = Mistake::new(&invariant.place, what);
            if mistake.what.contains("no such table") {
                mistake.hint(hint.as_str())
            } else {
                mistake
            }
        })?;
    }
    Ok(())
}

fn user_tables(reader: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut query = reader.prepare(
        "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')
         AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE 'littoral\\_%' ESCAPE '\\'
         ORDER BY name",
    )?;
    let names = query.query_map([], |row| row.get(0))?;
    names.collect()
}

/// Prepares the statements of a transaction on the user connection; runs them too if they are kept.
fn attempt(
    replica: &mut Replica,
    machine: &Machine,
    statements: &[Statement],
    keep: bool,
) -> Result<(), Mistake> {
    let failed: Arc<Mutex<Option<(usize, String)>>> = Arc::default();
    let texts: Vec<String> = statements.iter().map(|statement| statement.sql.clone()).collect();
    let note = Arc::clone(&failed);
    let job: Job = Box::new(move |tx| {
        for (place, sql) in texts.iter().enumerate() {
            let outcome = match tx.prepare(sql) {
                Ok(mut statement) if keep => statement.run(|_| Ok(())),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                *note.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((place, error.to_string()));
                return Err(error);
            }
        }
        if keep { Ok(()) } else { Err(WriteError::Aborted("the rehearsal is over".to_owned())) }
    });
    let ticket = replica.write(machine.clock.at(0), job);
    loop {
        match replica.poll() {
            Output::Done { ticket: done, result } if done == ticket => {
                if let Some((place, what)) =
                    failed.lock().unwrap_or_else(PoisonError::into_inner).take()
                {
                    return Err(statements[place].mistake(what));
                }
                return match result {
                    Err(error) if keep => Err(statements[0].mistake(error.to_string())),
                    _ => Ok(()),
                };
            }
            Output::WakeAt(_) => return Ok(()),
            _ => {}
        }
    }
}

/// Runs an invariant once, and asks SQLite what it reads.
fn check(
    invariant: &mut Invariant,
    reader: &Connection,
    plain: &mut Connection,
) -> Result<(), String> {
    let told = |error: rusqlite::Error| error.to_string();
    let mut statement = reader.prepare(&invariant.sql).map_err(told)?;
    if !statement.readonly() || statement.column_count() == 0 {
        return Err("it is not a query; expected one SELECT".to_owned());
    }
    if statement.parameter_count() > 0 {
        return Err("it has a parameter, which nothing gives a value".to_owned());
    }
    let mut rows = statement.query([]).map_err(told)?;
    while rows.next().map_err(told)?.is_some() {}
    let reads: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let note = Arc::clone(&reads);
    let listen = move |context: AuthContext<'_>| {
        if let AuthAction::Read { table_name, .. } = context.action {
            note.lock().unwrap_or_else(PoisonError::into_inner).insert(table_name.to_owned());
        }
        Authorization::Allow
    };
    plain.authorizer(Some(listen)).map_err(told)?;
    plain.prepare(&invariant.sql).map_err(told)?;
    invariant.reads =
        reads.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
    Ok(())
}
