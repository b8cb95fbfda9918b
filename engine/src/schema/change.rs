//! What a change of the schema makes of tables: which ids are kept, given and gone, and what may happen
//! at once.
//!
//! Running the statement is the business of `db`; this looks at the schema before and after it.
//!
//! Invariants:
//! - an id is given once; a renamed table or column keeps its own;
//! - after a change every table can replicate as declared, or the change is refused;
//! - a multi-writer table changes at once only in ways that no write under way elsewhere can notice:
//!   it keeps its columns and how they merge, and what is added begins alike on every node.
//!
//! `docs/schema.md` says the same to users.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension};

use crate::{
    entry::{TableChange, TableDeclaration},
    error::WriteError,
    id::{ColumnId, Lsn, SchemaVersion, TableId},
    policy::{ColumnType, PERSONAL_VALUE, TablePolicy},
    schema::{
        Column, Refusal, Registry, Table, catalog, elsewhere, enroll, shape::ColumnShape,
        survey::Survey, trigger,
    },
    sqlite::quoted,
};

/// What a statement does to the schema, as SQLite's authorizer names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    CreateTable(String),
    DropTable(String),
    AlterTable(String),
    /// An index on this table.
    CreateIndex(String),
    /// A view, a trigger, the end of an index: tables stay as they are.
    Other,
    /// A policy is declared by a call of `littoral_policy()`.
    Policy,
}

/// Where in a transaction a change stands.
#[derive(Debug)]
pub(crate) struct Scope {
    /// The tables when the transaction began.
    pub(crate) base: Arc<Registry>,
    /// The tables before this statement.
    pub(crate) before: Arc<Registry>,
    /// Where the transaction's entry will stand.
    pub(crate) lsn: Lsn,
    /// A table that is made anew under the name of one dropped before is that one: migrations write so.
    pub(crate) passes_on: bool,
    /// Tables that a freeze holds still everywhere, so that they may change in any way.
    pub(crate) thawed: BTreeSet<TableId>,
}

/// What became of the tables.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) changes: Vec<TableChange>,
    pub(crate) registry: Arc<Registry>,
    /// Statements that make sets of what columns declared so hold already.
    pub(crate) respelling: Vec<String>,
}

impl Scope {
    /// Takes a statement that has just run into the catalog.
    ///
    /// # Errors
    /// Why the schema may not be what it now is; the statement must be rolled back.
    pub(crate) fn after(
        &self,
        conn: &Connection,
        action: &Action,
        statement: &str,
    ) -> Result<Changed, WriteError> {
        if let Action::AlterTable(name) = action
            && let Some(table) = self.before.by_name(name)
            && self.is_live(table.id)
            && has_word(statement, "CHECK")
        {
            let what = "another CHECK".to_owned();
            return Err(WriteError::NeedsFreeze { table: name.clone(), what });
        }
        let survey = Survey::new(conn)?;
        let changes = self.changes(&survey, action)?;
        let indexed = match action {
            Action::CreateIndex(table) => self.before.by_name(table).map(|table| table.id),
            _ => None,
        };
        if let Some(refusal) = self.fails_elsewhere(&survey, action, statement)? {
            return Err(WriteError::Refused(vec![refusal]));
        }
        self.settle(&survey, changes, indexed)
    }

    /// Why rows of other nodes could be in the way of a statement on a `local` table.
    fn fails_elsewhere(
        &self,
        survey: &Survey<'_>,
        action: &Action,
        statement: &str,
    ) -> rusqlite::Result<Option<Refusal>> {
        let (Action::CreateIndex(name) | Action::AlterTable(name)) = action else {
            return Ok(None);
        };
        let was_local = |table: &&Table| self.base.by_id(table.id).is_some_and(Table::is_local);
        let Some(table) = self.before.by_name(name).filter(was_local) else { return Ok(None) };
        match action {
            Action::CreateIndex(_) => elsewhere::index(survey.conn(), table),
            // Under another name now, and otherwise the same.
            _ if survey.user_tables().all(|name| name != table.name) => Ok(None),
            _ => elsewhere::column(survey, table, statement),
        }
    }

