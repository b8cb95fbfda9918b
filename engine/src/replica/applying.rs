//! Remote entries: checked for their place in their author's sequence, and applied in batches.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    contested::Effects,
    driver::{Event, Output},
    entry::{Entry, Member, Membership, Segment},
    error::{ApplyError, ProtocolError},
    id::{AuthorId, Lsn, PeerId, SchemaVersion},
    limits::APPLY_BATCH_BYTES,
    merge::apply::{Applier, Tally},
    protocol::message::Register,
    replica::{Replica, is_storage_failure},
    schema::{Registry, catalog},
    testing::{Bug, planted},
    value::DecodeError,
    version::Dot,
};

impl Replica {
    pub(super) fn apply_incoming(&mut self) -> bool {
        let waits = self.storage.retry_at.is_some_and(|at| self.now.mono < at);
        if self.applied_in_drain || waits || self.halted.is_some() {
            return false;
        }
        let batch = self.take_batch();
        if batch.is_empty() {
            return false;
        }
        self.applied_in_drain = true;
        let before = self.log.last();
        let snapshot = (Arc::clone(&self.registry), self.members.clone(), self.author);
        self.contested.mark();
        let mut refused = BTreeMap::new();
        match self.apply_batch(&batch, &mut refused) {
            Ok(tally) => {
                self.contested.keep();
                for (lsn, entry) in self.log.keep() {
                    self.durable.appended(lsn, entry.header.dot);
                    self.hlc.observe(entry.header.hlc);
                }
                for (peer, entry) in &batch {
                    if let Some(session) = self.sessions.get_mut(peer) {
                        session.took(entry);
                    }
                }
                self.applied(before, tally, &snapshot);
                for (peer, error) in refused {
                    self.refuse(peer, &error);
                }
            }
            Err(error) => {
                self.undo_batch(snapshot);
                match error {
                    ApplyError::Sqlite(error) if is_storage_failure(&error) => {
                        for (peer, entry) in batch.into_iter().rev() {
                            self.incoming.entry(peer).or_default().put_back(entry);
                        }
                        self.storage_fails(error.to_string());
                    }
                    error => self.stop_links(error.to_string()),
                }
            }
        }
        true
    }

