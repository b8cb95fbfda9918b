//! Writes discarded concurrent values to `littoral_conflicts`, the newest
//! [`MAX_CONFLICTS`](crate::limits::MAX_CONFLICTS) of them.

use std::{io::Write, ops::Range};

use crate::{
    contested::{Conflict, ConflictKind},
    entry::{CellWrite, Member, RowOp},
    hlc::Stamp,
    id::{AuthorId, ColumnId, TableId},
    limits::MAX_CONFLICTS,
    merge::{row::Overflow, store},
    policy::PERSONAL_VALUE,
    schema::{Table, spelling::KEY_SPELLING},
    sqlite::Keeping,
    testing::{Bug, planted},
    value::{ByteReader, ValueRef, value},
};

impl Conflict {
    /// Whether it is a value that the operation overwrites, in a column of its own.
    pub(super) fn is_overwritten(&self) -> bool {
        self.kind == ConflictKind::StoredLoses && self.column != KEY_SPELLING
    }
}

/// Collects conflicts and writes many of them with one statement.
#[derive(Debug)]
pub(super) struct Conflicts<'a> {
    conn: &'a Keeping,
    members: &'a [Member],
    /// Texts and blobs of `rows`.
    arena: Vec<u8>,
    frames: Vec<Frame>,
    rows: Vec<Row>,
    /// Written since older ones were last removed.
    untrimmed: usize,
}

/// What rows of `littoral_conflicts` have in common: those of one entry that overwrites what another one
/// wrote are alike in all but keys and values, which are bound to a statement once per row.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    rule: &'static str,
    table: (TableId, String),
    column: Option<(ColumnId, String)>,
    /// Of what was kept, and of what was lost.
    stamps: [Option<Stamp>; 2],
    reason: Option<String>,
}

/// A row of `littoral_conflicts`.
#[derive(Debug)]
struct Row {
    frame: usize,
    /// The key as people read it, and as it is.
    text: Range<usize>,
    key: Range<usize>,
    /// What was kept, and what was lost.
    values: [Kept; 2],
}

/// A value in [`Conflicts`].
#[derive(Debug, Clone)]
enum Kept {
    Null,
    Integer(i64),
    Real(f64),
    Text(Range<usize>),
    Blob(Range<usize>),
}

/// One side of a conflict.
struct Side {
    value: Kept,
    stamp: Option<Stamp>,
}

/// Parameters of a statement for what its rows have in common, and behind them those of each row.
const COMMON: usize = 16;
const OF_ROW: usize = 4;

/// Rows that are collected at most.
const HELD_ROWS: usize = 256;

/// Rows of one statement: as many as are there.
const ROWS: [usize; 3] = [64, 8, 1];

/// Older conflicts are removed after so many new ones, and at the end of an entry.
const TRIM_AFTER: usize = 4096;

/// So many frames are compared with a new row's, the newest.
const FRAMES_TRIED: usize = 8;

/// Names of the statements kept for this; no table has the id 0. How many rows follows.
const INSERTS: [u64; 2] = [0, 2];
const TRIM: [u64; 2] = [0, 3];

impl<'a> Conflicts<'a> {
    pub(super) fn new(conn: &'a Keeping, members: &'a [Member]) -> Self {
        let (arena, frames, rows) = (Vec::new(), Vec::new(), Vec::new());
        Self { conn, members, arena, frames, rows, untrimmed: 0 }
    }

    /// Takes down the conflicts of an operation, before it is carried out.
    pub(super) fn record(
        &mut self,
        table: &Table,
        op: &RowOp<'_>,
        stamp: Stamp,
        conflicts: &[Conflict],
    ) -> rusqlite::Result<()> {
        conflicts.chunks(HELD_ROWS).try_for_each(|some| self.record_some(table, op, stamp, some))
    }

