//! [`ChangeMask`]: the columns that a statement can change, and the tables it can insert into, as
//! SQLite's authorizer names them when the statement is prepared, those of its triggers and foreign-key
//! actions included.
//!
//! Reading a column's old and new value in the preupdate hook costs more than updating it. What a
//! statement cannot change need not be compared, and what it only deletes need not be read.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use crate::schema::{Column, Registry};

/// The cells of each table that a statement can change, whether the key, and whether it can insert
/// rows. A cell beyond the 61st counts as changeable.
#[derive(Debug, Default)]
pub(crate) struct ChangeMask {
    tables: BTreeMap<u32, u64>,
    /// The tables of which it can delete rows other than by REPLACE, which asks nobody.
    deletes: Mutex<BTreeSet<u32>>,
    /// Prepared again while it runs, since the schema has changed: what it can change now is not known
    /// here.
    all: AtomicBool,
}

/// The bit of the key.
const KEY: usize = 63;

/// The bit that says that rows can be inserted.
const INSERTS: usize = 62;

/// The cells from this one on share a bit that is always set.
const LAST: usize = 61;

impl ChangeMask {
    /// Adds a column that the authorizer names.
    pub(crate) fn add(&mut self, registry: &Registry, table: &str, column: &str) {
        let Some(place) = registry.position(table.as_bytes()) else { return };
        let cells = &registry.tables()[place].cells;
        // What is no cell belongs to the key: one of its columns, or the rowid under one of its names.
        let named = |cell: &Column| !cell.is_spelling() && cell.name.eq_ignore_ascii_case(column);
        let cell = cells.iter().position(named);
        let bit = cell.map_or(KEY, |cell| cell.min(LAST));
        self.set(place, bit);
    }

    /// Adds a table into which the statement inserts.
    pub(crate) fn add_insert(&mut self, registry: &Registry, table: &str) {
        if let Some(place) = registry.position(table.as_bytes()) {
            self.set(place, INSERTS);
        }
    }

    fn set(&mut self, table: usize, bit: usize) {
        if let Ok(table) = u32::try_from(table) {
            *self.tables.entry(table).or_default() |= 1 << bit;
        }
    }

    /// Adds a table of which rows may be deleted, as the authorizer names it.
    pub(crate) fn add_delete(&self, registry: &Registry, table: &str) {
        let place = registry.position(table.as_bytes());
        self.deletes.lock().extend(place.and_then(|place| u32::try_from(place).ok()));
    }

    /// Whether a row of the table at that place in the registry can go only because another replaces it.
    pub(crate) fn only_replaces(&self, table: u32) -> bool {
        !self.deletes.lock().contains(&table)
    }

    /// The statement is prepared again: forgets what cannot change, and, once, of what it can delete.
    pub(crate) fn set_all(&self) {
        if !self.all.swap(true, Ordering::Relaxed) {
            self.deletes.lock().clear();
        }
    }

    /// The cells of the table at that place in the registry that can change.
    pub(crate) fn of(&self, table: u32) -> Changeable {
        if self.all.load(Ordering::Relaxed) {
            return Changeable::ALL;
        }
        Changeable(self.tables.get(&table).copied().unwrap_or(0) | 1 << LAST)
    }
}

/// The cells of one table that can change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Changeable(u64);

impl Changeable {
    pub(crate) const ALL: Self = Self(u64::MAX);

    pub(crate) fn contains_key(self) -> bool {
        self.0 >> KEY & 1 == 1
    }

    /// Whether rows can only be deleted.
    pub(crate) fn is_nothing(self) -> bool {
        self.0 == 1 << LAST
    }

    pub(crate) fn contains(self, cell: usize) -> bool {
        self.0 >> cell.min(LAST) & 1 == 1
    }
}

/// The masks of statements that the connection keeps prepared, by their text.
#[derive(Debug, Default)]
pub(crate) struct Masks {
    by_sql: BTreeMap<String, Arc<ChangeMask>>,
}

impl Masks {
    /// More than the connection keeps statements; beyond that all are forgotten, which costs time only.
    const KEPT: usize = 4 * crate::limits::STATEMENT_CACHE;

    pub(crate) fn get(&self, sql: &str) -> Option<Arc<ChangeMask>> {
        self.by_sql.get(sql).cloned()
    }

    pub(crate) fn keep(&mut self, sql: &str, mask: &Arc<ChangeMask>) {
        if self.by_sql.len() >= Self::KEPT {
            self.clear();
        }
        self.by_sql.insert(sql.to_owned(), Arc::clone(mask));
    }

    pub(crate) fn clear(&mut self) {
        self.by_sql.clear();
    }
}
