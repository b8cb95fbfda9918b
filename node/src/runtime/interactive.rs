//! Interactive transactions from async code: [`Transaction`] is one that has the writer.
//!
//! Invariants: one that has the writer for [`TRANSACTION_TIME_LIMIT`] is rolled back, whatever its owner
//! does; one whose owner drops it is rolled back; who waits in vain for [`TRANSACTION_WAIT_LIMIT`] waits
//! no more.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use littoral::{Committed, RequestId, Ticket, WriteError, WriteTx};
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use super::{Event, EventSender, stopping};

/// How long a transaction may have the writer, its client's thinking included. Meanwhile nobody else
/// writes, and nothing that other nodes wrote is applied.
const TRANSACTION_TIME_LIMIT: Duration = Duration::from_secs(5);

/// How long a transaction waits for the writer.
pub(super) const TRANSACTION_WAIT_LIMIT: Duration = Duration::from_secs(20);

/// Why a transaction is over.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum TransactionError {
    #[error(
        "the transaction had the writer for {} s and was rolled back",
        TRANSACTION_TIME_LIMIT.as_secs()
    )]
    TimedOut,
    #[error(
        "other transactions have kept the writer for {} s; try again",
        TRANSACTION_WAIT_LIMIT.as_secs()
    )]
    Busy,
    #[error(transparent)]
    Write(Arc<WriteError>),
}

impl From<WriteError> for TransactionError {
    fn from(error: WriteError) -> Self {
        Self::Write(Arc::new(error))
    }
}

/// Why the replica thread has ended a transaction that nobody asked it to end.
pub(super) type End = Arc<Mutex<Option<TransactionError>>>;

/// A transaction that has the writer. Dropped, it is rolled back.
#[derive(Debug)]
pub(crate) struct Transaction {
    guard: Guard,
    end: End,
}

/// Rolls back what it names, unless that is over.
#[derive(Debug)]
struct Guard {
    id: u64,
    events: EventSender,
    over: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.over {
            // An error says that the node is stopping, which rolls it back as well.
            let _ = self.events.send(Event::RollBack(self.id));
        }
    }
}

impl Transaction {
    /// Waits for the writer.
    pub(super) async fn begin(events: &EventSender, id: u64) -> Result<Self, TransactionError> {
        let end = End::default();
        let (reply, begun) = oneshot::channel();
        let begin = Begin { id, end: Arc::clone(&end), reply };
        events.send(Event::Begin(begin)).map_err(|_| stopping())?;
        let guard = Guard { id, events: events.clone(), over: false };
        let mut transaction = Self { guard, end };
        match timeout(TRANSACTION_WAIT_LIMIT, begun).await {
            Err(_) => Err(TransactionError::Busy),
            Ok(Ok(Ok(()))) => Ok(transaction),
            Ok(refused) => {
                transaction.guard.over = true;
                Err(refused.map_err(|_| stopping())?.err().unwrap_or_else(stopping).into())
            }
        }
    }

    /// Runs statements in it.
    ///
    /// # Errors
    /// If the transaction is over; nothing of it stands. What the statements come to is `run`'s business.
    pub(crate) async fn step<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut WriteTx<'_>) -> T + Send + 'static,
    ) -> Result<T, TransactionError> {
        let (reply, answer) = oneshot::channel();
        let run = Box::new(move |tx: &mut WriteTx<'_>| {
            // Whoever asked may have gone away; then all of it is rolled back.
            let _ = reply.send(run(tx));
        });
        self.guard.events.send(Event::Step { id: self.guard.id, run }).map_err(|_| stopping())?;
        answer.await.map_err(|_| self.why())
    }

    /// Commits it.
    ///
    /// # Errors
    /// Nothing of it stands.
    pub(crate) async fn commit(mut self) -> Result<Committed, TransactionError> {
        let (done, answer) = oneshot::channel();
        let commit = Event::Commit { id: self.guard.id, done };
        self.guard.events.send(commit).map_err(|_| stopping())?;
        self.guard.over = true;
        match answer.await {
            Ok(result) => result.map_err(Into::into),
            Err(_) => Err(self.why()),
        }
    }

    /// Whether it was ended for taking too long.
    pub(crate) fn has_timed_out(&self) -> bool {
        matches!(*self.end.lock(), Some(TransactionError::TimedOut))
    }

    fn why(&self) -> TransactionError {
        self.end.lock().clone().unwrap_or_else(|| stopping().into())
    }
}

/// One that wants the writer.
pub(crate) struct Begin {
    pub(super) id: u64,
    end: End,
    reply: oneshot::Sender<Result<(), WriteError>>,
}

/// Whose transaction it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    /// A client's of this node, by its number.
    Here(u64),
    /// A client's of another node.
    Guest(RequestId),
}

/// The one that is before the replica: it waits there, or has the writer.
pub(super) struct Held {
    /// Who it is.
    pub(super) who: Who,
    pub(super) ticket: Ticket,
    /// When it has had the writer for too long; `None` while it waits.
    pub(super) ends_at: Option<Instant>,
    end: End,
    /// Who waits for it to begin.
    reply: Option<oneshot::Sender<Result<(), WriteError>>>,
    /// Who waits for it to be committed.
    pub(super) done: Option<oneshot::Sender<Result<Committed, WriteError>>>,
}

impl Held {
    pub(super) fn new(begin: Begin, ticket: Ticket) -> Self {
        let Begin { id, end, reply } = begin;
        Self { who: Who::Here(id), ticket, ends_at: None, end, reply: Some(reply), done: None }
    }

    /// A guest's.
    pub(super) fn guest(request: RequestId, ticket: Ticket) -> Self {
        let who = Who::Guest(request);
        Self { who, ticket, ends_at: None, end: End::default(), reply: None, done: None }
    }

    /// Why nothing of it stands, if this was told to who asked to end it.
    pub(super) fn why(&self, error: WriteError) -> TransactionError {
        self.end.lock().take().unwrap_or_else(|| error.into())
    }

    /// It has the writer.
    pub(super) fn begun(&mut self) {
        self.ends_at = Some(Instant::now() + TRANSACTION_TIME_LIMIT);
        if let Some(reply) = self.reply.take() {
            // Whoever asked may have gone away, and said so.
            let _ = reply.send(Ok(()));
        }
    }

    /// It has had the writer for too long.
    pub(super) fn timed_out(&self) {
        self.end.lock().get_or_insert(TransactionError::TimedOut);
    }

    /// It is over.
    pub(super) fn ended(self, result: Result<Committed, WriteError>) {
        match (self.reply, self.done, result) {
            // Whoever asked may have gone away; what was committed stands.
            (Some(reply), _, result) => drop(reply.send(result.map(drop))),
            (None, Some(done), result) => drop(done.send(result)),
            (None, None, Err(error)) => {
                self.end.lock().get_or_insert(error.into());
            }
            (None, None, Ok(_)) => {}
        }
    }
}
