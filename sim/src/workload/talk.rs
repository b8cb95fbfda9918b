//! [`Talk`]: a job whose statements its client sends one by one, in an interactive transaction.

use std::sync::PoisonError;

use littoral::{WriteError, WriteTx};

use super::{Effects, PlannedJob};

/// A job under way.
#[derive(Debug)]
pub(crate) struct Talk {
    job: PlannedJob,
    done: usize,
    effects: Effects,
    goes_away: bool,
}

/// What the client does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// It sends a statement.
    Step,
    /// It commits.
    Commit,
    /// It rolls back.
    GiveUp,
    /// It is not heard of again.
    GoneAway,
}

impl Talk {
    /// Begins to send the statements of a job.
    pub(crate) fn of(job: PlannedJob, goes_away: bool) -> Self {
        Self { job, done: 0, effects: Effects::default(), goes_away }
    }

    /// How many statements were sent.
    pub(crate) const fn steps_done(&self) -> u64 {
        self.done as u64
    }

    /// What comes next.
    pub(crate) fn progress(&self) -> Progress {
        if self.done < self.job.steps.len() {
            return Progress::Step;
        }
        if self.goes_away {
            return Progress::GoneAway;
        }
        // Before the answer, which tells of them.
        *self.job.effects.lock().unwrap_or_else(PoisonError::into_inner) = self.effects.clone();
        if self.job.aborts { Progress::GiveUp } else { Progress::Commit }
    }

    /// Sends the next statement.
    ///
    /// # Errors
    /// If the client gives up for it.
    pub(crate) fn step(&mut self, tx: &mut WriteTx<'_>) -> Result<(), WriteError> {
        let step = &self.job.steps[self.done];
        self.done += 1;
        step.run(tx, &mut self.effects)
    }
}
