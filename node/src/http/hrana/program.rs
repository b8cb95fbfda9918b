//! A pipeline turned into one [`Program`]: a flat list of steps, each with what must hold of earlier
//! ones for it to run. Nothing here knows a database.
//!
//! Because the whole pipeline is one list, a transaction that is begun and ended within it is found
//! wherever its words stand: in one batch, in a script, or spread over several requests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    sql::{self, Parameters, Verb},
    wire::{Condition, HranaError, NamedArg, SqlText, Stmt, StreamRequest, Value},
};

/// Statements stored by one stream at most.
const STORED_MAX: usize = 1000;
/// Bytes of their texts.
const STORED_BYTES_MAX: usize = 16 << 20;
/// What the uses of stored statements may come to in one pipeline: each use is a copy, so a small
/// request could otherwise take any amount of memory.
const STORED_USE_BYTES_MAX: usize = 64 << 20;
/// Steps of one pipeline at most.
const STEPS_MAX: usize = 100_000;

/// A protocol error: the request is answered with status 400, and nothing of it runs.
#[derive(Debug, PartialEq)]
pub(crate) struct BadRequest(pub(crate) HranaError);

impl BadRequest {
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Self(HranaError::new(code, message))
    }
}

/// Everything a pipeline asks for.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    /// What becomes of the steps' outcomes, one for each request.
    pub(crate) answers: Vec<Answer>,
    /// Whether the client closes the stream, so that an open transaction is meant to be rolled back.
    pub(crate) closes: bool,
}

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) action: Action,
    /// Where the steps that the condition's numbers count from begin.
    pub(super) base: usize,
    pub(super) condition: Option<Condition>,
    /// Whether the step is a statement of a script behind its first: it runs if the one before did.
    pub(crate) continues_script: bool,
}

#[derive(Debug)]
pub(crate) enum Action {
    Run(Statement),
    Describe(String),
    /// Tells whether no transaction is open.
    Autocommit,
    /// Fails before it reaches SQLite.
    Fail(HranaError),
}

/// One statement with all its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    pub(crate) verb: Verb,
    /// By parameter number from 1; `None` for numbers the statement does not use.
    pub(crate) arguments: Vec<Option<Value>>,
    pub(crate) want_rows: bool,
}

/// What `store_sql` has stored.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    texts: BTreeMap<i64, String>,
    /// Bytes of all texts.
    bytes: usize,
    /// Bytes of all uses in one request so far.
    used: usize,
}

impl Stored {
    pub(crate) fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    pub(crate) fn store(&mut self, id: i64, sql: String) -> Result<(), BadRequest> {
        if self.texts.len() >= STORED_MAX {
            let message = format!("a stream stores {STORED_MAX} statements at most");
            return Err(BadRequest::new("SQL_STORE_TOO_MANY", message));
        }
        if self.bytes + sql.len() > STORED_BYTES_MAX {
            let message =
                format!("the stored statements come to {} MiB at most", STORED_BYTES_MAX >> 20);
            return Err(BadRequest::new("SQL_STORE_TOO_LARGE", message));
        }
        if self.texts.contains_key(&id) {
            let message = format!("sql_id {id} is in use");
            return Err(BadRequest::new("SQL_ID_IN_USE", message));
        }
        self.bytes += sql.len();
        self.texts.insert(id, sql);
        Ok(())
    }

    pub(crate) fn close(&mut self, id: i64) {
        if let Some(sql) = self.texts.remove(&id) {
            self.bytes -= sql.len();
        }
    }
}

/// Which steps answer a request, and how.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    Execute { step: usize },
    Batch { steps: std::ops::Range<usize> },
    Sequence { steps: std::ops::Range<usize> },
    Describe { step: usize },
    Autocommit { step: usize },
    StoreSql,
    CloseSql,
    Close,
}

/// What conditions can know of an earlier step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fate {
    Skipped,
    Ok,
    Error,
}

