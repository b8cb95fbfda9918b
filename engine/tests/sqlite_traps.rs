//! What SQLite does that a replication layer may get wrong: each a test on real files, with the reason
//! why it is a trap.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::WriteTx;
use rusqlite::params;

use self::support::{NOTES, any, explicit, linked};

// --- Rows without a key of their own

/// SQLite tells the rows of such a table apart by rowid only, and hands out rowids as it likes: another
/// node that inserted the same values would give them others.
#[test]
fn a_table_without_a_primary_key_has_equal_rowids_everywhere() {
    let mut cluster = linked(2, "CREATE TABLE note(text, at)", &[]);
    cluster.write(0, "INSERT INTO note VALUES('a', 1), ('a', 1), ('b', 2)");
    cluster.write(0, "DELETE FROM note WHERE rowid = 1");
    cluster
        .write(0, "INSERT INTO note(rowid, text) VALUES(40, 'c'); INSERT INTO note VALUES('d', 4)");
    cluster.write(
        0,
        "UPDATE note SET rowid = 7 WHERE text = 'b'; UPDATE note SET at = 0 WHERE at IS NULL",
    );
    cluster.assert_rows(
        "SELECT rowid, text, at FROM note ORDER BY rowid",
        &["2|a|1", "7|b|2", "40|c|0", "41|d|4"],
    );
}

/// A PRIMARY KEY that is not INTEGER and not declared NOT NULL may hold NULL, any number of times.
#[test]
fn a_key_that_may_be_null_does_not_tell_rows_apart() {
    let mut cluster = linked(2, "CREATE TABLE tag(name TEXT PRIMARY KEY, n, u UNIQUE)", &[]);
    cluster.write(0, "INSERT INTO tag VALUES(NULL, 1, 1), (NULL, 2, 2), ('x', 3, 3), ('y', 4, 4)");
    // Values of unique columns that change places: no order of single updates is free of collisions.
    cluster.write(
        0,
        "UPDATE tag SET name = NULL WHERE name = 'x'; UPDATE tag SET name = 'x' WHERE n = 4",
    );
    cluster.write(
        0,
        "UPDATE tag SET u = -u; UPDATE tag SET u = CASE u WHEN -1 THEN 2 WHEN -2 THEN 1 ELSE -u END",
    );
    cluster.write(0, "DELETE FROM tag WHERE n = 3; INSERT OR REPLACE INTO tag VALUES('x', 5, 5)");
    cluster.assert_rows(
        "SELECT rowid, name, n, u FROM tag ORDER BY n",
        &["1|null|1|2", "2|null|2|1", "5|x|5|5"],
    );
}

/// A column may hide the rowid under one of its names, so another one must be used.
#[test]
fn a_column_named_rowid_does_not_hide_the_rowid() {
    let mut cluster = linked(2, "CREATE TABLE t(rowid TEXT, \"_rowid_\" TEXT, v)", &[]);
    cluster.write(0, "INSERT INTO t VALUES('x', 'y', 1), ('x', 'y', 1)");
    cluster.write(0, "UPDATE t SET v = 2, rowid = 'z' WHERE oid = 2");
    cluster.assert_rows("SELECT oid, * FROM t ORDER BY oid", &["1|x|y|1", "2|z|y|2"]);
}

/// VACUUM renumbers rows without an INTEGER PRIMARY KEY, and no hook tells it.
#[test]
fn vacuum_is_refused_and_says_why() {
    let mut cluster =
        linked(2, "CREATE TABLE note(text); CREATE TABLE t(id INTEGER PRIMARY KEY)", &[]);
    cluster
        .write(0, "INSERT INTO note VALUES('a'), ('b'), ('c'); DELETE FROM note WHERE text = 'a'");
    let error = cluster.refused(0, "-- tidy up\nVACUUM");
    assert!(error.contains("renumber the rows of \"note\""), "{error}");
    cluster.assert_rows("SELECT rowid, text FROM note", &["2|b", "3|c"]);
    let mut cluster = linked(1, "CREATE TABLE t(id INTEGER PRIMARY KEY)", &[]);
    assert_eq!(cluster.refused(0, "VACUUM"), "VACUUM is not available in a write job");
}

