//! [`Shadow`]: the merge rules once more, as simply as they can be said.
//!
//! It takes the entries of one machine in the order of that machine's log and must come to the rows
//! and to the conflicts which that machine holds. It shares no code with the engine but the decoding
//! of entries, keeps every clock, and knows what the author of an entry knew: an entry that the
//! machine wrote itself must fit exactly what the shadow holds at that moment.
//!
//! Rules, from section 3 of the design: a cell is won by the greatest stamp; increments add up; a
//! delete wins over everything concurrent; an insert over a deleted row begins a new epoch;
//! operations of another epoch than the row's are ignored; of two values of a `max` or `min` column
//! the further one stays; an element stays in a set as long as an add of it is left that nobody who
//! knew it removed; the columns of a group are assigned together. What is discarded is a conflict,
//! unless its author had seen it; so is a sum that overflows.

mod held;
mod row;
mod schema;
mod set;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use littoral::{
    AuthorId, ColumnId, ColumnType, Digest, Dot, Entry, Hlc, Membership, RowOp, RowsReader,
    Segment, Seq, TableId, VersionVector,
};

pub(crate) use self::{
    held::Held,
    row::{CHECK, ShadowConflict},
};
use self::{
    row::{OVERFLOW, Row, name},
    schema::ShadowFreeze,
};

/// A table as the schema entry declares it.
#[derive(Clone, Debug)]
pub(crate) struct ShadowTable {
    /// Its name.
    pub(crate) name: String,
    /// Whether every node writes it.
    pub(crate) any: bool,
    /// Whether it stays on its node: no log leads to its rows.
    pub(crate) local: bool,
    /// Its columns, those of the key included.
    pub(crate) columns: BTreeMap<ColumnId, (String, ColumnType)>,
    /// Those whose values are personal.
    pub(crate) personal: BTreeSet<ColumnId>,
    /// Columns that are assigned together.
    groups: Vec<Vec<ColumnId>>,
    /// What a row has in columns that are younger than the table, if its author did not know them.
    defaults: BTreeMap<ColumnId, Held>,
}

/// What the log says of one author so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// The newest sequence number.
    pub(crate) seq: Seq,
    digest: Digest,
    hlc: Hlc,
}

/// The rows, clocks and conflicts that follow from a log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shadow {
    /// The tables by id.
    pub(crate) tables: BTreeMap<TableId, ShadowTable>,
    /// The greatest keys that AUTOINCREMENT has handed out, as far as the log says.
    pub(crate) sequences: BTreeMap<TableId, i64>,
    rows: BTreeMap<(TableId, Vec<u8>), Row>,
    heads: BTreeMap<AuthorId, Head>,
    /// The newest frontier, and what it covers.
    frontier: (u64, VersionVector),
    newest: Hlc,
    freezes: Vec<ShadowFreeze>,
    /// How often the schema or a policy has changed.
    pub(crate) changes: u64,
    /// In the order in which they arose.
    pub(crate) conflicts: Vec<ShadowConflict>,
}

impl ShadowTable {
    fn merge(&self, column: ColumnId) -> ColumnType {
        self.columns.get(&column).map_or(ColumnType::Lww, |(_, merge)| *merge)
    }

    /// Whether a row breaks the one CHECK of the schema that reads two columns which merge apart.
    fn breaks_check(&self, cells: &BTreeMap<ColumnId, Held>) -> bool {
        let named = |name: &str| {
            let column = self.columns.iter().find(|(_, (column, _))| column == name)?;
            cells.get(column.0)
        };
        self.name == "gauge"
            && named("note")
                .is_some_and(|note| *note != Held::Null && named("street") == Some(note))
    }
}

impl Shadow {
    /// What was applied.
    pub(crate) fn vector(&self) -> VersionVector {
        let dots = self.heads.iter().map(|(author, head)| Dot { author: *author, seq: head.seq });
        dots.collect()
    }

    /// The newest entry of every author.
    pub(crate) const fn heads(&self) -> &BTreeMap<AuthorId, Head> {
        &self.heads
    }

