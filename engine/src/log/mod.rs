//! [`Log`]: the entries of this node in the order in which it applied them.
//!
//! The table `littoral_log` holds them; memory holds where each author stands, a sparse index, and
//! the newest entries, which are the ones that links ask for. Of a large entry the table holds the place
//! only: its bytes are [`chunks`], in memory is its name.
//!
//! Once every member has applied an entry and a checkpoint holds its clocks, it is trimmed, from the
//! oldest on.
//!
//! Invariants:
//! - LSNs ascend by one; each author's sequence numbers ascend by one along them;
//! - what was appended is not part of the log before [`Log::keep`], and leaves no trace after
//!   [`Log::undo`].

pub(crate) mod chunks;
pub(crate) mod published;

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
};

use rusqlite::{Connection, Row, params};

use crate::{
    contested::Stable,
    entry::{
        ChunksId, Digest, EntryHeader, LargeEntry, LargeName, Logged, Segment,
        codec::{Head, Segments, decode_entry},
    },
    hlc::Hlc,
    id::{AuthorId, Lsn, Seq},
    limits::{RECENT_LOG_BYTES, Sizes, TRIM_STEP_BYTES, TRIM_STEP_ENTRIES},
    log::{
        chunks::{ChunkError, ChunkWriter, SegmentReader},
        published::Published,
    },
    sqlite,
    value::{ByteReader, DecodeError, put_varint},
    version::{Dot, VersionVector, put_dots, read_dots},
};

/// Every how many entries of one author the index holds one.
const INDEX_STEP: u64 = 64;

const INSERT: &str = "/*littoral*/ INSERT INTO littoral_log VALUES(?, ?, ?, ?)";

/// From this size on, preparing the statement anew costs less than a copy of the entry.
const BORROWED_BYTES: usize = 64 << 10;

/// Stands in the log for the bytes of a large entry.
const IN_CHUNKS: &[u8] = &[];

/// Where the log stands, and how to find entries in it.
#[derive(Debug, Default)]
pub(crate) struct Log {
    tail: Tail,
    /// What is trimmed.
    start: Start,
    /// The tail at the last [`Log::keep`], while something is appended.
    kept: Option<Tail>,
    /// Appended since the last [`Log::keep`].
    fresh: Vec<(Lsn, Logged)>,
    index: BTreeMap<AuthorId, Vec<(Seq, Lsn)>>,
    recent: VecDeque<(Lsn, Logged)>,
    recent_bytes: usize,
    sizes: Sizes,
    /// Bytes of all entries in the log.
    bytes: u64,
    /// Who reads is told there what is committed.
    published: Arc<Published>,
}

impl Logged {
    /// Reads its segments one after the other.
    pub(crate) fn segments(&self) -> LoggedSegments<'_> {
        match self {
            Self::Whole(entry) => LoggedSegments::Whole(entry.segments_in_order()),
            Self::Large(entry) => LoggedSegments::Large(entry.segments()),
        }
    }
}

/// Reads the segments of an entry of the log.
#[derive(Debug)]
pub(crate) enum LoggedSegments<'e> {
    Whole(Segments<'e>),
    Large(SegmentReader),
}

impl LoggedSegments<'_> {
    /// The next segment; `conn` is one that sees the entry's chunks.
    pub(crate) fn next(&mut self, conn: &Connection) -> Result<Option<Segment<'_>>, ChunkError> {
        match self {
            Self::Whole(segments) => Ok(segments.next().transpose()?),
            Self::Large(reader) => reader.next(conn),
        }
    }
}

/// The trimmed prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Start {
    /// All up to this position is gone; 0 if nothing is trimmed.
    pub(crate) lsn: Lsn,
    /// The last position that is gone: between the two some frontiers stand still.
    pub(crate) upto: Lsn,
    /// The newest trimmed entry of every author.
    pub(crate) vector: VersionVector,
}

/// What [`Log::trim`] has trimmed in all, and the bytes of what it has trimmed now.
#[derive(Debug)]
pub(crate) struct Trimmed {
    pub(crate) start: Start,
    bytes: u64,
    /// There may be more: only one step was made.
    pub(crate) is_step: bool,
    /// The chunks of large entries among it.
    pub(crate) chunks: Vec<ChunksId>,
}

