//! Steps of a transaction that stays open from request to request.

use std::{mem, ops::Range, sync::Arc, time::Instant};

use littoral::{Admission, Reader, WriteError};
use rusqlite::Connection;

use super::{
    at_origin::strong_reads,
    execute::Run,
    journal::Journal,
    outcome::{Outcome, no_transaction},
    program::Action,
    region::{End, Kind, Ran, Region, never_ran, read_only_transaction, run_region},
    session::{Fault, ReadSession, WriteSession, perform},
    sql::{Place, Verb},
    stream::Open,
    wire::HranaError,
};
use crate::runtime::{HeldReader, ReadError, TooStale, Transaction, TransactionError};

impl Run<'_> {
    /// Begins a transaction that is left open, at least for now.
    pub(super) async fn begin(&mut self, step: usize) {
        self.spent.at("the queue for the writer");
        self.stream.journal = Journal::default();
        self.stream.place = match &self.program.steps[step].action {
            Action::Run(statement) => Place::of(&statement.sql),
            Action::Describe(_) | Action::Autocommit | Action::Fail(_) => Place::Anywhere,
        };
        let begun = match self.program.verb(step) {
            Some(Verb::Begin) if self.is_undecided() => {
                Ok(Open::Begun { read_only: false, undecided: true })
            }
            Some(Verb::Begin) if self.begins_at_origin() => match self.node.visit().await {
                Ok(visit) => Ok(Open::AtOrigin { visit, read_only: false }),
                Err(error) => Err(HranaError::from(&error)),
            },
            Some(Verb::Begin) => match self.node.begin().await {
                Ok(transaction) => Ok(Open::Writes(transaction)),
                Err(error) => Err(HranaError::from(&error)),
            },
            verb => {
                let read_only = verb == Some(Verb::BeginReadOnly);
                Ok(Open::Begun { read_only, undecided: false })
            }
        };
        match begun {
            Ok(open) => {
                self.stream.open = open;
                self.push(Outcome::nothing());
            }
            Err(error) => {
                self.fail(error.clone());
                self.stream.open = Open::Lost(error);
            }
        }
    }

    /// Runs a step within the transaction that is open.
    pub(super) async fn inside(&mut self, step: usize) {
        match mem::take(&mut self.stream.open) {
            Open::Writes(transaction) => self.on_writer(transaction, step).await,
            Open::AtOrigin { visit, read_only } => self.visiting(visit, step, read_only).await,
            open => self.before_writing(open, step).await,
        }
    }

    /// A step of a transaction that has not asked for the writer.
    async fn before_writing(&mut self, open: Open, step: usize) {
        let verb = match &self.program.steps[step].action {
            Action::Run(statement) => statement.verb,
            Action::Describe(_) => Verb::MayRead,
            Action::Autocommit => {
                self.stream.open = open;
                return self.push(Outcome::Autocommit(false));
            }
            Action::Fail(error) => {
                self.push(Outcome::Error(error.clone()));
                self.stream.open = open;
                return;
            }
        };
        let read_only = matches!(
            open,
            Open::Begun { read_only: true, .. } | Open::Reads { read_only: true, .. }
        );
        let undecided = matches!(open, Open::Begun { undecided: true, .. });
        match verb {
            Verb::Commit | Verb::Rollback => self.push(Outcome::nothing()),
            Verb::Begin | Verb::BeginDeferred | Verb::BeginReadOnly => {
                self.push(no_transaction("cannot start a transaction within a transaction"));
                self.stream.open = open;
            }
            _ if undecided && self.goes_to_origin(step).await => match self.node.visit().await {
                Ok(visit) => self.visiting(visit, step, false).await,
                Err(error) => self.lose(HranaError::from(&error)),
            },
            // While it has the writer nothing is applied here, so this is the time to wait for newer rows.
            _ if undecided => match self.admit(step..step + 1).await {
                Ok(_) => self.ask_for_writer(open, step).await,
                Err(error) => {
                    self.fail(error);
                    self.stream.open = open;
                }
            },
            Verb::MayRead => self.read_inside(open, read_only, step).await,
            // The reader's connection knows them as well.
            Verb::Savepoint if read_only => self.read_inside(open, read_only, step).await,
            Verb::Insert | Verb::Write if read_only => {
                self.fail(read_only_transaction());
                self.stream.open = open;
            }
            Verb::Insert | Verb::Write | Verb::Savepoint => self.ask_for_writer(open, step).await,
        }
    }

    async fn read_inside(&mut self, open: Open, read_only: bool, step: usize) {
        let (reader, since) = match open {
            Open::Reads { reader, since, .. } => (reader, since),
            _ => match self.open_reader().await {
                Ok(reader) => (reader, Instant::now()),
                Err(error) => {
                    self.fail(error);
                    self.stream.open = open;
                    return;
                }
            },
        };
        let mut outcome = self.read_on(Some(&reader), step).await;
        // What only reads decides nothing by rows that are old.
        if matches!(outcome, Err(Fault::AtOrigin(_)))
            && read_only
            && self.node.serves_stale()
            && !self.node.reaches_origin().await
        {
            outcome = self.read_on_stale(&reader, step).await;
        }
        let open = Open::Reads { reader, read_only, since };
        match outcome {
            Ok(outcome) => {
                self.note(step, &outcome);
                self.push(outcome);
                self.stream.open = open;
            }
            Err(Fault::Writes) if !read_only => self.ask_for_writer(open, step).await,
            Err(Fault::Writes) => {
                self.fail(read_only_transaction());
                self.stream.open = open;
            }
            Err(Fault::AtOrigin(cannot) | Fault::TooOld(cannot)) => {
                drop(open);
                self.move_to_origin(cannot, step, read_only).await;
            }
            Err(Fault::Step(error)) => {
                self.stream.open = if error.code == "LITTORAL_SNAPSHOT_REPLACED" {
                    Open::Lost(error.clone())
                } else {
                    open
                };
                self.note(step, &Outcome::Error(error.clone()));
                self.fail(error);
            }
        }
    }

    /// Runs a step on a reader, also if it reads what belongs to the origin, which cannot be reached, if its
    /// tables allow that.
    async fn read_on_stale(&mut self, reader: &HeldReader, step: usize) -> Result<Outcome, Fault> {
        let program = Arc::clone(self.program);
        let (mut budget, statements) = (self.budget, self.statements(step..step + 1));
        let work = move |reader: &Reader| {
            let strong = strong_reads(reader, &statements);
            reader.serve_stale(true);
            let mut session = ReadSession(reader);
            let outcome = perform(&mut session, &program.steps[step].action, &mut budget, None);
            reader.serve_stale(false);
            (outcome, budget, strong)
        };
        let (outcome, budget, strong) = reader
            .read(self.grants.cloned(), work)
            .await
            .map_err(|error| Fault::Step(HranaError::from(&error)))?;
        self.budget = budget;
        if outcome.is_ok() {
            self.stream.notes.stale.extend(strong);
        }
        outcome
    }

    /// A reader with a transaction, whose snapshot is taken by the first statement.
    async fn open_reader(&self) -> Result<HeldReader, HranaError> {
        let reader = self.node.hold_reader().await.map_err(|error| HranaError::from(&error))?;
        let begun = reader.read(None, |reader| reader.connection().execute_batch("BEGIN")).await;
        match begun {
            Ok(Ok(())) => Ok(reader),
            Ok(Err(error)) => Err(HranaError::from(&error)),
            Err(error) => Err(HranaError::from(&error)),
        }
    }

    /// Something writes: from here on the transaction has the writer, if nothing was written since it read.
    async fn ask_for_writer(&mut self, open: Open, step: usize) {
        let begun = self.node.begin().await.map_err(|error| HranaError::from(&error));
        let begun = match (begun, open) {
            (Ok(transaction), Open::Reads { reader, .. }) => {
                is_up_to_date(&reader).await.map(|()| transaction)
            }
            (begun, _) => begun,
        };
        match begun {
            Ok(transaction) => self.on_writer(transaction, step).await,
            Err(error) => {
                self.fail(error.clone());
                self.stream.open = Open::Lost(error);
            }
        }
    }

    /// Runs steps on the writer, up to the end of the transaction or of the request.
    async fn on_writer(&mut self, transaction: Transaction, step: usize) {
        let program = Arc::clone(self.program);
        let mut end = program.steps.len();
        if let Some((later, admission, old)) = self.first_too_old(step..end).await {
            if later == step {
                return self.too_old_on_writer(transaction, step, admission, old).await;
            }
            end = later;
        }
        self.spent.at("the writer, in a transaction");
        let region = Region { begin: step, steps: step..end, kind: Kind::Continued };
        let (prior, budget) = (self.fates().to_vec(), self.budget);
        let grants = self.grants.cloned();
        let stepped = transaction
            .step(move |tx| {
                if let Some(grants) = grants {
                    tx.restrict(grants)?;
                }
                let mut session =
                    WriteSession { tx, failure: None, elsewhere: None, read_only: false };
                let ran = run_region(&mut session, &program, &region, prior, budget, false).ok();
                Ok((ran, session.elsewhere))
            })
            .await;
        let ran = match stepped {
            Ok(Ok((_, Some(table)))) => {
                // Dropping it rolls it back.
                drop(transaction);
                let cannot = HranaError::from(&WriteError::OriginOnly { table });
                return self.move_to_origin(cannot, step, false).await;
            }
            Ok(Ok((Some(ran), None))) => ran,
            Ok(Ok((None, None))) => return self.lose(never_ran()),
            Ok(Err(error)) => {
                let error: WriteError = error;
                return self.lose(HranaError::from(&error));
            }
            Err(error) => return self.lose(HranaError::from(&error)),
        };
        let Ran { mut outcomes, end, budget } = ran;
        self.budget = budget;
        let timed_out = end == End::Interrupted || transaction.has_timed_out();
        let timeout = HranaError::from(&TransactionError::TimedOut);
        if let (End::Interrupted, Some(last)) = (end, outcomes.last_mut()) {
            *last = Outcome::Error(timeout.clone());
        }
        for outcome in outcomes {
            self.note(self.outcomes.len(), &outcome);
            self.push(outcome);
        }
        match end {
            End::Commit => match transaction.commit().await {
                Ok(_) => self.push(Outcome::nothing()),
                Err(error) => {
                    self.fail(HranaError::from(&error));
                    self.stream.open = Open::LostAtCommit;
                }
            },
            // Dropping it rolls it back.
            End::Rollback => self.push(Outcome::nothing()),
            _ if timed_out => self.stream.open = Open::Lost(timeout),
            End::Open | End::Interrupted => self.stream.open = Open::Writes(transaction),
        }
    }

    /// The first of some steps that reads what is too old here, and what its tables say to that.
    async fn first_too_old(&self, steps: Range<usize>) -> Option<(usize, Admission, HranaError)> {
        if !self.node.bounds_lag() {
            return None;
        }
        for step in steps {
            let statements = self.statements(step..step + 1);
            if statements.is_empty() {
                continue;
            }
            let (admission, lag) = match self.node.admission(statements).await {
                Ok(admitted) => admitted,
                Err(error) => return Some((step, Admission::Serve, HranaError::from(&error))),
            };
            let most = match admission {
                Admission::Serve => continue,
                Admission::Wait(most) | Admission::Forward(most) | Admission::Fail(most) => most,
            };
            let old = ReadError::from(TooStale { lag, most });
            return Some((step, admission, HranaError::from(&old)));
        }
        None
    }

    /// What becomes of such a step where the transaction has the writer: nothing is applied here meanwhile, so
    /// there is nothing to wait for.
    async fn too_old_on_writer(
        &mut self,
        transaction: Transaction,
        step: usize,
        admission: Admission,
        old: HranaError,
    ) {
        if matches!(admission, Admission::Forward(_)) {
            // Dropping it rolls it back.
            drop(transaction);
            return self.move_to_origin(old, step, false).await;
        }
        self.note(step, &Outcome::Error(old.clone()));
        self.fail(old);
        self.stream.open = Open::Writes(transaction);
    }

    /// Takes down what has run on this node, for the case that the transaction moves to the origin.
    fn note(&mut self, step: usize, outcome: &Outcome) {
        if self.node.has_tables_of_origin() {
            let program = Arc::clone(self.program);
            self.stream.journal.note(&program, step, outcome);
        }
    }

    pub(super) fn lose(&mut self, error: HranaError) {
        // The client may say itself that it is over.
        let step = self.outcomes.len();
        match self.program.verb(step) {
            Some(Verb::Rollback) => self.push(Outcome::nothing()),
            Some(Verb::Commit) => self.fail(error),
            _ => {
                self.fail(error.clone());
                self.stream.open = Open::Lost(error);
            }
        }
    }
}

/// Ends the transaction of a reader, while nobody else can write: nothing may have been written since its
/// snapshot was taken.
async fn is_up_to_date(reader: &HeldReader) -> Result<(), HranaError> {
    let looked = reader
        .read(None, |reader| {
            let connection = reader.connection();
            let seen = data_version(connection)?;
            connection.execute_batch("ROLLBACK")?;
            Ok::<_, rusqlite::Error>(seen == data_version(connection)?)
        })
        .await;
    match looked {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(HranaError {
            extended_code: Some("SQLITE_BUSY_SNAPSHOT".into()),
            ..HranaError::new(
                "SQLITE_BUSY",
                "database is locked: others have written since the transaction read; begin it again, \
                 with BEGIN IMMEDIATE if it writes",
            )
        }),
        Ok(Err(error)) => Err(HranaError::from(&error)),
        Err(error) => Err(HranaError::from(&error)),
    }
}

fn data_version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("PRAGMA data_version", [], |row| row.get(0))
}
