//! Snapshots: offered to peers that have too little for the log, and taken from one by a node that is
//! told so.
//!
//! Invariants:
//! - a snapshot leaves this node only when everything in it is on stable storage;
//! - who asks in order to join gets one that holds its `Join`, so that it writes under its own author id
//!   as soon as it has opened it;
//! - one snapshot at a time is sent, to any number of peers, and one received.

use crate::{
    db::Snapshot,
    driver::{CloseCode, Output},
    entry::Digest,
    error::ProtocolError,
    id::{Lsn, PeerId},
    limits::{SNAPSHOT_FROM_ENTRIES, SNAPSHOT_KEPT, SNAPSHOT_SYNC_BYTES},
    protocol::{
        message::Message,
        snapshot::{Sending, Wish},
    },
    replica::Replica,
    schema::catalog,
    testing::{Bug, planted},
    time::Instant,
    value::{ByteReader, put_varint},
    version::VersionVector,
};

/// What is offered to others.
#[derive(Debug, Default)]
pub(super) struct Sponsor {
    offer: Offer,
    used: Instant,
}

#[derive(Debug, Default)]
enum Offer {
    #[default]
    None,
    /// The driver copies the file; everything up to the position is in it.
    Taking { from: Lsn },
    /// There is one: everything up to `from` is in it, and nothing behind `upto`.
    Taken { snapshot: Snapshot, from: Lsn, upto: Lsn },
}

/// What is taken from others.
#[derive(Debug, Default)]
pub(super) struct Fetching {
    state: Fetch,
    /// What stands on this node's disk of a snapshot already, synced.
    progress: Option<Progress>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Fetch {
    #[default]
    Idle,
    Asked(PeerId),
    Receiving {
        peer: PeerId,
        snapshot: Snapshot,
        /// Where the next piece begins.
        next: u64,
    },
    /// The driver puts it in place of the file, and opens the replica again.
    Installing,
}

/// A snapshot that was received in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) snapshot: Snapshot,
    pub(crate) upto: u64,
}

impl Progress {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.snapshot.digest.0.to_vec();
        put_varint(&mut out, self.snapshot.bytes);
        put_varint(&mut out, self.upto);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = ByteReader::new(bytes);
        let digest = Digest(reader.array().ok()?);
        let snapshot = Snapshot { digest, bytes: reader.varint().ok()? };
        Some(Self { snapshot, upto: reader.varint().ok()? })
    }
}

impl Fetching {
    pub(super) fn from(progress: Option<Progress>) -> Self {
        Self { state: Fetch::Idle, progress }
    }
}

impl Replica {
    /// Whether a peer with this vector must take a snapshot before anything is streamed to it.
    pub(super) fn is_too_little(&self, vector: &VersionVector) -> bool {
        let empty = vector.iter().next().is_none();
        empty && self.log.last().0 > SNAPSHOT_FROM_ENTRIES
    }

    pub(super) fn serve_snapshots(&mut self) -> bool {
        if self.halted.is_some() {
            return false;
        }
        self.send_pieces();
        self.grant_wishes();
        self.fetch();
        !self.outputs.is_empty()
    }

    pub(super) fn snapshot_deadline(&self) -> Option<Instant> {
        let idle = matches!(self.sponsor.offer, Offer::Taken { .. }) && !self.is_sending();
        idle.then_some(self.sponsor.used + SNAPSHOT_KEPT)
    }

    // --- Sending

    fn is_sending(&self) -> bool {
        self.sessions.values().any(|session| session.sending.is_some())
    }

    fn send_pieces(&mut self) {
        for (peer, session) in &mut self.sessions {
            let Some(sending) = &mut session.sending else { continue };
            self.sponsor.used = self.now.mono;
            while let Some((offset, bytes)) = sending.next_piece() {
                self.outputs.push_back(Output::ReadSnapshot { peer: *peer, offset, bytes });
            }
        }
        if self.snapshot_deadline().is_some_and(|at| self.now.mono >= at) {
            self.sponsor.offer = Offer::None;
            self.outputs.push_back(Output::DiscardSnapshot);
        }
    }