/// What follows from the entries so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    last: Lsn,
    hlc: Hlc,
    heads: BTreeMap<AuthorId, Head>,
}

impl Start {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.upto.0);
        put_varint(&mut out, self.lsn.0);
        put_dots(&mut out, self.vector.iter());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = ByteReader::new(bytes);
        let (upto, lsn) = (Lsn(reader.varint()?), Lsn(reader.varint()?));
        Ok(Self { lsn, upto, vector: read_dots(&mut reader)?.into_iter().collect() })
    }
}

impl Tail {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.last.0);
        put_varint(out, self.hlc.0);
        put_varint(out, self.heads.len() as u64);
        for (author, head) in &self.heads {
            put_varint(out, author.to_u64());
            put_varint(out, head.seq);
            out.extend_from_slice(&head.digest.0);
        }
    }

    pub(crate) fn decode(reader: &mut ByteReader<'_>) -> Result<Self, DecodeError> {
        let (last, hlc) = (Lsn(reader.varint()?), Hlc(reader.varint()?));
        let mut heads = BTreeMap::new();
        for _ in 0..reader.varint()? {
            let author = AuthorId::from_u64(reader.varint()?);
            let head = Head { seq: reader.varint()?, digest: Digest(reader.array()?) };
            heads.insert(author, head);
        }
        Ok(Self { last, hlc, heads })
    }
}

impl Log {
    /// What is large, and in what pieces it is handled.
    pub(crate) const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The newest position.
    pub(crate) fn last(&self) -> Lsn {
        self.tail.last
    }

    /// The greatest timestamp in it.
    pub(crate) fn hlc(&self) -> Hlc {
        self.tail.hlc
    }

    /// The newest entry of an author.
    pub(crate) fn head(&self, author: AuthorId) -> Head {
        self.tail.heads.get(&author).copied().unwrap_or(Head::START)
    }

    /// The newest entry of every author.
    pub(crate) fn heads(&self) -> impl Iterator<Item = (AuthorId, Head)> {
        self.tail.heads.iter().map(|(author, head)| (*author, *head))
    }

    pub(crate) fn vector(&self) -> VersionVector {
        self.heads().map(|(author, head)| Dot { author, seq: head.seq }).collect()
    }

    /// Appends within the transaction under way on `conn`. The entry must be its author's next; the
    /// chunks of a large one must be there.
    pub(crate) fn append(&mut self, conn: &Connection, entry: Logged) -> rusqlite::Result<Lsn> {
        let entry = match entry {
            Logged::Whole(entry) if entry.bytes.len() > self.sizes.large_entry => {
                Logged::Large(ChunkWriter::store(conn, &entry, self.sizes.chunk)?)
            }
            entry => entry,
        };
        let lsn = self.tail.last.next();
        let dot = entry.header().dot;
        let place = [lsn.0.cast_signed(), dot.author.to_u64().cast_signed(), dot.seq.cast_signed()];
        let bytes: &[u8] = match &entry {
            Logged::Whole(entry) => &entry.bytes,
            Logged::Large(_) => IN_CHUNKS,
        };
        if bytes.len() < BORROWED_BYTES {
            let [lsn, author, seq] = place;
            conn.prepare_cached(INSERT)?.execute(params![lsn, author, seq, bytes])?;
        } else {
            sqlite::insert_large_blob(conn, INSERT, &place, bytes)?;
        }
        self.kept.get_or_insert_with(|| self.tail.clone());
        self.published.unsettle();
        self.advance(lsn, &entry);
        self.fresh.push((lsn, entry));
        Ok(lsn)
    }

    fn advance(&mut self, lsn: Lsn, entry: &Logged) {
        let EntryHeader { dot, hlc, .. } = *entry.header();
        assert_eq!(self.head(dot.author).seq + 1, dot.seq, "an author's entries have no gaps");
        self.tail.last = lsn;
        self.tail.hlc = self.tail.hlc.max(hlc);
        self.tail.heads.insert(dot.author, Head { seq: dot.seq, digest: entry.digest() });
    }

