//! [`Parked`]: rows that cannot be stored, whole, in `littoral_conflicts`.
//!
//! What an author stored, others can store, as long as nothing but littoral writes their files. Where
//! something is in the way all the same (a UNIQUE index or a row that somebody put there, a column
//! that was declared otherwise), the row is taken out of its table and parked, and replication goes on.
//!
//! Invariants:
//! - a row is in its table or parked, never both, so that there is one place to merge into;
//! - a row whose table is dropped, also one that is dropped to be rebuilt, stays in the list, but is
//!   parked no more: it has no table to return to;
//! - every operation on a parked row merges into what is parked, and tries to store the result; so does
//!   every other change at this node, for some of them at a time, and a comparison with the origin;
//! - what is held here in memory is what the file says, also after a transaction was rolled back.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    entry::{Member, TableChange},
    hlc::Stamp,
    id::{ColumnId, TableId},
    merge::{
        conflict::{Conflicts, key_text, row_text},
        row,
        store::insert_row,
    },
    schema::{Registry, Table, range::sum_of},
    sqlite::Keeping,
    value::{ByteReader, DecodeError, Sum, put_varint},
};

/// Which rows are parked.
#[derive(Debug, Default, Clone)]
pub(crate) struct Parked {
    rows: BTreeSet<(TableId, Vec<u8>)>,
    /// The row to try behind this one next.
    tried: Option<(TableId, Vec<u8>)>,
}

impl Parked {
    /// Reads which rows are parked.
    pub(crate) fn load(conn: &Connection) -> rusqlite::Result<Self> {
        let rows = conn
            .prepare("SELECT table_id, key FROM littoral_conflicts WHERE cells IS NOT NULL")?
            .query_map([], |row| Ok((TableId(row.get(0)?), row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Self { rows, tried: None })
    }

    /// Takes in what became of tables: the catalog lists the rows of those that are gone.
    pub(crate) fn forget_dropped(&mut self, changes: &[TableChange]) {
        if !self.rows.is_empty() {
            let gone: BTreeSet<TableId> = TableChange::gone(changes).collect();
            self.rows.retain(|(table, _)| !gone.contains(table));
        }
    }

    /// How many rows are parked.
    pub(crate) fn count(&self) -> u64 {
        self.rows.len() as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn contains(&self, table: TableId, key: &[u8]) -> bool {
        !self.rows.is_empty() && self.rows.contains(&(table, key.to_vec()))
    }

    /// The sums of the keys of a table's parked rows.
    pub(crate) fn sums(&self, table: TableId) -> BTreeSet<Sum> {
        let rows = self.rows.iter().filter(|(of, _)| *of == table);
        rows.map(|(_, key)| sum_of(key)).collect()
    }

    /// The cells of a parked row; those of columns that came later have their default.
    pub(super) fn cells(
        &self,
        conn: &Connection,
        table: &Table,
        key: &[u8],
    ) -> rusqlite::Result<Option<Vec<Vec<u8>>>> {
        let bytes: Option<Vec<u8>> = conn
            .prepare_cached(
                "SELECT cells FROM littoral_conflicts
                 WHERE table_id = ? AND key = ? AND cells IS NOT NULL",
            )?
            .query_row(params![table.id.0, key], |row| row.get(0))
            .optional()?;
        let Some(bytes) = bytes else { return Ok(None) };
        unpack(table, row::defaults(conn, table)?, &bytes).map(Some).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(
                0,
                rusqlite::types::Type::Blob,
                Box::new(error),
            )
        })
    }

    /// Parks a row, or what has become of one that is parked. `stamp` is that of the write that could not
    /// be stored, `reason` what SQLite said.
    pub(super) fn park(
        &mut self,
        conn: &Connection,
        members: &[Member],
        table: &Table,
        key: &[u8],
        cells: &[Vec<u8>],
        (stamp, reason): (Stamp, &rusqlite::Error),
    ) -> rusqlite::Result<()> {
        self.take_out(conn, table, key)?;
        let author = stamp.author;
        let by = members.iter().find(|member| member.author == author).map(|m| m.node.as_str());
        conn.prepare_cached(
            "INSERT INTO littoral_conflicts(
               rule, \"table\", \"row\", lost, lost_at, lost_by, table_id, key,
               lost_hlc, lost_author, lost_seq, reason, cells)
             VALUES('parked', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            table.name,
            key_text(table, key),
            row_text(table, cells),
            stamp.hlc.wall().0.cast_signed(),
            by,
            table.id.0,
            key,
            stamp.hlc.0.cast_signed(),
            author.to_u64().cast_signed(),
            stamp.seq.cast_signed(),
            reason.to_string(),
            pack(table, cells),
        ])?;
        self.rows.insert((table.id, key.to_vec()));
        Ok(())
    }

