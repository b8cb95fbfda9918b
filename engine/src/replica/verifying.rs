//! Comparing the rows here with those of a peer, and mending those that differ.
//!
//! What is stored follows from the entries applied, so at equal vectors rows are equal. A disk that
//! forgets, or a program that writes the file by itself, breaks that; this finds it.
//!
//! ```text
//!   asks                         answers
//!   Sum of a range ────────────► ◄──────────── its sum, and where it ends
//!        equal: the next range
//!   Rows, a second later ──────► ◄──────────── sums of keys and rows
//!   Images of what differs ────► ◄──────────── rows, and the vector they belong to
//!        judged once this replica has applied that vector
//! ```
//!
//! A row counts as different only if this replica has applied all that the peer had when it answered, and
//! nothing else to that row: then no write under way can be the reason. It is mended with the origin's row
//! only: another peer may be the one that is wrong.
//!
//! One range of about [`COMPARE_ROWS`] rows is looked at at a time, and the next one [`COMPARE_PAUSE`]
//! later.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    ops::ControlFlow,
    sync::Arc,
};

use crate::{
    db::watch::Who,
    entry::{Segment, rows::RowsReader},
    id::{NodeId, PeerId, SchemaVersion, TableId},
    limits::{
        COMPARE_BYTES, COMPARE_IMAGES, COMPARE_PAUSE, COMPARE_ROWS, COMPARE_SETTLE, COMPARE_TRIES,
        VERIFY_EVERY, VERIFY_FIRST,
    },
    log::LogError,
    merge::{Mended, cells_of, repair},
    protocol::message::{Answer, Image, Message, Question, Wanted, read_vector},
    replica::{Replica, is_storage_failure},
    schema::{
        Registry, Table,
        range::{self, KeyRange, sum_of},
    },
    status::Verification,
    testing::{Bug, planted},
    time::{Instant, Now},
    value::Sum,
    version::VersionVector,
};

/// What is compared, and how it went.
#[derive(Debug)]
pub(super) struct Verifying {
    round: Option<Round>,
    /// When the next round begins by itself.
    due: Instant,
    report: Verification,
    token: u64,
}

/// One pass over all tables.
#[derive(Debug)]
struct Round {
    /// The tables to compare; the first one is being compared.
    tables: VecDeque<TableId>,
    /// Where in it.
    after: Option<Vec<u8>>,
    step: Step,
    /// Nothing is asked before.
    not_before: Instant,
    tries: u32,
    /// The peer, and the number of the question that it has not answered yet.
    asked: Option<(PeerId, u64)>,
    /// The schema when that was asked.
    schema: SchemaVersion,
}

#[derive(Debug)]
enum Step {
    /// The sum of the next range is wanted.
    Sum,
    /// The sums of its rows.
    Rows(KeyRange),
    /// The rows with these keys.
    Images(KeyRange, BTreeSet<Sum>),
    /// They are there, from this link.
    Judge(KeyRange, BTreeSet<Sum>, Images),
}

/// Rows of a peer.
#[derive(Debug)]
struct Images {
    from: PeerId,
    /// What the peer had applied. While the link is up it has not lost that.
    vector: VersionVector,
    rows: Vec<(Sum, Image)>,
}

/// What came of comparing rows.
#[derive(Debug, Default)]
struct Judged {
    /// The sums of the keys that are decided.
    decided: Vec<Sum>,
    /// The rows that differ.
    wrong: Vec<Mended>,
    /// Rows that are parked here: key, and the cells that the peer has stored.
    parked: Vec<(Vec<u8>, Vec<Vec<u8>>)>,
}

/// Why a range was not judged.
enum Unjudged {
    Log(LogError),
    /// It cannot be known now.
    NotNow,
}

impl From<rusqlite::Error> for Unjudged {
    fn from(error: rusqlite::Error) -> Self {
        Self::Log(LogError::Sqlite(error))
    }
}

impl Verifying {
    pub(super) fn new(now: Instant) -> Self {
        Self { round: None, due: now + VERIFY_FIRST, report: Verification::default(), token: 0 }
    }

    pub(super) fn report(&self) -> Verification {
        self.report.clone()
    }
}

