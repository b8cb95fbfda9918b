//! What replicas promise, in one loop.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use std::sync::{Arc, Mutex};

use littoral::{
    Channel, CloseCode, ColumnType, Genesis, Input, NodeId, TablePolicy, WallTime, WriteError,
    WriteTx, Writers,
};

use self::support::Cluster;

const SCHEMA: &str = "
    CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, item TEXT, note TEXT, qty INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE, total REAL);
    CREATE TABLE lines(
      id INTEGER PRIMARY KEY, orders INTEGER NOT NULL REFERENCES orders(id) ON DELETE CASCADE
      DEFERRABLE INITIALLY DEFERRED, qty INTEGER CHECK (qty > 0));
";

fn cart() -> [(&'static str, TablePolicy); 1] {
    let columns = [("qty".to_owned(), ColumnType::Counter)].into();
    [("cart", TablePolicy { writers: Writers::Any, columns, ..TablePolicy::default() })]
}

fn apart(nodes: usize) -> Cluster {
    Cluster::new(nodes, SCHEMA, &cart())
}

fn linked(nodes: usize) -> Cluster {
    support::linked(nodes, SCHEMA, &cart())
}

#[test]
fn schema_and_members_reach_an_empty_edge_through_a_relay() {
    let mut cluster = linked(3);
    let status = cluster.replica(2).status();
    assert_eq!(status.members.len(), 3);
    assert_eq!(status.tables.len(), 3);
    assert_eq!(status.origin, Some(NodeId::new("n0").unwrap()));
    assert_eq!(status.applied, status.durable);
    cluster.write(2, "INSERT INTO cart VALUES('a', 'apple', NULL, 1)");
    cluster.settle();
    assert_eq!(cluster.rows(0, "SELECT * FROM cart"), ["a|apple|null|1"]);
    cluster.assert_equal();
}

#[test]
fn concurrent_writes_merge_column_by_column_and_counters_add_up() {
    let mut cluster = linked(3);
    cluster.write(1, "INSERT INTO cart VALUES('a', 'apple', 'x', 10)");
    cluster.settle();
    cluster.cut();
    cluster.write(1, "UPDATE cart SET item = 'pear', qty = qty + 5");
    cluster.write(2, "UPDATE cart SET note = 'ripe', qty = qty - 3");
    cluster.link(1, 0);
    cluster.link(2, 0);
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(0, "SELECT * FROM cart"), ["a|pear|ripe|12"]);
    assert!(cluster.rows(0, "SELECT * FROM littoral_conflicts").is_empty());
}

#[test]
fn the_later_of_two_concurrent_assignments_wins_and_the_other_is_listed() {
    let mut cluster = linked(2);
    cluster.write(1, "INSERT INTO cart(id, item) VALUES('a', 'apple')");
    cluster.settle();
    cluster.cut();
    cluster.write(0, "UPDATE cart SET item = 'first'");
    cluster.now.wall = WallTime(cluster.now.wall.0 + 50);
    cluster.write(1, "UPDATE cart SET item = 'second'");
    cluster.link(1, 0);
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(0, "SELECT item FROM cart"), ["second"]);
    let conflict = "SELECT rule, \"table\", \"column\", \"row\", kept, kept_by, lost, lost_by \
                    FROM littoral_conflicts";
    let expected = ["last writer wins|cart|item|[\"a\"]|second|n1|first|n0"];
    assert_eq!(cluster.rows(0, conflict), expected);
    assert_eq!(cluster.rows(1, conflict), expected);
    cluster.write(0, "UPDATE cart SET item = 'causal'");
    cluster.settle();
    assert_eq!(cluster.rows(1, "SELECT count(*) FROM littoral_conflicts"), ["1"]);
}

#[test]
fn delete_wins_over_a_concurrent_update_and_an_insert_after_it_begins_anew() {
    let mut cluster = linked(3);
    cluster.write(1, "INSERT INTO cart VALUES('a', 'apple', 'x', 10)");
    cluster.settle();
    cluster.cut();
    cluster.write(1, "DELETE FROM cart");
    cluster.write(1, "INSERT INTO cart VALUES('a', 'anew', NULL, 1)");
    cluster.now.wall = WallTime(cluster.now.wall.0 + 50);
    cluster.write(2, "UPDATE cart SET note = 'late', qty = 99");
    cluster.link(1, 0);
    cluster.link(2, 0);
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(2, "SELECT * FROM cart"), ["a|anew|null|1"]);
    assert_eq!(
        cluster.rows(2, "SELECT rule, lost FROM littoral_conflicts"),
        ["delete wins|late"],
        "the author of the update sees its value discarded"
    );
}

