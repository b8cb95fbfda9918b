//! Carrying out a [`Program`]: which steps go to a reader, which become one write job, and what became
//! of each.
//!
//! ```text
//!   outside a transaction    SELECT and the like ── reader pool
//!                            anything else ──────── a write job of its own
//!                            a script's writes ──── one write job, up to the first error
//!   BEGIN                    everything up to COMMIT or ROLLBACK is one write job,
//!                            or one read transaction if nothing in it writes
//! ```
//!
//! Transaction words never reach SQLite. Once a transaction was lost, or could not begin, every
//! statement fails until the client says ROLLBACK or COMMIT: none may slip into autocommit.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use littoral::{WriteError, WriteTx};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, Row};

use super::{
    program::{Action, Answer, Fate, Program, Statement},
    sql::{self, Parameters, Verb},
    wire::{
        BatchResult, Column, DescribeResult, HranaError, Parameter, StmtResult, StreamResponse,
        StreamResult, Value,
    },
};
use crate::runtime::{NodeHandle, WRITE_TIME_LIMIT, out_of_time};

/// What the rows of one pipeline, all its statements together, may take in the answer, roughly.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// What became of a step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Skipped,
    Rows(StmtResult),
    Described(DescribeResult),
    Autocommit(bool),
    Error(HranaError),
}

impl Outcome {
    const fn fate(&self) -> Fate {
        match self {
            Self::Skipped => Fate::Skipped,
            Self::Rows(_) | Self::Described(_) | Self::Autocommit(_) => Fate::Ok,
            Self::Error(_) => Fate::Error,
        }
    }

    fn nothing() -> Self {
        Self::Rows(StmtResult::default())
    }
}

/// Runs a whole program; there is one outcome for each step.
pub(crate) async fn execute(node: &NodeHandle, program: &Arc<Program>) -> Vec<Outcome> {
    let mut run = Run {
        node,
        program,
        outcomes: Vec::new(),
        fates: Vec::new(),
        lost: Lost::No,
        budget: RESPONSE_BYTES_MAX,
    };
    while run.outcomes.len() < program.steps.len() {
        run.next().await;
    }
    run.outcomes
}

/// A transaction that the client believes to be open, but is not.
#[derive(Clone, Debug)]
enum Lost {
    No,
    /// Its COMMIT failed: a ROLLBACK may follow, and is welcome.
    AtCommit,
    /// It ended before: every statement fails until COMMIT or ROLLBACK.
    Before(HranaError),
}

struct Run<'a> {
    node: &'a NodeHandle,
    program: &'a Arc<Program>,
    outcomes: Vec<Outcome>,
    fates: Vec<Fate>,
    lost: Lost,
    /// What is left of [`RESPONSE_BYTES_MAX`].
    budget: usize,
}

