//! Storage: what is asked of the disk, what follows when it fails, and how a replica halts.

use std::collections::VecDeque;

use rusqlite::Connection;

use crate::{
    db::watch::Who,
    driver::{CloseCode, Event, Output},
    entry::ChunksId,
    error::WriteError,
    limits::{DISCARD_INTERVAL, DISCARD_STEP_BYTES, STORAGE_RETRY},
    replica::Replica,
    schema::catalog,
    testing::{Bug, planted},
    time::Instant,
    version::Dot,
};

/// Chunks that nothing names any more, which are removed little by little.
#[derive(Debug, Default)]
pub(crate) struct Discarding {
    chunks: VecDeque<ChunksId>,
    due: Instant,
}

impl Discarding {
    /// Finds those of a file that was just opened.
    pub(crate) fn find(conn: &Connection) -> rusqlite::Result<Self> {
        if planted(Bug::ChunksOfNobody) {
            return Ok(Self::default());
        }
        Ok(Self { chunks: ChunksId::nameless(conn)?.into(), due: Instant::default() })
    }
}

/// Whether storage works.
#[derive(Debug, Default)]
pub(super) struct Storage {
    pub(super) error: Option<String>,
    /// The error is that the disk is full: no local write is begun.
    pub(super) is_full: bool,
    pub(super) retry_at: Option<Instant>,
    /// The WAL was copied into the file, but for what was written meanwhile.
    pub(super) wal_copied: bool,
}

impl Replica {
    pub(super) fn failed(&mut self, failure: &Failure) {
        self.storage.is_full |= failure.is_full;
        self.storage_fails(failure.error.clone());
        if failure.of_sync {
            self.sync_failed(&failure.error);
        }
    }

    pub(super) fn serve_disk(&mut self) -> bool {
        let retry = self.storage.retry_at.is_some_and(|at| self.now.mono >= at);
        if retry && !self.is_open() {
            self.storage.retry_at = None;
            self.probe();
        }
        if self.durable.asked < self.log.last() && self.durable.lsn < self.log.last() {
            self.durable.asked = self.log.last();
            self.outputs.push_back(Output::Sync(self.log.last()));
        }
        if !self.is_open()
            && (self.serve_checkpoint() || self.serve_discarding() || self.begin_wal_anew())
        {
            return true;
        }
        self.look_for_foreign();
        if self.writer.wants_checkpoint() {
            self.outputs.push_back(Output::WalCheckpoint);
        }
        !self.outputs.is_empty()
    }

    /// Copies what little was added to the WAL while it was being copied. SQLite begins a WAL anew only if
    /// nothing in it is left to copy when somebody writes; as long as there is always something, it grows.
    fn begin_wal_anew(&mut self) -> bool {
        if !std::mem::take(&mut self.storage.wal_copied) || planted(Bug::WalNeverAnew) {
            return false;
        }
        // As much as a checkpoint on its own thread is asked for: that one comes first.
        if self.writer.has_much_to_copy() {
            return false;
        }
        if let Err(error) = self.writer.begin_wal_anew() {
            self.storage_failed(&error);
            if is_sync_failure(&error) {
                self.sync_failed(&error.to_string());
            }
        }
        true
    }

    /// Takes in chunks that nothing on disk names any more.
    pub(super) fn discard(&mut self, chunks: impl IntoIterator<Item = ChunksId>) {
        if self.discarding.chunks.is_empty() {
            self.discarding.due = self.now.mono + DISCARD_INTERVAL;
        }
        self.discarding.chunks.extend(chunks);
    }

    pub(super) fn discarding_deadline(&self) -> Option<Instant> {
        let works = self.storage.error.is_none() && !self.writes_stopped;
        (works && !self.discarding.chunks.is_empty()).then_some(self.discarding.due)
    }

    /// Removes the next of them, when it is time.
    fn serve_discarding(&mut self) -> bool {
        let due = self.discarding_deadline().is_some_and(|due| self.now.mono >= due);
        let (true, Some(chunks)) = (due, self.discarding.chunks.front().copied()) else {
            return false;
        };
        let removed = self
            .writer
            .writes(Who::Apply)
            .and_then(|()| chunks.remove_some(self.writer.apply(), DISCARD_STEP_BYTES));
        match removed {
            Ok(true) => {}
            Ok(false) => drop(self.discarding.chunks.pop_front()),
            Err(error) => self.storage_failed(&error),
        }
        self.discarding.due = self.now.mono + DISCARD_INTERVAL;
        true
    }

