//! [`Db`]: the file, for reading. All writing goes through [`Replica`](crate::Replica).

pub(crate) mod authorizer;
mod explicit_key;
mod group_commit;
mod interactive;
pub(crate) mod mask;
mod routing;
mod schema_change;
mod snapshot;
mod tx;
pub(crate) mod watch;
pub(crate) mod writer;

pub(crate) use group_commit::{Answer, Local, Queued, RunFor, remember};
pub use group_commit::{Committed, Job, ProgramJob};
pub(crate) use interactive::Interactive;
use routing::Elsewhere;
pub use routing::{Admission, ReadRefused, Touched};
use snapshot::{Arriving, Departing};
pub(crate) use snapshot::{INCOMING, TAKEN};
pub use snapshot::{PieceWritten, Snapshot};
pub(crate) use tx::transaction_gone;
pub use tx::{TxStatement, WriteTx};

use self::authorizer::{ReadGate, Restriction};

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, hooks::AuthContext};

use crate::{
    bookmark::{Bookmark, BookmarkNotReached},
    driver::DatabaseDigest,
    entry::Digest,
    grants::Grants,
    ids::{self, Ids},
    limits::{WAL_LEFT_PAGES, WAL_ROUNDS},
    log::published::Published,
    merge::functions::make_spell,
    schema::{Registry, Table, functions},
    sqlite,
    time::Instant,
    value::put_cell,
};

/// How long a reader waits for another process that recovers the WAL.
const READ_BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// After so many steps of SQLite's machine it is looked whether a reader is to be short: some 0.3 ms.
const SHORT_STEPS: i32 = 10_000;

/// How often that is looked before a reader that is to be short is interrupted. Steps are counted from a
/// statement's first run on, so the first look may come at once.
const SHORT_LOOKS: u32 = 2;

/// What [`Reader::looks`] holds of a reader that may take its time.
const AT_LEISURE: u32 = u32::MAX;

/// A replica's file, to be read on any thread.
#[derive(Clone, Debug)]
pub struct Db {
    file: Arc<File>,
}

/// Where the file is, and through which VFS.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) vfs: Option<String>,
    /// What `littoral_id()` gives on every connection.
    pub(crate) ids: Arc<Ids>,
    /// What is committed.
    pub(crate) published: Arc<Published>,
    /// The tables and policies of now, and whether this node is the origin; `None` before a replica has opened the file.
    pub(crate) registry: Mutex<Option<(Arc<Registry>, bool)>>,
    pub(crate) elsewhere: Elsewhere,
    arriving: Mutex<Option<Arriving>>,
    departing: Mutex<Departing>,
}

impl File {
    pub(crate) fn new(path: PathBuf, vfs: Option<String>) -> Self {
        Self {
            path,
            vfs,
            ids: Arc::default(),
            published: Arc::default(),
            registry: Mutex::default(),
            elsewhere: Elsewhere::default(),
            arriving: Mutex::default(),
            departing: Mutex::default(),
        }
    }

    pub(crate) fn connect(&self, flags: OpenFlags) -> rusqlite::Result<Connection> {
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = match &self.vfs {
            Some(vfs) => Connection::open_with_flags_and_vfs(&self.path, flags, vfs.as_str()),
            None => Connection::open_with_flags(&self.path, flags),
        }?;
        functions::take_away(&connection)?;
        Ok(connection)
    }
}

impl File {
    /// A temporary database, through the same VFS: it has no name, and is gone when it is closed.
    pub(crate) fn temporary(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        match &self.vfs {
            Some(vfs) => Connection::open_with_flags_and_vfs("", flags, vfs.as_str()),
            None => Connection::open_with_flags("", flags),
        }
    }
}

impl Db {
    pub(crate) fn new(file: Arc<File>) -> Self {
        Self { file }
    }

    pub(crate) fn ids(&self) -> &Ids {
        &self.file.ids
    }

