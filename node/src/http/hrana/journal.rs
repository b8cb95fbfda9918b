//! [`Journal`]: what has run in a transaction on this node, so that it can be run again at the origin and
//! must come to the same.

use std::sync::Arc;

use super::{
    outcome::Outcome,
    program::{Action, Program, Statement, Step},
    wire::StmtResult,
};

/// What the statements of a transaction may take to be kept, texts and arguments together.
const BYTES_MAX: usize = 256 << 10;

/// What has run, and what its client was told of it.
#[derive(Debug, Default)]
pub(super) struct Journal {
    statements: Vec<Statement>,
    told: Vec<blake3::Hash>,
    bytes: usize,
    /// Something ran that is not here.
    lacks: bool,
}

impl Journal {
    /// Takes down a step that has run.
    pub(super) fn note(&mut self, program: &Program, step: usize, outcome: &Outcome) {
        let Action::Run(statement) = &program.steps[step].action else { return };
        let arguments = statement.arguments.iter().flatten().map(|value| value.size());
        self.bytes += statement.sql.len() + arguments.sum::<usize>();
        let Some(told) = told(outcome).filter(|_| self.bytes <= BYTES_MAX) else {
            self.lacks |= !matches!(outcome, Outcome::Skipped);
            return;
        };
        self.statements.push(statement.clone());
        self.told.push(told);
    }

    /// The statements as a program; `None` if they cannot be run again.
    pub(super) fn program(&self) -> Option<Arc<Program>> {
        let step = |statement: &Statement| Step {
            action: Action::Run(statement.clone()),
            base: 0,
            condition: None,
            continues_script: false,
        };
        let steps = self.statements.iter().map(step).collect();
        (!self.lacks).then(|| Arc::new(Program { steps, ..Program::default() }))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.statements.is_empty() && !self.lacks
    }

    /// Whether a second run came to what the client was told of the first.
    pub(super) fn agrees(&self, outcomes: &[Outcome]) -> bool {
        let again: Option<Vec<_>> = outcomes.iter().map(told).collect();
        again.is_some_and(|again| again == self.told)
    }
}

/// What a client was told, how long it took left out; `None` if that is not here any more.
fn told(outcome: &Outcome) -> Option<blake3::Hash> {
    let text = match outcome {
        Outcome::Rows(result) => {
            let result = StmtResult { query_duration_ms: 0.0, ..result.clone() };
            serde_json::to_vec(&result).ok()?
        }
        Outcome::Error(error) => serde_json::to_vec(&(&error.code, &error.extended_code)).ok()?,
        Outcome::Skipped | Outcome::Sent | Outcome::Described(_) | Outcome::Autocommit(_) => {
            return None;
        }
    };
    Some(blake3::hash(&text))
}
