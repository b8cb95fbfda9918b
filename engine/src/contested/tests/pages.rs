//! Many rows: blocks are split, written, taken out of memory and read again.

use super::*;
use crate::limits::CLOCK_MEMORY_BYTES;

fn key(row: u32) -> Vec<u8> {
    let mut key = row.to_be_bytes().to_vec();
    key.resize(60, 7);
    key
}

fn inserts(rows: impl Iterator<Item = u32>) -> Vec<(Vec<u8>, Change)> {
    rows.map(|row| (key(row), insert(0, 0, 0))).collect()
}

#[test]
fn what_does_not_fit_into_memory_is_found_on_disk() {
    let mut replica = Replica::default();
    let rows = u32::try_from(CLOCK_MEMORY_BYTES / 60).unwrap();
    replica.write(author(0), 1, &inserts((0..rows).map(|row| row * 2)));
    assert!(!replica.contested.shrink(), "nothing of it is on disk yet");
    replica.contested.save(&replica.disk).unwrap();
    replica.contested.saved();
    assert!(replica.contested.shrink());
    assert!(replica.contested.bytes() <= CLOCK_MEMORY_BYTES);
    assert_eq!(replica.contested.rows(), u64::from(rows));

    // Changed and inserted here and there, undone once, kept the second time.
    let changes: Vec<_> = (0..rows / 500)
        .flat_map(|row| [(key(row * 1000), name(1)), (key(row * 1000 + 1), insert(0, 0, 0))])
        .collect();
    replica.contested.mark();
    let rows_before = replica.rows.clone();
    replica.write(author(0), 2, &changes);
    replica.contested.undo();
    assert_eq!(replica.contested.rows(), u64::from(rows));
    replica.rows = rows_before;
    replica.vector = VersionVector::from_iter([Dot { author: author(0), seq: 1 }]);
    replica.write(author(0), 2, &changes);
    assert_eq!(replica.contested.rows(), u64::from(rows + rows / 500));
    let mut cursor = replica.contested.cursor(&replica.disk);
    for row in 0..rows / 500 {
        let found = cursor.row(TABLE, &key(row * 1000)).unwrap().unwrap();
        assert_eq!(found.cell(NAME).map(|stamp| stamp.seq), Some(2));
        assert_eq!(found.cell(NOTE).map(|stamp| stamp.seq), Some(1));
    }

    // A frontier over all of it leaves nothing, also not on disk.
    let stamp = replica.header(author(0), 3).stamp();
    let covered = replica.vector.clone();
    let Replica { contested, disk, .. } = &mut replica;
    contested.frontier(disk, 1, &covered, stamp).unwrap();
    assert_eq!((contested.rows(), contested.bytes()), (0, 0));
    contested.save(disk).unwrap();
    contested.saved();
    let left: i64 =
        disk.query_row("SELECT count(*) FROM littoral_clock", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[test]
fn rows_put_in_any_order_are_found() {
    let mut replica = Replica::default();
    // 7919 is prime, so every row comes once, far from the one before.
    for (time, row) in (1..).zip((0..5000).map(|row| row * 7919 % 5000)) {
        replica.write(author(0), time, &inserts(std::iter::once(row)));
    }
    let all = exact(&replica.contested);
    assert_eq!(all.len(), 5000);
    replica.contested.save(&replica.disk).unwrap();
    replica.contested.saved();
    let opened = Contested::open(&replica.disk, Stable::default()).unwrap();
    assert_eq!(exact(&opened), all);
}

#[test]
fn a_table_is_forgotten_wherever_its_clocks_lie_and_that_can_be_undone() {
    let mut replica = Replica::default();
    let rows = u32::try_from(CLOCK_MEMORY_BYTES / 60).unwrap();
    replica.write(author(0), 1, &inserts((0..rows).map(|row| row * 2)));
    let Replica { contested, disk, .. } = &mut replica;
    contested.save(disk).unwrap();
    contested.saved();
    assert!(contested.shrink());
    let paged = contested.bytes();
    replica.write(author(0), 2, &[(key(4), Change::Delete), (key(5), insert(0, 0, 0))]);
    let covered = VersionVector::from_iter([Dot { author: author(0), seq: 2 }]);
    let stamp = replica.header(author(1), 1).stamp();
    let Replica { contested, disk, .. } = &mut replica;

    contested.mark();
    contested.forget_dropped(disk, &[TableChange::Dropped(TABLE)]).unwrap();
    assert_eq!((contested.rows(), contested.bytes()), (0, 0));
    contested.undo();
    assert_eq!(contested.rows(), u64::from(rows) + 1);
    assert!(contested.bytes() >= paged);
    let found = |contested: &Contested, disk: &Connection, row| {
        contested.cursor(disk).row(TABLE, &key(row)).unwrap()
    };
    assert!(found(contested, disk, 4).unwrap().dead);
    assert_eq!(found(contested, disk, 6).unwrap().cell(NAME).map(|stamp| stamp.seq), Some(1));

    // What is written after it in the same transaction goes with it when that is undone.
    contested.mark();
    contested.forget_dropped(disk, &[TableChange::Dropped(TABLE)]).unwrap();
    replica.write(author(0), 3, &[(key(9), insert(0, 0, 0))]);
    let Replica { contested, disk, .. } = &mut replica;
    assert_eq!(contested.rows(), 1);
    contested.undo();
    assert_eq!(contested.rows(), u64::from(rows) + 1);
    assert!(found(contested, disk, 9).is_none());

    // Shifts are forgotten too: frontiers about frontiers would never end.
    contested.frontier(disk, 1, &covered, stamp).unwrap();
    assert_eq!(contested.rows(), 1);
    contested.mark();
    contested.forget_dropped(disk, &[TableChange::Dropped(TABLE)]).unwrap();
    contested.keep();
    assert_eq!((contested.rows(), contested.bytes(), contested.shelf.shifts()), (0, 0, 0));
    contested.save(disk).unwrap();
    contested.saved();
    let left: i64 =
        disk.query_row("SELECT count(*) FROM littoral_clock", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[test]
fn clocks_that_a_transaction_takes_away_are_gone() {
    let mut replica = Replica::default();
    replica.write(author(0), 1, &inserts(0..10));
    let stamp = replica.header(author(0), 2).stamp();
    // A part of the block, then all that is left.
    for gone in [5, 10] {
        let mut writes = LocalWrites::new(&replica.contested, &replica.disk, stamp);
        (0..gone).for_each(|row| writes.updated(TABLE, &key(row), &RowClock::default(), true));
        let changes = writes.finish();
        replica.contested.install(&replica.disk, &changes).unwrap();
        assert_eq!(replica.contested.rows(), 10 - u64::from(gone));
    }
    assert_eq!(replica.contested.bytes(), 0);
}
