//! Requests of clients to be carried to the origin, and what becomes of them.
//!
//! The engine carries *programs* without reading them: the driver that takes one from a client writes
//! it down, and the driver of the origin makes a job of it. `docs/consistency.md` tells what is promised.

use std::{fmt, time::Duration};

use crate::{
    bookmark::Bookmark, id::NodeId, limits::PROGRAM_BYTES_MAX, time::WallTime, version::Dot,
};

/// Names a request, wherever it is tried: 128 random bits, or bits made of something that the client
/// keeps for its retries. Whoever uses an id again asks for the outcome of what ran under it first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u128);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
    }
}

/// Something to run at the origin, at most once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// When its client made it, as far as that is known. One that is older than outcomes are kept is
    /// refused, since nobody knows any more whether it has run.
    pub issued: WallTime,
    /// What to run, as the origin's driver reads it.
    pub program: Vec<u8>,
    /// How long the origin may take to begin with it.
    pub patience: Duration,
}

/// An interactive transaction that a client of another node has open at the origin, as the origin names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guest {
    /// The request that it is.
    pub id: RequestId,
    /// The number that the origin has given it. No other one ever has it, so nothing that was meant for
    /// one is done in another.
    pub number: u64,
}

/// What became of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It ran and was committed. The entry is applied here.
    Committed {
        /// The entry.
        dot: Dot,
        /// What the program gave, if it was kept: a retry may only learn that it was committed.
        result: Option<Vec<u8>>,
    },
    /// It ran and changed no replicated row. All that it can have seen is applied here. It runs again if it
    /// is sent again.
    Unchanged {
        /// What the program gave.
        result: Vec<u8>,
    },
    /// It was read there. All that it can have seen need not be applied here.
    Read {
        /// What the program gave.
        result: Vec<u8>,
        /// A bookmark of all that it can have seen.
        seen: Bookmark,
    },
    /// It ran, failed, and nothing of it stands. It runs again if it is sent again.
    Failed {
        /// What the driver of the origin says of it.
        answer: Vec<u8>,
    },
    /// It was not committed, and never will be: that was decided when somebody asked for its outcome.
    Refused,
    /// The interactive transaction is open: its steps may come.
    Begun(Guest),
    /// The step ran, and the transaction is still open.
    Stepped {
        /// What it gave.
        result: Vec<u8>,
    },
}

/// Why nothing is known of what became of a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// There was no way to the origin in time, or it could not begin in time. This attempt has run
    /// nothing and will not; or it can only have read, and its answer has not come: send it again later.
    #[error(
        "the origin{} could not be reached in time, and nothing was run there; retry later",
        .origin.as_ref().map(|node| format!(" (node {node})")).unwrap_or_default()
    )]
    OriginUnreachable {
        /// The node that is origin, if this node knows.
        origin: Option<NodeId>,
    },
    /// The request was sent, and no answer came in time: it may have been committed, and may still be.
    /// Ask for its outcome with its id, or send it again with the same id.
    #[error(
        "the request was sent to the origin, and no answer came in time: it may have been committed; \
         ask for the outcome of {id}, or retry with the same id"
    )]
    Unknown {
        /// The request.
        id: RequestId,
    },
    /// The interactive transaction is not open at the origin: it was ended, or the origin was started again.
    /// Nothing of it stands.
    #[error(
        "the transaction is not open at the origin any more, and nothing of it stands; begin it again"
    )]
    Gone {
        /// The request that it was.
        id: RequestId,
    },
    /// Another program was sent under this id. Nothing was run.
    #[error(
        "request {id} was used for something else before; give every request an id, or an Idempotency-Key, of \
         its own"
    )]
    OtherProgram {
        /// The request.
        id: RequestId,
    },
    /// The request is older than outcomes are kept, so whether it was committed is no longer known.
    /// Nothing was run now.
    #[error("request {id} is older than 24 h, and what became of it is no longer known")]
    Expired {
        /// The request.
        id: RequestId,
    },
    /// The program is too large to be carried. Nothing was run.
    #[error(
        "the request takes {bytes} bytes on its way to the origin, and {PROGRAM_BYTES_MAX} are allowed; \
         split it, or send it to the origin itself"
    )]
    TooLarge {
        /// How large.
        bytes: usize,
    },
    /// Too many requests of this node wait for the origin. Nothing was run; retry later.
    #[error("too many requests wait for the origin; nothing was run, retry later")]
    TooMany,
    /// The node is stopping. What was sent may have been committed: ask for its outcome elsewhere.
    #[error("the node is stopping, and whether request {id} was committed is not known here")]
    Stopping {
        /// The request.
        id: RequestId,
    },
}
