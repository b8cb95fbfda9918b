//! Sessions that move between machines, and how old machines say that their rows are.

use std::time::Duration;

use littoral::{Committed, ForwardError, Instant, Outcome, Request, RequestId};

use super::{Cluster, Stage};
use crate::{
    chance::{Draw, Stream},
    clock::{MS, Nanos, SECOND},
    oracle::{Check, Promise, broken, sessions::SESSIONS, staleness, unreadable},
    workload::{BOUNDED_READS, JobId, Script},
};

/// Reads that sessions send to the origin are named apart from other requests.
const READS: u128 = 3 << 64;

impl Cluster {
    /// A job was answered, and its log read: its session goes on with a bookmark that covers it.
    pub(super) fn session_wrote(
        &mut self,
        number: usize,
        id: JobId,
        committed: Committed,
    ) -> Check {
        let Some(engine) = &self.machines[number].engine else { return Ok(()) };
        let Some(dot) = committed.dot else { return Ok(()) };
        let bookmark = engine.replica.bookmark();
        let session = usize::try_from(id % SESSIONS as u64).expect("one of a few");
        self.oracle.sessions.wrote(session, dot, &bookmark)
    }

    /// A session comes to a machine, whose log was just read, and reads if it may.
    pub(super) fn session_reads(&mut self, number: usize, draw: &mut Draw) -> Check {
        let session = draw.index(SESSIONS);
        let Some(engine) = &self.machines[number].engine else { return Ok(()) };
        let carried = self.oracle.sessions.bookmark(session)?;
        if carried.is_some_and(|bookmark| engine.replica.db().reached(&bookmark).is_err()) {
            let built_in = self.options.scenario.is_none();
            if built_in && self.stage == Stage::Chaos && draw.percent(30) {
                let sql = *draw.pick(&BOUNDED_READS);
                let patience = *draw.pick(&[200 * MS, SECOND, 5 * SECOND]);
                self.session_reads_there(number, session, sql, patience)?;
                return self.drain(number);
            }
            return Ok(());
        }
        let given = engine.reader.bookmark().map_err(unreadable(number))?;
        let held = self.oracle.logs.shadow(number).vector();
        if let Some(dot) = given.entries().iter().find(|dot| !held.covers(*dot)) {
            let what = format!("a bookmark of m{number}, which holds {held}, names {dot}");
            return broken(Promise::Sessions, what);
        }
        self.oracle.sessions.read(session, number, &held, &given)
    }

    /// A session comes to a machine whose rows are too old for what it reads, and so reads at the origin.
    pub(super) fn session_reads_at_origin(
        &mut self,
        number: usize,
        sql: &str,
        draw: &mut Draw,
        patience: Nanos,
    ) -> Check {
        let session = draw.index(SESSIONS);
        self.session_reads_there(number, session, sql, patience)
    }

    /// A session has the origin read, after its bookmark if the machine is behind that.
    fn session_reads_there(
        &mut self,
        number: usize,
        session: usize,
        sql: &str,
        patience: Nanos,
    ) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else { return Ok(()) };
        let carried = self.oracle.sessions.bookmark(session)?;
        let behind = carried.filter(|carried| engine.replica.db().reached(carried).is_err());
        self.sent_reads += 1;
        let (now, id) =
            (machine.clock.at(self.now), RequestId(READS | u128::from(self.sent_reads)));
        let program = Script::of(vec![(sql.to_owned(), Vec::new())]).encode();
        let patience = Duration::from_nanos(patience);
        let request = Request { id, issued: now.wall, program, patience };
        let ticket = engine.replica.read_at_origin(now, request, behind.as_ref());
        machine.reads.insert(ticket, id);
        self.oracle.sessions.sends(id, session);
        let why = if behind.is_some() { ", behind its bookmark" } else { "" };
        self.note(number, "read there", || format!("session {session}{why}: {sql}"));
        Ok(())
    }

    /// A session that was answered by the origin reads on some machine, if that may serve it.
    fn session_goes_on(&mut self, session: usize, request: RequestId) -> Check {
        let entity = u64::try_from(request.0 ^ READS).unwrap_or_default();
        let number = self.chance.draw(Stream::Probe, entity, u64::MAX).index(self.machines.len());
        let Some(engine) = &self.machines[number].engine else { return Ok(()) };
        let carried = self.oracle.sessions.bookmark(session)?;
        if carried.is_some_and(|bookmark| engine.replica.db().reached(&bookmark).is_err()) {
            return Ok(());
        }
        self.oracle.refresh(number, &engine.eye)?;
        let given = engine.reader.bookmark().map_err(unreadable(number))?;
        let held = self.oracle.logs.shadow(number).vector();
        self.oracle.sessions.read(session, number, &held, &given)
    }

    /// A read that was sent to the origin is answered.
    pub(super) fn session_read_answered(
        &mut self,
        number: usize,
        request: RequestId,
        result: &Result<Outcome, ForwardError>,
    ) -> Check {
        let text = format!("{request}: {result:?}");
        self.note(number, "was read there", || text.clone());
        match result {
            Ok(Outcome::Read { seen, .. }) => {
                let session = self.oracle.sessions.answered(request, seen)?;
                session.map_or(Ok(()), |session| self.session_goes_on(session, request))
            }
            // The origin was busy with another schema, or could not be reached.
            Ok(Outcome::Failed { .. })
            | Err(
                ForwardError::OriginUnreachable { .. }
                | ForwardError::Expired { .. }
                | ForwardError::Stopping { .. }
                | ForwardError::TooMany,
            ) => {
                self.oracle.sessions.unanswered(request);
                Ok(())
            }
            // A read leaves no doubt, and commits nothing.
            Ok(_) | Err(_) => broken(Promise::Answers, format!("m{number} answers a read: {text}")),
        }
    }

    /// A machine's log was just read: what it says of its age is true.
    pub(super) fn judge_lag(&mut self, number: usize) -> Check {
        let Some(engine) = &self.machines[number].engine else { return Ok(()) };
        let lag = engine.replica.db().lag(Instant(self.now));
        staleness::judge(&mut self.oracle.logs, number, self.now, lag)
    }

    /// Everything is quiet: every session may read everywhere, and nobody's rows are old.
    pub(super) fn judge_sessions(&self) -> Check {
        for (number, machine) in self.machines.iter().enumerate() {
            let Some(engine) = &machine.engine else { continue };
            let db = engine.replica.db();
            staleness::judge_quiet(number, db.lag(Instant(self.now)))?;
            for session in 0..SESSIONS {
                let Some(bookmark) = self.oracle.sessions.bookmark(session)? else { continue };
                if let Err(error) = db.reached(&bookmark) {
                    let what = format!("session {session} may never read on m{number}: {error}");
                    return broken(Promise::Sessions, what);
                }
            }
        }
        Ok(())
    }
}
