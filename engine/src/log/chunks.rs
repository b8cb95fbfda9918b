//! Large entries: their bytes in chunks, written once and read one segment at a time.
//!
//! `littoral_chunks` holds the chunks, `littoral_large` which entry they are of. The chunks of an
//! entry that is in the log, and those of one that is still being received (see
//! [`spool`](crate::log::spool)), lie in the same table: to apply an entry nothing is copied.
//!
//! Chunks of an entry that is no longer needed are removed little by little, so that nothing waits for a
//! gigabyte of them; until then they are nameless: no row of `littoral_large` has their id.
//!
//! Invariants:
//! - a chunk's place is the entry's id and its offset in the entry's bytes; there are no gaps;
//! - no more than one segment and one chunk of a large entry are in memory at a time.

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use crate::{
    entry::{
        ChunksId, Digest, Entry, EntryHeader, LargeEntry, LargeName, Logged, Segment,
        codec::{
            Body, FIELD_HEAD_BYTES_MAX, HEADER_BYTES_MAX, decode_header, decode_segment,
            encode_header, rows_head,
        },
        rows::RowsWriter,
    },
    error::WriteError,
    id::AuthorId,
    limits::Sizes,
    testing::{Bug, planted},
    value::{ByteReader, DecodeError},
    version::Dot,
};

/// The greatest length of an entry is less than two to this power.
const OFFSET_BITS: u32 = 40;

const INSERT: &str = "/*littoral*/ INSERT INTO littoral_chunks VALUES(?, ?)";

impl ChunksId {
    /// One that no entry has.
    pub(crate) fn unused(conn: &Connection) -> rusqlite::Result<Self> {
        // An entry that is being received has a name before it has chunks.
        conn.prepare_cached(
            "/*littoral*/ SELECT coalesce((SELECT max(place) FROM littoral_chunks), 0), \
             coalesce((SELECT max(id) FROM littoral_large), 0)",
        )?
        .query_row([], |row| Ok(Self((row.get::<_, i64>(0)? >> OFFSET_BITS).max(row.get(1)?) + 1)))
    }

    fn place(self, offset: u64) -> i64 {
        (self.0 << OFFSET_BITS) | offset.cast_signed()
    }

    /// Stores the chunk at an offset.
    pub(crate) fn put(self, conn: &Connection, offset: u64, bytes: &[u8]) -> rusqlite::Result<()> {
        conn.prepare_cached(INSERT)?.execute(params![self.place(offset), bytes])?;
        Ok(())
    }

    /// The bytes from an offset to the end of the chunk it lies in; `None` if there are none.
    pub(crate) fn read(
        self,
        conn: &Connection,
        offset: u64,
        out: &mut Vec<u8>,
    ) -> rusqlite::Result<Option<()>> {
        let mut statement: CachedStatement<'_> = conn.prepare_cached(
            "SELECT place, bytes FROM littoral_chunks WHERE place BETWEEN ? AND ? \
             ORDER BY place DESC LIMIT 1",
        )?;
        let mut rows = statement.query(params![self.place(0), self.place(offset)])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let start = row.get::<_, i64>(0)? - self.place(0);
        let bytes = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        let skip = usize::try_from(offset.cast_signed() - start).unwrap_or(usize::MAX);
        let Some(rest) = bytes.get(skip..).filter(|rest| !rest.is_empty()) else {
            return Ok(None);
        };
        out.extend_from_slice(rest);
        Ok(Some(()))
    }

    /// How many bytes there are.
    pub(crate) fn length(self, conn: &Connection) -> rusqlite::Result<u64> {
        conn.prepare_cached(
            "SELECT place, length(bytes) FROM littoral_chunks WHERE place BETWEEN ? AND ? \
             ORDER BY place DESC LIMIT 1",
        )?
        .query_row(params![self.place(0), self.place((1 << OFFSET_BITS) - 1)], |row| {
            Ok((row.get::<_, i64>(0)? - self.place(0) + row.get::<_, i64>(1)?).cast_unsigned())
        })
        .optional()
        .map(Option::unwrap_or_default)
    }

    /// Removes some `bytes` of them, at least a chunk, unless a large entry has them: another one may have
    /// taken the id since. False if there are none.
    pub(crate) fn remove_some(self, conn: &Connection, bytes: u64) -> rusqlite::Result<bool> {
        let mut statement = conn.prepare_cached(
            "SELECT place, length(bytes) FROM littoral_chunks WHERE place BETWEEN ?1 AND ?2 \
             AND NOT EXISTS (SELECT 1 FROM littoral_large WHERE id = ?3) ORDER BY place",
        )?;
        let end = self.place((1 << OFFSET_BITS) - 1);
        let name = if planted(Bug::ChunksOfAnother) { -1 } else { self.0 };
        let mut rows = statement.query([self.place(0), end, name])?;
        let (mut last, mut seen) = (None, 0);
        while seen < bytes
            && let Some(row) = rows.next()?
        {
            last = Some(row.get(0)?);
            seen += row.get::<_, i64>(1)?.cast_unsigned();
        }
        drop(rows);
        let Some(last) = last else { return Ok(false) };
        conn.prepare_cached("DELETE FROM littoral_chunks WHERE place BETWEEN ? AND ?")?
            .execute([self.place(0), last])?;
        Ok(true)
    }

    /// Those that no large entry has: it was removed, and they not yet.
    pub(crate) fn nameless(conn: &Connection) -> rusqlite::Result<Vec<Self>> {
        conn.prepare(&format!(
            "WITH RECURSIVE ids(id) AS (
               SELECT min(place) >> {OFFSET_BITS} FROM littoral_chunks
               UNION ALL
               SELECT (SELECT min(place) >> {OFFSET_BITS} FROM littoral_chunks
                       WHERE place >= (id + 1) << {OFFSET_BITS})
               FROM ids WHERE id IS NOT NULL)
             SELECT id FROM ids
             WHERE id IS NOT NULL AND id NOT IN (SELECT id FROM littoral_large)"
        ))?
        .query_map([], |row| row.get(0).map(Self))?
        .collect()
    }
}