impl Run<'_> {
    fn push(&mut self, outcome: Outcome) {
        self.fates.push(outcome.fate());
        self.outcomes.push(outcome);
    }

    /// Runs the next step outside a transaction, or the transaction that it begins.
    async fn next(&mut self) {
        let step = self.outcomes.len();
        let believed_open = matches!(self.lost, Lost::Before(_));
        if !self.program.runs(step, &self.fates, believed_open) {
            return self.push(Outcome::Skipped);
        }
        let verb = match &self.program.steps[step].action {
            Action::Run(statement) => statement.verb,
            Action::Describe(_) => return self.read_one(step).await,
            Action::Autocommit => return self.push(Outcome::Autocommit(!believed_open)),
            Action::Fail(error) => return self.push(Outcome::Error(error.clone())),
        };
        let lost = std::mem::replace(&mut self.lost, Lost::No);
        match (lost, verb) {
            (Lost::Before(_) | Lost::AtCommit, Verb::Rollback) => self.push(Outcome::nothing()),
            (Lost::Before(error), Verb::Commit) => self.push(Outcome::Error(error)),
            (Lost::Before(error), _) => {
                self.push(Outcome::Error(error.clone()));
                self.lost = Lost::Before(error);
            }
            (_, Verb::Commit) => {
                self.push(no_transaction("cannot commit - no transaction is active"));
            }
            (_, Verb::Rollback) => {
                self.push(no_transaction("cannot rollback - no transaction is active"));
            }
            (_, Verb::Begin | Verb::BeginReadOnly) => self.transaction(step).await,
            (_, Verb::MayRead) if self.switches_foreign_keys(step, "off") => {
                self.migration(step).await;
            }
            (_, Verb::MayRead) => self.read_one(step).await,
            (_, verb @ (Verb::Insert | Verb::Write | Verb::Savepoint)) => {
                let end = self.program.script_end(step);
                // Alone it would open a transaction that later statements are meant to be in.
                if verb == Verb::Savepoint && end == step + 1 {
                    return self.push(Outcome::Error(interactive()));
                }
                self.write(step..end).await;
            }
        }
    }

    /// Whether a step says `PRAGMA foreign_keys = ...`.
    fn switches_foreign_keys(&self, step: usize, to: &str) -> bool {
        match &self.program.steps[step].action {
            Action::Run(statement) => sql::sets_foreign_keys(&statement.sql) == Some(to),
            _ => false,
        }
    }

    /// Runs what stands between `PRAGMA foreign_keys = off` and `on` as one migration.
    async fn migration(&mut self, first: usize) {
        let last = (first..self.program.steps.len())
            .find(|step| self.switches_foreign_keys(*step, "on"))
            .unwrap_or(self.program.steps.len() - 1);
        let mut script = String::new();
        let mut refused = None;
        let mut told_at = first;
        for step in first..=last {
            match &self.program.steps[step].action {
                // It only stands there for what fails before.
                Action::Run(statement) if statement.verb == Verb::Rollback => {}
                Action::Run(statement) => {
                    if statement.arguments.iter().any(Option::is_some) {
                        let message = "a statement between PRAGMA foreign_keys = off and on takes no \
                                       arguments";
                        refused.get_or_insert_with(|| {
                            HranaError::new("ARGS_INVALID", message.to_owned())
                        });
                    }
                    if told_at == first && !statement.verb.controls_transaction() && step > first {
                        told_at = step;
                    }
                    script.push_str(&statement.sql);
                    script.push_str("\n;\n");
                }
                Action::Fail(error) => {
                    refused.get_or_insert_with(|| error.clone());
                }
                Action::Describe(_) | Action::Autocommit => {}
            }
        }
        let result = match refused {
            Some(error) => Err(error),
            None => self.node.migrate(script).await.map_err(|error| HranaError::from(&error)),
        };
        for step in first..=last {
            self.push(match (&result, self.program.verb(step)) {
                (Ok(_), Some(Verb::Rollback)) => Outcome::Skipped,
                (Err(error), _) if step == told_at => Outcome::Error(error.clone()),
                (Err(_), verb) if step > told_at && step < last && verb != Some(Verb::Rollback) => {
                    Outcome::Skipped
                }
                _ => Outcome::nothing(),
            });
        }
    }

    /// Runs a step that may only read, or hands it to the writer if it turns out to write.
    async fn read_one(&mut self, step: usize) {
        let program = Arc::clone(self.program);
        let mut budget = self.budget;
        let answer = self
            .node
            .read(move |reader| {
                let mut session = ReadSession(reader.connection());
                let outcome = perform(&mut session, &program.steps[step].action, &mut budget);
                (outcome, budget)
            })
            .await;
        match answer {
            Ok((Ok(outcome), budget)) => {
                self.budget = budget;
                self.push(outcome);
            }
            Ok((Err(Fault::Step(error)), _)) => self.push(Outcome::Error(error)),
            Ok((Err(Fault::Writes), _)) => self.write(step..step + 1).await,
            Err(error) => self.push(Outcome::Error(HranaError::from(&error))),
        }
    }

    /// Runs statements as one job that is committed as far as it came.
    async fn write(&mut self, steps: Range<usize>) {
        let first = steps.start;
        let (ran, result) = self.job(Region { begin: first, steps, explicit: false }).await;
        let failure = result.err();
        match (ran, failure) {
            (Some(ran), None) => {
                self.budget = ran.budget;
                for outcome in ran.outcomes {
                    self.push(outcome);
                }
            }
            // The first statement failed, and its error is more exact than the job's.
            (Some(Ran { outcomes, .. }), Some(_))
                if matches!(outcomes.first(), Some(Outcome::Error(_))) =>
            {
                for outcome in outcomes {
                    self.push(outcome);
                }
            }
            // The commit failed, or a later statement ran for too long: nothing of it stands.
            (_, Some(error)) => self.push(Outcome::Error(error)),
            (None, None) => self.push(Outcome::Error(never_ran())),
        }
    }

    /// Runs the transaction that begins at `step`, and its COMMIT or ROLLBACK.
    async fn transaction(&mut self, step: usize) {
        let ends = self.program.ends_transaction_after(step);
        if !ends && !self.program.closes {
            let error = interactive();
            self.push(Outcome::Error(error.clone()));
            self.lost = Lost::Before(error);
            return;
        }
        let region =
            Region { begin: step, steps: step + 1..self.program.steps.len(), explicit: true };
        if self.program.may_only_read(step) {
            match self.read_transaction(region.clone()).await {
                Ok(Ok(ran)) => return self.end_transaction(Some(ran), Ok(())),
                Ok(Err(SomethingWrites)) => {}
                Err(error) => return self.end_transaction(None, Err(error)),
            }
        }
        let (ran, result) = self.job(region).await;
        self.end_transaction(ran, result);
    }

    fn end_transaction(&mut self, ran: Option<Ran>, result: Result<(), HranaError>) {
        let Some(Ran { outcomes, end, budget }) = ran else {
            // There is no more to tell than the error, so it is BEGIN that failed.
            let error = result.err().unwrap_or_else(never_ran);
            self.push(Outcome::Error(error.clone()));
            self.lost = Lost::Before(error);
            return;
        };
        if end == End::Open && !self.program.closes {
            // Nothing of it stands, so nothing of it may look as if it did.
            let error = interactive();
            for outcome in outcomes {
                let skipped = outcome == Outcome::Skipped;
                self.push(if skipped { outcome } else { Outcome::Error(error.clone()) });
            }
            self.lost = Lost::Before(error);
            return;
        }
        self.budget = budget;
        let interruption = match (end, outcomes.last()) {
            (End::Interrupted, Some(Outcome::Error(error))) => Some(error.clone()),
            _ => None,
        };
        for outcome in outcomes {
            self.push(outcome);
        }
        if let Some(error) = interruption {
            self.lost = Lost::Before(error);
            return;
        }
        match (end, result) {
            (End::Commit, Ok(())) | (End::Rollback, _) => self.push(Outcome::nothing()),
            (End::Commit, Err(error)) => {
                self.push(Outcome::Error(error));
                self.lost = Lost::AtCommit;
            }
            (End::Open | End::Interrupted, _) => {}
        }
    }

    /// Runs the transaction on a reader, as long as nothing in it writes.
    async fn read_transaction(
        &self,
        region: Region,
    ) -> Result<Result<Ran, SomethingWrites>, HranaError> {
        let program = Arc::clone(self.program);
        let prior = self.fates.clone();
        let budget = self.budget;
        let read_only = program.verb(region.begin) == Some(Verb::BeginReadOnly);
        let answer = self
            .node
            .read(move |reader| {
                let connection = reader.connection();
                let transaction = connection.unchecked_transaction()?;
                let mut session = ReadSession(connection);
                let ran = run_region(&mut session, &program, &region, prior, budget, read_only);
                transaction.finish()?;
                Ok::<_, rusqlite::Error>(ran)
            })
            .await;
        match answer {
            Ok(Ok(ran)) => Ok(ran),
            Ok(Err(error)) => Err(HranaError::from(&error)),
            Err(error) => Err(HranaError::from(&error)),
        }
    }

    /// Runs a region as one write job. What ran is `None` if the engine refused before it began.
    async fn job(&self, region: Region) -> (Option<Ran>, Result<(), HranaError>) {
        let program = Arc::clone(self.program);
        let prior = self.fates.clone();
        let budget = self.budget;
        let slot: Arc<Mutex<Option<Ran>>> = Arc::default();
        let last_run = Arc::clone(&slot);
        let result = self
            .node
            .write_within(WRITE_TIME_LIMIT, move |tx| {
                *last_run.lock() = None;
                let mut session = WriteSession { tx, failure: None };
                let ran = run_region(&mut session, &program, &region, prior.clone(), budget, false);
                let Ok(ran) = ran else {
                    return Err(WriteError::Aborted(never_ran().message));
                };
                let failure = session.failure.take();
                let stands = match ran.end {
                    End::Commit => true,
                    End::Rollback | End::Interrupted => false,
                    // Without BEGIN, what ran before the first error stands.
                    End::Open => {
                        !region.explicit && !matches!(ran.outcomes.first(), Some(Outcome::Error(_)))
                    }
                };
                *last_run.lock() = Some(ran);
                if stands {
                    return Ok(());
                }
                Err(failure.unwrap_or_else(|| WriteError::Aborted("rolled back".to_owned())))
            })
            .await;
        let ran = slot.lock().take();
        (ran, result.map(|_| ()).map_err(|error| HranaError::from(&error)))
    }
}

