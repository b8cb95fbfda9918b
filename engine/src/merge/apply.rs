//! Carries the rows of remote entries into SQLite.
//!
//! Rows of a table that only the origin writes are stored as they come. Rows of a multi-writer table
//! are stored as far as [`Contested`] says they win.

use rusqlite::{Connection, functions::FunctionFlags};

use crate::{
    contested::{Conflict, Contested, Effects, Verdict},
    entry::{CellWrite, Entry, RowOp, RowOpKind, codec::RowsReader},
    error::ApplyError,
    id::AuthorId,
    merge::conflict,
    policy::ColumnType,
    schema::{
        Registry, Table,
        row::{bind_key, read_row},
    },
    sqlite::{Param, quoted},
    testing::{Bug, planted},
    value::{ByteReader, DecodeError, ValueRef, put_cell},
};

/// Applies entries within one transaction.
#[derive(Debug)]
pub(crate) struct Applier<'a> {
    pub(crate) conn: &'a Connection,
    pub(crate) registry: &'a Registry,
    pub(crate) contested: &'a mut Contested,
    /// The author whose rows of origin-written tables count.
    pub(crate) origin: AuthorId,
    pub(crate) tally: Tally,
    pub(crate) effects: Effects,
}

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) rows: u64,
    pub(crate) conflicts: u64,
}

/// Makes the functions that apply statements call.
pub(crate) fn prepare_connection(conn: &Connection) -> rusqlite::Result<()> {
    // In SQL, an addition that overflows gives a REAL; a counter wraps.
    let flags = FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_UTF8;
    conn.create_scalar_function("littoral_add", 2, flags, |context| {
        let (count, delta): (i64, i64) = (context.get(0)?, context.get(1)?);
        Ok(count.wrapping_add(delta))
    })
}

