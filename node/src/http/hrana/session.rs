//! [`Session`]: where the statements of a step run, a reader or the transaction of a write job.

use std::time::{Duration, Instant};

use littoral::{ReadRefused, Reader, WriteError, WriteTx};
use rusqlite::Row;

use super::{
    emitter::Emitter,
    outcome::Outcome,
    program::{Action, Statement},
    sql::{self, Parameters, Verb},
    wire::{Column, DescribeResult, HranaError, Parameter, StmtResult, Value},
};
use crate::runtime::out_of_time;

/// What the rows of one pipeline, all its statements together, may take in the answer, roughly.
pub(super) const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// Why a step has no outcome.
pub(super) enum Fault {
    /// It failed.
    Step(HranaError),
    /// It writes, and the session only reads.
    Writes,
    /// It reads a table that is read at the origin only. The error is for who cannot go there.
    AtOrigin(HranaError),
    /// It is to be read there too, since what is here is too old.
    TooOld(HranaError),
}

/// Where statements run: a reader, or the transaction of a write job.
pub(super) trait Session {
    fn run(&mut self, statement: &Statement, rows: &mut Rows<'_>) -> Result<StmtResult, Fault>;
    fn describe(&mut self, sql: &str) -> Result<(Vec<Column>, bool), Fault>;
}

pub(super) fn perform(
    session: &mut impl Session,
    action: &Action,
    budget: &mut usize,
    emit: Option<(&mut Emitter, usize)>,
) -> Result<Outcome, Fault> {
    match action {
        Action::Run(statement) => {
            let started = Instant::now();
            let mut rows = Rows {
                rows: Vec::new(),
                wanted: statement.want_rows,
                budget,
                overflow: false,
                emit,
            };
            let mut result = session.run(statement, &mut rows)?;
            if let Some((emitter, step)) = rows.emit {
                emitter.end(step, &result)?;
                return Ok(Outcome::Sent);
            }
            result.rows = rows.rows;
            result.query_duration_ms = milliseconds(started.elapsed());
            Ok(Outcome::Rows(result))
        }
        Action::Describe(text) => {
            let (cols, is_readonly) = session.describe(text)?;
            let params = Parameters::of(text)
                .names()
                .map(|name| Parameter { name: name.map(str::to_owned) })
                .collect();
            let is_explain = sql::is_explain(text);
            Ok(Outcome::Described(DescribeResult { params, cols, is_explain, is_readonly }))
        }
        // Asked only within a transaction; outside of one nobody needs a session for it.
        Action::Autocommit => Ok(Outcome::Autocommit(false)),
        Action::Fail(error) => Err(Fault::Step(error.clone())),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Takes the rows of a statement: sends them on, or collects them as long as the answer does not get too
/// large.
pub(super) struct Rows<'a> {
    rows: Vec<Vec<Value>>,
    wanted: bool,
    budget: &'a mut usize,
    overflow: bool,
    /// Where they go, and the step that they are of.
    emit: Option<(&'a mut Emitter, usize)>,
}

impl Rows<'_> {
    /// These columns follow.
    fn begin(&mut self, cols: &[Column]) -> Result<(), Fault> {
        match &mut self.emit {
            Some((emitter, step)) => emitter.begin(*step, cols),
            None => Ok(()),
        }
    }

    /// Sends rows on; false if nobody takes them.
    fn send(&mut self, row: &Row<'_>, columns: usize) -> Result<bool, rusqlite::Error> {
        let Some((emitter, _)) = &mut self.emit else { return Ok(true) };
        let mut values = Vec::with_capacity(columns);
        for column in 0..columns {
            values.push(Value::from_sqlite(row.get_ref(column)?));
        }
        Ok(emitter.row(&values))
    }

    fn take(&mut self, row: &Row<'_>, columns: usize) -> Result<(), rusqlite::Error> {
        if !self.wanted || self.overflow {
            return Ok(());
        }
        let mut values = Vec::with_capacity(columns);
        let mut size = 0;
        for column in 0..columns {
            let value = Value::from_sqlite(row.get_ref(column)?);
            size += value.size();
            values.push(value);
        }
        match self.budget.checked_sub(size) {
            Some(left) => {
                *self.budget = left;
                self.rows.push(values);
            }
            None => self.overflow = true,
        }
        Ok(())
    }
}

fn too_large() -> HranaError {
    let message = format!(
        "the rows of the answer, all statements together, take more than {} MiB; ask for fewer \
         with LIMIT",
        RESPONSE_BYTES_MAX >> 20
    );
    HranaError::new("RESPONSE_TOO_LARGE", message)
}

pub(super) struct ReadSession<'a>(pub(super) &'a Reader);

impl ReadSession<'_> {
    /// A statement that the reader is refused goes to the writer, which knows why, if it refuses too.
    fn fault(&self, error: &rusqlite::Error) -> Fault {
        match self.0.refused(error) {
            ReadRefused::NotGranted { what } => {
                Fault::Step(HranaError::from(&WriteError::NotGranted { what }))
            }
            ReadRefused::Forbidden { what } => {
                let message = format!("{what} is not available to clients");
                Fault::Step(HranaError::new("LITTORAL_FORBIDDEN", message))
            }
            ReadRefused::AtOrigin { table } => {
                Fault::AtOrigin(HranaError::from(&WriteError::OriginOnly { table }))
            }
            ReadRefused::Writes => Fault::Writes,
            ReadRefused::Failed => Fault::Step(HranaError::from(error)),
        }
    }
}