/// Steps that run on one session.
#[derive(Clone, Debug)]
struct Region {
    /// The BEGIN, or the first step where there is none.
    begin: usize,
    steps: Range<usize>,
    /// Whether a BEGIN opened it; then COMMIT and ROLLBACK end it, and errors do not.
    explicit: bool,
}

/// What became of a region, its COMMIT or ROLLBACK left out.
#[derive(Debug)]
struct Ran {
    outcomes: Vec<Outcome>,
    end: End,
    /// What is left of the budget.
    budget: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Commit,
    Rollback,
    Open,
    /// It took too long, as its last outcome says.
    Interrupted,
}

/// A region that was taken for reading only is not.
#[derive(Debug)]
struct SomethingWrites;

fn run_region(
    session: &mut impl Session,
    program: &Program,
    region: &Region,
    mut fates: Vec<Fate>,
    mut budget: usize,
    read_only: bool,
) -> Result<Ran, SomethingWrites> {
    let mut outcomes = Vec::new();
    if region.explicit {
        outcomes.push(Outcome::nothing());
        fates.push(Fate::Ok);
    }
    for step in region.steps.clone() {
        let outcome = if program.runs(step, &fates, region.explicit) {
            match program.verb(step) {
                Some(Verb::Commit) => return Ok(Ran { outcomes, end: End::Commit, budget }),
                Some(Verb::Rollback) => return Ok(Ran { outcomes, end: End::Rollback, budget }),
                Some(Verb::Begin | Verb::BeginReadOnly) => {
                    no_transaction("cannot start a transaction within a transaction")
                }
                _ => match perform(session, &program.steps[step].action, &mut budget) {
                    Ok(outcome) => outcome,
                    Err(Fault::Step(error)) => Outcome::Error(error),
                    Err(Fault::Writes) if read_only => Outcome::Error(HranaError::new(
                        "SQLITE_READONLY",
                        "attempt to write in a read-only transaction",
                    )),
                    Err(Fault::Writes) => return Err(SomethingWrites),
                },
            }
        } else {
            Outcome::Skipped
        };
        fates.push(outcome.fate());
        let failed = matches!(outcome, Outcome::Error(_));
        let interrupted = matches!(&outcome, Outcome::Error(error) if error.is_interrupt());
        outcomes.push(outcome);
        if interrupted {
            return Ok(Ran { outcomes, end: End::Interrupted, budget });
        }
        if failed && !region.explicit {
            break;
        }
    }
    Ok(Ran { outcomes, end: End::Open, budget })
}

