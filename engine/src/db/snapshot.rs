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
//! - a piece is written only if it is, with all before it as that stands on this disk, what was sent;
//! - memory is bounded by SQLite's page caches and one piece of [`SNAPSHOT_CHUNK_BYTES`].

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use rusqlite::{Connection, OpenFlags, backup::Backup, config::DbConfig};

use crate::{
    db::{Db, File},
    entry::Digest,
    limits::SNAPSHOT_CHUNK_BYTES,
    protocol::frame::Piece,
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
    /// A name that no other one has. It says nothing of the bytes: every [`Piece`] does.
    pub name: Digest,
    /// How many bytes there are.
    pub bytes: u64,
}

/// What became of a piece of a snapshot that was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PieceWritten {
    /// It is written.
    Written,
    /// It is written, and everything before it and it are on stable storage.
    Synced,
    /// Together with what was received before it, it is not what was sent.
    Damaged,
}

/// A snapshot that is being received. The file stays open: one that is opened anew syncs its directory,
/// too, each time.
#[derive(Debug)]
pub(crate) struct Arriving {
    file: VfsFile,
    hashed: Hashed,
}

/// The snapshot that was taken last, as far as it was read: each byte is hashed once, whoever asks for it.
#[derive(Debug, Default)]
pub(crate) struct Departing {
    hashed: Hashed,
    /// By where a piece ends, the digest of everything before.
    digests: BTreeMap<u64, Digest>,
}

/// The hash of a file from its beginning on.
#[derive(Debug, Default)]
struct Hashed {
    upto: u64,
    hasher: blake3::Hasher,
}

impl Hashed {
    fn update(&mut self, bytes: &[u8]) -> Digest {
        self.hasher.update(bytes);
        self.upto += bytes.len() as u64;
        Digest(*self.hasher.finalize().as_bytes())
    }

    /// Goes to a place in the file, reading what lies before it if it must.
    fn go_to(&mut self, offset: u64, file: &mut VfsFile) -> rusqlite::Result<()> {
        if self.upto > offset {
            *self = Self::default();
        }
        let mut read = Vec::new();
        while self.upto < offset {
            let left = usize::try_from(offset - self.upto).unwrap_or(usize::MAX);
            read.resize(left.min(SNAPSHOT_CHUNK_BYTES), 0);
            file.read(self.upto, &mut read)?;
            self.update(&read);
        }
        Ok(())
    }
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
    pub fn take_snapshot(&self, name: Digest) -> rusqlite::Result<Snapshot> {
        self.discard_snapshot()?;
        let taken = self.copy_out();
        if taken.is_err() {
            // The first error says more than a second one would.
            let _ = self.discard_snapshot();
        }
        Ok(Snapshot { name, bytes: taken? })
    }

    fn copy_out(&self) -> rusqlite::Result<u64> {
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
        self.taken()?.size()
    }

    fn taken(&self) -> rusqlite::Result<VfsFile> {
        self.file.open_beside(TAKEN, false)?.ok_or_else(|| missing(&self.file.beside(TAKEN)))
    }

    /// Reads a piece of the snapshot that was taken last.
    ///
    /// # Errors
    /// SQLite's, if it cannot be read or ends before.
    pub fn read_snapshot(&self, offset: u64, bytes: usize) -> rusqlite::Result<Piece> {
        let mut file = self.taken()?;
        let mut piece = Piece::empty(offset, bytes);
        file.read(offset, piece.bytes_mut())?;
        let Departing { hashed, digests } = &mut *self.file.departing.lock();
        let digest = match digests.get(&piece.end()) {
            Some(known) => *known,
            None => {
                hashed.go_to(offset, &mut file)?;
                hashed.update(piece.bytes())
            }
        };
        digests.insert(piece.end(), digest);
        piece.set_digest(digest);
        Ok(piece)
    }

    /// Removes the snapshot that was taken last.
    ///
    /// # Errors
    /// SQLite's, if it cannot be removed.
    pub fn discard_snapshot(&self) -> rusqlite::Result<()> {
        *self.file.departing.lock() = Departing::default();
        self.file.remove_beside(TAKEN)?;
        self.file.remove_beside("-snapshot-journal")
    }

    /// Writes a piece of a snapshot that is being received, if with all before it, as it stands in the
    /// file, it is what was sent; with `sync`, all of it so far is on stable storage afterwards.
    ///
    /// # Errors
    /// SQLite's, if the disk fails or is full.
    pub fn write_incoming(&self, piece: &Piece, sync: bool) -> rusqlite::Result<PieceWritten> {
        // If it fails, it is opened anew.
        let mut slot = self.file.arriving.lock();
        let Arriving { mut file, mut hashed } = match slot.take() {
            Some(arriving) => arriving,
            None => {
                let path = self.file.beside(INCOMING);
                let file = self.file.open_beside(INCOMING, true)?.ok_or_else(|| missing(&path))?;
                Arriving { file, hashed: Hashed::default() }
            }
        };
        if piece.offset() == 0 {
            file.truncate(0)?;
        }
        if hashed.upto != piece.offset() {
            if file.size()? < piece.offset() {
                return Ok(PieceWritten::Damaged);
            }
            // What came before a crash is believed as far as it can be read again.
            hashed.go_to(piece.offset(), &mut file)?;
        }
        if hashed.update(piece.bytes()) != piece.digest() {
            return Ok(PieceWritten::Damaged);
        }
        file.write(piece.offset(), piece.bytes())?;
        if sync {
            file.sync()?;
        }
        *slot = Some(Arriving { file, hashed });
        Ok(if sync { PieceWritten::Synced } else { PieceWritten::Written })
    }

    /// Whether the snapshot that was offered was received whole, and is on stable storage. If it was not,
    /// it is removed.
    ///
    /// # Errors
    /// SQLite's, if the disk fails.
    pub fn verify_incoming(&self, offered: &Snapshot) -> rusqlite::Result<bool> {
        // Whatever comes of it, the file is closed at the end: it may be renamed then.
        let arriving = self.file.arriving.lock().take();
        if let Some(Arriving { mut file, hashed }) = arriving
            && hashed.upto == offered.bytes
        {
            file.truncate(offered.bytes)?;
            file.sync()?;
            return Ok(true);
        }
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

fn missing(path: &std::path::Path) -> rusqlite::Error {
    rusqlite::Error::InvalidPath(path.to_owned())
}
