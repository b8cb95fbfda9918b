//! [`Recorder`]: row events in the order in which they happened, in one arena; in [`Runs`] when they
//! are too many.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use rusqlite::Connection;

use crate::{
    capture::{
        fold::{Fold, NetChange, NetRow, assigned_with, changes, split},
        runs::{Groups, RunEvent, Runs},
    },
    db::{
        File,
        mask::{ChangeMask, Changeable},
    },
    entry::TableChange,
    error::WriteError,
    id::TableId,
    schema::{Column, Registry, Table, row::read_row, spelling::put_spelling},
    sqlite::{Change, Moment, PreupdateSink, ROWID, RowEvent, Untold},
    testing::{Bug, planted},
    value::{ValueRef, put_cell, put_key_part, put_varint},
};

mod reread;
mod tape;

/// Row events of the transaction under way.
#[derive(Debug)]
pub(crate) struct Recorder {
    registry: Arc<Registry>,
    tape: Tape,
    /// What was captured before each change of the schema in this transaction, and the change.
    chapters: Vec<Chapter>,
    /// The table that is being dropped, whose rows go with it.
    dropping: Option<u32>,
    /// The table of the event before: most statements change rows of one table only.
    table: Option<(Vec<u8>, Option<u32>)>,
    /// A row of a table that is normalized was captured.
    normalized: bool,
    /// See [`Recorder::set_alone`].
    alone: bool,
    /// The first value that cannot be replicated.
    refused: Option<WriteError>,
    /// What the statement that runs can change; `None`: anything.
    mask: Option<Arc<ChangeMask>>,
    /// Compare all columns all the same, and panic if the mask leaves out one that changed.
    verify_mask: bool,
    /// Beside which file events go to disk that are too many for memory.
    file: Arc<File>,
    /// How many bytes of events are too many.
    tape_bytes: usize,
}

/// The rows captured under one schema, and the change of the schema that ended it.
#[derive(Debug)]
pub(crate) struct Chapter {
    tape: Tape,
    registry: Arc<Registry>,
    /// The statements that changed the schema.
    pub(crate) statements: Vec<String>,
    /// What they did to tables, or what was declared of them.
    pub(crate) changes: Vec<TableChange>,
}

/// The events, and the bytes they refer to.
#[derive(Debug, Default)]
struct Tape {
    arena: Vec<u8>,
    events: Vec<Event>,
    /// Tables with AUTOINCREMENT that were inserted into, each with the ordinal of the first event that
    /// did.
    counted: Vec<(u32, u64)>,
    /// Events before those, on disk.
    runs: Option<Runs>,
    /// How many events were put on disk, or taken back there.
    spilled: u64,
}

/// What happened to one row once. Key and cells stand one behind the other in the arena, events in the
/// order in which they happened.
#[derive(Debug, Clone, Copy)]
struct Event {
    key: usize,
    /// An insert's new cells, all of them; a delete's old ones, all or none; for an update the place of
    /// each cell that changed, its old and its new value.
    cells: usize,
    end: usize,
    /// Place in [`Registry::tables`].
    table: u32,
    change: Change,
}

/// What is known of a row event before it is looked at.
#[derive(Debug, Clone, Copy)]
struct Scope {
    /// The table's place in [`Registry::tables`].
    index: u32,
    changeable: Changeable,
    verify: bool,
    /// What the transaction has not changed yet can be read elsewhere.
    alone: bool,
}

impl Event {
    fn key_in<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        &arena[self.key..self.cells]
    }

    fn cells_in<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        &arena[self.cells..self.end]
    }

    /// Whether both happened to the same row.
    fn is_of(&self, other: &Self, arena: &[u8]) -> bool {
        self.table == other.table && self.key_in(arena) == other.key_in(arena)
    }
}

/// Where an event belongs among others, as a number: its table, the first eight bytes of its key, which
/// mostly decide, and its place among the events.
fn rank(place: usize, event: &Event, arena: &[u8]) -> u128 {
    let key = event.key_in(arena);
    let mut first = [0; 8];
    let len = key.len().min(first.len());
    first[..len].copy_from_slice(&key[..len]);
    u128::from(event.table) << 96
        | u128::from(u64::from_be_bytes(first)) << PLACE_BITS
        | place as u128
}

/// Bits of a rank for the place: an arena of more events is too large for any memory.
const PLACE_BITS: u32 = 32;

fn place_in(rank: u128) -> usize {
    (rank & ((1 << PLACE_BITS) - 1)) as usize
}

/// A point to which the recorder can go back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    chapters: usize,
    /// How many events there were in the last chapter, those on disk included.
    events: u64,
    arena: usize,
}

