//! [`Outcome`]: what became of a step, and the outcomes as answers to a pipeline's requests.

use serde::{Deserialize, Serialize};

use super::{
    program::{Answer, Fate, Program},
    wire::{BatchResult, DescribeResult, HranaError, StmtResult, StreamResponse, StreamResult},
};

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Skipped,
    Rows(StmtResult),
    /// It went well, and all of its result is with the client already.
    Sent,
    Described(DescribeResult),
    Autocommit(bool),
    Error(HranaError),
}

impl Outcome {
    pub(super) const fn fate(&self) -> Fate {
        match self {
            Self::Skipped => Fate::Skipped,
            Self::Rows(_) | Self::Sent | Self::Described(_) | Self::Autocommit(_) => Fate::Ok,
            Self::Error(_) => Fate::Error,
        }
    }

    pub(super) fn nothing() -> Self {
        Self::Rows(StmtResult::default())
    }
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

pub(super) fn no_transaction(message: &str) -> Outcome {
    Outcome::Error(HranaError::new("SQLITE_ERROR", message))
}
