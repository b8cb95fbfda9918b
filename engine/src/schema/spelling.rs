//! The cell `key spelling`: how a key is written whose canonical encoding stands for several values.
//!
//! `'Bob'` and `'bob'` are one key under NOCASE, and 1 and 1.0 are everywhere. Which of them a row
//! stores is a value like any other, in a cell of its own that merges as one. It is NULL where the
//! encoding leads back to the value by itself, else a blob of the key's parts as cells.

use crate::{
    entry::Cell,
    id::ColumnId,
    schema::{
        Column, Table,
        row::{lend_key, no_key},
    },
    sqlite::Parameters,
    value::{ByteReader, DecodeError, ValueRef, put_cell, put_key_part},
};

/// The id of the cell; columns count from 1.
pub(crate) const KEY_SPELLING: ColumnId = ColumnId(0);

/// Appends the cell for a row whose key's columns are `read`.
pub(crate) fn put_spelling<'v, E>(
    out: &mut Vec<u8>,
    table: &Table,
    read: impl Fn(usize, &Column) -> Result<ValueRef<'v>, E>,
) -> Result<(), E> {
    let mut canonical = true;
    let mut parts = Vec::new();
    for (place, column) in table.key.iter().enumerate() {
        let value = column.stored(read(place, column)?);
        canonical &= column.is_canonical(value);
        put_cell(&mut parts, value);
    }
    put_cell(out, if canonical { ValueRef::Null } else { ValueRef::Blob(&parts) });
    Ok(())
}

/// Checks that a spelling from outside is one of that key.
pub(crate) fn check_spelling(
    table: &Table,
    key: &[u8],
    spelling: ValueRef<'_>,
) -> Result<(), DecodeError> {
    let parts = match spelling {
        ValueRef::Null => return Ok(()),
        ValueRef::Blob(parts) => parts,
        _ => return Err(DecodeError::Invalid("a key spelling that is neither NULL nor a blob")),
    };
    let mut reader = ByteReader::new(parts);
    let mut canonical = Vec::with_capacity(key.len());
    for column in &table.key {
        put_key_part(&mut canonical, reader.cell()?, column.collation)?;
    }
    if reader.is_empty() && canonical == key {
        Ok(())
    } else {
        Err(DecodeError::Invalid("a key spelling of another key"))
    }
}

/// The spelling among the cells of an operation, if it is there, and the other cells. Ids ascend, so
/// it is the first.
pub(crate) fn split_spelling<'c, 'v>(
    cells: &'c [Cell<'v>],
) -> (Option<&'c Cell<'v>>, &'c [Cell<'v>]) {
    match cells.split_first() {
        Some((first, others)) if first.column == KEY_SPELLING => (Some(first), others),
        _ => (None, cells),
    }
}

/// Lends a statement a key as it is spelled, from the parameter behind `before` on.
pub(crate) fn lend_spelled<'v>(
    parameters: &mut Parameters<'v>,
    before: usize,
    table: &Table,
    key: &'v [u8],
    spelling: ValueRef<'v>,
) -> rusqlite::Result<()> {
    let ValueRef::Blob(parts) = spelling else {
        return lend_key(parameters, before, table, key);
    };
    let mut reader = ByteReader::new(parts);
    (1..=table.key.len())
        .try_for_each(|place| parameters.lend(before + place, reader.cell().map_err(no_key)?))
}
