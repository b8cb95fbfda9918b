//! [`Files`]: how the replica's file is opened, and how another one takes its place.

use std::{fs, io, sync::Arc};

use littoral::{Db, Replica, Snapshot};
use tracing::warn;

use super::{RuntimeError, open, place::beside, readers::ReaderPool};
use crate::{clock::Clock, config::Config};

/// What the replica thread needs to open its file again.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) config: Config,
    pub(super) readers: Arc<ReaderPool>,
}

impl Files {
    /// Opens the replica.
    pub(super) fn open(&self, clock: Clock) -> Result<Replica, String> {
        let opened = open(&self.config, clock);
        self.readers.resume(opened.as_ref().ok().map(Replica::db));
        opened.map_err(|error: RuntimeError| error.to_string())
    }

    /// Puts a snapshot that was received in the place of the file, if it is the one that was offered; if
    /// not, it is gone, and will be asked for anew. The replica must be closed, and nothing else of this
    /// process may have the file open.
    pub(super) fn replace(&self, db: &Db, snapshot: &Snapshot) -> Result<(), String> {
        if !db.verify_incoming(snapshot).map_err(|error| error.to_string())? {
            warn!("a snapshot was damaged on its way or on this disk; it is fetched again");
            return Ok(());
        }
        part_from_wal(db)?;
        let publish = || -> io::Result<()> {
            fs::rename(db.incoming_path(), db.path())?;
            let directory = db.path().parent().filter(|path| !path.as_os_str().is_empty());
            fs::File::open(directory.unwrap_or_else(|| ".".as_ref()))?.sync_all()
        };
        publish()
            .map_err(|error| format!("cannot rename {}: {error}", db.incoming_path().display()))
    }
}

/// Removes what SQLite keeps beside the file, which is nothing if nobody else has the file open; a program that
/// reads it goes on with the file that was. What is in the WAL is in the file before the WAL goes, so that a
/// crash finds one or the other.
fn part_from_wal(db: &Db) -> Result<(), String> {
    let wal = beside(db.path(), "-wal");
    if fs::exists(&wal).map_err(|error| format!("cannot look for {}: {error}", wal.display()))? {
        let emptied = db.empty_wal().map_err(|error| error.to_string())?;
        if !emptied {
            return Err(format!(
                "another program reads {}: end it, and start the node again",
                db.path().display()
            ));
        }
    }
    for path in [wal, beside(db.path(), "-shm")] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("cannot remove {}: {error}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
