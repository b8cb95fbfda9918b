//! Jobs of a scenario's clients that belong to the origin: they are sent there, as a node does for a client
//! over HTTP.

use std::time::Duration;

use littoral::{ForwardError, Outcome, Request, RequestId};

use super::Cluster;
use crate::{
    application::Forwarded,
    clock::SECOND,
    disk::vfs,
    oracle::Check,
    workload::{Failed, JobId, Script},
};

/// How long the origin may take to begin, as a node has it.
const PATIENCE: Duration = Duration::from_nanos(5 * SECOND);

/// Requests that are made of jobs are named apart from others.
const JOBS: u128 = 2 << 64;

/// The job that a request was made of.
pub(super) fn job_of(request: RequestId) -> Option<JobId> {
    JobId::try_from(request.0.checked_sub(JOBS)?).ok()
}

impl Cluster {
    /// Sends a job to the origin; false if its machine is stopping.
    pub(super) fn forward_job(&mut self, number: usize, id: JobId, script: &Script) -> bool {
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else { return false };
        let now = machine.clock.at(self.now);
        vfs::with(|store| store.wall_ms = now.wall.0);
        let request = Request {
            id: RequestId(JOBS | u128::from(id)),
            issued: now.wall,
            program: script.encode(),
            patience: PATIENCE,
        };
        let ticket = engine.replica.forward(now, request);
        machine.tickets.insert(ticket, id);
        self.trace.event(self.now, number, "forward", &[id], &[], || format!("{id}"));
        true
    }

    /// A job that was sent to the origin is answered.
    pub(super) fn job_answered(
        &mut self,
        number: usize,
        id: JobId,
        result: &Result<Outcome, ForwardError>,
    ) -> Check {
        let text = format!("{id}: {result:?}");
        self.trace.event(self.now, number, "answer", &[id], text.as_bytes(), || text.clone());
        self.oracle.jobs.forwarded(id, result)?;
        let failed;
        let told = match result {
            Ok(Outcome::Committed { .. } | Outcome::Unchanged { .. }) => Forwarded::Done,
            Ok(Outcome::Failed { answer }) => {
                failed = Failed::decode(answer);
                Forwarded::Failed(&failed)
            }
            Err(ForwardError::OriginUnreachable { .. } | ForwardError::TooMany) => {
                Forwarded::OutOfReach
            }
            Err(ForwardError::Unknown { .. } | ForwardError::Stopping { .. }) => {
                Forwarded::Unanswered
            }
            Ok(
                Outcome::Refused
                | Outcome::Begun(_)
                | Outcome::Stepped { .. }
                | Outcome::Read { .. },
            ) => {
                failed = Failed { constraint: false, why: format!("{result:?}") };
                Forwarded::Failed(&failed)
            }
            Err(error) => {
                failed = Failed { constraint: false, why: error.to_string() };
                Forwarded::Failed(&failed)
            }
        };
        self.application.forwarded(id, told);
        Ok(())
    }
}
