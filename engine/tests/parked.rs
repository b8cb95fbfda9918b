//! Rows that cannot be stored, and rows that break a CHECK only once they are merged: replication goes
//! on, and the rows are told.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{TablePolicy, WriteError, Writers};
use support::Cluster;

const SCHEMA: &str = "
    CREATE TABLE span(
      id TEXT PRIMARY KEY NOT NULL, low INTEGER, high INTEGER, n INTEGER NOT NULL DEFAULT 0,
      note TEXT, CONSTRAINT ordered CHECK (low <= high), CHECK (n < 100));
    CREATE TABLE sold(id INTEGER PRIMARY KEY, what TEXT, price INTEGER);
";

fn cluster(nodes: usize) -> Cluster {
    let mut span = TablePolicy { writers: Writers::Any, ..TablePolicy::default() };
    span.declare_column("n", "counter").unwrap();
    support::linked(nodes, SCHEMA, &[("span", span)])
}

fn join(cluster: &mut Cluster) {
    cluster.link(0, 1);
    cluster.settle();
}

/// Closes a node's file and opens it again.
fn restart(cluster: &mut Cluster, node: usize) {
    cluster.cut();
    let now = cluster.now;
    cluster.replicas[node].take().unwrap().close(now).1.unwrap();
    cluster.open(node);
}

/// What a program that knows nothing of littoral does to a node's file.
fn foreign(cluster: &Cluster, node: usize, sql: &str) {
    rusqlite::Connection::open(cluster.path(node)).unwrap().execute_batch(sql).unwrap();
}

fn parked(cluster: &mut Cluster, node: usize) -> u64 {
    cluster.replica(node).status().parked_rows
}

const LISTED: &str = "SELECT rule, \"row\", kept, kept_by, lost, lost_by, reason FROM littoral_conflicts ORDER BY id";

#[test]
fn a_check_over_two_columns_that_two_valid_writes_break_stops_nothing() {
    let mut cluster = cluster(2);
    cluster.write(0, "INSERT INTO span(id, low, high) VALUES('a', 1, 5)");
    cluster.settle();
    cluster.cut();
    cluster.write(0, "UPDATE span SET low = 4");
    cluster.write(1, "UPDATE span SET high = 2");
    join(&mut cluster);
    cluster.assert_equal();
    let row = "{\"low\":4,\"high\":2,\"n\":0,\"note\":null}";
    for node in 0..2 {
        assert_eq!(cluster.rows(node, "SELECT low, high FROM span"), ["4|2"]);
        let expected =
            format!("check|[\"a\"]|{row}|n{}|null|null|CHECK constraint failed: ordered", 1 - node);
        assert_eq!(cluster.rows(node, LISTED), [expected]);
    }

    for round in 0..2 {
        cluster
            .write(0, "UPDATE span SET note = coalesce(note, '') || '0', n = n + 1 WHERE id = 'a'");
        cluster.settle();
        cluster.write(1, "UPDATE span SET note = note || '1', n = n + 1 WHERE id = 'a'");
        cluster.write(1, "INSERT INTO span(id) VALUES('b') ON CONFLICT DO UPDATE SET n = n + 1");
        cluster.settle();
        cluster.assert_equal();
        assert_eq!(
            cluster.rows(0, "SELECT n FROM span"),
            [(2 * round + 2).to_string(), round.to_string()]
        );
        restart(&mut cluster, 0);
        restart(&mut cluster, 1);
        join(&mut cluster);
        assert_eq!(cluster.rows(1, "SELECT count(*) FROM littoral_conflicts"), ["1"]);
    }
    let refused = cluster.try_write(0, |tx| tx.execute_batch("UPDATE span SET low = 3"));
    assert!(refused.unwrap_err().to_string().contains("ordered"), "a writer sees its own CHECK");

    // Repaired, and broken once more.
    cluster.write(0, "UPDATE span SET low = 1 WHERE id = 'a'");
    cluster.settle();
    cluster.cut();
    cluster.write(0, "UPDATE span SET low = 2 WHERE id = 'a'");
    cluster.write(1, "UPDATE span SET high = 1 WHERE id = 'a'");
    join(&mut cluster);
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, "SELECT count(*) FROM littoral_conflicts"), ["2"]);
}

#[test]
fn a_check_on_a_counter_is_told_too() {
    let mut cluster = cluster(2);
    cluster.write(0, "INSERT INTO span(id, n) VALUES('a', 90)");
    cluster.settle();
    cluster.cut();
    cluster.write(0, "UPDATE span SET n = n + 9");
    cluster.write(1, "UPDATE span SET n = n + 5");
    join(&mut cluster);
    cluster.assert_equal();
    for node in 0..2 {
        assert_eq!(cluster.rows(node, "SELECT n FROM span"), ["104"]);
        let reason = "SELECT reason FROM littoral_conflicts";
        assert_eq!(cluster.rows(node, reason), ["CHECK constraint failed: n < 100"]);
    }
}

