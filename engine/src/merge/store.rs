//! Writes rows of the user's tables: one statement per operation, kept prepared, or one for many
//! inserts.
//!
//! What is written is decided elsewhere; that a row collides with another is told, not solved.

use std::convert::Infallible;

use crate::{
    entry::{Cell, CellWrite, RowOp, RowOpKind},
    id::{ColumnId, TableId},
    merge::{
        functions::combining,
        mirror,
        parked::{is_constraint, is_rejection},
        row,
    },
    schema::{
        Table,
        row::{lend_key, no_key},
        spelling::{KEY_SPELLING, lend_spelled, put_spelling, split_spelling},
    },
    sqlite::{Columns, Keeping, Parameters, quoted},
    value::{ByteReader, KeyPart, ValueRef, value},
};

/// What the second word of a statement's name says; the first is the table's id.
const INSERT: u64 = 1;
/// How many follows.
const INSERTS: u64 = 2;
const DELETE: u64 = 3;
/// The places of the updated cells follow, one bit each, and of those swapped.
const UPDATE: u64 = 4;
const SELECT: u64 = 5;
/// The places of the cells that are given follow, one bit each.
const INSERT_SOME: u64 = 6;

/// SQLite has no table of more columns, in words of 64 bits.
const MASK_WORDS: usize = 2000 / 64 + 1;

fn name(table: TableId, what: u64) -> [u64; 2] {
    [table.0.into(), what]
}

/// The name of a statement about some cells of a table.
#[derive(Debug)]
struct MaskedName {
    words: [u64; 2 + 2 * MASK_WORDS],
    len: usize,
}

impl MaskedName {
    fn new(table: &Table, what: u64, places: impl Iterator<Item = usize>) -> Self {
        let mut words = [0; 2 + 2 * MASK_WORDS];
        words[0] = table.id.0.into();
        words[1] = what;
        for place in places {
            words[2 + place / 64] |= 1 << (place % 64);
        }
        Self { words, len: 2 + table.cells.len().div_ceil(64) }
    }

    /// Adds the mask of other cells.
    fn mask_more(&mut self, places: impl Iterator<Item = usize>) {
        for place in places {
            self.words[self.len + place / 64] |= 1 << (place % 64);
        }
        self.len += self.len - 2;
    }

    fn is_empty(&self) -> bool {
        self.as_slice()[2..].iter().all(|word| *word == 0)
    }

    fn as_slice(&self) -> &[u64] {
        &self.words[..self.len]
    }
}

/// Whether an insert gives every cell of the table and no other: its author knew the same columns.
fn is_whole(table: &Table, op: &RowOp<'_>) -> bool {
    op.cells.len() == table.cells.len()
        && op.cells.iter().zip(&table.cells).all(|(cell, column)| cell.column == column.id)
}

/// Inserts a row. Cells of columns that are gone are left out; cells that its author did not know have
/// their default.
pub(super) fn insert(conn: &Keeping, table: &Table, op: &RowOp<'_>) -> rusqlite::Result<()> {
    if !is_whole(table, op) {
        return insert_some(conn, table, op);
    }
    run(
        conn,
        table,
        &name(table.id, INSERT),
        || table.sql.insert.clone(),
        |parameters| {
            let (spelling, cells) = split_spelling(op.cells);
            let spelling = spelling.map_or(ValueRef::Null, |cell| written(cell.write));
            lend_spelled(parameters, 0, table, op.key, spelling)?;
            let places = table.key.len() + 1..;
            places.zip(cells).try_for_each(|(place, cell)| lend_new(parameters, place, cell))
        },
    )
}

fn insert_some(conn: &Keeping, table: &Table, op: &RowOp<'_>) -> rusqlite::Result<()> {
    let (spelling, cells) = split_spelling(op.cells);
    let known = || cells.iter().filter_map(|cell| Some((cell, table.cell(cell.column)?)));
    run(
        conn,
        table,
        MaskedName::new(table, INSERT_SOME, known().map(|(_, place)| place)).as_slice(),
        || table.insert_of(known().map(|(_, place)| &table.cells[place])),
        |parameters| {
            let spelling = spelling.map_or(ValueRef::Null, |cell| written(cell.write));
            lend_spelled(parameters, 0, table, op.key, spelling)?;
            let places = table.key.len() + 1..;
            places.zip(known()).try_for_each(|(place, (cell, _))| lend_new(parameters, place, cell))
        },
    )
}

