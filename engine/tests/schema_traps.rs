//! What changes of the schema do in SQLite that a replication layer may get wrong; each test with the
//! reason why it is a trap.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use self::support::{NOTES, explicit, linked};

/// CREATE TABLE AS SELECT fires no hook for its rows, and may read what other nodes do not hold.
#[test]
fn create_table_as_select_is_refused_and_says_what_to_do() {
    let mut cluster = linked(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)", &[]);
    cluster.write(0, "INSERT INTO t VALUES(1, 'a')");
    for sql in
        ["CREATE TABLE copy AS SELECT * FROM t", "CREATE TABLE IF NOT EXISTS copy AS SELECT 1 AS x"]
    {
        let error = cluster.refused(0, sql);
        assert!(error.contains("AS SELECT"), "{error}");
    }
    cluster
        .write(0, "CREATE TABLE copy(id INTEGER PRIMARY KEY, v); INSERT INTO copy SELECT * FROM t");
    cluster.assert_rows("SELECT * FROM copy", &["1|a"]);
}

/// With foreign keys on, DROP TABLE deletes the rows first, and the cascades of that are changes of rows;
/// where the statement is replayed, foreign keys are off and nothing cascades.
#[test]
fn drop_table_with_foreign_keys_on_deletes_the_children_everywhere() {
    let mut cluster = linked(
        3,
        "CREATE TABLE p(id INTEGER PRIMARY KEY);
         CREATE TABLE gone(id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE);
         CREATE TABLE kept(p REFERENCES p ON DELETE SET NULL, v)",
        &[],
    );
    cluster.write(0, "INSERT INTO p VALUES(1), (2); INSERT INTO gone VALUES(1, 1), (2, 2)");
    cluster.write(0, "INSERT INTO kept VALUES(1, 'a'), (2, 'b'), (NULL, 'c')");
    cluster.settle();
    cluster.write(0, "DELETE FROM gone WHERE id = 2; DROP TABLE p; UPDATE kept SET v = v || '!'");
    cluster.assert_rows("SELECT count(*) FROM gone", &["0"]);
    cluster.assert_rows("SELECT rowid, * FROM kept", &["1|null|a!", "2|null|b!", "3|null|c!"]);
}

/// A table that is rebuilt as migrations do it, while children refer to it with ON DELETE CASCADE: with
/// foreign keys on, the DROP deletes them, at the origin and so everywhere.
#[test]
fn a_table_rebuilt_under_cascading_children_is_the_same_everywhere() {
    let mut cluster = linked(
        2,
        "CREATE TABLE p(id INTEGER PRIMARY KEY, v);
         CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE)",
        &[],
    );
    cluster
        .write(0, "INSERT INTO p VALUES(1, 'a'), (2, 'b'); INSERT INTO c VALUES(10, 1), (20, 2)");
    cluster.settle();
    cluster.write(
        0,
        "CREATE TABLE new_p(id INTEGER PRIMARY KEY, v TEXT NOT NULL, w DEFAULT 7);
         INSERT INTO new_p(id, v) SELECT id, v FROM p; DROP TABLE p; ALTER TABLE new_p RENAME TO p;
         INSERT INTO c VALUES(30, 1)",
    );
    cluster.assert_rows("SELECT * FROM p", &["1|a|7", "2|b|7"]);
    cluster.assert_rows("SELECT * FROM c", &["30|1"]);
    assert!(cluster.refused(0, "INSERT INTO c VALUES(40, 9)").contains("FOREIGN KEY"));
}

/// A TEMP trigger of the apply connection is orphaned when its table is renamed, and fails when its
/// target is: both silently break every later write.
#[test]
fn a_table_renamed_under_a_mirrored_trigger_keeps_its_index() {
    let mut cluster = linked(2, NOTES, &[("note", explicit())]);
    cluster.write(1, "INSERT INTO note VALUES(1, 'apple', '', 0)");
    cluster.settle();
    cluster.write(0, "CREATE TABLE other(id INTEGER PRIMARY KEY)");
    // What takes the orphan's name makes a schema malformed.
    cluster.write(
        0,
        "ALTER TABLE other RENAME TO aside; CREATE TABLE other(id INTEGER PRIMARY KEY, v)",
    );
    cluster.settle();
    cluster.write(1, "INSERT INTO note VALUES(2, 'pear', '', 0)");
    cluster.assert_found("pear", &["2"]);
    cluster.write(
        0,
        "DROP TRIGGER note_in; DROP TRIGGER note_out; DROP TRIGGER note_again; DROP TABLE found;
         ALTER TABLE note RENAME TO memo; CREATE TABLE note(id INTEGER PRIMARY KEY, title TEXT);
         CREATE VIRTUAL TABLE found USING fts5(title, content = 'memo', content_rowid = 'id');
         INSERT INTO found(found) VALUES('rebuild');
         CREATE TRIGGER note_in AFTER INSERT ON memo BEGIN
           INSERT INTO found(rowid, title) VALUES(new.id, new.title); END",
    );
    cluster.settle();
    cluster.write(1, "INSERT INTO memo VALUES(3, 'plum', '', 0)");
    cluster.write(0, "INSERT INTO note VALUES(1, 'not indexed')");
    cluster.settle();
    for node in [0, 1] {
        assert_eq!(cluster.rows(node, "SELECT rowid FROM found('plum OR indexed')"), ["3"]);
        assert!(cluster.replica(node).status().stale.is_empty());
    }
    cluster.assert_equal();
}