    /// The cells of a row outside its key, if there is such a row.
    pub(crate) fn row(&self, table: TableId, key: &[u8]) -> Option<&BTreeMap<ColumnId, Held>> {
        self.rows.get(&(table, key.to_vec()))?.cells.as_ref()
    }

    /// The rows of a table by key: cells in column order.
    pub(crate) fn rows_of(
        &self,
        table: TableId,
    ) -> impl Iterator<Item = (&Vec<u8>, &BTreeMap<ColumnId, Held>)> {
        self.rows
            .range((table, Vec::new())..)
            .take_while(move |((id, _), _)| *id == table)
            .filter_map(|((_, key), row)| Some((key, row.cells.as_ref()?)))
    }

    /// Takes the next entry of the log. `own` says that the machine wrote it itself, `seen` what its
    /// author had applied before it.
    ///
    /// # Errors
    /// Tells which rule the entry breaks.
    pub(crate) fn apply(
        &mut self,
        entry: &Entry,
        own: bool,
        seen: &VersionVector,
    ) -> Result<(), String> {
        self.check_order(entry, own)?;
        self.check_end(entry)?;
        let mut statements = Vec::new();
        for segment in entry.segments() {
            match segment.map_err(|error| format!("segment does not decode: {error}"))? {
                Segment::Rows(bytes) => self.apply_rows(bytes, entry, own, seen)?,
                Segment::Ddl(ran) => {
                    self.only_origin(entry, "schema changes")?;
                    statements = ran;
                }
                Segment::Policy(changes) => {
                    self.only_origin(entry, "policies")?;
                    self.change_tables(&std::mem::take(&mut statements), changes)?;
                }
                Segment::Freeze(freeze) => {
                    self.only_origin(entry, "freezes")?;
                    self.freeze(entry, freeze)?;
                }
                Segment::Unfreeze { freeze, failure } => {
                    self.only_origin(entry, "freezes")?;
                    self.unfreeze(entry, freeze, failure.is_none())?;
                }
                Segment::Sequence(sequences) => {
                    self.only_origin(entry, "sequences")?;
                    self.sequences.extend(sequences);
                }
                Segment::Membership(Membership::Join(_)) => self.only_origin(entry, "joins")?,
                Segment::Outcome { .. } => self.only_origin(entry, "outcomes")?,
                Segment::Frontier { number, covered } => {
                    self.only_origin(entry, "frontiers")?;
                    self.frontier(number, &covered, entry)?;
                }
            }
        }
        Ok(())
    }

    /// Nothing is forgotten; but from here on authors name smaller epochs.
    fn frontier(
        &mut self,
        number: u64,
        covered: &VersionVector,
        entry: &Entry,
    ) -> Result<(), String> {
        let (last, before) = &self.frontier;
        if number != last + 1 || !covered.covers_all(before) {
            return Err(format!("frontier {number} over {covered} after {last} over {before}"));
        }
        let applied =
            |dot: Dot| self.heads.get(&dot.author).is_some_and(|head| dot.seq <= head.seq);
        if let Some(dot) = covered.iter().find(|dot| !applied(*dot) || *dot == entry.header.dot) {
            return Err(format!("frontier {number} covers {dot}, which is not applied"));
        }
        for row in self.rows.values_mut() {
            let passed = row.shifts.iter().map(|(_, by)| by).sum::<u32>();
            let deletes = row.deletes.iter().filter(|(_, dot)| covered.covers(*dot));
            let upto = deletes.map(|(epoch, _)| epoch + 1).max().unwrap_or(0);
            if upto > passed {
                row.shifts.push((number, upto - passed));
            }
        }
        self.frontier = (number, covered.clone());
        Ok(())
    }

    fn only_origin(&self, entry: &Entry, what: &str) -> Result<(), String> {
        if entry.header.dot.author == AuthorId::FIRST {
            Ok(())
        } else {
            Err(format!("{what} by another author than the origin"))
        }
    }

