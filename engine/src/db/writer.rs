//! [`Writer`]: the two connections of the writer thread.
//!
//! *User* runs write jobs: foreign keys, triggers and CHECK on, every row change captured, every
//! statement judged by the authorizer. *Apply* stores what other nodes wrote: all of that off. They
//! are never both in a transaction that writes, and nothing is toggled on them after they were opened.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OpenFlags, config::DbConfig, hooks::AuthContext};

use crate::{
    capture::{Mark, Recorder},
    db::{
        File,
        authorizer::{Gate, Origin},
        mask::{ChangeMask, Masks},
        watch::{Watch, Who, data_version},
    },
    error::WriteError,
    id::TableId,
    ids::{self, Ids},
    limits::{
        APPLY_CACHE_KIB, STATEMENT_CACHE, WAL_CHECKPOINT_BYTES, WAL_READERS_WAIT,
        WAL_SIZE_LIMIT_BYTES,
    },
    log::published,
    merge,
    schema::{Registry, declaring::Calls},
    sqlite::{self, Hooked, Keeping},
    testing::{Bug, planted},
};

/// Rows of an index that ANALYZE looks at, about.
const ANALYSIS_LIMIT: i64 = 1000;

/// How the user connection commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Synchronous {
    /// An answered commit is on stable storage.
    #[default]
    Full,
    /// An answered commit is in the file, and on stable storage some milliseconds later. A power cut
    /// in between loses it; nothing is lost that another node has seen.
    Normal,
}

/// The connections that write.
#[derive(Debug)]
pub(crate) struct Writer {
    user: Hooked<Recorder>,
    ids: Arc<Ids>,
    gate: Arc<Mutex<Gate>>,
    masks: Mutex<Masks>,
    calls: Calls,
    apply: Keeping,
    verify_capture: bool,
    watch: Mutex<Watch>,
    /// Written to the WAL since a checkpoint was asked for.
    wal_pages: u64,
    page_bytes: u64,
}

impl Writer {
    /// Opens both connections on a file that has the engine's tables.
    pub(crate) fn open(
        file: &Arc<File>,
        registry: &Arc<Registry>,
        origin: Origin,
        synchronous: Synchronous,
        verify_capture: bool,
        tape_bytes: usize,
    ) -> rusqlite::Result<Self> {
        Self::open_as(file, registry, origin, synchronous, verify_capture, tape_bytes, false)
    }

    /// Opens connections for one migration at the origin: with foreign keys off, so that a table can be
    /// dropped and made anew under the rows that refer to it.
    pub(crate) fn open_migrating(
        file: &Arc<File>,
        registry: &Arc<Registry>,
        synchronous: Synchronous,
        verify_capture: bool,
        tape_bytes: usize,
        thawed: BTreeSet<TableId>,
    ) -> rusqlite::Result<Self> {
        let origin = Origin::Here;
        let writer =
            Self::open_as(file, registry, origin, synchronous, verify_capture, tape_bytes, true)?;
        let mut gate = writer.gate();
        gate.migrating = true;
        gate.thawed = thawed;
        drop(gate);
        Ok(writer)
    }

