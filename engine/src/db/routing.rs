//! Which tables a statement touches, found by SQLite's own authorizer when it is prepared: through views,
//! triggers and foreign keys, too. What a table's policy asks for is then a matter of the driver.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;
use rusqlite::hooks::AuthAction;

use crate::{
    db::{Db, Reader},
    policy::{Consistency, MaxLag, TablePolicy, Writers},
    schema::{Registry, Table},
};

/// A table that a statement touches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Touched {
    /// Its name.
    pub table: String,
    /// What it declares.
    pub policy: TablePolicy,
    /// Whether rows of it are read.
    pub reads: bool,
    /// Whether rows of it may be written.
    pub writes: bool,
}

/// By name, what the statement that is being prepared does: reads, and writes.
pub(crate) type Touches = BTreeMap<String, [bool; 2]>;

/// Takes down what an action of a statement touches. Tells whether it is a write, which a statement that is
/// never run may contain.
pub(super) fn note(touches: &mut Touches, action: &AuthAction<'_>) -> bool {
    let (table, what) = match action {
        AuthAction::Read { table_name, .. } => (table_name, 0),
        AuthAction::Insert { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::Delete { table_name } => (table_name, 1),
        _ => return false,
    };
    touches.entry((*table).to_owned()).or_default()[what] = true;
    what == 1
}

/// The tables that are read at the origin, as long as this node is not the origin.
#[derive(Debug, Clone, Default)]
pub(crate) struct Elsewhere(Arc<Mutex<Arc<BTreeSet<String>>>>);

impl Elsewhere {
    pub(super) fn contains(&self, table: &str) -> bool {
        let tables = self.0.lock();
        !tables.is_empty() && tables.contains(&table.to_ascii_lowercase())
    }

    fn now(&self) -> Arc<BTreeSet<String>> {
        Arc::clone(&self.0.lock())
    }
}

impl Db {
    /// The tables and policies of now, and whether this node is the origin.
    pub(crate) fn publish_registry(&self, registry: &Arc<Registry>, is_origin: bool) {
        let mut published = self.file().registry.lock();
        let known = published.as_ref();
        if known.is_some_and(|(known, was)| Arc::ptr_eq(known, registry) && *was == is_origin) {
            return;
        }
        let is_strong =
            |table: &&Table| table.policy.consistency == Consistency::OriginStrong && !is_origin;
        let strong = registry.tables().iter().filter(is_strong);
        let strong: BTreeSet<String> =
            strong.map(|table| table.name.to_ascii_lowercase()).collect();
        let mut elsewhere = self.file().elsewhere.0.lock();
        if **elsewhere != strong {
            *elsewhere = Arc::new(strong);
        }
        *published = Some((Arc::clone(registry), is_origin));
    }

    fn registry(&self) -> Option<Arc<Registry>> {
        self.file().registry.lock().as_ref().map(|(registry, _)| Arc::clone(registry))
    }

    /// Whether there are tables that only the origin writes, and this node is another one.
    pub fn has_tables_of_origin(&self) -> bool {
        let published = self.file().registry.lock();
        published.as_ref().is_some_and(|(registry, is_origin)| {
            let of_origin = |policy: &TablePolicy| {
                policy.writers == Writers::Origin && policy.consistency != Consistency::Local
            };
            !is_origin && registry.tables().iter().any(|table| of_origin(&table.policy))
        })
    }

    /// Whether any table declares how old what is read of it may be.
    pub fn bounds_lag(&self) -> bool {
        let registry = self.registry();
        let mut tables = registry.iter().flat_map(|registry| registry.tables());
        tables.any(|table| table.policy.max_lag.is_some())
    }
}

impl Reader {
    /// Has statements that were prepared before judged again, if other tables are read at the origin by now.
    pub(super) fn follow_policies(&self) {
        let now = self.file.elsewhere.now();
        if !Arc::ptr_eq(&std::mem::replace(&mut *self.followed.lock(), Arc::clone(&now)), &now) {
            self.connection.flush_prepared_statement_cache();
        }
    }

    /// The `origin-strong` table that the statement refused last wanted to read, on a node that is not the
    /// origin.
    pub fn refused_origin_strong(&self) -> Option<String> {
        self.gate.lock().refused.take()
    }

    /// The tables of the schema that a statement touches, also one that writes. Nothing is run.
    ///
    /// # Errors
    /// SQLite's, if the statement cannot be prepared.
    pub fn touches(&self, sql: &str) -> rusqlite::Result<Vec<Touched>> {
        self.gate.lock().touches = Some(Touches::new());
        // The judge takes the lock.
        let prepared = self.connection.prepare(sql).map(drop);
        let touches = self.gate.lock().touches.take().unwrap_or_default();
        prepared?;
        let Some(registry) = Db::new(Arc::clone(&self.file)).registry() else {
            return Ok(Vec::new());
        };
        // Others are views, whose tables are told beside them, SQLite's own and the engine's.
        let touched = touches.into_iter().filter_map(|(name, [reads, writes])| {
            let table = &registry.tables()[registry.position(name.as_bytes())?];
            let (table, policy) = (table.name.clone(), table.policy.clone());
            Some(Touched { table, policy, reads, writes })
        });
        Ok(touched.collect())
    }
}

impl Touched {
    /// How old what a statement that touches it reads of it may be.
    pub fn max_lag(&self) -> Option<MaxLag> {
        self.policy.max_lag.filter(|_| self.reads)
    }
}
