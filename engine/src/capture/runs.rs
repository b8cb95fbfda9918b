//! [`Runs`]: row events of a transaction that are too many for memory, in sorted runs on disk, and
//! their merge.
//!
//! They lie in a temporary SQLite database of the same VFS, which SQLite removes when it is closed, a
//! crash included: nothing of it is ever found again. It is opened when the first run is written and
//! closed when the transaction ends.
//!
//! Invariants:
//! - within a run events are ordered by table, key and the order in which they happened, and so are
//!   they in the merge;
//! - merging holds one piece of each run in memory.

use std::{cmp::Ordering, fmt, ops::Range};

use rusqlite::{Connection, params};

use crate::{
    db::File,
    sqlite::Change,
    value::{ByteReader, DecodeError, put_prefixed, put_varint},
};

/// Runs are written and read in pieces of about this many bytes.
const PIECE_BYTES: usize = 64 << 10;

/// A piece's place is its run's number and its own.
const RUN_SHIFT: u32 = 32;

/// The runs of one transaction.
pub(crate) struct Runs {
    conn: Connection,
    count: u32,
    /// Of the run that is being written.
    pieces: u32,
    buffer: Vec<u8>,
    /// Events that were taken back, by their ordinals.
    dead: Vec<Range<u64>>,
}

/// One row event, wherever its bytes are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunEvent<'b> {
    /// The table's place in the registry.
    pub(crate) table: u32,
    pub(crate) change: Change,
    pub(crate) key: &'b [u8],
    /// How many events there were before it in the transaction.
    pub(crate) ordinal: u64,
    pub(crate) cells: &'b [u8],
}

