//! [`Requests`]: what clients know of what they had run at the origin, and whether it is true.
//!
//! The row that a program adds to `parcel` tells how often it ran. A client that was told *committed* has
//! its row, once, where it was told and in the end everywhere; one that was told *refused*, or never
//! anything but that nothing has begun, has none. A guest has as many rows as steps, all or none.

use std::collections::BTreeMap;

use littoral::{Dot, ForwardError, Outcome, VersionVector};
use rusqlite::Connection;

use super::{Check, Promise, broken, unreadable};
use crate::{
    cluster::Move,
    workload::{Kind, Program, RequestNumber, rows_of},
};

/// What is known of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    /// No attempt can have run.
    Nothing,
    /// One may have.
    Perhaps,
    /// It is committed, for good.
    Committed(Dot),
    /// It never is.
    Refused,
}

/// What was asked of the origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    /// To run the program.
    Run(Program),
    /// What became of it.
    Outcome,
    /// Something that guests ask.
    Guest(Move),
}

/// All requests of a run.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    records: BTreeMap<RequestNumber, (Program, Known)>,
    /// What the origin held when a program failed there first.
    failed: BTreeMap<RequestNumber, VersionVector>,
}

impl Requests {
    /// A client begins with a request.
    pub(crate) fn begun(&mut self, program: Program) {
        self.records.entry(program.request).or_insert((program, Known::Nothing));
    }

    /// What is known of a request.
    pub(crate) fn known(&self, request: RequestNumber) -> Known {
        self.records.get(&request).map_or(Known::Nothing, |(_, known)| *known)
    }

    /// Requests of which nobody knows yet what became of them.
    pub(crate) fn open(&self) -> Vec<RequestNumber> {
        let open = self.records.iter().filter(|(_, (_, known))| *known == Known::Perhaps);
        open.map(|(request, _)| *request).collect()
    }

    /// A program has failed at the origin, which holds these entries, and has seen them.
    pub(crate) fn fails_there(&mut self, request: RequestNumber, held: &VersionVector) {
        self.failed.entry(request).or_insert_with(|| held.clone());
    }

    /// A client hears on a machine that holds these entries that its program has failed.
    pub(crate) fn told_failed(
        &self,
        request: RequestNumber,
        machine: usize,
        held: &VersionVector,
    ) -> Check {
        let seen = self.failed.get(&request);
        let missing = seen.and_then(|seen| seen.iter().find(|dot| !held.covers(*dot)));
        match missing {
            None => Ok(()),
            Some(dot) => broken(
                Promise::Sessions,
                format!(
                    "request {request}, which has failed, has seen {dot}, and m{machine}, which tells its                      client, holds {held}"
                ),
            ),
        }
    }

    /// A power cut took an entry from its author: what has seen it is not followed.
    pub(crate) fn lost(&mut self, dot: Dot) {
        self.failed.retain(|_, held| !held.covers(dot));
    }

    /// Nobody will hear what became of an attempt.
    pub(crate) fn unanswered(&mut self, request: RequestNumber) {
        if let Some((_, known)) = self.records.get_mut(&request)
            && *known == Known::Nothing
        {
            *known = Known::Perhaps;
        }
    }

    /// A client was answered; `reader` shows what its machine shows then.
    pub(crate) fn answered(
        &mut self,
        request: RequestNumber,
        asked: Asked,
        result: &Result<Outcome, ForwardError>,
        machine: usize,
        reader: Option<&Connection>,
    ) -> Check {
        let Some((program, known)) = self.records.get_mut(&request) else { return Ok(()) };
        let wrong = |what: String| {
            let what = format!("request {request} on m{machine}: {what}, and {known:?} was known");
            broken(Promise::ExactlyOnce, what)
        };
        let other = matches!(asked, Asked::Run(sent) if sent != *program);
        match result {
            Ok(Outcome::Committed { dot, result }) => {
                if other {
                    return wrong("another program was told that it is committed".to_owned());
                }
                match *known {
                    Known::Refused => return wrong("committed after it was refused".to_owned()),
                    Known::Committed(before) if before != *dot => {
                        return wrong(format!("committed as {dot}"));
                    }
                    _ => {}
                }
                if result.as_ref().is_some_and(|result| *result != program.result()) {
                    return wrong("another program's result".to_owned());
                }
                if !matches!(program.kind, Kind::Adds | Kind::AddsMuch | Kind::Ends) {
                    return wrong(format!("{:?} is committed", program.kind));
                }
                let rows = reader.map(|reader| count_rows(machine, reader, request)).transpose()?;
                if rows.is_some_and(|rows| rows != rows_of(request)) {
                    return wrong(format!("told committed, and {rows:?} rows show"));
                }
                *known = Known::Committed(*dot);
            }
            Ok(Outcome::Refused) => {
                if matches!(known, Known::Committed(_)) {
                    return wrong("refused".to_owned());
                }
                *known = Known::Refused;
            }
            Ok(Outcome::Unchanged { .. }) if program.kind != Kind::Looks && !other => {
                return wrong("nothing was changed".to_owned());
            }
            // A program that has failed leaves the request as it was.
            Ok(Outcome::Unchanged { .. } | Outcome::Failed { .. }) => {
                if matches!(known, Known::Committed(_)) && !other {
                    return wrong("it ran again".to_owned());
                }
            }
            Err(ForwardError::OtherProgram { .. }) if !other => {
                return wrong("taken for another program".to_owned());
            }
            Err(ForwardError::Unknown { .. } | ForwardError::Stopping { .. }) if !other => {
                self.unanswered(request);
            }
            Ok(Outcome::Begun(_) | Outcome::Stepped { .. } | Outcome::Read { .. }) => {
                return wrong("it is still open, or was read".to_owned());
            }
            // This attempt has run nothing.
            Err(_) => {}
        }
        Ok(())
    }

    /// In the end: what is committed has its row, what is not has none.
    pub(crate) fn judge(&self, machine: usize, reader: &Connection) -> Check {
        for (request, (_, known)) in &self.records {
            let (rows, all) = (count_rows(machine, reader, *request)?, rows_of(*request));
            let right = match known {
                Known::Committed(_) => rows == all,
                Known::Nothing | Known::Refused => rows == 0,
                Known::Perhaps => rows == 0 || rows == all,
            };
            if !right {
                let what = format!("{rows} rows of request {request} on m{machine}: {known:?}");
                return broken(Promise::ExactlyOnce, what);
            }
        }
        Ok(())
    }
}

fn count_rows(machine: usize, reader: &Connection, request: RequestNumber) -> Check<i64> {
    reader
        .prepare_cached("SELECT count(*) FROM parcel WHERE request = ?")
        .and_then(|mut query| query.query_row([request.cast_signed()], |row| row.get(0)))
        .map_err(unreadable(machine))
}