    fn record_some(
        &mut self,
        table: &Table,
        op: &RowOp<'_>,
        stamp: Stamp,
        conflicts: &[Conflict],
    ) -> rusqlite::Result<()> {
        self.make_room(conflicts.len())?;
        let mut stored = vec![Kept::Null; conflicts.len()];
        if conflicts.iter().any(|conflict| conflict.kind != ConflictKind::RowGone) {
            let arena = &mut self.arena;
            store::read(self.conn, table, op.key, |row| {
                for (stored, conflict) in stored.iter_mut().zip(conflicts) {
                    if let Some(place) = table.cell(conflict.column) {
                        *stored = keep(arena, row.cell(place));
                    }
                }
            })?;
        }
        for (conflict, stored) in conflicts.iter().zip(stored) {
            self.push(table, op, stamp, conflict, stored);
        }
        Ok(())
    }

    /// Takes down the conflicts of an update that has overwritten a value for each, and told it.
    pub(super) fn record_swapped(
        &mut self,
        table: &Table,
        op: &RowOp<'_>,
        stamp: Stamp,
        conflicts: &[Conflict],
    ) -> rusqlite::Result<()> {
        let conn = self.conn;
        let swapped = conn.swapped();
        for conflict in conflicts {
            self.make_room(1)?;
            let mut reader = ByteReader::new(&swapped);
            let mut stored = Kept::Null;
            while let (Ok(place), Ok(value)) = (reader.varint(), reader.cell()) {
                if table.cell(conflict.column).is_some_and(|cell| cell as u64 == place) {
                    stored = self.keep(value);
                }
            }
            self.push(table, op, stamp, conflict, stored);
        }
        Ok(())
    }

    fn push(
        &mut self,
        table: &Table,
        op: &RowOp<'_>,
        stamp: Stamp,
        conflict: &Conflict,
        stored: Kept,
    ) {
        let Some(place) = table.cell(conflict.column) else { return };
        let incoming = Side { value: self.keep(incoming(op, conflict)), stamp: Some(stamp) };
        let held = Side { value: stored, stamp: conflict.held };
        let gone = |stamp| Side { value: Kept::Null, stamp };
        let (rule, kept, lost) = match conflict.kind {
            ConflictKind::StoredLoses => ("last writer wins", incoming, held),
            ConflictKind::IncomingLoses => ("last writer wins", held, incoming),
            ConflictKind::StoredDeleted => ("delete wins", gone(Some(stamp)), held),
            ConflictKind::RowGone => ("delete wins", gone(None), incoming),
        };
        self.push_row(table, Some(place), op.key, rule, [kept, lost], None);
    }

    /// Takes down that the write with this stamp made a row break a CHECK, which SQLite tells as
    /// `reason`.
    pub(super) fn record_check(
        &mut self,
        table: &Table,
        key: &[u8],
        cells: &[Vec<u8>],
        stamp: Stamp,
        reason: &str,
    ) -> rusqlite::Result<()> {
        if planted(Bug::CheckUnreported) {
            return Ok(());
        }
        self.make_room(1)?;
        let value = self.keep(ValueRef::Text(row_text(table, cells).as_bytes()));
        let kept = Side { value, stamp: Some(stamp) };
        let lost = Side { value: Kept::Null, stamp: None };
        self.push_row(table, None, key, "check", [kept, lost], Some(reason));
        Ok(())
    }

    /// Takes down a row that was not what it had to be: what it was, and what it is now.
    pub(super) fn record_repair(
        &mut self,
        table: &Table,
        key: &[u8],
        kept: Option<&[Vec<u8>]>,
        lost: Option<&[Vec<u8>]>,
    ) -> rusqlite::Result<()> {
        self.make_room(1)?;
        let mut side = |cells: Option<&[Vec<u8>]>| {
            let value = cells.map_or(Kept::Null, |cells| {
                self.keep(ValueRef::Text(row_text(table, cells).as_bytes()))
            });
            Side { value, stamp: None }
        };
        let sides = [side(kept), side(lost)];
        self.push_row(table, None, key, "repaired", sides, None);
        Ok(())
    }