    fn grant_wishes(&mut self) {
        for peer in self.sessions.keys().copied().collect::<Vec<_>>() {
            let Some(wish) = self.sessions.get(&peer).and_then(|session| session.wish) else {
                continue;
            };
            match self.needed_for(peer, wish) {
                Ok(Some(needed)) => self.grant(peer, wish, needed),
                Ok(None) => {}
                Err(error) => self.refuse(peer, &error),
            }
        }
    }

    /// Up to where the log must be in a snapshot for a peer; `None` if that is not known yet.
    fn needed_for(&self, peer: PeerId, wish: Wish) -> Result<Option<Lsn>, ProtocolError> {
        if !wish.joins || planted(Bug::EarlySnapshot) {
            return Ok(Some(Lsn(0)));
        }
        let incarnation = self.sessions.get(&peer).and_then(|session| session.incarnation);
        let Some((member, at)) = incarnation.and_then(|life| self.member_since(life)) else {
            return Ok(None);
        };
        let seq = self.log.head(member.author).seq;
        if seq > 0 {
            // It has written, and knows nothing of it.
            return Err(ProtocolError::LostFile { author: member.author, seq });
        }
        Ok((self.durable.lsn >= at).then_some(at))
    }

    fn grant(&mut self, peer: PeerId, wish: Wish, needed: Lsn) {
        match self.sponsor.offer {
            Offer::Taken { snapshot, from, upto } if from >= needed => {
                if self.durable.lsn < upto && !planted(Bug::SendUnsynced) {
                    return;
                }
                let begins = match wish.has {
                    Some((digest, bytes)) if digest == snapshot.digest.0 => {
                        bytes.min(snapshot.bytes)
                    }
                    _ => 0,
                };
                let Some(session) = self.sessions.get_mut(&peer) else { return };
                session.wish = None;
                let Snapshot { digest, bytes } = snapshot;
                session.say(&Message::Snapshot(digest.0, bytes, begins));
                session.sending = (begins < bytes).then(|| Sending::new(bytes, begins));
                self.sponsor.used = self.now.mono;
                self.send_pieces();
            }
            Offer::None => self.take_snapshot(),
            // Those who take the one there is are let finish.
            Offer::Taken { .. } if !self.is_sending() => self.take_snapshot(),
            Offer::Taken { .. } | Offer::Taking { .. } => {}
        }
    }

    fn take_snapshot(&mut self) {
        self.sponsor.offer = Offer::Taking { from: self.log.last() };
        self.outputs.push_back(Output::TakeSnapshot);
    }

    pub(super) fn snapshot_taken(&mut self, result: Result<Snapshot, String>) {
        let Offer::Taking { from } = self.sponsor.offer else { return };
        match result {
            Ok(snapshot) => {
                let upto = self.log.last();
                self.sponsor = Sponsor {
                    offer: Offer::Taken { snapshot, from, upto },
                    used: self.now.mono,
                };
            }
            Err(error) => {
                self.sponsor.offer = Offer::None;
                let wishing = self.sessions.values().filter(|session| session.wish.is_some());
                for peer in wishing.map(|session| session.peer).collect::<Vec<_>>() {
                    let reason = format!("no snapshot can be taken: {error}");
                    self.close_link(peer, CloseCode::Storage, reason);
                }
            }
        }
    }

    pub(super) fn snapshot_read(
        &mut self,
        peer: PeerId,
        offset: u64,
        bytes: Result<Vec<u8>, String>,
    ) {
        let Some(session) = self.sessions.get_mut(&peer) else { return };
        match bytes {
            Ok(bytes) => session.send_chunk(offset, &bytes),
            Err(error) => {
                let reason = format!("the snapshot cannot be read: {error}");
                self.sponsor.offer = Offer::None;
                self.close_link(peer, CloseCode::Storage, reason);
            }
        }
    }

