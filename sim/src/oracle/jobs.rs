//! [`Jobs`]: what clients asked for, what they were answered, and whether that stays true.
//!
//! An answered job is durable: at once where the machine is `synchronous = FULL`, and elsewhere
//! unless a power cut takes it before any other machine has it. A refused job has left nothing. Of a
//! job whose answer a crash swallowed, everything or nothing remains.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use littoral::{Committed, Dot, ForwardError, Outcome, WriteError};
use rusqlite::{Connection, OptionalExtension};

use super::{Check, Promise, broken, shadow::Shadow, sights::has_schema, unreadable};
use crate::workload::{Effects, JobId, PlannedJob};

/// What became of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Queued, or swallowed by a crash.
    Unknown,
    /// Answered; the entry, and whether nothing may take it.
    Done(Option<Dot>),
    /// Answered, but taken by a power cut that was allowed to.
    Lost,
    /// Refused.
    Refused,
}

#[derive(Debug)]
struct Record {
    machine: usize,
    full: bool,
    freezes: u64,
    in_ledger: bool,
    effects: Arc<Mutex<Effects>>,
    fate: Fate,
}

/// All jobs of a run.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    records: BTreeMap<JobId, Record>,
    by_dot: BTreeMap<Dot, JobId>,
}

/// How many jobs ended how.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct JobCounts {
    /// Answered.
    pub(crate) done: u64,
    /// Refused.
    pub(crate) refused: u64,
    /// Swallowed by a crash, or lost as allowed.
    pub(crate) lost: u64,
}

impl Jobs {
    /// A job is queued.
    /// `freezes` is how many its machine knew of.
    pub(crate) fn queued(
        &mut self,
        id: JobId,
        machine: usize,
        full: bool,
        freezes: u64,
        job: &PlannedJob,
    ) {
        let record = Record {
            machine,
            full,
            freezes,
            in_ledger: job.in_ledger,
            effects: Arc::clone(&job.effects),
            fate: Fate::Unknown,
        };
        self.records.insert(id, record);
    }

    /// A job was answered: what the answer says must be visible already. `shadow` is what the machine's
    /// log leads to.
    pub(crate) fn answered(
        &mut self,
        id: JobId,
        result: &Result<Committed, WriteError>,
        reader: &Connection,
        shadow: &Shadow,
    ) -> Check {
        let Some(record) = self.records.get_mut(&id) else {
            return broken(Promise::Answers, format!("an answer to job {id}, which nobody queued"));
        };
        if record.fate != Fate::Unknown {
            return broken(Promise::Answers, format!("a second answer to job {id}"));
        }
        let refused = match result {
            Err(
                WriteError::SchemaChanging { table, .. } | WriteError::SchemaAccepted { table, .. },
            ) => Some(table.clone()),
            _ => None,
        };
        let effects = record.effects.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changing = effects.frozen.iter().chain(&refused);
        // An answer that waits for stable storage may come when what it tells of has been given up.
        let untrue = |table: &&String| !shadow.was_frozen_since(table, record.freezes);
        if let Some(table) = changing.find(untrue) {
            let what = format!(
                "job {id} was told on m{} that {table} is changing, and it is not",
                record.machine
            );
            return broken(Promise::Answers, what);
        }
        drop(effects);
        record.fate = match result {
            Ok(committed) => Fate::Done(committed.dot),
            Err(_) => Fate::Refused,
        };
        if let Fate::Done(Some(dot)) = record.fate
            && let Some(other) = self.by_dot.insert(dot, id)
        {
            return broken(
                Promise::Answers,
                format!("jobs {other} and {id} were both answered {dot}"),
            );
        }
        if record.in_ledger {
            let there = is_in_ledger(record.machine, id, reader)?;
            if there != result.is_ok() {
                let answer = match result {
                    Ok(_) => "done".to_owned(),
                    Err(error) => format!("refused ({error})"),
                };
                let row = if there { "there" } else { "missing" };
                return broken(
                    Promise::Answers,
                    format!(
                        "job {id} was answered {answer} on m{}, but its row is {row}",
                        record.machine
                    ),
                );
            }
            if let Fate::Done(None) = record.fate {
                return broken(
                    Promise::Answers,
                    format!(
                        "job {id} wrote a row on m{}, but was answered no entry",
                        record.machine
                    ),
                );
            }
        }
        Ok(())
    }

    /// The origin has done a job for another machine, whose client is not told yet.
    pub(crate) fn ran(&mut self, id: JobId, dot: Dot) {
        self.by_dot.insert(dot, id);
    }