#[test]
fn concurrent_inserts_of_one_key_merge_and_sum_their_counters() {
    let mut cluster = linked(3);
    cluster.cut();
    cluster.write(1, "INSERT INTO cart VALUES('a', 'apple', NULL, 2)");
    cluster.write(2, "INSERT INTO cart VALUES('a', 'pear', 'n', 3)");
    cluster.link(1, 0);
    cluster.link(2, 0);
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(0, "SELECT qty FROM cart"), ["5"]);
}

#[test]
fn what_failed_statements_and_savepoints_undo_is_not_captured() {
    let mut cluster = linked(2);
    let committed = cluster
        .try_write(0, |tx| {
            tx.execute("INSERT INTO orders VALUES(1, 'a', 1)", [])?;
            let many = "INSERT INTO orders VALUES(2, 'b', 1), (3, 'a', 1)";
            assert!(tx.execute(many, []).is_err(), "one of the rows breaks UNIQUE");
            let kept = "INSERT OR FAIL INTO orders VALUES(4, 'd', 1), (5, 'a', 1)";
            assert!(tx.execute(kept, []).is_err(), "the row before the failure stays");
            tx.execute_batch(
                "SAVEPOINT s; INSERT INTO orders VALUES(6, 'f', 1); UPDATE orders SET total = 2; \
                 ROLLBACK TO s; RELEASE s; INSERT OR REPLACE INTO orders VALUES(7, 'd', 3);",
            )
        })
        .unwrap();
    assert!(committed.dot.is_some());
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, "SELECT * FROM orders"), ["1|a|1.0", "7|d|3.0"]);
}

#[test]
fn unique_values_may_be_exchanged_within_one_transaction() {
    let mut cluster = linked(2);
    cluster.write(0, "INSERT INTO orders VALUES(1, 'a', 1), (2, 'b', 2), (3, 'c', 3)");
    cluster.write(
        0,
        "UPDATE orders SET code = 'x' WHERE id = 1; UPDATE orders SET code = 'a' WHERE id = 2; \
         UPDATE orders SET code = 'b' WHERE id = 1; DELETE FROM orders WHERE id = 3; \
         INSERT INTO orders VALUES(0, 'c', 0)",
    );
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, "SELECT id, code FROM orders ORDER BY id"), ["0|c", "1|b", "2|a"]);
}

#[test]
fn a_cascade_is_captured_and_a_deferred_violation_fails_its_own_job_only() {
    let mut cluster = linked(2);
    let now = cluster.now;
    let jobs = [
        "INSERT INTO orders VALUES(1, 'a', 1); INSERT INTO lines VALUES(1, 1, 2)",
        "INSERT INTO lines VALUES(2, 99, 2)",
        "INSERT INTO orders VALUES(2, 'b', 1)",
        "DELETE FROM orders WHERE id = 1",
    ];
    let tickets = jobs.map(|sql| {
        cluster.replica(0).write(now, Box::new(move |tx: &mut WriteTx<'_>| tx.execute_batch(sql)))
    });
    cluster.drain(0);
    let ended = tickets.map(|ticket| cluster.done.remove(&(0, ticket)).unwrap());
    assert!(ended[0].is_ok() && ended[2].is_ok() && ended[3].is_ok());
    let message = ended[1].as_ref().unwrap_err().to_string();
    assert_eq!(message, "FOREIGN KEY constraint failed");
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, "SELECT id FROM orders"), ["2"]);
    assert!(cluster.rows(1, "SELECT * FROM lines").is_empty());
    assert_eq!(cluster.replica(0).status().counts.groups, 1);
}

#[test]
fn a_statement_that_rolls_the_group_back_fails_alone() {
    let mut cluster = linked(2);
    let now = cluster.now;
    cluster.write(0, "INSERT INTO orders VALUES(1, 'a', 1)");
    let jobs = [
        "INSERT INTO orders VALUES(2, 'b', 1)",
        "INSERT OR ROLLBACK INTO orders VALUES(3, 'a', 1)",
        "INSERT INTO orders VALUES(4, 'd', 1)",
    ];
    let tickets = jobs.map(|sql| {
        cluster.replica(0).write(now, Box::new(move |tx: &mut WriteTx<'_>| tx.execute_batch(sql)))
    });
    cluster.drain(0);
    let ended = tickets.map(|ticket| cluster.done.remove(&(0, ticket)).unwrap().is_ok());
    assert_eq!(ended, [true, false, true]);
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, "SELECT id FROM orders"), ["1", "2", "4"]);
}