    // --- Receiving

    /// A peer says that we have too little for its log.
    pub(super) fn told_snapshot_first(&mut self) {
        if self.author.is_some() {
            self.stop_links(
                "a peer has trimmed entries that this member has not: its file is an old copy, or it \
                 was cut from the cluster. Start the node again with an empty directory and a new \
                 incarnation"
                    .to_owned(),
            );
        }
    }

    fn fetch(&mut self) {
        if self.fetching.state != Fetch::Idle || self.storage.error.is_some() {
            return;
        }
        let mut offering = self.sessions.values_mut().filter(|s| s.says_snapshot_first);
        let Some(session) = offering.next() else { return };
        let has = self.fetching.progress.map(|got| (got.snapshot.digest.0, got.upto));
        session.say(&Message::AskSnapshot(!self.read_only, has));
        self.fetching.state = Fetch::Asked(session.peer);
    }

    /// A peer tells what follows.
    pub(super) fn snapshot_offered(
        &mut self,
        peer: PeerId,
        snapshot: Snapshot,
        from: u64,
    ) -> Result<(), ProtocolError> {
        let has = match self.fetching.progress {
            Some(got) if got.snapshot == snapshot => got.upto,
            _ => 0,
        };
        if self.fetching.state != Fetch::Asked(peer) || ![0, has].contains(&from) {
            return Err(ProtocolError::Malformed("a snapshot that nobody asked for".to_owned()));
        }
        if from < snapshot.bytes {
            self.fetching.state = Fetch::Receiving { peer, snapshot, next: from };
        } else {
            self.install(snapshot);
        }
        Ok(())
    }

    /// A piece of it.
    pub(super) fn snapshot_piece(
        &mut self,
        from: PeerId,
        offset: u64,
        bytes: Vec<u8>,
    ) -> Result<(), ProtocolError> {
        let end = offset.saturating_add(bytes.len() as u64);
        match &mut self.fetching.state {
            Fetch::Receiving { peer, snapshot, next }
                if *peer == from && *next == offset && end <= snapshot.bytes =>
            {
                *next = end;
                let sync = end == snapshot.bytes
                    || end / SNAPSHOT_SYNC_BYTES > offset / SNAPSHOT_SYNC_BYTES;
                self.outputs.push_back(Output::WriteSnapshot { peer: from, offset, bytes, sync });
                Ok(())
            }
            _ => Err(ProtocolError::Malformed("a piece of a snapshot out of place".to_owned())),
        }
    }

    pub(super) fn snapshot_written(
        &mut self,
        from: PeerId,
        upto: u64,
        result: Result<bool, String>,
    ) {
        let Fetch::Receiving { peer, snapshot, .. } = self.fetching.state else { return };
        if peer != from {
            return;
        }
        let synced = result.and_then(|synced| {
            if synced {
                let progress = Progress { snapshot, upto };
                let conn = self.writer.apply();
                catalog::set_meta(conn, catalog::INCOMING, progress.encode())
                    .map_err(|error| error.to_string())?;
                self.fetching.progress = Some(progress);
            }
            Ok(())
        });
        if let Err(error) = synced {
            self.storage_fails(error.clone());
            return self.close_link(peer, CloseCode::Storage, error);
        }
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.say(&Message::SnapshotCredit(upto));
        }
        if upto == snapshot.bytes {
            self.install(snapshot);
        }
    }

    fn install(&mut self, snapshot: Snapshot) {
        self.fetching.state = Fetch::Installing;
        self.outputs.push_back(Output::InstallSnapshot(snapshot));
    }

    /// A link is gone, and what was received on it ends.
    pub(super) fn stop_fetching_from(&mut self, from: PeerId) {
        match self.fetching.state {
            Fetch::Asked(peer) | Fetch::Receiving { peer, .. } if peer == from => {
                self.fetching.state = Fetch::Idle;
            }
            _ => {}
        }
    }
}
