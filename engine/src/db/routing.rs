//! Which tables a statement touches, found by SQLite's own authorizer when it is prepared: through views,
//! triggers and foreign keys, too. What a table's policy asks for is then a matter of the driver.

use std::{collections::BTreeMap, sync::Arc};

use rusqlite::hooks::AuthAction;

use crate::{
    db::{Db, Reader},
    policy::{MaxLag, TablePolicy},
    schema::Registry,
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

impl Db {
    /// The tables and policies of now.
    pub(crate) fn publish_registry(&self, registry: &Arc<Registry>) {
        let mut published = self.file().registry.lock();
        if !published.as_ref().is_some_and(|known| Arc::ptr_eq(known, registry)) {
            *published = Some(Arc::clone(registry));
        }
    }

    /// Whether any table declares how old what is read of it may be.
    pub fn bounds_lag(&self) -> bool {
        let registry = self.file().registry.lock().clone();
        let mut tables = registry.iter().flat_map(|registry| registry.tables());
        tables.any(|table| table.policy.max_lag.is_some())
    }
}

impl Reader {
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
        let Some(registry) = self.file.registry.lock().clone() else { return Ok(Vec::new()) };
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