impl Program {
    /// Plans a pipeline on a stream that has stored these statements.
    pub(crate) fn plan(
        requests: Vec<StreamRequest>,
        stored: &mut Stored,
    ) -> Result<Self, BadRequest> {
        let mut program = Self::default();
        stored.used = 0;
        for request in requests {
            if program.closes {
                return Err(BadRequest::new("STREAM_CLOSED", "a request follows the close"));
            }
            program.add(request, stored)?;
            if program.steps.len() > STEPS_MAX {
                let message = format!("a pipeline has {STEPS_MAX} statements at most");
                return Err(BadRequest::new("PIPELINE_TOO_LONG", message));
            }
        }
        Ok(program)
    }

    fn add(&mut self, request: StreamRequest, stored: &mut Stored) -> Result<(), BadRequest> {
        let start = self.steps.len();
        let answer = match request {
            StreamRequest::Execute { stmt } => {
                let action = statement(stmt, stored)?;
                self.push(action, start, None);
                Answer::Execute { step: start }
            }
            StreamRequest::Batch { batch } => {
                for (i, step) in batch.steps.into_iter().enumerate() {
                    if let Some(condition) = &step.condition {
                        check_condition(condition, i)?;
                    }
                    let action = statement(step.stmt, stored)?;
                    self.push(action, start, step.condition);
                }
                Answer::Batch { steps: start..self.steps.len() }
            }
            StreamRequest::Sequence(text) => {
                let script = resolve(text, stored)?;
                for (i, sql) in sql::statements(&script).into_iter().enumerate() {
                    let action = match Statement::new(sql.to_owned(), Vec::new(), Vec::new(), false)
                    {
                        Ok(statement) => Action::Run(statement),
                        Err(error) => Action::Fail(error),
                    };
                    self.push(action, start, None);
                    if i > 0 {
                        self.steps[start + i].continues_script = true;
                    }
                }
                Answer::Sequence { steps: start..self.steps.len() }
            }
            StreamRequest::Describe(text) => {
                let sql = resolve(text, stored)?;
                let action = match single(&sql) {
                    Ok(sql) => Action::Describe(sql),
                    Err(error) => Action::Fail(error),
                };
                self.push(action, start, None);
                Answer::Describe { step: start }
            }
            StreamRequest::GetAutocommit => {
                self.push(Action::Autocommit, start, None);
                Answer::Autocommit { step: start }
            }
            StreamRequest::StoreSql { sql_id, sql } => {
                stored.store(sql_id, sql)?;
                Answer::StoreSql
            }
            StreamRequest::CloseSql { sql_id } => {
                stored.close(sql_id);
                Answer::CloseSql
            }
            StreamRequest::Close => {
                self.closes = true;
                Answer::Close
            }
        };
        self.answers.push(answer);
        Ok(())
    }

    fn push(&mut self, action: Action, base: usize, condition: Option<Condition>) {
        self.steps.push(Step { action, base, condition, continues_script: false });
    }

    /// Whether a step runs, given the fates of all steps before it and whether a transaction is open.
    pub(crate) fn runs(&self, step: usize, fates: &[Fate], in_transaction: bool) -> bool {
        let Step { base, condition, continues_script, .. } = &self.steps[step];
        if *continues_script && fates[step - 1] != Fate::Ok {
            return false;
        }
        condition.as_ref().is_none_or(|condition| holds(condition, &fates[*base..], in_transaction))
    }

    /// The words by which a step controls a transaction, if it does.
    pub(crate) fn verb(&self, step: usize) -> Option<Verb> {
        match &self.steps[step].action {
            Action::Run(statement) => Some(statement.verb),
            Action::Describe(_) | Action::Autocommit | Action::Fail(_) => None,
        }
    }

    /// Whether any step behind this one may end a transaction.
    pub(crate) fn ends_transaction_after(&self, step: usize) -> bool {
        (step + 1..self.steps.len())
            .any(|later| self.verb(later).is_some_and(Verb::ends_transaction))
    }

    /// Whether the transaction begun at `step` may turn out to be read-only.
    pub(crate) fn may_only_read(&self, step: usize) -> bool {
        self.verb(step) == Some(Verb::BeginReadOnly)
            || (step + 1..self.steps.len())
                .filter_map(|later| self.verb(later))
                .take_while(|verb| !verb.ends_transaction())
                .all(|verb| verb == Verb::MayRead)
    }