#[test]
fn an_edge_is_told_what_it_cannot_do() {
    let mut cluster = linked(2);
    let mut refused = |sql: &'static str| {
        cluster.try_write(1, move |tx| tx.execute_batch(sql)).unwrap_err().to_string()
    };
    assert!(refused("INSERT INTO orders VALUES(1, 'a', 1)").contains("written at the origin only"));
    assert!(refused("CREATE TABLE t(x)").contains("run it there (node n0)"));
    assert!(refused("BEGIN").contains("BEGIN is not available"));
    assert!(refused("COMMIT").contains("COMMIT is not available"));
    assert!(refused("ATTACH ':memory:' AS x").contains("ATTACH"));
    assert!(refused("VACUUM").contains("VACUUM"));
    assert!(refused("PRAGMA foreign_keys = off").contains("PRAGMA foreign_keys"));
    assert!(refused("DELETE FROM littoral_log").contains("littoral_log"));
    assert!(refused("/*littoral*/ SELECT 1").contains("comment"));
    assert!(refused("INSERT INTO cart VALUES('a', 1, 2, 'many')").contains("64-bit"));
    assert!(refused("CREATE TEMP TABLE t(x)").contains("temporary"));
}

#[test]
fn a_node_that_has_not_joined_refuses_to_write() {
    let mut cluster = apart(2);
    let error = cluster.try_write(1, |tx| tx.execute_batch("SELECT 1")).unwrap_err();
    assert!(matches!(error, WriteError::NotAMember) && error.is_retryable());
}

#[test]
fn a_restarted_replica_goes_on_where_it_was() {
    let mut cluster = linked(2);
    cluster.write(1, "INSERT INTO cart VALUES('a', 'apple', 'x', 10)");
    cluster.settle();
    cluster.cut();
    cluster.write(1, "UPDATE cart SET item = 'mine'");
    cluster.write(0, "UPDATE cart SET note = 'yours', qty = qty + 1");
    for node in [0, 1] {
        cluster.replicas[node] = None;
        cluster.open(node);
    }
    cluster.write(1, "UPDATE cart SET qty = qty + 1");
    cluster.link(0, 1);
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(0, "SELECT * FROM cart"), ["a|mine|yours|12"]);
}

#[test]
fn a_peer_that_talks_nonsense_loses_its_link_and_nothing_else_happens() {
    let mut cluster = linked(2);
    for (channel, bytes) in [
        (Channel::Control, vec![1, 0, 0, 0, 1, 99]),
        (Channel::Control, vec![]),
        (Channel::Entries, vec![4, 0, 0, 0, 2, 3, 1, 2, 3]),
        (Channel::Entries, vec![2, 0, 0, 0, 3, 200, 9]),
    ] {
        let &(node, peer) = cluster.links.keys().next().unwrap();
        cluster.closed.clear();
        cluster.handle(node, Input::Frame { peer, channel, bytes });
        assert_eq!(cluster.closed, [(node, CloseCode::Malformed)]);
        cluster.link(0, 1);
        cluster.settle();
    }
    cluster.write(0, "INSERT INTO orders VALUES(1, 'a', 1)");
    cluster.settle();
    cluster.assert_equal();
}

#[test]
fn an_old_copy_of_a_file_is_recognised_and_stops_writing() {
    let mut cluster = linked(2);
    cluster.write(1, "INSERT INTO cart VALUES('a', 'apple', 'x', 10)");
    cluster.settle();
    cluster.cut();
    let replica = cluster.replicas[1].take().unwrap();
    replica.close(cluster.now).1.unwrap();
    let path = cluster.path(1);
    std::fs::copy(&path, path.with_extension("old")).unwrap();
    // A copy of a whole disk has the note beside the file, too.
    let note = cluster.note(1);
    std::fs::copy(&note, note.with_extension("old-id")).unwrap();
    cluster.open(1);
    cluster.write(1, "UPDATE cart SET item = 'lost'");
    cluster.link(1, 0);
    cluster.settle();
    cluster.cut();
    cluster.replicas[1].take().unwrap().close(cluster.now).1.unwrap();
    std::fs::rename(path.with_extension("old"), &path).unwrap();
    std::fs::rename(note.with_extension("old-id"), &note).unwrap();
    cluster.open(1);
    cluster.link(1, 0);
    cluster.settle();
    let error = cluster.try_write(1, |tx| tx.execute_batch("DELETE FROM cart")).unwrap_err();
    assert!(error.to_string().contains("old copy"), "{error}");
}

