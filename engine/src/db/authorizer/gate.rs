//! [`Gate`]: the judge of the user connection.

use std::{collections::BTreeSet, sync::Arc};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization, TransactionOperation};

use super::{
    Restriction, is_ours,
    refused::{is_reading_pragma, refused},
};
use crate::{
    db::mask::ChangeMask,
    error::WriteError,
    id::{NodeId, TableId},
    policy::{Consistency, Writers},
    schema::{Registry, Table, catalog::PREFIX, change::Action, declaring, words},
    testing::{Bug, planted},
};

/// The judge of the user connection, and what it has seen of the statement prepared last.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) registry: Arc<Registry>,
    /// Who is the origin, which alone writes `writers = "origin"` tables and changes the schema.
    pub(crate) origin: Origin,
    /// The engine's own statements are prepared at the moment.
    pub(crate) engine: bool,
    /// A statement that changes the schema runs.
    pub(crate) changing: bool,
    /// The apply connection is without the triggers that are mirrored there, because the schema changes.
    pub(crate) unmirrored: bool,
    /// Another connection has changed the schema, and the user's has not read it since.
    pub(crate) stale: bool,
    /// It judges a migration: tables may be rebuilt by way of temporary ones, and the words for
    /// transactions and foreign keys, which the migration has anyway, do nothing.
    pub(crate) migrating: bool,
    /// Tables that a freeze holds still everywhere, so that they may change in any way.
    pub(crate) thawed: BTreeSet<TableId>,
    /// The statement to be prepared is ANALYZE, which writes nothing but SQLite's own statistics.
    pub(crate) analyzing: bool,
    /// The statement prepared last begins or ends a transaction.
    transaction: Option<&'static str>,
    /// A job of a group has to run in a transaction of its own.
    pub(crate) wants_alone: bool,
    denied: Option<Denied>,
    savepoint: Option<Savepoint>,
    /// The statement prepared last inserts into a table that must be given its keys.
    needs_key: bool,
    action: Option<Action>,
    /// The statement prepared last selects: with CREATE TABLE, that is CREATE TABLE AS SELECT.
    selects: bool,
    /// SQLite has asked about the statement prepared last.
    asked: bool,
    mask: ChangeMask,
    /// What the job may do, and the tables of full-text indexes; `None` for everything.
    restriction: Option<Restriction>,
    /// A table whose rows the statement prepared last must not replace.
    keeps: Option<String>,
    /// The mask of the statement that runs, until the next one is prepared.
    pub(crate) running: Option<Arc<ChangeMask>>,
}

/// Who is the origin, as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This node.
    Here,
    /// Another node, if it is known which.
    Elsewhere(Option<NodeId>),
}

/// Why the last statement was refused.
#[derive(Debug)]
enum Denied {
    OriginOnly(String),
    Frozen(String),
    SchemaChange(String),
    Forbidden(String),
    NotGranted(String),
}

/// A statement about a savepoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Savepoint {
    Begin(String),
    Release(String),
    RollbackTo(String),
}

impl Gate {
    pub(crate) fn new(registry: Arc<Registry>, origin: Origin) -> Self {
        Self {
            registry,
            origin,
            engine: false,
            changing: false,
            unmirrored: false,
            stale: true,
            migrating: false,
            thawed: BTreeSet::new(),
            analyzing: false,
            transaction: None,
            wants_alone: false,
            denied: None,
            savepoint: None,
            needs_key: false,
            action: None,
            selects: false,
            asked: false,
            mask: ChangeMask::default(),
            restriction: None,
            keeps: None,
            running: None,
        }
    }

    /// Before a statement is prepared.
    pub(crate) fn forget(&mut self) {
        self.denied = None;
        self.savepoint = None;
        self.needs_key = false;
        self.action = None;
        self.selects = false;
        self.transaction = None;
        self.analyzing = false;
        self.asked = false;
        self.keeps = None;
        self.mask = ChangeMask::default();
        self.running = None;
    }

    /// From here on statements are judged by what somebody may do, or no more.
    pub(crate) fn restrict(&mut self, restriction: Option<Restriction>) {
        self.restriction = restriction;
    }

    /// Whether statements are judged by what somebody may do, so that none may be kept prepared.
    pub(crate) const fn is_restricted(&self) -> bool {
        self.restriction.is_some()
    }

