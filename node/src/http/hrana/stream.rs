//! [`Stream`]: what one client's stream keeps from request to request.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use littoral::Bookmark;

use super::{journal::Journal, program::Stored, sql::Place, wire::HranaError};
use crate::runtime::{HeldReader, Transaction, TransactionError, Visit};

/// How long a transaction that only reads may be open: meanwhile the WAL cannot be started again.
pub(super) const READ_TRANSACTION_LIMIT: Duration = Duration::from_secs(30);

/// One client's stream. Dropped, its transaction is rolled back.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(super) stored: Stored,
    pub(super) open: Open,
    /// Where the transaction wants to be.
    pub(super) place: Place,
    /// What it has done here, if it may move to the origin.
    pub(super) journal: Journal,
    pub(super) notes: Notes,
}

/// What is to be said of a request's answer, beside the answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    /// What was read at the origin, if anything was.
    pub(crate) seen_at_origin: Option<Bookmark>,
    /// Tables that are read at the origin, which could not be reached, and were read here.
    pub(crate) stale: BTreeSet<String>,
    /// Why something was not read that this node is behind its bookmark for.
    pub(super) unreached: Option<String>,
}

impl Notes {
    pub(super) fn read_at_origin(&mut self, seen: &Bookmark) {
        self.seen_at_origin.get_or_insert_default().include_all(seen);
    }
}

/// The transaction of a stream.
#[derive(Debug, Default)]
pub(super) enum Open {
    #[default]
    No,
    /// Begun, and nothing has run in it. The first statement of one that said IMMEDIATE says where it is.
    Begun { read_only: bool, undecided: bool },
    /// It has only read so far, in one snapshot.
    Reads { reader: HeldReader, read_only: bool, since: Instant },
    /// It has the writer.
    Writes(Transaction),
    /// It has the origin's writer.
    AtOrigin { visit: Visit, read_only: bool },
    /// It is over, and the client has not said so: every statement fails until COMMIT or ROLLBACK, so that
    /// none slips into autocommit.
    Lost(HranaError),
    /// Its COMMIT failed: a ROLLBACK may follow, and is welcome.
    LostAtCommit,
}

impl Stream {
    /// Whether the client has to come back to it.
    pub(crate) fn keeps_something(&self) -> bool {
        !matches!(self.open, Open::No) || !self.stored.is_empty()
    }

    /// Whether statements are in a transaction, as the client sees it.
    pub(crate) const fn is_in_transaction(&self) -> bool {
        !matches!(self.open, Open::No | Open::LostAtCommit)
    }

    /// Ends a transaction that is over by now.
    pub(super) fn look(&mut self) {
        let lost = match &self.open {
            Open::Writes(transaction) if transaction.has_timed_out() => {
                HranaError::from(&TransactionError::TimedOut)
            }
            Open::Reads { since, .. } if since.elapsed() >= READ_TRANSACTION_LIMIT => {
                let message = format!(
                    "the transaction was open for {} s and was ended",
                    READ_TRANSACTION_LIMIT.as_secs()
                );
                HranaError::new("TRANSACTION_TIMEOUT", message)
            }
            _ => return,
        };
        self.open = Open::Lost(lost);
    }
}
