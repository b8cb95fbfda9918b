//! Carries the rows of remote entries into SQLite.
//!
//! Rows of a table that only the origin writes are stored as they come. Rows of a multi-writer table
//! are stored as far as [`Contested`] says they win.

use rusqlite::{Connection, functions::FunctionFlags};

use crate::{
    contested::{Conflict, Contested, Effects, Verdict},
    entry::{CellWrite, EntryHeader, Logged, RowOp, RowOpKind, Segment, codec::RowsReader},
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
    pub(crate) waiting: &'a mut Waiting,
}

/// Operations of an entry that collided with a UNIQUE constraint, by their places among all of the
/// entry.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    places: Vec<u64>,
    /// The place of the next operation.
    next: u64,
}

impl Waiting {
    pub(crate) const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
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
    /// Applies the operations of one `Rows` segment of an entry. [`Applier::settle`] follows before
    /// anything else of the entry is applied.
    pub(crate) fn rows(&mut self, header: &EntryHeader, rows: &[u8]) -> Result<(), ApplyError> {
        let broken = |error| ApplyError::undecodable(header.dot, error);
        let mut reader = RowsReader::new(rows);
        while let Some(op) = reader.next().map_err(broken)? {
            if self.row(header, &op)? == Stored::Collides {
                self.waiting.places.push(self.waiting.next);
            }
            self.waiting.next += 1;
        }
        Ok(())
    }

    fn row(&mut self, header: &EntryHeader, op: &RowOp<'_>) -> Result<Stored, ApplyError> {
        let registry = self.registry;
        let broken = |error| ApplyError::undecodable(header.dot, error);
        let table =
            registry.by_id(op.table).ok_or_else(|| broken(DecodeError::Unknown("table")))?;
        check_columns(table, op).map_err(broken)?;
        self.tally.rows += 1;
        if table.is_multi_writer() {
            self.merge(header, table, op)?;
            return Ok(Stored::Yes);
        }
        if header.dot.author != self.origin {
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
    pub(crate) fn settle(&mut self, entry: &Logged) -> Result<(), ApplyError> {
        let mut waiting = std::mem::take(&mut self.waiting.places);
        while !waiting.is_empty() {
            let before = waiting.len();
            let mut still = Vec::new();
            self.each_of(entry, &waiting, |place, table, op| {
                if self.store(table, op)? == Stored::Collides {
                    still.push(place);
                }
                Ok(())
            })?;
            waiting = still;
            // As long as half of them find their place it is worth another pass.
            if waiting.len() > before / 2 {
                return self.exchange(entry, &waiting);
            }
        }
        Ok(())
    }

    fn exchange(&self, entry: &Logged, waiting: &[u64]) -> Result<(), ApplyError> {
        let mut taken: Vec<Option<Vec<Vec<u8>>>> = Vec::new();
        self.each_of(entry, waiting, |_, table, op| {
            taken.push(read_row(self.conn, table, op.key)?);
            delete(self.conn, table, op)?;
            Ok(())
        })?;
        let mut taken = taken.into_iter();
        self.each_of(entry, waiting, |_, table, op| {
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
        entry: &Logged,
        waiting: &[u64],
        mut each: impl FnMut(u64, &Table, &RowOp<'_>) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let dot = entry.header().dot;
        let mut place = 0;
        let mut waiting = waiting.iter().peekable();
        let mut segments = entry.segments();
        while let Some(segment) = segments.next(self.conn).map_err(|error| (dot, error))? {
            let Segment::Rows(rows) = segment else { continue };
            let mut reader = RowsReader::new(rows);
            while let Some(op) = reader.next().map_err(|e| ApplyError::undecodable(dot, e))? {
                if waiting.next_if(|&&next| next == place).is_some()
                    && let Some(table) = self.registry.by_id(op.table)
                {
                    each(place, table, &op)?;
                }
                place += 1;
            }
        }
        Ok(())
    }

    fn merge(
        &mut self,
        header: &EntryHeader,
        table: &Table,
        op: &RowOp<'_>,
    ) -> Result<(), ApplyError> {
        let stamp = header.stamp();
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

/// Every operation names columns that its table has, in the manner in which they merge.
fn check_columns(table: &Table, op: &RowOp<'_>) -> Result<(), DecodeError> {
    let fits = |place: usize, write: CellWrite<'_>| match table.cells[place].merge {
        ColumnType::Lww => matches!(write, CellWrite::Assign { .. }),
        ColumnType::Counter => matches!(write, CellWrite::Add(_)),
    };
    for cell in op.cells {
        let place = table.cell(cell.column).ok_or(DecodeError::Unknown("column"))?;
        if !fits(place, cell.write) {
            return Err(DecodeError::Invalid("a cell that does not fit its column's type"));
        }
    }
    if op.kind == RowOpKind::Insert && op.cells.len() != table.cells.len() {
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
    let mut statement = conn.prepare_cached(&table.sql.insert)?;
    bind_key(&mut statement, table, op.key)?;
    for (place, cell) in (table.key.len() + 1..).zip(op.cells) {
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
    let winning = || op.cells.iter().enumerate().filter(|(cell, _)| wins(*cell)).map(|(_, c)| c);
    for cell in winning() {
        let Some(column) = table.cell(cell.column) else { continue };
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
    for (place, cell) in (table.key.len() + 1..).zip(winning()) {
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
