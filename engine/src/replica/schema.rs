//! Migrations, and changes of multi-writer tables that wait for the other nodes.
//!
//! ```text
//!   migrate(script) ── every change may happen at once ──► one entry
//!        │
//!        └─ a change must not meet writes under way ──► Freeze(tables, script)
//!                 nobody writes to the tables who has applied it;
//!                 a frontier covers it: nothing from before can arrive any more
//!                                                  ──► one entry, which ends the freeze
//! ```
//!
//! Invariants:
//! - a migration that cannot run says so before anything changed, also before anything is frozen;
//! - a freeze is in the log and in the file, so that it outlives restarts; it ends with its change, or
//!   with the reason why that did not happen.

use std::{collections::BTreeSet, mem, sync::Arc};

use crate::{
    db::{
        Committed, Queued,
        authorizer::Origin,
        writer::{Synchronous, Writer},
    },
    driver::{Event, Output},
    entry::{Freeze, codec::Body},
    error::WriteError,
    id::{Lsn, NodeId, TableId, Ticket},
    replica::{Replica, is_storage_failure, origin_seen_by},
    schema::Frozen,
    status::FreezeStatus,
    testing::{Bug, planted},
    time::Now,
    version::Dot,
};

/// What is asked for.
#[derive(Debug)]
pub(super) enum SchemaJob {
    Migrate(String),
    Abort,
}

/// One run of a script.
struct Attempt<'s> {
    script: &'s str,
    /// Tables that nobody else writes.
    thawed: BTreeSet<TableId>,
    /// The freeze that the run ends.
    ends: Option<Dot>,
    /// Only to see whether it would do: it is run up to its commit, and all of it is taken back.
    dry: bool,
}

impl Replica {
    /// Queues a migration: a script of statements, as migration tools write them, that runs in one
    /// transaction with foreign keys off, at the origin only. It is answered by [`Output::Done`].
    ///
    /// A table that is dropped and made anew, by rename or by name, keeps its policy. A change that must
    /// not meet writes under way on other nodes freezes its table first: then the answer is
    /// [`WriteError::SchemaAccepted`], the script runs when all nodes have heard of it, and
    /// [`Status::freeze`](crate::Status::freeze) tells who has not.
    pub fn migrate(&mut self, now: Now, script: &str) -> Ticket {
        self.queue_schema_job(now, SchemaJob::Migrate(script.to_owned()))
    }

    /// Gives a change up that waits for other nodes; at the origin only. It is answered by
    /// [`Output::Done`].
    pub fn abort_schema_change(&mut self, now: Now) -> Ticket {
        self.queue_schema_job(now, SchemaJob::Abort)
    }

    fn queue_schema_job(&mut self, now: Now, job: SchemaJob) -> Ticket {
        self.now = now;
        let ticket = self.next_ticket();
        self.schema_jobs.push_back((ticket, job));
        ticket
    }

    /// Runs one migration, or the change that a freeze has waited for.
    pub(super) fn serve_schema(&mut self) -> bool {
        // Who asked for a change hears that it waits before it waits no more, or is given up.
        if !self.schema_answers.is_empty() {
            return false;
        }
        if let Some((ticket, job)) = self.schema_jobs.pop_front() {
            let result = match job {
                SchemaJob::Migrate(script) => {
                    tracing::info!(bytes = script.len(), "a migration begins");
                    let result = self.try_migration(&script);
                    tell(&result);
                    result
                }
                SchemaJob::Abort => self.abort(),
            };
            match &result {
                Ok(_) => self.counts.jobs_committed += 1,
                Err(_) => self.counts.jobs_failed += 1,
            }
            // A decree is committed like what other nodes write, and synced behind that. What has written
            // nothing has nothing to wait for.
            let decreed = matches!(
                result,
                Ok(Committed { dot: Some(_), .. }) | Err(WriteError::SchemaAccepted { .. })
            );
            let upto = match self.synchronous {
                Synchronous::Full if decreed => self.log.last(),
                Synchronous::Full | Synchronous::Normal => Lsn(0),
            };
            self.schema_answers.push_back((upto, ticket, result));
            self.answer_durable();
            return true;
        }
        let Some(frozen) = self.registry.frozen.clone() else { return false };
        let is_origin = origin_seen_by(self.register.as_ref(), &self.identity) == Origin::Here;
        let covered =
            self.contested.stable().covered.covers(frozen.dot) || planted(Bug::ThawedEarly);
        if !is_origin || !covered || self.storage.error.is_some() || self.writes_stopped {
            return false;
        }
        self.carry_out(&frozen);
        true
    }

