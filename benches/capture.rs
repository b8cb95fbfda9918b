//! What replication adds to local writes and reads, as ratios to plain SQLite in the same run: 100,000
//! rows in one transaction, WAL; once with an INTEGER key and ascending keys, once with a key of 36
//! characters in random order.

use std::time::Duration;

use littoral_benches::{ItemRow, Key, Node, Plain, figure, repeats, row_count, rows, timed};
use rusqlite::{Connection, ToSql, params};

const INSERT: &str = "INSERT INTO item VALUES(?1, ?2, ?3, ?4, ?5, ?6)";
const UPDATE: &str = "UPDATE item SET qty = qty + 1";
const DELETE: &str = "DELETE FROM item WHERE id = ?";
const SELECT: &str = "SELECT qty, note FROM item WHERE id = ?";

fn main() {
    for key in [Key::Integer, Key::Text] {
        capture(key);
    }
}

fn capture(key: Key) {
    let rows = rows(row_count(100_000));
    let mut inserts = Vec::new();
    let mut updates = Vec::new();
    let mut deletes = Vec::new();
    let mut reads = Vec::new();
    for _ in 0..repeats() {
        let mut node = Node::new(key);
        let plain = Plain::new(key);

        let batch = rows.clone();
        let ours = timed(|| {
            node.write(move |tx| {
                let mut insert = tx.prepare(INSERT)?;
                for r in &batch {
                    insert.execute(params![id(key, r), r.qty, r.price, r.name, r.note, r.data])?;
                }
                Ok(())
            });
        });
        inserts.push((ours, in_transaction(&plain, |conn| insert_plain(conn, key, &rows))));

        checkpoint(&node, &plain);
        reads.push(read(&node, &plain, key, &rows));

        let ours = timed(|| node.write(|tx| tx.execute(UPDATE, []).map(drop)));
        let theirs = in_transaction(&plain, |conn| {
            conn.execute(UPDATE, []).expect("an update");
        });
        updates.push((ours, theirs));

        checkpoint(&node, &plain);
        let batch = rows.clone();
        let ours = timed(|| {
            node.write(move |tx| {
                let mut delete = tx.prepare(DELETE)?;
                for r in &batch {
                    delete.execute([id(key, r)])?;
                }
                Ok(())
            });
        });
        let theirs = in_transaction(&plain, |conn| {
            let mut delete = conn.prepare_cached(DELETE).expect("a statement");
            for r in &rows {
                delete.execute([id(key, r)]).expect("a delete");
            }
        });
        deletes.push((ours, theirs));
    }
    let name = |what: &str| format!("capture-{what}-{}", key.name());
    figure(&name("insert"), &inserts, 2.5);
    figure(&name("update"), &updates, 3.0);
    figure(&name("delete"), &deletes, 2.5);
    figure(&format!("reader-{}", key.name()), &reads, 1.05);
}

fn id(key: Key, row: &ItemRow) -> &dyn ToSql {
    match key {
        Key::Integer => &row.number,
        Key::Text => &row.id,
    }
}

fn checkpoint(node: &Node, plain: &Plain) {
    node.checkpoint();
    plain.checkpoint();
}

fn in_transaction(plain: &Plain, run: impl FnOnce(&Connection)) -> Duration {
    timed(|| {
        plain.conn.execute_batch("BEGIN IMMEDIATE").expect("a transaction");
        run(&plain.conn);
        plain.conn.execute_batch("COMMIT").expect("a commit");
    })
}

fn insert_plain(conn: &Connection, key: Key, rows: &[ItemRow]) {
    let mut insert = conn.prepare_cached(INSERT).expect("a statement");
    for r in rows {
        insert
            .execute(params![id(key, r), r.qty, r.price, r.name, r.note, r.data])
            .expect("an insert");
    }
}

/// Every row by its key, through a reader and through a plain connection.
fn read(node: &Node, plain: &Plain, key: Key, rows: &[ItemRow]) -> (Duration, Duration) {
    let reader = node.replica.db().reader().expect("a reader");
    let all = |conn: &Connection| {
        let mut select = conn.prepare_cached(SELECT).expect("a statement");
        for r in rows {
            let found: (i64, String) = select
                .query_row([id(key, r)], |row| Ok((row.get(0)?, row.get(1)?)))
                .expect("the row");
            assert_eq!(found.0, r.qty);
        }
    };
    // Once to warm both caches.
    all(reader.connection());
    all(&plain.conn);
    (timed(|| all(reader.connection())), timed(|| all(&plain.conn)))
}
