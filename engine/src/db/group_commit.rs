//! Many write jobs, one SQLite transaction, each as if alone.
//!
//! Every job of a group runs in a savepoint and becomes an entry of its own; one commit, and one sync,
//! serves them all. A lone job needs no savepoint. If a statement ends the whole transaction
//! (OR ROLLBACK, a full disk), or the commit fails, every job of the group runs again, alone.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use rusqlite::Connection;

use crate::{
    capture::{Captured, Encoded, Repair, encode, repairs},
    contested::{ClockError, Contested, Effects},
    db::{
        tx::{Course, WriteTx, transaction_gone},
        watch::Who,
        writer::Writer,
    },
    entry::{Digest, EntryHeader, Fate, Logged, Segment, rows::RowsReader},
    error::WriteError,
    forward::RequestId,
    hlc::HlcClock,
    id::{AuthorId, Lsn, SchemaVersion, TableId, Ticket},
    limits::{OUTCOME_RESULT_BYTES, OWN_STAMPS_AHEAD_MAX},
    log::{
        Log,
        chunks::{ChunkError, Draft},
    },
    merge::Parked,
    schema::{Registry, Table, catalog, outcomes},
    sqlite::{self, Param, quoted},
    testing::{Bug, planted},
    time::WallTime,
    value::{ByteReader, DecodeError},
    version::Dot,
};

/// A write: runs on the user connection, possibly twice, so it overwrites its results instead of
/// adding to them. Returning an error rolls it back.
pub type Job = Box<dyn FnMut(&mut WriteTx<'_>) -> Result<(), WriteError> + Send>;

/// A write for a request that was carried here: as a [`Job`], and what it gives is kept with its outcome.
pub type ProgramJob = Box<dyn FnMut(&mut WriteTx<'_>) -> Result<Vec<u8>, WriteError> + Send>;

/// What a job's commit came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// The entry that holds the changes; `None` if the job changed no replicated row.
    pub dot: Option<Dot>,
    /// The newest position in this node's log when the job had committed.
    pub lsn: Lsn,
}

/// A job that waits.
pub(crate) struct Queued {
    pub(crate) ticket: Ticket,
    pub(crate) job: Job,
    pub(crate) run_for: Option<RunFor>,
}

/// The request that a job is run for.
#[derive(Debug, Clone)]
pub(crate) struct RunFor {
    pub(crate) request: RequestId,
    /// The digest of its program.
    pub(crate) program: Digest,
    /// What the last run has given.
    pub(crate) result: Arc<Mutex<Vec<u8>>>,
}

impl RunFor {
    /// What stands in the entry of it.
    fn fate(&self) -> Fate {
        let result = self.result.lock();
        let kept = result.len() <= OUTCOME_RESULT_BYTES;
        Fate::Committed { program: self.program, result: kept.then(|| result.clone()) }
    }
}

impl std::fmt::Debug for Queued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queued").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

/// How a job ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) ticket: Ticket,
    pub(crate) result: Result<Committed, WriteError>,
}

/// What the writer needs of the replica to make entries.
#[derive(Debug)]
pub(crate) struct Local<'r> {
    pub(crate) author: AuthorId,
    pub(crate) registry: &'r mut Arc<Registry>,
    pub(crate) log: &'r mut Log,
    pub(crate) contested: &'r mut Contested,
    pub(crate) parked: &'r mut Parked,
    pub(crate) hlc: &'r mut HlcClock,
    /// What the corrected clock says.
    pub(crate) wall: WallTime,
    /// The largest entry, in bytes.
    pub(crate) max_entry: u64,
    /// The freeze that the job ends, if it does what the freeze waited for.
    pub(crate) ends: Option<Dot>,
    /// The job is run up to its commit, to see whether it would do, and taken back.
    pub(crate) only_tries: bool,
}

/// What a job wrote, once its transaction commits.
struct Written {
    dot: Dot,
    /// The tables from here on, if they changed.
    registry: Option<Arc<Registry>>,
}