/// AUTOINCREMENT remembers the greatest key it gave in `sqlite_sequence`, which no hook tells: after the
/// row was deleted the log holds no trace of it.
#[test]
fn autoincrement_never_hands_out_a_key_again_after_a_hand_over() {
    let mut cluster = linked(
        2,
        "CREATE TABLE ticket(id INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT);
         CREATE TABLE other(id INTEGER PRIMARY KEY AUTOINCREMENT)",
        &[],
    );
    cluster.write(0, "INSERT INTO ticket(what) VALUES('a'), ('b'), ('c')");
    cluster.write(0, "DELETE FROM ticket WHERE id = 3");
    // Nothing is left of it but the key it used.
    cluster.write(0, "INSERT INTO ticket VALUES(90, 'gone'); DELETE FROM ticket WHERE id = 90");
    cluster.write(0, "SAVEPOINT s; INSERT INTO ticket VALUES(1000, 'taken back'); ROLLBACK TO s");
    cluster.refused(0, "INSERT INTO ticket VALUES(2000, 'x'), (1, 'collides')");
    cluster.write(0, "INSERT INTO other VALUES(-5)");
    cluster.assert_rows("SELECT id FROM ticket", &["1", "2"]);
    let sequence = "SELECT name, seq FROM sqlite_sequence ORDER BY name";
    for node in [0, 1] {
        assert_eq!(cluster.rows(node, sequence), ["other|0", "ticket|90"]);
    }
    let path = cluster.path(1);
    cluster.replicas[1].take().unwrap().close(cluster.now).1.unwrap();
    let heir = rusqlite::Connection::open(path).unwrap();
    heir.execute("INSERT INTO ticket(what) VALUES('new')", []).unwrap();
    assert_eq!(heir.last_insert_rowid(), 91);
}

// --- Keys that are equal and not the same

/// 'Bob' and 'bob' are one key under NOCASE, so respelling is no delete and insert; yet the bytes are
/// what SELECT shows. Concurrent changes of the row must still meet.
#[test]
fn a_nocase_key_is_respelled_and_stays_the_same_row() {
    let mut cluster = linked(
        3,
        "CREATE TABLE user(name TEXT COLLATE NOCASE PRIMARY KEY NOT NULL, mail TEXT)",
        &[("user", any())],
    );
    cluster.write(1, "INSERT INTO user VALUES('Bob', 'b@x'), ('ada', 'a@x')");
    cluster.settle();
    cluster.cut();
    cluster.write(1, "UPDATE user SET name = 'bob' WHERE name = 'Bob'");
    cluster.write(2, "UPDATE user SET mail = 'new' WHERE name = 'BOB'");
    cluster.link(1, 0);
    cluster.link(2, 0);
    cluster.assert_rows("SELECT * FROM user ORDER BY name", &["ada|a@x", "bob|new"]);
    assert_eq!(cluster.rows(0, "SELECT count(*) FROM littoral_conflicts"), ["0"]);
    // Inserted under two spellings at once: one row, and one of the spellings.
    cluster.cut();
    cluster.write(1, "INSERT INTO user VALUES('Cyd', '1')");
    cluster.now.wall.0 += 50;
    cluster.write(2, "INSERT INTO user VALUES('CYD', '2')");
    cluster.link(1, 0);
    cluster.link(2, 0);
    cluster.assert_rows("SELECT * FROM user WHERE name = 'cyd'", &["CYD|2"]);
    let listed = "SELECT count(*) FROM littoral_conflicts WHERE \"column\" = 'key spelling'";
    assert_eq!(cluster.rows(0, listed), ["1"]);
    cluster.write(0, "DELETE FROM user WHERE name = 'cYd'");
    cluster.write(0, "REPLACE INTO user VALUES('ADA', 'a@y')");
    cluster.assert_rows("SELECT * FROM user ORDER BY name", &["ADA|a@y", "bob|new"]);
}