    /// Makes memory what it was before a batch that has failed.
    pub(super) fn undo_batch(
        &mut self,
        before: (Arc<Registry>, Vec<Member>, Option<AuthorId>),
    ) {
        self.contested.undo();
        self.log.undo();
        (self.registry, self.members, self.author) = before;
        self.writer.apply().forget();
        if !self.writer.apply().is_autocommit()
            && let Err(error) = self.writer.apply().execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "the transaction of a batch could not be rolled back");
        }
    }

    /// Entries to apply together, of one link after the other, each link's in order.
    pub(super) fn take_batch(&mut self) -> Vec<(PeerId, Entry)> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let order: Vec<PeerId> = self
            .incoming
            .range(self.next_peer..)
            .chain(self.incoming.range(..self.next_peer))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in order {
            let Some(incoming) = self.incoming.get_mut(&peer) else { continue };
            while bytes < APPLY_BATCH_BYTES
                && let Some(entry) = incoming.take()
            {
                bytes += entry.bytes.len();
                batch.push((peer, entry));
            }
            if bytes >= APPLY_BATCH_BYTES {
                self.next_peer = PeerId(peer.0 + 1);
                break;
            }
        }
        batch
    }

    pub(super) fn apply_batch(
        &mut self,
        batch: &[(PeerId, Entry)],
        refused: &mut BTreeMap<PeerId, ProtocolError>,
    ) -> Result<Tally, ApplyError> {
        self.writer.apply().prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
        let mut total = Tally::default();
        for (peer, entry) in batch {
            if refused.contains_key(peer) {
                continue;
            }
            match self.place(entry) {
                Ok(true) => {
                    let tally = self.apply(entry)?;
                    total.rows += tally.rows;
                    total.conflicts += tally.conflicts;
                }
                Ok(false) => {
                    self.counts.entries_duplicate += 1;
                    if planted(Bug::CounterReapplied) {
                        self.apply_segments(entry, true)?;
                    }
                }
                Err(error) => {
                    refused.insert(*peer, error);
                }
            }
        }
        self.writer.apply().prepare_cached("COMMIT")?.raw_execute()?;
        Ok(total)
    }

    /// Whether the entry is its author's next (true) or was applied before (false).
    pub(super) fn place(&self, entry: &Entry) -> Result<bool, ProtocolError> {
        let dot = entry.header.dot;
        let head = self.log.head(dot.author);
        if dot.seq <= head.seq {
            let forked = dot.seq == head.seq && entry.digest != head.digest;
            return if forked { Err(ProtocolError::ForkedVector { dot }) } else { Ok(false) };
        }
        if Some(dot.author) == self.author {
            return Err(ProtocolError::LostState { theirs: dot, ours: head.seq });
        }
        let expected = Dot { author: dot.author, seq: head.seq + 1 };
        if dot != expected {
            return Err(ProtocolError::Gap { found: dot, expected });
        }
        if entry.header.previous != head.digest {
            let found = entry.header.previous;
            return Err(ProtocolError::Fork { dot, found, ours: head.digest });
        }
        let first = dot == Dot { author: AuthorId::FIRST, seq: 1 };
        if !first && !self.members.iter().any(|member| member.author == dot.author) {
            return Err(ProtocolError::UnknownAuthor(dot.author));
        }
        Ok(true)
    }

    pub(super) fn apply(&mut self, entry: &Entry) -> Result<Tally, ApplyError> {
        let tally = self.apply_segments(entry, false)?;
        self.log.append(self.writer.apply(), entry.clone())?;
        Ok(tally)
    }

    pub(super) fn apply_segments(
        &mut self,
        entry: &Entry,
        again: bool,
    ) -> Result<Tally, ApplyError> {
        let broken = |error| ApplyError::undecodable(entry.header.dot, error);
        let origin = self.register.as_ref().map_or(AuthorId::FIRST, Register::origin_author);
        let mut total = Tally::default();
        for segment in entry.segments() {
            let segment = segment.map_err(broken)?;
            if let Segment::Rows(rows) = segment {
                let registry = Arc::clone(&self.registry);
                let mut applier = Applier {
                    conn: self.writer.apply(),
                    registry: &registry,
                    contested: &mut self.contested,
                    origin,
                    tally: Tally::default(),
                    effects: Effects::default(),
                };
                if again {
                    applier.count_again(rows)?;
                } else {
                    applier.rows(entry, rows)?;
                }
                total.rows += applier.tally.rows;
                total.conflicts += applier.tally.conflicts;
                continue;
            }
            if again {
                continue;
            }
            if entry.header.dot.author != origin {
                return Err(broken(DecodeError::Invalid(
                    "a segment that only the origin may write",
                )));
            }
            self.apply_decree(segment)?;
        }
        Ok(total)
    }

    /// Applies a segment that only the origin writes.
    pub(super) fn apply_decree(&mut self, segment: Segment<'_>) -> Result<(), ApplyError> {
        let conn = self.writer.apply();
        match segment {
            Segment::Rows(_) => {}
            Segment::Ddl(statements) => {
                for statement in statements {
                    conn.execute_batch(&statement)?;
                }
                conn.forget();
            }
            Segment::Policy(tables) => {
                let version = SchemaVersion(self.registry.version.0 + 1);
                catalog::declare(conn, version, &tables)?;
                conn.forget();
                self.registry = Arc::new(Registry::load(conn)?);
            }
            Segment::Membership(Membership::Join(member)) => {
                catalog::add_member(conn, &member)?;
                if member.incarnation == self.identity.incarnation {
                    self.author = Some(member.author);
                }
                self.members.push(member);
            }
        }
        Ok(())
    }

    /// A batch was committed.
    pub(super) fn applied(
        &mut self,
        before: Lsn,
        tally: Tally,
        (registry, members, author): &(Arc<Registry>, Vec<Member>, Option<AuthorId>),
    ) {
        let entries = self.log.last().0 - before.0;
        self.counts.entries_applied += entries;
        self.counts.rows_applied += tally.rows;
        self.counts.conflicts += tally.conflicts;
        if !Arc::ptr_eq(registry, &self.registry) {
            self.writer.learn(&self.registry, self.is_origin());
        }
        self.note_joins(members.len());
        if self.author != *author
            && let Some(author) = self.author
        {
            self.outputs.push_back(Output::Event(Event::Joined(author)));
            let head = self.log.head(author);
            let known = self.sessions.values().map(|session| session.known_of(author)).max();
            if let Some(seq) = known.filter(|seq| *seq > head.seq) {
                self.lost_state(Dot { author, seq });
            }
        }
        if entries > 0 {
            let lsn = self.log.last();
            self.outputs.push_back(Output::Event(Event::Applied { lsn, entries }));
        }
        self.storage_works();
    }
}
