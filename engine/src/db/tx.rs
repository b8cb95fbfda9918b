//! [`WriteTx`]: what a write job sees of the user connection.
//!
//! Every execution is bracketed by the recorder: a job may swallow the error of a statement and go on,
//! and the entry still holds exactly what the file holds.

use std::sync::Arc;

use rusqlite::{
    Batch, CachedStatement, Connection, ErrorCode, Params, Row, Statement, ToSql,
    fallible_iterator::FallibleIterator as _,
};

use crate::{
    capture::Mark,
    db::{
        authorizer::{self, Restriction, Savepoint},
        explicit_key, schema_change,
        writer::Writer,
    },
    error::WriteError,
    grants::Grants,
    id::Lsn,
    policy::TablePolicy,
    schema::{Registry, catalog::MARK, change::Action, declaring},
    sqlite,
};

/// The transaction of one write job, or an interactive one.
///
/// Jobs may be grouped into one SQLite transaction, each as if alone. The words BEGIN, COMMIT and
/// ROLLBACK are refused; savepoints nest as usual.
#[derive(Debug)]
pub struct WriteTx<'w> {
    writer: &'w Writer,
    course: Course,
}

/// Where the transaction of a job stands.
#[derive(Debug)]
pub(crate) struct Course {
    savepoints: Vec<(String, Mark)>,
    /// The tables when the transaction began.
    pub(crate) base: Arc<Registry>,
    /// Where the job's entry will stand in the log.
    pub(crate) lsn: Lsn,
    /// No other job shares the SQLite transaction.
    pub(crate) alone: bool,
}

impl Course {
    pub(crate) fn new(base: &Arc<Registry>, lsn: Lsn, alone: bool) -> Self {
        Self { savepoints: Vec::new(), base: Arc::clone(base), lsn, alone }
    }

    /// Another one in the same transaction, without savepoints.
    pub(crate) fn alike(&self) -> Self {
        Self::new(&self.base, self.lsn, self.alone)
    }
}

/// A prepared statement of a write job.
#[derive(Debug)]
pub struct TxStatement<'t> {
    writer: &'t Writer,
    course: &'t mut Course,
    statement: Prepared<'t>,
    kind: Kind,
}

/// What a statement does beside changing rows.
#[derive(Debug, Default)]
struct Kind {
    savepoint: Option<Savepoint>,
    action: Option<Action>,
    /// It gathers statistics for SQLite's planner.
    analyzes: bool,
}

impl Kind {
    /// Whether it is about the schema, or what SQLite knows of tables.
    const fn changes_no_rows(&self) -> bool {
        self.action.is_some() || self.analyzes
    }
}

impl std::fmt::Debug for Prepared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cached(statement) => (**statement).fmt(f),
            Self::Once(statement) => statement.fmt(f),
        }
    }
}

