//! Copies of the whole file for a node that has none: taken, read and written in pieces, and checked.
//!
//! ```text
//!   sponsor                                        joiner
//!   replica.db ── take ──► replica.db-snapshot ══► replica.db-incoming ── rename ──► replica.db
//! ```
//!
//! All of these block, so they belong on threads of the driver; the replica only says when.
//!
//! Invariants:
//! - a copy is of one moment: its source connection holds a read transaction throughout;
//! - nothing of the sponsor's identity and of the rows of `local` tables is in it when it is offered, in
//!   no page, free or not; what was deleted from such a table before may stand in a free page;
//! - memory is bounded by SQLite's page caches and one piece of [`SNAPSHOT_CHUNK_BYTES`].

use std::{path::PathBuf, time::Duration};

use rusqlite::{Connection, OpenFlags, backup::Backup, config::DbConfig};

use crate::{
    db::{Db, File},
    entry::Digest,
    limits::SNAPSHOT_CHUNK_BYTES,
    schema::catalog,
    sqlite::{
        file::{self, VfsFile},
        quoted,
    },
};

/// Pages copied at a time.
const STEP_PAGES: i32 = 1024;

/// The page cache of the copy while it is made, in KiB.
const COPY_CACHE_KIB: i64 = 4096;

/// A whole snapshot: what was taken of a sponsor's file, or is to become a joiner's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The digest of all its bytes.
    pub digest: Digest,
    /// How many there are.
    pub bytes: u64,
}

/// A snapshot that is being received. The file stays open: one that is opened anew syncs its directory,
/// too, each time.
#[derive(Debug)]
pub(crate) struct Arriving {
    file: VfsFile,
    /// The hash as far as the snapshot has arrived, so that it need not be read again at its end; `None`
    /// if some of it came before a restart.
    hashed: Option<Hashed>,
}

#[derive(Debug, Default)]
struct Hashed {
    upto: u64,
    hasher: blake3::Hasher,
}

impl File {
    /// The path of a file beside the database.
    pub(crate) fn beside(&self, ending: &str) -> PathBuf {
        let mut path = self.path.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    }

    pub(crate) fn open_beside(
        &self,
        ending: &str,
        create: bool,
    ) -> rusqlite::Result<Option<VfsFile>> {
        VfsFile::open(self.vfs.as_deref(), &self.beside(ending), create)
    }

    pub(crate) fn remove_beside(&self, ending: &str) -> rusqlite::Result<()> {
        file::remove(self.vfs.as_deref(), &self.beside(ending))
    }
}

/// What the name of a snapshot to be sent ends with.
pub(crate) const TAKEN: &str = "-snapshot";
/// What the name of a snapshot that is being received ends with.
pub(crate) const INCOMING: &str = "-incoming";

impl Db {
    /// Copies the file as it is now into one beside it, for a node that has none, and takes out what
    /// is the node's own. Writers go on meanwhile; the WAL grows as long as it takes.
    ///
    /// # Errors
    /// SQLite's, if the disk fails or is full.
    pub fn take_snapshot(&self) -> rusqlite::Result<Snapshot> {
        self.discard_snapshot()?;
        let taken = self.copy_out();
        if taken.is_err() {
            // The first error says more than a second one would.
            let _ = self.discard_snapshot();
        }
        taken
    }