    /// Declares a policy.
    ///
    /// # Errors
    /// Why the table cannot have it, or not at once.
    pub(crate) fn declare(
        &self,
        conn: &Connection,
        table: &str,
        policy: TablePolicy,
    ) -> Result<Changed, WriteError> {
        let Some(known) = self.before.by_name(table) else {
            return Err(WriteError::NoSuchTable { table: table.to_owned() });
        };
        let mut declaration = known.declaration();
        declaration.policy = enroll::with_names_of(policy, &declaration.columns);
        if declaration.policy == known.policy {
            let registry = Arc::clone(&self.before);
            return Ok(Changed { changes: Vec::new(), registry, respelling: Vec::new() });
        }
        let mut changes = Vec::new();
        if self.merges_otherwise(known, &declaration.policy) {
            changes.push(TableChange::Dropped(known.id));
        }
        changes.push(TableChange::Declared(declaration));
        self.settle(&Survey::new(conn)?, changes, None)
    }

    /// Whether a table begins anew with a policy: clocks from before would mean nothing.
    fn merges_otherwise(&self, known: &Table, policy: &TablePolicy) -> bool {
        let retyped = |column: &&Column| {
            policy.merge_word(&column.name) != known.policy.merge_word(&column.name)
        };
        // A column that is new in this transaction has no clocks.
        let had = self.base.by_id(known.id).map_or(ColumnId(0), |table| table.next_column);
        known.is_multi_writer() != policy.is_multi_writer()
            || known.is_multi_writer()
                && known.cells.iter().filter(retyped).any(|column| column.id < had)
    }

    fn settle(
        &self,
        survey: &Survey<'_>,
        changes: Vec<TableChange>,
        indexed: Option<TableId>,
    ) -> Result<Changed, WriteError> {
        let conn = survey.conn();
        catalog::carry_out(conn, &changes, self.lsn)?;
        catalog::set_version(conn, SchemaVersion(self.before.version.0 + 1))?;
        // Also for an index or a trigger, of which the registry knows what they are in the way of.
        let registry = Arc::new(Registry::load_with(survey)?);
        let declared = changes.iter().filter_map(|change| match change {
            TableChange::Declared(table) => Some(table.id),
            TableChange::Dropped(_) => None,
        });
        let concerned: BTreeSet<TableId> = declared.chain(indexed).collect();
        // As declared, and not as loaded, which leaves out what a policy says of columns there are not.
        let as_declared = |table: &Table| {
            let declared = changes.iter().find_map(|change| match change {
                TableChange::Declared(declared) if declared.id == table.id => Some(declared),
                _ => None,
            });
            declared.cloned().unwrap_or_else(|| table.declaration())
        };
        let tables: Vec<TableDeclaration> = registry.tables().iter().map(as_declared).collect();
        let mut refusals = enroll::check_some(survey, &tables, &concerned)?;
        refusals.extend(trigger::check(survey, &tables)?);
        let mut respelling = Vec::new();
        for table in registry.tables().iter().filter(|table| table.has_sets) {
            if concerned.contains(&table.id) && indexed != Some(table.id) {
                let before = self.before.by_id(table.id);
                let was_set = |column: &Column| {
                    before.is_some_and(|old| {
                        let place = old.cell(column.id);
                        place.is_some_and(|place| old.cells[place].merge == ColumnType::Set)
                    })
                };
                respelling.append(&mut enroll::check_sets(conn, table, was_set, &mut refusals)?);
            }
        }
        if !refusals.is_empty() {
            return Err(WriteError::Refused(refusals));
        }
        self.judge(survey, &registry)?;
        self.check_counters(conn, &changes, &registry)?;
        Ok(Changed { changes, registry, respelling })
    }