#[test]
fn a_row_that_cannot_be_stored_is_parked_and_merges_on() {
    let mut cluster = cluster(2);
    foreign(&cluster, 1, "CREATE UNIQUE INDEX in_the_way ON span(note)");
    cluster.write(
        0,
        "INSERT INTO span(id, n, note) VALUES('a', 1, 'x'), ('b', 2, 'y'), ('c', 3, 'x')",
    );
    cluster.settle();
    assert_eq!(cluster.replica(0).status().vector, cluster.replica(1).status().vector);
    assert_eq!(cluster.rows(1, "SELECT id FROM span ORDER BY id"), ["a", "b"]);
    assert_eq!(parked(&mut cluster, 1), 1);
    let row = "{\"low\":null,\"high\":null,\"n\":3,\"note\":\"x\"}";
    let expected = format!("parked|[\"c\"]|null|null|{row}|n0|UNIQUE constraint failed: span.note");
    assert_eq!(cluster.rows(1, LISTED), [expected]);

    // A row that is there is taken out where it comes to be in the way.
    cluster.write(0, "UPDATE span SET note = 'x', n = n + 10 WHERE id = 'b'");
    cluster.write(0, "UPDATE span SET n = n + 10, high = 7 WHERE id = 'c'");
    cluster.settle();
    assert_eq!(cluster.rows(1, "SELECT id FROM span"), ["a"]);
    assert_eq!(parked(&mut cluster, 1), 2);
    restart(&mut cluster, 1);
    join(&mut cluster);
    assert_eq!(parked(&mut cluster, 1), 2);

    let mine = cluster.try_write(1, |tx| tx.execute_batch("INSERT INTO span(id) VALUES('c')"));
    let Err(WriteError::Parked { table, row }) = mine else { panic!("{mine:?}") };
    assert_eq!((table.as_str(), row.as_str()), ("span", "[\"c\"]"));

    cluster.write(0, "UPDATE span SET note = 'z', n = n + 10 WHERE id = 'c'");
    cluster.settle();
    assert_eq!(cluster.rows(1, "SELECT id, high, n, note FROM span WHERE id = 'c'"), ["c|7|23|z"]);
    assert_eq!(parked(&mut cluster, 1), 1);
    cluster.write(0, "DELETE FROM span WHERE id = 'b'");
    cluster.settle();
    assert_eq!(parked(&mut cluster, 1), 0);
    assert!(cluster.rows(1, LISTED).is_empty());
    cluster.assert_equal();
}

#[test]
fn parked_rows_return_when_what_was_in_the_way_is_gone() {
    let mut cluster = cluster(2);
    foreign(&cluster, 1, "CREATE UNIQUE INDEX in_the_way ON span(note)");
    cluster.write(0, "INSERT INTO span(id, note) VALUES('a', 'x'), ('b', 'x'), ('c', 'x')");
    cluster.settle();
    assert_eq!(parked(&mut cluster, 1), 2);
    // Whoever writes, a parked row is tried again.
    cluster.write(1, "DELETE FROM span WHERE id = 'a'");
    assert_eq!(cluster.rows(1, "SELECT id FROM span"), ["b"]);
    foreign(&cluster, 1, "DROP INDEX in_the_way");
    restart(&mut cluster, 1);
    cluster.settle();
    assert_eq!(cluster.rows(1, "SELECT id FROM span ORDER BY id"), ["b", "c"]);
    assert_eq!(parked(&mut cluster, 1), 0);
    join(&mut cluster);
    cluster.assert_equal();
}

#[test]
fn a_row_of_the_origins_that_cannot_be_stored_is_parked() {
    let mut cluster = cluster(2);
    foreign(&cluster, 1, "CREATE UNIQUE INDEX in_the_way ON sold(what)");
    cluster.write(0, "INSERT INTO sold VALUES(1, 'pen', 5), (2, 'ink', 6)");
    cluster.write(0, "INSERT INTO sold VALUES(3, 'pen', 7)");
    cluster.write(0, "UPDATE sold SET what = 'pen' WHERE id = 2");
    cluster.write(0, "UPDATE sold SET price = 8 WHERE id = 3");
    cluster.settle();
    assert_eq!(cluster.rows(1, "SELECT * FROM sold"), ["1|pen|5"]);
    assert_eq!(parked(&mut cluster, 1), 2);
    // Two that are in each other's way, and one that is in theirs.
    cluster.write(0, "UPDATE sold SET what = 'cap' WHERE id = 1");
    cluster.settle();
    assert_eq!(parked(&mut cluster, 1), 1);
    cluster.write(0, "DELETE FROM sold WHERE id = 2");
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, "SELECT * FROM sold ORDER BY id"), ["1|cap|5", "3|pen|8"]);
}
