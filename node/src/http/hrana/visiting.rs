//! Transactions that stay open and are at the origin: when they go there, and their steps.
//!
//! | BEGIN on another node than the origin | where it is |
//! | --- | --- |
//! | `IMMEDIATE` | at the origin, if the first statement touches a table that only the origin writes, and there is a way; else here |
//! | `EXCLUSIVE` | at the origin |
//! | `CONCURRENT` | here, whatever follows |
//! | `DEFERRED`, none, `READONLY` | here |
//!
//! One that is here, and comes to what only the origin may do, moves there: it is rolled back here, begun
//! there, and what it has run runs again. If that comes to anything else than its client was told, it is
//! over, as if others had written first.

use std::{mem, sync::Arc};

use littoral::{Consistency, ForwardError, Outcome as Became, Writers};

use super::{
    execute::Run,
    forward::{Parcel, Settled, refused, unpack},
    journal::Journal,
    outcome::{Outcome, no_transaction},
    program::{Action, Program},
    region::{End, Kind, Ran, Region, never_ran},
    session::RESPONSE_BYTES_MAX,
    sql::{Place, Verb},
    stream::Open,
    wire::HranaError,
};
use crate::runtime::{NoVisit, Visit};

impl Run<'_> {
    /// Whether a transaction that is to be begun waits for its first statement before it is known where
    /// it is.
    pub(super) fn is_undecided(&self) -> bool {
        self.stream.place == Place::Anywhere && self.node.has_tables_of_origin()
    }

    /// Begins a transaction at the origin, if it says so itself.
    pub(super) fn begins_at_origin(&self) -> bool {
        self.stream.place == Place::Origin && self.node.has_tables_of_origin()
    }

    /// Whether the first statement of a transaction sends it to the origin.
    pub(super) async fn goes_to_origin(&self, step: usize) -> bool {
        let Action::Run(statement) = &self.program.steps[step].action else { return false };
        let sql = statement.sql.clone();
        let touched = self.node.read_as(None, move |reader| reader.touches(&sql)).await;
        // Who runs the statement says what is wrong with it.
        let Ok(Ok(touched)) = touched else { return false };
        let of_origin = touched.iter().any(|touched| {
            let policy = &touched.policy;
            policy.writers == Writers::Origin && policy.consistency != Consistency::Local
        });
        of_origin && self.node.reaches_origin().await
    }

    /// Moves the transaction to the origin, and goes on there with this step. `cannot` is what is wrong if it
    /// has to stay.
    pub(super) async fn move_to_origin(
        &mut self,
        cannot: HranaError,
        step: usize,
        read_only: bool,
    ) {
        // Whatever it was here, is rolled back by now.
        let journal = mem::take(&mut self.stream.journal);
        let stays = self.stream.place == Place::Here;
        let Some(program) = journal.program().filter(|_| !stays) else {
            return self.lose(cannot_move(cannot, stays));
        };
        let mut visit = match self.node.visit().await {
            Ok(visit) => visit,
            Err(error) => return self.lose(HranaError::from(&error)),
        };
        if !journal.is_empty()
            && let Err(error) = self.run_again(&mut visit, &program, &journal, read_only).await
        {
            return self.lose(error);
        }
        self.visiting(visit, step, read_only).await;
    }

    async fn run_again(
        &self,
        visit: &mut Visit,
        program: &Program,
        journal: &Journal,
        read_only: bool,
    ) -> Result<(), HranaError> {
        let region = Region { begin: 0, steps: 0..program.steps.len(), kind: Kind::Continued };
        let parcel = Parcel::of(program, &region, &[], self.grants.map(AsRef::as_ref));
        let parcel = parcel.reading_only(read_only).encode()?;
        let answer = visit.step(parcel).await;
        let (settled, _) = settle(answer, RESPONSE_BYTES_MAX, false);
        match settled {
            (Some(ran), Ok(())) if ran.end == End::Open && journal.agrees(&ran.outcomes) => Ok(()),
            (Some(_), Ok(())) => Err(HranaError {
                extended_code: Some("SQLITE_BUSY_SNAPSHOT".into()),
                ..HranaError::new(
                    "SQLITE_BUSY",
                    "database is locked: the transaction has moved to the origin, where what it has done \
                     comes to something else by now; begin it again, with BEGIN EXCLUSIVE to have all of \
                     it at the origin",
                )
            }),
            (_, Err(error)) => Err(error),
            (None, Ok(())) => Err(never_ran()),
        }
    }

    /// A step of a transaction at the origin, and with it those that follow in the request.
    pub(super) async fn visiting(&mut self, mut visit: Visit, step: usize, read_only: bool) {
        self.spent.at("the origin, in a transaction");
        let program = Arc::clone(self.program);
        match program.verb(step) {
            // Only its steps commit anything, so none is needed to undo them.
            Some(Verb::Rollback) => return self.push(Outcome::nothing()),
            Some(verb) if verb.begins_transaction() => {
                self.push(no_transaction("cannot start a transaction within a transaction"));
                self.stream.open = Open::AtOrigin { visit, read_only };
                return;
            }
            _ => {}
        }
        let commits = program.verb(step) == Some(Verb::Commit);
        // COMMIT goes alone, so that it is known of every error whether it is of the commit.
        let end = if commits {
            step + 1
        } else {
            let ends = |later: &usize| program.verb(*later).is_some_and(Verb::ends_transaction);
            (step + 1..program.steps.len()).find(ends).unwrap_or(program.steps.len())
        };
        let region = Region { begin: step, steps: step..end, kind: Kind::Continued };
        let parcel = Parcel::of(&program, &region, self.fates(), self.grants.map(AsRef::as_ref));
        let parcel = match parcel.reading_only(read_only).encode() {
            Ok(parcel) => parcel,
            Err(error) => return self.lose(error),
        };
        let answer = visit.step(parcel).await;
        let ((ran, result), open) = settle(answer, self.budget, commits);
        if let Some(Ran { outcomes, budget, .. }) = ran {
            self.budget = budget;
            for outcome in outcomes {
                self.push(outcome);
            }
        }
        match (result, open) {
            (Ok(()), true) => self.stream.open = Open::AtOrigin { visit, read_only },
            (Ok(()), false) => self.push(Outcome::nothing()),
            (Err(error), _) if commits => {
                self.fail(error);
                self.stream.open = Open::LostAtCommit;
            }
            (Err(error), true) => {
                self.fail(error);
                self.stream.open = Open::AtOrigin { visit, read_only };
            }
            (Err(error), false) => self.lose(error),
        }
    }
}

