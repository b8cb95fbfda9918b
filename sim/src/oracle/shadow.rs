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
//! the further one stays; the columns of a group are assigned together. What is discarded is a
//! conflict, unless its author had seen it; so is a sum that overflows.

use std::{cmp::Ordering, collections::BTreeMap};

use littoral::{
    AuthorId, Cell, CellWrite, ColumnId, ColumnType, Consistency, Digest, Dot, Entry, Hlc,
    Membership, RowOp, RowOpKind, RowsReader, Segment, Seq, Stamp, TableChange, TableDeclaration,
    TableId, ValueRef, VersionVector,
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

impl Held {
    fn class(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Integer(_) | Self::Real(_) => 1,
            Self::Text(_) => 2,
            Self::Blob(_) => 3,
        }
    }

    /// NULL, numbers, text, blobs; numbers by value, of equal ones the integer first.
    fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Real(a), Self::Real(b)) => f64::from_bits(*a).total_cmp(&f64::from_bits(*b)),
            (Self::Integer(a), Self::Real(b)) => number_order(*a, f64::from_bits(*b)),
            (Self::Real(a), Self::Integer(b)) => number_order(*b, f64::from_bits(*a)).reverse(),
            (Self::Text(a), Self::Text(b)) | (Self::Blob(a), Self::Blob(b)) => a.cmp(b),
            _ => self.class().cmp(&other.class()),
        }
    }

    /// Whether `self` stays where `other` is written to a column of that type, `max` or `min`.
    fn beats(&self, other: &Self, merge: ColumnType) -> bool {
        if *other == Self::Null || *self == Self::Null {
            return *other == Self::Null;
        }
        let order = self.order(other);
        if merge == ColumnType::Max { order.is_ge() } else { order.is_le() }
    }
}

/// An integer against a real, which has no bits behind the point where it is beyond 2^53.
fn number_order(n: i64, r: f64) -> Ordering {
    if r.is_infinite() || r.abs() > 1e20 {
        return 0f64.total_cmp(&r);
    }
    #[expect(clippy::cast_possible_truncation, reason = "the bound is checked before")]
    let whole = r.floor() as i128;
    let order = i128::from(n).cmp(&whole);
    if order == Ordering::Equal { Ordering::Less } else { order }
}

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
    /// Columns that are assigned together.
    groups: Vec<Vec<ColumnId>>,
}

/// One row: its cells while it lives, and its clocks.
#[derive(Clone, Debug, Default)]
struct Row {
    /// Cells outside the key; `None` while the row does not exist.
    cells: Option<BTreeMap<ColumnId, Held>>,
    /// Counted from the beginning of time, whatever frontiers have done to the numbers in entries.
    epoch: u32,
    clocks: BTreeMap<ColumnId, Stamp>,
    /// Every delete that was ever applied, and the epoch it named.
    deletes: Vec<(u32, Dot)>,
    /// By how much each frontier has made the epochs that entries name smaller.
    shifts: Vec<(u64, u32)>,
}

/// A discarded value, as `littoral_conflicts` tells it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ShadowConflict {
    /// The table.
    pub(crate) table: u32,
    /// The row.
    pub(crate) key: Vec<u8>,
    /// The column; `None` for what concerns the row.
    pub(crate) column: Option<u32>,
    /// The rule that decided.
    pub(crate) rule: String,
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
    /// The newest frontier, and what it covers.
    frontier: (u64, VersionVector),
    newest: Hlc,
    /// In the order in which they arose.
    pub(crate) conflicts: Vec<ShadowConflict>,
}

/// The rules by which values are discarded, as `littoral_conflicts` names them.
const LAST_WINS: &str = "last writer wins";
const DELETE_WINS: &str = "delete wins";
const OVERFLOW: &str = "counter overflow";
/// A merged row that breaks a CHECK; what stands in it is not compared.
pub(crate) const CHECK: &str = "check";

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

