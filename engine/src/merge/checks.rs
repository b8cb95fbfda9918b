//! [`Checks`]: whether a merged row breaks a CHECK constraint of its table.
//!
//! The apply connection has CHECK off, because a merge must not fail for what two valid writes come to
//! together. A CHECK may read nothing but its own row, so the row is stored once more where CHECK is
//! on: in a scratch database in memory that has the table as its CREATE statement says. So it is
//! SQLite that judges, and the statement is never parsed here.

use std::collections::BTreeSet;

use rusqlite::{Connection, ffi};

use crate::{
    id::{SchemaVersion, TableId},
    merge::{parked::is_rejection, store::insert_row},
    schema::Table,
    sqlite::{Keeping, quoted},
};

/// The scratch database, made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    scratch: Option<Keeping>,
    /// The schema that its tables are of.
    schema: SchemaVersion,
    tables: BTreeSet<TableId>,
}

impl Checks {
    /// Forgets the tables of another schema.
    pub(super) fn follow(&mut self, schema: SchemaVersion) {
        if self.schema != schema {
            *self = Self { schema, ..Self::default() };
        }
    }

    /// What SQLite says of the first CHECK that the row breaks; `None` if it breaks none. `conn` is
    /// where the table is.
    pub(super) fn broken(
        &mut self,
        conn: &Connection,
        table: &Table,
        key: &[u8],
        cells: &[Vec<u8>],
    ) -> rusqlite::Result<Option<String>> {
        let scratch = match &mut self.scratch {
            Some(scratch) => scratch,
            none => {
                let scratch = Connection::open_in_memory()?;
                scratch.pragma_update(None, "foreign_keys", false)?;
                none.insert(Keeping::new(scratch))
            }
        };
        if !self.tables.contains(&table.id) {
            let create: String = conn.query_row(
                "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?",
                [&table.name],
                |row| row.get(0),
            )?;
            scratch.execute_batch(&create)?;
            // Only now: a table that could not be made is made the next time.
            self.tables.insert(table.id);
        }
        match insert_row(scratch, table, key, cells) {
            Ok(()) => {
                scratch
                    .prepare_cached(&format!("DELETE FROM {}", quoted(&table.name)))?
                    .raw_execute()?;
                Ok(None)
            }
            Err(rusqlite::Error::SqliteFailure(failure, message))
                if failure.extended_code == ffi::SQLITE_CONSTRAINT_CHECK =>
            {
                Ok(Some(message.unwrap_or_else(|| "CHECK constraint failed".to_owned())))
            }
            // Not what was asked: the row would not be stored at all.
            Err(error) if is_rejection(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
