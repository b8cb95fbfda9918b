//! The event loop: one closed set of events in, effects out.
//!
//! ```text
//!   HTTP, CLI, tests ─ NodeHandle ─┬─ writes ──►┌────────────────┐── frames ──► link tasks
//!                                  │            │ replica thread │── syncs ───► WAL sync thread
//!   link tasks ─────── frames ─────┼───────────►│ drives         │── copies ──► checkpoint thread
//!   WAL sync thread ── synced ─────┤            │                │── pieces ──► snapshot thread
//!   snapshot thread ── pieces ─────┘            └────────────────┘── answers ─► who waits for them
//!                                                       ▲
//!                                   watchdog thread ────┘ interrupts a job that takes too long
//!                                   relief thread: wakes a worker of tokio while another is at a statement
//!   NodeHandle ─ reads ──► reader pool (blocking threads, or the one that asks if the read is short)
//! ```
//!
//! Only who drives the replica decides anything: the replica thread, or for a moment who brings a short write
//! while that has nothing to do ([`Seat`](seat::Seat)). Everything else carries bytes and waits.

mod files;
mod forwards;
mod interactive;
mod known;
mod meter;
mod place;
mod readers;
mod relief;
mod replica_thread;
mod routing;
mod seat;
mod storage_threads;
mod visit;
mod writes;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use littoral::{
    Bookmark, BookmarkNotReached, Builder, Committed, Db, Event as News, Grants, Identity,
    OpenError, Reader, Replica, Status, WriteError, WriteTx,
};
use parking_lot::Mutex;
use tokio::sync::{broadcast, oneshot, watch};

use self::{
    files::Files,
    known::Known,
    readers::ReaderPool,
    relief::Relief,
    replica_thread::{Driver, Runner},
    seat::Seat,
    storage_threads::StorageThreads,
    writes::{Watchdog, Write},
};
pub(crate) use self::{
    forwards::{Next, Prepared, Programs, StepJob},
    interactive::{Transaction, TransactionError},
    meter::{BOUNDS_US, Histogram, LinkMeter, Meter},
    place::{Found, check},
    readers::HeldReader,
    replica_thread::{Event, EventSender, LinkOutbox, OUTBOX_BYTES_MAX, frame_cost},
    visit::{NoVisit, Visit},
    writes::{WRITE_TIME_LIMIT, out_of_time},
};
pub use self::{
    readers::ReadError,
    routing::{Explanation, Place},
};
use crate::{clock::Clock, config::Config};

/// How many pieces of news a slow listener may fall behind before it misses some.
const NEWS_KEPT: usize = 4096;

/// A node that waits for what a bookmark names looks this often without any news: a snapshot that takes the
/// place of the file makes none.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A node that waits until its rows are new enough looks this often.
const LAG_AGAIN: Duration = Duration::from_millis(10);

/// A write is short that takes no longer, the commit and its sync included.
const SHORT_WRITE: Duration = Duration::from_millis(1);

/// What a node shows may be older than a read allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "what this node shows may be {} old, and {} ms is the most that is allowed: read again later, or at \
     another node",
    lag.map_or_else(|| "of any age: it is not known how".to_owned(), |lag| format!("{} ms", lag.as_millis())),
    most.as_millis()
)]
pub struct TooStale {
    /// How old it may be; `None` while that is not known.
    pub lag: Option<Duration>,
    /// How old it was allowed to be.
    pub most: Duration,
}

/// Why a node could not start its replica.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Another process uses the same database.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A file or a thread could not be made.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
    /// The database cannot be where the configuration wants it.
    #[error("{}, where the database is to be, {why}", path.display())]
    Place {
        /// The directory, or the database.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The database could not be opened.
    #[error("cannot open {}: {error}", path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        error: OpenError,
    },
}

/// Reads and writes on a running node. Cheap to clone; it stays valid, and answers with errors, after
/// the node has stopped.
#[derive(Clone)]
pub struct NodeHandle {
    identity: Arc<Identity>,
    events: EventSender,
    here: Arc<Here>,
    readers: Arc<ReaderPool>,
    news: broadcast::Sender<News>,
    ended: watch::Receiver<()>,
    /// How many interactive transactions there were.
    transactions: Arc<AtomicU64>,
    clock: Clock,
    meter: Arc<Meter>,
    /// A statement of a client that takes this long is logged.
    slow: Option<Duration>,
}

/// What writes need that are made where they come from.
struct Here {
    seat: Seat,
    known: Known,
    relief: Arc<Relief>,
}

