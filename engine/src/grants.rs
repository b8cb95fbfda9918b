//! [`Grants`]: what somebody may do with the data, table by table.
//!
//! SQLite's own parser asks about every table that a statement touches, also by way of a view, a
//! trigger, a common table expression or a PRAGMA, so nothing is found by looking at the text. The rights
//! are those of whoever runs the statement: a view or a trigger lends nobody its owner's.

use std::collections::BTreeSet;

use rusqlite::hooks::AuthAction;

use crate::{
    db::authorizer::is_reading_pragma,
    schema::{catalog::PREFIX, declaring},
};

/// Which tables a right is given for. SQLite's names are compared without regard to ASCII case.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum TableSet {
    /// No table.
    #[default]
    None,
    /// The tables and views of these names, in lower case.
    Named(BTreeSet<String>),
    /// Every table and view, also later ones, and the schema itself; not the engine's own tables.
    All,
}

/// What somebody may do. The default is nothing.
///
/// A view needs the right for its own name and for what it reads; a trigger's statements need those of
/// whoever fires it. `INSERT OR REPLACE` deletes the rows that are in the way, so it needs `delete` too.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Grants {
    /// Rows may be read. `sqlite_schema` stands for the schema: its text, `PRAGMA table_info` and the like.
    pub read: TableSet,
    /// Rows may be inserted.
    pub insert: TableSet,
    /// Rows may be updated.
    pub update: TableSet,
    /// Rows may be deleted.
    pub delete: TableSet,
    /// The schema and policies may be changed, at the origin.
    pub schema: bool,
    /// The engine's own tables may be read, where old and discarded values of all tables stand.
    pub engine: bool,
}

impl TableSet {
    /// The tables and views of these names. `sqlite_master` is `sqlite_schema` by its old name.
    pub fn named<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Self {
        let names = names.into_iter().map(|name| match name.as_ref() {
            name if is_schema(name) => SCHEMA.to_owned(),
            name => name.to_ascii_lowercase(),
        });
        Self::Named(names.collect())
    }

    /// Whether the table or view of that name is among them.
    pub fn holds(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::Named(names) => names.contains(&name.to_ascii_lowercase()),
            Self::All => true,
        }
    }
}

impl Grants {
    /// Everything that the engine lets anybody do.
    pub fn all() -> Self {
        Self {
            read: TableSet::All,
            insert: TableSet::All,
            update: TableSet::All,
            delete: TableSet::All,
            schema: true,
            engine: true,
        }
    }

    /// What is missing for an action, in words; `None` if it is allowed. `shadows` are the names of the
    /// tables in which full-text indexes keep themselves.
    pub(crate) fn missing(
        &self,
        action: &AuthAction<'_>,
        shadows: &BTreeSet<String>,
    ) -> Option<String> {
        match *action {
            AuthAction::Select
            | AuthAction::Recursive
            | AuthAction::Transaction { .. }
            | AuthAction::Savepoint { .. } => None,
            AuthAction::Function { function_name } => {
                let declares = function_name.eq_ignore_ascii_case(declaring::FUNCTION);
                (declares && !self.schema).then(|| "changing a policy".to_owned())
            }
            AuthAction::Read { table_name, .. } => self.missing_read(table_name, shadows),
            AuthAction::Insert { table_name } => {
                self.missing_write(&self.insert, "inserting into", table_name, shadows)
            }
            AuthAction::Update { table_name, .. } => {
                self.missing_write(&self.update, "updating", table_name, shadows)
            }
            AuthAction::Delete { table_name } => {
                self.missing_write(&self.delete, "deleting from", table_name, shadows)
            }
            // Full-text indexes ask for it.
            AuthAction::Pragma { pragma_name: "data_version", .. } => None,
            AuthAction::Pragma { pragma_name, .. } => {
                (!self.read.holds(SCHEMA)).then(|| format!("PRAGMA {pragma_name}{NEEDS_SCHEMA}"))
            }
            // SQLite asks for it when a table-valued function is first used; reading it is asked apart.
            AuthAction::CreateVtable { module_name, .. } if is_function(module_name) => None,
            _ => (!self.schema).then(|| "changing the schema".to_owned()),
        }
    }

    fn missing_read(&self, table: &str, shadows: &BTreeSet<String>) -> Option<String> {
        let (allowed, needs) = if is_ours(table) {
            (self.engine, NEEDS_ENGINE)
        } else if is_schema(table) || is_pragma_function(table) {
            (self.read.holds(SCHEMA), NEEDS_SCHEMA)
        } else {
            let holds = self.read.holds(table)
                || JSON_FUNCTIONS.contains(&table)
                || owner(table, shadows).is_some_and(|index| self.read.holds(index));
            (holds, "")
        };
        (!allowed).then(|| format!("reading {table}{needs}"))
    }

    fn missing_write(
        &self,
        right: &TableSet,
        what: &str,
        table: &str,
        shadows: &BTreeSet<String>,
    ) -> Option<String> {
        if table.to_ascii_lowercase().starts_with("sqlite_") {
            return (!self.schema).then(|| "changing the schema".to_owned());
        }
        // A change of the index is one of its row, of whatever kind, and was asked as such.
        let allowed = right.holds(table)
            || owner(table, shadows).is_some_and(|index| {
                [&self.insert, &self.update, &self.delete].iter().any(|set| set.holds(index))
            });
        (!allowed).then(|| format!("{what} {table}"))
    }
}

/// What stands for the schema in a [`TableSet`].
const SCHEMA: &str = "sqlite_schema";

/// What to do about it, where the name of what is missing does not say.
const NEEDS_SCHEMA: &str = ", which takes the right to read \"sqlite_schema\",";
const NEEDS_ENGINE: &str = ", which takes the right \"engine\",";

fn is_schema(name: &str) -> bool {
    const NAMES: [&str; 4] = [SCHEMA, "sqlite_master", "sqlite_temp_schema", "sqlite_temp_master"];
    NAMES.iter().any(|schema| schema.eq_ignore_ascii_case(name))
}

fn is_ours(name: &str) -> bool {
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// Table-valued functions that read what they are given, and nothing else. A user's table is told from
/// them by its whole name.
const JSON_FUNCTIONS: [&str; 4] = ["json_each", "json_tree", "jsonb_each", "jsonb_tree"];

fn is_pragma_function(name: &str) -> bool {
    name.strip_prefix("pragma_").is_some_and(|pragma| is_reading_pragma(pragma, None))
}

/// Whether a module gives a table-valued function that touches no table of its own.
pub(crate) fn is_function(module: &str) -> bool {
    module.starts_with("pragma_") || module.starts_with("json_")
}

/// The full-text index that keeps itself in this table.
fn owner<'a>(table: &'a str, shadows: &BTreeSet<String>) -> Option<&'a str> {
    if !shadows.contains(&table.to_ascii_lowercase()) {
        return None;
    }
    table.rsplit_once('_').map(|(index, _)| index)
}
