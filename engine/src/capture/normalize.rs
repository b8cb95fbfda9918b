//! The author stores what merge would store.
//!
//! A row that existed before a transaction and exists after it is updated, whatever statements did it;
//! and a merge never takes a `max` column back. So where the net effect of a transaction would, the
//! value from before is put back before the transaction commits, and the entry does not mention it.
//! A row that is inserted begins anew: there is nothing to keep.

use rusqlite::Connection;

use crate::{
    capture::{
        Captured,
        fold::{NetChange, changes},
    },
    error::WriteError,
    schema::Table,
    testing::{Bug, planted},
    value::{ByteReader, ValueRef},
};

/// A row that does not hold what merge would store.
#[derive(Debug)]
pub(crate) struct Repair {
    /// The table's place in the registry.
    pub(crate) table: usize,
    pub(crate) key: Vec<u8>,
    /// The places of the cells to write, and what belongs there, encoded.
    pub(crate) cells: Vec<(usize, Vec<u8>)>,
}

/// The rows that a transaction must still change. On `before`, they are as they were before it.
pub(crate) fn repairs(captured: &Captured, before: &Connection) -> Result<Vec<Repair>, WriteError> {
    let mut found = Vec::new();
    if planted(Bug::NotNormalized) {
        return Ok(found);
    }
    captured.page().net(before, |table, row| {
        let NetChange::Update(cells) = row.change else { return Ok(()) };
        let cells: Vec<(usize, Vec<u8>)> = changes(cells)
            .filter(|(place, old, new)| takes_back(table, *place, old, new))
            .map(|(place, old, _)| (place, old.to_vec()))
            .collect();
        if !cells.is_empty()
            && let Some(table) = captured.registry().position(table.name.as_bytes())
        {
            found.push(Repair { table, key: row.key.to_vec(), cells });
        }
        Ok(())
    })?;
    Ok(found)
}

fn takes_back(table: &Table, place: usize, old: &[u8], new: &[u8]) -> bool {
    let merge = table.cells[place].merge;
    let value = |cell| ByteReader::new(cell).cell().unwrap_or(ValueRef::Null);
    merge.is_extreme() && !merge.takes(value(old), value(new))
}