/// `sqlite_sequence` follows a rename and a DROP by itself; the rows of a rebuilt table must not hand
/// out their keys again.
#[test]
fn autoincrement_goes_on_through_renames_and_rebuilds() {
    let mut cluster = linked(2, "CREATE TABLE n(id INTEGER PRIMARY KEY AUTOINCREMENT, v)", &[]);
    cluster.write(0, "INSERT INTO n(v) VALUES('a'), ('b'); DELETE FROM n WHERE id = 2");
    cluster.write(0, "ALTER TABLE n RENAME TO m; INSERT INTO m(v) VALUES('c')");
    cluster.assert_rows("SELECT * FROM m", &["1|a", "3|c"]);
    cluster.write(
        0,
        "CREATE TABLE new_m(id INTEGER PRIMARY KEY AUTOINCREMENT, v, w DEFAULT 1);
         INSERT INTO new_m(id, v) SELECT id, v FROM m; INSERT INTO new_m(id) VALUES(50);
         DELETE FROM new_m WHERE id = 50; DROP TABLE m; ALTER TABLE new_m RENAME TO m",
    );
    cluster.assert_rows("SELECT * FROM m", &["1|a|1", "3|c|1"]);
    cluster.assert_rows("SELECT name, seq FROM sqlite_sequence", &["m|50"]);
    cluster.write(0, "INSERT INTO m(v) VALUES('d'); DROP TABLE m");
    cluster.assert_rows("SELECT count(*) FROM sqlite_sequence", &["0"]);
}

/// A table that comes at run time is told apart by rowid as one of the first schema is, and VACUUM must
/// know of it from then on.
#[test]
fn a_table_without_a_key_that_comes_later_has_equal_rowids() {
    let mut cluster = linked(2, "CREATE TABLE t(id INTEGER PRIMARY KEY)", &[]);
    cluster.write(
        0,
        "CREATE TABLE note(v); INSERT INTO note VALUES('a'), ('b'); DELETE FROM note WHERE rowid = 1;
         CREATE TABLE word(k TEXT COLLATE NOCASE PRIMARY KEY NOT NULL); INSERT INTO word VALUES('Bob')",
    );
    cluster.write(0, "UPDATE word SET k = 'BOB'; INSERT INTO note VALUES('c')");
    cluster.assert_rows("SELECT rowid, v FROM note", &["2|b", "3|c"]);
    cluster.assert_rows("SELECT k FROM word", &["BOB"]);
    assert!(cluster.refused(0, "VACUUM").contains("\"note\""));
}

/// A table whose rows stay on their node may be kept by triggers, on every node for itself.
#[test]
fn a_derived_trigger_keeps_a_local_table_on_every_node() {
    let mut cluster = linked(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)", &[("t", explicit())]);
    cluster.write(
        0,
        "CREATE TABLE counts(id INTEGER PRIMARY KEY, n INTEGER);
         SELECT littoral_policy('counts', 'local');
         CREATE TRIGGER counted AFTER INSERT ON t BEGIN INSERT INTO counts VALUES(new.id, 1); END;
         CREATE TRIGGER uncounted AFTER DELETE ON t BEGIN DELETE FROM counts WHERE id = old.id; END",
    );
    cluster.settle();
    cluster.write(1, "INSERT INTO t VALUES(1, 'a'), (2, 'b'), (3, 'c'); UPDATE counts SET n = 5");
    cluster.write(0, "DELETE FROM t WHERE id = 2");
    cluster.settle();
    assert_eq!(cluster.rows(0, "SELECT * FROM counts"), ["1|1", "3|1"]);
    assert_eq!(cluster.rows(1, "SELECT * FROM counts"), ["1|5", "3|5"]);
    // One that is in its way costs the local table, and never the row.
    cluster.write(1, "INSERT INTO counts VALUES(9, 0)");
    cluster.write(0, "INSERT INTO t VALUES(9, 'z')");
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, "SELECT v FROM t WHERE id = 9"), ["z"]);
    assert_eq!(cluster.replica(1).status().stale, ["counts"]);
}
