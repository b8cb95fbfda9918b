//! The frontier: acknowledgements counted at the origin, the entries that say what is stable, and the
//! clock checkpoints after which the log is trimmed.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    db::watch::Who,
    entry::{EntryHeader, Logged, codec::Body},
    error::ApplyError,
    id::{AuthorId, PeerId},
    limits::{CLOCK_CHECKPOINT_CHEAP_BYTES, CLOCK_CHECKPOINT_LOG_BYTES, FRONTIER_INTERVAL},
    replica::{Replica, is_storage_failure},
    schema::catalog,
    status::{Held, Stability},
    testing::{Bug, planted},
    time::{Instant, WallTime},
    version::{Dot, VersionVector},
};

/// What the origin counts, and when it looks again.
#[derive(Debug, Default)]
pub(super) struct Counting {
    /// Per member what it is known to have applied.
    pub(super) counted: BTreeMap<AuthorId, VersionVector>,
    /// Something has come that may make a frontier.
    pub(super) news: bool,
    pub(super) due: Instant,
}

/// What the last clock checkpoint leaves to be done.
#[derive(Debug, Default)]
pub(super) struct Checkpointing {
    /// A frontier was applied since.
    pub(super) frontier: bool,
    /// Bytes of log written since.
    pub(super) bytes: u64,
    /// More of the log can be trimmed than one step has trimmed.
    pub(super) trim_more: bool,
    /// The entry that is not trimmed before the disk has it and links have sent it.
    pub(super) trim_waits: Option<Dot>,
    /// Anything at all was written since.
    pub(super) entries: bool,
}

impl Replica {
    /// Takes in acknowledgements that came over a link.
    pub(super) fn hear_acks(&mut self, peer: PeerId, acks: Vec<(Option<AuthorId>, VersionVector)>) {
        for (author, vector) in acks {
            let own = author.is_none();
            let Some(author) = author.or_else(|| self.author_of(peer)) else { continue };
            if Some(author) == self.author {
                continue;
            }
            self.acks.hear(author, &vector, self.now.mono);
            self.counting.news = true;
            if let Some(session) = self.sessions.get_mut(&peer)
                && !own
            {
                // That, and nothing newer that this node may have heard from others.
                session.knows_ack(author, &vector);
            }
        }
    }

    /// What the entries of the node at the other end are signed with.
    pub(super) fn author_of(&mut self, peer: PeerId) -> Option<AuthorId> {
        let session = self.sessions.get_mut(&peer)?;
        if session.author.is_none() {
            let member = self.members.iter().find(|m| Some(m.incarnation) == session.incarnation);
            session.author = member.map(|member| member.author);
        }
        session.author
    }

    /// Takes in what peers had acknowledged before it was known that they are members.
    pub(super) fn hear_new_members(&mut self) {
        for peer in self.sessions.keys().copied().collect::<Vec<_>>() {
            let Some(session) = self.sessions.get(&peer) else { continue };
            if session.author.is_none() {
                let vector = session.acknowledged().clone();
                self.hear_acks(peer, vec![(None, vector)]);
            }
        }
    }

    /// A member begins with what the origin had applied when it wrote the `Join`.
    pub(super) fn count_joiner(&mut self, author: AuthorId) {
        self.counting.counted.insert(author, self.log.vector());
    }

    pub(super) fn frontier_deadline(&self) -> Option<Instant> {
        (self.counting.news && self.may_author_frontiers()).then_some(self.counting.due)
    }

    fn may_author_frontiers(&self) -> bool {
        self.is_origin()
            && self.author.is_some()
            && self.halted.is_none()
            && self.storage.error.is_none()
    }