/// Inserts a row of which every cell is given encoded.
pub(super) fn insert_row(
    conn: &Keeping,
    table: &Table,
    key: &[u8],
    cells: &[Vec<u8>],
) -> rusqlite::Result<()> {
    run(
        conn,
        table,
        &name(table.id, INSERT),
        || table.sql.insert.clone(),
        |parameters| {
            let mut values = cells.iter().map(|cell| value(cell));
            let spelling = if table.has_spelling() { values.next() } else { None };
            lend_spelled(parameters, 0, table, key, spelling.unwrap_or(ValueRef::Null))?;
            let mut places = table.key.len() + 1..;
            values.try_for_each(|value| parameters.lend(places.next().unwrap_or(0), value))
        },
    )
}

/// Writes those cells of an operation that `wins` picks by their place in it.
pub(super) fn update(
    conn: &Keeping,
    table: &Table,
    op: &RowOp<'_>,
    wins: impl Fn(usize) -> bool,
) -> rusqlite::Result<()> {
    update_swapping(conn, table, op, wins, |_| false)
}

/// As [`update`], and leaves in [`Keeping::swapped`] what stood in the columns that `swaps` picks, by
/// their place in the table.
pub(super) fn update_swapping(
    conn: &Keeping,
    table: &Table,
    op: &RowOp<'_>,
    wins: impl Fn(usize) -> bool,
    swaps: impl Fn(ColumnId) -> bool,
) -> rusqlite::Result<()> {
    let winning = || {
        let cells = op.cells.iter().enumerate().filter(|(cell, _)| wins(*cell));
        cells.filter_map(|(_, cell)| Some((cell, table.cell(cell.column)?)))
    };
    let mut name = MaskedName::new(table, UPDATE, winning().map(|(_, place)| place));
    name.mask_more(winning().filter(|(cell, _)| swaps(cell.column)).map(|(_, place)| place));
    if name.is_empty() {
        return Ok(());
    }
    run(
        conn,
        table,
        name.as_slice(),
        || update_sql(table, winning(), &swaps),
        |parameters| {
            lend_key(parameters, 0, table, op.key)?;
            let mut before = table.key.len();
            for (cell, _) in winning() {
                if cell.column == KEY_SPELLING {
                    lend_spelled(parameters, before, table, op.key, written(cell.write))?;
                    before += table.key.len();
                } else {
                    before += 1;
                    lend(parameters, before, cell)?;
                }
            }
            Ok(())
        },
    )
}

fn update_sql<'c>(
    table: &Table,
    cells: impl Iterator<Item = (&'c Cell<'c>, usize)>,
    swaps: impl Fn(ColumnId) -> bool,
) -> String {
    let mut sql = format!("UPDATE OR ABORT {} SET ", quoted(&table.name));
    let mut place = table.key.len();
    let mut set = |name: &str, value: &dyn Fn(usize) -> String| {
        let comma = if place == table.key.len() { "" } else { ", " };
        place += 1;
        sql.push_str(&format!("{comma}{name} = {}", value(place)));
    };
    let given = |place: usize| format!("?{place}");
    for (cell, column) in cells {
        if cell.column == KEY_SPELLING {
            table.key.iter().for_each(|column| set(&quoted(&column.name), &given));
        } else {
            let name = quoted(&table.cells[column].name);
            match combining(table.cells[column].merge) {
                Some(function) => set(&name, &|place| format!("{function}({name}, ?{place})")),
                None if swaps(cell.column) => {
                    set(&name, &|place| format!("littoral_swap({name}, ?{place}, {column})"));
                }
                None => set(&name, &given),
            }
        }
    }
    sql.push_str(" WHERE ");
    sql.push_str(&table.sql.where_key);
    sql
}

pub(super) fn delete(conn: &Keeping, table: &Table, op: &RowOp<'_>) -> rusqlite::Result<()> {
    delete_row(conn, table, op.key)
}

