//! [`Region`]: steps that run one behind the other on one session, within one transaction.

use std::{ops::Range, sync::Arc};

use littoral::{Grants, WriteError, WriteTx};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{
    outcome::{Outcome, no_transaction},
    program::{Fate, Program},
    session::{Fault, Session, WriteSession, perform},
    sql::Verb,
    wire::HranaError,
};

/// Steps that run on one session.
#[derive(Clone, Debug)]
pub(super) struct Region {
    /// The BEGIN, or the first step where there is none.
    pub(super) begin: usize,
    pub(super) steps: Range<usize>,
    pub(super) kind: Kind,
}

/// How a region came to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Statements of a script, or a single one: the first error ends them.
    Script,
    /// A BEGIN stands before the steps: COMMIT and ROLLBACK end it, and errors do not.
    Begun,
    /// A transaction that was begun earlier.
    Continued,
}

/// What became of a region, its COMMIT or ROLLBACK left out.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) end: End,
    /// What is left of the budget.
    pub(super) budget: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    Commit,
    Rollback,
    Open,
    /// It took too long, as its last outcome says.
    Interrupted,
}

/// What a write is answered in a transaction that said `READONLY`.
pub(super) fn read_only_transaction() -> HranaError {
    HranaError::new("SQLITE_READONLY", "attempt to write in a read-only transaction")
}

/// Why a region that was taken for reading here is not.
#[derive(Debug)]
pub(super) enum NotHere {
    /// Something in it writes.
    Writes,
    /// Something in it reads a table that is read at the origin only.
    AtOrigin,
    /// What is here is too old for it, and the origin is to serve it.
    TooOld,
}

/// A region that runs as a write job, possibly twice.
#[derive(Debug)]
pub(super) struct RegionJob {
    pub(super) program: Arc<Program>,
    pub(super) region: Region,
    /// What became of the steps before.
    pub(super) prior: Vec<Fate>,
    pub(super) budget: usize,
    /// What it may do, if not everything.
    pub(super) grants: Option<Arc<Grants>>,
    /// It may only read.
    pub(super) read_only: bool,
}

impl RegionJob {
    /// Runs it; what ran in the last run is left in `last_run`.
    pub(super) fn run(
        &self,
        tx: &mut WriteTx<'_>,
        last_run: &Mutex<Option<Ran>>,
    ) -> Result<(), WriteError> {
        *last_run.lock() = None;
        if let Some(grants) = &self.grants {
            tx.restrict(Arc::clone(grants))?;
        }
        let (prior, region) = (self.prior.clone(), &self.region);
        // One that only reads, and comes here for a table that is read at the origin.
        let read_only = self.read_only
            || region.kind == Kind::Begun
                && self.program.verb(region.begin) == Some(Verb::BeginReadOnly);
        let mut session = WriteSession { tx, failure: None, elsewhere: None, read_only };
        let ran = run_region(&mut session, &self.program, region, prior, self.budget, read_only);
        if let Some(table) = session.elsewhere.take() {
            return Err(WriteError::OriginOnly { table });
        }
        let Ok(ran) = ran else {
            return Err(WriteError::Aborted(never_ran().message));
        };
        let failure = session.failure.take();
        let stands = match ran.end {
            End::Commit => true,
            End::Rollback | End::Interrupted => false,
            // Without BEGIN, what ran before the first error stands.
            End::Open => {
                region.kind == Kind::Script
                    && !matches!(ran.outcomes.first(), Some(Outcome::Error(_)))
            }
        };
        *last_run.lock() = Some(ran);
        // What only reads has nothing that could be undone, and its rows count also if it failed then.
        if stands || self.read_only {
            return Ok(());
        }
        Err(failure.unwrap_or_else(|| WriteError::Aborted("rolled back".to_owned())))
    }
}

impl RegionJob {
    /// Runs it within a transaction that stays open.
    pub(super) fn step(self, tx: &mut WriteTx<'_>) -> Result<Ran, WriteError> {
        let read_only = self.read_only;
        if let Some(grants) = self.grants {
            tx.restrict(grants)?;
        }
        let mut session = WriteSession { tx, failure: None, elsewhere: None, read_only };
        let (program, region) = (&self.program, &self.region);
        run_region(&mut session, program, region, self.prior, self.budget, read_only)
            .map_err(|_| WriteError::Aborted(never_ran().message))
    }
}

pub(super) fn never_ran() -> HranaError {
    HranaError::new("LITTORAL_UNAVAILABLE", "the write did not run")
}

pub(super) fn run_region(
    session: &mut impl Session,
    program: &Program,
    region: &Region,
    mut fates: Vec<Fate>,
    mut budget: usize,
    read_only: bool,
) -> Result<Ran, NotHere> {
    let mut outcomes = Vec::new();
    if region.kind == Kind::Begun {
        outcomes.push(Outcome::nothing());
        fates.push(Fate::Ok);
    }
    let explicit = region.kind != Kind::Script;
    for step in region.steps.clone() {
        let outcome = if program.runs(step, &fates, explicit) {
            match program.verb(step) {
                Some(Verb::Commit) => return Ok(Ran { outcomes, end: End::Commit, budget }),
                Some(Verb::Rollback) => return Ok(Ran { outcomes, end: End::Rollback, budget }),
                Some(verb) if verb.begins_transaction() => {
                    no_transaction("cannot start a transaction within a transaction")
                }
                _ => match perform(session, &program.steps[step].action, &mut budget, None) {
                    Ok(outcome) => outcome,
                    Err(Fault::Step(error)) => Outcome::Error(error),
                    Err(Fault::Writes) if read_only => Outcome::Error(read_only_transaction()),
                    Err(Fault::Writes) => return Err(NotHere::Writes),
                    Err(Fault::AtOrigin(_) | Fault::TooOld(_)) => {
                        return Err(NotHere::AtOrigin);
                    }
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
        if failed && !explicit {
            break;
        }
    }
    Ok(Ran { outcomes, end: End::Open, budget })
}