    /// Takes down that increments which did not know of each other made a counter overflow.
    pub(super) fn record_overflow(
        &mut self,
        table: &Table,
        key: &[u8],
        stamp: Stamp,
        overflow: Overflow,
    ) -> rusqlite::Result<()> {
        if planted(Bug::OverflowUnreported) {
            return Ok(());
        }
        self.make_room(1)?;
        let exact = self.keep(ValueRef::Text(overflow.exact.to_string().as_bytes()));
        let kept = Side { value: Kept::Integer(overflow.wrapped), stamp: None };
        let lost = Side { value: exact, stamp: Some(stamp) };
        self.push_row(table, Some(overflow.place), key, "counter overflow", [kept, lost], None);
        Ok(())
    }

    fn push_row(
        &mut self,
        table: &Table,
        place: Option<usize>,
        key: &[u8],
        rule: &'static str,
        [kept, lost]: [Side; 2],
        reason: Option<&str>,
    ) {
        let column = place.map(|place| &table.cells[place]);
        let stamps = [kept.stamp, lost.stamp];
        let is_alike = |frame: &Frame| {
            frame.rule == rule
                && frame.stamps == stamps
                && frame.table.0 == table.id
                && frame.column.as_ref().map(|(id, _)| *id) == column.map(|column| column.id)
                && frame.reason.as_deref() == reason
        };
        // Mostly one of a few that take turns.
        let first = self.frames.len().saturating_sub(FRAMES_TRIED);
        let frame = match self.frames[first..].iter().position(is_alike) {
            Some(place) => first + place,
            None => {
                self.frames.push(Frame {
                    rule,
                    table: (table.id, table.name.clone()),
                    column: column.map(|column| (column.id, column.name.clone())),
                    stamps,
                    reason: reason.map(str::to_owned),
                });
                self.frames.len() - 1
            }
        };
        let start = self.arena.len();
        put_key_text(&mut self.arena, table, key);
        let text = start..self.arena.len();
        self.arena.extend_from_slice(key);
        let key = text.end..self.arena.len();
        self.rows.push(Row { frame, text, key, values: [kept.value, lost.value] });
    }

    /// Before so many rows are taken down: writing empties the arena.
    fn make_room(&mut self, rows: usize) -> rusqlite::Result<()> {
        if self.rows.len() + rows > HELD_ROWS { self.write() } else { Ok(()) }
    }

    fn keep(&mut self, value: ValueRef<'_>) -> Kept {
        keep(&mut self.arena, value)
    }

    /// Writes what was collected, and removes what is too old.
    pub(super) fn flush(&mut self) -> rusqlite::Result<()> {
        self.write()?;
        if self.untrimmed > 0 { self.trim() } else { Ok(()) }
    }

    fn write(&mut self) -> rusqlite::Result<()> {
        // Those of one frame side by side.
        self.rows.sort_by_key(|row| row.frame);
        for alike in self.rows.chunk_by(|a, b| a.frame == b.frame) {
            let frame = &self.frames[alike[0].frame];
            let mut rest = alike;
            while !rest.is_empty() {
                let count = ROWS.into_iter().find(|count| *count <= rest.len()).unwrap_or(1);
                let (rows, behind) = rest.split_at(count);
                self.insert(frame, rows)?;
                rest = behind;
            }
        }
        self.untrimmed += self.rows.len();
        self.rows.clear();
        self.frames.clear();
        self.arena.clear();
        if self.untrimmed >= TRIM_AFTER { self.trim() } else { Ok(()) }
    }

    fn insert(&self, frame: &Frame, rows: &[Row]) -> rusqlite::Result<()> {
        let [table, parameter] = INSERTS;
        let name = [table, parameter, rows.len() as u64];
        let (arena, common) = (self.arena.as_slice(), frame.values(self.members));
        self.conn.run(
            &name,
            || insert_sql(rows.len()),
            |parameters| {
                (1..).zip(common).try_for_each(|(place, value)| parameters.lend(place, value))?;
                for (row, place) in rows.iter().zip((COMMON + 1..).step_by(OF_ROW)) {
                    let [kept, lost] = &row.values;
                    parameters.lend(place, ValueRef::Text(&arena[row.text.clone()]))?;
                    parameters.lend(place + 1, kept.within(arena))?;
                    parameters.lend(place + 2, lost.within(arena))?;
                    parameters.lend(place + 3, ValueRef::Blob(&arena[row.key.clone()]))?;
                }
                Ok(())
            },
        )
    }