/// Deletes the row with a key, if it is there.
pub(super) fn delete_row(conn: &Keeping, table: &Table, key: &[u8]) -> rusqlite::Result<()> {
    run(
        conn,
        table,
        &name(table.id, DELETE),
        || table.sql.delete.clone(),
        |parameters| lend_key(parameters, 0, table, key),
    )
}

/// Runs a statement on the table; if a mirrored trigger makes it fail, without the table's triggers.
fn run<'v>(
    conn: &Keeping,
    table: &Table,
    name: &[u64],
    sql: impl Fn() -> String,
    set: impl Fn(&mut Parameters<'v>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    match conn.run(name, &sql, &set) {
        Err(error) if !table.targets.is_empty() && mirror::is_at_fault(table, &error) => {
            mirror::give_up(conn, table, &error)?;
            conn.run(name, sql, set)
        }
        result => result,
    }
}

/// A row that is there.
#[derive(Debug)]
pub(super) struct StoredRow<'r> {
    columns: &'r Columns<'r>,
    /// The cell in front of the columns, encoded, if the table has one.
    spelling: Vec<u8>,
}

impl StoredRow<'_> {
    /// The cell at that place in the table.
    pub(super) fn cell(&self, place: usize) -> ValueRef<'_> {
        match place.checked_sub(usize::from(!self.spelling.is_empty())) {
            Some(column) => self.columns.value(column),
            None => value(&self.spelling),
        }
    }
}

/// Reads the row with a key, if it is there.
pub(super) fn read(
    conn: &Keeping,
    table: &Table,
    key: &[u8],
    mut take: impl FnMut(&StoredRow<'_>),
) -> rusqlite::Result<()> {
    conn.query(
        &name(table.id, SELECT),
        || table.sql.select.clone(),
        |parameters| lend_key(parameters, 0, table, key),
        |columns| {
            let mut spelling = Vec::new();
            if table.has_spelling() {
                let behind = table.stored().len();
                let part = |part: usize, _: &_| Ok(columns.value(behind + part));
                let Ok(()) = put_spelling::<Infallible>(&mut spelling, table, part);
            }
            take(&StoredRow { columns, spelling });
        },
    )
}

fn lend<'v>(
    parameters: &mut Parameters<'v>,
    place: usize,
    cell: &Cell<'v>,
) -> rusqlite::Result<()> {
    parameters.lend(place, written(cell.write))
}

/// As [`lend`], where no value is there to combine it with.
fn lend_new<'v>(
    parameters: &mut Parameters<'v>,
    place: usize,
    cell: &Cell<'v>,
) -> rusqlite::Result<()> {
    match given(cell.write) {
        Given::Value(value) => parameters.lend(place, value),
        other => parameters.copy(place, other.as_value()),
    }
}

/// What stands in a cell of a new row.
#[derive(Debug)]
enum Given<'v> {
    Value(ValueRef<'v>),
    /// A set is spelled from its elements.
    Set(String),
    /// Of a key, where it does not stand in it as it is.
    Part(KeyPart<'v>),
}

impl Given<'_> {
    fn as_value(&self) -> ValueRef<'_> {
        match self {
            Self::Value(value) => *value,
            Self::Set(set) => ValueRef::Text(set.as_bytes()),
            Self::Part(part) => part.as_value(),
        }
    }
}

