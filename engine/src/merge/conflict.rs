//! Writes discarded concurrent values to `littoral_conflicts`, the newest
//! [`MAX_CONFLICTS`](crate::limits::MAX_CONFLICTS) of them.

use std::ops::Range;

use crate::{
    contested::{Conflict, ConflictKind},
    entry::{CellWrite, Member, RowOp},
    hlc::Stamp,
    id::AuthorId,
    limits::MAX_CONFLICTS,
    merge::{row::Overflow, store},
    schema::{Table, spelling::KEY_SPELLING},
    sqlite::Keeping,
    testing::{Bug, planted},
    value::{ByteReader, DecodeError, ValueRef, value},
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
    /// Texts and blobs of `values`.
    arena: Vec<u8>,
    /// Of every row [`COLUMNS`] values.
    values: Vec<Kept>,
    /// Written since older ones were last removed.
    untrimmed: usize,
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

const COLUMNS: &str = "rule, \"table\", \"column\", \"row\", kept, kept_at, kept_by, lost, lost_at, lost_by, \
                       table_id, column_id, key, kept_hlc, kept_author, kept_seq, lost_hlc, lost_author, lost_seq, \
                       reason";

const WIDTH: usize = 20;

/// Rows that are collected at most.
const HELD_ROWS: usize = 4 * ROWS;

/// Rows of one statement.
const ROWS: usize = 16;

/// Older conflicts are removed after so many new ones, and at the end of an entry.
const TRIM_AFTER: usize = 4096;

/// Names of the statements kept for this; no table has the id 0.
const INSERT: [u64; 2] = [0, 1];
const INSERTS: [u64; 2] = [0, 2];
const TRIM: [u64; 2] = [0, 3];

impl<'a> Conflicts<'a> {
    pub(super) fn new(conn: &'a Keeping, members: &'a [Member]) -> Self {
        Self { conn, members, arena: Vec::new(), values: Vec::new(), untrimmed: 0 }
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
        // Before anything is kept: writing empties the arena.
        if self.values.len() + conflicts.len() * WIDTH > HELD_ROWS * WIDTH {
            self.write()?;
        }
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
            if self.values.len() == HELD_ROWS * WIDTH {
                self.write()?;
            }
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
        if self.values.len() == HELD_ROWS * WIDTH {
            self.write()?;
        }
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
        if self.values.len() == HELD_ROWS * WIDTH {
            self.write()?;
        }
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
        if self.values.len() == HELD_ROWS * WIDTH {
            self.write()?;
        }
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
        rule: &str,
        [kept, lost]: [Side; 2],
        reason: Option<&str>,
    ) {
        let column = place.map(|place| &table.cells[place]);
        let row_start = self.arena.len();
        put_key_text(&mut self.arena, key);
        let row = Kept::Text(row_start..self.arena.len());
        let reason = reason.map_or(Kept::Null, |why| self.keep(ValueRef::Text(why.as_bytes())));
        let at = |side: &Side| integer(side.stamp.map(|s| s.hlc.wall().0));
        let dot = |side: &Side| {
            [
                integer(side.stamp.map(|s| s.hlc.0)),
                integer(side.stamp.map(|s| s.author.to_u64())),
                integer(side.stamp.map(|s| s.seq)),
            ]
        };
        let [kept_at, lost_at] = [at(&kept), at(&lost)];
        let [kept_dot, lost_dot] = [dot(&kept), dot(&lost)];
        let [kept_by, lost_by] = [self.node(&kept), self.node(&lost)];
        let rule = self.keep(ValueRef::Text(rule.as_bytes()));
        let name = self.keep(ValueRef::Text(table.name.as_bytes()));
        let column_name =
            column.map_or(Kept::Null, |c| self.keep(ValueRef::Text(c.name.as_bytes())));
        let key = self.keep(ValueRef::Blob(key));
        let ids = [
            Kept::Integer(table.id.0.into()),
            column.map_or(Kept::Null, |column| Kept::Integer(column.id.0.into())),
        ];
        self.values.extend([rule, name, column_name, row]);
        self.values.extend([kept.value, kept_at, kept_by, lost.value, lost_at, lost_by]);
        self.values.extend(ids);
        self.values.push(key);
        self.values.extend(kept_dot);
        self.values.extend(lost_dot);
        self.values.push(reason);
        debug_assert!(self.values.len().is_multiple_of(WIDTH), "a row has all its columns");
    }

    /// The name of the node that wrote a side.
    fn node(&mut self, side: &Side) -> Kept {
        let author: Option<AuthorId> = side.stamp.map(|stamp| stamp.author);
        let members = self.members;
        match members.iter().find(|member| Some(member.author) == author) {
            Some(member) => self.keep(ValueRef::Text(member.node.as_str().as_bytes())),
            None => Kept::Null,
        }
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
        let (conn, arena) = (self.conn, self.arena.as_slice());
        let insert = |name: &[u64], values: &[Kept]| {
            conn.run(
                name,
                || insert_sql(values.len() / WIDTH),
                |parameters| {
                    (1..)
                        .zip(values)
                        .try_for_each(|(place, value)| parameters.lend(place, value.within(arena)))
                },
            )
        };
        let mut many = self.values.chunks_exact(ROWS * WIDTH);
        many.by_ref().try_for_each(|rows| insert(&INSERTS, rows))?;
        many.remainder().chunks(WIDTH).try_for_each(|row| insert(&INSERT, row))?;
        self.untrimmed += self.values.len() / WIDTH;
        self.values.clear();
        self.arena.clear();
        if self.untrimmed >= TRIM_AFTER { self.trim() } else { Ok(()) }
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

fn integer(n: Option<u64>) -> Kept {
    n.map_or(Kept::Null, |n| Kept::Integer(n.cast_signed()))
}

fn insert_sql(rows: usize) -> String {
    let row = format!("({})", vec!["?"; WIDTH].join(", "));
    format!(
        "INSERT OR FAIL INTO littoral_conflicts({COLUMNS}) VALUES {}",
        vec![row; rows].join(", ")
    )
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

/// Appends a key as people read it: a JSON array, blobs as `"x'…'"`.
fn put_key_text(out: &mut Vec<u8>, key: &[u8]) {
    let mut reader = ByteReader::new(key);
    out.push(b'[');
    let first = out.len();
    while !reader.is_empty() {
        if out.len() > first {
            out.push(b',');
        }
        if put_part_text(out, &mut reader).is_err() {
            break;
        }
    }
    out.push(b']');
}

/// A key as people read it.
pub(crate) fn key_text(key: &[u8]) -> String {
    let mut out = Vec::new();
    put_key_text(&mut out, key);
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

fn put_part_text(out: &mut Vec<u8>, reader: &mut ByteReader<'_>) -> Result<(), DecodeError> {
    out.extend_from_slice(value_text(reader.key_part()?.as_value()).as_bytes());
    Ok(())
}

fn value_text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "null".to_owned(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(r) => r.to_string(),
        ValueRef::Text(bytes) => json_string(&String::from_utf8_lossy(bytes)),
        ValueRef::Blob(bytes) => {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            format!("\"x'{hex}'\"")
        }
    }
}

fn json_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