#[test]
fn the_results_of_a_job_come_out_through_what_it_captures() {
    let mut cluster = linked(2);
    let found = Arc::new(Mutex::new(String::new()));
    let place = Arc::clone(&found);
    cluster
        .try_write(1, move |tx| {
            tx.execute("INSERT INTO cart(id, item) VALUES(?1, ?2)", ["k", "kiwi"])?;
            let item =
                tx.query_row("SELECT item FROM cart WHERE id = ?", ["k"], |row| row.get(0))?;
            *place.lock().unwrap() = item;
            Ok(())
        })
        .unwrap();
    assert_eq!(*found.lock().unwrap(), "kiwi");
}

#[test]
fn a_node_that_lost_its_file_is_recognised_before_it_writes() {
    let mut cluster = linked(2);
    cluster.write(1, "INSERT INTO cart VALUES('a', 'apple', 'x', 10)");
    cluster.settle();
    cluster.cut();
    cluster.replicas[1].take().unwrap().close(cluster.now).1.unwrap();
    std::fs::remove_file(cluster.path(1)).unwrap();
    // With the note beside it, that would have told.
    std::fs::remove_file(cluster.note(1)).unwrap();
    cluster.open(1);
    cluster.link(1, 0);
    cluster.settle();
    let error = cluster.try_write(1, |tx| tx.execute_batch("DELETE FROM cart")).unwrap_err();
    assert!(error.to_string().contains("was lost"), "{error}");
}

#[test]
fn a_counter_may_be_named_in_another_case() {
    let schema = "CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, qty INTEGER NOT NULL)".to_owned();
    let counter = [("QTY".to_owned(), ColumnType::Counter)];
    let policy =
        TablePolicy { writers: Writers::Any, columns: counter.into(), ..TablePolicy::default() };
    let genesis =
        Genesis { schema, policies: [("T".to_owned(), policy)].into(), ..Genesis::default() };
    let tables = genesis.check().unwrap();
    assert_eq!(tables[0].policy.columns["qty"], ColumnType::Counter);
}

fn refusals(schema: &str, policies: &[(&str, TablePolicy)]) -> String {
    let policies = policies.iter().map(|(name, policy)| ((*name).to_owned(), policy.clone()));
    let genesis =
        Genesis { schema: schema.to_owned(), policies: policies.collect(), ..Genesis::default() };
    genesis.check().unwrap_err().to_string()
}

#[test]
fn every_constraint_that_stands_in_the_way_is_named() {
    let any = TablePolicy { writers: Writers::Any, ..TablePolicy::default() };
    let counter = [("note".to_owned(), ColumnType::Counter)];
    let counting = TablePolicy { columns: counter.into(), ..any.clone() };
    let schema = "
        CREATE TABLE a(id INTEGER PRIMARY KEY, code TEXT UNIQUE, note TEXT,
          twice AS (code || code), parent TEXT REFERENCES b(id));
        CREATE TABLE b(id TEXT PRIMARY KEY);
        CREATE TABLE c(id INTEGER PRIMARY KEY AUTOINCREMENT);
        CREATE TABLE d(x);
        CREATE TABLE e(rowid, oid, _rowid_);
        CREATE INDEX partly ON a(note) WHERE note > '';";
    let message =
        refusals(schema, &[("a", counting), ("b", any.clone()), ("c", any.clone()), ("d", any)]);
    for named in [
        "UNIQUE (code)",
        "foreign keys",
        "table \"a\" has a foreign key to it",
        "\"twice\" is generated",
        "hands out its INTEGER PRIMARY KEY",
        "\"note\" is a counter but not INTEGER NOT NULL",
        "index \"partly\"",
        "key column \"id\" may be NULL",
        "AUTOINCREMENT",
        "no primary key",
        "its columns hide the rowid",
    ] {
        assert!(message.contains(named), "{named:?} is missing in\n{message}");
    }
}