fn given(write: CellWrite<'_>) -> Given<'_> {
    match write {
        CellWrite::Set(change) => Given::Set(row::unite(ValueRef::Null, change)),
        write => Given::Value(written(write)),
    }
}

/// What a write binds: the value, the increment, or the change of a set.
fn written(write: CellWrite<'_>) -> ValueRef<'_> {
    match write {
        CellWrite::Assign { value, .. } | CellWrite::Extreme(value) => value,
        CellWrite::Add(delta) => ValueRef::Integer(delta),
        CellWrite::Set(change) => ValueRef::Blob(change.as_bytes()),
    }
}

/// Collects inserts of one table and writes many of them with one statement, which costs SQLite half
/// as much as a statement each. Once per statement SQLite notes what a page held before, in case it has
/// to abort: so the more rows the better.
#[derive(Debug)]
pub(super) struct Inserts<'c, 'r> {
    conn: &'c Keeping,
    table: Option<&'c Table>,
    /// Of every row its key, then its cells.
    values: Vec<Given<'r>>,
    /// Of every row the place of its operation in the entry.
    places: Vec<u64>,
}

impl<'c, 'r> Inserts<'c, 'r> {
    /// Rows of one statement: as many as are there.
    const ROWS: [usize; 3] = [128, 16, 1];

    /// Parameters of one statement at most, beside those of a single row.
    const PARAMETERS: usize = 1024;

    pub(super) fn new(conn: &'c Keeping) -> Self {
        Self { conn, table: None, values: Vec::new(), places: Vec::new() }
    }

    /// Whether the operation is an insert that may be collected, and so are those of the same columns.
    pub(super) fn takes(table: &Table, op: &RowOp<'_>) -> bool {
        op.kind == RowOpKind::Insert
            && table.is_plain
            && is_whole(table, op)
            && !table.has_spelling()
    }

    /// Collects the insert at that place in its entry. Those that are found to collide go to
    /// `collided`.
    pub(super) fn push(
        &mut self,
        table: &'c Table,
        at: u64,
        key: &'r [u8],
        cells: &[Cell<'r>],
        collided: &mut Vec<u64>,
    ) -> rusqlite::Result<()> {
        if self.table.is_some_and(|collecting| collecting.id != table.id) {
            self.flush(collided)?;
        }
        self.table = Some(table);
        let mut reader = ByteReader::new(key);
        for _ in &table.key {
            let part = reader.key_part().map_err(no_key)?;
            self.values.push(part.lent().map_or_else(|| Given::Part(part), Given::Value));
        }
        self.values.extend(cells.iter().map(|cell| given(cell.write)));
        self.places.push(at);
        if self.places.len() == Self::ROWS[0] { self.flush(collided) } else { Ok(()) }
    }

    /// How many of so many rows go into one statement.
    fn rows_at_once(width: usize, left: usize) -> usize {
        let fits = |rows: &usize| *rows <= left && *rows * width <= Self::PARAMETERS;
        Self::ROWS.into_iter().find(fits).unwrap_or(1)
    }

    /// Writes what was collected.
    pub(super) fn flush(&mut self, collided: &mut Vec<u64>) -> rusqlite::Result<()> {
        let Some(table) = self.table.take() else { return Ok(()) };
        let width = table.key.len() + table.cells.len();
        let mut done = 0;
        while done < self.places.len() {
            let rows = Self::rows_at_once(width, self.places.len() - done);
            let values = &self.values[done * width..][..rows * width];
            let stored = if rows == 1 {
                self.write(&name(table.id, INSERT), || table.sql.insert.clone(), values)
            } else {
                let name = [table.id.0.into(), INSERTS, rows as u64];
                self.write(&name, || insert_many_sql(table, rows), values)
            };
            match stored {
                Ok(()) => done += rows,
                // OR FAIL: the rows before the one that collided are in, and counted. They are not where
                // SQLite refuses a value for its class or its size, which nothing that is collected has.
                Err(error) if is_constraint(&error) || rows == 1 && is_rejection(&error) => {
                    if rows > 1 {
                        done += usize::try_from(self.conn.changes()).unwrap_or(0);
                    }
                    collided.extend(self.places.get(done));
                    done += 1;
                }
                Err(error) => return Err(error),
            }
        }
        self.values.clear();
        self.places.clear();
        Ok(())
    }

    fn write(
        &self,
        name: &[u64],
        sql: impl FnOnce() -> String,
        values: &[Given<'r>],
    ) -> rusqlite::Result<()> {
        self.conn.run(name, sql, |parameters| {
            (1..)
                .zip(values)
                .try_for_each(|(place, value)| parameters.lend(place, value.as_value()))
        })
    }
}

fn insert_many_sql(table: &Table, rows: usize) -> String {
    let width = table.key.len() + table.cells.len();
    let columns: Vec<String> =
        table.key.iter().chain(&table.cells).map(|column| quoted(&column.name)).collect();
    let row = format!("({})", vec!["?"; width].join(", "));
    format!(
        "INSERT OR FAIL INTO {}({}) VALUES {}",
        quoted(&table.name),
        columns.join(", "),
        vec![row; rows].join(", ")
    )
}
