//! Requests at the origin: each waits until it can begin, runs once, and is answered from then on.
//!
//! ```text
//!   arrives ──► waits for what its sender had ──► Run ──► a job ──► an entry with its outcome
//!                        │                                  └─ no change, or failed: no trace
//!                        └─ its outcome is known: that is the reply
//! ```
//!
//! Invariants:
//! - of one request no two runs are under way, and none begins after one was committed, or after somebody
//!   was told that none will;
//! - what is said to be committed or refused is on stable storage: the entry that a reply names never
//!   becomes another one.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    db::{Committed, ProgramJob, Queued, RunFor, WriteTx},
    driver::Output,
    entry::{Digest, Fate, codec::Body},
    error::WriteError,
    forward::RequestId,
    id::{PeerId, Seq, Ticket},
    limits::{OUTCOME_KEPT, PATIENCE_MAX, RESULT_BYTES_MAX},
    protocol::{
        forward::{Asks, Carried, Reply, Waiter},
        message::{read_vector, wire_vector},
    },
    replica::{Replica, guests::Asked, is_sync_failure},
    schema::outcomes,
    testing::{Bug, planted},
    time::{Instant, Now},
    version::Dot,
};

/// What the origin has to do for others and for its own clients.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: VecDeque<Waiting>,
    runs: BTreeMap<RequestId, Run>,
    /// The jobs of runs.
    jobs: BTreeMap<Ticket, RequestId>,
    /// Replies that wait until an entry is on stable storage.
    replies: VecDeque<(Dot, Waiter, Reply)>,
    /// Something has come since those that wait were looked at.
    news: bool,
    /// Of the planted bug [`Bug::AnswerKept`].
    kept: BTreeMap<Digest, Vec<u8>>,
}

/// A request that has not begun, or a question.
#[derive(Debug)]
struct Waiting {
    waiter: Waiter,
    carried: Carried,
    deadline: Instant,
}

/// A request that the driver has.
#[derive(Debug)]
struct Run {
    program: Digest,
    waiters: Vec<Waiter>,
    result: Arc<Mutex<Vec<u8>>>,
}

/// What can be done with a request.
enum Step {
    Waits(Waiting),
    /// Its outcome is known.
    Reply(Waiter, Reply),
    /// It is known and in this entry.
    Known(Dot, Waiter, Reply),
    /// It begins, or another one is under way with which it ends.
    Done,
}

