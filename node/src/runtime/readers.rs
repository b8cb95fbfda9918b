//! A pool of read-only connections, used from blocking threads.
//!
//! Invariants: a connection has at most one user; one that was left in a transaction, or whose user
//! panicked, is not used again; work whose caller has gone away is interrupted until it ends, and only
//! that.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use littoral::{BookmarkNotReached, Db, Grants, Reader};
use parking_lot::Mutex;
use rusqlite::InterruptHandle;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};

use super::{READ_TIMEOUT, TooStale, meter::Meter};

/// How long `close` waits for reads that run.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that are held at most, beside those of the pool.
const HELD_MAX: usize = 64;

/// An interrupt that falls between two queries is lost, so it is repeated.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(50);

/// Why a read was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// SQLite could not open a connection.
    #[error("cannot open a connection: {0}")]
    Open(rusqlite::Error),
    /// It ran for too long and was interrupted.
    #[error("the read was interrupted after {} s", READ_TIMEOUT.as_secs())]
    TimedOut,
    /// The work panicked.
    #[error("the read failed by a bug; the log says where")]
    Panicked,
    /// A snapshot took the place of the file while it ran. Read again.
    #[error("a snapshot has replaced the database while it was read; read again")]
    SnapshotReplaced,
    /// SQLite could not read.
    #[error("cannot read: {0}")]
    Sqlite(rusqlite::Error),
    /// The node did not receive in time what the bookmark names.
    #[error(transparent)]
    BookmarkNotReached(#[from] BookmarkNotReached),
    /// As many connections as there may be are held by others.
    #[error("{HELD_MAX} transactions that read are open already; try again")]
    TooManyHeld,
    /// What the node shows is older than a table allows.
    #[error(transparent)]
    TooStale(#[from] TooStale),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

pub(crate) struct ReaderPool {
    /// Another one once a snapshot has taken the place of the file.
    db: Mutex<Db>,
    idle: Arc<Mutex<Vec<Reader>>>,
    permits: Arc<Semaphore>,
    limit: u32,
    running: Arc<Mutex<Vec<Arc<Running>>>>,
    /// Connections that their users hold.
    held: Mutex<Vec<Weak<Slot>>>,
    holds: Arc<Semaphore>,
    /// All permits, while the file is replaced.
    paused: Mutex<Option<OwnedSemaphorePermit>>,
    meter: Arc<Meter>,
}

impl fmt::Debug for ReaderPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderPool").field("db", &self.db).finish_non_exhaustive()
    }
}

impl ReaderPool {
    pub(crate) fn new(db: Db, limit: usize, meter: Arc<Meter>) -> Self {
        Self {
            db: Mutex::new(db),
            idle: Arc::default(),
            permits: Arc::new(Semaphore::new(limit)),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
            running: Arc::default(),
            held: Mutex::default(),
            holds: Arc::new(Semaphore::new(HELD_MAX)),
            paused: Mutex::new(None),
            meter,
        }
    }

    /// The file that is read.
    pub(crate) fn db(&self) -> Db {
        self.db.lock().clone()
    }

    pub(crate) async fn read<T: Send + 'static>(
        &self,
        grants: Option<Arc<Grants>>,
        work: impl FnOnce(&Reader) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let began = Instant::now();
        let waits = self.meter.reads_waiting.enter();
        let permit =
            Arc::clone(&self.permits).acquire_owned().await.map_err(|_| ReadError::Stopping)?;
        drop(waits);
        let db = self.db();
        let idle = Arc::clone(&self.idle);
        let running = Arc::new(Running::default());
        let all_running = Arc::clone(&self.running);
        let theirs = Arc::clone(&running);
        let task = tokio::task::spawn_blocking(move || {
            let running = theirs;
            let pooled = idle.lock().pop();
            let reader = match pooled {
                Some(reader) => reader,
                None => db.reader().map_err(ReadError::Open)?,
            };
            // Whoever had it before may have been allowed more, or less.
            reader.restrict(grants).map_err(ReadError::Open)?;
            // A caller who left before this began gets no answer, so none is made.
            let wanted = running.begin(reader.connection().get_interrupt_handle());
            if wanted {
                all_running.lock().push(Arc::clone(&running));
            }
            let result = wanted.then(|| work(&reader));
            let replaced = running.end();
            all_running.lock().retain(|other| !Arc::ptr_eq(other, &running));
            if replaced {
                drop((reader, permit));
                return Err(ReadError::SnapshotReplaced);
            }
            if reader.connection().is_autocommit() {
                idle.lock().push(reader);
            }
            drop(permit);
            result.ok_or(ReadError::TimedOut)
        });
        let result = finish(running, task).await;
        self.meter.reads.took(began.elapsed());
        result
    }

    /// Opens a connection that one user holds.
    pub(crate) async fn hold(&self) -> Result<HeldReader, ReadError> {
        let hold = Arc::clone(&self.holds);
        let hold = hold.try_acquire_owned().map_err(|_| ReadError::TooManyHeld)?;
        // None is opened while the file is replaced.
        let permit = self.permits.acquire().await.map_err(|_| ReadError::Stopping)?;
        let db = self.db();
        let opened = tokio::task::spawn_blocking(move || db.reader());
        let reader = opened.await.map_err(|_| ReadError::Panicked)?.map_err(ReadError::Open)?;
        let slot = Arc::new(Slot(Mutex::new(Some(reader))));
        let mut held = self.held.lock();
        held.retain(|slot| slot.strong_count() > 0);
        held.push(Arc::downgrade(&slot));
        drop((held, permit));
        Ok(HeldReader { slot, running: Arc::clone(&self.running), _hold: hold })
    }

    /// Closes what is held, as far as nobody uses it just now; tells whether that is all.
    fn let_go(&self) -> bool {
        let mut all = true;
        for slot in self.held.lock().iter().filter_map(Weak::upgrade) {
            match slot.0.try_lock() {
                Some(mut reader) => *reader = None,
                None => all = false,
            }
        }
        all
    }

    /// Ends the reads that run, lets none begin until [`ReaderPool::resume`], and closes all connections.
    /// Blocks until all are closed.
    pub(crate) fn pause(&self) {
        let all = loop {
            if let Ok(all) = Arc::clone(&self.permits).try_acquire_many_owned(self.limit)
                && self.let_go()
            {
                break Some(all);
            }
            if self.permits.is_closed() {
                break None;
            }
            for running in &*self.running.lock() {
                running.replace();
            }
            std::thread::sleep(INTERRUPT_AGAIN);
        };
        self.idle.lock().clear();
        *self.paused.lock() = all;
    }

    /// Ends a pause; from here on the file is read that was opened in the place of the one before, if that
    /// could be.
    pub(crate) fn resume(&self, opened: Option<&Db>) {
        if let Some(db) = opened {
            *self.db.lock() = db.clone();
        }
        *self.paused.lock() = None;
    }

    /// Refuses new reads, waits for those that run, and closes all connections.
    pub(crate) async fn close(&self) {
        let all = self.permits.acquire_many(self.limit);
        if let Ok(Ok(all)) = tokio::time::timeout(CLOSE_TIMEOUT, all).await {
            all.forget();
        }
        self.permits.close();
        self.idle.lock().clear();
        // One that is in use is closed when its query ends.
        self.let_go();
    }
}