/// What a transaction has changed, taken out of the recorder so that statements may run while it is
/// read.
#[derive(Debug)]
pub(crate) struct Captured {
    chapters: Vec<Chapter>,
    registry: Arc<Registry>,
    tape: Tape,
}

impl Captured {
    /// What was captured before each change of the schema.
    pub(crate) fn chapters(&self) -> &[Chapter] {
        &self.chapters
    }

    /// What was captured since the schema changed last.
    pub(crate) fn page(&self) -> Page<'_> {
        Page { tape: &self.tape, registry: &self.registry }
    }

    /// The schema that rows were captured under last.
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Reads every row captured since the schema changed last again and panics where the file holds
    /// something else than the events say: the simulator's check that capture is exact.
    pub(crate) fn verify(&self, conn: &Connection, before: &Connection) -> Result<(), WriteError> {
        self.page().net(before, |table, row| {
            check(table, &row, read_row(conn, table, row.key)?.as_deref());
            Ok(())
        })
    }
}

impl Recorder {
    pub(crate) fn new(
        registry: Arc<Registry>,
        verify_mask: bool,
        file: Arc<File>,
        tape_bytes: usize,
    ) -> Self {
        Self {
            registry,
            tape: Tape::default(),
            chapters: Vec::new(),
            dropping: None,
            table: None,
            normalized: false,
            alone: false,
            refused: None,
            mask: None,
            verify_mask,
            file,
            tape_bytes,
        }
    }

    /// Begins to capture under another schema. Nothing may be captured at that moment.
    pub(crate) fn set_registry(&mut self, registry: Arc<Registry>) {
        debug_assert!(self.is_empty(), "the schema changes between transactions");
        self.registry = registry;
        self.table = None;
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// From here on rows are captured under `registry`, since these statements have run and made these
    /// changes. Net folding stops here.
    pub(crate) fn end_chapter(
        &mut self,
        statements: Vec<String>,
        changes: Vec<TableChange>,
        registry: Arc<Registry>,
    ) {
        let tape = mem::take(&mut self.tape);
        let registry = mem::replace(&mut self.registry, registry);
        self.chapters.push(Chapter { tape, registry, statements, changes });
        self.table = None;
        // Another connection still has the schema from before.
        self.alone = false;
    }

    /// The rows of this table, by its name, vanish with it: they are not captured until `None` is said.
    pub(crate) fn set_dropping(&mut self, table: Option<&str>) {
        self.dropping = table
            .and_then(|name| self.registry.position(name.as_bytes()))
            .and_then(|place| u32::try_from(place).ok());
    }

    /// Whether a row of the table was captured.
    pub(crate) fn has_rows_of(&self, table: TableId) -> bool {
        self.chapters.iter().map(Chapter::page).chain([self.page()]).any(|page| {
            let place = page.registry.tables().iter().position(|known| known.id == table);
            // Of rows on disk it is not known which they are.
            page.tape.runs.is_some()
                || page.tape.events.iter().any(|event| Some(event.table as usize) == place)
        })
    }

    /// Forgets everything captured.
    pub(crate) fn clear(&mut self) {
        /// What one huge transaction left behind is not kept for ever.
        const KEPT_BYTES: usize = 16 << 20;
        if let Some(first) = self.chapters.drain(..).next() {
            self.registry = first.registry;
            self.table = None;
        }
        self.dropping = None;
        self.tape.arena.clear();
        self.tape.arena.shrink_to(KEPT_BYTES);
        self.tape.counted.clear();
        self.tape.events.clear();
        self.tape.events.shrink_to(KEPT_BYTES / size_of::<Event>());
        self.tape.runs = None;
        self.tape.spilled = 0;
        self.normalized = false;
        self.alone = false;
        self.refused = None;
    }

    /// Says what the statement that runs next can change.
    pub(crate) fn set_mask(&mut self, mask: Option<Arc<ChangeMask>>) {
        self.mask = mask;
    }

    /// Says that the transaction is that of one job alone: what a row held before it, another
    /// connection can still read. Until the schema changes, or [`Recorder::clear`].
    pub(crate) fn set_alone(&mut self) {
        self.alone = true;
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark { chapters: self.chapters.len(), ..self.tape.mark() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tape.total() == 0 && self.chapters.is_empty()
    }

    /// Takes out what was captured; [`Recorder::put_back`] follows.
    pub(crate) fn take(&mut self) -> rusqlite::Result<Captured> {
        let chapters = self.chapters.iter_mut().map(|chapter| &mut chapter.tape);
        for tape in chapters.chain([&mut self.tape]) {
            if tape.runs.is_some() {
                tape.spill(&self.file)?;
            }
        }
        Ok(Captured {
            chapters: mem::take(&mut self.chapters),
            registry: Arc::clone(&self.registry),
            tape: mem::take(&mut self.tape),
        })
    }

    /// Has what was taken out again.
    pub(crate) fn put_back(&mut self, captured: Captured) {
        debug_assert!(self.is_empty(), "nothing is captured meanwhile");
        self.chapters = captured.chapters;
        self.tape = captured.tape;
    }

    /// The tables whose AUTOINCREMENT may have handed out a key: those inserted into, even if nothing is
    /// left of it, and those that are new or took another's place.
    pub(crate) fn counted(&self) -> Vec<(TableId, String)> {
        let mut ids: BTreeSet<TableId> = BTreeSet::new();
        for page in self.chapters.iter().map(Chapter::page).chain([self.page()]) {
            let tables = page.registry.tables();
            ids.extend(page.tape.counted.iter().map(|(table, _)| tables[*table as usize].id));
        }
        for change in self.chapters.iter().flat_map(|chapter| &chapter.changes) {
            if let TableChange::Declared(table) = change {
                ids.insert(table.id);
            }
        }
        let counted = ids.into_iter().filter_map(|id| self.registry.by_id(id));
        counted
            .filter(|table| table.autoincrement && !table.is_local())
            .map(|table| (table.id, table.name.clone()))
            .collect()
    }

    /// Whether a row of a table that is normalized was captured; see [`Table::normalized`].
    pub(crate) fn wants_normalizing(&self) -> bool {
        self.normalized
    }

    /// The first value that cannot be replicated, if one was captured.
    pub(crate) fn take_refusal(&mut self) -> Option<WriteError> {
        self.refused.take()
    }

    /// Forgets what was captured since `mark`, all of which is known to be rolled back.
    pub(crate) fn forget_since(&mut self, mark: Mark) {
        if let Some(chapter) = self.chapters.drain(mark.chapters..).next() {
            self.tape = chapter.tape;
            self.registry = chapter.registry;
            self.table = None;
        }
        self.tape.back_to(mark);
    }

    fn table_at(&self, event: &Event) -> &Table {
        &self.registry.tables()[event.table as usize]
    }

    /// What was captured since the schema changed last.
    pub(crate) fn page(&self) -> Page<'_> {
        Page { tape: &self.tape, registry: &self.registry }
    }

    fn table_of(&mut self, name: &[u8]) -> Option<u32> {
        match &self.table {
            Some((last, table)) if last == name => *table,
            _ => {
                let table = self
                    .registry
                    .position(name)
                    .filter(|place| !self.registry.tables()[*place].is_local())
                    .and_then(|place| u32::try_from(place).ok());
                self.table = Some((name.to_vec(), table));
                table
            }
        }
    }
}

impl Chapter {
    /// What was captured before the schema changed.
    pub(crate) fn page(&self) -> Page<'_> {
        Page { tape: &self.tape, registry: &self.registry }
    }
}

