//! [`Row`]: what one operation makes of one row.

use std::collections::BTreeMap;

use littoral::{
    AuthorId, Cell, CellWrite, ColumnId, Dot, RowOp, RowOpKind, Seq, Stamp, VersionVector,
};

use super::{Held, ShadowTable, set::Set};

/// The rules by which values are discarded, as `littoral_conflicts` names them.
const LAST_WINS: &str = "last writer wins";
const DELETE_WINS: &str = "delete wins";
pub(super) const OVERFLOW: &str = "counter overflow";
/// A merged row that breaks a CHECK; what stands in it is not compared.
pub(crate) const CHECK: &str = "check";

/// One row: its cells while it lives, and its clocks.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    /// Cells outside the key; `None` while the row does not exist.
    pub(super) cells: Option<BTreeMap<ColumnId, Held>>,
    /// Counted from the beginning of time, whatever frontiers have done to the numbers in entries.
    pub(super) epoch: u32,
    pub(super) clocks: BTreeMap<ColumnId, Stamp>,
    /// The sets among the cells.
    pub(super) sets: BTreeMap<ColumnId, Set>,
    /// Every delete that was ever applied, and the epoch it named.
    pub(super) deletes: Vec<(u32, Dot)>,
    /// By how much each frontier has made the epochs that entries name smaller.
    pub(super) shifts: Vec<(u64, u32)>,
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

/// An entry's name, as conflicts tell it.
pub(super) fn name(dot: Dot) -> (AuthorId, Seq) {
    (dot.author, dot.seq)
}

impl Row {
    /// An author's own operation fits what the author held; of what a frontier covers it names nothing.
    pub(super) fn check_own(
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
        let none = Set::default();
        for cell in op.cells {
            if let CellWrite::Set(change) = cell.write {
                let set = self.sets.get(&cell.column).unwrap_or(&none);
                set.check_own(change, covered)
                    .map_err(|what| format!("column {}: {what}", cell.column.0))?;
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
    pub(super) fn assign_all(&mut self, op: &RowOp<'_>) -> Result<(), String> {
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

    pub(super) fn merge(
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
        // What the author had applied, or written earlier in the same entry.
        let knew = |held: Stamp| seen.covers(held.dot()) || held.dot() == stamp.dot();
        if op.kind == RowOpKind::Delete {
            self.deletes.push((op.epoch, stamp.dot()));
            if op.epoch != self.epoch {
                return Ok(());
            }
            let cells = self.cells.take().unwrap_or_default();
            self.sets.clear();
            for (column, held) in std::mem::take(&mut self.clocks) {
                if !knew(held) {
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
            self.sets.clear();
        }
        if self.cells.is_none() && op.kind == RowOpKind::Update {
            return Err("an update of a row that was never inserted".to_owned());
        }
        let cells = self.cells.get_or_insert_with(|| table.defaults.clone());
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
                CellWrite::Set(change) => {
                    let set = self.sets.entry(cell.column).or_default();
                    set.apply(change, stamp.dot(), seen);
                    cells.insert(cell.column, set.held());
                }
                CellWrite::Assign { value, .. } => {
                    let value = Held::from(value);
                    let held = self.clocks.get(&cell.column).copied();
                    let stored = cells.get(&cell.column).cloned().unwrap_or_default();
                    let wins = held
                        .is_none_or(|held| (stamp.hlc, stamp.author) >= (held.hlc, held.author));
                    if let Some(held) = held
                        && (!wins || !knew(held))
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
        CellWrite::Add(_) | CellWrite::Extreme(_) | CellWrite::Set(_) => None,
    });
    assigned.collect()
}
