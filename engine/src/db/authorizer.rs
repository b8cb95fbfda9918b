//! Which SQL may reach which connection: judged by SQLite's own parser, when a statement is prepared.

use std::sync::Arc;

use rusqlite::hooks::{AuthAction, AuthContext, Authorization, TransactionOperation};

use crate::{
    db::mask::ChangeMask,
    error::WriteError,
    id::SchemaVersion,
    policy::Writers,
    schema::{Registry, catalog::PREFIX},
};

/// The judge of the user connection, and what it has seen of the statement prepared last.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) registry: Arc<Registry>,
    /// Whether this node is the origin, which alone writes `writers = "origin"` tables.
    pub(crate) is_origin: bool,
    /// The engine's own statements are prepared at the moment.
    pub(crate) engine: bool,
    denied: Option<Denied>,
    savepoint: Option<Savepoint>,
    /// SQLite has asked about the statement prepared last.
    asked: bool,
    mask: ChangeMask,
    /// The mask of the statement that runs, until the next one is prepared.
    pub(crate) running: Option<Arc<ChangeMask>>,
}

/// Why the last statement was refused.
#[derive(Debug)]
enum Denied {
    OriginOnly(String),
    SchemaChange(String),
    Forbidden(String),
}

/// A statement about a savepoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Savepoint {
    Begin(String),
    Release(String),
    RollbackTo(String),
}

impl Gate {
    pub(crate) fn new(registry: Arc<Registry>, is_origin: bool) -> Self {
        Self {
            registry,
            is_origin,
            engine: false,
            denied: None,
            savepoint: None,
            asked: false,
            mask: ChangeMask::default(),
            running: None,
        }
    }

    /// Before a statement is prepared.
    pub(crate) fn forget(&mut self) {
        self.denied = None;
        self.savepoint = None;
        self.asked = false;
        self.mask = ChangeMask::default();
        self.running = None;
    }

    /// What the statement prepared last can change; `None` if SQLite did not ask, because the statement
    /// was prepared before.
    pub(crate) fn take_mask(&mut self) -> Option<Arc<ChangeMask>> {
        self.asked.then(|| Arc::new(std::mem::take(&mut self.mask)))
    }

    /// After a statement about a savepoint was prepared.
    pub(crate) fn take_savepoint(&mut self) -> Option<Savepoint> {
        self.savepoint.take()
    }

    /// What to answer where SQLite says `error`.
    pub(crate) fn explain(&mut self, error: rusqlite::Error) -> WriteError {
        match self.denied.take() {
            None => WriteError::Sqlite(error),
            Some(Denied::OriginOnly(table)) => WriteError::OriginOnly { table },
            Some(Denied::SchemaChange(what)) => WriteError::SchemaChange { what },
            Some(Denied::Forbidden(what)) => WriteError::Forbidden { what },
        }
    }

    /// Judges one action of a statement on the user connection.
    pub(crate) fn judge(&mut self, context: &AuthContext<'_>) -> Authorization {
        if self.engine {
            return Authorization::Allow;
        }
        self.asked = true;
        let known = |table: &str| self.registry.position(table.as_bytes()).is_some();
        match (context.action, &self.running) {
            // FTS5 prepares statements of its own, on tables behind its own, while one runs.
            (
                AuthAction::Update { table_name, .. } | AuthAction::Delete { table_name },
                Some(running),
            ) if known(table_name) => running.set_all(),
            (AuthAction::Update { table_name, column_name }, None) => {
                self.mask.add(&self.registry, table_name, column_name);
            }
            (AuthAction::Delete { table_name }, None) => {
                self.mask.add_delete(&self.registry, table_name);
            }
            _ => {}
        }
        match self.denial(context) {
            None => Authorization::Allow,
            Some(denied) => {
                self.denied.get_or_insert(denied);
                Authorization::Deny
            }
        }
    }

