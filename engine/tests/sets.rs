//! Columns of type `set`, through real files: how they are spelled, and what becomes of them.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use std::collections::BTreeSet;

use littoral::{TablePolicy, WallTime, WriteError, Writers};
use proptest::prelude::*;
use support::Cluster;

const SCHEMA: &str = "
    CREATE TABLE bag(
      id TEXT PRIMARY KEY NOT NULL, tags TEXT, marks NOT NULL DEFAULT '[]', note TEXT,
      CHECK (note IS NOT 'strict' OR tags IS NOT '[\"a\",\"b\"]'));
    CREATE TABLE news(id INTEGER PRIMARY KEY, tags TEXT, n INTEGER NOT NULL DEFAULT 0);
";

fn policy(columns: &[(&str, &str)]) -> TablePolicy {
    let mut policy = TablePolicy { writers: Writers::Any, ..TablePolicy::default() };
    for (column, word) in columns {
        policy.declare_column(column, word).unwrap();
    }
    policy
}

/// Replicas in a line, the rows of `bag` stored everywhere.
fn cluster(nodes: usize, rows: &'static str) -> Cluster {
    let bag = policy(&[("tags", "set"), ("marks", "set")]);
    let mut cluster = support::linked(nodes, SCHEMA, &[("bag", bag)]);
    if !rows.is_empty() {
        cluster.write(0, rows);
        cluster.settle();
    }
    cluster
}

fn later(cluster: &mut Cluster) {
    cluster.now.wall = WallTime(cluster.now.wall.0 + 50);
}

/// Links the first two again, and lets them become equal.
fn join(cluster: &mut Cluster) {
    cluster.link(0, 1);
    cluster.settle();
    cluster.assert_equal();
}

fn refused(cluster: &mut Cluster, statement: &str) -> String {
    let statement = statement.to_owned();
    cluster.try_write(0, move |tx| tx.execute_batch(&statement)).unwrap_err().to_string()
}

