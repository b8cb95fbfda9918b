//! Other programs at the replica's file: who only reads is not noticed, who writes is.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{Event, ForeignWrites};
use rusqlite::Connection;

use support::{Cluster, any};

const SCHEMA: &str = "
    CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, qty INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, note TEXT);
";

fn cluster() -> Cluster {
    support::linked(2, SCHEMA, &[("cart", any())])
}

fn other(cluster: &Cluster, node: usize) -> Connection {
    let conn = Connection::open(cluster.path(node)).unwrap();
    conn.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    conn
}

fn foreign(cluster: &mut Cluster, node: usize) -> Option<ForeignWrites> {
    cluster.replica(node).status().foreign
}

fn told(cluster: &Cluster, node: usize) -> usize {
    cluster.events.iter().filter(|event| **event == (node, Event::ForeignWrites)).count()
}

fn close(cluster: &mut Cluster, node: usize) {
    let now = cluster.now;
    cluster.replicas[node].take().unwrap().close(now).1.unwrap();
}

/// Whatever the two connections of a replica do in turns: own writes, those of others, checkpoints of
/// clocks, and at the origin migrations.
fn busy(cluster: &mut Cluster, round: u64) {
    for node in [0, 1] {
        let sql = format!("INSERT OR REPLACE INTO cart VALUES('{node} {round}', 1)");
        cluster.try_write(node, move |tx| tx.execute_batch(&sql)).unwrap();
    }
    cluster.write(0, "UPDATE cart SET qty = qty + 1; INSERT INTO orders(note) VALUES('x')");
    cluster.group(1, ["UPDATE cart SET qty = qty + 1", "SELECT 1", "DELETE FROM none"]);
    let now = cluster.now;
    cluster.replica(0).migrate(now, "ALTER TABLE orders RENAME COLUMN note TO note");
    cluster.drain(0);
    cluster.wait(600);
}

#[test]
fn who_only_reads_or_checkpoints_is_not_noticed() {
    let mut cluster = cluster();
    for round in 0..5 {
        busy(&mut cluster, round);
        for node in [0, 1] {
            let mut reader = other(&cluster, node);
            let rows = |conn: &Connection| -> i64 {
                conn.query_row("SELECT count(*) FROM cart", [], |row| row.get(0)).unwrap()
            };
            let read = reader.transaction().unwrap();
            rows(&read);
            busy(&mut cluster, 100 + 10 * round + node as u64);
            rows(&read);
            drop(read);
            for mode in ["PASSIVE", "FULL", "RESTART"] {
                reader
                    .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
                    .unwrap();
                busy(&mut cluster, 1000 + 100 * round + 10 * node as u64 + mode.len() as u64);
            }
            let mut copy = Connection::open_in_memory().unwrap();
            let backup = rusqlite::backup::Backup::new(&reader, &mut copy).unwrap();
            backup.run_to_completion(10, std::time::Duration::ZERO, None).unwrap();
            drop(backup);
            reader.execute_batch("BEGIN IMMEDIATE; DELETE FROM cart; ROLLBACK").unwrap();
            drop(reader);
            cluster.replica(node).db().wal_checkpoint().unwrap();
            assert_eq!(foreign(&mut cluster, node), None, "n{node}");
        }
    }
    for node in [0, 1] {
        close(&mut cluster, node);
        let reader = other(&cluster, node);
        let read: i64 =
            reader.query_row("SELECT count(*) FROM cart", [], |row| row.get(0)).unwrap();
        assert!(read > 0);
        drop(reader);
        cluster.open(node);
        assert_eq!((foreign(&mut cluster, node), told(&cluster, node)), (None, 0), "n{node}");
    }
}

#[test]
fn who_writes_is_noticed_at_once_and_told_once() {
    let mut cluster = cluster();
    busy(&mut cluster, 0);
    let since = cluster.now.wall;
    other(&cluster, 1).execute_batch("UPDATE orders SET note = 'y'").unwrap();
    let found = ForeignWrites { since, noticed: 1, while_closed: false };
    assert_eq!(foreign(&mut cluster, 1), Some(found));
    assert_eq!(foreign(&mut cluster, 0), None);
    cluster.wait(1000);
    other(&cluster, 1).execute_batch("DELETE FROM orders; VACUUM").unwrap();
    busy(&mut cluster, 1);
    assert_eq!(foreign(&mut cluster, 1).unwrap().noticed, 2);
    assert_eq!((told(&cluster, 0), told(&cluster, 1)), (0, 1));
}

/// Whichever connection of the replica has written before, and writes next.
#[test]
fn who_writes_between_any_two_writes_is_noticed() {
    let own = |cluster: &mut Cluster| cluster.write(1, "UPDATE cart SET qty = qty + 1");
    let remote = |cluster: &mut Cluster| cluster.write(0, "UPDATE cart SET qty = qty + 1");
    let kinds: [&dyn Fn(&mut Cluster); 2] = [&own, &remote];
    let mut cluster = cluster();
    cluster.write(0, "INSERT INTO cart VALUES('a', 1)");
    let mut noticed = 0;
    for before in kinds {
        for after in kinds {
            before(&mut cluster);
            other(&cluster, 1)
                .execute_batch("CREATE TABLE IF NOT EXISTS f(x); INSERT INTO f VALUES(1)")
                .unwrap();
            after(&mut cluster);
            before(&mut cluster);
            noticed += 1;
            assert_eq!(foreign(&mut cluster, 1).unwrap().noticed, noticed);
        }
    }
}

#[test]
fn who_writes_right_after_a_migration_is_noticed() {
    for script in ["ALTER TABLE orders ADD COLUMN more TEXT", "DROP TABLE nowhere"] {
        let mut cluster = cluster();
        busy(&mut cluster, 0);
        let now = cluster.now;
        cluster.replica(0).migrate(now, script);
        cluster.drain(0);
        other(&cluster, 0).execute_batch("UPDATE orders SET note = 'other'").unwrap();
        assert!(foreign(&mut cluster, 0).is_some(), "after {script}");
    }
}

#[test]
fn a_file_that_grew_shrank_or_changed_its_schema_while_it_was_closed_is_noticed() {
    for script in [
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 500)
         INSERT INTO orders(note) SELECT 'note ' || x FROM c",
        "CREATE INDEX by_note ON orders(note)",
        "DELETE FROM cart",
    ] {
        let mut cluster = cluster();
        cluster.write(
            0,
            "
            WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 1000)
            INSERT INTO cart SELECT 'cart ' || x, x FROM c",
        );
        cluster.settle();
        close(&mut cluster, 0);
        other(&cluster, 0).execute_batch(script).unwrap();
        cluster.open(0);
        let found = foreign(&mut cluster, 0).expect(script);
        assert!(found.while_closed && found.noticed == 0, "{script}");
        cluster.wait(1000);
        assert_eq!(told(&cluster, 0), 1, "{script}");
        // It is what it is from here on.
        close(&mut cluster, 0);
        cluster.open(0);
        assert_eq!(foreign(&mut cluster, 0), None, "{script}");
    }
}