    /// Tries whether storage works again, by a write that changes nothing that matters.
    pub(super) fn probe(&mut self) {
        let probed = self.writer.writes(Who::Apply).and_then(|()| {
            catalog::set_meta(self.writer.apply(), "probed", self.now.wall.0.cast_signed())
        });
        match probed {
            Ok(()) => self.storage_works(),
            Err(error) => self.storage_failed(&error),
        }
    }

    /// As [`Replica::storage_fails`], for an error of SQLite.
    pub(super) fn storage_failed(&mut self, error: &rusqlite::Error) {
        self.storage.is_full |= is_disk_full(error);
        self.storage_fails(error.to_string());
    }

    pub(super) fn storage_fails(&mut self, error: String) {
        self.storage.retry_at = Some(self.now.mono + STORAGE_RETRY);
        // A connection that has failed reads the file anew.
        self.writer.forget_versions();
        if self.storage.error.is_none() {
            self.outputs.push_back(Output::Event(Event::StorageFailed(error.clone())));
        }
        self.storage.error = Some(error);
    }

    pub(super) fn storage_works(&mut self) {
        if self.storage.is_full && planted(Bug::FullForGood) {
            return;
        }
        self.storage.is_full = false;
        if self.storage.error.take().is_some() {
            self.storage.retry_at = None;
            self.entries_came();
            self.outputs.push_back(Output::Event(Event::StorageRecovered));
        }
    }

    pub(super) fn sync_failed(&mut self, error: &str) {
        self.halt(format!(
            "the WAL could not be synced ({error}); what the disk holds is only known after the file is \
             opened again"
        ));
    }

    /// Others have entries of this node that it has not: the file is an old copy, or was lost.
    pub(super) fn lost_state(&mut self, theirs: Dot) {
        let ours = self.log.head(theirs.author).seq;
        let remedy = match self.is_origin() {
            true => "Begin a new cluster with the rows of the newest node (`littoral dump`)",
            false => {
                "Start the node again with an empty directory and a new incarnation (`littoral ca issue`)"
            }
        };
        self.halt(format!(
            "a peer has entry {theirs} of this node, which itself has only {ours}: the file is an old \
             copy, or was lost. {remedy}"
        ));
    }

    /// Stops all links and all writing, for good: only an operator helps.
    pub(super) fn halt(&mut self, why: String) {
        self.writes_stopped = true;
        self.give_up_interactive(&why);
        self.give_up_answers(&why);
        self.stop_links(why);
    }

    /// Stops all links, for good; local writes go on.
    pub(super) fn stop_links(&mut self, why: String) {
        if self.halted.is_some() {
            return;
        }
        tracing::error!(node = %self.identity.node, %why, "replica halted");
        self.halted = Some(why.clone());
        for peer in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.close_link(peer, CloseCode::Halted, why.clone());
        }
        self.outputs.push_back(Output::Event(Event::Halted(why)));
    }
}

/// Storage has failed, and not merely a statement.
pub(super) struct Failure {
    pub(super) error: String,
    pub(super) of_sync: bool,
    pub(super) is_full: bool,
}

impl Failure {
    pub(super) fn of(error: &WriteError) -> Option<Self> {
        match error {
            WriteError::Sqlite(error) if is_storage_failure(error) || is_sync_failure(error) => {
                Some(Self {
                    error: error.to_string(),
                    of_sync: is_sync_failure(error),
                    is_full: is_disk_full(error),
                })
            }
            _ => None,
        }
    }
}

pub(super) fn is_disk_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

/// After a failed sync the pages count as written, and a later sync would seem to succeed.
pub(super) fn is_sync_failure(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC};
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC))
}

pub(crate) fn is_storage_failure(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, FileLockingProtocolFailed, OutOfMemory,
        ReadOnly, SystemIoFailure,
    };
    matches!(
        error.sqlite_error_code(),
        Some(
            CannotOpen
                | DatabaseBusy
                | DatabaseLocked
                | DiskFull
                | FileLockingProtocolFailed
                | OutOfMemory
                | ReadOnly
                | SystemIoFailure
        )
    )
}
