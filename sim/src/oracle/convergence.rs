//! Rows and conflicts follow from the log, and in the end all machines hold the same.

use std::collections::BTreeMap;

use littoral::{AuthorId, ColumnId, TableId, limits::MAX_CONFLICTS};
use rusqlite::Connection;

use super::{
    Check, Promise, broken,
    keys::{encode_key, spelling},
    shadow::{CHECK, Held, Shadow, ShadowConflict, ShadowTable},
    shapes::{Shapes, quoted},
    unreadable,
};
type Rows = BTreeMap<Vec<u8>, BTreeMap<ColumnId, Held>>;

/// The rows of a machine are those that its log leads to.
pub(crate) fn rows_follow_log(
    machine: usize,
    reader: &Connection,
    shadow: &Shadow,
    shapes: Shapes,
) -> Check {
    if shadow.tables.is_empty() {
        return Ok(());
    }
    for (id, table) in &shadow.tables {
        let Some(stored) = read_table(machine, reader, table, shapes)? else { continue };
        let expected: BTreeMap<&Vec<u8>, _> = shadow.rows_of(*id).collect();
        for (key, cells) in &stored {
            match expected.get(key) {
                Some(due) if *due == cells => {}
                due => {
                    return broken(
                        Promise::Merge,
                        format!(
                            "m{machine}, table {}, key {key:02x?}: stored {cells:?}, the log leads to {due:?}",
                            table.name
                        ),
                    );
                }
            }
        }
        if let Some((key, cells)) = expected.iter().find(|(key, _)| !stored.contains_key(**key)) {
            return broken(
                Promise::Merge,
                format!(
                    "m{machine}, table {}, key {key:02x?}: missing, the log leads to {cells:?}",
                    table.name
                ),
            );
        }
    }
    sequences_follow_log(machine, reader, shadow)
}

/// AUTOINCREMENT would go on on a machine where the log says.
fn sequences_follow_log(machine: usize, reader: &Connection, shadow: &Shadow) -> Check {
    let failed = unreadable(machine);
    for (id, due) in &shadow.sequences {
        let Some(table) = shadow.tables.get(id) else { continue };
        let sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?";
        let mut query = reader.prepare_cached(sql).map_err(&failed)?;
        let last: i64 = query.query_row([&table.name], |row| row.get(0)).map_err(&failed)?;
        if last != *due {
            let what = format!(
                "m{machine}, table {}: the next key follows {last}, the log leads to {due}",
                table.name
            );
            return broken(Promise::Merge, what);
        }
    }
    Ok(())
}

/// The rows of a table by key; `None` if no log leads to them, or its keys cannot be told from what is
/// read.
fn read_table(
    machine: usize,
    reader: &Connection,
    table: &ShadowTable,
    shapes: Shapes,
) -> Check<Option<Rows>> {
    let failed = unreadable(machine);
    if table.local {
        return Ok(None);
    }
    let Some(shape) = shapes.of(&table.name, reader).map_err(&failed)? else { return Ok(None) };
    let columns: Vec<(ColumnId, &str)> =
        table.columns.iter().map(|(id, (name, _))| (*id, name.as_str())).collect();
    let names = columns.iter().map(|(_, name)| *name).chain(shape.key.iter().map(String::as_str));
    let names: Vec<String> = names.map(quoted).collect();
    let sql = format!("SELECT {} FROM {}", names.join(", "), quoted(&table.name));
    let mut query = reader.prepare_cached(&sql).map_err(&failed)?;
    let mut rows = query.query([]).map_err(&failed)?;
    let mut found = Rows::new();
    while let Some(row) = rows.next().map_err(&failed)? {
        let mut values = BTreeMap::new();
        for (place, (_, name)) in columns.iter().enumerate() {
            values.insert(*name, Held::from(row.get_ref(place).map_err(&failed)?));
        }
        let parts = (columns.len()..columns.len() + shape.key.len())
            .map(|place| row.get_ref(place).map(Held::from))
            .collect::<Result<Vec<_>, _>>()
            .map_err(&failed)?;
        let parts: Vec<&Held> = parts.iter().collect();
        let key = encode_key(&parts, shape.nocase);
        let key = match key {
            Ok(key) => key,
            Err(what) => {
                return broken(Promise::Merge, format!("m{machine}, {}: {what}", table.name));
            }
        };
        let mut cells: BTreeMap<ColumnId, Held> = columns
            .iter()
            .filter(|(_, name)| !shape.key.iter().any(|key| key == name))
            .map(|(id, name)| (*id, values.remove(name).unwrap_or_default()))
            .collect();
        if let Some(real) = &shape.spelled {
            cells.insert(ColumnId(0), spelling(&parts, shape.nocase, real));
        }
        found.insert(key, cells);
    }
    Ok(Some(found))
}

