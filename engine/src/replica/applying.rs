//! Remote entries: checked for their place in their author's sequence, and applied in batches.

use std::{collections::BTreeMap, mem, sync::Arc};

use crate::{
    db::watch::Who,
    driver::{Event, Output},
    entry::{EntryHeader, LargeName, Logged, Member, Membership, Segment},
    error::{ApplyError, ProtocolError},
    id::{AuthorId, Lsn, PeerId, SchemaVersion, TableId},
    limits::APPLY_BATCH_BYTES,
    merge::{
        Parked,
        apply::{Applier, Tally, Waiting},
        follow_schema, mirror,
    },
    protocol::message::Register,
    replica::{
        Replica,
        holds::{Arrived, Incoming},
        is_storage_failure,
    },
    schema::{Registry, catalog, outcomes},
    testing::{Bug, planted},
    value::DecodeError,
    version::Dot,
};

/// What was in memory before a batch.
#[derive(Debug)]
pub(super) struct Before {
    lsn: Lsn,
    log_bytes: u64,
    registry: Arc<Registry>,
    members: Vec<Member>,
    author: Option<AuthorId>,
    parked: Parked,
}

impl Replica {
    pub(super) fn apply_incoming(&mut self) -> bool {
        let waits = self.storage.retry_at.is_some_and(|at| self.now.mono < at);
        if self.applied_in_drain || waits || self.halted.is_some() || self.is_fetching() {
            return false;
        }
        let batch = self.take_batch();
        if batch.is_empty() {
            return false;
        }
        self.applied_in_drain = true;
        let before = self.before_apply();
        let mut refused = BTreeMap::new();
        match self.apply_batch(&batch, &mut refused) {
            Ok(tally) => {
                self.keep_applied();
                for (peer, entry) in &batch {
                    if let Logged::Whole(entry) = entry
                        && let Some(session) = self.sessions.get_mut(peer)
                    {
                        session.took(entry.bytes.len() as u64);
                    }
                }
                self.applied(&before, tally);
                self.spools_applied(batch.iter().map(|(_, entry)| entry));
                for (peer, error) in refused {
                    self.refuse(peer, &error);
                }
            }
            Err(error) => {
                self.undo_applied(before);
                match error {
                    ApplyError::Sqlite(error) if is_storage_failure(&error) => {
                        for (peer, entry) in batch.into_iter().rev() {
                            self.incoming.entry(peer).or_default().put_back(entry.into());
                        }
                        self.storage_failed(&error);
                    }
                    error => self.stop_links(error.to_string()),
                }
            }
        }
        true
    }

    /// Whether an entry waits that can be applied now.
    pub(super) fn can_apply(&self) -> bool {
        self.incoming.values().any(|incoming| {
            let Some(first) = incoming.first() else { return false };
            match first {
                Arrived::Large(name) if self.spools.complete(name).is_none() => {
                    self.log.head(name.dot.author).seq >= name.dot.seq
                }
                _ => self.too_early(first).is_none(),
            }
        })
    }

    /// Tries parked rows again, after something has changed.
    pub(super) fn retry_parked(&mut self) {
        if !mem::take(&mut self.parked_due) || self.aside.parked.is_empty() || self.halted.is_some()
        {
            return;
        }
        let before = self.aside.parked.clone();
        let conn = self.writer.apply();
        let announced = self.writer.writes(Who::Apply);
        if let Err(error) = announced.and_then(|()| self.aside.parked.retry(conn, &self.registry)) {
            self.roll_back();
            self.aside.parked = before;
            self.storage_fails(error.to_string());
        }
    }

    /// From here on what a batch changes in memory can be taken back.
    pub(super) fn before_apply(&mut self) -> Before {
        self.contested.mark();
        Before {
            lsn: self.log.last(),
            log_bytes: self.log.bytes(),
            registry: Arc::clone(&self.registry),
            members: self.members.clone(),
            author: self.author,
            parked: self.aside.parked.clone(),
        }
    }

    /// The batch is committed.
    pub(super) fn keep_applied(&mut self) {
        self.contested.keep();
        for (lsn, entry) in self.log.keep() {
            self.durable.appended(lsn, entry.header().dot);
            self.hlc.observe(entry.header().hlc);
        }
        self.db.published().stable(self.contested.stable());
        self.settle_watermarks();
    }

    /// The batch has failed.
    pub(super) fn undo_applied(&mut self, before: Before) {
        self.contested.undo();
        self.log.undo();
        (self.registry, self.members, self.author) =
            (before.registry, before.members, before.author);
        self.aside.parked = before.parked;
        self.writer.apply().forget();
        self.roll_back();
    }