    /// Forgets a parked row.
    pub(super) fn take_out(
        &mut self,
        conn: &Connection,
        table: &Table,
        key: &[u8],
    ) -> rusqlite::Result<()> {
        if !self.rows.remove(&(table.id, key.to_vec())) {
            return Ok(());
        }
        conn.prepare_cached(
            "DELETE FROM littoral_conflicts WHERE table_id = ? AND key = ? AND cells IS NOT NULL",
        )?
        .execute(params![table.id.0, key])?;
        Ok(())
    }

    /// Tries to store what a parked row has to be, in a transaction of its own, and says whether that went.
    /// If something is still in the way, that is what is parked from then on. If it fails, the transaction
    /// must be rolled back, and what was known of parked rows before put back.
    pub(crate) fn mend(
        &mut self,
        conn: &Keeping,
        members: &[Member],
        table: &Table,
        (key, right): (&[u8], &[Vec<u8>]),
    ) -> rusqlite::Result<bool> {
        conn.prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
        let wrong = self.cells(conn, table, key)?.filter(|cells| cells != right);
        let stored = match insert_row(conn, table, key, right) {
            Ok(()) => {
                self.take_out(conn, table, key)?;
                true
            }
            Err(error) if is_rejection(&error) && wrong.is_none() => false,
            Err(error) if is_rejection(&error) => {
                conn.prepare_cached(
                    "UPDATE littoral_conflicts SET lost = ?, cells = ?, reason = ?
                     WHERE table_id = ? AND key = ? AND cells IS NOT NULL",
                )?
                .execute(params![
                    row_text(table, right),
                    pack(table, right),
                    error.to_string(),
                    table.id.0,
                    key
                ])?;
                false
            }
            Err(error) => return Err(error),
        };
        if let Some(wrong) = wrong {
            let mut conflicts = Conflicts::new(conn, members);
            conflicts.record_repair(table, key, Some(right), Some(&wrong))?;
            conflicts.flush()?;
        }
        conn.prepare_cached("COMMIT")?.raw_execute()?;
        Ok(stored)
    }

    /// Tries to store parked rows, those first that were not tried for longest, in a transaction of its
    /// own. If it fails, the transaction must be rolled back, and what was known of parked rows before
    /// put back.
    pub(crate) fn retry(&mut self, conn: &Keeping, registry: &Registry) -> rusqlite::Result<()> {
        /// Rows at a time.
        const ROWS: usize = 64;
        let behind = |row: &&(TableId, Vec<u8>)| self.tried.as_ref().is_none_or(|last| *row > last);
        let mut some: Vec<_> = self.rows.iter().filter(behind).take(ROWS).cloned().collect();
        some.extend(self.rows.iter().take(ROWS - some.len()).filter(|r| !behind(r)).cloned());
        self.tried = some.last().cloned();
        conn.prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
        for (id, key) in some {
            let Some(table) = registry.by_id(id) else { continue };
            let Some(cells) = self.cells(conn, table, &key)? else { continue };
            match insert_row(conn, table, &key, &cells) {
                Ok(()) => {
                    self.take_out(conn, table, &key)?;
                }
                Err(error) if is_rejection(&error) => {}
                Err(error) => return Err(error),
            }
        }
        conn.prepare_cached("COMMIT")?.raw_execute().map(drop)
    }
}

/// Whether a row was refused for what it holds, so that another try, or another row, may succeed.
pub(super) fn is_rejection(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{ConstraintViolation, TooBig, TypeMismatch};
    matches!(error.sqlite_error_code(), Some(ConstraintViolation | TypeMismatch | TooBig))
}

/// Whether a row was refused by a constraint of its table.
pub(super) fn is_constraint(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation)
}

/// Each cell behind the id of its column.
fn pack(table: &Table, cells: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (column, cell) in table.cells.iter().zip(cells).filter(|(_, cell)| !cell.is_empty()) {
        put_varint(&mut bytes, column.id.0.into());
        bytes.extend_from_slice(cell);
    }
    bytes
}

fn unpack(
    table: &Table,
    mut cells: Vec<Vec<u8>>,
    bytes: &[u8],
) -> Result<Vec<Vec<u8>>, DecodeError> {
    let mut reader = ByteReader::new(bytes);
    while !reader.is_empty() {
        let column = ColumnId(reader.varint_u32()?);
        let cell = reader.cell_bytes()?;
        if let Some(place) = table.cell(column) {
            cells[place] = cell.to_vec();
        }
    }
    Ok(cells)
}