#[test]
fn the_author_spells_a_set_as_everybody_stores_it() {
    let mut cluster =
        cluster(2, r#"INSERT INTO bag VALUES('a', '["b", "a", "b", 1.0]', '[ ]', 'x')"#);
    cluster.write(0, "INSERT INTO bag(id) VALUES('b')");
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(
        cluster.rows(1, "SELECT tags, marks FROM bag ORDER BY id"),
        [r#"[1,"a","b"]|[]"#, "[]|[]"],
        "NULL is the empty set"
    );
    let same = cluster.try_write(0, |tx| {
        tx.execute(r#"UPDATE bag SET tags = '["b",1e0,"a"]' WHERE id = 'a'"#, [])?;
        let seen: String = tx.query_row("SELECT tags FROM bag WHERE id = 'a'", [], |r| r.get(0))?;
        assert_eq!(seen, r#"["b",1e0,"a"]"#, "within the job it stands as written");
        Ok(())
    });
    assert_eq!(same.unwrap().dot, None, "nothing is left of it");
    cluster.write(0, "UPDATE bag SET tags = NULL WHERE id = 'a'");
    assert_eq!(cluster.rows(0, "SELECT tags FROM bag"), ["[]", "[]"]);
}

#[test]
fn what_is_no_set_refuses_the_job_and_says_why() {
    let mut cluster = cluster(1, r#"INSERT INTO bag(id, tags) VALUES('a', '["a"]')"#);
    let error = refused(&mut cluster, "UPDATE bag SET tags = 'a, b'");
    assert_eq!(
        error,
        "table \"bag\", column \"tags\": a set is a JSON array of numbers, strings, true and false; \
         at byte 0 of its text \"[\" was expected"
    );
    let error = refused(&mut cluster, "INSERT INTO bag(id, marks) VALUES('b', x'5b5d')");
    assert!(
        error.ends_with("column \"marks\": a set is a JSON array in a TEXT, not a BLOB"),
        "{error}"
    );
    let error = refused(&mut cluster, "UPDATE bag SET tags = '[[1]]'");
    assert!(error.contains("at byte 1 of its text an array or an object begins"), "{error}");
    assert_eq!(cluster.rows(0, "SELECT id, tags FROM bag"), [r#"a|["a"]"#]);
}

#[test]
fn concurrent_adds_and_removals_of_different_elements_all_count_and_nothing_is_a_conflict() {
    let mut cluster = cluster(2, r#"INSERT INTO bag(id, tags) VALUES('a', '["a","b","c"]')"#);
    cluster.cut();
    cluster.write(0, r#"UPDATE bag SET tags = '["b","c","d"]'"#);
    later(&mut cluster);
    cluster.write(1, r#"UPDATE bag SET tags = '["a","b","e"]', marks = '[true]'"#);
    join(&mut cluster);
    assert_eq!(cluster.rows(0, "SELECT tags, marks FROM bag"), [r#"["b","d","e"]|[true]"#]);
    assert_eq!(cluster.rows(0, "SELECT * FROM littoral_conflicts"), [""; 0]);
}

#[test]
fn an_add_wins_over_a_concurrent_removal_unless_the_element_was_there() {
    let mut cluster = cluster(2, r#"INSERT INTO bag(id, tags) VALUES('a', '["old"]')"#);
    cluster.cut();
    cluster.write(0, r#"UPDATE bag SET tags = '["new"]'"#);
    cluster.write(0, "UPDATE bag SET tags = '[]'");
    cluster.write(1, r#"UPDATE bag SET tags = '["new","old"]'"#);
    join(&mut cluster);
    assert_eq!(cluster.rows(0, "SELECT tags FROM bag"), [r#"["new"]"#]);
}

#[test]
fn two_rows_of_one_key_unite_and_a_delete_takes_the_set_along() {
    let mut cluster = cluster(2, "");
    cluster.cut();
    cluster.write(0, r#"INSERT INTO bag(id, tags) VALUES('a', '["x",1]'), ('b', '[1]')"#);
    cluster.write(1, r#"INSERT INTO bag(id, tags) VALUES('a', '["y",1]')"#);
    join(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT tags FROM bag ORDER BY id"), [r#"[1,"x","y"]"#, "[1]"]);
    let before = cluster.rows(0, "SELECT count(*) FROM littoral_conflicts");
    cluster.cut();
    cluster.write(0, "DELETE FROM bag WHERE id = 'b'");
    cluster.write(1, "UPDATE bag SET tags = '[1,2]' WHERE id = 'b'");
    join(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT id FROM bag"), ["a"]);
    assert_eq!(cluster.rows(0, "SELECT count(*) FROM littoral_conflicts"), before);
    cluster.write(1, "INSERT INTO bag(id, tags) VALUES('b', '[3]')");
    cluster.settle();
    assert_eq!(cluster.rows(0, "SELECT tags FROM bag WHERE id = 'b'"), ["[3]"]);
}

#[test]
fn a_merged_set_that_breaks_a_check_stands_and_is_listed() {
    let mut cluster = cluster(2, "INSERT INTO bag(id, tags, note) VALUES('a', '[]', 'strict')");
    cluster.cut();
    cluster.write(0, r#"UPDATE bag SET tags = '["a"]'"#);
    cluster.write(1, r#"UPDATE bag SET tags = '["b"]'"#);
    join(&mut cluster);
    assert_eq!(cluster.rows(0, "SELECT tags FROM bag"), [r#"["a","b"]"#]);
    assert_eq!(cluster.rows(0, "SELECT rule FROM littoral_conflicts"), ["check"]);
    let error =
        refused(&mut cluster, "UPDATE bag SET tags = '[\"b\", \"a\", \"b\"]', marks = '[1]'");
    assert!(error.contains("CHECK constraint failed"), "as it would be spelled: {error}");
}

#[test]
fn clocks_of_sets_survive_a_restart() {
    let mut cluster = cluster(2, r#"INSERT INTO bag(id, tags) VALUES('a', '["a"]')"#);
    cluster.cut();
    cluster.write(0, r#"UPDATE bag SET tags = '["a","b"]'"#);
    cluster.write(1, r#"UPDATE bag SET tags = '["b"]'"#);
    drop(cluster.replicas[1].take());
    cluster.open(1);
    cluster.write(1, "UPDATE bag SET tags = '[]'");
    drop(cluster.replicas[0].take());
    cluster.open(0);
    join(&mut cluster);
    assert_eq!(cluster.rows(0, "SELECT tags FROM bag"), [r#"["b"]"#]);
}

#[test]
fn a_column_that_may_not_keep_json_is_no_set() {
    let mut cluster =
        cluster(1, "CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, n INTEGER, a ANY, j)");
    let declare = |column: &str| {
        format!(
            "SELECT littoral_policy('t', 'read-after-write',
               '{{\"writers\": \"any\", \"columns\": {{\"{column}\": \"set\"}}}}')"
        )
    };
    let error = refused(&mut cluster, &declare("n"));
    assert!(error.contains("its column \"n\" is a set but not TEXT"), "{error}");
    let declaration = declare("j");
    cluster.try_write(0, move |tx| tx.execute_batch(&declaration)).unwrap();
}

#[test]
fn values_that_were_there_are_spelled_anew_or_refused_by_their_key() {
    let mut cluster = cluster(
        2,
        r#"INSERT INTO news(id, tags) VALUES(1, '["b", "a"]'), (2, NULL), (3, '[]'), (7, 'a, b')"#,
    );
    let declare = "SELECT littoral_policy('news', 'read-after-write',
        '{\"writers\": \"any\", \"key\": \"explicit\", \"columns\": {\"tags\": \"set\"}}')";
    let error = refused(&mut cluster, declare);
    assert!(
        error.contains("its column \"tags\" is declared set, and the row 7 holds none"),
        "{error}"
    );
    cluster.write(0, "UPDATE news SET tags = littoral_set('[\"c\",\"a\"]') WHERE id = 7");
    cluster.write(0, declare);
    cluster.settle();
    cluster.assert_equal();
    let tags = "SELECT tags FROM news ORDER BY id";
    assert_eq!(cluster.rows(1, tags), [r#"["a","b"]"#, "null", "[]", r#"["a","c"]"#]);
    cluster.cut();
    cluster.write(0, "UPDATE news SET tags = '[\"a\"]'");
    cluster.write(1, "UPDATE news SET tags = '[\"c\",\"a\"]' WHERE id <> 3");
    join(&mut cluster);
    assert_eq!(cluster.rows(0, tags), [r#"["a","c"]"#, r#"["a","c"]"#, r#"["a"]"#, r#"["a"]"#]);
}

#[test]
fn a_set_that_starts_empty_is_added_at_once() {
    let mut cluster = cluster(2, "INSERT INTO bag(id) VALUES('a')");
    cluster.write(
        0,
        "ALTER TABLE bag ADD COLUMN likes TEXT NOT NULL DEFAULT '[]';
         ALTER TABLE bag ADD COLUMN seen TEXT;
         SELECT littoral_policy('bag', 'read-after-write', '{\"writers\": \"any\", \"columns\":
           {\"tags\": \"set\", \"marks\": \"set\", \"likes\": \"set\", \"seen\": \"set\"}}')",
    );
    // The second node does not know of the columns yet, or does: either row is the same.
    cluster.write(1, "INSERT INTO bag(id) VALUES('b')");
    cluster.settle();
    cluster.write(1, "UPDATE bag SET likes = '[1]', seen = '[2]' WHERE id = 'a'");
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(0, "SELECT likes, seen FROM bag WHERE id = 'a'"), ["[1]|[2]"]);
    let error = refused(
        &mut cluster,
        "ALTER TABLE bag ADD COLUMN more TEXT DEFAULT '[1]';
         SELECT littoral_policy('bag', 'read-after-write', '{\"writers\": \"any\", \"columns\":
           {\"tags\": \"set\", \"marks\": \"set\", \"likes\": \"set\", \"seen\": \"set\", \"more\": \"set\"}}')",
    );
    assert!(error.contains("does not begin with the same value"), "{error}");
}

/// Runs a script that changes the schema; gives what it is answered at once.
fn migrate(cluster: &mut Cluster, script: &str) -> Result<(), WriteError> {
    let now = cluster.now;
    let ticket = cluster.replica(0).migrate(now, script);
    cluster.drain(0);
    cluster.done.remove(&(0, ticket)).unwrap().map(drop)
}

/// Freezes, waits, and gives why the change did not happen; nothing if it did.
fn migrate_slowly(cluster: &mut Cluster, script: &str) -> String {
    let frozen = migrate(cluster, script);
    assert!(matches!(frozen, Err(WriteError::SchemaAccepted { .. })), "{frozen:?}");
    (0..20).for_each(|_| cluster.settle());
    assert_eq!(cluster.replica(0).status().freeze, None);
    cluster.rows(0, "SELECT value FROM littoral_meta WHERE name = 'last_freeze'").remove(0)
}

#[test]
fn a_column_becomes_a_set_and_another_type_again_once_everybody_has_stopped_writing() {
    const DECLARE: &str =
        "SELECT littoral_policy('bag', 'read-after-write', '{\"writers\": \"any\",
        \"columns\": {\"tags\": \"set\", \"marks\": \"set\", \"note\": \"set\"}}')";
    let mut cluster = cluster(
        2,
        r#"INSERT INTO bag(id, tags, note) VALUES('a', '[1]', '["b","a"]'), ('b', '[]', 'no set')"#,
    );
    let refused = migrate(&mut cluster, DECLARE).unwrap_err().to_string();
    assert!(
        refused.contains("column \"note\" is declared set, and the row 'b' holds none"),
        "{refused}"
    );
    cluster.write(1, "UPDATE bag SET note = '[2, 1]' WHERE id = 'b'");
    cluster.settle();
    assert_eq!(migrate_slowly(&mut cluster, DECLARE), "");
    let notes = "SELECT note FROM bag ORDER BY id";
    cluster.assert_rows(notes, &[r#"["a","b"]"#, "[1,2]"]);
    cluster.cut();
    cluster.write(0, "UPDATE bag SET note = '[\"a\"]' WHERE id = 'a'");
    cluster.write(1, "UPDATE bag SET note = '[\"a\",\"b\",\"c\"]' WHERE id = 'a'");
    join(&mut cluster);
    cluster.assert_rows(notes, &[r#"["a","c"]"#, "[1,2]"]);
    assert_eq!(cluster.rows(0, "SELECT * FROM littoral_conflicts"), [""; 0]);

    // A rebuilt table passes its sets on, and what it spells in another way is spelled anew.
    let rebuild = "PRAGMA foreign_keys = off;
        CREATE TABLE new(id TEXT PRIMARY KEY NOT NULL, tags TEXT, marks TEXT, note TEXT);
        INSERT INTO new SELECT id, json_insert(tags, '$[#]', 'z', '$[#]', 1), marks, note FROM bag;
        DROP TABLE bag; ALTER TABLE new RENAME TO bag; PRAGMA foreign_keys = on";
    assert_eq!(migrate_slowly(&mut cluster, rebuild), "");
    cluster.assert_rows("SELECT tags FROM bag ORDER BY id", &[r#"[1,"z"]"#, r#"[1,"z"]"#]);

    let plain = "SELECT littoral_policy('bag', 'read-after-write', '{\"writers\": \"any\"}')";
    assert_eq!(migrate_slowly(&mut cluster, plain), "");
    cluster.write(1, "UPDATE bag SET note = 'as it comes'");
    cluster.settle();
    cluster.assert_rows("SELECT DISTINCT note FROM bag", &["as it comes"]);
    for node in 0..2 {
        drop(cluster.replicas[node].take());
        cluster.open(node);
    }
}

#[test]
fn many_rows_with_sets_are_stored_in_any_order() {
    let mut cluster = cluster(2, "");
    cluster.cut();
    cluster.write(
        0,
        "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 100)
         INSERT INTO bag(id, tags, marks) SELECT 'k' || value, json_array(value, 'x'), json_array(value % 3)
         FROM n",
    );
    cluster.write(1, "INSERT INTO bag(id, tags) VALUES('k50', '[\"y\"]')");
    join(&mut cluster);
    let sums = "SELECT count(*), sum(tags ->> 0), sum(marks ->> 0) FROM bag WHERE json_valid(tags)";
    cluster.assert_rows(sums, &["100|5050|100"]);
    cluster.assert_rows("SELECT tags FROM bag WHERE id = 'k50'", &[r#"[50,"x","y"]"#]);
}

#[test]
fn sqlite_reads_what_is_stored() {
    let mut cluster = cluster(
        1,
        r#"INSERT INTO bag(id, tags) VALUES('a', '["\u00e9\"\\\n", 1e21, -0.0, 1.5, 9007199254740993, true]')"#,
    );
    assert_eq!(
        cluster.rows(0, "SELECT value FROM bag, json_each(tags)"),
        ["1", "0", "1.5", "9007199254740993", "1e21", "é\"\\\n"]
    );
    assert_eq!(
        cluster.rows(0, "SELECT tags = littoral_set(json(tags)), littoral_set(NULL) FROM bag"),
        ["1|[]"]
    );
    let reader = cluster.replica(0).db().reader().unwrap();
    let error =
        reader.connection().query_row("SELECT littoral_set('[')", [], |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("littoral_set(): a set is a JSON array"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// Two replicas that are linked now and then: each statement adds or removes one element.
    #[test]
    fn replicas_end_with_the_elements_that_somebody_added_and_nobody_who_knew_removed(
        steps in prop::collection::vec((0usize..2, 0u8..4, 0u8..6), 1..25),
    ) {
        let mut cluster = cluster(2, "INSERT INTO bag(id) VALUES('a')");
        cluster.cut();
        // By element the adds that each node knows, and those it knows to be removed.
        let mut known: [BTreeSet<(u8, usize)>; 2] = Default::default();
        let mut removed: [BTreeSet<(u8, usize)>; 2] = Default::default();
        for (step, (node, element, what)) in steps.into_iter().enumerate() {
            let there = |n: usize| known[n].difference(&removed[n]).any(|(e, _)| *e == element);
            match what {
                0 => {
                    cluster.link(0, 1);
                    cluster.settle();
                    cluster.cut();
                    let all = |sets: &[BTreeSet<_>; 2]| &sets[0] | &sets[1];
                    (known, removed) = ([all(&known), all(&known)], [all(&removed), all(&removed)]);
                }
                1..4 => {
                    if !there(node) {
                        known[node].insert((element, step));
                    }
                    cluster.try_write(node, move |tx| {
                        tx.execute("UPDATE bag SET tags = json_insert(tags, '$[#]', ?)", [element]).map(drop)
                    }).unwrap();
                }
                _ => {
                    let gone: Vec<_> = known[node].iter().filter(|(e, _)| *e == element).copied().collect();
                    removed[node].extend(gone);
                    cluster.try_write(node, move |tx| {
                        let rest = "UPDATE bag SET tags = (SELECT json_group_array(value)
                                    FROM json_each(tags) WHERE value <> ?)";
                        tx.execute(rest, [element]).map(drop)
                    }).unwrap();
                }
            }
        }
        join(&mut cluster);
        let all = &(&known[0] | &known[1]) - &(&removed[0] | &removed[1]);
        let elements: BTreeSet<String> = all.into_iter().map(|(e, _)| e.to_string()).collect();
        let expected = format!("[{}]", elements.into_iter().collect::<Vec<_>>().join(","));
        prop_assert_eq!(cluster.rows(0, "SELECT tags FROM bag"), [expected]);
    }
}

#[test]
fn a_cell_that_another_program_spoiled_is_corrected_by_an_update() {
    let bag = policy(&[("tags", "set"), ("n", "counter")]);
    let schema =
        "CREATE TABLE bag(id TEXT PRIMARY KEY NOT NULL, tags TEXT, n INTEGER NOT NULL DEFAULT 0);";
    let mut cluster = support::linked(2, schema, &[("bag", bag)]);
    cluster.write(0, r#"INSERT INTO bag VALUES('a', '["a","b"]', 7), ('b', '[1]', 7)"#);
    cluster.settle();
    let file = rusqlite::Connection::open(cluster.path(1)).unwrap();
    file.execute_batch("UPDATE bag SET tags = 'spoiled', n = 'spoiled'").unwrap();
    drop(file);
    // A merge counts what is there as nothing, and so does the node's own correction.
    cluster.write(0, r#"UPDATE bag SET tags = '[1,2]', n = n + 2 WHERE id = 'b'"#);
    cluster.write(1, r#"UPDATE bag SET tags = '["c", "a"]', n = n + 5 WHERE id = 'a'"#);
    cluster.settle();
    let rows = "SELECT * FROM bag ORDER BY id";
    assert_eq!(cluster.rows(1, rows), [r#"a|["a","c"]|5"#, "b|[2]|2"]);
    assert_eq!(cluster.rows(0, rows), [r#"a|["a","b","c"]|12"#, "b|[1,2]|9"]);
    // What was there before, the origin knows.
    let now = cluster.now;
    assert!(cluster.replica(1).verify(now));
    (0..10).for_each(|_| cluster.wait(1000));
    assert_eq!(cluster.replica(1).status().verification.repaired, 2);
    cluster.assert_rows(rows, &[r#"a|["a","b","c"]|12"#, "b|[1,2]|9"]);
}

#[test]
fn two_tables_get_their_sets_in_one_transaction() {
    let schema = "CREATE TABLE a(id TEXT PRIMARY KEY NOT NULL, s TEXT, t TEXT);
        CREATE TABLE b(id TEXT PRIMARY KEY NOT NULL, s TEXT);";
    let rows = r#"INSERT INTO a VALUES('x', '["b", "a"]', '[ 1]'); INSERT INTO b VALUES('x', '["d", "c"]')"#;
    let any = r#"'eventual', json('{"writers": "any", "columns": {"s": "set"}}')"#;
    let more = r#"'eventual', json('{"writers": "any", "columns": {"s": "set", "t": "set"}}')"#;
    for script in [
        format!("SELECT littoral_policy('a', {any}); SELECT littoral_policy('b', {any});"),
        format!("SELECT littoral_policy('a', {any}), littoral_policy('b', {any})"),
    ] {
        let mut cluster = support::linked(2, schema, &[]);
        cluster.write(0, rows);
        cluster.settle();
        let done = cluster.try_write(0, {
            let script = script.clone();
            move |tx| tx.execute_batch(&script)
        });
        done.unwrap_or_else(|error| panic!("{script}: {error}"));
        cluster.assert_rows(
            "SELECT s FROM a UNION ALL SELECT s FROM b",
            &[r#"["a","b"]"#, r#"["c","d"]"#],
        );
    }
    // The first declaration of a table has its rows written.
    let mut cluster = support::linked(1, schema, &[]);
    cluster.write(0, rows);
    let twice = format!("SELECT littoral_policy('a', {any}); SELECT littoral_policy('a', {more});");
    let error = refused(&mut cluster, &twice);
    assert!(error.contains("all at once"), "{error}");
    let at_once = format!("SELECT littoral_policy('a', {more});");
    cluster.try_write(0, move |tx| tx.execute_batch(&at_once)).unwrap();
}
