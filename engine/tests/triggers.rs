//! Triggers by class, and full-text search that they keep, on real files; each test with the reason why it
//! is a trap.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use self::support::{NOTES, explicit, linked};

/// Writes to a virtual table fire no hook, and its shadow tables must not replicate as rows: the same
/// triggers have to run on every node, though all others must not.
#[test]
fn full_text_search_kept_by_triggers_is_right_on_every_node() {
    let mut cluster = linked(3, NOTES, &[("note", explicit())]);
    cluster
        .write(1, "INSERT INTO note VALUES(1, 'apple', 'red', 0), (2, 'pear', 'green apple', 0)");
    cluster
        .write(1, "INSERT INTO note VALUES(3, 'plum', 'blue', 0) ON CONFLICT DO UPDATE SET n = 1");
    cluster.assert_found("apple", &["1", "2"]);
    cluster.cut();
    cluster.write(1, "UPDATE note SET title = 'cherry' WHERE id = 1");
    cluster.write(2, "UPDATE note SET body = 'yellow' WHERE id = 1; DELETE FROM note WHERE id = 2");
    cluster.write(2, "UPDATE note SET id = 30 WHERE id = 3");
    cluster.link(1, 0);
    cluster.link(2, 0);
    cluster.assert_found("apple", &[]);
    cluster.assert_found("cherry yellow", &["1"]);
    cluster.assert_found("plum", &["30"]);
    cluster.write(0, "DELETE FROM note");
    cluster.assert_found("plum", &[]);
    cluster.write(0, "INSERT INTO note VALUES(1, 'again', '', 0)");
    cluster.assert_found("again", &["1"]);
    // Also by nodes that were opened again, and by one that has it all to apply.
    for node in [0, 1] {
        cluster.replicas[node].take().unwrap().close(cluster.now).1.unwrap();
        cluster.open(node);
    }
    cluster.cut();
    cluster.link(0, 1);
    cluster.link(0, 2);
    cluster.write(2, "UPDATE note SET body = 'and again'");
    cluster.assert_found("and", &["1"]);
    for table in ["found_data", "found_idx", "found_docsize", "found_config", "found"] {
        let status = cluster.replica(0).status();
        assert!(status.tables.iter().all(|(name, _)| name != table), "{table}");
    }
}

/// What people are told of each trigger.
#[test]
fn triggers_are_listed_with_what_they_are_for() {
    let schema = format!(
        "{NOTES} CREATE TABLE seen(id INTEGER PRIMARY KEY);
         CREATE TRIGGER guard BEFORE INSERT ON note WHEN new.n < 0 BEGIN SELECT RAISE(ABORT, 'n'); END;
         CREATE TRIGGER effect AFTER INSERT ON note BEGIN INSERT INTO seen VALUES(new.id); END;"
    );
    let mut cluster = linked(2, &schema, &[]);
    for node in [0, 1] {
        let triggers = cluster.replica(node).status().triggers;
        let listed: Vec<String> =
            triggers.iter().map(|t| format!("{} {} {}", t.name, t.table, t.class)).collect();
        assert_eq!(
            listed,
            [
                "effect note effect",
                "guard note guard",
                "note_again note derived",
                "note_in note derived",
                "note_out note derived"
            ]
        );
    }
}

/// A guard judges what a client writes; a merge that it would not let pass must not fail, or replication
/// stops for good.
#[test]
fn a_guard_does_not_judge_a_merge() {
    let schema = "
        CREATE TABLE t(id INTEGER PRIMARY KEY, low INTEGER, high INTEGER);
        CREATE TRIGGER guard BEFORE UPDATE ON t WHEN new.low > new.high
        BEGIN SELECT RAISE(ABORT, 'low is above high'); END;";
    let mut cluster = linked(2, schema, &[("t", explicit())]);
    cluster.write(1, "INSERT INTO t VALUES(1, 1, 10)");
    cluster.settle();
    cluster.cut();
    assert!(cluster.refused(0, "UPDATE t SET low = 11").contains("above"));
    cluster.write(0, "UPDATE t SET low = 8");
    cluster.write(1, "UPDATE t SET high = 5");
    cluster.link(0, 1);
    cluster.assert_rows("SELECT * FROM t", &["1|8|5"]);
    cluster.write(0, "INSERT INTO t VALUES(2, 1, 2)");
    cluster.assert_rows("SELECT count(*) FROM t", &["2"]);
}