enum Prepared<'t> {
    Cached(CachedStatement<'t>),
    Once(Statement<'t>),
}

impl<'w> WriteTx<'w> {
    pub(crate) fn new(writer: &'w Writer, course: Course) -> Self {
        Self { writer, course }
    }

    /// From here to its end the job, or the step of an interactive transaction, may do only what `grants`
    /// give, also by way of views and triggers.
    ///
    /// # Errors
    /// SQLite's, if the schema cannot be read.
    pub fn restrict(&mut self, grants: Arc<Grants>) -> Result<(), WriteError> {
        let shadows = self.writer.as_engine(authorizer::shadows)?;
        let restriction = Restriction { grants, shadows: Arc::new(shadows) };
        self.writer.gate().restrict(Some(restriction));
        Ok(())
    }

    /// Where its statements stand.
    pub(crate) fn into_course(self) -> Course {
        self.course
    }

    /// Prepares one statement; text behind its end is ignored, as SQLite does.
    ///
    /// # Errors
    /// SQLite's, or why the statement is not available in a write job. Nothing has happened.
    pub fn prepare(&mut self, sql: &str) -> Result<TxStatement<'_>, WriteError> {
        let writer = self.writer;
        refuse_mark(sql)?;
        let analyzes = first_word(sql).eq_ignore_ascii_case("ANALYZE");
        let mut gate = writer.gate();
        gate.forget();
        gate.analyzing = analyzes;
        drop(gate);
        // The authorizer tells what they do, or whether they may, and it is not asked about a cached
        // statement.
        let restricted = writer.gate().is_restricted();
        let prepared = if restricted || is_told_by_authorizer(sql) {
            writer.user().prepare(sql).map(Prepared::Once)
        } else {
            writer.user().prepare_cached(sql).map(Prepared::Cached)
        };
        let statement = prepared.map_err(|error| writer.gate().explain(error))?;
        writer.gate().check_replacing(sql)?;
        if let Err(error) = check_key(writer, sql) {
            // Kept prepared, it would come back without a question.
            if let Prepared::Cached(statement) = statement {
                statement.discard();
            }
            return Err(error);
        }
        let kind = Kind { analyzes, ..kind(writer, statement.as_ref())? };
        // It is the only statement until the next one is prepared, so this is said once.
        writer.announce(writer.mask_of(sql));
        Ok(TxStatement { writer, course: &mut self.course, kind, statement })
    }

    /// Declares the policy of a table, as `SELECT littoral_policy(...)` does in SQL; origin only.
    ///
    /// # Errors
    /// Every reason why the table cannot have it, or why it cannot have it at once. Nothing has happened;
    /// the job may go on.
    pub fn declare(&mut self, table: &str, policy: TablePolicy) -> Result<(), WriteError> {
        self.writer.gate().judge_declaring()?;
        self.writer.refuse_elsewhere("declaring a policy")?;
        schema_change::declare(self.writer, &self.course, table, policy)
    }

    /// Runs one statement and drops the rows it returns; gives how many rows it changed.
    ///
    /// # Errors
    /// SQLite's, or why the statement is not available in a write job. What the statement had done is
    /// undone, as SQLite does it; the job may go on.
    pub fn execute(&mut self, sql: &str, params: impl Params) -> Result<usize, WriteError> {
        self.prepare(sql)?.execute(params)
    }

    /// Runs the statements of a script, one after the other, up to the first that fails.
    ///
    /// # Errors
    /// As for [`WriteTx::execute`]; what the statements before the failed one did stays done.
    pub fn execute_batch(&mut self, script: &str) -> Result<(), WriteError> {
        let writer = self.writer;
        refuse_mark(script)?;
        let mut batch = Batch::new(writer.user(), script);
        loop {
            writer.gate().forget();
            let next = batch.next().map_err(|error| writer.gate().explain(error))?;
            let Some(mut statement) = next else { return Ok(()) };
            writer.gate().check_replacing(&statement.expanded_sql().unwrap_or_default())?;
            check_key(writer, &statement.expanded_sql().unwrap_or_default())?;
            let kind = kind(writer, &statement)?;
            let mask = writer.gate().take_mask();
            writer.announce(mask);
            run(writer, &mut self.course, &mut statement, &kind, |_| Ok(()))?;
        }
    }

    /// Runs a script of migration tools: the words for transactions are passed over, since all of it is one
    /// transaction.
    pub(crate) fn migrate(&mut self, script: &str) -> Result<(), WriteError> {
        let writer = self.writer;
        refuse_mark(script)?;
        let mut batch = Batch::new(writer.user(), script);
        for number in 1.. {
            writer.gate().forget();
            let next = batch.next().map_err(|error| writer.gate().explain(error));
            let next = next.map_err(|error| in_migration(error, number))?;
            let Some(mut statement) = next else { break };
            match writer.gate().take_transaction() {
                None => {}
                Some("ROLLBACK") => {
                    return Err(WriteError::Aborted("the migration rolls itself back".to_owned()));
                }
                Some(_) => continue,
            }
            let kind = kind(writer, &statement)?;
            let mask = writer.gate().take_mask();
            writer.announce(mask);
            let ran = run(writer, &mut self.course, &mut statement, &kind, |_| Ok(()));
            ran.map_err(|error| in_migration(error, number))?;
        }
        writer.as_engine(violations)
    }

    /// Runs a query and reads its first row.
    ///
    /// # Errors
    /// As for [`WriteTx::execute`]; `QueryReturnedNoRows` if there is no row.
    pub fn query_row<T>(
        &mut self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, WriteError> {
        let mut read = Some(read);
        let mut value = None;
        self.prepare(sql)?.query(params, |row| {
            if let Some(read) = read.take() {
                value = Some(read(row)?);
            }
            Ok(())
        })?;
        value.ok_or(WriteError::Sqlite(rusqlite::Error::QueryReturnedNoRows))
    }

    /// Overwrites a part of a stored text or blob in place, through SQLite's incremental I/O, so that the
    /// rest of a large value need not be read. No trigger fires, no CHECK is made; the entry holds the
    /// whole value.
    ///
    /// # Errors
    /// SQLite's, also if the part goes beyond the value's end, if the column belongs to an index, or if
    /// the table has no rowid; [`WriteError::Forbidden`] if triggers keep something of the table's rows.
    pub fn write_blob(
        &mut self,
        table: &str,
        column: &str,
        rowid: i64,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), WriteError> {
        let writer = self.writer;
        if writer.user().is_autocommit() {
            return Err(transaction_gone());
        }
        writer.gate().judge_write(table)?;
        let registry = Arc::clone(&writer.gate().registry);
        let known = registry.position(table.as_bytes()).map(|place| &registry.tables()[place]);
        if let Some(target) = known.and_then(|table| table.targets.first()) {
            let what = format!(
                "an incremental write to {table:?}, which fires no trigger, so that {target:?} would not \
                 learn of it,"
            );
            return Err(WriteError::Forbidden { what });
        }
        let mark = writer.user().sink().mark();
        let written =
            writer.as_engine(|conn| sqlite::write_blob(conn, table, column, rowid, offset, bytes));
        // The hook is not told the new value.
        writer.reread(mark)?;
        Ok(written?)
    }

    /// The rowid of the row inserted last.
    pub fn last_insert_rowid(&self) -> i64 {
        self.writer.user().last_insert_rowid()
    }

    /// How many rows the last INSERT, UPDATE or DELETE changed.
    pub fn changes(&self) -> u64 {
        self.writer.user().changes()
    }
}

impl TxStatement<'_> {
    /// The result's columns: name and declared type.
    pub fn columns(&self) -> Vec<(String, Option<String>)> {
        self.statement()
            .columns()
            .map(|column| (column.name().to_owned(), column.decl_type().map(str::to_owned)))
            .collect()
    }

    /// How many parameters it has.
    pub fn parameter_count(&self) -> usize {
        self.statement().parameter_count()
    }

    /// The number of a named parameter, its `:`, `@` or `$` included.
    ///
    /// # Errors
    /// If the name holds a zero byte.
    pub fn parameter_index(&self, name: &str) -> Result<Option<usize>, WriteError> {
        Ok(self.statement().parameter_index(name)?)
    }

    /// Whether it cannot change the database.
    pub fn readonly(&self) -> bool {
        self.statement().readonly()
    }

    /// Binds one parameter, counted from 1, for [`TxStatement::run`].
    ///
    /// # Errors
    /// SQLite's, if there is no such parameter.
    pub fn bind(&mut self, index: usize, value: impl ToSql) -> Result<(), WriteError> {
        Ok(self.statement_mut().raw_bind_parameter(index, value)?)
    }

    /// Runs it and drops the rows it returns; gives how many rows it changed.
    ///
    /// # Errors
    /// As for [`WriteTx::execute`].
    pub fn execute(&mut self, params: impl Params) -> Result<usize, WriteError> {
        self.query(params, |_| Ok(()))?;
        Ok(usize::try_from(self.changes()).unwrap_or(usize::MAX))
    }

    /// How many rows it changed when it ran last; those of triggers are not counted.
    pub fn changes(&self) -> u64 {
        // Other statements leave the count of the one before standing.
        let statement = self.statement();
        let counts =
            !statement.readonly() && statement.is_explain() == 0 && !self.kind.changes_no_rows();
        if counts { self.writer.user().changes() } else { 0 }
    }

    /// Runs it with these parameters and gives each row.
    ///
    /// # Errors
    /// As for [`WriteTx::execute`], and what `each` returns.
    pub fn query(
        &mut self,
        params: impl Params,
        each: impl FnMut(&Row<'_>) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let statement = self.statement_mut();
        // Binding is what `query` does before its first step, so nothing has run yet.
        drop(statement.query(params)?);
        self.run(each)
    }

    /// Runs it with the parameters bound before and gives each row.
    ///
    /// # Errors
    /// As for [`WriteTx::execute`], and what `each` returns.
    pub fn run(
        &mut self,
        each: impl FnMut(&Row<'_>) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let statement = match &mut self.statement {
            Prepared::Cached(statement) => &mut **statement,
            Prepared::Once(statement) => statement,
        };
        run(self.writer, self.course, statement, &self.kind, each)
    }

    fn statement(&self) -> &Statement<'_> {
        self.statement.as_ref()
    }
}

