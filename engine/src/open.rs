//! [`Builder`]: opening a file as a replica, and making it one first if it is empty.

use std::{path::Path, sync::Arc};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::{
    contested::{Contested, Stable},
    db::{
        File, INCOMING, TAKEN, watch,
        writer::{Synchronous, Writer, configure},
    },
    driver::Identity,
    entry::Digest,
    error::OpenError,
    genesis::Genesis,
    hlc::HlcClock,
    id::{ClusterId, Incarnation, NodeId},
    identity::{self, Mark, Note},
    limits::{MAX_ENTRY_BYTES, MAX_ENTRY_RANGE, Sizes},
    log::{Log, LogError, Start, Tail},
    merge::{Parked, mirror},
    protocol::message::Register,
    replica::{Discarding, Parts, Progress, Replica, Spools, origin_seen_by},
    schema::{Registry, catalog, outcomes},
    testing::{Bug, planted},
    time::Now,
    value::{ByteReader, DecodeError},
};

/// Settings of a replica that is about to be opened.
#[derive(Debug)]
pub struct Builder {
    identity: Identity,
    genesis: Option<Genesis>,
    vfs: Option<String>,
    synchronous: Synchronous,
    verify_capture: bool,
    read_only: bool,
    max_entry: u64,
    sizes: Sizes,
}

impl Builder {
    pub(crate) fn new(identity: Identity) -> Self {
        Self {
            identity,
            genesis: None,
            vfs: None,
            synchronous: Synchronous::default(),
            verify_capture: false,
            read_only: false,
            max_entry: MAX_ENTRY_BYTES,
            sizes: Sizes::default(),
        }
    }

    /// Makes this node the origin of a new cluster, if the file is empty; later it is not looked at.
    #[must_use]
    pub fn genesis(mut self, genesis: Genesis) -> Self {
        self.genesis = Some(genesis);
        self
    }

    /// Uses the SQLite VFS of that name instead of the default one.
    #[must_use]
    pub fn vfs(mut self, name: &str) -> Self {
        self.vfs = Some(name.to_owned());
        self
    }

    /// How local writes are committed.
    #[must_use]
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// Reads every captured row again before each commit, and panics on a difference: for tests and
    /// the simulator.
    #[must_use]
    pub fn verify_capture(mut self) -> Self {
        self.verify_capture = true;
        self
    }

    /// Makes the node one that applies and relays, but never writes and is no member: nothing in the
    /// cluster waits for it.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The largest entry a write job may become, in bytes: 1 MiB to 64 GiB, 1 GiB if nothing is said.
    /// A value outside is taken to the nearer bound. Every node of a cluster should have the same.
    #[must_use]
    pub fn max_entry(mut self, bytes: u64) -> Self {
        self.max_entry = bytes.clamp(*MAX_ENTRY_RANGE.start(), *MAX_ENTRY_RANGE.end());
        self
    }

    /// Has entries count as large that are not: for tests and the simulator.
    #[must_use]
    pub fn sizes(mut self, sizes: Sizes) -> Self {
        self.sizes = sizes;
        self
    }