/// The conflicts that a machine lists are those that its log leads to.
pub(crate) fn conflicts_follow_log(machine: usize, reader: &Connection, shadow: &Shadow) -> Check {
    let mut listed = read_conflicts(machine, reader)?;
    let mut due = shadow.conflicts.clone();
    listed.sort();
    due.sort();
    if listed == due {
        return Ok(());
    }
    if listed.len() as u64 >= MAX_CONFLICTS {
        // The oldest have made room.
        return Ok(());
    }
    let unlisted = first_beyond(&due, &listed);
    let undue = first_beyond(&listed, &due);
    broken(
        Promise::Conflicts,
        format!(
            "m{machine} lists {} conflicts, its log leads to {}; not listed: {unlisted:?}; listed in vain: {undue:?}",
            listed.len(),
            due.len()
        ),
    )
}

/// The first of sorted `these` that sorted `those` lack, each counted as often as it stands there.
fn first_beyond<'c>(
    these: &'c [ShadowConflict],
    those: &[ShadowConflict],
) -> Option<&'c ShadowConflict> {
    let mut those = those.iter().peekable();
    these.iter().find(|this| {
        while those.next_if(|that| that < this).is_some() {}
        those.next_if(|that| that == this).is_none()
    })
}

fn read_conflicts(machine: usize, reader: &Connection) -> Check<Vec<ShadowConflict>> {
    let failed = unreadable(machine);
    let mut query = reader
        .prepare_cached(
            "SELECT table_id, key, column_id, rule, kept_author, kept_seq, kept,
             lost_author, lost_seq, lost FROM littoral_conflicts",
        )
        .map_err(&failed)?;
    let dot = |author: Option<i64>, seq: Option<i64>| {
        let name = |(author, seq): (i64, i64)| {
            (AuthorId::from_u64(author.cast_unsigned()), seq.cast_unsigned())
        };
        author.zip(seq).map(name)
    };
    let rows = query
        .query_map([], |row| {
            Ok(ShadowConflict {
                table: row.get(0)?,
                key: row.get(1)?,
                column: row.get(2)?,
                rule: row.get(3)?,
                kept: dot(row.get(4)?, row.get(5)?),
                kept_value: match row.get_ref(3)?.as_str()? {
                    CHECK => Held::Null,
                    _ => row.get_ref(6)?.into(),
                },
                lost: dot(row.get(7)?, row.get(8)?),
                lost_value: row.get_ref(9)?.into(),
            })
        })
        .map_err(&failed)?;
    rows.collect::<Result<_, _>>().map_err(&failed)
}

/// Two machines hold the same rows in every table.
pub(crate) fn same_rows(
    machines: [usize; 2],
    readers: [&Connection; 2],
    shadow: &Shadow,
    shapes: Shapes,
) -> Check {
    for (id, table) in &shadow.tables {
        let [one, other] =
            [0, 1].map(|side| read_table(machines[side], readers[side], table, shapes));
        let (Some(one), Some(other)) = (one?, other?) else { continue };
        if one != other {
            return broken(Promise::Convergence, difference(machines, *id, table, &one, &other));
        }
    }
    let [one, other] = [0, 1].map(|side| read_sequences(machines[side], readers[side], shadow));
    let (one, other) = (one?, other?);
    if one != other {
        let [a, b] = machines;
        let what = format!("AUTOINCREMENT goes on behind {one:?} on m{a} and {other:?} on m{b}");
        return broken(Promise::Convergence, what);
    }
    Ok(())
}

/// The greatest key that was handed out, by table.
fn read_sequences(
    machine: usize,
    reader: &Connection,
    shadow: &Shadow,
) -> Check<Vec<(String, i64)>> {
    let failed = unreadable(machine);
    let exists = "SELECT count(*) FROM sqlite_schema WHERE name = 'sqlite_sequence'";
    let exists: i64 = reader.query_row(exists, [], |row| row.get(0)).map_err(&failed)?;
    if exists == 0 {
        return Ok(Vec::new());
    }
    let sql = "SELECT name, seq FROM sqlite_sequence WHERE seq <> 0 ORDER BY name";
    let mut query = reader.prepare_cached(sql).map_err(&failed)?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(&failed)?;
    let mut sequences = rows.collect::<Result<Vec<(String, i64)>, _>>().map_err(&failed)?;
    let local = |name: &str| shadow.tables.values().any(|table| table.local && table.name == name);
    sequences.retain(|(name, _)| !local(name));
    Ok(sequences)
}

fn difference(
    [a, b]: [usize; 2],
    id: TableId,
    table: &ShadowTable,
    one: &Rows,
    other: &Rows,
) -> String {
    let differing = one.keys().chain(other.keys()).find(|key| one.get(*key) != other.get(*key));
    let key = differing.cloned().unwrap_or_default();
    format!(
        "table {} ({}), key {key:02x?}: m{a} holds {:?}, m{b} holds {:?}",
        table.name,
        id.0,
        one.get(&key),
        other.get(&key)
    )
}