impl<'t> Prepared<'t> {
    fn as_ref(&self) -> &Statement<'t> {
        match self {
            Self::Cached(statement) => statement,
            Self::Once(statement) => statement,
        }
    }
}

impl<'t> TxStatement<'t> {
    fn statement_mut(&mut self) -> &mut Statement<'t> {
        match &mut self.statement {
            Prepared::Cached(statement) => statement,
            Prepared::Once(statement) => statement,
        }
    }
}

/// What a statement itself did wrong is told with its number; what befell it is not its fault.
fn in_migration(error: WriteError, number: usize) -> WriteError {
    match error {
        WriteError::Sqlite(error)
            if matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::Unknown | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch)
            ) =>
        {
            WriteError::InMigration { number, error }
        }
        error => error,
    }
}

/// Refuses rows that refer to rows there are not: a migration runs with foreign keys off.
fn violations(conn: &Connection) -> Result<(), WriteError> {
    /// So many are told.
    const TOLD: usize = 5;
    let mut statement = conn.prepare("PRAGMA foreign_key_check")?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while found.len() < TOLD
        && let Some(row) = rows.next()?
    {
        let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
        let rowid: Option<i64> = row.get(1)?;
        let rowid = rowid.map(|rowid| format!(" (rowid {rowid})")).unwrap_or_default();
        found.push(format!("{table}{rowid} refers to no row of {parent}"));
    }
    if found.is_empty() {
        return Ok(());
    }
    let found = found.join("; ");
    Err(WriteError::Aborted(format!("the migration would leave foreign keys broken: {found}")))
}