impl fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeHandle").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl NodeHandle {
    /// Who the node is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Runs a write job in one transaction, and waits until it is committed and as durable as the node
    /// is configured. Jobs that wait together are committed together, each as if alone.
    ///
    /// The job may run twice, when the group it was in is lost; only its last run counts.
    ///
    /// It has no time limit, and the node does nothing else while it runs: peers give up a node that
    /// says nothing for ten seconds.
    ///
    /// # Errors
    /// Nothing of the job was written. [`WriteError::is_retryable`] tells whether to try again.
    pub async fn write<T: Send + 'static>(
        &self,
        job: impl FnMut(&mut WriteTx<'_>) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<(T, Committed), WriteError> {
        self.queue(None, None, job).await
    }

    /// Runs a migration at the origin; see [`Replica::migrate`](littoral::Replica::migrate).
    ///
    /// # Errors
    /// Nothing of the script was done, unless it is [`WriteError::SchemaAccepted`]: then it waits for other
    /// nodes.
    pub async fn migrate(&self, script: String) -> Result<Committed, WriteError> {
        let (done, answer) = oneshot::channel();
        self.events.send(Event::Migrate { script, done }).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Gives up the change of the schema that waits for other nodes; at the origin only. See
    /// [`Replica::abort_schema_change`](littoral::Replica::abort_schema_change).
    ///
    /// # Errors
    /// Nothing was given up.
    pub async fn abort_schema_change(&self) -> Result<Committed, WriteError> {
        let (done, answer) = oneshot::channel();
        self.events.send(Event::AbortSchemaChange(done)).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Begins to compare all rows with those of a peer, and to mend what differs; see
    /// [`Replica::verify`](littoral::Replica::verify). Gives false at the origin, and `None` after the node
    /// has stopped.
    pub async fn verify(&self) -> Option<bool> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Verify(reply)).ok()?;
        answer.await.ok()
    }

    /// As [`NodeHandle::write`]; a job that takes longer is interrupted, and fails. `text` tells how long it may
    /// take, if anything does: if that was short the last time, it is done on this thread.
    pub(crate) async fn write_within<T: Send + 'static>(
        &self,
        limit: Duration,
        text: Option<&str>,
        job: impl FnMut(&mut WriteTx<'_>) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<(T, Committed), WriteError> {
        self.queue(Some(limit), text, job).await
    }

    async fn queue<T: Send + 'static>(
        &self,
        limit: Option<Duration>,
        text: Option<&str>,
        mut job: impl FnMut(&mut WriteTx<'_>) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<(T, Committed), WriteError> {
        let slot = Arc::new(Mutex::new(None));
        let result = Arc::clone(&slot);
        let _waits = self.meter.writes_waiting.enter();
        let began = Instant::now();
        let (done, answer) = oneshot::channel();
        let job = Box::new(move |tx: &mut WriteTx<'_>| {
            *result.lock() = None;
            *result.lock() = Some(job(tx)?);
            Ok(())
        });
        let write = Write::new(job, limit, done);
        let name = text.map(|text| self.here.known.name(text));
        self.hand_over(name, write)?;
        let answer = answer.await.map_err(|_| stopping())?;
        let took = began.elapsed();
        if let Some(name) = name {
            self.here.known.took(name, took);
        }
        let committed = answer?;
        self.meter.commits.took(took);
        let value = slot.lock().take().ok_or_else(stopping)?;
        Ok((value, committed))
    }

    /// Does a write that was short the last time, unless others write, or has the replica thread do it.
    fn hand_over(&self, name: Option<u64>, write: Write) -> Result<(), WriteError> {
        let is_short = name.is_some_and(|name| self.here.known.is_short(name))
            && self.meter.writes_waiting.now() == 1;
        let left = match is_short.then(|| self.here.relief.begin()).flatten() {
            Some(_busy) => self.here.seat.write(write, &self.events),
            None => Some(write),
        };
        match left {
            None => Ok(()),
            Some(write) => self.events.send(Event::Write(write)).map_err(|_| stopping()),
        }
    }

    /// Runs `work` with a read-only connection on a blocking thread, whatever policies say of what it reads; it
    /// may read only what `grants` give.
    pub(crate) async fn read_as<T: Send + 'static>(
        &self,
        grants: Option<Arc<Grants>>,
        work: impl FnOnce(&Reader) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        self.readers.read(grants, work).await
    }

    /// As [`NodeHandle::read_as`], of work that does the same whenever it is called. `text` tells how long it
    /// may take: if that was short the last time, the work is done on this thread.
    pub(crate) async fn read_known<T: Send + 'static>(
        &self,
        grants: Option<Arc<Grants>>,
        text: &str,
        work: impl Fn(&Reader) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        self.readers.read_known(grants, text, work).await
    }

    /// Waits until this node has all that a bookmark names.
    ///
    /// # Errors
    /// What it still lacks after `limit`.
    pub async fn reach(
        &self,
        bookmark: &Bookmark,
        limit: Duration,
    ) -> Result<(), BookmarkNotReached> {
        let deadline = tokio::time::Instant::now() + limit;
        let mut news = None;
        loop {
            let reached = self.readers.db().reached(bookmark);
            if reached.is_ok() || tokio::time::Instant::now() >= deadline {
                return reached;
            }
            match &mut news {
                // What comes from here on is told; what came before is looked at once more.
                None => news = Some(self.news.subscribe()),
                Some(news) => {
                    let wait = deadline.min(tokio::time::Instant::now() + LOOK_AGAIN);
                    // After any news, or none, or after some were missed, it looks again.
                    let _ = tokio::time::timeout_at(wait, news.recv()).await;
                }
            }
        }
    }

    /// How old what this node shows may be at most; zero at the origin, `None` while that is not known.
    pub fn lag(&self) -> Option<Duration> {
        self.readers.db().lag(self.clock.now().mono)
    }

    /// Waits until what this node shows is at most so old.
    ///
    /// # Errors
    /// How old it may be at most after `limit`.
    pub async fn freshen(&self, most: Duration, limit: Duration) -> Result<(), TooStale> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let lag = self.lag();
            if lag.is_some_and(|lag| lag <= most) {
                return Ok(());
            }
            let now = tokio::time::Instant::now();
            if now >= deadline {
                return Err(TooStale { lag, most });
            }
            tokio::time::sleep_until(deadline.min(now + LAG_AGAIN)).await;
        }
    }

    /// A bookmark of all that this node has committed and shown so far: whoever requires it elsewhere sees
    /// nothing older there than was written or read here.
    ///
    /// # Errors
    /// If there is no connection to be had.
    pub async fn bookmark(&self) -> Result<Bookmark, ReadError> {
        if let Some(bookmark) = self.readers.db().bookmark() {
            return Ok(bookmark);
        }
        let read = self.read_known(None, "littoral_bookmark()", Reader::bookmark).await;
        read?.map_err(ReadError::Sqlite)
    }

    /// Begins an interactive transaction: waits for its turn in the queue of writes.
    pub(crate) async fn begin(&self) -> Result<Transaction, TransactionError> {
        let id = self.transactions.fetch_add(1, Ordering::Relaxed);
        Transaction::begin(&self.events, id).await
    }

    /// A read-only connection for one user, for as long as that needs it.
    pub(crate) async fn hold_reader(&self) -> Result<HeldReader, ReadError> {
        self.readers.hold().await
    }

    /// A picture of the replica, or `None` after the node has stopped.
    pub async fn status(&self) -> Option<Status> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Status(reply)).ok()?;
        answer.await.ok()
    }

    /// News of the replica from now on.
    pub fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    /// Waits until the replica has ended, by [`Node::stop`](crate::Node::stop) or by a failure.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    /// What is counted of this node.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// A statement of a client that takes this long is logged.
    pub(crate) fn slow(&self) -> Option<Duration> {
        self.slow
    }

    pub(crate) fn events(&self) -> &EventSender {
        &self.events
    }
}

