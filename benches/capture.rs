//! What replication adds to local writes and reads, as ratios to plain SQLite in the same run: 100,000
//! rows in one transaction, WAL, a key of 36 characters in random order.

use littoral_benches::{INSERT, ItemRow, Node, Plain, figure, repeats, row_count, rows, timed};
use rusqlite::params;

fn main() {
    let rows = rows(row_count(100_000));
    let mut inserts = Vec::new();
    let mut updates = Vec::new();
    let mut deletes = Vec::new();
    let mut reads = Vec::new();
    for _ in 0..repeats() {
        let mut node = Node::new();
        let plain = Plain::new();

        let batch = rows.clone();
        let ours = timed(|| {
            node.write(move |tx| {
                let mut insert = tx.prepare(INSERT)?;
                for r in &batch {
                    insert.execute(params![r.id, r.qty, r.price, r.name, r.note, r.data])?;
                }
                Ok(())
            });
        });
        inserts.push((ours, timed(|| in_transaction(&plain, |plain| insert_plain(plain, &rows)))));

        reads.push(read(&node, &plain, &rows));

        const UPDATE: &str = "UPDATE item SET qty = qty + 1";
        let ours = timed(|| node.write(|tx| tx.execute(UPDATE, []).map(drop)));
        let theirs = timed(|| {
            in_transaction(&plain, |plain| {
                plain.conn.execute(UPDATE, []).expect("an update");
            });
        });
        updates.push((ours, theirs));

        const DELETE: &str = "DELETE FROM item WHERE id = ?";
        let batch = rows.clone();
        let ours = timed(|| {
            node.write(move |tx| {
                let mut delete = tx.prepare(DELETE)?;
                for r in &batch {
                    delete.execute([&r.id])?;
                }
                Ok(())
            });
        });
        let theirs = timed(|| {
            in_transaction(&plain, |plain| {
                let mut delete = plain.conn.prepare_cached(DELETE).expect("a statement");
                for r in &rows {
                    delete.execute([&r.id]).expect("a delete");
                }
            });
        });
        deletes.push((ours, theirs));
    }
    figure("capture-insert", &inserts, 2.5);
    figure("capture-update", &updates, 3.0);
    figure("capture-delete", &deletes, 2.5);
    figure("reader", &reads, 1.05);
}

fn in_transaction(plain: &Plain, run: impl FnOnce(&Plain)) {
    plain.conn.execute_batch("BEGIN IMMEDIATE").expect("a transaction");
    run(plain);
    plain.conn.execute_batch("COMMIT").expect("a commit");
}

fn insert_plain(plain: &Plain, rows: &[ItemRow]) {
    let mut insert = plain.conn.prepare_cached(INSERT).expect("a statement");
    for r in rows {
        insert.execute(params![r.id, r.qty, r.price, r.name, r.note, r.data]).expect("an insert");
    }
}

/// Every row by its key, through a reader and through a plain connection.
fn read(
    node: &Node,
    plain: &Plain,
    rows: &[ItemRow],
) -> (std::time::Duration, std::time::Duration) {
    let reader = node.replica.db().reader().expect("a reader");
    let all = |conn: &rusqlite::Connection| {
        let mut select =
            conn.prepare_cached("SELECT qty, note FROM item WHERE id = ?").expect("a statement");
        for r in rows {
            let found: (i64, String) =
                select.query_row([&r.id], |row| Ok((row.get(0)?, row.get(1)?))).expect("the row");
            assert_eq!(found.0, r.qty);
        }
    };
    // Once to warm both caches.
    all(reader.connection());
    all(&plain.conn);
    (timed(|| all(reader.connection())), timed(|| all(&plain.conn)))
}
