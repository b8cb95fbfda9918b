//! Carries the rows of remote entries into SQLite.
//!
//! Rows of a table that only the origin writes are stored as they come. Rows of a multi-writer table
//! are stored as far as [`Contested`] says they win.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    contested::{Conflict, Contested, Effects, Taking, Verdict},
    entry::{
        Cell, CellWrite, EntryHeader, Logged, Member, Removal, RowOp, RowOpKind, Segment,
        SetChange,
        change::put_change,
        rows::{CellKind, RowsReader},
    },
    error::ApplyError,
    hlc::Stamp,
    id::{AuthorId, ColumnId, TableId},
    merge::{
        Aside,
        conflict::Conflicts,
        parked::is_rejection,
        row,
        store::{Inserts, delete, insert, insert_row, update, update_swapping},
    },
    policy::ColumnType,
    schema::{
        Registry, Table,
        row::read_row,
        spelling::{check_spelling, split_spelling},
    },
    set::Element,
    sqlite::Keeping,
    testing::{Bug, planted},
    value::{ByteReader, DecodeError, KeyPart, put_cell},
};

/// Applies entries within one transaction.
#[derive(Debug)]
pub(crate) struct Applier<'a> {
    conn: &'a Keeping,
    registry: &'a Registry,
    clocks: Taking<'a>,
    aside: &'a mut Aside,
    /// The author whose rows of origin-written tables count.
    origin: AuthorId,
    members: &'a [Member],
    pub(crate) tally: Tally,
    effects: Effects,
    conflicts: Conflicts<'a>,
    waiting: &'a mut Waiting,
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

impl<'a> Applier<'a> {
    pub(crate) fn new(
        conn: &'a Keeping,
        registry: &'a Registry,
        contested: &'a mut Contested,
        aside: &'a mut Aside,
        origin: AuthorId,
        members: &'a [Member],
        waiting: &'a mut Waiting,
    ) -> Self {
        aside.checks.follow(registry.version);
        Self {
            conn,
            registry,
            clocks: contested.taking(conn),
            aside,
            origin,
            members,
            tally: Tally::default(),
            effects: Effects::default(),
            conflicts: Conflicts::new(conn, members),
            waiting,
        }
    }

    /// Applies the operations of one `Rows` segment of an entry. [`Applier::settle`] follows before
    /// anything else of the entry is applied.
    pub(crate) fn rows(&mut self, header: &EntryHeader, rows: &[u8]) -> Result<(), ApplyError> {
        let broken = |error| ApplyError::undecodable(header.dot, error);
        let mut inserts = Inserts::new(self.conn);
        let mut reader = RowsReader::new(rows);
        let mut run: Option<Run<'_>> = None;
        while let Some(op) = reader.next().map_err(broken)? {
            let run = match &mut run {
                Some(run) if run.has(&op) => run,
                run => run.insert(self.begin_run(header, &op)?),
            };
            match self.row(header, run, &op)? {
                Stored::Yes => {}
                Stored::Collides => self.waiting.places.push(self.waiting.next),
                Stored::Later(table) => {
                    let (key, cells) = reader.last();
                    let place = self.waiting.next;
                    inserts.push(table, place, key, cells, &mut self.waiting.places)?;
                }
            }
            self.waiting.next += 1;
        }
        inserts.flush(&mut self.waiting.places)?;
        Ok(self.conflicts.flush()?)
    }