    /// At the origin: writes the next frontier, if there is one.
    pub(super) fn serve_frontier(&mut self) -> bool {
        let due = self.frontier_deadline().is_some_and(|due| self.now.mono >= due);
        let (true, Some(author)) = (due, self.author) else { return false };
        self.counting.news = false;
        let applied = self.applied_everywhere(author);
        let Some(covered) = self.contested.next_frontier(&applied) else { return false };
        self.counting.due = self.now.mono + FRONTIER_INTERVAL;
        let mut body = Body::default();
        body.push_frontier(self.contested.stable().number + 1, &covered);
        // Storage may fail: then it is tried again.
        self.counting.news = self.author_decree(author, body).is_none();
        true
    }

    /// What every member has applied and said so, as far as this node, the origin, may count it.
    fn applied_everywhere(&mut self, author: AuthorId) -> VersionVector {
        let mut everywhere = self.log.vector();
        for member in &self.members {
            if member.author == author {
                continue;
            }
            let counted = self.counting.counted.entry(member.author).or_default();
            if let Some((acknowledged, _)) = self.acks.of(member.author) {
                let written = acknowledged.seq(member.author);
                if self.log.head(member.author).seq >= written || planted(Bug::EarlyAck) {
                    counted.advance_all(acknowledged);
                }
            }
            everywhere.lower_to(counted);
        }
        everywhere
    }

    /// At the origin: writes an entry that is no job's, and applies it.
    pub(super) fn author_decree(&mut self, author: AuthorId, body: Body) -> Option<Dot> {
        let head = self.log.head(author);
        let entry = body.into_entry(EntryHeader {
            dot: Dot { author, seq: head.seq + 1 },
            hlc: self.hlc.tick(self.corrected()),
            previous: head.digest,
            schema: self.registry.version,
            under: self.contested.stable().number,
        });
        let before = self.before_apply();
        let dot = entry.header.dot;
        match self.apply_own(&Logged::Whole(entry)) {
            Ok(()) => {
                self.keep_applied();
                self.counts.entries_authored += 1;
                self.after_apply(&before);
                Some(dot)
            }
            Err(error) => {
                self.undo_applied(before);
                match error {
                    ApplyError::Sqlite(error) if is_storage_failure(&error) => {
                        self.storage_fails(error.to_string());
                    }
                    error => self.halt(error.to_string()),
                }
                None
            }
        }
    }

    fn apply_own(&mut self, entry: &Logged) -> Result<(), ApplyError> {
        self.writer.apply().prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
        self.writer.writes(Who::Apply)?;
        self.apply(entry)?;
        self.writer.apply().prepare_cached("COMMIT")?.raw_execute()?;
        Ok(())
    }

    // --- Clock checkpoints

    /// Writes the clocks to the file and trims the log, when it is time.
    pub(super) fn serve_checkpoint(&mut self) -> bool {
        // A replica that has only lost its links goes on writing.
        if self.storage.error.is_some() || self.writes_stopped {
            return false;
        }
        let todo = &self.checkpointing;
        let cheap = todo.frontier && self.contested.unsaved_bytes() <= CLOCK_CHECKPOINT_CHEAP_BYTES;
        let trims = todo.trim_more || todo.trim_waits.is_some_and(|dot| !self.is_waited_for(dot));
        let due = cheap || trims || todo.bytes >= CLOCK_CHECKPOINT_LOG_BYTES;
        self.checkpointing.frontier = false;
        if !self.contested.shrink() || due {
            self.checkpoint_or_fail();
            return true;
        }
        false
    }

    fn checkpoint_or_fail(&mut self) {
        if let Err(error) = self.checkpoint() {
            if !self.writer.apply().is_autocommit()
                && let Err(error) = self.writer.apply().execute_batch("ROLLBACK")
            {
                tracing::error!(%error, "the transaction of a checkpoint could not be rolled back");
            }
            self.storage_fails(error.to_string());
        }
    }

    /// Whether an entry is not on stable storage yet, and so was sent to nobody, or a member that is linked
    /// may still have to be sent it. It is not trimmed before: what comes behind it would arrive without it.
    fn is_waited_for(&self, dot: Dot) -> bool {
        !self.durable.vector.covers(dot) || self.is_to_be_sent(dot)
    }

