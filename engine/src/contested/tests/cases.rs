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
    cluster.write(1, put(Some(5), None, 3));
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
    cluster.write(0, insert(8, 9, 1));
    cluster.write(1, put(Some(5), None, 3));
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
    cluster.write(0, insert(8, 9, 1));
    assert_eq!(cluster.send(1, 0), []);
    assert_eq!(cluster.send(0, 1), []);
    assert_eq!(cluster.row(), Some([8, 9, 1]));
}

#[test]
fn concurrent_inserts_of_one_key_merge_and_add_up() {
    let mut cluster = Cluster::empty();
    cluster.write(0, insert(5, 6, 2));
    cluster.write(1, insert(7, 8, 3));
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
    cluster.write(0, insert(5, 6, 2));
    cluster.write(1, insert(7, 8, 3));
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
    cluster.write(2, insert(1, 2, 3));
    assert_eq!(cluster.row(), Some([1, 2, 3]));
}

#[test]
fn an_element_added_and_removed_at_once_stays() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, tag(0b1, 0));
    cluster.spread();
    cluster.write(0, tag(0, 0b1));
    // Who removes it and adds it again adds it anew.
    cluster.write(1, tag(0, 0b1));
    cluster.write(1, tag(0b1, 0));
    assert_eq!(cluster.send(1, 0), [], "and nothing is a conflict");
    assert_eq!(cluster.tags(), 0b1);
}

#[test]
fn an_element_that_was_there_when_it_was_added_is_not_added() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, tag(0b1, 0));
    cluster.spread();
    cluster.write(0, tag(0, 0b1));
    // What the statement may say of the first element leaves no word in the entry.
    cluster.write(1, tag(0b10, 0));
    assert_eq!(cluster.tags(), 0b10);
}

#[test]
fn a_removal_takes_away_the_adds_that_its_author_knew() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, tag(0b1, 0));
    cluster.write(1, tag(0b1, 0));
    cluster.send(0, 2);
    cluster.write(2, tag(0, 0b1));
    assert_eq!(cluster.tags(), 0b1, "one add was not known");
    cluster.write(2, tag(0, 0b1));
    assert_eq!(cluster.tags(), 0);
}

#[test]
fn two_inserts_of_one_key_unite_their_sets_and_a_delete_takes_them_along() {
    let mut cluster = Cluster::empty();
    cluster.write(0, Change::Insert { name: 0, note: 0, count: 0, tags: 0b11 });
    cluster.write(1, Change::Insert { name: 0, note: 0, count: 0, tags: 0b110 });
    assert_eq!(cluster.tags(), 0b111);
    cluster.write(0, Change::Delete);
    cluster.write(1, tag(0, 0b1));
    assert_eq!(cluster.send(1, 0), [], "a change of a set that is gone is no conflict");
    assert_eq!(cluster.send(0, 1), [(NAME, ConflictKind::StoredDeleted); 0]);
    assert_eq!(cluster.row(), None);
    cluster.write(2, Change::Insert { name: 0, note: 0, count: 0, tags: 0b100 });
    assert_eq!(cluster.tags(), 0b100, "it begins anew");
}

#[test]
fn a_set_of_thousands_of_adds_is_packed_and_unpacked() {
    let mut clock = RowClock::default();
    let stamp = |seq: u64| Stamp { hlc: Hlc(seq), author: author(0), seq };
    for seq in 1..=5000 {
        clock.add(TAGS, Element::Integer(i64::try_from(seq).unwrap()).to_bytes(), stamp(seq));
        clock.add(TAGS, Element::Bool(true).to_bytes(), stamp(seq));
    }
    let mut block = block::Block::default();
    block.push(b"k", &clock);
    assert_eq!(block.stamps.len(), 5000);
    assert_eq!(block::Block::decode(&block.encode()).unwrap().clock(0), clock);
    // All but the last add are covered: the element with many keeps one name, the others none.
    clock.drop_covered(&|stamp| stamp.seq < 5000, 1, stamp(5001));
    let left = clock.sets.all();
    assert_eq!(left.len(), 2);
    assert_eq!(left[&(TAGS, Element::Bool(true).to_bytes())], (vec![stamp(5000)], true));
}