impl Applier<'_> {
    /// Applies the operations of one `Rows` segment of `entry`.
    pub(crate) fn rows(&mut self, entry: &Entry, rows: &[u8]) -> Result<(), ApplyError> {
        let broken = |error| ApplyError::undecodable(entry.header.dot, error);
        let mut waiting: Vec<usize> = Vec::new();
        let mut reader = RowsReader::new(rows);
        let mut index = 0;
        while let Some(op) = reader.next().map_err(broken)? {
            if self.row(entry, &op)? == Stored::Collides {
                waiting.push(index);
            }
            index += 1;
        }
        self.settle(entry, rows, waiting)
    }

    fn row(&mut self, entry: &Entry, op: &RowOp<'_>) -> Result<Stored, ApplyError> {
        let registry = self.registry;
        let broken = |error| ApplyError::undecodable(entry.header.dot, error);
        let Some(table) = registry.by_id(op.table) else {
            // Its author had not heard yet that the table is gone.
            let gone = op.table < registry.next_table;
            return if gone { Ok(Stored::Yes) } else { Err(broken(DecodeError::Unknown("table"))) };
        };
        if table.is_local() {
            return Err(broken(DecodeError::Invalid("rows of a table that is local")));
        }
        let older =
            entry.header.dot.author != self.origin && entry.header.schema < registry.version;
        check_columns(table, op, older).map_err(broken)?;
        self.tally.rows += 1;
        if table.is_multi_writer() {
            self.merge(entry, table, op)?;
            return Ok(Stored::Yes);
        }
        if entry.header.dot.author != self.origin {
            return Err(broken(DecodeError::Invalid("rows that only the origin may write")));
        }
        self.store(table, op)
    }

    /// Stores an operation on an origin-written table.
    fn store(&self, table: &Table, op: &RowOp<'_>) -> Result<Stored, ApplyError> {
        let stored = match op.kind {
            RowOpKind::Insert => insert(self.conn, table, op),
            RowOpKind::Update => update(self.conn, table, op, |_| true),
            RowOpKind::Delete => delete(self.conn, table, op),
        };
        match stored {
            Ok(()) => Ok(Stored::Yes),
            Err(error) if is_collision(&error) => Ok(Stored::Collides),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores the operations that collided with a UNIQUE constraint on rows which the same entry
    /// changes too: again while that helps, then all of them taken out and put in at once.
    fn settle(
        &self,
        entry: &Entry,
        rows: &[u8],
        mut waiting: Vec<usize>,
    ) -> Result<(), ApplyError> {
        while !waiting.is_empty() {
            let before = waiting.len();
            let mut still = Vec::new();
            self.each_of(entry, rows, &waiting, |index, table, op| {
                if self.store(table, op)? == Stored::Collides {
                    still.push(index);
                }
                Ok(())
            })?;
            waiting = still;
            if waiting.len() == before {
                return self.exchange(entry, rows, &waiting);
            }
        }
        Ok(())
    }

    fn exchange(&self, entry: &Entry, rows: &[u8], waiting: &[usize]) -> Result<(), ApplyError> {
        let mut taken: Vec<Option<Vec<Vec<u8>>>> = Vec::new();
        self.each_of(entry, rows, waiting, |_, table, op| {
            taken.push(read_row(self.conn, table, op.key)?);
            delete(self.conn, table, op)?;
            Ok(())
        })?;
        let mut taken = taken.into_iter();
        self.each_of(entry, rows, waiting, |_, table, op| {
            let mut row = taken.next().flatten().unwrap_or_default();
            row.resize(table.cells.len(), Vec::new());
            for cell in op.cells {
                if let (Some(place), CellWrite::Assign { value, .. }) =
                    (table.cell(cell.column), cell.write)
                {
                    row[place].clear();
                    put_cell(&mut row[place], value);
                }
            }
            insert_row(self.conn, table, op.key, &row)?;
            Ok(())
        })
    }

    fn each_of(
        &self,
        entry: &Entry,
        rows: &[u8],
        waiting: &[usize],
        mut each: impl FnMut(usize, &Table, &RowOp<'_>) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let broken = |error| ApplyError::undecodable(entry.header.dot, error);
        let mut reader = RowsReader::new(rows);
        let mut index = 0;
        let mut waiting = waiting.iter().peekable();
        while let Some(op) = reader.next().map_err(broken)? {
            if waiting.next_if(|&&next| next == index).is_some()
                && let Some(table) = self.registry.by_id(op.table)
            {
                each(index, table, &op)?;
            }
            index += 1;
        }
        Ok(())
    }

    fn merge(&mut self, entry: &Entry, table: &Table, op: &RowOp<'_>) -> Result<(), ApplyError> {
        let stamp = entry.header.stamp();
        let mut effects = std::mem::take(&mut self.effects);
        let verdict = self.contested.apply(op, stamp, &table.assigned, &mut effects);
        if !effects.conflicts.is_empty() {
            self.tally.conflicts += effects.conflicts.len() as u64;
            let stored = read_row(self.conn, table, op.key)?;
            for discarded in &effects.conflicts {
                let value = stored_value(table, stored.as_deref(), discarded);
                conflict::record(self.conn, table, op, stamp, discarded, value)?;
            }
        }
        match verdict {
            Verdict::Nothing => {}
            Verdict::Delete => delete(self.conn, table, op)?,
            Verdict::Begin => {
                delete(self.conn, table, op)?;
                insert(self.conn, table, op)?;
            }
            Verdict::Merge if op.kind == RowOpKind::Insert => match insert(self.conn, table, op) {
                Err(error) if is_collision(&error) => {
                    update(self.conn, table, op, |cell| effects.wins[cell])?;
                }
                result => result?,
            },
            Verdict::Merge => update(self.conn, table, op, |cell| effects.wins[cell])?,
        }
        self.effects = effects;
        Ok(())
    }

    /// The planted bug [`Bug::CounterReapplied`].
    pub(crate) fn count_again(&self, rows: &[u8]) -> Result<(), ApplyError> {
        debug_assert!(planted(Bug::CounterReapplied));
        let mut reader = RowsReader::new(rows);
        while let Ok(Some(op)) = reader.next() {
            if let Some(table) = self.registry.by_id(op.table)
                && op.kind == RowOpKind::Update
            {
                let counted = |cell: usize| matches!(op.cells[cell].write, CellWrite::Add(_));
                update(self.conn, table, &op, counted)?;
            }
        }
        Ok(())
    }
}

/// Whether an operation could be stored.
#[derive(Debug, PartialEq, Eq)]
enum Stored {
    Yes,
    /// A UNIQUE constraint is in the way, for now.
    Collides,
}

/// Every operation names columns that its table has or had, in the manner in which they merge. One that
/// was written under an `older` schema may lack columns.
fn check_columns(table: &Table, op: &RowOp<'_>, older: bool) -> Result<(), DecodeError> {
    let fits = |place: usize, write: CellWrite<'_>| match table.cells[place].merge {
        ColumnType::Lww => matches!(write, CellWrite::Assign { .. }),
        ColumnType::Counter => matches!(write, CellWrite::Add(_)),
    };
    let mut known = 0;
    for cell in op.cells {
        let Some(place) = table.cell(cell.column) else {
            if older && cell.column < table.next_column {
                continue;
            }
            return Err(DecodeError::Unknown("column"));
        };
        known += 1;
        if !fits(place, cell.write) {
            return Err(DecodeError::Invalid("a cell that does not fit its column's type"));
        }
    }
    if op.kind == RowOpKind::Insert && known != table.cells.len() && !older {
        return Err(DecodeError::Invalid("an insert that does not give every column"));
    }
    let mut key = ByteReader::new(op.key);
    for _ in &table.key {
        key.key_part()?;
    }
    if key.is_empty() { Ok(()) } else { Err(DecodeError::Invalid("a key of too many parts")) }
}

fn is_collision(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{
        SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_ROWID, SQLITE_CONSTRAINT_UNIQUE,
    };
    matches!(
        error,
        rusqlite::Error::SqliteFailure(failure, _) if matches!(
            failure.extended_code,
            SQLITE_CONSTRAINT_PRIMARYKEY | SQLITE_CONSTRAINT_ROWID | SQLITE_CONSTRAINT_UNIQUE
        )
    )
}

fn insert(conn: &Connection, table: &Table, op: &RowOp<'_>) -> rusqlite::Result<()> {
    let is_whole = op.cells.len() == table.cells.len()
        && op.cells.iter().zip(&table.cells).all(|(cell, column)| cell.column == column.id);
    let mut statement = if is_whole {
        conn.prepare_cached(&table.sql.insert)?
    } else {
        let given = op.cells.iter().filter_map(|cell| table.cell(cell.column));
        conn.prepare_cached(&table.insert_of(given.map(|place| &table.cells[place])))?
    };
    bind_key(&mut statement, table, op.key)?;
    let known = op.cells.iter().filter(|cell| is_whole || table.cell(cell.column).is_some());
    for (place, cell) in (table.key.len() + 1..).zip(known) {
        match cell.write {
            CellWrite::Assign { value, .. } => {
                statement.raw_bind_parameter(place, Param(value))?;
            }
            CellWrite::Add(delta) => statement.raw_bind_parameter(place, delta)?,
        }
    }
    statement.raw_execute()?;
    Ok(())
}

fn insert_row(
    conn: &Connection,
    table: &Table,
    key: &[u8],
    cells: &[Vec<u8>],
) -> rusqlite::Result<()> {
    let mut statement = conn.prepare_cached(&table.sql.insert)?;
    bind_key(&mut statement, table, key)?;
    for (place, cell) in (table.key.len() + 1..).zip(cells) {
        let value = ByteReader::new(cell).cell().unwrap_or(ValueRef::Null);
        statement.raw_bind_parameter(place, Param(value))?;
    }
    statement.raw_execute()?;
    Ok(())
}

/// Writes those cells of an operation that `wins` picks by their place in it.
fn update(
    conn: &Connection,
    table: &Table,
    op: &RowOp<'_>,
    wins: impl Fn(usize) -> bool,
) -> rusqlite::Result<()> {
    let mut sql = format!("UPDATE OR ABORT {} SET ", quoted(&table.name));
    let mut place = table.key.len();
    let winning = || {
        op.cells
            .iter()
            .enumerate()
            .filter(|(cell, _)| wins(*cell))
            .filter_map(|(_, cell)| Some((cell, table.cell(cell.column)?)))
    };
    for (cell, column) in winning() {
        let name = quoted(&table.cells[column].name);
        place += 1;
        let comma = if place == table.key.len() + 1 { "" } else { ", " };
        match cell.write {
            CellWrite::Assign { .. } => sql.push_str(&format!("{comma}{name} = ?{place}")),
            CellWrite::Add(_) => {
                sql.push_str(&format!("{comma}{name} = littoral_add({name}, ?{place})"));
            }
        }
    }
    if place == table.key.len() {
        return Ok(());
    }
    sql.push_str(" WHERE ");
    sql.push_str(&table.sql.where_key);
    let mut statement = conn.prepare_cached(&sql)?;
    bind_key(&mut statement, table, op.key)?;
    for (place, (cell, _)) in (table.key.len() + 1..).zip(winning()) {
        match cell.write {
            CellWrite::Assign { value, .. } => statement.raw_bind_parameter(place, Param(value))?,
            CellWrite::Add(delta) => statement.raw_bind_parameter(place, delta)?,
        }
    }
    statement.raw_execute()?;
    Ok(())
}

fn delete(conn: &Connection, table: &Table, op: &RowOp<'_>) -> rusqlite::Result<()> {
    let mut statement = conn.prepare_cached(&table.sql.delete)?;
    bind_key(&mut statement, table, op.key)?;
    statement.raw_execute()?;
    Ok(())
}

fn stored_value<'c>(
    table: &Table,
    stored: Option<&'c [Vec<u8>]>,
    conflict: &Conflict,
) -> ValueRef<'c> {
    table
        .cell(conflict.column)
        .and_then(|place| stored?.get(place))
        .and_then(|cell| ByteReader::new(cell).cell().ok())
        .unwrap_or(ValueRef::Null)
}