    /// What was appended is committed; gives it.
    pub(crate) fn keep(&mut self) -> Vec<(Lsn, Logged)> {
        self.kept = None;
        let kept = mem::take(&mut self.fresh);
        if let Some((lsn, _)) = kept.last() {
            self.published.settle(*lsn, kept.iter().map(|(_, entry)| entry.header().dot));
        }
        for (lsn, entry) in &kept {
            Self::note(&mut self.index, *lsn, entry.header().dot);
            self.bytes += entry.length();
            self.recent_bytes += entry.bytes_in_memory();
            self.recent.push_back((*lsn, entry.clone()));
        }
        while self.recent_bytes > RECENT_LOG_BYTES
            && let Some((_, entry)) = self.recent.pop_front()
        {
            self.recent_bytes -= entry.bytes_in_memory();
        }
        kept
    }

    /// What was appended is rolled back.
    pub(crate) fn undo(&mut self) {
        self.fresh.clear();
        if let Some(kept) = self.kept.take() {
            self.tail = kept;
            self.published.settle_as_before();
        }
    }

    /// From here on says there what is committed.
    pub(crate) fn publish_at(&mut self, published: Arc<Published>) {
        published.begin(self.last(), self.vector());
        self.published = published;
    }

    fn note(index: &mut BTreeMap<AuthorId, Vec<(Seq, Lsn)>>, lsn: Lsn, dot: Dot) {
        if dot.seq % INDEX_STEP == 1 {
            index.entry(dot.author).or_default().push((dot.seq, lsn));
        }
    }

    /// A position at or before the first entry that a reader with this vector lacks; the position
    /// after the last one if it lacks none.
    pub(crate) fn start_for(&self, vector: &VersionVector) -> Lsn {
        self.heads()
            .filter(|(author, head)| vector.seq(*author) < head.seq)
            .map(|(author, _)| {
                let indexed = self.before(author, vector.seq(author) + 1);
                indexed.unwrap_or_else(|| self.start.lsn.next())
            })
            .min()
            .unwrap_or_else(|| self.tail.last.next())
    }

    fn before(&self, author: AuthorId, seq: Seq) -> Option<Lsn> {
        let index = self.index.get(&author)?;
        let place = index.partition_point(|(indexed, _)| *indexed <= seq);
        Some(index[place.checked_sub(1)?].1)
    }