    /// After a statement was prepared that can replace rows.
    ///
    /// # Errors
    /// If those of a table must not be deleted: SQLite asks nobody about rows that are replaced.
    pub(crate) fn check_replacing(&mut self, sql: &str) -> Result<(), WriteError> {
        match self.keeps.take() {
            Some(table) if words::says_replace(sql) => {
                let what = format!("replacing rows of {table}, which deletes them,");
                Err(WriteError::NotGranted { what })
            }
            _ => Ok(()),
        }
    }

    /// What the statement prepared last can change; `None` if SQLite did not ask, because the statement
    /// was prepared before.
    pub(crate) fn take_mask(&mut self) -> Option<Arc<ChangeMask>> {
        self.asked.then(|| Arc::new(std::mem::take(&mut self.mask)))
    }

    /// Whether the statement that was just prepared inserts into a table that must be given its keys.
    pub(crate) fn take_needs_key(&mut self) -> bool {
        std::mem::take(&mut self.needs_key)
    }

    /// After a statement about a savepoint was prepared.
    pub(crate) fn take_savepoint(&mut self) -> Option<Savepoint> {
        self.savepoint.take()
    }

    /// After a statement that changes the schema was prepared: what it does to it.
    ///
    /// # Errors
    /// If it is CREATE TABLE AS SELECT, whose rows no hook tells.
    pub(crate) fn take_action(&mut self) -> Result<Option<Action>, WriteError> {
        if matches!(self.action, Some(Action::CreateTable(_))) && self.selects {
            let what = "CREATE TABLE ... AS SELECT, whose rows would not be captured (run CREATE \
                        TABLE, then INSERT ... SELECT),"
                .to_owned();
            return Err(WriteError::Forbidden { what });
        }
        Ok(self.action.take())
    }

