//! The author stores what merge would store.
//!
//! A row that existed before a transaction and exists after it is updated, whatever statements did it;
//! and a merge never takes a `max` column back. So where the net effect of a transaction would, the
//! value from before is put back before the transaction commits, and the entry does not mention it.
//! A row that is inserted begins anew: there is nothing to keep.
//!
//! A set has one spelling, so where a transaction leaves another one, that is written before it commits.
//! A value that is no set refuses it.

use rusqlite::Connection;

use crate::{
    capture::{
        Captured,
        fold::{NetChange, changes, split},
    },
    error::WriteError,
    policy::ColumnType,
    schema::{Column, Table},
    set::{self, Element},
    testing::{Bug, planted},
    value::{ValueRef, put_cell, value},
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
        let mut cells = Vec::new();
        match row.change {
            NetChange::Delete => {}
            NetChange::Insert(inserted) if table.has_sets => {
                for (place, cell) in split(inserted).enumerate() {
                    cells.extend(respelled(table, place, cell)?.map(|cell| (place, cell)));
                }
            }
            NetChange::Insert(_) => {}
            NetChange::Update(updated) => {
                for (place, old, new) in changes(updated) {
                    let kept = takes_back(table, place, old, new).then(|| old.to_vec());
                    let repaired =
                        kept.map_or_else(|| respelled(table, place, new), |old| Ok(Some(old)));
                    cells.extend(repaired?.map(|cell| (place, cell)));
                }
            }
        }
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
    merge.is_extreme() && !merge.takes(value(old), value(new))
}

/// What a set should be in place of what it is, if that is spelled in another way.
fn respelled(table: &Table, place: usize, cell: &[u8]) -> Result<Option<Vec<u8>>, WriteError> {
    let column = &table.cells[place];
    if column.merge != ColumnType::Set {
        return Ok(None);
    }
    let spelling = set::spell(&elements(table, column, cell)?);
    let spelling = ValueRef::Text(spelling.as_bytes());
    if value(cell) == spelling {
        return Ok(None);
    }
    let mut respelled = Vec::new();
    put_cell(&mut respelled, spelling);
    Ok(Some(respelled))
}

/// The elements of a set in an encoded cell.
pub(super) fn elements<'c>(
    table: &Table,
    column: &Column,
    cell: &'c [u8],
) -> Result<Vec<Element<'c>>, WriteError> {
    set::read(value(cell)).map_err(|no_set| WriteError::Value {
        table: table.name.clone(),
        column: column.name.clone(),
        what: no_set.to_string(),
    })
}