impl LargeName {
    /// Notes that the chunks `id` are, or will be, this entry's.
    pub(crate) fn put(&self, conn: &Connection, id: ChunksId) -> rusqlite::Result<()> {
        conn.prepare_cached("/*littoral*/ INSERT INTO littoral_large VALUES(?, ?, ?, ?, ?)")?
            .execute(params![
                self.dot.author.to_u64().cast_signed(),
                self.dot.seq.cast_signed(),
                id.0,
                self.digest.0,
                self.length.cast_signed()
            ])?;
        Ok(())
    }

    /// All of the file, with their chunks: those of the log, and those being received.
    pub(crate) fn all(conn: &Connection) -> rusqlite::Result<Vec<(Self, ChunksId)>> {
        conn.prepare("SELECT author, seq, id, digest, length FROM littoral_large")?
            .query_map([], |row| {
                let dot = Dot {
                    author: AuthorId::from_u64(row.get::<_, i64>(0)?.cast_unsigned()),
                    seq: row.get::<_, i64>(1)?.cast_unsigned(),
                };
                let length = row.get::<_, i64>(4)?.cast_unsigned();
                Ok((Self { dot, digest: Digest(row.get(3)?), length }, ChunksId(row.get(2)?)))
            })?
            .collect()
    }

    pub(crate) fn find(conn: &Connection, dot: Dot) -> rusqlite::Result<Option<(Self, ChunksId)>> {
        conn.prepare_cached(
            "SELECT id, digest, length FROM littoral_large WHERE author = ? AND seq = ?",
        )?
        .query_row(params![dot.author.to_u64().cast_signed(), dot.seq.cast_signed()], |row| {
            let length = row.get::<_, i64>(2)?.cast_unsigned();
            Ok((Self { dot, digest: Digest(row.get(1)?), length }, ChunksId(row.get(0)?)))
        })
        .optional()
    }

    /// Removes the entry's name. Its chunks, which may be many, are to be discarded once that is
    /// committed.
    pub(crate) fn remove(conn: &Connection, dot: Dot) -> rusqlite::Result<Option<ChunksId>> {
        conn.prepare_cached("DELETE FROM littoral_large WHERE author = ? AND seq = ? RETURNING id")?
            .query_row(params![dot.author.to_u64().cast_signed(), dot.seq.cast_signed()], |row| {
                row.get(0).map(ChunksId)
            })
            .optional()
    }
}

impl LargeEntry {
    /// Finds one by its dot, and reads its header.
    pub(crate) fn find(conn: &Connection, dot: Dot) -> Result<Option<Self>, ChunkError> {
        let Some((name, chunks)) = LargeName::find(conn, dot)? else { return Ok(None) };
        let header = SegmentReader::new(chunks, name.length).header(conn)?;
        Ok(Some(Self { header, digest: name.digest, length: name.length, chunks }))
    }

