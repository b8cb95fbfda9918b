//! Entries that wait: what a link has brought and is not applied yet, and the spools of large entries.
//!
//! A spool is what was received of a large entry: its chunks, in the place where they stay when the
//! entry is applied. There is one per dot, filled by one link; other links that offer the same entry
//! are held until it is applied, or until the first link is lost and one of them goes on where it
//! stopped. A spool outlives its link and the process, and is found again by the entry's digest.
//!
//! Invariants:
//! - a link's entries are applied in the order in which they came, none passed over;
//! - all spools together are no longer than [`SPOOL_BYTES`](crate::limits::SPOOL_BYTES), except for a
//!   single larger one.

use std::collections::{BTreeMap, VecDeque};

use rusqlite::Connection;

use crate::{
    db::watch::Who,
    entry::{ChunksId, Entry, LargeEntry, LargeName, Logged},
    error::ProtocolError,
    id::PeerId,
    limits::SPOOL_TIMEOUT,
    log::{Log, chunks::ChunkError},
    replica::Replica,
    status::{Hold, HoldReason},
    testing::{Bug, planted},
    time::Instant,
    version::Dot,
};

/// Entries of one link that wait to be applied.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    entries: VecDeque<Arrived>,
    bytes: u64,
    /// The first entry, if it is from the future and the peer was told so.
    pub(super) held: Option<Dot>,
}

/// An entry at its place in a link's stream.
#[derive(Debug)]
pub(super) enum Arrived {
    Whole(Entry),
    /// It may still be on its way.
    Large(LargeName),
}

impl Incoming {
    /// Of the entries that are in memory.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn put(&mut self, entry: Arrived) {
        self.bytes += entry.bytes_in_memory();
        self.entries.push_back(entry);
    }

    pub(super) fn put_back(&mut self, entry: Arrived) {
        self.bytes += entry.bytes_in_memory();
        self.entries.push_front(entry);
    }

    pub(super) fn first(&self) -> Option<&Arrived> {
        self.entries.front()
    }

    pub(super) fn take(&mut self) -> Option<Arrived> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.bytes_in_memory();
        Some(entry)
    }
}

impl Arrived {
    fn bytes_in_memory(&self) -> u64 {
        match self {
            Self::Whole(entry) => entry.bytes.len() as u64,
            Self::Large(_) => 0,
        }
    }
}

impl From<Logged> for Arrived {
    fn from(entry: Logged) -> Self {
        match entry {
            Logged::Whole(entry) => Self::Whole(entry),
            Logged::Large(entry) => Self::Large(entry.name()),
        }
    }
}

/// All spools of a replica.
#[derive(Debug, Default)]
pub(crate) struct Spools {
    by_dot: BTreeMap<Dot, Spool>,
    /// Links that offer an entry for which there is no room.
    without: BTreeMap<PeerId, LargeName>,
}

/// What was received of one large entry.
#[derive(Debug)]
struct Spool {
    name: LargeName,
    chunks: ChunksId,
    received: u64,
    /// Received whole, and checked.
    complete: Option<LargeEntry>,
    sender: Option<PeerId>,
    /// Links that offer an entry of the same dot.
    held: BTreeMap<PeerId, LargeName>,
    /// Since when it has no sender.
    alone_since: Instant,
}

impl Spools {
    /// Finds the spools of a file that was just opened.
    pub(crate) fn find(conn: &Connection, log: &Log, now: Instant) -> rusqlite::Result<Self> {
        let mut spools = Self::default();
        for (name, chunks) in LargeName::all(conn)? {
            if log.head(name.dot.author).seq < name.dot.seq {
                let received = chunks.length(conn)?;
                spools.by_dot.insert(name.dot, Spool::new(name, chunks, received, now));
            }
        }
        Ok(spools)
    }

    /// The entry, if it was received whole.
    pub(super) fn complete(&self, name: &LargeName) -> Option<LargeEntry> {
        self.by_dot.get(&name.dot)?.complete
    }

    /// The link that fills it.
    pub(super) fn sender(&self, dot: Dot) -> Option<PeerId> {
        self.by_dot.get(&dot)?.sender
    }

    /// Whether there is one of this entry.
    pub(super) fn holds(&self, dot: Dot) -> bool {
        self.by_dot.contains_key(&dot)
    }

    /// When the first one is given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let alone = self.by_dot.values().filter(|spool| spool.sender.is_none());
        alone.map(|spool| spool.alone_since + SPOOL_TIMEOUT).min()
    }

    /// What a link is held for.
    pub(super) fn hold_of(&self, peer: PeerId) -> Option<Hold> {
        let elsewhere = self.by_dot.values().find(|spool| spool.held.contains_key(&peer));
        let elsewhere =
            elsewhere.map(|spool| Hold { dot: spool.name.dot, why: HoldReason::ReceivedElsewhere });
        let room = || self.without.get(&peer);
        elsewhere.or_else(|| room().map(|name| Hold { dot: name.dot, why: HoldReason::NoRoom }))
    }

    /// Bytes that all of them have, or will have.
    fn bytes(&self) -> u64 {
        self.by_dot.values().map(|spool| spool.name.length).sum()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.by_dot.len()
    }
}

