//! [`Acks`]: what every member has said to hold on stable storage, as far as it was heard.
//!
//! Acknowledgements travel over relays, newest per member, so that the origin hears of members it has no
//! link to. A vector is kept and passed on whole: the proof of the frontier needs it to be one that its
//! member held at one moment.

use std::collections::BTreeMap;

use crate::{id::AuthorId, time::WallTime, version::VersionVector};

/// The newest acknowledgement heard of every other member.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    heard: BTreeMap<AuthorId, Heard>,
    version: u64,
}

#[derive(Debug)]
struct Heard {
    vector: VersionVector,
    at: WallTime,
}

impl Acks {
    /// Takes in what `author` held at some moment.
    pub(crate) fn hear(&mut self, author: AuthorId, vector: &VersionVector, at: WallTime) {
        let heard = self
            .heard
            .entry(author)
            .or_insert_with(|| Heard { vector: VersionVector::new(), at: WallTime(0) });
        // What a member holds only grows, so of two vectors one covers the other.
        if !heard.vector.covers_all(vector) {
            heard.vector = vector.clone();
            heard.at = at;
            self.version += 1;
        }
    }

    /// Rises with every change.
    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    /// The newest acknowledgement of every member.
    pub(crate) fn heard(&self) -> impl Iterator<Item = (AuthorId, &VersionVector)> {
        self.heard.iter().map(|(author, heard)| (*author, &heard.vector))
    }

    /// The newest acknowledgement of a member, and when it was heard.
    pub(crate) fn of(&self, author: AuthorId) -> Option<(&VersionVector, WallTime)> {
        self.heard.get(&author).map(|heard| (&heard.vector, heard.at))
    }
}