impl Session for ReadSession<'_> {
    fn run(&mut self, statement: &Statement, rows: &mut Rows<'_>) -> Result<StmtResult, Fault> {
        let mut prepared = self
            .0
            .connection()
            .prepare_cached(&statement.sql)
            .map_err(|error| self.fault(&error))?;
        if !prepared.readonly() {
            return Err(Fault::Writes);
        }
        check_count(prepared.parameter_count(), statement).map_err(|error| self.fault(&error))?;
        for (index, value) in statement.arguments.iter().enumerate() {
            prepared
                .raw_bind_parameter(index + 1, value.as_ref().unwrap_or(&Value::Null))
                .map_err(|error| self.fault(&error))?;
        }
        // If the schema has changed, the first step prepares the statement anew: only then are its
        // columns those of the rows.
        let mut begun: Option<Vec<Column>> = None;
        let mut refused = false;
        let mut found = prepared.raw_query();
        while let Some(row) = found.next().map_err(|error| self.fault(&error))? {
            let cols = match &mut begun {
                Some(cols) => cols,
                None => {
                    let cols = begun.insert(columns(row.as_ref()));
                    rows.begin(cols)?;
                    cols
                }
            };
            if rows.emit.is_none() {
                rows.take(row, cols.len()).map_err(|error| self.fault(&error))?;
            } else if rows.wanted {
                refused = !rows.send(row, cols.len()).map_err(|error| self.fault(&error))?;
            }
            if rows.overflow || refused {
                break;
            }
        }
        drop(found);
        let cols = match begun {
            Some(cols) => cols,
            None => {
                let cols = columns(&prepared);
                rows.begin(&cols)?;
                cols
            }
        };
        if refused {
            return Err(Fault::Step(Emitter::refused()));
        }
        if rows.overflow {
            return Err(Fault::Step(too_large()));
        }
        Ok(StmtResult { cols, ..StmtResult::default() })
    }

    fn describe(&mut self, sql: &str) -> Result<(Vec<Column>, bool), Fault> {
        let prepared = self.0.connection().prepare(sql).map_err(|error| self.fault(&error))?;
        Ok((columns(&prepared), prepared.readonly()))
    }
}

fn columns(statement: &rusqlite::Statement<'_>) -> Vec<Column> {
    let column = |column: rusqlite::Column<'_>| Column {
        name: column.name().to_owned(),
        decltype: column.decl_type().map(str::to_owned),
    };
    statement.columns().map(column).collect()
}

/// Our own reading of the parameters must be SQLite's.
fn check_count(expected: usize, statement: &Statement) -> Result<(), rusqlite::Error> {
    if expected == statement.arguments.len() {
        Ok(())
    } else {
        Err(rusqlite::Error::InvalidParameterCount(statement.arguments.len(), expected))
    }
}

pub(super) struct WriteSession<'a, 'tx> {
    pub(super) tx: &'a mut WriteTx<'tx>,
    /// The last error, as the engine wants to hear it if the job fails for it.
    pub(super) failure: Option<WriteError>,
    /// A table that a statement wanted to write, and only the origin may.
    pub(super) elsewhere: Option<String>,
    /// Statements may only read.
    pub(super) read_only: bool,
}

impl WriteSession<'_, '_> {
    /// Takes down what a statement failed with, and whether it belongs to the origin.
    fn failed(&mut self, error: WriteError) -> Fault {
        let told = HranaError::from(&error);
        // Only the time limit interrupts a write.
        let told = if told.is_interrupt() { HranaError::from(&out_of_time()) } else { told };
        if let WriteError::OriginOnly { table } = &error {
            self.elsewhere.get_or_insert_with(|| table.clone());
        }
        self.failure = Some(error);
        Fault::Step(told)
    }

    fn run_prepared(
        &mut self,
        statement: &Statement,
        rows: &mut Rows<'_>,
    ) -> Result<(Vec<Column>, u64), WriteError> {
        let mut prepared = self.tx.prepare(&statement.sql)?;
        check_count(prepared.parameter_count(), statement)?;
        for (index, value) in statement.arguments.iter().enumerate() {
            prepared.bind(index + 1, value.as_ref().unwrap_or(&Value::Null))?;
        }
        prepared.run(|row| Ok(rows.take(row, row.as_ref().column_count())?))?;
        // Not before it has run: if the schema had changed, that has prepared it anew.
        let cols = prepared.columns().into_iter();
        let cols = cols.map(|(name, decltype)| Column { name, decltype }).collect();
        Ok((cols, prepared.changes()))
    }

    fn try_run(
        &mut self,
        statement: &Statement,
        rows: &mut Rows<'_>,
    ) -> Result<StmtResult, WriteError> {
        let (cols, affected_row_count) = self.run_prepared(statement, rows)?;
        // Other statements leave the last insert's rowid standing, which may be another client's.
        let inserts = statement.verb == Verb::Insert && affected_row_count > 0;
        let last_insert_rowid = inserts.then(|| self.tx.last_insert_rowid().to_string());
        Ok(StmtResult { cols, affected_row_count, last_insert_rowid, ..StmtResult::default() })
    }
}

impl Session for WriteSession<'_, '_> {
    fn run(&mut self, statement: &Statement, rows: &mut Rows<'_>) -> Result<StmtResult, Fault> {
        if self.read_only && self.tx.prepare(&statement.sql).is_ok_and(|found| !found.readonly()) {
            return Err(Fault::Writes);
        }
        match self.try_run(statement, rows) {
            Ok(_) if rows.overflow => Err(Fault::Step(too_large())),
            Ok(result) => Ok(result),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn describe(&mut self, sql: &str) -> Result<(Vec<Column>, bool), Fault> {
        let described = self.tx.prepare(sql).map(|prepared| {
            let columns = prepared.columns().into_iter();
            let columns = columns.map(|(name, decltype)| Column { name, decltype }).collect();
            (columns, prepared.readonly())
        });
        described.map_err(|error| self.failed(error))
    }
}