/// The transaction of a group is gone; nothing of it was written.
struct GroupLost;

impl Writer {
    /// Runs the jobs in order and commits them. The answers come in the same order.
    pub(crate) fn commit(&mut self, jobs: &mut [Queued], local: &mut Local<'_>) -> Vec<Answer> {
        if let [_, _, ..] = jobs
            && let Ok(answers) = self.commit_group(jobs, local)
        {
            return answers;
        }
        let alone = |queued: &mut Queued| Answer {
            ticket: queued.ticket,
            result: self.commit_alone(queued, local),
        };
        jobs.iter_mut().map(alone).collect()
    }

    fn commit_alone(
        &self,
        queued: &mut Queued,
        local: &mut Local<'_>,
    ) -> Result<Committed, WriteError> {
        let course = self.begin_alone(local.registry, local.log.last().next())?;
        let ran = (queued.job)(&mut WriteTx::new(self, course.alike()));
        self.gate().restrict(None);
        self.end_alone(&course, ran, queued.run_for.as_ref(), local)
    }

    /// Begins a transaction that no other job shares; its entry will stand at that place of the log.
    pub(super) fn begin_alone(
        &self,
        registry: &Arc<Registry>,
        lsn: Lsn,
    ) -> Result<Course, WriteError> {
        self.begin()?;
        self.user().sink().set_alone();
        if let Err(error) = self.writes(Who::User) {
            self.user().sink().clear();
            self.roll_back()?;
            return Err(error.into());
        }
        Ok(Course::new(registry, lsn, true))
    }

    /// Commits what was done in a transaction that no other job shares, or undoes it if it has failed.
    pub(super) fn end_alone(
        &self,
        course: &Course,
        ran: Result<(), WriteError>,
        run_for: Option<&RunFor>,
        local: &mut Local<'_>,
    ) -> Result<Committed, WriteError> {
        local.contested.mark();
        let parked = local.parked.clone();
        let result =
            ran.and_then(|()| self.finish_job(course, run_for, local)).and_then(|written| {
                if !local.only_tries {
                    self.command("/*littoral*/ COMMIT")?;
                }
                Ok(written)
            });
        self.user().sink().clear();
        match result {
            Ok(_) if local.only_tries => {
                self.take_back(local, parked)?;
                Ok(Committed { dot: None, lsn: local.log.last() })
            }
            Ok(written) => {
                local.log.keep();
                let dot = written.map(|Written { dot, registry }| {
                    if let Some(registry) = registry {
                        self.learn(&registry);
                        *local.registry = registry;
                    }
                    dot
                });
                // Also after a statement that changed nothing, such as CREATE TABLE IF NOT EXISTS.
                self.mirror_again(local.registry);
                local.contested.keep();
                Ok(Committed { dot, lsn: local.log.last() })
            }
            Err(error) => {
                let next = local.log.head(local.author).seq;
                self.take_back(local, parked)?;
                if planted(Bug::AnswerBeforeCommit) {
                    let dot = Some(Dot { author: local.author, seq: next + 1 });
                    return Ok(Committed { dot, lsn: local.log.last() });
                }
                Err(error)
            }
        }
    }

    /// Undoes what a job that is alone has done.
    fn take_back(&self, local: &mut Local<'_>, parked: Parked) -> Result<(), WriteError> {
        local.log.undo();
        local.contested.undo();
        *local.parked = parked;
        let rolled_back = self.roll_back();
        self.adopt_recorders();
        self.mirror_again(local.registry);
        Ok(rolled_back?)
    }

    fn roll_back(&self) -> rusqlite::Result<()> {
        if self.user().is_autocommit() {
            return Ok(());
        }
        self.command("/*littoral*/ ROLLBACK")
    }

    /// Begins a transaction. One that could not be rolled back before would stand in the way of every
    /// job for good.
    fn begin(&self) -> rusqlite::Result<()> {
        self.roll_back()?;
        if self.gate().stale {
            // SQLite prepares a statement against the schema that the connection knows, and prepares it
            // again when it begins to run and the file's is another one. By then it is classified: a
            // DROP of something unknown was nothing. So the connection looks first.
            self.command("/*littoral*/ SELECT 1 FROM sqlite_schema WHERE rootpage < 0")?;
            self.gate().stale = false;
        }
        self.command("/*littoral*/ BEGIN IMMEDIATE")
    }