/// NOCASE compares text up to its first zero byte, and behind it the lengths only.
#[test]
fn nocase_does_not_look_behind_a_zero_byte() {
    let mut cluster =
        linked(2, "CREATE TABLE t(k TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, v)", &[("t", any())]);
    cluster.write(1, "INSERT INTO t VALUES('a' || char(0) || 'x', 1)");
    cluster.write(1, "UPDATE t SET k = 'A' || char(0) || 'Z' WHERE v = 1");
    cluster.write(1, "INSERT INTO t VALUES('a' || char(0), 2)");
    cluster.assert_rows("SELECT hex(k), v FROM t ORDER BY v", &["41005A|1", "6100|2"]);
    let error = cluster.refused(0, "INSERT INTO t VALUES('a' || char(0) || 'q', 3)");
    assert!(error.contains("UNIQUE"), "{error}");
}

/// RTRIM ignores spaces at the end; a key's collation may be another one than its column's.
#[test]
fn the_collation_of_the_key_decides() {
    let mut cluster = linked(
        2,
        "CREATE TABLE r(k TEXT NOT NULL COLLATE RTRIM, v, PRIMARY KEY(k)) WITHOUT ROWID;
         CREATE TABLE b(k TEXT NOT NULL COLLATE NOCASE, v, PRIMARY KEY(k COLLATE BINARY));
         CREATE TABLE n(a INT NOT NULL, k TEXT NOT NULL, v, PRIMARY KEY(a, k COLLATE NOCASE))",
        &[],
    );
    cluster.write(0, "INSERT INTO r VALUES('x  ', 1); UPDATE r SET k = 'x', v = 2 WHERE k = 'x '");
    cluster.write(
        0,
        "INSERT INTO b VALUES('x', 1), ('X', 2); DELETE FROM b WHERE k = 'x' COLLATE BINARY",
    );
    cluster.write(
        0,
        "INSERT INTO n VALUES(1, 'x', 1), (2, 'X', 2); UPDATE n SET k = upper(k), a = a + 0",
    );
    cluster.assert_rows("SELECT '[' || k || ']', v FROM r", &["[x]|2"]);
    cluster.assert_rows("SELECT * FROM b", &["X|2"]);
    cluster.assert_rows("SELECT * FROM n ORDER BY a", &["1|X|1", "2|X|2"]);
}

/// 1 and 1.0 are one key, in a column that keeps what it is given; and -0.0 is 0.0, which a REAL column
/// stores in its place.
#[test]
fn one_and_one_point_zero_are_one_key_and_stay_what_they_are() {
    let mut cluster = linked(
        2,
        "CREATE TABLE t(k NOT NULL PRIMARY KEY, v); CREATE TABLE z(k REAL NOT NULL PRIMARY KEY, v)",
        &[("t", any()), ("z", any())],
    );
    cluster.write(1, "INSERT INTO t VALUES(1.0, 'a'), (2, 'b')");
    let job = |tx: &mut WriteTx<'_>| {
        tx.execute("INSERT INTO z VALUES(?, 'zero'), (3, 'three')", [-0.0]).map(drop)
    };
    cluster.try_write(1, job).unwrap();
    cluster.assert_rows("SELECT typeof(k), v FROM t ORDER BY k", &["real|a", "integer|b"]);
    cluster.assert_rows("SELECT k, v FROM z ORDER BY k", &["0.0|zero", "3.0|three"]);
    cluster.write(0, "UPDATE t SET k = 1 WHERE k = 1.0; UPDATE t SET k = 2.0, v = 'c' WHERE k = 2");
    cluster.assert_rows("SELECT typeof(k), v FROM t ORDER BY k", &["integer|a", "real|c"]);
    assert!(cluster.refused(0, "INSERT INTO t VALUES(1.0, 'x')").contains("UNIQUE"));
    assert!(cluster.rows(0, "SELECT * FROM littoral_conflicts").is_empty());
}