impl Round {
    fn new(registry: &Registry, now: Instant) -> Self {
        let replicated = registry.tables().iter().filter(|table| !table.is_local());
        Self {
            tables: replicated.map(|table| table.id).collect(),
            after: None,
            step: Step::Sum,
            not_before: now,
            tries: 0,
            asked: None,
            schema: registry.version,
        }
    }

    fn question(&self, table: TableId) -> Option<Question> {
        let what = match &self.step {
            Step::Sum => Wanted::Sum,
            Step::Rows(range) => Wanted::Rows { upto: range.upto.clone() },
            Step::Images(range, keys) => Wanted::Images {
                upto: range.upto.clone(),
                keys: keys.iter().take(COMPARE_IMAGES).copied().collect(),
            },
            Step::Judge(..) => return None,
        };
        let (table, schema) = (table.0, self.schema.0);
        Some(Question { table, schema, after: self.after.clone(), what })
    }

    /// Goes on behind a range that is done.
    fn advance(&mut self, upto: Option<Vec<u8>>, now: Instant) {
        if upto.is_none() {
            self.tables.pop_front();
        }
        self.after = upto;
        self.step = Step::Sum;
        self.tries = 0;
        self.not_before = now + COMPARE_PAUSE;
    }
}

impl Replica {
    /// Compares all rows with those of a peer, range by range, while everything else goes on:
    /// [`Status::verification`](crate::Status::verification) tells how far it is. Rows that differ are
    /// mended if the peer is the origin, which is asked first; else they are only counted.
    ///
    /// Gives false at the origin: its rows are what others compare theirs with. One that runs goes on.
    pub fn verify(&mut self, now: Now) -> bool {
        self.tell_time(now);
        if self.is_origin() {
            return false;
        }
        self.begin_round();
        true
    }

    fn begin_round(&mut self) {
        if self.verifying.round.is_none() {
            self.verifying.report = Verification { running: true, ..Verification::default() };
            self.verifying.round = Some(Round::new(&self.registry, self.now.mono));
        }
    }

    pub(super) fn verifying_deadline(&self) -> Option<Instant> {
        let linked = self.sessions.values().any(|session| session.is_streaming());
        let hindered = self.halted.is_some() || self.storage.error.is_some() || self.is_fetching();
        if hindered || self.is_origin() || !linked {
            return None;
        }
        match &self.verifying.round {
            None => Some(self.verifying.due),
            Some(round) if round.asked.is_some() => None,
            Some(round) => Some(round.not_before),
        }
    }

    /// Asks the next question, or judges what was answered.
    pub(super) fn serve_verifying(&mut self) -> bool {
        if self.verifying_deadline().is_none_or(|at| self.now.mono < at) {
            return false;
        }
        self.begin_round();
        let Some(mut round) = self.verifying.round.take() else { return false };
        let registry = Arc::clone(&self.registry);
        let table = round.tables.front().map(|id| (*id, registry.by_id(*id)));
        match table {
            None => {
                self.finish_round();
                return true;
            }
            // Dropped meanwhile, or local by now.
            Some((_, table)) if table.is_none_or(Table::is_local) => {
                round.advance(None, self.now.mono);
            }
            Some((_, Some(table))) if matches!(round.step, Step::Judge(..)) => {
                self.judge(&mut round, table);
            }
            Some((id, _)) => self.ask(&mut round, id),
        }
        self.verifying.round = Some(round);
        true
    }

    fn ask(&mut self, round: &mut Round, table: TableId) {
        round.schema = self.registry.version;
        let Some(question) = round.question(table) else { return };
        let Some(peer) = self.whom_to_ask() else { return };
        let Some(session) = self.sessions.get_mut(&peer) else { return };
        self.verifying.token += 1;
        session.say(&Message::Ask(self.verifying.token, question));
        round.asked = Some((session.peer, self.verifying.token));
        self.verifying.report.with = Some(session.node.clone());
        self.verifying.report.table = self.registry.by_id(table).map(|table| table.name.clone());
    }

    /// The origin, if it is linked.
    fn whom_to_ask(&self) -> Option<PeerId> {
        let streaming = self.sessions.values().filter(|session| session.is_streaming());
        let best = streaming.min_by_key(|session| !self.is_to_be_believed(Some(&session.node)));
        best.map(|session| session.peer)
    }