    /// Gives the answers that are as durable as this replica promises.
    pub(super) fn answer_durable(&mut self) {
        let durable = self.durable.lsn;
        while let Some((_, ticket, result)) =
            self.schema_answers.pop_front_if(|(upto, ..)| *upto <= durable)
        {
            self.outputs.push_back(Output::Done { ticket, result });
        }
    }

    /// Nobody will learn whether what these answers tell reaches the disk.
    pub(super) fn give_up_answers(&mut self, why: &str) {
        for (_, ticket, _) in mem::take(&mut self.schema_answers) {
            let result = Err(WriteError::Unavailable(why.to_owned()));
            self.outputs.push_back(Output::Done { ticket, result });
        }
    }

    /// Runs what a freeze has waited for; if it fails, the freeze ends with the reason.
    fn carry_out(&mut self, frozen: &Frozen) {
        let bytes = frozen.script.len();
        tracing::info!(bytes, "all nodes have heard of the migration that waited: it begins");
        let result = self.attempt(&Attempt {
            script: &frozen.script,
            thawed: frozen.tables.iter().copied().collect(),
            ends: Some(frozen.dot),
            dry: false,
        });
        match result {
            Ok(_) => self.outputs.push_back(Output::Event(Event::SchemaChanged)),
            // Tried again when storage works.
            Err(WriteError::Sqlite(error)) if is_storage_failure(&error) => {
                self.storage_fails(error.to_string());
            }
            Err(error) => {
                // The reason may name a key, which is no business of a log.
                tracing::error!(
                    "a change of the schema that waited for other nodes failed; last_freeze in \
                     littoral_meta says why"
                );
                self.unfreeze(frozen.dot, &error.to_string());
            }
        }
    }

    fn unfreeze(&mut self, freeze: Dot, failure: &str) -> Option<Dot> {
        let author = self.author?;
        let mut body = Body::default();
        body.push_unfreeze(freeze, Some(failure));
        self.author_decree(author, body)
    }

    fn may_change_schema(&self, what: &str) -> Result<(), WriteError> {
        if let Some(why) = self.halted.as_ref().filter(|_| self.writes_stopped) {
            return Err(WriteError::Unavailable(why.clone()));
        }
        if self.author.is_none() {
            return Err(WriteError::NotAMember);
        }
        match origin_seen_by(self.register.as_ref(), &self.identity) {
            Origin::Here => Ok(()),
            Origin::Elsewhere(origin) => {
                Err(WriteError::SchemaChange { what: what.to_owned(), origin })
            }
        }
    }

    fn abort(&mut self) -> Result<Committed, WriteError> {
        self.may_change_schema("giving up a change of the schema")?;
        let Some(frozen) = &self.registry.frozen else {
            return Err(WriteError::Aborted("no change of the schema waits".to_owned()));
        };
        let dot = self.unfreeze(frozen.dot, "given up");
        let answer = self.answer(dot)?;
        tracing::info!("the migration that waited for other nodes is given up");
        Ok(answer)
    }

    fn answer(&self, dot: Option<Dot>) -> Result<Committed, WriteError> {
        if dot.is_none() {
            let why = self.storage.error.clone().or_else(|| self.halted.clone());
            return Err(WriteError::Unavailable(why.unwrap_or_default()));
        }
        Ok(Committed { dot, lsn: self.log.last() })
    }

    fn try_migration(&mut self, script: &str) -> Result<Committed, WriteError> {
        self.may_change_schema("a migration")?;
        if self.registry.frozen.is_some() {
            return Err(self.schema_changing());
        }
        let mut attempt = Attempt { script, thawed: BTreeSet::new(), ends: None, dry: false };
        loop {
            match self.attempt(&attempt) {
                // It would do, as soon as these tables are frozen.
                Ok(_) if attempt.dry => break,
                Err(WriteError::NeedsFreeze { table, what }) => {
                    let id = self.registry.by_name(&table).map(|table| table.id);
                    if !id.is_some_and(|id| attempt.thawed.insert(id)) {
                        return Err(WriteError::NeedsFreeze { table, what });
                    }
                    attempt.dry = true;
                }
                result => return result,
            }
        }
        let mut body = Body::default();
        let tables = attempt.thawed.into_iter().collect();
        body.push_freeze(&Freeze { tables, script: script.to_owned() });
        let dot = self.author.and_then(|author| self.author_decree(author, body));
        self.answer(dot)?;
        let (table, waiting_for) = self.waits();
        Err(WriteError::SchemaAccepted { table, waiting_for })
    }