    /// Whether a transaction that is not open yet may be left open.
    pub(crate) fn begins_transaction(&self) -> bool {
        (0..self.steps.len()).any(|step| self.verb(step).is_some_and(Verb::begins_transaction))
    }

    /// The statements of a program that, as far as its words tell, only reads and leaves no transaction open;
    /// `None` of another one.
    pub(super) fn only_reads(&self) -> Option<Vec<String>> {
        let mut statements = Vec::new();
        for (number, step) in self.steps.iter().enumerate() {
            let Action::Run(statement) = &step.action else { continue };
            match statement.verb {
                Verb::MayRead => statements.push(statement.sql.clone()),
                Verb::Commit | Verb::Rollback => {}
                Verb::Begin | Verb::BeginDeferred | Verb::BeginReadOnly => {
                    if !self.may_only_read(number)
                        || !(self.ends_transaction_after(number) || self.closes)
                    {
                        return None;
                    }
                }
                Verb::Insert | Verb::Write | Verb::Savepoint => return None,
            }
        }
        Some(statements)
    }

    /// The end of the statements of one script that may run as one job from `step` on: all up to the
    /// next word that controls a transaction.
    pub(crate) fn script_end(&self, step: usize) -> usize {
        let mut end = step + 1;
        while end < self.steps.len()
            && self.steps[end].continues_script
            && self.verb(end).is_some_and(|verb| !verb.controls_transaction())
        {
            end += 1;
        }
        end
    }
}

/// Conditions may name earlier steps only.
pub(super) fn check_condition(condition: &Condition, step: usize) -> Result<(), BadRequest> {
    match condition {
        Condition::Ok { step: named } | Condition::Error { step: named } if *named >= step => {
            let message = format!("the condition of step {step} names step {named}");
            Err(BadRequest::new("BAD_CONDITION", message))
        }
        Condition::Ok { .. } | Condition::Error { .. } | Condition::IsAutocommit => Ok(()),
        Condition::Not { cond } => check_condition(cond, step),
        Condition::And { conds } | Condition::Or { conds } => {
            conds.iter().try_for_each(|condition| check_condition(condition, step))
        }
    }
}

fn holds(condition: &Condition, fates: &[Fate], in_transaction: bool) -> bool {
    match condition {
        Condition::Ok { step } => fates[*step] == Fate::Ok,
        Condition::Error { step } => fates[*step] == Fate::Error,
        Condition::Not { cond } => !holds(cond, fates, in_transaction),
        Condition::And { conds } => conds.iter().all(|c| holds(c, fates, in_transaction)),
        Condition::Or { conds } => conds.iter().any(|c| holds(c, fates, in_transaction)),
        Condition::IsAutocommit => !in_transaction,
    }
}

fn resolve(text: SqlText, stored: &mut Stored) -> Result<String, BadRequest> {
    match text {
        SqlText { sql: Some(sql), sql_id: None } => Ok(sql),
        SqlText { sql: None, sql_id: Some(id) } => {
            let text = stored.texts.get(&id).ok_or_else(|| {
                BadRequest::new("SQL_NOT_FOUND", format!("no statement is stored as sql_id {id}"))
            })?;
            stored.used += text.len();
            if stored.used > STORED_USE_BYTES_MAX {
                let message = format!(
                    "the stored statements of a pipeline come to {} MiB at most, each use counted",
                    STORED_USE_BYTES_MAX >> 20
                );
                return Err(BadRequest::new("PIPELINE_TOO_LONG", message));
            }
            Ok(text.clone())
        }
        SqlText { .. } => {
            Err(BadRequest::new("SQL_OR_ID", "exactly one of sql and sql_id must be given"))
        }
    }
}