    fn is_to_be_believed(&self, node: Option<&NodeId>) -> bool {
        let origin = self.register.as_ref().map(|register| register.origin.0.as_str());
        origin.is_some() && node.map(NodeId::as_str) == origin
    }

    fn finish_round(&mut self) {
        let report = &mut self.verifying.report;
        (report.running, report.table) = (false, None);
        report.finished = Some(self.now.wall);
        self.verifying.due = self.now.mono + VERIFY_EVERY;
        let (differing, repaired) = (report.differing, report.repaired);
        if differing > 0 {
            let node = &self.identity.node;
            tracing::error!(%node, differing, repaired, "rows were not what they had to be");
        }
    }

    /// The link is gone: the same is asked again. What the peer had applied may be lost, if that was not
    /// on stable storage, and something else come in its place.
    pub(super) fn stop_comparing_with(&mut self, peer: PeerId) {
        let Some(round) = &mut self.verifying.round else { return };
        round.asked.take_if(|(asked, _)| *asked == peer);
        round.step = match mem::replace(&mut round.step, Step::Sum) {
            Step::Judge(range, suspects, images) if images.from == peer => {
                Step::Images(range, suspects)
            }
            step => step,
        };
    }

    /// A peer has answered.
    pub(super) fn answered(&mut self, peer: PeerId, token: u64, answer: Answer) {
        let Some(mut round) = self.verifying.round.take() else { return };
        if round.asked == Some((peer, token)) {
            round.asked = None;
            let table = round.tables.front().copied();
            let registry = Arc::clone(&self.registry);
            if let Some(table) = table.and_then(|id| registry.by_id(id))
                && let Err(error) = self.take_answer(&mut round, table, peer, answer)
            {
                self.try_again(&mut round, &error.to_string());
                if is_storage_failure(&error) {
                    self.storage_fails(error.to_string());
                }
            }
        }
        self.verifying.round = Some(round);
    }

    fn take_answer(
        &mut self,
        round: &mut Round,
        table: &Table,
        from: PeerId,
        answer: Answer,
    ) -> rusqlite::Result<()> {
        let conn = self.writer.apply();
        match (mem::replace(&mut round.step, Step::Sum), answer) {
            (Step::Sum, Answer::Sum { upto, sum }) => {
                let range = KeyRange { after: round.after.clone(), upto };
                let bounds = (COMPARE_ROWS, COMPARE_BYTES);
                let (equal, rows) = range::has_sum(conn, table, &range, bounds, sum)?;
                self.verifying.report.rows += rows;
                if equal {
                    round.advance(range.upto, self.now.mono);
                } else {
                    round.step = Step::Rows(range);
                    round.not_before = self.now.mono + COMPARE_SETTLE;
                }
            }
            (Step::Rows(_), Answer::Rows { upto, rows }) => {
                let mut range = KeyRange { after: round.after.clone(), upto };
                let (ours, last) = range::sums(conn, table, &range, 2 * COMPARE_ROWS)?;
                if last.is_some() {
                    range.upto = last;
                }
                let ours: BTreeMap<Sum, Sum> =
                    ours.into_iter().map(|sum| (sum.key, sum.row)).collect();
                let theirs: BTreeMap<Sum, Sum> = rows.into_iter().collect();
                let differ = |key: &&Sum| ours.get(*key) != theirs.get(*key);
                let suspects: BTreeSet<Sum> =
                    ours.keys().chain(theirs.keys()).filter(differ).copied().collect();
                if suspects.is_empty() {
                    round.advance(range.upto, self.now.mono);
                } else {
                    round.step = Step::Images(range, suspects);
                }
            }
            (Step::Images(range, suspects), Answer::Images { vector, images: rows }) => {
                let images = Images { from, vector: read_vector(&vector), rows };
                round.step = Step::Judge(range, suspects, images);
            }
            (step, _) => {
                round.step = step;
                self.try_again(round, "the schema is another one there, or a key is too long");
            }
        }
        Ok(())
    }

    /// A range cannot be decided now; after many tries its table is passed over.
    fn try_again(&mut self, round: &mut Round, why: &str) {
        round.tries += 1;
        round.not_before = self.now.mono + COMPARE_SETTLE;
        if round.tries > COMPARE_TRIES {
            self.verifying.report.undecided += 1;
            self.verifying.report.problem = Some(why.to_owned());
            round.advance(None, self.now.mono);
        }
    }

