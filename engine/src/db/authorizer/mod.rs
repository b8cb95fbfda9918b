//! Which SQL may reach which connection: judged by SQLite's own parser, when a statement is prepared.
//!
//! [`Gate`] judges on the connection that write jobs use, [`ReadGate`] on those of readers. What nobody may
//! do on either, whatever is granted, is in [`refused`].

mod gate;
mod read_gate;
mod refused;

pub(crate) use gate::{Gate, Origin, Savepoint};
pub(crate) use read_gate::ReadGate;
pub(crate) use refused::is_reading_pragma;

use std::{collections::BTreeSet, sync::Arc};

use rusqlite::{Connection, hooks::AuthAction};

use crate::{grants::Grants, schema::catalog::PREFIX};

/// What somebody may do in this file.
#[derive(Debug, Clone)]
pub(crate) struct Restriction {
    pub(crate) grants: Arc<Grants>,
    /// The tables in which full-text indexes keep themselves, in lower case.
    pub(crate) shadows: Arc<BTreeSet<String>>,
}

impl Restriction {
    fn missing(&self, action: &AuthAction<'_>) -> Option<String> {
        self.grants.missing(action, &self.shadows)
    }
}

/// The tables in which the full-text indexes of a file keep themselves.
pub(crate) fn shadows(conn: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    let mut statement = conn.prepare_cached(
        "SELECT lower(name) FROM pragma_table_list WHERE schema = 'main' AND type = 'shadow'",
    )?;
    statement.query_map([], |row| row.get(0))?.collect()
}

fn is_ours(name: &str) -> bool {
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}