impl Spool {
    const fn new(name: LargeName, chunks: ChunksId, received: u64, now: Instant) -> Self {
        let held = BTreeMap::new();
        Self { name, chunks, received, complete: None, sender: None, held, alone_since: now }
    }
}

impl Replica {
    /// A peer offers a large entry.
    pub(super) fn offered(&mut self, peer: PeerId, name: LargeName) -> Result<(), ProtocolError> {
        if Some(name.dot.author) == self.author && name.dot.seq > self.log.head(name.dot.author).seq
        {
            let ours = self.log.head(name.dot.author).seq;
            return Err(ProtocolError::LostState { theirs: name.dot, ours });
        }
        self.incoming.entry(peer).or_default().put(Arrived::Large(name));
        self.answer_offer(peer, name)
    }

    /// Takes, holds or passes over a large entry that a link offers.
    fn answer_offer(&mut self, peer: PeerId, name: LargeName) -> Result<(), ProtocolError> {
        let dot = name.dot;
        let head = self.log.head(dot.author);
        if head.seq >= dot.seq {
            if head.seq == dot.seq && head.digest != name.digest {
                return Err(ProtocolError::ForkedVector { dot });
            }
            self.say(peer, |session| session.resume(dot, name.length));
            return Ok(());
        }
        if self.is_open() {
            // Nothing can be written down now: as if there were no room.
            self.interactive.held_offers = true;
            self.spools.without.insert(peer, name);
            self.say(peer, |session| session.hold(dot));
            return Ok(());
        }
        let known = self.spools.by_dot.get(&dot);
        if known.is_none() && planted(Bug::SpoolOfAnother) {
            return self.take_spool_of_another(peer, name);
        }
        let other = known.is_some_and(|spool| spool.name != name);
        if other && known.is_some_and(|spool| spool.sender.is_none()) {
            // Nobody offers any more what was begun.
            self.remove_spool(dot)?;
        }
        let has_room = self.has_room_for(&name);
        match self.spools.by_dot.get_mut(&dot) {
            Some(spool) if spool.sender.is_none() => {
                spool.sender = Some(peer);
                let received = spool.received;
                self.say(peer, |session| session.resume(dot, received));
                if received == name.length { self.check_spool(dot) } else { Ok(()) }
            }
            Some(spool) => {
                spool.held.insert(peer, name);
                self.say(peer, |session| session.hold(dot));
                Ok(())
            }
            None if has_room => {
                self.writer.writes(Who::Apply)?;
                let conn = self.writer.apply();
                let chunks = ChunksId::unused(conn)?;
                name.put(conn, chunks)?;
                let spool = Spool::new(name, chunks, 0, self.now.mono);
                self.spools.by_dot.insert(dot, Spool { sender: Some(peer), ..spool });
                self.say(peer, |session| session.resume(dot, 0));
                Ok(())
            }
            None => {
                self.spools.without.insert(peer, name);
                self.say(peer, |session| session.hold(dot));
                Ok(())
            }
        }
    }

    /// The planted bug [`Bug::SpoolOfAnother`].
    fn take_spool_of_another(
        &mut self,
        peer: PeerId,
        name: LargeName,
    ) -> Result<(), ProtocolError> {
        self.writer.writes(Who::Apply)?;
        let conn = self.writer.apply();
        let chunks = ChunksId::unused(conn)?;
        let mut bytes = Vec::new();
        if let Some(other) = self.spools.by_dot.values().find(|spool| spool.sender.is_none()) {
            other.chunks.read(conn, 0, &mut bytes)?;
            bytes.truncate(usize::try_from(name.length - 1).unwrap_or(usize::MAX));
        }
        name.put(conn, chunks)?;
        if !bytes.is_empty() {
            chunks.put(conn, 0, &bytes)?;
        }
        let received = bytes.len() as u64;
        let spool = Spool::new(name, chunks, received, self.now.mono);
        self.spools.by_dot.insert(name.dot, Spool { sender: Some(peer), ..spool });
        self.say(peer, |session| session.resume(name.dot, received));
        Ok(())
    }

    fn has_room_for(&self, name: &LargeName) -> bool {
        let bytes = self.spools.bytes();
        bytes == 0 || bytes + name.length <= self.log.sizes().spool
    }