fn statement(stmt: Stmt, stored: &mut Stored) -> Result<Action, BadRequest> {
    let sql = resolve(stmt.text, stored)?;
    let planned = single(&sql).and_then(|sql| {
        let positional = stmt.args.unwrap_or_default();
        let named = stmt.named_args.unwrap_or_default();
        Statement::new(sql, positional, named, stmt.want_rows.unwrap_or(true))
    });
    Ok(match planned {
        Ok(statement) => Action::Run(statement),
        Err(error) => Action::Fail(error),
    })
}

/// The one statement of a text.
fn single(sql: &str) -> Result<String, HranaError> {
    match sql::statements(sql).as_slice() {
        [] => Err(HranaError::new("SQL_NO_STATEMENT", "the SQL contains no statement")),
        [only] => Ok((*only).to_owned()),
        many => {
            let message = format!(
                "the SQL contains {} statements, one is expected; scripts go as a sequence",
                many.len()
            );
            Err(HranaError::new("SQL_MANY_STATEMENTS", message))
        }
    }
}

impl Statement {
    fn new(
        sql: String,
        positional: Vec<Value>,
        named: Vec<NamedArg>,
        want_rows: bool,
    ) -> Result<Self, HranaError> {
        let invalid = |message: String| HranaError::new("ARGS_INVALID", message);
        let parameters = Parameters::of(&sql);
        if positional.len() > parameters.count() {
            return Err(invalid(format!(
                "{} arguments were given, the statement has {} parameters",
                positional.len(),
                parameters.count()
            )));
        }
        let mut arguments: Vec<Option<Value>> = vec![None; parameters.count()];
        for (slot, value) in arguments.iter_mut().zip(positional) {
            *slot = Some(value);
        }
        for NamedArg { name, value } in named {
            let Some(index) = parameters.index_of(&name) else {
                return Err(invalid(format!("the statement has no parameter named {name:?}")));
            };
            arguments[index] = Some(value);
        }
        for (index, argument) in arguments.iter().enumerate() {
            if argument.is_none() && parameters.is_used(index) {
                return Err(invalid(format!("parameter {} has no argument", index + 1)));
            }
        }
        let verb = Verb::of(&sql);
        Ok(Self { sql, verb, arguments, want_rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<Program, BadRequest> {
        Program::plan(serde_json::from_str(json).unwrap(), &mut Stored::default())
    }

    /// What `@libsql/client` sends for a batch.
    const BATCH: &str = r#"[{"type":"store_sql","sql_id":0,"sql":"INSERT INTO t VALUES (?)"},
        {"type":"batch","batch":{"steps":[
            {"stmt":{"sql":"BEGIN IMMEDIATE"}},
            {"condition":{"type":"and","conds":[{"type":"ok","step":0},
                {"type":"not","cond":{"type":"is_autocommit"}}]},
             "stmt":{"sql_id":0,"args":[{"type":"integer","value":"1"}]}},
            {"condition":{"type":"ok","step":1},"stmt":{"sql":"COMMIT"}},
            {"condition":{"type":"not","cond":{"type":"ok","step":2}},"stmt":{"sql":"ROLLBACK"}}
        ]}},{"type":"close"}]"#;

    #[test]
    fn a_batch_becomes_steps_with_conditions() {
        let program = plan(BATCH).unwrap();
        assert!(program.closes);
        assert_eq!(
            program.answers,
            [Answer::StoreSql, Answer::Batch { steps: 0..4 }, Answer::Close]
        );
        assert_eq!(program.verb(0), Some(Verb::Begin));
        assert!(program.ends_transaction_after(0) && !program.may_only_read(0));
        assert!(program.runs(1, &[Fate::Ok], true));
        assert!(!program.runs(1, &[Fate::Ok], false), "no transaction, no statement");
        assert!(!program.runs(2, &[Fate::Ok, Fate::Error], true));
        assert!(program.runs(3, &[Fate::Ok, Fate::Error, Fate::Skipped], true));
        assert!(!program.runs(3, &[Fate::Ok; 3], true));
    }

    #[test]
    fn a_transaction_may_span_requests() {
        let program = plan(
            r#"[{"type":"execute","stmt":{"sql":"BEGIN"}},
                {"type":"execute","stmt":{"sql":"SELECT 1"}},
                {"type":"execute","stmt":{"sql":"COMMIT"}}]"#,
        )
        .unwrap();
        assert!(program.ends_transaction_after(0) && program.may_only_read(0));
        assert!(!program.closes);
    }

    #[test]
    fn scripts_stop_at_their_first_error_and_at_transaction_words() {
        let program = plan(
            r#"[{"type":"sequence","sql":"INSERT INTO t VALUES (1); DELETE FROM t; BEGIN; DELETE FROM u; COMMIT"},
                {"type":"execute","stmt":{"sql":"SELECT 1"}}]"#,
        )
        .unwrap();
        assert_eq!(program.steps.len(), 6);
        assert_eq!(program.script_end(0), 2);
        assert_eq!(program.script_end(3), 4);
        assert!(!program.runs(1, &[Fate::Error], false));
        assert!(program.runs(5, &[Fate::Error; 5], false), "the next request is no part of it");
    }

