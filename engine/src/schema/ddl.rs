//! The statements of a `schema.sql`: checked one by one at genesis, run on every node.
//!
//! What changes the schema later runs in a write job at the origin; see `db/schema_change.rs`.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use rusqlite::{
    Batch, Connection,
    fallible_iterator::FallibleIterator as _,
    hooks::{AuthAction, AuthContext, Authorization},
};

use crate::{
    entry::TableDeclaration,
    error::GenesisError,
    policy::TablePolicy,
    schema::{self, enroll::is_reserved, functions},
};

/// What genesis makes of a schema and its policies.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) statements: Vec<String>,
    pub(crate) tables: Vec<TableDeclaration>,
}

/// Runs the schema in a scratch database and checks everything that can be wrong with it.
pub(crate) fn plan(
    script: &str,
    policies: &BTreeMap<String, TablePolicy>,
) -> Result<Plan, GenesisError> {
    let scratch_error = |error| GenesisError::Statement { statement: String::new(), error };
    let mut scratch = Connection::open_in_memory().map_err(scratch_error)?;
    scratch.pragma_update(None, "foreign_keys", false).map_err(scratch_error)?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let gate = Arc::clone(&seen);
    scratch
        .authorizer(Some(move |context: AuthContext<'_>| gate.lock().judge(&context)))
        .map_err(scratch_error)?;
    let statements = run_all(&scratch, script, &seen)?;
    scratch.authorizer(None::<fn(AuthContext<'_>) -> Authorization>).map_err(scratch_error)?;

    let tables = schema::declarations(&scratch, policies).map_err(scratch_error)?;
    for name in policies.keys() {
        if !tables.iter().any(|table| table.name.eq_ignore_ascii_case(name)) {
            return Err(GenesisError::NoSuchTable(name.clone()));
        }
    }
    let mut refusals = schema::check(&scratch, &tables).map_err(scratch_error)?;
    let survey = schema::Survey::new(&scratch).map_err(scratch_error)?;
    refusals.extend(schema::check_triggers(&survey, &tables).map_err(scratch_error)?);
    if refusals.is_empty() {
        Ok(Plan { statements, tables })
    } else {
        Err(GenesisError::Refused(refusals))
    }
}

fn run_all(
    scratch: &Connection,
    script: &str,
    seen: &Mutex<Seen>,
) -> Result<Vec<String>, GenesisError> {
    let mut statements = Vec::new();
    let mut batch = Batch::new(scratch, script);
    loop {
        *seen.lock() = Seen::default();
        let next = batch.next();
        let verdict = std::mem::take(&mut *seen.lock());
        let failed = |error: rusqlite::Error, statement: String| match verdict.refused {
            Some(what) => GenesisError::Unsupported { what, statement },
            None => GenesisError::Statement { statement, error },
        };
        let mut statement = match next {
            Ok(None) => return Ok(statements),
            Ok(Some(statement)) => statement,
            Err(error) => return Err(failed(error, after(&statements))),
        };
        let text = statement.expanded_sql().unwrap_or_default().trim().to_owned();
        if verdict.creates_table && verdict.selects {
            let what = "CREATE TABLE AS SELECT".to_owned();
            return Err(GenesisError::Unsupported { what, statement: text });
        }
        if let Some(what) = functions::refused_in(&text) {
            return Err(GenesisError::Unsupported { what, statement: text });
        }
        seen.lock().running = true;
        statement.raw_execute().map_err(|error| failed(error, text.clone()))?;
        statements.push(text);
    }
}

/// Where a statement that cannot even be prepared stands.
fn after(statements: &[String]) -> String {
    match statements.last() {
        None => "the first statement".to_owned(),
        Some(last) => format!("the statement after: {last}"),
    }
}

/// What the authorizer has seen of one statement.
#[derive(Debug, Default)]
struct Seen {
    creates_table: bool,
    selects: bool,
    refused: Option<String>,
    /// It was judged and runs: FTS5 makes its own tables then.
    running: bool,
}

impl Seen {
    fn judge(&mut self, context: &AuthContext<'_>) -> Authorization {
        if self.running {
            return Authorization::Allow;
        }
        if let AuthAction::Function { function_name } = context.action
            && let Some(what) = functions::refused(function_name)
        {
            self.refused.get_or_insert(what);
            return Authorization::Deny;
        }
        let what = match context.action {
            AuthAction::CreateTable { table_name: name }
            | AuthAction::CreateView { view_name: name }
            | AuthAction::CreateIndex { index_name: name, .. }
            | AuthAction::CreateTrigger { trigger_name: name, .. } => {
                self.creates_table |= matches!(context.action, AuthAction::CreateTable { .. });
                // Names beginning with sqlite_ are SQLite's own business: it refuses them itself.
                is_reserved(name).then_some("a name beginning with littoral_")
            }
            AuthAction::Select => {
                self.selects = true;
                None
            }
            AuthAction::Insert { table_name }
            | AuthAction::Update { table_name, .. }
            | AuthAction::Delete { table_name } => {
                // Bookkeeping of the CREATE statements; rows of user tables are written later.
                (!table_name.starts_with("sqlite_")).then_some("a statement that writes rows")
            }
            AuthAction::Read { .. }
            | AuthAction::Function { .. }
            | AuthAction::Recursive
            | AuthAction::Reindex { .. } => None,
            AuthAction::CreateVtable { table_name, module_name } => {
                if !module_name.eq_ignore_ascii_case("fts5") {
                    Some("a virtual table of another module than FTS5")
                } else {
                    is_reserved(table_name).then_some("a name beginning with littoral_")
                }
            }
            AuthAction::CreateTempTable { .. }
            | AuthAction::CreateTempView { .. }
            | AuthAction::CreateTempIndex { .. }
            | AuthAction::CreateTempTrigger { .. } => Some("a temporary object"),
            AuthAction::Pragma { .. } => Some("PRAGMA"),
            AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => {
                Some("a transaction of its own (the schema is one transaction already)")
            }
            _ => Some("a statement other than CREATE TABLE, INDEX, VIEW, TRIGGER or VIRTUAL TABLE"),
        };
        match what {
            None => Authorization::Allow,
            Some(what) => {
                self.refused.get_or_insert_with(|| what.to_owned());
                Authorization::Deny
            }
        }
    }
}