    /// Bytes of a large entry arrived, which were asked for.
    pub(super) fn chunk(
        &mut self,
        peer: PeerId,
        dot: Dot,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), ProtocolError> {
        let spool = self.spools.by_dot.get_mut(&dot).filter(|spool| spool.sender == Some(peer));
        let Some(spool) = spool.filter(|spool| spool.received == offset) else {
            return Err(ProtocolError::Malformed(format!("a chunk of {dot} nobody asked for")));
        };
        self.writer.writes(Who::Apply)?;
        spool.chunks.put(self.writer.apply(), offset, bytes)?;
        spool.received += bytes.len() as u64;
        let complete = spool.received == spool.name.length;
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.took(bytes.len() as u64);
        }
        if complete { self.check_spool(dot) } else { Ok(()) }
    }

    /// A spool holds all bytes of its entry: whether they are its. If not, it begins anew with
    /// another link, and the last one that sent bytes is closed.
    fn check_spool(&mut self, dot: Dot) -> Result<(), ProtocolError> {
        let Some(spool) = self.spools.by_dot.get_mut(&dot) else { return Ok(()) };
        match LargeEntry::verified(self.writer.apply(), &spool.name, spool.chunks) {
            Ok(entry) => {
                spool.complete = Some(entry);
                Ok(())
            }
            Err(ChunkError::Sqlite(error)) => Err(error.into()),
            Err(error) => {
                let others = std::mem::take(&mut spool.held);
                self.remove_spool(dot)?;
                self.offer_again(others);
                Err(ProtocolError::Malformed(format!("large entry {dot}: {error}")))
            }
        }
    }

    fn remove_spool(&mut self, dot: Dot) -> rusqlite::Result<()> {
        self.writer.writes(Who::Apply)?;
        let conn = self.writer.apply();
        conn.prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
        let removed = LargeName::remove(conn, dot);
        let end = if removed.is_ok() { "COMMIT" } else { "ROLLBACK" };
        conn.prepare_cached(end)?.raw_execute()?;
        self.discard(removed?);
        self.spools.by_dot.remove(&dot);
        Ok(())
    }

    /// Entries were applied: chunks of large ones are the log's now, and links held for them go on.
    pub(super) fn spools_applied<'e>(&mut self, entries: impl Iterator<Item = &'e Logged>) {
        if self.spools.by_dot.is_empty() {
            return;
        }
        let mut others = BTreeMap::new();
        for entry in entries {
            let dot = entry.header().dot;
            if self.log.head(dot.author).seq >= dot.seq
                && let Some(spool) = self.spools.by_dot.remove(&dot)
            {
                if matches!(entry, Logged::Whole(_)) {
                    self.discard([spool.chunks]);
                }
                others.extend(spool.held);
                let sender = spool.sender.filter(|_| spool.complete.is_none());
                others.extend(sender.map(|peer| (peer, spool.name)));
            }
        }
        self.offer_again(others);
        self.fill_room();
    }

    /// Answers again what links offered that were held.
    fn offer_again(&mut self, offers: BTreeMap<PeerId, LargeName>) {
        for (peer, name) in offers {
            if self.sessions.contains_key(&peer)
                && let Err(error) = self.answer_offer(peer, name)
            {
                self.refuse(peer, &error);
            }
        }
    }

    /// Answers links again for whose entries there was no room.
    pub(super) fn fill_room(&mut self) {
        let without = std::mem::take(&mut self.spools.without);
        self.offer_again(without);
    }

    /// A link is gone: another one that is held for the same entry goes on.
    pub(super) fn spools_without(&mut self, peer: PeerId) {
        self.spools.without.remove(&peer);
        let mut others = BTreeMap::new();
        for spool in self.spools.by_dot.values_mut() {
            spool.held.remove(&peer);
            if spool.sender.take_if(|sender| *sender == peer).is_some() {
                spool.alone_since = self.now.mono;
                others.extend(std::mem::take(&mut spool.held));
            }
        }
        self.offer_again(others);
    }

    /// Gives up spools that nobody fills.
    pub(super) fn serve_spools(&mut self) {
        let now = self.now.mono;
        let given_up: Vec<Dot> = self
            .spools
            .by_dot
            .iter()
            .filter(|(_, spool)| spool.sender.is_none() && now >= spool.alone_since + SPOOL_TIMEOUT)
            .map(|(dot, _)| *dot)
            .collect();
        if given_up.is_empty() || self.storage.retry_at.is_some() || self.is_open() {
            return;
        }
        for dot in given_up {
            if let Err(error) = self.remove_spool(dot) {
                return self.storage_fails(error.to_string());
            }
        }
        self.fill_room();
    }

    fn say(&mut self, peer: PeerId, what: impl FnOnce(&mut crate::protocol::PeerSession)) {
        if let Some(session) = self.sessions.get_mut(&peer) {
            what(session);
        }
    }
}