    /// Looks at an operation that names other columns than the one before.
    fn begin_run(&self, header: &EntryHeader, op: &RowOp<'_>) -> Result<Run<'a>, ApplyError> {
        let registry = self.registry;
        let broken = |error| ApplyError::undecodable(header.dot, error);
        let table = registry.by_id(op.table);
        if table.is_none() && op.table >= registry.next_table {
            return Err(broken(DecodeError::Unknown("table")));
        }
        if let Some(table) = table {
            if table.is_local() {
                return Err(broken(DecodeError::Invalid("rows of a table that is local")));
            }
            let older = header.dot.author != self.origin && header.schema < registry.version;
            check_columns(table, op, older).map_err(broken)?;
            if !table.is_multi_writer() && header.dot.author != self.origin {
                return Err(broken(DecodeError::Invalid("rows that only the origin may write")));
            }
        }
        Ok(Run {
            id: op.table,
            kind: op.kind,
            columns: op.cells.iter().map(|cell| (cell.column, cell.write.kind())).collect(),
            table,
            are_collected: table.is_some_and(|table| Inserts::takes(table, op)),
        })
    }

    fn row(
        &mut self,
        header: &EntryHeader,
        run: &Run<'a>,
        op: &RowOp<'_>,
    ) -> Result<Stored<'a>, ApplyError> {
        // Of one that is gone, its author had not heard yet.
        let Some(table) = run.table else { return Ok(Stored::Yes) };
        check_key(table, op).map_err(|error| ApplyError::undecodable(header.dot, error))?;
        self.tally.rows += 1;
        if table.is_multi_writer() {
            return self.merge(header, table, op, run.are_collected);
        }
        if self.aside.parked.contains(table.id, op.key) {
            self.merge_parked(table, op, header.stamp(), |_| true)?;
            return Ok(Stored::Yes);
        }
        if run.are_collected {
            return Ok(Stored::Later(table));
        }
        self.store(table, op)
    }