    fn commit_group(
        &self,
        jobs: &mut [Queued],
        local: &mut Local<'_>,
    ) -> Result<Vec<Answer>, GroupLost> {
        local.contested.mark();
        let result = self.run_group(jobs, local);
        self.user().sink().clear();
        if result.is_ok() {
            local.contested.keep();
            local.log.keep();
        } else {
            local.contested.undo();
            local.log.undo();
            if let Err(error) = self.roll_back() {
                tracing::error!(%error, "the transaction of a group could not be rolled back");
            }
        }
        result
    }

    fn run_group(
        &self,
        jobs: &mut [Queued],
        local: &mut Local<'_>,
    ) -> Result<Vec<Answer>, GroupLost> {
        let lost = |_| GroupLost;
        self.begin().map_err(lost)?;
        self.writes(Who::User).map_err(lost)?;
        let mut answers = Vec::with_capacity(jobs.len());
        for queued in jobs {
            self.command("/*littoral*/ SAVEPOINT littoral_job").map_err(lost)?;
            let result = self.run_job(queued, local);
            self.user().sink().clear();
            if self.user().is_autocommit() || std::mem::take(&mut self.gate().wants_alone) {
                return Err(GroupLost);
            }
            if result.is_err() {
                self.command("/*littoral*/ ROLLBACK TO littoral_job").map_err(lost)?;
            }
            self.command("/*littoral*/ RELEASE littoral_job").map_err(lost)?;
            let lsn = local.log.last();
            let result =
                result.map(|written| Committed { dot: written.map(|written| written.dot), lsn });
            answers.push(Answer { ticket: queued.ticket, result });
        }
        self.command("/*littoral*/ COMMIT").map_err(lost)?;
        Ok(answers)
    }

    /// Makes the rows hold what a merge would store; triggers see it as any other update.
    pub(super) fn normalize(&self, course: &Course) -> Result<(), WriteError> {
        /// Triggers may answer a repair with another change that needs one. Those that do so without
        /// end are told.
        const ROUNDS: usize = 16;
        for _ in 0..ROUNDS {
            if !self.user().sink().wants_normalizing() {
                return Ok(());
            }
            let registry = Arc::clone(self.user().sink().registry());
            let captured = self.user().sink().take()?;
            let repairs = repairs(&captured, self.apply());
            self.user().sink().put_back(captured);
            let repairs = repairs?;
            if repairs.is_empty() {
                return Ok(());
            }
            for repair in &repairs {
                self.repair(course, &registry.tables()[repair.table], repair)?;
            }
        }
        Err(WriteError::Aborted(
            "triggers change a max, min or set column again and again, away from the value that stays"
                .to_owned(),
        ))
    }

    fn repair(&self, course: &Course, table: &Table, repair: &Repair) -> Result<(), WriteError> {
        let set: Vec<String> = (table.key.len() + 1..)
            .zip(&repair.cells)
            .map(|(n, (place, _))| format!("{} = ?{n}", quoted(&table.cells[*place].name)))
            .collect();
        let sql = format!(
            "UPDATE OR ABORT {} SET {} WHERE {}",
            quoted(&table.name),
            set.join(", "),
            table.sql.where_key
        );
        // Not as the engine: its triggers are judged like those of any statement of the job.
        let mut tx = WriteTx::new(self, course.alike());
        let mut statement = tx.prepare(&sql)?;
        let mut key = ByteReader::new(&repair.key);
        for place in 1..=table.key.len() {
            let part = key.key_part().expect("the recorder encoded the key");
            statement.bind(place, Param(part.as_value()))?;
        }
        for (n, (_, cell)) in (table.key.len() + 1..).zip(&repair.cells) {
            let value = ByteReader::new(cell).cell().expect("the recorder encoded the cells");
            statement.bind(n, Param(value))?;
        }
        statement.run(|_| Ok(()))
    }