    fn trim(&mut self) -> rusqlite::Result<()> {
        self.untrimmed = 0;
        let sql = || {
            format!(
                "DELETE FROM littoral_conflicts
                 WHERE id <= (SELECT max(id) FROM littoral_conflicts) - {MAX_CONFLICTS}
                 AND cells IS NULL"
            )
        };
        self.conn.run(&TRIM, sql, |_| Ok(()))
    }
}

impl Frame {
    /// In the order in which [`insert_sql`] numbers them.
    fn values<'v>(&'v self, members: &'v [Member]) -> [ValueRef<'v>; COMMON] {
        let text = |text: Option<&'v str>| {
            text.map_or(ValueRef::Null, |text| ValueRef::Text(text.as_bytes()))
        };
        let integer =
            |n: Option<u64>| n.map_or(ValueRef::Null, |n| ValueRef::Integer(n.cast_signed()));
        // The name of the node that wrote a side.
        let node = |author: AuthorId| {
            let member = members.iter().find(|member| member.author == author);
            member.map(|member| member.node.as_str())
        };
        let at = |stamp: Option<Stamp>| integer(stamp.map(|stamp| stamp.hlc.wall().0));
        let by = |stamp: Option<Stamp>| text(stamp.and_then(|stamp| node(stamp.author)));
        let hlc = |stamp: Option<Stamp>| integer(stamp.map(|stamp| stamp.hlc.0));
        let author = |stamp: Option<Stamp>| integer(stamp.map(|stamp| stamp.author.to_u64()));
        let seq = |stamp: Option<Stamp>| integer(stamp.map(|stamp| stamp.seq));
        let [kept, lost] = self.stamps;
        let column = self.column.as_ref();
        [
            text(Some(self.rule)),
            text(Some(&self.table.1)),
            text(column.map(|(_, name)| name.as_str())),
            at(kept),
            by(kept),
            at(lost),
            by(lost),
            integer(Some(self.table.0.0.into())),
            integer(column.map(|(id, _)| id.0.into())),
            hlc(kept),
            author(kept),
            seq(kept),
            hlc(lost),
            author(lost),
            seq(lost),
            text(self.reason.as_deref()),
        ]
    }
}

impl Kept {
    fn within<'v>(&self, arena: &'v [u8]) -> ValueRef<'v> {
        match self {
            Self::Null => ValueRef::Null,
            Self::Integer(n) => ValueRef::Integer(*n),
            Self::Real(r) => ValueRef::Real(*r),
            Self::Text(range) => ValueRef::Text(&arena[range.clone()]),
            Self::Blob(range) => ValueRef::Blob(&arena[range.clone()]),
        }
    }
}

fn keep(arena: &mut Vec<u8>, value: ValueRef<'_>) -> Kept {
    let mut put = |bytes: &[u8]| {
        let start = arena.len();
        arena.extend_from_slice(bytes);
        start..arena.len()
    };
    match value {
        ValueRef::Null => Kept::Null,
        ValueRef::Integer(n) => Kept::Integer(n),
        ValueRef::Real(r) => Kept::Real(r),
        ValueRef::Text(bytes) => Kept::Text(put(bytes)),
        ValueRef::Blob(bytes) => Kept::Blob(put(bytes)),
    }
}