    /// Compares the rows that were asked for, if nothing under way can make them differ.
    fn judge(&mut self, round: &mut Round, table: &Table) {
        let Step::Judge(range, mut suspects, images) = mem::replace(&mut round.step, Step::Sum)
        else {
            return;
        };
        if !self.log.vector().covers_all(&images.vector) {
            round.step = Step::Judge(range, suspects, images);
            let why = "entries that the peer has applied did not arrive";
            return self.try_again(round, why);
        }
        if round.schema != self.registry.version {
            return self.try_again(round, "the schema changes all the time");
        }
        match self.compare_rows(table, &range, &images) {
            Err(Unjudged::NotNow) => {
                round.step = Step::Images(range, suspects);
                self.try_again(round, "entries that the peer lacked are no longer in the log");
            }
            Err(Unjudged::Log(LogError::Sqlite(error))) if is_storage_failure(&error) => {
                round.step = Step::Images(range, suspects);
                self.storage_fails(error.to_string());
            }
            Err(Unjudged::Log(error)) => {
                round.step = Step::Images(range, suspects);
                self.try_again(round, &error.to_string());
            }
            Ok(Judged { decided, wrong, parked }) => {
                let stuck = decided.is_empty();
                for key in decided {
                    suspects.remove(&key);
                }
                self.mend(table, &wrong, images.from);
                self.mend_parked(table, &parked, images.from);
                if suspects.is_empty() {
                    round.advance(range.upto, self.now.mono);
                } else {
                    round.step = Step::Images(range, suspects);
                    if stuck {
                        self.try_again(round, "rows that are written all the time");
                    } else {
                        round.not_before = self.now.mono + COMPARE_PAUSE;
                    }
                }
            }
        }
    }

    fn compare_rows(
        &mut self,
        table: &Table,
        range: &KeyRange,
        Images { vector, rows: images, .. }: &Images,
    ) -> Result<Judged, Unjudged> {
        if !vector.covers_all(&self.log.start().vector) {
            return Err(Unjudged::NotNow);
        }
        let written = self.written_behind(table.id, vector).map_err(Unjudged::Log)?;
        let Some(written) = written else { return Err(Unjudged::NotNow) };
        let mut ours: BTreeMap<Sum, (Vec<u8>, Vec<u8>)> = BTreeMap::new();
        let wanted: BTreeSet<&Sum> = images.iter().map(|(key, _)| key).collect();
        range::visit(self.writer.apply(), table, range, |row| {
            let key = sum_of(row.key);
            if wanted.contains(&key) {
                ours.insert(key, (row.key.to_vec(), row.cells.to_vec()));
            }
            ControlFlow::Continue(())
        })?;
        let mut judged = Judged::default();
        for (sum, image) in images {
            if written.contains(sum) && !planted(Bug::ComparedTooEarly) {
                continue;
            }
            judged.decided.push(*sum);
            let ours = ours.remove(sum);
            let (key, right) = match image {
                Image::Parked => continue,
                Image::TooLarge => {
                    self.verifying.report.undecided += 1;
                    let why = "a row is too large to be compared one by one";
                    self.verifying.report.problem = Some(why.to_owned());
                    continue;
                }
                Image::Absent => match &ours {
                    None => continue,
                    Some((key, _)) => (key.clone(), None),
                },
                Image::Row(key, _) if sum_of(key) != *sum => return Err(Unjudged::NotNow),
                Image::Row(key, cells) => (key.clone(), Some(cells)),
            };
            if ours.as_ref().map(|(_, cells)| cells) == right {
                continue;
            }
            let cells = |bytes: &[u8]| cells_of(table, &key, bytes).map_err(|_| Unjudged::NotNow);
            let right = right.map(|bytes| cells(bytes)).transpose()?;
            if self.aside.parked.contains(table.id, &key) {
                judged.parked.extend(right.map(|right| (key, right)));
                continue;
            }
            let ours = ours.map(|(_, bytes)| cells(&bytes)).transpose()?;
            judged.wrong.push(Mended { key, right, wrong: ours });
        }
        Ok(judged)
    }