/// A large REAL equals at most one INTEGER, and beyond 2^53 rounding must not make it two.
#[test]
fn numbers_beyond_what_a_double_holds_stay_apart() {
    let mut cluster = linked(2, "CREATE TABLE t(k NOT NULL PRIMARY KEY)", &[("t", any())]);
    cluster.write(
        0,
        "INSERT INTO t VALUES(9007199254740993), (9007199254740992.0), (9007199254740994)",
    );
    cluster
        .write(1, "INSERT INTO t VALUES(9223372036854775807), (9223372036854775807.0), (-1e400)");
    cluster.assert_rows("SELECT count(*), count(DISTINCT k) FROM t", &["6|6"]);
    assert!(cluster.refused(0, "INSERT INTO t VALUES(9007199254740992)").contains("UNIQUE"));
}

// --- Statements that fail, and groups of jobs

/// OR ROLLBACK ends the transaction, which is that of all jobs in the group.
#[test]
fn or_rollback_in_the_second_of_three_grouped_jobs_hits_only_itself() {
    let mut cluster = linked(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE)", &[]);
    cluster.write(0, "INSERT INTO t VALUES(1, 'a')");
    let done = cluster.group(
        0,
        [
            "INSERT INTO t VALUES(2, 'b')",
            "INSERT INTO t VALUES(3, 'c'); INSERT OR ROLLBACK INTO t VALUES(4, 'a')",
            "INSERT INTO t VALUES(5, 'e')",
        ],
    );
    assert_eq!(done, [true, false, true]);
    cluster.assert_rows("SELECT id FROM t ORDER BY id", &["1", "2", "5"]);
}

/// RAISE(ROLLBACK) does the same from within a trigger.
#[test]
fn raise_rollback_in_a_trigger_hits_only_its_own_job() {
    let mut cluster = linked(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v);
         CREATE TRIGGER strict AFTER INSERT ON t WHEN new.v < 0
         BEGIN SELECT RAISE(ROLLBACK, 'below zero'); END",
        &[],
    );
    let done = cluster.group(
        0,
        [
            "INSERT INTO t VALUES(1, 1)",
            "INSERT INTO t VALUES(2, 2); INSERT INTO t VALUES(3, -3)",
            "INSERT INTO t VALUES(4, 4)",
            "UPDATE t SET v = v + 10",
        ],
    );
    assert_eq!(done, [true, false, true, true]);
    cluster.assert_rows("SELECT * FROM t ORDER BY id", &["1|11", "4|14"]);
}

/// A deferred foreign key is checked at COMMIT, which serves all jobs of the group.
#[test]
fn a_deferred_violation_fails_its_own_job_alone() {
    let mut cluster = linked(
        2,
        "CREATE TABLE p(id INTEGER PRIMARY KEY);
         CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
        &[],
    );
    let done = cluster.group(
        0,
        [
            "INSERT INTO c VALUES(1, 1); INSERT INTO p VALUES(1)",
            "INSERT INTO c VALUES(2, 2)",
            "INSERT INTO p VALUES(2)",
            "DELETE FROM p WHERE id = 1",
            "DELETE FROM p WHERE id = 1; DELETE FROM c WHERE p = 1",
        ],
    );
    assert_eq!(done, [true, false, true, false, true]);
    cluster.assert_rows("SELECT * FROM p", &["2"]);
    cluster.assert_rows("SELECT * FROM c", &[]);
}