    fn check_order(&mut self, entry: &Entry, own: bool) -> Result<(), String> {
        let header = &entry.header;
        let head = self.heads.get(&header.dot.author);
        let (seq, digest) = head.map_or((0, Digest::NONE), |head| (head.seq, head.digest));
        if header.dot.seq != seq + 1 {
            return Err(format!("it follows {seq} of its author"));
        }
        if header.previous != digest {
            return Err(format!("its previous digest is {:?}, not {digest:?}", header.previous));
        }
        if head.is_some_and(|head| header.hlc <= head.hlc) {
            return Err(format!("its stamp {} does not follow its author's last", header.hlc));
        }
        if own && header.hlc <= self.newest {
            return Err(format!(
                "its stamp {} is not greater than {}, which its author had applied",
                header.hlc, self.newest
            ));
        }
        self.newest = self.newest.max(header.hlc);
        let head = Head { seq: header.dot.seq, digest: entry.digest, hlc: header.hlc };
        self.heads.insert(header.dot.author, head);
        Ok(())
    }

    fn apply_rows(
        &mut self,
        bytes: &[u8],
        entry: &Entry,
        own: bool,
        seen: &VersionVector,
    ) -> Result<(), String> {
        let mut reader = RowsReader::new(bytes);
        let mut last: Option<(TableId, Vec<u8>)> = None;
        while let Some(op) =
            reader.next().map_err(|error| format!("rows do not decode: {error}"))?
        {
            let place = (op.table, op.key.to_vec());
            if last.as_ref().is_some_and(|last| *last >= place) {
                return Err("its operations are not ordered by table and key".to_owned());
            }
            self.apply_op(&op, entry, own, seen).map_err(|what| {
                format!("{:?} in table {} key {:02x?}: {what}", op.kind, op.table.0, op.key)
            })?;
            last = Some(place);
        }
        Ok(())
    }

    fn apply_op(
        &mut self,
        op: &RowOp<'_>,
        entry: &Entry,
        own: bool,
        seen: &VersionVector,
    ) -> Result<(), String> {
        self.check_frozen(op.table, entry, seen)?;
        let table = self.tables.get(&op.table).ok_or("there is no such table")?;
        if let Some(cell) = op.cells.iter().find(|cell| !table.has(cell.column)) {
            return Err(format!("there is no column {}", cell.column.0));
        }
        let stamp = entry.header.stamp();
        let row = self.rows.entry((op.table, op.key.to_vec())).or_default();
        let under = entry.header.under;
        if under > self.frontier.0 {
            return Err(format!("written under frontier {under}, after {}", self.frontier.0));
        }
        let passed = row.shifts.iter().filter(|(number, _)| *number <= under);
        let op = &RowOp { epoch: op.epoch + passed.map(|(_, by)| by).sum::<u32>(), ..*op };
        if own {
            row.check_own(op, table, &self.frontier.1)?;
        }
        if !table.any {
            if stamp.author != AuthorId::FIRST {
                return Err("a table of the origin's, written by somebody else".to_owned());
            }
            return row.assign_all(op);
        }
        let mut conflicts = Vec::new();
        let before = row.cells.clone().filter(|_| op.epoch == row.epoch);
        row.merge(op, stamp, table, seen, &mut conflicts)?;
        if let (Some(before), Some(after)) = (before, &row.cells)
            && !own
            && table.breaks_check(after)
            && !table.breaks_check(&before)
        {
            conflicts.push(ShadowConflict {
                table: op.table.0,
                key: op.key.to_vec(),
                column: None,
                rule: CHECK.to_owned(),
                kept: Some(name(stamp.dot())),
                kept_value: Held::Null,
                lost: None,
                lost_value: Held::Null,
            });
        }
        if own {
            // A statement that moves a counter by more than 2^63 overflows nobody else's increment.
            conflicts.retain(|conflict| conflict.rule != OVERFLOW);
        }
        if own && let Some(conflict) = conflicts.first() {
            return Err(format!("it conflicts with what its author had applied: {conflict:?}"));
        }
        self.conflicts.append(&mut conflicts);
        Ok(())
    }
}