/// All columns in their order, which saves SQLite a copy of each: id, rule, table, column, row, kept,
/// kept_at, kept_by, lost, lost_at, lost_by, table_id, column_id, key, the stamps of kept and lost, reason,
/// cells.
fn insert_sql(rows: usize) -> String {
    let row = |place: usize| {
        let [text, kept, lost, key] = [0, 1, 2, 3].map(|n| place + n);
        format!(
            "(NULL, ?1, ?2, ?3, ?{text}, ?{kept}, ?4, ?5, ?{lost}, ?6, ?7, ?8, ?9, ?{key}, \
             ?10, ?11, ?12, ?13, ?14, ?15, ?16, NULL)"
        )
    };
    let rows: Vec<String> = (COMMON + 1..).step_by(OF_ROW).take(rows).map(row).collect();
    format!("INSERT OR FAIL INTO littoral_conflicts VALUES {}", rows.join(", "))
}

fn incoming<'v>(op: &RowOp<'v>, conflict: &Conflict) -> ValueRef<'v> {
    let cell = op.cells.iter().find(|cell| cell.column == conflict.column);
    match cell.map(|cell| cell.write) {
        Some(CellWrite::Assign { value, .. }) => value,
        Some(CellWrite::Add(_) | CellWrite::Extreme(_) | CellWrite::Set(_)) | None => {
            ValueRef::Null
        }
    }
}

/// Appends a key as people read it: a JSON array, blobs as `"x'…'"`, and nothing of what is personal.
fn put_key_text(out: &mut Vec<u8>, table: &Table, key: &[u8]) {
    let mut reader = ByteReader::new(key);
    let mut columns = table.key.iter();
    out.push(b'[');
    let first = out.len();
    while !reader.is_empty() {
        if out.len() > first {
            out.push(b',');
        }
        let Ok(part) = reader.key_part() else { break };
        match columns.next() {
            Some(column) if table.is_personal(column) => put_json_string(out, PERSONAL_VALUE),
            _ => put_value_text(out, part.as_value()),
        }
    }
    out.push(b']');
}

/// A key as people read it.
pub(crate) fn key_text(table: &Table, key: &[u8]) -> String {
    let mut out = Vec::new();
    put_key_text(&mut out, table, key);
    String::from_utf8_lossy(&out).into_owned()
}

/// The cells of a row as people read them: a JSON object.
pub(super) fn row_text(table: &Table, cells: &[Vec<u8>]) -> String {
    let cells = table.cells.iter().zip(cells);
    let members: Vec<String> = cells
        .map(|(column, cell)| format!("{}:{}", json_string(&column.name), value_text(value(cell))))
        .collect();
    format!("{{{}}}", members.join(","))
}

fn value_text(value: ValueRef<'_>) -> String {
    let mut out = Vec::new();
    put_value_text(&mut out, value);
    String::from_utf8_lossy(&out).into_owned()
}

fn put_value_text(out: &mut Vec<u8>, value: ValueRef<'_>) {
    let written = match value {
        ValueRef::Null => write!(out, "null"),
        ValueRef::Integer(n) => write!(out, "{n}"),
        ValueRef::Real(r) => write!(out, "{r}"),
        ValueRef::Text(bytes) => {
            put_json_string(out, &String::from_utf8_lossy(bytes));
            Ok(())
        }
        ValueRef::Blob(bytes) => {
            out.extend_from_slice(b"\"x'");
            let digits = bytes.iter().try_for_each(|b| write!(out, "{b:02x}"));
            out.extend_from_slice(b"'\"");
            digits
        }
    };
    written.expect("memory takes every byte");
}

pub(super) fn json_string(text: &str) -> String {
    let mut out = Vec::new();
    put_json_string(&mut out, text);
    String::from_utf8_lossy(&out).into_owned()
}

fn put_json_string(out: &mut Vec<u8>, text: &str) {
    let is_plain = |byte: &u8| !matches!(byte, b'"' | b'\\' | 0..=0x1f);
    out.push(b'"');
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let plain = rest.iter().position(|byte| !is_plain(byte)).unwrap_or(rest.len());
        out.extend_from_slice(&rest[..plain]);
        rest = &rest[plain..];
        let Some((special, behind)) = rest.split_first() else { break };
        rest = behind;
        match special {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *special]),
            control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
        }
    }
    out.push(b'"');
}