fn stopping() -> WriteError {
    WriteError::Unavailable("the node is stopping".to_owned())
}

/// The replica's threads.
#[derive(Debug)]
pub(crate) struct Runtime {
    handle: NodeHandle,
    replica: JoinHandle<()>,
    watchdog: JoinHandle<()>,
    storage: StorageThreads,
    _stop: StopOnDrop,
    /// Holds the lock on the directory as long as the threads run.
    _lock: std::fs::File,
}

impl Runtime {
    /// Opens the replica and starts its threads. Blocks on the disk.
    pub(crate) fn start(config: &Config, programs: Programs) -> Result<Self, RuntimeError> {
        let lock = place::take(&config.database)?;
        let clock = Clock::start();
        let replica = open(config, clock)?;
        let db: Db = replica.db().clone();

        let (events, inbox) = mpsc::channel();
        let (news, _) = broadcast::channel(NEWS_KEPT);
        let (alive, ended) = watch::channel(());
        let meter = Arc::new(Meter::default());
        let theirs = Arc::clone(&meter);
        let storage = StorageThreads::start(&db, &config.database, events.clone(), theirs)
            .map_err(|error| io_error("cannot start a storage thread", error))?;
        let (dog, watchdog) = Watchdog::start_thread(replica.interrupt_handle())
            .map_err(|error| io_error("cannot start the watchdog thread", error))?;
        let tokio = tokio::runtime::Handle::try_current().ok();
        let relief = Relief::start(tokio)
            .map_err(|error| io_error("cannot start the relief thread", error))?;
        let relief = Arc::new(relief);
        let (limit, theirs) = (config.storage.readers, Arc::clone(&meter));
        let readers = Arc::new(ReaderPool::new(db, limit, theirs, Arc::clone(&relief)));
        let files = Files { config: config.clone(), readers: Arc::clone(&readers) };
        let watched = dog.clone();
        let runner = Runner { watchdog: dog, programs, meter: Arc::clone(&meter) };
        let driver = Driver::new(replica, files, clock, storage.requests(), news.clone(), runner);
        let known = Known::new(SHORT_WRITE);
        let here = Arc::new(Here { seat: Seat::new(driver), known, relief });
        let theirs = Arc::clone(&here);
        let replica = std::thread::Builder::new()
            .name("littoral-replica".to_owned())
            .spawn(move || {
                theirs.seat.run(&inbox, &watched);
                drop(alive);
            })
            .map_err(|error| io_error("cannot start the replica thread", error))?;

        let stop = StopOnDrop(events.clone());
        let handle = NodeHandle {
            identity: Arc::new(config.identity.clone()),
            events,
            here,
            readers,
            news,
            ended,
            transactions: Arc::default(),
            clock,
            meter,
            slow: config.http.as_ref().and_then(|http| http.slow_statement),
        };
        Ok(Self { handle, replica, watchdog, storage, _stop: stop, _lock: lock })
    }