/// Why a step has no outcome.
enum Fault {
    /// It failed.
    Step(HranaError),
    /// It writes, and the session only reads.
    Writes,
}

/// Where statements run: a reader, or the transaction of a write job.
trait Session {
    fn run(&mut self, statement: &Statement, rows: &mut Rows<'_>) -> Result<StmtResult, Fault>;
    fn describe(&mut self, sql: &str) -> Result<(Vec<Column>, bool), Fault>;
}

fn perform(
    session: &mut impl Session,
    action: &Action,
    budget: &mut usize,
) -> Result<Outcome, Fault> {
    match action {
        Action::Run(statement) => {
            let started = Instant::now();
            let mut rows =
                Rows { rows: Vec::new(), wanted: statement.want_rows, budget, overflow: false };
            let mut result = session.run(statement, &mut rows)?;
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

/// Collects the rows of a statement, as long as the answer does not get too large.
struct Rows<'a> {
    rows: Vec<Vec<Value>>,
    wanted: bool,
    budget: &'a mut usize,
    overflow: bool,
}

impl Rows<'_> {
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

struct ReadSession<'a>(&'a Connection);

impl ReadSession<'_> {
    /// A statement that the reader is refused goes to the writer, which knows why, if it refuses too.
    fn fault(error: &rusqlite::Error) -> Fault {
        let refused = matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::ReadOnly | ErrorCode::AuthorizationForStatementDenied)
        );
        // Functions of the engine's own exist on the writer only.
        if refused || error.to_string().contains("no such function") {
            Fault::Writes
        } else {
            Fault::Step(HranaError::from(error))
        }
    }
}

