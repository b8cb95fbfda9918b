//! The merge rules on single rows.

use std::collections::BTreeMap;

use littoral::{
    AuthorId, Cell, CellWrite, ColumnId, ColumnType, Dot, Hlc, RowOp, RowOpKind, Seq, Stamp,
    TableId, ValueRef,
};

use super::{
    Held, ShadowConflict, ShadowTable,
    row::{Row, name},
};

fn author(counter: u32) -> AuthorId {
    AuthorId { term: 1, counter }
}

fn stamp(time: u64, counter: u32, seq: Seq) -> Stamp {
    Stamp { hlc: Hlc(time), author: author(counter), seq }
}

fn assign(value: i64, previous: Option<Stamp>) -> Cell<'static> {
    let write =
        CellWrite::Assign { value: ValueRef::Integer(value), previous: previous.map(Stamp::dot) };
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
        personal: [].into(),
        groups: vec![],
        defaults: BTreeMap::new(),
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
    fn run(&mut self, kind: RowOpKind, epoch: u32, cells: &[Cell<'_>], saw: &[Dot], stamp: Stamp) {
        let op = RowOp { table: TableId(1), kind, key: b"k", epoch, cells, saw };
        let previous = cells.iter().filter_map(|cell| match cell.write {
            CellWrite::Assign { previous, .. } => previous,
            CellWrite::Add(_) | CellWrite::Extreme(_) | CellWrite::Set(_) => None,
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
            case.run(Update, 0, &[assign(i64::from(stamp.author.counter), Some(base))], &[], stamp);
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
    assert_eq!((case.value(2), case.value(3)), (Some(Held::Integer(7)), Some(Held::Integer(1))));
    assert_eq!(case.conflicts.len(), 2);
}
