//! Requests to the origin: those of this node's clients, and, at the origin, the programs of all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use littoral::{
    ForwardError, Outcome, ProgramJob, Request, RequestId, WallTime, WriteError, WriteTx,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Event, NodeHandle, WRITE_TIME_LIMIT, writes::Write};

/// The bits of an id that are random; the milliseconds of its issue stand above them.
const RANDOM_BITS: u32 = 80;

/// What a client wants of the origin.
pub(crate) enum Ask {
    /// To run a program.
    Run(Request),
    /// To say what became of a request.
    Outcome { id: RequestId, issued: WallTime, patience: Duration },
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

/// Makes programs of bytes; an error is what who sent them is told.
pub(crate) type Prepare = fn(&[u8]) -> Result<Prepared, Vec<u8>>;

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

    async fn ask(&self, id: RequestId, ask: Ask) -> Result<Outcome, ForwardError> {
        let (done, answer) = oneshot::channel();
        let stopping = || ForwardError::Stopping { id };
        let began = Instant::now();
        self.events.send(Event::Forward { ask, done }).map_err(|_| stopping())?;
        let result = answer.await.map_err(|_| stopping())?;
        self.meter.forwarded.took(began.elapsed());
        result
    }
}

fn draw_id(issued: WallTime) -> Result<RequestId, ForwardError> {
    let mut random = [0; 16];
    // Without randomness an id could be another request's.
    getrandom::fill(&mut random).map_err(|_| ForwardError::TooMany)?;
    let random = u128::from_be_bytes(random) >> (128 - RANDOM_BITS);
    Ok(RequestId(u128::from(issued.0) << RANDOM_BITS | random))
}
