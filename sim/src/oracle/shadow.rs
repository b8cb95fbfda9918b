//! [`Shadow`]: the merge rules once more, as simply as they can be said.
//!
//! It takes the entries of one machine in the order of that machine's log and must come to the rows
//! and to the conflicts which that machine holds. It shares no code with the engine but the decoding
//! of entries, keeps every clock, and knows what the author of an entry knew: an entry that the
//! machine wrote itself must fit exactly what the shadow holds at that moment.
//!
//! Rules, from section 3 of the design: a cell is won by the greatest stamp; increments add up; a
//! delete wins over everything concurrent; an insert over a deleted row begins a new epoch;
//! operations of another epoch than the row's are ignored. What is discarded is a conflict, unless
//! its author had seen it.

use std::collections::BTreeMap;

use littoral::{
    AuthorId, Cell, CellWrite, ColumnId, ColumnType, Digest, Dot, Entry, Hlc, Membership, RowOp,
    RowOpKind, RowsReader, Segment, Seq, Stamp, TableId, ValueRef, Writers,
};

/// A value that can be compared bit for bit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) enum Held {
    /// NULL.
    #[default]
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL, as its bits.
    Real(u64),
    /// TEXT.
    Text(Vec<u8>),
    /// BLOB.
    Blob(Vec<u8>),
}

impl From<ValueRef<'_>> for Held {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(n) => Self::Integer(n),
            ValueRef::Real(r) => Self::Real(r.to_bits()),
            ValueRef::Text(bytes) => Self::Text(bytes.to_vec()),
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }
}

impl From<rusqlite::types::ValueRef<'_>> for Held {
    fn from(value: rusqlite::types::ValueRef<'_>) -> Self {
        use rusqlite::types::ValueRef as Sqlite;
        match value {
            Sqlite::Null => Self::Null,
            Sqlite::Integer(n) => Self::Integer(n),
            Sqlite::Real(r) => Self::Real(r.to_bits()),
            Sqlite::Text(bytes) => Self::Text(bytes.to_vec()),
            Sqlite::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }
}

/// A table as the schema entry declares it.
#[derive(Clone, Debug)]
pub(crate) struct ShadowTable {
    /// Its name.
    pub(crate) name: String,
    /// Whether every node writes it.
    pub(crate) any: bool,
    /// Its columns, those of the key included.
    pub(crate) columns: BTreeMap<ColumnId, (String, ColumnType)>,
}

/// One row: its cells while it lives, and its clocks.
#[derive(Clone, Debug, Default)]
struct Row {
    /// Cells outside the key; `None` while the row does not exist.
    cells: Option<BTreeMap<ColumnId, Held>>,
    epoch: u32,
    clocks: BTreeMap<ColumnId, Stamp>,
}

/// A discarded value, as `littoral_conflicts` tells it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ShadowConflict {
    /// The table.
    pub(crate) table: u32,
    /// The row.
    pub(crate) key: Vec<u8>,
    /// The column.
    pub(crate) column: u32,
    /// Whether a delete decided.
    pub(crate) by_delete: bool,
    /// The entry whose write stands, if it is known.
    pub(crate) kept: Option<(AuthorId, Seq)>,
    /// The value that stands.
    pub(crate) kept_value: Held,
    /// The entry whose write is discarded.
    pub(crate) lost: Option<(AuthorId, Seq)>,
    /// The value that is discarded.
    pub(crate) lost_value: Held,
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
    newest: Hlc,
    /// In the order in which they arose.
    pub(crate) conflicts: Vec<ShadowConflict>,
}

fn name(dot: Dot) -> (AuthorId, Seq) {
    (dot.author, dot.seq)
}

