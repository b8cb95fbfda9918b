//! Links: their handshakes, what is sent on them, and how they end.

use rusqlite::Connection;

use crate::{
    db::{authorizer::Origin, watch::Who},
    driver::{CloseCode, Event, Identity, Output},
    entry::{Digest, Entry, codec::Head},
    error::ProtocolError,
    id::{AuthorId, Lsn, NodeId, PeerId},
    limits::{KEEP_ALIVE, UNAPPLIED_BYTES_MAX, WATERMARK_INTERVAL},
    log::{Log, LogError},
    protocol::{
        PeerSession, Received, check_hello,
        message::{Hello, Message, Register, begins_with},
    },
    replica::{Replica, holds::Arrived, is_storage_failure},
    schema::catalog,
    testing::{Bug, planted},
    version::{Dot, VersionVector},
};

impl Replica {
    pub(super) fn peer_up(&mut self, peer: PeerId, node: NodeId) {
        if let Some(why) = self.halted.clone() {
            self.outputs.push_back(Output::Close { peer, code: CloseCode::Halted, reason: why });
            return;
        }
        let mut hello = Hello::new(
            &self.identity,
            self.log.heads(),
            self.register.as_ref(),
            self.registry.version,
            &self.log.start().vector,
            self.contested.stable().number,
        );
        let lives = self.members.iter().filter(|member| member.node == node);
        hello.yours = lives
            .map(|life| (life.incarnation.0, life.author.to_u64(), self.log.head(life.author).seq))
            .collect();
        let mut session = PeerSession::new(peer, node, self.now.mono, hello);
        if !self.is_origin() {
            session.ping_every = WATERMARK_INTERVAL;
        }
        session.is_reconnect = !self.linked.insert(session.node.clone());
        self.sessions.insert(peer, session);
    }

    pub(super) fn received(
        &mut self,
        peer: PeerId,
        received: Received,
    ) -> Result<(), ProtocolError> {
        let Some(received) = self.defer(peer, received) else { return Ok(()) };
        match received {
            Received::Nothing => Ok(()),
            Received::Entries(entries) => self.queue(peer, entries),
            Received::Large(name) => self.offered(peer, name),
            Received::Chunk(dot, offset, bytes) => self.chunk(peer, dot, offset, &bytes),
            Received::Hello(hello) => self.hello(peer, &hello),
            Received::AskJoin(node, incarnation) => self.asked_to_join(peer, node, incarnation),
            Received::SnapshotFirst => {
                self.told_snapshot_first(peer);
                Ok(())
            }
            // Granted in the drain that follows, or when there is one to give.
            Received::AskSnapshot => Ok(()),
            Received::Snapshot(snapshot, from) => self.snapshot_offered(peer, snapshot, from),
            Received::Piece(piece) => self.snapshot_piece(peer, piece),
            Received::Ask(token, question) => self.asked(peer, token, &question),
            Received::Answer(token, answer) => {
                self.answered(peer, token, answer);
                Ok(())
            }
            Received::Distance(distance) => {
                self.hear_distance(peer, distance);
                Ok(())
            }
            Received::Carry(token, carried) => self.asked_to_carry(peer, token, carried),
            Received::Reply(token, reply) => self.reply_came(peer, token, reply),
            Received::Ping(token) => {
                let origin = self.origin_time();
                if let Some(session) = self.sessions.get_mut(&peer) {
                    session.answer_ping(token, origin);
                }
                self.tell_watermark(peer, token);
                Ok(())
            }
            Received::Watermark(asked, age, vector) => {
                self.hear_watermark(asked, age, &vector);
                Ok(())
            }
            Received::Time(round_trip, told) => {
                self.corrected.learn(self.now.mono, round_trip, told);
                Ok(())
            }
            Received::Acks(acks) => {
                self.hear_acks(peer, acks);
                Ok(())
            }
        }
    }

    pub(super) fn queue(&mut self, peer: PeerId, entries: Vec<Entry>) -> Result<(), ProtocolError> {
        let incoming = self.incoming.entry(peer).or_default();
        entries.into_iter().for_each(|entry| incoming.put(Arrived::Whole(entry)));
        if incoming.bytes() > UNAPPLIED_BYTES_MAX {
            return Err(ProtocolError::TooMuch);
        }
        Ok(())
    }