/// OR FAIL stops in the middle and keeps what it did before: no rollback compensates.
#[test]
fn or_fail_half_way_keeps_the_first_half_everywhere() {
    let mut cluster =
        linked(2, "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v CHECK (v > 0))", &[]);
    let swallowed = |tx: &mut WriteTx<'_>| {
        let failed = tx.execute("INSERT OR FAIL INTO t(v) VALUES(1), (2), (-3), (4)", []);
        assert!(failed.is_err());
        tx.execute("UPDATE OR FAIL t SET v = v - 1", []).unwrap_err();
        Ok(())
    };
    cluster.try_write(0, swallowed).unwrap();
    cluster.assert_rows("SELECT * FROM t", &["1|1", "2|2"]);
    let sequence = "SELECT seq FROM sqlite_sequence";
    assert_eq!(cluster.rows(0, sequence).concat().parse().unwrap_or(0), 0, "SQLite forgets it");
    assert_eq!(cluster.rows(1, sequence), ["0"]);
}

/// `total_changes` counts the effects of triggers before the statement's fate is known.
#[test]
fn trigger_effects_of_a_failed_statement_are_not_captured() {
    let mut cluster = linked(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v CHECK (v < 3));
         CREATE TABLE log(n INTEGER PRIMARY KEY, v);
         CREATE TRIGGER note BEFORE UPDATE ON t BEGIN INSERT INTO log(v) VALUES(new.v); END",
        &[],
    );
    cluster.write(0, "INSERT INTO t VALUES(1, 1), (2, 2)");
    let job = |tx: &mut WriteTx<'_>| {
        assert!(tx.execute("UPDATE t SET v = v + 1", []).is_err());
        tx.execute("UPDATE t SET v = 0 WHERE id = 1", []).map(drop)
    };
    cluster.try_write(0, job).unwrap();
    cluster.assert_rows("SELECT * FROM log", &["1|0"]);
    cluster.assert_rows("SELECT * FROM t", &["1|0", "2|2"]);
}

/// REPLACE deletes rows that are in its way by any UNIQUE constraint, and fires no delete trigger.
#[test]
fn rows_that_replace_deletes_unseen_go_everywhere() {
    let mut cluster = linked(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b UNIQUE);
         CREATE TABLE c(id INTEGER PRIMARY KEY, t REFERENCES t ON DELETE CASCADE)",
        &[],
    );
    cluster.write(
        0,
        "INSERT INTO t VALUES(1, 1, 1), (2, 2, 2), (3, 3, 3); INSERT INTO c VALUES(1, 1), (3, 3)",
    );
    cluster.write(0, "REPLACE INTO t VALUES(4, 1, 2)");
    cluster.assert_rows("SELECT * FROM t ORDER BY id", &["3|3|3", "4|1|2"]);
    cluster.write(0, "UPDATE OR REPLACE t SET a = 3 WHERE id = 4");
    cluster.assert_rows("SELECT * FROM t", &["4|3|2"]);
    cluster.assert_rows("SELECT * FROM c", &[]);
}

/// A `DELETE FROM t` that was prepared without a hook is truncated, and no row is told.
#[test]
fn a_delete_without_where_is_captured_row_by_row() {
    let mut cluster = linked(2, "CREATE TABLE t(id INTEGER PRIMARY KEY); CREATE TABLE u(v)", &[]);
    cluster.write(0, "INSERT INTO t VALUES(1), (2); INSERT INTO u VALUES(1), (2)");
    cluster.write(0, "DELETE FROM t; DELETE FROM u");
    cluster.assert_rows("SELECT id FROM t UNION ALL SELECT v FROM u", &[]);
}

/// A TEMP table would shadow the main one for every later job on the connection.
#[test]
fn temporary_objects_cannot_shadow_a_table_in_the_next_job() {
    let mut cluster = linked(2, "CREATE TABLE t(id INTEGER PRIMARY KEY)", &[("t", explicit())]);
    for sql in [
        "CREATE TEMP TABLE t(id)",
        "CREATE TABLE temp.t(id)",
        "CREATE TEMP VIEW t AS SELECT 1",
        "CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN DELETE FROM t; END",
    ] {
        assert!(cluster.refused(1, sql).contains("not available"), "{sql}");
    }
    let done = cluster.group(
        1,
        ["INSERT INTO t VALUES(1)", "CREATE TEMP TABLE t(id)", "INSERT INTO t VALUES(2)"],
    );
    assert_eq!(done, [true, false, true]);
    cluster.assert_rows("SELECT id FROM t ORDER BY id", &["1", "2"]);
}