    /// The sums of the keys of a table that were written by entries which `vector` lacks; `None` if the
    /// schema has changed meanwhile.
    fn written_behind(
        &self,
        table: TableId,
        vector: &VersionVector,
    ) -> Result<Option<BTreeSet<Sum>>, LogError> {
        let conn = self.writer.apply();
        let mut written = Some(BTreeSet::new());
        let mut failed = None;
        let (from, upto) = (self.log.start_for(vector), self.log.last());
        self.log.read(conn, from, upto, |lsn, entry| {
            if vector.covers(entry.header().dot) {
                return true;
            }
            let mut segments = entry.segments();
            loop {
                let read = match segments.next(conn) {
                    Ok(None) => return true,
                    Ok(Some(Segment::Rows(rows))) => keys_of(table, rows, &mut written),
                    Ok(Some(Segment::Ddl(_) | Segment::Policy(_))) => {
                        written = None;
                        return false;
                    }
                    Ok(Some(_)) => Ok(()),
                    Err(error) => Err(error.to_string()),
                };
                if let Err(what) = read {
                    failed = Some(LogError::Damaged { lsn, what });
                    return false;
                }
            }
        })?;
        failed.map_or(Ok(written), Err)
    }

    /// Counts rows that differ, and mends them if the peer is the origin.
    fn mend(&mut self, table: &Table, wrong: &[Mended], from: PeerId) {
        if wrong.is_empty() {
            return;
        }
        self.verifying.report.differing += wrong.len() as u64;
        let node = self.sessions.get(&from).map(|session| &session.node);
        if !self.is_to_be_believed(node) {
            let why = "rows are mended from the origin only, and there is no link to it";
            self.verifying.report.problem = Some(why.to_owned());
            return;
        }
        match self.repair(table, wrong) {
            // One of them is in the way: the others need not stay wrong for it.
            Ok(Some(_)) if wrong.len() > 1 => {
                for row in wrong.chunks(1) {
                    let repaired = self.repair(table, row);
                    self.count_repaired(row.len(), repaired);
                }
            }
            repaired => self.count_repaired(wrong.len(), repaired),
        }
    }

    /// Tries to store rows that are parked here, as the origin has them. Those that something is still in
    /// the way of stay parked, and are told as such only.
    fn mend_parked(&mut self, table: &Table, rows: &[(Vec<u8>, Vec<Vec<u8>>)], from: PeerId) {
        let node = self.sessions.get(&from).map(|session| &session.node);
        if !self.is_to_be_believed(node) {
            return;
        }
        for (key, right) in rows {
            let before = self.aside.parked.clone();
            let (conn, members) = (self.writer.apply(), &self.members);
            let mended = self
                .writer
                .writes(Who::Apply)
                .and_then(|()| self.aside.parked.mend(conn, members, table, (key, right)));
            match mended {
                Ok(stored) => {
                    self.verifying.report.differing += u64::from(stored);
                    self.verifying.report.repaired += u64::from(stored);
                }
                Err(error) => {
                    self.roll_back();
                    self.aside.parked = before;
                    return self.count_repaired(1, Err(error));
                }
            }
        }
    }

    fn repair(&self, table: &Table, wrong: &[Mended]) -> rusqlite::Result<Option<rusqlite::Error>> {
        self.writer.writes(Who::Apply)?;
        let repaired = repair(self.writer.apply(), &self.members, table, wrong);
        if repaired.is_err() {
            self.roll_back();
        }
        repaired
    }

    fn count_repaired(&mut self, rows: usize, repaired: rusqlite::Result<Option<rusqlite::Error>>) {
        match repaired {
            Ok(None) => self.verifying.report.repaired += rows as u64,
            Ok(Some(rejected)) => self.verifying.report.problem = Some(rejected.to_string()),
            Err(error) => {
                self.verifying.report.problem = Some(error.to_string());
                if is_storage_failure(&error) {
                    self.storage_fails(error.to_string());
                }
            }
        }
    }
}

/// Adds the sums of the keys that a `Rows` segment writes in a table.
fn keys_of(table: TableId, rows: &[u8], written: &mut Option<BTreeSet<Sum>>) -> Result<(), String> {
    let mut reader = RowsReader::new(rows);
    while let Some(op) = reader.next().map_err(|error| error.to_string())? {
        if op.table == table
            && let Some(written) = written
        {
            written.insert(sum_of(op.key));
        }
    }
    Ok(())
}