    /// Gives the entries from `from` on, one after the other, until `each` says to stop by returning
    /// false, or `upto` is passed.
    pub(crate) fn read(
        &self,
        conn: &Connection,
        from: Lsn,
        upto: Lsn,
        mut each: impl FnMut(Lsn, &Logged) -> bool,
    ) -> Result<(), LogError> {
        let in_memory = self.recent.front().map_or_else(|| self.tail.last.next(), |(lsn, _)| *lsn);
        if from < in_memory {
            let mut statement = conn.prepare_cached(
                "SELECT lsn, author, seq, bytes FROM littoral_log \
                 WHERE lsn >= ? AND lsn < ? ORDER BY lsn",
            )?;
            let end = in_memory.min(upto.next());
            let mut rows = statement.query(params![from.0.cast_signed(), end.0.cast_signed()])?;
            while let Some(row) = rows.next()? {
                let (lsn, _, entry) = read_entry(conn, row)?;
                if !each(lsn, &entry) {
                    return Ok(());
                }
            }
        }
        let start = self.recent.partition_point(|(lsn, _)| *lsn < from);
        for (lsn, entry) in self.recent.range(start..) {
            if *lsn > upto || !each(*lsn, entry) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Bytes of all entries in the log.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is trimmed.
    pub(crate) fn start(&self) -> &Start {
        &self.start
    }

    /// What follows from the entries so far, to be kept with a checkpoint.
    pub(crate) fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Deletes entries that the frontier covers, from the first one on and in steps of
    /// [`TRIM_STEP_ENTRIES`] or [`TRIM_STEP_BYTES`], within the transaction under way. It stops at the first entry that is not
    /// covered, unless that is a frontier: of these a few stay while entries behind them go; and at one that
    /// `stays`. Gives what is trimmed then, `None` if nothing new is. When that has committed,
    /// [`Log::trimmed`] must follow.
    pub(crate) fn trim(
        &self,
        conn: &Connection,
        stable: &Stable,
        mut stays: impl FnMut(Dot) -> bool,
    ) -> rusqlite::Result<Option<Trimmed>> {
        let mut start = self.start.clone();
        let (mut bytes, mut gone, mut kept, mut seen) = (0, Vec::new(), false, 0);
        let mut deleted = 0;
        let mut large = Vec::new();
        let mut statement = conn.prepare_cached(
            "SELECT lsn, author, seq, length(bytes) FROM littoral_log \
             WHERE lsn > ? ORDER BY lsn LIMIT ?",
        )?;
        let limit = TRIM_STEP_ENTRIES.cast_signed();
        let mut rows = statement.query([start.lsn.0.cast_signed(), limit])?;
        while deleted < TRIM_STEP_BYTES
            && let Some(row) = rows.next()?
        {
            let author = AuthorId::from_u64(row.get::<_, i64>(1)?.cast_unsigned());
            let dot = Dot { author, seq: row.get::<_, i64>(2)?.cast_unsigned() };
            seen += 1;
            if !stable.covered.covers(dot) {
                if stable.is_open_frontier(dot) {
                    kept = true;
                    continue;
                }
                break;
            }
            if stays(dot) {
                break;
            }
            let lsn = Lsn(row.get::<_, i64>(0)?.cast_unsigned());
            if !kept {
                start.lsn = lsn;
            }
            start.upto = start.upto.max(lsn);
            start.vector.advance(dot);
            let length = row.get::<_, i64>(3)?.cast_unsigned();
            bytes += stored_length(conn, dot, length)?;
            deleted += length;
            if length == 0 {
                large.push(dot);
            }
            gone.push(lsn);
        }
        drop(rows);
        if gone.is_empty() {
            return Ok(None);
        }
        let mut chunks = Vec::new();
        for dot in large {
            chunks.extend(LargeName::remove(conn, dot)?);
        }
        let mut delete =
            conn.prepare_cached("DELETE FROM littoral_log WHERE lsn BETWEEN ? AND ?")?;
        for run in gone.chunk_by(|a, b| a.next() == *b) {
            delete.execute([run[0].0.cast_signed(), run[run.len() - 1].0.cast_signed()])?;
        }
        let is_step = seen == TRIM_STEP_ENTRIES || deleted >= TRIM_STEP_BYTES;
        Ok(Some(Trimmed { start, bytes, is_step, chunks }))
    }

    /// What [`Log::trim`] has deleted is committed.
    pub(crate) fn trimmed(&mut self, Trimmed { start, bytes, .. }: Trimmed) {
        self.start = start;
        self.bytes -= bytes;
        let lsn = self.start.lsn;
        for index in self.index.values_mut() {
            index.retain(|(_, indexed)| *indexed > lsn);
        }
        while let Some((_, entry)) = self.recent.pop_front_if(|(recent, _)| *recent <= lsn) {
            self.recent_bytes -= entry.bytes_in_memory();
        }
    }

    /// The digest of an entry that is in the log.
    pub(crate) fn digest_of(
        &self,
        conn: &Connection,
        dot: Dot,
    ) -> Result<Option<Digest>, LogError> {
        if self.head(dot.author).seq == dot.seq {
            return Ok(Some(self.head(dot.author).digest));
        }
        if self.start.vector.covers(dot) {
            return Ok(None);
        }
        let from = self.before(dot.author, dot.seq).unwrap_or_else(|| self.start.lsn.next());
        let mut statement = conn.prepare_cached(
            "SELECT lsn, author, seq, bytes FROM littoral_log \
             WHERE lsn >= ? AND author = ? AND seq = ? LIMIT 1",
        )?;
        let mut rows = statement.query(params![
            from.0.cast_signed(),
            dot.author.to_u64().cast_signed(),
            dot.seq.cast_signed()
        ])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let (_, _, entry) = read_entry(conn, row)?;
        Ok(Some(entry.digest()))
    }

    /// Finds the log of a file that was just opened: `start` is trimmed, and `tail` is what followed
    /// from the entries up to the last checkpoint. Reads those behind it, checks their chains, and gives
    /// each.
    pub(crate) fn open(
        conn: &Connection,
        sizes: Sizes,
        start: Start,
        tail: Tail,
        mut each: impl FnMut(Lsn, &Logged) -> Result<(), String>,
    ) -> Result<Self, LogError> {
        let mut log = Self { start, tail, sizes, ..Self::default() };
        let mut statement = conn.prepare(
            "SELECT lsn, author, seq, length(bytes) FROM littoral_log \
             WHERE lsn <= ? ORDER BY lsn",
        )?;
        let mut rows = statement.query([log.tail.last.0.cast_signed()])?;
        let mut found = log.start.vector.clone();
        while let Some(row) = rows.next()? {
            let lsn = Lsn(row.get::<_, i64>(0)?.cast_unsigned());
            let author = AuthorId::from_u64(row.get::<_, i64>(1)?.cast_unsigned());
            let dot = Dot { author, seq: row.get::<_, i64>(2)?.cast_unsigned() };
            if dot.seq != found.seq(author) + 1 {
                let what = format!("{dot} stands there after {}", found.seq(author));
                return Err(LogError::Damaged { lsn, what });
            }
            found.advance(dot);
            Self::note(&mut log.index, lsn, dot);
            log.bytes += stored_length(conn, dot, row.get::<_, i64>(3)?.cast_unsigned())?;
        }
        drop(rows);
        if found != log.vector() {
            let what = format!("entries of {} are missing: there are {found}", log.vector());
            return Err(LogError::Damaged { lsn: log.tail.last, what });
        }
        let mut statement = conn.prepare(
            "SELECT lsn, author, seq, bytes FROM littoral_log WHERE lsn > ? ORDER BY lsn",
        )?;
        let mut rows = statement.query([log.tail.last.0.cast_signed()])?;
        while let Some(row) = rows.next()? {
            let (lsn, named, entry) = read_entry(conn, row)?;
            let damaged = |what: String| LogError::Damaged { lsn, what };
            let EntryHeader { dot, previous, .. } = *entry.header();
            let head = log.head(named.author);
            if lsn != log.last().next() {
                return Err(damaged(format!("the position after {} is missing", log.last())));
            }
            if dot != named || named.seq != head.seq + 1 {
                return Err(damaged(format!("entry {dot} stands there as {named}")));
            }
            if previous != head.digest {
                return Err(damaged(format!("entry {named} does not follow the one before it")));
            }
            if let Logged::Large(large) = &entry {
                LargeEntry::verified(conn, &large.name(), large.chunks)
                    .map_err(|error| damaged(error.to_string()))?;
            }
            each(lsn, &entry).map_err(damaged)?;
            log.advance(lsn, &entry);
            log.bytes += entry.length();
            Self::note(&mut log.index, lsn, named);
        }
        Ok(log)
    }
}

/// The length of an entry of which the log holds `in_log` bytes.
fn stored_length(conn: &Connection, dot: Dot, in_log: u64) -> rusqlite::Result<u64> {
    if in_log > 0 {
        return Ok(in_log);
    }
    Ok(LargeName::find(conn, dot)?.map_or(0, |(name, _)| name.length))
}

/// Takes an entry from `lsn, author, seq, bytes`; of a large one it checks the header only.
fn read_entry(conn: &Connection, row: &Row<'_>) -> Result<(Lsn, Dot, Logged), LogError> {
    let lsn = Lsn(row.get::<_, i64>(0)?.cast_unsigned());
    let damaged = |what: String| LogError::Damaged { lsn, what };
    let dot = Dot {
        author: AuthorId::from_u64(row.get::<_, i64>(1)?.cast_unsigned()),
        seq: row.get::<_, i64>(2)?.cast_unsigned(),
    };
    let bytes = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
    if bytes != IN_CHUNKS {
        let entry = decode_entry(bytes.into()).map_err(|error| damaged(error.to_string()))?;
        return Ok((lsn, dot, Logged::Whole(entry)));
    }
    match LargeEntry::find(conn, dot) {
        Ok(Some(large)) => Ok((lsn, dot, Logged::Large(large))),
        Ok(None) => Err(damaged(format!("the large entry {dot} has no chunks"))),
        Err(ChunkError::Sqlite(error)) => Err(error.into()),
        Err(error) => Err(damaged(format!("the large entry {dot}: {error}"))),
    }
}

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("the log is damaged at LSN {lsn}: {what}")]
    Damaged { lsn: Lsn, what: String },
}
