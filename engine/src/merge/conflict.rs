//! Writes discarded concurrent values to `littoral_conflicts`, the newest
//! [`MAX_CONFLICTS`](crate::limits::MAX_CONFLICTS) of them.

use rusqlite::{Connection, params};

use crate::{
    contested::{Conflict, ConflictKind},
    entry::{CellWrite, RowOp},
    hlc::Stamp,
    limits::MAX_CONFLICTS,
    merge::row::Overflow,
    schema::Table,
    sqlite::Param,
    testing::{Bug, planted},
    value::{ByteReader, DecodeError, ValueRef},
};

/// One side of a conflict.
struct Side<'v> {
    value: ValueRef<'v>,
    stamp: Option<Stamp>,
}

/// Writes one conflict. `stored` is the value in the file before the operation is carried out.
pub(super) fn record(
    conn: &Connection,
    table: &Table,
    op: &RowOp<'_>,
    stamp: Stamp,
    conflict: &Conflict,
    stored: ValueRef<'_>,
) -> rusqlite::Result<()> {
    let Some(place) = table.cell(conflict.column) else { return Ok(()) };
    let incoming = Side { value: incoming(op, conflict), stamp: Some(stamp) };
    let held = Side { value: stored, stamp: conflict.held };
    let gone = |stamp| Side { value: ValueRef::Null, stamp };
    let (rule, kept, lost) = match conflict.kind {
        ConflictKind::StoredLoses => ("last writer wins", incoming, held),
        ConflictKind::IncomingLoses => ("last writer wins", held, incoming),
        ConflictKind::StoredDeleted => ("delete wins", gone(Some(stamp)), held),
        ConflictKind::RowGone => ("delete wins", gone(None), incoming),
    };
    insert(conn, table, Some(place), op.key, rule, &kept, &lost)
}

/// Writes that increments which did not know of each other made a counter overflow.
pub(super) fn record_overflow(
    conn: &Connection,
    table: &Table,
    key: &[u8],
    stamp: Stamp,
    overflow: Overflow,
) -> rusqlite::Result<()> {
    if planted(Bug::OverflowUnreported) {
        return Ok(());
    }
    let exact = overflow.exact.to_string();
    let kept = Side { value: ValueRef::Integer(overflow.wrapped), stamp: None };
    let lost = Side { value: ValueRef::Text(exact.as_bytes()), stamp: Some(stamp) };
    insert(conn, table, Some(overflow.place), key, "counter overflow", &kept, &lost)
}

fn insert(
    conn: &Connection,
    table: &Table,
    place: Option<usize>,
    key: &[u8],
    rule: &str,
    kept: &Side<'_>,
    lost: &Side<'_>,
) -> rusqlite::Result<()> {
    let column = place.map(|place| &table.cells[place]);
    let mut insert = conn.prepare_cached(INSERT)?;
    insert.execute(params![
        rule,
        table.name,
        column.map(|column| &column.name),
        key_text(key),
        Param(kept.value),
        kept.stamp.map(|s| s.hlc.wall().0.cast_signed()),
        Param(lost.value),
        lost.stamp.map(|s| s.hlc.wall().0.cast_signed()),
        table.id.0,
        column.map(|column| column.id.0),
        key,
        kept.stamp.map(|s| s.hlc.0.cast_signed()),
        kept.stamp.map(|s| s.author.to_u64().cast_signed()),
        kept.stamp.map(|s| s.seq.cast_signed()),
        lost.stamp.map(|s| s.hlc.0.cast_signed()),
        lost.stamp.map(|s| s.author.to_u64().cast_signed()),
        lost.stamp.map(|s| s.seq.cast_signed()),
    ])?;
    let newest = conn.last_insert_rowid();
    conn.prepare_cached("DELETE FROM littoral_conflicts WHERE id <= ?")?
        .execute([newest - MAX_CONFLICTS.cast_signed()])?;
    Ok(())
}

const INSERT: &str = "
INSERT INTO littoral_conflicts(
  rule, \"table\", \"column\", \"row\", kept, kept_at, lost, lost_at, table_id, column_id, key,
  kept_hlc, kept_author, kept_seq, lost_hlc, lost_author, lost_seq, kept_by, lost_by)
VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
  (SELECT node FROM littoral_members WHERE author = ?13),
  (SELECT node FROM littoral_members WHERE author = ?16))";

fn incoming<'v>(op: &RowOp<'v>, conflict: &Conflict) -> ValueRef<'v> {
    let cell = op.cells.iter().find(|cell| cell.column == conflict.column);
    match cell.map(|cell| cell.write) {
        Some(CellWrite::Assign { value, .. }) => value,
        Some(CellWrite::Add(_) | CellWrite::Extreme(_)) | None => ValueRef::Null,
    }
}

/// A key as people read it: a JSON array, blobs as `"x'…'"`.
fn key_text(key: &[u8]) -> String {
    let mut reader = ByteReader::new(key);
    let mut parts = Vec::new();
    while !reader.is_empty() {
        match part_text(&mut reader) {
            Ok(text) => parts.push(text),
            Err(_) => break,
        }
    }
    format!("[{}]", parts.join(","))
}

fn part_text(reader: &mut ByteReader<'_>) -> Result<String, DecodeError> {
    Ok(match reader.key_part()?.as_value() {
        ValueRef::Null => "null".to_owned(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(r) => r.to_string(),
        ValueRef::Text(bytes) => json_string(&String::from_utf8_lossy(bytes)),
        ValueRef::Blob(bytes) => {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            format!("\"x'{hex}'\"")
        }
    })
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