    /// Runs one job of a group and appends its entry. The schema changes only in a job that is alone in
    /// its transaction.
    fn run_job(
        &self,
        queued: &mut Queued,
        local: &mut Local<'_>,
    ) -> Result<Option<Written>, WriteError> {
        let course = Course::new(local.registry, local.log.last().next(), false);
        let ran = (queued.job)(&mut WriteTx::new(self, course.alike()));
        self.gate().restrict(None);
        ran?;
        self.finish_job(&course, queued.run_for.as_ref(), local)
    }

    /// Appends the entry of what a job has done.
    fn finish_job(
        &self,
        course: &Course,
        run_for: Option<&RunFor>,
        local: &mut Local<'_>,
    ) -> Result<Option<Written>, WriteError> {
        if self.user().is_autocommit() {
            return Err(transaction_gone());
        }
        self.normalize(course)?;
        if let Some(last) = self.ids().unsaved() {
            self.as_engine(|conn| catalog::set_meta(conn, "last_id", last.cast_signed()))?;
        }
        if let Some(refused) = self.user().sink().take_refusal() {
            return Err(refused);
        }
        if sqlite::has_deferred_violations(self.user()) && !planted(Bug::DeferredViolationKept) {
            return Err(deferred_violation());
        }
        if self.user().sink().is_empty() && local.ends.is_none() {
            return Ok(None);
        }
        self.check_clock(local)?;
        // Chunks of a large entry are written while rows are read, so the sink cannot be held.
        let sequences = self.sequences()?;
        let captured = self.user().sink().take()?;
        let written =
            self.as_engine(|conn| self.write_entry(conn, &captured, &sequences, run_for, local));
        self.user().sink().put_back(captured);
        written
    }

    /// Nobody writes multi-writer tables with stamps that every other node would hold.
    fn check_clock(&self, local: &Local<'_>) -> Result<(), WriteError> {
        let last = local.hlc.last().wall().0;
        let ahead = Duration::from_millis(last.saturating_sub(local.wall.0));
        if ahead <= OWN_STAMPS_AHEAD_MAX || planted(Bug::WritesAhead) {
            return Ok(());
        }
        let sink = self.user().sink();
        let tables = sink.registry().tables().iter();
        if tables.filter(|table| table.is_multi_writer()).any(|table| sink.has_rows_of(table.id)) {
            return Err(WriteError::ClockAhead { ahead });
        }
        Ok(())
    }

    /// Appends the entry of what was captured.
    fn write_entry(
        &self,
        conn: &Connection,
        captured: &Captured,
        sequences: &[(TableId, i64)],
        run_for: Option<&RunFor>,
        local: &mut Local<'_>,
    ) -> Result<Option<Written>, WriteError> {
        if self.verifies_capture()
            && !planted(Bug::FailedStatementKept)
            && !planted(Bug::AbandonedKept)
        {
            captured.verify(conn, self.apply())?;
        }
        let head = local.log.head(local.author);
        let header = EntryHeader {
            dot: Dot { author: local.author, seq: head.seq + 1 },
            hlc: local.hlc.tick(local.wall),
            previous: head.digest,
            schema: local.registry.version,
            under: local.contested.stable().number,
        };
        let mut draft = Draft::new(conn, header, local.log.sizes(), local.max_entry);
        let (clocks, disk) = (&mut *local.contested, self.apply());
        let (parked, stamp) = (&mut *local.parked, header.stamp());
        let Encoded { clocks, mut schema_changes } =
            encode(captured, sequences, clocks, disk, parked, stamp, &mut draft)?;
        if let Some(freeze) = local.ends {
            draft.segment(|body| body.push_unfreeze(freeze, None))?;
            schema_changes += 1;
            catalog::unfreeze(conn, freeze, None)?;
        }
        if let Some(run_for) = run_for.filter(|_| !draft.is_empty() && !planted(Bug::OutcomeLost)) {
            let fate = run_for.fate();
            draft.segment(|body| body.push_outcome(run_for.request, &fate))?;
            outcomes::keep(conn, &header, run_for.request, &fate)?;
        }
        let Some(entry) = draft.finish()? else { return Ok(None) };
        // A job that fails has left neither an entry nor clocks.
        local.contested.load(self.apply(), &clocks)?;
        let registry = Self::settle_schema(conn, local, captured, schema_changes)?;
        local.log.append(conn, entry)?;
        local.contested.install(self.apply(), &clocks).expect("its blocks were loaded");
        Ok(Some(Written { dot: header.dot, registry }))
    }