    fn copy_out(&self) -> rusqlite::Result<Snapshot> {
        let source = self.file.connect(OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        source.busy_timeout(super::READ_BUSY_TIMEOUT)?;
        let held = source.unchecked_transaction()?;
        // Without a read the transaction has not begun.
        catalog::meta::<i64>(&source, "format")?;
        let copy = File::new(self.file.beside(TAKEN), self.file.vfs.clone());
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let mut conn = copy.connect(flags)?;
        // A copy that a crash leaves half made is thrown away, so nothing is synced before its end.
        conn.pragma_update(None, "synchronous", "OFF")?;
        conn.pragma_update(None, "cache_size", -COPY_CACHE_KIB)?;
        Backup::new(&source, &mut conn)?.run_to_completion(STEP_PAGES, Duration::ZERO, None)?;
        held.finish()?;
        conn.query_row("PRAGMA journal_mode = MEMORY", [], |_| Ok(()))?;
        strip(&conn)?;
        conn.close().map_err(|(_, error)| error)?;
        // Not synced: a crash leaves nothing that anybody would ask for again.
        let (bytes, digest) = hash(&mut self.taken()?)?;
        Ok(Snapshot { digest, bytes })
    }

    fn taken(&self) -> rusqlite::Result<VfsFile> {
        self.file.open_beside(TAKEN, false)?.ok_or_else(|| missing(&self.file.beside(TAKEN)))
    }

    /// Reads a piece of the snapshot that was taken last.
    ///
    /// # Errors
    /// SQLite's, if it cannot be read or ends before.
    pub fn read_snapshot(&self, offset: u64, bytes: usize) -> rusqlite::Result<Vec<u8>> {
        let mut piece = vec![0; bytes];
        self.taken()?.read(offset, &mut piece)?;
        Ok(piece)
    }

    /// Removes the snapshot that was taken last.
    ///
    /// # Errors
    /// SQLite's, if it cannot be removed.
    pub fn discard_snapshot(&self) -> rusqlite::Result<()> {
        self.file.remove_beside(TAKEN)?;
        self.file.remove_beside("-snapshot-journal")
    }

    /// Writes a piece of a snapshot that is being received; with `sync`, all of it so far is on stable
    /// storage afterwards.
    ///
    /// # Errors
    /// SQLite's, if the disk fails or is full.
    pub fn write_incoming(&self, offset: u64, bytes: &[u8], sync: bool) -> rusqlite::Result<()> {
        // If it fails, it is opened anew.
        let mut slot = self.file.arriving.lock();
        let Arriving { mut file, mut hashed } = match slot.take() {
            Some(arriving) => arriving,
            None => {
                let path = self.file.beside(INCOMING);
                let file = self.file.open_beside(INCOMING, true)?.ok_or_else(|| missing(&path))?;
                Arriving { file, hashed: None }
            }
        };
        if offset == 0 {
            file.truncate(0)?;
            hashed = Some(Hashed::default());
        }
        hashed.take_if(|hashed| hashed.upto != offset);
        file.write(offset, bytes)?;
        if sync {
            file.sync()?;
        }
        if let Some(hashed) = &mut hashed {
            hashed.hasher.update(bytes);
            hashed.upto += bytes.len() as u64;
        }
        *slot = Some(Arriving { file, hashed });
        Ok(())
    }

    /// Whether the snapshot that was received is the one that was offered. If it is not, it is removed.
    ///
    /// # Errors
    /// SQLite's, if it cannot be read.
    pub fn verify_incoming(&self, offered: &Snapshot) -> rusqlite::Result<bool> {
        // Whatever comes of it, the file is closed at the end: it may be renamed then.
        let arriving = self.file.arriving.lock().take();
        let hashed = arriving.and_then(|arriving| arriving.hashed);
        let Some(mut file) = self.file.open_beside(INCOMING, false)? else { return Ok(false) };
        file.truncate(offered.bytes)?;
        let found = match hashed.filter(|hashed| hashed.upto == offered.bytes) {
            Some(hashed) => (file.size()?, Digest(*hashed.hasher.finalize().as_bytes())),
            None => hash(&mut file)?,
        };
        if found == (offered.bytes, offered.digest) {
            file.sync()?;
            return Ok(true);
        }
        drop(file);
        self.file.remove_beside(INCOMING)?;
        Ok(false)
    }

    /// The path of the snapshot that is being received. Once [`Db::verify_incoming`] has said that it is
    /// whole and the replica is closed, rename it to [`Db::path`], and sync the directory.
    pub fn incoming_path(&self) -> PathBuf {
        self.file.beside(INCOMING)
    }
}

/// Takes out of a copy what is the node's own, and leaves the mark by which a joiner's first open
/// knows it.
fn strip(conn: &Connection) -> rusqlite::Result<()> {
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "foreign_keys", false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    conn.execute_batch("BEGIN")?;
    for table in catalog::local_tables(conn)? {
        conn.execute(&format!("DELETE FROM main.{}", quoted(&table)), [])?;
    }
    let cluster: String = catalog::meta(conn, "cluster")?.unwrap_or_default();
    for row in catalog::OWN_ROWS {
        conn.execute("DELETE FROM littoral_meta WHERE name = ?", [row])?;
    }
    catalog::set_meta(conn, catalog::SNAPSHOT_OF, cluster)?;
    conn.execute_batch("COMMIT")
}

fn hash(file: &mut VfsFile) -> rusqlite::Result<(u64, Digest)> {
    let bytes = file.size()?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; SNAPSHOT_CHUNK_BYTES];
    let mut at = 0;
    while at < bytes {
        let left = usize::try_from(bytes - at).unwrap_or(usize::MAX);
        let piece = &mut piece[..left.min(SNAPSHOT_CHUNK_BYTES)];
        file.read(at, piece)?;
        hasher.update(piece);
        at += piece.len() as u64;
    }
    Ok((bytes, Digest(*hasher.finalize().as_bytes())))
}

fn missing(path: &std::path::Path) -> rusqlite::Error {
    rusqlite::Error::InvalidPath(path.to_owned())
}