/// An index on an expression over two columns can make a merge fail: each write is valid by itself.
#[test]
fn an_expression_index_over_two_columns_is_refused_where_columns_merge() {
    let schema = "CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, a, b);
                  CREATE INDEX sums ON t(json_extract(a, b))";
    let genesis = littoral::Genesis {
        schema: schema.to_owned(),
        policies: [("t".to_owned(), any())].into(),
        ..littoral::Genesis::default()
    };
    let error = genesis.check().unwrap_err().to_string();
    assert!(error.contains("\"sums\"") && error.contains("expression"), "{error}");
    let by_origin = littoral::Genesis { policies: [].into(), ..genesis };
    by_origin.check().unwrap();
}

// --- Values

/// Columns are numbered with the generated ones, and a VIRTUAL one has no value in the hook.
#[test]
fn generated_columns_are_computed_by_every_node() {
    let mut cluster = linked(
        2,
        "CREATE TABLE t(v AS (a * 2) VIRTUAL, a, s AS (a || b) STORED, id INTEGER PRIMARY KEY, b);
         CREATE TABLE n(w AS (a + 1), a)",
        &[],
    );
    cluster.write(0, "INSERT INTO t(id, a, b) VALUES(1, 10, 'x'); INSERT INTO n VALUES(1)");
    cluster.write(0, "UPDATE t SET b = 'y' WHERE v = 20; UPDATE n SET a = 5");
    cluster.assert_rows("SELECT v, a, s, id, b FROM t", &["20|10|10y|1|y"]);
    cluster.assert_rows("SELECT rowid, w, a FROM n", &["1|6|5"]);
}

/// The hook may tell an integer where a REAL column will hold a real.
#[test]
fn an_integer_stored_into_a_real_column_is_a_real_everywhere() {
    let mut cluster =
        linked(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, r REAL)", &[("t", explicit())]);
    cluster.write(1, "INSERT INTO t VALUES(1, 3), (2, 9007199254740993)");
    cluster.write(1, "UPDATE t SET r = 4 WHERE id = 1");
    cluster.assert_rows("SELECT typeof(r), r FROM t", &["real|4.0", "real|9007199254740992.0"]);
}

/// `sqlite3_blob_write` arrives in the hook as a DELETE of the whole old row, and the new value is not
/// told.
#[test]
fn an_incremental_blob_write_is_captured_as_an_update() {
    let schema =
        format!("CREATE TABLE file(id INTEGER PRIMARY KEY, body BLOB, name TEXT); {NOTES}");
    let mut cluster = linked(2, &schema, &[("file", explicit())]);
    cluster.write(1, "INSERT INTO file VALUES(1, zeroblob(6), 'abc'), (2, zeroblob(6), 'def')");
    cluster.settle();
    let job = |tx: &mut WriteTx<'_>| {
        tx.write_blob("file", "body", 1, 2, b"xy")?;
        tx.execute("SAVEPOINT s", [])?;
        tx.write_blob("file", "body", 2, 0, b"lost")?;
        tx.execute("ROLLBACK TO s", [])?;
        tx.write_blob("FILE", "name", 2, 1, b"E")?;
        assert!(tx.write_blob("file", "body", 1, 5, b"zz").is_err(), "beyond the end");
        assert!(tx.write_blob("file", "body", 3, 0, b"z").is_err(), "no such row");
        let found = tx.write_blob("note", "body", 1, 0, b"z").unwrap_err().to_string();
        assert!(found.contains("only") || found.contains("\"found\""), "{found}");
        Ok(())
    };
    cluster.try_write(1, job).unwrap();
    cluster.settle();
    cluster.cut();
    cluster.write(0, "UPDATE file SET name = 'other' WHERE id = 1");
    let job = |tx: &mut WriteTx<'_>| tx.write_blob("file", "body", 1, 0, b"w");
    cluster.try_write(1, job).unwrap();
    cluster.link(0, 1);
    cluster.assert_rows(
        "SELECT hex(body), name FROM file",
        &["770078790000|other", "000000000000|dEf"],
    );
}