    /// The tables after a job, if it has changed them; their version is that to which the entry will lead
    /// every other node.
    fn settle_schema(
        conn: &Connection,
        local: &Local<'_>,
        captured: &Captured,
        schema_changes: u32,
    ) -> rusqlite::Result<Option<Arc<Registry>>> {
        let before = &*local.registry;
        let now = Arc::clone(captured.registry());
        if Arc::ptr_eq(before, &now) && schema_changes == 0 {
            return Ok(None);
        }
        let version = SchemaVersion(before.version.0 + schema_changes);
        // What was read before a freeze ended has the freeze.
        if now.version == version && local.ends.is_none() {
            return Ok(Some(now));
        }
        catalog::set_version(conn, version)?;
        Ok(Some(Arc::new(Registry::load(conn)?)))
    }
}

impl Writer {
    /// The keys that AUTOINCREMENT has handed out, of the tables that the job has inserted into.
    fn sequences(&self) -> rusqlite::Result<Vec<(TableId, i64)>> {
        if planted(Bug::SequenceForgotten) {
            return Ok(Vec::new());
        }
        let counted = self.user().sink().counted();
        let mut sequences = Vec::new();
        for (table, name) in counted {
            sequences.push((table, self.as_engine(|conn| catalog::sequence(conn, &name))?));
        }
        sequences.sort_unstable();
        Ok(sequences)
    }
}

/// Takes an entry into the clocks, whatever it does to stored rows. `registry` is what the file knows of
/// tables now: no clocks are left of operations from before a table got its present merge rules, and
/// on tables that are gone.
pub(crate) fn remember(
    contested: &mut Contested,
    disk: &Connection,
    registry: &Registry,
    lsn: Lsn,
    entry: &Logged,
) -> Result<(), RememberError> {
    let header = *entry.header();
    let mut effects = Effects::default();
    let mut segments = entry.segments();
    while let Some(segment) = segments.next(disk)? {
        match segment {
            Segment::Rows(rows) => {
                let mut reader = RowsReader::new(rows);
                let mut clocks = contested.taking(disk);
                while let Some(op) = reader.next()? {
                    // Of the entry that gave it these rules, what stands before them is forgotten then.
                    let has_rules = |table: &&Table| table.is_multi_writer() && lsn >= table.since;
                    if let Some(table) = registry.by_id(op.table).filter(has_rules) {
                        clocks.apply(&op, &header, &table.assigned, &mut effects)?;
                    }
                }
            }
            Segment::Policy(changes) => contested.forget_dropped(disk, &changes)?,
            Segment::Frontier { number, covered } => {
                contested.frontier(disk, number, &covered, header.stamp())?;
            }
            Segment::Ddl(_)
            | Segment::Membership(_)
            | Segment::Sequence(_)
            | Segment::Freeze(_)
            | Segment::Unfreeze { .. }
            | Segment::Outcome { .. } => {}
        }
    }
    Ok(())
}

/// Why an entry of the log cannot be taken into the clocks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RememberError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Chunks(#[from] ChunkError),
    #[error(transparent)]
    Clocks(#[from] ClockError),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

fn deferred_violation() -> WriteError {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY);
    let message = "FOREIGN KEY constraint failed".to_owned();
    WriteError::Sqlite(rusqlite::Error::SqliteFailure(code, Some(message)))
}