    /// Stores an operation on an origin-written table.
    fn store(&self, table: &Table, op: &RowOp<'_>) -> Result<Stored<'a>, ApplyError> {
        let stored = match op.kind {
            RowOpKind::Insert => insert(self.conn, table, op),
            RowOpKind::Update => update(self.conn, table, op, |_| true),
            RowOpKind::Delete => delete(self.conn, table, op),
        };
        match stored {
            Ok(()) => Ok(Stored::Yes),
            Err(error) if is_rejection(&error) => Ok(Stored::Collides),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores the operations that were rejected: inserts of rows that others have inserted too, and those
    /// that a UNIQUE constraint keeps apart from rows which the same entry changes too. The latter
    /// again while that helps, then all of them taken out and put in at once. What is rejected even so
    /// is parked.
    pub(crate) fn settle(&mut self, entry: &Logged) -> Result<(), ApplyError> {
        let mut waiting = std::mem::take(&mut self.waiting.places);
        waiting.sort_unstable();
        while !waiting.is_empty() {
            let before = waiting.len();
            let mut still = Vec::new();
            each_of(self.conn, self.registry, entry, &waiting, |place, table, op| {
                if table.is_multi_writer() {
                    // Collected because all of it wins.
                    self.combine(table, op, entry.header().stamp(), |_| true)?;
                } else if matches!(self.store(table, op)?, Stored::Collides) {
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
        Ok(self.conflicts.flush()?)
    }

    fn exchange(&mut self, entry: &Logged, waiting: &[u64]) -> Result<(), ApplyError> {
        let mut taken: Vec<Option<Vec<Vec<u8>>>> = Vec::new();
        each_of(self.conn, self.registry, entry, waiting, |_, table, op| {
            taken.push(read_row(self.conn, table, op.key)?);
            delete(self.conn, table, op)?;
            Ok(())
        })?;
        let mut taken = taken.into_iter();
        each_of(self.conn, self.registry, entry, waiting, |_, table, op| {
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
            self.put_or_park(table, op.key, &row, entry.header().stamp())
        })
    }

    /// Stores a row that is not in its table, or parks it.
    fn put_or_park(
        &mut self,
        table: &Table,
        key: &[u8],
        cells: &[Vec<u8>],
        stamp: Stamp,
    ) -> Result<(), ApplyError> {
        match insert_row(self.conn, table, key, cells) {
            Ok(()) => Ok(self.aside.parked.take_out(self.conn, table, key)?),
            Err(error) if is_rejection(&error) => {
                let why = (stamp, &error);
                Ok(self.aside.parked.park(self.conn, self.members, table, key, cells, why)?)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Carries an operation out on a row that is parked, and tries to store the row.
    fn merge_parked(
        &mut self,
        table: &Table,
        op: &RowOp<'_>,
        stamp: Stamp,
        wins: impl Fn(usize) -> bool,
    ) -> Result<(), ApplyError> {
        if op.kind == RowOpKind::Delete {
            return Ok(self.aside.parked.take_out(self.conn, table, op.key)?);
        }
        let cells = self.aside.parked.cells(self.conn, table, op.key)?;
        let mut cells = match cells {
            Some(cells) => cells,
            None => row::unwritten(self.conn, table, op)?,
        };
        self.merge_in_memory(table, &mut cells, op, stamp, wins)?;
        self.put_or_park(table, op.key, &cells, stamp)
    }

    fn merge_in_memory(
        &mut self,
        table: &Table,
        cells: &mut [Vec<u8>],
        op: &RowOp<'_>,
        stamp: Stamp,
        wins: impl Fn(usize) -> bool,
    ) -> Result<(), ApplyError> {
        for overflow in row::merge(table, cells, op, wins) {
            self.tally.conflicts += 1;
            self.conflicts.record_overflow(table, op.key, stamp, overflow)?;
        }
        Ok(())
    }

    fn merge(
        &mut self,
        header: &EntryHeader,
        table: &'a Table,
        op: &RowOp<'_>,
        is_collected: bool,
    ) -> Result<Stored<'a>, ApplyError> {
        let stamp = header.stamp();
        let mut effects = std::mem::take(&mut self.effects);
        let verdict = self
            .clocks
            .apply(op, header, &table.assigned, &mut effects)
            .map_err(|error| ApplyError::clocks(header.dot, error))?;
        // Removals that do not count are left out from here on.
        let changes = counting(op, &effects.outlived);
        let cells = with_changes(op, &changes);
        let op = &RowOp { cells: if changes.is_empty() { op.cells } else { &cells }, ..*op };
        let conflicts = &effects.conflicts;
        self.tally.conflicts += conflicts.len() as u64;
        // What an update overwrites, it can tell by itself.
        let assigns = |cell: &Cell<'_>| matches!(cell.write, CellWrite::Assign { .. });
        let tells = op.kind == RowOpKind::Update
            && !table.may_check
            && !self.aside.parked.contains(table.id, op.key)
            && op.cells.iter().all(assigns)
            && conflicts.iter().all(Conflict::is_overwritten);
        if !conflicts.is_empty() && !tells {
            self.conflicts.record(table, op, stamp, conflicts)?;
        }
        let mut stored = Stored::Yes;
        let wins = |cell: usize| effects.wins[cell];
        match verdict {
            Verdict::Nothing => {}
            Verdict::Delete => {
                self.aside.parked.take_out(self.conn, table, op.key)?;
                delete(self.conn, table, op)?;
            }
            Verdict::Begin => {
                self.aside.parked.take_out(self.conn, table, op.key)?;
                delete(self.conn, table, op)?;
                self.insert_or(table, op, stamp, |_| true)?;
            }
            Verdict::Merge if self.aside.parked.contains(table.id, op.key) => {
                self.merge_parked(table, op, stamp, wins)?;
            }
            Verdict::Merge if op.kind == RowOpKind::Insert => {
                if is_collected && effects.wins.iter().all(|wins| *wins) {
                    stored = Stored::Later(table);
                } else {
                    self.insert_or(table, op, stamp, wins)?;
                }
            }
            Verdict::Merge if tells && !conflicts.is_empty() => {
                let overwritten = |column| conflicts.iter().any(|c| c.column == column);
                self.conn.swapped().clear();
                match update_swapping(self.conn, table, op, wins, overwritten) {
                    Ok(()) => self.conflicts.record_swapped(table, op, stamp, conflicts)?,
                    Err(error) if is_rejection(&error) => {
                        self.conflicts.record(table, op, stamp, conflicts)?;
                        self.combine(table, op, stamp, wins)?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Verdict::Merge => self.combine(table, op, stamp, wins)?,
        }
        self.effects = effects;
        Ok(stored)
    }

    /// Inserts a row, or merges into the one that is there.
    fn insert_or(
        &mut self,
        table: &Table,
        op: &RowOp<'_>,
        stamp: Stamp,
        wins: impl Fn(usize) -> bool,
    ) -> Result<(), ApplyError> {
        match insert(self.conn, table, op) {
            Err(error) if is_rejection(&error) => self.combine(table, op, stamp, wins),
            result => Ok(result?),
        }
    }

    /// Merges an operation into the row that is there.
    fn combine(
        &mut self,
        table: &Table,
        op: &RowOp<'_>,
        stamp: Stamp,
        wins: impl Fn(usize) -> bool,
    ) -> Result<(), ApplyError> {
        if !table.may_check && op.kind == RowOpKind::Update {
            match update(self.conn, table, op, &wins) {
                Err(error) if is_rejection(&error) => {}
                result => return Ok(result?),
            }
        }
        let before = read_row(self.conn, table, op.key)?;
        if before.is_none() && op.kind == RowOpKind::Update {
            // Nothing but littoral may take rows away; there is nothing to merge into.
            return Ok(());
        }
        let mut cells = match &before {
            Some(cells) => cells.clone(),
            None => row::unwritten(self.conn, table, op)?,
        };
        self.merge_in_memory(table, &mut cells, op, stamp, &wins)?;
        if before.as_ref() == Some(&cells) {
            return Ok(());
        }
        let in_place = before.is_some() && {
            match update(self.conn, table, op, &wins) {
                Err(error) if is_rejection(&error) => false,
                result => result.map(|()| true)?,
            }
        };
        if !in_place {
            delete(self.conn, table, op)?;
            self.put_or_park(table, op.key, &cells, stamp)?;
        }
        if table.may_check && !self.aside.parked.contains(table.id, op.key) {
            self.check(table, op.key, before.as_deref(), &cells, stamp)?;
        }
        Ok(())
    }

    /// Lists a row that has come to break a CHECK.
    fn check(
        &mut self,
        table: &Table,
        key: &[u8],
        before: Option<&[Vec<u8>]>,
        after: &[Vec<u8>],
        stamp: Stamp,
    ) -> Result<(), ApplyError> {
        let checks = &mut self.aside.checks;
        let Some(reason) = checks.broken(self.conn, table, key, after)? else { return Ok(()) };
        // One that was broken before was listed then.
        if let Some(before) = before
            && checks.broken(self.conn, table, key, before)?.is_some()
        {
            return Ok(());
        }
        self.tally.conflicts += 1;
        Ok(self.conflicts.record_check(table, key, after, stamp, &reason)?)
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

/// Gives those operations of an entry whose places are in `waiting`, which ascends.
fn each_of(
    conn: &Keeping,
    registry: &Registry,
    entry: &Logged,
    waiting: &[u64],
    mut each: impl FnMut(u64, &Table, &RowOp<'_>) -> Result<(), ApplyError>,
) -> Result<(), ApplyError> {
    let dot = entry.header().dot;
    let mut place = 0;
    let mut waiting = waiting.iter().peekable();
    let mut segments = entry.segments();
    while let Some(segment) = segments.next(conn).map_err(|error| (dot, error))? {
        let Segment::Rows(rows) = segment else { continue };
        let mut reader = RowsReader::new(rows);
        while let Some(op) = reader.next().map_err(|e| ApplyError::undecodable(dot, e))? {
            if waiting.next_if(|&&next| next == place).is_some()
                && let Some(table) = registry.by_id(op.table)
            {
                each(place, table, &op)?;
            }
            place += 1;
        }
    }
    Ok(())
}

/// What operations one behind the other have in common, so that it is looked at once: they do the same to
/// the same columns of one table.
#[derive(Debug)]
struct Run<'t> {
    id: TableId,
    kind: RowOpKind,
    columns: Vec<(ColumnId, CellKind)>,
    /// `None` if it is gone.
    table: Option<&'t Table>,
    /// Whether they are inserts that are stored many at once.
    are_collected: bool,
}

impl Run<'_> {
    fn has(&self, op: &RowOp<'_>) -> bool {
        let is_like = |((column, kind), cell): (&(ColumnId, CellKind), &Cell<'_>)| {
            *column == cell.column && *kind == cell.write.kind()
        };
        (self.id, self.kind, self.columns.len()) == (op.table, op.kind, op.cells.len())
            && self.columns.iter().zip(op.cells).all(is_like)
    }
}

/// Whether an operation could be stored.
#[derive(Debug)]
enum Stored<'t> {
    Yes,
    /// It is an insert that is stored together with others of its table.
    Later(&'t Table),
    /// A UNIQUE constraint is in the way, for now.
    Collides,
}

/// The changes of sets without those removals that do not count, if there are any: of each its place
/// among the operation's cells.
fn counting(op: &RowOp<'_>, outlived: &[(ColumnId, Vec<u8>)]) -> Vec<(usize, Vec<u8>)> {
    let mut changes = Vec::new();
    if outlived.is_empty() {
        return changes;
    }
    let mut stay: BTreeMap<ColumnId, BTreeSet<&[u8]>> = BTreeMap::new();
    for (column, element) in outlived {
        stay.entry(*column).or_default().insert(element);
    }
    for (place, cell) in op.cells.iter().enumerate() {
        let CellWrite::Set(change) = cell.write else { continue };
        if let Some(stay) = stay.get(&cell.column) {
            let stays = |element: &Element<'_>| stay.contains(element.to_bytes().as_slice());
            let added: Vec<Element<'_>> = change.added().collect();
            let removed: Vec<Removal<'_>> =
                change.removed().filter(|removal| !stays(&removal.element)).collect();
            let mut bytes = Vec::new();
            put_change(&mut bytes, &added, &removed);
            changes.push((place, bytes));
        }
    }
    changes
}

/// The cells of an operation with other changes of sets.
fn with_changes<'r>(op: &RowOp<'r>, changes: &'r [(usize, Vec<u8>)]) -> Vec<Cell<'r>> {
    if changes.is_empty() {
        return Vec::new();
    }
    let mut cells = op.cells.to_vec();
    for (place, bytes) in changes {
        let change = SetChange::read(&mut ByteReader::new(bytes));
        cells[*place].write = CellWrite::Set(change.expect("it was just encoded"));
    }
    cells
}

/// Every operation names columns that its table has or had, in the manner in which they merge. One that
/// was written under an `older` schema may lack columns.
fn check_columns(table: &Table, op: &RowOp<'_>, older: bool) -> Result<(), DecodeError> {
    let fits = |place: usize, write: CellWrite<'_>| match table.cells[place].merge {
        ColumnType::Lww => matches!(write, CellWrite::Assign { .. }),
        ColumnType::Counter => matches!(write, CellWrite::Add(_)),
        ColumnType::Max | ColumnType::Min => matches!(write, CellWrite::Extreme(_)),
        ColumnType::Set => matches!(write, CellWrite::Set(_)),
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
    Ok(())
}

/// The bytes of a key are one of its table, and so are those of its spelling.
fn check_key(table: &Table, op: &RowOp<'_>) -> Result<(), DecodeError> {
    if let (Some(Cell { write: CellWrite::Assign { value, .. }, .. }), _) = split_spelling(op.cells)
    {
        check_spelling(table, op.key, *value)?;
    }
    let mut key = ByteReader::new(op.key);
    for _ in &table.key {
        let part = key.key_part()?;
        if table.has_rowid_key() && !matches!(part, KeyPart::Integer(_)) {
            return Err(DecodeError::Invalid("a rowid that is no integer"));
        }
    }
    if key.is_empty() { Ok(()) } else { Err(DecodeError::Invalid("a key of too many parts")) }
}