    /// Opens the file, or makes it; its directory must exist. `now` dates the first entries of a new
    /// cluster. `seed` must differ from one opening to the next: a new file's id is drawn from it.
    ///
    /// # Errors
    /// Why the file could not be opened as this node's.
    pub fn open(self, path: &Path, now: Now, seed: u64) -> Result<Replica, OpenError> {
        let file = Arc::new(File::new(path.to_owned(), self.vfs.clone()));
        let mut conn =
            file.connect(OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        let ours = catalog::exists(&conn)?;
        match ours {
            None => {}
            Some(true) => check_identity(&conn, &self.identity)?,
            Some(false) => return Err(OpenError::ForeignFile),
        }
        let stored = match ours {
            Some(_) => catalog::meta::<Vec<u8>>(&conn, "file")?.as_deref().and_then(Mark::decode),
            None => None,
        };
        let opened_before = stored.map_or(0, |mark| mark.opened);
        let changed_closed = stored.is_some() && watch::was_changed_closed(&conn, opened_before)?;
        let mut note = Note::check(&file, stored, ours.is_none())?;
        // Nothing was changed up to here.
        configure(&conn)?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        if ours.is_none() {
            self.create(&mut conn, now)?;
        }
        // A commit at FULL, so that all the file holds is on stable storage from here on, the
        // directory's entry for the WAL included.
        let mark = stored.map_or_else(|| self.new_mark(now, seed), Mark::next);
        note.announce(mark, stored)?;
        self.adopt(&mut conn, mark)?;
        note.confirm(mark)?;
        drop(note);

        mirror::repair(&conn)?;
        let mut registry = Registry::load(&conn)?;
        if planted(Bug::FreezeForgotten) {
            registry.frozen = None;
        }
        if planted(Bug::OutcomesForgotten) {
            outcomes::forget(&conn)?;
        }
        let registry = Arc::new(registry);
        let register = catalog::meta::<Vec<u8>>(&conn, "register")?
            .map(|bytes| {
                let what = "the control register does not decode".to_owned();
                Register::decode(&bytes).ok_or(OpenError::DamagedLog { lsn: 0, what })
            })
            .transpose()?;
        let damaged = |what: &str| OpenError::DamagedLog { lsn: 0, what: what.to_owned() };
        let start = catalog::meta::<Vec<u8>>(&conn, "trimmed")?
            .map_or_else(|| Ok(Start::default()), |bytes| Start::decode(&bytes))
            .map_err(|_| damaged("the note of what is trimmed does not decode"))?;
        let (tail, stable) = catalog::meta::<Vec<u8>>(&conn, "checkpoint")?
            .map_or_else(|| Ok(Default::default()), |bytes| read_checkpoint(&bytes))
            .map_err(|_| damaged("the clock checkpoint does not decode"))?;
        let mut contested = Contested::open(&conn, stable)?;
        let log = Log::open(&conn, self.sizes, start, tail, |lsn, entry| {
            if planted(Bug::ClocksNotReplayed) {
                return Ok(());
            }
            let clocks = &mut contested;
            crate::db::remember(clocks, &conn, &registry, lsn, entry).map_err(|e| e.to_string())
        })
        .map_err(|error| match error {
            LogError::Sqlite(error) => OpenError::Sqlite(error),
            LogError::Damaged { lsn, what } => OpenError::DamagedLog { lsn: lsn.0, what },
        })?;
        let hlc = if planted(Bug::HlcForgotten) {
            HlcClock::default()
        } else {
            HlcClock::starting_after(log.hlc())
        };
        let given = catalog::meta::<i64>(&conn, "last_id")?.unwrap_or(0).cast_unsigned();
        file.ids.resume(given, log.hlc().wall());
        let origin = origin_seen_by(register.as_ref(), &self.identity);
        let writer = Writer::open(
            &file,
            &registry,
            origin,
            self.synchronous,
            self.verify_capture,
            self.sizes.tape,
        )?;
        let members = catalog::members(&conn)?;
        let is_member = members.iter().any(|m| m.incarnation == self.identity.incarnation);
        if self.read_only && is_member {
            return Err(OpenError::ReadOnlyMember);
        }
        let progress = progress(&conn, &file)?;
        file.remove_beside(TAKEN)?;
        let spools = Spools::find(&conn, &log, now.mono)?;
        let discarding = Discarding::find(&conn)?;
        let parked = Parked::load(&conn)?;
        // Closed only now: the last connection to close would empty and remove the WAL.
        drop(conn);
        Ok(Replica::new(Parts {
            identity: self.identity,
            synchronous: self.synchronous,
            file,
            writer,
            registry,
            members,
            register,
            log,
            contested,
            parked,
            hlc,
            read_only: self.read_only,
            progress,
            spools,
            discarding,
            max_entry: self.max_entry,
            opened: mark.opened,
            changed_closed,
            now,
        }))
    }

    /// Whether there is a database already, and whether [`Builder::open`] would take it for this node's, as
    /// far as its first pages and the note beside it tell: also that it is no older copy. Nothing is changed or made; another process may have the file open, which
    /// `open_elsewhere` tells.
    ///
    /// # Errors
    /// Why the file could not be opened as this node's.
    pub fn check(&self, path: &Path, open_elsewhere: bool) -> Result<bool, OpenError> {
        let noted = identity::noted(&File::new(path.to_owned(), self.vfs.clone()))?;
        if std::fs::metadata(path).is_ok_and(|file| file.len() == 0) || !path.exists() {
            identity::judge(noted, None, true)?;
            return Ok(false);
        }
        let read_only = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = if open_elsewhere {
            Connection::open_with_flags(path, read_only)?
        } else {
            // Else SQLite would make the files beside it that a WAL needs. What a WAL holds is not seen
            // like this; whose file it is changes only when it is made.
            Connection::open_with_flags(unchanging(path), read_only | OpenFlags::SQLITE_OPEN_URI)?
        };
        match catalog::exists(&conn)? {
            None => return Ok(true),
            Some(true) => check_identity(&conn, &self.identity)?,
            Some(false) => return Err(OpenError::ForeignFile),
        }
        let stored = catalog::meta::<Vec<u8>>(&conn, "file")?.as_deref().and_then(Mark::decode);
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let has_wal = std::fs::metadata(wal).is_ok_and(|wal| wal.len() > 0);
        // After a crash the newest count is in the WAL; it cannot be told then whether the file is older.
        let is_noted = |mark: Mark| noted.iter().flatten().any(|noted| noted.file == mark.file);
        let untold = has_wal && stored.is_some_and(is_noted);
        if !(open_elsewhere || untold) {
            identity::judge(noted, stored, false)?;
        }
        Ok(true)
    }

    fn new_mark(&self, now: Now, seed: u64) -> Mark {
        let Identity { node, incarnation, .. } = &self.identity;
        let words = format!("{node} {incarnation} {} {} {seed}", now.wall.0, now.mono.0);
        let Digest(digest) = Digest::of(words.as_bytes());
        let mut file = [0; 16];
        file.copy_from_slice(&digest[..16]);
        Mark { file, opened: 1 }
    }

    /// Makes the file this node's, if it is a snapshot that nobody has opened, and gives it its mark.
    fn adopt(&self, conn: &mut Connection, mark: Mark) -> Result<(), OpenError> {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        catalog::set_meta(&tx, "node", self.identity.node.as_str())?;
        catalog::set_meta(&tx, "incarnation", self.identity.incarnation.to_string())?;
        catalog::set_meta(&tx, "file", mark.encode())?;
        catalog::remove_meta(&tx, catalog::SNAPSHOT_OF)?;
        tx.commit()?;
        Ok(())
    }

    fn create(&self, conn: &mut Connection, now: Now) -> Result<(), OpenError> {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(catalog::DDL)?;
        catalog::set_meta(&tx, "format", catalog::FILE_FORMAT)?;
        catalog::set_meta(&tx, "cluster", self.identity.cluster.to_string())?;
        catalog::set_meta(&tx, "node", self.identity.node.as_str())?;
        catalog::set_meta(&tx, "incarnation", self.identity.incarnation.to_string())?;
        if let Some(genesis) = &self.genesis {
            genesis.write(&tx, &self.identity, now.wall)?;
            catalog::set_meta(&tx, "register", Register::first(&self.identity).encode())?;
        }
        tx.commit()?;
        Ok(())
    }
}

/// The URI of a file of which SQLite is to take for granted that nobody changes it.
fn unchanging(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for c in path.to_string_lossy().chars() {
        match c {
            '%' => uri.push_str("%25"),
            '?' => uri.push_str("%3f"),
            '#' => uri.push_str("%23"),
            other => uri.push(other),
        }
    }
    uri + "?immutable=1"
}

/// What of a snapshot stands beside the file already.
fn progress(conn: &Connection, file: &File) -> Result<Option<Progress>, OpenError> {
    let noted = catalog::meta::<Vec<u8>>(conn, catalog::INCOMING)?;
    let Some(progress) = noted.as_deref().and_then(Progress::decode) else { return Ok(None) };
    let there = match file.open_beside(INCOMING, false)? {
        Some(mut incoming) => incoming.size()?,
        None => 0,
    };
    Ok((there >= progress.upto).then_some(progress))
}

/// What the last clock checkpoint says beside the clocks.
fn read_checkpoint(bytes: &[u8]) -> Result<(Tail, Stable), DecodeError> {
    let mut reader = ByteReader::new(bytes);
    Ok((Tail::decode(&mut reader)?, Stable::decode(&mut reader)?))
}

fn check_identity(conn: &Connection, identity: &Identity) -> Result<(), OpenError> {
    let found: i64 = catalog::meta(conn, "format")?.unwrap_or(0);
    if found != catalog::FILE_FORMAT {
        return Err(OpenError::Format { found, expected: catalog::FILE_FORMAT });
    }
    let text = |name| Ok::<_, OpenError>(catalog::meta::<String>(conn, name)?.unwrap_or_default());
    let damaged = |what: &str| OpenError::DamagedLog { lsn: 0, what: what.to_owned() };
    let number = |text: &str| u128::from_str_radix(text, 16);
    if catalog::meta::<String>(conn, catalog::SNAPSHOT_OF)? == Some(identity.cluster.to_string()) {
        return Ok(());
    }
    let cluster = number(&text("cluster")?).map_err(|_| damaged("no cluster id"))?;
    let node = NodeId::new(&text("node")?).map_err(|_| damaged("no node name"))?;
    let incarnation = number(&text("incarnation")?).map_err(|_| damaged("no incarnation"))?;
    let file =
        Identity { cluster: ClusterId(cluster), node, incarnation: Incarnation(incarnation) };
    if file == *identity {
        return Ok(());
    }
    Err(OpenError::WrongIdentity {
        cluster: file.cluster,
        node: file.node,
        incarnation: file.incarnation,
    })
}