/// A connection that one user holds, until the file is replaced.
#[derive(Debug)]
struct Slot(Mutex<Option<Reader>>);

/// A read-only connection that one user holds, with the transaction that is open on it.
pub(crate) struct HeldReader {
    slot: Arc<Slot>,
    running: Arc<Mutex<Vec<Arc<Running>>>>,
    _hold: OwnedSemaphorePermit,
}

impl fmt::Debug for HeldReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldReader").finish_non_exhaustive()
    }
}

impl HeldReader {
    /// As [`ReaderPool::read`], on this connection.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        grants: Option<Arc<Grants>>,
        work: impl FnOnce(&Reader) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let slot = Arc::clone(&self.slot);
        let all_running = Arc::clone(&self.running);
        let running = Arc::new(Running::default());
        let theirs = Arc::clone(&running);
        let task = tokio::task::spawn_blocking(move || {
            let running = theirs;
            let mut slot = slot.0.lock();
            let Some(reader) = &*slot else { return Err(ReadError::SnapshotReplaced) };
            // Whoever had it before may have been allowed more, or less.
            reader.restrict(grants).map_err(ReadError::Open)?;
            let wanted = running.begin(reader.connection().get_interrupt_handle());
            if wanted {
                all_running.lock().push(Arc::clone(&running));
            }
            let result = wanted.then(|| work(reader));
            let replaced = running.end();
            all_running.lock().retain(|other| !Arc::ptr_eq(other, &running));
            if replaced {
                *slot = None;
                return Err(ReadError::SnapshotReplaced);
            }
            result.ok_or(ReadError::TimedOut)
        });
        finish(running, task).await
    }
}

/// Waits for work that runs. If it takes too long, or nobody waits any more, it is interrupted.
async fn finish<T>(
    running: Arc<Running>,
    task: JoinHandle<Result<T, ReadError>>,
) -> Result<T, ReadError> {
    let guard = InterruptOnDrop(running);
    let result = tokio::time::timeout(READ_TIMEOUT, task).await;
    drop(guard);
    match result {
        Err(_) => Err(ReadError::TimedOut),
        Ok(Err(_)) => Err(ReadError::Panicked),
        Ok(Ok(result)) => result,
    }
}

/// The query that runs for one caller, if it does.
#[derive(Default)]
struct Running(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    NotBegun,
    Running(InterruptHandle),
    /// The file is being replaced under it.
    Replaced(InterruptHandle),
    Over,
}

impl Running {
    /// Whether the caller is still there.
    fn begin(&self, handle: InterruptHandle) -> bool {
        let mut state = self.0.lock();
        let wanted = matches!(*state, State::NotBegun);
        if wanted {
            *state = State::Running(handle);
        }
        wanted
    }

    /// From here on the connection may get another user, whom nothing may interrupt. Tells whether the
    /// file was replaced under it.
    fn end(&self) -> bool {
        matches!(std::mem::replace(&mut *self.0.lock(), State::Over), State::Replaced(_))
    }

    /// The file is to be replaced: interrupts the work.
    fn replace(&self) {
        let mut state = self.0.lock();
        *state = match std::mem::replace(&mut *state, State::Over) {
            State::Running(handle) | State::Replaced(handle) => {
                handle.interrupt();
                State::Replaced(handle)
            }
            other => other,
        };
    }

    /// Interrupts the work if it runs, and keeps it from beginning; tells whether it runs.
    fn abandon(&self) -> bool {
        let mut state = self.0.lock();
        if let State::Running(handle) | State::Replaced(handle) = &*state {
            handle.interrupt();
            return true;
        }
        *state = State::Over;
        false
    }
}

struct InterruptOnDrop(Arc<Running>);

impl Drop for InterruptOnDrop {
    fn drop(&mut self) {
        if !self.0.abandon() {
            return;
        }
        // Without a runtime the process is about to end.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let running = Arc::clone(&self.0);
            runtime.spawn(async move {
                while running.abandon() {
                    tokio::time::sleep(INTERRUPT_AGAIN).await;
                }
            });
        }
    }
}