/// What was captured under one schema.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page<'a> {
    tape: &'a Tape,
    registry: &'a Registry,
}

impl Page<'_> {
    pub(crate) fn is_empty(self) -> bool {
        self.tape.total() == 0
    }

    /// Gives the net changes, one per key, by table and key, until one of them meets an error. On
    /// `before`, rows are as they were before the transaction.
    pub(crate) fn net(
        self,
        before: &Connection,
        mut each: impl FnMut(&Table, NetRow<'_>) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        if let Some(runs) = &self.tape.runs {
            return self.net_of_runs(runs, before, each);
        }
        let mut folded = Vec::new();
        self.tape.in_order(|mut rest, bytes| {
            while let Some(first) = rest.first() {
                let key = first.key_in(bytes);
                let alike = |event: &&Event| event.is_of(first, bytes);
                let count = 1 + rest[1..].iter().take_while(alike).count();
                let (group, behind) = rest.split_at(count);
                rest = behind;
                let table = &self.registry.tables()[first.table as usize];
                let change = match group {
                    [only] => Some((only.change, only.cells_in(bytes))),
                    _ => {
                        let events = group.iter().map(|e| (e.change, e.cells_in(bytes)));
                        let change = fold(table, key, events, before, &mut folded)?;
                        change.map(|change| (change, folded.as_slice()))
                    }
                };
                if let Some((change, cells)) = change {
                    each(table, NetRow { key, change: NetChange::new(change, cells) })?;
                }
            }
            Ok(())
        })
    }

    fn net_of_runs(
        self,
        runs: &Runs,
        before: &Connection,
        mut each: impl FnMut(&Table, NetRow<'_>) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let mut groups = Groups::new(runs.merge_from(0)?);
        let mut folded = Vec::new();
        while let Some(group) = groups.next(runs)? {
            let table = &self.registry.tables()[group.table as usize];
            let change = match group.events.as_slice() {
                [(change, cells)] => Some((*change, &group.bytes[cells.clone()])),
                events => {
                    let events = events.iter().map(|(c, cells)| (*c, &group.bytes[cells.clone()]));
                    let change = fold(table, &group.key, events, before, &mut folded)?;
                    change.map(|change| (change, folded.as_slice()))
                }
            };
            if let Some((change, cells)) = change {
                each(table, NetRow { key: &group.key, change: NetChange::new(change, cells) })?;
            }
        }
        Ok(())
    }
}

