//! [`Interactive`]: a transaction that stays open on the user connection between calls.
//!
//! It is like that of a job that is alone, only that its statements come one after the other, and that
//! other things happen in between. None of them writes: the connection holds SQLite's write lock.

use std::sync::Arc;

use crate::{
    db::{
        group_commit::{Committed, Local, RunFor},
        tx::{Course, WriteTx, transaction_gone},
        writer::Writer,
    },
    error::WriteError,
    id::Lsn,
    schema::Registry,
    testing::{Bug, planted},
};

/// The transaction that is open.
#[derive(Debug)]
pub(crate) struct Interactive {
    /// Where the transaction as a whole stands.
    course: Course,
    /// Where its statements stand: it has their savepoints.
    steps: Course,
}

impl Writer {
    /// Begins one; its entry will stand at that place of the log.
    pub(crate) fn begin_interactive(
        &self,
        registry: &Arc<Registry>,
        lsn: Lsn,
    ) -> Result<Interactive, WriteError> {
        let course = self.begin_alone(registry, lsn)?;
        let steps = course.alike();
        Ok(Interactive { course, steps })
    }

    /// Lets somebody run statements in it. Tells also whether it is still open: a statement may have
    /// ended it.
    pub(crate) fn step_interactive<T>(
        &self,
        open: &mut Interactive,
        step: impl FnOnce(&mut WriteTx<'_>) -> T,
    ) -> (T, bool) {
        let course = std::mem::replace(&mut open.steps, open.course.alike());
        let mut tx = WriteTx::new(self, course);
        let value = step(&mut tx);
        open.steps = tx.into_course();
        self.gate().restrict(None);
        (value, !self.user().is_autocommit())
    }

    /// Commits it. If that fails, nothing of it stands, and it is over too.
    pub(crate) fn commit_interactive(
        &self,
        open: &Interactive,
        run_for: Option<&RunFor>,
        local: &mut Local<'_>,
    ) -> Result<Committed, WriteError> {
        self.end_alone(&open.course, Ok(()), run_for, local)
    }

    /// Undoes all of it; gives `why`, or what stood in the way.
    pub(crate) fn roll_back_interactive(
        &self,
        open: &Interactive,
        why: WriteError,
        local: &mut Local<'_>,
    ) -> WriteError {
        let kept = planted(Bug::AbandonedKept).then(|| self.user().sink().take());
        let ended = self.end_alone(&open.course, Err(why), None, local);
        if let Some(Ok(kept)) = kept {
            self.user().sink().put_back(kept);
        }
        match ended {
            Err(error) => error,
            // Only a planted bug answers that what was given up is there.
            Ok(_) => transaction_gone(),
        }
    }
}