/// An effect arrives as rows, so it must not happen a second time where it arrives.
#[test]
fn an_effect_happens_once() {
    let schema = "
        CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE log(id INTEGER PRIMARY KEY, v);
        CREATE TRIGGER effect AFTER INSERT ON t BEGIN INSERT INTO log(v) VALUES(new.v); END;";
    let mut cluster = linked(3, schema, &[]);
    cluster.write(0, "INSERT INTO t VALUES(1, 'a'), (2, 'b')");
    cluster.assert_rows("SELECT * FROM log", &["1|a", "2|b"]);
}

/// The first statement after another connection has changed the schema is prepared twice by SQLite.
#[test]
fn replace_is_refused_also_right_after_a_change_of_the_schema() {
    let mut cluster = linked(2, NOTES, &[("note", explicit())]);
    cluster.write(1, "INSERT INTO note VALUES(1, 'apple', 'red', 0)");
    cluster.settle();
    cluster.write(0, "CREATE TABLE other(id INTEGER PRIMARY KEY)");
    cluster.settle();
    let message = cluster.refused(1, "REPLACE INTO note VALUES(1, 'pear', 'red', 0)");
    assert!(message.contains("REPLACE, which deletes a row"), "{message}");
    cluster.write(0, "CREATE TABLE third(id INTEGER PRIMARY KEY)");
    cluster.settle();
    cluster.write(1, "DELETE FROM note WHERE id = 1");
    cluster.assert_found("apple", &[]);
}

/// REPLACE fires no delete trigger, so the index would keep the words of a row that is gone.
#[test]
fn a_replace_that_would_leave_words_in_an_index_is_refused() {
    let mut cluster = linked(2, NOTES, &[("note", explicit())]);
    cluster.write(1, "REPLACE INTO note VALUES(1, 'apple', 'red', 0)");
    for sql in [
        "REPLACE INTO note VALUES(1, 'pear', 'red', 0)",
        "INSERT INTO note VALUES(2, 'pear', '', 0); UPDATE OR REPLACE note SET id = 1 WHERE id = 2",
    ] {
        let error = cluster.refused(1, sql);
        assert!(error.contains("\"found\" would keep the row"), "{error}");
    }
    cluster
        .write(1, "DELETE FROM note WHERE id = 1; REPLACE INTO note VALUES(1, 'plum', 'red', 0)");
    cluster.assert_found("plum", &["1"]);
    cluster.assert_found("apple OR pear", &[]);
}

/// A derived trigger that fails must cost its target only: the row is what replicates.
#[test]
fn a_derived_trigger_that_fails_costs_its_target_and_not_the_row() {
    let mut cluster = linked(2, NOTES, &[("note", explicit())]);
    cluster.write(0, "INSERT INTO note VALUES(1, 'apple', '', 0)");
    cluster.settle();
    // The index of one node is damaged.
    cluster.replicas[1].take().unwrap().close(cluster.now).1.unwrap();
    let damage =
        "UPDATE found_data SET block = x'00' WHERE id > 1; DELETE FROM found_data WHERE id = 10";
    rusqlite::Connection::open(cluster.path(1)).unwrap().execute_batch(damage).unwrap();
    cluster.open(1);
    cluster.cut();
    cluster.link(0, 1);
    cluster.write(0, "UPDATE note SET title = 'pear'; INSERT INTO note VALUES(2, 'plum', '', 0)");
    cluster.assert_rows("SELECT title FROM note", &["pear", "plum"]);
    assert_eq!(cluster.replica(1).status().stale, ["found"]);
    assert!(cluster.replica(0).status().stale.is_empty());
    // Opening the file again rebuilds it.
    cluster.replicas[1].take().unwrap().close(cluster.now).1.unwrap();
    cluster.open(1);
    assert!(cluster.replica(1).status().stale.is_empty());
    cluster.cut();
    cluster.link(0, 1);
    cluster.write(0, "UPDATE note SET body = 'ripe' WHERE id = 2");
    cluster.assert_found("pear", &["1"]);
    cluster.assert_found("ripe", &["2"]);
}

/// A trigger that writes an index and may refuse, or reads more than its row, can fire neither here nor
/// there.
#[test]
fn a_trigger_that_mixes_an_index_with_something_else_is_refused() {
    let schema = format!(
        "{NOTES} CREATE TRIGGER mixed AFTER INSERT ON note BEGIN
           SELECT RAISE(ABORT, 'no') WHERE new.n < 0; INSERT INTO found(rowid, title) VALUES(new.id, ''); END"
    );
    let genesis = littoral::Genesis { schema, ..littoral::Genesis::default() };
    let error = genesis.check().unwrap_err().to_string();
    assert!(error.contains("trigger \"mixed\" writes the virtual table \"found\""), "{error}");
}