/// A statement prepared once and run with other values must not keep the first ones' classes.
#[test]
fn bound_values_keep_their_classes() {
    let mut cluster = linked(2, "CREATE TABLE t(k NOT NULL PRIMARY KEY, v)", &[]);
    let job = |tx: &mut WriteTx<'_>| {
        let sql = "INSERT INTO t VALUES(?, ?)";
        tx.execute(sql, params![1.0, "text"])?;
        tx.execute(sql, params!["1", 1])?;
        tx.execute(sql, params![b"1".to_vec(), f64::INFINITY])?;
        Ok(())
    };
    cluster.try_write(0, job).unwrap();
    cluster.assert_rows(
        "SELECT typeof(k), typeof(v) FROM t ORDER BY typeof(k)",
        &["blob|real", "real|text", "text|integer"],
    );
}

// --- Keys that SQLite would hand out

/// SQLite hands out max + 1 where a statement gives no key, on every node the same.
#[test]
fn a_statement_that_leaves_an_explicit_key_to_sqlite_is_refused() {
    let schema = "
        CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE log(id INTEGER PRIMARY KEY, v);
        CREATE TABLE by_origin(id INTEGER PRIMARY KEY, v);
        CREATE TRIGGER logged AFTER UPDATE ON by_origin BEGIN INSERT INTO log(v) VALUES(new.v); END;"
;
    let mut cluster = linked(2, schema, &[("t", explicit()), ("log", explicit())]);
    for sql in [
        "INSERT INTO t(v) VALUES(1)",
        "INSERT INTO t VALUES(NULL, 1)",
        "INSERT INTO t DEFAULT VALUES",
        "REPLACE INTO t(v) VALUES(1), (2)",
        "WITH x(v) AS (VALUES(1)) INSERT INTO t(v) SELECT v FROM x",
        "INSERT OR IGNORE INTO t(v) VALUES(1) RETURNING id",
        "UPDATE by_origin SET v = 1",
    ] {
        for _ in 0..2 {
            let error = cluster.refused(0, sql);
            assert!(error.contains("leaves it to SQLite"), "{sql}: {error}");
            let prepared = cluster.try_write(0, move |tx| tx.execute(sql, []).map(drop));
            assert!(prepared.unwrap_err().to_string().contains("leaves it to SQLite"), "{sql}");
        }
    }
    let job = |tx: &mut WriteTx<'_>| {
        tx.execute("INSERT INTO t VALUES(?, ?)", params![7, "a"])?;
        tx.execute("INSERT INTO t(rowid, v) VALUES(?, ?)", params![8, "b"])?;
        tx.execute("INSERT INTO t SELECT id + 2, v FROM t ORDER BY id", [])?;
        tx.execute("INSERT INTO by_origin(v) VALUES(1)", [])?;
        tx.execute_batch("EXPLAIN INSERT INTO t(v) VALUES(1)")
    };
    cluster.try_write(0, job).unwrap();
    cluster.assert_rows("SELECT * FROM t", &["7|a", "8|b", "9|a", "10|b"]);
}

/// A full-text index keeps itself in tables that look like any other; a write to one of them would break
/// the index, and no hook tells of it.
#[test]
fn the_tables_behind_a_full_text_index_cannot_be_written() {
    let mut cluster = linked(1, NOTES, &[("note", explicit())]);
    cluster.write(0, "INSERT INTO note VALUES(1, 'apple', 'red', 0)");
    let refused = cluster.refused(0, "DELETE FROM found_data");
    assert!(refused.contains("found_data may not be modified"), "{refused}");
    cluster.assert_found("apple", &["1"]);
}