/// What became of a step, and whether the transaction is open after it.
fn settle(answer: Result<Became, ForwardError>, budget: usize, commits: bool) -> (Settled, bool) {
    match answer {
        Ok(Became::Stepped { result }) => (unpack(&result, budget), true),
        Ok(
            Became::Committed { result: Some(result), .. }
            | Became::Unchanged { result }
            | Became::Failed { answer: result },
        ) => (unpack(&result, budget), false),
        // What a commit gives is nothing, and no step is a request that only reads.
        Ok(Became::Committed { result: None, .. } | Became::Read { .. }) => ((None, Ok(())), false),
        Ok(Became::Refused) => ((None, Err(refused())), false),
        Ok(Became::Begun(_)) => ((None, Err(never_ran())), false),
        Err(error @ ForwardError::Unknown { .. }) if commits => {
            ((None, Err(HranaError::from(&error))), false)
        }
        // A step that cannot be carried has not been sent.
        Err(error @ ForwardError::TooLarge { .. }) => {
            ((None, Err(HranaError::from(&error))), false)
        }
        Err(error) => ((None, Err(lost(&error))), false),
    }
}

/// The transaction is over, and nothing of it stands, since no COMMIT can have come to the origin.
fn lost(why: &ForwardError) -> HranaError {
    let message = match why {
        ForwardError::Gone { .. } => why.to_string(),
        _ => "the way to the origin was lost in the middle of the transaction, and nothing of it stands; \
              begin it again"
            .to_owned(),
    };
    HranaError::new("LITTORAL_TRANSACTION_LOST", message)
}

fn cannot_move(mut error: HranaError, stays: bool) -> HranaError {
    error.message.push_str(if stays {
        "; the transaction said CONCURRENT, and so stays on this node"
    } else {
        "; the transaction has done too much on this node to move there: say BEGIN EXCLUSIVE"
    });
    error
}

impl From<&NoVisit> for HranaError {
    fn from(error: &NoVisit) -> Self {
        match error {
            NoVisit::Forward(error) => Self::from(error),
            NoVisit::Busy(error) => Self::from(error),
        }
    }
}
