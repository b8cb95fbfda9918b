//! Three threads that may block on the disk, so that the replica thread does not: one syncs the WAL
//! file, one copies it into the database, one takes, reads and writes snapshots.
//!
//! The sync thread opens the `-wal` file and never the database itself: closing any descriptor of
//! that file would drop the POSIX locks that SQLite holds on it.
//!
//! Every request carries the number of the opening it belongs to, and so does its answer: what was asked
//! before a snapshot took the file's place says nothing of the new file.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{Arc, mpsc},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use littoral::{Db, Digest, Input, Lsn, PeerId, Piece};
use parking_lot::RwLock;
use tracing::{debug, error, warn};

use super::{
    meter::Meter,
    place::beside,
    replica_thread::{Event, EventSender},
};

/// The threads. They end when all [`StorageRequests`] are dropped.
#[derive(Debug)]
pub(crate) struct StorageThreads {
    requests: StorageRequests,
    threads: [(&'static str, JoinHandle<()>); 3],
}

/// What the threads can be asked for. Never blocks.
#[derive(Clone, Debug)]
pub(crate) struct StorageRequests {
    opening: u64,
    /// Read while a thread has the database open; written while another file takes its place.
    file: Arc<RwLock<()>>,
    syncs: mpsc::Sender<SyncRequest>,
    checkpoints: mpsc::SyncSender<u64>,
    snapshots: mpsc::Sender<(u64, SnapshotRequest)>,
}

/// Sync the WAL up to there.
#[derive(Clone, Copy, Debug)]
struct SyncRequest {
    opening: u64,
    lsn: Lsn,
    /// Somebody waits for it.
    is_urgent: bool,
}

/// Syncs that nobody waits for begin no faster than this: where many writes come one after the other, each
/// would be synced by itself, and the thread that writes kept from it.
const SYNC_PAUSE: Duration = Duration::from_millis(2);

/// Something to do with a snapshot, in its turn.
#[derive(Debug)]
pub(crate) enum SnapshotRequest {
    Take(Digest),
    Read { peer: PeerId, offset: u64, bytes: usize },
    Discard,
    Write { peer: PeerId, piece: Piece, sync: bool },
}

impl StorageThreads {
    pub(crate) fn start(
        db: &Db,
        database: &Path,
        events: EventSender,
        meter: Arc<Meter>,
    ) -> io::Result<Self> {
        let (syncs, sync_requests) = mpsc::channel();
        // One request waiting covers all that come before it is taken.
        let (checkpoints, checkpoint_requests) = mpsc::sync_channel(1);
        let (snapshots, snapshot_requests) = mpsc::channel();
        let wal = beside(database, "-wal");
        let (db, other_db) = (db.clone(), db.clone());
        let file = Arc::new(RwLock::new(()));
        let (open, other_open) = (Arc::clone(&file), Arc::clone(&file));
        let (snapshot_events, checkpoint_events) = (events.clone(), events.clone());
        let sync = Builder::new()
            .name("littoral-sync".to_owned())
            .spawn(move || run_syncs(&wal, &sync_requests, &events, &meter))?;
        let checkpoint = Builder::new()
            .name("littoral-checkpoint".to_owned())
            .spawn(move || run_checkpoints(&db, &open, &checkpoint_requests, &checkpoint_events))?;
        let snapshot = Builder::new().name("littoral-snapshot".to_owned()).spawn(move || {
            run_snapshots(&other_db, &other_open, &snapshot_requests, &snapshot_events);
        })?;
        let threads = [("sync", sync), ("checkpoint", checkpoint), ("snapshot", snapshot)];
        Ok(Self {
            requests: StorageRequests { opening: 0, file, syncs, checkpoints, snapshots },
            threads,
        })
    }

    pub(crate) fn requests(&self) -> StorageRequests {
        self.requests.clone()
    }

    /// Waits for the threads; the replica thread must have dropped its requests.
    pub(crate) fn join(self) {
        drop(self.requests);
        for (name, thread) in self.threads {
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
        Self {
            opening: 0,
            file: Arc::default(),
            syncs: mpsc::channel().0,
            checkpoints: mpsc::sync_channel(1).0,
            snapshots: mpsc::channel().0,
        }
    }

    /// To be locked for writing while the database must be closed.
    pub(crate) fn file(&self) -> Arc<RwLock<()>> {
        Arc::clone(&self.file)
    }

    /// The file is another one from here on.
    pub(crate) fn reopened(&mut self) {
        self.opening += 1;
    }

    /// Whether an answer is about the file as it is open now.
    pub(crate) fn are_of(&self, opening: u64) -> bool {
        self.opening == opening
    }

    /// Sync the WAL up to `lsn`, then tell the replica; at once if somebody waits for that.
    pub(crate) fn sync(&self, lsn: Lsn, is_urgent: bool) {
        if self.syncs.send(SyncRequest { opening: self.opening, lsn, is_urgent }).is_err() {
            error!(%lsn, "the sync thread has ended");
        }
    }

    /// Copy the WAL into the database, unless that is asked for already, then tell the replica.
    pub(crate) fn checkpoint(&self) {
        // Full: a request waits that has not begun. Disconnected: the node is stopping.
        let _ = self.checkpoints.try_send(self.opening);
    }

    pub(crate) fn snapshot(&self, request: SnapshotRequest) {
        if self.snapshots.send((self.opening, request)).is_err() {
            error!("the snapshot thread has ended");
        }
    }
}

fn run_syncs(
    wal: &Path,
    requests: &mpsc::Receiver<SyncRequest>,
    events: &EventSender,
    meter: &Meter,
) {
    // Kept open, since the system reports a failed write-back only to descriptors open at that time.
    let mut file = None;
    let mut file_of = 0;
    let mut next = None;
    let mut not_before = Instant::now();
    while let Some(mut request) = next.take().or_else(|| requests.recv().ok()) {
        while let Some(later) = another(requests, (!request.is_urgent).then_some(not_before)) {
            if later.opening != request.opening {
                next = Some(later);
                break;
            }
            request.lsn = request.lsn.max(later.lsn);
            request.is_urgent |= later.is_urgent;
        }
        let SyncRequest { opening, lsn, .. } = request;
        if file_of != opening {
            file_of = opening;
            file = None;
        }
        let began = Instant::now();
        not_before = began + SYNC_PAUSE;
        let synced = sync(wal, &mut file);
        meter.syncs.took(began.elapsed());
        let input = match synced {
            Ok(()) => Input::Synced(lsn),
            Err(error) => {
                error!(%error, path = %wal.display(), "the WAL cannot be synced");
                Input::SyncFailed(format!("cannot sync {}: {error}", wal.display()))
            }
        };
        if events.send(Event::Stored { opening, input }).is_err() {
            debug!("the replica ended before its WAL was synced");
        }
    }
}

/// Another request that is there, or comes in time.
fn another(requests: &mpsc::Receiver<SyncRequest>, until: Option<Instant>) -> Option<SyncRequest> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    match left.filter(|left| !left.is_zero()) {
        Some(left) => requests.recv_timeout(left).ok(),
        None => requests.try_recv().ok(),
    }
}

fn sync(wal: &Path, file: &mut Option<File>) -> io::Result<()> {
    let open = match file {
        Some(open) => open,
        None => file.insert(File::open(wal)?),
    };
    open.sync_data()
}

fn run_checkpoints(
    db: &Db,
    file: &RwLock<()>,
    requests: &mpsc::Receiver<u64>,
    events: &EventSender,
) {
    while let Ok(opening) = requests.recv() {
        let copied = {
            let _open = file.read();
            db.wal_checkpoint()
        };
        match copied {
            Ok(true) => {}
            // The WAL grows meanwhile; the engine asks again.
            Ok(false) => continue,
            Err(error) => {
                warn!(%error, "the WAL could not be copied into the database");
                continue;
            }
        }
        if events.send(Event::Stored { opening, input: Input::WalCheckpointed }).is_err() {
            debug!("the replica ended before it was told of a checkpoint");
        }
    }
}

fn run_snapshots(
    db: &Db,
    file: &RwLock<()>,
    requests: &mpsc::Receiver<(u64, SnapshotRequest)>,
    events: &EventSender,
) {
    while let Ok((opening, request)) = requests.recv() {
        let why = |error: rusqlite::Error| error.to_string();
        let input = match request {
            SnapshotRequest::Take(name) => {
                let _open = file.read();
                Input::SnapshotTaken(db.take_snapshot(name).map_err(why))
            }
            SnapshotRequest::Read { peer, offset, bytes } => {
                let piece = db.read_snapshot(offset, bytes).map_err(why);
                Input::SnapshotRead { peer, piece }
            }
            SnapshotRequest::Discard => {
                if let Err(error) = db.discard_snapshot() {
                    warn!(%error, "a snapshot that nobody needs could not be removed");
                }
                continue;
            }
            SnapshotRequest::Write { peer, piece, sync } => {
                let upto = piece.end();
                let result = db.write_incoming(&piece, sync).map_err(why);
                Input::SnapshotWritten { peer, upto, result }
            }
        };
        if events.send(Event::Stored { opening, input }).is_err() {
            debug!("the replica ended before it was told of its snapshot");
        }
    }
}
