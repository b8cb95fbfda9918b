//! Two threads that may block on the disk, so that the replica thread does not: one syncs the WAL
//! file, one copies it into the database.
//!
//! The sync thread opens the `-wal` file and never the database itself: closing any descriptor of
//! that file would drop the POSIX locks that SQLite holds on it.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{Builder, JoinHandle},
};

use littoral::{Db, Input, Lsn};
use tracing::{debug, error, warn};

use super::replica_thread::{Event, EventSender};

/// The threads. They end when all [`StorageRequests`] are dropped.
#[derive(Debug)]
pub(crate) struct StorageThreads {
    requests: StorageRequests,
    sync: JoinHandle<()>,
    checkpoint: JoinHandle<()>,
}

/// What the threads can be asked for. Never blocks.
#[derive(Clone, Debug)]
pub(crate) struct StorageRequests {
    syncs: mpsc::Sender<Lsn>,
    checkpoints: mpsc::SyncSender<()>,
}

impl StorageThreads {
    pub(crate) fn start(db: &Db, database: &Path, events: EventSender) -> io::Result<Self> {
        let (syncs, sync_requests) = mpsc::channel();
        // One request waiting covers all that come before it is taken.
        let (checkpoints, checkpoint_requests) = mpsc::sync_channel(1);
        let wal = wal_path(database);
        let db = db.clone();
        let sync = Builder::new()
            .name("littoral-sync".to_owned())
            .spawn(move || run_syncs(&wal, &sync_requests, &events))?;
        let checkpoint = Builder::new()
            .name("littoral-checkpoint".to_owned())
            .spawn(move || run_checkpoints(&db, &checkpoint_requests))?;
        Ok(Self { requests: StorageRequests { syncs, checkpoints }, sync, checkpoint })
    }

    pub(crate) fn requests(&self) -> StorageRequests {
        self.requests.clone()
    }

    /// Waits for both threads; the replica thread must have dropped its requests.
    pub(crate) fn join(self) {
        drop(self.requests);
        for (name, thread) in [("sync", self.sync), ("checkpoint", self.checkpoint)] {
            if thread.join().is_err() {
                error!(name, "a storage thread had panicked");
            }
        }
    }
}

impl StorageRequests {
    /// Requests that nobody takes.
    #[cfg(test)]
    pub(crate) fn to_nobody() -> Self {
        Self { syncs: mpsc::channel().0, checkpoints: mpsc::sync_channel(1).0 }
    }

    /// Sync the WAL up to `lsn`, then tell the replica.
    pub(crate) fn sync(&self, lsn: Lsn) {
        if self.syncs.send(lsn).is_err() {
            error!(%lsn, "the sync thread has ended");
        }
    }

    /// Copy the WAL into the database, unless that is asked for already.
    pub(crate) fn checkpoint(&self) {
        // Full: a request waits that has not begun. Disconnected: the node is stopping.
        let _ = self.checkpoints.try_send(());
    }
}

fn wal_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    PathBuf::from(path)
}

fn run_syncs(wal: &Path, requests: &mpsc::Receiver<Lsn>, events: &EventSender) {
    // Kept open, since the system reports a failed write-back only to descriptors open at that time.
    let mut file = None;
    while let Ok(mut lsn) = requests.recv() {
        while let Ok(later) = requests.try_recv() {
            lsn = lsn.max(later);
        }
        let answer = match sync(wal, &mut file) {
            Ok(()) => Input::Synced(lsn),
            Err(error) => {
                error!(%error, path = %wal.display(), "the WAL cannot be synced");
                Input::SyncFailed(format!("cannot sync {}: {error}", wal.display()))
            }
        };
        if events.send(Event::Input(answer)).is_err() {
            debug!("the replica ended before its WAL was synced");
        }
    }
}

fn sync(wal: &Path, file: &mut Option<File>) -> io::Result<()> {
    let open = match file {
        Some(open) => open,
        None => file.insert(File::open(wal)?),
    };
    open.sync_data()
}

fn run_checkpoints(db: &Db, requests: &mpsc::Receiver<()>) {
    while requests.recv().is_ok() {
        if let Err(error) = db.wal_checkpoint() {
            // The WAL grows meanwhile; the engine asks again.
            warn!(%error, "the WAL could not be copied into the database");
        }
    }
}