#[test]
fn what_a_schema_may_not_hold_is_named() {
    for (schema, named) in [
        ("CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL); INSERT INTO t VALUES('a')", "writes rows"),
        ("CREATE TABLE t AS SELECT 1 AS x", "AS SELECT"),
        ("CREATE VIRTUAL TABLE t USING rtree(id, a, b)", "another module than FTS5"),
        ("CREATE TEMP TABLE t(x)", "temporary"),
        ("CREATE TABLE littoral_t(x)", "littoral_"),
        ("PRAGMA journal_mode = DELETE", "PRAGMA"),
        ("BEGIN", "transaction"),
        ("CREATE TABLE (", "syntax error"),
    ] {
        let message = refusals(schema, &[]);
        assert!(message.contains(named), "{schema}: {message}");
    }
}

#[test]
fn explaining_a_savepoint_does_nothing_to_it() {
    let mut cluster = linked(2);
    cluster.write(
        0,
        "SAVEPOINT x; INSERT INTO orders VALUES(1, 'ghost', 1); EXPLAIN RELEASE x; ROLLBACK TO x; \
         EXPLAIN SAVEPOINT x; RELEASE x; INSERT INTO orders VALUES(2, 'b', 1)",
    );
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, "SELECT code FROM orders"), ["b"]);
}

#[test]
fn what_triggers_upserts_and_foreign_key_actions_change_is_captured() {
    let mut cluster = Cluster::new(
        2,
        "CREATE TABLE parent(id TEXT PRIMARY KEY NOT NULL, name TEXT, seen INTEGER DEFAULT 0);
         CREATE TABLE child(id INTEGER PRIMARY KEY, parent TEXT DEFAULT 'none', note TEXT,
           FOREIGN KEY(parent) REFERENCES parent(id) ON UPDATE CASCADE ON DELETE SET NULL);
         CREATE TABLE other(id INTEGER PRIMARY KEY, parent TEXT, note TEXT,
           FOREIGN KEY(parent) REFERENCES parent(id) ON UPDATE SET DEFAULT);
         CREATE VIEW names AS SELECT id, name FROM parent;
         CREATE TRIGGER through_view INSTEAD OF UPDATE ON names BEGIN
           UPDATE parent SET name = new.name WHERE id = old.id; END;
         CREATE TRIGGER seen AFTER UPDATE OF name ON parent BEGIN
           UPDATE parent SET seen = seen + 1 WHERE id = new.id;
           UPDATE child SET note = new.name WHERE parent = new.id; END;",
        &[],
    );
    cluster.link(0, 1);
    cluster.settle();
    cluster.write(0, "INSERT INTO parent(id, name) VALUES('a', 'x'), ('b', 'y'), ('c', 'z')");
    cluster.write(0, "INSERT INTO child VALUES(1, 'a', ''), (2, 'b', ''), (3, 'c', '')");
    cluster.write(0, "INSERT INTO other VALUES(1, 'a', '')");
    // Each twice, so that the second time the statement is prepared already.
    for _ in 0..2 {
        for sql in [
            "UPDATE parent SET name = name || '!'",
            "UPDATE names SET name = name || '?' WHERE id = 'b'",
            "INSERT INTO parent(id, name) VALUES('b', 'w') ON CONFLICT DO UPDATE SET name = 'v'",
            "INSERT OR REPLACE INTO parent(id, name, seen) VALUES('b', 'r', 7)",
            "UPDATE OR REPLACE parent SET id = id || '1' WHERE id LIKE 'a%'",
            "DELETE FROM parent WHERE id = 'c'",
            "UPDATE child SET id = id + 10 WHERE id < 10",
        ] {
            cluster.try_write(0, move |tx| tx.execute(sql, []).map(drop)).unwrap();
            cluster.settle();
            cluster.assert_equal();
        }
    }
}

#[test]
fn two_nodes_that_dial_each_other_keep_one_link() {
    let mut cluster = apart(2);
    cluster.link(0, 1);
    cluster.link(1, 0);
    assert_eq!([0, 1].map(|node| cluster.replica(node).status().peers.len()), [1, 1]);
    assert_eq!(cluster.closed, [(0, CloseCode::Replaced)]);
    cluster.write(1, "INSERT INTO cart(id) VALUES('a')");
    cluster.settle();
    cluster.assert_equal();
}