    /// Refuses a counter over values that nobody can count up.
    fn check_counters(
        &self,
        conn: &Connection,
        changes: &[TableChange],
        after: &Registry,
    ) -> Result<(), WriteError> {
        for change in changes {
            let TableChange::Declared(declared) = change else { continue };
            let Some(table) = after.by_id(declared.id) else { continue };
            let counted_before = |column: &Column| {
                let before = self.before.by_id(table.id);
                before.and_then(|old| Some(old.cells[old.cell(column.id)?].merge))
                    == Some(ColumnType::Counter)
            };
            let counters = table.cells.iter().filter(|c| c.merge == ColumnType::Counter);
            for column in counters.filter(|column| !counted_before(column)) {
                if let Some((row, class)) = not_an_integer(conn, table, &column.name)? {
                    return Err(WriteError::Value {
                        table: table.name.clone(),
                        column: column.name.clone(),
                        what: format!(
                            "a counter holds 64-bit integers only, and the row with {row} has a {class} \
                             in it; make that an integer first"
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    /// What the statement did to tables.
    fn changes(
        &self,
        survey: &Survey<'_>,
        action: &Action,
    ) -> Result<Vec<TableChange>, WriteError> {
        let names: Vec<&str> = survey.user_tables().collect();
        let is_there = |table: &Table| names.contains(&table.name.as_str());
        let new = || {
            let known = |name: &str| self.before.tables().iter().any(|table| table.name == name);
            names.iter().copied().find(|name| !known(name))
        };
        match action {
            Action::CreateTable(_) => {
                let Some(name) = new() else { return Ok(Vec::new()) };
                let declaration = match self.dropped(name).filter(|_| self.passes_on) {
                    Some(old) => succeed(survey, old, name)?,
                    None => enroll::declaration(
                        survey,
                        self.before.next_table,
                        name,
                        TablePolicy::default(),
                    )?,
                };
                Ok(vec![TableChange::Declared(declaration)])
            }
            Action::DropTable(_) => Ok(self
                .before
                .tables()
                .iter()
                .filter(|table| !is_there(table))
                .map(|table| TableChange::Dropped(table.id))
                .collect()),
            Action::AlterTable(name) => {
                let Some(table) = self.before.by_name(name) else { return Ok(Vec::new()) };
                if is_there(table) {
                    return Ok(altered(survey, table)?);
                }
                let Some(name) = new() else { return Ok(Vec::new()) };
                // Made in this transaction, and now in the place of a table dropped in it: a table
                // that is rebuilt, as ALTER TABLE cannot do it.
                if table.id >= self.base.next_table
                    && let Some(old) = self.dropped(name)
                {
                    let declaration = succeed(survey, old, name)?;
                    return Ok(vec![
                        TableChange::Dropped(table.id),
                        TableChange::Declared(declaration),
                    ]);
                }
                let renamed = TableDeclaration { name: name.to_owned(), ..table.declaration() };
                Ok(vec![TableChange::Declared(renamed)])
            }
            Action::CreateIndex(_) | Action::Other | Action::Policy => Ok(Vec::new()),
        }
    }

    /// The table of that name that the transaction has dropped.
    fn dropped(&self, name: &str) -> Option<&Table> {
        self.base.by_name(name).filter(|table| self.before.by_id(table.id).is_none())
    }

    /// Whether other nodes may be writing to the table.
    fn is_live(&self, id: TableId) -> bool {
        self.base.by_id(id).is_some_and(Table::is_multi_writer) && !self.thawed.contains(&id)
    }

    /// Refuses a change that must not meet writes under way elsewhere.
    fn judge(&self, survey: &Survey<'_>, after: &Registry) -> Result<(), WriteError> {
        for old in self.base.tables().iter().filter(|table| table.is_local()) {
            if after.by_id(old.id).is_some_and(|new| !new.is_local()) {
                return Err(WriteError::Policy(format!(
                    "table {:?} is \"local\": every node has rows of its own in it, which would stay \
                     different; create a new table and insert from this one",
                    old.name
                )));
            }
        }
        for old in self.base.tables().iter().filter(|table| self.is_live(table.id)) {
            let new = after.by_id(old.id);
            if let Some(what) = unquiet(survey, old, new)? {
                return Err(WriteError::NeedsFreeze { table: old.name.clone(), what });
            }
        }
        Ok(())
    }
}

/// How a table differs from what it was in a way that a write elsewhere could notice.
fn unquiet(
    survey: &Survey<'_>,
    old: &Table,
    new: Option<&Table>,
) -> rusqlite::Result<Option<String>> {
    let Some(new) = new else { return Ok(Some("dropping the table".to_owned())) };
    if !new.is_multi_writer() {
        return Ok(Some(format!("writers = {:?}", new.policy.writers.as_str())));
    }
    let ids = |table: &Table| table.key.iter().map(|column| column.id).collect::<Vec<_>>();
    if ids(old) != ids(new) {
        return Ok(Some("another key".to_owned()));
    }
    for column in &old.cells {
        let Some(now) = new.cell(column.id).map(|place| &new.cells[place]) else {
            return Ok(Some(format!("dropping column {:?}", column.name)));
        };
        if new.policy.merge_word(&now.name) != old.policy.merge_word(&column.name) {
            return Ok(Some(format!("another type of column {:?}", column.name)));
        }
    }
    let shape = survey.shape(&new.name)?;
    for column in new.cells.iter().filter(|column| old.cell(column.id).is_none()) {
        let declared = shape.columns.iter().find(|declared| declared.name == column.name);
        let default = declared.and_then(|column| column.default.as_deref());
        let default = default.map_or("NULL", str::trim);
        let not_null = declared.is_some_and(|column| column.not_null);
        let is_null = default.eq_ignore_ascii_case("NULL") && !not_null;
        // A row of somebody who does not know the column merges with one of somebody who does: the
        // former's must be worth nothing.
        let alike = match column.merge {
            ColumnType::Lww if new.policy.groups.contains_key(&column.name) => false,
            ColumnType::Lww => is_null || is_constant(default),
            ColumnType::Counter => default == "0",
            ColumnType::Max | ColumnType::Min => is_null,
            ColumnType::Set => is_null || default == "'[]'",
        };
        let fits = || match declared.filter(|_| shape.strict) {
            Some(column) => column.takes_default(survey.conn()),
            None => Ok(true),
        };
        if !alike || !fits()? {
            return Ok(Some(format!(
                "a new column {:?} that does not begin with the same value in every row",
                column.name
            )));
        }
    }
    Ok(None)
}

/// The key of a row that holds something else than an integer in a column, and what that is.
fn not_an_integer(
    conn: &Connection,
    table: &Table,
    column: &str,
) -> rusqlite::Result<Option<(String, String)>> {
    let shown = |part: &Column| match table.is_personal(part) {
        true => literal(&format!("{} = {PERSONAL_VALUE}", part.name)),
        false => format!("{} || ' = ' || quote({})", literal(&part.name), quoted(&part.name)),
    };
    let key: Vec<String> = table.key.iter().map(shown).collect();
    let (key, table, column) = (key.join(" || ', ' || "), quoted(&table.name), quoted(column));
    conn.query_row(
        &format!(
            "SELECT {key}, upper(typeof({column})) FROM {table}
             WHERE typeof({column}) <> 'integer' LIMIT 1"
        ),
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
    .optional()
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The table that takes the place of another: it has its id and its policy, and so have its columns,
/// by name.
fn succeed(survey: &Survey<'_>, old: &Table, name: &str) -> Result<TableDeclaration, WriteError> {
    if old.is_local() {
        return Err(WriteError::Refused(vec![elsewhere::rebuild(old)]));
    }
    let known = old.declaration();
    let mut next = catalog::next_column(survey.conn(), old.id)?.0;
    let mut columns = Vec::new();
    for column in survey.shape(name)?.stored() {
        let kept = known.columns.iter().find(|(_, old)| old.eq_ignore_ascii_case(&column.name));
        let id = kept.map_or_else(
            || {
                next += 1;
                ColumnId(next - 1)
            },
            |(id, _)| *id,
        );
        columns.push((id, column.name.clone()));
    }
    columns.sort_by_key(|(id, _)| *id);
    let policy = carried_over(&known, &columns);
    Ok(TableDeclaration { id: old.id, name: name.to_owned(), policy, columns })
}

/// The policy for columns that keep their types by their ids, whatever their names are now.
fn carried_over(known: &TableDeclaration, columns: &[(ColumnId, String)]) -> TablePolicy {
    let mut policy = TablePolicy {
        columns: BTreeMap::new(),
        groups: BTreeMap::new(),
        personal: BTreeSet::new(),
        ..known.policy.clone()
    };
    for (id, name) in columns {
        if let Some((_, before)) = known.columns.iter().find(|(old, _)| old == id) {
            if let Some(merge) = known.policy.columns.get(before) {
                policy.columns.insert(name.clone(), *merge);
            }
            if let Some(group) = known.policy.groups.get(before) {
                policy.groups.insert(name.clone(), group.clone());
            }
            if known.policy.personal.contains(before) {
                policy.personal.insert(name.clone());
            }
        }
    }
    policy
}

/// A table whose columns ALTER TABLE has changed: one renamed, one more at the end, or one fewer.
fn altered(survey: &Survey<'_>, table: &Table) -> rusqlite::Result<Vec<TableChange>> {
    let old = table.columns();
    let shape = survey.shape(&table.name)?;
    let now: Vec<&ColumnShape> = shape.stored().collect();
    let mut next = table.next_column.0;
    let mut declaration = table.declaration();
    let mut columns = Vec::new();
    for (place, column) in now.iter().enumerate() {
        let before = if old.len() == now.len() {
            old.get(place).copied()
        } else {
            old.iter().find(|old| old.name == column.name).copied()
        };
        let id = before.map_or_else(
            || {
                next += 1;
                ColumnId(next - 1)
            },
            |column| column.id,
        );
        columns.push((id, column.name.clone()));
    }
    columns.sort_by_key(|(id, _)| *id);
    if columns == declaration.columns {
        return Ok(Vec::new());
    }
    declaration.policy = carried_over(&declaration, &columns);
    declaration.columns = columns;
    Ok(vec![TableChange::Declared(declaration)])
}

/// Whether every row gets the same value, which is not NULL, whenever and wherever.
pub(super) fn is_constant(default: &str) -> bool {
    let text =
        default.strip_prefix('(').and_then(|t| t.strip_suffix(')')).unwrap_or(default).trim();
    let word = text.to_ascii_uppercase();
    let quoted = |start: &str| {
        text.len() > start.len()
            && word.starts_with(start)
            && text.ends_with('\'')
            && !text[start.len()..text.len() - 1].replace("''", "").contains('\'')
    };
    let number = text.trim_start_matches(['+', '-']).trim_start();
    matches!(word.as_str(), "TRUE" | "FALSE")
        || quoted("'")
        || quoted("X'")
        || (number.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            && number.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c)))
}

/// Whether a statement has that word outside of strings, names in quotes and comments.
pub(super) fn has_word(sql: &str, word: &str) -> bool {
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let behind = |start: &str, end: &str| {
            rest[start.len()..].split_once(end).map_or("", |(_, behind)| behind)
        };
        if rest.starts_with("--") {
            rest = behind("--", "\n");
        } else if rest.starts_with("/*") {
            rest = behind("/*", "*/");
        } else if let '\'' | '"' | '`' = first {
            // A doubled quote reads as two strings, which comes to the same.
            let quote = first.to_string();
            rest = behind(&quote, &quote);
        } else if first == '[' {
            rest = behind("[", "]");
        } else if first.is_alphanumeric() || first == '_' || first == '$' {
            let end = rest
                .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
                .unwrap_or(rest.len());
            if rest[..end].eq_ignore_ascii_case(word) {
                return true;
            }
            rest = &rest[end..];
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_told_from_what_is_computed() {
        for constant in ["0", "-1.5e3", "'a''b'", "x'00ff'", "true", "(7)", "''", "+ 2"] {
            assert!(is_constant(constant), "{constant}");
        }
        for computed in ["CURRENT_TIMESTAMP", "(random())", "(1 + 1)", "('a' || 'b')", "(now)"] {
            assert!(!is_constant(computed), "{computed}");
        }
    }

    #[test]
    fn words_are_found_outside_of_quotes_and_comments() {
        assert!(has_word("ALTER TABLE t ADD c INT CHECK(c > 0)", "CHECK"));
        assert!(has_word("ALTER TABLE \"check\" ADD c INT check (c > 0)", "CHECK"));
        for without in [
            "ALTER TABLE t ADD checked INT -- CHECK",
            "ALTER TABLE t ADD \"check\" INT DEFAULT 'a CHECK ''CHECK'''",
            "ALTER TABLE [check] ADD c /* CHECK */ INT",
            "",
        ] {
            assert!(!has_word(without, "CHECK"), "{without}");
        }
    }
}
