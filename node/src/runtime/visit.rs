//! [`Visit`]: a transaction at the origin, in the hands of a client of this node.
//!
//! Invariants: steps are sent one after the other, each once it is known what became of the one before; a
//! visit that is dropped is ended there.

use std::time::Duration;

use littoral::{ForwardError, Guest, Outcome, RequestId};
use tokio::sync::oneshot;

use super::{
    Event, EventSender, NodeHandle, TransactionError,
    forwards::{Ask, draw_id},
    interactive::TRANSACTION_WAIT_LIMIT,
};

/// How long it may take until the origin begins with what it is asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// A transaction at the origin. Dropped, it is rolled back.
#[derive(Debug)]
pub(crate) struct Visit {
    guard: Guard,
    node: NodeHandle,
    guest: Guest,
    steps: u64,
}

/// Ends the transaction, unless it is over.
#[derive(Debug)]
struct Guard {
    id: RequestId,
    events: EventSender,
    over: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.over {
            let ask = Ask::Leave { id: self.id, patience: PATIENCE };
            // Nobody waits for the answer. An error says that the node is stopping: then the origin ends
            // the transaction for taking too long.
            let _ = self.events.send(Event::Forward { ask, done: oneshot::channel().0 });
        }
    }
}

/// Why there is no visit.
#[derive(Debug)]
pub(crate) enum NoVisit {
    /// The origin cannot be reached, or does not want it.
    Forward(ForwardError),
    /// Others have kept its writer.
    Busy(TransactionError),
}

impl NodeHandle {
    /// Whether a transaction that writes may have to be at the origin, which is another node.
    pub(crate) fn has_tables_of_origin(&self) -> bool {
        self.readers.db().has_tables_of_origin()
    }

    /// Whether reads of any table may be answered here while the origin, to which they belong, cannot be
    /// reached.
    pub(crate) fn serves_stale(&self) -> bool {
        self.readers.db().serves_stale()
    }

    /// Whether there is a way to the origin.
    pub(crate) async fn reaches_origin(&self) -> bool {
        self.status().await.is_some_and(|status| status.distance.is_some())
    }

    /// Begins a transaction at the origin, which has all that this node has shown.
    pub(crate) async fn visit(&self) -> Result<Visit, NoVisit> {
        let issued = self.clock.now().wall;
        let id = draw_id(issued).map_err(NoVisit::Forward)?;
        let reaches = self.reaches_origin().await;
        // It may have to wait for others there, as it would here.
        let patience = if reaches { TRANSACTION_WAIT_LIMIT } else { PATIENCE };
        let mut guard = Guard { id, events: self.events.clone(), over: false };
        match self.ask(id, Ask::Begin { id, issued, patience }).await {
            Ok(Outcome::Begun(guest)) => Ok(Visit { guard, node: self.clone(), guest, steps: 0 }),
            Ok(_) => {
                guard.over = true;
                Err(NoVisit::Forward(ForwardError::Gone { id }))
            }
            Err(ForwardError::OriginUnreachable { .. }) if self.reaches_origin().await => {
                Err(NoVisit::Busy(TransactionError::Busy))
            }
            Err(error) => Err(NoVisit::Forward(error)),
        }
    }
}

impl Visit {
    /// Runs the next step. It is over after anything but [`Outcome::Stepped`].
    pub(crate) async fn step(&mut self, program: Vec<u8>) -> Result<Outcome, ForwardError> {
        self.steps += 1;
        let ask = Ask::Step { guest: self.guest, step: self.steps, program, patience: PATIENCE };
        let result = self.node.ask(self.guest.id, ask).await;
        // After an error it may be open there, and nobody goes on with it.
        self.guard.over =
            matches!(result, Ok(ref outcome) if !matches!(outcome, Outcome::Stepped { .. }));
        result
    }
}
