//! Snapshots: offered to peers that have too little for the log, and taken from one by a node that is
//! told so.
//!
//! Invariants:
//! - a snapshot leaves this node only when everything in it is on stable storage;
//! - who asks in order to join gets one that holds its `Join`, so that it writes under its own author id
//!   as soon as it has opened it;
//! - one snapshot at a time is sent, to any number of peers, and one received.

use std::mem;

use crate::{
    db::{PieceWritten, Snapshot, watch::Who},
    driver::{CloseCode, Output},
    entry::Digest,
    error::ProtocolError,
    id::{Lsn, PeerId},
    limits::{
        SNAPSHOT_CHUNK_BYTES, SNAPSHOT_FROM_ENTRIES, SNAPSHOT_KEPT, SNAPSHOT_SYNC_BYTES,
        SNAPSHOT_WINDOW_BYTES,
    },
    protocol::{
        frame::Piece,
        message::{Message, wire_vector},
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
    /// How many were taken since the file was opened.
    taken: u64,
}

#[derive(Debug, Default)]
enum Offer {
    #[default]
    None,
    /// The driver copies the file; everything up to the position, and in the vector, is in it.
    Taking { from: Lsn, vector: VersionVector },
    /// There is one; nothing behind `upto` is in it.
    Taken { snapshot: Snapshot, from: Lsn, vector: VersionVector, upto: Lsn },
}

/// What is taken from others.
#[derive(Debug, Default)]
pub(super) struct Fetching {
    state: Fetch,
    /// What stands on this node's disk of a snapshot already, synced.
    progress: Option<Progress>,
    /// Pieces that came before what they are was told: streams are not ordered among each other.
    early: Vec<Piece>,
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
    /// From where on the rest is asked for: the last piece always, since its digest is that of the whole.
    fn resumes_at(&self) -> u64 {
        let chunk = SNAPSHOT_CHUNK_BYTES as u64;
        self.upto.min(self.snapshot.bytes.saturating_sub(1) / chunk * chunk)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.snapshot.name.0.to_vec();
        put_varint(&mut out, self.snapshot.bytes);
        put_varint(&mut out, self.upto);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = ByteReader::new(bytes);
        let name = Digest(reader.array().ok()?);
        let snapshot = Snapshot { name, bytes: reader.varint().ok()? };
        Some(Self { snapshot, upto: reader.varint().ok()? })
    }
}

impl Fetching {
    pub(super) fn from(progress: Option<Progress>) -> Self {
        Self { state: Fetch::Idle, progress, early: Vec::new() }
    }
}

impl Replica {
    /// Whether a peer with this vector must take a snapshot before anything is streamed to it.
    pub(super) fn is_too_little(&self, vector: &VersionVector) -> bool {
        let empty = vector.iter().next().is_none();
        let long = self.log.last().0 > SNAPSHOT_FROM_ENTRIES;
        (empty && long) || !vector.covers_all(&self.log.start().vector)
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
            let session = self.sessions.get(&peer);
            let Some(wish) = session.and_then(|session| session.wish.clone()) else { continue };
            match self.needed_for(peer, &wish) {
                Ok(Some(needed)) => self.grant(peer, &wish, needed),
                Ok(None) => {}
                Err(error) => self.refuse(peer, &error),
            }
        }
    }

    /// Up to where the log must be in a snapshot for a peer; `None` if that is not known yet.
    fn needed_for(&self, peer: PeerId, wish: &Wish) -> Result<Option<Lsn>, ProtocolError> {
        if !self.log.vector().covers_all(&wish.vector) {
            return Ok(None);
        }
        if !wish.joins || planted(Bug::EarlySnapshot) {
            // What is streamed behind it must still be there.
            return Ok(Some(self.log.start().lsn));
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
        Ok((self.durable.lsn >= at).then_some(at.max(self.log.start().lsn)))
    }

    fn grant(&mut self, peer: PeerId, wish: &Wish, needed: Lsn) {
        match &self.sponsor.offer {
            Offer::Taken { snapshot, from, vector, upto }
                if *from >= needed && vector.covers_all(&wish.vector) =>
            {
                let (snapshot, upto) = (*snapshot, *upto);
                if self.durable.lsn < upto && !planted(Bug::SendUnsynced) {
                    return;
                }
                let Snapshot { name, bytes } = snapshot;
                let begins = match wish.has {
                    Some((had, upto)) if had == name.0 && upto < bytes => upto,
                    _ => 0,
                };
                let Some(session) = self.sessions.get_mut(&peer) else { return };
                session.wish = None;
                session.say(&Message::Snapshot(name.0, bytes, begins));
                session.sending = Some(Sending::new(bytes, begins));
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
        self.sponsor.taken += 1;
        let name = format!(
            "{} {} {} {}",
            self.identity.incarnation,
            self.now.wall,
            self.log.last(),
            self.sponsor.taken
        );
        self.sponsor.offer = Offer::Taking { from: self.log.last(), vector: self.log.vector() };
        self.outputs.push_back(Output::TakeSnapshot(Digest::of(name.as_bytes())));
    }

    pub(super) fn snapshot_taken(&mut self, result: Result<Snapshot, String>) {
        if !matches!(self.sponsor.offer, Offer::Taking { .. }) {
            return;
        }
        let Offer::Taking { from, vector } = mem::take(&mut self.sponsor.offer) else { return };
        match result {
            Ok(snapshot) => {
                let upto = self.log.last();
                self.sponsor.offer = Offer::Taken { snapshot, from, vector, upto };
                self.sponsor.used = self.now.mono;
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

    pub(super) fn snapshot_read(&mut self, peer: PeerId, piece: Result<Piece, String>) {
        let Some(session) = self.sessions.get_mut(&peer) else { return };
        match piece {
            Ok(piece) => session.send_piece(piece),
            Err(error) => {
                let reason = format!("the snapshot cannot be read: {error}");
                self.sponsor.offer = Offer::None;
                self.close_link(peer, CloseCode::Storage, reason);
            }
        }
    }

    // --- Receiving

    /// What of a snapshot is on stable storage, and how much it is in all.
    pub(super) fn receiving(&self) -> Option<(u64, u64)> {
        match self.fetching.state {
            Fetch::Receiving { snapshot, .. } => {
                let progress = self.fetching.progress.filter(|got| got.snapshot == snapshot);
                Some((progress.map_or(0, |got| got.upto), snapshot.bytes))
            }
            _ => None,
        }
    }

    /// Whether a peer that is told so may be right: it judged by what we had at our `Hello`, and we may
    /// have got more from others since.
    pub(super) fn told_snapshot_first(&mut self, peer: PeerId) {
        if self.author.is_some() || (!self.lacks_trimmed_of(peer) && !self.is_empty()) {
            // The next handshake shows what we have now.
            self.close_link(
                peer,
                CloseCode::TooOld,
                "asking again with what is here now".to_owned(),
            );
        }
    }

    fn is_empty(&self) -> bool {
        self.log.last() == Lsn(0)
    }

    fn lacks_trimmed_of(&self, peer: PeerId) -> bool {
        let session = self.sessions.get(&peer);
        session.is_some_and(|session| !self.log.vector().covers_all(&session.trimmed))
    }

    /// At the handshake: a member never lacks what others have trimmed.
    pub(super) fn check_trimmed(&mut self, trimmed: &VersionVector) -> Result<(), ProtocolError> {
        if self.author.is_some() && !self.log.vector().covers_all(trimmed) {
            return Err(ProtocolError::LeftBehind);
        }
        Ok(())
    }

    /// While a snapshot is fetched nothing is applied: it must hold all that is here when it takes the
    /// file's place.
    pub(super) fn is_fetching(&self) -> bool {
        self.fetching.state != Fetch::Idle
    }

    fn fetch(&mut self) {
        if self.fetching.state != Fetch::Idle || self.storage.error.is_some() {
            return;
        }
        if self.author.is_some() {
            return;
        }
        let offering = self.sessions.values().filter(|session| {
            session.says_snapshot_first && (self.is_empty() || self.lacks_trimmed_of(session.peer))
        });
        let Some(peer) = offering.map(|session| session.peer).next() else { return };
        let vector = wire_vector(&self.log.vector());
        let Some(session) = self.sessions.get_mut(&peer) else { return };
        let has = self.fetching.progress.map(|got| (got.snapshot.name.0, got.resumes_at()));
        session.say(&Message::AskSnapshot(!self.read_only, vector, has));
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
            Some(got) if got.snapshot == snapshot => got.resumes_at(),
            _ => 0,
        };
        let fits = from < snapshot.bytes && [0, has].contains(&from);
        if self.fetching.state != Fetch::Asked(peer) || !fits {
            return Err(ProtocolError::Malformed("a snapshot that nobody asked for".to_owned()));
        }
        self.fetching.state = Fetch::Receiving { peer, snapshot, next: from };
        let early = mem::take(&mut self.fetching.early);
        early.into_iter().try_for_each(|piece| self.snapshot_piece(peer, piece))
    }

    /// A piece of it.
    pub(super) fn snapshot_piece(
        &mut self,
        from: PeerId,
        piece: Piece,
    ) -> Result<(), ProtocolError> {
        let (offset, end) = (piece.offset(), piece.end());
        let early = self.fetching.early.iter().map(|piece| piece.bytes().len() as u64).sum::<u64>();
        match &mut self.fetching.state {
            Fetch::Asked(peer) if *peer == from && early < SNAPSHOT_WINDOW_BYTES => {
                self.fetching.early.push(piece);
                Ok(())
            }
            Fetch::Receiving { peer, snapshot, next }
                if *peer == from && *next == offset && end <= snapshot.bytes =>
            {
                *next = end;
                let sync = end == snapshot.bytes
                    || end / SNAPSHOT_SYNC_BYTES > offset / SNAPSHOT_SYNC_BYTES;
                self.outputs.push_back(Output::WriteSnapshot { peer: from, piece, sync });
                Ok(())
            }
            _ => Err(ProtocolError::Malformed("a piece of a snapshot out of place".to_owned())),
        }
    }

    pub(super) fn snapshot_written(
        &mut self,
        from: PeerId,
        upto: u64,
        result: Result<PieceWritten, String>,
    ) {
        let Fetch::Receiving { peer, snapshot, .. } = self.fetching.state else { return };
        if peer != from {
            return;
        }
        let noted = match result.clone() {
            Ok(PieceWritten::Written) => Ok(()),
            Ok(PieceWritten::Synced) => self.note_progress(Some(Progress { snapshot, upto })),
            Ok(PieceWritten::Damaged) => self.note_progress(None),
            Err(error) => Err(error),
        };
        if let Err(error) = noted {
            self.storage_fails(error.clone());
            return self.close_link(peer, CloseCode::Storage, error);
        }
        if result == Ok(PieceWritten::Damaged) {
            let reason =
                format!("what has come of a snapshot up to byte {upto} is not what was sent");
            return self.close_link(peer, CloseCode::Malformed, reason);
        }
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.say(&Message::SnapshotCredit(upto));
        }
        if upto == snapshot.bytes {
            self.install(snapshot);
        }
    }

    /// Notes in the file what of a snapshot is synced, so that a crash does not begin it again.
    fn note_progress(&mut self, progress: Option<Progress>) -> Result<(), String> {
        let conn = self.writer.apply();
        self.writer
            .writes(Who::Apply)
            .and_then(|()| match &progress {
                Some(progress) => catalog::set_meta(conn, catalog::INCOMING, progress.encode()),
                None => catalog::remove_meta(conn, catalog::INCOMING),
            })
            .map_err(|error| error.to_string())?;
        self.fetching.progress = progress;
        Ok(())
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
                self.fetching.early.clear();
            }
            _ => {}
        }
    }
}