    pub(crate) fn handle(&self) -> &NodeHandle {
        &self.handle
    }

    /// Closes all links and the database. Writes that wait are refused, reads that run are waited for.
    pub(crate) async fn stop(self) -> Result<(), StopError> {
        self.handle.readers.close().await;
        let (reply, answer) = oneshot::channel();
        let closed = match self.handle.events.send(Event::Stop(reply)) {
            Ok(()) => answer.await.map_err(|_| StopError::Panicked)?.map_err(StopError::Sqlite),
            Err(_) => Err(StopError::Panicked),
        };
        let Self { replica, watchdog, storage, .. } = self;
        let threads = tokio::task::spawn_blocking(move || {
            storage.join();
            let ended = replica.join();
            // One that outlives a replica that panicked is left to wait for nothing.
            if ended.is_ok() { watchdog.join() } else { ended }
        });
        match threads.await {
            Ok(Ok(())) => closed,
            Ok(Err(_)) | Err(_) => Err(StopError::Panicked),
        }
    }
}

/// Ends the threads of a runtime that is dropped without being stopped.
#[derive(Debug)]
struct StopOnDrop(EventSender);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let (reply, _) = oneshot::channel();
        // An error says that the replica has ended already.
        let _ = self.0.send(Event::Stop(reply));
    }
}

/// Why a node did not stop in good order. Everything that was answered is as durable as promised all
/// the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// SQLite could not close the database.
    #[error("closing the database: {0}")]
    Sqlite(rusqlite::Error),
    /// The replica thread had ended before, by a bug.
    #[error("the replica thread had panicked; its log says where")]
    Panicked,
}

/// Settings of the replica of a configuration.
fn builder(config: &Config) -> Builder {
    let mut builder = Replica::builder(config.identity.clone())
        .synchronous(config.storage.synchronous)
        .max_entry(config.storage.max_entry);
    if config.read_only {
        builder = builder.read_only();
    }
    if let Some(genesis) = &config.genesis {
        builder = builder.genesis(genesis.clone());
    }
    builder
}

fn open(config: &Config, clock: Clock) -> Result<Replica, RuntimeError> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed)
        .map_err(|error| io_error("cannot draw a seed", io::Error::other(error)))?;
    let seed = u64::from_le_bytes(seed);
    let opened = place::patiently(|| builder(config).open(&config.database, clock.now(), seed));
    opened.map_err(|error| RuntimeError::Open { path: config.database.clone(), error })
}

fn io_error(what: &str, error: io::Error) -> RuntimeError {
    RuntimeError::Io { what: what.to_owned(), error }
}

/// How long a single read may run.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(30);