    pub(super) fn hello(&mut self, peer: PeerId, hello: &Hello) -> Result<(), ProtocolError> {
        let Some(session) = self.sessions.get(&peer) else { return Ok(()) };
        let node = session.node.clone();
        let them = check_hello(&self.identity, &node, hello)?;
        if let Some(theirs) = hello.knows_of(self.identity.incarnation) {
            let ours = self.log.head(theirs.author).seq;
            if theirs.seq > ours {
                return Err(ProtocolError::LostState { theirs, ours });
            }
        }
        for (dot, prefix) in hello.heads() {
            self.compare(dot, prefix)?;
        }
        if let Some(register) = &hello.register
            && self.register.as_ref().is_none_or(|ours| register.version > ours.version)
        {
            self.obey(register)?;
        }
        self.close_replaced(peer, &node);
        let vector = hello.vector();
        let too_little = self.is_too_little(&vector);
        let trimmed = hello.trimmed();
        self.check_trimmed(&trimmed)?;
        let lacks_trimmed = !self.log.vector().covers_all(&trimmed);
        let cursor = match self.sessions.get(&peer) {
            Some(session) if session.is_reconnect && planted(Bug::RelayForgotten) => {
                self.durable.lsn.next()
            }
            _ => self.log.start_for(&vector),
        };
        let Some(session) = self.sessions.get_mut(&peer) else { return Ok(()) };
        session.incarnation = Some(them.incarnation);
        session.needs_snapshot = too_little;
        session.says_snapshot_first |= lacks_trimmed;
        session.trimmed = trimmed;
        let early = session.start_streaming(vector, cursor)?;
        if too_little {
            session.say(&Message::SnapshotFirst);
        }
        self.ask_to_join(peer);
        self.requests_move_to(peer, &node);
        self.outputs.push_back(Output::Event(Event::Streaming { peer, node }));
        early.into_iter().try_for_each(|received| self.received(peer, received))
    }

    /// Compares the newest entry that a peer has of an author with ours.
    pub(super) fn compare(&self, theirs: Dot, prefix: [u8; 8]) -> Result<(), ProtocolError> {
        let Head { seq, .. } = self.log.head(theirs.author);
        if theirs.seq > seq {
            if Some(theirs.author) == self.author {
                return Err(ProtocolError::LostState { theirs, ours: seq });
            }
            return Ok(());
        }
        let ours: Option<Digest> =
            self.log.digest_of(self.writer.apply(), theirs).map_err(|error| match error {
                LogError::Sqlite(error) => ProtocolError::Storage(error),
                LogError::Damaged { .. } => ProtocolError::Halted(error.to_string()),
            })?;
        match ours {
            Some(digest) if !begins_with(&digest, prefix) => {
                Err(ProtocolError::ForkedVector { dot: theirs })
            }
            _ => Ok(()),
        }
    }

    /// Takes a newer version of the control register, and keeps it before anything follows from it.
    pub(super) fn obey(&mut self, register: &Register) -> Result<(), ProtocolError> {
        if register.version > 0 || register.origin_author() != AuthorId::FIRST {
            return Err(ProtocolError::Incompatible(format!(
                "version {} of the control register; this node knows only the first",
                register.version
            )));
        }
        let before = self.register.replace(register.clone());
        if self.is_open() {
            // Nothing follows from the first version that would not follow if it were told again.
            self.interactive.register_due = true;
        } else if let Err(error) = self.keep_register() {
            self.register = before;
            return Err(error.into());
        }
        self.db.published().origin(self.is_origin());
        self.writer.learn_origin(origin_seen_by(self.register.as_ref(), &self.identity));
        Ok(())
    }

    /// Writes the control register down.
    pub(super) fn keep_register(&self) -> rusqlite::Result<()> {
        let Some(register) = &self.register else { return Ok(()) };
        self.writer.writes(Who::Apply)?;
        catalog::set_meta(self.writer.apply(), "register", register.encode())
    }

    pub(super) fn is_origin(&self) -> bool {
        self.register.as_ref().is_some_and(|register| register.is_origin(&self.identity))
    }

    /// Closes older links to the same node. If both nodes dial at the same moment and each closed the
    /// link it made first, none would be left: of two that are as new, the node with the smaller name
    /// closes one.
    pub(super) fn close_replaced(&mut self, newest: PeerId, node: &NodeId) {
        let decides = (self.identity.node < *node && !planted(Bug::BothLinksKept))
            || planted(Bug::BothLinksClosed);
        let is_old = |since| self.now.mono >= since + KEEP_ALIVE;
        let replaced: Vec<PeerId> = self
            .sessions
            .values()
            .filter(|s| s.peer != newest && s.node == *node && (decides || is_old(s.since)))
            .map(|session| session.peer)
            .collect();
        for peer in replaced {
            self.refuse(peer, &ProtocolError::Replaced);
        }
    }

