//! Carrying out a [`Program`] on a [`Stream`]: which steps go to a reader, which become one write job, which
//! an interactive transaction, and what became of each.
//!
//! ```text
//!   outside a transaction    SELECT and the like ── reader pool
//!                            anything else ──────── a write job of its own
//!                            a script's writes ──── one write job, up to the first error
//!   BEGIN, and its end in    everything up to COMMIT or ROLLBACK is one write job,
//!   the same request         or one read transaction if nothing in it writes
//!   BEGIN, and no end        an interactive transaction: IMMEDIATE waits for the writer,
//!                            the others read in one snapshot until something writes
//!   a bookmark that is not    what reads is read at the origin
//!   reached here
//!   a table of the origin's  the whole job or transaction runs there, and so does what reads an
//!                            origin-strong one; with a key, every job
//! ```
//!
//! Transaction words never reach SQLite. Once a transaction was lost, or could not begin, every
//! statement fails until the client says ROLLBACK or COMMIT: none may slip into autocommit.

use std::{ops::Range, sync::Arc, time::Instant};

use littoral::{Grants, Reader, TableSet, WriteError, WriteTx};
use parking_lot::Mutex;

use super::{
    at_origin::{After, Shown},
    emitter::Emitter,
    forward::Key,
    outcome::{Outcome, no_transaction},
    program::{Action, Fate, Program},
    region::{End, Kind, NotHere, Ran, Region, RegionJob, never_ran, run_region},
    session::{Fault, RESPONSE_BYTES_MAX, ReadSession, perform},
    slow::Spent,
    sql::{self, Verb},
    stream::{Notes, Open, Stream},
    wire::HranaError,
};
use crate::runtime::{HeldReader, NodeHandle, Place, ReadError, WRITE_TIME_LIMIT};

/// Runs a whole program; there is one outcome for each step. With an emitter, outcomes are sent as they
/// come, rows as they are read, and what is left is how the steps went. `grants` is what the engine is to
/// allow, if not everything.
pub(super) async fn execute(
    node: &NodeHandle,
    grants: Option<&Arc<Grants>>,
    stream: &mut Stream,
    program: &Arc<Program>,
    key: Option<&Key>,
    after: Option<After>,
    emitter: Option<Emitter>,
) -> Vec<Outcome> {
    stream.look();
    stream.notes = Notes::default();
    let mut run = Run {
        node,
        grants,
        stream,
        program,
        key,
        after,
        outcomes: Vec::new(),
        fates: Vec::new(),
        budget: RESPONSE_BYTES_MAX,
        emitter,
        spent: Spent::default(),
    };
    while run.outcomes.len() < program.steps.len() {
        let first = run.outcomes.len();
        let began = Instant::now();
        run.next().await;
        run.account(first, began.elapsed());
        if run.emit(first).await.is_err() {
            break;
        }
    }
    run.outcomes
}

/// The client of a cursor has gone away.
struct Gone;

pub(super) struct Run<'a> {
    pub(super) node: &'a NodeHandle,
    pub(super) grants: Option<&'a Arc<Grants>>,
    pub(super) stream: &'a mut Stream,
    pub(super) program: &'a Arc<Program>,
    /// The name of the client's request.
    pub(super) key: Option<&'a Key>,
    /// Its reads are made at the origin.
    pub(super) after: Option<After>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) fates: Vec<Fate>,
    /// What is left of [`RESPONSE_BYTES_MAX`].
    pub(super) budget: usize,
    pub(super) emitter: Option<Emitter>,
    /// Where the time of the steps goes that run now.
    pub(super) spent: Spent,
}