    /// Runs a script on connections of its own. What it did is committed, unless it is only tried.
    fn attempt(&mut self, attempt: &Attempt<'_>) -> Result<Committed, WriteError> {
        let Some(author) = self.author else { return Err(WriteError::NotAMember) };
        self.writer.noticed()?;
        let migrating = Writer::open_migrating(
            self.db.file(),
            &self.registry,
            self.synchronous,
            self.writer.verifies_capture(),
            self.log.sizes().tape,
            attempt.thawed.clone(),
        )?;
        self.writer.unmirror()?;
        let script = attempt.script.to_owned();
        let job = Queued {
            ticket: Ticket(0),
            job: Box::new(move |tx| tx.migrate(&script)),
            run_for: None,
        };
        let before = Arc::clone(&self.registry);
        let usual = mem::replace(&mut self.writer, migrating);
        (self.ending, self.only_tries) = (attempt.ends, attempt.dry);
        let answers = self.commit_all(author, &mut [job]);
        (self.ending, self.only_tries) = (None, false);
        let migrating = mem::replace(&mut self.writer, usual);
        self.writer.forget_versions();
        if let Err(error) = migrating.close() {
            tracing::warn!(%error, "the connections of a migration did not close");
        }
        // Whatever else is committed from here on is another program's.
        if let Err(error) = self.writer.noticed() {
            self.storage_failed(&error);
        }
        if !Arc::ptr_eq(&before, &self.registry) {
            self.writer.learn(&self.registry);
        }
        self.writer.mirror_again(&self.registry);
        self.counting.news = true;
        let result = answers.into_iter().next().map(|answer| answer.result);
        result
            .unwrap_or_else(|| Err(WriteError::Unavailable("the migration was not run".to_owned())))
    }

    // --- For people

    /// What a write to a frozen table is answered.
    pub(super) fn schema_changing(&self) -> WriteError {
        let (table, waiting_for) = self.waits();
        WriteError::SchemaChanging { table, waiting_for }
    }

    /// The first table that waits for a change, and for whom.
    fn waits(&self) -> (String, Vec<NodeId>) {
        let Some(freeze) = self.freeze() else { return Default::default() };
        (freeze.tables.into_iter().next().unwrap_or_default(), freeze.waiting_for)
    }

    /// The change that waits for other nodes.
    pub(super) fn freeze(&self) -> Option<FreezeStatus> {
        let frozen = self.registry.frozen.as_ref()?;
        let name = |id: &TableId| self.registry.by_id(*id).map(|table| table.name.clone());
        Some(FreezeStatus {
            tables: frozen.tables.iter().filter_map(name).collect(),
            since: frozen.since,
            script: frozen.script.clone(),
            waiting_for: self.who_lacks(frozen.dot),
        })
    }

    /// The members that have not said to hold an entry durably, as far as this node has heard.
    fn who_lacks(&self, dot: Dot) -> Vec<NodeId> {
        let lacks = |author| !self.acks.of(author).is_some_and(|(vector, _)| vector.covers(dot));
        self.members
            .iter()
            .filter(|member| Some(member.author) != self.author && lacks(member.author))
            .map(|member| member.node.clone())
            .collect()
    }
}

/// Logs how a migration has ended. Its statements hold values, and so may a reason to refuse it; whoever
/// asked for it is told.
fn tell(result: &Result<Committed, WriteError>) {
    match result {
        Ok(Committed { dot: Some(dot), .. }) => {
            tracing::info!(entry = %dot, "the migration is committed");
        }
        Ok(_) => tracing::info!("the migration has ended: it has changed nothing"),
        Err(WriteError::SchemaAccepted { waiting_for, .. }) => tracing::info!(
            nodes = waiting_for.len(),
            "the migration waits until other nodes have heard of it"
        ),
        Err(error) => {
            tracing::warn!(why = cause(error), "the migration has failed, and has changed nothing");
        }
    }
}

/// Why a migration has failed, without what its statements hold.
fn cause(error: &WriteError) -> String {
    match error {
        WriteError::NotAMember
        | WriteError::ReadOnly
        | WriteError::OriginOnly { .. }
        | WriteError::SchemaChange { .. }
        | WriteError::SchemaChanging { .. }
        | WriteError::NeedsFreeze { .. }
        | WriteError::NotGranted { .. }
        | WriteError::ClockAhead { .. }
        | WriteError::EntryTooLarge { .. }
        | WriteError::DiskFull
        | WriteError::Unavailable(_) => error.to_string(),
        WriteError::Sqlite(error) | WriteError::InMigration { error, .. } => {
            match error.sqlite_error() {
                Some(failure) => format!("{failure}; whoever asked for it was told more"),
                None => "a statement is not valid; whoever asked for it was told more".to_owned(),
            }
        }
        WriteError::Refused(refusals) => format!(
            "{} reasons why its tables could not replicate; whoever asked for it was told them",
            refusals.len()
        ),
        _ => "whoever asked for it was told".to_owned(),
    }
}
