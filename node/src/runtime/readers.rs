//! A pool of read-only connections, used from blocking threads.
//!
//! Invariants: a connection has at most one user; one that was left in a transaction, or whose user
//! panicked, is not used again; work whose caller has gone away is interrupted until it ends, and only
//! that.

use std::{fmt, sync::Arc, time::Duration};

use littoral::{BookmarkNotReached, Db, Grants, Reader};
use parking_lot::Mutex;
use rusqlite::InterruptHandle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{READ_TIMEOUT, TooStale};

/// How long `close` waits for reads that run.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// All permits, while the file is replaced.
    paused: Mutex<Option<OwnedSemaphorePermit>>,
}

impl fmt::Debug for ReaderPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderPool").field("db", &self.db).finish_non_exhaustive()
    }
}

impl ReaderPool {
    pub(crate) fn new(db: Db, limit: usize) -> Self {
        Self {
            db: Mutex::new(db),
            idle: Arc::default(),
            permits: Arc::new(Semaphore::new(limit)),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
            running: Arc::default(),
            paused: Mutex::new(None),
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
        let permit =
            Arc::clone(&self.permits).acquire_owned().await.map_err(|_| ReadError::Stopping)?;
        let db = self.db();
        let idle = Arc::clone(&self.idle);
        let running = Arc::new(Running::default());
        let all_running = Arc::clone(&self.running);
        let guard = InterruptOnDrop(Arc::clone(&running));
        let task = tokio::task::spawn_blocking(move || {
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
        let result = tokio::time::timeout(READ_TIMEOUT, task).await;
        drop(guard);
        match result {
            Err(_) => Err(ReadError::TimedOut),
            Ok(Err(_)) => Err(ReadError::Panicked),
            Ok(Ok(result)) => result,
        }
    }

    /// Ends the reads that run, lets none begin until [`ReaderPool::resume`], and closes all connections.
    /// Blocks until all are closed.
    pub(crate) fn pause(&self) {
        let all = loop {
            if let Ok(all) = Arc::clone(&self.permits).try_acquire_many_owned(self.limit) {
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
