//! [`LargeEntry`]: an entry whose bytes are not in memory but in chunks on disk.
//!
//! Here are only the names of things; storing and reading chunks is the log's.

use crate::{
    entry::{Digest, Entry, EntryHeader},
    version::Dot,
};

/// The name of the chunks of one entry within a file; other files have other names for them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ChunksId(pub(crate) i64);

/// What names a large entry: all that a peer must know before it takes the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LargeName {
    pub(crate) dot: Dot,
    pub(crate) digest: Digest,
    /// Of its bytes.
    pub(crate) length: u64,
}

/// A large entry, its bytes in chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LargeEntry {
    pub(crate) header: EntryHeader,
    pub(crate) digest: Digest,
    pub(crate) length: u64,
    pub(crate) chunks: ChunksId,
}

impl LargeEntry {
    /// What names it.
    pub(crate) fn name(&self) -> LargeName {
        LargeName { dot: self.header.dot, digest: self.digest, length: self.length }
    }
}

/// An entry of the log.
#[derive(Debug, Clone)]
pub(crate) enum Logged {
    /// With its bytes.
    Whole(Entry),
    /// Its bytes are chunks.
    Large(LargeEntry),
}

impl Logged {
    pub(crate) fn header(&self) -> &EntryHeader {
        match self {
            Self::Whole(entry) => &entry.header,
            Self::Large(entry) => &entry.header,
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        match self {
            Self::Whole(entry) => entry.digest,
            Self::Large(entry) => entry.digest,
        }
    }

    /// Of its bytes.
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Whole(entry) => entry.bytes.len() as u64,
            Self::Large(entry) => entry.length,
        }
    }

    /// What it takes in memory.
    pub(crate) fn bytes_in_memory(&self) -> usize {
        match self {
            Self::Whole(entry) => entry.bytes.len(),
            Self::Large(_) => size_of::<LargeEntry>(),
        }
    }
}