impl PreupdateSink for Recorder {
    fn row(&mut self, event: &RowEvent<'_>) {
        self.tape.make_room();
        let Some(index) = self.table_of(event.table) else { return };
        if self.dropping == Some(index) {
            return;
        }
        let table = &self.registry.tables()[index as usize];
        if let Some(target) = &table.kept_by_deletes
            && event.change == Change::Delete
            && !event.blob_write
            && self.mask.as_ref().is_some_and(|mask| mask.only_replaces(index))
        {
            self.refused.get_or_insert_with(|| WriteError::Forbidden {
                what: format!(
                    "REPLACE, which deletes a row of {:?} and fires no trigger, so that {target:?} would \
                     keep the row (ON CONFLICT DO UPDATE fires triggers),",
                    table.name
                ),
            });
        }
        self.normalized |= table.normalized;
        let start = self.tape.mark();
        let changeable = self.mask.as_ref().map_or(Changeable::ALL, |mask| mask.of(index));
        let scope = Scope { index, changeable, verify: self.verify_mask, alone: self.alone };
        if let Err(Untellable { column, what }) = self.tape.record(table, scope, event) {
            self.tape.back_to(start);
            self.refused.get_or_insert_with(|| WriteError::Value {
                table: table.name.clone(),
                column: column.unwrap_or_default(),
                what,
            });
        }
        if self.tape.bytes() >= self.tape_bytes
            && let Err(error) = self.tape.spill(&self.file)
        {
            self.refused.get_or_insert(WriteError::Sqlite(error));
        }
    }
}

/// The values of a column before and after an update, as they are stored.
fn values<'e>(
    column: &Column,
    event: &RowEvent<'e>,
) -> Result<(ValueRef<'e>, ValueRef<'e>), Untold> {
    let (old, new) = (event.before(column.position)?, event.after(column.position)?);
    Ok((column.stored(old), column.stored(new)))
}

/// Why a row event cannot be recorded.
struct Untellable {
    column: Option<String>,
    what: String,
}

impl Untellable {
    fn sqlite(column: &str, Untold(code): Untold) -> Self {
        Self {
            column: Some(column.to_owned()),
            what: format!("SQLite did not tell its value (code {code})"),
        }
    }
}

/// What the events of one row come to in all; its cells are in `folded` then.
fn fold<'e>(
    table: &Table,
    key: &[u8],
    events: impl Iterator<Item = (Change, &'e [u8])>,
    before: &Connection,
    folded: &mut Vec<u8>,
) -> rusqlite::Result<Option<Change>> {
    let old;
    let mut events = events.peekable();
    let Some((first, _)) = events.peek() else { return Ok(None) };
    let mut fold = Fold::new(*first, table.cells.len());
    events.for_each(|(change, cells)| fold.add(change, cells));
    if fold.wants_old() {
        old = read_row(before, table, key)?.expect("a row that existed before was committed");
        fold.set_old(&old);
    }
    folded.clear();
    Ok(fold.net(&table.groups, folded))
}

fn check(table: &Table, row: &NetRow<'_>, stored: Option<&[Vec<u8>]>) {
    let name = &table.name;
    match (&row.change, stored) {
        (NetChange::Delete, None) => {}
        (NetChange::Insert(cells), Some(stored)) => {
            assert!(
                split(cells).eq(stored.iter().map(Vec::as_slice)),
                "captured insert into {name}"
            );
        }
        (NetChange::Update(cells), Some(stored)) => {
            for (place, _, new) in changes(cells) {
                assert_eq!(stored[place], new, "captured update of {name}");
            }
        }
        (change, stored) => panic!("captured {change:?} of {name}, the file holds {stored:?}"),
    }
}

/// Whether two values are stored alike.
fn same(a: ValueRef<'_>, b: ValueRef<'_>) -> bool {
    match (a, b) {
        (ValueRef::Real(a), ValueRef::Real(b)) => a.to_bits() == b.to_bits(),
        _ => a == b,
    }
}