    fn is_to_be_sent(&self, dot: Dot) -> bool {
        !planted(Bug::TrimUnsent)
            && self.sessions.values().any(|session| {
                let heard = session.author.and_then(|author| self.acks.of(author));
                session.waits_for(dot, heard.map(|(vector, _)| vector))
            })
    }

    /// Writes the clocks to the file, and deletes of the log what every member has.
    pub(super) fn checkpoint(&mut self) -> rusqlite::Result<()> {
        self.writer.writes(Who::Apply)?;
        let conn = self.writer.apply();
        conn.prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
        if !planted(Bug::TrimPastCheckpoint) {
            self.contested.save(conn)?;
        }
        let mut state = Vec::new();
        self.log.tail().encode(&mut state);
        self.contested.stable().encode(&mut state);
        catalog::set_meta(conn, "checkpoint", state)?;
        let mut waits = None;
        let trimmed = self.log.trim(conn, self.contested.stable(), |dot| {
            waits = self.is_waited_for(dot).then_some(dot);
            waits.is_some()
        })?;
        if let Some(trimmed) = &trimmed {
            catalog::set_meta(conn, "trimmed", trimmed.start.encode())?;
        }
        conn.prepare_cached("COMMIT")?.raw_execute()?;
        self.contested.saved();
        self.checkpointing = Checkpointing { trim_waits: waits, ..Checkpointing::default() };
        if let Some(trimmed) = trimmed {
            self.checkpointing.trim_more = trimmed.is_step;
            self.discard(trimmed.chunks.iter().copied());
            self.log.trimmed(trimmed);
        }
        self.contested.shrink();
        Ok(())
    }

    // --- For people

    /// What the frontier covers, and what holds it back.
    pub(super) fn stability(&self) -> Stability {
        let vector = self.log.vector();
        let stable = self.contested.stable();
        let held = self.members.iter().filter_map(|member| {
            if Some(member.author) == self.author {
                return None;
            }
            let acknowledged = self.acks.of(member.author);
            let has = acknowledged.map_or_else(VersionVector::new, |(vector, _)| vector.clone());
            let missing = vector.missing_from(&has);
            let links = self.sessions.values();
            let of_member = links.filter(|session| session.incarnation == Some(member.incarnation));
            let heard = of_member.map(|session| session.last_heard).max();
            let heard = heard.max(acknowledged.map(|(_, at)| at));
            (missing > 0).then(|| Held {
                node: member.node.clone(),
                missing,
                since: self.oldest_without(&has),
                heard: heard.map(|at| self.ago(self.now.mono.since(at))),
            })
        });
        Stability {
            frontier: stable.number,
            covered: stable.covered.clone(),
            held_back_by: held.collect(),
            log_bytes: self.log.bytes(),
            contested_bytes: self.contested.bytes() as u64,
        }
    }

    /// When the oldest entry of the log was written that is not in `vector`, as this node's wall clock has it;
    /// `None` also if it lies far behind where the index of the log leads, so that it would take long to find.
    fn oldest_without(&self, vector: &VersionVector) -> Option<WallTime> {
        const LOOKED_AT: usize = 1024;
        let (mut oldest, mut looked_at) = (None, 0);
        let read = self.log.read(
            self.writer.apply(),
            self.log.start_for(vector),
            self.log.last(),
            |_, entry| {
                let header = entry.header();
                let is_missing = !vector.covers(header.dot);
                oldest = is_missing.then_some(header.hlc.wall());
                looked_at += 1;
                !is_missing && looked_at < LOOKED_AT
            },
        );
        if let Err(error) = read {
            tracing::warn!(%error, "the log could not be read for the oldest entry that waits");
        }
        let age = self.corrected().0.saturating_sub(oldest?.0);
        Some(self.ago(Duration::from_millis(age)))
    }

    fn ago(&self, age: Duration) -> WallTime {
        let ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        WallTime(self.now.wall.0.saturating_sub(ms))
    }
}