    pub(super) fn serve_links(&mut self) -> bool {
        self.serve_spools();
        self.serve_holds();
        self.push_entries();
        self.tell_distances();
        let mut failed = Vec::new();
        let told = self.acknowledged();
        for (peer, session) in &mut self.sessions {
            if let Err(error) = session.tick(self.now.mono, &told, &self.acks) {
                failed.push((*peer, error));
            }
            while let Some((channel, bytes)) = session.take_frame() {
                self.outputs.push_back(Output::Send { peer: *peer, channel, bytes });
            }
        }
        for (peer, error) in failed {
            self.refuse(peer, &error);
        }
        !self.outputs.is_empty()
    }

    pub(super) fn push_entries(&mut self) {
        let upto = if planted(Bug::SendUnsynced) { self.log.last() } else { self.durable.lsn };
        let mut broken = None;
        for peer in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.author_of(peer);
        }
        let mut too_old = Vec::new();
        for session in self.sessions.values_mut() {
            if session.needs_snapshot {
                continue;
            }
            let heard = session.author.and_then(|author| self.acks.of(author));
            let heard = heard.map(|(vector, _)| vector);
            if session.is_streaming() && !session.skip_trimmed(self.log.start(), heard) {
                too_old.push(session.peer);
                continue;
            }
            if let Err(error) = push(&self.log, self.writer.apply(), session, upto) {
                broken = Some(error);
                break;
            }
        }
        for peer in too_old {
            let trimmed = self.log.start().vector.clone();
            self.refuse(peer, &ProtocolError::TooOld { trimmed });
        }
        match broken {
            None => {}
            Some(LogError::Sqlite(error)) if is_storage_failure(&error) => {
                self.storage_fails(error.to_string());
            }
            Some(error) => self.halt(error.to_string()),
        }
    }

    /// What peers are told that this node holds.
    pub(super) fn acknowledged(&self) -> VersionVector {
        if planted(Bug::AckUnsynced) { self.log.vector() } else { self.durable.vector.clone() }
    }

    /// A peer broke the protocol, or its link has to end.
    pub(super) fn refuse(&mut self, peer: PeerId, error: &ProtocolError) {
        match error {
            ProtocolError::Undecodable(_) | ProtocolError::LeftBehind => {
                return self.stop_links(error.to_string());
            }
            ProtocolError::LostState { theirs, .. } => {
                self.close_link(peer, error.code(), error.to_string());
                return self.lost_state(*theirs);
            }
            ProtocolError::Storage(failure) => self.storage_fails(failure.to_string()),
            _ => {}
        }
        let theirs = !matches!(
            error,
            ProtocolError::TimedOut | ProtocolError::Replaced | ProtocolError::Storage(_)
        );
        if theirs {
            self.counts.links_refused += 1;
            tracing::warn!(node = %self.identity.node, peer = peer.0, %error, "link refused");
        }
        self.close_link(peer, error.code(), error.to_string());
    }

    pub(super) fn close_link(&mut self, peer: PeerId, code: CloseCode, reason: String) {
        self.forget(peer);
        self.outputs.push_back(Output::Close { peer, code, reason });
    }

    pub(super) fn forget(&mut self, peer: PeerId) {
        let author = self.author_of(peer);
        if let Some(session) = self.sessions.remove(&peer) {
            if let Some(author) = author {
                self.acks.was_linked(author, session.last_heard);
            }
            self.requests_without(session);
        }
        self.incoming.remove(&peer);
        self.stop_fetching_from(peer);
        self.stop_comparing_with(peer);
        self.spools_without(peer);
    }
}

/// Sends on one link what its peer lacks up to `upto`, as far as there is credit.
fn push(
    log: &Log,
    conn: &Connection,
    session: &mut PeerSession,
    upto: Lsn,
) -> Result<(), LogError> {
    let mut chunk = Vec::new();
    loop {
        while let Some((chunks, offset)) = session.wants_chunk() {
            chunk.clear();
            if chunks.read(conn, offset, &mut chunk)?.is_none() {
                let what = format!("a large entry has no chunk at {offset}");
                return Err(LogError::Damaged { lsn: upto, what });
            }
            session.send_chunk(&chunk);
        }
        let Some(from) = session.wants_from(upto) else { return Ok(()) };
        log.read(conn, from, upto, |lsn, entry| session.offer(lsn, entry))?;
        session.flush();
        if session.wants_chunk().is_none() {
            return Ok(());
        }
    }
}

/// Who is origin, as the control register says to the node with this identity.
pub(crate) fn origin_seen_by(register: Option<&Register>, identity: &Identity) -> Origin {
    match register {
        Some(register) if register.is_origin(identity) => Origin::Here,
        register => Origin::Elsewhere(register.and_then(|r| NodeId::new(&r.origin.0).ok())),
    }
}