    /// After a statement of a migration was prepared: the word, if it begins or ends a transaction.
    pub(crate) fn take_transaction(&mut self) -> Option<&'static str> {
        self.transaction.take()
    }

    /// What to answer where SQLite says `error`.
    pub(crate) fn explain(&mut self, error: rusqlite::Error) -> WriteError {
        match self.denied.take() {
            None => WriteError::Sqlite(error),
            Some(Denied::OriginOnly(table)) => WriteError::OriginOnly { table },
            Some(Denied::Frozen(table)) => {
                WriteError::SchemaChanging { table, waiting_for: Vec::new() }
            }
            Some(Denied::SchemaChange(what)) => {
                let origin = match &self.origin {
                    Origin::Here => None,
                    Origin::Elsewhere(origin) => origin.clone(),
                };
                WriteError::SchemaChange { what, origin }
            }
            Some(Denied::Forbidden(what)) => WriteError::Forbidden { what },
            Some(Denied::NotGranted(what)) => WriteError::NotGranted { what },
        }
    }

    /// Judges one action of a statement on the user connection.
    pub(crate) fn judge(&mut self, context: &AuthContext<'_>) -> Authorization {
        // A statement that was judged makes tables of its own as it runs, if it makes an FTS5 index.
        if self.engine || self.changing {
            return Authorization::Allow;
        }
        self.asked = true;
        let known = |table: &str| self.registry.position(table.as_bytes()).is_some();
        match (context.action, &self.running) {
            // FTS5 prepares statements of its own, on tables behind its own, while one runs.
            (
                AuthAction::Insert { table_name }
                | AuthAction::Update { table_name, .. }
                | AuthAction::Delete { table_name },
                Some(running),
            ) if known(table_name) => {
                running.set_all();
                if let AuthAction::Delete { .. } = context.action {
                    running.add_delete(&self.registry, table_name);
                }
            }
            (AuthAction::Update { table_name, column_name }, None) => {
                self.mask.add(&self.registry, table_name, column_name);
            }
            (AuthAction::Insert { table_name }, None) => {
                self.mask.add_insert(&self.registry, table_name);
                let table = self.registry.position(table_name.as_bytes());
                let table = table.map(|place| &self.registry.tables()[place]);
                self.needs_key |= table.is_some_and(Table::is_given_its_key);
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
        if let Some(what) = refused(&context.action) {
            return Some(Denied::Forbidden(what));
        }
        if let Some(restriction) = &self.restriction {
            if let Some(what) = restriction.missing(&context.action) {
                return Some(Denied::NotGranted(what));
            }
            if let AuthAction::Insert { table_name } | AuthAction::Update { table_name, .. } =
                context.action
                && !restriction.grants.delete.holds(table_name)
            {
                self.keeps.get_or_insert_with(|| table_name.to_owned());
            }
        }
        let forbidden = |what: &str| Some(Denied::Forbidden(what.to_owned()));
        // ALTER TABLE looks whether a temporary object must follow.
        if context.database_name == Some("temp") && self.action.is_none() && writes(&context.action)
        {
            let shadows = match context.action {
                AuthAction::CreateTempTable { table_name: name }
                | AuthAction::CreateTempView { view_name: name } => {
                    is_ours(name) || self.registry.position(name.as_bytes()).is_some()
                }
                _ => false,
            };
            if shadows {
                return forbidden("a temporary table with the name of another table");
            }
            return if self.migrating { None } else { forbidden("a temporary object") };
        }
        // Its tables are SQLite's: each node has its own, and nothing of them replicates.
        if self.analyzing {
            return None;
        }
        match context.action {
            AuthAction::Select => {
                self.selects = true;
                None
            }
            AuthAction::Function { function_name }
                if function_name.eq_ignore_ascii_case(declaring::FUNCTION) =>
            {
                self.change("littoral_policy()", "", Action::Policy)
            }
            AuthAction::Read { table_name, .. } => self.read(table_name),
            AuthAction::Function { .. } | AuthAction::Recursive => None,
            AuthAction::Insert { table_name }
            | AuthAction::Update { table_name, .. }
            | AuthAction::Delete { table_name } => self.write(table_name),
            AuthAction::Transaction { operation } => {
                let word = match operation {
                    TransactionOperation::Begin => "BEGIN",
                    TransactionOperation::Rollback => "ROLLBACK",
                    _ => "COMMIT",
                };
                self.transaction = Some(word);
                if self.migrating { None } else { forbidden(word) }
            }
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
                let allowed = self.migrating || is_reading_pragma(pragma_name, pragma_value);
                (!allowed).then(|| Denied::Forbidden(format!("PRAGMA {pragma_name}")))
            }
            AuthAction::CreateTempTable { .. }
            | AuthAction::CreateTempView { .. }
            | AuthAction::CreateTempIndex { .. }
            | AuthAction::CreateTempTrigger { .. }
            | AuthAction::DropTempTable { .. }
            | AuthAction::DropTempView { .. }
            | AuthAction::DropTempIndex { .. }
            | AuthAction::DropTempTrigger { .. } => {
                if self.migrating {
                    None
                } else {
                    forbidden("a temporary object")
                }
            }
            AuthAction::CreateTable { table_name } => {
                let action = Action::CreateTable(table_name.to_owned());
                self.change("CREATE TABLE", table_name, action)
            }
            AuthAction::DropTable { table_name } => {
                let action = Action::DropTable(table_name.to_owned());
                self.change("DROP TABLE", table_name, action)
            }
            AuthAction::AlterTable { table_name, .. } => {
                let action = Action::AlterTable(table_name.to_owned());
                self.change("ALTER TABLE", table_name, action)
            }
            AuthAction::CreateIndex { table_name, .. } => {
                let action = Action::CreateIndex(table_name.to_owned());
                self.change("CREATE INDEX", table_name, action)
            }
            AuthAction::CreateTrigger { table_name, .. } => {
                self.change("CREATE TRIGGER", table_name, Action::Other)
            }
            AuthAction::CreateView { view_name } => {
                self.change("CREATE VIEW", view_name, Action::Other)
            }
            AuthAction::DropIndex { table_name, .. } => {
                self.change("DROP INDEX", table_name, Action::Other)
            }
            AuthAction::DropTrigger { table_name, .. } => {
                self.change("DROP TRIGGER", table_name, Action::Other)
            }
            AuthAction::DropView { view_name } => {
                self.change("DROP VIEW", view_name, Action::Other)
            }
            AuthAction::CreateVtable { table_name, module_name } => {
                if module_name.eq_ignore_ascii_case("fts5") {
                    self.change("CREATE VIRTUAL TABLE", table_name, Action::Other)
                } else {
                    forbidden("a virtual table of another module than FTS5")
                }
            }
            AuthAction::DropVtable { table_name, .. } => {
                self.change("DROP TABLE", table_name, Action::Other)
            }
            AuthAction::Analyze { .. } => forbidden("ANALYZE with other statements in one script"),
            // CREATE INDEX asks for it too.
            AuthAction::Reindex { .. } if self.action.is_some() => None,
            AuthAction::Reindex { .. } => forbidden(
                "REINDEX (DROP INDEX and CREATE INDEX, at the origin, make an index anew on all nodes)",
            ),
            _ => forbidden("this statement"),
        }
    }

    /// Judges a write that SQLite asks nobody about.
    pub(crate) fn judge_write(&mut self, table: &str) -> Result<(), WriteError> {
        let action = AuthAction::Update { table_name: table, column_name: "" };
        let missing = self.restriction.as_ref().and_then(|r| r.missing(&action));
        self.denied = missing.map(Denied::NotGranted).or_else(|| self.write(table));
        match self.denied {
            None => Ok(()),
            Some(_) => Err(self.explain(rusqlite::Error::InvalidQuery)),
        }
    }

    /// Judges the declaration of a policy that no statement makes.
    pub(crate) fn judge_declaring(&self) -> Result<(), WriteError> {
        match &self.restriction {
            Some(restriction) if !restriction.grants.schema => {
                Err(WriteError::NotGranted { what: "changing a policy".to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Judges a change of the schema that concerns an object of that name.
    fn change(&mut self, what: &str, name: &str, action: Action) -> Option<Denied> {
        if self.origin != Origin::Here {
            return Some(Denied::SchemaChange(what.to_owned()));
        }
        if is_ours(name) {
            let what = format!("{what} with a name that begins with {PREFIX}");
            return Some(Denied::Forbidden(what));
        }
        // A dropped table takes its triggers with it; the first thing that is named is the statement's.
        self.action.get_or_insert(action);
        None
    }

    /// Reads of `origin-strong` tables are the origin's.
    fn read(&self, table: &str) -> Option<Denied> {
        if self.origin == Origin::Here || planted(Bug::StrongJobHere) {
            return None;
        }
        let place = self.registry.position(table.as_bytes())?;
        let strong = self.registry.tables()[place].policy.consistency == Consistency::OriginStrong;
        strong.then(|| Denied::OriginOnly(table.to_owned()))
    }

    fn write(&self, table: &str) -> Option<Denied> {
        let lower = table.to_ascii_lowercase();
        // Statements that change the schema write SQLite's own tables, in part before they name what they
        // are; other statements cannot write these two, SQLite sees to that.
        if matches!(lower.as_str(), "sqlite_master" | "sqlite_schema") {
            return (self.origin != Origin::Here)
                .then(|| Denied::SchemaChange("this statement".to_owned()));
        }
        if lower.starts_with("sqlite_") && self.action.is_some() {
            return None;
        }
        if matches!(lower.as_str(), "sqlite_temp_master" | "sqlite_temp_schema") {
            if self.migrating {
                return None;
            }
            return Some(Denied::Forbidden("a temporary object".to_owned()));
        }
        let Some(place) = self.registry.position(table.as_bytes()) else {
            // A view is written by its INSTEAD OF triggers, whose own writes are judged in turn.
            let reserved = is_ours(table) || lower.starts_with("sqlite_");
            return reserved.then(|| Denied::Forbidden(format!("writing to {table}")));
        };
        let policy = &self.registry.tables()[place].policy;
        let elsewhere = policy.consistency != Consistency::Local
            && policy.writers == Writers::Origin
            && self.origin != Origin::Here;
        if elsewhere {
            return Some(Denied::OriginOnly(table.to_owned()));
        }
        let id = self.registry.tables()[place].id;
        let waits = self.registry.is_frozen(id)
            && !self.thawed.contains(&id)
            && !planted(Bug::NoTableFreeze);
        waits.then(|| Denied::Frozen(table.to_owned()))
    }
}

/// Whether an action changes something in the schema that it names.
fn writes(action: &AuthAction<'_>) -> bool {
    !matches!(
        action,
        AuthAction::Select
            | AuthAction::Read { .. }
            | AuthAction::Function { .. }
            | AuthAction::Recursive
            | AuthAction::Pragma { .. }
    )
}