    pub(super) fn roll_back(&self) {
        if !self.writer.apply().is_autocommit()
            && let Err(error) = self.writer.apply().execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "the transaction of a batch could not be rolled back");
        }
    }

    /// Entries to apply together, of one link after the other, each link's in order.
    pub(super) fn take_batch(&mut self) -> Vec<(PeerId, Logged)> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let order: Vec<PeerId> = self
            .incoming
            .range(self.next_peer..)
            .chain(self.incoming.range(..self.next_peer))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in order {
            while bytes < APPLY_BATCH_BYTES
                && let Some(first) = self.incoming.get(&peer).and_then(Incoming::first)
            {
                let future = self.too_early(first).is_some();
                if future && !planted(Bug::FuturePassedOver) {
                    break;
                }
                let Some(incoming) = self.incoming.get_mut(&peer) else { break };
                let Some(entry) = incoming.take().filter(|_| !future) else { continue };
                let entry = match entry {
                    Arrived::Whole(entry) => {
                        bytes += entry.bytes.len();
                        Logged::Whole(entry)
                    }
                    Arrived::Large(name) if self.log.head(name.dot.author).seq >= name.dot.seq => {
                        self.counts.entries_duplicate += 1;
                        continue;
                    }
                    Arrived::Large(name) => match self.spools.complete(&name) {
                        Some(entry) => {
                            bytes = APPLY_BATCH_BYTES;
                            Logged::Large(entry)
                        }
                        None => {
                            incoming.put_back(Arrived::Large(name));
                            break;
                        }
                    },
                };
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
        batch: &[(PeerId, Logged)],
        refused: &mut BTreeMap<PeerId, ProtocolError>,
    ) -> Result<Tally, ApplyError> {
        self.writer.apply().prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
        self.writer.writes(Who::Apply)?;
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
    pub(super) fn place(&self, entry: &Logged) -> Result<bool, ProtocolError> {
        let EntryHeader { dot, previous, .. } = *entry.header();
        let head = self.log.head(dot.author);
        if dot.seq <= head.seq {
            let forked = dot.seq == head.seq && entry.digest() != head.digest;
            return if forked { Err(ProtocolError::ForkedVector { dot }) } else { Ok(false) };
        }
        if Some(dot.author) == self.author {
            return Err(ProtocolError::LostState { theirs: dot, ours: head.seq });
        }
        let expected = Dot { author: dot.author, seq: head.seq + 1 };
        if dot != expected {
            return Err(ProtocolError::Gap { found: dot, expected });
        }
        if previous != head.digest {
            return Err(ProtocolError::Fork { dot, found: previous, ours: head.digest });
        }
        let first = dot == Dot { author: AuthorId::FIRST, seq: 1 };
        if !first && !self.members.iter().any(|member| member.author == dot.author) {
            return Err(ProtocolError::UnknownAuthor(dot.author));
        }
        Ok(true)
    }

    pub(super) fn apply(&mut self, entry: &Logged) -> Result<Tally, ApplyError> {
        let tally = self.apply_segments(entry, false)?;
        if let Logged::Whole(entry) = entry
            && self.spools.holds(entry.header.dot)
        {
            // To its author it was large, to another node it was not.
            LargeName::remove(self.writer.apply(), entry.header.dot)?;
        }
        self.log.append(self.writer.apply(), entry.clone())?;
        Ok(tally)
    }

    pub(super) fn apply_segments(
        &mut self,
        entry: &Logged,
        again: bool,
    ) -> Result<Tally, ApplyError> {
        let header = entry.header();
        let broken = |error| ApplyError::undecodable(header.dot, error);
        let origin = self.register.as_ref().map_or(AuthorId::FIRST, Register::origin_author);
        let mut total = Tally::default();
        let mut segments = entry.segments();
        let mut waiting = Waiting::default();
        while let Some(segment) =
            segments.next(self.writer.apply()).map_err(|error| (header.dot, error))?
        {
            if let Segment::Rows(rows) = segment {
                if total.rows > 0 && planted(Bug::LargeInPieces) {
                    self.writer.apply().execute_batch("COMMIT; BEGIN IMMEDIATE")?;
                }
                let registry = Arc::clone(&self.registry);
                let mut applier = self.applier(&registry, origin, &mut waiting);
                if again {
                    applier.count_again(rows)?;
                } else {
                    applier.rows(header, rows)?;
                }
                total.rows += applier.tally.rows;
                total.conflicts += applier.tally.conflicts;
                continue;
            }
            if again {
                continue;
            }
            if header.dot.author != origin {
                return Err(broken(DecodeError::Invalid(
                    "a segment that only the origin may write",
                )));
            }
            total.conflicts += self.settle(entry, origin, &mut waiting)?;
            if let Segment::Sequence(sequences) = segment {
                self.apply_sequences(header.dot, &sequences)?;
            } else {
                self.apply_decree(header, segment)?;
            }
        }
        total.conflicts += self.settle(entry, origin, &mut waiting)?;
        Ok(total)
    }

    /// Stores what collided; gives how many conflicts that made.
    fn settle(
        &mut self,
        entry: &Logged,
        origin: AuthorId,
        waiting: &mut Waiting,
    ) -> Result<u64, ApplyError> {
        if waiting.is_empty() {
            return Ok(0);
        }
        let registry = Arc::clone(&self.registry);
        let mut applier = self.applier(&registry, origin, waiting);
        applier.settle(entry)?;
        Ok(applier.tally.conflicts)
    }

    fn applier<'a>(
        &'a mut self,
        registry: &'a Registry,
        origin: AuthorId,
        waiting: &'a mut Waiting,
    ) -> Applier<'a> {
        let (contested, aside) = (&mut self.contested, &mut self.aside);
        let (conn, members) = (self.writer.apply(), &self.members);
        Applier::new(conn, registry, contested, aside, origin, members, waiting)
    }

    /// Applies a segment that only the origin writes.
    pub(super) fn apply_decree(
        &mut self,
        header: &EntryHeader,
        segment: Segment<'_>,
    ) -> Result<(), ApplyError> {
        let conn = self.writer.apply();
        match segment {
            Segment::Rows(_) | Segment::Sequence(_) => {}
            Segment::Ddl(statements) => {
                mirror::run(conn, &statements)?;
                conn.forget();
            }
            Segment::Policy(changes) => {
                self.contested.forget_dropped(conn, &changes)?;
                self.aside.parked.forget_dropped(&changes);
                catalog::carry_out(conn, &changes, self.log.last().next())?;
                catalog::set_version(conn, SchemaVersion(self.registry.version.0 + 1))?;
                conn.forget();
                let before = mem::replace(&mut self.registry, Arc::new(Registry::load(conn)?));
                follow_schema(conn, |id| before.by_id(id), &self.registry)?;
                mirror::refresh(conn, &self.registry)?;
            }
            Segment::Freeze(freeze) => {
                catalog::freeze(conn, &freeze, header.dot, header.hlc.wall())?;
                self.next_schema()?;
            }
            Segment::Unfreeze { freeze, failure } => {
                catalog::unfreeze(conn, freeze, failure.as_deref())?;
                self.next_schema()?;
            }
            Segment::Outcome { request, fate } => {
                outcomes::keep(conn, header, request, &fate)?;
            }
            Segment::Membership(Membership::Join(member)) => {
                catalog::add_member(conn, &member)?;
                if member.incarnation == self.identity.incarnation {
                    self.author = Some(member.author);
                    self.db.ids().tell(self.now.wall, self.author);
                }
                if self.is_origin() {
                    self.count_joiner(member.author);
                }
                self.members.push(member);
            }
            Segment::Frontier { number, covered } => {
                self.contested
                    .frontier(conn, number, &covered, header.stamp())
                    .map_err(|error| ApplyError::clocks(header.dot, error))?;
                self.checkpointing.frontier = true;
            }
        }
        Ok(())
    }

    fn next_schema(&mut self) -> Result<(), ApplyError> {
        let conn = self.writer.apply();
        catalog::set_version(conn, SchemaVersion(self.registry.version.0 + 1))?;
        self.registry = Arc::new(Registry::load(conn)?);
        Ok(())
    }

    /// Makes AUTOINCREMENT go on where the origin's does, so that this node never hands out a key again
    /// once it is origin itself.
    fn apply_sequences(&self, dot: Dot, sequences: &[(TableId, i64)]) -> Result<(), ApplyError> {
        let broken = |error| ApplyError::undecodable(dot, error);
        for (table, last) in sequences {
            let table =
                self.registry.by_id(*table).ok_or_else(|| broken(DecodeError::Unknown("table")))?;
            if !table.autoincrement {
                let what = "a sequence of a table without AUTOINCREMENT";
                return Err(broken(DecodeError::Invalid(what)));
            }
            catalog::set_sequence(self.writer.apply(), &table.name, *last)?;
        }
        Ok(())
    }

    /// A batch of remote entries was committed.
    pub(super) fn applied(&mut self, before: &Before, tally: Tally) {
        let entries = self.log.last().0 - before.lsn.0;
        self.counts.entries_applied += entries;
        self.counts.rows_applied += tally.rows;
        self.counts.conflicts += tally.conflicts;
        self.parked_due = true;
        self.after_apply(before);
        if entries > 0 {
            let lsn = self.log.last();
            self.outputs.push_back(Output::Event(Event::Applied { lsn, entries }));
        }
    }

    /// What follows from entries that were applied and committed.
    pub(super) fn after_apply(&mut self, before: &Before) {
        self.counting.news = true;
        self.entries_came();
        self.checkpointing.entries = true;
        self.checkpointing.bytes += self.log.bytes() - before.log_bytes;
        if !Arc::ptr_eq(&before.registry, &self.registry) {
            self.writer.learn(&self.registry);
        }
        if before.members.len() != self.members.len() {
            self.note_joins(before.members.len());
            self.hear_new_members();
        }
        if self.author != before.author
            && let Some(author) = self.author
        {
            self.outputs.push_back(Output::Event(Event::Joined(author)));
            let head = self.log.head(author);
            let known = self.sessions.values().map(|session| session.known_of(author)).max();
            if let Some(seq) = known.filter(|seq| *seq > head.seq) {
                self.lost_state(Dot { author, seq });
            }
        }
        self.storage_works();
    }
}
