//! Requests to the origin: those of this node's clients, and, at the origin, the programs of all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use littoral::{
    Bookmark, ForwardError, Guest, Now, Outcome, ProgramJob, Replica, Request, RequestId, Ticket,
    WallTime, WriteError, WriteTx,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Event, NodeHandle, TransactionError, WRITE_TIME_LIMIT, writes::Write};

/// The bits of an id that are random; the milliseconds of its issue stand above them.
const RANDOM_BITS: u32 = 80;

/// What a client wants of the origin.
pub(crate) enum Ask {
    /// To run a program.
    Run(Request),
    /// To run one that only reads, once the origin has what a bookmark names.
    Read(Request, Option<Bookmark>),
    /// To say what it has, once it has what this node has.
    Meet { patience: Duration },
    /// To say what became of a request.
    Outcome { id: RequestId, issued: WallTime, patience: Duration },
    /// To begin a transaction there.
    Begin { id: RequestId, issued: WallTime, patience: Duration },
    /// To take a step in it.
    Step { guest: Guest, step: u64, program: Vec<u8>, patience: Duration },
    /// To end it, or not to begin it.
    Leave { id: RequestId, patience: Duration },
}

impl Ask {
    /// Asks the replica.
    pub(super) fn of(self, replica: &mut Replica, now: Now) -> Ticket {
        match self {
            Self::Run(request) => replica.forward(now, request),
            Self::Read(request, after) => replica.read_at_origin(now, request, after.as_ref()),
            Self::Meet { patience } => replica.meet_origin(now, patience),
            Self::Outcome { id, issued, patience } => replica.outcome(now, id, issued, patience),
            Self::Begin { id, issued, patience } => {
                replica.begin_at_origin(now, id, issued, patience)
            }
            Self::Step { guest, step, program, patience } => {
                replica.step_at_origin(now, guest, step, program, patience)
            }
            Self::Leave { id, patience } => replica.leave_origin(now, id, patience),
        }
    }
}

/// Who waits for an answer.
pub(crate) type Asker = oneshot::Sender<Result<Outcome, ForwardError>>;

/// What who sent a program is told if it fails.
type Failed = Box<dyn FnMut(&WriteError) -> Vec<u8> + Send>;

/// A program, ready to run.
pub(crate) struct Prepared {
    /// Runs it, possibly twice.
    pub(crate) run: ProgramJob,
    /// What who sent it is told if it fails.
    pub(crate) failed: Failed,
}

/// What becomes of a transaction after a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// It stays open.
    Open,
    /// It is to be committed.
    Commit,
}

/// A step of a guest, ready to run: what it gives, and what becomes of the transaction.
pub(crate) type StepJob = Box<dyn FnOnce(&mut WriteTx<'_>) -> (Next, Vec<u8>) + Send>;

/// How the bytes that nodes carry are read, and what those who sent them are told.
#[derive(Clone, Copy)]
pub(crate) struct Programs {
    /// Makes a program of bytes; an error is what who sent them is told.
    pub(crate) prepare: fn(&[u8]) -> Result<Prepared, Vec<u8>>,
    /// Makes a step of bytes.
    pub(crate) step: fn(&[u8]) -> StepJob,
    /// What a guest is told whose transaction has ended.
    pub(crate) ended: fn(&TransactionError) -> Vec<u8>,
}

/// A program before the replica.
pub(super) struct Errand {
    pub(super) request: RequestId,
    pub(super) failed: Failed,
    /// What its last run has given.
    pub(super) result: Arc<Mutex<Vec<u8>>>,
}

impl Write {
    /// The write that a program is.
    pub(super) fn of(request: RequestId, prepared: Prepared) -> Self {
        let Prepared { mut run, failed } = prepared;
        let result: Arc<Mutex<Vec<u8>>> = Arc::default();
        let given = Arc::clone(&result);
        let job = Box::new(move |tx: &mut WriteTx<'_>| {
            *given.lock() = run(tx)?;
            Ok(())
        });
        let mut write = Self::new(job, Some(WRITE_TIME_LIMIT), oneshot::channel().0);
        write.program = Some(Errand { request, failed, result });
        write
    }
}

impl NodeHandle {
    /// When the request of an id that this node or another one has made was issued.
    pub(crate) const fn issued(id: RequestId) -> WallTime {
        WallTime((id.0 >> RANDOM_BITS) as u64)
    }

    /// Has a program run at the origin, at most once; see
    /// [`Replica::forward`](littoral::Replica::forward). Without an id it gets one of its own.
    pub(crate) async fn forward(
        &self,
        id: Option<RequestId>,
        program: Vec<u8>,
        patience: Duration,
    ) -> Result<Outcome, ForwardError> {
        let issued = self.clock.now().wall;
        let id = match id {
            Some(id) => id,
            None => draw_id(issued)?,
        };
        self.ask(id, Ask::Run(Request { id, issued, program, patience })).await
    }

    /// Has a program that only reads run at the origin; see
    /// [`Replica::read_at_origin`](littoral::Replica::read_at_origin).
    pub(crate) async fn read_at_origin(
        &self,
        program: Vec<u8>,
        after: Option<Bookmark>,
        patience: Duration,
    ) -> Result<Outcome, ForwardError> {
        let issued = self.clock.now().wall;
        let id = draw_id(issued)?;
        self.ask(id, Ask::Read(Request { id, issued, program, patience }, after)).await
    }

    /// Meets the origin, which has all that this node has shown then; gives a bookmark of all that it has; see
    /// [`Replica::meet_origin`](littoral::Replica::meet_origin).
    pub(crate) async fn meet_origin(&self, patience: Duration) -> Result<Bookmark, ForwardError> {
        match self.ask(RequestId(0), Ask::Meet { patience }).await? {
            Outcome::Read { seen, .. } => Ok(seen),
            // There is no other answer to that.
            _ => Err(ForwardError::OriginUnreachable { origin: None }),
        }
    }

    /// What became of a request; see [`Replica::outcome`](littoral::Replica::outcome).
    pub(crate) async fn outcome(
        &self,
        id: RequestId,
        issued: Option<WallTime>,
        patience: Duration,
    ) -> Result<Outcome, ForwardError> {
        let issued = issued.unwrap_or_else(|| self.clock.now().wall);
        self.ask(id, Ask::Outcome { id, issued, patience }).await
    }

    pub(super) async fn ask(&self, id: RequestId, ask: Ask) -> Result<Outcome, ForwardError> {
        let (done, answer) = oneshot::channel();
        let stopping = || ForwardError::Stopping { id };
        let began = Instant::now();
        self.events.send(Event::Forward { ask, done }).map_err(|_| stopping())?;
        let result = answer.await.map_err(|_| stopping())?;
        self.meter.forwarded.took(began.elapsed());
        result
    }
}

pub(super) fn draw_id(issued: WallTime) -> Result<RequestId, ForwardError> {
    let mut random = [0; 16];
    // Without randomness an id could be another request's.
    getrandom::fill(&mut random).map_err(|_| ForwardError::TooMany)?;
    let random = u128::from_be_bytes(random) >> (128 - RANDOM_BITS);
    Ok(RequestId(u128::from(issued.0) << RANDOM_BITS | random))
}
