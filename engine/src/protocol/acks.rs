//! [`Acks`]: what every member has said to hold on stable storage, as far as it was heard.
//!
//! Acknowledgements travel over relays, newest per member, so that the origin hears of members it has no
//! link to. A vector is kept and passed on whole: the proof of the frontier needs it to be one that its
//! member held at one moment.

use std::collections::BTreeMap;

use crate::{id::AuthorId, time::Instant, version::VersionVector};

/// The newest acknowledgement heard of every other member.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    heard: BTreeMap<AuthorId, Heard>,
    version: u64,
}

#[derive(Debug)]
struct Heard {
    vector: VersionVector,
    /// When it came, or anything newer from the member itself.
    at: Instant,
}

impl Acks {
    /// Takes in what `author` held at some moment.
    pub(crate) fn hear(&mut self, author: AuthorId, vector: &VersionVector, at: Instant) {
        let heard =
            self.heard.entry(author).or_insert_with(|| Heard { vector: VersionVector::new(), at });
        // What a member holds only grows, so of two vectors one covers the other.
        if !heard.vector.covers_all(vector) {
            heard.vector = vector.clone();
            heard.at = heard.at.max(at);
            self.version += 1;
        }
    }

    /// A link to the member has ended, over which something came last at that time.
    pub(crate) fn was_linked(&mut self, author: AuthorId, at: Instant) {
        if let Some(heard) = self.heard.get_mut(&author) {
            heard.at = heard.at.max(at);
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

    /// The newest acknowledgement of a member, and when it came, or anything newer over a link to the member
    /// that has ended since.
    pub(crate) fn of(&self, author: AuthorId) -> Option<(&VersionVector, Instant)> {
        self.heard.get(&author).map(|heard| (&heard.vector, heard.at))
    }
}