impl Run<'_> {
    pub(super) fn push(&mut self, mut outcome: Outcome) {
        if let Outcome::Error(error) = &mut outcome
            && error.message.starts_with("no such table")
            && self.node.awaits_schema()
        {
            *error = HranaError::new(
                "LITTORAL_NOT_A_MEMBER",
                format!(
                    "{}: this node has not received the cluster's tables yet; they come with its first \
                     link to the cluster",
                    error.message
                ),
            );
        }
        self.fates.push(outcome.fate());
        self.outcomes.push(outcome);
    }

    pub(super) fn fates(&self) -> &[Fate] {
        &self.fates
    }

    pub(super) fn fail(&mut self, error: HranaError) {
        self.push(Outcome::Error(error));
    }

    /// Sends what has become of the steps from `first` on, if that is asked for.
    async fn emit(&mut self, first: usize) -> Result<(), Gone> {
        let Some(emitter) = &mut self.emitter else { return Ok(()) };
        for (step, outcome) in self.outcomes.iter_mut().enumerate().skip(first) {
            emitter.outcome(step, outcome).await;
            if let Outcome::Rows(_) = outcome {
                *outcome = Outcome::Sent;
            }
        }
        emitter.flush().await;
        if emitter.is_gone() { Err(Gone) } else { Ok(()) }
    }

    /// Runs the next step, and with it those that belong to it.
    async fn next(&mut self) {
        let step = self.outcomes.len();
        if !self.program.runs(step, &self.fates, self.stream.is_in_transaction()) {
            return self.push(Outcome::Skipped);
        }
        match &self.stream.open {
            Open::No => self.outside(step).await,
            Open::LostAtCommit => {
                self.stream.open = Open::No;
                match self.program.verb(step) {
                    Some(Verb::Rollback) => self.push(Outcome::nothing()),
                    _ => self.outside(step).await,
                }
            }
            Open::Lost(error) => {
                let error = error.clone();
                match self.program.verb(step) {
                    Some(Verb::Rollback) => {
                        self.stream.open = Open::No;
                        self.push(Outcome::nothing());
                    }
                    Some(Verb::Commit) => {
                        self.stream.open = Open::No;
                        self.fail(error);
                    }
                    _ => match &self.program.steps[step].action {
                        Action::Autocommit => self.push(Outcome::Autocommit(false)),
                        _ => self.fail(error),
                    },
                }
            }
            Open::Begun { .. } | Open::Reads { .. } | Open::Writes(_) | Open::AtOrigin { .. } => {
                self.inside(step).await;
            }
        }
    }

    /// Runs a step outside a transaction, or the transaction that it begins.
    async fn outside(&mut self, step: usize) {
        let verb = match &self.program.steps[step].action {
            Action::Run(statement) => statement.verb,
            Action::Describe(_) => return self.read_one(step).await,
            Action::Autocommit => return self.push(Outcome::Autocommit(true)),
            Action::Fail(error) => return self.push(Outcome::Error(error.clone())),
        };
        match verb {
            Verb::Commit => self.push(no_transaction("cannot commit - no transaction is active")),
            Verb::Rollback => {
                self.push(no_transaction("cannot rollback - no transaction is active"));
            }
            Verb::Begin | Verb::BeginDeferred | Verb::BeginReadOnly => self.transaction(step).await,
            Verb::MayRead if self.switches_foreign_keys(step, "off") => {
                self.migration(step).await;
            }
            Verb::MayRead => self.read_one(step).await,
            Verb::Insert | Verb::Write | Verb::Savepoint => {
                let end = self.program.script_end(step);
                // Alone it would open a transaction that later statements are meant to be in.
                if verb == Verb::Savepoint && end == step + 1 {
                    return self.fail(savepoint_outside());
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
        let mut ran = Vec::new();
        let (mut fates, mut in_transaction) = (self.fates.clone(), false);
        for step in first..=last {
            // Some, as a ROLLBACK, only stand there for what fails before.
            if !self.program.runs(step, &fates, in_transaction) {
                fates.push(Fate::Skipped);
                continue;
            }
            fates.push(Fate::Ok);
            match &self.program.steps[step].action {
                Action::Run(statement) if statement.verb == Verb::Rollback => {
                    if refused.is_none() {
                        told_at = step;
                    }
                    let error = WriteError::Aborted("the migration rolls itself back".to_owned());
                    refused.get_or_insert_with(|| HranaError::from(&error));
                }
                Action::Run(statement) => {
                    in_transaction = match statement.verb {
                        Verb::Begin | Verb::BeginDeferred | Verb::BeginReadOnly => true,
                        Verb::Commit => false,
                        _ => in_transaction,
                    };
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
                    ran.push(step);
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
            None => self.node.migrate(script).await.map_err(|error| {
                if let WriteError::InMigration { number, .. } = &error {
                    told_at = ran.get(number - 1).copied().unwrap_or(told_at);
                }
                HranaError::from(&error)
            }),
        };
        for step in first..=last {
            let skipped = fates.get(step) == Some(&Fate::Skipped);
            self.push(match (&result, self.program.verb(step)) {
                (Ok(_), _) if skipped => Outcome::Skipped,
                (Err(error), _) if step == told_at => Outcome::Error(error.clone()),
                (Err(_), verb) if step > told_at && step < last && verb != Some(Verb::Rollback) => {
                    Outcome::Skipped
                }
                _ => Outcome::nothing(),
            });
        }
    }

    /// Waits until this node may serve what steps read, as the policies of their tables say, or tells that the
    /// origin is to.
    pub(super) async fn admit(&self, steps: Range<usize>) -> Result<Place, HranaError> {
        if !self.node.bounds_lag() {
            return Ok(Place::Here);
        }
        let began = Instant::now();
        let admitted = self.node.admit(self.statements(steps)).await;
        self.spent.waited_for_lag(began);
        admitted.map_err(|error| HranaError::from(&error))
    }

    pub(super) fn statements(&self, steps: Range<usize>) -> Vec<String> {
        let statement = |step: usize| match &self.program.steps[step].action {
            // The words of transactions read nothing, and never reach SQLite.
            Action::Run(statement) if !statement.verb.controls_transaction() => {
                Some(statement.sql.clone())
            }
            _ => None,
        };
        steps.filter_map(statement).collect()
    }

    /// Runs a step that may only read, or hands it to the writer if it turns out to write.
    async fn read_one(&mut self, step: usize) {
        if self.after.is_some() {
            let (ran, result) = self.read_at_origin(&alone(step), Shown::Later).await;
            return self.wrote(ran, result);
        }
        match self.read_on(None, step).await {
            Ok(outcome) => self.push(outcome),
            Err(Fault::Step(error)) => self.fail(error),
            Err(Fault::Writes) => self.write(step..step + 1).await,
            Err(Fault::AtOrigin(_)) => {
                let (ran, result) = self.at_origin(&alone(step)).await;
                self.wrote(ran, result);
            }
            Err(Fault::TooOld(_)) => {
                let (ran, result) = self.read_at_origin(&alone(step), Shown::Later).await;
                self.wrote(ran, result);
            }
        }
    }

    /// Runs a step on a reader: one of the pool if no other is given.
    pub(super) async fn read_on(
        &mut self,
        reader: Option<&HeldReader>,
        step: usize,
    ) -> Result<Outcome, Fault> {
        if let Place::Origin(old) = self.admit(step..step + 1).await.map_err(Fault::Step)? {
            if !self.node.only_read(self.statements(step..step + 1)).await {
                return Err(Fault::Writes);
            }
            return Err(Fault::TooOld(HranaError::from(&ReadError::from(old))));
        }
        self.spent.at("a reader");
        let program = Arc::clone(self.program);
        let budget = self.budget;
        let spare = self.emitter.as_ref().map(Emitter::again);
        let work = move |reader: &Reader, emitter: &mut Option<Emitter>| {
            let mut session = ReadSession(reader);
            let emit = emitter.as_mut().map(|emitter| {
                emitter.start();
                (emitter, step)
            });
            let mut budget = budget;
            let action = &program.steps[step].action;
            let outcome = perform(&mut session, action, &mut budget, emit);
            (outcome, budget)
        };
        let grants = self.grants.cloned();
        let answer = match (reader, self.emitter.take()) {
            (None, None) => {
                let read = self.node.read_known(grants, self.text(step), move |reader| {
                    (work(reader, &mut None), None)
                });
                read.await
            }
            (reader, mut emitter) => {
                let work = move |reader: &Reader| (work(reader, &mut emitter), emitter);
                match reader {
                    Some(reader) => reader.read(grants, work).await,
                    None => self.node.read_as(grants, work).await,
                }
            }
        };
        match answer {
            Ok(((outcome, budget), emitter)) => {
                self.budget = budget;
                self.emitter = emitter;
                outcome
            }
            Err(error) => {
                self.emitter = spare;
                Err(Fault::Step(HranaError::from(&error)))
            }
        }
    }

    /// What tells steps apart that take more or less time.
    fn text(&self, step: usize) -> &str {
        match &self.program.steps[step].action {
            Action::Run(statement) => &statement.sql,
            Action::Describe(sql) => sql,
            Action::Autocommit | Action::Fail(_) => "",
        }
    }

    /// Runs statements as one job that is committed as far as it came.
    async fn write(&mut self, steps: Range<usize>) {
        let (ran, result) =
            self.job(Region { begin: steps.start, steps, kind: Kind::Script }).await;
        self.wrote(ran, result);
    }

    /// What became of statements that ran as one job.
    fn wrote(&mut self, ran: Option<Ran>, result: Result<(), HranaError>) {
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

    /// Runs the transaction that begins at `step`: with its end if that is in this request.
    async fn transaction(&mut self, step: usize) {
        let program = Arc::clone(self.program);
        let ends = program.ends_transaction_after(step) || program.closes;
        let reads = program.may_only_read(step);
        // Rows that are sent as they are read need a reader for themselves.
        if !ends || (reads && self.emitter.is_some() && self.after.is_none()) {
            return self.begin(step).await;
        }
        let region =
            Region { begin: step, steps: step + 1..program.steps.len(), kind: Kind::Begun };
        let (ran, result) = match reads {
            true if self.after.is_some() => self.read_at_origin(&region, Shown::Later).await,
            true => match self.admitted_transaction(region.clone()).await {
                Ok(Ok(ran)) => (Some(ran), Ok(())),
                Ok(Err(NotHere::Writes)) => self.job(region).await,
                Ok(Err(NotHere::AtOrigin)) => self.at_origin(&region).await,
                Ok(Err(NotHere::TooOld)) => self.read_at_origin(&region, Shown::Later).await,
                Err(error) => (None, Err(error)),
            },
            false => self.job(region).await,
        };
        match ran {
            // Nothing of it stands, and it has to stay open: so once more, with the steps as they come.
            Some(Ran { end: End::Open, .. }) if !program.closes => match self.caught_up().await {
                Ok(()) => self.begin(step).await,
                Err(error) => {
                    self.fail(error.clone());
                    self.stream.open = Open::Lost(error);
                }
            },
            Some(ran) => self.ended(ran, result),
            None => {
                // There is no more to tell than the error, so it is BEGIN that failed.
                let error = result.err().unwrap_or_else(never_ran);
                self.fail(error.clone());
                self.stream.open = Open::Lost(error);
            }
        }
    }

    /// What became of a transaction within one request.
    fn ended(&mut self, ran: Ran, result: Result<(), HranaError>) {
        self.budget = ran.budget;
        let interruption = match (ran.end, ran.outcomes.last()) {
            (End::Interrupted, Some(Outcome::Error(error))) => Some(error.clone()),
            _ => None,
        };
        for outcome in ran.outcomes {
            self.push(outcome);
        }
        if let Some(error) = interruption {
            self.stream.open = Open::Lost(error);
            return;
        }
        match (ran.end, result) {
            (End::Commit, Ok(())) | (End::Rollback, _) => self.push(Outcome::nothing()),
            (End::Commit, Err(error)) => {
                self.fail(error);
                self.stream.open = Open::LostAtCommit;
            }
            (End::Open | End::Interrupted, _) => {}
        }
    }

    async fn admitted_transaction(
        &self,
        region: Region,
    ) -> Result<Result<Ran, NotHere>, HranaError> {
        match self.admit(region.steps.clone()).await? {
            Place::Here => self.read_transaction(region).await,
            Place::Origin(_) if self.only_reads(&region).await => Ok(Err(NotHere::TooOld)),
            Place::Origin(_) => Ok(Err(NotHere::Writes)),
        }
    }

    /// Runs the transaction on a reader, as long as nothing in it writes.
    async fn read_transaction(&self, region: Region) -> Result<Result<Ran, NotHere>, HranaError> {
        self.spent.at("a reader");
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
    async fn job(&mut self, region: Region) -> (Option<Ran>, Result<(), HranaError>) {
        // With a key it is run once, whichever nodes it is sent to.
        if self.key.is_some() {
            return self.at_origin(&region).await;
        }
        match self.admit(region.steps.clone()).await {
            Ok(Place::Here) => {}
            // What it writes then is written there, too; but rows that are this node's own are not there.
            Ok(Place::Origin(old)) => {
                let statements = self.statements(region.steps.clone());
                if !self.node.touch_local(statements).await {
                    return self.at_origin(&region).await;
                }
                let mut error = HranaError::from(&ReadError::from(old));
                error.message.push_str(
                    "; it touches rows that are local to this node, so it cannot run at the origin",
                );
                return (None, Err(error));
            }
            Err(error) => return (None, Err(error)),
        }
        let job = RegionJob {
            program: Arc::clone(self.program),
            grants: self.grants.cloned(),
            region: region.clone(),
            prior: self.fates.clone(),
            budget: self.budget,
            read_only: false,
        };
        self.spent.at("the writer");
        let slot: Arc<Mutex<Option<Ran>>> = Arc::default();
        let last_run = Arc::clone(&slot);
        // Of several statements none tells how long all of them take.
        let text = (region.steps.len() == 1).then(|| self.text(region.steps.start));
        let run = move |tx: &mut WriteTx<'_>| job.run(tx, &last_run);
        let result = self.node.write_within(WRITE_TIME_LIMIT, text, run).await;
        // Nothing of it was written here.
        if let Err(WriteError::OriginOnly { .. }) = &result {
            return self.at_origin(&region).await;
        }
        let ran = slot.lock().take();
        (ran, result.map(|_| ()).map_err(|error| HranaError::from(&error)))
    }
}

fn alone(step: usize) -> Region {
    Region { begin: step, steps: step..step + 1, kind: Kind::Script }
}

/// A migration runs as a whole, on a connection of its own, and may do anything.
fn may_migrate(grants: &Grants) -> bool {
    let rows = [&grants.read, &grants.insert, &grants.update, &grants.delete];
    grants.schema && rows.iter().all(|tables| **tables == TableSet::All)
}

fn savepoint_outside() -> HranaError {
    HranaError::new("LITTORAL_FORBIDDEN", "a savepoint outside of a transaction: say BEGIN first")
}