    /// The client of a job that the origin was to do was told what became of it.
    pub(crate) fn forwarded(&mut self, id: JobId, result: &Result<Outcome, ForwardError>) -> Check {
        let Some(record) = self.records.get_mut(&id).filter(|record| record.fate == Fate::Unknown)
        else {
            return broken(Promise::Answers, format!("a second answer to job {id}"));
        };
        record.fate = match result {
            Ok(Outcome::Committed { dot, .. }) => {
                if self.by_dot.insert(*dot, id).is_some_and(|other| other != id) {
                    let what = format!("job {id} was answered {dot}, which is another's");
                    return broken(Promise::ExactlyOnce, what);
                }
                // It is on the origin's stable storage, whatever its setting.
                record.full = true;
                Fate::Done(Some(*dot))
            }
            Ok(Outcome::Unchanged { .. }) => Fate::Done(None),
            Err(ForwardError::Unknown { .. } | ForwardError::Stopping { .. }) => Fate::Unknown,
            Ok(_) | Err(_) => Fate::Refused,
        };
        Ok(())
    }

    /// The job that was answered this entry.
    pub(crate) fn job_of(&self, dot: Dot) -> Option<JobId> {
        self.by_dot.get(&dot).copied()
    }

    /// A power cut took an entry from its author, and nobody else holds it.
    pub(crate) fn lost(&mut self, dot: Dot) -> Check {
        let Some(id) = self.by_dot.remove(&dot) else { return Ok(()) };
        let record = self.records.get_mut(&id).expect("an answered job was queued");
        record.fate = Fate::Lost;
        if record.full {
            return broken(
                Promise::Durability,
                format!(
                    "job {id} was answered {dot} on m{} at synchronous = FULL, and a power cut took it",
                    record.machine
                ),
            );
        }
        Ok(())
    }

    /// How the jobs ended.
    pub(crate) fn counts(&self) -> JobCounts {
        let mut counts = JobCounts::default();
        for record in self.records.values() {
            match record.fate {
                Fate::Done(_) => counts.done += 1,
                Fate::Refused => counts.refused += 1,
                Fate::Lost | Fate::Unknown => counts.lost += 1,
            }
        }
        counts
    }

    /// A job that nothing stood in the way of was answered.
    pub(crate) fn judge_mark(&self, id: JobId) -> Check {
        match self.records.get(&id).map(|record| record.fate) {
            Some(Fate::Done(Some(_))) => Ok(()),
            fate => broken(
                Promise::Availability,
                format!("job {id}, after all faults had ended, came to {fate:?}"),
            ),
        }
    }

    /// In the end: what was answered is there, what was refused is not. `holds` tells whether the
    /// machine's log has an entry.
    pub(crate) fn judge(
        &self,
        machine: usize,
        reader: &Connection,
        holds: impl Fn(Dot) -> bool,
    ) -> Check {
        for (id, record) in &self.records {
            if let Fate::Done(Some(dot)) = record.fate
                && !holds(dot)
            {
                return broken(
                    Promise::Durability,
                    format!(
                        "job {id} was answered {dot} on m{}, and m{machine} has no such entry",
                        record.machine
                    ),
                );
            }
            if record.in_ledger {
                let there = is_in_ledger(machine, *id, reader)?;
                match record.fate {
                    Fate::Done(_) if !there => {
                        return broken(
                            Promise::Durability,
                            format!(
                                "job {id} was answered on m{}, and m{machine} lacks its row",
                                record.machine
                            ),
                        );
                    }
                    Fate::Refused | Fate::Lost if there => {
                        return broken(
                            Promise::Answers,
                            format!(
                                "job {id} of m{} was refused or lost, and m{machine} has its row",
                                record.machine
                            ),
                        );
                    }
                    Fate::Done(_) | Fate::Refused | Fate::Lost | Fate::Unknown => {}
                }
            }
            if let Fate::Done(Some(_)) = record.fate {
                let effects = record.effects.lock().unwrap_or_else(PoisonError::into_inner);
                for ghost in &effects.ghosts_deleted {
                    no_ghost(machine, *id, *ghost, reader)?;
                }
            }
        }
        Ok(())
    }
}

fn is_in_ledger(machine: usize, id: JobId, reader: &Connection) -> Check<bool> {
    exists(machine, reader, "SELECT 1 FROM ledger WHERE id = ?", id.cast_signed())
}

fn no_ghost(machine: usize, id: JobId, ghost: i64, reader: &Connection) -> Check {
    if exists(machine, reader, "SELECT 1 FROM ghost WHERE id = ?", ghost)? {
        return broken(
            Promise::Exactness,
            format!("job {id} deleted ghost {ghost}, and it is back on m{machine}"),
        );
    }
    Ok(())
}

fn exists(machine: usize, reader: &Connection, sql: &str, id: i64) -> Check<bool> {
    let failed = unreadable(machine);
    if !has_schema(reader).map_err(&failed)? {
        return Ok(false);
    }
    let mut query = reader.prepare_cached(sql).map_err(&failed)?;
    let found = query.query_row([id], |_| Ok(())).optional().map_err(&failed)?;
    Ok(found.is_some())
}