impl Replica {
    /// At the origin: runs the job that was made of a program, as [`Output::Run`] asked. It is answered by
    /// [`Output::Done`] like any other; who sent the program is told by the replica if it is committed.
    ///
    /// A job that has failed may be handed in again; else [`Replica::run_failed`] ends the run.
    pub fn run(&mut self, now: Now, request: RequestId, mut job: ProgramJob) -> Ticket {
        self.tell_time(now);
        let ticket = self.next_ticket();
        let Some(run) = self.requests.runs.get(&request) else {
            let why = "the request does not run".to_owned();
            let result = Err(WriteError::Aborted(why));
            self.outputs.push_back(Output::Done { ticket, result });
            return ticket;
        };
        let result = Arc::clone(&run.result);
        let run_for = RunFor { request, program: run.program, result: Arc::clone(&result) };
        let job = Box::new(move |tx: &mut WriteTx<'_>| {
            let given = job(tx)?;
            let bytes = given.len();
            *result.lock() = given;
            if bytes > RESULT_BYTES_MAX {
                return Err(WriteError::ResultTooLarge { bytes });
            }
            Ok(())
        });
        self.requests.jobs.insert(ticket, request);
        self.jobs.push(Queued { ticket, job, run_for: Some(run_for) });
        ticket
    }

    /// At the origin: the job of a request has failed, or there is none to be made of its program. Those who
    /// wait are told `answer`.
    pub fn run_failed(&mut self, now: Now, request: RequestId, mut answer: Vec<u8>) {
        self.tell_time(now);
        answer.truncate(RESULT_BYTES_MAX);
        if let Some(run) = self.requests.runs.remove(&request) {
            self.requests.news = true;
            let seen = self.seen_by_failed();
            for waiter in run.waiters {
                self.reply_to(waiter, Reply::Failed(answer.clone(), seen.clone()));
            }
        }
    }

    /// What a program, or a guest, that has failed can have seen: its client may be told of rows.
    pub(super) fn seen_by_failed(&self) -> Vec<(u64, Seq)> {
        if planted(Bug::FailureUnseen) { Vec::new() } else { wire_vector(&self.log.vector()) }
    }

    /// A request has come to the origin.
    pub(super) fn request_arrived(&mut self, waiter: Waiter, carried: Carried) {
        let kept = u64::try_from(OUTCOME_KEPT.as_millis()).unwrap_or(u64::MAX);
        if carried.issued.saturating_add(kept) < self.corrected().0 {
            return self.reply_to(waiter, Reply::Expired);
        }
        let patience = Duration::from_millis(carried.patience).min(PATIENCE_MAX);
        let deadline = self.now.mono + patience;
        self.requests.waiting.push_back(Waiting { waiter, carried, deadline });
        self.requests.news = true;
    }

    /// Begins what can begin, and says what is on stable storage.
    pub(super) fn serve_requests(&mut self) {
        while let Some((dot, ..)) = self.requests.replies.front()
            && (self.durable.vector.covers(*dot) || planted(Bug::RepliedUnsynced))
            && let Some((_, waiter, reply)) = self.requests.replies.pop_front()
        {
            self.reply_to(waiter, reply);
        }
        let now = self.now.mono;
        let late = self.requests.waiting.iter().any(|waiting| waiting.deadline <= now);
        if !mem::take(&mut self.requests.news) && !late {
            return;
        }
        for waiting in mem::take(&mut self.requests.waiting) {
            match self.begin_request(waiting) {
                Step::Waits(waiting) if waiting.deadline <= now => {
                    self.reply_to(waiting.waiter, Reply::NotBegun);
                }
                Step::Waits(waiting) => self.requests.waiting.push_back(waiting),
                Step::Reply(waiter, reply) => self.reply_to(waiter, reply),
                Step::Known(dot, waiter, reply) => self.reply_when_durable(dot, waiter, reply),
                Step::Done => {}
            }
        }
    }

    pub(super) fn reply_when_durable(&mut self, dot: Dot, waiter: Waiter, reply: Reply) {
        if self.durable.vector.covers(dot) || planted(Bug::RepliedUnsynced) {
            self.reply_to(waiter, reply);
        } else {
            self.requests.replies.push_back((dot, waiter, reply));
        }
    }

    fn begin_request(&mut self, waiting: Waiting) -> Step {
        let (waiter, request) = (waiting.waiter, RequestId(waiting.carried.request));
        if waiting.carried.asks == Asks::Meet {
            // What was told here must still be here if the power goes now.
            if !self.durable.vector.covers_all(&read_vector(&waiting.carried.requires))
                && !planted(Bug::RequirementIgnored)
            {
                return Step::Waits(waiting);
            }
            let vector = if planted(Bug::MeetingBehind) {
                self.contested.stable().covered.clone()
            } else {
                self.durable.vector.clone()
            };
            return Step::Reply(waiter, Reply::Unchanged(Vec::new(), wire_vector(&vector)));
        }
        let known = match outcomes::find(self.writer.apply(), request) {
            Ok(known) => known,
            Err(error) => {
                self.storage_fails(error.to_string());
                return Step::Waits(waiting);
            }
        };
        if let Some((dot, fate)) = known {
            return Self::reply_of_outcome(&waiting, dot, fate);
        }
        match &waiting.carried.asks {
            // What runs is waited for.
            Asks::Outcome => match self.requests.runs.get(&request) {
                None if !self.guests.has(request) => self.refuse_request(waiting),
                _ => Step::Waits(waiting),
            },
            Asks::Run(_) => self.begin_run(waiting),
            Asks::Begin if !self.may_begin(&waiting) => Step::Waits(waiting),
            Asks::Begin => {
                let number = self.next_guest();
                let asked = self.guests.arrives(waiter, request, number, waiting.deadline);
                self.asked_by_guest(waiting, asked)
            }
            Asks::Step(number, step, program) => {
                let asked = self.guests.steps(waiter, request, (*number, *step), program);
                self.asked_by_guest(waiting, asked)
            }
            Asks::Leave => Step::Reply(waiter, self.guest_leaves(request)),
            // It has been answered above.
            Asks::Meet => Step::Done,
        }
    }

    /// The reply to a request whose outcome is known.
    fn reply_of_outcome(waiting: &Waiting, dot: Dot, fate: Fate) -> Step {
        let waiter = waiting.waiter;
        match (&waiting.carried.asks, fate) {
            (_, Fate::Refused) => Step::Known(dot, waiter, Reply::Refused),
            (Asks::Begin | Asks::Leave, Fate::Committed { .. }) => Step::Reply(waiter, Reply::Gone),
            (Asks::Step(_, step, program), fate)
                if !Self::step_of_committed(*step, program, &fate) =>
            {
                Step::Reply(waiter, Reply::Gone)
            }
            (Asks::Run(program), Fate::Committed { program: ran, .. })
                if Digest::of(program) != ran && !planted(Bug::OtherProgramTaken) =>
            {
                Step::Reply(waiter, Reply::OtherProgram)
            }
            (_, Fate::Committed { result, .. }) => {
                let reply = Reply::Committed(dot.author.to_u64(), dot.seq, result);
                Step::Known(dot, waiter, reply)
            }
        }
    }

    /// Whether the origin has what the sender had.
    fn has_required(&self, waiting: &Waiting) -> bool {
        let required = read_vector(&waiting.carried.requires);
        self.log.vector().covers_all(&required) || planted(Bug::RequirementIgnored)
    }

    /// Whether the origin has that, and can write.
    fn may_begin(&self, waiting: &Waiting) -> bool {
        let late = waiting.deadline <= self.now.mono;
        self.has_required(waiting) && !late && self.author.is_some() && !self.writes_stopped
    }

    fn begin_run(&mut self, mut waiting: Waiting) -> Step {
        let (waiter, request) = (waiting.waiter, RequestId(waiting.carried.request));
        let Asks::Run(program) = &mut waiting.carried.asks else { return Step::Done };
        let digest = Digest::of(program);
        if let Some(run) = self.requests.runs.get_mut(&request) {
            if run.program != digest && !planted(Bug::OtherProgramTaken) {
                return Step::Reply(waiter, Reply::OtherProgram);
            }
            run.waiters.push(waiter);
            return Step::Done;
        }
        if self.guests.has(request) {
            return Step::Reply(waiter, Reply::OtherProgram);
        }
        let program = mem::take(program);
        if !self.may_begin(&waiting) {
            waiting.carried.asks = Asks::Run(program);
            return Step::Waits(waiting);
        }
        if planted(Bug::AnswerKept)
            && let Some(kept) = self.requests.kept.get(&digest)
        {
            return Step::Reply(waiter, Reply::Unchanged(kept.clone(), Vec::new()));
        }
        let run = Run { program: digest, waiters: vec![waiter], result: Arc::default() };
        self.requests.runs.insert(request, run);
        self.outputs.push_back(Output::Run { request, program });
        Step::Done
    }

    fn asked_by_guest(&mut self, waiting: Waiting, asked: Asked) -> Step {
        let request = RequestId(waiting.carried.request);
        match (asked, waiting.carried.asks) {
            (Asked::Reply(reply), _) => return Step::Reply(waiting.waiter, reply),
            (Asked::Arrived, _) => self.outputs.push_back(Output::GuestArrived { request }),
            (Asked::Runs(ticket), Asks::Step(_, _, program)) => {
                self.outputs.push_back(Output::GuestStep { request, ticket, program });
            }
            (Asked::Runs(_) | Asked::Waits, _) => {}
        }
        Step::Done
    }

    /// Decides that a request never runs, so that saying so is final.
    fn refuse_request(&mut self, waiting: Waiting) -> Step {
        if planted(Bug::RefusalForgotten) {
            return Step::Reply(waiting.waiter, Reply::Refused);
        }
        let ready = self.halted.is_none() && self.storage.error.is_none() && !self.is_open();
        let (true, Some(author)) = (ready, self.author) else { return Step::Waits(waiting) };
        let mut body = Body::default();
        body.push_outcome(RequestId(waiting.carried.request), &Fate::Refused);
        match self.author_decree(author, body) {
            Some(dot) => Step::Known(dot, waiting.waiter, Reply::Refused),
            None => Step::Waits(waiting),
        }
    }

    /// A job has ended, and may have been that of a request.
    pub(super) fn note_run(&mut self, ticket: Ticket, result: &Result<Committed, WriteError>) {
        let Some(request) = self.requests.jobs.remove(&ticket) else { return };
        let dot = match result {
            Ok(Committed { dot, .. }) => *dot,
            Err(WriteError::Sqlite(error)) if is_sync_failure(error) => {
                // What the disk holds is not known, and this replica has halted.
                let run = self.requests.runs.remove(&request);
                for waiter in run.into_iter().flat_map(|run| run.waiters) {
                    self.reply_to(waiter, Reply::Lost);
                }
                return;
            }
            // The driver says what becomes of it.
            Err(_) => return,
        };
        let Some(run) = self.requests.runs.remove(&request) else { return };
        self.requests.news = true;
        let result = mem::take(&mut *run.result.lock());
        if planted(Bug::AnswerKept) && dot.is_none() {
            self.requests.kept.insert(run.program, result.clone());
        }
        for waiter in run.waiters {
            match dot {
                Some(dot) => {
                    let reply =
                        Reply::Committed(dot.author.to_u64(), dot.seq, Some(result.clone()));
                    self.reply_when_durable(dot, waiter, reply);
                }
                None => {
                    let seen = wire_vector(&self.log.vector());
                    self.reply_to(waiter, Reply::Unchanged(result.clone(), seen));
                }
            }
        }
    }

    /// Something has come, or is on stable storage now, for which a request may wait.
    pub(super) fn entries_came(&mut self) {
        self.requests.news = true;
    }

    /// Nobody waits any more for what came over a link; what has begun goes on.
    pub(super) fn forget_requests_of(&mut self, peer: PeerId) {
        let theirs =
            |waiter: &Waiter| matches!(waiter, Waiter::Peer(waiting, _) if *waiting == peer);
        self.requests.waiting.retain(|waiting| !theirs(&waiting.waiter));
        self.requests.replies.retain(|(_, waiter, _)| !theirs(waiter));
        for run in self.requests.runs.values_mut() {
            run.waiters.retain(|waiter| !theirs(waiter));
        }
        self.guests.forget(peer);
    }

    pub(super) fn requests_deadline(&self) -> Option<Instant> {
        let deadline = self.requests.waiting.iter().map(|waiting| waiting.deadline).min()?;
        Some(if self.requests.news { self.now.mono } else { deadline })
    }

    /// Requests that have come here and are not answered.
    pub(super) fn requests_here(&self) -> usize {
        let waiters = self.requests.runs.values().map(|run| run.waiters.len());
        self.requests.waiting.len() + waiters.sum::<usize>() + self.guests.waiters()
    }
}