    fn open_as(
        file: &Arc<File>,
        registry: &Arc<Registry>,
        origin: Origin,
        synchronous: Synchronous,
        verify_capture: bool,
        tape_bytes: usize,
        migrating: bool,
    ) -> rusqlite::Result<Self> {
        let mut user = connect(file)?;
        user.pragma_update(
            None,
            "synchronous",
            match synchronous {
                Synchronous::Full => "FULL",
                Synchronous::Normal => "NORMAL",
            },
        )?;
        user.pragma_update(None, "foreign_keys", !migrating)?;
        // Nobody writes the tables in which a full-text index keeps itself, or the text of the schema.
        user.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        // So ANALYZE does not keep others waiting.
        user.pragma_update(None, "analysis_limit", ANALYSIS_LIMIT)?;
        ids::prepare_connection(&user, &file.ids)?;
        published::refuse(&user)?;
        merge::functions::make_spell(&user)?;
        let page_bytes = user.query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0))?;
        let gate = Arc::new(Mutex::new(Gate::new(Arc::clone(registry), origin)));
        let judge = Arc::clone(&gate);
        user.authorizer(Some(move |context: AuthContext<'_>| judge.lock().judge(&context)))?;

        let calls = Calls::default();
        calls.install(&user)?;

        let apply = connect(file)?;
        apply.pragma_update(None, "synchronous", "NORMAL")?;
        apply.pragma_update(None, "cache_size", -APPLY_CACHE_KIB)?;
        apply.pragma_update(None, "foreign_keys", false)?;
        apply.pragma_update(None, "ignore_check_constraints", true)?;
        apply.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        // Triggers that are mirrored there need no file.
        apply.pragma_update(None, "temp_store", "MEMORY")?;
        merge::functions::prepare_connection(&apply)?;
        let apply = Keeping::new(apply);
        apply.make_swap()?;
        let recorder =
            Recorder::new(Arc::clone(registry), verify_capture, Arc::clone(file), tape_bytes);
        if !planted(Bug::MirrorsForgotten) {
            merge::mirror::refresh(&apply, registry)?;
        }
        if planted(Bug::TruncationUnseen) {
            for table in registry.tables() {
                user.prepare_cached(&format!("DELETE FROM {}", table.name)).ok();
            }
        }
        Ok(Self {
            user: Hooked::new(user, recorder),
            ids: Arc::clone(&file.ids),
            gate,
            masks: Mutex::default(),
            calls,
            apply,
            verify_capture,
            watch: Mutex::default(),
            wal_pages: 0,
            page_bytes: u64::from(page_bytes),
        })
    }

    pub(crate) fn user(&self) -> &Hooked<Recorder> {
        &self.user
    }

    pub(crate) fn apply(&self) -> &Keeping {
        &self.apply
    }

    /// One of the connections is about to write. Without this, the other one takes what it commits for
    /// another program's.
    pub(crate) fn writes(&self, next: Who) -> rusqlite::Result<()> {
        self.watch.lock().writes(next, |who| self.version(who))
    }

    /// How often other programs were noticed to write.
    pub(crate) fn noticed(&self) -> rusqlite::Result<u64> {
        let mut watch = self.watch.lock();
        watch.look(|who| self.version(who))?;
        Ok(watch.noticed)
    }

    /// Others of the engine's connections have written, or these have failed.
    pub(crate) fn forget_versions(&self) {
        self.watch.lock().forget();
    }

    fn version(&self, who: Who) -> rusqlite::Result<u32> {
        if planted(Bug::ForeignUnseen) {
            return Ok(0);
        }
        match who {
            Who::User => self.as_engine(data_version),
            Who::Apply => data_version(&self.apply),
        }
    }

    pub(crate) fn ids(&self) -> &Ids {
        &self.ids
    }

    pub(crate) fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock()
    }

    /// What the statement that was just prepared can change; `None` if that is not known.
    pub(crate) fn mask_of(&self, sql: &str) -> Option<Arc<ChangeMask>> {
        let mut masks = self.masks.lock();
        match self.gate().take_mask() {
            None => masks.get(sql.trim()),
            Some(mask) => {
                masks.keep(sql.trim(), &mask);
                Some(mask)
            }
        }
    }

    /// Tells hook and authorizer what the statement can change that runs from here on.
    pub(crate) fn announce(&self, mask: Option<Arc<ChangeMask>>) {
        self.gate().running.clone_from(&mask);
        self.user.sink().set_mask(mask);
    }

    pub(crate) fn verifies_capture(&self) -> bool {
        self.verify_capture
    }

    /// Calls of `littoral_policy()` in the statement that runs.
    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// The schema changed, and no transaction is open.
    pub(crate) fn learn(&self, registry: &Arc<Registry>) {
        self.user.sink().set_registry(Arc::clone(registry));
        self.gate().stale = true;
        self.adopt(Arc::clone(registry));
        self.apply.flush_prepared_statement_cache();
        self.apply.forget();
    }

    /// Another node is origin, or this one.
    pub(crate) fn learn_origin(&self, origin: Origin) {
        self.gate().origin = origin;
        self.forget_statements();
    }

    /// From here on statements of the user are judged under this schema, also in the middle of a
    /// transaction. What the recorder holds is not touched.
    pub(crate) fn adopt(&self, registry: Arc<Registry>) {
        self.gate().registry = registry;
        self.forget_statements();
    }

    /// The recorder went back to an earlier schema: the rest follows.
    pub(crate) fn adopt_recorders(&self) {
        let registry = Arc::clone(self.user.sink().registry());
        if !Arc::ptr_eq(&registry, &self.gate().registry) {
            self.adopt(registry);
        }
    }

    /// Before the schema changes: a trigger that is mirrored on the apply connection could not follow.
    pub(crate) fn unmirror(&self) -> rusqlite::Result<()> {
        if !std::mem::replace(&mut self.gate().unmirrored, true) {
            merge::mirror::remove(&self.apply)?;
        }
        Ok(())
    }

    /// After the schema changed, or did not after all.
    pub(crate) fn mirror_again(&self, registry: &Registry) {
        if !std::mem::take(&mut self.gate().unmirrored) {
            return;
        }
        if let Err(error) = merge::mirror::refresh(&self.apply, registry) {
            tracing::error!(%error, "triggers could not be mirrored; what they keep gets stale");
        }
    }

    /// Statements prepared before were judged under what was known then.
    fn forget_statements(&self) {
        self.user.flush_prepared_statement_cache();
        self.user.keeping().forget();
        self.masks.lock().clear();
    }

    /// Refuses what only the origin may do.
    pub(crate) fn refuse_elsewhere(&self, what: &str) -> Result<(), WriteError> {
        match &self.gate().origin {
            Origin::Here => Ok(()),
            Origin::Elsewhere(origin) => {
                Err(WriteError::SchemaChange { what: what.to_owned(), origin: origin.clone() })
            }
        }
    }

    /// Lets the engine's own statements past the authorizer of the user connection.
    pub(crate) fn as_engine<T>(&self, run: impl FnOnce(&Connection) -> T) -> T {
        self.gate().engine = true;
        let result = run(&self.user);
        self.gate().engine = false;
        result
    }

    /// Runs a statement of the engine on the user connection.
    pub(crate) fn command(&self, sql: &str) -> rusqlite::Result<()> {
        let frequent = FREQUENT.iter().position(|command| *command == sql);
        self.as_engine(|conn| match frequent {
            Some(number) => {
                self.user.keeping().run(&[number as u64], || sql.to_owned(), |_| Ok(()))
            }
            None => conn.prepare_cached(sql)?.raw_execute().map(drop),
        })
    }

    /// Makes the recorder hold what the file holds of the rows captured since `mark`.
    pub(crate) fn reread(&self, mark: Mark) -> rusqlite::Result<()> {
        self.as_engine(|conn| self.user.sink().reread(mark, conn))?;
        self.adopt_recorders();
        Ok(())
    }

    /// Why VACUUM does not run in a write job.
    pub(crate) fn refused_vacuum(&self) -> WriteError {
        let gate = self.gate();
        let by_rowid: Vec<String> = gate
            .registry
            .tables()
            .iter()
            .filter(|table| table.is_by_rowid() && !table.is_local())
            .map(|table| format!("{:?}", table.name))
            .collect();
        let what = if by_rowid.is_empty() {
            "VACUUM".to_owned()
        } else {
            format!(
                "VACUUM, which would renumber the rows of {}, told apart by rowid for want of a \
                 primary key,",
                by_rowid.join(", ")
            )
        };
        WriteError::Forbidden { what }
    }

    /// Closes both connections. The last one of a file to close empties the WAL.
    pub(crate) fn close(self) -> rusqlite::Result<()> {
        self.apply.close()?;
        self.user.close()
    }

    /// Copies what is left of the WAL into the file, and waits a little for readers that still need it. Then
    /// the next commit begins it anew; if not, because a reader takes its time, another one will.
    pub(crate) fn begin_wal_anew(&self) -> rusqlite::Result<()> {
        self.apply.busy_timeout(WAL_READERS_WAIT)?;
        let copied = self.apply.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
        self.apply.busy_timeout(Duration::ZERO)?;
        copied
    }

    /// Whether enough was written to the WAL since a checkpoint was asked for to ask for another one.
    pub(crate) fn has_much_to_copy(&mut self) -> bool {
        self.wal_pages +=
            sqlite::take_pages_written(&self.user) + sqlite::take_pages_written(&self.apply);
        self.wal_pages * self.page_bytes >= WAL_CHECKPOINT_BYTES
    }

    /// Whether enough was written to the WAL to ask for a checkpoint; counts from zero then.
    pub(crate) fn wants_checkpoint(&mut self) -> bool {
        let wants = self.has_much_to_copy();
        if wants {
            self.wal_pages = 0;
        }
        wants
    }
}

/// What [`Writer::command`] runs around every job.
const FREQUENT: [&str; 6] = [
    "/*littoral*/ BEGIN IMMEDIATE",
    "/*littoral*/ COMMIT",
    "/*littoral*/ ROLLBACK",
    "/*littoral*/ SAVEPOINT littoral_job",
    "/*littoral*/ RELEASE littoral_job",
    "/*littoral*/ ROLLBACK TO littoral_job",
];

fn connect(file: &File) -> rusqlite::Result<Connection> {
    let conn = file.connect(OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    configure(&conn)?;
    Ok(conn)
}

/// Settings of every connection that writes.
pub(crate) fn configure(conn: &Connection) -> rusqlite::Result<()> {
    conn.busy_timeout(Duration::ZERO)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "journal_size_limit", WAL_SIZE_LIMIT_BYTES.cast_signed())?;
    conn.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    Ok(())
}