impl Session for ReadSession<'_> {
    fn run(&mut self, statement: &Statement, rows: &mut Rows<'_>) -> Result<StmtResult, Fault> {
        let mut prepared =
            self.0.prepare_cached(&statement.sql).map_err(|error| Self::fault(&error))?;
        if !prepared.readonly() {
            return Err(Fault::Writes);
        }
        let cols: Vec<Column> = prepared.columns().map(|c| column(&c)).collect();
        let mut query = || {
            check_count(prepared.parameter_count(), statement)?;
            for (index, value) in statement.arguments.iter().enumerate() {
                prepared.raw_bind_parameter(index + 1, value.as_ref().unwrap_or(&Value::Null))?;
            }
            let mut found = prepared.raw_query();
            while let Some(row) = found.next()? {
                rows.take(row, cols.len())?;
                if rows.overflow {
                    break;
                }
            }
            Ok(())
        };
        query().map_err(|error| Self::fault(&error))?;
        if rows.overflow {
            return Err(Fault::Step(too_large()));
        }
        Ok(StmtResult { cols, ..StmtResult::default() })
    }

    fn describe(&mut self, sql: &str) -> Result<(Vec<Column>, bool), Fault> {
        let prepared = self.0.prepare(sql).map_err(|error| Self::fault(&error))?;
        Ok((prepared.columns().map(|c| column(&c)).collect(), prepared.readonly()))
    }
}

fn column(column: &rusqlite::Column<'_>) -> Column {
    Column { name: column.name().to_owned(), decltype: column.decl_type().map(str::to_owned) }
}

/// Our own reading of the parameters must be SQLite's.
fn check_count(expected: usize, statement: &Statement) -> Result<(), rusqlite::Error> {
    if expected == statement.arguments.len() {
        Ok(())
    } else {
        Err(rusqlite::Error::InvalidParameterCount(statement.arguments.len(), expected))
    }
}

struct WriteSession<'a, 'tx> {
    tx: &'a mut WriteTx<'tx>,
    /// The last error, as the engine wants to hear it if the job fails for it.
    failure: Option<WriteError>,
}

impl WriteSession<'_, '_> {
    fn run_prepared(
        &mut self,
        statement: &Statement,
        rows: &mut Rows<'_>,
    ) -> Result<(Vec<Column>, bool), WriteError> {
        let mut prepared = self.tx.prepare(&statement.sql)?;
        check_count(prepared.parameter_count(), statement)?;
        for (index, value) in statement.arguments.iter().enumerate() {
            prepared.bind(index + 1, value.as_ref().unwrap_or(&Value::Null))?;
        }
        let cols: Vec<Column> = prepared
            .columns()
            .into_iter()
            .map(|(name, decltype)| Column { name, decltype })
            .collect();
        let reads = prepared.readonly();
        prepared.run(|row| Ok(rows.take(row, cols.len())?))?;
        Ok((cols, reads))
    }

    fn try_run(
        &mut self,
        statement: &Statement,
        rows: &mut Rows<'_>,
    ) -> Result<StmtResult, WriteError> {
        let (cols, reads) = self.run_prepared(statement, rows)?;
        let affected_row_count = if reads { 0 } else { self.tx.changes() };
        // Other statements leave the last insert's rowid standing, which may be another client's.
        let inserts = statement.verb == Verb::Insert && affected_row_count > 0;
        let last_insert_rowid = inserts.then(|| self.tx.last_insert_rowid().to_string());
        Ok(StmtResult { cols, affected_row_count, last_insert_rowid, ..StmtResult::default() })
    }
}