    pub(crate) fn published(&self) -> &Arc<Published> {
        &self.file.published
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Opens a connection that can only read.
    ///
    /// # Errors
    /// SQLite's, if the file cannot be opened.
    pub fn reader(&self) -> rusqlite::Result<Reader> {
        let mut connection = self.file.connect(OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(READ_BUSY_TIMEOUT)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        ids::prepare_connection(&connection, &self.file.ids)?;
        self.file.published.install(&connection)?;
        make_spell(&connection)?;
        let gate = Arc::new(Mutex::new(ReadGate {
            elsewhere: self.file.elsewhere.clone(),
            ..ReadGate::default()
        }));
        let judge = Arc::clone(&gate);
        connection
            .authorizer(Some(move |context: AuthContext<'_>| judge.lock().judge(&context)))?;
        let looks = Arc::new(AtomicU32::new(AT_LEISURE));
        let left = Arc::clone(&looks);
        connection.progress_handler(SHORT_STEPS, Some(move || is_over(&left)))?;
        let (followed, shadows) = (Mutex::default(), Mutex::default());
        Ok(Reader { connection, gate, file: Arc::clone(&self.file), followed, shadows, looks })
    }

    /// Whether all that a bookmark names is visible to whoever begins to read now.
    ///
    /// # Errors
    /// What is missing. A driver looks again after a drain that has committed something.
    pub fn reached(&self, bookmark: &Bookmark) -> Result<(), BookmarkNotReached> {
        self.file.published.reached(bookmark)
    }

    /// How old what readers see may be at most: this node has all that the origin had so long ago. Zero at the
    /// origin; `None` while that is not known.
    pub fn lag(&self, now: Instant) -> Option<Duration> {
        self.file.published.lag(now)
    }

    /// The bookmark of all that is committed, if none is being committed at this moment; what any reader
    /// saw before is covered then. Otherwise a [`Reader`] finds out.
    pub fn bookmark(&self) -> Option<Bookmark> {
        self.file.published.settled()
    }

    /// Copies the WAL into the file as far as present readers allow, and syncs both, and once more what
    /// was written meanwhile if that is much. Blocks for as long as that takes, so it belongs on a thread of
    /// its own. False if a reader still needs what is in the WAL, so that some of it could not be copied.
    ///
    /// # Errors
    /// SQLite's, if the disk fails.
    pub fn wal_checkpoint(&self) -> rusqlite::Result<bool> {
        let connection = self.file.connect(OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let mut before = 0;
        for _ in 0..WAL_ROUNDS {
            let round = "PRAGMA wal_checkpoint(PASSIVE)";
            let (pages, copied): (i64, i64) =
                connection.query_row(round, [], |row| Ok((row.get(1)?, row.get(2)?)))?;
            if copied < pages {
                return Ok(false);
            }
            if copied - before < WAL_LEFT_PAGES {
                break;
            }
            before = copied;
        }
        Ok(true)
    }

    /// Copies all of the WAL into the file and empties it, so that another file can take this one's place:
    /// SQLite would take a WAL that is left for the other file's. Nothing else of this process may have the
    /// file open. False if another one reads what is in the WAL.
    ///
    /// # Errors
    /// SQLite's, if the disk fails.
    pub fn empty_wal(&self) -> rusqlite::Result<bool> {
        let connection = self.file.connect(OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.busy_timeout(Duration::from_secs(1))?;
        let busy: bool =
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        connection.close().map_err(|(_, error)| error)?;
        Ok(!busy)
    }
}

/// Takes one look off those that are left; tells whether that was the last one.
fn is_over(looks: &AtomicU32) -> bool {
    match looks.load(Ordering::Relaxed) {
        AT_LEISURE => false,
        0 => true,
        left => {
            looks.store(left - 1, Ordering::Relaxed);
            left == 1
        }
    }
}

/// A connection that can only read. Statements that write are refused with `SQLITE_AUTH`.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    gate: Arc<Mutex<ReadGate>>,
    file: Arc<File>,
    /// The tables that were read at the origin when statements in the cache were prepared.
    followed: Mutex<Arc<routing::Strong>>,
    /// What [`Reader::shadows`] has found, and in which version of the schema.
    shadows: Mutex<Option<(i64, Arc<BTreeSet<String>>)>>,
    /// How often it is looked before what runs is interrupted.
    looks: Arc<AtomicU32>,
}

impl Reader {
    /// The connection. A transaction on it is one snapshot; while it is open, the WAL cannot be
    /// started again and grows.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// From here on statements may read only what `grants` give, also by way of views; `None` for
    /// everything. Statements prepared before are not judged again, and those in the cache are dropped.
    ///
    /// # Errors
    /// SQLite's, if the schema cannot be read; then nothing may be read.
    pub fn restrict(&self, grants: Option<Arc<Grants>>) -> rusqlite::Result<()> {
        self.follow_policies();
        self.serve_stale(false);
        self.refuse_old(routing::Old::new());
        let mut gate = self.gate.lock();
        gate.refused = None;
        gate.forbidden = None;
        let same = match (&gate.restriction, &grants) {
            (None, None) => true,
            (Some(old), Some(new)) => Arc::ptr_eq(&old.grants, new),
            _ => false,
        };
        gate.missing = None;
        if !same {
            let nothing = || Restriction { grants: Arc::default(), shadows: Arc::default() };
            gate.restriction = grants.is_some().then(nothing);
        }
        let Some(grants) = grants else { return Ok(()) };
        gate.engine = true;
        // The judge takes the lock.
        drop(gate);
        if !same {
            self.connection.flush_prepared_statement_cache();
        }
        let shadows = self.shadows();
        let mut gate = self.gate.lock();
        gate.engine = false;
        gate.restriction = Some(Restriction { grants, shadows: shadows? });
        Ok(())
    }

    /// The tables in which full-text indexes keep themselves. They are looked up once for each version of the
    /// schema: readers see only what is committed, so no version comes again.
    fn shadows(&self) -> rusqlite::Result<Arc<BTreeSet<String>>> {
        let version: i64 = self
            .connection
            .prepare_cached("/*littoral*/ PRAGMA schema_version")?
            .query_row([], |row| row.get(0))?;
        let mut known = self.shadows.lock();
        match &*known {
            Some((of, shadows)) if *of == version => Ok(Arc::clone(shadows)),
            _ => {
                let shadows = Arc::new(authorizer::shadows(&self.connection)?);
                *known = Some((version, Arc::clone(&shadows)));
                Ok(shadows)
            }
        }
    }

    /// From here on a statement is interrupted that turns out to be long: it takes more than ten thousand
    /// steps of SQLite's machine, or up to twice as many. One long step does not count, such as a `count(*)`.
    pub fn be_short(&self) {
        self.looks.store(SHORT_LOOKS, Ordering::Relaxed);
    }

    /// Ends what [`Reader::be_short`] began; tells whether nothing was interrupted.
    pub fn was_short(&self) -> bool {
        self.looks.swap(AT_LEISURE, Ordering::Relaxed) > 0
    }

    /// What the statement that was refused last would have needed, in words, since
    /// [`Reader::restrict`].
    pub fn missing(&self) -> Option<String> {
        self.gate.lock().missing.take()
    }

    /// A bookmark that covers all that this connection has seen. Whoever requires it elsewhere reads
    /// nothing older there. The SQL function `littoral_bookmark()` gives the same as text.
    ///
    /// # Errors
    /// SQLite's, if the file cannot be read.
    pub fn bookmark(&self) -> rusqlite::Result<Bookmark> {
        self.file.published.bookmark(&self.connection)
    }

    /// Hashes the rows of every replicated table in key order, all of one snapshot. Two replicas that
    /// have applied the same entries have equal digests.
    ///
    /// # Errors
    /// SQLite's, if the file cannot be read.
    pub fn digest(&self) -> rusqlite::Result<DatabaseDigest> {
        // Of what this node holds, whoever may read it.
        self.gate.lock().engine = true;
        let digest = self.digest_all();
        self.gate.lock().engine = false;
        digest
    }

    fn digest_all(&self) -> rusqlite::Result<DatabaseDigest> {
        let snapshot = self.connection.unchecked_transaction()?;
        let registry = Registry::load(&snapshot)?;
        let mut all = blake3::Hasher::new();
        let mut tables = Vec::new();
        for table in registry.tables().iter().filter(|table| !table.is_local()) {
            let digest = table_digest(&snapshot, table)?;
            all.update(&digest.0);
            tables.push((table.name.clone(), digest));
        }
        snapshot.finish()?;
        tables.sort();
        Ok(DatabaseDigest { all: Digest(*all.finalize().as_bytes()), tables })
    }
}

fn table_digest(conn: &Connection, table: &Table) -> rusqlite::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&table.id.0.to_be_bytes());
    let mut statement = conn.prepare_cached(&table.sql.scan())?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut cells = Vec::new();
    while let Some(row) = rows.next()? {
        cells.clear();
        for column in 0..columns {
            put_cell(&mut cells, sqlite::column(row, column)?);
        }
        hasher.update(&cells);
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}