impl fmt::Debug for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runs").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Runs {
    /// Opens the temporary database.
    pub(crate) fn open(file: &File) -> rusqlite::Result<Self> {
        let conn = file.temporary()?;
        // It is read by nobody else and never recovered.
        conn.execute_batch(
            "PRAGMA page_size = 32768; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; \
             CREATE TABLE runs(place INTEGER PRIMARY KEY, bytes BLOB NOT NULL);",
        )?;
        Ok(Self { conn, count: 0, pieces: 0, buffer: Vec::new(), dead: Vec::new() })
    }

    /// Appends an event to the run that is being written.
    pub(crate) fn push(&mut self, event: &RunEvent<'_>) -> rusqlite::Result<()> {
        put_varint(&mut self.buffer, u64::from(event.table));
        self.buffer.push(match event.change {
            Change::Insert => 1,
            Change::Update => 2,
            Change::Delete => 3,
        });
        put_varint(&mut self.buffer, event.ordinal);
        put_prefixed(&mut self.buffer, event.key);
        put_prefixed(&mut self.buffer, event.cells);
        if self.buffer.len() >= PIECE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Ends the run.
    pub(crate) fn end_run(&mut self) -> rusqlite::Result<()> {
        self.flush()?;
        self.count += u32::from(self.pieces > 0);
        self.pieces = 0;
        Ok(())
    }

    fn flush(&mut self) -> rusqlite::Result<()> {
        if !self.buffer.is_empty() {
            self.conn
                .prepare_cached("INSERT INTO runs VALUES(?, ?)")?
                .execute(params![place(self.count, self.pieces), self.buffer])?;
            self.pieces += 1;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Takes events back.
    pub(crate) fn kill(&mut self, ordinals: Range<u64>) {
        self.dead.push(ordinals);
    }

    /// Merges what was written so far from an ordinal on, except for the events taken back so far.
    pub(crate) fn merge_from(&self, ordinal: u64) -> rusqlite::Result<Merge> {
        let mut dead = self.dead.clone();
        dead.push(0..ordinal);
        let mut merge = Merge { heap: Vec::new(), cursors: Vec::new(), dead, fresh: true };
        for run in 0..self.count {
            let mut cursor = Cursor { run, ..Cursor::default() };
            if cursor.advance(self, &merge.dead)? {
                merge.cursors.push(cursor);
            }
        }
        merge.heap = (0..merge.cursors.len()).collect();
        for root in (0..merge.heap.len()).rev() {
            merge.sift_down(root);
        }
        Ok(merge)
    }
}

fn place(run: u32, piece: u32) -> i64 {
    i64::from(run) << RUN_SHIFT | i64::from(piece)
}

/// Reads all runs at once, in order.
#[derive(Debug)]
pub(crate) struct Merge {
    cursors: Vec<Cursor>,
    /// Places of cursors; none comes before the one at half its index.
    heap: Vec<usize>,
    dead: Vec<Range<u64>>,
    /// The first event was not given yet.
    fresh: bool,
}

impl Merge {
    /// The next event by table, key and ordinal.
    pub(crate) fn next(&mut self, runs: &Runs) -> rusqlite::Result<Option<RunEvent<'_>>> {
        if std::mem::take(&mut self.fresh) {
            return Ok(self.present());
        }
        let Some(&first) = self.heap.first() else { return Ok(None) };
        if !self.cursors[first].advance(runs, &self.dead)? {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
        Ok(self.present())
    }

    /// The event given last, again.
    fn present(&self) -> Option<RunEvent<'_>> {
        self.heap.first().map(|first| self.cursors[*first].event())
    }

    fn sift_down(&mut self, mut root: usize) {
        loop {
            let mut least = root;
            for child in [2 * root + 1, 2 * root + 2] {
                if child < self.heap.len() && self.order(child, least) == Ordering::Less {
                    least = child;
                }
            }
            if least == root {
                return;
            }
            self.heap.swap(root, least);
            root = least;
        }
    }

    fn order(&self, a: usize, b: usize) -> Ordering {
        let [a, b] = [a, b].map(|place| self.cursors[self.heap[place]].event());
        (a.table, a.key, a.ordinal).cmp(&(b.table, b.key, b.ordinal))
    }
}

/// One run, read from front to back.
#[derive(Debug, Default)]
struct Cursor {
    run: u32,
    /// The next piece to read.
    piece: u32,
    bytes: Vec<u8>,
    /// Where the next event begins.
    at: usize,
    now: Place,
}

/// Where the present event's parts are in the piece.
#[derive(Debug, Default)]
struct Place {
    table: u32,
    change: Option<Change>,
    ordinal: u64,
    key: Range<usize>,
    cells: Range<usize>,
}

impl Cursor {
    fn event(&self) -> RunEvent<'_> {
        RunEvent {
            table: self.now.table,
            change: self.now.change.expect("a cursor stands at an event"),
            key: &self.bytes[self.now.key.clone()],
            ordinal: self.now.ordinal,
            cells: &self.bytes[self.now.cells.clone()],
        }
    }

    /// Goes to the next event that was not taken back; false at the end.
    fn advance(&mut self, runs: &Runs, dead: &[Range<u64>]) -> rusqlite::Result<bool> {
        loop {
            if self.at == self.bytes.len() && !self.load(runs)? {
                return Ok(false);
            }
            self.now = self.read().expect("the recorder encoded the runs");
            if !dead.iter().any(|range| range.contains(&self.now.ordinal)) {
                return Ok(true);
            }
        }
    }

    fn load(&mut self, runs: &Runs) -> rusqlite::Result<bool> {
        self.bytes.clear();
        self.at = 0;
        let mut statement = runs.conn.prepare_cached("SELECT bytes FROM runs WHERE place = ?")?;
        let mut rows = statement.query([place(self.run, self.piece)])?;
        let Some(row) = rows.next()? else { return Ok(false) };
        self.bytes.extend_from_slice(row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?);
        self.piece += 1;
        Ok(true)
    }

    fn read(&mut self) -> Result<Place, DecodeError> {
        let mut reader = ByteReader::new(&self.bytes[self.at..]);
        let end = |reader: &ByteReader<'_>| self.bytes.len() - reader.remaining();
        let table = reader.varint_u32()?;
        let change = match reader.byte()? {
            1 => Change::Insert,
            2 => Change::Update,
            _ => Change::Delete,
        };
        let ordinal = reader.varint()?;
        let key = reader.prefixed()?.len();
        let key = end(&reader) - key..end(&reader);
        let cells = reader.prefixed()?.len();
        let cells = end(&reader) - cells..end(&reader);
        self.at = end(&reader);
        Ok(Place { table, change: Some(change), ordinal, key, cells })
    }
}

/// The events of one row, in the order in which they happened.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) table: u32,
    pub(crate) key: Vec<u8>,
    /// What happened, and where its cells are in `bytes`.
    pub(crate) events: Vec<(Change, Range<usize>)>,
    pub(crate) bytes: Vec<u8>,
}

/// A merge by rows.
#[derive(Debug)]
pub(crate) struct Groups {
    merge: Merge,
    group: Group,
    /// The merge stands at the first event of the next group.
    ahead: bool,
}

impl Groups {
    pub(crate) fn new(merge: Merge) -> Self {
        Self { merge, group: Group::default(), ahead: false }
    }

    /// The next row, by table and key.
    pub(crate) fn next(&mut self, runs: &Runs) -> rusqlite::Result<Option<&Group>> {
        let group = &mut self.group;
        group.events.clear();
        group.bytes.clear();
        loop {
            let event = if std::mem::take(&mut self.ahead) {
                self.merge.present()
            } else {
                self.merge.next(runs)?
            };
            let Some(event) = event else { break };
            if group.events.is_empty() {
                group.table = event.table;
                group.key.clear();
                group.key.extend_from_slice(event.key);
            } else if (group.table, group.key.as_slice()) != (event.table, event.key) {
                self.ahead = true;
                break;
            }
            let start = group.bytes.len();
            group.bytes.extend_from_slice(event.cells);
            group.events.push((event.change, start..group.bytes.len()));
        }
        Ok((!group.events.is_empty()).then_some(&*group))
    }
}
