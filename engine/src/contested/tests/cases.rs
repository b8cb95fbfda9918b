//! The named cases behind the laws.

use super::*;

#[test]
fn concurrent_writes_to_different_columns_both_stand() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, name(5));
    cluster.write(1, note(6));
    assert_eq!(cluster.send(0, 1), []);
    assert_eq!(cluster.send(1, 0), []);
    assert_eq!(cluster.row(), Some([5, 6, 0]));
}

#[test]
fn a_causal_overwrite_is_no_conflict() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, name(5));
    assert_eq!(cluster.send(0, 1), []);
    cluster.write(1, name(6));
    assert_eq!(cluster.send(1, 0), []);
    assert_eq!(cluster.send(1, 2), [], "both arrive, one after the other");
    assert_eq!(cluster.row(), Some([6, 1, 0]));
}

#[test]
fn of_concurrent_writes_the_later_wins_and_both_sides_see_the_conflict() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, name(5));
    cluster.write(1, name(6));
    assert_eq!(cluster.send(0, 1), [(NAME, ConflictKind::IncomingLoses)]);
    assert_eq!(cluster.send(1, 0), [(NAME, ConflictKind::StoredLoses)]);
    assert_eq!(cluster.row(), Some([6, 1, 0]));
}

#[test]
fn the_author_decides_between_equal_times() {
    let mut cluster = Cluster::with_row();
    cluster.write(1, name(6));
    cluster.wall -= 1;
    cluster.write(0, name(5));
    let time = |place: usize| cluster.history[place].header.hlc;
    assert_eq!(time(1), time(2));
    assert_eq!(cluster.row(), Some([6, 1, 0]));
}

#[test]
fn a_delete_wins_over_a_concurrent_update_in_either_order() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, Change::Delete);
    cluster.write(1, Change::Update { name: Some(5), note: None, count: 3 });
    let late = cluster.send(1, 0);
    assert_eq!(late, [(NAME, ConflictKind::RowGone)], "increments are no conflict");
    assert_eq!(cluster.send(0, 1), [(NAME, ConflictKind::StoredDeleted)]);
    assert_eq!(cluster.row(), None);
}

#[test]
fn a_delete_of_what_its_author_has_seen_is_no_conflict() {
    let mut cluster = Cluster::with_row();
    cluster.write(1, name(5));
    cluster.send(1, 0);
    cluster.write(0, Change::Delete);
    assert_eq!(cluster.send(0, 1), []);
    assert_eq!(cluster.send(0, 2), []);
    assert_eq!(cluster.row(), None);
}

#[test]
fn an_insert_over_a_tombstone_begins_an_epoch_that_older_writes_do_not_reach() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, Change::Delete);
    cluster.write(0, Change::Insert { name: 8, note: 9, count: 1 });
    cluster.write(1, Change::Update { name: Some(5), note: None, count: 3 });
    assert_eq!(cluster.history[2].ops[0].epoch, 1);
    assert_eq!(cluster.send(1, 0), [(NAME, ConflictKind::RowGone)]);
    assert_eq!(cluster.send(0, 1), [(NAME, ConflictKind::StoredDeleted)]);
    assert_eq!(cluster.row(), Some([8, 9, 1]));
}

#[test]
fn a_delete_of_an_older_epoch_leaves_the_new_row_alone() {
    let mut cluster = Cluster::with_row();
    cluster.write(1, Change::Delete);
    cluster.write(0, Change::Delete);
    cluster.write(0, Change::Insert { name: 8, note: 9, count: 1 });
    assert_eq!(cluster.send(1, 0), []);
    assert_eq!(cluster.send(0, 1), []);
    assert_eq!(cluster.row(), Some([8, 9, 1]));
}

#[test]
fn concurrent_inserts_of_one_key_merge_and_add_up() {
    let mut cluster = Cluster::empty();
    cluster.write(0, Change::Insert { name: 5, note: 6, count: 2 });
    cluster.write(1, Change::Insert { name: 7, note: 8, count: 3 });
    cluster.write(0, note(9));
    assert_eq!(
        cluster.send(1, 0),
        [(NAME, ConflictKind::StoredLoses), (NOTE, ConflictKind::IncomingLoses)]
    );
    assert_eq!(cluster.row(), Some([7, 9, 5]));
}

#[test]
fn concurrent_inserts_after_a_delete_that_both_had_seen_merge_too() {
    let mut cluster = Cluster::with_row();
    cluster.write(2, count(50));
    cluster.spread();
    cluster.write(2, Change::Delete);
    cluster.spread();
    cluster.write(0, Change::Insert { name: 5, note: 6, count: 2 });
    cluster.write(1, Change::Insert { name: 7, note: 8, count: 3 });
    assert_eq!(cluster.row(), Some([7, 8, 5]));
}

#[test]
fn a_row_dies_of_the_first_of_two_concurrent_deletes() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, Change::Delete);
    cluster.write(1, Change::Delete);
    assert_eq!(cluster.send(0, 1), []);
    assert_eq!(cluster.send(1, 0), []);
    assert_eq!(cluster.row(), None);
    cluster.write(2, Change::Insert { name: 1, note: 2, count: 3 });
    assert_eq!(cluster.row(), Some([1, 2, 3]));
}