#[test]
fn many_rows_that_two_nodes_insert_at_once_add_up() {
    let schema = "CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, qty INTEGER NOT NULL DEFAULT 0)";
    let mut cluster = support::linked(2, schema, &cart());
    cluster.cut();
    // Some of them with a zero byte in the key, which stands there escaped.
    let insert = |from: u32, qty: u32| {
        format!(
            "WITH RECURSIVE i(n) AS (VALUES({from}) UNION ALL SELECT n + 1 FROM i WHERE n < {from} + 199)
             INSERT INTO cart SELECT iif(n % 7, 'k' || n, 'k' || char(0) || n), {qty} + n FROM i"
        )
    };
    for (node, sql) in [(0, insert(0, 1000)), (1, insert(100, 5000))] {
        cluster.try_write(node, move |tx| tx.execute(&sql, []).map(drop)).unwrap();
    }
    cluster.link(0, 1);
    cluster.settle();
    cluster.assert_equal();
    let sum = (0..200).map(|n| 1000 + n).sum::<u64>() + (100..300).map(|n| 5000 + n).sum::<u64>();
    let found = cluster.rows(1, "SELECT count(*), sum(qty) FROM cart");
    assert_eq!(found, [format!("300|{sum}")]);
}

#[test]
fn many_rows_may_take_over_the_unique_values_of_others_in_one_transaction() {
    let mut cluster = linked(2);
    let insert = |from: u32| {
        format!(
            "WITH RECURSIVE i(n) AS (VALUES(0) UNION ALL SELECT n + 1 FROM i WHERE n < 99)
             INSERT INTO orders SELECT {from} + n, 'code ' || n, n FROM i"
        )
    };
    let (old, new) = (insert(1000), insert(1));
    cluster.try_write(0, move |tx| tx.execute(&old, []).map(drop)).unwrap();
    cluster.settle();
    // In key order, the new rows come before the old ones go; some codes are free.
    cluster
        .try_write(0, move |tx| {
            tx.execute("UPDATE orders SET code = 'free ' || id WHERE id % 10 = 0", [])?;
            tx.execute("DELETE FROM orders WHERE id % 10 <> 0", [])?;
            tx.execute(&new, []).map(drop)
        })
        .unwrap();
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, "SELECT count(*), count(DISTINCT code) FROM orders"), ["110|110"]);
}

#[test]
fn a_row_that_is_deleted_and_inserted_again_is_updated_in_what_differs() {
    let mut cluster = linked(2);
    cluster.write(0, "INSERT INTO cart VALUES('a', 'apple', 'ripe', 3), ('b', 'pear', 'green', 5)");
    cluster.settle();
    cluster.cut();
    cluster.write(
        1,
        "UPDATE cart SET note = note || '!' WHERE id = 'a'; UPDATE cart SET qty = qty + 10",
    );
    const AGAIN: &str = "INSERT INTO cart VALUES('a', 'quince', 'ripe', 4)";
    // Alone, and with another job in the transaction; the statement that deletes tells no values.
    let jobs: [&'static [&'static str]; 4] = [
        &["UPDATE cart SET note = 'soft'", "DELETE FROM cart WHERE id = 'a'", AGAIN],
        &["UPDATE cart SET note = 'ripe' WHERE id = 'a'"],
        &[
            "SAVEPOINT s",
            "DELETE FROM cart WHERE id = 'a'",
            "INSERT INTO cart VALUES('a', 'x', 'y', 100)",
            "UPDATE cart SET qty = 7, item = 'z' WHERE id = 'a'",
            "ROLLBACK TO s",
        ],
        &["DELETE FROM cart", AGAIN, "INSERT INTO cart VALUES('b', 'plum', 'soft', 5)"],
    ];
    for job in jobs {
        cluster
            .try_write(0, move |tx| job.iter().try_for_each(|sql| tx.execute(sql, []).map(drop)))
            .unwrap();
    }
    let now = cluster.now;
    for sql in ["DELETE FROM cart WHERE id = 'b'", "INSERT INTO cart VALUES('c', 'fig', '', 0)"] {
        cluster.replica(0).write(
            now,
            Box::new(move |tx| {
                tx.execute("SAVEPOINT s", [])?;
                tx.execute(sql, [])?;
                tx.execute("ROLLBACK TO s", [])?;
                tx.execute(sql, [])?;
                tx.execute("INSERT OR IGNORE INTO cart VALUES('b', 'plum', 'soft', 6)", [])
                    .map(drop)
            }),
        );
    }
    cluster.drain(0);
    cluster.link(0, 1);
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(
        cluster.rows(1, "SELECT * FROM cart ORDER BY id"),
        ["a|quince|ripe!|14", "b|plum|soft|16", "c|fig||0"],
        "what was not changed here is what the other node made of it"
    );
}