    /// Reads all chunks of an entry that should have this name, and checks that they are its: the
    /// digest, the header, the framing of segments.
    pub(crate) fn verified(
        conn: &Connection,
        name: &LargeName,
        chunks: ChunksId,
    ) -> Result<Self, ChunkError> {
        let mut reader = SegmentReader::new(chunks, name.length);
        reader.hasher = Some(Box::default());
        let header = reader.header(conn)?;
        while reader.next(conn)?.is_some() {}
        let digest = reader.hasher.take().map(|hasher| Digest(*hasher.finalize().as_bytes()));
        if digest != Some(name.digest) {
            return Err(ChunkError::Damaged("its digest is not that of its chunks"));
        }
        if header.dot != name.dot {
            return Err(ChunkError::Damaged("its header names another entry"));
        }
        Ok(Self { header, digest: name.digest, length: name.length, chunks })
    }

    /// Reads its segments one after the other.
    pub(crate) fn segments(&self) -> SegmentReader {
        SegmentReader::new(self.chunks, self.length)
    }
}

/// Why the chunks of an entry could not be read as one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Damaged(&'static str),
}

/// Reads the segments of a large entry from front to back.
#[derive(Debug)]
pub(crate) struct SegmentReader {
    chunks: ChunksId,
    length: u64,
    /// How many bytes were taken from chunks.
    loaded: u64,
    /// Bytes taken from chunks; those before `at` were read.
    buffer: Vec<u8>,
    at: usize,
    hasher: Option<Box<blake3::Hasher>>,
}

impl SegmentReader {
    const fn new(chunks: ChunksId, length: u64) -> Self {
        Self { chunks, length, loaded: 0, buffer: Vec::new(), at: 0, hasher: None }
    }

    fn header(&mut self, conn: &Connection) -> Result<EntryHeader, ChunkError> {
        self.load(conn, HEADER_BYTES_MAX)?;
        let mut reader = ByteReader::new(&self.buffer);
        let header = decode_header(&mut reader)?;
        self.at = self.buffer.len() - reader.remaining();
        Ok(header)
    }

    /// The next segment.
    pub(crate) fn next(&mut self, conn: &Connection) -> Result<Option<Segment<'_>>, ChunkError> {
        if self.loaded == 0 {
            self.header(conn)?;
        }
        loop {
            self.load(conn, FIELD_HEAD_BYTES_MAX)?;
            let mut reader = ByteReader::new(&self.buffer[self.at..]);
            if reader.is_empty() {
                return Ok(None);
            }
            let (tag, len) = (reader.varint()?, reader.varint()?);
            self.at = self.buffer.len() - reader.remaining();
            if len > self.length - self.loaded + (self.buffer.len() - self.at) as u64 {
                return Err(DecodeError::Truncated.into());
            }
            let len = usize::try_from(len).map_err(|_| DecodeError::Range)?;
            self.load(conn, len)?;
            let start = self.at;
            self.at += len;
            if decode_segment(tag, &self.buffer[start..self.at])?.is_some() {
                // Decoded again, since what is returned in a loop is borrowed for all of it.
                return Ok(decode_segment(tag, &self.buffer[start..self.at])?);
            }
        }
    }

    /// Has at least so many unread bytes in the buffer, or all there are.
    fn load(&mut self, conn: &Connection, bytes: usize) -> Result<(), ChunkError> {
        while self.buffer.len() - self.at < bytes && self.loaded < self.length {
            self.buffer.drain(..self.at);
            self.at = 0;
            let before = self.buffer.len();
            if self.chunks.read(conn, self.loaded, &mut self.buffer)?.is_none() {
                return Err(ChunkError::Damaged("a chunk is missing"));
            }
            let chunk = &self.buffer[before..];
            self.loaded += chunk.len() as u64;
            if self.loaded > self.length {
                return Err(ChunkError::Damaged("there are more bytes than it has"));
            }
            if let Some(hasher) = &mut self.hasher {
                hasher.update(chunk);
            }
        }
        Ok(())
    }
}

/// An entry that is being written: kept in memory as long as it is not large.
#[derive(Debug)]
pub(crate) struct Draft<'c> {
    conn: &'c Connection,
    header: EntryHeader,
    sizes: Sizes,
    /// The largest entry allowed.
    max: u64,
    body: Body,
    large: Option<ChunkWriter<'c>>,
}

impl<'c> Draft<'c> {
    /// Begins an entry that may become as large as `max`. Chunks are written within the transaction
    /// under way on `conn`.
    pub(crate) fn new(conn: &'c Connection, header: EntryHeader, sizes: Sizes, max: u64) -> Self {
        Self { conn, header, sizes, max, body: Body::default(), large: None }
    }