    fn denial(&mut self, context: &AuthContext<'_>) -> Option<Denied> {
        let schema_change = |what: &str| Some(Denied::SchemaChange(what.to_owned()));
        let forbidden = |what: &str| Some(Denied::Forbidden(what.to_owned()));
        match context.action {
            AuthAction::Select
            | AuthAction::Read { .. }
            | AuthAction::Function { .. }
            | AuthAction::Recursive => None,
            AuthAction::Insert { table_name }
            | AuthAction::Update { table_name, .. }
            | AuthAction::Delete { table_name } => self.write(table_name),
            AuthAction::Transaction { operation } => forbidden(match operation {
                TransactionOperation::Begin => "BEGIN",
                TransactionOperation::Rollback => "ROLLBACK",
                _ => "COMMIT",
            }),
            AuthAction::Savepoint { operation, savepoint_name } => {
                if is_ours(savepoint_name) {
                    return forbidden("a savepoint whose name begins with littoral_");
                }
                let name = savepoint_name.to_owned();
                self.savepoint = Some(match operation {
                    TransactionOperation::Begin => Savepoint::Begin(name),
                    TransactionOperation::Release => Savepoint::Release(name),
                    _ => Savepoint::RollbackTo(name),
                });
                None
            }
            AuthAction::Pragma { pragma_name, pragma_value } => {
                (!is_reading_pragma(pragma_name, pragma_value))
                    .then(|| Denied::Forbidden(format!("PRAGMA {pragma_name}")))
            }
            AuthAction::Attach { .. } => forbidden("ATTACH or VACUUM"),
            AuthAction::Detach { .. } => forbidden("DETACH"),
            AuthAction::CreateTempTable { .. }
            | AuthAction::CreateTempView { .. }
            | AuthAction::CreateTempIndex { .. }
            | AuthAction::CreateTempTrigger { .. }
            | AuthAction::DropTempTable { .. }
            | AuthAction::DropTempView { .. }
            | AuthAction::DropTempIndex { .. }
            | AuthAction::DropTempTrigger { .. } => forbidden("a temporary object"),
            AuthAction::CreateTable { .. } => schema_change("CREATE TABLE"),
            AuthAction::CreateIndex { .. } => schema_change("CREATE INDEX"),
            AuthAction::CreateView { .. } => schema_change("CREATE VIEW"),
            AuthAction::CreateTrigger { .. } => schema_change("CREATE TRIGGER"),
            AuthAction::CreateVtable { .. } => schema_change("CREATE VIRTUAL TABLE"),
            AuthAction::DropTable { .. } | AuthAction::DropVtable { .. } => {
                schema_change("DROP TABLE")
            }
            AuthAction::DropIndex { .. } => schema_change("DROP INDEX"),
            AuthAction::DropView { .. } => schema_change("DROP VIEW"),
            AuthAction::DropTrigger { .. } => schema_change("DROP TRIGGER"),
            AuthAction::AlterTable { .. } => schema_change("ALTER TABLE"),
            AuthAction::Analyze { .. } => schema_change("ANALYZE"),
            AuthAction::Reindex { .. } => schema_change("REINDEX"),
            _ => forbidden("this statement"),
        }
    }

    fn write(&self, table: &str) -> Option<Denied> {
        // Statements that change the schema write these before they name what they are.
        match table.to_ascii_lowercase().as_str() {
            "sqlite_master" | "sqlite_schema" => {
                return Some(Denied::SchemaChange("a change of the schema".to_owned()));
            }
            "sqlite_temp_master" | "sqlite_temp_schema" => {
                return Some(Denied::Forbidden("a temporary object".to_owned()));
            }
            _ => {}
        }
        let Some(place) = self.registry.position(table.as_bytes()) else {
            // A view is written by its INSTEAD OF triggers, whose own writes are judged in turn. Tables
            // come one entry before their policies, and are not captured until then.
            let reserved = is_ours(table) || table.starts_with("sqlite_");
            let early = self.registry.version == SchemaVersion::default();
            return (reserved || early).then(|| Denied::Forbidden(format!("writing to {table}")));
        };
        let policy = &self.registry.tables()[place].policy;
        (policy.writers == Writers::Origin && !self.is_origin)
            .then(|| Denied::OriginOnly(table.to_owned()))
    }
}

/// Judges one action of a statement on a reader's connection.
pub(crate) fn reader(context: &AuthContext<'_>) -> Authorization {
    let allowed = match context.action {
        AuthAction::Select
        | AuthAction::Read { .. }
        | AuthAction::Function { .. }
        | AuthAction::Recursive
        | AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. } => true,
        AuthAction::Pragma { pragma_name, pragma_value } => {
            is_reading_pragma(pragma_name, pragma_value)
        }
        // SQLite asks for these when a table-valued function is first used.
        AuthAction::CreateVtable { module_name, .. } => {
            module_name.starts_with("pragma_") || module_name.starts_with("json_")
        }
        _ => false,
    };
    if allowed { Authorization::Allow } else { Authorization::Deny }
}

fn is_ours(name: &str) -> bool {
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// Whether a PRAGMA only tells something, in the form it is used.
fn is_reading_pragma(name: &str, value: Option<&str>) -> bool {
    const WITH_ARGUMENT: [&str; 11] = [
        "foreign_key_check",
        "foreign_key_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "quick_check",
        "table_info",
        "table_list",
        "table_xinfo",
        "data_version",
    ];
    const ALONE: [&str; 15] = [
        "application_id",
        "collation_list",
        "compile_options",
        "database_list",
        "encoding",
        "foreign_keys",
        "freelist_count",
        "function_list",
        "journal_mode",
        "module_list",
        "page_count",
        "page_size",
        "pragma_list",
        "schema_version",
        "user_version",
    ];
    let name = name.to_ascii_lowercase();
    WITH_ARGUMENT.contains(&name.as_str()) || (value.is_none() && ALONE.contains(&name.as_str()))
}
