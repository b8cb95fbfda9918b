//! [`Region`]: steps that run one behind the other on one session, within one transaction.

use std::ops::Range;

use super::{
    outcome::{Outcome, no_transaction},
    program::{Fate, Program},
    session::{Fault, Session, perform},
    sql::Verb,
    wire::HranaError,
};

/// Steps that run on one session.
#[derive(Clone, Debug)]
pub(super) struct Region {
    /// The BEGIN, or the first step where there is none.
    pub(super) begin: usize,
    pub(super) steps: Range<usize>,
    /// Whether a BEGIN opened it; then COMMIT and ROLLBACK end it, and errors do not.
    pub(super) explicit: bool,
}

/// What became of a region, its COMMIT or ROLLBACK left out.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) end: End,
    /// What is left of the budget.
    pub(super) budget: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Commit,
    Rollback,
    Open,
    /// It took too long, as its last outcome says.
    Interrupted,
}

/// A region that was taken for reading only is not.
#[derive(Debug)]
pub(super) struct SomethingWrites;

pub(super) fn run_region(
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