/// What the authorizer has seen of the statement that was just prepared.
fn kind(writer: &Writer, statement: &Statement<'_>) -> Result<Kind, WriteError> {
    let mut gate = writer.gate();
    let savepoint = gate.take_savepoint();
    let action = gate.take_action()?;
    // EXPLAIN names savepoints and tables too, and does nothing to them.
    let runs = statement.is_explain() == 0;
    Ok(if runs { Kind { savepoint, action, analyzes: false } } else { Kind::default() })
}

/// Steps a statement to its end.
pub(super) fn step_all(
    writer: &Writer,
    statement: &mut Statement<'_>,
    mut each: impl FnMut(&Row<'_>) -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    let mut rows = statement.raw_query();
    loop {
        match rows.next() {
            Ok(Some(row)) => each(row)?,
            Ok(None) => return Ok(()),
            Err(error) => return Err(writer.gate().explain(error)),
        }
    }
}

fn run(
    writer: &Writer,
    course: &mut Course,
    statement: &mut Statement<'_>,
    kind: &Kind,
    each: impl FnMut(&Row<'_>) -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    if kind.analyzes {
        return schema_change::analyze(writer, course, statement, each);
    }
    if let Some(action) = &kind.action {
        return schema_change::run(writer, course, statement, action, each);
    }
    if writer.user().is_autocommit() {
        return Err(transaction_gone());
    }
    let mark = writer.user().sink().mark();
    if let Err(error) = step_all(writer, statement, each) {
        if writer.user().is_autocommit() {
            writer.user().sink().clear();
        } else {
            writer.reread(mark)?;
        }
        let text = statement.expanded_sql().unwrap_or_default();
        let is_vacuum = first_word(&text).eq_ignore_ascii_case("VACUUM");
        return Err(if is_vacuum { writer.refused_vacuum() } else { error });
    }
    let savepoints = &mut course.savepoints;
    match &kind.savepoint {
        None => {}
        Some(Savepoint::Begin(name)) => savepoints.push((name.clone(), mark)),
        Some(Savepoint::Release(name)) => {
            if let Some(place) = position(savepoints, name) {
                savepoints.truncate(place);
            }
        }
        Some(Savepoint::RollbackTo(name)) => {
            if let Some(place) = position(savepoints, name) {
                savepoints.truncate(place + 1);
                writer.reread(savepoints[place].1)?;
            }
        }
    }
    Ok(())
}

/// Refuses the statement prepared last if it leaves a key to SQLite that it must give.
fn check_key(writer: &Writer, sql: &str) -> Result<(), WriteError> {
    if !writer.gate().take_needs_key() || first_word(sql).eq_ignore_ascii_case("EXPLAIN") {
        return Ok(());
    }
    let registry = Arc::clone(&writer.gate().registry);
    writer.as_engine(|conn| explicit_key::check(conn, &registry, sql))
}

fn position(savepoints: &[(String, Mark)], name: &str) -> Option<usize> {
    savepoints.iter().rposition(|(open, _)| open.eq_ignore_ascii_case(name))
}

/// What every statement gets after one that ended the transaction (OR ROLLBACK, a full disk).
pub(crate) fn transaction_gone() -> WriteError {
    WriteError::Aborted("the transaction was rolled back by a statement before".to_owned())
}

fn refuse_mark(sql: &str) -> Result<(), WriteError> {
    if sql.contains(MARK) {
        return Err(WriteError::Forbidden { what: format!("the comment {MARK}") });
    }
    Ok(())
}

/// Whether a statement may be about a savepoint or the schema, or may declare a policy.
fn is_told_by_authorizer(sql: &str) -> bool {
    const WORDS: [&str; 7] =
        ["SAVEPOINT", "RELEASE", "ROLLBACK", "CREATE", "DROP", "ALTER", "ANALYZE"];
    let word = first_word(sql);
    WORDS.iter().any(|w| word.eq_ignore_ascii_case(w)) || may_declare(sql)
}

fn may_declare(sql: &str) -> bool {
    let name = declaring::FUNCTION.as_bytes();
    sql.as_bytes().windows(name.len()).any(|part| part.eq_ignore_ascii_case(name))
}

/// The first word of a statement; comments before it are skipped.
fn first_word(sql: &str) -> &str {
    let mut rest = sql;
    loop {
        rest = rest
            .trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ';' || c == '\u{feff}');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, behind)| behind);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, behind)| behind);
        } else {
            break;
        }
    }
    let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    &rest[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_is_found_behind_comments() {
        assert!(is_told_by_authorizer(" -- a\n /* b */ ; savepoint x"));
        assert!(is_told_by_authorizer("alter TABLE t ADD c"));
        assert!(is_told_by_authorizer("SELECT Littoral_Policy('t', 'eventual')"));
        assert!(!is_told_by_authorizer("/* savepoint */ SELECT 1"));
        assert!(!is_told_by_authorizer(""));
        assert_eq!(first_word("-- vacuum\nVACUUM;"), "VACUUM");
    }
}
