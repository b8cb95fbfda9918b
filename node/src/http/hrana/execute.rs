//! Carrying out a [`Program`]: which steps go to a reader, which become one write job, and what became
//! of each.
//!
//! ```text
//!   outside a transaction    SELECT and the like ── reader pool
//!                            anything else ──────── a write job of its own
//!                            a script's writes ──── one write job, up to the first error
//!   BEGIN                    everything up to COMMIT or ROLLBACK is one write job,
//!                            or one read transaction if nothing in it writes
//!   a table of the origin's  the whole job runs there; with a key, every job
//! ```
//!
//! Transaction words never reach SQLite. Once a transaction was lost, or could not begin, every
//! statement fails until the client says ROLLBACK or COMMIT: none may slip into autocommit.

use std::{ops::Range, sync::Arc};

use littoral::{Grants, TableSet, WriteError};
use parking_lot::Mutex;

use super::{
    forward::{Key, Parcel, run_at_origin},
    outcome::{Outcome, no_transaction},
    program::{Action, Fate, Program},
    region::{End, Ran, Region, RegionJob, SomethingWrites, never_ran, run_region},
    session::{Fault, RESPONSE_BYTES_MAX, ReadSession, perform},
    sql::{self, Verb},
    wire::HranaError,
};
use crate::runtime::{NodeHandle, WRITE_TIME_LIMIT};

/// Runs a whole program; there is one outcome for each step.
/// `grants` is what the engine is to allow, if not everything.
pub(crate) async fn execute(
    node: &NodeHandle,
    grants: Option<&Arc<Grants>>,
    program: &Arc<Program>,
    key: Option<&Key>,
) -> Vec<Outcome> {
    let mut run = Run {
        node,
        grants,
        program,
        key,
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
    grants: Option<&'a Arc<Grants>>,
    program: &'a Arc<Program>,
    /// The name of the client's request.
    key: Option<&'a Key>,
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
        let mut refused = self
            .grants
            .filter(|grants| !may_migrate(grants))
            .map(|_| HranaError::from(&WriteError::NotGranted { what: "a migration".to_owned() }));
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

    /// Waits until this node may serve what steps read, as the policies of their tables say.
    async fn admit(&self, steps: Range<usize>) -> Result<(), HranaError> {
        if !self.node.bounds_lag() {
            return Ok(());
        }
        let statements = steps.filter_map(|step| match &self.program.steps[step].action {
            Action::Run(statement) => Some(statement.sql.clone()),
            Action::Describe(_) | Action::Autocommit | Action::Fail(_) => None,
        });
        let admitted = self.node.admit(statements.collect()).await;
        admitted.map_err(|error| HranaError::from(&error))
    }

    /// Runs a step that may only read, or hands it to the writer if it turns out to write.
    async fn read_one(&mut self, step: usize) {
        if let Err(error) = self.admit(step..step + 1).await {
            return self.push(Outcome::Error(error));
        }
        let program = Arc::clone(self.program);
        let mut budget = self.budget;
        let answer = self
            .node
            .read_as(self.grants.cloned(), move |reader| {
                let mut session = ReadSession(reader);
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
            if let Err(error) = self.admit(region.steps.clone()).await {
                return self.end_transaction(None, Err(error));
            }
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
            .read_as(self.grants.cloned(), move |reader| {
                let connection = reader.connection();
                let transaction = connection.unchecked_transaction()?;
                let mut session = ReadSession(reader);
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
        // With a key it is run once, whichever nodes it is sent to.
        if self.key.is_some() {
            return self.at_origin(&region).await;
        }
        let job = RegionJob {
            program: Arc::clone(self.program),
            grants: self.grants.cloned(),
            region: region.clone(),
            prior: self.fates.clone(),
            budget: self.budget,
        };
        let slot: Arc<Mutex<Option<Ran>>> = Arc::default();
        let last_run = Arc::clone(&slot);
        let result =
            self.node.write_within(WRITE_TIME_LIMIT, move |tx| job.run(tx, &last_run)).await;
        // Nothing of it was written here.
        if let Err(WriteError::OriginOnly { .. }) = &result {
            return self.at_origin(&region).await;
        }
        let ran = slot.lock().take();
        (ran, result.map(|_| ()).map_err(|error| HranaError::from(&error)))
    }

    async fn at_origin(&self, region: &Region) -> (Option<Ran>, Result<(), HranaError>) {
        let (program, fates) = (self.program, &self.fates);
        let parcel = Parcel::of(program, region, fates, self.grants.map(AsRef::as_ref));
        run_at_origin(self.node, parcel, region.begin, self.key, self.budget).await
    }
}

/// A migration runs as a whole, on a connection of its own, and may do anything.
fn may_migrate(grants: &Grants) -> bool {
    let rows = [&grants.read, &grants.insert, &grants.update, &grants.delete];
    grants.schema && rows.iter().all(|tables| **tables == TableSet::All)
}

fn interactive() -> HranaError {
    HranaError::new(
        "TRANSACTION_INTERACTIVE",
        "interactive transactions are not available in this version: send the whole transaction, \
         from BEGIN to COMMIT, in one request, as batch() does",
    )
}