    /// How long a segment of rows may get before it is time to end it.
    pub(crate) const fn segment_bytes(&self) -> usize {
        self.sizes.large_entry
    }

    /// Ends a segment of rows; the writer begins another one.
    pub(crate) fn rows(&mut self, rows: &mut RowsWriter) -> Result<(), WriteError> {
        rows.finish();
        if rows.is_empty() {
            return Ok(());
        }
        if self.becomes_large(rows.len())? {
            let large = self.chunks()?;
            large.write(&rows_head(rows.len()))?;
            large.write(rows.as_bytes())?;
            rows.restart();
        } else {
            self.body.push_rows(std::mem::take(rows));
        }
        Ok(())
    }

    /// Adds segments of other kinds than rows.
    pub(crate) fn segment(&mut self, push: impl FnOnce(&mut Body)) -> Result<(), WriteError> {
        push(&mut self.body);
        // Of an entry that is large already the body holds only what was just pushed.
        let more = if self.large.is_some() { self.body.len() } else { 0 };
        if self.becomes_large(more)? {
            self.chunks()?;
        }
        Ok(())
    }

    /// Whether nothing was written so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.large.is_none() && self.body.is_empty()
    }

    /// Whether the entry is too large for memory with so many more bytes.
    fn becomes_large(&self, more: usize) -> Result<bool, WriteError> {
        let before = match &self.large {
            Some(large) => large.written(),
            None => (HEADER_BYTES_MAX + self.body.len()) as u64,
        };
        let bytes = before + more as u64;
        if bytes > self.max {
            return Err(WriteError::EntryTooLarge { bytes, max: self.max });
        }
        Ok(self.large.is_some() || bytes > self.sizes.large_entry as u64)
    }

    /// The chunks, with all that came before in them.
    fn chunks(&mut self) -> rusqlite::Result<&mut ChunkWriter<'c>> {
        let mut large = match self.large.take() {
            Some(large) => large,
            None => {
                let mut large = ChunkWriter::new(self.conn, self.sizes.chunk)?;
                large.write(&encode_header(&self.header))?;
                large
            }
        };
        for (head, contents) in self.body.take() {
            large.write(&head)?;
            large.write(&contents)?;
        }
        Ok(self.large.insert(large))
    }

    /// The entry; `None` if nothing was written.
    pub(crate) fn finish(self) -> Result<Option<Logged>, WriteError> {
        match self.large {
            Some(large) => Ok(Some(Logged::Large(large.finish(self.header)?))),
            None if self.body.is_empty() => Ok(None),
            None => Ok(Some(Logged::Whole(self.body.into_entry(self.header)))),
        }
    }
}

/// Writes the bytes of a large entry into chunks.
#[derive(Debug)]
pub(crate) struct ChunkWriter<'c> {
    conn: &'c Connection,
    id: ChunksId,
    chunk: usize,
    buffer: Vec<u8>,
    stored: u64,
    hasher: blake3::Hasher,
}

impl<'c> ChunkWriter<'c> {
    fn new(conn: &'c Connection, chunk: usize) -> rusqlite::Result<Self> {
        let id = ChunksId::unused(conn)?;
        let buffer = Vec::with_capacity(chunk);
        Ok(Self { conn, id, chunk, buffer, stored: 0, hasher: blake3::Hasher::new() })
    }

    /// Puts an entry that is in memory into chunks.
    pub(crate) fn store(
        conn: &'c Connection,
        entry: &Entry,
        chunk: usize,
    ) -> rusqlite::Result<LargeEntry> {
        let mut writer = Self::new(conn, chunk)?;
        writer.write(&entry.bytes)?;
        writer.finish(entry.header)
    }

    fn written(&self) -> u64 {
        self.stored + self.buffer.len() as u64
    }

    fn write(&mut self, mut bytes: &[u8]) -> rusqlite::Result<()> {
        self.hasher.update(bytes);
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(self.chunk - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = rest;
            if self.buffer.len() == self.chunk {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> rusqlite::Result<()> {
        if !self.buffer.is_empty() {
            self.id.put(self.conn, self.stored, &self.buffer)?;
            self.stored += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    fn finish(mut self, header: EntryHeader) -> rusqlite::Result<LargeEntry> {
        self.flush()?;
        let digest = Digest(*self.hasher.finalize().as_bytes());
        let large = LargeEntry { header, digest, length: self.stored, chunks: self.id };
        large.name().put(self.conn, self.id)?;
        Ok(large)
    }
}
