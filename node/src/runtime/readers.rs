//! A pool of read-only connections, used from blocking threads.
//!
//! Handing work to another thread costs more than a short read. So one that was short the last time is
//! tried on the thread that asks for it; if it turns out longer, it is given up there, and handed over.
//!
//! Invariants: a connection has at most one user; one that was left in a transaction, or whose user
//! panicked, is not used again; work whose caller has gone away is interrupted until it ends, and only
//! that; the thread that asks does nothing that was long the last time, and gives up what SQLite takes
//! many steps for.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
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

use super::{READ_TIMEOUT, TooStale, known::Known, meter::Meter, relief::Relief};

/// How long `close` waits for reads that run.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that are held at most, beside those of the pool.
const HELD_MAX: usize = 64;

/// An interrupt that falls between two queries is lost, so it is repeated.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(50);

/// A read is short that takes no longer: handing it over takes a fifth of that.
const SHORT: Duration = Duration::from_micros(200);

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
    /// It reads a table that is read at the origin only.
    #[error(
        "{table} is origin-strong, so it is read at the origin only, and this node is another one: read it there, or over HTTP, which asks the origin"
    )]
    AtOrigin {
        /// Which table.
        table: String,
    },
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
    known: Arc<Known>,
    meter: Arc<Meter>,
    relief: Arc<Relief>,
}

impl fmt::Debug for ReaderPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderPool").field("db", &self.db).finish_non_exhaustive()
    }
}

impl ReaderPool {
    pub(super) fn new(db: Db, limit: usize, meter: Arc<Meter>, relief: Arc<Relief>) -> Self {
        Self {
            db: Mutex::new(db),
            idle: Arc::default(),
            permits: Arc::new(Semaphore::new(limit)),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
            running: Arc::default(),
            held: Mutex::default(),
            holds: Arc::new(Semaphore::new(HELD_MAX)),
            paused: Mutex::new(None),
            known: Arc::new(Known::new(SHORT)),
            meter,
            relief,
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

    /// As [`ReaderPool::read`], of work that does the same whenever it is called, and of which `text` tells
    /// how long it may take: if that was short the last time, it is done on this thread.
    pub(crate) async fn read_known<T: Send + 'static>(
        &self,
        grants: Option<Arc<Grants>>,
        text: &str,
        work: impl Fn(&Reader) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let name = self.known.name(text);
        if self.known.is_short(name)
            && let Some(result) = self.read_here(grants.as_ref(), name, &work)
        {
            return result;
        }
        let known = Arc::clone(&self.known);
        let measured = move |reader: &Reader| {
            let began = Instant::now();
            let result = work(reader);
            known.took(name, began.elapsed());
            result
        };
        self.read(grants, measured).await
    }

    /// Does work on this thread, if a connection is idle; `None` if it has to be done elsewhere.
    fn read_here<T>(
        &self,
        grants: Option<&Arc<Grants>>,
        name: u64,
        work: impl Fn(&Reader) -> T,
    ) -> Option<Result<T, ReadError>> {
        let began = Instant::now();
        let _busy = self.relief.begin()?;
        let _permit = self.permits.try_acquire().ok()?;
        let reader = self.idle.lock().pop()?;
        if let Err(error) = reader.restrict(grants.cloned()) {
            return Some(Err(ReadError::Open(error)));
        }
        reader.be_short();
        let Ok(result) = catch_unwind(AssertUnwindSafe(|| work(&reader))) else {
            return Some(Err(ReadError::Panicked));
        };
        let was_short = reader.was_short();
        if reader.connection().is_autocommit() {
            self.idle.lock().push(reader);
        }
        let took = began.elapsed();
        if took > SHORT {
            self.known.took(name, took);
        }
        if !was_short {
            return None;
        }
        self.meter.reads.took(took);
        Some(Ok(result))
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

#[cfg(test)]
mod tests {
    use std::thread;

    use littoral::{
        ClusterId, Identity, Incarnation, Instant as Mono, NodeId, Now, Replica, WallTime,
    };

    use super::*;

    const LONG: &str =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000)
        SELECT sum(i) FROM n";

    async fn sum(pool: &ReaderPool, text: &'static str) -> (i64, thread::ThreadId) {
        let work = move |reader: &Reader| {
            let mut prepared = reader.connection().prepare_cached(text)?;
            let sum = prepared.query_row([], |row| row.get(0))?;
            Ok::<_, rusqlite::Error>((sum, thread::current().id()))
        };
        pool.read_known(None, text, work).await.unwrap().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_read_that_was_short_is_made_where_it_is_asked_for_until_it_turns_out_long() {
        let directory = tempfile::tempdir().unwrap();
        let now = Now { mono: Mono(0), wall: WallTime(1_700_000_000_000) };
        let (cluster, incarnation) = (ClusterId(1), Incarnation(2));
        let identity = Identity { cluster, node: NodeId::new("a").unwrap(), incarnation };
        let replica =
            Replica::builder(identity).open(&directory.path().join("data.sqlite"), now, 1).unwrap();
        let relief = Arc::new(Relief::start(Some(tokio::runtime::Handle::current())).unwrap());
        let pool = ReaderPool::new(replica.db().clone(), 2, Arc::default(), relief);
        let here = thread::current().id();

        // Nothing is known of it.
        assert_ne!(sum(&pool, "SELECT 7").await.1, here);
        let short = pool.known.name("SELECT 7");
        pool.known.took(short, Duration::ZERO);
        assert_eq!(sum(&pool, "SELECT 7").await, (7, here));

        let long = pool.known.name(LONG);
        pool.known.took(long, Duration::ZERO);
        let (found, thread) = sum(&pool, LONG).await;
        assert_eq!(found, 500_000_500_000);
        assert_ne!(thread, here);
        assert!(!pool.known.is_short(long));
        // Whoever has the connection next may take as long.
        assert_eq!(sum(&pool, LONG).await.0, 500_000_500_000);

        let panics = pool.known.name("panics");
        pool.known.took(panics, Duration::ZERO);
        let failed = pool.read_known(None, "panics", |_| panic!("by a test")).await;
        assert!(matches!(failed, Err::<(), _>(ReadError::Panicked)));
        assert_eq!(pool.permits.available_permits(), 2);
    }
}