    #[test]
    fn arguments_must_fit_the_parameters() {
        let check = |stmt: &str, code: Option<&str>| {
            let program = plan(&format!(r#"[{{"type":"execute","stmt":{stmt}}}]"#)).unwrap();
            match (&program.steps[0].action, code) {
                (Action::Run(_), None) => {}
                (Action::Fail(error), Some(code)) => assert_eq!(error.code, code, "{stmt}"),
                (action, _) => panic!("{stmt}: {action:?}"),
            }
        };
        let one = r#"[{"type":"null"}]"#;
        check(&format!(r#"{{"sql":"SELECT ?","args":{one}}}"#), None);
        check(r#"{"sql":"SELECT ?"}"#, Some("ARGS_INVALID"));
        check(&format!(r#"{{"sql":"SELECT 1","args":{one}}}"#), Some("ARGS_INVALID"));
        let named = r#"[{"name":"a","value":{"type":"null"}}]"#;
        check(&format!(r#"{{"sql":"SELECT :a, @a","named_args":{named}}}"#), Some("ARGS_INVALID"));
        check(&format!(r#"{{"sql":"SELECT $a","named_args":{named}}}"#), None);
        check(&format!(r#"{{"sql":"SELECT :b","named_args":{named}}}"#), Some("ARGS_INVALID"));
        check(r#"{"sql":"SELECT 1; SELECT 2"}"#, Some("SQL_MANY_STATEMENTS"));
        check(r#"{"sql":" -- nothing"}"#, Some("SQL_NO_STATEMENT"));
    }

    #[test]
    fn uses_of_a_stored_statement_are_bounded() {
        let text = format!("SELECT '{}'", "x".repeat(1 << 20));
        let uses = |count: usize| {
            let uses = r#",{"type":"execute","stmt":{"sql_id":1}}"#.repeat(count);
            plan(&format!(r#"[{{"type":"store_sql","sql_id":1,"sql":"{text}"}}{uses}]"#))
        };
        assert!(uses(60).is_ok());
        assert_eq!(uses(1000).unwrap_err().0.code, "PIPELINE_TOO_LONG");
    }

    #[test]
    fn protocol_errors_are_refused_whole() {
        for (json, code) in [
            (r#"[{"type":"close"},{"type":"close"}]"#, "STREAM_CLOSED"),
            (r#"[{"type":"execute","stmt":{"sql_id":3}}]"#, "SQL_NOT_FOUND"),
            (r#"[{"type":"execute","stmt":{}}]"#, "SQL_OR_ID"),
            (r#"[{"type":"execute","stmt":{"sql":"","sql_id":1}}]"#, "SQL_OR_ID"),
            (
                r#"[{"type":"store_sql","sql_id":1,"sql":""},
                    {"type":"store_sql","sql_id":1,"sql":""}]"#,
                "SQL_ID_IN_USE",
            ),
            (
                r#"[{"type":"batch","batch":{"steps":[
                    {"condition":{"type":"ok","step":0},"stmt":{"sql":"SELECT 1"}}]}}]"#,
                "BAD_CONDITION",
            ),
        ] {
            assert_eq!(plan(json).unwrap_err().0.code, code, "{json}");
        }
    }
}