fn name(dot: Dot) -> (AuthorId, Seq) {
    (dot.author, dot.seq)
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
        for segment in entry.segments() {
            match segment.map_err(|error| format!("segment does not decode: {error}"))? {
                Segment::Rows(bytes) => self.apply_rows(bytes, entry, own, seen)?,
                Segment::Policy(changes) => {
                    self.only_origin(entry, "policies")?;
                    for change in changes {
                        match change {
                            TableChange::Declared(table) => self.declare(table),
                            TableChange::Dropped(id) => {
                                self.tables.remove(&id);
                                self.rows.retain(|(table, _), _| *table != id);
                            }
                        }
                    }
                }
                Segment::Ddl(_) | Segment::Freeze(_) | Segment::Unfreeze { .. } => {
                    self.only_origin(entry, "schema changes")?;
                }
                Segment::Sequence(sequences) => {
                    self.only_origin(entry, "sequences")?;
                    self.sequences.extend(sequences);
                }
                Segment::Membership(Membership::Join(_)) => self.only_origin(entry, "joins")?,
                Segment::Frontier { number, covered } => {
                    self.only_origin(entry, "frontiers")?;
                    self.frontier(number, &covered, entry)?;
                }
            }
        }
        Ok(())
    }

    fn declare(&mut self, table: TableDeclaration) {
        let column = |(id, name): (ColumnId, String)| {
            let merge = table.policy.columns.get(&name).copied().unwrap_or_default();
            (id, (name, merge))
        };
        let mut groups: BTreeMap<&str, Vec<ColumnId>> = BTreeMap::new();
        for (id, name) in &table.columns {
            if let Some(group) = table.policy.groups.get(name) {
                groups.entry(group).or_default().push(*id);
            }
        }
        let groups = groups.into_values().collect();
        let columns = table.columns.into_iter().map(column).collect();
        let any = table.policy.is_multi_writer();
        let local = table.policy.consistency == Consistency::Local;
        self.tables.insert(table.id, ShadowTable { name: table.name, any, local, columns, groups });
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
        let table = self.tables.get(&op.table).ok_or("the table was never declared")?;
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

impl Row {
    /// An author's own operation fits what the author held; of what a frontier covers it names nothing.
    fn check_own(
        &self,
        op: &RowOp<'_>,
        table: &ShadowTable,
        covered: &VersionVector,
    ) -> Result<(), String> {
        let assigns = |column: &ColumnId| op.cells.iter().any(|cell| cell.column == *column);
        for group in table.groups.iter().filter(|group| group.iter().any(assigns)) {
            if !group.iter().all(assigns) {
                return Err(format!("it assigns some of the group {group:?} only"));
            }
        }
        for cell in op.cells.iter().filter(|_| op.kind == RowOpKind::Update) {
            let held = self.cells.as_ref().and_then(|cells| cells.get(&cell.column));
            if let (CellWrite::Extreme(value), Some(held)) = (cell.write, held)
                && held.beats(&value.into(), table.merge(cell.column))
            {
                return Err(format!("it takes column {} back from {held:?}", cell.column.0));
            }
        }
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
            let held = held.filter(|dot| !covered.covers(*dot));
            if let CellWrite::Assign { previous, .. } = cell.write
                && op.kind == RowOpKind::Update
                && previous != held
            {
                return Err(format!("it overwrote {previous:?}, its author held {held:?}"));
            }
        }
        if op.kind == RowOpKind::Delete {
            let mut clocks = self.clocks.values().filter(|stamp| !covered.covers(stamp.dot()));
            let unseen = clocks.find(|stamp| !op.saw.contains(&stamp.dot()));
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
        table: &ShadowTable,
        seen: &VersionVector,
        conflicts: &mut Vec<ShadowConflict>,
    ) -> Result<(), String> {
        let conflict = |column: ColumnId, rule: &str| ShadowConflict {
            table: op.table.0,
            key: op.key.to_vec(),
            column: Some(column.0),
            rule: rule.to_owned(),
            kept: None,
            kept_value: Held::Null,
            lost: None,
            lost_value: Held::Null,
        };
        if op.kind == RowOpKind::Delete {
            self.deletes.push((op.epoch, stamp.dot()));
            if op.epoch != self.epoch {
                return Ok(());
            }
            let cells = self.cells.take().unwrap_or_default();
            for (column, held) in std::mem::take(&mut self.clocks) {
                if !seen.covers(held.dot()) {
                    conflicts.push(ShadowConflict {
                        kept: Some(name(stamp.dot())),
                        lost: Some(name(held.dot())),
                        lost_value: cells.get(&column).cloned().unwrap_or_default(),
                        ..conflict(column, DELETE_WINS)
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
                    ..conflict(column, DELETE_WINS)
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
                    let count = match cells.get(&cell.column) {
                        Some(Held::Integer(n)) => *n,
                        None => 0,
                        Some(_) => return Err("a counter that is not an integer".to_owned()),
                    };
                    let sum = count.wrapping_add(delta);
                    let exact = i128::from(count) + i128::from(delta);
                    if exact != i128::from(sum) {
                        conflicts.push(ShadowConflict {
                            kept_value: Held::Integer(sum),
                            lost: Some(name(stamp.dot())),
                            lost_value: Held::Text(exact.to_string().into_bytes()),
                            ..conflict(cell.column, OVERFLOW)
                        });
                    }
                    cells.insert(cell.column, Held::Integer(sum));
                }
                CellWrite::Extreme(value) => {
                    let value = Held::from(value);
                    let merge = table.merge(cell.column);
                    if cells.get(&cell.column).is_none_or(|held| !held.beats(&value, merge)) {
                        cells.insert(cell.column, value);
                    }
                }
                CellWrite::Assign { value, .. } => {
                    let value = Held::from(value);
                    let held = self.clocks.get(&cell.column).copied();
                    let stored = cells.get(&cell.column).cloned().unwrap_or_default();
                    let wins =
                        held.is_none_or(|held| (stamp.hlc, stamp.author) > (held.hlc, held.author));
                    if let Some(held) = held
                        && (!wins || !seen.covers(held.dot()))
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
                            ..conflict(cell.column, LAST_WINS)
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
        CellWrite::Add(_) | CellWrite::Extreme(_) => None,
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

    fn table() -> ShadowTable {
        let columns = [
            (ColumnId(2), ("name".to_owned(), ColumnType::Lww)),
            (ColumnId(3), ("count".to_owned(), ColumnType::Counter)),
            (ColumnId(4), ("low".to_owned(), ColumnType::Min)),
        ];
        ShadowTable {
            name: "t".to_owned(),
            any: true,
            local: false,
            columns: columns.into(),
            groups: vec![],
        }
    }

    #[test]
    fn the_least_value_stays_and_null_is_none() {
        let low = |value| Cell { column: ColumnId(4), write: CellWrite::Extreme(value) };
        let mut case = Case::default();
        case.run(Insert, 0, &[low(ValueRef::Null)], &[], stamp(1, 1, 1));
        for value in [ValueRef::Integer(3), ValueRef::Real(3.5), ValueRef::Null] {
            case.run(Update, 0, &[low(value)], &[], stamp(2, 2, 1));
        }
        assert_eq!(case.value(4), Some(Held::Integer(3)));
        case.run(Update, 0, &[low(ValueRef::Real(-1e30))], &[], stamp(1, 3, 1));
        assert_eq!(case.value(4), Some(Held::Real((-1e30f64).to_bits())));
        assert_eq!(case.conflicts.len(), 0);
    }

    #[test]
    fn a_sum_that_overflows_wraps_and_is_listed() {
        let mut case = Case::default();
        case.run(Insert, 0, &[add(i64::MAX)], &[], stamp(1, 1, 1));
        case.run(Update, 0, &[add(2)], &[], stamp(2, 2, 1));
        assert_eq!(case.value(3), Some(Held::Integer(i64::MIN + 1)));
        assert_eq!(case.conflicts[0].lost_value, Held::Text(b"9223372036854775809".to_vec()));
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
            let previous = cells.iter().filter_map(|cell| match cell.write {
                CellWrite::Assign { previous, .. } => previous,
                CellWrite::Add(_) | CellWrite::Extreme(_) => None,
            });
            let seen = saw.iter().copied().chain(previous).collect();
            self.row.merge(&op, stamp, &table(), &seen, &mut self.conflicts).unwrap();
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