impl Shadow {
    /// The newest entry of every author.
    pub(crate) const fn heads(&self) -> &BTreeMap<AuthorId, Head> {
        &self.heads
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

    /// Takes the next entry of the log. `own` says that the machine wrote it itself.
    ///
    /// # Errors
    /// Tells which rule the entry breaks.
    pub(crate) fn apply(&mut self, entry: &Entry, own: bool) -> Result<(), String> {
        self.check_order(entry, own)?;
        for segment in entry.segments() {
            match segment.map_err(|error| format!("segment does not decode: {error}"))? {
                Segment::Rows(bytes) => self.apply_rows(bytes, entry, own)?,
                Segment::Policy(tables) => {
                    self.only_origin(entry, "policies")?;
                    for table in tables {
                        let column = |(id, name): (ColumnId, String)| {
                            let merge =
                                table.policy.columns.get(&name).copied().unwrap_or_default();
                            (id, (name, merge))
                        };
                        let columns = table.columns.into_iter().map(column).collect();
                        let any = table.policy.writers == Writers::Any;
                        self.tables
                            .insert(table.id, ShadowTable { name: table.name, any, columns });
                    }
                }
                Segment::Ddl(_) => self.only_origin(entry, "schema changes")?,
                Segment::Sequence(sequences) => {
                    self.only_origin(entry, "sequences")?;
                    self.sequences.extend(sequences);
                }
                Segment::Membership(Membership::Join(_)) => self.only_origin(entry, "joins")?,
            }
        }
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

    fn apply_rows(&mut self, bytes: &[u8], entry: &Entry, own: bool) -> Result<(), String> {
        let mut reader = RowsReader::new(bytes);
        let mut last: Option<(TableId, Vec<u8>)> = None;
        while let Some(op) =
            reader.next().map_err(|error| format!("rows do not decode: {error}"))?
        {
            let place = (op.table, op.key.to_vec());
            if last.as_ref().is_some_and(|last| *last >= place) {
                return Err("its operations are not ordered by table and key".to_owned());
            }
            self.apply_op(&op, entry, own).map_err(|what| {
                format!("{:?} in table {} key {:02x?}: {what}", op.kind, op.table.0, op.key)
            })?;
            last = Some(place);
        }
        Ok(())
    }

    fn apply_op(&mut self, op: &RowOp<'_>, entry: &Entry, own: bool) -> Result<(), String> {
        let table = self.tables.get(&op.table).ok_or("the table was never declared")?;
        let stamp = entry.header.stamp();
        let row = self.rows.entry((op.table, op.key.to_vec())).or_default();
        if own {
            row.check_own(op)?;
        }
        if !table.any {
            if stamp.author != AuthorId::FIRST {
                return Err("a table of the origin's, written by somebody else".to_owned());
            }
            return row.assign_all(op);
        }
        let mut conflicts = Vec::new();
        row.merge(op, stamp, &mut conflicts)?;
        if own && let Some(conflict) = conflicts.first() {
            return Err(format!("it conflicts with what its author had applied: {conflict:?}"));
        }
        self.conflicts.append(&mut conflicts);
        Ok(())
    }
}

impl Row {
    /// An author's own operation fits what the author held.
    fn check_own(&self, op: &RowOp<'_>) -> Result<(), String> {
        let alive = self.cells.is_some();
        if alive == (op.kind == RowOpKind::Insert) {
            return Err(format!(
                "the row {} at its author",
                if alive { "lived" } else { "was missing" }
            ));
        }
        if op.epoch != self.epoch {
            return Err(format!("epoch {}, its author held {}", op.epoch, self.epoch));
        }
        for cell in op.cells {
            let held = self.clocks.get(&cell.column).map(|stamp| stamp.dot());
            if let CellWrite::Assign { previous, .. } = cell.write
                && op.kind == RowOpKind::Update
                && previous != held
            {
                return Err(format!("it overwrote {previous:?}, its author held {held:?}"));
            }
        }
        if op.kind == RowOpKind::Delete {
            let unseen = self.clocks.values().find(|stamp| !op.saw.contains(&stamp.dot()));
            if let Some(stamp) = unseen {
                return Err(format!(
                    "it did not see {}, which its author had applied",
                    stamp.dot()
                ));
            }
        }
        Ok(())
    }

    /// For tables that one node writes: things happen as they are told.
    fn assign_all(&mut self, op: &RowOp<'_>) -> Result<(), String> {
        if op.kind == RowOpKind::Delete {
            return self.cells.take().map(drop).ok_or_else(|| "there is no such row".to_owned());
        }
        if op.kind == RowOpKind::Insert {
            self.cells = Some(BTreeMap::new());
        }
        let cells = self.cells.as_mut().ok_or("there is no such row")?;
        for cell in op.cells {
            let CellWrite::Assign { value, .. } = cell.write else {
                return Err("an increment in a table that merges nothing".to_owned());
            };
            cells.insert(cell.column, value.into());
        }
        Ok(())
    }

    fn merge(
        &mut self,
        op: &RowOp<'_>,
        stamp: Stamp,
        conflicts: &mut Vec<ShadowConflict>,
    ) -> Result<(), String> {
        let conflict = |column: ColumnId, by_delete| ShadowConflict {
            table: op.table.0,
            key: op.key.to_vec(),
            column: column.0,
            by_delete,
            kept: None,
            kept_value: Held::Null,
            lost: None,
            lost_value: Held::Null,
        };
        if op.kind == RowOpKind::Delete {
            if op.epoch != self.epoch {
                return Ok(());
            }
            let cells = self.cells.take().unwrap_or_default();
            for (column, held) in std::mem::take(&mut self.clocks) {
                if !op.saw.contains(&held.dot()) {
                    conflicts.push(ShadowConflict {
                        kept: Some(name(stamp.dot())),
                        lost: Some(name(held.dot())),
                        lost_value: cells.get(&column).cloned().unwrap_or_default(),
                        ..conflict(column, true)
                    });
                }
            }
            // The tombstone: whoever inserts next begins the next epoch.
            self.epoch += 1;
            return Ok(());
        }
        if op.epoch < self.epoch {
            for (column, value) in assigned(op.cells) {
                conflicts.push(ShadowConflict {
                    lost: Some(name(stamp.dot())),
                    lost_value: value,
                    ..conflict(column, true)
                });
            }
            return Ok(());
        }
        if op.epoch > self.epoch {
            if op.kind != RowOpKind::Insert {
                return Err(format!("of epoch {}, while the row is in {}", op.epoch, self.epoch));
            }
            self.epoch = op.epoch;
            self.cells = None;
            self.clocks.clear();
        }
        if self.cells.is_none() && op.kind == RowOpKind::Update {
            return Err("an update of a row that was never inserted".to_owned());
        }
        let cells = self.cells.get_or_insert_default();
        for cell in op.cells {
            match cell.write {
                CellWrite::Add(delta) => {
                    let sum = match cells.get(&cell.column) {
                        Some(Held::Integer(n)) => n.wrapping_add(delta),
                        None => delta,
                        Some(_) => return Err("a counter that is not an integer".to_owned()),
                    };
                    cells.insert(cell.column, Held::Integer(sum));
                }
                CellWrite::Assign { value, previous } => {
                    let value = Held::from(value);
                    let held = self.clocks.get(&cell.column).copied();
                    let stored = cells.get(&cell.column).cloned().unwrap_or_default();
                    let wins =
                        held.is_none_or(|held| (stamp.hlc, stamp.author) > (held.hlc, held.author));
                    if let Some(held) = held
                        && (!wins || previous != Some(held.dot()))
                    {
                        let (new, old) = (Some(name(stamp.dot())), Some(name(held.dot())));
                        let (kept, lost) = if wins { (new, old) } else { (old, new) };
                        let (kept_value, lost_value) =
                            if wins { (value.clone(), stored) } else { (stored, value.clone()) };
                        conflicts.push(ShadowConflict {
                            kept,
                            kept_value,
                            lost,
                            lost_value,
                            ..conflict(cell.column, false)
                        });
                    }
                    if wins {
                        cells.insert(cell.column, value);
                        self.clocks.insert(cell.column, stamp);
                    }
                }
            }
        }
        Ok(())
    }
}

fn assigned(cells: &[Cell<'_>]) -> Vec<(ColumnId, Held)> {
    let assigned = cells.iter().filter_map(|cell| match cell.write {
        CellWrite::Assign { value, .. } => Some((cell.column, value.into())),
        CellWrite::Add(_) => None,
    });
    assigned.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn author(counter: u32) -> AuthorId {
        AuthorId { term: 1, counter }
    }

    fn stamp(time: u64, counter: u32, seq: Seq) -> Stamp {
        Stamp { hlc: Hlc(time), author: author(counter), seq }
    }

    fn assign(value: i64, previous: Option<Stamp>) -> Cell<'static> {
        let write = CellWrite::Assign {
            value: ValueRef::Integer(value),
            previous: previous.map(Stamp::dot),
        };
        Cell { column: ColumnId(2), write }
    }

    fn add(delta: i64) -> Cell<'static> {
        Cell { column: ColumnId(3), write: CellWrite::Add(delta) }
    }

    #[derive(Default)]
    struct Case {
        row: Row,
        conflicts: Vec<ShadowConflict>,
    }

    impl Case {
        fn run(
            &mut self,
            kind: RowOpKind,
            epoch: u32,
            cells: &[Cell<'_>],
            saw: &[Dot],
            stamp: Stamp,
        ) {
            let op = RowOp { table: TableId(1), kind, key: b"k", epoch, cells, saw };
            self.row.merge(&op, stamp, &mut self.conflicts).unwrap();
        }

        fn value(&self, column: u32) -> Option<Held> {
            self.row.cells.as_ref()?.get(&ColumnId(column)).cloned()
        }
    }

    use RowOpKind::{Delete, Insert, Update};

    #[test]
    fn the_greatest_stamp_wins_in_either_order() {
        let (a, b, base) = (stamp(5, 1, 2), stamp(5, 2, 1), stamp(1, 1, 1));
        for order in [[a, b], [b, a]] {
            let mut case = Case::default();
            case.run(Insert, 0, &[assign(0, None)], &[], base);
            for stamp in order {
                case.run(
                    Update,
                    0,
                    &[assign(i64::from(stamp.author.counter), Some(base))],
                    &[],
                    stamp,
                );
            }
            assert_eq!(case.value(2), Some(Held::Integer(2)));
            assert_eq!(case.conflicts.len(), 1);
            assert_eq!(case.conflicts[0].lost, Some(name(a.dot())));
        }
    }

    #[test]
    fn a_causal_overwrite_is_no_conflict() {
        let (a, b) = (stamp(1, 1, 1), stamp(2, 2, 1));
        let mut case = Case::default();
        case.run(Insert, 0, &[assign(1, None)], &[], a);
        case.run(Update, 0, &[assign(2, Some(a))], &[], b);
        assert_eq!((case.value(2), case.conflicts.len()), (Some(Held::Integer(2)), 0));
    }

    #[test]
    fn increments_add_up_also_over_two_inserts() {
        let mut case = Case::default();
        case.run(Insert, 0, &[add(3)], &[], stamp(2, 1, 1));
        case.run(Insert, 0, &[add(4)], &[], stamp(1, 2, 1));
        case.run(Update, 0, &[add(-10)], &[], stamp(3, 1, 2));
        assert_eq!((case.value(3), case.conflicts.len()), (Some(Held::Integer(-3)), 0));
    }

    #[test]
    fn a_delete_wins_and_a_new_epoch_begins_after_it() {
        let base = stamp(1, 1, 1);
        let mut case = Case::default();
        case.run(Insert, 0, &[assign(1, None), add(5)], &[], base);
        case.run(Update, 0, &[assign(2, Some(base))], &[], stamp(9, 2, 1));
        case.run(Delete, 0, &[], &[base.dot()], stamp(2, 1, 2));
        assert_eq!(case.value(2), None);
        assert_eq!(case.conflicts.len(), 1, "the update was not seen");
        case.run(Insert, 1, &[assign(7, None), add(1)], &[], stamp(3, 1, 3));
        case.run(Update, 0, &[assign(8, Some(base)), add(100)], &[], stamp(10, 3, 1));
        case.run(Delete, 0, &[], &[base.dot()], stamp(11, 3, 2));
        assert_eq!(
            (case.value(2), case.value(3)),
            (Some(Held::Integer(7)), Some(Held::Integer(1)))
        );
        assert_eq!(case.conflicts.len(), 2);
    }
}