impl Session for WriteSession<'_, '_> {
    fn run(&mut self, statement: &Statement, rows: &mut Rows<'_>) -> Result<StmtResult, Fault> {
        match self.try_run(statement, rows) {
            Ok(_) if rows.overflow => Err(Fault::Step(too_large())),
            Ok(result) => Ok(result),
            Err(error) => {
                let told = HranaError::from(&error);
                // Only the time limit interrupts a write.
                let told =
                    if told.is_interrupt() { HranaError::from(&out_of_time()) } else { told };
                self.failure = Some(error);
                Err(Fault::Step(told))
            }
        }
    }

    fn describe(&mut self, sql: &str) -> Result<(Vec<Column>, bool), Fault> {
        let prepared =
            self.tx.prepare(sql).map_err(|error| Fault::Step(HranaError::from(&error)))?;
        let columns = prepared.columns().into_iter();
        let columns = columns.map(|(name, decltype)| Column { name, decltype }).collect();
        Ok((columns, prepared.readonly()))
    }
}

fn no_transaction(message: &str) -> Outcome {
    Outcome::Error(HranaError::new("SQLITE_ERROR", message))
}

fn never_ran() -> HranaError {
    HranaError::new("LITTORAL_UNAVAILABLE", "the write did not run")
}

fn interactive() -> HranaError {
    HranaError::new(
        "TRANSACTION_INTERACTIVE",
        "interactive transactions are not available in this version: send the whole transaction, \
         from BEGIN to COMMIT, in one request, as batch() does",
    )
}

/// The outcomes as the answers to a pipeline's requests.
pub(crate) fn answer(program: &Program, outcomes: Vec<Outcome>) -> Vec<StreamResult> {
    let mut outcomes: Vec<Option<Outcome>> = outcomes.into_iter().map(Some).collect();
    let mut take = |step: usize| outcomes.get_mut(step).and_then(Option::take);
    program
        .answers
        .iter()
        .map(|answer| {
            let response = match answer {
                Answer::Execute { step } => match take(*step) {
                    Some(Outcome::Rows(result)) => Ok(StreamResponse::Execute { result }),
                    other => Err(unanswered(other)),
                },
                Answer::Describe { step } => match take(*step) {
                    Some(Outcome::Described(result)) => Ok(StreamResponse::Describe { result }),
                    other => Err(unanswered(other)),
                },
                Answer::Autocommit { step } => match take(*step) {
                    Some(Outcome::Autocommit(is_autocommit)) => {
                        Ok(StreamResponse::GetAutocommit { is_autocommit })
                    }
                    other => Err(unanswered(other)),
                },
                Answer::Batch { steps } => {
                    let mut result = BatchResult::default();
                    for step in steps.clone() {
                        let (rows, error) = match take(step) {
                            Some(Outcome::Rows(rows)) => (Some(rows), None),
                            None | Some(Outcome::Skipped) => (None, None),
                            other => (None, Some(unanswered(other))),
                        };
                        result.step_results.push(rows);
                        result.step_errors.push(error);
                    }
                    Ok(StreamResponse::Batch { result })
                }
                Answer::Sequence { steps } => {
                    let failed = steps.clone().find_map(|step| match take(step) {
                        Some(Outcome::Error(error)) => Some(error),
                        _ => None,
                    });
                    failed.map_or(Ok(StreamResponse::Sequence), Err)
                }
                Answer::StoreSql => Ok(StreamResponse::StoreSql),
                Answer::CloseSql => Ok(StreamResponse::CloseSql),
                Answer::Close => Ok(StreamResponse::Close),
            };
            match response {
                Ok(response) => StreamResult::Ok { response },
                Err(error) => StreamResult::Error { error },
            }
        })
        .collect()
}

fn unanswered(outcome: Option<Outcome>) -> HranaError {
    match outcome {
        Some(Outcome::Error(error)) => error,
        _ => HranaError::new("LITTORAL_UNAVAILABLE", "the statement did not run"),
    }
}
